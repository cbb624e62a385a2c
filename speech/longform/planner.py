"""Planner: sentences into chunks, each the work of one call of a voice.

    for chunk in Planner().chunks(writer.sentences(text)): ...

A chunk is a sentence. One that is too long is cut at the punctuation inside it, at a space where there is none; one of
a word or two goes with its neighbour; the first chunk is short, so that the sound begins soon. A pause that was asked
for and a change of speaker end a chunk, so that the pause is exact for every voice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from longtake.errors import UserError
from longtake.speech.text.script import Sentence, Unit, symbols_of
from longtake.speech.text.symbols import MARKS, PAUSES

ENDS = ("word", "phrase", "sentence", "paragraph", "chapter")


@dataclass(frozen=True)
class Chunk:
    """What one call of a voice says. index: from 0; sentences: numbers (first, last) of those it holds a part of;
    end: what ends with it, of `ENDS`; pause: seconds asked for after it, None by its end; lead: the same before it;
    titles: chapters that begin in it; marks: names for the moment after it; speaker: None for the take's own."""

    index: int
    units: tuple[Unit, ...]
    sentences: tuple[int, int]
    end: str = "sentence"
    pause: float | None = None
    lead: float | None = None
    title: str | None = None
    marks: tuple[str, ...] = ()
    speaker: str | None = None

    @property
    def symbols(self) -> str:
        """Its symbols in a row."""
        return symbols_of(self.units)


@dataclass(frozen=True)
class Planner:
    """How long chunks are, in seconds. target: where a long sentence is cut; most: what none exceeds; first: of the
    first one, where punctuation allows; least: what is shorter goes with its neighbour. symbol: of one symbol."""

    target: float = 12.0
    most: float = 18.0
    first: float = 3.0
    least: float = 0.6
    symbol: float = 0.07

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.first <= self.target <= self.most or self.symbol <= 0:
            raise UserError("a planner needs 0 < least <= first <= target <= most seconds, and symbols that take time")

    def seconds(self, units: Iterable[Unit]) -> float:
        """How long units last, about."""
        total = 0.0
        for unit in units:
            sounds = sum(symbol not in MARKS for symbol in unit.phones)
            total += (sounds * self.symbol + (0.2 if unit.after else 0.0)) / unit.style.rate
        return total

    def chunks(self, sentences: Iterable[Sentence]) -> Iterator[Chunk]:
        """The chunks of sentences, in order and numbered; one sentence is looked ahead, and only behind a short one."""
        held: Chunk | None = None
        index = 0
        for number, sentence in enumerate(sentences):
            for part in self._parts(sentence, number, is_first=number == 0):
                if held is not None:
                    together = self._joined(held, part)
                    if together is not None:
                        held = together
                        continue
                    yield replace(held, index=index)
                    index += 1
                held = part
            # only a short one waits for what comes, or a long-awaited first one would come late
            if held is not None and (self.seconds(held.units) >= self.least * 2 or held.end != "sentence"):
                yield replace(held, index=index)
                index += 1
                held = None
        if held is not None:
            yield replace(held, index=index)

    def _joined(self, one: Chunk, two: Chunk) -> Chunk | None:
        """Two neighbours as one, where one of them is too short to stand alone and nothing keeps them apart."""
        if one.speaker != two.speaker or one.pause is not None or two.lead is not None or one.marks or two.title:
            return None
        if one.end in ("paragraph", "chapter"):
            return None
        lengths = self.seconds(one.units), self.seconds(two.units)
        if min(lengths) >= self.least or sum(lengths) > self.target:
            return None
        head = replace(two.units[0], glued=False)
        units = (*one.units, head, *two.units[1:])
        return replace(two, units=units, sentences=(one.sentences[0], two.sentences[1]), lead=one.lead, title=one.title)

    def _parts(self, sentence: Sentence, number: int, *, is_first: bool) -> list[Chunk]:
        stretches = _stretches(sentence.units)
        parts: list[Chunk] = []
        for at, units in enumerate(stretches):
            pieces = self._cut(units, first=is_first and at == 0)
            for place, piece in enumerate(pieces):
                last = place == len(pieces) - 1
                final = last and at == len(stretches) - 1
                if final:
                    end = sentence.end
                elif piece[-1].after or last:
                    end = "phrase"
                else:
                    end = "word"
                parts.append(
                    Chunk(
                        0,
                        (replace(piece[0], glued=False), *piece[1:]),
                        (number, number),
                        end=end,
                        pause=piece[-1].pause if last else None,
                        lead=sentence.lead if not parts else None,
                        title=sentence.title if not parts else None,
                        marks=sentence.marks if final else (),
                        speaker=piece[0].style.voice,
                    )
                )
        return parts

    def _cut(self, units: Sequence[Unit], *, first: bool) -> list[tuple[Unit, ...]]:
        """Units in stretches of bounded length."""
        rest, found = list(units), []
        if first and self.seconds(rest) > self.first:
            stop = self._last_phrase(rest, self.first)
            if stop and self.seconds(rest[:stop]) >= self.least:
                found.append(tuple(rest[:stop]))
                rest = rest[stop:]
        while self.seconds(rest) > self.most:
            stop = self._last_phrase(rest, self.target) or self._last_word(rest, self.target)
            found.append(tuple(rest[:stop]))
            rest = rest[stop:]
        if rest:
            found.append(tuple(rest))
        return found

    def _last_phrase(self, units: Sequence[Unit], limit: float) -> int:
        """How many units up to the last punctuation within the limit; 0 where there is none."""
        seconds, stop = 0.0, 0
        for at, unit in enumerate(units[:-1]):
            seconds += self.seconds([unit])
            if seconds > limit:
                break
            if unit.after and unit.after in PAUSES:
                stop = at + 1
        return stop

    def _last_word(self, units: Sequence[Unit], limit: float) -> int:
        """How many units fit in the limit, at least one, never between two that sound as one."""
        seconds, stop = 0.0, 1
        for at, unit in enumerate(units[:-1]):
            seconds += self.seconds([unit])
            if seconds > limit:
                break
            if not units[at + 1].glued:
                stop = at + 1
        return stop


def _stretches(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units up to each pause that was asked for, and of one speaker each."""
    found: list[list[Unit]] = [[]]
    for unit in units:
        last = found[-1][-1] if found[-1] else None
        if last is not None and (last.pause is not None or last.style.voice != unit.style.voice):
            found.append([])
        found[-1].append(unit)
    return [stretch for stretch in found if stretch]
