"""``longtake train motion --pairs``: the two-person block (ComMDM) on the frozen prior, and its table.

As the paper does, only the block learns. The loss is taken of both persons: L2 of normalised features, the root's four
numbers weighted, first differences of positions beside it, of the canon numbers, and of how far people who move
together drift apart. Other than the released recipe, the first person's canon token is given without noise (he stands
at the origin), so that the net can tell the two apart; the pairs are made from single clips (``pair.data``).
Legend: B rows, F frames, D features.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from longtake.motion.objective import DIFFERENCE_WEIGHT, SCHEDULE, Way, difference_of, error_of
from longtake.motion.pair.data import PairBatch, Pairs
from longtake.motion.pair.model import CANON, CANON_SCALE, ComMDM, first_token
from longtake.motion.pair.pipeline import CONFIG, WEIGHTS

if TYPE_CHECKING:
    import argparse

    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.motion.prepare import Prepared
    from longtake.motion.space import MotionSpace
    from longtake.train import Dice, Settings

LENGTHS = (40, 60, 80)  # frames of a batch's rows
FRAMES_A_STEP, FRAMES_ON_A_GPU = 960, 9600  # of a batch
DRIFT_WEIGHT = 5.0  # of the squared metres that people who move together drift apart
CANON_WEIGHT = 3.0  # of the mean squared canon error, in metres and cosines
COMM_LAYERS = 1
SPLIT = 2  # after the last layer the hidden states no longer tell "side by side" from "behind"


def draw(pairs: Pairs, frames: int, rows: int, dice: Dice, **told: float) -> tuple[torch.Tensor, ...]:
    """What ``objective`` needs of one batch: a ``PairBatch``'s fields, noise (B, 2, F, D), the canons' (B, D), time
    (B,). told: as of ``Pairs.batch``."""
    batch = pairs.batch(frames, rows, dice, **told)
    _, _, _, width = batch.motion.shape
    time = dice.times(rows)
    noise = dice.normal(*batch.motion.shape)
    canon_noise = torch.nn.functional.pad(dice.normal(rows, CANON), (0, width - CANON))
    return (*batch, noise, canon_noise, time)


def objective(model: Any, scheduler: Any, space: MotionSpace, *drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses of one batch that ``draw`` made: "motion", "canon" (metres and cosines, squared), "drift" and their
    weighted sum "all". Everything lies on the batch's device, the scheduler's ``alphas_cumprod`` too.
    """
    *fields, noise, canon_noise, time = drawn
    batch = PairBatch(*fields)
    clean = batch.motion
    rows, _, frames, width = clean.shape
    noisy = scheduler.add_noise(clean, noise, time)
    seen = scheduler.add_noise(batch.canon, canon_noise, time)
    first = first_token(width, clean.device).expand(rows, width)
    a = torch.cat([first.unsqueeze(1), noisy[:, 0]], 1)
    b = torch.cat([seen.unsqueeze(1), noisy[:, 1]], 1)
    out = torch.stack([part.float() for part in model.both(a, b, time, batch.text)], 1)
    motion = out[:, :, 1:]
    every = clean.new_ones(1, 1, frames, 1).expand(rows, 2, frames, 1)
    told = error_of(motion, clean, every) + DIFFERENCE_WEIGHT * difference_of(motion, clean, every)
    apart = drift(motion, clean, batch.together, space)
    gap = (out[:, 1, 0, :CANON] - batch.canon[:, :CANON]) * CANON_SCALE
    canon = gap.square().mean()
    whole = told + CANON_WEIGHT * canon + DRIFT_WEIGHT * apart
    return {"all": whole, "motion": told, "canon": canon, "drift": apart}


def drift(out: torch.Tensor, clean: torch.Tensor, together: torch.Tensor, space: MotionSpace) -> torch.Tensor:
    """Of people who move ``together`` (B,): by how much their ways over the ground part otherwise than in ``clean``,
    squared metres, mean over frames. out, clean: (B, 2, F, D) normalised. A step's error is tiny beside what it adds up
    to."""
    with torch.autocast(out.device.type, enabled=False):
        ways = [Way.of(space.denormalize(motion.float())).place for motion in (out, clean)]
    error = (ways[0][:, 0] - ways[0][:, 1]) - (ways[1][:, 0] - ways[1][:, 1])
    row = error.square().sum(-1).mean(-1) * together
    return row.sum() / together.sum().clamp_min(1)


