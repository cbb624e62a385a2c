"""Words that stand in no lexicon: their sounds from their letters.

    sounds("longtake")                  # "lˈɔŋteɪk"
    table = learned(alignments)         # how spelling.json was made

A tree of decisions a letter: what the letter is, then its neighbours in the order of `PLACES`, as far as they change
the answer (IGTree: Daelemans, van den Bosch and Weijters 1997). The table that ships was learned from the 124,356
aligned words of the package gruut-lang-en (MIT), which are espeak-ng's notation of American English.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from longtake.speech.text.symbols import MARKS, VOWELS

PLACES = (1, -1, 2, -2, 3, -3, 4)  # neighbours of a letter, the ones that tell most first
EDGE = "#"
TABLE = Path(__file__).with_name("spelling.json")
LEAST = 2  # words that a rule of the table rests on


def letters_of(alignment: str) -> tuple[str, list[str]]:
    """(word, sounds of each letter) of "a}ˈɑː c}t|ʃ h}_ e|r}ɚ"; of letters that sound together the first has all."""
    word, said = "", []
    for pair in alignment.split(" "):
        letters, _, sound = pair.partition("}")
        letters = letters.replace("|", "")
        word += letters
        said += ["" if sound == "_" else sound.replace("|", ""), *[""] * (len(letters) - 1)]
    return word, said


def _views(word: str) -> list[str]:
    edged = EDGE * 4 + word + EDGE * 4
    return [edged[at] + "".join(edged[at + place] for place in PLACES) for at in range(4, 4 + len(word))]


def learned(alignments: Iterable[str], least: int = LEAST) -> dict[str, str]:
    """Context -> sounds, only where they differ from those of the next shorter context."""
    counts: list[dict[str, Counter[str]]] = [{} for _ in range(len(PLACES) + 1)]
    for alignment in alignments:
        word, said = letters_of(alignment)
        for view, sound in zip(_views(word), said, strict=True):
            for depth in range(len(PLACES) + 1):
                counts[depth].setdefault(view[: depth + 1], Counter())[sound] += 1
    table: dict[str, str] = {}
    for depth, level in enumerate(counts):
        for view, seen in sorted(level.items()):
            best, often = min(seen.items(), key=lambda item: (-item[1], item[0]))
            if depth == 0 or (often >= least and best != _look(table, view)):
                table[view] = best
    return table


def _look(table: dict[str, str], view: str) -> str:
    for length in range(len(view), 0, -1):
        found = table.get(view[:length])
        if found is not None:
            return found
    return ""


@cache
def _shipped() -> dict[str, str]:
    table: Any = json.loads(TABLE.read_text(encoding="utf-8"))
    return {context: sound for sound, contexts in table.items() for context in contexts.split(" ")}


def write(table: dict[str, str], path: Path = TABLE) -> None:
    """Write a table: sounds -> the contexts that they are read in."""
    by_sound: dict[str, list[str]] = {}
    for context, sound in table.items():
        by_sound.setdefault(sound, []).append(context)
    rows = {sound: " ".join(sorted(contexts)) for sound, contexts in sorted(by_sound.items())}
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def sounds(word: str, table: dict[str, str] | None = None) -> str:
    """The sounds of a word of letters a to z and apostrophes, with one main stress."""
    known = _shipped() if table is None else table
    lowered = word.lower()
    said = "".join(_look(known, view) for view in _views(lowered))
    first = said.find("ˈ")
    if first >= 0:
        return said[: first + 1] + said[first + 1 :].replace("ˈ", "ˌ")
    if "ˌ" in said:
        return said.replace("ˌ", "ˈ", 1)
    place = next((at for at, sound in enumerate(said) if sound in VOWELS and sound not in MARKS), None)
    return said if place is None else f"{said[:place]}ˈ{said[place:]}"
