"""A prediction as a picture: history, mean, single samples, truth if known, difference, deviation; and as a film.

The mean of samples is smooth by nature: two samples stand beside it, as sharp as the model draws them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.journal import atomic_path
from longtake.medical.series import Geometry

if TYPE_CHECKING:
    from longtake.medical.outputs import MedicalOutput

MOST_HISTORY = 4  # visits, the last ones
MOST_ROWS = 4  # slices of a volume, or times
FILM_FPS = 2.0
_SHORT = {"hours": "h", "days": "d", "weeks": "wk", "months": "mo", "years": "y", "cycle": "cycle"}


def upright(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(..., rows, columns) as it is looked at: front and top up, the patient's right on the left; as it is where the
    file does not say how the patient lies."""
    if not geometry.known:
        return image
    for axis, unit in ((-2, 1), (-1, 0)):
        direction = geometry.affine[:3, unit]
        along = int(np.abs(direction).argmax())
        # in RAS a growing coordinate points right, to the front, to the top
        if direction[along] > 0:
            image = np.flip(image, axis)
    return image


def window_of(images: np.ndarray) -> tuple[float, float]:
    """The range that is shown: percentiles 0.5 and 99.9."""
    low, high = (float(value) for value in np.percentile(images, (0.5, 99.9)))
    return low, high if high > low else low + 1


def at(time: float, unit: str) -> str:
    """A time in few letters."""
    return f"{time:.4g} {_SHORT[unit]}"


def draw(output: MedicalOutput, path: Path) -> None:
    """Write the montage as png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made, geometry = output.prediction, output.geometry
    series = made.series
    seen = np.flatnonzero(series.observed)[-MOST_HISTORY:]
    rows = _rows(output)
    maps = output.maps()
    window = window_of(series.images[series.observed])
    last = series.images[np.flatnonzero(series.observed)[-1]]
    columns: list[tuple[str, Any]] = [
        (f"visit {at(series.times[k], series.unit)}", lambda t, z, k=k: series.images[k][z]) for k in seen
    ]
    count = len(made.samples)
    columns.append((f"mean of {count}", lambda t, z: maps["mean"][t, z]))
    columns += [
        (f"sample {number + 1}", lambda t, z, number=number: made.samples[number, t, z])
        for number in range(min(2, count))
    ]
    truth = output.truth
    if truth is not None:
        columns.append(("truth", lambda t, z: truth[z] if t == 0 else None))
    difference = max(float(np.percentile(np.abs(maps["mean"] - last), 99.5)), 1e-6)
    deviation = max(float(np.percentile(maps["std"], 99.5)), 1e-6)
    columns.append(("mean - last visit", lambda t, z: maps["mean"][t, z] - last[z]))
    columns.append(("std of samples", lambda t, z: maps["std"][t, z]))
    height, width = series.grid[1:]
    tall = 1.9 * min(max(height / width, 0.5), 2)
    figure: Any = Figure(
        figsize=(1.9 * len(columns), tall * len(rows) + 0.75), dpi=110, layout="constrained", facecolor="white"
    )
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    aspect = geometry.spacing[1] / geometry.spacing[0] if geometry.known else 1.0
    shown = {}
    for row, (time, place) in enumerate(rows):
        for column, (title, get) in enumerate(columns):
            axis, values = axes[row, column], get(time, place)
            axis.set_xticks([]), axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
            if column == 0:
                axis.set_ylabel(_row_name(output, time, place), fontsize=9)
            if values is None:
                axis.set_visible(False)
                continue
            look: dict[str, Any] = {"cmap": "gray", "vmin": window[0], "vmax": window[1]}
            if title.startswith("mean -"):
                look = {"cmap": "RdBu_r", "vmin": -difference, "vmax": difference}
            elif title.startswith("std"):
                look = {"cmap": "magma", "vmin": 0, "vmax": deviation}
            found = axis.imshow(upright(values, geometry), aspect=aspect, interpolation="nearest", **look)
            if look["cmap"] != "gray":
                shown[column] = found
    for column, found in shown.items():
        bar = figure.colorbar(found, ax=axes[:, column], location="bottom", shrink=0.9, pad=0.02, aspect=14)
        bar.ax.tick_params(labelsize=7)
    times = ", ".join(at(time, made.unit) for time in made.times[:6])
    figure.suptitle(f"{series.subject} predicted at {times}: synthetic, not for clinical use", fontsize=10)
    with atomic_path(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _rows(output: MedicalOutput) -> list[tuple[int, int]]:
    """(time, slice) of each row: times at the middle slice, or slices of the one time."""
    times, depth = output.prediction.samples.shape[1:3]
    if times > 1:
        chosen = np.unique(np.linspace(0, times - 1, min(times, MOST_ROWS)).round().astype(int))
        return [(int(time), depth // 2) for time in chosen]
    if depth == 1:
        return [(0, 0)]
    places = np.unique(np.linspace(0, depth - 1, min(depth, MOST_ROWS - 1) + 2)[1:-1].round().astype(int))
    return [(0, int(place)) for place in places]


def _row_name(output: MedicalOutput, time: int, place: int) -> str:
    depth = output.prediction.samples.shape[2]
    if output.prediction.samples.shape[1] > 1:
        return at(output.prediction.times[time], output.prediction.unit)
    return f"slice {place + 1} of {depth}" if depth > 1 else at(output.prediction.times[time], output.prediction.unit)


def film(output: MedicalOutput, path: Path) -> None:
    """Write a gif through time, the middle slice: each visit, and for each predicted time mean and a sample."""
    from longtake.media import write_gif
    from PIL import Image, ImageDraw

    made, series = output.prediction, output.prediction.series
    low, high = window_of(series.images[series.observed])
    place = series.grid[0] // 2
    size = max(1, 256 // max(series.grid[1:]))

    def grey(values: np.ndarray) -> np.ndarray:
        shown = np.clip((upright(values, output.geometry) - low) / (high - low), 0, 1) * 255
        return np.kron(shown.astype(np.uint8), np.ones((size, size), np.uint8))

    events = [(time, f"visit {at(time, series.unit)}", series.images[k][place], series.images[k][place])
              for k, time in enumerate(series.times) if series.observed[k]]  # fmt: skip
    mean = made.mean
    events += [
        (time, f"predicted {at(time, made.unit)}", mean[t, place], made.samples[0, t, place])
        for t, time in enumerate(made.times) if made.generated[t]
    ]  # fmt: skip
    frames = []
    for _, title, first, second in sorted(events, key=lambda event: event[0]):
        pair = np.concatenate([grey(first), np.full((len(grey(first)), 4), 255, np.uint8), grey(second)], 1)
        sheet = Image.new("RGB", (max(pair.shape[1], 260), pair.shape[0] + 34), "white")
        sheet.paste(Image.fromarray(pair), (0, 18))
        pen = ImageDraw.Draw(sheet)
        names = "mean, and sample 1" if title.startswith("predicted") else "as it is"
        pen.text((3, 3), f"{title}: {names}", fill="black")
        pen.text((3, pair.shape[0] + 21), "synthetic, not for clinical use", fill="black")
        frames.append(np.asarray(sheet))
    write_gif(frames, path, FILM_FPS, overwrite=True)
