"""Captioned clips for training and judging the small video prior.

Reads a zip of WebP clips with an ``index.jsonl`` (file, base, caption, frames): 64x64 animated emoji on white.
Thirty-one subjects are taken, named by what moves; each has a few wordings to train on and some kept for judging free
wording. Of every person clip with several skin tones one tone is held out: neither the prior nor the evaluator
trains on it. Shape legend: F frames, H W pixels.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from longtake.errors import UserError
from longtake.video.subjects import SUBJECTS

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


@dataclass(frozen=True)
class Clip:
    """One clip: ``frames`` (F, 64, 64, 3) uint8 on white; ``wraps`` says that the last frame leads on to the first."""

    name: str
    subject: str
    caption: str
    tone: str
    held_out: bool
    frames: np.ndarray
    wraps: bool

    def window(self, start: int, length: int) -> np.ndarray:
        """Frame numbers of a window (length,), around the loop if the clip wraps, else there and back."""
        count = len(self.frames)
        index = np.arange(start, start + length)
        if self.wraps:
            return index % count
        index = index % (2 * count - 2)
        return np.where(index < count, index, 2 * count - 2 - index)


def read_clip(data: bytes) -> np.ndarray:
    """All frames of an animated WebP over white, (F, H, W, 3) uint8."""
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    frames = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        frame = image.convert("RGBA")
        frames.append(np.asarray(Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")))
    return np.stack(frames)


def _loop(frames: np.ndarray) -> tuple[np.ndarray, bool]:
    """Drop a closing copy of the first frame; say whether the step from last to first is an ordinary one."""
    steps = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
    closing = np.abs(frames[-1].astype(np.float32) - frames[0]).mean()
    if closing < 0.25 * max(np.median(steps), 1e-3) and len(frames) > 2:
        frames = frames[:-1]
        closing = np.abs(frames[-1].astype(np.float32) - frames[0]).mean()
    return frames, bool(closing <= 2.0 * np.max(steps))


def load_clips(path: str | Path) -> list[Clip]:
    """The clips of the thirty-one subjects from a training zip, or a folder that holds ``emoji_train.zip``.

    Raises UserError when the file is missing or holds none of the subjects.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "emoji_train.zip"
    if not path.is_file():
        raise UserError(f"no training data at {path}: expected a zip of WebP clips with index.jsonl")
    wanted = {caption: name for name, subject in SUBJECTS.items() for caption in subject.captions}
    with zipfile.ZipFile(path) as archive:
        rows = [json.loads(line) for line in archive.read("index.jsonl").decode().splitlines()]
        chosen = [row for row in rows if row["caption"].split(":")[0] in wanted]
        tones: dict[str, list[str]] = {}
        for row in chosen:
            tones.setdefault(row["base"], []).append(row["file"])
        clips = []
        for row in chosen:
            caption, _, tail = row["caption"].partition(": ")
            siblings = sorted(tones[row["base"]])
            # which tone is held out turns with the base, so that every tone is both seen and held out somewhere
            held = len(siblings) > 1 and siblings.index(row["file"]) == sum(map(ord, row["base"])) % len(siblings)
            frames, wraps = _loop(read_clip(archive.read(row["file"])))
            tone = tail.removesuffix(" skin tone") if tail.endswith("skin tone") else ""
            clips.append(Clip(row["file"], wanted[caption], caption, tone, held, frames, wraps))
    if not clips:
        raise UserError(f"{path} holds none of the {len(SUBJECTS)} subjects")
    return clips
