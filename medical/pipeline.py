"""From a patient's scans to scans at other times, with samples and an interval.

    pipe = LongitudinalPipeline.from_prior("scans-small")
    found = pipe.predict(series, at=[24], unit="months", samples=8)
    found.mean, found.lower, found.upper, found.samples          # (1, D, H, W) thrice, (8, 1, D, H, W)

A time that was observed comes back as it is, to the bit. Others are predicted in the order of their distance from what
was observed; with ``history="all"`` a sample's own earlier predictions are part of the history of the next.

Legend: S samples, T times, K visits, D slices, H rows, W columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.medical.calibration import Calibration
from longtake.medical.diffusion import SCHEDULERS
from longtake.medical.intensity import IntensityMap
from longtake.medical.modalities import number_of, scale_of
from longtake.medical.net import LongitudinalNet
from longtake.medical.prediction import Prediction
from longtake.medical.ranks import SPLITS, Team
from longtake.medical.sampling import Recipe, View, draw_rest, finished, look, start_noise
from longtake.medical.series import Series, convert
from longtake.medical.stacking import stacked
from longtake.medical.windows import windows

if TYPE_CHECKING:
    from typing import Self

    from longtake.distributed import Ranks
    from longtake.journal import Journal

HISTORIES = ("observed", "all")
PRIOR = "scans-small"
STEPS = 12
CARD = "model_index.json"
OnSample = Callable[[int, int], bool | None]


@dataclass
class _Patient:
    """A series as the net sees it: visits (K, D, H, W) on its scale, times (K,) in units of its scale."""

    visits: torch.Tensor
    times: np.ndarray
    observed: np.ndarray
    valid: torch.Tensor | None
    scale: float
    intensity: IntensityMap
    number: int

    def base(self, otherwise: np.ndarray, before: float | None = None) -> np.ndarray:
        """The mean of the history (D, H, W): at each voxel of the observed visits that have data there, ``otherwise``
        where none has. before: of earlier visits alone."""
        visits, valid = self._taken(before)
        count = valid.sum(0)
        return np.where(count > 0, (visits * valid).sum(0) / np.maximum(count, 1), otherwise)

    def there(self, before: float | None = None) -> np.ndarray:
        """(D, H, W) bool: where an observed visit has data."""
        return np.asarray(self._taken(before)[1].any(0))

    def _taken(self, before: float | None) -> tuple[np.ndarray, np.ndarray]:
        taken = self.observed if before is None else self.observed & (self.times < before)
        visits = self.visits.numpy()[taken].astype(np.float64)
        return visits, np.ones_like(visits, bool) if self.valid is None else self.valid.numpy()[taken]


class LongitudinalPipeline:
    """A net, its calibration, and how it is asked. weights: a hash that names them. See the module."""

    def __init__(
        self, net: LongitudinalNet, calibration: Calibration | None = None, *, name: str = "", weights: str = ""
    ) -> None:
        self.net = net.eval()
        self.calibration = Calibration() if calibration is None else calibration
        self.name, self.weights = name, weights

    @classmethod
    def from_prior(cls, prior: str | os.PathLike[str] = PRIOR, *, device: Any = None, dtype: Any = None) -> Self:
        """A prior that ships, by name, or a folder that ``save`` wrote. device: default the CPU; dtype: default
        float32.

        Raises UserError for a prior there is not, or a damaged one.
        """
        from longtake.priors import WRONG_VALUES
        from longtake.reading import read_json_object
        from longtake.weights import WEIGHT_SUFFIXES, file_hash, resolve
        from safetensors import SafetensorError

        folder = resolve(prior, kind="medical prior", priors_package="longtake.medical")
        if not (folder / CARD).is_file():
            raise UserError(f"{folder} is no medical prior: it has no {CARD}")
        if read_json_object(folder / CARD).get("_class_name") != cls.__name__:
            raise UserError(f"{folder} is no medical prior: its {CARD} names another class")
        calibration = Calibration.from_json(read_json_object(folder / "calibration.json"))
        try:
            net = LongitudinalNet.from_pretrained(folder / "net", local_files_only=True)
        except (SafetensorError, OSError, EOFError, *WRONG_VALUES) as error:
            from longtake.errors import one_line

            raise UserError(f"the medical prior in {folder} cannot be loaded: {one_line(error)[:400]}") from error
        pipe = cls(
            net.float() if dtype is None else torch.nn.Module.to(net, dtype=dtype),
            calibration,
            name=folder.name,
            weights=file_hash(folder, WEIGHT_SUFFIXES),
        )
        return pipe if device is None else pipe.to(device)

    def save(self, folder: Path) -> Path:
        """Write the prior: the net in float16, the calibration. Returns the folder."""
        import copy
        import json

        from longtake.journal import atomic_path

        folder.mkdir(parents=True, exist_ok=True)
        half = copy.deepcopy(self.net).cpu().half()
        half.save_pretrained(folder / "net", safe_serialization=True)
        texts = {
            CARD: {"_class_name": type(self).__name__, "net": ["longtake.medical.net", "LongitudinalNet"]},
            "calibration.json": self.calibration.to_json(),
        }
        for name, value in texts.items():
            with atomic_path(folder / name) as partial:
                partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        return folder

    def to(self, device: Any) -> Self:
        """Move the net."""
        self.net.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return self.net.device

    def predict(
        self,
        series: Series,
        at: Sequence[float] | float,
        unit: str | None = None,
        *,
        samples: int = 8,
        num_inference_steps: int = STEPS,
        guidance_scale: float = 1.0,
        scheduler: str = "dpm",
        history: str = "observed",
        causal: bool = False,
        window: Sequence[int] | None = None,
        level: float = 0.9,
        seed: int = 0,
        ranks: Ranks | None = None,
        split: str = "samples",
        store: Journal | None = None,
        on_sample: OnSample | None = None,
    ) -> Prediction:
        """Scans at other times.

        at: times in ``unit`` (default: the series' own). samples: S; two by two from one noise and its mirror image.
        guidance_scale: 1 is none. scheduler: "ddim", "ddpm" or "dpm". history: "observed" predicts each time from
        observed visits alone; "all" adds what the sample has predicted. causal: a time is predicted from earlier visits
        alone. window: (slices, rows, columns) that the net sees at once. ranks: several share the work; split: what is
        dealt out among them, "samples", or the "slices" or "visits" of each scan; all get the whole result. store: a
        journal that keeps each finished sample, and from which a killed run goes on to the same result. on_sample:
        called with (samples done, S) after each; True ends the run with the samples there are.
        Raises UserError for settings that cannot be and for a series without an observed visit.
        """
        times = checked_times(series, at, unit)
        _check(samples, num_inference_steps, guidance_scale, scheduler, history, seed)
        if split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        shared = ranks is not None and ranks.world > 1 and split != "samples"
        if shared and window is not None:
            raise UserError("a window and ranks that split slices or visits do not go together: split samples")
        factor = self.calibration.factor(series.modality, level)
        recipe = Recipe(num_inference_steps, float(guidance_scale), scheduler, seed)
        patient = self.patient(series)
        plan = Rollout(self, series, patient, times, recipe, history == "all", causal, window, ranks, split)
        done = _each_pair(plan, samples, ranks, store, on_sample)
        drawn, means, scales = (np.stack([one[name] for one in done]) for name in ("sample", "mean", "scale"))
        expected = means.mean(0, dtype=np.float64)
        generated = np.array([index is None for index in plan.known])
        share, soft = self.calibration.share(series.modality), self.calibration.soft(series.modality)
        for place in np.flatnonzero(generated).tolist() if share != 1 else ():
            before = float(times[place]) / patient.scale if causal else None
            base = patient.base(expected[place], before)
            shift = stacked(expected[place], base, patient.there(before), share, soft) - expected[place]
            expected[place] += shift
            drawn[:, place] += shift.astype(drawn.dtype)
        error = np.sqrt(np.square(scales).mean(0, dtype=np.float64) + means.var(0, dtype=np.float64))
        half = patient.intensity.half * factor
        reach = np.where(generated[:, None, None, None], error * half, 0.0)
        native = patient.intensity.inverse(torch.from_numpy(expected)).numpy()
        values = patient.intensity.inverse(torch.from_numpy(drawn)).numpy()
        for place, index in enumerate(plan.known):
            if index is not None:
                values[:, place] = native[place] = series.images[index]
        info = {
            "model": self.name,
            "weights": self.weights,
            "seed": seed,
            "samples": len(done),
            "scheduler": scheduler,
            "steps": num_inference_steps,
            "guidance": float(guidance_scale),
            "history": history,
            "causal": causal,
            "window": None if window is None else [int(side) for side in window],
            "observed": [bool(flag) for flag in series.observed],
            "generated": [bool(flag) for flag in generated],
            "level": level,
            "calibration": self.calibration.known(series.modality),
            "intensity_map": [patient.intensity.low, patient.intensity.high],
            "synthetic": True,
        }
        return Prediction(
            samples=values,
            times=times,
            unit=series.unit,
            series=series,
            level=level,
            lower=(native - reach).astype(np.float32),
            upper=(native + reach).astype(np.float32),
            expected=native,
            error=(error * patient.intensity.half).astype(np.float32),
            generated=generated,
            info=info,
        )

    def patient(self, series: Series) -> _Patient:
        """A series as the net sees it. Raises UserError when no visit is observed."""
        intensity = IntensityMap.fit(series.images, series.observed, series.valid)
        shown = torch.from_numpy(np.where(series.observed[:, None, None, None], series.images, intensity.low))
        scale = scale_of(series.modality, series.unit, list(series.observed_times))
        valid = None if series.valid is None else torch.from_numpy(series.valid)
        kind = number_of(series.modality)
        return _Patient(
            intensity.forward(shown), series.times / scale, np.asarray(series.observed), valid, scale, intensity, kind
        )

    def view(
        self, patient: _Patient, time: float, window: Sequence[int] | None = None, team: Team | None = None
    ) -> View:
        """What the net knows of a patient's scan at a time (in units of the patient's scale); with a team that deals
        out slices, of this rank's."""
        device, dtype = self.net.device, self.net.dtype
        visits = patient.visits[None].to(device, dtype)
        valid = None if patient.valid is None else patient.valid[None].to(device)
        own = None if team is None else team.own_slices
        if own is not None:
            visits = visits[:, :, own]
            valid = None if valid is None else valid[:, :, own]
        shape = (visits.shape[2], *(side + -side % self.net.step for side in visits.shape[3:]))
        cut = windows(shape, window, self.net.step)
        size = (visits.shape[3], visits.shape[4])
        if cut is not None:
            visits = self.net.padded(visits)
            valid = None if valid is None else self.net.padded(valid.float()) > 0.5
        found = look(
            self.net,
            cut,
            visits,
            torch.from_numpy(patient.times - time)[None].float().to(device),
            torch.from_numpy(patient.observed)[None].to(device),
            torch.tensor([patient.number], device=device),
            valid,
            team,
        )
        found.outlook.size = size
        return found


