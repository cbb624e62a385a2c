"""A toy data set like the real one, for tests of training and judging: three moving shapes in a zip of WebP clips."""

import io
import json
import zipfile

import numpy as np
from PIL import Image


def moving_shape(kind, tone, frames=20, size=64):
    """Toy clips: a disc that circles, a bar that sweeps, a square that jumps; uint8 (frames, size, size, 3)."""
    rows, columns = np.mgrid[:size, :size]
    out = np.full((frames, size, size, 3), 255, np.uint8)
    for t in range(frames):
        turn = 2 * np.pi * t / frames
        if kind == 0:
            inside = np.hypot(columns - 32 - 14 * np.cos(turn), rows - 32 - 14 * np.sin(turn)) < 10
        elif kind == 1:
            inside = abs(columns - 32 - 20 * np.sin(turn)) < 4
        else:
            inside = np.maximum(abs(columns - 32), abs(rows - 44 + 20 * abs(np.sin(turn)))) < 9
        out[t][inside] = np.roll([30, 120, 200], kind) + tone
    return out


def write_clips(path):
    """A zip like the real one at ``path``: dog and horse with one clip each, running in three skin tones."""
    captions = [("dog", 0, 0), ("horse", 1, 0)]
    captions += [(f"woman running: {tone} skin tone", 2, 20 * place) for place, tone in enumerate(("light", "dark"))]
    captions += [("woman running", 2, 50)]
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, (caption, kind, tone) in enumerate(captions):
            first, *rest = [Image.fromarray(frame) for frame in moving_shape(kind, tone)]
            buffer = io.BytesIO()
            first.save(buffer, "WEBP", save_all=True, append_images=rest, lossless=True, duration=80)
            archive.writestr(f"{number}.webp", buffer.getvalue())
            rows.append({"file": f"{number}.webp", "base": caption.split(":")[0], "caption": caption, "frames": 20})
        archive.writestr("index.jsonl", "\n".join(json.dumps(row) for row in rows))
    return path


VIEWS = {"left": ", facing left", "right": ", facing right", "front": ", seen from the front"}
ACTIONS = {
    "circle": (0, True),
    "sweep": (1, True),
    "jump": (2, False),
}  # name -> kind of moving shape, whether it loops


def write_kaykit(folder):
    """Toy zips like the KayKit ones in ``folder``: a knight and a mage do three actions, of which the mage's jump is
    held out; one film of two actions of 20 frames."""

    def webp(frames):
        first, *rest = [Image.fromarray(frame) for frame in frames]
        buffer = io.BytesIO()
        first.save(buffer, "WEBP", save_all=True, append_images=rest, lossless=True, duration=80)
        return buffer.getvalue()

    def write(name, clips):
        with zipfile.ZipFile(folder / f"kaykit_{name}.zip", "w") as archive:
            for row, frames in clips:
                archive.writestr(row["file"], webp(frames))
            archive.writestr("index.jsonl", "\n".join(json.dumps(row) for row, _ in clips))

    def clip(who, action, view):
        kind, loops = ACTIONS[action]
        frames = moving_shape(kind, 90 * (who == "mage"))
        if view != "right":
            frames = np.roll(frames, 3 if view == "left" else -3, 2)
        said = f"a {who} does a {action}"
        facts = {"character": who, "action": action, "caption": said, "wordings": [said], "view": view, "kit": "bare"}
        turns = {"loops": loops, "period": 20.0 if loops else 0, "frames": 20, "fps": 12, "size": 64}
        return {"file": f"{who}_{action}_{view}.webp", **facts, **turns}, frames

    pairs = [(who, action) for who in ("knight", "mage") for action in ACTIONS]
    held = [("mage", "jump")]
    write("train", [clip(*pair, view) for pair in pairs if pair not in held for view in VIEWS])
    write("val", [clip(*pair, view) for pair in held for view in VIEWS])
    parts = [("circle", 0.0, 20 / 12), ("sweep", 20 / 12, 40 / 12)]
    row = clip("knight", "circle", "right")[0] | {"file": "film_00_knight.webp", "frames": 40, "fade": 0.3}
    row["segments"] = [
        {"start": start, "end": end, "action": action, "caption": f"a knight does a {action}"}
        for action, start, end in parts
    ]
    write("truth", [(row, np.concatenate([moving_shape(ACTIONS[action][0], 0) for action, _, _ in parts]))])
    return folder
