"""DoubleTake's second take: which frames it changes, by how much, and the published numbers."""

import pytest
import torch
from longtake.motion.convert import build
from longtake.motion.reference import take_one_rows, take_two
from longtake.motion.row_plan import RowPlan
from longtake.motion.sampling import Schedule, TextDenoiser
from longtake.motion.second_take import Preset, first_timestep, held_share, sandwiches
from motion_models import Golden, injected, released_both_takes, tiny_net


def noise_of(plan: RowPlan, frames: int, features: int = 12):
    draws = injected(9, (plan.rows - 1, frames, features))
    return lambda count, pairs: draws(count)[list(pairs)]


@pytest.mark.parametrize("case", ["M4_h10_b4_rows2", "M4_h20_b10_rows3"])
@torch.no_grad()
def test_b9_m4_both_takes_equal_the_original(case: str) -> None:
    golden = Golden(case)
    steps, plan = golden["schedule"]["steps"], RowPlan.make(golden["lengths"], golden["handshake"])
    net, schedule = build(golden.state()), Schedule.make(steps)
    denoise = TextDenoiser(net, golden.text(), golden["guidance"]["scale"])
    first = plan.unfold(take_one_rows(plan, denoise, schedule, golden.noise(steps)))
    golden.check("take1_unfolded", first.T)
    padded = golden["sandwich_frames"]
    mask = torch.ones(plan.rows - 1, padded)
    for pair, part in enumerate(sandwiches(plan)):
        mask[pair, : part.length] = held_share(part, Preset.RELEASE, golden["blend"])
        mask[pair, part.length :] = torch.from_numpy(golden.arrays["mask"])[pair, part.length :]  # padding: not ours
    golden.check("mask", mask)
    draw = golden.noise(steps, "take2_start_noise", "take2_step_noise")
    bare = denoise.unconditional()
    second = take_two(
        plan, first, bare, schedule, lambda k, pairs: draw(k)[list(pairs)], blend=golden["blend"], pad_to=padded
    )
    changed = (second != first).any(1).nonzero().squeeze(1)
    golden.check("changed_index", changed)
    golden.check("changed_values", second[changed].T)
    times = golden["second_take"]["first_t"] + 1
    assert bare.rows_evaluated == (plan.rows - 1) * times, "one evaluation a sandwich and step"


@torch.no_grad()
def test_b9_both_takes_equal_the_released_loop() -> None:
    net, steps, text = tiny_net(), 10, torch.randn(3, 8)
    plan, schedule = RowPlan.make([60, 52, 66], 8), Schedule.make(10)
    frames = 2 * (66 - 16) + 8
    first, second = injected(1, (3, 66, 12)), injected(2, (2, frames, 12))
    want = released_both_takes(net, text, 2.5, plan.lengths, 8, 6, steps, first, second)
    denoise = TextDenoiser(net, text, 2.5)
    take = plan.unfold(take_one_rows(plan, denoise, schedule, first))
    bare = denoise.unconditional()
    got = take_two(plan, take, bare, schedule, lambda k, pairs: second(k)[list(pairs)], blend=6, pad_to=frames)
    assert float((got - want).abs().max()) <= 1e-5


