"""The training loop every prior shares: accelerate, moving average, atomic checkpoints that a rerun resumes.

A recipe gives a model and ``loss(model, step) -> scalar``; the batch of a step is a function of (seed, step) alone, so
a run that was killed and resumed sees the same batches as one that was not.

    fit(model, loss, Settings(steps=2000), folder)
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Settings:
    """How long and how fast: ``minutes`` stops early (0: never); the rate warms up, then falls to a tenth by cosine."""

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    checkpoint_every: int = 200
    minutes: float = 0.0
    precision: str = "no"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision must be no, bf16 or fp16, got {self.precision!r}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def batch_generator(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step's batch: a function of (seed, step, rank), so a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64([seed, step, int(os.environ.get("RANK") or 0)]))


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int], torch.Tensor],
    settings: Settings,
    folder: Path,
    *,
    name: str = "model",
    on_checkpoint: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> nn.Module:
    """Train ``model`` in place to ``settings.steps``; returns it with the moving average's parameters.

    ``folder/<name>.state`` is the resumable checkpoint, ``folder/<name>.jsonl`` the record (step, loss, rate, seconds).
    ``on_checkpoint(averaged model, step)`` returns figures for the record. A NaN loss raises FloatingPointError and
    leaves the last checkpoint untouched.
    """
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
    from longtake.device import choose_device
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    state_path, record_path = folder / f"{name}.state", folder / f"{name}.jsonl"
    # accelerate joins a torchrun without GPUs only when it is told to use the CPU
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=choose_device().device.type == "cpu")
    average = EMAModel(model.parameters(), decay=settings.ema, use_ema_warmup=True, power=0.75)
    buffers = dict(model.named_buffers())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
    )
    first = 0
    if state_path.exists():
        state = torch.load(state_path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        first = int(state["step"])
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    average.to(accelerator.device)
    started, recent = time.monotonic(), []
    bar = tqdm(
        range(first, settings.steps),
        initial=first,
        total=settings.steps,
        desc=name,
        mininterval=10,
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with accelerator.autocast():
            value = loss(wrapped, step)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(wrapped.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(model.parameters())
        recent.append(float(value.detach()))
        if not np.isfinite(recent[-1]):
            raise FloatingPointError(
                f"{name}: loss is {recent[-1]} at step {step}; last checkpoint kept in {state_path}"
            )
        out_of_time = settings.minutes > 0 and time.monotonic() - started > 60 * settings.minutes
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps or out_of_time:
            row = {"step": step + 1, "loss": float(np.mean(recent)), "rate": settings.rate(step)}
            row["seconds"] = round(time.monotonic() - started, 1)
            recent = []
            if accelerator.is_main_process:
                if on_checkpoint is not None:
                    average.store(model.parameters())
                    average.copy_to(model.parameters())
                    model.eval()
                    with torch.inference_mode():
                        row.update(on_checkpoint(model, step + 1))
                    model.train()
                    average.restore(model.parameters())
                _save(
                    state_path,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "average": average.state_dict(),
                        "step": step + 1,
                        "settings": asdict(settings),
                    },
                )
                with open(record_path, "a") as file:
                    file.write(json.dumps(row) + "\n")
            bar.set_postfix({key: f"{value:.4g}" for key, value in row.items() if key not in ("step", "seconds")})
        if out_of_time:
            break
    average.copy_to(model.parameters())
    assert all(torch.isfinite(buffer).all() for buffer in buffers.values())
    return model.eval()
