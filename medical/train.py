"""``longtake train medical``: the recipe of the prior of earlier and later scans, for slices and volumes.

One net learns from chest X-rays, hearts, brains and simulated series. Three terms are minimised together: the error of
the mean (squared and absolute, in units of what is usual for the kind), the likelihood of the scale given that error,
and the diffusion of the rest. The mean and the scale learn nothing from the last two but the scale's own.

    longtake train medical --data DATA --minutes 45
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError

if TYPE_CHECKING:
    import torch
    from longtake.medical.corpus import Group, Subject
    from longtake.medical.lesson import Drawn
    from longtake.medical.net import LongitudinalNet
    from longtake.train import Settings

RECIPE = "medical"
STEPS = 4000
SIMULATED = 96  # subjects of each kind and grid
RATE = 1e-3
SHARES = {"cxr": 0.42, "cardiac": 0.17, "cardiac-slabs": 0.07, "glioma": 0.08, "simulated-1": 0.11, "simulated-8": 0.15}
SHARES |= {"slices": 0.4, "volumes": 0.4}  # of other kinds, where there are any
ROWS = {
    "cxr": 5,
    "cardiac": 6,
    "cardiac-slabs": 2,
    "glioma": 2,
    "simulated-1": 16,
    "simulated-8": 3,
    "slices": 5,
    "volumes": 2,
}
USUAL_PLANE = 128 * 128  # pixels; of larger slices a batch has fewer rows
TURNING = ("cardiac", "cardiac-slabs", "simulated-1", "simulated-8")
ON_A_GPU = 8  # times as many rows
USUAL_ERROR = (0.15, 0.3, 0.15, 0.2, 0.08, 0.08, 0.15, 0.15)  # of each row of the table of kinds
JUDGE_EVERY = 250  # steps
JUDGED = 4  # batches of each group, on those set aside


def groups(
    subjects: Sequence[Subject], device: torch.device, rows: Mapping[str, int] | None = None, *, judged: bool = False
) -> dict[str, Group]:
    """The subjects by grid, each ready to draw batches of ``rows`` (default ``ROWS``, on a GPU ``ON_A_GPU`` times as
    many). Groups without subjects are left out. judged: neither bent nor blended."""
    from longtake.medical.corpus import Group

    if rows is None:
        rows = {name: count * (1 if device.type == "cpu" else ON_A_GPU) for name, count in ROWS.items()}
    by_kind: dict[tuple[str, tuple[int, ...]], list[Subject]] = {}
    for one in subjects:
        for name, part in parts_of(one):
            by_kind.setdefault((name, part.images.shape[1:]), []).append(part)
    found = {}
    for (name, grid), those in by_kind.items():
        alone = sum(kind == name for kind, _ in by_kind) == 1
        fewer = min(1.0, USUAL_PLANE / (grid[1] * grid[2]))
        found[name if alone else f"{name} {'x'.join(map(str, grid))}"] = Group.of(
            those,
            max(1, int(rows.get(name, 1) * fewer)),
            turns=name in TURNING,
            bends=not judged and not name.startswith("simulated"),
            blends=not judged and name == "cxr",
        ).to(device)
    return found


def parts_of(subject: Subject) -> list[tuple[str, Subject]]:
    """(name of the group, what of the subject belongs to it): slices one by one, slabs of four, or the whole."""
    from longtake.medical.held_out import MADE

    depth = subject.images.shape[1]
    if subject.modality in MADE:
        return [("simulated-1" if depth == 1 else "simulated-8", subject)]
    if subject.modality == "cardiac":
        slabs = [("cardiac-slabs", one) for one in subject.slabs(4, 2)]
        return [("cardiac", one) for one in subject.slabs(1)] + slabs
    if subject.modality == "glioma":
        return [("glioma", one) for one in subject.slabs(4, 2)]
    if subject.modality == "cxr" and depth == 1:
        return [("cxr", subject)]
    if depth == 1:
        return [("slices", subject)]
    return [("volumes", one) for one in subject.slabs(min(4, depth), 2)]


def shares_of(found: Mapping[str, Group]) -> np.ndarray:
    """How often each group's turn comes: as ``SHARES`` has its kind, dealt out by subjects over the kind's grids."""
    kinds = [name.split(" ")[0] for name in found]
    counts = np.array([len(group.odds) for group in found.values()], np.float64)
    total = {kind: sum(count for one, count in zip(kinds, counts, strict=True) if one == kind) for kind in kinds}
    odds = np.array([SHARES[kind] * count / total[kind] for kind, count in zip(kinds, counts, strict=True)])
    made: np.ndarray = odds / odds.sum()
    return made


def objective(model: Any, levels: torch.Tensor, usual: torch.Tensor, drawn: Drawn) -> dict[str, torch.Tensor]:
    """The terms of one batch's loss; levels: (1000,) clean shares; usual: the usual error by kind."""
    from longtake.medical.diffusion import noisy, velocity
    from longtake.medical.lesson import residual, rest_of

    batch = drawn.batch
    look = model.outlook(batch.visits, batch.delta, batch.observed, batch.kind, batch.valid)
    error, mask, pure = residual(model, look.mean, batch)
    total, clear = mask.sum().clamp_min(1.0), pure.sum().clamp_min(1.0)
    unit = usual[batch.kind][:, None, None, None, None]
    away = (error / unit).square() * 0.5 + 0.5 * (error / unit).abs()
    ratio = error.detach() / look.scale
    likely = look.scale.log() + 0.5 * ratio.square()
    rest = rest_of(error, look.scale, pure)
    level = levels[drawn.time]
    broad = level[:, None, None, None, None]
    found = model(noisy(rest, drawn.noise, broad), level, look, keep=drawn.keep)
    wrong = (found - velocity(rest, drawn.noise, broad)).square()
    return {
        "mean": (away * mask).sum() / total,
        "scale": 0.1 * ((likely * pure).sum() / clear + 2),
        "rest": (wrong * pure).sum() / clear,
    }


