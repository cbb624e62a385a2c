"""The recipe of the small reader: a few minutes on one core.

    python -m longtake.video.reading.train --data FOLDER --out runs/reader --minutes 8

One set of weights learns to read all tokens and windows of three sizes, averaged and guided in both ways, so that
`compare` asks each reducer the same fair question. The guide learns from the answers and from where the character that
is asked for stands.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from longtake.device import product_format
from longtake.kernels.pooling.windows import Triple
from longtake.train import Dice, Settings, fit, training_device
from longtake.video.reading.puzzles import ANSWERS, Batch, Cast
from longtake.video.reading.reader import PATCH, Reader, chosen
from torch import Tensor, nn

KERNELS: tuple[Triple, ...] = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 4, 4), (4, 4, 4))
MODES = ("local", "uniform")  # the released double softmax reads as the average does, unless a peak stands out
QUESTIONS = 4  # of each film: the tower's work serves all
GUIDE = 0.3  # share of the guide's own loss


def guide_loss(scores: Tensor, asked: Tensor) -> Tensor:
    """scores (..., T, 16, 16), asked (..., T, 64, 64) bool: how far the scores' softmax is from where was asked."""
    share = F.avg_pool2d(asked.flatten(0, -4).float(), PATCH)
    share = share / share.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    sure = scores.flatten(0, -4).flatten(1).log_softmax(1).view(share.shape)
    return -(share * sure).sum((1, 2, 3)).mean()


def value(reader: Any, batch: Batch, step: int) -> Tensor:
    """The loss of a step; windows and mode take turns."""
    kernel, mode = KERNELS[step % len(KERNELS)], MODES[step // len(KERNELS) % len(MODES)]
    logits, scores = reader(batch.films, batch.words, kernel, mode)
    return F.cross_entropy(logits.flatten(0, 1), batch.answer.flatten()) + GUIDE * guide_loss(scores, batch.asked)


class _Pooled(nn.Module):
    """The reader as the module that is trained: its call goes through windows."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, films: Tensor, words: Tensor, kernel: Triple, mode: str) -> tuple[Tensor, Tensor]:
        return self.reader.pooled(films, words, kernel, mode)


def train(cast: Cast, judged: Cast, folder: Path, settings: Settings, *, batch: int = 8, seed: int = 0) -> Reader:
    """Train a reader on films of `cast`; figures of the record are on films of `judged`."""
    torch.manual_seed(seed)
    whole = _Pooled(Reader())
    held = judged.batch(48, Dice(seed, 10**9, judged.device))

    def loss(model: nn.Module, step: int) -> Tensor:
        return value(model, cast.batch(batch, Dice(seed, step, cast.device), QUESTIONS), step)

    def judge(model: Any, step: int) -> dict[str, float]:
        reader = model.reader
        found = chosen(reader.pooled(held.films, held.words, (1, 1, 1), "uniform")[0], held.kind)
        return {"right": float((found == held.answer).float().mean())}

    fit(whole, loss, settings, folder, name="reader", on_checkpoint=judge)
    return whole.reader.cpu().eval()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the recipe."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the zips of clips")
    parser.add_argument("--out", type=Path, default=Path("runs/reader"), help="folder of reader.safetensors")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=None, help="instead of minutes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Train and write `reader.safetensors`."""
    place = training_device()
    cast, judged = Cast.load(args.data, place), Cast.load(args.data, place, held_out=True)
    minutes = 0.0 if args.steps else args.minutes
    settings = Settings(
        steps=args.steps or 10**9, learning_rate=args.rate, warmup=30, minutes=minutes, ends_at=0.0, ema=0.99,
        checkpoint_every=200, weight_decay=0.05,
        precision="bf16" if product_format(place) is not None or place.type != "cpu" else "no",
    )  # fmt: skip
    reader = train(cast, judged, args.out, settings, batch=args.batch, seed=args.seed)
    reader.save(args.out / "reader.safetensors")
    count = sum(parameter.numel() for parameter in reader.parameters())
    print(f"{args.out / 'reader.safetensors'}: {count:,} parameters, {len(ANSWERS)} answers")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
