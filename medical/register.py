"""How far apart the visits of a series lie, and rigid registration where a kept library is installed.

for one in apart(series):
    print(one.line())                     # "06: 3.1 mm from 01, correlation 0.71, 0.93 after the shift"
series = registered(series)               # by SimpleITK; a visit that does not gain by it is left as it is

The shift is the peak of the cross-correlation of local contrast over whole voxels, turning left out: a check, not a
measurement. A forecast assumes that visits lie on each other: what moved reads as what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.medical.series import Series

FAR = 2.0  # voxels; visits that lie further apart are told of
ALIKE = 0.5  # correlation under which they are told of
GAIN = 0.02  # of correlation, by which a shift must help to be believed
REACH = 0.25  # of each side: the furthest shift that is looked for
METHODS = ("no", "rigid")


@dataclass(frozen=True)
class Apart:
    """One visit against the first observed one.

    shift: along (slices, rows, columns), in voxels. distance: its length in `unit`, "mm" or "voxels". correlation: as
    they lie; after: once shifted.
    """

    session: str
    base: str
    shift: tuple[int, int, int]
    distance: float
    unit: str
    correlation: float
    after: float

    @property
    def is_far(self) -> bool:
        """Whether the user should know."""
        moved = max(abs(step) for step in self.shift)
        return moved > FAR or self.after < ALIKE

    def line(self) -> str:
        """In words."""
        moved = f"{self.distance:.1f} {self.unit} from" if any(self.shift) else "on"
        gained = f", {self.after:.2f} after that shift" if any(self.shift) else ""
        return f"visit {self.session} lies {moved} visit {self.base}: correlation {self.correlation:.2f}{gained}"


def apart(series: Series) -> list[Apart]:
    """Every observed visit but the first against the first."""
    seen = [index for index in range(len(series)) if series.observed[index]]
    base = seen[0]
    known = series.geometry is not None and series.geometry.known
    spacing = series.geometry.spacing[::-1] if series.geometry is not None and known else (1.0, 1.0, 1.0)
    found = []
    for index in seen[1:]:
        valid = None if series.valid is None else series.valid[base] & series.valid[index]
        before = correlation(series.images[base], series.images[index], valid)
        shift = _shift(series.images[base], series.images[index])
        after = before
        if any(shift):
            after = correlation(*_overlap(series.images[base], series.images[index], shift), None)
            if after < before + GAIN:
                shift, after = (0, 0, 0), before
        length = float(np.linalg.norm([step * size for step, size in zip(shift, spacing, strict=True)]))
        names = series.sessions[index], series.sessions[base]
        found.append(Apart(*names, shift, length, "mm" if known else "voxels", before, after))
    return found


def correlation(first: np.ndarray, other: np.ndarray, valid: np.ndarray | None) -> float:
    """Pearson correlation over the valid voxels; 0 where one is constant."""
    a, b = (one if valid is None else one[valid] for one in (first, other))
    a, b = (one.astype(np.float64).ravel() for one in (a, b))
    if len(a) < 2:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _shift(first: np.ndarray, other: np.ndarray) -> tuple[int, int, int]:
    """(slices, rows, columns) by which `other` stands further along than `first`, in whole voxels."""
    from scipy.fft import irfftn, rfftn
    from scipy.ndimage import uniform_filter

    def contrast(image: np.ndarray) -> np.ndarray:
        image = image.astype(np.float64)
        size = [min(15, side) for side in image.shape]
        mean = uniform_filter(image, size)
        spread = np.sqrt(np.maximum(uniform_filter(image * image, size) - mean * mean, 0))
        return np.asarray((image - mean) / (spread + 0.05 * (image.std() + 1e-12)))

    shape = [2 * side for side in first.shape]
    product = np.conj(rfftn(contrast(first), shape)) * rfftn(contrast(other), shape)
    peaks = irfftn(product, shape)
    for axis, side in enumerate(first.shape):
        reach = int(side * REACH)
        kept = np.zeros(shape[axis], bool)
        kept[: reach + 1] = kept[len(kept) - reach :] = True
        if reach == 0:
            kept[1:] = False
        peaks = np.where(kept.reshape([-1 if one == axis else 1 for one in range(3)]), peaks, -np.inf)
    at = np.unravel_index(int(peaks.argmax()), peaks.shape)
    steps = [int(one) if one <= size // 2 else int(one) - size for one, size in zip(at, shape, strict=True)]
    return steps[0], steps[1], steps[2]


def _overlap(first: np.ndarray, other: np.ndarray, shift: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both images where they overlap once `other` is moved back by the shift."""
    here, there = [], []
    for step, side in zip(shift, first.shape, strict=True):
        here.append(slice(max(0, -step), side - max(0, step)))
        there.append(slice(max(0, step), side - max(0, -step)))
    return first[tuple(here)], other[tuple(there)]


