"""What a prediction is: samples on the input's grid and intensities, and an interval around their mean.

Legend: S samples, T times, D slices, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from longtake.medical.series import Series


@dataclass
class Prediction:
    """samples: (S, T, D, H, W) float32, in the intensities of the input. times: (T,) float64 in ``unit``. generated:
    (T,) bool, False where the scan was observed and is returned as it is. level: of the interval. lower, upper: (T, D,
    H, W) float32, its ends. expected: (T, D, H, W) the net's mean, what the mean of many samples goes to. error: (T,
    D, H, W) its expected error (one scale). info: how it was made.
    """

    samples: np.ndarray
    times: np.ndarray
    unit: str
    series: Series
    level: float
    lower: np.ndarray
    upper: np.ndarray
    expected: np.ndarray
    error: np.ndarray
    generated: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> np.ndarray:
        """(T, D, H, W) float32 over samples. Smooth: no scan looks like it; see ``samples``."""
        return self._over(self.samples.mean(0, dtype=np.float64))

    @property
    def std(self) -> np.ndarray:
        """(T, D, H, W) float32 over samples; zeros for one sample."""
        return self.samples.std(0, dtype=np.float64).astype(np.float32)

    @property
    def median(self) -> np.ndarray:
        """(T, D, H, W) float32 over samples."""
        return self._over(np.median(self.samples, 0))

    def quantile(self, level: float) -> np.ndarray:
        """(T, D, H, W) float32 of the samples, not calibrated."""
        return self._over(np.quantile(self.samples, level, axis=0))

    def _over(self, value: np.ndarray) -> np.ndarray:
        """As float32; an observed scan stays what it is, to the bit."""
        out: np.ndarray = value.astype(np.float32)
        kept = ~self.generated
        out[kept] = self.samples[0][kept]
        return out
