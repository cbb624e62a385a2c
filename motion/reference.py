"""DoubleTake in plain loops: what the run of a pipeline must equal. Used by tests, benchmarks and readers.

    plan = RowPlan.make([80, 60, 100], handshake=20)
    x = take_one_canvas(plan, denoise, schedule, canvas_noise)                    # (N, J), the default engine
    rows = take_one_rows(plan, denoise, schedule, row_noise)                      # (B, M, J), as released
    x = take_two(plan, plan.unfold(rows), denoise.unconditional(lengths), schedule, noise, preset="release")

Legend: B rows, M frames of the longest row, N frames of the whole, J features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from longtake.denoising import OnStep, Step
from longtake.motion.row_plan import CHUNK_ROWS, RowPlan, denoise_rows, shake_hands
from longtake.motion.sampling import Denoise, Schedule
from longtake.motion.second_take import SecondTake


def canvas_estimate(
    plan: RowPlan, whole: torch.Tensor, timestep: int, denoise: Denoise, *, chunks: Sequence[range] | None = None
) -> torch.Tensor:
    """The crossfaded clean estimate (N, J) of a canvas (N, J)."""
    clean = torch.zeros_like(whole)
    for rows in chunks or plan.chunks(mixed=False):
        for row, estimate in zip(rows, denoise_rows(plan, whole, timestep, denoise, rows), strict=True):
            clean[plan.span(row)] += plan.weights(row).to(estimate) * estimate
    return clean


def take_one_canvas(
    plan: RowPlan,
    denoise: Denoise,
    schedule: Schedule,
    noise: Callable[[int], torch.Tensor],
    *,
    chunk_rows: int = CHUNK_ROWS,
    mixed: bool = False,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """First take on one canvas: (N, J).

    noise(0): x_T (N, J); noise(k): that of the k-th step. chunk_rows: rows of one call of the net. mixed: rows of
    different lengths may share a call; only for nets that hide padding.
    """
    chunks = plan.chunks(chunk_rows, mixed=mixed)
    x = noise(0)
    for step, timestep in enumerate(schedule.timesteps):
        clean = canvas_estimate(plan, x, timestep, denoise, chunks=chunks)
        x = schedule.update(step, clean, x, noise(step + 1) if float(schedule.sigma[step]) else None)
        if on_step is not None and on_step(Step(step + 1, len(schedule), timestep, x, clean)):
            return clean
    return x


def take_one_rows(
    plan: RowPlan,
    denoise: Denoise,
    schedule: Schedule,
    noise: Callable[[int], torch.Tensor],
    *,
    chunk_rows: int = CHUNK_ROWS,
    on_step: OnStep | None = None,
    pair_order: Sequence[int] | None = None,
) -> torch.Tensor:
    """First take as released: rows (B, M, J) with noise of their own, padding frames included.

    noise(0): x_T (B, M, J); noise(k): that of the k-th step. Overlaps of the result are equal bit for bit.
    pair_order: order in which the handshakes are joined (default first to last); it does not matter.
    """
    x = noise(0)
    chunks = plan.chunks(chunk_rows)
    for step, timestep in enumerate(schedule.timesteps):
        draw = noise(step + 1) if float(schedule.sigma[step]) else None
        clean = torch.cat([denoise(x[rows.start : rows.stop], timestep, rows) for rows in chunks])
        x = shake_hands(plan, schedule.update(step, clean, x, draw), pair_order)
        if on_step is not None and on_step(Step(step + 1, len(schedule), timestep, x, clean)):
            return clean
    return x


def take_two(
    plan: RowPlan,
    whole: torch.Tensor,
    denoise: Denoise,
    schedule: Schedule,
    noise: Callable[[int, Sequence[int]], torch.Tensor],
    *,
    pairs: Sequence[int] | None = None,
    **how: Any,
) -> torch.Tensor:
    """The whole (N, J) with its transitions made again; frames that are held altogether stay bit for bit.

    denoise: unconditional; its rows are the pairs. noise(0, pairs): what the sandwiches (P', K', J) are noised with, in
    the shape of the call; noise(k, pairs): the k-th step's of the schedule. pairs: the transitions to make (default
    all). how: the fields of ``SecondTake``.
    """
    second = SecondTake(**how)
    return second.write_back(plan, whole, second.remake(plan, whole, denoise, schedule, noise, pairs))
