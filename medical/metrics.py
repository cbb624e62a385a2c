"""How near a forecast comes: PSNR, SSIM, NRMSE, change against the last image, regions, coverage.

Values are float64 arrays in one range of grey values; `valid` (bool, same shape) says which voxels count.

    score = Score.of(prediction, truth, last, valid, value_range=1.0)
    mean_psnr([one.mse for one in scores], 1.0)          # from the mean MSE: a mean of dB would hide the bad cases
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from longtake.errors import UserError

NORMS = ("minmax", "euclidean", "mean")
SSIM_SIGMA = 1.5
SSIM_TRUNCATE = 3.5  # window of 11 x 11 at sigma 1.5
_K1, _K2 = 0.01, 0.03


def mse(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Mean squared error over the valid voxels."""
    error = np.asarray(prediction, np.float64) - np.asarray(truth, np.float64)
    return float(np.mean(np.square(error if valid is None else error[valid])))


def psnr(error: float, value_range: float) -> float:
    """10 log10(range^2 / error) in dB, of a mean squared error; infinite for none."""
    return math.inf if error == 0 else 10 * math.log10(value_range**2 / error)


def mean_psnr(errors: Sequence[float], value_range: float) -> float:
    """PSNR of the mean of several mean squared errors."""
    return psnr(float(np.mean(errors)), value_range)


def nrmse(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None, norm: str = "minmax") -> float:
    """Root mean squared error over a norm of the truth. Raises UserError for an unknown norm.

    norm: "minmax" is max - min, "euclidean" the root mean square, "mean" the mean, as scikit-image names them.
    """
    values = np.asarray(truth, np.float64)
    values = values if valid is None else values[valid]
    if norm not in NORMS:
        raise UserError(f"a norm of NRMSE is one of {', '.join(NORMS)}; given {norm!r}")
    if norm == "minmax":
        by = float(values.max() - values.min())
    elif norm == "euclidean":
        by = float(np.sqrt(np.mean(np.square(values))))
    else:
        by = float(values.mean())
    return _share(math.sqrt(mse(prediction, truth, valid)), by)


def _share(value: float, by: float) -> float:
    if by == 0:
        return 0.0 if value == 0 else math.inf
    return value / by


def ssim_map(prediction: np.ndarray, truth: np.ndarray, value_range: float, window: str = "gauss") -> np.ndarray:
    """Structural similarity at every voxel of arrays of two or three axes (Wang et al. 2004), as scikit-image has it.

    window: "gauss" of sigma 1.5 with population covariance; "box" of 7 with sample covariance.
    """
    from scipy.ndimage import gaussian_filter, uniform_filter

    x, y = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if window == "gauss":

        def blur(values: np.ndarray) -> np.ndarray:
            return gaussian_filter(values, SSIM_SIGMA, truncate=SSIM_TRUNCATE, mode="reflect")

        correct = 1.0
    else:

        def blur(values: np.ndarray) -> np.ndarray:
            return uniform_filter(values, 7)

        count = 7**x.ndim
        correct = count / (count - 1)
    mean_x, mean_y = blur(x), blur(y)
    var_x = correct * (blur(x * x) - mean_x * mean_x)
    var_y = correct * (blur(y * y) - mean_y * mean_y)
    cov = correct * (blur(x * y) - mean_x * mean_y)
    c1, c2 = (_K1 * value_range) ** 2, (_K2 * value_range) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return top / ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2))


def ssim(prediction: np.ndarray, truth: np.ndarray, value_range: float, window: str = "gauss") -> float:
    """Mean structural similarity without the border of half a window, as scikit-image has it."""
    found = ssim_map(prediction, truth, value_range, window)
    pad = int(SSIM_TRUNCATE * SSIM_SIGMA + 0.5) if window == "gauss" else 3
    return float(found[tuple(slice(pad, size - pad) for size in found.shape)].mean())


def slice_ssim(prediction: np.ndarray, truth: np.ndarray, value_range: float, valid: np.ndarray | None = None) -> float:
    """Mean over slices of the similarity (D, H, W) in each, over its valid voxels; what is not valid is 0 in both."""
    if valid is not None:
        prediction, truth = np.where(valid, prediction, 0), np.where(valid, truth, 0)
    found = []
    for index in range(len(truth)):
        one = ssim_map(prediction[index], truth[index], value_range)
        if valid is None:
            found.append(one.mean())
        elif valid[index].any():
            found.append(one[valid[index]].mean())
    return float(np.mean(found)) if found else math.nan


