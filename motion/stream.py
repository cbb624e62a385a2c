"""Rolling generation: a long motion row by row, each finished before the rest is known, in constant memory.

To finish a row, a window of rows around it is sampled from the run's own noise: some that are finished, the row, and
``lookahead`` rows to come. What a row becomes depends on the rows within as many rows as there are sampling steps (the
light cone); so a window that reaches that far both ways gives exactly the full solve, and a shorter one deviates by
what ``deviation`` measures. hold: finished frames are held as they were given out, so there is never a jump where a new
row joins; without it windows are independent and only exact ones join without a step.

    for features in roll(pipe, timeline, 1200, lookahead=1, seed=3):
        ...                                        # (n, J) normalised, in order

Legend: N frames of the whole, n frames of one piece, J features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from longtake.denoising import Known
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.motion.pipeline import LongMotionPipeline
from longtake.motion.row_plan import RowPlan
from longtake.timeline import Timeline


def light_cone(steps: int, rows: int) -> int:
    """Rows on each side that a row's result can depend on after so many sampling steps."""
    return min(steps, rows - 1)


def pieces(plan: RowPlan) -> list[range]:
    """The frames that become final with each row: from its start to the next row's."""
    stops = [*plan.starts[1:], plan.total]
    return [range(start, stop) for start, stop in zip(plan.starts, stops, strict=True)]


@torch.no_grad()
def roll(
    pipe: LongMotionPipeline,
    prompt: str | Timeline,
    frames: int | None = None,
    *,
    lookahead: int = 1,
    past: int = 1,
    hold: bool = True,
    **settings: Any,
) -> Iterator[torch.Tensor]:
    """Pieces (n, J) of normalised features, one a row, in order; together (N, J).

    lookahead: rows to come that a window has, past: finished ones. hold: see above. settings: as for
    ``LongMotionPipeline.__call__``: seed, num_inference_steps, guidance_scale, handshake, chunk_rows, text, ...
    Raises UserError for hooks and controls, which need the whole motion.
    """
    if lookahead < 0 or past < 0:
        raise UserError(f"lookahead and past are numbers of rows; given {lookahead} and {past}")
    if settings.get("control") is not None or settings.get("hooks"):
        raise UserError("rolling generation knows no control and no hooks: they need the whole motion")
    run, _ = pipe.prepare(prompt, frames, **settings)
    ranks = Ranks.single(pipe.model.device, pipe.model.dtype)
    plan, parts = run.plan, pieces(run.plan)
    finished: dict[int, torch.Tensor] = {}
    for row in range(plan.rows):
        rows = range(max(0, row - past), min(plan.rows, row + lookahead + 1))
        part = run.part(rows)
        first = plan.starts[rows.start]
        known = None
        if hold and rows.start < row:
            mask = torch.zeros(part.plan.total, dtype=torch.bool)
            clean = torch.zeros(part.plan.total, run.width)
            for earlier in range(rows.start, row):
                place = slice(parts[earlier].start - first, parts[earlier].stop - first)
                mask[place] = True
                clean[place] = finished[earlier]
            known = Known(mask, clean)
        whole, _ = pipe.solve(part, ranks, first_frame=first, known=known, quiet=True)
        finished[row] = whole[parts[row].start - first : parts[row].stop - first].cpu()
        finished.pop(row - past - 1, None)
        yield finished[row]


def deviation(plan: RowPlan, rolled: torch.Tensor, full: torch.Tensor) -> list[float]:
    """Root-mean-square difference of each row's frames between a rolled and a full solve (N, J), in the units of the
    features (normalised: deviations)."""
    gap = (rolled - full).square()
    return [float(gap[part.start : part.stop].mean().sqrt()) for part in pieces(plan)]
