"""``longtake train motion``: the recipe of the small motion prior, an MDM in the 263-feature form with free wording.

MDM (arXiv 2209.14916) predicts the clean motion from a noisy one; here time and text are tokens of their own and turn
every layer up and down. ``objective`` says what is minimised, ``corpus`` how batches are drawn, ``prepare`` what a
training needs, ``stop`` how its prior is judged at the end. Everything of a batch is made on the device.

    longtake train motion --data DATA --prepare motion.zip          # where the data and the text encoder are
    longtake train motion --prepared motion.zip --minutes 8         # where neither is
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.motion.objective import SCHEDULE

if TYPE_CHECKING:
    import torch
    from longtake.motion.corpus import Corpus
    from longtake.motion.model import MDM
    from longtake.motion.prepare import Prepared
    from longtake.motion.space import MotionSpace
    from longtake.train import Dice, Settings

MODEL: dict[str, Any] = {
    "features": 263,
    "width": 256,
    "layers": 6,
    "dropout": 0.1,
    "text_width": 384,
    "padding": "mask",
    "modulated": True,
    "condition_tokens": 2,
}
LENGTHS = (40, 64, 80, 100, 128, 160)  # frames of a batch's rows, drawn anew each step
FRAMES_A_STEP, FRAMES_ON_A_GPU = 3200, 25600  # of a batch
APART = ("root_step",)  # sideways and forward have a deviation each: speeds are told apart by the second alone
STEPS, PAIR_STEPS = 4500, 1500  # where no time is given
PRIOR_SHARE = 0.75  # of the minutes of ``whole``; the rest is the two-person block's
START = 0.6  # minutes that a command spends before its first step and after its last


def draw(corpus: Corpus, frames: int, rows: int, dice: Dice) -> tuple[torch.Tensor, ...]:
    """What ``objective`` needs: motion (B, F, D), lengths (B,), text (B, E), noise (B, F, D), time (B,)."""
    batch = corpus.batch(frames, rows, dice)
    time = dice.times(rows)
    return batch.motion, batch.lengths, batch.text, dice.normal(*batch.motion.shape), time


def objective(
    model: Any,
    levels: torch.Tensor,
    space: MotionSpace,
    motion: torch.Tensor,
    lengths: torch.Tensor,
    text: torch.Tensor,
    noise: torch.Tensor,
    time: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The weighted terms of one batch's loss, see ``objective.terms``; levels: the scheduler's ``alphas_cumprod``,
    then what ``draw`` made."""
    from longtake.motion.objective import terms

    share = levels[time]
    level = share[:, None, None]
    noisy = level.sqrt() * motion + (1 - level).sqrt() * noise
    out = model(noisy, time, text, lengths=lengths).float()
    return terms(out, motion, lengths, share, space)


def spread_text(model: Any, texts: list[torch.Tensor]) -> None:
    """Begin with a text layer that tells captions apart: sentence vectors of "left" and "right" lie 0.98 together.

    The layer starts as a random rotation of the captions' whitened principal directions, and learns from there.
    """
    import torch

    rows = torch.stack(texts).double()
    mean = rows.mean(0)
    _, size, basis = torch.linalg.svd(rows - mean, full_matrices=False)
    spread = size / math.sqrt(len(rows))
    gain = 1.0 / (spread**2 + (0.1 * spread[0]) ** 2).sqrt()
    width = model.embed_text.out_features
    turn = torch.linalg.qr(torch.randn(max(width, len(gain)), len(gain), dtype=torch.float64))[0][:width]
    weight = 0.5 * turn @ (gain[:, None] * basis)
    with torch.no_grad():
        model.embed_text.weight.copy_(weight)
        model.embed_text.bias.copy_(-weight @ mean)


