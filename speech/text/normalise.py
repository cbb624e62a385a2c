"""Text as it is written into words as they are spoken, each with what it stood for.

    [token.spoken for token in tokens("Dr. Lee paid $3.50 on 27 Nov.")]
    # ["doctor", "Lee", "paid", "three dollars and fifty cents", "on", "November twenty seventh"]

A token keeps the text that it was made of, so that subtitles show "$3.50". Quotation marks fall away, brackets and
dashes become pauses, emoji and letters of scripts without a reading are left out and counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace

from longtake.speech.text import amounts

ABBREVIATIONS = {
    "mr": "mister", "mrs": "missis", "ms": "miz", "dr": "doctor", "prof": "professor", "st": "saint", "jr": "junior",
    "sr": "senior", "vs": "versus", "etc": "et cetera", "approx": "approximately", "dept": "department",
    "gen": "general", "col": "colonel", "capt": "captain", "lt": "lieutenant", "sgt": "sergeant", "rev": "reverend",
    "hon": "honourable", "gov": "governor", "pres": "president", "sen": "senator", "rep": "representative",
    "ave": "avenue", "blvd": "boulevard", "rd": "road", "mt": "mount", "ft": "fort", "inc": "incorporated",
    "ltd": "limited", "corp": "corporation", "co": "company", "vol": "volume", "fig": "figure", "pp": "pages",
    "jan": "January", "feb": "February", "mar": "March", "apr": "April", "jun": "June", "jul": "July",
    "aug": "August", "sep": "September", "sept": "September", "oct": "October", "nov": "November", "dec": "December",
}  # fmt: skip
_LATIN = {"e.g": "for example", "i.e": "that is", "a.m": "A M", "p.m": "P M", "cf": "compare", "et al": "and others"}
_SIGNS = {"&": "and", "@": "at", "+": "plus", "=": "equals", "#": "number", "*": "", "~": "about", "§": "section",
          "©": "copyright", "®": "", "™": "", "°": "degrees", "%": "percent", "/": "", "\\": "backslash",
          "<": "less than", ">": "greater than", "|": "", "^": "", "_": "", "`": "", "•": "", "×": "times",
          "÷": "divided by", "±": "plus or minus", "→": "to", "½": "one half", "¼": "one quarter",
          "¾": "three quarters", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}  # fmt: skip
_PAUSE = {"—": ",", "–": ",", "(": ",", ")": ",", "[": ",", "]": ",", "{": ",", "}": ",", "…": ".", "‽": "?",
          "،": ",", "؛": ";", "؟": "?", "。": ".", "、": ",", "！": "!", "？": "?"}  # fmt: skip
_QUOTES = '"“”„«»‹›'
_NUM = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_UNITS = "|".join(sorted((re.escape(unit) for unit in amounts.UNITS), key=len, reverse=True))
_MON = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_MONTH = rf"(?:{_MON})[a-z]*"
_ABBR = "|".join(sorted(ABBREVIATIONS, key=len, reverse=True))


@dataclass(frozen=True)
class Token:
    """A stretch of text. written: as it stands; spoken: its words, "" for none; after: punctuation that follows;
    joined: a hyphen stands before it."""

    written: str
    spoken: str
    after: str = ""
    joined: bool = False


@dataclass
class LeftOut:
    """What could not be read. emoji: signs; letters: words of scripts that have no reading here."""

    emoji: int = 0
    letters: int = 0

    def told(self) -> list[str]:
        """A line for each kind."""
        lines = []
        if self.emoji:
            lines.append(f"left out {self.emoji} signs that have no reading (emoji and the like)")
        if self.letters:
            lines.append(f"left out {self.letters} words in letters that this voice does not read")
        return lines


def _url(match: re.Match[str]) -> str:
    text = re.sub(r"^https?://", "", match[0]).rstrip("/")
    for sign, word in ((".", " dot "), ("/", " slash "), ("@", " at "), ("-", " dash "), ("_", " underscore ")):
        text = text.replace(sign, word)
    return re.sub(r"\d+", lambda found: f" {amounts.digits(found[0])} ", re.sub(r"[^\w\s]", " ", text))


def _iso(match: re.Match[str]) -> str | None:
    when, month, day = int(match[1]), int(match[2]), int(match[3])
    return amounts.date(day, month, when) if 1 <= month <= 12 and 1 <= day <= 31 and 1000 <= when <= 2999 else None


def _named_date(match: re.Match[str]) -> str | None:
    found = match.groupdict()
    day = int(found.get("day") or found.get("day2") or 0)
    name = found.get("mon") or found.get("mon2") or ""
    month = [*amounts.MONTH].index(name[:3].lower()) + 1
    if not 1 <= day <= 31 or not amounts.MONTHS[month - 1].lower().startswith(name.lower().rstrip(".")[:9]):
        return None
    when = found.get("year") or found.get("year2")
    return amounts.date(day, month, int(when) if when else None)


def _time(match: re.Match[str]) -> str | None:
    hour, minute = int(match[1]), int(match[2])
    return amounts.clock(hour, minute, match[3] or "") if hour <= 24 and minute < 60 else None


def _four(match: re.Match[str]) -> str:
    return amounts.year(int(match[0])) if 1100 <= int(match[0]) <= 2099 else amounts.number(match[0])


def _initials(match: re.Match[str]) -> str:
    return " ".join(match[0].replace(".", ""))


# in order: the first that fits at a place is taken; None of a reading passes it on
_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]], ...] = (
    (re.compile(r"https?://[^\s<>\"]*[\w/]|www\.[^\s<>\"]*[\w/]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), _url),
    (re.compile(rf"([$€£¥₹])\s?({_NUM})\s?[-–]\s?[$€£¥₹]?({_NUM})"
                r"(?:\s?(k|bn|tn|[mb]|thousand|million|billion)\b)?", re.I),
     lambda m: amounts.money_range(m[1], m[2], m[3], m[4] or "")),
    (re.compile(rf"([$€£¥₹])\s?({_NUM})(?:\s?(k|bn|tn|[mb]|hundred|thousand|million|billion|trillion)\b)?", re.I),
     lambda m: amounts.money(m[1], m[2], m[3] or "")),
    (re.compile(r"(\d{4})-(\d{2})-(\d{2})(?!\d)"), _iso),
    (re.compile(rf"(?:(?P<mon>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<year>[12]\d{{3}}))?"
                rf"|(?P<day2>\d{{1,2}})(?:st|nd|rd|th)? (?P<mon2>{_MONTH})\b\.?(?:,? (?P<year2>[12]\d{{3}}))?)"
                r"(?![\d:])"),
     _named_date),
    (re.compile(r"([01]?\d|2[0-4]):([0-5]\d)(?!\d)(?::[0-5]\d)?(?:\s?([ap]\.?m\b\.?))?", re.I), _time),
    (re.compile(r"(1[0-2]|[1-9])\s?([ap])\.?m\b\.?", re.I), lambda m: amounts.clock(int(m[1]), 0, m[2] + "m")),
    (re.compile(r"(\d[\d,]*)(?:st|nd|rd|th)\b"), lambda m: amounts.ordinal(int(m[1].replace(",", "")[:15]))),
    (re.compile(r"([12]\d\d0)s\b"), lambda m: amounts.decade(int(m[1]))),
    (re.compile(r"'([2-9]0)s\b"), lambda m: amounts.decade(int(m[1]))),
    (re.compile(r"C#"), lambda m: "C sharp"),
    (re.compile(r"Ph\.? ?D\b\.?"), lambda m: "P H D"),
    (re.compile(r"St\.(?!\s+[A-Z])"), lambda m: "street"),
    (re.compile(rf"([-−+]?(?:{_NUM}))\s?({_UNITS})(?![\w°])"), lambda m: amounts.measure(m[1], m[2])),
    (re.compile(r"([1-9]\d?)/([1-9]\d?)(?![\d/])"), lambda m: amounts.fraction(m[1], m[2])),
    (re.compile(r"\b(\d{3})-(\d{4})\b"), lambda m: f"{amounts.digits(m[1])} {amounts.digits(m[2])}"),
    (re.compile(rf"({_NUM})\s?[–-]\s?({_NUM})(?![\d-])"),
     lambda m: f"{amounts.number(m[1])} to {amounts.number(m[2])}"),
    (re.compile(r"(?<![\d.,])\d{4}(?!\d|[.,]\d)"), _four),
    (re.compile(r"\b(e\.g|i\.e|a\.m|p\.m|et al)\b\.?", re.I), lambda m: _LATIN[m[1].lower()]),
    (re.compile(r"No\. (?=\d)"), lambda m: "number"),
    (re.compile(rf"({_ABBR})\.(?=\s|$|,)", re.I), lambda m: ABBREVIATIONS[m[1].lower()]),
    (re.compile(r"(Mr|Mrs|Ms|Dr)\b(?=\s[A-Z])"), lambda m: ABBREVIATIONS[m[1].lower()]),
    (re.compile(r"(?:[A-Za-z]\.){2,}"), _initials),
    (re.compile(r"((?i:chapter|part|volume|book|act|scene|war)) ([IVXLC]+)\b"),
     lambda m: f"{m[1]} {amounts.cardinal(value)}" if (value := amounts.roman(m[2])) else None),
    (re.compile(r"\b([A-Z][a-z]+) ([IVX]{2,})\b(?!\.\w)"),
     lambda m: f"{m[1]} the {amounts.ordinal(value)}" if (value := amounts.roman(m[2])) else None),
    (re.compile(rf"(?<!\w)[-−+]?(?:{_NUM})"), lambda m: amounts.number(m[0])),
    (re.compile(_NUM), lambda m: amounts.number(m[0])),
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*['’]?")
_ABOUT = re.compile(r"[0-9$€£¥₹]|[A-Za-z]")


def clean(text: str) -> str:
    """The text with one form of each sign: NFKC, plain apostrophes, no control characters and soft hyphens."""
    text = text.replace("…", "\uf8ff").replace("½", " 1/2").replace("¼", " 1/4").replace("¾", " 3/4")
    text = unicodedata.normalize("NFKC", text).replace("\uf8ff", "…")
    text = text.replace("’", "'").replace("‘", "'").replace("`", "'").replace("\u00ad", "").replace("...", "…")
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Zs") else letter for letter in text)


def _latin(word: str) -> bool:
    """Whether a word is in Latin letters, accents allowed."""
    return all(letter in "'’" or "LATIN" in unicodedata.name(letter, "") for letter in word)


def _plain(word: str) -> str:
    """The word, spelled out when it is a row of capitals that nobody reads as a word."""
    bare = word
    if bare.isupper() and 1 < len(bare) <= 5 and (len(bare) <= 3 or not set(bare) & set("AEIOUY")):
        return bare if bare in _SHOUTED else " ".join(bare)
    return bare


_SHOUTED = frozenset(
    "A I AM AN AND ARE AS AT BE BUT BY CAN DID DO FOR GET GO GOT HAD HAS HE HER HIM HIS HOW IF IN IS IT ITS LET ME MY "
    "NEW NO NOT NOW OF OFF OH OK ON ONE OR OUR OUT RUN SAY SHE SO STOP THE TO TOO TRY TWO UP US WAS WE WHO WHY YES YET "
    "YOU ALL ANY BIG BAD DAY END FIX OLD MAN MEN SEE SAW SIT SIX TEN TOP WAR WAY AGO AIR ACT ADD AGE ART ASK".split()
)


def tokens(text: str, left_out: LeftOut | None = None) -> list[Token]:
    """The tokens of a text in order. left_out: counts what has no reading."""
    lost = LeftOut() if left_out is None else left_out
    text = clean(text)
    found: list[Token] = []
    place = hyphen = 0

    def add(written: str, spoken: str) -> None:
        found.append(Token(written, " ".join(spoken.split()), joined=bool(found) and hyphen == place > 0))

    while place < len(text):
        sign = text[place]
        if sign == " ":
            place += 1
            continue
        if _ABOUT.match(sign) or (sign in "-−+'" and place + 1 < len(text) and text[place + 1].isdigit()):
            taken = _read(text, place)
            if taken is not None:
                stop, spoken = taken
                add(text[place:stop].strip(), spoken)
                place = stop
                continue
        word = _WORD.match(text, place)
        if word:
            if _latin(word[0]):
                add(word[0], _plain(word[0].rstrip("'")))
            else:
                lost.letters += 1
            place = word.end()
            continue
        place += 1
        mark = _PAUSE.get(sign, sign)
        if mark in ".,;:!?":
            found = _punctuated(found, mark, sign)
        elif sign == "-":
            hyphen = place
            if found and text[place - 2 : place - 1].strip() and text[place : place + 1].isalnum():
                found[-1] = replace(found[-1], written=found[-1].written + sign)
        elif sign in _QUOTES or sign == "'":
            continue
        elif sign in _SIGNS:
            if _SIGNS[sign]:
                add(sign, _SIGNS[sign])
        elif not unicodedata.combining(sign) and unicodedata.category(sign) not in ("Mn", "Cf", "Co"):
            lost.emoji += 1
    return found


def _read(text: str, place: int) -> tuple[int, str] | None:
    """(end, words) of the first rule that fits here."""
    if place and text[place].isalpha() and text[place - 1].isalpha():
        return None
    for pattern, reading in _RULES:
        match = pattern.match(text, place)
        if match and match.end() > place:
            spoken = reading(match)
            if spoken is not None:
                return match.end(), spoken
    return None


_WEIGHT = ",:;.!?"


def _punctuated(found: list[Token], mark: str, sign: str) -> list[Token]:
    """The tokens with a punctuation mark after the last; of several, the strongest stays, and "?" wins over "!"."""
    if not found:
        return found
    last = found[-1]
    strongest = max(last.after + mark, key=_WEIGHT.index)
    shown = "" if sign in "()[]{}" else sign
    return [*found[:-1], replace(last, written=last.written + shown, after=strongest)]
