"""What an exported file holds, read back and set beside the joints it was made of.

    proof = prove("take.glb", take)
    print(proof.text())

Errors are taken at the moments that the source and the file share (at 30 frames a second every second one of a source
at 20), against the joints themselves, not against what was solved of them. Legend: F frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.kinematics import HUMANML, quat_to_matrix
from longtake.motion.metrics import foot_skate
from longtake.motion.rigs.files import Layout, prefix_of
from longtake.motion.rigs.read import ReadRig, read_rig
from longtake.motion.rigs.retarget import RigTake
from longtake.motion.rigs.tables import RigTable

MOST_TURN = 90.0  # degrees a bone may turn between two frames of the source's rate before it counts as a flip
_CARRIED = ("left_hip", "right_hip", "spine1", "left_collar", "right_collar", "neck")
_TOE_JOINTS = ("left_foot", "right_foot", "left_ankle", "right_ankle")


@dataclass(frozen=True)
class Proof:
    """Figures of one person in one file.

    position: metres between a joint and where the file has it. angle: degrees between a limb or bone of the source and
    the file's. carried_angle_max: the same of what hangs on the pelvis and the chest without a rotation of its own
    (hips, collars, the first bones of spine and neck: a few centimetres, rigid in a rig and not in all data). turn:
    degrees between the rotation that was solved and the file's. largest_step: degrees that a bone turns between two
    frames of the file, and source_step, that the solved joints do. flips: steps of more than ``MOST_TURN`` degrees.
    euler_jump: the largest change of a channel of a .bvh, degrees. lowest_foot: metres above the floor of the lowest
    foot joint, source_lowest of the source. skate: m/s of feet near the floor, in the frames compared.
    """

    file: str
    rig: str
    frames: int
    fps: float
    compared: int
    joints: int
    position_mean: float
    position_max: float
    position_worst: str
    angle_mean: float
    angle_max: float
    angle_worst: str
    carried_angle_max: float
    turn_max: float
    largest_step: float
    source_step: float
    flips: int
    euler_jump: float | None
    lowest_foot: float
    source_lowest: float
    skate: float
    source_skate: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values, rounded to what means something."""
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def text(self) -> str:
        """For people to read."""
        euler = "" if self.euler_jump is None else f", Euler angles by {self.euler_jump:.0f} at most"
        return (
            f"{self.file}: {self.rig}, {self.frames} frames at {self.fps:g} fps, read back beside {self.joints} joints "
            f"of {self.compared} frames:\n"
            f"  position off by {100 * self.position_mean:.2f} cm on average, {100 * self.position_max:.2f} at most "
            f"({self.position_worst}); direction by {self.angle_mean:.2f} degrees, {self.angle_max:.2f} at most "
            f"({self.angle_worst}); rotation by {self.turn_max:.3f} at most\n"
            f"  {self.flips} flips: bones turn by {self.largest_step:.0f} degrees a frame at most{euler}\n"
            f"  lowest foot {100 * self.lowest_foot:+.1f} cm from the floor (source {100 * self.source_lowest:+.1f}), "
            f"foot skate {self.skate:.3f} m/s (source {self.source_skate:.3f})"
        )


def prove(path: str | os.PathLike[str], take: RigTake, layout: Layout | None = None, *, person: int = 0) -> Proof:
    """Read a file back (.glb, .vrma, .bvh) and measure it. layout: of a .bvh. person: 0 or 1. Raises UserError."""
    layout = layout or Layout()
    path = Path(path)
    read = read_rig(path, unit=layout.unit, up=layout.up)
    jump = euler_jump(path) if path.suffix.lower() == ".bvh" else None
    return measure(read, take, path.name, relative=jump is not None, euler=jump, person=person)


