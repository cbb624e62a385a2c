"""How smooth, how grounded: jerk at transitions, foot skate, root residuals.

Jerk as in FlowMDM (Barquero et al., CVPR 2024): third forward difference of joint positions a frame, no division by
time. Legend: W windows, K frames of a window, F frames, J joints; positions in metres, y up.

    windows, lengths = seam_windows(joints, boundaries, 60)
    curve = jerk_curve(windows, lengths)
    peak_jerk(curve), area_under_jerk(curve, HUMANML_JERK)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from longtake.motion.representation import HUMANML3D, JointFeatures

HUMANML_JERK = 0.033031363  # mean jerk of HumanML3D at 20 fps
BABEL_JERK = 0.016383045  # mean jerk of BABEL at 30 fps
HUMANML_WINDOW = 60
BABEL_WINDOW = 30
CONTACT_HEIGHT = 0.05  # metres above the lowest point of a foot joint: below it the foot is down


def jerk(joints: torch.Tensor, lengths: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
    """Jerk (W, K-3) of windows (W, K, J, 3): sum over xyz of the third difference, the worst joint's.

    lengths: valid frames of each window; entries from length - 3 on, which would reach beyond, are 0.
    """
    worst = joints.diff(n=3, dim=1).abs().sum(-1).amax(-1)
    if lengths is None:
        return worst
    place = torch.arange(worst.shape[1], device=worst.device)
    return worst * (place < torch.as_tensor(lengths, device=worst.device).unsqueeze(1) - 3)


def jerk_curve(joints: torch.Tensor, lengths: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
    """Mean over windows of ``jerk``: (K-3,)."""
    return jerk(joints, lengths).mean(0)


def peak_jerk(curve: torch.Tensor) -> torch.Tensor:
    """The largest value of each curve (*, K-3): (*,)."""
    return curve.amax(-1)


def area_under_jerk(curve: torch.Tensor, level: float = HUMANML_JERK) -> torch.Tensor:
    """Sum over the curve (*, K-3) of its distance from real motion's mean jerk: (*,)."""
    return (curve - level).abs().sum(-1)


def seam_windows(
    joints: torch.Tensor, boundaries: Sequence[int], frames: int = HUMANML_WINDOW
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (W, frames, J, 3) of a motion (F, J, 3) centred on each boundary, zero beyond its end, and their valid
    lengths (W,). A window that would begin before frame 0 begins there."""
    windows = joints.new_zeros(len(boundaries), frames, *joints.shape[1:])
    lengths = []
    for place, boundary in enumerate(boundaries):
        start = max(0, boundary - frames // 2)
        part = joints[start : start + frames]
        windows[place, : len(part)] = part
        lengths.append(len(part))
    return windows, torch.tensor(lengths)


def foot_skate(
    joints: torch.Tensor,
    fps: float,
    form: JointFeatures = HUMANML3D,
    *,
    floor: float | None = None,
    height: float = CONTACT_HEIGHT,
) -> torch.Tensor:
    """Mean horizontal speed (m/s) of foot joints that are down, in a motion (F, J, 3); 0 when none ever is.

    Down in a step: within ``height`` metres of the joint's lowest height (or of ``floor``, metres) in both its frames.
    """
    feet = joints[:, list(form.skeleton.feet)]
    low = feet[..., 1].amin(0) if floor is None else floor
    down = feet[..., 1] < low + height
    down = down[1:] & down[:-1]
    speed = (feet[1:] - feet[:-1])[..., [0, 2]].norm(dim=-1) * fps
    return (speed * down).sum() / down.sum().clamp_min(1)


def root_residual(joints: torch.Tensor, boundaries: Sequence[int]) -> torch.Tensor:
    """(W,) metres: how far the root at each boundary frame is from where its neighbours put it (the mean of frames one
    before and one after); a step in position shows as half its size."""
    place = torch.tensor([min(max(boundary, 1), len(joints) - 2) for boundary in boundaries])
    root = joints[:, 0]
    return (root[place] - 0.5 * (root[place - 1] + root[place + 1])).norm(dim=-1)


def overlap_gap(rows: torch.Tensor, lengths: Sequence[int], handshakes: Sequence[int]) -> torch.Tensor:
    """(W,) largest difference in the overlap of rows (B, M, J) that follow each other; 0 after a first take."""
    gaps = [
        (rows[i, lengths[i] - h : lengths[i]] - rows[i + 1, :h]).abs().max() if h else rows.new_zeros(())
        for i, h in enumerate(handshakes)
    ]
    return torch.stack(gaps) if gaps else rows.new_zeros(0)


def root_speed(joints: torch.Tensor, fps: float) -> torch.Tensor:
    """Mean speed (m/s) of the root over the ground, in a motion (F, J, 3)."""
    return joints[:, 0].diff(dim=0)[:, [0, 2]].norm(dim=-1).mean() * fps


def frame_jerk(joints: torch.Tensor, fps: float) -> torch.Tensor:
    """Jerk of each frame (F - 3,), m/s3: the length of the third difference, mean over joints (F, J, 3)."""
    return joints.diff(n=3, dim=0).norm(dim=-1).mean(-1) * fps**3


def bone_variation(joints: torch.Tensor, form: JointFeatures = HUMANML3D) -> torch.Tensor:
    """Deviation of a bone's length over the frames of a motion (F, J, 3) as a share of its mean, mean over bones."""
    lengths = (joints[:, 1:] - joints[:, list(form.skeleton.parents[1:])]).norm(dim=-1)
    return (lengths.std(0, correction=0) / lengths.mean(0).clamp_min(1e-6)).mean()


def described(features: torch.Tensor) -> torch.Tensor:
    """What a motion is like, whatever its phase: mean and deviation over time of its features (F, D): (2 D,)."""
    return torch.cat([features.mean(0), features.std(0, correction=0)])


def diversity(made: Sequence[torch.Tensor], real: Sequence[torch.Tensor]) -> float:
    """How far motions of several seeds lie apart, as a share of how far real clips of the same action do: deviations of
    ``described``, each number in units of its deviation over the real ones, root mean square. Features (F, D) each."""
    one, two = torch.stack([described(x) for x in made]), torch.stack([described(x) for x in real])
    spread = two.std(0)
    told = spread > 1e-6
    return float((one.std(0)[told] / spread[told]).clamp_max(3.0).square().mean().sqrt())
