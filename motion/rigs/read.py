"""Reading an exported file back, from its bytes alone: what stands in it, not what was meant.

    read = read_rig("take.glb")             # or .vrma, .bvh
    read.places["mixamorig:LeftHand"]       # (F, 3) metres, y up
    read.turns["mixamorig:LeftHand"]        # (F, 3, 3) in the world

Nothing of the writers is used: plain numpy, 4 x 4 matrices from node to node. Legend: F frames.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError

_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_KINDS = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}


@dataclass(frozen=True)
class ReadRig:
    """What a file shows. times: (F,) seconds. places: name -> (F, 3) metres, y up; turns: name -> (F, 3, 3)."""

    times: np.ndarray
    places: dict[str, np.ndarray]
    turns: dict[str, np.ndarray]


def read_rig(path: str | os.PathLike[str], *, unit: str = "m", up: str = "y") -> ReadRig:
    """Read .glb, .vrma or .bvh; unit and up say what a .bvh is in, which it does not tell itself. Raises UserError."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".bvh":
            return _read_bvh(path, 0.01 if unit == "cm" else 1.0, up)
        return _read_gltf(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise UserError(f"{path} holds no readable motion: {error}") from error


# ----------------------------------------------------------------------------------------------------------------- glTF


def _read_gltf(path: Path) -> ReadRig:
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    binary = data[28 + size :]

    def values(number: int) -> np.ndarray:
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        width = _WIDTHS[accessor["type"]]
        kind = _KINDS[accessor["componentType"]]
        flat = np.frombuffer(binary, kind, accessor["count"] * width, start)
        return flat.reshape(accessor["count"], width).astype(np.float64)

    animation = document["animations"][0]
    tracks: dict[tuple[int, str], np.ndarray] = {}
    times = np.zeros(0)
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        times = values(sampler["input"])[:, 0]
        tracks[channel["target"]["node"], channel["target"]["path"]] = values(sampler["output"])
    nodes = document["nodes"]
    above = {kid: place for place, node in enumerate(nodes) for kid in node.get("children", [])}
    known: dict[int, np.ndarray] = {}

    def world(place: int) -> np.ndarray:
        if place not in known:
            own = _matrices(nodes[place], place, tracks, len(times))
            known[place] = own if place not in above else world(above[place]) @ own
        return known[place]

    places, turns = {}, {}
    for place, node in enumerate(nodes):
        matrix = world(place)
        block = matrix[:, :3, :3]
        places[node["name"]] = matrix[:, :3, 3]
        turns[node["name"]] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return ReadRig(times, places, turns)


def _matrices(node: dict[str, Any], place: int, tracks: dict[tuple[int, str], np.ndarray], frames: int) -> np.ndarray:
    """(F, 4, 4) of a node relative to the one above it."""
    rotation = tracks.get((place, "rotation"), np.asarray(node.get("rotation", (0, 0, 0, 1)), dtype=float)[None])
    move = tracks.get((place, "translation"), np.asarray(node.get("translation", (0, 0, 0)), dtype=float)[None])
    x, y, z, w = (rotation / np.linalg.norm(rotation, axis=1, keepdims=True)).T
    matrix = np.zeros((max(len(rotation), len(move), frames), 4, 4))
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    for row, entries in enumerate(rows):
        for column, entry in enumerate(entries):
            matrix[:, row, column] = entry
    matrix[:, :3, :3] *= np.asarray(node.get("scale", (1, 1, 1)), dtype=float)[None, None, :]
    matrix[:, :3, 3] = move
    matrix[:, 3, 3] = 1.0
    return matrix


# ------------------------------------------------------------------------------------------------------------------ BVH


def _read_bvh(path: Path, scale: float, up: str) -> ReadRig:
    head, _, motion = path.read_text(encoding="ascii").partition("MOTION")
    rows = motion.split("\n")
    frames = int(rows[1].split(":")[1])
    step = float(rows[2].split(":")[1])
    table = np.array([row.split() for row in rows[3 : 3 + frames]], dtype=np.float64)
    world: dict[str, np.ndarray] = {}
    stack: list[str] = []
    own: list[str] = []
    column = 0
    offset = np.zeros(3)
    for row in head.split("\n"):
        words = row.split()
        if not words:
            continue
        if words[0] in ("ROOT", "JOINT"):
            own.append(words[1])
        elif words[0] == "End":
            own.append("")
        elif words[0] == "{":
            stack.append(own[-1])
        elif words[0] == "}":
            stack.pop()
        elif words[0] == "OFFSET":
            offset = np.array(words[1:4], dtype=np.float64)
        elif words[0] == "CHANNELS":
            matrix = np.tile(np.eye(4), (frames, 1, 1))
            matrix[:, :3, 3] = offset
            for kind in words[2:]:
                axis = "XYZ".index(kind[0])
                numbers = table[:, column]
                column += 1
                if kind.endswith("position"):
                    matrix[:, axis, 3] = numbers
                else:
                    matrix = matrix @ _about(axis, np.radians(numbers))
            name = stack[-1]
            world[name] = matrix if len(stack) == 1 else world[stack[-2]] @ matrix
    if column != table.shape[1]:
        raise ValueError(f"{table.shape[1]} columns for {column} channels")
    # z up, facing -y, to y up, facing +z
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]) if up == "z" else np.eye(3)
    places = {name: scale * matrix[:, :3, 3] @ turn.T for name, matrix in world.items()}
    turns = {name: turn @ matrix[:, :3, :3] @ turn.T for name, matrix in world.items()}
    return ReadRig(np.arange(frames) * step, places, turns)


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """(F, 4, 4) turns about x, y or z."""
    matrix = np.tile(np.eye(4), (len(angle), 1, 1))
    one, two = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, one, one] = matrix[:, two, two] = np.cos(angle)
    matrix[:, two, one], matrix[:, one, two] = np.sin(angle), -np.sin(angle)
    return matrix
