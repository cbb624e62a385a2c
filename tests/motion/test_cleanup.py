"""Locked feet stand still, bones keep their lengths, the rest of the body and clean motions stay as they are."""

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.motion.cleanup import lock_feet
from longtake.motion.export.rig import measure, solve
from longtake.motion.kinematics import HUMANML, axis_angle_to_matrix, forward_tree
from motion_models import Golden

FPS = 20.0
FEET = list(HUMANML.feet)  # left ankle, left foot, right ankle, right foot
LEGS = [HUMANML.names.index(f"{side}_{part}") for side in ("left", "right") for part in ("knee", "ankle", "foot")]


def standing(frames: int = 80) -> torch.Tensor:
    """Somebody with bent knees who sways a little over feet that do not move, made by moving the hips' height only."""
    rig = measure(torch.from_numpy(Golden("M7_synth_a").arrays["joints"]).double())
    time = torch.arange(frames, dtype=torch.float64) / FPS
    bend = 0.5 + 0.08 * torch.sin(2 * time)
    vectors = torch.zeros(frames, 22, 3, dtype=torch.float64)
    for side in ("left", "right"):
        vectors[:, HUMANML.names.index(f"{side}_hip"), 0] = -bend
        vectors[:, HUMANML.names.index(f"{side}_knee"), 0] = 2 * bend
        vectors[:, HUMANML.names.index(f"{side}_ankle"), 0] = -bend
    joints = forward_tree(HUMANML.parents, axis_angle_to_matrix(vectors), torch.zeros(frames, 3).double(), rig.offsets)
    return joints - joints[:, FEET[:1]] * torch.tensor([1.0, 1.0, 1.0]).double()


def bones_change(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((HUMANML.bones(a).norm(dim=-1) - HUMANML.bones(b).norm(dim=-1)).abs().max())


def test_sliding_feet_are_held_and_the_cost_is_told() -> None:
    still = standing()
    time = torch.arange(len(still), dtype=torch.float64)[:, None, None] / FPS
    way = 0.06 * torch.cat([torch.sin(3 * time), torch.zeros_like(time), torch.cos(2 * time)], -1)
    sliding = still + way
    fixed, report = lock_feet(sliding, FPS)
    steps = (fixed[1:, FEET] - fixed[:-1, FEET])[..., [0, 2]].norm(dim=-1) * FPS
    assert report.slide_before > 0.1 and report.skate_before > 0.1
    assert float(steps.max()) < 1e-6 and report.slide_after < 1e-6 and report.skate_after < 1e-6
    assert bones_change(fixed, sliding) < 1e-9 and report.bone_change < 1e-9
    untouched = [joint for joint in range(22) if joint not in LEGS]
    assert torch.equal(fixed[:, untouched], sliding[:, untouched])
    distance = (fixed - sliding).norm(dim=-1)
    assert report.mean_displacement == pytest.approx(float(distance.mean()))
    assert report.max_displacement == pytest.approx(float(distance.max())) and report.max_displacement < 0.15
    assert report.contact_share == 1.0 and report.short_leg_frames == 0
    assert "standing feet slide" in report.text() and report.to_dict()["frames"] == 80


def test_a_clean_motion_is_left_alone() -> None:
    still = standing()
    fixed, report = lock_feet(still, FPS)
    assert float((fixed - still).abs().max()) < 2e-3 and report.mean_displacement < 1e-3


def test_a_walk_is_held_without_jumps() -> None:
    joints = torch.from_numpy(Golden("M7_synth_a").arrays["joints"]).double()
    fixed, report = lock_feet(joints, FPS)
    assert report.bone_change < 1e-9 and report.slide_after <= 0.2 * report.slide_before + 1e-6
    assert report.locked_slip < 1e-6
    step = (fixed[1:] - fixed[:-1]).norm(dim=-1).max()
    assert float(step) <= float((joints[1:] - joints[:-1]).norm(dim=-1).max()) + 0.06
    assert torch.isfinite(fixed).all() and float((solve(fixed).joints() - fixed).abs().max()) < 0.1


def test_a_leg_too_short_is_counted_and_keeps_its_length() -> None:
    still = standing()
    time = torch.arange(len(still), dtype=torch.float64)[:, None, None] / FPS
    dragged = still + 0.3 * torch.cat([time, torch.zeros_like(time), torch.zeros_like(time)], -1)
    fixed, report = lock_feet(dragged, FPS)
    assert report.short_leg_frames > 0 and report.bone_change < 1e-9 and report.locked_slip < 1e-6
    assert report.slide_after < report.slide_before


def test_odd_inputs() -> None:
    one, report = lock_feet(standing(1).float(), FPS)
    assert torch.equal(one, standing(1).float()) and report.contact_share == 0.0 and one.dtype == torch.float32
    array, _ = lock_feet(standing(5).numpy(), FPS)
    assert array.dtype == torch.float32
    with pytest.raises(UserError, match="22"):
        lock_feet(np.zeros((4, 21, 3)), FPS)
    with pytest.raises(UserError, match="fps"):
        lock_feet(standing(4), 0.0)
