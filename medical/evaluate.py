"""``longtake evaluate medical``: forecasts of held-out visits beside what anybody would try first.

Every visit is forecast from all at earlier times. Rows that are always there: copy-last, a line through the last two
times, the mean of the history, ours. NRMSE is over max - min of the truth; PSNR is of the mean error; Delta-RMAE and
Delta-SMAE are of the difference from the last image (see ``metrics``); coverage and width are of our interval.

    longtake evaluate medical --data DATA --samples 8

DATA: a folder with cxr, cardiac and glioma npz files of a split, or any place that ``longtake medical`` reads.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError
from longtake.evaluation import Table, figure, told_command, write_table
from longtake.medical.baselines import ROWS, copy_last, linear, repeat_gap
from longtake.medical.metrics import Score, Summary, coverage, region_change
from longtake.medical.series import Series

if TYPE_CHECKING:
    from longtake.medical.pipeline import LongitudinalPipeline
    from longtake.medical.prediction import Prediction

NORM = "minmax"
SETS = ("cxr", "cardiac", "glioma")
SIMULATED_FROM = 10_000_000  # numbers of simulated subjects, far from those of training
BEYOND = 1.4  # times the span of training
SHUFFLED = "ours, times shuffled"


@dataclass(frozen=True)
class Case:
    """history: visits at earlier times. truth: float32 (D, H, W). valid: where truth and last image have data. low,
    high: the range that is 0 to 1 in all figures. labels: region of the truth, if known. times: different ones in the
    history."""

    history: Series
    at: float
    truth: np.ndarray
    valid: np.ndarray | None
    low: float
    high: float
    labels: np.ndarray | None
    times: int

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """Grey values with the range as 0 to 1, float64."""
        return (np.asarray(image, np.float64) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Row:
    """A line of the table. coverage, width: of the interval, None for what has none; region: mean relative change of
    the region, None without labels."""

    data: str
    label: str
    cases: int
    nrmse: float
    psnr: float
    ssim: float
    delta_rmae: float
    delta_smae: float
    coverage: float | None = None
    width: float | None = None
    region: float | None = None
    seconds: float | None = None


TABLE = Table(
    {
        "data": lambda row: row.data,
        "forecast": lambda row: row.label,
        "cases": lambda row: str(row.cases),
        f"NRMSE ({NORM})": lambda row: figure(row.nrmse, 4),
        "PSNR dB": lambda row: figure(row.psnr, 2),
        "SSIM": lambda row: figure(row.ssim, 4),
        "Delta-RMAE": lambda row: figure(row.delta_rmae, 3),
        "Delta-SMAE": lambda row: figure(row.delta_smae, 3),
        "coverage": lambda row: figure(row.coverage, 3),
        "width": lambda row: figure(row.width, 3),
        "region": lambda row: "-" if row.region is None else f"{100 * row.region:+.0f} %",
    }
)


def cases_of(series: Series, truths: np.ndarray | None = None) -> Iterator[Case]:
    """Every observed visit that has an earlier time. truths: (K, D, H, W), what is scored against instead."""
    gap = repeat_gap(series)
    for index in np.flatnonzero(series.observed):
        earlier = np.flatnonzero((series.times < series.times[index] - gap) & series.observed)
        if not len(earlier):
            continue
        history = series.pick(earlier)
        low, high = 0.0, 255.0
        if series.geometry is None or series.geometry.kind != "npz":
            low, high = (float(end) for end in (history.images.min(), history.images.max()))
            high = high if high > low else low + 1
        valid = None if series.valid is None or history.valid is None else series.valid[index] & history.valid[-1]
        if valid is not None and not valid.any():
            continue
        labels = None if series.labels is None or not series.labels[index].any() else series.labels[index]
        truth = series.images[index] if truths is None else truths[index]
        different = 1 + int((np.diff(series.times[earlier]) > gap).sum())
        yield Case(history, float(series.times[index]), truth, valid, low, high, labels, different)


def shuffled(history: Series, seed: int) -> Series:
    """The same images at each other's times, none at its own where that can be."""
    count = len(history)
    order = np.random.default_rng(seed).permutation(count)
    shift = np.roll(order, 1)
    chosen = np.empty(count, np.intp)
    chosen[order] = shift
    labels = None if history.labels is None else history.labels[chosen]
    valid = None if history.valid is None else history.valid[chosen]
    return replace(history, images=history.images[chosen], valid=valid, labels=labels)


