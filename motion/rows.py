"""From a timeline to a run: where the rows lie, which net with which texts, how it samples.

    plan, prompts = plan_of(Timeline.parse("0: a person walks | 80: waves"), 140)

Legend: N frames of the run, J features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.motion.control import Control
from longtake.motion.row_plan import Fade, RowPlan
from longtake.motion.sampling import Denoise
from longtake.motion.space import MotionSpace
from longtake.timeline import Timeline

HANDSHAKE = 20  # frames, a second at 20 fps (PriorMDM's setting for HumanML3D)

Hook = Callable[[torch.Tensor, int], torch.Tensor]


def plan_of(
    timeline: Timeline,
    frames: int,
    *,
    handshake: int = HANDSHAKE,
    longest: int = 196,
    fade: Fade | str = Fade.RELEASED,
) -> tuple[RowPlan, list[str]]:
    """Rows for a timeline, and their prompts. The handshake between two rows lies around the frame where the prompt
    changes: half before, half after.

    A prompt longer than ``longest`` allows takes several rows. Next to a prompt shorter than the handshake, the
    handshake shrinks to that prompt. Raises UserError when ``longest`` leaves no room beside the handshakes.
    """
    if handshake < 0 or longest <= 2 * handshake:
        raise UserError(f"a handshake of {handshake} frames does not fit rows of at most {longest} frames")
    pieces: list[tuple[int, str]] = []
    for start, stop, prompt in timeline.segments(frames):
        # each end of a piece takes up to half a handshake more
        parts = max(1, -(-(stop - start) // (longest - handshake - 1)))
        shares = Partition.even(stop - start, parts)
        pieces += [(size, prompt) for size in shares.sizes]
    shakes = [min(handshake, one[0], two[0]) for one, two in zip(pieces, pieces[1:], strict=False)]
    around = [0, *shakes, 0]
    lengths = [
        size + around[row] // 2 + (around[row + 1] - around[row + 1] // 2) for row, (size, _) in enumerate(pieces)
    ]
    return RowPlan(tuple(lengths), tuple(shakes), Fade(fade)), [prompt for _, prompt in pieces]


@dataclass
class MotionRun:
    """One run's decisions: where rows lie, which net with which texts, how it samples.

    mixed: rows of different lengths may share a call of the net. width: J. dtype: of what the net is given. prompts:
    of the rows.
    """

    plan: RowPlan
    denoise: Denoise
    steps: int
    seed: int
    item: int
    chunk_rows: int
    mixed: bool
    width: int
    device: torch.device
    dtype: torch.dtype
    space: MotionSpace
    prompts: tuple[str, ...]
    control: Control | None = None
    hooks: tuple[Hook, ...] = ()

    def part(self, rows: range) -> MotionRun:
        """The run of some rows that follow each other, with the noise and texts they have in the whole."""
        plan = RowPlan(
            self.plan.lengths[rows.start : rows.stop],
            self.plan.handshakes[rows.start : rows.stop - 1],
            self.plan.fade,
        )
        first = rows.start

        def shifted(x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor:
            return self.denoise(x, timestep, [first + row for row in rows])

        return replace(self, plan=plan, denoise=shifted, prompts=self.prompts[rows.start : rows.stop])
