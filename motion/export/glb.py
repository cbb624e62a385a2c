"""glTF 2.0 binary (.glb): a body of capsules, skinned to the rig, with its animation; one file for all people.

    write_glb("take.glb", [joints], fps=20, captions=captions)

glTF is in metres with y up and a front that faces +z, which is what the rig has; Blender, Unity, Unreal, Godot,
three.js and the Windows viewer open it as it is. Each person has 22 joint nodes with HumanML3D's names, a skin of
their own and a mesh whose vertices follow one joint each; left limbs are blue, right ones orange. One animation moves
everybody. The body is a drawing of the bones: no SMPL or other scanned body is in the file. Legend: F frames, J joints,
V vertices.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.bvh import end_site
from longtake.motion.export.rig import Pose, Rig, solve

# radius in metres of the bone that ends at a joint, or beyond the joint for the limb's last bone
_RADII = {"hip": 0.075, "knee": 0.072, "ankle": 0.05, "foot": 0.04, "shoulder": 0.055, "elbow": 0.045, "wrist": 0.036}
_RADII |= {"collar": 0.05, "spine1": 0.105, "spine2": 0.115, "spine3": 0.12, "neck": 0.07, "head": 0.05}
_END_RADII = {"head": 0.1, "foot": 0.036, "wrist": 0.04}
_COLOURS = {  # linear RGB: middle, left, right; the second person's are paler
    0: ((0.30, 0.33, 0.38), (0.03, 0.17, 0.62), (0.76, 0.17, 0.02)),
    1: ((0.58, 0.60, 0.63), (0.12, 0.45, 0.80), (0.90, 0.48, 0.12)),
}
_SIDES = ("middle", "left", "right")
_RING, _CAP = 12, 3  # vertices around a capsule, rings of each of its caps
_FLOAT, _USHORT, _UBYTE = 5126, 5123, 5121  # glTF component types
_ARRAY, _ELEMENTS = 34962, 34963  # buffer view targets
_MAGIC, _JSON = 0x46546C67, 0x4E4F534A  # "glTF", "JSON"
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


def write_glb(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray | torch.Tensor],
    fps: float,
    *,
    captions: Sequence[str] = (),
    overwrite: bool = False,
) -> list[Pose]:
    """Write one or more people, each (F, 22, 3) metres; returns what was solved for each (see ``export_rig.solve``).

    captions: one a frame, kept in the animation's ``extras`` with the second at which each begins. Raises UserError.
    """
    from longtake.media import check_output

    path = check_output(path, (".glb",), overwrite)
    poses = [solve(joints) for joints in people]
    if not poses or len({len(pose.root) for pose in poses}) != 1:
        raise UserError(f"people of one file need the same number of frames; given {[len(p.root) for p in poses]}")
    document, binary = _document(poses, fps, captions)
    write_document(path, document, binary)
    return poses


def write_document(path: Path, document: dict[str, Any], binary: bytes) -> None:
    """Write a glTF document and its binary chunk (length a multiple of 4) as one .glb file."""
    from longtake.journal import atomic_path

    head = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 4)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(head) + 8 + len(binary)))
        file.write(struct.pack("<I4s", len(head), b"JSON") + head)
        file.write(struct.pack("<I4s", len(binary), b"BIN\0") + binary)


class Buffer:
    """The binary chunk, and the accessors and views that describe it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: np.ndarray, component: int, *, target: int | None = None, bounds: bool = False) -> int:
        """Number of the accessor of values (N,) or (N, width)."""
        values = np.ascontiguousarray(values)
        data = values.tobytes()
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self.size, "byteLength": len(data)}
        if target is not None:
            view["target"] = target
        accessor: dict[str, Any] = {
            "bufferView": len(self.views),
            "componentType": component,
            "count": len(values),
            "type": _TYPES[1 if values.ndim == 1 else values.shape[1]],
        }
        if bounds:
            rows = values.reshape(len(values), -1)
            accessor["min"], accessor["max"] = rows.min(0).tolist(), rows.max(0).tolist()
        self.views.append(view)
        self.accessors.append(accessor)
        data += b"\0" * (-len(data) % 4)
        self.parts.append(data)
        self.size += len(data)
        return len(self.accessors) - 1


