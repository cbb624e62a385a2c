"""The picture of a check: curves over time with the findings marked, and the frames around them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from longtake.journal import atomic_path
from longtake.media import check_output
from longtake.video.check.curves import LUMA, Pictures, pictures_of
from longtake.video.check.finding import Finding, Kind
from longtake.video.check.report import Report, clock_of

SHOWN = 8  # findings with stills
STILL_HEIGHT = 144  # pixels
MOST_POINTS = 4000  # of a curve; a longer one is drawn by the extremes of its pieces
COLOURS = {
    Kind.CUT: "#555555",
    Kind.SEAM: "#c0392b",
    Kind.LOOP: "#8e44ad",
    Kind.FREEZE: "#2471a3",
    Kind.DRIFT: "#b9770e",
    Kind.FLICKER: "#148f77",
}


def draw_report(
    report: Report, path: str | Path, overwrite: bool = False, frames: Iterable[np.ndarray] | None = None
) -> None:
    """Write the picture as a png. Reads the film once more, for the stills, or takes them from ``frames``, as
    `check_frames` had them. Raises UserError when it cannot be written."""
    from matplotlib.figure import Figure

    assert report.curves is not None
    target = check_output(path, (".png",), overwrite)
    chosen = _chosen(report.findings)
    pictures: Iterable[tuple[float, Any]] = ()
    if frames is not None:
        pictures = pictures_of(frames, report.fps)
    elif report.path is not None:
        pictures = Pictures(report.path).every()
    stills = _stills(pictures, {number for one in chosen for number in _frames_of(one)})
    rows = (2 if len(chosen) > SHOWN // 2 else 1) if chosen else 0
    figure = Figure(figsize=(12, 7.6 + 1.5 * rows), dpi=100, layout="constrained")
    grid = figure.add_gridspec(4 + rows, 1, height_ratios=[1.3, 1.3, 1.3, 1.0, *([1.2] * rows)])
    _draw_curves([figure.add_subplot(grid[row]) for row in range(4)], report)
    count = SHOWN // 2
    for row in range(rows):
        inner = grid[4 + row].subgridspec(1, count)
        for column, one in enumerate(chosen[row * count : (row + 1) * count]):
            _draw_still(figure.add_subplot(inner[column]), one, stills, report.findings.index(one) + 1)
    said = "clean" if report.clean else f"{len(report.findings)} found"
    figure.suptitle(
        f"{report.path.name if report.path else 'frames'}: {report.frames} frames, {report.seconds:.2f} s, {said}",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    with atomic_path(target) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _draw_curves(axes: list[Any], report: Report) -> None:
    curves = report.curves
    assert curves is not None
    minutes = report.seconds > 180
    unit = 60.0 if minutes else 1.0
    times = curves.times / unit
    step, tone, sharp, kinds = axes
    _line(step, times[1:], curves.step, "0.25", "change of the picture")
    _line(step, times[1:], curves.busiest, "0.75", "in its busiest tile")
    step.set_ylabel("grey levels")
    means = curves.tiles.mean(1, dtype=np.float32)
    for channel, (name, colour) in enumerate((("red", "#c0392b"), ("green", "#1e8449"), ("blue", "#2471a3"))):
        _line(tone, times, means[:, channel], colour, name)
    _line(tone, times, means @ LUMA, "0.25", "brightness")
    tone.set_ylabel("grey levels")
    _line(sharp, times[curves.sharp_at], _relative(np.sqrt(np.square(curves.sharp).mean(1))), "0.25", "sharpness")
    _line(sharp, times, _relative(curves.contrast), "0.65", "contrast")
    sharp.set_ylabel("of the median")
    sharp.set_ylim(bottom=0)
    order = list(Kind)
    kinds.set_yticks(range(len(order)), [str(kind) for kind in order])
    kinds.set_ylim(len(order) - 0.5, -0.5)
    kinds.set_xlabel("minutes" if minutes else "seconds")
    least = report.seconds / 400
    for number, one in enumerate(report.findings, 1):
        start, end = one.start_s / unit, one.end_s / unit
        colour = COLOURS[one.kind]
        row = order.index(one.kind)
        kinds.barh(row, max(end - start, least / unit), left=start, height=0.7, color=colour)
        if len(report.findings) <= 40:
            kinds.annotate(str(number), (start, row - 0.42), fontsize=7, va="bottom", color=colour)
        for part in axes[:3]:
            if one.kind in (Kind.CUT, Kind.SEAM):
                part.axvline(start, color=colour, linewidth=0.8, alpha=0.7)
            elif one.kind in (Kind.FREEZE, Kind.FLICKER):
                part.axvspan(start, end, color=colour, alpha=0.12, linewidth=0)
    for part in axes:
        part.set_xlim(0, max(report.seconds, 1e-3) / unit)
        part.tick_params(labelsize=8)
        part.spines[["top", "right"]].set_visible(False)
    for part in axes[:3]:
        part.tick_params(labelbottom=False)
        part.legend(fontsize=7, loc="upper right", frameon=False, ncols=4)


def _line(axes: Any, times: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    if len(times) > MOST_POINTS:
        pieces = np.array_split(np.arange(len(times)), MOST_POINTS // 2)
        at = np.array(
            [index for piece in pieces for index in sorted((_extreme(values, piece, 0), _extreme(values, piece, 1)))]
        )
        times, values = times[at], values[at]
    marker = "o" if len(times) < 3 else ""
    axes.plot(times, values, color=colour, linewidth=0.8, label=label, marker=marker, markersize=3)


def _extreme(values: np.ndarray, piece: np.ndarray, largest: int) -> int:
    return int(piece[values[piece].argmax() if largest else values[piece].argmin()])


def _relative(values: np.ndarray) -> np.ndarray:
    middle = float(np.median(values))
    return values / middle if middle > 0 else values


def _chosen(findings: list[Finding]) -> list[Finding]:
    """The findings that get stills: of every kind some, the strongest first, in order of time."""
    ranked = sorted(findings, key=lambda one: -_strength(one))
    by_kind = {kind: [one for one in ranked if one.kind is kind] for kind in Kind}
    taken: list[Finding] = []
    while len(taken) < SHOWN and any(by_kind.values()):
        for queue in by_kind.values():
            if queue and len(taken) < SHOWN:
                taken.append(queue.pop(0))
    return [one for one in findings if any(one is other for other in taken)]


def _strength(one: Finding) -> float:
    ratio = abs(one.number) / one.limit
    return 1.0 / max(ratio, 1e-9) if one.kind is Kind.LOOP else ratio


def _frames_of(one: Finding) -> tuple[int, int]:
    """The two frames that show it best."""
    if one.kind in (Kind.CUT, Kind.SEAM):
        return (max(0, one.start - 1), one.start)
    if one.kind is Kind.LOOP:
        return (one.start, one.start + int(one.what.split()[0]))
    if one.kind is Kind.FLICKER:
        middle = (one.start + one.end) // 2
        return (middle, middle + 1)
    return (one.start, one.end)


def _stills(pictures: Iterable[tuple[float, Any]], wanted: set[int]) -> dict[int, np.ndarray]:
    """Frames by number, at most 144 pixels high; none but these are turned into pixels."""
    found: dict[int, np.ndarray] = {}
    if not wanted:
        return found
    for number, (_, frame) in enumerate(pictures):
        if number in wanted:
            shrink = min(1.0, STILL_HEIGHT / max(1, min(frame.width, frame.height)))
            size = (max(1, round(frame.width * shrink)), max(1, round(frame.height * shrink)))
            small = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="AREA")
            turns = round(getattr(frame, "rotation", 0) / 90) % 4
            found[number] = np.ascontiguousarray(np.rot90(small.to_ndarray(), turns))
        if number >= max(wanted):
            break
    return found


def _draw_still(axes: Any, one: Finding, stills: dict[int, np.ndarray], number: int) -> None:
    pair = [stills[frame] for frame in _frames_of(one) if frame in stills]
    axes.set_xticks([])
    axes.set_yticks([])
    name = f"{one.kind} ({one.what})" if one.what else str(one.kind)
    frames = " and ".join(str(frame) for frame in _frames_of(one))
    axes.set_title(f"{number}: {name}, {clock_of(one.start_s)} s\nframes {frames}", fontsize=8, color=COLOURS[one.kind])
    if pair:
        gap = np.full((pair[0].shape[0], max(2, pair[0].shape[1] // 40), 3), 255, np.uint8)
        axes.imshow(
            np.concatenate([pair[0], gap, *pair[1:]], 1),
            interpolation="nearest" if pair[0].shape[0] < 128 else "antialiased",
        )
    for spine in axes.spines.values():
        spine.set_color(COLOURS[one.kind])
