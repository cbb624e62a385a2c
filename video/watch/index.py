"""ClipIndex: a film as segments with vectors, kept on disk by content, so that it is looked at once and asked often.

Goldfish (Ataallah et al. 2024) put right: shots are cut where the content changes, a clip keeps its place when a
neighbour cannot be read, ties go by time, the cache is keyed by the film's content. The film streams through: memory
holds one block of it, a block that is finished stands on disk, and a run that was killed goes on after the last one.
Shape legend: n segments, E width of the tower's space, d subtitles.

    index = ClipIndex.of(Film("dog.mp4"), tower, folder)
    scores = index.scores(tower.ask("a dog"))                    # (n,)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.journal import atomic_path
from longtake.video.watch.decode import Film
from longtake.video.watch.tower import Tower
from longtake.weights import file_hash
from torch import Tensor
from torch.nn import functional

BLOCK_SECONDS = 60.0  # of film, between two files on the disk
LOOK_AT_ONCE = 16  # pictures
MOST_SEGMENT = 3.0  # seconds: as many pictures as the head of the small tower was trained on
CUT = 0.30  # cosine distance of two pictures' features beyond which the content has changed
SAME = 1.0  # mean difference of two small pictures, of 255, below which the second is not looked at
JUMP, JUMP_SHARE = 8.0, 2.0  # such a difference, and so many times the usual one, may be a cut: it is looked at
FADE = 0.7  # of the usual one, from a picture to the next
THUMB = 32  # side of the small pictures
CUTS = 2  # pictures that are compared for each that is looked at
FORMAT = 3


@dataclass
class ClipIndex:
    """Segments of a film in order of time. spans: (n, 2) seconds; shots: (n,) number of the shot that each is a part
    of; vectors: (n, E) float32; seconds: how long the film is, or was read; notes: what was
    found while reading it; blocks: files on the disk; complete: whether the film was read to its end."""

    spans: np.ndarray
    shots: np.ndarray
    vectors: Tensor
    seconds: float
    notes: list[str] = field(default_factory=list)
    blocks: int = 0
    complete: bool = True

    def __len__(self) -> int:
        return len(self.spans)

    @classmethod
    def of(
        cls,
        film: Film,
        tower: Tower,
        folder: Path,
        *,
        rate: float = 2.0,
        on_block: Callable[[int, int], bool] | None = None,
    ) -> ClipIndex:
        """The index of a film, from ``folder`` where it stands or stands in part, else made there.

        rate: pictures a second that are looked at, and those behind a cut; `CUTS` times as many are compared, small,
        with the one before. on_block(done, of): told after each block; when it asks to stop,
        what was read so far is returned, and the next call goes on from there. Raises UserError for a film that cannot
        be read.
        """
        content = film_mark(film.path)
        key = sha256(json.dumps([FORMAT, content, tower.mark, rate]).encode()).hexdigest()[:24]
        home = folder / key
        told = home / "index.json"
        if told.is_file():
            known = json.loads(told.read_text())
            found = cls._read(home, known["blocks"], known["seconds"], known["notes"])
            if found is not None:
                return found
            told.unlink()  # a block is damaged: it is made anew
        home.mkdir(parents=True, exist_ok=True)
        done = shot = 0
        while (part := _block(home, done)) is not None:
            shot = max(shot, 1 + int(part["shots"].max(initial=-1)))
            done += 1
        maker = _Maker(tower, rate)
        blocks = None if film.seconds is None else max(1, int(np.ceil(film.seconds / BLOCK_SECONDS)))
        start, seconds = done * BLOCK_SECONDS, done * BLOCK_SECONDS
        for time, frame in film.frames(CUTS * rate, tower.size, start=start):
            while time >= (done + 1) * BLOCK_SECONDS:
                shot = maker.write(home, done, shot, (done + 1) * BLOCK_SECONDS)
                done += 1
                if on_block is not None and on_block(done, max(done + 1, blocks or 0)):
                    return cls._whole(home, done, done * BLOCK_SECONDS, film.notes, complete=False)
            maker.add(time, frame)
            seconds = time
        step = 1 / (CUTS * rate)
        seconds = max(seconds + step, step)
        if film.seconds is not None and abs(film.seconds - seconds) < 2 * step:
            seconds = film.seconds
        maker.write(home, done, shot, seconds)
        done += 1
        with atomic_path(told) as partial:
            partial.write_text(json.dumps({"blocks": done, "seconds": seconds, "notes": film.notes}))
        if on_block is not None:
            on_block(done, done)
        return cls._whole(home, done, seconds, film.notes, complete=True)

    @classmethod
    def _whole(cls, home: Path, blocks: int, seconds: float, notes: list[str], *, complete: bool) -> ClipIndex:
        """What was just written, read back. Raises UserError when the disk lost it."""
        found = cls._read(home, blocks, seconds, notes)
        if found is None:
            raise UserError(f"the index in {home} cannot be read back: is the disk full?")
        found.complete = complete
        return found

    @classmethod
    def _read(cls, home: Path, blocks: int, seconds: float, notes: list[str]) -> ClipIndex | None:
        parts = [_block(home, number) for number in range(blocks)]
        if any(part is None for part in parts):
            return None
        kept = [part for part in parts if part is not None and len(part["spans"])]
        spans, shots, vectors = (
            np.concatenate([part[name] for part in kept]) for name in ("spans", "shots", "vectors")
        )
        return cls(spans, shots, torch.from_numpy(vectors.astype(np.float32)), seconds, list(notes), blocks)

    @classmethod
    def of_frames(
        cls, frames: np.ndarray, fps: float, tower: Tower, *, rate: float = 2.0, longest: float = 1.0
    ) -> ClipIndex:
        """The index of a short film in memory, uint8 (F, H, W, 3). longest: seconds of a segment at most."""
        from PIL import Image

        maker, number = _Maker(tower, rate), 0
        for place, frame in enumerate(frames):
            if place / fps + 1e-6 >= number / (CUTS * rate):
                number = int(np.floor(place / fps * CUTS * rate + 1e-6)) + 1
                square = Image.fromarray(frame).resize((tower.size, tower.size), Image.Resampling.BILINEAR)
                maker.add(place / fps, np.asarray(square))
        return cls(*maker.segments(0, len(frames) / fps, longest), len(frames) / fps)

    def scores(self, question: Tensor) -> Tensor:
        """Likeness (n,) of each segment to what is asked for, (E,)."""
        return self.vectors @ question

    def best(self, question: Tensor, count: int, *, apart: float = 1.0) -> list[int]:
        """The ``count`` segments (at most n) that fit best, each once, in order of time; ties go to the earlier.

        apart: below 1, a segment is left out for one that was taken when their vectors are as near as that (maximal
        marginal relevance, Carbonell and Goldstein 1998, as a bound).
        """
        scores = self.scores(question)
        order = sorted(range(len(self)), key=lambda one: (-float(scores[one]), one))
        unit = functional.normalize(self.vectors, dim=-1)
        taken: list[int] = []
        for one in order:
            if len(taken) == count:
                break
            if apart >= 1 or all(float(unit[one] @ unit[other]) < apart for other in taken):
                taken.append(one)
        return sorted(taken)


class _Maker:
    """Turns sampled pictures of one block into segments."""

    def __init__(self, tower: Tower, rate: float) -> None:
        self.tower, self.rate = tower, rate
        self._features: list[Tensor] = []
        self._waiting: list[np.ndarray] = []
        self._begin()

    def _begin(self) -> None:
        """A block without pictures."""
        self.times: list[float] = []
        self._place: list[int] = []  # for each picture, which of those that were looked at stands for it
        self._features, self._looked = [], 0
        self._seen: tuple[float, np.ndarray] | None = None  # the last that was looked at: seconds, small
        self._last: np.ndarray | None = None
        self._usual = 0.0  # difference of a picture to the one before, of late

    def add(self, time: float, frame: np.ndarray) -> None:
        """A picture. It is looked at when it is time for one that is not like the last, or may begin a shot."""
        step = max(1, frame.shape[0] // THUMB)
        thumb = frame[::step, ::step].astype(np.int16)
        jumped = False
        if self._last is not None:
            apart = float(np.abs(thumb - self._last).mean())
            jumped = apart >= max(JUMP, JUMP_SHARE * self._usual)
            self._usual = JUMP if jumped else max(apart, FADE * self._usual)
        due = self._seen is None or time - self._seen[0] >= 1 / self.rate - 1e-3
        if jumped or self._seen is None or (due and np.abs(thumb - self._seen[1]).mean() >= SAME):
            self._seen = time, thumb
            self._waiting.append(frame)
            self._looked += 1
            if len(self._waiting) == LOOK_AT_ONCE:
                self._look()
        self._last = thumb
        self._place.append(self._looked - 1)
        self.times.append(time)

    def _look(self) -> None:
        if self._waiting:
            self._features.append(self.tower.look(np.stack(self._waiting)))
            self._waiting = []

    def segments(self, shot: int, end: float, longest: float = MOST_SEGMENT) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """spans (n, 2), shots (n,) from number ``shot`` on, and vectors (n, E) of the pictures so far."""
        self._look()
        spans: list[tuple[float, float]] = []
        shots: list[int] = []
        vectors: list[Tensor] = []
        if self.times:
            looked = torch.cat(self._features)
            for first, last, cut in pieces(self.times, looked[self._place], CUTS * self.rate, longest):
                shot += cut and bool(spans)
                ended = self.times[last] if last < len(self.times) else end
                spans.append((self.times[first], ended))
                shots.append(shot)
                vectors.append(self.tower.segment(looked[sorted(set(self._place[first:last]))]))
        found = torch.stack(vectors) if vectors else torch.zeros(0, self.tower.width)
        return np.array(spans, np.float64).reshape(-1, 2), np.array(shots, np.int64), found

    def write(self, home: Path, number: int, shot: int, end: float) -> int:
        """Segments of the pictures so far into the block's file; the number of the next shot."""
        spans, shots, vectors = self.segments(shot, end)
        with atomic_path(home / f"block{number:06d}.npz") as partial, partial.open("wb") as file:
            np.savez(file, spans=spans, shots=shots, vectors=vectors.half().numpy())
        self._begin()
        return max(shot, 1 + int(shots.max(initial=-1)))


