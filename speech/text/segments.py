"""Segments: stretches of a paragraph before they are tokens: words, IPA, pauses, marks, each with a style.

    for paragraph in paragraphs("Wait [pause:1s] now.\n\n[[həlˈoʊ]]"): ...

Text may come in pieces of any length; what is complete is given on at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from longtake.errors import UserError, shorten
from longtake.speech.text.normalise import ABBREVIATIONS
from longtake.speech.text.phonemes import checked

MOST_PAUSE = 60.0  # seconds of one pause
_INLINE = re.compile(r"\[\[(?P<ipa>[^\[\]]*)\]\]|\[pause:(?P<pause>[^\[\]]*)\]", re.I)
_LIST = re.compile(r"\n(?=[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t])")  # before a line that a list has
_CUT = re.compile(r"\n\s*\n|(?P<word>\w*)[.!?…][\"”')\]]*(?P<gap>\s+)(?=[\"“'(\[]?[A-Z0-9])")


@dataclass(frozen=True)
class Style:
    """How words are said. rate: 1 is as the voice speaks; pitch: semitones; voice: a speaker's name, None for the
    take's own; contour: (share of the time, semitones above the middle of what is said) of points of the pitch."""

    rate: float = 1.0
    pitch: float = 0.0
    voice: str | None = None
    contour: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Segment:
    """A stretch of a paragraph. text: to be read; ipa: what it sounds like instead; spoken: the words that it stands
    for; pause: seconds of silence here; mark: a name for this moment; ends: a sentence ends here."""

    text: str = ""
    ipa: str | None = None
    spoken: str | None = None
    pause: float | None = None
    mark: str | None = None
    ends: bool = False
    style: Style = field(default_factory=Style)


@dataclass(frozen=True)
class Paragraph:
    """Segments up to the end of a paragraph. title: of the chapter that begins with it; end: "paragraph" or, where
    more of it comes, "sentence"."""

    segments: tuple[Segment, ...]
    title: str | None = None
    end: str = "paragraph"


def pause_seconds(text: str, where: str) -> float:
    """Seconds of "1s", "250ms", "0.5". Raises UserError."""
    match = re.fullmatch(r"\s*\+?(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)?\s*", text)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else -1.0
    if not 0 <= seconds <= MOST_PAUSE:
        raise UserError(f"{where} needs a time like 1s or 250ms, {MOST_PAUSE:.0f} s at most; given {shorten(text)!r}")
    return seconds


def inline(text: str, style: Style | None = None) -> Iterator[Segment]:
    """The segments of plain text: [[IPA]], [pause:1s] and what stands between. Raises UserError."""
    style = style or Style()
    place = 0
    for match in _INLINE.finditer(text):
        yield from _lines(text[place : match.start()], style)
        place = match.end()
        if match["ipa"] is not None:
            yield Segment(match["ipa"].strip(), ipa=checked(match["ipa"], f"[[{match['ipa']}]]"), style=style)
        else:
            yield Segment(pause=pause_seconds(match["pause"], f"[pause:{match['pause']}]"), style=style)
    yield from _lines(text[place:], style)


def _lines(text: str, style: Style) -> Iterator[Segment]:
    """The text; each line of a list ends a sentence."""
    for number, part in enumerate(_LIST.split(text)):
        if number:
            yield Segment(ends=True)
        if part.strip():
            yield Segment(part, style=style)


def paragraphs(texts: str | Iterable[str]) -> Iterator[Paragraph]:
    """Paragraphs of plain text, which may come in pieces of any length: what is complete is given on at once."""
    rest = ""
    for text in [texts] if isinstance(texts, str) else texts:
        rest += text
        place = 0
        for match in _CUT.finditer(rest):
            if match.end() == len(rest):
                break  # more of the gap may come
            word = match["word"]
            if word is not None and word.isdigit() and rest[: match.start()].rstrip(" \t")[-1:] in ("", "\n"):
                continue  # the number of a list's line
            if word is not None and (word.lower() in ABBREVIATIONS or word == "No" or (len(word) == 1 and word != "I")):
                continue
            if rest[place : match.end()].strip():
                blank = "\n" in (match["gap"] or "\n\n").replace("\n", "", 1)
                yield Paragraph(tuple(inline(rest[place : match.end()])), end="paragraph" if blank else "sentence")
            place = match.end()
        rest = rest[place:]
    if rest.strip():
        yield Paragraph(tuple(inline(rest)))