def _sums(
    prediction: np.ndarray, truth: np.ndarray, last: np.ndarray, valid: np.ndarray | None
) -> tuple[float, float, float]:
    """(sum | |p - l| - |t - l| |, sum |p - t|, sum |t - l|)."""
    p, t, ref = (np.asarray(one, np.float64) for one in (prediction, truth, last))
    if valid is not None:
        p, t, ref = p[valid], t[valid], ref[valid]
    moved = np.abs(t - ref)
    return float(np.abs(np.abs(p - ref) - moved).sum()), float(np.abs(p - t).sum()), float(moved.sum())


def delta_rmae(prediction: np.ndarray, truth: np.ndarray, last: np.ndarray, valid: np.ndarray | None = None) -> float:
    """sum | |p - l| - |t - l| | / sum |t - l|: is the amount of change right, voxel by voxel. Copy-last has 1.

    It forgives a wrong sign; read it beside `delta_smae`. Source: Delta-LFM (arXiv 2512.09185).
    """
    amount, _, moved = _sums(prediction, truth, last, valid)
    return _share(amount, moved)


def delta_smae(prediction: np.ndarray, truth: np.ndarray, last: np.ndarray, valid: np.ndarray | None = None) -> float:
    """sum |p - t| / sum |t - l|: error over the change that there was; below 1 is better than copy-last."""
    _, off, moved = _sums(prediction, truth, last, valid)
    return _share(off, moved)


def coverage(
    lower: np.ndarray, upper: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None
) -> tuple[float, float]:
    """(share of the valid voxels whose truth lies in the interval, ends included; mean width of the interval)."""
    inside = (truth >= lower) & (truth <= upper)
    width = np.asarray(upper, np.float64) - lower
    return float((inside if valid is None else inside[valid]).mean()), float(
        (width if valid is None else width[valid]).mean()
    )


def region_volumes(labels: np.ndarray, spacing: tuple[float, float, float] | None = None) -> np.ndarray:
    """Volume of each visit's region: bool (K, D, H, W) to float64 (K,), in voxels, in mm^3 with a spacing."""
    count = labels.reshape(len(labels), -1).sum(1).astype(np.float64)
    return count if spacing is None else count * float(np.prod(spacing))


def region_change(before: np.ndarray, after: np.ndarray) -> float:
    """Relative change of a region's volume, -0.3 for one that shrank by 30 %; infinite where there was none."""
    first, second = float(np.asarray(before).sum()), float(np.asarray(after).sum())
    return _share(second - first, first) if first or second else 0.0


@dataclass(frozen=True)
class Score:
    """Figures of one forecast. amount, off, moved: sums of which the Delta figures of several are made."""

    nrmse: float
    mse: float
    ssim: float
    amount: float
    off: float
    moved: float

    @classmethod
    def of(
        cls,
        prediction: np.ndarray,
        truth: np.ndarray,
        last: np.ndarray,
        valid: np.ndarray | None,
        value_range: float,
        norm: str = "minmax",
    ) -> Score:
        """Of volumes (D, H, W)."""
        return cls(
            nrmse(prediction, truth, valid, norm), mse(prediction, truth, valid),
            slice_ssim(prediction, truth, value_range, valid), *_sums(prediction, truth, last, valid),
        )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Figures of many forecasts: NRMSE and SSIM are means, PSNR is of the mean error, Delta figures of summed ones."""

    cases: int
    nrmse: float
    psnr: float
    ssim: float
    delta_rmae: float
    delta_smae: float

    @classmethod
    def of(cls, scores: Sequence[Score], value_range: float) -> Summary:
        """Of one forecast at least."""
        moved = sum(one.moved for one in scores)
        return cls(
            len(scores), float(np.mean([one.nrmse for one in scores])),
            mean_psnr([one.mse for one in scores], value_range), float(np.mean([one.ssim for one in scores])),
            _share(sum(one.amount for one in scores), moved), _share(sum(one.off for one in scores), moved),
        )  # fmt: skip
