"""Feet that stand do not slide: foot locking by two-bone inverse kinematics, with its cost.

    fixed, report = lock_feet(joints, fps=20)
    print(report.text())

A foot is down in a frame when its ankle or toe is near the floor and slow. While it is down the whole foot is shifted
so that what touches the floor (toe, ankle, or both) stands still; the shift is as small as that allows, and between two
stands it goes over smoothly into the next. The leg follows: the hip stays, the knee keeps its side, thigh and shin keep
their lengths. A leg that would have to be longer than it is stretches out and the foot slips by the rest, which the
report counts. Heights are left as they are. Legend: F frames, J = 22 joints; metres, y up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import check_joints
from longtake.motion.kinematics import HUMANML, quat_between, quat_rotate
from longtake.motion.metrics import CONTACT_HEIGHT, foot_skate
from torch.nn import functional as F

SLOW = 0.4  # m/s; a foot that is down and faster than this is swinging
SHORTEST_STAND = 3  # frames
FADE = 6  # frames over which a shift comes and goes where no other stand is near
_LEGS = (("left_hip", "left_knee", "left_ankle", "left_foot"), ("right_hip", "right_knee", "right_ankle", "right_foot"))
_REACH = 0.9995  # of the leg's length: a knee never locks


@dataclass(frozen=True)
class CleanupReport:
    """What was changed. Displacements in metres over all joints and frames; skate in m/s (``metrics.foot_skate``, which
    counts a swinging foot that passes near the floor too); slide: mean m/s of what was found to stand, the same frames
    before and after. locked_slip: metres a frame, the most where the leg could reach."""

    frames: int
    contact_share: float
    mean_displacement: float
    max_displacement: float
    skate_before: float
    skate_after: float
    slide_before: float
    slide_after: float
    locked_slip: float
    bone_change: float
    short_leg_frames: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """For people to read."""
        return (
            f"foot lock over {self.frames} frames, {self.contact_share:.0%} of them with a foot down\n"
            f"  standing feet slide {self.slide_before:.4f} -> {self.slide_after:.4f} m/s "
            f"({1000 * self.locked_slip:.2f} mm a frame at most where the leg reaches); "
            f"foot skate {self.skate_before:.4f} -> {self.skate_after:.4f} m/s\n"
            f"  joints moved {1000 * self.mean_displacement:.2f} mm on average, {1000 * self.max_displacement:.1f} mm "
            f"at most; bones changed by {1000 * self.bone_change:.4f} mm\n"
            f"  {self.short_leg_frames} frames in which a leg was too short to hold its foot"
        )


def lock_feet(
    joints: np.ndarray | torch.Tensor, fps: float, *, slow: float = SLOW, height: float = CONTACT_HEIGHT
) -> tuple[torch.Tensor, CleanupReport]:
    """Joints (F, 22, 3) with standing feet held still, and the cost.

    slow: m/s; height: metres above a joint's lowest place. The result has the dtype of ``joints`` if it is a tensor,
    else float32. Raises UserError.
    """
    if not (fps > 0 and slow > 0 and height > 0):
        raise UserError(f"fps, slow and height must be greater than 0; given {fps}, {slow}, {height}")
    points = check_joints(joints)
    fixed = points.clone()
    index = {name: place for place, name in enumerate(HUMANML.names)}
    ahead = HUMANML.forward_direction(points)
    any_down = torch.zeros(len(points), dtype=torch.bool)
    short = torch.zeros(len(points), dtype=torch.bool)
    slips: list[torch.Tensor] = []  # of each leg: metres a frame
    slides: list[torch.Tensor] = []  # of each leg, where it stands: before and after
    for leg in _LEGS:
        hip, knee, ankle, toe = (index[name] for name in leg)
        down = _contacts(points[:, [ankle, toe]], fps, slow, height)
        shift = _shift(points[:, [ankle, toe]], down)
        moved, reached = bend(points[:, hip], points[:, knee], points[:, ankle], shift, ahead)
        fixed[:, knee], fixed[:, ankle] = moved
        fixed[:, toe] = points[:, toe] + (fixed[:, ankle] - points[:, ankle])
        held = down.any(1)
        any_down |= held
        short |= held & ~reached
        before = _slides(points[:, [ankle, toe]], down)
        after = _slides(fixed[:, [ankle, toe]], down)
        holding = (down[1:] & down[:-1]).any(1)
        slides.append(torch.stack([before[holding], after[holding]], 1))
        slips.append(after * (holding & reached[1:] & reached[:-1]))
    distance = (fixed - points).norm(dim=-1)
    slide = torch.cat(slides)
    before_after = (slide.mean(0) * fps).tolist() if len(slide) else [0.0, 0.0]
    bones = (HUMANML.bones(fixed).norm(dim=-1) - HUMANML.bones(points).norm(dim=-1)).abs().max()
    report = CleanupReport(
        frames=len(points),
        contact_share=float(any_down.double().mean()),
        mean_displacement=float(distance.mean()),
        max_displacement=float(distance.max()),
        skate_before=_skate(points, fps),
        skate_after=_skate(fixed, fps),
        slide_before=before_after[0],
        slide_after=before_after[1],
        locked_slip=max((float(slip.max()) for slip in slips if len(slip)), default=0.0),
        bone_change=float(bones),
        short_leg_frames=int(short.sum()),
    )
    kind = joints.dtype if isinstance(joints, torch.Tensor) else torch.float32
    return fixed.to(kind), report


def _skate(joints: torch.Tensor, fps: float) -> float:
    return float(foot_skate(joints, fps)) if len(joints) > 1 else 0.0


def _contacts(feet: torch.Tensor, fps: float, slow: float, height: float) -> torch.Tensor:
    """(F, 2) whether ankle and toe (F, 2, 3) stand: low, slow, and for at least three frames."""
    if len(feet) < 2:
        return torch.zeros(len(feet), 2, dtype=torch.bool)
    low = feet[..., 1] < feet[..., 1].amin(0) + height
    step = (feet[1:] - feet[:-1])[..., [0, 2]].norm(dim=-1) * fps
    # the slower of the steps before and after: a stand includes its first and last frame
    speed = torch.minimum(torch.cat([step[:1], step]), torch.cat([step, step[-1:]]))
    down = low & (speed < slow)
    for column in range(2):
        for start, stop in _stands(down[:, column]):
            if stop - start < SHORTEST_STAND:
                down[start:stop, column] = False
    return down


def _slides(feet: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """(F-1,) horizontal step in metres of what stands in two frames that follow each other: toe, ankle or their mean,
    since a foot that turns on the spot does not slide."""
    both = (down[1:] & down[:-1]).to(feet).unsqueeze(-1)
    step = ((feet[1:] - feet[:-1]) * both).sum(1) / both.sum(1).clamp_min(1.0)
    return step[:, [0, 2]].norm(dim=-1)


def _stands(down: torch.Tensor) -> list[tuple[int, int]]:
    """First frame and end of each run of True in (F,)."""
    edges = torch.diff(F.pad(down.int(), (1, 1))).tolist()
    starts = [frame for frame, edge in enumerate(edges) if edge == 1]
    stops = [frame for frame, edge in enumerate(edges) if edge == -1]
    return list(zip(starts, stops, strict=True))


def _shift(feet: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """(F, 3) by how much the foot must move, horizontally, for what is down to stand still."""
    shift = torch.zeros(len(feet), 3, dtype=feet.dtype)
    stands = _stands(down.any(1))
    for start, stop in stands:
        step = torch.zeros(stop - start, 3, dtype=feet.dtype)
        for frame in range(start + 1, stop):
            holds = down[frame] & down[frame - 1]
            if bool(holds.any()):
                step[frame - start] = -(feet[frame] - feet[frame - 1])[holds].mean(0)
        step[:, 1] = 0.0
        way = step.cumsum(0)
        shift[start:stop] = way - way.mean(0)
    bounds = [(0, 0), *stands, (len(feet), len(feet))]
    for (_, end), (begin, _) in zip(bounds, bounds[1:], strict=False):
        gap = begin - end
        if gap <= 0:
            continue
        last = shift[end - 1] if end > 0 else shift.new_zeros(3)
        following = shift[begin] if begin < len(feet) else shift.new_zeros(3)
        place = torch.arange(1, gap + 1, dtype=feet.dtype).unsqueeze(1)
        width = min(FADE, gap + 1)
        shift[end:begin] = last * _ease(1 - place / width) + following * _ease(1 - (gap + 1 - place) / width)
    return shift


def _ease(x: torch.Tensor) -> torch.Tensor:
    """0 to 1 without a corner; below 0 it is 0."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3 - 2 * x)


