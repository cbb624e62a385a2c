"""BVH: what Blender, Maya, MotionBuilder, Unity and Unreal read as motion capture; a writer and a reader.

    write_bvh("take.bvh", [joints], fps=20)                 # metres: right in Blender at scale 1, and in Unity
    write_bvh("take.bvh", [joints], fps=20, unit="cm")      # Maya, MotionBuilder, Unreal; Blender at scale 0.01
    read_bvh("take.bvh").joints()

BVH has no unit: Blender takes a number as a metre (its importer's scale is 1), Unity's importers too; Maya,
MotionBuilder and Unreal take it as a centimetre. Y is up and a person at rest faces +z (Blender's importer turns that
to its z up by default). The hierarchy has HumanML3D's names; a second person's begin with ``person2_``, under a
second ROOT of the same file. Legend: F frames, J joints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import Pose, Rig, solve
from longtake.motion.kinematics import forward_tree, quat_multiply, quat_to_matrix

UNITS = {"m": 1.0, "cm": 100.0}  # numbers in a metre
USUAL_ORDER = "ZXY"
_ORDERS = (USUAL_ORDER, "ZYX", "XYZ", "XZY", "YXZ", "YZX")
_LOCKED = 1e-5  # cosine of the middle angle below which the first and third axes are one
_CALM = 30.0  # degrees a frame; a joint that turns faster in the usual order of axes looks for a better one
_ENDS = {"head": (0.0, 0.14, 0.0), "foot": (0.0, 0.0, 0.07), "wrist": (0.09, 0.0, 0.0)}  # End Sites, metres


def write_bvh(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray | torch.Tensor],
    fps: float,
    *,
    unit: str = "m",
    overwrite: bool = False,
) -> list[Pose]:
    """Write one or more people, each (F, 22, 3) metres; returns what was solved for each (see ``rig.solve``).

    unit: "m" or "cm". Frame time is 1 / fps. Raises UserError.
    """
    from longtake.journal import atomic_path
    from longtake.media import check_output

    if unit not in UNITS:
        raise UserError(f"unit must be one of {', '.join(UNITS)}; given {unit!r}")
    path = check_output(path, (".bvh",), overwrite)
    poses = [solve(joints) for joints in people]
    if not poses or len({len(pose.root) for pose in poses}) != 1:
        raise UserError(f"people of one file need the same number of frames; given {[len(p.root) for p in poses]}")
    text, columns = ["HIERARCHY"], []
    for number, pose in enumerate(poses, 1):
        prefix = "" if number == 1 else f"person{number}_"
        lines, table = _person(pose, prefix, UNITS[unit])
        text += lines
        columns.append(table)
    text += ["MOTION", f"Frames: {len(poses[0].root)}", f"Frame Time: {1.0 / fps:.8f}"]
    with atomic_path(path) as partial, open(partial, "w", encoding="ascii", newline="\n") as file:
        file.write("\n".join(text) + "\n")
        np.savetxt(file, np.concatenate(columns, 1), fmt="%.6f")
    return poses


def _person(pose: Pose, prefix: str, scale: float) -> tuple[list[str], np.ndarray]:
    """Lines of the hierarchy and the channels (F, C), depth first."""
    rig = pose.rig
    lines: list[str] = []
    columns: list[np.ndarray] = []

    def add(joint: int, depth: int) -> None:
        tab = "\t" * depth
        angles, order = euler(pose.local[:, joint].numpy())
        channels = " ".join(f"{axis}rotation" for axis in order)
        offset = " ".join(f"{scale * value:.6f}" for value in rig.offsets[joint].tolist())
        lines.append(f"{tab}{'ROOT' if depth == 0 else 'JOINT'} {prefix}{rig.names[joint]}")
        lines.append(tab + "{")
        lines.append(f"{tab}\tOFFSET {offset}")
        if depth == 0:
            lines.append(f"{tab}\tCHANNELS 6 Xposition Yposition Zposition {channels}")
            columns.append(scale * pose.root.numpy())
        else:
            lines.append(f"{tab}\tCHANNELS 3 {channels}")
        columns.append(angles)
        kids = rig.children(joint)
        for kid in kids:
            add(kid, depth + 1)
        if not kids:
            end = " ".join(f"{scale * value:.6f}" for value in end_site(rig.names[joint]))
            lines.extend([f"{tab}\tEnd Site", tab + "\t{", f"{tab}\t\tOFFSET {end}", tab + "\t}"])
        lines.append(tab + "}")

    add(0, 0)
    return lines, np.concatenate(columns, 1)


def end_site(name: str) -> tuple[float, float, float]:
    """Where the last bone of a limb ends, metres from its joint at rest: the crown, a toe, a finger tip."""
    x, y, z = _ENDS[name.split("_")[-1]]
    return (-x if name.startswith("right_") else x, y, z)


def euler(quats: np.ndarray, order: str | None = None) -> tuple[np.ndarray, str]:
    """Angles (F, 3) in degrees and the order of axes of rotations (F, 4): R = R_first R_second R_third.

    Of the two triples for a rotation the one nearer to the frame before is taken, and whole turns are added so that
    the curves do not jump. order: default "ZXY" where it stays calm, else the calmest of the six, since each order
    spins when its middle angle passes 90 degrees.
    """
    tried = {}
    for name in (order,) if order is not None else _ORDERS:
        angles = _unwrapped(quats, name)
        fastest = float(np.abs(np.diff(angles, axis=0)).max(initial=0.0))
        if name == order or fastest <= _CALM:
            return angles, name
        tried[name] = (fastest, angles)
    best = min(tried, key=lambda name: tried[name][0])
    return tried[best][1], best


def _unwrapped(quats: np.ndarray, order: str) -> np.ndarray:
    """Tait-Bryan angles of rotations (F, 4), continued from frame to frame, degrees.

    Where the middle angle is a quarter turn the first and third axes are one and only their sum or difference is told:
    the third angle then stays as it was in the frame before, and the first one is solved for.
    """
    matrix = quat_to_matrix(torch.from_numpy(quats)).numpy()
    i, j, k = ("XYZ".index(axis) for axis in order)
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    middle = np.arcsin(np.clip(sign * matrix[:, i, k], -1.0, 1.0))
    first = np.arctan2(-sign * matrix[:, j, k], matrix[:, k, k])
    third = np.arctan2(-sign * matrix[:, i, j], matrix[:, i, i])
    one = np.degrees(np.stack([first, middle, third], 1))
    other = np.stack([one[:, 0] + 180.0, 180.0 - one[:, 1], one[:, 2] + 180.0], 1)
    found = np.empty_like(one)
    now = np.zeros(3)
    locked = np.hypot(matrix[:, i, i], matrix[:, i, j]) < _LOCKED
    for frame, both in enumerate(np.stack([one, other], 1)):
        if locked[frame]:
            # R times the third turn's inverse is R_first R_middle, whose column j the first turn alone has moved
            cos, sin = np.cos(np.radians(now[2])), np.sin(np.radians(now[2]))
            column = cos * matrix[frame, :, j] + sign * sin * matrix[frame, :, i]
            first_angle = np.degrees(np.arctan2(sign * column[k], column[j]))
            both = np.array([[first_angle, one[frame, 1], now[2]]])
        near = both + 360.0 * np.round((now - both) / 360.0)
        now = near[np.abs(near - now).sum(1).argmin()]
        found[frame] = now
    return found


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Bvh:
    """A BVH file. orders: each joint's axes. frame_time: seconds. local: (F, J, 4) quaternions relative to the parent.
    positions: (F, J, 3) in the file's unit, NaN for joints without position channels; a root has -1 as its parent."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: torch.Tensor
    orders: tuple[str, ...]
    frame_time: float
    local: torch.Tensor
    positions: torch.Tensor

    def joints(self) -> torch.Tensor:
        """Joint positions (F, J, 3), float64, in the file's unit; people one after the other."""
        roots = [joint for joint, parent in enumerate(self.parents) if parent < 0]
        parts = []
        for start, stop in zip(roots, [*roots[1:], len(self.parents)], strict=True):
            tree = tuple(parent - start if parent >= 0 else -1 for parent in self.parents[start:stop])
            turns = quat_to_matrix(self.local[:, start:stop])
            parts.append(forward_tree(tree, turns, self.positions[:, start], self.offsets[start:stop]))
        return torch.cat(parts, 1)

    def person(self, number: int, like: Rig) -> torch.Tensor:
        """Joints (F, J, 3) of person 0, 1, ... in the order of a rig's names."""
        prefix = "" if number == 0 else f"person{number + 1}_"
        return self.joints()[:, [self.names.index(prefix + name) for name in like.names]]


