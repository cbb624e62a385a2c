"""What a question asks for, as the caption that a picture of it would have.

caption_of("When does the dog appear?")        # "the dog"
"""

from __future__ import annotations

import re

from longtake.errors import UserError

MOST_QUESTION = 4_000  # characters
_ASKS = re.compile(
    r"^(?:please\s+)?(?:(?:can|could) you\s+)?(?:find|show|tell|give)?\s*(?:me\s+)?"
    r"(?:(?:the\s+)?(?:moments?|parts?|scenes?|shots?|minutes?|times?|points?)\s+)?"
    r"(?:(?:at|in|on) (?:what|which) (?:time|point|moment|part|scene|shot|minute)s?|when|where|in which)\s+"
    r"(?:exactly\s+)?(?:(?:does|do|did|is|are|was|were|can|has|have)\s+)?(?:one\s+see\s+|we\s+see\s+|i\s+see\s+)?",
    re.IGNORECASE,
)
_TELLS = re.compile(r"^(?:please\s+)?(?:find|show|seek|locate|search(?: for)?)\s+(?:me\s+)?(?:all\s+)?", re.IGNORECASE)
_SEES = re.compile(
    r"\s+(?:(?:first|last|finally|suddenly)\s+)?(?:appears?|appeared|shown|seen|visible|there|on ?screen|"
    r"in (?:the )?(?:picture|film|video|view|shot|scene|frame)|shows? up|comes? in(?:to view| sight)?|"
    r"comes? into (?:the )?(?:picture|view)|in sight|happens?|occurs?|takes? place)$",
    re.IGNORECASE,
)
_MARKS = re.compile(r"[?!.\s]+$")


def caption_of(question: str) -> str:
    """The caption; a text that is no question is its own. Raises UserError for one without a word, or one too long."""
    text = " ".join(question.split())
    if len(text) > MOST_QUESTION:
        raise UserError(f"a question has at most {MOST_QUESTION} characters, got {len(text)}")
    if not any(letter.isalnum() for letter in text):
        raise UserError("a question has at least one word: what is to be found?")
    found = _MARKS.sub("", text)
    found = _ASKS.sub("", found, count=1) if _ASKS.match(found) else _TELLS.sub("", found, count=1)
    shorter = _SEES.sub("", found)
    while shorter != found:
        found, shorter = shorter, _SEES.sub("", shorter)
    return found.strip() or text


def foreign_share(text: str) -> float:
    """Share of the letters that are not Latin: a tower for English cannot read them."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(ord(letter) > 0x24F for letter in letters) / max(1, len(letters))
