"""FBX, by Blender's Python module where it is installed (pip install "longtake[fbx]"); else refused by name.

    read = write_fbx("take.fbx", [take])            # what Blender finds in the file, for the proof

No library of FBX writes without a program behind it; bpy is Blender as a package. The .glb of the same rig is imported
with its bones' axes kept and exported; then Blender reads the .fbx back. Legend: F frames.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from longtake.errors import UserError
from longtake.motion.rigs.files import Layout, write_rig_glb
from longtake.motion.rigs.read import ReadRig
from longtake.motion.rigs.retarget import RigTake

HEAD = b"Kaydara FBX Binary"
MOST_SECONDS = 1800


def check_bpy() -> None:
    """Raise UserError where Blender's module is missing."""
    if importlib.util.find_spec("bpy") is None:
        raise UserError(
            "a .fbx file is written by Blender's module bpy, which is not installed (it needs about 1 GB): "
            'pip install "longtake[fbx]", or write .glb and import it'
        )


def write_fbx(
    path: str | os.PathLike[str],
    takes: Sequence[RigTake],
    *,
    captions: Sequence[str] = (),
    overwrite: bool = False,
) -> ReadRig:
    """Write .fbx (metres, y up, both said in the file) and read it back: places and rotations of all bones, y up.
    Raises UserError without bpy, and with Blender's words where it fails."""
    from longtake.journal import atomic_path
    from longtake.media import check_output

    check_bpy()
    path = check_output(path, (".fbx",), overwrite)
    with tempfile.TemporaryDirectory() as folder:
        source, target, found = (Path(folder) / name for name in ("take.glb", "take.fbx", "found.npz"))
        write_rig_glb(source, takes, Layout(), captions=captions)
        words = [sys.executable, "-m", "longtake.motion.rigs.blender"]
        words += [str(source), str(target), repr(takes[0].fps), str(found)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=MOST_SECONDS)
        if done.returncode or not found.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise UserError(f"Blender could not write {path}: {' '.join(last)}")
        with np.load(found, allow_pickle=False) as arrays:
            read = _ours(arrays["names"].tolist(), arrays["matrices"], takes[0].fps)
        with atomic_path(path) as partial:
            partial.write_bytes(target.read_bytes())
    return read


def _ours(names: list[str], matrices: np.ndarray, fps: float) -> ReadRig:
    """Blender's bones (F, B, 4, 4) in our world."""
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    places, turns = {}, {}
    for number, name in enumerate(names):
        block = matrices[:, number, :3, :3]
        places[name] = matrices[:, number, :3, 3] @ turn.T
        turns[name] = turn @ (block / np.linalg.norm(block, axis=1, keepdims=True))
    return ReadRig(np.arange(len(matrices)) / fps, places, turns)


def check_fbx(path: str | os.PathLike[str]) -> None:
    """Raise UserError when a .fbx file is missing, cut off, or no binary FBX: its last record is 160 bytes of footer
    that end in a fixed mark."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not data.startswith(HEAD) or not data.endswith(bytes.fromhex("f85a8c6adef5d97eece90ce3758f290b")):
        raise UserError(f"{path} is no whole FBX file")
