"""Series: one subject's scans in time order, with the geometry that a written image needs.

Legend: K visits, D slices, H rows, W columns. A NIfTI array is (W, H, D); its transpose is what stands here.

    series = Series("patient 7", images, times=[0, 6, 13], unit="months", observed=[True, False, True])
    series.observed_times          # [0., 13.]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError

DAYS_A_YEAR = 365.25
_DAYS = {"hours": 1 / 24, "days": 1.0, "weeks": 7.0, "months": DAYS_A_YEAR / 12, "years": DAYS_A_YEAR}
UNITS = (*_DAYS, "cycle")  # a cycle is one heart beat, counted from its end of diastole


def convert(value: Any, unit: str, to: str) -> Any:
    """A time, or an array of times, in another unit. Raises UserError: a beat has no length in hours."""
    for name in (unit, to):
        if name not in UNITS:
            raise UserError(f"a unit of time is one of {', '.join(UNITS)}; given {name!r}")
    if unit == to:
        return value
    if "cycle" in (unit, to):
        raise UserError(f"times in {unit} cannot be turned into {to}: give times in {unit}")
    return value * (_DAYS[unit] / _DAYS[to])


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of the reference visit lie, and all that is needed to write another image on its grid.

    affine: float64 (4, 4), voxel (column, row, slice) to mm in RAS. spacing: mm along (column, row, slice). known:
    whether the file says so; False means that the numbers are placeholders. units: (space, time) as NIfTI names them.
    sform_code, qform_code: of NIfTI. kind: "nifti", "bids", "acdc", "dicom", "table" or "npz". source: file of the
    reference visit, a folder for DICOM. header: that file's NIfTI header. facts: whatever else its kind needs.
    """

    affine: np.ndarray
    spacing: tuple[float, float, float]
    known: bool = True
    units: tuple[str, str] = ("mm", "unknown")
    sform_code: int = 0
    qform_code: int = 0
    kind: str = "nifti"
    source: Path | None = None
    header: bytes | None = field(default=None, repr=False)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Series:
    """One subject's visits.

    images: float32 (K, D, H, W) in the files' own intensities, D = 1 for single slices, zeros where a visit is missing.
    times: float64 (K,) in `unit`, increasing. observed: bool (K,). valid: bool (K, D, H, W), where there are data; None
    for everywhere. labels: bool (K, D, H, W), a region of interest, if known. sessions: a name for each visit.
    notes: what the reader wants the user to know, a line each. Raises UserError for parts that do not fit together.
    """

    subject: str
    images: np.ndarray
    times: Any
    unit: str = "days"
    observed: Any = None
    valid: np.ndarray | None = None
    geometry: Geometry | None = None
    modality: str = "unknown"
    labels: np.ndarray | None = None
    sessions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = np.ascontiguousarray(np.asarray(self.images), dtype=np.float32)
        self.times = np.asarray(self.times, dtype=np.float64)
        if self.images.ndim != 4 or 0 in self.images.shape:
            raise UserError(f"a series holds images (visits, slices, rows, columns), given shape {self.images.shape}")
        count = len(self.images)
        self.observed = np.ones(count, bool) if self.observed is None else np.asarray(self.observed, bool)
        if self.times.shape != (count,) or self.observed.shape != (count,):
            raise UserError(f"{self.subject}: {count} images, {self.times.size} times, {self.observed.size} flags")
        if self.unit not in UNITS:
            raise UserError(f"a unit of time is one of {', '.join(UNITS)}; given {self.unit!r}")
        if not np.isfinite(self.times).all():
            raise UserError(f"{self.subject}: every visit needs a time, a finite number of {self.unit}")
        for earlier, later in zip(self.times, self.times[1:], strict=False):
            if later == earlier:
                raise UserError(f"{self.subject}: two visits are both at {later:g} {self.unit}; times must differ")
            if later < earlier:
                raise UserError(f"{self.subject}: times must increase, {earlier:g} stands before {later:g}")
        for name in ("valid", "labels"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, np.asarray(value, bool))
                if value.shape != self.images.shape:
                    raise UserError(f"{self.subject}: {name} is {value.shape}, the images are {self.images.shape}")
        self.sessions = list(self.sessions) or [f"{index + 1:02d}" for index in range(count)]
        if len(self.sessions) != count:
            raise UserError(f"{self.subject}: {count} images, {len(self.sessions)} names of visits")
        if not np.isfinite(self.images[self.observed]).all():
            bad = next(k for k in range(count) if self.observed[k] and not np.isfinite(self.images[k]).all())
            raise UserError(
                f"{self.subject}: the image of visit {self.sessions[bad]} holds NaN or infinite values: mend the file, "
                "or mark the visit as missing"
            )
        if not self.observed.all():  # a copy: the caller's array stays as it is
            self.images = np.where(self.observed[:, None, None, None], self.images, np.float32(0))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.images.shape[1:]
        return depth, height, width

    @property
    def observed_times(self) -> np.ndarray:
        """float64, times of the observed visits."""
        return self.times[self.observed]

    def times_in(self, unit: str) -> np.ndarray:
        """float64 (K,), the times in another unit. Raises UserError."""
        return convert(self.times, self.unit, unit)

    def pick(self, visits: Sequence[int] | np.ndarray) -> Series:
        """A series of some visits, by index, in time order."""
        chosen = np.sort(np.asarray(visits, dtype=np.intp))
        return replace(
            self,
            images=self.images[chosen],
            times=self.times[chosen],
            observed=self.observed[chosen],
            valid=None if self.valid is None else self.valid[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            sessions=[self.sessions[index] for index in chosen],
            notes=list(self.notes),
        )

    def before(self, visit: int) -> Series:
        """The visits before one, by index."""
        return self.pick(range(visit))

    def without(self, visits: Sequence[int]) -> Series:
        """The same visits, some of them marked as missing and their images set to zero."""
        observed = self.observed.copy()
        observed[list(visits)] = False
        return replace(self, observed=observed, notes=list(self.notes))