def read_bvh(path: str | os.PathLike[str]) -> Bvh:
    """Read a BVH file in which only roots have position channels. Raises UserError when it is not one."""
    try:
        words = Path(path).read_text(encoding="utf-8").split()
        return _parse(words)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not a readable BVH file: {error}") from error


def _parse(words: list[str]) -> Bvh:
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    open_joints: list[int] = []  # -2 stands for an End Site
    if words[0] != "HIERARCHY":
        raise ValueError("it does not begin with HIERARCHY")
    place = 1
    while words[place] != "MOTION":
        word = words[place]
        if word in ("ROOT", "JOINT"):
            parents.append(open_joints[-1] if open_joints else -1)
            names.append(words[place + 1])
            offsets.append([0.0, 0.0, 0.0])
            channels.append([])
            open_joints.append(len(names) - 1)
            place += 3
        elif word == "End":
            open_joints.append(-2)
            place += 3
        elif word == "OFFSET":
            if open_joints[-1] >= 0:
                offsets[open_joints[-1]] = [float(value) for value in words[place + 1 : place + 4]]
            place += 4
        elif word == "CHANNELS":
            count = int(words[place + 1])
            channels[open_joints[-1]] = words[place + 2 : place + 2 + count]
            place += 2 + count
        elif word == "}":
            open_joints.pop()
            place += 1
        else:
            raise ValueError(f"{word!r} is not expected in the hierarchy")
    if words[place + 1] != "Frames:" or words[place + 3 : place + 5] != ["Frame", "Time:"]:
        raise ValueError("MOTION needs Frames: and Frame Time:")
    frames, frame_time = int(words[place + 2]), float(words[place + 5])
    width = sum(map(len, channels))
    table = np.array(words[place + 6 :], dtype=np.float64)
    if table.size != frames * width:
        raise ValueError(f"{frames} frames of {width} channels need {frames * width} numbers, it has {table.size}")
    table = table.reshape(frames, width)
    local = torch.zeros(frames, len(names), 4, dtype=torch.float64)
    local[..., 0] = 1.0
    positions = torch.full((frames, len(names), 3), torch.nan, dtype=torch.float64)
    column, orders = 0, []
    for joint, kinds in enumerate(channels):
        order = ""
        for kind in kinds:
            axis = "XYZ".index(kind[0])
            values = torch.from_numpy(table[:, column].copy())
            column += 1
            if kind[1:] == "position":
                positions[:, joint, axis] = values
            elif kind[1:] == "rotation":
                half = torch.deg2rad(values) / 2
                turn = torch.zeros(frames, 4, dtype=torch.float64)
                turn[:, 0], turn[:, 1 + axis] = half.cos(), half.sin()
                local[:, joint] = quat_multiply(local[:, joint], turn)
                order += kind[0]
            else:
                raise ValueError(f"unknown channel {kind!r}")
        if parents[joint] < 0 and bool(positions[:, joint].isnan().any()):
            raise ValueError(f"the root {names[joint]!r} has no position channels")
        orders.append(order)
    offset_table = torch.tensor(offsets, dtype=torch.float64)
    return Bvh(tuple(names), tuple(parents), offset_table, tuple(orders), frame_time, local, positions)
