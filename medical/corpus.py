"""What ``longtake train medical`` trains on: real series and simulated ones, and how a batch of them is drawn.

A batch is of one group (one grid); target and history are visits of one subject, and the target is never in its own
history. All visits of a row are turned, moved and brightened alike. Every fifth patient of the training files is held
back, by rank of the patient's number: on these the intervals are calibrated.

Legend: N subjects, K visits of a subject at most, k visits of a history, D slices, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from longtake.errors import UserError, one_line
from longtake.medical.intensity import IntensityMap, percentiles
from longtake.medical.modalities import number_of, scale_of
from longtake.train import Dice
from torch.nn import functional as F

if TYPE_CHECKING:
    from longtake.medical.files.open import Choice

SETS = ("cxr", "cardiac", "glioma")
HELD_BACK = 5  # of each so many patients one
MOST_VISITS = 6  # of a history in training
SCHEMES = (0.2, 0.5, 0.1, 0.2)  # odds of the ways to draw a history
BLENDED = 0.5  # of the rows of a group that may be blended
BEND, KNOTS = 0.04, 5  # deviation of a bend, on the scale where a side is 2; its points along a side
GRIDS = ((1, 64, 64), (8, 48, 48))


@dataclass(frozen=True)
class Subject:
    """images: (K, D, H, W), grey values in about 0..255, uint8 or float16. times: (K,) float64. valid: (K, D, H, W)
    bool or None. ends: (K, 2) percentiles of each visit; None: as the images have them."""

    images: np.ndarray
    times: np.ndarray
    valid: np.ndarray | None
    modality: str
    unit: str
    patient: int
    ends: np.ndarray | None = None

    def percentiles(self) -> np.ndarray:
        """(K, 2) of each visit."""
        if self.ends is not None:
            return self.ends
        shown = [one if self.valid is None else one[self.valid[k]] for k, one in enumerate(self.images)]
        return np.array([percentiles(one) for one in shown])

    def slabs(self, slices: int, stride: int = 1) -> list[Subject]:
        """Neighbouring slices as subjects of their own, with the percentiles of the whole."""
        ends = self.percentiles()
        parts = [slice(at, at + slices) for at in range(0, self.images.shape[1] - slices + 1, stride)]
        return [
            replace(
                self,
                images=self.images[:, part],
                valid=None if self.valid is None else self.valid[:, part],
                ends=ends,
            )
            for part in parts
        ]


def _open(path: Path) -> Any:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: --data must be a folder with cxr, cardiac and glioma files") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged or no npz file: {one_line(error)[:200]}") from error


def read(data: Path, split: str) -> list[Subject]:
    """All real subjects of a split ("train" or "val") under a folder. Raises UserError for what is missing or
    damaged."""
    return [subject for name in SETS for subject in READERS[name](_open(data / f"{name}_{split}.npz"))]


def own(data: Path, choice: Choice) -> tuple[list[Subject], list[str]]:
    """Subjects of whatever ``longtake medical`` reads: BIDS, ACDC, DICOM, tables, files; and what is to be said of
    them. Visits that are missing are left out, and subjects of one visit. Grey values are brought to 0..255 between the
    percentiles of ``intensity``. Raises UserError for what cannot be read, and when no subject has two visits."""
    from longtake.medical.files.open import read_subjects

    found, alone, notes = [], [], []
    for number, series in enumerate(read_subjects(data, choice)):
        notes += [f"{series.subject}: {note}" for note in series.notes]
        seen = series.pick(np.flatnonzero(series.observed))
        if len(seen) < 2:
            alone.append(series.subject)
            continue
        ends = IntensityMap.fit(seen.images, seen.observed, seen.valid)
        grey = ((seen.images - ends.low) * (255 / (ends.high - ends.low))).clip(-255, 1020).astype(np.float16)
        found.append(Subject(grey, seen.times, seen.valid, seen.modality, seen.unit, number))
    if not found:
        raise UserError(f"{data}: no subject has two visits: there is nothing to learn from")
    if alone:
        notes.append(f"left out, with one visit alone: {', '.join(alone)}")
    return found, notes


def _cxr(file: Mapping[str, np.ndarray]) -> list[Subject]:
    out = []
    for patient in np.unique(file["patient"]):
        rows = np.flatnonzero(file["patient"] == patient)
        images, valid = file["aligned"][rows][:, None], file["aligned_valid"][rows][:, None]
        out.append(Subject(images, file["day"][rows].astype(np.float64), valid, "cxr", "days", int(patient)))
    return out


def _cardiac(file: Mapping[str, np.ndarray]) -> list[Subject]:
    out = []
    for row, patient in enumerate(file["patient"]):
        keep = file["slice_valid"][row].all(0)
        images, times = file["images"][row][:, keep], file["time"][row].astype(np.float64)
        out.append(Subject(images, times, None, "cardiac", "cycle", int(patient)))
    return out


def _glioma(file: Mapping[str, np.ndarray]) -> list[Subject]:
    out = []
    for row, patient in enumerate(file["patient"]):
        times = file["day"][row].astype(np.float64)
        valid = file["aligned_valid"][row]
        out.append(Subject(file["aligned"][row], times - times[0], valid, "glioma", "days", int(patient)))
    return out


READERS = {"cxr": _cxr, "cardiac": _cardiac, "glioma": _glioma}


def held_back(subjects: Sequence[Subject]) -> tuple[list[Subject], list[Subject]]:
    """(for training, for calibration): of each kind every fifth patient by number, from the fifth, is held back; of two
    to four patients the last."""
    train: list[Subject] = []
    aside: list[Subject] = []
    for modality in dict.fromkeys(one.modality for one in subjects):
        ordered = sorted((one for one in subjects if one.modality == modality), key=lambda one: one.patient)
        for rank, one in enumerate(ordered):
            few = 2 <= len(ordered) < HELD_BACK and rank == len(ordered) - 1
            (aside if few or rank % HELD_BACK == HELD_BACK - 1 else train).append(one)
    return train, aside


def simulated(count: int, seed: int, grids: Sequence[Sequence[int]] = GRIDS) -> list[Subject]:
    """``count`` subjects of each kind on each grid, numbered from ``seed``."""
    from longtake.medical.simulate import KINDS, simulate

    out = []
    for grid in grids:
        for kind in KINDS:
            for number in range(seed, seed + count):
                made = simulate(kind, number, grid)
                images = np.round(made.images * 255).astype(np.uint8)
                out.append(Subject(images, made.times, None, made.modality, made.unit, number))
    return out


# ------------------------------------------------------------------------------------------------------ histories


def history(
    scheme: torch.Tensor, exists: torch.Tensor, times: torch.Tensor, target: torch.Tensor, chance: torch.Tensor
) -> torch.Tensor:
    """Which visits a row may see, (B, K) bool; never its target.

    scheme: (B,) 0 "repo": the first, the one before the target, those between with probability 1/2; 1 "uniform": each
    earlier one with a probability of the row's own, one at least; 2 "single": the first alone; 3 "all": as uniform,
    but later visits too. exists: (B, K). times: (B, K) ascending. target: (B,). chance: (B, K + 1) uniform numbers, the
    last the row's own.
    """
    place = torch.arange(exists.shape[1], device=exists.device)[None]
    row = target[:, None]
    earlier = exists & (place < row)
    other = exists & (place != row)
    coin, own = chance[:, :-1], chance[:, -1:]
    own = torch.where(own < 0.4, 1.0, own)
    first = place == 0
    nearest = place == torch.where(
        other, (times - times.gather(1, row)).abs() + 1e-9 * (place > row), torch.inf
    ).argmin(1, keepdim=True)
    repo = earlier & (first | (place == row - 1) | (coin < 0.5))
    uniform = earlier & ((coin < own) | (place == row - 1) & ~((coin < own) & earlier).any(1, keepdim=True))
    every = other & ((coin < own) | nearest & ~((coin < own) & other).any(1, keepdim=True))
    masks = torch.stack([repo, uniform, earlier & first, every])
    chosen = masks[scheme, torch.arange(len(target), device=target.device)]
    return torch.where(chosen.any(1, keepdim=True), chosen, other & nearest)


def by_own_span(delta: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Times to the target (B, k) in units of the span of the observed visits, as a kind without a scale is asked
    (``modalities.scale_of``); as they are where one visit alone is observed."""
    last = torch.where(observed, delta, -torch.inf).amax(1)
    first = torch.where(observed, delta, torch.inf).amin(1)
    span = last - first
    return delta / torch.where(span > 0, span, 1.0)[:, None]


