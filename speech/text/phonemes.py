"""Words into IPA, in the notation that the corpora and the public models use: espeak-ng's American or British English.

    reader("auto").clause(["the", "apple"])            # [Sound("ðɪ"), Sound("ˈæpəl")]

Two readers. "espeak": the system's libespeak-ng through ctypes (or the one of the package espeak-english, where that is
installed; both GPL-3, both optional). "words": the lexicon of gruut-lang-en (MIT, 124,389 words in espeak-ng's
notation), the small words read by their neighbours as espeak-ng does, and `spelling` for words that are in no lexicon.
"auto" takes the first that is there. A lexicon file of the user's is asked before either.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from longtake.errors import UserError, shorten
from longtake.speech.text import spelling
from longtake.speech.text.symbols import ID, MARKS, VOWELS, known

READERS = ("auto", "espeak", "words")
ACCENTS = {"en-us": "en-us", "en-gb": "en"}  # ours -> espeak-ng's name of the voice
LETTERS = {
    "a": "ˈeɪ", "b": "bˈiː", "c": "sˈiː", "d": "dˈiː", "e": "ˈiː", "f": "ˈɛf", "g": "dʒˈiː", "h": "ˈeɪtʃ", "i": "ˈaɪ",
    "j": "dʒˈeɪ", "k": "kˈeɪ", "l": "ˈɛl", "m": "ˈɛm", "n": "ˈɛn", "o": "ˈoʊ", "p": "pˈiː", "q": "kjˈuː", "r": "ˈɑːɹ",
    "s": "ˈɛs", "t": "tˈiː", "u": "jˈuː", "v": "vˈiː", "w": "dˈʌbəljˌuː", "x": "ˈɛks", "y": "wˈaɪ", "z": "zˈiː",
}  # fmt: skip
_FLAG = re.compile(r"\([a-z-]+\)")  # espeak-ng's mark of a word in another language
_JOINED = {"in": "ɪn", "on": "ɔn", "of": "ʌv", "for": "fɚ", "with": "wɪð", "that": "ðæt", "from": "fɹʌm", "was": "wʌz"}


@dataclass(frozen=True)
class Sound:
    """The phones of one word. glued: no space stands before it, as in "of the" read as one word."""

    phones: str
    glued: bool = False


class Reader(Protocol):
    """What turns the words of a clause into sounds."""

    name: str

    def clause(self, words: Sequence[str], mark: str = "", accent: str = "en-us") -> list[Sound]:
        """One sound a word, "" for a word without any. mark: the punctuation that ends the clause."""


def plain_letters(word: str) -> str:
    """A word in the letters a to z and apostrophes: without accents."""
    bare = "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))
    bare = bare.replace("ß", "ss").replace("æ", "ae").replace("ø", "o").replace("œ", "oe").replace("ł", "l")
    return "".join(letter for letter in bare if letter.isascii() and (letter.isalpha() or letter == "'"))


def tidy(ipa: str) -> str:
    """espeak-ng's IPA as the corpora have it: no language marks, no ties, `ɐ` written `ə`, known symbols only."""
    return known(_FLAG.sub("", ipa).replace("ɐ", "ə").replace("\u0361", "").replace("\u0329", "").replace("g", "ɡ"))


# ------------------------------------------------------------------------------------------------------- espeak-ng


class Espeak:
    """libespeak-ng, called under a lock: it keeps its voice in globals."""

    name = "espeak"

    def __init__(self, library: ctypes.CDLL, data: str | None = None) -> None:
        path = None if data is None else data.encode()
        if library.espeak_Initialize(1, 0, path, 0x8000) < 0:  # no sound, and no exit() where the data is missing
            raise UserError("libespeak-ng is there and its data is not: install espeak-ng-data, or use phonemes words")
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        self._library = library
        self._lock = threading.Lock()
        self._accent = ""
        self._alone: dict[tuple[str, str], str] = {}

    def _say(self, text: str, accent: str) -> str:
        with self._lock:
            if accent != self._accent:
                if self._library.espeak_SetVoiceByName(ACCENTS.get(accent, accent).encode()) != 0:
                    raise UserError(f"espeak-ng here has no voice {accent!r}: install espeak-ng-data")
                self._accent = accent
            rest = ctypes.pointer(ctypes.c_char_p(text.encode()))
            parts = []
            while rest.contents.value:
                parts.append((self._library.espeak_TextToPhonemes(rest, 1, 2) or b"").decode(errors="ignore"))
        return tidy(" ".join(parts))

    def alone(self, word: str, accent: str) -> str:
        """One word by itself."""
        key = (word, accent)
        if key not in self._alone:
            if len(self._alone) > 100_000:
                self._alone.clear()
            self._alone[key] = self._say(word, accent).replace(" ", "")
        return self._alone[key]

    def clause(self, words: Sequence[str], mark: str = "", accent: str = "en-us") -> list[Sound]:
        groups = self._say(" ".join(words) + mark, accent).split()
        if len(groups) == len(words):
            return [Sound(group) for group in groups]
        return _shared_out(groups, [self.alone(word, accent) for word in words])


