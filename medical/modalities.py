"""What kinds of series the net knows, and how long "long" is for each: times enter the net in units of that scale.

A kind that is not in the table is "unknown": its times are measured against the span of its own visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.medical.series import convert


@dataclass(frozen=True)
class Modality:
    """number: row of the net's table. unit, scale: the time that counts as 1."""

    number: int
    unit: str
    scale: float


UNKNOWN = "unknown"
MODALITIES = {
    UNKNOWN: Modality(0, "years", 1.0),
    "cxr": Modality(1, "days", 10.0),
    "cardiac": Modality(2, "cycle", 0.5),
    "glioma": Modality(3, "days", 200.0),
    "simulated": Modality(4, "years", 3.0),
    "cine": Modality(5, "cycle", 0.5),
}
SLOTS = 8  # rows of the net's table; the last are free


def scale_of(modality: str, unit: str, times: Sequence[float]) -> float:
    """How much time, in ``unit``, counts as 1 for a series with visits at ``times``."""
    known = MODALITIES.get(modality, MODALITIES[UNKNOWN])
    alike = (known.unit == "cycle") == (unit == "cycle")
    if modality in MODALITIES and modality != UNKNOWN and alike:
        return float(convert(known.scale, known.unit, unit))
    span = max(times, default=0.0) - min(times, default=0.0)
    return span if span > 0 else (0.5 if unit == "cycle" else float(convert(1.0, "years", unit)))


def number_of(modality: str) -> int:
    """Row of the net's table; 0 for a kind it does not know."""
    return MODALITIES.get(modality, MODALITIES[UNKNOWN]).number