def _document(poses: Sequence[Pose], fps: float, captions: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    buffer = Buffer()
    nodes: list[dict[str, Any]] = []
    meshes: list[dict[str, Any]] = []
    skins: list[dict[str, Any]] = []
    materials: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []
    scene: list[int] = []
    times = buffer.add((np.arange(len(poses[0].root)) / fps).astype(np.float32), _FLOAT, bounds=True)

    def animate(node: int, path: str, values: np.ndarray) -> None:
        channels.append({"sampler": len(samplers), "target": {"node": node, "path": path}})
        samplers.append({"input": times, "output": buffer.add(values, _FLOAT), "interpolation": "LINEAR"})

    for number, pose in enumerate(poses):
        rig, prefix = pose.rig, "" if number == 0 else f"person{number + 1}_"
        first = len(nodes)
        quats = pose.local[..., [1, 2, 3, 0]].numpy().astype(np.float32)
        quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
        root = pose.root.numpy().astype(np.float32)
        for joint, name in enumerate(rig.names):
            node: dict[str, Any] = {"name": prefix + name, "rotation": quats[0, joint].tolist()}
            node["translation"] = (root[0] if joint == 0 else rig.offsets[joint].numpy()).tolist()
            if rig.children(joint):
                node["children"] = [first + kid for kid in rig.children(joint)]
            nodes.append(node)
            animate(first + joint, "rotation", quats[:, joint])
        animate(first, "translation", root)
        inverse_bind = np.tile(np.eye(4, dtype=np.float32), (len(rig.names), 1, 1))
        inverse_bind[:, 3, :3] = -rig.rest().numpy()  # column-major: the last row holds the translation
        matrices = buffer.add(inverse_bind.reshape(-1, 16), _FLOAT)
        joints = list(range(first, first + len(rig.names)))
        skins.append({"name": f"{prefix}skin", "inverseBindMatrices": matrices, "joints": joints, "skeleton": first})
        meshes.append({"name": f"{prefix}body", "primitives": body(rig, rig.rest().numpy(), buffer, len(materials))})
        materials += looks(number, prefix)
        # a node of their own around the joints: importers then make one armature a person
        nodes.append({"name": f"person{number + 1}", "children": [first]})
        nodes.append({"name": f"{prefix}body", "mesh": number, "skin": number})
        scene += [len(nodes) - 2, len(nodes) - 1]
    animation: dict[str, Any] = {"name": "take", "channels": channels, "samplers": samplers}
    if captions:
        animation["extras"] = {"captions": [{"second": s / fps, "text": text} for s, text in caption_runs(captions)]}
    document = {
        "asset": {"version": "2.0", "generator": "longtake"},
        "scene": 0,
        "scenes": [{"nodes": scene}],
        "nodes": nodes,
        "meshes": meshes,
        "skins": skins,
        "materials": materials,
        "animations": [animation],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.size}],
    }
    return document, b"".join(buffer.parts)


def caption_runs(captions: Sequence[str]) -> list[tuple[int, str]]:
    """First frame and text of each run of equal captions."""
    runs, frame = [], 0
    for text, group in groupby(captions):
        runs.append((frame, text))
        frame += len(list(group))
    return runs


# --------------------------------------------------------------------------------------------------------- the body


def looks(number: int, prefix: str) -> list[dict[str, Any]]:
    """Materials of person 0 or 1: middle, left and right."""
    return [
        {
            "name": f"{prefix}{side}",
            "pbrMetallicRoughness": {
                "baseColorFactor": [*colour, 1.0],
                "metallicFactor": 0.0,
                "roughnessFactor": 0.65,
            },
        }
        for side, colour in zip(_SIDES, _COLOURS[number % 2], strict=True)
    ]