@dataclass(frozen=True)
class Batch:
    """visits: (B, k, D, H, W) on the net's scale. delta: (B, k). observed: (B, k). valid: as visits, bool. kind: (B,).
    target: (B, D, H, W). scored: (B, D, H, W) bool. whole: (B,) bool, False for a blend of two patients."""

    visits: torch.Tensor
    delta: torch.Tensor
    observed: torch.Tensor
    valid: torch.Tensor
    kind: torch.Tensor
    target: torch.Tensor
    scored: torch.Tensor
    whole: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order of the fields."""
        return (self.visits, self.delta, self.observed, self.valid, self.kind, self.target, self.scored, self.whole)


@dataclass(frozen=True)
class Group:
    """Subjects of one grid, on one device.

    images: (N, K, D, H, W). valid: the same, bool, or None. times: (N, K) in units of the scale, of a kind without one
    in its usual unit. exists: (N, K). ends: (N, K, 2) percentiles of each visit. kind: (N,). odds: (N,). turns: whether
    quarter turns are allowed; bends: smooth bends; blends: blends of two patients. rows: of a batch. schemes: (4,) odds
    of those of ``history``.
    """

    images: torch.Tensor
    valid: torch.Tensor | None
    times: torch.Tensor
    exists: torch.Tensor
    ends: torch.Tensor
    kind: torch.Tensor
    odds: torch.Tensor
    turns: bool
    rows: int
    schemes: torch.Tensor
    bends: bool = False
    blends: bool = False

    @classmethod
    def of(
        cls, subjects: Sequence[Subject], rows: int, *, turns: bool, bends: bool = False, blends: bool = False
    ) -> Group:
        """Subjects of two visits or more, all of one grid; shorter series are padded with visits that do not exist."""
        subjects = [one for one in subjects if len(one.times) > 1]
        most = max(len(one.times) for one in subjects)
        count, grid = len(subjects), subjects[0].images.shape[1:]
        coarse = all(one.images.dtype == np.uint8 for one in subjects)
        images = np.zeros((count, most, *grid), np.uint8 if coarse else np.float16)
        masked = any(one.valid is not None for one in subjects)
        valid = np.ones((count, most, *grid), bool) if masked else None
        times, exists, ends = np.zeros((count, most)), np.zeros((count, most), bool), np.zeros((count, most, 2))
        for n, one in enumerate(subjects):
            k = len(one.times)
            images[n, :k], exists[n, :k] = one.images, True
            times[n, :k] = one.times / scale_of(one.modality, one.unit, [])
            times[n, k:] = times[n, k - 1]
            ends[n, :k] = one.percentiles()
            if valid is not None and one.valid is not None:
                valid[n, :k] = one.valid
        odds = torch.tensor([math.sqrt(len(one.times) - 1) for one in subjects])
        kind = torch.tensor([number_of(one.modality) for one in subjects])
        made = [torch.from_numpy(images), torch.from_numpy(times).float(), torch.from_numpy(exists)]
        checked = None if valid is None else torch.from_numpy(valid)
        first = (made[0], checked, made[1], made[2], torch.from_numpy(ends).float(), kind, odds)
        return cls(*first, turns, rows, torch.tensor(SCHEMES), bends, blends)

    def to(self, device: torch.device) -> Group:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)

    def batch(self, dice: Dice) -> Batch:
        """One batch; a function of the dice alone."""
        rows = self.rows
        subject = dice.pick(self.odds, rows)
        exists, times = self.exists[subject], self.times[subject]
        count = exists.sum(1)
        target = 1 + dice.below(count - 1)
        scheme = dice.pick(self.schemes, rows)
        back = (scheme == 3) & (dice.uniform(rows) < 0.3)
        target = torch.where(back, dice.below(count), target)
        seen = history(scheme, exists, times, target, dice.uniform(rows, exists.shape[1] + 1))
        order = (seen + 0.5 * dice.uniform(*seen.shape)).topk(min(MOST_VISITS, seen.shape[1]), 1).indices
        observed = seen.gather(1, order)
        delta = times.gather(1, order) - times.gather(1, target[:, None])
        kind = self.known(subject, dice)
        delta = torch.where(kind[:, None] == 0, by_own_span(delta, observed), delta)
        picked = torch.cat([order, target[:, None]], 1)
        values, shown = self.scaled(subject, picked, observed)
        whole = torch.ones(rows, dtype=torch.bool, device=values.device)
        if self.blends:
            values, shown, whole = self.blended(values, shown, dice)
        shift, gain = 1 + 0.05 * dice.normal(rows), 1 + 0.05 * dice.normal(rows)
        values = values / gain[:, None, None, None, None] - shift[:, None, None, None, None]
        values, shown = self.moved(values, shown, dice)
        return Batch(
            values[:, :-1],
            delta,
            observed,
            shown[:, :-1],
            kind,
            values[:, -1],
            shown[:, -1],
            whole,
        )

    def scaled(
        self, subject: torch.Tensor, picked: torch.Tensor, observed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visits ``picked`` (B, k + 1), the last the target, in 0..2 by the percentiles of the observed ones of the
        history (B, k); and where they have data."""
        line = subject[:, None]
        ends = self.ends[line, picked[:, :-1]]
        low, high = ((ends * observed[..., None]).sum(1) / observed.sum(1, keepdim=True)).unbind(1)
        values = self.images[line, picked].float()
        half = ((high - low) / 2).clamp_min(1.0)
        values = (values - low[:, None, None, None, None]) / half[:, None, None, None, None]
        shown = torch.ones_like(values, dtype=torch.bool) if self.valid is None else self.valid[line, picked]
        return values, shown

    def blended(
        self, values: torch.Tensor, shown: torch.Tensor, dice: Dice
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows with another patient's visits laid over them, history over history and target over target (mixup, Zhang
        et al., arXiv 1710.09412), and which rows stayed whole. No target is laid over a history."""
        rows, visits = values.shape[:2]
        other = dice.pick(self.odds, rows)
        target = 1 + dice.below(self.exists[other].sum(1) - 1)
        earlier = dice.below(target[:, None].expand(rows, visits - 1).contiguous())
        picked = torch.cat([earlier, target[:, None]], 1)
        theirs, seen = self.scaled(other, picked, torch.ones_like(earlier, dtype=torch.bool))
        whole = dice.uniform(rows) >= BLENDED
        mine = torch.where(whole, 1.0, 0.5 + 0.5 * dice.uniform(rows))[:, None, None, None, None]
        kept = whole[:, None, None, None, None]
        return torch.where(kept, values, mine * values + (1 - mine) * theirs), shown & (seen | kept), whole

    def known(self, subject: torch.Tensor, dice: Dice) -> torch.Tensor:
        """The kind of each row, one in ten of them "unknown"."""
        return torch.where(dice.uniform(len(subject)) < 0.1, 0, self.kind[subject])

    def moved(self, values: torch.Tensor, shown: torch.Tensor, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
        """All visits of a row turned, scaled, moved, bent and flipped alike; what comes from outside is not shown."""
        rows = len(values)
        turn = 0.08 * dice.normal(rows)
        if self.turns:
            turn = turn + dice.integers(4, rows) * (math.pi / 2)
        size = 1 + 0.06 * dice.normal(rows)
        flip = 1.0 - 2 * dice.integers(2, rows)
        cos, sin = torch.cos(turn) * size, torch.sin(turn) * size
        shift = 0.06 * dice.normal(rows, 2)
        matrix = torch.stack(
            [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1
        )
        flat = torch.cat([values.flatten(1, 2), shown.flatten(1, 2).float()], 1)
        field = F.affine_grid(matrix, [rows, 1, *values.shape[3:]], align_corners=False)
        if self.bends:
            coarse = BEND * dice.normal(rows, 2, KNOTS, KNOTS)
            bend = F.interpolate(coarse, size=values.shape[3:], mode="bicubic", align_corners=True)
            field = field + bend.permute(0, 2, 3, 1)
        inside = (field.abs() <= 1).all(-1)[:, None]
        flat = F.grid_sample(flat, field, mode="bilinear", padding_mode="border", align_corners=False)
        moved, mask = flat.chunk(2, 1)
        return moved.reshape(values.shape), ((mask > 0.99) & inside).reshape(values.shape)


# ------------------------------------------------------------------------------------------------------ one file


def save(path: Path, subjects: Sequence[Subject]) -> Path:
    """Write real subjects as the file that ``--prepared`` reads; simulated ones are made again from their numbers."""
    from longtake import prepared

    arrays: dict[str, np.ndarray] = {}
    for row, one in enumerate(subjects):
        arrays[f"images_{row}"], arrays[f"times_{row}"] = one.images, one.times
        if one.valid is not None:
            arrays[f"valid_{row}"] = np.packbits(one.valid)
    facts = [{"modality": one.modality, "unit": one.unit, "patient": one.patient} for one in subjects]
    return prepared.save(path, "medical", arrays, {"subjects": facts})


def load(path: Path) -> list[Subject]:
    """The subjects of a file that ``save`` wrote. Raises UserError for any other file."""
    from longtake import prepared

    arrays, facts = prepared.load(path, "medical")
    try:
        out = []
        for row, fact in enumerate(facts["subjects"]):
            images, packed = arrays[f"images_{row}"], arrays.get(f"valid_{row}")
            valid = None
            if packed is not None:
                valid = np.unpackbits(packed, count=images.size).astype(bool).reshape(images.shape)
            told = fact["modality"], fact["unit"], int(fact["patient"])
            out.append(Subject(images, arrays[f"times_{row}"], valid, *told))
        return out
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the prepared medical data lack something or do not fit together: {error}") from error