def _shared_out(groups: Sequence[str], alone: Sequence[str]) -> list[Sound]:
    """Groups of phones over the words that they hold; a group of several words is cut in proportion to what each is
    alone. Falls back to the words alone where no sharing fits."""
    n, m = len(groups), len(alone)
    best: list[dict[int, tuple[int, int]]] = [{} for _ in range(n + 1)]
    best[0][0] = (0, 0)
    for g in range(n):
        for w, (cost, _) in sorted(best[g].items()):
            for take in range(1, 5):
                if w + take > m:
                    break
                here = cost + _distance(groups[g], "".join(alone[w : w + take]))
                if w + take not in best[g + 1] or here < best[g + 1][w + take][0]:
                    best[g + 1][w + take] = (here, take)
    if m not in best[n]:
        return [Sound(phones) for phones in alone]
    cuts = []
    at = m
    for g in range(n, 0, -1):
        take = best[g][at][1]
        cuts.append((g - 1, at - take, at))
        at -= take
    sounds: list[Sound] = []
    for g, start, stop in reversed(cuts):
        sounds += _cut(groups[g], list(alone[start:stop]))
    return sounds


def _cut(group: str, parts: list[str]) -> list[Sound]:
    if len(parts) == 1:
        return [Sound(group)]
    head = len(parts[0])
    choices = range(0, len(group) + 1)
    rest = "".join(parts[1:])
    place = min(choices, key=lambda at: (_distance(group[:at], parts[0]) + _distance(group[at:], rest), abs(at - head)))
    tail = _cut(group[place:], parts[1:])
    return [Sound(group[:place]), Sound(tail[0].phones, glued=True), *tail[1:]]


def _distance(one: str, two: str) -> int:
    """Edits that make one text of another; both are short."""
    row = list(range(len(two) + 1))
    for number, symbol in enumerate(one, 1):
        previous, row[0] = row[0], number
        for place, other in enumerate(two, 1):
            previous, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, previous + (symbol != other))
    return row[-1]


@cache
def espeak() -> Espeak | None:
    """The system's libespeak-ng, else that of the package espeak-english; None where neither is installed."""
    for name in ("libespeak-ng.so.1", ctypes.util.find_library("espeak-ng")):
        try:
            if name:
                return Espeak(ctypes.CDLL(name))
        except OSError:
            continue
    spec = find_spec("espeak_english")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0])
        for path in sorted(folder.glob("*espeak-ng.*")):
            try:
                return Espeak(ctypes.CDLL(str(path)), str(folder))
            except OSError:
                continue
    return None


# ----------------------------------------------------------------------------------------------------------- words


class Words:
    """A lexicon in espeak-ng's notation: read once, about 25 MB (its file has no index to look words up by)."""

    name = "words"

    def __init__(self, path: Path) -> None:
        base = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        rows = base.execute("SELECT word, phonemes FROM word_phonemes ORDER BY pron_order DESC")
        self._lexicon = {word: phones for word, phones in rows}
        base.close()
        self._known: dict[str, str] = {}

    def alone(self, word: str) -> str:
        """One word by itself, before its neighbours are looked at."""
        key = word.lower()
        if key not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[key] = self._found(key)
        return self._known[key]

    def _entry(self, word: str) -> str | None:
        phones = self._lexicon.get(word)
        return None if phones is None else tidy(phones.replace(" ", ""))

    def _found(self, word: str) -> str:
        if len(word) == 1:
            return LETTERS.get(word, "") if word not in ("a", "i") else {"a": "ə", "i": "aɪ"}[word]
        found = self._entry(word)
        if found is not None:
            return found
        for ending in ("'s", "s", "'d", "ed", "'ll", "'ve", "'re"):
            if word.endswith(ending) and len(word) > len(ending) + 2:
                stem = self._entry(word[: -len(ending)])
                if stem is None and ending == "ed":
                    stem = self._entry(word[:-1])
                if stem is not None:
                    return stem + _ending(stem, ending)
        bare = plain_letters(word)
        if bare != word:
            return self.alone(bare)
        return known(spelling.sounds(bare)) if bare else ""

    def clause(self, words: Sequence[str], mark: str = "", accent: str = "en-us") -> list[Sound]:
        alone = [self.alone(word) for word in words]
        sounds: list[Sound] = []
        for place, word in enumerate(words):
            after = alone[place + 1] if place + 1 < len(words) else ""
            sounds.append(_in_context(word, alone[place], after, words[place - 1].lower() if place else ""))
        return sounds


