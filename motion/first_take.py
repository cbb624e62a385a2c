"""The first take as ``denoise`` wants it: what is denoised, what the net says to it, and the motion in the end.

    take = canvas_take(run, scheduler, ranks)
    whole = take.whole(denoise(take.scheduler, take.state, take.predict, steps=run.steps, ranks=ranks))     # (N, J)

Legend: N frames of the run, n of this rank, B rows, M frames of the longest, J features, P people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from longtake.denoising import Denoising, Known, Predict, Strand, Tensors
from longtake.distributed import Ranks
from longtake.motion.canvas import Canvas
from longtake.motion.row_plan import shake_hands
from longtake.motion.rows import MotionRun
from longtake.motion.sampling import LinearSteps, Schedule
from longtake.noise import noise

# A frame's noise is named by its number. Frames that are not the canvas's own lie in ranges of numbers of their own.
ROWS, SANDWICHES, SECOND, CANON = (kind << 48 for kind in (1, 2, 3, 4))
_STRIDE = 1 << 24


def numbers(kind: int, index: int, frames: int) -> range:
    """The noise numbers of the ``frames`` frames of row or sandwich ``index``."""
    start = kind + index * _STRIDE
    return range(start, start + frames)


@dataclass
class FirstTake:
    """scheduler, state, predict, after: for ``denoise``. whole: its tensors to the motion (N, J), or (N, P, J) of two
    people, on every rank."""

    scheduler: Any
    state: Denoising
    predict: Predict
    whole: Callable[[Tensors], torch.Tensor]
    after: Callable[[Tensors], Tensors] | None = None


def canvas_take(
    run: MotionRun, scheduler: Any, ranks: Ranks, *, first_frame: int = 0, known: Known | None = None
) -> FirstTake:
    """One person on one canvas. first_frame: number of the run's frame 0, which names the noise. known: frames held,
    in this rank's order."""
    canvas = Canvas(run.plan, run.denoise, ranks, chunk_rows=run.chunk_rows, mixed=run.mixed)
    mine = canvas.frames
    names = range(first_frame + mine.start, first_frame + mine.stop)
    start = noise(run.seed, run.item, names, 0, (run.width,))
    state = Denoising.of(start.to(run.device), names, run.seed, run.item, offset=first_frame, known=known)
    held = None if run.control is None else run.control.part(mine)

    def predict(samples: Tensors, t: Any, step: int) -> Tensors:
        sample = samples["latents"]
        if held is not None:
            sample.copy_(held.settle(sample, float(scheduler.alphas_cumprod[int(t)])))
        clean = canvas.estimate(sample.to(run.dtype), int(t)).to(sample.dtype)
        for hook in run.hooks:
            clean = hook(clean, step)
        return {"latents": clean if held is None else held.adjust(clean)}

    def whole(final: Tensors) -> torch.Tensor:
        clean = final["latents"]
        return canvas.gather((clean if held is None else held.adjust(clean)).float())

    return FirstTake(scheduler, state, predict, whole)


def rows_take(run: MotionRun, schedule: Schedule) -> FirstTake:
    """The released engine: rows with noise of their own, padding frames included, hands shaken after each step."""
    plan, shape = run.plan, (run.plan.rows, run.plan.longest)
    names = [number for row in range(plan.rows) for number in numbers(ROWS, row, plan.longest)]
    start = noise(run.seed, run.item, names, 0, (run.width,)).to(run.device)
    state = Denoising({"latents": Strand(start, names)}, run.seed, run.item)
    chunks = plan.chunks(run.chunk_rows)

    def predict(samples: Tensors, t: Any, step: int) -> Tensors:
        x = samples["latents"].unflatten(0, shape)
        clean = [run.denoise(x[rows.start : rows.stop].to(run.dtype), int(t), rows) for rows in chunks]
        return {"latents": torch.cat(clean).flatten(0, 1).to(x.dtype)}

    def after(samples: Tensors) -> Tensors:
        return {"latents": shake_hands(plan, samples["latents"].unflatten(0, shape)).flatten(0, 1)}

    def whole(final: Tensors) -> torch.Tensor:
        rows = final["latents"].unflatten(0, shape)
        return plan.unfold(shake_hands(plan, rows.clone()) if state.stopped else rows).float()

    return FirstTake(LinearSteps(schedule), state, predict, whole, after)


def draws(run: MotionRun, kind: int, frames: Callable[[Sequence[int]], int]) -> Callable[..., torch.Tensor]:
    """noise(count, indices) -> (R, frames(indices), J): each index with its own numbers."""

    def draw(count: int, indices: Sequence[int]) -> torch.Tensor:
        length = frames(indices)
        rows = [noise(run.seed, run.item, numbers(kind, index, length), count, (run.width,)) for index in indices]
        return torch.stack(rows).to(run.device)

    return draw
