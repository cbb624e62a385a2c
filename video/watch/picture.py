"""The preview of ``longtake watch``: time, the found moments' pictures, and where in them it was seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from longtake.video.watch.answer import Answer


SHOWN = 5  # moments on the picture


def draw(answer: Answer, path: Path) -> None:
    """Write the picture as a png."""
    from matplotlib.figure import Figure

    shown = max(1, min(SHOWN, len(answer.pictures)))
    figure = Figure(figsize=(2.2 * SHOWN, 5.6), dpi=110, layout="constrained")
    grid = figure.add_gridspec(3, SHOWN, height_ratios=(1.1, 1, 1))
    axes = figure.add_subplot(grid[0, :])
    minutes = answer.seconds > 180
    unit = 60.0 if minutes else 1.0
    curve = np.clip(answer.curve, 0, None)
    axes.plot(answer.times / unit, curve, color="0.35", linewidth=0.8)
    axes.fill_between(answer.times / unit, curve, color="0.85")
    for rank, one in enumerate(answer.moments, 1):
        axes.axvspan(one.start / unit, max(one.end, one.start + answer.seconds / 400) / unit, color="C1", alpha=0.5)
        axes.annotate(
            str(rank), (one.best / unit, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9
        )
    axes.set_xlim(0, max(answer.seconds, 1e-3) / unit)
    axes.set_ylim(0, max(1.0, float(curve.max(initial=0.0)) * 1.05))
    axes.set_xlabel("minutes" if minutes else "seconds", fontsize=8)
    axes.set_ylabel("likeness", fontsize=8)
    axes.tick_params(labelsize=8)
    title = answer.question if len(answer.question) <= 90 else answer.question[:87] + "..."
    axes.set_title(title, fontsize=10, loc="left", pad=16, parse_math=False)
    for place in range(shown if answer.pictures else 0):
        picture, one = answer.pictures[place], answer.moments[place]
        plain, warm = figure.add_subplot(grid[1, place]), figure.add_subplot(grid[2, place])
        plain.imshow(picture, interpolation="nearest" if picture.shape[0] < 128 else "antialiased")
        plain.set_title(f"{place + 1}: {clock(one.start)} to {clock(one.end)}\nscore {one.score:.2f}", fontsize=8)
        height, width = picture.shape[:2]
        warm.imshow(picture, alpha=0.55)
        if place < len(answer.maps):
            warm.imshow(
                answer.maps[place], extent=(-0.5, width - 0.5, height - 0.5, -0.5), cmap="inferno", alpha=0.55,
                interpolation="bicubic", vmin=0, vmax=1,
            )  # fmt: skip
        for part in (plain, warm):
            part.set_xticks([])
            part.set_yticks([])
    figure.savefig(path, format="png", metadata={"Software": None})


def spread(maps: np.ndarray) -> np.ndarray:
    """Maps (n, h, w), each on its own scale, 0..1."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    scaled: np.ndarray = (maps - low) / np.maximum(high - low, 1e-9)
    return scaled


def clock(seconds: float) -> str:
    """Seconds as people read them: 1:02:03, 2:03.5."""
    minutes, rest = divmod(round(max(seconds, 0.0), 1), 60)
    if minutes >= 60:
        return f"{int(minutes // 60)}:{int(minutes % 60):02d}:{int(rest):02d}"
    return f"{int(minutes)}:{rest:04.1f}"
