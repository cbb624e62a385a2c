import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.noise import frame_generator, frame_seed, noise

SHAPE = (4, 5, 3)


def test_any_sharding_and_order_gives_the_same_bits() -> None:
    whole = noise(7, 0, range(12), 0, SHAPE)
    assert whole.shape == (12, *SHAPE) and whole.dtype == torch.float32
    pieces = torch.cat([noise(7, 0, range(0, 5), 0, SHAPE), noise(7, 0, range(5, 12), 0, SHAPE)])
    assert torch.equal(whole, pieces)
    assert torch.equal(whole[[9, 2]], noise(7, 0, [9, 2], 0, SHAPE))


def test_torchs_own_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = noise(7, 0, [3], 0, SHAPE)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(noise(7, 0, [3], 0, SHAPE), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_counter_gives_another_stream() -> None:
    streams = [noise(*key, SHAPE) for key in ((1, 0, [0], 0), (0, 1, [0], 0), (0, 0, [1], 0), (0, 0, [0], 1))]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert not torch.isclose(a, b).any()


def test_a_frames_generator_continues_where_its_noise_ends() -> None:
    generator = frame_generator(7, 0, 3, 2)
    assert torch.equal(torch.randn(SHAPE, generator=generator), noise(7, 0, [3], 2, SHAPE)[0])


def test_the_bits_never_change() -> None:
    # Runs are resumed and extended by redrawing their noise, so these values are a public format.
    assert frame_seed(7, 1, 2, 3) == 0x81016DC5DEC965FB
    words = torch.randint(0, 2**31 - 1, (64,), generator=frame_generator(7, 1, 2, 3), dtype=torch.int64)
    assert hashlib.sha256(words.numpy().tobytes()).hexdigest()[:16] == "3338966d8a23ee3e"
    torch.testing.assert_close(
        noise(7, 1, [2], 3, (16,))[0, :3], torch.tensor([-0.390027, -0.445756, -1.737006]), rtol=0, atol=1e-5
    )


def test_seeds_that_agree_in_their_low_32_bits_give_different_noise() -> None:
    # torch's CPU generator drops the upper half of a seed; two of 70,000 streams would then be equal in 2 of 5 runs.
    low, high = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5 + 2**32)
    assert torch.equal(torch.randn(8, generator=low), torch.randn(8, generator=high)), "torch no longer has the trap"
    by_low_half: dict[int, list[int]] = {}
    for frame in range(300_000):
        key = frame_seed(0, 0, frame, 0)
        by_low_half.setdefault(key & 0xFFFFFFFF, []).append(frame)
    pairs = [frames for frames in by_low_half.values() if len(frames) > 1]
    assert pairs, "choose more frames: no two keys share a low half"
    for a, b, *_ in pairs:
        assert not torch.equal(noise(0, 0, [a], 0, SHAPE), noise(0, 0, [b], 0, SHAPE))


def test_it_is_standard_normal_and_uncorrelated_between_frames() -> None:
    x = noise(0, 0, range(64), 0, (1024,))
    assert abs(x.mean().item()) < 0.02 and abs(x.std().item() - 1) < 0.02
    correlation = torch.corrcoef(x) - torch.eye(64)
    assert correlation.abs().max() < 6 / 1024**0.5


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_any_64_bit_counter_is_accepted(seed: int, frame: int) -> None:
    assert 0 <= frame_seed(seed, 0, frame, 0) < 2**64


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_counters_outside_64_bits_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="frame is"):
        noise(0, 0, [bad], 0, SHAPE)
