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
    from longtake.medical.net import LongitudinalNet
    from longtake.train import Dice, Settings

RECIPE = "medical"
STEPS = 4000
SHARES = {"cxr": 0.34, "cardiac": 0.2, "cardiac-slabs": 0.08, "glioma": 0.1, "simulated-1": 0.12, "simulated-8": 0.16}
ROWS = {"cxr": 5, "cardiac": 6, "cardiac-slabs": 2, "glioma": 2, "simulated-1": 16, "simulated-8": 3}
ON_A_GPU = 8  # times as many rows
USUAL_ERROR = (0.15, 0.3, 0.15, 0.2, 0.08, 0.08, 0.15, 0.15)  # of each row of the table of kinds
DROPPED = 0.1  # of the rows: the denoiser must do without their visits
BOUND = 4.0  # of the rest, in units of its scale


def groups(
    subjects: Sequence[Subject], device: torch.device, rows: Mapping[str, int] | None = None
) -> dict[str, Group]:
    """The subjects by grid, each ready to draw batches of ``rows`` (default ``ROWS``, on a GPU ``ON_A_GPU`` times as
    many). Groups without subjects are left out."""
    from longtake.medical.corpus import Group

    if rows is None:
        rows = {name: count * (1 if device.type == "cpu" else ON_A_GPU) for name, count in ROWS.items()}
    by_kind: dict[str, list[Subject]] = {name: [] for name in SHARES}
    for one in subjects:
        if one.modality == "cardiac":
            by_kind["cardiac"] += one.slabs(1)
            by_kind["cardiac-slabs"] += one.slabs(4, 2)
        elif one.modality == "glioma":
            by_kind["glioma"] += one.slabs(4, 2)
        elif one.modality == "cxr":
            by_kind["cxr"].append(one)
        else:
            by_kind["simulated-1" if one.images.shape[1] == 1 else "simulated-8"].append(one)
    turning = ("cardiac", "cardiac-slabs", "simulated-1", "simulated-8")
    return {
        name: Group.of(found, rows[name], turns=name in turning).to(device) for name, found in by_kind.items() if found
    }


def draw(group: Group, dice: Dice) -> tuple[torch.Tensor, ...]:
    """A step's tensors: those of a batch, then noise (B, 1, D, H, W), times (B,) in 0..999, and which rows keep their
    visits (B,)."""
    batch = group.batch(dice)
    rows = len(batch.target)
    height, width = (side + -side % 16 for side in batch.target.shape[2:])
    noise = dice.normal(rows, 1, batch.target.shape[1], height, width)
    return (*batch.tensors(), noise, dice.times(rows), dice.uniform(rows) >= DROPPED)


def objective(
    model: Any,
    levels: torch.Tensor,
    usual: torch.Tensor,
    visits: torch.Tensor,
    delta: torch.Tensor,
    observed: torch.Tensor,
    valid: torch.Tensor,
    kind: torch.Tensor,
    target: torch.Tensor,
    scored: torch.Tensor,
    noise: torch.Tensor,
    time: torch.Tensor,
    keep: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The terms of one batch's loss; levels: (1000,) clean shares; usual: the usual error by kind; then ``draw``."""
    from longtake.medical.diffusion import noisy, velocity

    look = model.outlook(visits, delta, observed, kind, valid)
    truth = model.padded(target[:, None])
    mask = (model.padded(scored[:, None].float()) > 0.5).float()
    mask[..., target.shape[2] :, :] = 0.0
    mask[..., target.shape[3] :] = 0.0
    total = mask.sum().clamp_min(1.0)
    error = truth - look.mean
    unit = usual[kind][:, None, None, None, None]
    away = (error / unit).square() * 0.5 + 0.5 * (error / unit).abs()
    ratio = error.detach() / look.scale
    likely = look.scale.log() + 0.5 * ratio.square()
    rest = (error / look.scale).detach().clamp(-BOUND, BOUND) * mask
    level = levels[time]
    broad = level[:, None, None, None, None]
    found = model(noisy(rest, noise, broad), level, look, keep=keep)
    wrong = (found - velocity(rest, noise, broad)).square()
    return {
        "mean": (away * mask).sum() / total,
        "scale": 0.1 * ((likely * mask).sum() / total + 2),
        "rest": (wrong * mask).sum() / total,
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
) -> LongitudinalNet:
    """Train (or resume) the net on ``subjects``; the record has the terms on those set ``aside``. Returned in eval
    mode."""
    import torch
    from longtake.graphs import Split
    from longtake.medical.diffusion import levels
    from longtake.train import Dice, batch_generator, fit, training_device

    device = training_device()
    table = levels().float().to(device)
    usual = torch.tensor(USUAL_ERROR, device=device)
    known, unseen = groups(subjects, device, rows), groups(aside, device, rows)
    names = list(known)
    odds = np.array([SHARES[name] for name in names])
    odds = odds / odds.sum()

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        name = names[int(batch_generator(seed + 1, step).choice(len(names), p=odds))]
        return draw(known[name], Dice(seed + 1, step, device))

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(objective(Wrapped(network), table, usual, *tensors).values())).sum()

    def judge(network: Any, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, group in unseen.items():
            parts = [objective(network, table, usual, *draw(group, Dice(seed + 2, n, device))) for n in range(2)]
            for term in parts[0]:
                found[f"{name}_{term}"] = round(sum(float(part[term]) for part in parts) / len(parts), 4)
        return found

    fit(model, Split(drawn, value), settings, folder, name="medical", on_checkpoint=judge)
    return model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train medical``."""
    from longtake.train import add_arguments as add_schedule
    from longtake.train import add_sources

    add_sources(parser, "folder with {cxr,cardiac,glioma}_{train,val}.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/train-medical"), help="checkpoints, record, the prior")
    parser.add_argument("--steps", type=int, help=f"default {STEPS:,}; with --minutes no end but the time")
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train, resuming what is there, calibrate, and export the prior to ``--out``/prior; or write what a training
    needs."""
    import torch
    from longtake.medical import corpus
    from longtake.medical.net import LongitudinalNet
    from longtake.train import Settings, count, schedule

    if args.prepare is not None and args.data is None:
        raise UserError("--prepare writes what --data holds: give --data, not --prepared")
    if args.prepare is not None:
        print(f"prepared data written to {corpus.save(args.prepare, corpus.read(args.data, 'train'))}")
        return 0
    real = corpus.read(args.data, "train") if args.prepared is None else corpus.load(args.prepared)
    train, aside = corpus.held_back(real)
    train = train + corpus.simulated(corpus.SIMULATED, 0)
    aside = aside + corpus.simulated(6, 10_000)
    settings = Settings(count(args.steps, args, STEPS), 1e-3, warmup=200, ema=0.998, **schedule(args))
    torch.manual_seed(args.seed)
    model = train_model(LongitudinalNet(), train, aside, args.out, settings, seed=args.seed)
    print(f"prior written to {finished(model, aside, args.out / 'prior')}")
    return 0


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
