"""Control and blending: held features, masks, paths, goals; mixtures of nets."""

import pytest
import torch
from longtake.motion.blending import Blend
from longtake.motion.control import Control, WorldGoals, feature_numbers, mask_features, mask_frames, root_path
from longtake.motion.convert import build
from longtake.motion.reference import take_one_canvas
from longtake.motion.representation import HUMANML3D, KIT_ML, Normalizer
from longtake.motion.row_plan import RowPlan
from longtake.motion.sampling import Schedule, TextDenoiser, sample
from motion_models import Golden, injected, kept, theirs, tiny_net


@pytest.mark.parametrize("case", ["M6_left_wrist", "M6_root_horizontal", "M6_blend_30_70", "M6_blend_50_50"])
@torch.no_grad()
def test_d3_m6_control_equals_the_original(case: str) -> None:
    golden = Golden(case)
    steps, text, scale = golden["schedule"]["steps"], golden.text(), golden["guidance"]["scale"]
    nets = [TextDenoiser(build(golden.state(prefix)), text, scale) for prefix in golden["fill"]["prefixes"]]
    denoise = Blend(nets, golden["weights"])
    given = golden.given("given")
    control = Control(mask_features(golden["control"]), given)
    golden.check("controlled_features", control.mask.nonzero().squeeze(1))
    schedule = Schedule.make(steps)
    seen: dict[int, torch.Tensor] = {}
    out = sample(
        denoise,
        schedule,
        golden.noise(steps),
        rows=range(golden["batch"]),
        start=given,
        quiet=control.mask,
        adjust=control.adjust,
        on_step=kept(seen),
    )
    golden.check("sample", theirs(out))
    golden.check("x_mid", theirs(seen[steps // 2 - 1]))
    for step, x in seen.items():
        path = float(schedule.previous[step].sqrt()) * given
        assert float((x - path)[..., control.mask].abs().max()) <= 1e-6
    assert torch.equal(out[..., control.mask], given[..., control.mask])


def test_d3_masks_hold_what_their_names_say() -> None:
    assert feature_numbers("root") == [0, 1, 2, 3, 193, 194, 195]
    assert feature_numbers("root_horizontal") == [0, 1, 2]
    assert feature_numbers("left_wrist") == [61, 62, 63] and feature_numbers("right_foot") == [34, 35, 36]
    lower, upper = mask_features("lower_body"), mask_features("upper_body")
    assert torch.equal(lower, ~upper)
    legs = [1, 2, 4, 5, 7, 8, 10, 11]
    assert int(lower.sum()) == 4 + len(legs) * (3 + 6) + (len(legs) + 1) * 3 + 4
    both = mask_features("root_horizontal,left_wrist")
    assert torch.equal(both, mask_features("root_horizontal") | mask_features(["left_wrist"]))
    assert mask_frames(40, "in_between").squeeze(1).nonzero().squeeze(1).tolist() == [*range(10), *range(30, 40)]
    assert int(mask_frames(40, "prefix").sum()) == 20 and mask_frames(9, [0, 4]).squeeze(1).tolist().count(True) == 2
    assert len(feature_numbers("left_wrist", KIT_ML)) == 3
    with pytest.raises(ValueError, match="left_wrist"):
        mask_features("left_hand")
    with pytest.raises(ValueError, match="outside"):
        mask_frames(10, [10])
    with pytest.raises(ValueError, match="bool"):
        Control(torch.ones(3), torch.ones(3))


def test_a_union_of_controls_holds_both() -> None:
    one = Control(torch.tensor([True, True, False, False]), torch.full((5, 4), 1.0))
    two = Control(torch.tensor([False, True, True, False]), torch.full((5, 4), 2.0))
    held = one.union(two).adjust(torch.zeros(5, 4))
    assert held[0].tolist() == [1.0, 2.0, 2.0, 0.0]


def test_a_root_path_comes_back_from_its_features() -> None:
    angle = torch.linspace(0, 3, 400)
    circle = torch.stack([2 * (1 - angle.cos()), 2 * angle.sin()], 1)  # starts along +z
    features = torch.zeros(190, 263)
    features[:, :3] = root_path(circle, 190)
    _, path = HUMANML3D.root(features)
    gap = (path[-1, [0, 2]] - (circle[-1] - circle[0])).abs().max()
    assert float(gap) < 0.1, gap
    radius = (path[:, [0, 2]] - torch.tensor([2.0, 0.0])).norm(dim=1)
    assert float((radius - 2).abs().max()) < 0.1
    with pytest.raises(ValueError, match="the same"):
        root_path(torch.zeros(3, 2), 10)


def test_goals_bring_joints_to_places() -> None:
    joints = torch.from_numpy(Golden("M7_synth_a").arrays["joints"])[:30]
    features = HUMANML3D.encode(joints)
    scale = Normalizer(features.mean(0), torch.ones(263) * 0.1)
    start = scale.normalize(features)
    now = HUMANML3D.recover(features)
    goals = WorldGoals(
        torch.tensor([12, 20]), torch.tensor([20, 0]), now[[12, 20], [20, 0]] + 0.2, scale, iterations=60
    )
    before, after = goals.distance(start), goals.distance(goals.adjust(start))
    assert float(before.min()) > 0.3 and float(after.max()) < 0.05


@torch.no_grad()
def test_d4_blending_is_a_weighted_mean_of_nets() -> None:
    text, x, rows = torch.randn(2, 8), torch.randn(2, 20, 12), range(2)
    a, b = (TextDenoiser(tiny_net(seed), text, 2.5) for seed in (1, 2))
    assert torch.equal(Blend([a, b], [1.0, 0.0])(x, 4, rows), a(x, 4, rows))
    assert torch.equal(Blend([a, b], [0.3, 0.7])(x, 4, rows), Blend([b, a], [0.7, 0.3])(x, 4, rows))
    s = 1.6
    assert torch.allclose(
        Blend([a, b], [1 - s, s])(x, 4, rows), a(x, 4, rows) + s * (b(x, 4, rows) - a(x, 4, rows)), atol=1e-5
    )
    nets = [tiny_net(seed) for seed in (1, 2)]
    branches = []
    for scale in (1.0, 0.0):
        branches.append(Blend([TextDenoiser(net, text, scale) for net in nets], [0.4, 0.6])(x, 4, rows))
    then_guided = branches[1] + 2.5 * (branches[0] - branches[1])
    gap = float((then_guided - Blend([a, b], [0.4, 0.6])(x, 4, rows)).abs().max())
    assert gap <= 1e-6 * max(1.0, float(then_guided.abs().max())) * 4, "guiding and mixing commute"


@torch.no_grad()
def test_d4_weights_may_differ_by_frame_feature_and_time() -> None:
    plan, text = RowPlan.make([30, 26], 6), torch.randn(2, 8)
    a, b = (TextDenoiser(tiny_net(seed), text, 1.0, lengths=plan.lengths) for seed in (1, 2))
    share = torch.linspace(0, 1, plan.total).unsqueeze(1).expand(-1, 12).clone()
    share[:, 6:] = 0.0
    field, schedule = injected(1, (plan.total, 12)), Schedule.make(4)
    mixed = Blend([a, b], [1 - share, share], plan=plan)
    x = torch.randn(2, 30, 12)
    got = mixed(x, 2, [0, 1])
    row = share[plan.span(1)]
    assert torch.allclose(got[1, :26], ((1 - row) * a(x, 2, [0, 1])[1, :26] + row * b(x, 2, [0, 1])[1, :26]), atol=1e-6)
    assert take_one_canvas(plan, mixed, schedule, field).shape == (plan.total, 12)
    late = Blend([a, b], lambda t: [1.0, 0.0] if t > 1 else [0.0, 1.0])
    assert torch.equal(late(x, 3, [0, 1]), a(x, 3, [0, 1])) and torch.equal(late(x, 0, [0, 1]), b(x, 0, [0, 1]))
    with pytest.raises(ValueError, match="add up to 1"):
        Blend([a, b], [0.5, 0.6])
