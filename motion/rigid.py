"""A net's joints as a body: bones keep their lengths, pelvis and chest their shapes, and no frame has a pop.

    joints, moved = settled(joints, fps=20, most=567.0)      # (F, 22, 3), metres; (F, 22) metres moved

A net draws each joint where it likes best, so that a forearm is 3 cm longer in one frame than in the next; no rig can
follow that. ``nearest`` finds, frame by frame, the pose of one rigid skeleton (the medians of the motion's own bones)
whose joints are nearest to the given ones, the pelvis held where it is: nonlinear least squares over the directions of
the bones and the rotations of pelvis and chest (Levenberg-Marquardt). The problem is that of fitting a kinematic tree
to markers, here with a marker at every joint.

In terms of the rotation in the world of each bone, joint j is p_j = root + sum of the bones b_k on its way from the
pelvis, so the derivative of p_j by the rotation of b_k is -[b_k]x where k is on the way to j, and the normal matrix has
the blocks S_kl ((b_k . b_l) 1 - b_l b_k^T), S_kl = weight of the joints that lie beyond both k and l. A turn of a bone
about its own length moves nothing and stays out by the damping. Frames that are rigid already stay bit for bit, and a
frame does not depend on the others, so that smooth motion stays smooth. Legend: F frames, J = 22 joints, G = 17 bodies
that turn on their own: pelvis, chest and 15 bones; metres, y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from longtake.motion.export.rig import Rig, kabsch, measure
from longtake.motion.kinematics import HUMANML, axis_angle_to_matrix, quat_rotate
from longtake.motion.smoothing import MOST_JERK, frame_jerk, limit_jerk, worst
from torch.nn import functional as F

RIGID = 1e-5  # metres; joints this near to a rigid body's are one
_FANS = ((1, 2, 3), (12, 13, 14))  # what turns with the pelvis; with the chest
_BONES = (*_FANS[0], *_FANS[1], *(joint for joint in range(1, 22) if joint not in (*_FANS[0], *_FANS[1])))
_CHUNK = 512  # frames of one solve: 15 kB each
_STEPS = 10
_SETTLED = 1e-9  # m2; a frame whose sum of squares falls by less is done
_TIGHTER = (0.92, 0.7)  # of the limit is aimed at, round after round
_HOPELESS = 1.5  # times the limit: what no round brings back (made motions: 1.1 at most)


def _ways() -> torch.Tensor:
    """(22, 21) whether a bone of ``_BONES`` lies on the way from the pelvis to a joint."""
    ways = torch.zeros(HUMANML.joints, len(_BONES), dtype=torch.float64)
    for joint in range(HUMANML.joints):
        at = joint
        while at > 0:
            ways[joint, _BONES.index(at)] = 1.0
            at = HUMANML.parents[at]
    return ways


_WAYS = _ways()
_SHARED = _WAYS.T @ _WAYS  # joints beyond both of two bones
_BODY = torch.tensor([0] * 3 + [1] * 3 + list(range(2, 17)))  # of each bone


def nearest(joints: torch.Tensor, person: Rig) -> torch.Tensor:
    """The joints (F, 22, 3) of a rigid person that are nearest to the given ones, float64, with the same pelvis."""
    points = joints.detach().cpu().double()
    parts = [_nearest(part, person) for part in points.split(_CHUNK)]
    return torch.cat(parts) if parts else points


def pointed(joints: torch.Tensor, person: Rig) -> torch.Tensor:
    """A rigid person (F, 22, 3) whose bones point where those of somebody else's joints (F, 22, 3) do, the pelvis where
    theirs is."""
    points = joints.detach().cpu().double()
    return _places(points[:, :1], _start(HUMANML.bones(points), person)[:, list(_BONES)])


def settled(joints: torch.Tensor, fps: float, most: float = MOST_JERK) -> tuple[torch.Tensor, torch.Tensor]:
    """A motion (F, 22, 3), metres, of a rigid person without pops, and how far (F, 22) each joint was moved.

    most: m/s3 that no frame exceeds (``smoothing``). Smoothing stretches bones and a rigid body jerks a little, so both
    are done in turn, the limit tighter each time, until both hold. Where they cannot, as with joints that no body has,
    the bones are kept and the jerk is what it is. The dtype stays.
    """
    calm = limit_jerk(joints, fps, most).detach().cpu().double()
    person = measure(calm)
    found = nearest(calm, person)
    for share in _TIGHTER:
        if not most < worst(found, fps) <= _HOPELESS * most:
            break
        found = nearest(limit_jerk(found, fps, share * most), person)
    return found.to(joints), (found - joints.detach().cpu().double()).norm(dim=-1)


def is_rigid(joints: torch.Tensor) -> bool:
    """Whether joints (F, 22, 3) are those of a rigid body."""
    points = joints.detach().cpu().double()
    return bool((nearest(points, measure(points)) - points).norm(dim=-1).max() < 10 * RIGID)


def finished(
    people: Sequence[torch.Tensor], fps: float, metre: float, most_jerk: float | None
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """What a pipeline makes of its people's joints (F, J, 3), and what is told of it: worst_jerk, m/s3; moved_m, metres
    by which ``settled`` moved joints. metre: so many of the joints' units are one. most_jerk: None leaves them as the
    net made them. Joints that are not HumanML3D's are only kept from pops."""
    told: dict[str, Any] = {}
    done = list(people)
    if most_jerk is not None and done[0].numel():
        if done[0].shape[1] == HUMANML.joints and metre == 1.0:
            pairs = [settled(joints, fps, most_jerk) for joints in done]
            done, moved = [joints for joints, _ in pairs], torch.stack([moved for _, moved in pairs])
            told["moved_m"] = {"mean": round(float(moved.mean()), 4), "largest": round(float(moved.max()), 4)}
        else:
            done = [limit_jerk(joints, fps, metre * most_jerk) for joints in done]
    if done[0].numel() and len(done[0]) > 3:
        told["worst_jerk"] = round(max(float(frame_jerk(joints, fps).max()) for joints in done) / metre, 1)
    return done, told


