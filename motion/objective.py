"""What the motion recipes minimise: errors of features, and of what the features mean in the world.

The released loss is the L2 of features (MDM, arXiv 2209.14916) with a term for feet that stand. Here the root's four
numbers weigh more, first differences of positions join in, and three terms of decoded positions: the lengths of bones,
how far each joint moves in ten frames (a slow walk shows there, not in a step), and the speed of standing feet.
Legend: B rows, F frames, D features, J joints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from longtake.motion.kinematics import quat_rotate
from longtake.motion.representation import HUMANML3D

if TYPE_CHECKING:
    from longtake.motion.space import MotionSpace

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
ROOT_WEIGHT, DIFFERENCE_WEIGHT, FOOT_WEIGHT = 6.0, 5.0, 0.2
BONE_WEIGHT = 2.0  # of the mean error of a bone's length, in deviations of positions
STRIDE_WEIGHT = 1.0
STRIDE = 10  # frames, half a second
STRIDE_SPREAD = 0.3  # metres: about the deviation of what a joint moves in a stride
STANDING_SPEED = 0.0076  # metres a frame: root mean square speed of the real feet that are in contact


def error_of(out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of normalised features (*, F, D), the root's numbers weighted, a mean; valid: (*, F, 1), 0 or 1."""
    weight = clean.new_ones(clean.shape[-1])
    weight[:4] = ROOT_WEIGHT
    square = ((out - clean).square() * weight).mean(-1, keepdim=True) / weight.mean()
    return _mean(square, valid)


def difference_of(out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of the steps of local positions, normalised; arguments as of ``error_of``."""
    places = HUMANML3D.slices["positions"]
    step = (out[..., places] - clean[..., places]).diff(dim=-2)
    return _mean(step.square().mean(-1, keepdim=True), valid[..., 1:, :])


def world_terms(
    out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor, share: torch.Tensor, space: MotionSpace
) -> dict[str, torch.Tensor]:
    """Errors of decoded motion: "bone", "stride" and "slide".

    out, clean: (B, F, D) normalised, float32. valid: (B, F, 1), 0 beyond a row's end. share: (B,) the signal's share
    of the variance at the row's noise level. Where it is small the best estimate is a mean of many motions, whose bones
    are shorter and whose feet never stand, so "bone" and "slide" weigh by it.
    """
    with torch.autocast(out.device.type, enabled=False):  # a way is a running sum: not in half precision
        features = space.denormalize(torch.cat([out, clean]).float())
        heading, way = HUMANML3D.root(features)
        local = features[..., HUMANML3D.slices["positions"]].unflatten(-1, (-1, 3))
        hip = torch.stack([torch.zeros_like(way[..., 1]), way[..., 1], torch.zeros_like(way[..., 1])], -1)
        local = torch.cat([hip.unsqueeze(-2), local], -2)
        ground = way * way.new_tensor([1.0, 0.0, 1.0])
        joints = quat_rotate(_back(heading).unsqueeze(-2), local) + ground.unsqueeze(-2)
        by_row = share[:, None, None]
        bones = _bones(local)
        gap = (bones[: len(out)] - bones[len(out) :]).abs().mean(-1, keepdim=True)
        deviation = space.std[HUMANML3D.slices["positions"].start]
        told = {"bone": _mean(gap * by_row, valid) / deviation}
        moved = _seen(joints, heading, STRIDE)
        away = (moved[: len(out)] - moved[len(out) :]).square().sum(-1).mean(-1, keepdim=True)
        told["stride"] = _mean(away, valid[:, STRIDE:]) / STRIDE_SPREAD**2
        steps = _seen(joints[:, :, list(HUMANML3D.skeleton.feet)], heading, 1)
        slip = (steps[: len(out)] - steps[len(out) :]).square().sum(-1)
        contact = features[len(out) :, :-1, HUMANML3D.slices["contacts"]] * valid[:, 1:]
        told["slide"] = (slip * contact * by_row).sum() / contact.sum().clamp_min(1) / STANDING_SPEED**2
    return told


def terms(
    out: torch.Tensor, clean: torch.Tensor, lengths: torch.Tensor, share: torch.Tensor, space: MotionSpace
) -> dict[str, torch.Tensor]:
    """Every term of the prior's loss, each with its weight: "error", "difference", "bone", "stride", "slide".

    out, clean: (B, F, D). lengths: (B,) valid frames. share: see ``world_terms``.
    """
    frames = clean.shape[1]
    valid = (torch.arange(frames, device=clean.device) < lengths[:, None]).to(clean.dtype).unsqueeze(-1)
    world = world_terms(out, clean, valid, share, space)
    return {
        "error": error_of(out, clean, valid),
        # neighbouring frames differ by about a fifth of the spread of positions, hence the large weight
        "difference": DIFFERENCE_WEIGHT * difference_of(out, clean, valid),
        "bone": BONE_WEIGHT * world["bone"],
        "stride": STRIDE_WEIGHT * world["stride"],
        "slide": FOOT_WEIGHT * world["slide"],
    }


def _mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over the frames that count; both (*, F, 1)."""
    return (values * valid).sum() / valid.sum().clamp_min(1)


def _back(heading: torch.Tensor) -> torch.Tensor:
    return heading * heading.new_tensor([1.0, -1.0, -1.0, -1.0])


def _bones(local: torch.Tensor) -> torch.Tensor:
    """Lengths of the bones (*, J - 1), metres, of joints (*, J, 3)."""
    parents = HUMANML3D.skeleton.parents
    bones = local[..., 1:, :] - local[..., list(parents[1:]), :]
    return (bones.square().sum(-1) + 1e-8).sqrt()


def _seen(joints: torch.Tensor, heading: torch.Tensor, frames: int) -> torch.Tensor:
    """By how much joints (B, F, J, 3) move in so many frames, as seen from their heading (B, F, 4) before: the world's
    own axes would turn with every error of the heading so far. (B, F - frames, J, 3), empty for short rows."""
    moved = joints[:, frames:] - joints[:, : max(0, joints.shape[1] - frames)]
    return quat_rotate(heading[:, : moved.shape[1]].unsqueeze(-2), moved)
