"""Jerk against the published formula; skate and residuals on motions whose answer is known."""

import pytest
import torch
from longtake.motion.metrics import (
    BABEL_JERK,
    HUMANML_JERK,
    area_under_jerk,
    bone_variation,
    diversity,
    foot_skate,
    frame_jerk,
    jerk,
    jerk_curve,
    peak_jerk,
    root_residual,
    root_speed,
    seam_windows,
)
from motion_models import Golden


def test_m8_jerk_equals_the_golden() -> None:
    golden = Golden("M8_jerk")
    joints, lengths = (torch.from_numpy(golden.arrays[name]) for name in ("joints", "lengths"))
    curve = jerk_curve(joints, lengths)
    golden.check("per_window", jerk(joints, lengths))
    golden.check("curve", curve)
    golden.check("peak_jerk", peak_jerk(curve).reshape(1))
    golden.check("peak_jerk_per_window", peak_jerk(jerk(joints, lengths)))
    golden.check("area_under_jerk", torch.stack([area_under_jerk(curve, g) for g in (HUMANML_JERK, BABEL_JERK)]))


def test_windows_skate_and_residuals() -> None:
    joints = torch.zeros(100, 22, 3)
    joints[:, :, 1] = 1.0
    joints[:, [7, 8, 10, 11], 1] = 0.0
    assert float(foot_skate(joints, 20.0)) == 0.0
    joints[:, :, 0] = torch.arange(100).view(-1, 1) * 0.01  # slides 1 cm a frame
    assert float(foot_skate(joints, 20.0)) == pytest.approx(0.2, rel=1e-4)
    lifted = joints.clone()
    lifted[::2, [7, 8, 10, 11], 1] = 0.3  # never down for two frames on end
    assert float(foot_skate(lifted, 20.0)) == 0.0
    joints[50:, :, 2] += 0.5
    assert root_residual(joints, [50, 20]).tolist() == pytest.approx([0.25, 0.0], abs=1e-5)
    windows, lengths = seam_windows(joints, [50, 95, 5], 30)
    assert lengths.tolist() == [30, 20, 30]
    assert torch.equal(windows[0], joints[35:65]) and not windows[1, 20:].any()
    assert int(jerk(windows, lengths)[0].argmax()) in (12, 13, 14)


def test_speed_bones_and_the_worst_frame_are_what_they_are_called() -> None:
    joints = torch.zeros(40, 22, 3)
    joints[..., 0] = torch.arange(22) * 0.1
    walking = joints.clone()
    walking[..., 2] += 0.06 * torch.arange(40)[:, None]
    assert float(root_speed(walking, 20.0)) == pytest.approx(1.2, rel=1e-5)
    assert float(bone_variation(walking)) < 1e-5 and float(frame_jerk(walking, 20.0).amax()) < 1e-2
    stretched = walking * (1 + 0.1 * torch.sin(torch.arange(40))[:, None, None])
    assert float(bone_variation(stretched)) == pytest.approx(0.07, abs=0.01)
    walking[20:, 5] += 0.22
    worst = frame_jerk(walking, 20.0)
    assert int(worst.argmax()) in (17, 18, 19)
    assert float(worst.amax()) == pytest.approx(2 * 0.22 * 3**0.5 / 22 * 20**3, rel=1e-3)


def test_diversity_is_one_for_as_many_ways_as_real_and_nothing_for_one_way() -> None:
    torch.manual_seed(0)
    real = [torch.randn(30, 5) + 3 * torch.randn(5) for _ in range(40)]
    assert diversity(real[::2], real[1::2]) == pytest.approx(1.0, abs=0.2)
    assert diversity([real[0]] * 3, real) == 0.0
    half = [0.5 * (clip - clip.mean(0)) + 0.5 * clip.mean(0) for clip in real]
    assert diversity(half, real) == pytest.approx(0.5, abs=0.05)
