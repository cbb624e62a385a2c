"""The npz sets that a prior is trained on: chest X-rays, beating hearts and gliomas, as series.

for series in read_set("cxr_val.npz"):        # Series with images in 0..255
    ...

Keys: images or aligned, *_valid, patient, day or time, lv or masks; a set of one's own may have the first ones alone.
Two images of one day keep their order and lie `APART` days from each other: they are repeats, not a change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from longtake.errors import UserError, one_line
from longtake.medical.series import Geometry, Series

APART = 0.01  # days between repeats of one day
REPEAT = 0.5  # days; images that are nearer than that are repeats
MODALITIES = ("cxr", "cardiac", "glioma")


def read_set(path: Path, *, key: str | None = None) -> list[Series]:
    """The patients of a set; of `modality` by the first word of its name, where that is a known one.

    key: of the images, None for "aligned" where there is one, else "images". Raises UserError.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file}
    except Exception as error:  # numpy and zipfile have a kind of their own for each damage
        raise UserError(f"{path} cannot be read as npz: {one_line(error)[:100]}") from None
    name = key or ("aligned" if "aligned" in held else "images")
    if name not in held or "patient" not in held:
        raise UserError(f"{path} needs the arrays {name} and patient; it has {', '.join(sorted(held)) or 'none'}")
    modality = next((word for word in MODALITIES if path.stem.split("_")[0] == word), "unknown")
    if held[name].ndim == 3:
        return _films(held, name, modality)
    return _volumes(held, name, modality)


def _films(held: dict[str, np.ndarray], name: str, modality: str) -> list[Series]:
    """Rows are images (N, H, W) of several patients, in time order within each."""
    valid = held.get("images_valid" if name == "normalised" else f"{name}_valid")
    found = []
    for patient in np.unique(held["patient"]):
        rows = np.flatnonzero(held["patient"] == patient)
        days = held["day"][rows].astype(np.float64)
        notes = []
        for index in range(1, len(rows)):
            if days[index] <= days[index - 1]:
                days[index] = days[index - 1] + APART
                notes = ["images of one day are kept as repeats, 0.01 days apart"]
        found.append(
            Series(
                f"{modality}-{int(patient)}", held[name][rows][:, None], days, "days", modality=modality, notes=notes,
                valid=None if valid is None else valid[rows][:, None], geometry=_grid(),
            )
        )  # fmt: skip
    return found


def _volumes(held: dict[str, np.ndarray], name: str, modality: str) -> list[Series]:
    """Rows are patients (P, K, D, H, W); slices that a visit lacks are left out of all its visits."""
    images = held[name]
    times, unit = (held["time"], "cycle") if "time" in held else (held["day"], "days")
    masks = held.get("lv", held.get("masks_aligned" if name == "aligned" else "masks"))
    valid = held.get(f"{name}_valid")
    found = []
    for row, patient in enumerate(held["patient"]):
        kept = held["slice_valid"][row].all(0) if "slice_valid" in held else np.ones(images.shape[2], bool)
        found.append(
            Series(
                f"{modality}-{int(patient)}", images[row][:, kept], times[row].astype(np.float64), unit,
                valid=None if valid is None else valid[row][:, kept], geometry=_grid(), modality=modality,
                labels=None if masks is None else masks[row][:, kept],
            )
        )  # fmt: skip
    return found


def _grid() -> Geometry:
    return Geometry(np.eye(4), (1.0, 1.0, 1.0), known=False, units=("unknown", "unknown"), kind="npz")