def body(
    rig: Rig, rest: np.ndarray, buffer: Buffer, material: int, owner_of: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Mesh primitives of capsules along all bones, one primitive a side.

    rest: (J, 3) places of the joints where the mesh is bound. owner_of: number in the skin of what carries the bones
    that begin at a joint (default: the joint's own number).
    """
    owner_of = range(len(rest)) if owner_of is None else owner_of
    sides: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]] = {side: [] for side in _SIDES}
    for joint, name in enumerate(rig.names):
        side, kind = _side(name), name.split("_")[-1]
        if joint:
            parent = rig.parents[joint]
            sides[side].append((*_capsule(rest[parent], rest[joint], _RADII[kind]), owner_of[parent]))
        if not rig.children(joint):
            end = rest[joint] + _end(rig, rest, joint)
            start = rest[joint] + (0.55 * (end - rest[joint]) if kind == "head" else 0.0)
            sides[side].append((*_capsule(start, end, _END_RADII[kind]), owner_of[joint]))
    primitives = []
    for number, side in enumerate(_SIDES):
        points, normals, faces, owners, count = [], [], [], [], 0
        for point, normal, face, owner in sides[side]:
            points.append(point)
            normals.append(normal)
            faces.append(face + count)
            owners.append(np.full(len(point), owner))
            count += len(point)
        joints = np.zeros((count, 4), dtype=np.uint8)
        joints[:, 0] = np.concatenate(owners)
        weights = np.zeros((count, 4), dtype=np.float32)
        weights[:, 0] = 1.0
        attributes = {
            "POSITION": buffer.add(np.concatenate(points).astype(np.float32), _FLOAT, target=_ARRAY, bounds=True),
            "NORMAL": buffer.add(np.concatenate(normals).astype(np.float32), _FLOAT, target=_ARRAY),
            "JOINTS_0": buffer.add(joints, _UBYTE, target=_ARRAY),
            "WEIGHTS_0": buffer.add(weights, _FLOAT, target=_ARRAY),
        }
        indices = buffer.add(np.concatenate(faces).astype(np.uint16).reshape(-1), _USHORT, target=_ELEMENTS)
        primitives.append({"attributes": attributes, "indices": indices, "material": material + number})
    return primitives


def _end(rig: Rig, rest: np.ndarray, joint: int) -> np.ndarray:
    """What lies beyond a limb's last joint: as long as the end site, on along the hand and up from the neck."""
    site = np.asarray(end_site(rig.names[joint]))
    if not rig.names[joint].endswith("wrist"):
        return site
    arm = rest[joint] - rest[rig.parents[joint]]
    return arm / max(float(np.linalg.norm(arm)), 1e-9) * float(np.linalg.norm(site))


def _side(name: str) -> str:
    return name.split("_")[0] if name.startswith(("left_", "right_")) else "middle"


def _capsule(start: np.ndarray, stop: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (V, 3), unit normals (V, 3) and triangles (T, 3) of a capsule from ``start`` to ``stop``."""
    along = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-9)
    helper = np.eye(3)[np.abs(along).argmin()]
    x = np.cross(helper, along)
    x /= np.linalg.norm(x)
    y = np.cross(along, x)
    lift = np.linspace(0.0, np.pi / 2, _CAP + 1)[:_CAP]
    latitudes = np.concatenate([-np.pi / 2 * np.ones(1), -lift[::-1], lift, np.pi / 2 * np.ones(1)])
    centres = np.where((np.arange(len(latitudes)) <= _CAP)[:, None], start, stop)
    turn = np.arange(_RING) * 2 * np.pi / _RING
    around = np.cos(turn)[:, None] * x + np.sin(turn)[:, None] * y
    normals = np.cos(latitudes)[:, None, None] * around + np.sin(latitudes)[:, None, None] * along
    points = centres[:, None] + radius * normals
    row, column = np.meshgrid(np.arange(len(latitudes) - 1), np.arange(_RING), indexing="ij")
    right = (column + 1) % _RING
    a, b = row * _RING + column, row * _RING + right
    c, d = a + _RING, b + _RING
    lower, upper = np.stack([a, b, d], -1), np.stack([a, d, c], -1)
    # at the poles a ring is one point: one triangle of each pair has no area
    faces = np.concatenate([lower[1:].reshape(-1, 3), upper[:-1].reshape(-1, 3)])
    return points.reshape(-1, 3), normals.reshape(-1, 3), faces


def check_glb(path: str | os.PathLike[str]) -> None:
    """Raise UserError when a .glb file is missing, cut off, or its parts do not lie end to end."""
    try:
        data = Path(path).read_bytes()
        magic, _, length = struct.unpack_from("<3I", data)
        if magic != _MAGIC or length != len(data):
            raise ValueError("its length is not the one it states")
        size, kind = struct.unpack_from("<2I", data, 12)
        if kind != _JSON:
            raise ValueError("it does not begin with JSON")
        document = json.loads(data[20 : 20 + size])
        binary, _ = struct.unpack_from("<2I", data, 20 + size)
        if 28 + size + binary != length or document["buffers"][0]["byteLength"] > binary:
            raise ValueError("its parts do not lie end to end")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise UserError(f"{path} is no whole glTF file: {error}") from error
