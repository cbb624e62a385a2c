"""Pieces: what a voice said, cut to the speech, and how pieces are joined.

    joiner = Joiner(rate)
    for piece in pieces:
        block = joiner.add(piece)           # samples that no later piece can change
    block = joiner.end()

A piece is cut where the silence before and behind its words is quietest, faded there over 10 ms at equal power, and
laid so that from its last sound to the next piece's first there is exactly the pause asked for. All in whole samples:
where a piece stands depends on the pieces before it alone, and times add up over hours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from longtake.errors import UserError
from longtake.journal import partial_path, piece_name, write_tensors
from longtake.speech.backends.voice import Said, State

if TYPE_CHECKING:
    from longtake.journal import Journal
    from longtake.speech.longform.planner import Chunk

FADE_S = 0.01  # of a piece's ends
EDGE_S = 0.12  # of silence at most that a piece keeps before its first word
TAIL_S = 0.2  # and behind its last
PAUSES_S: Mapping[str, float] = {"word": 0.0, "phrase": 0.18, "sentence": 0.42, "paragraph": 0.8, "chapter": 1.6}
PREFIX = "chunk"


@dataclass(frozen=True)
class Word:
    """A word and when it is said, in samples. sentence: its number; mark: a name instead of a word."""

    text: str
    start: int
    end: int
    sentence: int = 0
    mark: bool = False


@dataclass
class Piece:
    """Cut samples (N,) float32, the words in it (times from its own start), and how it meets its neighbours.

    lead, tail: samples before the first sound and behind the last; pause: seconds to the next piece; before: seconds
    asked for ahead of the first piece. state: what the voice hands on. exact: see `Said`. origin: what it was made of.
    """

    index: int
    samples: np.ndarray
    words: list[Word]
    lead: int
    tail: int
    pause: float
    before: float = 0.0
    title: str | None = None
    end: str = "sentence"
    state: State | None = None
    exact: bool = True
    origin: str = ""

    @classmethod
    def of(cls, said: Said, chunk: Chunk, rate: int, *, scale: float = 1.0, origin: str = "") -> Piece:
        """What a voice said of a chunk, cut and faded. scale: of pauses that nobody asked for. Raises UserError when
        the voice gave no sound."""
        samples = np.asarray(said.samples, dtype=np.float32).reshape(-1)
        if not np.isfinite(samples).all():
            raise UserError(f"the voice gave no numbers for chunk {chunk.index + 1}: it must be another seed or prior")
        if not len(samples) or len(said.words) != len(chunk.units):
            raise UserError(f"the voice gave no sound for chunk {chunk.index + 1} ({chunk.units[0].text})")
        first, last = said.words[0][0], max(said.words[-1][1], said.words[0][0] + 1)
        start = _quietest(samples, max(0, first - round(EDGE_S * rate)), first, rate, -1)
        stop = _quietest(samples, last, min(len(samples), last + round(TAIL_S * rate)), rate, 1)
        cut = _faded(samples[start:stop], rate, first - start, stop - last)
        words: list[Word] = []
        sentence = chunk.sentences[0]
        for unit, (a, b) in zip(chunk.units, said.words, strict=True):
            words += [Word(name, a - start, a - start, sentence, mark=True) for name in unit.marks]
            words.append(Word(unit.text, a - start, b - start, sentence))
            if unit.after in (".", "!", "?") and sentence < chunk.sentences[1]:
                sentence += 1
        words += [Word(name, last - start, last - start, sentence, mark=True) for name in chunk.marks]
        pause = PAUSES_S[chunk.end] * scale if chunk.pause is None else chunk.pause
        return cls(
            chunk.index, cut, words, first - start, stop - last, pause, chunk.lead or 0.0, chunk.title, chunk.end,
            said.state, said.exact, origin,
        )  # fmt: skip

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(tensors, text) for a file."""
        import torch

        state = {f"state.{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in (self.state or {}).items()}
        told = {
            "index": self.index, "lead": self.lead, "tail": self.tail, "pause": self.pause, "before": self.before,
            "title": self.title, "end": self.end, "exact": self.exact, "origin": self.origin,
            "carries": self.state is not None,
            "words": [[w.text, w.start, w.end, w.sentence, w.mark] for w in self.words],
        }  # fmt: skip
        return {"samples": torch.from_numpy(self.samples), **state}, {"piece": json.dumps(told, ensure_ascii=False)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any], told: Mapping[str, Any]) -> Piece:
        """Back from `to_tensors`."""
        state = {name[6:]: t.numpy() for name, t in tensors.items() if name.startswith("state.")}
        told = dict(told)
        carries, words = told.pop("carries"), [Word(*row) for row in told.pop("words")]
        return cls(samples=tensors["samples"].numpy(), words=words, state=state if carries else None, **told)


def _quietest(samples: np.ndarray, start: int, stop: int, rate: int, side: int) -> int:
    """The middle of the quietest 10 ms within a stretch, in steps of 2.5 ms; of equal ones the first (side -1: before
    the words) or the last (side 1)."""
    width, step = max(2, rate // 100), max(1, rate // 400)
    if stop - start <= width:
        return start if side < 0 else stop
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples[start:stop], dtype=np.float64))])
    places = np.arange(0, stop - start - width + 1, step)
    level = energy[places + width] - energy[places]
    quiet = np.flatnonzero(level <= level.min() * 1.0001 + 1e-12)
    if level.max() <= level.min() * 1.0001 + 1e-12:
        return start if side < 0 else stop
    return start + int(places[quiet[0] if side < 0 else quiet[-1]]) + width // 2


