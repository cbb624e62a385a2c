"""Captioned clips for training and judging the small video priors, from zips of 64x64 WebP clips with an index.

kaykit  characters that act (knight, barbarian, mage, rogue, hooded rogue): one character does many actions, seen from
        the left, the right and the front. ``kaykit_train.zip``; the pairs of ``kaykit_val.zip`` are held out;
        ``kaykit_truth.zip`` has films of several actions with the times at which they change.
emoji   thirty-one subjects of animated emoji, named by what moves. Of every person clip with several skin tones one
        tone is held out. ``emoji_train.zip``.

A text names one clip: a KayKit text that does not say how the character faces means the view from the right, and an
emoji text without a skin tone the yellow one. Shape legend: F frames, H W pixels.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.video.subjects import SUBJECTS

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
FACING = {"left": ", facing left", "right": ", facing right", "front": ", seen from the front"}
UNSAID = "right"  # how a character faces when the text does not say
REST = 2  # frames of rest that stay before and after an action


class Corpus(StrEnum):
    """Which clips."""

    KAYKIT = "kaykit"
    EMOJI = "emoji"


@dataclass(frozen=True)
class Clip:
    """One clip: ``frames`` (F, 64, 64, 3) uint8 on white; ``wraps`` says that the last frame leads on to the first.

    wordings: the texts that it is trained under, its caption first. character, action, view: of KayKit, else empty.
    loops: whether it is a loop; an action that ends as it began wraps without being one. period: frames of one turn of
    a loop, 0 where the index does not say.
    """

    name: str
    subject: str
    caption: str
    tone: str
    held_out: bool
    frames: np.ndarray
    wraps: bool
    wordings: tuple[str, ...] = ()
    character: str = ""
    action: str = ""
    view: str = ""
    loops: bool = False
    period: float = 0.0

    def window(self, start: int, length: int) -> np.ndarray:
        """Frame numbers of a window (length,): around the loop if the clip wraps; else a KayKit action stays as it
        ended, and an emoji goes there and back."""
        count = len(self.frames)
        index = np.arange(start, start + length)
        if self.wraps:
            return index % count
        if self.character:
            return np.minimum(index, count - 1)
        index = index % (2 * count - 2)
        return np.where(index < count, index, 2 * count - 2 - index)


@dataclass(frozen=True)
class Segment:
    """A part of a film: seconds from start to end, what is done, and the text of it."""

    start: float
    end: float
    action: str
    caption: str


@dataclass(frozen=True)
class Film:
    """A film of several actions: ``frames`` (F, 64, 64, 3) uint8 at ``fps``, cross-faded over ``fade`` seconds."""

    name: str
    character: str
    view: str
    frames: np.ndarray
    fps: float
    fade: float
    segments: tuple[Segment, ...]


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


def _steps(frames: np.ndarray) -> np.ndarray:
    """Mean absolute change from each frame to the next, (F - 1,), in grey levels."""
    return np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))


def _wake(frames: np.ndarray) -> np.ndarray:
    """Cut the rest before and after an action down to ``REST`` frames."""
    steps = _steps(frames)
    moving = np.flatnonzero(steps > 0.2 * steps.max())
    return frames[max(0, int(moving[0]) - REST + 1) : int(moving[-1]) + 1 + REST]


def _names_one(wordings: Sequence[str], caption: str, view: str) -> tuple[str, ...]:
    """Of a clip's wordings those that name this view and no other; every one has a form that says the view."""
    told = FACING[view]
    plain = [text for text in wordings if not text.endswith(tuple(FACING.values()))]
    said = [text for text in wordings if text.endswith(told)]
    texts = [caption + told, *said]
    if view == UNSAID:
        texts = [caption, *plain, *texts]
    return tuple(dict.fromkeys(texts))


def _open(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise UserError(f"no training data at {path}: expected a zip of WebP clips with index.jsonl")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is no zip of clips: {error}") from error


def _index(archive: zipfile.ZipFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read("index.jsonl").decode().splitlines() if line]


def load_clips(path: str | Path, corpus: str | None = None) -> list[Clip]:
    """The clips of a corpus from a folder of zips, or from one zip; None: KayKit where the folder has it, else emoji.

    Raises UserError when the files are missing or hold none of what was asked.
    """
    path = Path(path)
    if corpus is None:
        named = path.name if path.is_file() else ("kaykit" if (path / "kaykit_train.zip").is_file() else "emoji")
        corpus = Corpus.KAYKIT if named.startswith("kaykit") else Corpus.EMOJI
    if Corpus(corpus) is Corpus.EMOJI:
        return _emoji(path / "emoji_train.zip" if path.is_dir() else path)
    if path.is_file():
        return _kaykit(path, held_out="val" in path.name)
    train, unseen = path / "kaykit_train.zip", path / "kaykit_val.zip"
    return _kaykit(train, held_out=False) + (_kaykit(unseen, held_out=True) if unseen.is_file() else [])


def _kaykit(path: Path, *, held_out: bool) -> list[Clip]:
    clips = []
    with _open(path) as archive:
        for row in _index(archive):
            frames, loops = read_clip(archive.read(row["file"])), bool(row["loops"])
            if not loops:
                frames = _wake(frames)
            closing = np.abs(frames[-1].astype(np.float32) - frames[0]).mean()
            clips.append(
                Clip(
                    name=row["file"],
                    subject=f"{row['character']} {row['action']}",
                    caption=row["caption"],
                    tone="",
                    held_out=held_out,
                    frames=frames,
                    wraps=loops or bool(closing <= max(1.0, _steps(frames).max())),
                    wordings=_names_one(row["wordings"], row["caption"], row["view"]),
                    character=row["character"],
                    action=row["action"],
                    view=row["view"],
                    loops=loops,
                    period=float(row["period"]),
                )
            )
    if not clips:
        raise UserError(f"{path} holds no clips")
    return clips


def load_truth(path: str | Path) -> list[Film]:
    """The films of ``kaykit_truth.zip`` in a folder, or of the zip itself. Raises UserError when it is missing."""
    path = Path(path)
    films = []
    with _open(path / "kaykit_truth.zip" if path.is_dir() else path) as archive:
        for row in _index(archive):
            parts = (Segment(part["start"], part["end"], part["action"], part["caption"]) for part in row["segments"])
            frames = read_clip(archive.read(row["file"]))
            films.append(
                Film(row["file"], row["character"], row["view"], frames, float(row["fps"]), row["fade"], tuple(parts))
            )
    return films


def emoji_wordings(caption: str, subject: str, tone: str) -> tuple[str, ...]:
    """The texts one emoji clip is trained under: all of them name its skin tone, or none does."""
    who, _, rest = caption.partition(" ")
    texts = [caption, *SUBJECTS[subject].wordings]
    if who in ("person", "man", "woman"):
        texts += [f"a {who} {rest}", f"someone {rest}"]
    else:
        texts += [f"a {caption}"]
    return tuple(f"{text}, {tone} skin tone" for text in texts) if tone else tuple(texts)


def _emoji(path: Path) -> list[Clip]:
    wanted = {caption: name for name, subject in SUBJECTS.items() for caption in subject.captions}
    with _open(path) as archive:
        chosen = [row for row in _index(archive) if row["caption"].split(":")[0] in wanted]
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
            texts = emoji_wordings(caption, wanted[caption], tone)
            clips.append(Clip(row["file"], wanted[caption], caption, tone, held, frames, wraps, texts, loops=wraps))
    if not clips:
        raise UserError(f"{path} holds none of the {len(SUBJECTS)} subjects")
    return clips
