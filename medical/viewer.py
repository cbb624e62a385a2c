"""An offline page to look through slices and time: a scan or a forecast on the left, how sure it is on the right.

write_viewer(output, Path("pred.html"))

Grey values are stored in 8 bits between percentiles 0.5 and 99.9 of the history: for looking, never for measuring.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.journal import atomic_path
from longtake.medical.picture import at, upright, window_of

if TYPE_CHECKING:
    from longtake.medical.outputs import MedicalOutput

MOST_BYTES = 32 * 2**20  # of voxels; larger series are thinned out in rows and columns
SAMPLES = 3  # that the viewer holds


def write_viewer(output: MedicalOutput, path: Path) -> None:
    """Write the page, one file without anything from elsewhere."""
    text = viewer(output)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def viewer(output: MedicalOutput) -> str:
    """The page as text."""
    from longtake.medical.viewer_page import PAGE

    data = json.dumps(_data(output), ensure_ascii=False).replace("</", "<\\/")
    title = html.escape(f"{output.prediction.series.subject}, predicted")
    return PAGE.replace("@TITLE@", title).replace("@DATA@", data)


def _data(output: MedicalOutput) -> dict[str, Any]:
    made, series = output.prediction, output.prediction.series
    maps = output.maps()
    low, high = window_of(series.images[series.observed])
    last = series.images[np.flatnonzero(series.observed)[-1]]
    count = min(SAMPLES, len(made.samples))
    voxels = (len(series) + len(made.times) * (4 + count)) * int(np.prod(series.grid))
    thin = max(1, int(np.ceil(np.sqrt(voxels / MOST_BYTES))))

    def packed(values: np.ndarray, least: float, most: float) -> str:
        shown = upright(np.asarray(values), output.geometry)[..., ::thin, ::thin]
        scaled = np.clip(np.rint((shown - least) / (most - least) * 255), 0, 255).astype(np.uint8)
        return base64.b64encode(scaled.tobytes()).decode("ascii")

    change = max(float(np.percentile(np.abs(maps["mean"] - last), 99.8)), 1e-6)
    spread = max(float(np.percentile(maps["std"], 99.8)), 1e-6)
    width = maps["upper"] - maps["lower"]
    widest = max(float(np.percentile(width, 99.8)), 1e-6)
    frames: list[dict[str, Any]] = []
    for index, time in enumerate(series.times):
        if series.observed[index]:
            layers = {"scan": packed(series.images[index], low, high)}
            frames.append({"time": float(time), "name": f"visit, {at(time, series.unit)}", "made": False, **layers})
    for index, time in enumerate(made.times):
        if not made.generated[index]:
            continue
        layers = {
            "mean": packed(maps["mean"][index], low, high),
            **{f"sample {n + 1}": packed(made.samples[n, index], low, high) for n in range(count)},
            "change": packed(maps["mean"][index] - last, -change, change),
            "std": packed(maps["std"][index], 0, spread),
            "interval": packed(width[index], 0, widest),
        }
        frames.append({"time": float(time), "name": f"predicted, {at(time, made.unit)}", "made": True, **layers})
    if output.truth is not None and len(made.times):
        time = float(made.times[0])
        layers = {"scan": packed(output.truth, low, high)}
        frames.append({"time": time, "name": f"truth, {at(time, made.unit)}", "made": False, **layers})
    frames.sort(key=lambda frame: (frame["time"], not frame["made"]))
    depth, height, columns = upright(series.images[:1], output.geometry)[0, :, ::thin, ::thin].shape
    known = output.geometry.known
    return {
        "grid": [depth, height, columns], "frames": frames, "range": [low, high], "change": change, "std": spread,
        "interval": widest, "level": made.level, "samples": len(made.samples), "thin": thin,
        "aspect": output.geometry.spacing[1] / output.geometry.spacing[0] if known else 1.0,
        "subject": series.subject, "sides": known,
    }  # fmt: skip
