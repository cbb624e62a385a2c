"""Script: a text as it will be spoken, sentence by sentence, made while it is read.

    for sentence in Writer().sentences("Good evening. Was that a question?"):
        print(sentence.text, sentence.phones)

Text -> segments (plain words, IPA, pauses, marks, a style) -> tokens -> sentences of units with phones. Plain text may
hold `[[IPA]]` and `[pause:1s]`; text that begins with <speak> is SSML (see `ssml`). Every arrow is a generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from longtake.speech.text.normalise import LeftOut, Token, tokens
from longtake.speech.text.phonemes import Reader, pronounced, reader
from longtake.speech.text.segments import Paragraph, Segment, Style, paragraphs
from longtake.speech.text.ssml import parse

_CLOSING = ("etc.", "a.m.", "p.m.", "inc.", "ltd.", "jr.", "sr.", "co.")


@dataclass(frozen=True)
class Unit:
    """A word, or the few that a sign stands for.

    text: as written; phones: IPA, a space between words; spoken: its words, "" where it was given as IPA; after:
    punctuation; pause: seconds of silence asked for after it; marks: names for the moment before it; glued: it sounds
    as one with the unit before."""

    text: str
    phones: str
    after: str = ""
    style: Style = field(default_factory=Style)
    pause: float | None = None
    marks: tuple[str, ...] = ()
    glued: bool = False
    spoken: str = ""


@dataclass(frozen=True)
class Sentence:
    """One sentence. end: what ends with it: "sentence", "paragraph" or "chapter". lead: seconds of silence asked for
    before it. marks: names for the moment after it. title: of the chapter that begins with it."""

    units: tuple[Unit, ...]
    end: str = "sentence"
    lead: float | None = None
    marks: tuple[str, ...] = ()
    title: str | None = None

    @property
    def text(self) -> str:
        """As it was written."""
        return joined(self.units)

    @property
    def phones(self) -> str:
        """Its symbols, as `symbols_of` has them."""
        return symbols_of(self.units)


def joined(units: Iterable[Unit]) -> str:
    """The written text of units."""
    return written(unit.text for unit in units)


def written(texts: Iterable[str]) -> str:
    """Words as one text; a hyphen has no space behind it."""
    return " ".join(texts).replace("- ", "-")


def symbols_of(units: Sequence[Unit]) -> str:
    """The symbols of units in a row: a space between words, punctuation at the word before it."""
    said = ""
    for unit in units:
        said += ("" if not said or unit.glued else " ") + unit.phones + unit.after
    return said


class Writer:
    """Makes sentences with phones of text.

    read: a `Reader` or its name; lexicon: words of the user's; accent: "en-us" or "en-gb". told: what was left out,
    said once.
    """

    def __init__(
        self, read: Reader | str = "auto", lexicon: Mapping[str, str] | None = None, accent: str = "en-us"
    ) -> None:
        self._reader = read
        self.lexicon = dict(lexicon or {})
        self.accent = accent
        self.left_out = LeftOut()
        self.notes: list[str] = []

    @property
    def reader(self) -> Reader:
        """What pronounces; looked for at the first word that needs it, so that IPA needs none."""
        if isinstance(self._reader, str):
            self._reader = reader(self._reader)
            if self.accent != "en-us" and self._reader.name == "words":
                self.notes.append("this voice is British, the word list American: espeak-ng would read it as British")
        return self._reader

    @property
    def told(self) -> list[str]:
        """Lines about what was left out or not understood."""
        return [*self.notes, *self.left_out.told()]

    def sentences(self, text: str | Iterable[str] | Iterable[Paragraph]) -> Iterator[Sentence]:
        """The sentences of a text, of pieces of text or of paragraphs, in order. Raises UserError."""
        for paragraph in self._paragraphs(text):
            made = list(self._of_paragraph(paragraph))
            for number, sentence in enumerate(made):
                last = number == len(made) - 1
                yield replace(
                    sentence,
                    end=paragraph.end if last else "sentence",
                    title=paragraph.title if number == 0 else None,
                )

    def _paragraphs(self, text: str | Iterable[str] | Iterable[Paragraph]) -> Iterator[Paragraph]:
        if isinstance(text, str):
            if text.lstrip().startswith(("<speak", "<?xml")):
                found, notes = parse(text)
                self.notes += [note for note in notes if note not in self.notes]
                yield from found
                return
            yield from paragraphs(text)
            return
        iterator = iter(text)
        first = next(iterator, None)
        if isinstance(first, str):
            yield from paragraphs(chain([first], (piece for piece in iterator if isinstance(piece, str))))
        elif isinstance(first, Paragraph):
            yield first
            yield from (paragraph for paragraph in iterator if isinstance(paragraph, Paragraph))

    def _of_paragraph(self, paragraph: Paragraph) -> Iterator[Sentence]:
        """Sentences of a paragraph; a pause or a mark before the first word belongs to the sentence it leads to."""
        words: list[tuple[Token, Segment]] = []
        pauses: dict[int, float] = {}
        marks: dict[int, list[str]] = {}
        ends: set[int] = set()
        for segment in paragraph.segments:
            if segment.pause is not None:
                pauses[len(words)] = pauses.get(len(words), 0.0) + segment.pause
            if segment.mark is not None:
                marks.setdefault(len(words), []).append(segment.mark)
            if segment.ipa is not None:
                words.append((Token(segment.text, "\0"), segment))
            elif segment.spoken is not None:
                words.append((Token(segment.text, segment.spoken), segment))
            elif segment.text:
                found = tokens(segment.text, self.left_out)
                if not found and words:
                    words[-1] = (_marked(words[-1][0], segment.text), words[-1][1])
                elif found and words and (mark := _leading(segment.text)):
                    words[-1] = (_marked(words[-1][0], mark), words[-1][1])
                words += [(token, segment) for token in found]
            if segment.ends:
                ends.add(len(words))
        start = 0
        for stop in _ends(words, ends):
            units = self._units(words[start:stop], start, pauses, marks)
            if units:
                lead = pauses.get(start) if start == 0 else None
                tail = tuple(marks.get(stop, ())) if stop == len(words) else ()
                yield Sentence(tuple(units), lead=lead, marks=tail)
            start = stop

    def _units(
        self,
        words: Sequence[tuple[Token, Segment]],
        first: int,
        pauses: Mapping[int, float],
        marks: Mapping[int, Sequence[str]],
    ) -> list[Unit]:
        units: list[Unit] = []
        clause: list[int] = []

        def read() -> None:
            said = [word for at in clause for word in words[at][0].spoken.split()]
            mark = words[clause[-1]][0].after if clause else ""
            sounds = iter(pronounced(self.reader, said, mark, self.lexicon, self.accent) if said else [])
            for at in clause:
                token, segment = words[at]
                mine = [next(sounds) for _ in token.spoken.split()]
                phones = "".join(("" if not n or one.glued else " ") + one.phones for n, one in enumerate(mine)).strip()
                glued = bool(mine) and (mine[0].glued or token.joined)
                units.append(Unit(token.written, phones, token.after, segment.style, glued=glued, spoken=token.spoken))
            clause.clear()

        for at, (token, segment) in enumerate(words):
            if segment.ipa is not None:
                read()
                units.append(Unit(token.written, segment.ipa, token.after, segment.style))
            else:
                clause.append(at)
                if token.after or first + at + 1 in pauses:
                    read()
        read()
        for at, unit in enumerate(units):
            place = first + at
            if unit.after == "." and at + 1 < len(units):
                unit = replace(unit, after=",")  # dots in the middle of a sentence
            units[at] = replace(unit, pause=pauses.get(place + 1), marks=tuple(marks.get(place, ())))
        return _sounding(units)


def _sounding(units: list[Unit]) -> list[Unit]:
    """The units that have a sound; what a silent one carried goes to the one before it."""
    kept: list[Unit] = []
    for unit in units:
        if unit.phones:
            kept.append(unit)
        elif kept:
            pause = unit.pause if kept[-1].pause is None else kept[-1].pause
            kept[-1] = replace(
                kept[-1], text=f"{kept[-1].text} {unit.text}", pause=pause, after=kept[-1].after or unit.after
            )
    if kept:
        kept[0] = replace(kept[0], glued=False)
    return kept


def _leading(text: str) -> str:
    """The punctuation that a stretch of text begins with."""
    match = re.match(r"\s*([.,;:!?…]+)", text)
    return match[1] if match else ""


def _marked(token: Token, text: str) -> Token:
    """A token with the punctuation of the text behind it."""
    mark = _leading(text).replace("…", ".")
    if not mark:
        return token
    strongest = max(token.after + mark, key=",:;.!?".index)
    return replace(token, written=token.written + mark, after=strongest)


def _ends(words: Sequence[tuple[Token, Segment]], forced: set[int]) -> list[int]:
    """Where sentences end: after ".", "!" and "?" before what looks like a beginning, and where it was said."""
    stops = []
    for at, (token, _) in enumerate(words):
        following = words[at + 1][0].written if at + 1 < len(words) else ""
        begins = not following or not following[0].islower()
        ending = token.after in (".", "!", "?")
        if ending and re.fullmatch(r"[A-HJ-Z]\.", token.written):
            ending = False  # an initial
        if not token.after and token.written.lower().endswith(_CLOSING):
            ending = True
        if at + 1 in forced or at + 1 == len(words) or (ending and begins):
            stops.append(at + 1)
    return stops
