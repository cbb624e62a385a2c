"""What every forecast must beat: the last image again, a straight line through the last two, the mean of all.

    copy_last(history)             # (D, H, W)
    linear(history, at=24.0)       # None where there is only one time

Images of one time (repeats) are one place in time: a line needs two.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from longtake.medical.files.sets import REPEAT
from longtake.medical.series import Series


def repeat_gap(series: Series) -> float:
    """Images that lie nearer than that, in the series' unit, are repeats of one time."""
    from longtake.medical.series import convert

    return 1e-9 if series.unit == "cycle" else convert(REPEAT, "days", series.unit)


def observed_of(series: Series) -> np.ndarray:
    """Indices of the observed visits."""
    return np.flatnonzero(series.observed)


def copy_last(series: Series, at: float = 0.0) -> np.ndarray | None:
    """The last observed image, float32 (D, H, W)."""
    return series.images[observed_of(series)[-1]]


def linear(series: Series, at: float) -> np.ndarray | None:
    """A line through the images of the last two distinct times, within the range of the history; None for one time.

    Outside the history's data the last image stands.
    """
    seen = observed_of(series)
    last = seen[-1]
    earlier = seen[series.times[seen] < series.times[last] - repeat_gap(series)]
    if not len(earlier):
        return None
    before = earlier[-1]
    times = [_first_of(series, index) for index in (before, last)]
    share = (at - times[1]) / (times[1] - times[0])
    line = series.images[last] + np.float32(share) * (series.images[last] - series.images[before])
    line = np.clip(line, *_bounds(series))
    return line if series.valid is None else np.where(series.valid[before], line, series.images[last])


def mean_of_history(series: Series, at: float = 0.0) -> np.ndarray | None:
    """The mean of all observed images where they have data; the last image where none has."""
    seen = observed_of(series)
    images = series.images[seen]
    if series.valid is None:
        return images.mean(0)
    weight = series.valid[seen].sum(0)
    total = np.where(series.valid[seen], images, 0).sum(0)
    return np.where(weight > 0, total / np.maximum(weight, 1), images[-1]).astype(np.float32)


def _first_of(series: Series, index: int) -> float:
    """When the first repeat of a visit was made: repeats share one time."""
    near = np.abs(series.times - series.times[index]) < repeat_gap(series)
    return float(series.times[near & series.observed].min())


def _bounds(series: Series) -> tuple[float, float]:
    """Range of the grey values: 0 to 255 for images of 8 bits, else what the history has."""
    seen = series.images[series.observed]
    low, high = float(seen.min()), float(seen.max())
    return (0.0, 255.0) if series.geometry is not None and series.geometry.kind == "npz" else (low, high)


ROWS: dict[str, Callable[[Series, float], np.ndarray | None]] = {
    "copy-last": copy_last,
    "linear": linear,
    "mean of history": mean_of_history,
}
