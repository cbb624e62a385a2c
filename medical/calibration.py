"""Intervals that cover what they say: split conformal prediction with an expected error for each voxel.

After Lei et al., "Distribution-Free Predictive Inference for Regression" (arXiv 1604.04173, the locally weighted form):
on patients that the net was not trained on, |truth - mean| / scale is measured at each voxel; the interval at a new
voxel is the mean plus and minus its scale times a quantile of these. Each patient weighs the same. What is promised
holds for voxels of a patient like those, on average over patients, not for each voxel of each patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from longtake.errors import UserError

LEVELS = (0.5, 0.8, 0.9, 0.95)
NORMAL = {0.5: 0.674, 0.8: 1.282, 0.9: 1.645, 0.95: 1.96}  # without a calibration: of a normal distribution
ANY = "unknown"


@dataclass(frozen=True)
class Calibration:
    """factors: kind -> level -> how many scales the interval reaches to either side. spread: kind -> by how much the
    scale errs, as a factor. patients: kind -> how many it was measured on. shares: kind -> how far the net's mean is
    followed, away from the mean of the history: 1 wholly, 0 not at all; softs: kind -> how far the smooth mean of the
    history is (see ``stacking``)."""

    factors: dict[str, dict[str, float]] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    softs: dict[str, float] = field(default_factory=dict)

    def share(self, modality: str) -> float:
        """How far the net's mean is followed."""
        return float(self.shares.get(modality, self.shares.get(ANY, 1.0)))

    def soft(self, modality: str) -> float:
        """How far the smooth mean of the history is followed."""
        return float(self.softs.get(modality, self.softs.get(ANY, 0.0)))

    def factor(self, modality: str, level: float) -> float:
        """Of a kind and a level. Raises UserError for a level that was not measured."""
        if level not in LEVELS:
            raise UserError(f"the level of an interval must be one of {', '.join(map(str, LEVELS))}, got {level}")
        known = self.factors.get(modality, self.factors.get(ANY))
        return NORMAL[level] if known is None else float(known[str(level)])

    def amount(self, modality: str) -> float:
        """The factor of the scale when samples are drawn."""
        return float(self.spread.get(modality, self.spread.get(ANY, 1.0)))

    def known(self, modality: str) -> str:
        """In words, for a sidecar."""
        kind = modality if modality in self.factors else ANY
        if kind not in self.factors:
            return "none: the scale as the net says it, with the factor of a normal distribution"
        return f"split conformal on {self.patients.get(kind, 0)} held-back patients of kind {kind}"

    def to_json(self) -> dict[str, Any]:
        return {
            "factors": self.factors,
            "spread": self.spread,
            "patients": self.patients,
            "shares": self.shares,
            "softs": self.softs,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Raises UserError when the parts are not what ``to_json`` gives."""
        try:
            factors = {
                str(kind): {str(level): float(row[str(level)]) for level in LEVELS}
                for kind, row in value["factors"].items()
            }
            spread = {str(kind): float(number) for kind, number in value["spread"].items()}
            patients = {str(kind): int(number) for kind, number in value["patients"].items()}
            shares, softs = (
                {str(kind): float(number) for kind, number in value.get(name, {}).items()}
                for name in ("shares", "softs")
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the calibration is damaged: {error!r}") from None
        return cls(factors, spread, patients, shares, softs)


def weighted_quantile(values: Sequence[np.ndarray], level: float) -> float:
    """The quantile of pooled values, each array with the same weight in all."""
    pooled = np.concatenate([np.asarray(one, np.float64).ravel() for one in values])
    weight = np.concatenate([np.full(one.size, 1 / one.size) for one in values])
    order = np.argsort(pooled, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    return float(pooled[order][min(int(np.searchsorted(share, level)), len(pooled) - 1)])


def calibrate(
    ratios: Mapping[str, Mapping[Any, np.ndarray]],
    shares: Mapping[str, float] | None = None,
    softs: Mapping[str, float] | None = None,
) -> Calibration:
    """From kind -> patient -> ratios |truth - mean| / scale of its voxels. The kind "unknown" is made of all."""
    pooled = {f"{kind} {patient}": one for kind, rows in ratios.items() for patient, one in rows.items()}
    named = {**{kind: dict(rows) for kind, rows in ratios.items() if rows}, **({ANY: pooled} if pooled else {})}
    factors: dict[str, dict[str, float]] = {}
    spread: dict[str, float] = {}
    patients: dict[str, int] = {}
    for kind, rows in named.items():
        values = list(rows.values())
        count = len(values)
        factors[kind] = {}
        for level in LEVELS:
            factors[kind][str(level)] = weighted_quantile(values, level)
        spread[kind] = float(np.sqrt(np.mean([np.mean(np.square(np.minimum(one, 8.0))) for one in values])))
        patients[kind] = count
    return Calibration(factors, spread, patients, dict(shares or {}), dict(softs or {}))