def _vowel_first(phones: str) -> bool:
    bare = phones.lstrip("".join(MARKS))
    return bool(bare) and bare[0] in VOWELS


def _in_context(word: str, phones: str, after: str, before: str) -> Sound:
    """A word between its neighbours: the lexicon was written down in a sentence, and its last sound tells of it."""
    low, vowel = word.lower(), _vowel_first(after)
    if low == "the":
        return Sound("ðɪ" if vowel else "ðə", glued=before in _JOINED)
    if low == "a" and word != "A":
        return Sound("ə")
    if low == "to":
        return Sound("tʊ" if vowel else "tə") if after else Sound("tuː")
    if low in _JOINED and after.startswith("ð") and after in ("ðə", "ðɪ"):
        return Sound(_JOINED[low])
    if phones.endswith("ŋ") and low.endswith(("n", "ne")):
        phones = phones[:-1] + "n"
    if phones.endswith("ɾ") and not vowel:
        phones = phones[:-1] + "t"
    if phones.endswith("ɚɹ") and not vowel:
        phones = phones[:-1]
    elif phones.endswith("ɚ") and vowel:
        phones += "ɹ"
    if not after and not any(mark in phones for mark in "ˈ") and before:
        phones = phones.replace("ˌ", "ˈ", 1)
    return Sound(phones)


def _ending(stem: str, ending: str) -> str:
    last = stem.rstrip("ː")[-1:]
    if ending in ("s", "'s"):
        return "ᵻz" if last in "szʃʒ" else "s" if last in "ptkfθ" else "z"
    if ending in ("ed", "'d"):
        return "ᵻd" if last in "td" else "t" if last in "pksfθʃ" else "d"
    return {"'ll": "əl", "'ve": "əv", "'re": "ɚ"}[ending]


@cache
def words() -> Words | None:
    """The lexicon of gruut-lang-en; None where the package is not installed."""
    spec = find_spec("gruut_lang_en")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "espeak" / "lexicon.db"
    return Words(path) if path.is_file() else None


def reader(name: str = "auto") -> Reader:
    """The reader of that name. Raises UserError for a name that there is not, or what it needs is missing."""
    if name not in READERS:
        raise UserError(f"phonemes is one of {', '.join(READERS)}; given {name!r}")
    found: Reader | None = espeak() if name in ("auto", "espeak") else None
    if found is None and name in ("auto", "words"):
        found = words()
    if found is None:
        raise UserError(
            {
                "espeak": "phonemes espeak needs libespeak-ng: apt install espeak-ng, or pip install espeak-english",
                "words": "phonemes words needs the lexicon: pip install gruut-lang-en",
                "auto": "plain text needs a pronunciation: pip install gruut-lang-en, or apt install espeak-ng; text "
                "in [[IPA]] needs neither",
            }[name]
        )
    return found


# --------------------------------------------------------------------------------------------------------- lexicon


def read_lexicon(path: Path) -> dict[str, str]:
    """Word -> phones of a user's file: a line "word IPA", blanks or a tab between, "#" begins a remark. Raises
    UserError with the line's number."""
    from longtake.reading import read_text

    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        word, _, ipa = line.partition("\t") if "\t" in line else line.partition(" ")
        phones = checked(ipa.strip().strip("/[]"), f"line {number} of {path}")
        found[word.strip().lower()] = phones
    return found


def checked(ipa: str, where: str) -> str:
    """IPA as given, its length and stress marks in the table's signs. Raises UserError for an unknown symbol."""
    phones = ipa.replace("'", "ˈ").replace(":", "ː").replace("g", "ɡ").replace("\u0361", "").replace("ɐ", "ə").strip()
    strange = [symbol for symbol in phones if symbol not in ID]
    if not phones or strange:
        what = f"the symbol {shorten(repr(strange[0]))}" if strange else "no sound"
        raise UserError(f"{where} holds {what}: IPA of the {len(ID)} symbols of speech is needed")
    return phones


def pronounced(
    found: Reader, words: Sequence[str], mark: str, lexicon: Mapping[str, str], accent: str = "en-us"
) -> list[Sound]:
    """The sounds of a clause, with the words of a lexicon as it says them."""
    if not words:
        return []
    sounds = found.clause(words, mark, accent)
    letter = [len(word) == 1 and word.isascii() and word.isupper() for word in words]
    for at, word in enumerate(words):  # spelled out: "U S A" ends in the letter, not in the article
        if letter[at] and (letter[at - 1 : at] == [True] or letter[at + 1 : at + 2] == [True]):
            sounds[at] = Sound(LETTERS[word.lower()])
    if lexicon:
        sounds = [
            Sound(lexicon[word.lower()]) if word.lower() in lexicon else sound
            for word, sound in zip(words, sounds, strict=True)
        ]
    return sounds