@torch.no_grad()
def test_b9_release_changes_only_the_margins() -> None:
    plan = RowPlan.make([120, 90, 100], 20)
    denoise = TextDenoiser(tiny_net(), None, 0.0)
    schedule, first = Schedule.make(10), torch.randn(plan.total, 12)
    second = take_two(plan, first, denoise, schedule, noise_of(plan, 180), blend=10, pad_to=180)
    rows = [(plan.fold(second) != plan.fold(first))[row].any(-1).nonzero().squeeze(1).tolist() for row in range(3)]
    assert rows == [list(range(90, 100)), [*range(20, 30), *range(60, 70)], list(range(20, 30))]
    for start in plan.starts[1:]:
        assert torch.equal(second[start : start + 20], first[start : start + 20]), "the handshake itself is kept"
    share = held_share(sandwiches(plan)[0], Preset.RELEASE, 10)
    left = sandwiches(plan)[0].left
    assert torch.allclose(share[left - 10 : left], torch.tensor([0.85 * (1 - j / 10) for j in range(10)]))
    assert torch.allclose(share[left + 20 : left + 30], torch.tensor([0.85 * j / 10 for j in range(10)]))
    assert float(share[left - 10]) == pytest.approx(0.85) and float(share[left - 1]) == pytest.approx(0.085)
    for blend in (0, 1):
        same = take_two(plan, first, denoise, schedule, noise_of(plan, 180), blend=blend, pad_to=180)
        assert torch.equal(same, first)
    for blend in range(2, 41):  # the released float steps break at 27
        assert len(held_share(sandwiches(RowPlan.make([150, 150], 20))[0], Preset.RELEASE, blend)) == 240
    assert [first_timestep(Preset.RELEASE, steps) for steps in (1000, 50, 20, 10)] == [899, 44, 17, 8]


@torch.no_grad()
def test_b10_the_paper_preset_makes_the_handshake_again() -> None:
    plan = RowPlan.make([60, 50, 55], 10)
    part = sandwiches(plan)[0]
    want = torch.ones(part.length)
    left, right = part.left, part.left + 10
    want[left:right] = 0.1
    for j in range(4):
        want[left - 4 + j] = 1 + (0.1 - 1) * (j + 1) / 5
        want[right + j] = 1 + (0.1 - 1) * (4 - j) / 5
    assert torch.allclose(held_share(part, Preset.PAPER, 4), want)
    assert float(held_share(part, Preset.PAPER, 4, core=0.85)[0]) == pytest.approx(0.85)
    assert [first_timestep(Preset.PAPER, steps) for steps in (1000, 50)] == [699, 34]
    denoise, schedule = TextDenoiser(tiny_net(), None, 0.0), Schedule.make(10)
    first = torch.randn(plan.total, 12)
    second = take_two(plan, first, denoise, schedule, noise_of(plan, 80), preset="paper", blend=4, pad_to=80)
    changed = (second != first).any(1)
    held = torch.zeros(plan.total, dtype=torch.bool)
    for piece in sandwiches(plan):
        held[piece.span][held_share(piece, Preset.PAPER, 4) < 1] = True
    assert torch.equal(changed, held) and changed[plan.starts[1] : plan.starts[1] + 10].all()
    soft = take_two(plan, first, denoise, schedule, noise_of(plan, 80), preset="paper", blend=4, core=0.85, pad_to=80)
    assert (soft != first).any(1).sum() > changed.sum(), "with core 0.85 the intervals move too"
    with pytest.raises(ValueError, match="paper preset"):
        take_two(plan, first, denoise, schedule, noise_of(plan, 80), core=0.85)
    with pytest.raises(ValueError, match="blend of 40"):
        held_share(part, Preset.PAPER, 40)


@torch.no_grad()
def test_a_second_take_of_some_pairs_in_chunks_is_the_same() -> None:
    plan = RowPlan.make([40] * 5, 8)
    denoise, schedule = TextDenoiser(tiny_net(), None, 0.0), Schedule.make(10)
    first = torch.randn(plan.total, 12)
    noise = noise_of(plan, 56)
    whole = take_two(plan, first, denoise, schedule, noise, blend=5, chunk_rows=4)
    some = take_two(plan, first, denoise, schedule, noise, blend=5, chunk_rows=1, pairs=[0, 1])
    border = plan.starts[2] + 20  # behind the second transition's margin, before the third's
    assert float((whole - some)[:border].abs().max()) <= 2e-6 and torch.equal(some[border:], first[border:])
    assert not torch.equal(whole[border:], first[border:])
    alone = RowPlan.make([40], 8)
    one = take_two(alone, first[:40], denoise, schedule, noise, blend=5)
    assert torch.equal(one, first[:40]), "one row has no seam"
