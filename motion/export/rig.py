"""From joint positions to a rig that animation programs understand: fixed bones, a T-pose at rest, a rotation a joint.

The features' own rotations (67:193) carry no twist and follow another convention, so an export has to solve its own.
A joint with several children (pelvis, upper chest) takes the rotation that fits all of them best (Kabsch); one with a
single child points at it, from where the solved parent stands, so that errors do not add up towards the feet. What
the positions leave open, the turn about a bone, follows the knees and elbows where they bend, the twist of the trunk
along the spine, and otherwise stays as it was: between two frames it changes by at most 0.35 rad beyond what the bone's
own movement asks for, so limbs do not spin.

    take = solve(joints)                  # Pose
    take.joints(), take.rig.offsets       # (F, 22, 3), (22, 3)

Legend: F frames, J = 22 joints in HumanML3D's order; metres, y up, a person at rest faces +z. Quaternions are
(w, x, y, z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.kinematics import (
    HUMANML,
    Skeleton,
    forward_tree,
    matrix_to_quat,
    quat_between,
    quat_inverse,
    quat_multiply,
    quat_rotate,
    quat_to_matrix,
)
from torch.nn import functional as F

SHORTEST_BONE = 1e-3  # metres; programs drop bones of no length
_TWIST_STEP = 0.35  # rad a frame
_TWIST_GAIN = 0.5
_REST_PULL = 0.1  # weight of no twist beside a bent hinge's 1
_TEMPLATE_FRAMES = 2000  # bones are measured on so many frames at most

_LEFT, _RIGHT, _UP, _DOWN, _AHEAD = (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, -0.45, 0.9)
_T_POSE: dict[str, tuple[float, float, float]] = {
    **{f"{side}_{joint}": _DOWN for side in ("left", "right") for joint in ("knee", "ankle")},
    **{f"{side}_foot": _AHEAD for side in ("left", "right")},
    **{f"left_{joint}": _LEFT for joint in ("shoulder", "elbow", "wrist")},
    **{f"right_{joint}": _RIGHT for joint in ("shoulder", "elbow", "wrist")},
    **{joint: _UP for joint in ("spine2", "spine3", "head")},
}
# joint with several children: its left one, its right one, its upper one
_FANS = {"pelvis": ("left_hip", "right_hip", "spine1"), "spine3": ("left_collar", "right_collar", "neck")}
# joint that twists: the joint below its child, and where that moves at rest when the hinge bends
_HINGES = {
    "left_hip": ("left_ankle", (0.0, 0.0, -1.0)),
    "right_hip": ("right_ankle", (0.0, 0.0, -1.0)),
    "left_shoulder": ("left_wrist", (0.0, 0.0, 1.0)),
    "right_shoulder": ("right_wrist", (0.0, 0.0, 1.0)),
}
_SPINE = {"spine1": 3, "spine2": 2}  # joint: it takes one part in so many of the twist up to the upper chest


@dataclass(frozen=True)
class Rig:
    """Joints of one person at rest. offsets: (J, 3) joint minus parent in the T-pose, metres; entry 0 is 0."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: torch.Tensor

    def rest(self) -> torch.Tensor:
        """Joint positions (J, 3) at rest, the root at 0."""
        turns = torch.eye(3, dtype=self.offsets.dtype).expand(len(self.names), 3, 3)
        return forward_tree(self.parents, turns, self.offsets.new_zeros(3), self.offsets)

    def children(self, joint: int) -> list[int]:
        return [child for child, parent in enumerate(self.parents) if parent == joint]


@dataclass(frozen=True)
class Pose:
    """A rig in motion. local: (F, J, 4) unit quaternions relative to the parent, neighbours in time of the same sign.
    root: (F, 3) metres. All float64."""

    rig: Rig
    local: torch.Tensor
    root: torch.Tensor

    def joints(self) -> torch.Tensor:
        """The fixed-bone joints (F, J, 3)."""
        return forward_tree(self.rig.parents, quat_to_matrix(self.local), self.root, self.rig.offsets)