def measure(
    read: ReadRig,
    take: RigTake,
    name: str,
    *,
    relative: bool = False,
    euler: float | None = None,
    person: int = 0,
) -> Proof:
    """Measure what any reader found. relative: its rotations are away from rest (.bvh). Raises UserError where it has
    not the rig's bones or the take's frames."""
    prefix = prefix_of(person)
    missing = [bone.name for bone in take.table.bones if prefix + bone.name not in read.places]
    if missing or len(read.times) != len(take.local):
        raise UserError(f"{name} lacks the bones {missing} or has {len(read.times)} frames for {len(take.local)}")
    joints = joints_read(read, take.table, prefix)
    ours, theirs = shared_frames(len(take.source), take.source_fps, read.times)
    source = take.source.numpy()
    gap = np.linalg.norm(joints[theirs] - source[ours], axis=-1)
    bones, seen = HUMANML.bones(torch.from_numpy(joints[theirs])), HUMANML.bones(take.source[ours])
    every = _between(bones, seen)
    own = [joint for joint, name in enumerate(HUMANML.names) if joint and name not in _CARRIED]
    angle, carried = every[:, own], every[:, [HUMANML.names.index(name) for name in _CARRIED]]
    solved = quat_to_matrix(take.world()[0]).numpy()
    if relative:
        solved = solved @ quat_to_matrix(take.axes).numpy().transpose(0, 2, 1)
    found = np.stack([read.turns[prefix + bone.name] for bone in take.table.bones], 1)
    step = _steps(found, take.table.parents)
    pose = quat_to_matrix(take.pose.local)
    turned = torch.rad2deg(_angle(pose[:-1].transpose(-1, -2) @ pose[1:])) if len(pose) > 1 else pose.new_zeros(1)
    feet = [HUMANML.names.index(joint) for joint in _TOE_JOINTS]
    rate = take.source_fps / (ours[1] - ours[0]) if len(ours) > 1 else take.source_fps
    per_frame = max(1.0, take.source_fps / take.fps)
    return Proof(
        file=name,
        rig=take.table.name,
        frames=len(take.local),
        fps=take.fps,
        compared=len(ours),
        joints=HUMANML.joints,
        position_mean=float(gap.mean()),
        position_max=float(gap.max()),
        position_worst=HUMANML.names[int(gap.max(0).argmax())],
        angle_mean=float(angle.mean()),
        angle_max=float(angle.max()),
        angle_worst=HUMANML.names[own[int(angle.max(0).values.argmax())]],
        carried_angle_max=float(carried.max()),
        turn_max=float(torch.rad2deg(_angle(torch.from_numpy(found.transpose(0, 1, 3, 2) @ solved))).max()),
        largest_step=float(step.max(initial=0.0)),
        source_step=float(turned.max()),
        flips=int((step > MOST_TURN * per_frame).sum()),
        euler_jump=euler,
        lowest_foot=float(joints[:, feet, 1].min()),
        source_lowest=float(source[:, feet, 1].min()),
        skate=_skate(joints[theirs], rate),
        source_skate=_skate(source[ours], rate),
    )


def joints_read(read: ReadRig, table: RigTable, prefix: str = "") -> np.ndarray:
    """Joints (F, 22, 3) of HumanML3D as a file shows them, metres, y up."""
    return np.stack([read.places[prefix + table.bone_of(joint)] for joint in HUMANML.names], 1)


def shared_frames(frames: int, fps: float, times: np.ndarray) -> tuple[list[int], list[int]]:
    """Frames of the source and of the file that lie at the same moment."""
    ours, theirs = [], []
    for number, second in enumerate(times.tolist()):
        frame = round(second * fps)
        if frame < frames and abs(frame / fps - second) < 1e-4:
            ours.append(frame)
            theirs.append(number)
    return ours, theirs


def euler_jump(path: Path) -> float:
    """The largest change of an angle between two frames of a .bvh, degrees."""
    head, _, motion = path.read_text(encoding="ascii").partition("MOTION")
    kinds: list[str] = []
    for row in head.split("\n"):
        words = row.split()
        if words and words[0] == "CHANNELS":
            kinds += words[2:]
    table = np.array([row.split() for row in motion.split("\n")[3:] if row], dtype=np.float64)
    turns = [place for place, kind in enumerate(kinds) if kind.endswith("rotation")]
    return float(np.abs(np.diff(table[:, turns], axis=0)).max(initial=0.0))


def together(proofs: Sequence[Proof]) -> list[dict[str, Any]]:
    """What ``info`` keeps of the proofs of several files."""
    return [proof.to_dict() for proof in proofs]


def _steps(world: np.ndarray, parents: tuple[int, ...]) -> np.ndarray:
    """Degrees (F - 1, B) that each bone turns relative to its parent between two frames; world (F, B, 3, 3)."""
    local = world.copy()
    for bone, parent in enumerate(parents):
        if parent >= 0:
            local[:, bone] = world[:, parent].transpose(0, 2, 1) @ world[:, bone]
    turned = torch.from_numpy(local[:-1].transpose(0, 1, 3, 2) @ local[1:])
    return torch.rad2deg(_angle(turned)).numpy()


def _angle(matrix: torch.Tensor) -> torch.Tensor:
    """Radians of rotations (*, 3, 3), exact near none: from the skew part and the trace."""
    skew = torch.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        -1,
    )
    return torch.atan2(skew.norm(dim=-1), torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1) - 1.0)


def _between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Degrees between vectors (*, 3)."""
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)))


def _skate(joints: np.ndarray, fps: float) -> float:
    points = torch.from_numpy(np.ascontiguousarray(joints))
    return float(foot_skate(points, fps)) if len(points) > 1 else 0.0
