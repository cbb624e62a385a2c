"""Phrase breaks: marks in a row of symbols, the words before them, and where speech pauses.

A break is written `¿` between two spaces, or after the last space: "mˈoʊmənt, ¿ plˈiːz. ¿". It stands for the pause;
the word before it is the last of its phrase, whose pitch the intonation bank reads. The shipped models, ProsodyFM and
VALL-E R alike, hear pauses there and nowhere else, and want one at the end of a text: ``marked`` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from longtake.errors import UserError
from longtake.speech.text.symbols import BREAK, BREAK_MARK, PAUSES, SPACE

RULED = frozenset(",.;:!?—…")  # punctuation that ends a phrase


def last_words(
    ids: Sequence[int], mark: int = BREAK, *, blanks: bool = False, space: int = SPACE
) -> list[tuple[int, int]]:
    """The words before the breaks, as half-open ranges (start, end) of places in a row of ids, in order.

    The word of the break at place k lies between the last space before k and the space before that one, or the row's
    start. blanks: whether every second id is a blank (public models); the ranges then begin and end at symbols.
    Raises UserError for a break with no word and no space before it.
    """
    found = []
    for k, number in enumerate(ids):
        if number != mark:
            continue
        spaces = [place for place in range(k) if ids[place] == space]
        if not spaces:
            raise UserError(f"the break at symbol {k} has no space before it: write a word, a space, and the break")
        end = spaces[-1]
        gap = 2 if blanks else 1
        start = spaces[-2] + gap if len(spaces) > 1 else (1 if blanks else 0)
        stop = end - 1 if blanks else end
        if stop <= start:
            raise UserError(f"the break at symbol {k} has no word before it: two spaces or breaks stand together")
        found.append((start, stop))
    return found


def phone_places(span: tuple[int, int], *, blanks: bool = False) -> list[int]:
    """The places of the symbols of a word, without the blanks between them."""
    return list(range(span[0], span[1], 2 if blanks else 1))


def words_of(phones: str) -> list[str]:
    """The words of a row of symbols, their punctuation with them; breaks are left out."""
    return [word for word in phones.replace(BREAK_MARK, " ").split(" ") if word]


def marked(phones: str, breaks: set[int] | None = None) -> str:
    """A row of symbols as the shipped models were trained: a space at the start, breaks, a break at the end.

    phones: words in IPA with their punctuation, single spaces between. breaks: after which words (0 is the first) the
    voice pauses; None: where the row has marks of its own, else after words that end in , . ; : ! ? — or ….
    Raises UserError for a text without words and for a break that is no word's.
    """
    parts = [part for part in phones.replace(BREAK_MARK, f" {BREAK_MARK} ").split(" ") if part]
    words: list[str] = []
    own: set[int] = set()
    for part in parts:
        if part != BREAK_MARK:
            words.append(part)
        elif words:
            own.add(len(words) - 1)
    if not words:
        raise UserError("there is nothing to say: the text has no words")
    if breaks is None:
        breaks = own or {place for place, word in enumerate(words) if word[-1] in RULED}
    wrong = sorted(place for place in breaks if not 0 <= place < len(words))
    if wrong:
        raise UserError(f"a break stands after word 0 to {len(words) - 1}; given {wrong[0]}")
    row = " "
    for place, word in enumerate(words):
        row += word + " " + (f"{BREAK_MARK} " if place in breaks and place < len(words) - 1 else "")
    return row + BREAK_MARK


def pauses(phones: Sequence[str], seconds: Sequence[float], at_least: float = 0.12) -> set[int]:
    """After which words a recording pauses: breaks told by sound, from phones and how long each lasts, in seconds.

    The time of the punctuation and spaces between two words is their pause. The last word is never in the set.
    """
    found, word, silent, inside = set[int](), -1, 0.0, False
    for phone, length in zip(phones, seconds, strict=True):
        if phone == " " or phone in PAUSES:
            silent += length
            inside = False
            continue
        if not inside:
            if word >= 0 and silent >= at_least:
                found.add(word)
            word, silent, inside = word + 1, 0.0, True
    return found