def check_joints(joints: np.ndarray | torch.Tensor, skeleton: Skeleton = HUMANML) -> torch.Tensor:
    """Joints (F, 22, 3) as float64. Raises UserError for another skeleton, no frames, NaN or infinity."""
    points = torch.as_tensor(joints).detach().cpu().double()
    if points.ndim != 3 or points.shape[1:] != (skeleton.joints, 3) or not len(points):
        raise UserError(f"an export needs joints (frames, {skeleton.joints}, 3); given {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise UserError("the joints hold NaN or infinity: nothing to export")
    return points


def measure(joints: torch.Tensor) -> Rig:
    """The rig whose bones have the motion's median lengths; joints (F, 22, 3) float64."""
    index = {name: place for place, name in enumerate(HUMANML.names)}
    joints = joints[:: -(-len(joints) // _TEMPLATE_FRAMES)]
    offsets = HUMANML.bones(joints).norm(dim=-1).median(0).values.unsqueeze(1).clamp_min(SHORTEST_BONE)
    directions = torch.zeros(HUMANML.joints, 3, dtype=joints.dtype)
    for name, direction in _T_POSE.items():
        directions[index[name]] = F.normalize(directions.new_tensor(direction), dim=0)
    offsets = offsets * directions
    for fan, kids in _FANS.items():
        left, right, upper = (joints[:, index[kid]] - joints[:, index[fan]] for kid in kids)
        x = F.normalize(left - right, dim=-1)
        y = F.normalize(upper - (upper * x).sum(-1, keepdim=True) * x, dim=-1)
        frame = torch.stack([x, y, torch.linalg.cross(x, y)], -1)
        for kid, vector in zip(kids, (left, right, upper), strict=True):
            seen = (vector.unsqueeze(-2) @ frame).squeeze(-2)
            offsets[index[kid]] = seen.median(0).values
    return Rig(HUMANML.names, HUMANML.parents, offsets)


def solve(joints: np.ndarray | torch.Tensor, rig: Rig | None = None) -> Pose:
    """Rotations of a rig that follow a motion (F, 22, 3), metres. rig: default measured on the motion.

    A motion whose bones have fixed lengths and whose pelvis and chest are rigid is followed exactly. Raises UserError
    for other joints.
    """
    points = check_joints(joints)
    rig = measure(points) if rig is None else rig
    index = {name: place for place, name in enumerate(rig.names)}
    hinges = {index[name]: (index[end], pole) for name, (end, pole) in _HINGES.items()}
    spine = {index[name]: parts for name, parts in _SPINE.items()}
    ankles = {index["left_ankle"], index["right_ankle"]}
    chest_kids = rig.children(index["spine3"])
    chest = kabsch(rig.offsets[chest_kids], points[:, chest_kids] - points[:, [index["spine3"]]])
    none = points.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(points), 4)
    world: list[torch.Tensor] = []
    local: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    for joint, parent in enumerate(rig.parents):
        above = none if parent < 0 else world[parent]
        place = points[:, 0] if parent < 0 else places[parent] + quat_rotate(above, rig.offsets[joint])
        kids = rig.children(joint)
        if not kids:
            turn = none
        elif len(kids) > 1:
            turn = quat_multiply(quat_inverse(above), kabsch(rig.offsets[kids], points[:, kids] - place.unsqueeze(1)))
        else:
            rest = F.normalize(rig.offsets[kids[0]], dim=0)
            # a foot is short: seen from where the solved ankle is, millimetres would be degrees
            start = 0.5 * (place + points[:, joint]) if joint in ankles else place
            aim = _direction(quat_rotate(quat_inverse(above), points[:, kids[0]] - start), rest)
            swing = quat_between(rest.expand_as(aim), aim)
            pull = torch.full((len(points),), _REST_PULL, dtype=points.dtype) * (0.5 + 0.5 * aim @ rest).square()
            wish = torch.complex(pull, torch.zeros_like(pull))
            if joint in hinges:
                end, pole = hinges[joint]
                below = F.normalize(points[:, end] - points[:, kids[0]], dim=-1)
                seen = quat_rotate(quat_inverse(quat_multiply(above, swing)), below)
                wish = wish + _about(rest, points.new_tensor(pole), seen)
            if joint in spine:
                twist = _twist(quat_multiply(quat_inverse(quat_multiply(above, swing)), chest), rest)
                wish = torch.polar(torch.ones_like(twist), twist / spine[joint])
            angle = _follow(wish, _carried(swing, aim, rest))
            turn = quat_multiply(swing, _turn_about(rest, angle))
        places.append(place)
        local.append(turn)
        world.append(quat_multiply(above, turn))
    return Pose(rig, continuous(F.normalize(torch.stack(local, 1), dim=-1)), points[:, 0])


def continuous(quats: torch.Tensor) -> torch.Tensor:
    """Quaternions (F, *, 4) with signs such that neighbours in time are on the same half of the sphere."""
    signs = torch.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0).to(quats)
    signs = torch.cat([torch.ones_like(quats[:1, ..., 0]), signs.cumprod(0)])
    return quats * signs.unsqueeze(-1)


def kabsch(rest: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Quaternions (F, 4) that turn vectors (K, 3) best onto seen ones (F, K, 3): Kabsch."""
    u, _, vh = torch.linalg.svd(seen.transpose(-1, -2) @ rest)
    flip = torch.ones_like(u[..., 0])
    flip[..., 2] = torch.linalg.det(u @ vh)
    return matrix_to_quat(u @ (flip.unsqueeze(-1) * vh))


def _direction(vectors: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Unit directions of vectors (F, 3); a vector of no length points as at rest."""
    size = vectors.norm(dim=-1, keepdim=True)
    return torch.where(size > 1e-9, vectors / size.clamp_min(1e-9), rest)


def _about(axis: torch.Tensor, pole: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Complex (F,): its angle is that about ``axis`` from ``pole`` to ``seen`` (F, 3), its size the sine squared of the
    angle between ``seen`` and the axis (0 for a straight limb)."""
    pole = F.normalize(pole - (pole @ axis) * axis, dim=0)
    flat = torch.complex(seen @ pole, seen @ torch.linalg.cross(axis, pole))
    return flat * flat.abs()


def _twist(quats: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """The angle (F,) of the turn about ``axis`` (3,) within rotations (F, 4), in -pi..pi."""
    angle = 2.0 * torch.atan2(quats[:, 1:] @ axis, quats[:, 0])
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _turn_about(axis: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    half = 0.5 * angle.unsqueeze(1)
    return torch.cat([half.cos(), half.sin() * axis], 1)


# A bone's rotation is its swing, the shortest turn from where it points at rest to where it points now, after a twist
# about its own length. The limb beyond it tells the twist: seen along the bone (the axis comes out of the page),
#
#              seen (the shin's direction)              wish    = size of the sine squared, at the angle t
#             /                                          size 1  the limb is bent at a right angle: t is certain
#            / t                                         size 0  the limb is straight: there is no t
#     axis  o---------- pole (where the knee bends at rest)
#
# ``_follow`` keeps an angle ``now``: it is carried along by what the swing itself turns (``_carried``: a swing that
# goes round has turned the bone about its length), and goes after t by _TWIST_GAIN x size of the way, _TWIST_STEP at
# most.


def _carried(swing: torch.Tensor, aim: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """(F - 1,) by how much the twist beyond ``swing`` must change from frame to frame for the bone not to spin."""
    moved = quat_multiply(quat_between(aim[:-1], aim[1:]), swing[:-1])
    return _twist(quat_multiply(quat_inverse(swing[1:]), moved), rest)


def _follow(wish: torch.Tensor, carried: torch.Tensor) -> torch.Tensor:
    """Twists (F,) that go after the angle of ``wish`` as fast as its size allows, and never jump."""
    angles, sizes, steps = wish.angle().tolist(), wish.abs().clamp(max=1.0).tolist(), [0.0, *carried.tolist()]
    now = angles[0]
    found = []
    for angle, size, step in zip(angles, sizes, steps, strict=True):
        now += step
        behind = math.remainder(angle - now, 2 * math.pi)
        now += max(-_TWIST_STEP, min(_TWIST_STEP, _TWIST_GAIN * size * behind))
        found.append(now)
    return wish.real.new_tensor(found)
