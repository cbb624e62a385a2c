"""Which frames a frame attends to, and how that changes along the denoising steps.

Dual-scope attention of Video-Infinity (arXiv 2406.16260): every query frame sees a local window of frames around it
and a small set of global frames spread over the whole video. Early, noisy steps (large timestep) lean on the global
frames, late steps on the window. Unlike the released code, the global set depends on the total number of frames only,
never on the number of processes, so the same video comes out of one process or eight.

    scope = Scope(window=8, global_frames=16, gate="hard")
    scope.at(timestep=650, total=240)        # the DualScope that longtake.kernels computes at this step

Symbols: F total frames; P = window, frames on each side; K = global_frames; S = global set; t timestep in [0, 1000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from longtake.errors import UserError
from longtake.kernels.masks.basic import DualScope

TIMESTEPS = 1000  # the range of t in the schedulers of diffusers


class Gate(StrEnum):
    """How the two scopes trade places along the steps.

    Members:
        SOFT: `bias` is added to the logits of the scope that is in charge (the released schedule).
        HARD: the other scope is dropped, with all its traffic.
        OFF:  both scopes always count alike.
    """

    SOFT = "soft"
    HARD = "hard"
    OFF = "off"


@dataclass(frozen=True)
class Scope:
    """The dual scope of a whole run.

    Args:
        window: P >= 0, frames visible on each side of a query frame.
        global_frames: K >= 0, frames visible to everybody, evenly spread from the first to the last frame.
        gate: how local and global scope alternate, see `Gate`.
        bias: logit added to the scope in charge (soft gate only).
        switch: timestep at which they change: t >= switch is the global phase, t < switch the local phase.
        row_scale: the number of keys the prior was trained with; logits of a query with n keys are then multiplied by
            log(n) / log(row_scale). None multiplies by 1.

    Raises:
        UserError: a value outside its range, or a gate that does not exist.
    """

    window: int = 8
    global_frames: int = 16
    gate: Gate | str = Gate.SOFT
    bias: float = 10.0
    switch: float = 800.0
    row_scale: float | None = None

    def __post_init__(self) -> None:
        if self.gate not in list(Gate):
            raise UserError(f"gate must be one of {', '.join(Gate)}; given {self.gate!r}")
        object.__setattr__(self, "gate", Gate(self.gate))
        if self.window < 0 or self.global_frames < 0:
            raise UserError(f"window and global_frames must be >= 0; given {self.window} and {self.global_frames}")
        if self.gate == Gate.HARD and self.global_frames == 0 and self.switch < TIMESTEPS:
            raise UserError("a hard gate needs global_frames >= 1: above `switch` only global frames are visible")
        if self.row_scale is not None and self.row_scale <= 1:
            raise UserError(f"row_scale must be above 1 (a number of keys); given {self.row_scale}")

    def global_indices(self, total: int) -> tuple[int, ...]:
        """S for a video of `total` frames: unique(round(i (F-1) / (K-1))) for i < K; K = 1 gives (0,).

        Half rounds to even, as Python's round does.
        """
        if total <= 0 or self.global_frames == 0:
            return ()
        if self.global_frames == 1:
            return (0,)
        step = (total - 1) / (self.global_frames - 1)
        return tuple(sorted({round(i * step) for i in range(self.global_frames)}))

    @property
    def needs_timestep(self) -> bool:
        """Whether the function depends on the step at all."""
        return self.gate != Gate.OFF

    def is_global_phase(self, timestep: float) -> bool:
        """True when the global frames are in charge at this timestep."""
        return timestep >= self.switch

    def at(self, timestep: float | None, total: int) -> DualScope:
        """The kernel's scope at one step.

        Args:
            timestep: t in [0, 1000); may be None when the gate is off.
            total: F, frames of the whole video.
        """
        local = glob = 0.0
        if self.needs_timestep:
            if timestep is None:
                raise UserError(f"gate={self.gate!s} needs a timestep: pass it to the model or to set_timestep")
            if self.gate == Gate.SOFT:
                local, glob = (0.0, self.bias) if self.is_global_phase(timestep) else (self.bias, 0.0)
            else:
                local, glob = (-math.inf, 0.0) if self.is_global_phase(timestep) else (0.0, -math.inf)
        return DualScope(
            window=self.window,
            global_indices=self.global_indices(total),
            bias_local=local,
            bias_global=glob,
            row_scale=self.row_scale,
        )
