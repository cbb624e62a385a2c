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
