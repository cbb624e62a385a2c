"""A motion on a rig as files: .glb with a body of capsules, .bvh, .vrma (a VRM animation).

    write_rig_glb("take.glb", [retarget(joints, 20, rig_of("mixamo"))], Layout(unit="cm"))

glTF is in metres with y up: a rig in centimetres, or with z up, stands under a node "Armature" that carries the scale
or the turn, as Mixamo's own files have it; what is seen is the same. BVH has neither, so its numbers themselves are in
the layout's unit, and its joints, as every BVH's, begin with the axes of the world. In a BVH the bone on the floor of
ue5 carries the whole way of the body, since few readers know positions of other joints than the first. VRM animation:
specification VRMC_vrm_animation 1.0. Legend: F frames, B bones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.bvh import UNITS, euler
from longtake.motion.export.glb import Buffer, body, caption_runs, looks, write_document
from longtake.motion.kinematics import HUMANML, quat_inverse, quat_multiply, quat_rotate, quat_to_matrix
from longtake.motion.rigs.retarget import RigTake

_FLOAT = 5126  # a glTF component type
_Z_UP = (0.5**0.5, -(0.5**0.5), 0.0, 0.0)  # takes z up, facing -y, to y up, facing +z
END_SHARE = 0.3  # of the last bone's length: how far an End Site lies beyond it


@dataclass(frozen=True)
class Layout:
    """unit: "m" or "cm". up: "y" (facing +z) or "z" (facing -y, as Blender has it). Raises UserError."""

    unit: str = "m"
    up: str = "y"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UserError(f"unit must be one of {', '.join(UNITS)}; given {self.unit!r}")
        if self.up not in ("y", "z"):
            raise UserError(f"up must be y or z; given {self.up!r}")

    @property
    def scale(self) -> float:
        """Numbers in a metre."""
        return UNITS[self.unit]

    @property
    def turn(self) -> torch.Tensor:
        """(4,) from the layout's world to ours."""
        return torch.tensor(_Z_UP if self.up == "z" else (1.0, 0.0, 0.0, 0.0), dtype=torch.float64)

    def points(self, ours: torch.Tensor) -> torch.Tensor:
        """Places (*, 3) in our world, in the layout's axes and unit."""
        return self.scale * quat_rotate(quat_inverse(self.turn), ours)

    def turns(self, ours: torch.Tensor) -> torch.Tensor:
        """World rotations (*, 4) of bones, seen from the layout's axes; the bone's own axes stay."""
        return quat_multiply(quat_inverse(self.turn).expand_as(ours), ours)


def prefix_of(number: int) -> str:
    """What the names of the first, second, ... person's bones begin with."""
    return "" if number == 0 else f"person{number + 1}_"


# ----------------------------------------------------------------------------------------------------------------- glTF