def region_of(image: np.ndarray, case: Case) -> np.ndarray | None:
    """The region in a forecast, by one rule for all: near the last visit's region and on its side of the grey value
    between it and its surroundings. None without a region in the last visit."""
    from scipy.ndimage import binary_dilation

    if case.history.labels is None or not case.history.labels[-1].any():
        return None
    label = case.history.labels[-1]
    square = np.ones((1, 3, 3), bool)
    near = binary_dilation(label, square, 3)
    ring = binary_dilation(label, square, 6) & ~label
    last = case.history.images[-1]
    inside, outside = float(last[label].mean()), float(last[ring].mean())
    middle = (inside + outside) / 2
    return near & ((image > middle) if inside > outside else (image < middle))


class Judge:
    """Collects the scores of one forecast method."""

    def __init__(self) -> None:
        self.scores: list[Score] = []
        self.covered: list[tuple[float, float]] = []
        self.regions: list[float] = []
        self.seconds = 0.0

    def add(self, case: Case, image: np.ndarray, made: Prediction | None = None) -> None:
        """Score a forecast; of a prediction the interval too."""
        last = copy_last(case.history)
        assert last is not None
        self.scores.append(
            Score.of(case.scaled(image), case.scaled(case.truth), case.scaled(last), case.valid, 1.0, NORM)
        )
        if made is not None:
            ends = [case.scaled(end[0]) for end in (made.lower, made.upper)]
            self.covered.append(coverage(ends[0], ends[1], case.scaled(case.truth), case.valid))
        found, before = region_of(image, case), region_of(last, case)
        if found is not None and before is not None and case.labels is not None:
            self.regions.append(region_change(before, found))

    def row(self, data: str, label: str) -> Row:
        """The line of the table; a coverage is a mean over cases."""
        found = Summary.of(self.scores, 1.0)
        covered = [float(value) for value in np.mean(self.covered, 0)] if self.covered else [None, None]
        region = float(np.mean(self.regions)) if self.regions else None
        return Row(
            data, label, found.cases, found.nrmse, found.psnr, found.ssim, found.delta_rmae, found.delta_smae,
            covered[0], covered[1], region, self.seconds or None,
        )  # fmt: skip


def rows_of(
    data: str,
    cases: Sequence[Case],
    predict: Callable[[Series, float], Prediction] | None,
    *,
    shuffle: bool = False,
    say: Callable[[str], Any] = lambda text: None,
) -> list[Row]:
    """All rows of a set; a second time, for the cases with two earlier times, where some have only one."""
    judges: dict[str, dict[str, Judge]] = {"": {}, ", two earlier times": {}}
    for number, case in enumerate(cases, 1):
        images: dict[str, tuple[np.ndarray, Prediction | None]] = {}
        for name, forecast in ROWS.items():
            image = forecast(case.history, case.at)
            if image is not None:
                images[name] = (image, None)
        started = time.monotonic()
        if predict is not None:
            made = predict(case.history, case.at)
            images[f"ours, mean of {len(made.samples)}"] = (made.mean[0], made)
            images["ours, one sample"] = (made.samples[0, 0], None)
            images["ours, expected"] = (made.expected[0], None)
            if shuffle and case.times > 1:
                images[SHUFFLED] = (predict(shuffled(case.history, number), case.at).mean[0], None)
        seconds = time.monotonic() - started
        two = linear(case.history, case.at) is not None
        for group, found in judges.items():
            if group and not two:
                continue
            for name, (image, prediction) in images.items():
                found.setdefault(name, Judge()).add(case, image, prediction)
                if prediction is not None:
                    found[name].seconds += seconds
        say(f"{data}: {number} of {len(cases)}")
    rows = [judge.row(data, name) for name, judge in judges[""].items()]
    rows += [Row(data, name, 0, *[math.nan] * 5) for name in ROWS if name not in judges[""]]
    both = next(iter(judges[", two earlier times"].values()), Judge())
    if 0 < len(both.scores) < len(cases):
        rows += [judge.row(f"{data}, two earlier times", name) for name, judge in list(judges.values())[1].items()]
    rows += [_true_region(data, cases)] if any(case.labels is not None for case in cases) else []
    order = list(ROWS)
    return sorted(rows, key=lambda row: (row.data, order.index(row.label) if row.label in order else len(order)))


def _true_region(data: str, cases: Sequence[Case]) -> Row:
    """The region in the real image, found by the same rule, as the last column's yardstick."""
    judge = Judge()
    for case in cases:
        judge.add(case, case.truth)
    row = judge.row(data, "(the truth)")
    return row


# ------------------------------------------------------------------------------------------------------- the command


