"""From likeness over a film to the moments that a question asks for, best first.

moments = find_moments(index, scores, count=5)          # [Moment(start=61.5, end=64.0, score=0.83, ...), ...]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.video.watch.index import ClipIndex
    from torch import Tensor

KEEP = 0.7  # a moment grows to its neighbours that lie so far above the middle score of the film, of its own height
_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})\s*-->\s*(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})")
MOST_SUBTITLES = 20_000_000  # bytes


@dataclass(frozen=True)
class Moment:
    """start, end: seconds; score: 0 or below nothing of what is asked for, about 1 what is usual where it is;
    best: seconds, the middle of the segment that fits best; heard: the subtitle by which it was found,
    None when it was seen."""

    start: float
    end: float
    score: float
    best: float
    heard: str | None = None


@dataclass(frozen=True)
class Line:
    """A subtitle: seconds from start to end, and its text."""

    start: float
    end: float
    text: str


def find_moments(index: ClipIndex, scores: Tensor, count: int, heard: list[str | None] | None = None) -> list[Moment]:
    """At most ``count`` moments that do not overlap, the highest score (n,) first, ties by time; behind the first only
    such as are above 0.

    Each grows from its best segment over the neighbours of the same shot that are nearly as good. heard: for each
    segment the subtitle that its score came from, or None.
    """
    values = scores.double().numpy()
    middle = float(np.median(values))
    free = np.ones(len(values), bool)
    found: list[Moment] = []
    for peak in sorted(range(len(values)), key=lambda one: (-values[one], one)):
        if len(found) == count or (found and values[peak] <= 0):
            break
        if not free[peak]:
            continue
        least = middle + KEEP * (values[peak] - middle)
        first = last = peak
        while first > 0 and free[first - 1] and _joins(index, values, first - 1, peak, least):
            first -= 1
        while last + 1 < len(values) and free[last + 1] and _joins(index, values, last + 1, peak, least):
            last += 1
        free[first : last + 1] = False
        start, end = index.spans[peak]
        found.append(
            Moment(
                float(index.spans[first][0]),
                float(index.spans[last][1]),
                float(values[peak]),
                float(start + end) / 2,
                None if heard is None else heard[peak],
            )  # fmt: skip
        )
    return found


def _joins(index: ClipIndex, values: np.ndarray, one: int, peak: int, least: float) -> bool:
    return bool(index.shots[one] == index.shots[peak] and values[one] >= least)


def split_budget(scores: list[float], budget: int, window: int = 1) -> list[int]:
    """Tokens of each moment: at least one window each, in all at most ``budget``, a higher score never fewer.

    Raises UserError when the budget does not hold a window for each.
    """
    if budget < window * len(scores):
        raise UserError(f"{len(scores)} moments need {window * len(scores)} tokens at least; the budget is {budget}")
    left = budget // window - len(scores)
    weights = np.clip(np.asarray(scores, np.float64), 0, None) + 1e-9
    more = np.floor(left * weights / weights.sum()).astype(int)
    return [window * (1 + int(one)) for one in more]


def read_subtitles(path: Path) -> list[Line]:
    """The lines of an .srt or .vtt file, markup and line breaks taken out. Raises UserError."""
    if not path.is_file():
        raise UserError(f"the subtitles {path} {'are no file' if path.exists() else 'do not exist'}")
    if path.stat().st_size > MOST_SUBTITLES:
        raise UserError(f"the subtitles {path} have more than {MOST_SUBTITLES} bytes")
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    lines = []
    for block in re.split(r"\n\s*\n", text):
        found = _TIME.search(block)
        if found is None:
            continue
        part = [int(one or 0) for one in found.groups()]
        start, end = (h * 3600 + m * 60 + s + f / 10 ** len(g) for (h, m, s, f), g in (
            (part[:4], found.group(4)), (part[4:], found.group(8)),
        ))  # fmt: skip
        said = re.sub(r"<[^>]*>|\{[^}]*\}", "", block[found.end() :].partition("\n")[2])
        words = " ".join(said.split())
        if words and end > start:
            lines.append(Line(start, end, words))
    if not lines:
        raise UserError(f"{path} holds no subtitles: an .srt or .vtt file has lines 00:01:02,000 --> 00:01:04,000")
    return lines
