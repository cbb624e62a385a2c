"""SSML: the tags speak, p, s, break, phoneme, sub, say-as, prosody, emphasis, voice and mark of the W3C's 1.1.

    paragraphs, notes = parse('<speak>Wait <break time="500ms"/> <phoneme ph="təmˈɑːtoʊ">tomato</phoneme></speak>')

A tag or an attribute that is not known here is left out, said once, and its text is read. Text that is no XML, or a
value that a tag cannot have, is refused with its line and column. No entity but the five of XML is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from xml.parsers import expat

from longtake.errors import UserError, shorten
from longtake.speech.text.amounts import cardinal, digits, ordinal
from longtake.speech.text.normalise import tokens
from longtake.speech.text.phonemes import checked
from longtake.speech.text.segments import Paragraph, Segment, Style, inline, pause_seconds

STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.18, "medium": 0.3, "strong": 0.6, "x-strong": 1.0}  # seconds
RATES = {"x-slow": 0.6, "slow": 0.8, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.6}
PITCHES = {"x-low": -5.0, "low": -2.5, "medium": 0.0, "default": 0.0, "high": 2.5, "x-high": 5.0}  # semitones
EMPHASES = {"strong": (0.85, 2.0), "moderate": (0.92, 1.0), "none": (1.0, 0.0), "reduced": (1.1, -1.0)}  # rate, pitch
MOST_CONTOUR = 12.0  # semitones from the middle of what is said
RATE_BOUNDS, PITCH_BOUNDS = (0.25, 4.0), (-24.0, 24.0)
_KNOWN = {
    "speak": {"version", "lang", "xmlns"}, "p": set(), "s": set(), "break": {"time", "strength"},
    "phoneme": {"alphabet", "ph"}, "sub": {"alias"}, "say-as": {"interpret-as", "format"},
    "prosody": {"rate", "pitch", "contour"}, "emphasis": {"level"}, "voice": {"name"}, "mark": {"name"},
}  # fmt: skip


def parse(text: str) -> tuple[list[Paragraph], list[str]]:
    """(paragraphs, lines to tell once) of an SSML document. Raises UserError with line and column."""
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.I):
        raise UserError("SSML with a DOCTYPE or an ENTITY is not read: leave it out")
    reading = _Reading()
    try:
        reading.parser.Parse(text.strip().encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise UserError(f"the SSML is no XML: {what} at line {error.lineno}, column {error.offset + 1}") from None
    reading.end_paragraph()
    return reading.paragraphs, reading.notes


class _Reading:
    """The handlers of the parser and what they gather."""

    def __init__(self) -> None:
        self.paragraphs: list[Paragraph] = []
        self.notes: list[str] = []
        self.segments: list[Segment] = []
        self.styles = [Style()]
        self.open: list[tuple[str, Mapping[str, str]]] = []
        self.held: list[str] | None = None  # the text inside phoneme, sub and say-as
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text

    @property
    def place(self) -> str:
        return f"at line {self.parser.CurrentLineNumber}, column {self.parser.CurrentColumnNumber + 1}"

    def refuse(self, what: str) -> UserError:
        return UserError(f"SSML {self.place}: {what}")

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def end_paragraph(self) -> None:
        if self.segments:
            self.paragraphs.append(Paragraph(tuple(self.segments)))
        self.segments = []

    def add(self, segment: Segment) -> None:
        self.segments.append(segment)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition(":")[2]
        given = {name.rpartition(":")[2]: value for name, value in attributes.items()}
        self.open.append((tag, given))
        style = self.styles[-1]
        if tag not in _KNOWN:
            self.note(f"SSML: the tag <{shorten(tag)}> is not known here: left out, its text is read")
        for name in given.keys() - _KNOWN.get(tag, given.keys()):
            if not name.startswith("xmlns"):
                self.note(f"SSML: <{tag}> knows no {shorten(name)} here: left out")
        if tag == "p":
            self.end_paragraph()
        elif tag == "s":
            self.add(Segment(ends=True))
        elif tag == "break":
            self.add(Segment(pause=self.pause(given)))
        elif tag == "mark":
            self.add(Segment(mark=self.needed(tag, given, "name")))
        elif tag == "prosody":
            style = replace(style, rate=style.rate * self.rate(given), pitch=style.pitch + self.pitch(given))
            if "contour" in given:
                style = replace(style, contour=self.contour(given["contour"]))
        elif tag == "emphasis":
            rate, pitch = self.choice(EMPHASES, "emphasis level", given.get("level", "moderate"))
            style = replace(style, rate=style.rate * rate, pitch=style.pitch + pitch)
        elif tag == "voice":
            style = replace(style, voice=self.needed(tag, given, "name"))
        elif tag in ("phoneme", "sub", "say-as"):
            if self.held is not None:
                raise self.refuse(f"<{tag}> stands inside <{self.open[-2][0]}>, which holds text alone")
            self.held = []
        low, high = RATE_BOUNDS
        if not low <= style.rate <= high:
            raise self.refuse(f"a rate of {style.rate:.3g} in all: it must be {low:g} to {high:g}")
        if not PITCH_BOUNDS[0] <= style.pitch <= PITCH_BOUNDS[1]:
            raise self.refuse(f"a pitch of {style.pitch:+.3g} semitones in all: at most 24 either way")
        self.styles.append(style)

    def end(self, _: str) -> None:
        tag, given = self.open.pop()
        self.styles.pop()
        style = self.styles[-1]
        if tag == "p":
            self.end_paragraph()
        elif tag == "s":
            self.add(Segment(ends=True))
        elif tag in ("phoneme", "sub", "say-as") and self.held is not None:
            text, self.held = "".join(self.held).strip(), None
            if tag == "phoneme":
                self.phoneme(given, text, style)
            elif tag == "sub":
                alias = self.needed(tag, given, "alias")
                self.add(Segment(alias, style=style) if not text else Segment(text, spoken=_words(alias), style=style))
            else:
                self.add(Segment(text, spoken=self.said_as(given, text), style=style))

    def text(self, data: str) -> None:
        if self.held is not None:
            self.held.append(data)
        elif data.strip():
            try:
                self.segments += list(inline(data, self.styles[-1]))
            except UserError as error:
                raise self.refuse(str(error)) from None

    # --------------------------------------------------------------------------------------------------- values

    def needed(self, tag: str, given: Mapping[str, str], name: str) -> str:
        if not given.get(name, "").strip():
            raise self.refuse(f"<{tag}> needs {name}")
        return given[name].strip()

    def choice(self, table: Mapping[str, Any], what: str, value: str) -> Any:
        if value not in table:
            raise self.refuse(f"{what} is one of {', '.join(table)}; given {shorten(value)!r}")
        return table[value]

    def pause(self, given: Mapping[str, str]) -> float:
        if "time" in given:
            try:
                return pause_seconds(given["time"], "<break time>")
            except UserError as error:
                raise self.refuse(str(error)) from None
        return float(self.choice(STRENGTHS, "break strength", given.get("strength", "medium")))

    def rate(self, given: Mapping[str, str]) -> float:
        value = given.get("rate", "default").strip()
        match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)(%?)", value)
        if match is None:
            return float(self.choice(RATES, "prosody rate (or a number, or 90%)", value))
        number = float(match[1])
        if match[2]:
            return (100 + number if match[1][0] in "+-" else number) / 100
        return number

    def pitch(self, given: Mapping[str, str]) -> float:
        value = given.get("pitch", "default").strip()
        match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)(st|%)", value)
        if match is None:
            return float(self.choice(PITCHES, "prosody pitch (or +2st, or +10%)", value))
        number = float(match[1])
        if match[2] == "st":
            return number
        if number <= -100:
            raise self.refuse(f"a prosody pitch of {value} leaves nothing")
        return 12 * math.log2(1 + number / 100)

    def contour(self, value: str) -> tuple[tuple[float, float], ...]:
        """Points (share of the time, semitones) of "(0%,-2st) (100%,+6st)"."""
        found = re.findall(r"\(\s*(\d+(?:\.\d+)?)%\s*,\s*([+-]?\d+(?:\.\d+)?)st\s*\)", value)
        rest = re.sub(r"\(\s*\d+(?:\.\d+)?%\s*,\s*[+-]?\d+(?:\.\d+)?st\s*\)|\s", "", value)
        points = [(float(share) / 100, float(height)) for share, height in found]
        shares = [share for share, _ in points]
        if not points or rest or shares != sorted(set(shares)) or shares[-1] > 1:
            raise self.refuse(
                "a prosody contour is points of time and semitones, in order: (0%,-2st) (100%,+6st); given "
                + shorten(repr(value))
            )
        if max(abs(height) for _, height in points) > MOST_CONTOUR:
            raise self.refuse(f"a prosody contour goes {MOST_CONTOUR:g} semitones up or down at most")
        return tuple(points)

    def phoneme(self, given: Mapping[str, str], text: str, style: Style) -> None:
        alphabet = given.get("alphabet", "ipa")
        if alphabet != "ipa":
            raise self.refuse(f"<phoneme> knows the alphabet ipa; given {shorten(alphabet)!r}")
        try:
            phones = checked(self.needed("phoneme", given, "ph"), "<phoneme>")
        except UserError as error:
            raise self.refuse(str(error).removeprefix(f"SSML {self.place}: ")) from None
        self.add(Segment(text or phones, ipa=phones, style=style))

    def said_as(self, given: Mapping[str, str], text: str) -> str:
        kind = self.needed("say-as", given, "interpret-as")
        if kind in ("characters", "spell-out", "verbatim"):
            spelled = (digits(sign) if sign.isdigit() else sign.upper() if sign.isalpha() else "" for sign in text)
            return " ".join(filter(None, spelled))
        if kind in ("cardinal", "ordinal", "number"):
            plain = text.replace(",", "")
            if not re.fullmatch(r"-?\d{1,15}", plain):
                raise self.refuse(f"<say-as> {kind} needs a whole number of 15 digits at most; given {shorten(text)!r}")
            return ordinal(int(plain)) if kind == "ordinal" else cardinal(int(plain))
        self.note(f"SSML: say-as {shorten(kind)} is not known here: its text is read as it stands")
        return _words(text)


def _words(text: str) -> str:
    """The spoken words of a short text."""
    return " ".join(token.spoken for token in tokens(text) if token.spoken)
