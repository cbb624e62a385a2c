"""Forecasts whose truth is known: each visit of a subject from all earlier ones, and what the intervals are set by.

for case in forecasts(subject):
    found = pipe.predict(case.series, case.time)        # beside case.truth, where case.scored
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from longtake.medical.calibration import Calibration, calibrate
from longtake.medical.series import Series
from longtake.medical.stacking import convex_weights, smooth

if TYPE_CHECKING:
    from longtake.medical.corpus import Subject
    from longtake.medical.pipeline import LongitudinalPipeline

NUDGE = 1e-4  # between visits of the same time, in the subject's unit: a series has no two at one time
MADE = ("simulated", "cine")  # kinds of subjects that are simulated
MOST_VOXELS = 20_000  # of a case, that a calibration looks at


@dataclass(frozen=True)
class Case:
    """series: the earlier visits. time: of the target, in the series' unit. truth: (D, H, W) float32 in 0..255. scored:
    (D, H, W) bool, where the truth and the last earlier visit have data. times: how many different earlier times there
    are."""

    series: Series
    time: float
    truth: np.ndarray
    scored: np.ndarray
    times: int


def as_series(subject: Subject, visits: np.ndarray) -> Series:
    """Some visits of a subject, by index."""
    times = subject.times.copy()
    for k in range(1, len(times)):
        times[k] = max(times[k], times[k - 1] + NUDGE)
    return Series(
        f"{subject.modality} {subject.patient}",
        subject.images[visits].astype(np.float32),
        times[visits],
        subject.unit,
        valid=None if subject.valid is None else subject.valid[visits],
        modality=subject.modality,
    )


def forecasts(subject: Subject, *, last: bool = False) -> Iterator[Case]:
    """Every visit that has an earlier one, from all visits at earlier times; last: the last alone."""
    for k in range(len(subject.times) - 1 if last else 1, len(subject.times)):
        earlier = np.flatnonzero(subject.times < subject.times[k])
        if not len(earlier):
            continue
        every = np.ones(subject.images.shape[1:], bool)
        scored = every if subject.valid is None else subject.valid[k] & subject.valid[earlier[-1]]
        truth = subject.images[k].astype(np.float32)
        different = len(np.unique(subject.times[earlier]))
        yield Case(as_series(subject, earlier), float(subject.times[k]), truth, scored, different)


def calibration_of(pipe: LongitudinalPipeline, subjects: Iterable[Subject]) -> Calibration:
    """Measure a net on subjects it was not trained on: all forecasts of the real ones, the last of simulated ones.

    First how far its mean is to be followed, and how far the mean of the history and the smooth one (see
    ``stacking``), then the intervals around what comes.
    Simulated subjects are as many as one likes, and growth is what they teach: the net's mean is followed wholly there.
    """
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for number, subject in enumerate(subjects):
        made = subject.modality in MADE
        for case in forecasts(subject, last=made):
            patient = pipe.patient(case.series)
            outlook = pipe.view(patient, case.time / patient.scale).outlook
            height, width = outlook.size
            mean, scale = (part[0, 0, :, :height, :width].cpu().numpy() for part in (outlook.mean, outlook.scale))
            truth = patient.intensity.forward(torch.from_numpy(case.truth)).numpy()
            base = patient.base(mean)
            soft = smooth(base, patient.there())
            values = np.stack([mean - truth, base - truth, soft - truth, scale])[:, case.scored]
            thinned = values[:, :: max(1, values.shape[1] // MOST_VOXELS)]
            found.setdefault(subject.modality, {}).setdefault(number, []).append(thinned)
    rows = {kind: {one: np.concatenate(parts, 1) for one, parts in those.items()} for kind, those in found.items()}
    weights = {kind: _weights(kind, list(those.values())) for kind, those in rows.items()}
    ratios = {
        kind: {one: np.abs(weights[kind] @ part[:3]) / part[3] for one, part in those.items()}
        for kind, those in rows.items()
    }
    shares, softs = ({kind: float(found[place]) for kind, found in weights.items()} for place in (0, 2))
    return calibrate(ratios, shares, softs)


def _weights(kind: str, patients: list[np.ndarray]) -> np.ndarray:
    """(3,) of the net's mean, the history's and its smooth mean; the last has a say where three patients or more do."""
    if kind in MADE:
        return np.array([1.0, 0.0, 0.0])
    count = 3 if len(patients) >= 3 else 2
    found = np.zeros(3)
    found[:count] = convex_weights([one[:count] @ one[:count].T / one.shape[1] for one in patients])
    return found
