"""Where in time the frames of a long video stand for a model that was trained on short ones.

Four policies, each a function of the whole video and none of the number of ranks:

    absolute      frame numbers as they are (stock)
    interpolate   t L / F: all frames within the trained range, motion slows in proportion
    riflex        RIFLEx (arXiv 2502.15894): the component whose period is nearest 1.5 L is slowed to 0.9 of a turn over
                  F frames, once the video outlasts L and that period, so that it does not repeat
    clip          frame numbers, but no key seems farther away than L - 1 frames: distances within a window stay as
                  trained, anchors never exceed what was trained (after LM-Infinite, arXiv 2308.16137)

Legend: F frames of the video, L frames of training, T frames here, n tokens a frame, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from longtake.errors import UserError
from torch import Tensor

RIFLEX_PERIODS = 1.5  # the component looked for turns once in this many training lengths
RIFLEX_TURN = 0.9  # how far it turns over the whole video


class Policy(StrEnum):
    """See the module's docstring."""

    ABSOLUTE = "absolute"
    INTERPOLATE = "interpolate"
    RIFLEX = "riflex"
    CLIP = "clip"


@dataclass(frozen=True)
class Positions:
    """How frames get their place in time.

    Args:
        policy: see `Policy`.
        length: L; None is the record's.
        component: RIFLEx only, the component to slow (from 1); None chooses by the period.
    """

    policy: Policy | str = Policy.ABSOLUTE
    length: int | None = None
    component: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in list(Policy):
            raise UserError(f"positions must be one of {', '.join(Policy)}; given {self.policy!r}")
        object.__setattr__(self, "policy", Policy(self.policy))
        if self.length is not None and self.length < 1:
            raise UserError(f"the training length must be at least 1 latent frame; given {self.length}")
        if self.component is not None and (self.policy != Policy.RIFLEX or self.component < 1):
            raise UserError("component is a number from 1, and for riflex only")

    def frames(self, span: range, total: int, length: int) -> Tensor:
        """Places of the frames `span` of a video of `total`: float64 (T,)."""
        places = torch.arange(span.start, span.stop, dtype=torch.float64)
        length = self.length or length
        if self.policy is Policy.INTERPOLATE and total > length:
            return places * (length / total)
        return places

    def rates(self, rates: Tensor, total: int, length: int) -> Tensor:
        """The frequencies (..., D_t/2) radians a frame, changed where the policy says so."""
        if self.policy is not Policy.RIFLEX or total <= (self.length or length):
            return rates
        flat = rates.reshape(-1, rates.shape[-1]).clone()
        for row in flat:
            chosen = self.component or riflex_component(row, self.length or length)
            if chosen > len(row):
                raise UserError(f"component {chosen} does not exist: this model has {len(row)} in time")
            if total > 2 * math.pi / float(row[chosen - 1].abs()):
                row[chosen - 1] = math.copysign(RIFLEX_TURN * 2 * math.pi / total, float(row[chosen - 1]))
        return flat.view(rates.shape)

    def clip(self, length: int) -> int | None:
        """The farthest distance at which a key may seem to be, or None."""
        return (self.length or length) - 1 if self.policy is Policy.CLIP else None


def riflex_component(rates: Tensor, length: int) -> int:
    """The component (from 1) whose period is nearest 1.5 training lengths. rates: (D_t/2,) radians a frame."""
    periods = 2 * math.pi / rates.abs().clamp_min(1e-12)
    return int((periods - RIFLEX_PERIODS * length).abs().argmin()) + 1


def angular_rates(width: int, theta: float) -> Tensor:
    """theta^(-2 i / width): float64 (width/2,)."""
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
