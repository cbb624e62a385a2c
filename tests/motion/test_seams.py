"""The seam report finds the bad joint and passes the good one."""

import json

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.motion.metrics import jerk
from longtake.motion.seams import seam_report
from motion_models import Golden


def walk(frames: int) -> torch.Tensor:
    """A person who glides and sways smoothly, for as long as wanted."""
    pose = torch.from_numpy(Golden("M7_synth_a").arrays["joints"]).double()[0]
    time = torch.arange(frames, dtype=torch.float64)[:, None, None] / 20
    phase = torch.arange(22, dtype=torch.float64)[None, :, None]
    sway = 0.05 * torch.sin(5 * time + phase) * torch.tensor([1.0, 0.2, 1.0], dtype=torch.float64)
    return pose + sway + time * torch.tensor([0.8, 0.0, 0.0], dtype=torch.float64)


def test_a_jump_shows_at_its_boundary_only() -> None:
    joints = walk(400)
    joints[250:] += torch.tensor([0.2, 0.0, 0.0])
    captions = ["walks"] * 120 + ["waves"] * 130 + ["runs"] * 150
    report = seam_report(joints, [120, 250], 20, captions=captions)
    good, bad = report.seams
    assert good.jerk_ratio is not None and bad.jerk_ratio is not None
    assert 0.8 <= good.jerk_ratio <= 1.2 and bad.jerk_ratio > 10
    assert bad.root_residual == pytest.approx(0.1, abs=5e-3) and good.root_residual < 0.01
    assert (bad.before, bad.after, bad.second) == ("waves", "runs", 12.5)
    assert bad.foot_skate > good.foot_skate
    by_hand = float(jerk(joints[None, 220:280]).max())
    assert bad.peak_jerk == pytest.approx(by_hand)
    assert report.interior_windows == 4  # 0..90, 150..220 and 280..400 hold one, one and two
    lines = report.text().splitlines()
    assert lines[-1].endswith("!") and not lines[-2].endswith("!") and "waves | runs" in lines[-1]
    read = json.loads(report.to_json())
    assert read["seams"][1]["frame"] == 250 and read["seams"][1]["peak_jerk"] == bad.peak_jerk


def test_without_an_interior_or_a_boundary() -> None:
    short = seam_report(walk(50), [25], 20)
    assert short.interior_peak_jerk is None and short.seams[0].jerk_ratio is None and "-" in short.text()
    assert json.loads(short.to_json())["seams"][0]["jerk_ratio"] is None
    none = seam_report(walk(130), [], 20)
    assert none.seams == () and none.interior_windows == 2 and "0 boundaries" in none.text()


def test_wrong_requests_are_refused() -> None:
    for frames, boundaries, more in ((3, [1], {}), (50, [50], {}), (50, [0], {}), (50, [20], {"window": 3})):
        with pytest.raises(UserError):
            seam_report(walk(frames), boundaries, 20, **more)
    with pytest.raises(UserError, match="NaN"):
        seam_report(walk(50) * np.nan, [20], 20)
