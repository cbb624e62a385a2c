"""Loops that close: the last pose is the first one, where the person has come to.

    out = pipe(prompt, frames, hooks=[tie])
    gap = close(out)                        # Closing

In every denoising step the first and last frames' features are drawn to each other (``tie``): they are relative to the
root, so a walk comes back to its first pose, not to its first place. Afterwards the last frames of the joints take up
what smoothing left (``close``), with rigid bones where all frames have them. Played again from the end, with the root
carried on, there is no seam. Legend: F, N frames; metres, y up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import measure
from longtake.motion.kinematics import HUMANML, quat_between, quat_inverse, quat_rotate
from longtake.motion.rigid import is_rigid, nearest
from longtake.motion.smoothing import frame_jerk

if TYPE_CHECKING:
    from longtake.motion.outputs import MotionOutput

RAMP = 10  # frames at each end that take part
SHORTEST = 4 * RAMP


@dataclass(frozen=True)
class Closing:
    """gap_before, gap: metres between the last pose and the first, the largest of all joints. jerk: m/s3 of the worst
    frame where the end goes over into the beginning."""

    gap_before: float
    gap: float
    jerk: float

    def text(self) -> str:
        """For people to read."""
        return (
            f"loop: the last pose is the first one within {100 * self.gap:.2f} cm (before closing "
            f"{100 * self.gap_before:.1f}), worst frame at the seam {self.jerk:.0f} m/s3"
        )


def tie(clean: torch.Tensor, step: int = 0) -> torch.Tensor:
    """A hook: the clean estimate (N, J) whose first and last ``RAMP`` frames went half way towards each other. Raises
    UserError for a motion too short to loop."""
    check(len(clean))
    moved = clean.clone()
    half = 0.5 * (clean[0] - clean[-1])
    weight = _ramp(clean).unsqueeze(1)
    moved[-RAMP:] += weight * half
    moved[:RAMP] -= weight.flip(0) * half
    return moved


def check(frames: int) -> None:
    """Raise UserError for a motion too short to loop."""
    if frames < SHORTEST:
        raise UserError(f"a loop has at least {SHORTEST} frames; given {frames}")


def close(output: MotionOutput) -> Closing:
    """Let the last frames of each person's ``joints`` end in the first pose; the first person's figures. Raises
    UserError."""
    check(len(output.joints))
    done = [_closed(torch.as_tensor(joints).double(), output.fps) for joints in output.standard()]
    output.joints, output.pose = done[0][0].numpy().astype(np.float32), None  # rotations that were read are no more
    if output.second is not None:
        output.second = done[1][0].numpy().astype(np.float32)
    report = done[0][1]
    output.info["loop"] = {"gap_m": round(report.gap, 5), "seam_jerk": round(report.jerk, 1)}
    return report


def _closed(points: torch.Tensor, fps: float) -> tuple[torch.Tensor, Closing]:
    pose, turn, ground = _at_origin(points)
    gap = pose[0] - pose[-1]
    before = float(gap.norm(dim=-1).max())
    pose = pose.clone()
    pose[-RAMP:] += _ramp(points)[:, None, None] * gap
    end = _back(pose, turn, ground)[-RAMP:]
    if is_rigid(points):
        end = nearest(end, measure(points))
    closed = torch.cat([points[:-RAMP], end])
    after = float((_at_origin(closed)[0][0] - _at_origin(closed)[0][-1]).norm(dim=-1).max())
    # the second time round, carried on from where the first one ended; its frame 0 is the last one
    carried = _back(pose[0], turn[-1], ground[-1]) - closed[-1]
    second = quat_rotate(quat_inverse(turn[-1]), quat_rotate(turn[0], closed[1:8] - ground[0])) + ground[-1]
    jerk = float(frame_jerk(torch.cat([closed[-7:], second - carried]), fps).max())
    return closed, Closing(before, after, jerk)


def _ramp(like: torch.Tensor) -> torch.Tensor:
    """(RAMP,) from nearly 0 to 1, flat at both ends."""
    place = torch.arange(1, RAMP + 1, device=like.device, dtype=like.dtype) / RAMP
    return place * place * (3 - 2 * place)


def _at_origin(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Joints (F, 22, 3) over the origin, facing +z; the turns (F, 4) and places on the floor (F, 1, 3) taken off."""
    ground = points[:, :1] * points.new_tensor([1.0, 0.0, 1.0])
    turn = quat_between(HUMANML.forward_direction(points), points.new_tensor([0.0, 0.0, 1.0]))[:, None]
    return quat_rotate(turn, points - ground), turn, ground


def _back(pose: torch.Tensor, turn: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    return quat_rotate(quat_inverse(turn), pose) + ground
