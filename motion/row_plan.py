"""Where DoubleTake's rows lie: many short intervals with a text each, neighbours sharing a handshake of h frames.

PriorMDM (Shafir et al., arXiv 2303.01418, section 4): all rows are sampled at once and joined where they overlap.

    row 0   |-------------------|hhhhh|
    row 1                       |hhhhh|--------------|hhhhh|
    row 2                                            |hhhhh|-----------------|

Two engines (first_take.py; in plain words reference.py):

canvas  one array of N frames and one noise field. Each step crossfades the rows' clean estimates and moves the canvas
        once. As a step is linear, this is the first take exactly when the rows share their noise in the overlaps; the
        transition keeps the schedule's variance, and memory is that of one sequence. The default.
rows    as released: each row has its own noise and the noisy samples are crossfaded after each step. The transition's
        standard deviation falls to 0.7 of the schedule's in the middle of the handshake.

What neither promises: that the inside of a row equals the plain prior's sample for the same noise. That holds after the
first step, for h = 0, and for nets without temporal mixing; else a row's steps see its neighbours' at a reach of one
row a step (the light cone).

    plan = RowPlan.make([80, 60, 100], handshake=20)
    plan.total, plan.starts                                   # 200, (0, 60, 100)

Legend: B rows, M frames of the longest row, N frames of the whole, J features, h handshake frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from longtake.motion.sampling import Denoise

CHUNK_ROWS = 16  # rows of one call of the net
SPARE_FRAMES = 10  # what the released length rule leaves of a row besides handshakes and blends


class Fade(StrEnum):
    """The share alpha of the later row in frame k of a handshake."""

    RELEASED = "k/h"  # 0, 1/h, .. (h-1)/h: frame 0 is all the earlier row's; not the same backwards
    SYMMETRIC = "(k+0.5)/h"  # the same backwards


class Mode(StrEnum):
    """Which engine makes the first take."""

    CANVAS = "canvas"
    ROWS = "rows"


@dataclass(frozen=True)
class RowPlan:
    """Where the rows lie. lengths: frames of each row, handshakes included. handshakes: frames shared by rows i, i+1.

    Raises ValueError when a row is shorter than its two handshakes together: they would overlap, and the result would
    depend on the order in which they are joined.
    """

    lengths: tuple[int, ...]
    handshakes: tuple[int, ...]
    fade: Fade = Fade.RELEASED

    def __post_init__(self) -> None:
        if not self.lengths or len(self.handshakes) != len(self.lengths) - 1:
            raise ValueError(
                f"a plan needs at least one row and one handshake a pair; given {len(self.lengths)} rows and "
                f"{len(self.handshakes)} handshakes"
            )
        around = (0, *self.handshakes, 0)
        for row, length in enumerate(self.lengths):
            before, after = around[row], around[row + 1]
            if min(before, after) < 0 or length < max(1, before + after):
                raise ValueError(
                    f"row {row} has {length} frames, fewer than its handshakes of {before} and {after} frames "
                    "together: make it longer or the handshakes shorter"
                )

    @classmethod
    def make(
        cls,
        lengths: Sequence[int],
        handshake: int | Sequence[int] = 20,
        *,
        blend: int = 0,
        clamp: bool = False,
        fade: Fade | str = Fade.RELEASED,
    ) -> RowPlan:
        """A plan with one handshake for all pairs, or one a pair.

        clamp: lengthen rows to at least 2h + 2 blend + 10 frames, as the released code does silently; needs one
        handshake for all. Without it a row that is too short raises ValueError.
        """
        lengths = [int(length) for length in lengths]
        pairs = len(lengths) - 1
        if isinstance(handshake, int):
            if clamp:
                lengths = [max(length, 2 * handshake + 2 * blend + SPARE_FRAMES) for length in lengths]
            handshakes = [handshake] * pairs
        elif clamp:
            raise ValueError("clamp is the released rule, which knows one handshake for all pairs; give one number")
        else:
            handshakes = [int(h) for h in handshake]
        return cls(tuple(lengths), tuple(handshakes), Fade(fade))

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First frame of each row in the whole."""
        starts = [0]
        for length, shared in zip(self.lengths, self.handshakes, strict=False):
            starts.append(starts[-1] + length - shared)
        return tuple(starts)

    @property
    def total(self) -> int:
        """N: the sum of the lengths less the handshakes."""
        return sum(self.lengths) - sum(self.handshakes)

    @property
    def longest(self) -> int:
        """M."""
        return max(self.lengths)

    def before(self, row: int) -> int:
        """Handshake of a row with the one before it; 0 for the first."""
        return self.handshakes[row - 1] if row > 0 else 0

    def after(self, row: int) -> int:
        """Handshake of a row with the one after it; 0 for the last."""
        return self.handshakes[row] if row < self.rows - 1 else 0

    def span(self, row: int) -> slice:
        """The row's frames in the whole."""
        return slice(self.starts[row], self.starts[row] + self.lengths[row])

    def alpha(self, pair: int) -> torch.Tensor:
        """(h, 1) float32: the share of row ``pair`` + 1 in each frame of the handshake."""
        h = self.handshakes[pair]
        place = torch.arange(h, dtype=torch.float32)
        return ((place + (0.5 if self.fade is Fade.SYMMETRIC else 0.0)) / max(h, 1)).unsqueeze(1)

    def weights(self, row: int) -> torch.Tensor:
        """(L, 1) float32: the row's share of each of its frames; over all rows they add up to 1 in every frame."""
        weights = torch.ones(self.lengths[row], 1)
        before, after = self.before(row), self.after(row)
        if before:
            weights[:before] = self.alpha(row - 1)
        if after:
            weights[-after:] = 1 - self.alpha(row)
        return weights

    def row_of_frames(self) -> list[int]:
        """(N,) the row that each frame belongs to: a handshake is split in its middle (the first h // 2 are the
        earlier row's)."""
        owner: list[int] = []
        for row in range(self.rows):
            stop = self.total if row == self.rows - 1 else self.starts[row + 1] + self.after(row) // 2
            owner += [row] * (stop - len(owner))
        return owner

    def transition_flags(self) -> torch.Tensor:
        """(B, M) int64: 1 on frames of a handshake, for nets with the transition embedding."""
        flags = torch.zeros(self.rows, self.longest, dtype=torch.long)
        for row, length in enumerate(self.lengths):
            flags[row, : self.before(row)] = 1
            flags[row, length - self.after(row) : length] = 1
        return flags

    def chunks(self, most: int = CHUNK_ROWS, *, mixed: bool = True) -> list[range]:
        """The rows in runs of at most ``most`` for one call of the net; a function of the plan alone.

        mixed: rows of different lengths may share a run (they are padded); else only rows of one length do.
        """
        if most < 1:
            raise ValueError(f"a chunk needs at least one row; given {most}")
        runs: list[range] = []
        start = 0
        for row in range(1, self.rows + 1):
            same = row < self.rows and (mixed or self.lengths[row] == self.lengths[start])
            if not same or row - start == most:
                runs.append(range(start, row))
                start = row
        return runs

    def unfold(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (B, M, J) to the whole (N, J); overlaps are the earlier row's (after a take both are equal)."""
        parts = [x[row, self.before(row) : length] for row, length in enumerate(self.lengths)]
        return torch.cat(parts)

    def fold(self, whole: torch.Tensor) -> torch.Tensor:
        """The whole (N, J) to rows (B, M, J), zero beyond each row's length."""
        rows = whole.new_zeros(self.rows, self.longest, whole.shape[-1])
        for row, length in enumerate(self.lengths):
            rows[row, :length] = whole[self.span(row)]
        return rows


def denoise_rows(
    plan: RowPlan, whole: torch.Tensor, timestep: int, denoise: Denoise, rows: Sequence[int], offset: int = 0
) -> list[torch.Tensor]:
    """Clean estimates of some rows out of a canvas (n, *), in one call of the net: a list of (L, *).

    whole: frames offset.. of the canvas. Rows shorter than the longest of the call are padded with zeros, so they must
    be of one length unless the net hides padding.
    """
    most = max(plan.lengths[row] for row in rows)
    x = whole.new_zeros(len(rows), most, *whole.shape[1:])
    for place, row in enumerate(rows):
        start = plan.starts[row] - offset
        x[place, : plan.lengths[row]] = whole[start : start + plan.lengths[row]]
    clean = denoise(x, timestep, rows)
    return [clean[place, : plan.lengths[row]] for place, row in enumerate(rows)]


def shake_hands(plan: RowPlan, x: torch.Tensor, order: Sequence[int] | None = None) -> torch.Tensor:
    """Crossfade the handshakes of rows (B, M, J), in place: both rows get the same values."""
    for pair in range(plan.rows - 1) if order is None else order:
        h, length = plan.handshakes[pair], plan.lengths[pair]
        if h:
            alpha = plan.alpha(pair).to(x)
            joined = (1 - alpha) * x[pair, length - h : length] + alpha * x[pair + 1, :h]
            x[pair, length - h : length] = joined
            x[pair + 1, :h] = joined
    return x
