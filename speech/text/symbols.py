"""The 178 symbols that Matcha-TTS and ProsodyFM read, in their order, and texts of them as ids.

    ids("wˈʌn, tˈuː?")              # [65, 156, 138, 56, ...]
    interspersed([65, 156])         # [0, 65, 0, 156, 0]

id 0 is the pad and the blank between symbols, 1 to 16 the punctuation with the space as the last, then the Latin
letters and the sounds of IPA. The order is that of the public checkpoints (the symbol list of VITS).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longtake.errors import UserError, shorten

PAD = "_"
PUNCTUATION = ';:,.!?¡¿—…"«»“” '
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# the sign for a syllabic consonant is a combining one, and the list of the public models names the apostrophe twice
IPA = (
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'\u0329'ᵻ"
)
SYMBOLS: tuple[str, ...] = (PAD, *PUNCTUATION, *LETTERS, *IPA)
ID: dict[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS)}

BLANK = 0
SPACE = ID[" "]
COMPAT_BREAK = ID["?"]  # what the public ProsodyFM takes for a break mark: its `¿` becomes `?` on the way
BREAK_MARK = "¿"  # how a break is written in a row of symbols; it has an id of its own, so questions stay questions
BREAK = ID[BREAK_MARK]

PAUSES = frozenset(";:,.!?—…" + BREAK_MARK)  # punctuation that a reader may hear as a pause
VOWELS = frozenset("aeiouyɑɐɒæɔəɘɚɛɜɝɞɨɪɯøɵœɶʉʊʌɤʏᵻ")
MARKS = frozenset("ˈˌːˑʼʴʰʱʲʷˠˤ˞\u0329")  # stress, length and the like: no sound of their own


def ids(text: Iterable[str]) -> list[int]:
    """Ids of symbols, one each. Raises UserError for one that the table does not know."""
    found = []
    for symbol in text:
        number = ID.get(symbol)
        if number is None:
            raise UserError(f"{shorten(repr(symbol))} is none of the {len(SYMBOLS)} symbols of speech: write IPA")
        found.append(number)
    return found


def symbols(numbers: Iterable[int]) -> str:
    """The text of ids. Raises UserError for a number outside 0 to 177."""
    found = []
    for number in numbers:
        if not 0 <= number < len(SYMBOLS):
            raise UserError(f"a symbol's id is 0 to {len(SYMBOLS) - 1}; given {number}")
        found.append(SYMBOLS[number])
    return "".join(found)


def interspersed(numbers: Sequence[int]) -> list[int]:
    """n ids as 2n + 1: the blank before, between and after them, real symbols at the odd places."""
    row = [BLANK] * (2 * len(numbers) + 1)
    row[1::2] = numbers
    return row


def known(text: Iterable[str]) -> str:
    """The text without what the table does not know."""
    return "".join(symbol for symbol in text if symbol in ID)