def write_rig_glb(
    path: str | os.PathLike[str],
    takes: Sequence[RigTake],
    layout: Layout,
    *,
    captions: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write .glb: bones, a body of capsules skinned to them in the rig's rest pose, one animation of everybody.

    captions: one a frame of the source, kept with the second at which each begins. Raises UserError.
    """
    from longtake.media import check_output

    path = check_output(path, (".glb",), overwrite)
    write_document(path, *_document(takes, layout, captions, with_body=True))
    return path


def write_vrma(
    path: str | os.PathLike[str], take: RigTake, *, captions: Sequence[str] = (), overwrite: bool = False
) -> Path:
    """Write .vrma: a glTF file of bones and animation that says which of VRM's humanoid bones each is. One person on
    the rig "vrm", metres, y up, at rest in a T-pose. Raises UserError."""
    from longtake.media import check_output

    path = check_output(path, (".vrma",), overwrite)
    if take.table.name != "vrm":
        raise UserError(f"a .vrma file holds the rig vrm; given {take.table.name}")
    document, binary = _document([take], Layout(), captions, with_body=False)
    humans = {bone.name: {"node": number} for number, bone in enumerate(take.table.bones)}
    document["extensionsUsed"] = ["VRMC_vrm_animation"]
    document["extensions"] = {"VRMC_vrm_animation": {"specVersion": "1.0", "humanoid": {"humanBones": humans}}}
    write_document(path, document, binary)
    return path


def _document(
    takes: Sequence[RigTake], layout: Layout, captions: Sequence[str], *, with_body: bool
) -> tuple[dict[str, Any], bytes]:
    _check(takes)
    buffer = Buffer()
    nodes: list[dict[str, Any]] = []
    scene: list[int] = []
    parts: dict[str, list[dict[str, Any]]] = {"meshes": [], "skins": [], "materials": []}
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []
    times = buffer.add(takes[0].times().astype(np.float32), _FLOAT, bounds=True)

    def animate(node: int, path: str, values: np.ndarray) -> None:
        channels.append({"sampler": len(samplers), "target": {"node": node, "path": path}})
        samplers.append({"input": times, "output": buffer.add(values, _FLOAT), "interpolation": "LINEAR"})

    for number, take in enumerate(takes):
        first, bones = len(nodes), take.table.bones
        local, offsets, moves = _in_layout(take, layout)
        rest_local = take.rest_local().clone()
        rest_local[0] = layout.turns(rest_local[0])
        for bone in range(len(bones)):
            node: dict[str, Any] = {"name": prefix_of(number) + bones[bone].name}
            node["translation"] = offsets[bone].tolist()
            node["rotation"] = _xyzw(rest_local[bone]).tolist()
            kids = [first + kid for kid, above in enumerate(take.table.parents) if above == bone]
            if kids:
                node["children"] = kids
            nodes.append(node)
            animate(first + bone, "rotation", _xyzw(local[:, bone]))
        for bone, way in moves.items():
            animate(first + bone, "translation", way.numpy().astype(np.float32))
        over: dict[str, Any] = {"name": f"{prefix_of(number)}Armature", "children": [first]}
        if layout.scale != 1.0:
            over["scale"] = [1.0 / layout.scale] * 3
        if layout.up == "z":
            over["rotation"] = _xyzw(layout.turn).tolist()
        nodes.append(over)
        scene.append(len(nodes) - 1)
        if with_body:
            _add_body(take, number, first, layout, buffer, parts, nodes)
            scene.append(len(nodes) - 1)
    animation: dict[str, Any] = {"name": "take", "channels": channels, "samplers": samplers}
    if captions:
        rate = takes[0].source_fps
        runs = [{"second": start / rate, "text": text} for start, text in caption_runs(captions)]
        animation["extras"] = {"captions": runs}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "longtake"},
        "scene": 0,
        "scenes": [{"nodes": scene}],
        "nodes": nodes,
        **{kind: table for kind, table in parts.items() if table},
        "animations": [animation],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.size}],
    }
    return document, b"".join(buffer.parts)


def _add_body(
    take: RigTake,
    number: int,
    first: int,
    layout: Layout,
    buffer: Buffer,
    parts: dict[str, list[dict[str, Any]]],
    nodes: list[dict[str, Any]],
) -> None:
    """The body's mesh, skin and materials, and the node that shows it."""
    prefix, bones = prefix_of(number), take.table.bones
    places = {bone.joint: place for place, bone in enumerate(bones) if bone.joint and bone.share == 0}
    owner = [places[name] for name in HUMANML.names]
    rest = take.rest[owner].numpy()
    bind = np.tile(np.eye(4), (len(bones), 1, 1))
    bind[:, :3, :3] = quat_to_matrix(take.axes).numpy() / layout.scale
    bind[:, :3, 3] = take.rest.numpy()
    inverse = np.linalg.inv(bind).transpose(0, 2, 1).reshape(-1, 16).astype(np.float32)  # glTF: column by column
    skin = {
        "name": f"{prefix}skin",
        "inverseBindMatrices": buffer.add(inverse, _FLOAT),
        "joints": list(range(first, first + len(bones))),
        "skeleton": first,
    }
    primitives = body(take.pose.rig, rest, buffer, len(parts["materials"]), owner)
    parts["skins"].append(skin)
    parts["meshes"].append({"name": f"{prefix}body", "primitives": primitives})
    parts["materials"] += looks(number, prefix)
    nodes.append({"name": f"{prefix}body", "mesh": number, "skin": number})


def _in_layout(take: RigTake, layout: Layout) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
    """Local rotations (F, B, 4), rest offsets (B, 3) and ways of moving bones (F, 3) under the layout's armature."""
    local, offsets = take.local.clone(), layout.scale * take.offsets()
    local[:, 0] = layout.turns(local[:, 0])
    offsets[0] = layout.points(take.offsets()[0])
    moves = {bone: layout.points(way) if bone == 0 else layout.scale * way for bone, way in take.moves.items()}
    return local, offsets, moves


def _xyzw(quats: torch.Tensor) -> np.ndarray:
    """glTF's order of a quaternion's numbers, float32, of length 1."""
    found = quats[..., [1, 2, 3, 0]].numpy().astype(np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


# ------------------------------------------------------------------------------------------------------------------ BVH


def write_rig_bvh(
    path: str | os.PathLike[str], takes: Sequence[RigTake], layout: Layout, *, overwrite: bool = False
) -> Path:
    """Write .bvh: the rig's names, hierarchy and rest pose. Angles are continued from frame to frame. Raises
    UserError."""
    from longtake.journal import atomic_path
    from longtake.media import check_output

    path = check_output(path, (".bvh",), overwrite)
    _check(takes)
    lines, tables = ["HIERARCHY"], []
    for number, take in enumerate(takes):
        more, table = _person(take, prefix_of(number), layout)
        lines += more
        tables.append(table)
    lines += ["MOTION", f"Frames: {len(takes[0].local)}", f"Frame Time: {1.0 / takes[0].fps:.8f}"]
    with atomic_path(path) as partial, open(partial, "w", encoding="ascii", newline="\n") as file:
        file.write("\n".join(lines) + "\n")
        np.savetxt(file, np.concatenate(tables, 1), fmt="%.6f")
    return path


def _person(take: RigTake, prefix: str, layout: Layout) -> tuple[list[str], np.ndarray]:
    """Lines of the hierarchy and the channels (F, C), depth first."""
    parents, bones = take.table.parents, take.table.bones
    world, places = take.world()
    rest = layout.points(take.rest)
    # a BVH joint rests with the world's axes: what is left of a bone's rotation is its turn away from rest
    away = quat_multiply(world, quat_inverse(take.axes).expand_as(world))
    away = quat_multiply(layout.turns(away), layout.turn.expand_as(away))
    local = torch.stack(
        [
            away[:, bone] if parent < 0 else quat_multiply(quat_inverse(away[:, parent]), away[:, bone])
            for bone, parent in enumerate(parents)
        ],
        1,
    )
    way = layout.points(places[:, take.table.hips])
    way = way - quat_rotate(away[:, 0], rest[take.table.hips] - rest[0])
    lines: list[str] = []
    columns: list[np.ndarray] = []

    def words(vector: torch.Tensor) -> str:
        return " ".join(f"{value:.6f}" for value in vector.tolist())

    def add(bone: int, depth: int) -> None:
        tab, parent = "\t" * depth, parents[bone]
        angles, order = euler(local[:, bone].numpy())
        channels = " ".join(f"{axis}rotation" for axis in order)
        lines.append(f"{tab}{'ROOT' if parent < 0 else 'JOINT'} {prefix}{bones[bone].name}")
        lines.append(tab + "{")
        lines.append(f"{tab}\tOFFSET {words(0 * rest[bone] if parent < 0 else rest[bone] - rest[parent])}")
        if parent < 0:
            lines.append(f"{tab}\tCHANNELS 6 Xposition Yposition Zposition {channels}")
            columns.append(way.numpy())
        else:
            lines.append(f"{tab}\tCHANNELS 3 {channels}")
        columns.append(angles)
        kids = [kid for kid, above in enumerate(parents) if above == bone]
        for kid in kids:
            add(kid, depth + 1)
        if not kids:
            end = END_SHARE * (rest[bone] - rest[parent])
            lines.extend([f"{tab}\tEnd Site", tab + "\t{", f"{tab}\t\tOFFSET {words(end)}", tab + "\t}"])
        lines.append(tab + "}")

    add(0, 0)
    return lines, np.concatenate(columns, 1)


def _check(takes: Sequence[RigTake]) -> None:
    if not takes or len({(len(take.local), take.fps, take.table.name) for take in takes}) != 1:
        raise UserError(
            "people of one file need the same rig, rate and number of frames; given "
            f"{[(take.table.name, take.fps, len(take.local)) for take in takes]}"
        )
