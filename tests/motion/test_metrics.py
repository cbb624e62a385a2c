"""Jerk against the published formula; skate and residuals on motions whose answer is known."""

import pytest
import torch
from longtake.motion.metrics import (
    BABEL_JERK,
    HUMANML_JERK,
    area_under_jerk,
    foot_skate,
    jerk,
    jerk_curve,
    peak_jerk,
    root_residual,
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