def registered(series: Series) -> Series:
    """Every visit moved rigidly onto the first observed one (correlation over all voxels, one thread, so the same each
    time). Raises UserError when SimpleITK is not installed."""
    try:
        import SimpleITK as sitk
    except ImportError:
        raise UserError("--register rigid needs SimpleITK: pip install SimpleITK") from None
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    seen = [index for index in range(len(series)) if series.observed[index]]
    base, images = seen[0], series.images.copy()
    valid = np.ones_like(images, bool) if series.valid is None else series.valid.copy()
    notes = list(series.notes)
    spacing = series.geometry.spacing if series.geometry is not None and series.geometry.known else (1.0, 1.0, 1.0)
    for index in seen[1:]:
        shift = _shift(images[base], images[index])
        moved, inside, turned, distance = _rigid(sitk, images[base], images[index], spacing, shift)
        inside &= valid[index]
        common = inside & valid[base]
        before = correlation(images[base], images[index], common)
        after = correlation(images[base], moved, common)
        name = series.sessions[index]
        if common.mean() > 0.5 * valid[base].mean() and after > before + GAIN:
            images[index], valid[index] = np.where(inside, moved, 0), inside
            unit = "mm" if series.geometry is not None and series.geometry.known else "voxels"
            notes.append(
                f"visit {name} was moved {distance:.1f} {unit} and turned {turned:.1f} degrees onto "
                f"{series.sessions[base]}: correlation {before:.2f} to {after:.2f}"
            )
        else:
            notes.append(f"visit {name} was left where it lies: no rigid move helped")
    return replace(series, images=images, valid=None if valid[seen].all() else valid, notes=notes)


def _rigid(
    tool: Any,
    fixed: np.ndarray,
    moving: np.ndarray,
    spacing: tuple[float, float, float],
    shift: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(moved image, where it has data, degrees, distance in the spacing's unit); begun from a shift in voxels."""
    flat = fixed.shape[0] == 1

    def image(values: np.ndarray) -> Any:
        made = tool.GetImageFromArray(np.ascontiguousarray(values[0] if flat else values, np.float32))
        made.SetSpacing(spacing[:2] if flat else spacing)
        return made

    still, other = image(fixed), image(moving)
    blank = tool.Euler2DTransform() if flat else tool.Euler3DTransform()
    start = tool.CenteredTransformInitializer(still, other, blank, tool.CenteredTransformInitializerFilter.GEOMETRY)
    along = [step * size for step, size in zip(shift[::-1], spacing, strict=True)]
    start = type(blank)(start)
    start.SetTranslation(along[:2] if flat else along)
    method = tool.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(tool.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 80)
    method.SetOptimizerScalesFromPhysicalShift()
    coarse = min(fixed.shape) >= 16 or flat
    method.SetShrinkFactorsPerLevel([4, 2, 1] if coarse else [1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0] if coarse else [0])
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(still, other)
    ones = image(np.ones_like(moving))
    moved = tool.GetArrayFromImage(tool.Resample(other, still, found, tool.sitkLinear, 0.0))
    inside = tool.GetArrayFromImage(tool.Resample(ones, still, found, tool.sitkNearestNeighbor, 0.0)) > 0.5
    corner = np.array([[0.0] * (2 if flat else 3), [1.0] + [0.0] * (1 if flat else 2)])
    centre = np.array(still.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in still.GetSize()]))
    ends = np.array([found.TransformPoint(tuple(centre + one)) for one in corner])
    turned = float(np.degrees(np.arccos(np.clip((ends[1] - ends[0])[0], -1, 1))))
    distance = float(np.linalg.norm(ends[0] - centre))
    return moved[None] if flat else moved, inside[None] if flat else inside, turned, distance