def train_model(
    prepared: Prepared, folder: Path, settings: Settings, *, seed: int, frames: int = 0
) -> tuple[MDM, MotionSpace]:
    """Train (or resume) the MDM; returns it with the space of its features, both on the training's device.

    frames: of a batch; 0: as many as suit the device. The held-out loss, and its share that is the features' error, are
    in the record.
    """
    import torch
    from diffusers import DDIMScheduler
    from longtake.graphs import Split
    from longtake.motion.corpus import Corpus, Takes
    from longtake.motion.data import FPS
    from longtake.motion.model import MDM
    from longtake.motion.space import MotionSpace
    from longtake.train import Dice, batch_generator, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    frames = frames or (FRAMES_A_STEP if device.type == "cpu" else FRAMES_ON_A_GPU)
    levels = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    takes = Takes.of(prepared.train, mirror=True)
    space = MotionSpace(features=MODEL["features"], fps=FPS, shortest_row=LENGTHS[0], longest_row=LENGTHS[-1])
    space.fit(takes.features, apart=APART)
    corpus = Corpus.build(takes, prepared.texts, space)
    unseen = Corpus.of(prepared.val, prepared.texts, space, mirror=False).to(device)
    model = MDM(**MODEL)
    spread_text(model, list(corpus.vectors.unique(dim=0)))
    space, corpus = space.to(device), corpus.to(device)

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        length = LENGTHS[int(batch_generator(seed + 1, step).integers(len(LENGTHS)))]
        torch.manual_seed(step)  # of dropout, so that a resumed training drops the same
        return draw(corpus, length, max(1, frames // length), Dice(seed + 1, step, device))

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(objective(network, levels, space, *tensors).values())).sum()

    def judge(network: Any, step: int) -> dict[str, float]:
        parts = [draw(unseen, 100, 64, Dice(seed + 2, n, device)) for n in range(6)]
        batches = [objective(network, levels, space, *part) for part in parts]
        found = {name: sum(float(batch[name]) for batch in batches) / len(batches) for name in batches[0]}
        return {"loss_held_out": round(sum(found.values()), 4), "error_held_out": round(found["error"], 4)}

    fit(model, Split(drawn, value), settings, folder, name="mdm", on_checkpoint=judge)
    trained = MDM(**MODEL).to(device).eval()  # without the half precision that training wraps around a net
    trained.load_state_dict(model.state_dict())
    return trained, space


def export(model: MDM, space: MotionSpace, folder: Path) -> Path:
    """Write the prior as a diffusers pipeline folder, the net in float16 safetensors; the model card is kept apart."""
    import torch
    from diffusers import DDIMScheduler
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.text import SentenceEncoder

    model, space = model.cpu(), space.cpu()
    pipeline = LongMotionPipeline(model.float(), DDIMScheduler(**SCHEDULE), space, SentenceEncoder())
    pipeline.save_pretrained(folder, safe_serialization=True)
    model.to(torch.float16).save_pretrained(folder / "model", safe_serialization=True)
    return folder


def whole(prepared: Path, minutes: float, out: Path) -> list[list[str]]:
    """The commands, as words after ``longtake``, that train the prior and then its two-person block in ``minutes``.

    They leave ``out``/prior and ``out``/pair. Raises UserError for too few minutes.
    """
    for_steps = minutes - 2 * START
    if for_steps < 0.5:
        raise UserError(f"the motion prior and its two-person block need at least {2 * START + 0.5:g} minutes")
    same = ["train", "motion", "--prepared", str(prepared), "--out", str(out)]
    shares = [PRIOR_SHARE * for_steps, (1 - PRIOR_SHARE) * for_steps]
    prior, block = ([*same, "--minutes", f"{share:.3f}", "--ends-at", "0"] for share in shares)
    return [prior, [*block, "--pairs", "--prior", str(out / "prior")]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train motion``."""
    from longtake.train import add_arguments as add_schedule
    from longtake.train import add_sources

    add_sources(parser, "folder with bandai_train.npz and bandai_val.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/train-motion"), help="checkpoints, record, the prior")
    parser.add_argument("--pairs", action="store_true", help="train the two-person block on a frozen prior instead")
    parser.add_argument("--prior", default="bandai-small", help="with --pairs: the prior to freeze (bandai-small)")
    parser.add_argument(
        "--steps", type=int, default=None, help="default 4500, with --pairs 1500; with --minutes no end but the time"
    )
    parser.add_argument(
        "--batch-frames", type=int, default=0, help="frames of a step's batch (default: as many as suit the device)"
    )
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train, resuming what is there, and export the prior to ``--out``/prior; or write what a training needs."""
    if args.prepare is not None and args.data is None:
        raise UserError("--prepare writes what --data holds: give --data, not --prepared")
    if args.batch_frames and args.batch_frames < LENGTHS[-1]:
        raise UserError(f"--batch-frames must be at least {LENGTHS[-1]}, a row's frames; got {args.batch_frames}")
    if args.prepare is not None:
        from longtake.motion.prepare import write

        print(f"prepared data written to {write(args.prepare, *_recorded(args.data))}")
        return 0
    prepared = _prepared(args)
    settings = _settings(args)
    if args.pairs:
        from longtake.motion.pair.train import run_pairs

        return run_pairs(args, prepared, settings)
    from longtake.motion.stop import report

    model, space = train_model(prepared, args.out, settings, seed=args.seed, frames=args.batch_frames)
    report(model, space, prepared, args.out, seed=args.seed)
    print(f"prior written to {export(model, space, args.out / 'prior')}")
    return 0


def _recorded(data: Path) -> tuple[Any, Any, Any]:
    from longtake.motion.data import load_motions
    from longtake.text import SentenceEncoder

    return load_motions(data, "train"), load_motions(data, "val"), SentenceEncoder()


def _prepared(args: argparse.Namespace) -> Prepared:
    from longtake.motion.prepare import Prepared

    return Prepared.of(*_recorded(args.data)) if args.prepared is None else Prepared.read(args.prepared)


def _settings(args: argparse.Namespace) -> Settings:
    """Of a training to no rate at all, by the clock where a time is given."""
    from longtake.train import Settings, count, schedule

    told = schedule(args)
    if told["ends_at"] is None:
        told["ends_at"] = 0.0
    return Settings(count(args.steps, args, PAIR_STEPS if args.pairs else STEPS), 5e-4, warmup=300, ema=0.999, **told)
