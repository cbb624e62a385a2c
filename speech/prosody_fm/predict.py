"""Where a reader would pause: phrase breaks of a text, by rules, by a tagger, or by a model of the user's.

A predictor has ``predict(words) -> set of words after which the voice pauses``; the last word is never among them.
Rules need nothing and are the default. The paper's own way is a T5 that writes the text again with marks (trained on
what PSST heard): ``WrittenBreaks`` reads any model of that kind.

    RuleBreaks().predict("when it rains, the old road by the river is closed".split())       # {2}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from longtake.errors import UserError, one_line

PAUSING = (",", ";", ":", ".", "!", "?", "—", "…", " -", ")")
BEFORE = frozenset(
    "and but or nor so because although though while when where which who whose that if unless until since after "
    "before as than with without from into through between for".split()
)
LONG = 20  # words without punctuation that get a break of their own
SHORTEST = 4  # words on either side of such a break
PHRASE = 3  # words since the last break that a comma needs to be one


class BreakPredictor(Protocol):
    """Whatever tells breaks."""

    def predict(self, words: Sequence[str]) -> set[int]:
        """After which words (0 is the first) the voice pauses."""


class PunctuationBreaks:
    """A break after each word that ends in punctuation: what every other predictor must beat."""

    def predict(self, words: Sequence[str]) -> set[int]:
        return {place for place, word in enumerate(words[:-1]) if word.rstrip("\"'”’").endswith(PAUSING)}


class RuleBreaks:
    """Punctuation, commas after three words or more since the last break only; and in a run of more than ``long`` words
    without any, the joint nearest to its middle: before a conjunction, a relative pronoun or a preposition, four words
    or more from both ends. On the 1,222 teacher sentences whose written words are those spoken, F1 is 0.62 for the
    pauses of 125 ms and more, where punctuation alone has 0.59."""

    def __init__(self, long: int = LONG) -> None:
        if long < 2 * SHORTEST:
            raise UserError(f"long must be {2 * SHORTEST} words or more; given {long}")
        self.long = long

    def predict(self, words: Sequence[str]) -> set[int]:
        found: set[int] = set()
        last = -1
        for place in sorted(PunctuationBreaks().predict(words)):
            if place - last >= PHRASE or not words[place].rstrip("\"'”’").endswith(","):
                found.add(place)
                last = place
        ends = [-1, *sorted(found), len(words) - 1]
        for before, end in zip(ends, ends[1:], strict=False):
            found |= self._inside(words, before + 1, end + 1)
        return found

    def _inside(self, words: Sequence[str], start: int, stop: int) -> set[int]:
        """Breaks inside the words start..stop-1, a run without punctuation."""
        if stop - start <= self.long:
            return set()
        middle = (start + stop) / 2
        joints = [
            place
            for place in range(start + SHORTEST - 1, stop - SHORTEST)
            if words[place + 1].lower().strip("\"'“‘(") in BEFORE
        ]
        if not joints:
            return set()
        best = min(joints, key=lambda place: abs(place + 1 - middle))
        return {best} | self._inside(words, start, best + 1) | self._inside(words, best + 1, stop)


class WrittenBreaks:
    """A seq2seq model of transformers that writes a text again with a mark where it pauses, as the paper's T5 does.

    mark: what it writes. The words must come back the same, marks apart; where they do not, rules are asked.
    """

    def __init__(self, model: Any, tokenizer: Any, mark: str = "@") -> None:
        if not mark.strip():
            raise UserError("the mark of a break must be seen: give a character other than a space")
        self.model, self.tokenizer, self.mark = model.eval(), tokenizer, mark

    @classmethod
    def from_pretrained(cls, name: str, mark: str = "@") -> WrittenBreaks:
        """A model of the user's. Raises UserError where it cannot be loaded."""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            return cls(AutoModelForSeq2SeqLM.from_pretrained(name), AutoTokenizer.from_pretrained(name), mark)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"no seq2seq model of breaks at {name}: {one_line(error)[:200]}") from error

    def predict(self, words: Sequence[str]) -> set[int]:
        import torch

        if not words:
            return set()
        given = self.tokenizer(" ".join(words), return_tensors="pt")
        with torch.inference_mode():
            made = self.model.generate(**given, max_new_tokens=4 * len(words) + 32, do_sample=False)
        found = self.read(self.tokenizer.decode(made[0], skip_special_tokens=True), words)
        return RuleBreaks().predict(words) if found is None else found

    def read(self, written: str, words: Sequence[str]) -> set[int] | None:
        """Breaks of what was written; None where the words are not the same."""
        places: set[int] = set()
        back: list[str] = []
        for part in written.replace(self.mark, f" {self.mark} ").split():
            if part != self.mark:
                back.append(part)
            elif back:
                places.add(len(back) - 1)
        if [word.lower() for word in back] != [word.lower() for word in words]:
            return None
        return {place for place in places if place < len(words) - 1}


def agreement(pairs: Sequence[tuple[set[int], set[int]]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of (predicted, heard) breaks, all texts together; 0 where there is nothing to count."""
    right = sum(len(one & two) for one, two in pairs)
    told, heard = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    precision, recall = right / told if told else 0.0, right / heard if heard else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0
