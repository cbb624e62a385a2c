"""What a frame of a video transformer attends to: a family of scopes, each a function of the whole video.

A scope says for every pair of frames whether the query frame sees the key frame and which bias its logits get. It knows
the number of frames, the timestep and the step, never the number of processes, so one process and eight make the same
video (LVSA, arXiv 2605.31057, clips a rank's window to its own frames and so does not).

    Scope(8, 16, gate="off")                  window and frames spread over the video (Video-Infinity, 2406.16260)
    RotatingAnchors(reference=21)             LVSA: window, first frame, a grid of keyframes that moves at every step
    Decay(reference=21, factor=0.9)           UltraViCo (2511.20123): far logits shrink, all frames seen
    Sinks(window=8, sinks=3)                  window and the first frames
    BlockCausal(block=5)                      a block sees itself and the blocks before (SkyReels-V2)
    Both(a, b)                                what both scopes show

Legend: F frames of the video (latent frames, after temporal patches), f a query frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from longtake.errors import UserError
from longtake.video.scope import Scope
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """When a scope is asked. total: F. timestep: None when no gate needs it. step: denoising steps done, from 0."""

    total: int
    timestep: float | None = None
    step: int = 0


@dataclass(frozen=True, eq=False)
class Sight:
    """What every frame sees.

    score: (F, F) float64, added to the logits of query frame and key frame; -inf is not seen. factors: (F,) float64
    that a query frame's logits are multiplied by, or None. decay: (distance, factor): positive logits of keys more
    than `distance` frames away are multiplied by `factor`; or None.
    """

    score: Tensor
    factors: Tensor | None = None
    decay: tuple[int, float] | None = None

    @property
    def plain(self) -> bool:
        """Whether every frame sees every frame alike."""
        return self.factors is None and self.decay is None and not bool(self.score.any())


@runtime_checkable
class FrameScope(Protocol):
    """A scope of frames."""

    @property
    def needs_timestep(self) -> bool: ...

    def sight(self, moment: Moment) -> Sight: ...


def see(scope: Scope | FrameScope | None, moment: Moment) -> Sight:
    """What a scope shows at a moment; None shows everything."""
    if scope is None:
        return Sight(torch.zeros(moment.total, moment.total, dtype=torch.float64))
    if isinstance(scope, Scope):
        return _dual(scope, Moment(moment.total, moment.timestep if scope.needs_timestep else None))
    return scope.sight(moment)


@lru_cache(maxsize=32)
def _dual(scope: Scope, moment: Moment) -> Sight:
    dual = scope.at(moment.timestep, moment.total)
    frames = range(moment.total)
    return Sight(dual.score(frames, frames), dual.row_factors(frames, moment.total))


def _seen(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill_(~visible, -math.inf)


@dataclass(frozen=True)
class RotatingAnchors:
    """LVSA (arXiv 2605.31057): a window, the first frames, and a grid of keyframes that rotates one frame a step.

    Every frame sees exactly round(reference * sparsity) frames, or all when there are no more: at the ends, and where
    keyframes fall into the window, the window is widened until that many are seen. The grid's stride is the smallest
    that keeps the keyframes within the budget; its offset is the step modulo the stride.

    Args:
        reference: frames that the model was trained with (Wan 21, HunyuanVideo 33, CogVideoX 13).
        window: frames on each side.
        first: first frames that everybody sees.
        sparsity: scale of the budget.
    """

    reference: int
    window: int = 3
    first: int = 1
    sparsity: float = 1.0

    needs_timestep = False

    def __post_init__(self) -> None:
        if self.reference < 1 or self.window < 0 or self.first < 0 or not self.sparsity > 0:
            raise UserError(
                f"rotating anchors need reference >= 1, window >= 0, first >= 0 and sparsity > 0; given {self}"
            )
        if self.keyframes < 1:
            raise UserError(
                f"a budget of {self.budget} frames leaves no keyframe beside a window of {2 * self.window + 1} and "
                f"{self.first} first frames: use a smaller window or a larger sparsity"
            )

    @property
    def budget(self) -> int:
        """Frames that a frame sees."""
        return round(self.reference * self.sparsity)

    @property
    def keyframes(self) -> int:
        """Keyframes within the budget."""
        return self.budget - (2 * self.window + 1) - self.first

    def anchors(self, moment: Moment) -> tuple[int, ...]:
        """The frames that everybody sees at this step."""
        stride = max(1, -(-moment.total // self.keyframes))
        grid = range(moment.step % stride, moment.total, stride)
        return tuple(sorted({*range(min(self.first, moment.total)), *grid}))

    def sight(self, moment: Moment) -> Sight:
        return _rotating(self, Moment(moment.total, None, moment.step))


@lru_cache(maxsize=64)
def _rotating(scope: RotatingAnchors, moment: Moment) -> Sight:
    total, wanted = moment.total, min(scope.budget, moment.total)
    visible = torch.zeros(total, total, dtype=torch.bool)
    visible[:, list(scope.anchors(moment))] = True
    positions = torch.arange(total)
    visible |= (positions[:, None] - positions).abs() <= scope.window
    for row in range(total):
        reach = scope.window
        while int(visible[row].sum()) < wanted:  # widen by whole frames, the earlier side first
            reach += 1
            for frame in (row - reach, row + reach):
                if 0 <= frame < total and int(visible[row].sum()) < wanted:
                    visible[row, frame] = True
    return Sight(_seen(visible))


@dataclass(frozen=True)
class Decay:
    """UltraViCo (arXiv 2511.20123): every frame is seen, but positive logits of keys farther away than half a training
    length are multiplied by `factor`. Its cost is that of full attention.

    Args:
        reference: frames that the model was trained with.
        factor: in (0, 1].
    """

    reference: int
    factor: float = 0.9

    needs_timestep = False

    def __post_init__(self) -> None:
        if self.reference < 1 or not 0 < self.factor <= 1:
            raise UserError(f"decay needs reference >= 1 and a factor in (0, 1]; given {self}")

    def sight(self, moment: Moment) -> Sight:
        zero = torch.zeros(moment.total, moment.total, dtype=torch.float64)
        return Sight(zero, decay=(self.reference // 2, self.factor))


@dataclass(frozen=True)
class Sinks:
    """A window on each side and the first `sinks` frames (StreamingLLM, arXiv 2309.17453, over frames)."""

    window: int
    sinks: int = 1

    needs_timestep = False

    def __post_init__(self) -> None:
        if self.window < 0 or self.sinks < 0:
            raise UserError(f"window and sinks must be >= 0; given {self.window} and {self.sinks}")

    def sight(self, moment: Moment) -> Sight:
        positions = torch.arange(moment.total)
        return Sight(_seen(((positions[:, None] - positions).abs() <= self.window) | (positions < self.sinks)[None, :]))


@dataclass(frozen=True)
class BlockCausal:
    """A frame sees its own block of frames and every block before it (diffusion forcing in SkyReels-V2, 2504.13074)."""

    block: int

    needs_timestep = False

    def __post_init__(self) -> None:
        if self.block < 1:
            raise UserError(f"a block has at least 1 frame; given {self.block}")

    def sight(self, moment: Moment) -> Sight:
        blocks = torch.arange(moment.total) // self.block
        return Sight(_seen(blocks[None, :] <= blocks[:, None]))


@dataclass(frozen=True)
class Both:
    """The frames that both scopes show; biases add up, decay and factors come from the one that has them."""

    one: Scope | FrameScope
    other: Scope | FrameScope

    @property
    def needs_timestep(self) -> bool:
        return self.one.needs_timestep or self.other.needs_timestep

    def sight(self, moment: Moment) -> Sight:
        a, b = see(self.one, moment), see(self.other, moment)
        if (a.factors is not None and b.factors is not None) or (a.decay is not None and b.decay is not None):
            raise UserError("two scopes that both scale logits cannot be joined")
        score = a.score + b.score
        blind = (score == -math.inf).all(1).nonzero().flatten().tolist()
        if blind:
            raise UserError(f"frames {blind[:8]} see nothing under {self.one} and {self.other} together")
        return Sight(
            score, a.factors if a.factors is not None else b.factors, a.decay if a.decay is not None else b.decay
        )
