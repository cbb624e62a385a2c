"""Features and joints: the published features bit by bit, exact recovery, conventions and gradients."""

import pytest
import torch
from longtake.motion.kinematics import (
    HUMANML,
    KIT,
    axis_angle_to_matrix,
    columns_6d,
    matrix_from_columns,
    matrix_from_rows,
    matrix_to_axis_angle,
    matrix_to_quat,
    quat_between,
    quat_multiply,
    quat_rotate,
    quat_to_matrix,
    rows_6d,
    yaw_quat,
)
from longtake.motion.representation import BABEL, HUMANML3D, KIT_ML, Normalizer, representation_of, z_up_to_y_up
from motion_models import Golden
from torch.nn import functional as F


def clip(golden: Golden | None = None) -> torch.Tensor:
    return torch.from_numpy((golden or Golden("M7_synth_a")).arrays["joints"]).double()


def rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return quat_to_matrix(F.normalize(torch.randn(*shape, 4, dtype=torch.float64, generator=generator), dim=-1))


@pytest.mark.parametrize("case", ["M7_synth_a", "M7_synth_b"])
def test_c1_m7_features_equal_the_public_process(case: str) -> None:
    golden = Golden(case)
    offsets = torch.from_numpy(golden.arrays["target_offsets"]).double()
    aligned = HUMANML3D.align(clip(golden), offsets)
    golden.check("aligned_joints", aligned.joints)
    features = HUMANML3D.encode_aligned(aligned)
    want = torch.from_numpy(golden.arrays["features"])
    limits = golden["tolerance"]["max_abs_per_array"]["features"]
    for part, limit in limits.items():
        start, stop = (int(n) for n in part.split()[1].split(":"))
        gap = float((features - want)[:, start:stop].abs().max())
        assert gap <= min(limit, 1e-5), (part, gap)
    golden.check("recovered_joints", HUMANML3D.recover(want.float()))
    golden.check("recovered_from_rotations", HUMANML3D.recover_from_rotations(want.float(), offsets))


def test_c1_round_trip_and_invariance() -> None:
    joints = clip()
    aligned = HUMANML3D.align(joints)
    features = HUMANML3D.encode_aligned(aligned)
    assert float((HUMANML3D.recover(features) - aligned.joints[:-1]).abs().max()) <= 1e-6
    moved = quat_rotate(yaw_quat(torch.tensor(0.6, dtype=torch.float64)), joints) + joints.new_tensor([3.0, 0.7, -2.0])
    assert float((HUMANML3D.encode(moved) - features).abs().max()) <= 1e-5
    both = HUMANML3D.encode(torch.stack([joints, moved]))
    assert torch.allclose(both[0], features, atol=1e-9), "a batch is encoded clip by clip"
    sound = HUMANML3D.align(joints, published=False)
    recovered = HUMANML3D.recover(HUMANML3D.encode_aligned(sound))
    assert float((recovered - sound.joints[:-1]).abs().max()) <= 1e-6
    first = HUMANML3D.encode(joints, published=False)[:3, 0].abs().max()
    assert float(first) < 0.05, "without the published quirk the heading does not jump after frame 0"


def test_c2_six_numbers_are_columns_or_rows() -> None:
    turn = rotations(5, 7)
    assert torch.equal(columns_6d(turn), rows_6d(turn.transpose(-1, -2)))
    assert torch.allclose(matrix_from_columns(columns_6d(turn)), turn, atol=1e-12)
    assert torch.allclose(matrix_from_rows(rows_6d(turn)), turn, atol=1e-12)
    free = torch.randn(9, 6, dtype=torch.float64)
    once = matrix_from_rows(free)
    assert torch.allclose(matrix_from_rows(rows_6d(once)), once, atol=1e-12)
    vector = matrix_to_axis_angle(turn)
    assert torch.allclose(axis_angle_to_matrix(vector), turn, atol=1e-12)
    assert torch.allclose(matrix_to_axis_angle(axis_angle_to_matrix(vector)), vector)
    quat = matrix_to_quat(turn)
    assert torch.allclose(quat_to_matrix(quat_multiply(quat, quat)), turn @ turn, atol=1e-12)