def sets_of(args: argparse.Namespace) -> Iterator[tuple[str, list[Case]]]:
    """(name, cases) of each set. Raises UserError when there is nothing to forecast."""
    from longtake.medical.files.open import read_subjects
    from longtake.medical.files.sets import read_set

    found = 0
    files = [(name, args.data / f"{name}_{args.split}.npz") for name in args.set or SETS]
    held = [(name, path) for name, path in files if path.is_file()] if args.data.is_dir() else []
    if held:
        for name, path in held:
            found += 1
            yield name, [case for series in read_set(path) for case in cases_of(series)]
    elif args.simulated == 0 or args.data.exists():
        cases = [case for series in read_subjects(args.data) for case in cases_of(series)]
        if not cases:
            raise UserError(f"{args.data} holds no visit with an earlier one: there is nothing to forecast")
        yield args.data.name, cases
    if args.simulated:
        from longtake.medical.simulate import KINDS

        for kind in KINDS:
            for beyond in (False, True) if kind != "cine" else (False,):
                cases = [_simulated(kind, SIMULATED_FROM + n, args.grid, beyond) for n in range(args.simulated)]
                yield f"simulated {kind}{', beyond' if beyond else ''}", cases


def _simulated(kind: str, number: int, grid: Sequence[int], beyond: bool) -> Case:
    """The last visit of a simulated subject, against its noise-free truth; or one at ``BEYOND`` times the span that
    training had, from the visits within that span."""
    from longtake.medical.simulate import KINDS, simulate

    made = simulate(kind, number, grid)
    if beyond:
        span = KINDS[kind][3]
        within = made.times[made.times <= span]
        made = simulate(kind, number, grid, times=[*within, BEYOND * span])
    scale = np.float32(255)
    series = Series(f"{kind}-{number}", np.round(made.images * scale), made.times, made.unit, modality=made.modality)
    *_, case = cases_of(series, made.clean * scale)
    return replace(case, low=0.0, high=255.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate medical``."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the npz sets, or scans of any kind")
    parser.add_argument("--split", default="val", help="of the npz sets: NAME_SPLIT.npz (default val)")
    parser.add_argument("--set", action="append", choices=SETS, help="one of the npz sets, may be repeated")
    parser.add_argument("--prior", default="scans-small", help="a shipped prior or a folder; 'none': baselines alone")
    parser.add_argument("--samples", type=int, default=8, help="for each forecast (default 8)")
    parser.add_argument("--steps", type=int, default=12, help="of the sampler (default 12)")
    parser.add_argument("--level", type=float, default=0.9, help="of the interval (default 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--simulated", type=int, default=0, metavar="N", help="N subjects of each simulated kind too")
    parser.add_argument(
        "--grid", type=int, nargs=3, default=(8, 48, 48), metavar=("D", "H", "W"), help="of them (default 8 48 48)"
    )
    parser.add_argument("--shuffle", action="store_true", help="a row with the times of the history shuffled")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="cases of a set at most (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate-medical"), help="where the table goes")


def run(args: argparse.Namespace) -> int:
    """Forecast, score, write the table."""
    for name in ("samples", "steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be 1 or more; given {getattr(args, name)}")
    if min(args.grid) < 1:
        raise UserError(f"--grid is three sizes of 1 or more; given {' '.join(map(str, args.grid))}")
    if args.simulated < 0 or args.most < 0:
        raise UserError("--simulated and --most must not be negative")
    pipe: LongitudinalPipeline | None = None
    if args.prior != "none":
        from longtake.device import choose_device
        from longtake.medical.pipeline import LongitudinalPipeline

        pipe = LongitudinalPipeline.from_prior(args.prior).to(choose_device().device)

    def predict(history: Series, at: float) -> Prediction:
        assert pipe is not None
        return pipe.predict(
            history, [at], samples=args.samples, num_inference_steps=args.steps, level=args.level, seed=args.seed
        )

    rows: list[Row] = []
    from longtake.progress import Progress

    with Progress("forecasting", unit="case") as progress:
        for name, cases in sets_of(args):
            cases = cases[: args.most] if args.most else cases
            done = [0]

            def count(_: str, done: list[int] = done, cases: list[Case] = cases) -> None:
                done[0] += 1
                progress.at(done[0], len(cases))

            shuffle = args.shuffle or name.startswith("simulated")
            rows += rows_of(name, cases, None if pipe is None else predict, shuffle=shuffle, say=count)
    table = TABLE.markdown(rows)
    facts = {"command": told_command("medical"), "prior": args.prior, "norm": NORM, "level": args.level}
    write_table(args.out, "medical", table, {**facts, "rows": TABLE.json(rows)})
    print(table)
    return 0
