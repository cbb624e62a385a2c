"""How good each transition is: peak jerk beside the motion's own, the root's step, and foot skate at every boundary.

    report = seam_report(joints, boundaries, fps=20, captions=captions)
    print(report.text())

Measures as in ``metrics``; the interior is what no boundary's window touches, cut into windows of the same length.
Legend: F frames, J joints, W windows; metres, y up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.metrics import (
    HUMANML_WINDOW,
    area_under_jerk,
    foot_skate,
    jerk,
    peak_jerk,
    root_residual,
    seam_windows,
)
from longtake.motion.representation import HUMANML3D, JointFeatures
from longtake.motion.smoothing import MOST_JERK, frame_jerk


@dataclass(frozen=True)
class Seam:
    """One boundary.

    peak_jerk: m a frame cubed, worst joint. jerk_ratio: that by the interior's median peak, None without an interior.
    jerk_area: sum over the window of the distance from real motion's mean jerk. root_residual: metres. foot_skate: m/s
    in the window. worst_jerk: m/s3, mean over joints, of the window's worst frame, which is ``worst_frame``.
    """

    frame: int
    second: float
    before: str
    after: str
    peak_jerk: float
    jerk_ratio: float | None
    jerk_area: float
    root_residual: float
    foot_skate: float
    worst_jerk: float
    worst_frame: int


@dataclass(frozen=True)
class SeamReport:
    """All boundaries of a motion, and what its interior is like (None: no stretch of a window's length without one).

    worst_jerk: m/s3, mean over joints, of the whole motion's worst frame, which is ``worst_frame``; real people stay
    below ``smoothing.MOST_JERK``.
    """

    frames: int
    fps: float
    window: int
    interior_windows: int
    interior_peak_jerk: float | None
    foot_skate: float
    worst_jerk: float
    worst_frame: int
    seams: tuple[Seam, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .json. Raises UserError."""
        from longtake.journal import atomic_path
        from longtake.media import check_output

        path = check_output(path, (".json",), overwrite)
        with atomic_path(path) as partial:
            partial.write_text(self.to_json())
        return path

    def text(self) -> str:
        """A table for people to read; a ratio over 1.5 and a frame that no real person has are marked."""
        inside = "none" if self.interior_peak_jerk is None else f"{self.interior_peak_jerk:.4f}"
        lines = [
            f"{self.frames} frames at {self.fps:g} fps, {len(self.seams)} boundaries, windows of {self.window} frames",
            f"interior: median peak jerk {inside} ({self.interior_windows} windows), "
            f"foot skate {self.foot_skate:.3f} m/s over all",
            f"worst frame: {self.worst_frame} with {self.worst_jerk:.0f} m/s3 (real people: up to {MOST_JERK:.0f})",
        ]
        if self.seams:
            lines.append(
                f"{'frame':>6} {'second':>7} {'peak':>8} {'ratio':>6} {'root mm':>8} {'skate':>6} {'m/s3':>5}  prompts"
            )
        for seam in self.seams:
            ratio = "-" if seam.jerk_ratio is None else f"{seam.jerk_ratio:.2f}"
            far = seam.jerk_ratio is not None and seam.jerk_ratio > 1.5
            mark = " !" if far or seam.worst_jerk > MOST_JERK else ""
            words = f"{_short(seam.before)} | {_short(seam.after)}" if seam.before or seam.after else ""
            lines.append(
                f"{seam.frame:>6} {seam.second:>7.2f} {seam.peak_jerk:>8.4f} {ratio:>6} "
                f"{1000 * seam.root_residual:>8.2f} {seam.foot_skate:>6.3f} {seam.worst_jerk:>5.0f}  {words}{mark}"
            )
        return "\n".join(lines)


def _short(text: str, most: int = 32) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def seam_report(
    joints: np.ndarray | torch.Tensor,
    boundaries: Sequence[int],
    fps: float,
    *,
    captions: Sequence[str] = (),
    window: int = HUMANML_WINDOW,
    form: JointFeatures = HUMANML3D,
) -> SeamReport:
    """Measure a motion (F, J, 3) at frames ``boundaries``. window: frames, centred on each. Raises UserError."""
    points = torch.as_tensor(joints).detach().cpu().double()
    if points.ndim != 3 or points.shape[1:] != (form.skeleton.joints, 3) or len(points) < 4:
        given, wanted = tuple(points.shape), form.skeleton.joints
        raise UserError(f"a seam report needs joints (4 or more frames, {wanted}, 3); given {given}")
    if not bool(torch.isfinite(points).all()):
        raise UserError("the joints hold NaN or infinity: nothing to measure")
    if window < 4:
        raise UserError(f"a window has at least 4 frames, given {window}")
    wrong = [frame for frame in boundaries if not 0 < frame < len(points)]
    if wrong:
        raise UserError(f"boundaries must lie inside the {len(points)} frames; given {wrong}")
    if captions and len(captions) != len(points):
        raise ValueError(f"{len(captions)} captions for {len(points)} frames")
    floor = float(points[:, list(form.skeleton.feet), 1].min())
    interior = _interior(points, boundaries, window)
    inside = float(peak_jerk(jerk(interior)).median()) if len(interior) else None
    frames_jerk = frame_jerk(points, fps) / form.metre
    seams = []
    windows, lengths = seam_windows(points, boundaries, window)
    curves = jerk(windows, lengths)
    residuals = root_residual(points, boundaries) if boundaries else points.new_zeros(0)
    for place, frame in enumerate(boundaries):
        length = int(lengths[place])
        peak = float(peak_jerk(curves[place]))
        start = max(0, frame - window // 2)
        near = frames_jerk[start : start + max(1, length - 3)]
        seams.append(
            Seam(
                frame=frame,
                second=frame / fps,
                before=captions[frame - 1] if captions else "",
                after=captions[frame] if captions else "",
                peak_jerk=peak,
                jerk_ratio=peak / inside if inside else None,
                jerk_area=float(area_under_jerk(curves[place, : max(0, length - 3)])),
                root_residual=float(residuals[place]),
                foot_skate=float(foot_skate(windows[place, :length], fps, form, floor=floor)),
                worst_jerk=float(near.max()),
                worst_frame=start + int(near.argmax()),
            )
        )
    total = float(foot_skate(points, fps, form))
    worst = int(frames_jerk.argmax())
    return SeamReport(
        len(points), fps, window, len(interior), inside, total, float(frames_jerk[worst]), worst, tuple(seams)
    )


def _interior(points: torch.Tensor, boundaries: Sequence[int], window: int) -> torch.Tensor:
    """Windows (W, window, J, 3) side by side in the stretches that no boundary's window touches."""
    free = torch.ones(len(points), dtype=torch.bool)
    for frame in boundaries:
        free[max(0, frame - window // 2) : frame + window - window // 2] = False
    found, start = [], 0
    while start + window <= len(points):
        if bool(free[start : start + window].all()):
            found.append(points[start : start + window])
            start += window
        else:
            start += 1
    return torch.stack(found) if found else points.new_zeros(0, window, *points.shape[1:])