def test_c2_babel_keeps_joints_and_faces_one_way() -> None:
    turn, position = rotations(2, 30, 22), torch.randn(2, 30, 3, dtype=torch.float64).cumsum(1)
    offsets = HUMANML.rest_directions(turn) * 0.3
    joints = BABEL.recover(BABEL.encode(turn, position), offsets)
    from longtake.motion.kinematics import forward_tree

    start = position[:, :1] * position.new_tensor([1.0, 1.0, 0.0])
    want = forward_tree(BABEL.parents, turn, position - start, offsets)
    assert float((joints - want).abs().max()) <= 1e-5
    flat = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    headings, plain = [], []
    for yaw in (0.0, 1.0, -2.5):
        upright = axis_angle_to_matrix(flat * yaw).expand(1, 30, 22, 3, 3)
        for canonical, found in ((True, headings), (False, plain)):
            root, _ = BABEL.recover_rotations(BABEL.encode(upright, position[:1], canonical=canonical))
            found.append(root[0, 0, 0])
    assert torch.allclose(torch.stack(headings), headings[0].expand(3, 3, 3), atol=1e-9)
    assert not torch.allclose(plain[0], plain[1])
    assert torch.equal(z_up_to_y_up(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([1.0, 3.0, -2.0]))


def test_c3_the_parts_add_up_and_contacts_are_slow_feet() -> None:
    sizes = [part.stop - part.start for part in HUMANML3D.slices.values()]
    assert sizes == [1, 2, 1, 63, 126, 66, 4] and sum(sizes) == HUMANML3D.width == 263
    assert KIT_ML.width == 251 == 4 + 60 + 120 + 63 + 4 and BABEL.width == 135 == 3 + 132
    aligned = HUMANML3D.align(clip())
    features = HUMANML3D.encode_aligned(aligned)
    for frame in range(0, len(features), 7):
        for column, joint in enumerate((7, 10, 8, 11)):
            moved = float((aligned.joints[frame + 1, joint] - aligned.joints[frame, joint]).square().sum())
            assert float(features[frame, 259 + column]) == float(moved < 0.002)
    assert 0 < float(features[:, 259:].mean()) < 1
    assert representation_of(251) is KIT_ML
    with pytest.raises(ValueError, match="BABEL-135"):
        representation_of(100)
    with pytest.raises(ValueError, match="263 features"):
        HUMANML3D.recover(torch.zeros(4, 251))
    with pytest.raises(ValueError, match=r"22, 3"):
        HUMANML3D.encode(torch.zeros(4, 21, 3))


def test_c3_kit_round_trip() -> None:
    lengths = torch.rand(21, dtype=torch.float64) * 200 + 100
    offsets = KIT.rest_directions(lengths) * lengths.unsqueeze(1)
    vector = 0.1 * torch.randn(1, 21, 3, dtype=torch.float64) * torch.linspace(0, 1, 40).view(-1, 1, 1)
    bend = axis_angle_to_matrix(vector)
    joints = KIT.forward(bend, torch.randn(40, 3, dtype=torch.float64).cumsum(0) + 900, offsets)
    aligned = KIT_ML.align(joints)
    assert float((KIT_ML.recover(KIT_ML.encode_aligned(aligned)) - aligned.joints[:-1]).abs().max()) <= 1e-6


def test_c4_recovery_is_differentiable_and_starts_at_the_origin() -> None:
    features = HUMANML3D.encode(clip()[:8]).requires_grad_(True)
    assert torch.autograd.gradcheck(HUMANML3D.recover, (features,), eps=1e-6, atol=1e-5)
    babel = BABEL.encode(rotations(3, 22), torch.randn(3, 3, dtype=torch.float64)).requires_grad_(True)
    offsets = HUMANML.rest_directions(babel.detach())
    assert torch.autograd.gradcheck(lambda f: BABEL.recover(f, offsets), (babel,), eps=1e-6, atol=1e-5)
    joints = HUMANML3D.recover(features.detach())
    assert float(joints[0, 0, [0, 2]].abs().max()) == 0.0
    lifted = features.detach().clone()
    lifted[:, 3] += 1.0
    lifted[:, HUMANML3D.slices["positions"]][:, 1::3] += 1.0
    up = joints.new_tensor([0.0, 1.0, 0.0])
    assert torch.allclose(HUMANML3D.recover(lifted), joints + up), "a shift of the features shifts the joints"


def test_opposite_directions_and_normalising() -> None:
    a = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    turned = quat_rotate(quat_between(a, -a), a)
    assert torch.allclose(turned, -a, atol=1e-6)
    scale = Normalizer(torch.arange(4.0), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.randn(5, 4)
    assert torch.allclose(scale.denormalize(scale.normalize(x)), x, atol=1e-6)