def _faded(samples: np.ndarray, rate: int, lead: int, tail: int) -> np.ndarray:
    """Samples with ends that begin and end at nothing, at equal power, within the silence where there is some."""
    made = samples.copy()
    for length, side in ((lead, slice(None)), (tail, slice(None, None, -1))):
        width = min(round(FADE_S * rate), max(length, rate // 500), len(made))
        ramp = np.sin(np.linspace(0, np.pi / 2, width, endpoint=False, dtype=np.float64)).astype(np.float32)
        view = made[side]
        view[:width] *= ramp
    return made


@dataclass
class Joiner:
    """Lays pieces one behind the other; see the module's docstring. placed: where each began, in order, is told to
    ``on_place(piece, start)``."""

    rate: int
    on_place: Callable[[Piece, int], None] | None = None
    length: int = 0  # samples given out
    _held: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    _last: Piece | None = None

    def add(self, piece: Piece) -> np.ndarray:
        """The samples that are final now."""
        if self._last is None:
            gap = round(piece.before * self.rate)
        else:
            pause = max(self._last.pause, piece.before)
            gap = round(pause * self.rate) - self._last.tail - piece.lead
        gap = max(gap, -len(self._held), -len(piece.samples))
        start = self.length + len(self._held) + gap
        if self.on_place is not None:
            self.on_place(piece, start)
        joined = np.zeros(len(self._held) + gap + len(piece.samples), np.float32)
        joined[: min(len(self._held), len(joined))] = self._held[: len(joined)]
        if gap < 0 and len(self._held) > len(joined):
            joined = np.concatenate([joined, self._held[len(joined) :]])
        at = len(self._held) + gap
        joined[at : at + len(piece.samples)] += piece.samples
        keep = min(len(joined), piece.tail + round((EDGE_S + FADE_S) * self.rate))
        final, self._held = joined[: len(joined) - keep], joined[len(joined) - keep :].copy()
        self.length += len(final)
        self._last = piece
        return final

    def end(self) -> np.ndarray:
        """What is left when the last piece has come."""
        final, self._held = self._held, np.zeros(0, np.float32)
        self.length += len(final)
        return final


class Store(Protocol):
    """Where pieces are kept until all are there."""

    def put(self, piece: Piece) -> None: ...

    def get(self, index: int) -> Piece | None:
        """The piece of that number; None where it is not there, or damaged."""


class Memory:
    """Pieces in memory."""

    def __init__(self) -> None:
        self._pieces: dict[int, Piece] = {}

    def put(self, piece: Piece) -> None:
        self._pieces[piece.index] = replace(piece)

    def get(self, index: int) -> Piece | None:
        return self._pieces.get(index)


class Over(Memory):
    """Pieces in memory over those of another store, which is left as it is."""

    def __init__(self, below: Store) -> None:
        super().__init__()
        self._below = below

    def get(self, index: int) -> Piece | None:
        return super().get(index) or self._below.get(index)


class OnDisk:
    """Pieces in the folder of a journal, a file each, written whole or not at all."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def put(self, piece: Piece) -> None:
        tensors, told = piece.to_tensors()
        self.journal.write_tensors(piece_name(PREFIX, piece.index + 1), tensors, told)

    def get(self, index: int) -> Piece | None:
        path = self.journal.folder / piece_name(PREFIX, index + 1)
        return read_piece(path) if path.is_file() else None


class Kept:
    """The pieces of a finished run, in its folder; new ones go to another store."""

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.folder, self.store = folder, store

    def put(self, piece: Piece) -> None:
        if self.store is None:
            raise UserError(f"{self.folder} is a finished run: nothing is added to it")
        self.store.put(piece)

    def get(self, index: int) -> Piece | None:
        found = None if self.store is None else self.store.get(index)
        return read_piece(kept_path(self.folder, index)) if found is None else found


def kept_path(folder: Path, index: int) -> Path:
    """Where a finished run keeps a piece: under a name that no tidying of the run takes for a checkpoint."""
    return folder / f"take{index + 1:06d}.piece"


def keep_pieces(pieces: Iterable[Piece], folder: Path) -> None:
    """Keep pieces in a run's folder for later requests, in place of those of an earlier run; a file that the journal
    has is linked, not copied. The pieces may be those that are kept there."""
    names = set()
    for piece in pieces:
        path, there = kept_path(folder, piece.index), folder / piece_name(PREFIX, piece.index + 1)
        names.add(path.name)
        partial = partial_path(path)
        partial.unlink(missing_ok=True)
        try:
            os.link(there, partial)
            os.replace(partial, path)
        except OSError:  # a piece of another run, or a disk without links
            tensors, told = piece.to_tensors()
            write_tensors(path, tensors, told)
    for path in folder.glob("take*.piece"):
        if path.name not in names:
            path.unlink()


def read_piece(path: Any) -> Piece | None:
    """The piece in a file; None when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})["piece"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Piece.from_tensors(tensors, told)
    except (SafetensorError, OSError, ValueError, TypeError, LookupError):
        return None


def digest(*parts: object) -> str:
    """32 hex digits of what a piece was made of."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def state_digest(state: State | None) -> str:
    """Digest of what a voice handed on."""
    if state is None:
        return ""
    hashed = hashlib.sha256()
    for name in sorted(state):
        hashed.update(name.encode() + str(state[name].dtype).encode() + np.ascontiguousarray(state[name]).tobytes())
    return hashed.hexdigest()[:32]


def joined(
    pieces: Iterable[Piece], rate: int, on_place: Callable[[Piece, int], None] | None = None
) -> Iterator[np.ndarray]:
    """The sound of pieces in blocks float32."""
    joiner = Joiner(rate, on_place)
    for piece in pieces:
        yield joiner.add(piece)
    yield joiner.end()