def _nearest(points: torch.Tensor, person: Rig) -> torch.Tensor:
    bones = _start(HUMANML.bones(points), person)[:, list(_BONES)]
    places = _places(points[:, :1], bones)
    off = (places - points).norm(dim=-1).amax(1) > RIGID
    going = off.nonzero().squeeze(1)
    damping = torch.full((len(going),), 1e-6, dtype=torch.float64)
    for _ in range(_STEPS):
        if not len(going):
            break
        target, now = points[going], bones[going]
        missing = target - places[going]
        new = _turned(now, missing, damping)
        moved = _places(target[:, :1], new)
        before = missing.square().sum((1, 2))
        after = (target - moved).square().sum((1, 2))
        better = after < before
        bones[going] = torch.where(better[:, None, None], new, now)
        places[going] = torch.where(better[:, None, None], moved, places[going])
        damping = torch.where(better, (0.2 * damping).clamp_min(1e-8), 20.0 * damping)
        open_ = torch.where(better, before - after > _SETTLED, damping < 1e3)
        going, damping = going[open_], damping[open_]
    return torch.where(off[:, None, None], places, points)


def _start(bones: torch.Tensor, person: Rig) -> torch.Tensor:
    """(F, 22, 3) bones of the person's lengths that point where the given ones do."""
    start = F.normalize(bones, dim=-1) * person.offsets.norm(dim=-1, keepdim=True)
    for fan in _FANS:
        turn = kabsch(person.offsets[list(fan)], bones[:, list(fan)])
        for joint in fan:
            start[:, joint] = quat_rotate(turn, person.offsets[joint].expand(len(bones), 3))
    return start


def _places(root: torch.Tensor, bones: torch.Tensor) -> torch.Tensor:
    return root + _WAYS @ bones


def _turned(bones: torch.Tensor, missing: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """Bones (F, 21, 3) after one damped Gauss-Newton step towards joints that are ``missing`` (F, 22, 3) away."""
    xyz = bones.transpose(1, 2).contiguous()
    outer = _of_bodies(_of_bodies(xyz[:, None, :, :, None] * (xyz[:, :, None, None, :] * _SHARED), 3), 4)
    normal = -outer  # (F, a, b, G, G): minus b_l[a] b_k[b], summed over the bones of both bodies
    for axis in range(3):
        normal[:, axis, axis] += outer[:, 0, 0] + outer[:, 1, 1] + outer[:, 2, 2]
    normal = normal.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    normal.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    pull = _of_bodies(torch.linalg.cross(bones, _WAYS.T @ missing), 1).transpose(1, 2).flatten(1)
    turns = torch.cholesky_solve(pull.unsqueeze(2), torch.linalg.cholesky(normal)).unflatten(1, (3, -1)).squeeze(3)
    matrix = axis_angle_to_matrix(turns.transpose(1, 2)).index_select(1, _BODY)
    return (matrix * bones.unsqueeze(2)).sum(3)


def _of_bodies(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums over the bones of each body, along an axis of 21."""
    pelvis, chest, rest = values.split([3, 3, len(_BONES) - 6], axis)
    return torch.cat([pelvis.sum(axis, keepdim=True), chest.sum(axis, keepdim=True), rest], axis)
