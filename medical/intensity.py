"""Intensities: one straight map per subject, fitted on the observed visits alone, and its inverse.

The map takes the mean over visits of their 0.5 and 99.5 percentiles to -1 and 1. A visit that is missing, or is to be
predicted, has no part in it. A constant image gets a map of slope 1, so that nothing is divided by zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from longtake.errors import UserError

LOW, HIGH = 0.5, 99.5  # percentiles
Volume = torch.Tensor


@dataclass(frozen=True)
class IntensityMap:
    """``low`` becomes -1, ``high`` becomes 1."""

    low: float
    high: float

    @classmethod
    def fit(
        cls, images: np.ndarray, observed: Sequence[bool] | np.ndarray, valid: np.ndarray | None = None
    ) -> IntensityMap:
        """images: (K, D, H, W); observed: (K,); valid: (K, D, H, W), where there are data. Raises UserError when
        nothing is observed, or an observed value is not finite."""
        ends = [
            percentiles(images[k] if valid is None else images[k][valid[k]])
            for k in range(len(images))
            if observed[k] and (valid is None or valid[k].any())
        ]
        if not ends:
            raise UserError("no visit is observed: at least one is needed")
        low, high = np.mean(ends, axis=0)
        if not np.isfinite([low, high]).all():
            raise UserError("an observed visit holds values that are not finite (NaN or Inf): mend or leave it out")
        return cls(float(low), float(high) if high > low else float(low) + 2.0)

    @property
    def half(self) -> float:
        """Native units in one unit of the net's scale."""
        return (self.high - self.low) / 2

    def forward(self, values: Volume) -> Volume:
        """Native intensities to the net's scale, float32."""
        return ((values.double() - self.low) / self.half - 1).float()

    def inverse(self, values: Volume) -> Volume:
        """The net's scale to native intensities, float32."""
        return ((values.double() + 1) * self.half + self.low).float()


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The two percentiles of one visit's values."""
    low, high = np.percentile(np.asarray(values, np.float64), [LOW, HIGH])
    return float(low), float(high)
