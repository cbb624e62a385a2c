"""A line over time as SVG text: sharp at any size, follows the page's light or dark colours, needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 150, 40, 20, 8
MOST_POINTS = 600


def line_plot(
    title: str,
    values: Sequence[float] | np.ndarray,
    fps: float,
    marks: Sequence[float] = (),
    *,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """A figure of ``values`` (one a frame), with dashed lines at the times ``marks`` (seconds). low, high: of the axis,
    else of the values. Of more than 600 points the extremes of each bin are drawn, so a spike is never lost."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low = min(finite) if low is None else min(low, min(finite))
    high = max(finite) if high is None else max(high, max(finite))
    if high - low < 1e-9:
        high = low + 1.0
    seconds = max(len(values) / fps, 1e-9)

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - 6) * second / seconds

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    points = " ".join(f"{x(place / fps):.1f},{y(value):.1f}" for place, value in _thinned(values))
    dashes = "".join(
        f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for place in map(x, marks)
    )
    axis = "".join(
        f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 6}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        for value in (low, (low + high) / 2, high)
    )
    times = "".join(
        f'<text x="{x(seconds * k / 4):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{seconds * k / 4:.3g} s</text>'
        for k, anchor in ((0, "start"), (1, "middle"), (2, "middle"), (3, "middle"), (4, "end"))
    )
    name = html.escape(title)
    return (
        f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f'{axis}{times}{dashes}<polyline points="{points}"/></svg></figure>'
    )


def _thinned(values: Sequence[float] | np.ndarray) -> list[tuple[int, float]]:
    """(frame, value) of at most about 600 points; of a bin its least and its largest, in their order."""
    pairs = [(place, float(value)) for place, value in enumerate(values) if math.isfinite(value)]
    width = -(-len(pairs) // (MOST_POINTS // 2))
    if width <= 2:
        return pairs
    kept: list[tuple[int, float]] = []
    for start in range(0, len(pairs), width):
        part = pairs[start : start + width]
        ends = {min(part, key=lambda pair: pair[1]), max(part, key=lambda pair: pair[1])}
        kept += sorted(ends)
    return kept
