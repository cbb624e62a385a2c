"""Voice: what the long-form engine drives. Units of one chunk in, samples and the time of each unit out.

    said = voice.say(Utterance(units, seed=7))
    said.samples, said.words[0]

Ours and the stock classes of transformers stand behind it alike. A voice says what it can (`Abilities`); what it cannot
is refused by name before anything is made, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from longtake.errors import UserError, shorten
from longtake.speech.text.script import Unit
from longtake.speech.text.segments import Style

State = Mapping[str, np.ndarray]  # what a voice hands from one chunk to the next


@dataclass(frozen=True)
class Abilities:
    """What a voice can do. speakers: names, none for a voice of one; rate, pitch: whether the pace and the pitch can
    be set, for each word where within is True; times: whether it knows when each word is said, else the time is shared
    out; carries: whether it goes on from the chunk before; clones: whether it speaks as a recording does; phones:
    whether it speaks phones, else it reads words. contour: whether a contour of pitch can be drawn. accents:
    speaker -> "en-us" or "en-gb"."""

    speakers: tuple[str, ...] = ()
    rate: bool = False
    pitch: bool = False
    within: bool = False
    times: bool = False
    carries: bool = False
    clones: bool = False
    phones: bool = True
    contour: bool = False
    accents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Utterance:
    """What a voice is to say: units of one chunk. seed: names all its noise; ends: whether the sentence ends with it;
    speaker: one of the voice's, None for its first; rate, pitch (semitones): beside each unit's own style; steps: of
    sampling, None as the voice has it; temperature: of the noise, None as the voice has it."""

    units: tuple[Unit, ...]
    seed: int = 0
    ends: bool = True
    speaker: str | None = None
    rate: float = 1.0
    pitch: float = 0.0
    steps: int | None = None
    temperature: float | None = None

    @property
    def text(self) -> str:
        """The words as they were written."""
        return " ".join(unit.text for unit in self.units)

    def rates(self) -> list[float]:
        """The pace of each unit."""
        return [self.rate * unit.style.rate for unit in self.units]

    def pitches(self) -> list[float]:
        """Semitones of each unit."""
        return [self.pitch + unit.style.pitch for unit in self.units]


@dataclass
class Said:
    """samples: (N,) float32, about -1 to 1; words: (start, end) of each unit in samples; state: for the next chunk;
    exact: whether the times were made by the voice, not shared out."""

    samples: np.ndarray
    words: list[tuple[int, int]]
    state: State | None = None
    exact: bool = True


class Voice(Protocol):
    """A synthesiser. rate: samples a second; symbol_seconds: how long one of its symbols lasts, about; mark: what its
    weights and settings are, in a few characters, for the record of a run."""

    rate: int
    symbol_seconds: float
    abilities: Abilities

    @property
    def mark(self) -> str: ...

    def say(self, asked: Utterance, state: State | None = None) -> Said:
        """Say it. state: what the chunk before handed on, None at the start. Raises UserError."""


def check(voice: Voice, styles: Iterable[Style], asked: Utterance, *, carry: bool = False, name: str = "") -> None:
    """Raise UserError for what a voice cannot do. styles: every style that the text has; asked: the take's own."""
    name, can = name or type(voice).__name__, voice.abilities
    if carry and not can.carries:
        raise UserError(f"the voice {name} does not go on from the sentence before: carry must be none")
    if asked.rate != 1 and not can.rate:
        raise UserError(f"the voice {name} knows no rate: leave it at 1")
    if asked.pitch and not can.pitch:
        raise UserError(f"the voice {name} knows no pitch: leave it at 0")
    for style in styles:
        if style.rate != 1 and not (can.rate and can.within):
            raise UserError(f"the voice {name} knows no rate of single words: leave out <prosody rate> and <emphasis>")
        if style.pitch and not (can.pitch and can.within):
            raise UserError(
                f"the voice {name} knows no pitch of single words: leave out <prosody pitch> and <emphasis>"
            )
        if style.contour and not can.contour:
            raise UserError(f"the voice {name} knows no contours of pitch: leave out <prosody contour>")
    for speaker in {asked.speaker, *(style.voice for style in styles)} - {None}:
        if speaker not in can.speakers:
            known = ", ".join(can.speakers) or "no names: it has one voice"
            raise UserError(f"the voice {name} has no speaker {shorten(repr(speaker))}; it has {known}")


def shared_times(samples: np.ndarray, rate: int, units: Sequence[Unit]) -> list[tuple[int, int]]:
    """Times of units where a voice tells none: the speech found by its level, shared out by the symbols of each."""
    start, end = sounding(samples, rate)
    weights = np.array([max(1, len(unit.phones)) + 2 * bool(unit.after) for unit in units], dtype=np.float64)
    ends = start + np.round(np.cumsum(weights) / weights.sum() * (end - start)).astype(int)
    return [(int(a), int(b)) for a, b in zip([start, *ends[:-1]], ends, strict=True)]


def sounding(samples: np.ndarray, rate: int, under_db: float = 40.0) -> tuple[int, int]:
    """First and last sample (exclusive) that is louder than the peak less so many dB, in blocks of 10 ms."""
    block = max(1, rate // 100)
    count = len(samples) // block
    if count == 0:
        return 0, len(samples)
    level = np.square(samples[: count * block].reshape(count, block), dtype=np.float64).mean(1)
    loud = np.flatnonzero(level > level.max() * 10 ** (-under_db / 10)) if level.max() > 0 else np.arange(0)
    if not len(loud):
        return 0, len(samples)
    return int(loud[0]) * block, min(len(samples), (int(loud[-1]) + 1) * block)
