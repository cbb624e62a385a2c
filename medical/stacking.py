"""Three means of one scan become one: the net's, the history's, and the history's made smooth.

With few patients a net knows its own by heart and says too much of a new one; a mean of misaligned scans keeps ribs
that will not be there. Weights of 0 or more that sum to 1, found on held-back patients, say how far each is followed:
stacked regressions (Breiman 1996).

Legend: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

WIDTH = 3 / 128  # deviation of the smoothing, as a share of the longer side of a slice


def smooth(mean: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(D, H, W) float64: each slice smoothed by a Gaussian over the voxels that are ``there`` (D, H, W) bool; the
    others as they were."""
    from scipy.ndimage import gaussian_filter

    deviation = WIDTH * max(mean.shape[1:])
    share = there.astype(np.float64)
    sums = gaussian_filter(np.where(there, mean, 0.0), (0, deviation, deviation))
    weight = gaussian_filter(share, (0, deviation, deviation))
    return np.where(there, sums / np.where(there, weight, 1.0), mean)


def stacked(net: np.ndarray, base: np.ndarray, there: np.ndarray, share: float, soft: float) -> np.ndarray:
    """``share`` of the net's mean, ``soft`` of the smooth mean of the history, the rest of the history's mean;
    (D, H, W) each. A share of 1 returns the net's as it is."""
    if share == 1:
        return net
    made: np.ndarray = base + share * (net - base)
    return made + soft * (smooth(base, there) - base) if soft else made


def convex_weights(grams: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) weights of n forecasts, 0 or more, that sum to 1 and make the squared error least. grams: for each patient
    the (n, n) mean products of the forecasts' errors; patients weigh the same. Found exactly: the best on each face of
    the simplex, and of these the best that lies on it."""
    gram = np.sum(grams, 0)
    count = len(gram)
    ridge = 1e-9 * max(float(np.trace(gram)), 1e-12)
    best, found = np.inf, np.full(count, 1 / count)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            part = gram[np.ix_(chosen, chosen)] + ridge * np.eye(size)
            weights = np.linalg.solve(part, np.ones(size))
            weights /= weights.sum()
            error = float(weights @ part @ weights)
            if (weights >= 0).all() and error < best:
                best = error
                found = np.zeros(count)
                found[list(chosen)] = weights
    return found
