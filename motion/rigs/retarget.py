"""A motion on another skeleton: the person is put into the rig's rest pose by the solver that follows the motion.

    take = retarget(joints, fps=20, rig=rig_of("ue5"), new_fps=30)
    take.local, take.root                  # rotations (F, B, 4) of each bone relative to its parent, metres (F, 3)

Bones keep this person's lengths; what is the rig's own are names, hierarchy, rest pose and axes, so that the rotations
also fit a character of other proportions. Two solves with one solver (``export.rig.solve``) make it: of the motion, and
of the person standing in the rig's rest pose. If E is what the second found for a joint, Q what the first found, and G
the bone's axes at rest, the bone's rotation in the world is Q E^-1 G: at the rest pose it is G, and what the bone
carries moves as the joint does, its twist included.

The trunk and the shoulders at rest are the body's own, since a spine is curved in one data set and straight in another:
a person who stands upright leaves the rig's trunk as it rests. Legend: F frames, B bones, J = 22 joints; metres, y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import Pose, Rig, check_joints, continuous, measure, solve
from longtake.motion.kinematics import (
    HUMANML,
    forward_tree,
    matrix_to_quat,
    quat_between,
    quat_inverse,
    quat_multiply,
    quat_rotate,
    quat_to_matrix,
)
from longtake.motion.representation import smooth
from longtake.motion.rigs.tables import RigTable
from torch.nn import functional as F

HEADING_SECONDS = 0.35  # sigma of the smoothing of a floor bone's turn
BENT_NECK = 20.0  # degrees from the chest's up; beyond it the joints are SMPL's, whose head joint lies before the neck
LEAST_FPS, MOST_FPS = 1.0, 240.0
LOOK_SECONDS, MOST_LOOK = 0.4, 70.0  # sigma of a look; degrees that a head turns beside what the body does
OFF, NUDGE = 0.005, 0.005  # metres; see ``evened``

# directions from a joint to the next one in a person who stands upright: of skeletons whose trunk is a straight line
# (measured on the upright clips of our motion data), and of SMPL's template; y up, facing +z, left side
_STRAIGHT = {
    "spine1": (0.0, 1.0, 0.0), "spine2": (0.0, 1.0, 0.0), "spine3": (0.0, 1.0, 0.0), "neck": (0.0, 1.0, 0.0),
    "head": (0.0, 1.0, 0.0), "shoulder": (0.947, 0.042, -0.319),
}  # fmt: skip
_SMPL = {
    "spine1": (0.0, 0.971, -0.238), "spine2": (0.0, 1.0, 0.008), "spine3": (0.0, 0.901, 0.433),
    "neck": (0.0, 0.981, -0.196), "head": (0.0, 0.787, 0.617), "shoulder": (0.944, 0.317, -0.092),
}  # fmt: skip


@dataclass(frozen=True)
class RigTake:
    """A motion on a rig.

    rest: (B, 3) places and axes: (B, 4) world rotations of the bones at rest, standing on the floor at the origin.
    local: (F, B, 4) rotations relative to the parent, neighbours in time of the same sign. moves: numbers of the bones
    that also move, with their way (F, 3) relative to the parent. fps: of ``local``. source: (S, 22, 3) joints at
    ``source_fps``, and pose: what was solved of them. looks: see ``retarget``. All float64.
    """

    table: RigTable
    rest: torch.Tensor
    axes: torch.Tensor
    local: torch.Tensor
    moves: dict[int, torch.Tensor]
    fps: float
    source: torch.Tensor
    source_fps: float
    pose: Pose
    looks: tuple[tuple[int, tuple[float, float, float]], ...] = ()

    def offsets(self) -> torch.Tensor:
        """(B, 3) each bone's place at rest in the frame of its parent; of the first, its place in the world."""
        parts = []
        for bone, parent in enumerate(self.table.parents):
            gap = self.rest[bone] if parent < 0 else self.rest[bone] - self.rest[parent]
            parts.append(gap if parent < 0 else quat_rotate(quat_inverse(self.axes[parent]), gap))
        return torch.stack(parts)

    def rest_local(self) -> torch.Tensor:
        """(B, 4) rotations relative to the parent at rest."""
        return _relative(self.axes.unsqueeze(0), self.table.parents)[0]

    def world(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations (F, B, 4) and places (F, B, 3) of the bones in the world."""
        offsets = self.offsets()
        turns: list[torch.Tensor] = []
        places: list[torch.Tensor] = []
        for bone, parent in enumerate(self.table.parents):
            step = self.moves.get(bone, offsets[bone].expand(len(self.local), 3))
            turns.append(self.local[:, bone] if parent < 0 else quat_multiply(turns[parent], self.local[:, bone]))
            places.append(step if parent < 0 else places[parent] + quat_rotate(turns[parent], step))
        return torch.stack(turns, 1), torch.stack(places, 1)

    def times(self) -> np.ndarray:
        """Seconds (F,) of the frames."""
        return np.arange(len(self.local)) / self.fps


def retarget(
    joints: np.ndarray | torch.Tensor,
    fps: float,
    table: RigTable,
    *,
    new_fps: float | None = None,
    given: Pose | None = None,
    looks: Sequence[tuple[int, tuple[float, float, float]]] = (),
) -> RigTake:
    """The motion (F, 22, 3), metres, on a rig. new_fps: frames a second of the result (default: as they are); rotations
    between two frames are the shortest turns (slerp), the way is straight. given: the motion's own rotations on SMPL's
    skeleton, where it has them: twists of hands and head that joints do not tell; only legs that were moved since are
    solved. looks: (frame of the motion, place) that the head faces, by 70 degrees of its own at most. Raises UserError
    for other joints."""
    points = check_joints(joints)
    if new_fps is not None and not LEAST_FPS <= new_fps <= MOST_FPS:
        raise UserError(f"fps of an export is {LEAST_FPS:g} to {MOST_FPS:g}; given {new_fps}")
    if given is None:
        person = evened(measure(points), points)
        pose = solve(points, person)
    else:
        person, pose = given.rig, _with_moved_legs(given, points)
    moving = world_turns(pose.local, person.parents)
    standing = rest_pose(person, table, anatomy(points, moving) if given is None else "own")
    if given is not None and table.name == "smpl":  # the pose without rotations is the rig's own
        rest_turns = pose.local.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(HUMANML.joints, 4)
    else:
        rest_turns = world_turns(solve(standing.unsqueeze(0), person).local, person.parents)[0]
    if looks:
        head = HUMANML.names.index("head")
        ahead = quat_rotate(quat_inverse(rest_turns[head]), points.new_tensor([0.0, 0.0, 1.0]))
        moving[:, head] = _looking(moving[:, head], ahead, pose.joints()[:, head], looks, fps)
    index = {name: place for place, name in enumerate(person.names)}
    axes = matrix_to_quat(torch.from_numpy(np.stack([bone.axes for bone in table.bones])))
    floor = pose.root * pose.root.new_tensor([1.0, 0.0, 1.0])
    turns, rest = [], []
    for bone, axis in zip(table.bones, axes, strict=True):
        if not bone.joint:
            turns.append(quat_multiply(_heading(moving[:, 0], fps), axis.expand(len(points), 4)))
            rest.append(standing.new_zeros(3))
            continue
        joint = index[bone.joint]
        kept = quat_multiply(quat_inverse(rest_turns[joint]), axis)
        turns.append(quat_multiply(moving[:, joint], kept.expand(len(points), 4)))
        place = standing[joint]
        if bone.share:
            place = place + bone.share * (standing[_after(joint)] - place)
        rest.append(place)
    world = torch.stack(turns, 1)
    local = continuous(F.normalize(_relative(world, table.parents), dim=-1))
    moves = {0: pose.root if table.hips == 0 else floor}
    if table.hips:
        moves[table.hips] = quat_rotate(quat_inverse(world[:, 0]), pose.root - floor)
    rate = fps
    if new_fps is not None and abs(new_fps - fps) > 1e-9:
        local, rate = resampled(local, fps, new_fps), new_fps
        moves = {bone: _between(way, fps, new_fps) for bone, way in moves.items()}
    return RigTake(table, torch.stack(rest), axes, local, moves, rate, points, fps, pose, tuple(looks))


def world_turns(local: torch.Tensor, parents: tuple[int, ...]) -> torch.Tensor:
    """Rotations in the world (F, J, 4) of rotations relative to the parent."""
    found: list[torch.Tensor] = []
    for joint, parent in enumerate(parents):
        found.append(local[:, joint] if parent < 0 else quat_multiply(found[parent], local[:, joint]))
    return torch.stack(found, 1)


def _with_moved_legs(given: Pose, points: torch.Tensor) -> Pose:
    """The given pose; where joints (F, 22, 3) lie elsewhere by now, with legs that follow them. Raises UserError where
    more than legs was moved."""
    off = (given.joints() - points).norm(dim=-1).amax(0)
    moved = [HUMANML.names[joint] for joint in range(HUMANML.joints) if float(off[joint]) > 1e-4]
    if not moved:
        return given
    others = [name for name in moved if name.split("_")[-1] not in ("knee", "ankle", "foot")]
    if others:
        raise UserError(f"the joints {', '.join(others)} are not where the motion's own rotations have them")
    parents = given.rig.parents
    world, legs = world_turns(given.local, parents), world_turns(solve(points, given.rig).local, parents)
    for joint, name in enumerate(HUMANML.names):
        if name.split("_")[-1] in ("hip", "knee", "ankle"):
            world[:, joint] = legs[:, joint]
    local = _relative(world, parents)
    toes = [HUMANML.names.index(name) for name in ("left_foot", "right_foot")]
    local[:, toes] = given.local[:, toes]
    return Pose(given.rig, continuous(F.normalize(local, dim=-1)), points[:, 0])


def _relative(world: torch.Tensor, parents: tuple[int, ...]) -> torch.Tensor:
    """The inverse of ``world_turns``."""
    parts = []
    for bone, parent in enumerate(parents):
        own = world[:, bone]
        parts.append(own if parent < 0 else quat_multiply(quat_inverse(world[:, parent]), own))
    return torch.stack(parts, 1)


def _after(joint: int) -> int:
    """The next joint of a limb or of the spine."""
    chain = next(chain for chain in HUMANML.chains if joint in chain[:-1] and chain[0] in (0, 9))
    if joint in (3, 6, 9, 12):
        chain = HUMANML.chains[2]
    return chain[chain.index(joint) + 1]


def _heading(pelvis: torch.Tensor, fps: float) -> torch.Tensor:
    """Turns (F, 4) about +y that follow where the pelvis (F, 4) faces, smoothed."""
    ahead = quat_rotate(pelvis, pelvis.new_tensor([0.0, 0.0, 1.0]))[:, [0, 2]]
    yaw = np.unwrap(torch.atan2(ahead[:, 0], ahead[:, 1]).numpy())
    half = 0.5 * smooth(torch.from_numpy(yaw).unsqueeze(1), max(HEADING_SECONDS * fps, 1e-3))[:, 0]
    zero = torch.zeros_like(half)
    return torch.stack([half.cos(), zero, half.sin(), zero], -1)


def _looking(
    head: torch.Tensor,
    ahead: torch.Tensor,
    eyes: torch.Tensor,
    looks: Sequence[tuple[int, tuple[float, float, float]]],
    fps: float,
) -> torch.Tensor:
    """World rotations (F, 4) of a head that faces places at some frames and comes from and goes back to its own way.
    ahead: (3,) its front in its own axes; eyes: (F, 3) where it is."""
    time = torch.arange(len(head), dtype=torch.float64)
    weights = torch.stack([torch.exp(-0.5 * ((time - frame) / (LOOK_SECONDS * fps)) ** 2) for frame, _ in looks])
    weights = weights / weights.sum(0).clamp_min(1.0)
    front = quat_rotate(head, ahead)
    turn = torch.zeros_like(eyes)  # rotation vectors
    for weight, (_, place) in zip(weights, looks, strict=True):
        between = quat_between(front, F.normalize(eyes.new_tensor(place) - eyes, dim=-1))
        size = between[:, 1:].norm(dim=-1, keepdim=True)
        angle = (2 * torch.atan2(size, between[:, :1])).clamp_max(np.radians(MOST_LOOK))
        turn = turn + weight.unsqueeze(1) * angle * between[:, 1:] / size.clamp_min(1e-12)
    size = turn.norm(dim=-1, keepdim=True)
    own = torch.cat([(0.5 * size).cos(), (0.5 * size).sin() * turn / size.clamp_min(1e-12)], -1)
    return quat_multiply(own, head)


def looks_off(take: RigTake) -> list[float]:
    """Degrees between where the rig's head faces and each place of ``looks``, at the frame nearest to its moment."""
    number = next(place for place, bone in enumerate(take.table.bones) if bone.joint == "head")
    turns, places = take.world()
    front = quat_rotate(quat_inverse(take.axes[number]), take.axes.new_tensor([0.0, 0.0, 1.0]))
    off = []
    for frame, place in take.looks:
        at = min(round(frame / take.source_fps * take.fps), len(turns) - 1)
        seen, wanted = quat_rotate(turns[at, number], front), take.axes.new_tensor(place) - places[at, number]
        off.append(float(torch.rad2deg(torch.acos((seen @ F.normalize(wanted, dim=0)).clamp(-1, 1)))))
    return off


# ----------------------------------------------------------------------------------------------------- the rest pose


def evened(person: Rig, points: torch.Tensor) -> Rig:
    """The person whose limbs are up to ``NUDGE`` off their median length, so that no frame's limb (F, 22, 3) is more
    than ``OFF`` longer or shorter, where so little does it. Bones that are stretched in a few frames otherwise leave
    hands and feet behind there."""
    lengths = HUMANML.bones(points).norm(dim=-1)
    low, high = lengths.amax(0) - OFF, lengths.amin(0) + OFF
    middle = person.offsets.norm(dim=-1)
    wanted = torch.where(low > high, 0.5 * (low + high), torch.minimum(torch.maximum(middle, low), high))
    factor = 1.0 + (wanted - middle).clamp(-NUDGE, NUDGE) / middle.clamp_min(1e-9)
    limb = torch.tensor([name.split("_")[-1] in ("knee", "ankle", "foot", "elbow", "wrist") for name in person.names])
    return Rig(person.names, person.parents, torch.where(limb[:, None], factor[:, None], 1.0) * person.offsets)


def anatomy(points: torch.Tensor, turns: torch.Tensor) -> str:
    """ "smpl" for joints whose head lies before the neck as SMPL's do, else "straight". points: (F, 22, 3); turns:
    (F, 22, 4) in the world, of which the chest's is read."""
    neck, head, chest = (HUMANML.names.index(name) for name in ("neck", "head", "spine3"))
    aim = F.normalize(quat_rotate(quat_inverse(turns[:, chest]), points[:, head] - points[:, neck]), dim=-1)
    pitch = torch.rad2deg(torch.atan2(aim[:, 2], aim[:, 1])).median()
    return "smpl" if float(pitch) > BENT_NECK else "straight"


def rest_pose(person: Rig, table: RigTable, kind: str) -> torch.Tensor:
    """Joints (22, 3) of a person who stands in the rig's rest pose, the lowest joint on the floor. kind: see
    ``anatomy``; "own" for a person whose offsets at rest are those of somebody who stands upright."""
    upright = _SMPL if kind == "smpl" else _STRAIGHT
    lengths = person.offsets.norm(dim=-1)
    places = torch.zeros_like(person.offsets)
    for joint, (name, parent) in enumerate(zip(person.names, person.parents, strict=True)):
        if parent < 0:
            continue
        above, kind_of = person.names[parent], name.split("_")[-1]
        if kind == "own" and (table.name == "smpl" or table.points(above) is None):
            step = person.offsets[joint]
        elif above in ("pelvis", "spine3"):
            up = upright["spine1" if above == "pelvis" else "neck"]
            step = _pitched(person.offsets[joint], up)
        elif kind_of in upright:
            across, high, ahead = upright[kind_of]
            side = -across if name.startswith("right_") else across
            step = lengths[joint] * F.normalize(lengths.new_tensor([side, high, ahead]), dim=0)
        else:
            direction = table.points(above)
            assert direction is not None, f"{table.name} does not say where {above} points"
            step = lengths[joint] * torch.from_numpy(direction)
        places[joint] = places[parent] + step
    return places - places.new_tensor([0.0, float(places[:, 1].min()), 0.0])


def _pitched(offset: torch.Tensor, up: tuple[float, float, float]) -> torch.Tensor:
    """An offset seen from the pelvis or chest, whose upper bone points to ``up`` in a person who stands."""
    angle = np.arctan2(up[2], up[1])
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    x, y, z = offset.unbind(-1)
    return torch.stack([x, cos * y - sin * z, sin * y + cos * z], -1)


# ---------------------------------------------------------------------------------------------------------- the frames


def resampled(quats: torch.Tensor, fps: float, new_fps: float) -> torch.Tensor:
    """Rotations (F, *, 4) at another frame rate, by the shortest turns between neighbours (slerp)."""
    first, share = _places(len(quats), fps, new_fps)
    a, b = quats[first], quats[(first + 1).clamp_max(len(quats) - 1)]
    share = share.view(-1, *[1] * (quats.ndim - 1))
    cos = (a * b).sum(-1, keepdim=True)
    b, cos = torch.where(cos < 0, -b, b), cos.abs().clamp_max(1.0)
    angle = torch.atan2((1 - cos * cos).clamp_min(0).sqrt(), cos)
    flat = angle < 1e-6
    sine = angle.sin().clamp_min(1e-12)
    mixed = torch.where(
        flat, (1 - share) * a + share * b, (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / sine
    )
    return continuous(F.normalize(mixed, dim=-1))


def _between(values: torch.Tensor, fps: float, new_fps: float) -> torch.Tensor:
    first, share = _places(len(values), fps, new_fps)
    after = values[(first + 1).clamp_max(len(values) - 1)]
    return values[first] + share.unsqueeze(1) * (after - values[first])


def _places(frames: int, fps: float, new_fps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """For each new frame the old one before it, and how far it is on the way to the next."""
    count = int((frames - 1) / fps * new_fps + 1e-6) + 1
    place = torch.arange(count, dtype=torch.float64) * fps / new_fps
    first = (place + 1e-9).floor().long().clamp_max(frames - 1)
    return first, (place - first).clamp_min(0.0)


def joints_of(take: RigTake, places: torch.Tensor) -> dict[str, torch.Tensor]:
    """Joint -> its places (F, 3), of the bones' places (F, B, 3)."""
    return {
        bone.joint: places[:, number] for number, bone in enumerate(take.table.bones) if bone.joint and bone.share == 0
    }


def solved_joints(take: RigTake) -> torch.Tensor:
    """The solved joints (S, 22, 3) at the source's frames: what the rig is meant to show."""
    return forward_tree(take.pose.rig.parents, quat_to_matrix(take.pose.local), take.pose.root, take.pose.rig.offsets)
