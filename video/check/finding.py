"""What a check says: findings with their place, and a verdict for every kind.

Finding(Kind.SEAM, "picture", start=96, end=96, start_s=8.0, end_s=8.0, number=5.2, limit=2.6, text="...")
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake.video.check.curves import Curves


class Kind(StrEnum):
    """What can be wrong with a film."""

    CUT = "cut"  # another scene from one frame to the next
    SEAM = "seam"  # a jump within a scene: of the picture, of places, of the motion or of the tone; or a flash
    LOOP = "loop"  # frames that come again
    FREEZE = "freeze"  # a picture that stands still in a film that moves
    DRIFT = "drift"  # colour, brightness, contrast or sharpness that goes one way all along a shot
    FLICKER = "flicker"  # a tone that goes up and down from frame to frame


@dataclass(frozen=True)
class Finding:
    """One place of a film.

    what: which side of the kind ("motion" of a seam, "sharpness" of a drift). start, end: first and last frame; of a
    cut or a seam both are the frame that comes after it. start_s, end_s: seconds at which they are shown. number,
    limit: what was measured and from where on it counts, in the unit that `text` names.
    """

    kind: Kind
    what: str
    start: int
    end: int
    start_s: float
    end_s: float
    number: float
    limit: float
    text: str


@dataclass(frozen=True)
class Verdict:
    """One kind (and side) over the whole film. number: the largest that was measured, None where a film is too short
    to tell; limit: from where on it is a finding; unit: of both; found: how many findings."""

    kind: Kind
    what: str
    number: float | None
    limit: float
    unit: str
    found: int
    least_frames: int

    @property
    def word(self) -> str:
        """clean, found, or not judged."""
        return "found" if self.found else ("not judged" if self.number is None else "clean")


def place(
    curves: Curves, kind: Kind, what: str, frames: tuple[int, int], number: float, limit: float, text: str
) -> Finding:
    """A finding at frames (first, last), with its times."""
    start, end = frames
    times = curves.times
    return Finding(
        kind, what, int(start), int(end), float(times[start]), float(times[end]), float(number), float(limit), text
    )
