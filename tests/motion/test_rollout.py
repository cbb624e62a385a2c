"""Prefix rollout of the decoder form: each window continues the last, and a longer one begins as a shorter one."""

import pytest
import torch
from longtake.motion.rollout import rollout
from longtake.motion.sampling import Schedule
from motion_models import tiny_net

SCHEDULE = Schedule.make(10)


def net(prefix: int = 4) -> torch.nn.Module:
    return tiny_net(form="decoder", prefix_frames=prefix, text_policy="concat", time_token=True)


def made(frames: int, text: object, window: int = 8, **settings: float) -> torch.Tensor:
    past = torch.linspace(-1, 1, 4 * 12).reshape(4, 12)
    return torch.cat(list(rollout(net(), SCHEDULE, past, text, frames=frames, window=window, seed=3, **settings)))


def test_a_rollout_is_the_reference_loop() -> None:
    from longtake.noise import noise

    words = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    past = torch.linspace(-1, 1, 48).reshape(4, 12)
    found = made(16, words, guidance=2.5)
    model = net()
    with torch.no_grad():
        for start in (0, 8):
            x = noise(3, 0, range(start, start + 8), 0, (12,))
            for step, t in enumerate(SCHEDULE.timesteps):
                when = torch.tensor([t])
                with_text = model(x[None], when, words[None], prefix=past[None])[0]
                without = model(x[None], when, torch.zeros(1, 5, 8), prefix=past[None])[0]
                clean = without + 2.5 * (with_text - without)
                x = SCHEDULE.update(step, clean, x, noise(3, 0, range(start, start + 8), step + 1, (12,)))
            assert torch.allclose(found[start : start + 8], x, atol=1e-5)
            past = x[-4:]


def test_a_longer_rollout_begins_as_a_shorter_one_and_texts_may_change() -> None:
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    short, long = made(13, a), made(30, a)
    assert short.shape == (13, 12) and long.shape == (30, 12)
    assert torch.equal(short, long[:13])
    changed = made(30, lambda start: a if start < 16 else b)
    assert torch.equal(changed[:16], long[:16])
    assert float((changed[16:] - long[16:]).abs().max()) > 1e-3


def test_what_does_not_fit_is_refused() -> None:
    past = torch.zeros(4, 12)
    with pytest.raises(ValueError, match="decoder form with prefix_frames"):
        next(rollout(tiny_net(), SCHEDULE, past, None, frames=8))
    with pytest.raises(ValueError, match=r"past of \(4, 12\)"):
        next(rollout(net(), SCHEDULE, past[:3], None, frames=8))
    with pytest.raises(ValueError, match="window is at least the prefix"):
        next(rollout(net(), SCHEDULE, past, None, frames=8, window=3))