@dataclass
class Rollout:
    """All times of one request, for one pair of samples after another. known: for each time the observed visit that it
    is, or None."""

    pipe: LongitudinalPipeline
    series: Series
    patient: _Patient
    times: np.ndarray
    recipe: Recipe
    chained: bool
    causal: bool
    window: Sequence[int] | None
    ranks: Ranks | None = None
    split: str = "samples"

    def __post_init__(self) -> None:
        observed = np.flatnonzero(self.series.observed)
        self.known: list[int | None] = []
        for time in self.times:
            same = [int(k) for k in observed if math.isclose(self.series.times[k], time, rel_tol=1e-9, abs_tol=1e-9)]
            self.known.append(same[0] if same else None)
        away = [min(abs(float(time - self.series.times[k])) for k in observed) for time in self.times]
        self.order = sorted(range(len(self.times)), key=lambda place: (away[place], self.times[place]))
        self.views: dict[int, View] = {}

    def pair(self, numbers: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """The samples with these numbers: "sample", "mean", "scale", (T, D, H, W) float32 each on the net's scale."""
        spread = self.pipe.calibration.amount(self.series.modality)
        grid = self.patient.visits.shape[1:]
        out = [
            {name: np.zeros((len(self.times), *grid), np.float32) for name in ("sample", "mean", "scale")}
            for _ in numbers
        ]
        histories = [self.patient] * len(numbers)
        for place in self.order:
            index = self.known[place]
            if index is not None:
                for one in out:
                    one["sample"][place] = one["mean"][place] = self.patient.visits[index].numpy()
                continue
            time = float(self.times[place]) / self.patient.scale
            rows = list(zip(numbers, out, strict=True))
            if self.chained:
                groups = [([row], self.seen(patient, time)) for row, patient in zip(rows, histories, strict=True)]
            else:
                if place not in self.views:
                    self.views[place] = self.seen(self.patient, time)
                groups = [(rows, self.views[place])]
            for held, view in groups:
                drawn = self.drawn(view, place, [row[0] for row in held], spread)
                mean, scale = (self.whole(known(view, part)[None])[0] for part in ("mean", "scale"))
                for (_, one), sample in zip(held, drawn, strict=True):
                    one["sample"][place], one["mean"][place], one["scale"][place] = sample, mean, scale
            if self.chained:
                histories = [
                    _grown(patient, one["sample"][place], time) for patient, one in zip(histories, out, strict=True)
                ]
        return out

    def seen(self, patient: _Patient, time: float) -> View:
        """What is known of a time, from earlier visits alone where that was asked for."""
        if self.causal:
            earlier = patient.observed & (patient.times < time)
            if not earlier.any():
                raise UserError("causal: a time before the first observed visit has nothing to be predicted from")
            patient = _Patient(**{**vars(patient), "observed": earlier})
        return self.pipe.view(patient, time, self.window, self.team(len(patient.times)))

    def team(self, visits: int) -> Team | None:
        """Who shares the work on one scan; None where samples are dealt out, or there is one rank."""
        if self.ranks is None or self.ranks.world == 1 or self.split == "samples":
            return None
        from longtake.kernels.ranks.transport import Transport

        return Team.over(self.split, Transport(self.ranks.group), visits, self.patient.visits.shape[1])

    def whole(self, part: np.ndarray) -> np.ndarray:
        """(S, D, H, W) of all slices, from each rank's own where slices are dealt out."""
        if self.ranks is None or self.ranks.world == 1 or self.split != "slices":
            return part
        return np.concatenate(self.ranks.gather_object(part), 1)

    def drawn(self, view: View, place: int, numbers: Sequence[int], spread: float) -> np.ndarray:
        """(S, D, H, W) float32 on the net's scale."""
        shape = view.outlook.mean.shape[2:]
        own = None if view.team is None else view.team.own_slices
        first = 0 if own is None else own.start
        target, slices = self.stream(place), range(first, first + shape[0])
        start = torch.stack([start_noise(self.recipe.seed, n, target, slices, (shape[1], shape[2])) for n in numbers])
        rest = draw_rest(view, self.recipe, start, numbers, first=first)
        return self.whole(finished(view.outlook, rest, spread).float().cpu().numpy())

    def stream(self, place: int) -> int:
        """The number of a time's noise: its rank among the times asked for."""
        return int(np.argsort(np.argsort(self.times))[place])


def known(view: View, part: str) -> np.ndarray:
    """(D, H, W) float32 "mean" or "scale" of a view, cut back to the size that was asked for."""
    height, width = view.outlook.size
    found: np.ndarray = getattr(view.outlook, part)[0, 0, :, :height, :width].float().cpu().numpy()
    return found


def _grown(patient: _Patient, scan: np.ndarray, time: float) -> _Patient:
    """A patient with one more visit."""
    valid = patient.valid
    if valid is not None:
        valid = torch.cat([valid, torch.ones_like(valid[:1])])
    return _Patient(
        torch.cat([patient.visits, torch.from_numpy(scan)[None]]),
        np.append(patient.times, time),
        np.append(patient.observed, True),
        valid,
        patient.scale,
        patient.intensity,
        patient.number,
    )


def checked_times(series: Series, at: Sequence[float] | float, unit: str | None) -> np.ndarray:
    """(T,) float64 in the series' unit. Raises UserError for no time, a time twice, one that is not finite."""
    asked = np.atleast_1d(np.asarray(at, np.float64))
    if asked.ndim != 1 or not len(asked):
        raise UserError("at: at least one time to predict is needed")
    if not np.isfinite(asked).all():
        raise UserError("at: each time must be a finite number")
    if len(np.unique(asked)) < len(asked):
        raise UserError(f"at: each time once, got {', '.join(f'{time:g}' for time in asked)}")
    times: np.ndarray = np.asarray(convert(asked, unit or series.unit, series.unit), np.float64)
    return times


def _check(samples: int, steps: int, guidance: float, scheduler: str, history: str, seed: int) -> None:
    if samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    if not 1 <= steps <= 1000:
        raise UserError(f"steps must be from 1 to 1000, got {steps}")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UserError(f"guidance must be a number of 0 or more, got {guidance}")
    if scheduler not in SCHEDULERS:
        raise UserError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {scheduler!r}")
    if history not in HISTORIES:
        raise UserError(f"history must be {' or '.join(HISTORIES)}, got {history!r}")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed must be from 0 to 2**64 - 1, got {seed}")


def _each_pair(
    plan: Rollout, samples: int, ranks: Ranks | None, store: Journal | None, on_sample: OnSample | None
) -> list[dict[str, np.ndarray]]:
    """All samples in their order, on every rank; pairs are dealt out over ranks, and kept in the store as they
    finish."""
    from longtake.journal import piece_name

    pairs = [list(range(first, min(first + 2, samples))) for first in range(0, samples, 2)]
    dealt = ranks is not None and plan.split == "samples"
    rank, world = (ranks.rank, ranks.world) if ranks is not None and dealt else (0, 1)
    writes = dealt or ranks is None or ranks.is_main
    kept = store.complete_sets("sample") if store is not None else {}
    if ranks is not None:
        ranks.barrier()  # nobody writes before all have looked
    mine: dict[int, dict[str, np.ndarray]] = {}
    ended = False
    for numbers in pairs[rank::world]:
        if ended:
            break
        if store is not None and all(number in kept for number in numbers):
            for number in numbers:
                read = store.read_tensors(kept[number][0].name)
                mine[number] = {name: tensor.numpy() for name, tensor in read.items()}
        else:
            for number, one in zip(numbers, plan.pair(numbers), strict=True):
                mine[number] = one
                if store is not None and writes:
                    store.write_tensors(
                        piece_name("sample", number), {name: torch.from_numpy(value) for name, value in one.items()}
                    )
        if on_sample is not None:
            ended = bool(on_sample(len(mine), sum(map(len, pairs[rank::world]))))
        if ranks is not None and not dealt:
            ended = ranks.broadcast_object(ended)
    everyone = [mine] if ranks is None or not dealt else ranks.gather_object(mine)
    joined = {number: one for part in everyone for number, one in part.items()}
    return [joined[number] for number in sorted(joined)]