def film_mark(path: Path) -> str:
    """Hash (64 hex digits) of a film's content; a file that has not changed is not read again. Raises UserError."""
    if not path.is_file():
        raise UserError(f"the film {path} {'is no file' if path.exists() else 'does not exist'}")
    told = path.stat()
    return _mark(str(path.resolve()), told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=256)
def _mark(path: str, size: int, changed: int) -> str:
    return file_hash(path)


def pieces(
    times: Sequence[float], features: Tensor, rate: float, longest: float = MOST_SEGMENT
) -> list[tuple[int, int, bool]]:
    """Segments (first picture, one past the last, whether a shot begins with it): a shot ends where the features
    (k, F) turn by more than `CUT`, and is cut evenly into pieces of at most ``longest`` seconds."""
    unit = functional.normalize(features, dim=-1)
    turned = 1 - (unit[1:] * unit[:-1]).sum(-1)
    cuts = [0, *[place + 1 for place in range(len(turned)) if turned[place] > CUT], len(features)]
    found: list[tuple[int, int, bool]] = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        long = times[last - 1] - times[first] + 1 / rate
        count = min(last - first, max(1, int(np.ceil(long / longest - 1e-6))))
        borders = [first + round(part * (last - first) / count) for part in range(count + 1)]
        found += [(one, two, one == first) for one, two in zip(borders, borders[1:], strict=False)]
    return found


def _block(home: Path, number: int) -> dict[str, np.ndarray] | None:
    """A block from the disk; None when it is missing or damaged."""
    try:
        with np.load(home / f"block{number:06d}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in ("spans", "shots", "vectors")}
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile's own
        if type(error).__name__ != "BadZipFile":
            raise
        return None
