"""Whether Blender opens exported files without a word: run it with a Python that has bpy (pip install bpy).

    longtake motion "a person walks" --rig ue5 --fps 30 --out walk.glb --out walk.bvh
    python tests/benchmarks/blender.py walk.glb walk.bvh

A line a file: bones, frames, what the importer wrote or logged above plain progress. Ends with 1 if there was any. That
warnings are seen is shown first, with a .glb that names an extension which Blender does not know.
"""

import json
import logging
import os
import struct
import sys
import tempfile
from pathlib import Path

import bpy

PROGRESS = ("| INFO:", "parsing bvh", "importing to blender")


class Kept(logging.Handler):
    """Log records from WARNING upwards."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


def said(path: Path, kept: Kept) -> list[str]:
    """What Blender says while it opens a file; its own C code writes to the descriptors."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    kept.lines.clear()
    opened = bpy.ops.import_anim.bvh if path.suffix == ".bvh" else bpy.ops.import_scene.gltf
    more = {} if path.suffix == ".bvh" else {"loglevel": logging.INFO}
    sys.stdout.flush(), sys.stderr.flush()
    with tempfile.TemporaryFile("w+") as file:
        before = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            opened(filepath=str(path), **more)
        except RuntimeError as error:
            kept.lines.append(f"ERROR: {error}")
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(before[0], 1), os.dup2(before[1], 2)
        file.seek(0)
        lines = [line.strip() for line in file if line.strip()]
    return kept.lines + [line for line in lines if not any(word in line for word in PROGRESS)]


def spoiled(source: Path, target: Path) -> None:
    """The .glb with a required extension that nobody knows."""
    data = source.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    document["extensionsUsed"] = document["extensionsRequired"] = ["LONGTAKE_unknown"]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON")
    target.write_bytes(head + text + rest)


def main() -> int:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    files = [Path(name) for name in sys.argv[1:]]
    first = next((path for path in files if path.suffix == ".glb"), None)
    if first is not None:
        with tempfile.TemporaryDirectory() as folder:
            spoiled(first, Path(folder) / "spoiled.glb")
            print(f"a spoiled file: {said(Path(folder) / 'spoiled.glb', kept) or 'NOTHING SEEN'}")
    wrong = 0
    for path in files:
        lines = said(path, kept)
        wrong += bool(lines)
        bones = sum(len(thing.data.bones) for thing in bpy.data.objects if thing.type == "ARMATURE")
        moving = len(bpy.data.actions)
        wrong += not (bones and moving)
        print(f"{path.name}: {bones} bones, {moving} actions, {lines or 'no warning'}")
    print(f"Blender {bpy.app.version_string}: {len(files) - wrong} of {len(files)} opened without a warning")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