def bend(
    hip: torch.Tensor, knee: torch.Tensor, ankle: torch.Tensor, shift: torch.Tensor, ahead: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Knee and ankle (F, 3) after the ankle moved by ``shift``, and whether (F,) it got there."""
    thigh = (knee - hip).norm(dim=-1, keepdim=True)
    shin = (ankle - knee).norm(dim=-1, keepdim=True)
    goal = ankle + shift - hip
    wanted = goal.norm(dim=-1, keepdim=True)
    line = F.normalize(goal, dim=-1)
    old = F.normalize(ankle - hip, dim=-1)
    # a leg that was straight in the motion may stay as straight as it was
    longest = torch.maximum(_REACH * (thigh + shin), (ankle - hip).norm(dim=-1, keepdim=True).minimum(thigh + shin))
    length = wanted.clamp_min(1e-6).maximum((thigh - shin).abs()).minimum(longest)
    side = (knee - hip) - ((knee - hip) * old).sum(-1, keepdim=True) * old
    front = ahead - (ahead * old).sum(-1, keepdim=True) * old
    side = side + F.normalize(front, dim=-1) * (1e-3 - side.norm(dim=-1, keepdim=True)).clamp_min(0.0)
    side = F.normalize(quat_rotate(quat_between(old, line), side), dim=-1)
    along = (thigh.square() - shin.square() + length.square()) / (2 * length)
    out = (thigh.square() - along.square()).clamp_min(0.0).sqrt()
    new_knee, new_ankle = hip + along * line + out * side, hip + length * line
    still = shift.norm(dim=-1, keepdim=True) < 1e-9
    reached = (length >= wanted - 1e-6)[:, 0] | still[:, 0]
    return (torch.where(still, knee, new_knee), torch.where(still, ankle, new_ankle)), reached