class Wrapped:
    """A net under accelerate: ``outlook`` and ``padded`` are the net's own, the call goes through the wrapper."""

    def __init__(self, wrapped: Any) -> None:
        self.call, self.net = wrapped, getattr(wrapped, "module", wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


def train_model(
    model: LongitudinalNet,
    subjects: Sequence[Subject],
    aside: Sequence[Subject],
    folder: Path,
    settings: Settings,
    *,
    seed: int = 0,
    rows: Mapping[str, int] | None = None,
    judge_every: int = 1,
    teacher: LongitudinalNet | None = None,
) -> LongitudinalNet:
    """Train (or resume) the net on ``subjects``. teacher: the net that it is ``lighter`` of, whose denoiser it follows.

    At each checkpoint whose step is a multiple of ``judge_every``, so that the clock has no say, and at the last of
    ``settings.steps``, the terms are found on those set ``aside``, at the same visits, times and noise each time:
    "judged" is their sum, a kind counting as in ``SHARES``. Returned in eval mode, with the averaged weights of the
    checkpoint where that was lowest.
    """
    import torch
    from longtake.graphs import Split
    from longtake.medical.diffusion import levels
    from longtake.medical.lesson import Drawn, draw
    from longtake.medical.lighter import LOOKS, followed
    from longtake.train import Dice, batch_generator, fit, training_device

    device = training_device()
    table = levels().float().to(device)
    usual = torch.tensor(USUAL_ERROR, device=device)
    known, unseen = groups(subjects, device, rows), groups(aside, device, rows, judged=True)
    names = list(known)
    odds = shares_of(known)
    if teacher is not None:
        teacher.to(device).eval()

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        name = names[int(batch_generator(seed + 1, step).choice(len(names), p=odds))]
        looks = 1 if teacher is None else LOOKS
        return draw(known[name], Dice(seed + 1, step, device), model.step, looks).tensors()

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        if teacher is not None:
            return followed(Wrapped(network), teacher, table, Drawn.of(tensors))
        return torch.stack(list(objective(Wrapped(network), table, usual, Drawn.of(tensors)).values())).sum()

    def judge(network: Any, step: int) -> dict[str, float]:
        if not unseen or (step % judge_every and step != settings.steps):
            return {}
        found: dict[str, float] = {}
        judged = 0.0
        for (name, group), weight in zip(unseen.items(), shares_of(unseen), strict=True):
            batches = [draw(group, Dice(seed + 2, n, device), model.step) for n in range(JUDGED)]
            parts = [objective(network, table, usual, batch) for batch in batches]
            for term in parts[0]:
                value = sum(float(part[term]) for part in parts) / len(parts)
                judged += value * float(weight)
                found[f"{name}_{term}"] = round(value, 4)
        return {"judged": judged, **found}

    fit(
        model,
        Split(drawn, value),
        settings,
        folder,
        name="medical",
        on_checkpoint=judge,
        best="judged" if unseen else None,
    )
    return model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train medical``."""
    from longtake.train import add_arguments as add_schedule
    from longtake.train import add_sources

    add_sources(parser, "folder with {cxr,cardiac,glioma}_train.npz, or scans of any kind that longtake medical reads")
    parser.add_argument("--out", type=Path, default=Path("runs/train-medical"), help="checkpoints, record, the prior")
    parser.add_argument("--steps", type=int, help=f"default {STEPS:,}; with --minutes no end but the time")
    parser.add_argument(
        "--simulated",
        type=int,
        default=SIMULATED,
        metavar="N",
        help=f"simulated subjects of each kind (default {SIMULATED})",
    )
    parser.add_argument("--modality", help="kind of image, where scans have several (T1w, FLAIR)")
    parser.add_argument("--time-column", help="column of a table that says when a visit was")
    parser.add_argument("--unit", help="unit of the times in a table that does not say")
    parser.add_argument("--run", type=int, help="of several images in a BIDS session")
    parser.add_argument(
        "--judge-every",
        type=int,
        default=JUDGE_EVERY,
        metavar="STEPS",
        help=f"subjects held back are asked; the weights they like best are kept (default {JUDGE_EVERY})",
    )
    parser.add_argument("--start-from", metavar="PRIOR", help="go on from a prior that ships, or a folder of one")
    parser.add_argument(
        "--calibrate", action="store_true", help="no training: what is held back only measures --start-from anew"
    )
    parser.add_argument(
        "--lighter",
        action="store_true",
        help="keep encoder and mean of --start-from, and teach its denoiser, made narrower, guidance in one pass",
    )
    parser.add_argument("--rate", type=float, default=RATE, help=f"of learning, at its highest (default {RATE})")
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train, resuming what is there, calibrate, and export the prior to ``--out``/prior; or write what a training
    needs."""
    import torch
    from longtake.medical import corpus
    from longtake.medical.lighter import lighter
    from longtake.medical.net import LongitudinalNet
    from longtake.medical.pipeline import LongitudinalPipeline
    from longtake.train import Settings, count, schedule

    if args.simulated < 0:
        raise UserError(f"--simulated must be 0 or more, got {args.simulated}")
    if not 0 < args.rate < 1:
        raise UserError(f"--rate must lie between 0 and 1, got {args.rate}")
    if args.judge_every < 1:
        raise UserError(f"--judge-every must be 1 step or more, got {args.judge_every}")
    if args.calibrate and args.start_from is None:
        raise UserError("--calibrate measures a prior: name it with --start-from")
    if args.lighter and (args.start_from is None or args.calibrate):
        raise UserError("--lighter makes a new prior of another: name that with --start-from, without --calibrate")
    if args.prepare is not None and args.data is None:
        raise UserError("--prepare writes what --data holds: give --data, not --prepared")
    if args.prepare is not None:
        print(f"prepared data written to {corpus.save(args.prepare, source(args))}")
        return 0
    real = source(args) if args.prepared is None else corpus.load(args.prepared)
    train, aside = corpus.held_back(real)
    train = train + corpus.simulated(args.simulated, 0)
    aside = aside + corpus.simulated(min(6, args.simulated), 10_000)
    if not aside:
        print("nobody is held back: one subject of a kind, and none simulated; the intervals will not be calibrated")
    asked = {**schedule(args), "checkpoint_every": args.judge_every}
    settings = Settings(count(args.steps, args, STEPS), args.rate, warmup=200, ema=0.998, **asked)
    torch.manual_seed(args.seed)
    net = LongitudinalNet() if args.start_from is None else LongitudinalPipeline.from_prior(args.start_from).net
    if args.calibrate:
        print(f"prior written to {finished(net, aside, args.out / 'prior')}")
        return 0
    teacher = net if args.lighter else None
    model = train_model(
        net if teacher is None else lighter(teacher),
        train,
        aside,
        args.out,
        settings,
        seed=args.seed,
        judge_every=args.judge_every,
        teacher=teacher,
    )
    print(f"prior written to {finished(model, aside, args.out / 'prior')}")
    return 0


def source(args: argparse.Namespace) -> list[Subject]:
    """The subjects of --data. Raises UserError."""
    from longtake.medical import corpus
    from longtake.medical.files.open import Choice

    told = {"time_column": args.time_column, "unit": args.unit, "run": args.run, "modality": args.modality}
    if any((args.data / f"{name}_train.npz").is_file() for name in corpus.SETS):
        if given := [name for name, value in told.items() if value is not None]:
            raise UserError(f"{args.data} has the sets of the recipe, which say {given[0]} themselves: leave it out")
        return corpus.read(args.data, "train")
    subjects, notes = corpus.own(args.data, Choice(**told))
    for note in notes:
        print(note)
    return subjects


def finished(model: LongitudinalNet, aside: Sequence[Subject], folder: Path) -> Path:
    """Calibrate on the subjects set aside and write the prior, its numbers as a half-precision file will give them."""
    import torch
    from longtake.medical.held_out import calibration_of
    from longtake.medical.net import LongitudinalNet
    from longtake.medical.pipeline import LongitudinalPipeline
    from longtake.train import training_device

    net = LongitudinalNet(**{name: value for name, value in model.config.items() if not name.startswith("_")})
    net.load_state_dict({name: value.cpu().to(torch.float16).float() for name, value in model.state_dict().items()})
    pipe = LongitudinalPipeline(net)
    pipe.save(folder)  # what was learned is kept, whatever becomes of the calibration
    pipe.to(training_device())
    pipe.calibration = calibration_of(pipe, aside)
    return pipe.to("cpu").save(folder)
