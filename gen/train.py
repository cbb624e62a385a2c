"""The training loop every prior shares: accelerate, moving average, atomic checkpoints that a rerun resumes.

A recipe gives a model and ``loss(model, step) -> scalar``; the batch of a step is a function of (seed, step) alone, so
a run that was killed and resumed sees the same batches as one that was not. The model lives on ``training_device()``,
and so must all that a loss makes of it; nothing waits for the device between two checkpoints.

    place = training_device()
    fit(model, loss, Settings(steps=2000), folder)              # loss draws from batch_generator(seed, step)
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.device import activate, choose_device, records, training_precision
from longtake.errors import UserError, one_line
from longtake.graphs import Graphs, Split
from longtake.journal import atomic_path
from longtake.records import append
from torch import nn

PRECISIONS = ("no", "bf16", "fp16")
TENTH = 0.1  # of the rate, where a cosine over steps ends
EMA_POWER = 0.75  # of the moving average's warm-up
ENDLESS = 10**9  # steps: the minutes end the training


@dataclass(frozen=True)
class Settings:
    """How long and how fast.

    The rate warms up over ``warmup`` steps, then falls by a cosine. ends_at: the share of it that is left at the end,
    0..1; the end is the last step, or, with ``minutes``, the time given. None: a tenth, at the last step.
    minutes: stops early (0: never). With ``ends_at`` they are of the whole training, resumed runs added up, else of
    this run. checkpoint_every: steps; checkpoint_minutes: also when so long has passed since the last (0: never).
    ema: decay of the moving average. clip: of the gradient's norm. precision: "no", "bf16" or "fp16".
    compile: whether torch.compile makes the model's forward and backward (a minute or more once; a shape each).
    graphs: whether a CUDA device replays recorded steps, where the loss is a ``longtake.graphs.Split``, one process
    trains, and neither compile nor "fp16" is asked for.
    Raises UserError for numbers that cannot be.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    checkpoint_every: int = 200
    minutes: float = 0.0
    precision: str = "no"
    ends_at: float | None = None
    checkpoint_minutes: float = 0.0
    compile: bool = False
    graphs: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.checkpoint_every < 1:
            raise UserError(f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("minutes", "checkpoint_minutes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a number of minutes, 0 or more, got {value}")
        if self.ends_at is not None and not 0 <= self.ends_at <= 1:
            raise UserError(f"ends_at must be a share of the rate from 0 to 1, got {self.ends_at}")

    @property
    def over_time(self) -> bool:
        """Whether the cosine falls over ``minutes`` instead of over ``steps``."""
        return self.ends_at is not None and self.minutes > 0

    def rate(self, step: int, minutes: float = 0.0) -> float:
        """Learning rate of a step; minutes: trained so far, of the whole training."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.over_time:
            progress = minutes / self.minutes
        else:
            progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        low = TENTH if self.ends_at is None else self.ends_at
        return self.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def add_sources(parser: argparse.ArgumentParser, data: str) -> None:
    """Where a recipe's data come from: exactly one of --data and --prepared; --prepare writes what the latter reads."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help=data)
    source.add_argument(
        "--prepared", type=Path, metavar="FILE", help="train from what --prepare wrote: needs neither data nor texts"
    )
    parser.add_argument(
        "--prepare", type=Path, metavar="FILE", help="write all that training needs into one file, and end"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every ``longtake train`` has; ``schedule`` reads them."""
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="how long all training takes; the learning rate falls to zero over them; a rerun resumes (0: by steps)",
    )
    parser.add_argument(
        "--ends-at",
        type=float,
        default=None,
        metavar="SHARE",
        help="share of the learning rate left at the end, 0 to 1 (default: none of it with --minutes, else a tenth)",
    )
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=1.5, help="a checkpoint after so long (0: by steps alone)"
    )
    add_precision(parser)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="let torch.compile make the steps"
    )
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a GPU: record each step once and replay it (the same numbers, sooner)",
    )
    parser.add_argument("--seed", type=int, default=0)


def add_precision(parser: argparse.ArgumentParser, help: str = "of the products") -> None:
    """``--precision``, which ``precision_of`` reads."""
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help=f"{help} (default auto: the fastest that the device has, no: float32)",
    )


def precision_of(args: argparse.Namespace) -> str:
    """One of ``PRECISIONS``."""
    asked: str = args.precision
    return training_precision(training_device()) if asked == "auto" else asked


def count(steps: int | None, args: argparse.Namespace, default: int) -> int:
    """Steps of a stage: as given, else without end where minutes are, else ``default``."""
    if steps is not None:
        return steps
    return ENDLESS if args.minutes > 0 else default


def schedule(args: argparse.Namespace, share: float = 1.0) -> dict[str, Any]:
    """The options of ``add_arguments`` as keywords of ``Settings``, for a stage that takes ``share`` of the minutes."""
    return {
        "minutes": args.minutes * share,
        "ends_at": 0.0 if args.ends_at is None and args.minutes > 0 else args.ends_at,
        "checkpoint_minutes": args.checkpoint_minutes,
        "checkpoint_every": ENDLESS if args.checkpoint_minutes > 0 else 250,
        "precision": precision_of(args),
        "compile": args.compile,
        "graphs": args.graphs,
    }


# ------------------------------------------------------------------------------------------------------ a batch


def training_device() -> torch.device:
    """The device of this process's model and batches, made the current one."""
    device = choose_device(local_rank=int(os.environ.get("LOCAL_RANK") or 0)).device
    activate(device)
    return device


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter lives."""
    return next(model.parameters()).device


def batch_generator(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step's batch: a function of (seed, step, rank), so a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64([seed, step, int(os.environ.get("RANK") or 0)]))


def normal(rng: np.random.Generator, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Standard normal numbers, float32: of ``rng`` itself on a CPU, elsewhere drawn there from a seed of ``rng``."""
    if device.type == "cpu":
        return torch.from_numpy(rng.standard_normal(tuple(shape), dtype="float32"))
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    return torch.randn(tuple(shape), generator=generator, device=device)


def seeded(device: torch.device, seed: int) -> torch.Generator | None:
    """A generator on a device; None on "meta", which has no numbers."""
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)


class Dice:
    """The random numbers of one step, drawn where the model lives from one generator seeded by (seed, step, rank).

    Nothing here waits for the device: indices, noise and times are made there.

        dice = Dice(seed, step, place)
        rows, noise, time = dice.pick(odds, 64), dice.normal(64, 3, 8, 8), dice.times(64)
    """

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        mixed = np.random.SeedSequence([seed, step, int(os.environ.get("RANK") or 0)])
        self.device = device
        self.generator = seeded(device, int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers in [0, 1), float32."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers in 0..high-1, int64."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def below(self, high: torch.Tensor) -> torch.Tensor:
        """A whole number in 0..high-1 for each of ``high``, int64."""
        return (self.uniform(*high.shape) * high).long().clamp_max(high - 1)

    def pick(self, odds: torch.Tensor, rows: int) -> torch.Tensor:
        """``rows`` indices into ``odds`` (n,), each as likely as its weight."""
        return torch.multinomial(odds, rows, replacement=True, generator=self.generator)

    def strata(self, rows: int) -> torch.Tensor:
        """Numbers in [0, 1), one in each of ``rows`` equal parts, in random order."""
        order = torch.randperm(rows, generator=self.generator, device=self.device)
        return (order + self.uniform(rows)) / rows

    def times(self, rows: int, steps: int = 1000, late: float = 0.0, begin: int = 800) -> torch.Tensor:
        """Timesteps (rows,) int64 in 0..steps-1, one a stratum; ``late``: the share drawn from begin..steps-1 alone."""
        place = self.strata(rows)
        above = begin + (place / late if late else place) * (steps - begin)
        below = (place - late) / (1 - late) * steps if late < 1 else above
        return torch.where(place < late, above, below).long().clamp(0, steps - 1)


# ------------------------------------------------------------------------------------------------------ the loop


class Average:
    """Moving average of parameters; its decay warms up as 1 - (1 + step) ** -0.75, up to ``decay``."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.decay = decay
        self.steps = 0
        self.shadow = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the parameters as they are now."""
        before = self.steps
        self.steps += 1
        decay = min(1 - (1 + before) ** -EMA_POWER, self.decay) if before else 0.0
        # three passes where lerp would be one: lerp rounds once less, and its numbers would not be those of old runs
        gap = torch._foreach_sub(self.shadow, self.parameters)
        torch._foreach_mul_(gap, 1 - decay)
        torch._foreach_sub_(self.shadow, gap)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Give the model the average's numbers."""
        torch._foreach_copy_(self.parameters, self.shadow)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the average's numbers, afterwards its own again."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> dict[str, Any]:
        return {"optimization_step": self.steps, "shadow_params": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From ``state_dict``, or from that of diffusers' EMAModel; ValueError for another model's."""
        given = state["shadow_params"]
        if [one.shape for one in given] != [one.shape for one in self.shadow]:
            raise ValueError("the moving average is of another model")
        self.steps = int(state["optimization_step"])
        for mine, other in zip(self.shadow, given, strict=True):
            mine.copy_(other)


class Trainer:
    """One training: ``folder/<name>.state`` is its resumable checkpoint, ``folder/<name>.jsonl`` its record.

    ``folder/<name>.best``: the averaged weights of the best judgement, where ``best`` names one. See ``fit`` for the
    arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, int], torch.Tensor],
        settings: Settings,
        folder: Path,
        *,
        name: str = "model",
        on_checkpoint: Callable[[nn.Module, int], dict[str, float]] | None = None,
        best: str | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.model, self.loss, self.settings, self.name = model, loss, settings, name
        self.on_checkpoint, self.best = on_checkpoint, best
        if best is not None and on_checkpoint is None:
            raise ValueError("best names a figure of on_checkpoint: give both")
        folder.mkdir(parents=True, exist_ok=True)
        self.state_path, self.record_path = folder / f"{name}.state", folder / f"{name}.jsonl"
        self.best_path, self.lowest, self.best_step = folder / f"{name}.best", math.inf, 0
        self.device = training_device()
        self.model.to(self.device)
        # accelerate joins a torchrun without GPUs only when it is told to use the CPU
        self.accelerator = Accelerator(
            mixed_precision=settings.precision, cpu=self.device.type == "cpu", device_placement=False
        )
        self.average = Average(model.parameters(), settings.ema)
        self.kernels = {"fused": True, "foreach": False} if self.device.type != "cpu" else {"foreach": True}
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.99),
            **self.kernels,
        )
        self.done, self.seconds_before = 0, 0.0
        self.losses: list[torch.Tensor] = []  # of the steps since the last checkpoint, on the device
        self.rate = 0.0
        self.started = self.kept_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run."""
        return time.monotonic() - self.started

    @property
    def minutes(self) -> float:
        """Wall-clock minutes of the whole training, resumed runs added up."""
        return (self.seconds_before + self.seconds) / 60

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one. Raises UserError when it is damaged or of another model."""
        if not self.state_path.exists():
            return
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            for group in state["optimizer"]["param_groups"]:  # written on another device, perhaps
                group.update({"fused": None, **self.kernels})
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.load_state_dict(state["average"])
            self.done = int(state["step"])
            self.seconds_before = float(state.get("seconds", 0.0))
            if self.best is not None:
                self.lowest, self.best_step = (float(state["lowest"]), int(state["best_step"]))
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a damaged file makes the reader do, it is the file's fault
            raise UserError(
                f"{self.state_path} is damaged or of another model ({one_line(error)[:200]}): "
                "remove it or give another folder"
            ) from error

    def run(self) -> nn.Module:
        """All steps that are left, with their checkpoints; the model, with the average's parameters, in eval mode."""
        from tqdm import tqdm

        settings = self.settings
        self.wrapped, self.stepper = self.accelerator.prepare(self.model, self.optimizer)
        if settings.compile:
            self.wrapped = torch.compile(self.wrapped, dynamic=False)
        self.graphs = self.recorder()
        self.started = self.kept_at = time.monotonic()
        with tqdm(
            range(self.done, settings.steps),
            initial=self.done,
            total=math.inf if settings.steps == ENDLESS else settings.steps,
            desc=self.name,
            mininterval=10,
            disable=not self.accelerator.is_main_process,
        ) as bar:
            for number in bar:
                if settings.over_time and self.out_of_time():
                    break  # resumed after its time was over
                self.step(number)
                ended = self.out_of_time()
                if ended or self.is_due():
                    row = self.checkpoint()
                    shown = {key: f"{value:.4g}" for key, value in row.items() if key not in ("step", "seconds")}
                    bar.set_postfix(shown)
                if ended:
                    break
        self.average.copy_to_parameters()
        if self.best is not None and self.best_step:
            self.take_best()
        return self.model.eval()

    def take_best(self) -> None:
        """Give the model, on every rank, the weights of the best judgement. Raises UserError for a damaged file."""
        self.accelerator.wait_for_everyone()
        try:
            state = torch.load(self.best_path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise UserError(
                f"{self.best_path} is missing, damaged or of another model ({one_line(error)[:200]}): "
                "train anew in another folder"
            ) from error

    def step(self, number: int) -> None:
        """One step of the optimizer and of the average. Nothing here waits for the device."""
        self.rate = self.settings.rate(number, self.minutes if self.settings.over_time else 0.0)
        for group in self.stepper.param_groups:
            group["lr"] = self.rate
        value = self.backward(number)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.average.step()
        self.losses.append(value.detach())
        self.done = number + 1

    def recorder(self) -> Graphs | None:
        """What records this training's steps, where they can be and should."""
        settings, loss = self.settings, self.loss
        wanted = settings.graphs and not settings.compile and settings.precision != "fp16"
        alone = self.accelerator.num_processes == 1
        if not (wanted and alone and records(self.device) and isinstance(loss, Split)):
            return None
        return Graphs(loss.value, self.wrapped, self.accelerator.autocast)

    def backward(self, number: int) -> torch.Tensor:
        """The loss of a step, its gradients in the parameters."""
        if self.graphs is not None and isinstance(self.loss, Split):
            return self.graphs(self.loss.draw(number))
        with self.accelerator.autocast():
            value = self.loss(self.wrapped, number)
        self.accelerator.backward(value)
        return value

    def is_due(self) -> bool:
        """Whether a checkpoint is: by the number of steps, at the end, or by the clock."""
        settings = self.settings
        if self.done % settings.checkpoint_every == 0 or self.done == settings.steps:
            return True
        return self._agreed(
            settings.checkpoint_minutes > 0 and time.monotonic() - self.kept_at > 60 * settings.checkpoint_minutes,
            asked=settings.checkpoint_minutes > 0,
        )

    def out_of_time(self) -> bool:
        """Whether ``Settings.minutes`` are over, on any rank."""
        limit = self.settings.minutes
        spent = self.minutes if self.settings.over_time else self.seconds / 60
        return self._agreed(limit > 0 and spent > limit, asked=limit > 0)

    def _agreed(self, mine: bool, *, asked: bool) -> bool:
        """Whether any rank says so; ranks that stopped at different steps would wait for each other for ever."""
        if not asked or self.accelerator.num_processes == 1:
            return mine
        told = self.accelerator.reduce(torch.tensor(float(mine), device=self.device), "sum")
        return bool(told > 0)

    def checkpoint(self) -> dict[str, float]:
        """Check the losses since the last checkpoint, judge, write the state and a line of the record: this line.

        Raises FloatingPointError, the last checkpoint untouched, when a loss or a weight is not finite.
        """
        losses = torch.stack(self.losses).tolist()
        first = self.done - len(losses)
        bad = [place for place, value in enumerate(losses) if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{self.name}: loss is {losses[bad[0]]} at step {first + bad[0]}; last checkpoint kept in "
                f"{self.state_path}"
            )
        norms = torch.stack(torch._foreach_norm([parameter.detach().float() for parameter in self.average.parameters]))
        if not bool(torch.isfinite(norms).all()):
            raise FloatingPointError(
                f"{self.name}: weights are not finite after step {self.done - 1}; last checkpoint kept in "
                f"{self.state_path}"
            )
        self.losses = []
        row: dict[str, float] = {"step": self.done, "loss": float(np.mean(losses)), "rate": self.rate}
        row["seconds"] = round(self.seconds, 1)
        if self.accelerator.is_main_process:
            row.update(self.judge())
            self.keep_if_best(row)
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
                "step": self.done,
                "seconds": self.seconds_before + self.seconds,
                "settings": asdict(self.settings),
                "lowest": self.lowest,
                "best_step": self.best_step,
            }
            with atomic_path(self.state_path) as partial, open(partial, "wb") as file:
                torch.save(state, file)
            append(self.record_path, row)
        self.kept_at = time.monotonic()
        return row

    def keep_if_best(self, row: dict[str, float]) -> None:
        """Write the averaged weights when the judged figure is the lowest so far; the line says which step is best."""
        if self.best is None:
            return
        if row.get(self.best, math.inf) < self.lowest:
            self.lowest, self.best_step = float(row[self.best]), self.done
            with self.average.in_place():
                state = {"model": self.model.state_dict(), "step": self.done, self.best: self.lowest}
                with atomic_path(self.best_path) as partial, open(partial, "wb") as file:
                    torch.save(state, file)
        row["best_step"] = self.best_step

    def judge(self) -> dict[str, float]:
        """What ``on_checkpoint`` finds of the averaged model."""
        if self.on_checkpoint is None:
            return {}
        with self.average.in_place():
            self.model.eval()
            with torch.inference_mode():
                found = self.on_checkpoint(self.model, self.done)
            self.model.train()
        return found


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int], torch.Tensor],
    settings: Settings,
    folder: Path,
    *,
    name: str = "model",
    on_checkpoint: Callable[[nn.Module, int], dict[str, float]] | None = None,
    best: str | None = None,
) -> nn.Module:
    """Train ``model`` in place to ``settings.steps``; returns it, on ``training_device()``, with the moving average's
    parameters: the last ones, or those of the checkpoint at which the figure ``best`` of ``on_checkpoint`` was lowest
    (early stopping, Prechelt 1998); ``folder/<name>.best`` keeps them, and the record's "best_step" says which. A
    checkpoint without that figure is passed over.

    ``folder/<name>.state`` is the resumable checkpoint, ``folder/<name>.jsonl`` the record (step, loss, rate, seconds).
    ``on_checkpoint(averaged model, step)`` returns figures for the record. A loss or weight that is not finite raises
    FloatingPointError at the next checkpoint and leaves the last one untouched. Raises UserError for a checkpoint that
    is damaged or of another model, and when the disk is full.
    """
    trainer = Trainer(model, loss, settings, folder, name=name, on_checkpoint=on_checkpoint, best=best)
    trainer.resume()
    return trainer.run()
