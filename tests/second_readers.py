"""Exported motion as programs of others read it: pygltflib for glTF, bvh for BVH.

Only the parsing is theirs; nodes are put after each other by scipy's rotations.
"""

import math
from pathlib import Path

import numpy as np
from longtake.motion.rigs.read import ReadRig
from scipy.spatial.transform import Rotation

_KINDS = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def by_pygltflib(path: Path, *, rest: bool = False) -> ReadRig:
    """A .glb or .vrma file as pygltflib parses it. rest: without its animation."""
    from pygltflib import GLTF2

    gltf = GLTF2.load_binary(str(path))
    blob = gltf.binary_blob()

    def values(number: int) -> np.ndarray:
        accessor = gltf.accessors[number]
        view = gltf.bufferViews[accessor.bufferView]
        start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        width = _WIDTHS[accessor.type]
        flat = np.frombuffer(blob, _KINDS[accessor.componentType], accessor.count * width, start)
        return flat.reshape(accessor.count, width).astype(float)

    animation = gltf.animations[0]
    times = values(animation.samplers[animation.channels[0].sampler].input)[:, 0]
    frames = len(times)
    above = {kid: number for number, node in enumerate(gltf.nodes) for kid in node.children or []}
    turns = [np.tile(node.rotation or [0, 0, 0, 1.0], (frames, 1)) for node in gltf.nodes]
    moves = [np.tile(node.translation or [0, 0, 0.0], (frames, 1)) for node in gltf.nodes]
    for channel in [] if rest else animation.channels:
        table = {"rotation": turns, "translation": moves}[channel.target.path]
        table[channel.target.node] = values(animation.samplers[channel.sampler].output)
    world: dict[int, tuple[Rotation, np.ndarray, float]] = {}

    def of(number: int) -> tuple[Rotation, np.ndarray, float]:
        if number not in world:
            own, move = Rotation.from_quat(turns[number]), moves[number]
            scale = float((gltf.nodes[number].scale or [1.0])[0])
            if number in above:
                turn, place, size = of(above[number])
                world[number] = (turn * own, place + size * turn.apply(move), size * scale)
            else:
                world[number] = (own, move, scale)
        return world[number]

    names = {number: node.name for number, node in enumerate(gltf.nodes)}
    places = {name: of(number)[1] for number, name in names.items()}
    matrices = {name: of(number)[0].as_matrix() for number, name in names.items()}
    return ReadRig(times, places, matrices)


def by_bvh(path: Path, *, scale: float = 1.0, up: str = "y") -> ReadRig:
    """A .bvh file as the package ``bvh`` parses it. scale: metres of one of its numbers."""
    from bvh import Bvh

    parsed = Bvh(path.read_text())
    frames = parsed.nframes
    to_ours = Rotation.from_euler("x", -math.pi / 2) if up == "z" else Rotation.identity()
    places, turns = {}, {}
    world: dict[str, tuple[Rotation, np.ndarray]] = {}
    for name in parsed.get_joints_names():
        channels = parsed.joint_channels(name)
        table = np.array(parsed.frames_joint_channels(name, channels), dtype=float).reshape(frames, -1)
        order = "".join(kind[0] for kind in channels if kind.endswith("rotation"))
        angles = table[:, [place for place, kind in enumerate(channels) if kind.endswith("rotation")]]
        own = Rotation.from_euler(order, angles, degrees=True)
        parent = parsed.joint_parent(name)
        if parent is None:
            world[name] = (own, table[:, [channels.index(f"{axis}position") for axis in "XYZ"]])
        else:
            turn, place = world[parent.name]
            world[name] = (turn * own, place + turn.apply(np.array(parsed.joint_offset(name), dtype=float)))
        places[name] = to_ours.apply(scale * world[name][1])
        turns[name] = (to_ours * world[name][0] * to_ours.inv()).as_matrix()
    return ReadRig(np.arange(frames) * parsed.frame_time, places, turns)