def train_block(
    pipe: LongMotionPipeline, prepared: Prepared, folder: Path, settings: Settings, *, seed: int, frames: int = 0
) -> ComMDM:
    """Train (or resume) the block around a pipeline's prior. The held-out losses are in the record.

    frames: of a batch; 0: as many as suit the device.
    """
    from diffusers import DDIMScheduler
    from longtake.graphs import Split
    from longtake.train import Dice, batch_generator, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    frames = frames or (FRAMES_A_STEP if device.type == "cpu" else FRAMES_ON_A_GPU)
    pairs = Pairs.build(prepared.train, pipe.space, prepared.texts, mirror=True).to(device)
    unseen = Pairs.build(prepared.val, pipe.space, prepared.texts, mirror=True).to(device)
    lengths = pairs.lengths(LENGTHS)
    for length in lengths:
        pairs.fit(length)  # before the first step, for it waits for the device
    model = ComMDM.around(pipe.model.float(), comm_layers=COMM_LAYERS, split=SPLIT)
    silence(model)
    model.to(device)
    space = copy.deepcopy(pipe.space).to(device)

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        length = lengths[int(batch_generator(seed + 1, step).integers(len(lengths)))]
        torch.manual_seed(step)  # of dropout, so that a resumed training drops the same
        return draw(pairs, length, frames // length, Dice(seed + 1, step, device))

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        return objective(network, scheduler, space, *tensors)["all"]

    def judge(network: Any, step: int) -> dict[str, float]:
        losses = held_out(network, unseen, scheduler, seed, space)
        return {f"held_out_{key}": round(value, 4) for key, value in losses.items()}

    learner = Learner(model)
    fit(learner, Split(drawn, value), settings, folder, name="comm", on_checkpoint=judge)
    return model.cpu().eval()


class Learner(torch.nn.Module):
    """What ``fit`` sees of a model: the block alone learns, is averaged and kept."""

    def __init__(self, model: ComMDM) -> None:
        super().__init__()
        self.comm = model.comm
        self.__dict__["model"] = model  # not a child: its frozen prior is no part of the checkpoint

    def both(self, *args: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``ComMDM.both``."""
        return self.__dict__["model"].both(*args, **settings)


def silence(model: ComMDM) -> None:
    """Begin with no correction, so that the untrained block leaves both persons as the prior makes them."""
    last = model.comm.blocks[-1]
    assert isinstance(last, torch.nn.TransformerEncoderLayer)
    torch.nn.init.zeros_(last.norm2.weight)
    torch.nn.init.zeros_(last.norm2.bias)


def held_out(
    model: Any, pairs: Pairs, scheduler: Any, seed: int, space: MotionSpace, batches: int = 8
) -> dict[str, float]:
    """Mean losses on unseen clips, at equal noise levels for every model."""
    from longtake.train import Dice

    total: dict[str, torch.Tensor] = {}
    lengths = pairs.lengths(LENGTHS)
    for number in range(batches):
        dice = Dice(seed + 2, number, pairs.features.device)
        frames = lengths[number % len(lengths)]
        with torch.no_grad():
            drawn = draw(pairs, frames, FRAMES_A_STEP // frames, dice, drop_text=0.0)
            losses = objective(model, scheduler, space, *drawn)
        for key, value in losses.items():
            total[key] = total.get(key, 0.0) + value / batches
    return {key: float(value) for key, value in total.items()}


def export(model: ComMDM, prior: str, folder: Path) -> Path:
    """Write the block alone, float16, with the name of the prior it belongs to."""
    import json

    from longtake.journal import atomic_path, write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().to(torch.float16).contiguous() for key, value in model.comm.state_dict().items()}
    write_tensors(folder / WEIGHTS, state)
    config = {"prior": prior, "comm_layers": COMM_LAYERS, "split": model.config["split"], "first_canon": "given"}
    with atomic_path(folder / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def run_pairs(args: argparse.Namespace, prepared: Prepared, settings: Settings) -> int:
    """Train, resuming what is there, and write the block to ``--out``/pair."""
    from diffusers.utils import logging
    from longtake.motion.pipeline import LongMotionPipeline

    logging.set_verbosity_error()  # a prior is loaded for training, not for its own messages
    pipe = LongMotionPipeline.from_prior(args.prior)
    model = train_block(pipe, prepared, args.out, settings, seed=args.seed, frames=args.batch_frames)
    print(f"block written to {export(model, args.prior, args.out / 'pair')}")
    return 0
