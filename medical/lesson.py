"""What a step of training learns from: a batch with its noise, and what the mean leaves of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from longtake.medical.corpus import Batch, Group

if TYPE_CHECKING:
    from longtake.train import Dice

DROPPED = 0.1  # of the rows: the denoiser must do without their visits
BOUND = 4.0  # of the rest, in units of its scale


class Drawn(NamedTuple):
    """What a step sees: a batch of B rows, and of each of them some noises. noise: (N, 1, D, H, W), those of a row one
    after the other; time: (N,) in 0..999; keep: (N,) bool, which of them keep their visits. H and W of the noise: the
    next multiples of the net's step."""

    batch: Batch
    noise: torch.Tensor
    time: torch.Tensor
    keep: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, as ``of`` takes them."""
        return (*self.batch.tensors(), self.noise, self.time, self.keep)

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Drawn:
        """From ``tensors``."""
        return cls(Batch(*tensors[:-3]), *tensors[-3:])


def draw(group: Group, dice: Dice, step: int, looks: int = 1) -> Drawn:
    """What a step sees, ``looks`` noises of each row, sizes multiples of ``step``."""
    batch = group.batch(dice)
    rows = len(batch.target) * looks
    height, width = (side + -side % step for side in batch.target.shape[2:])
    noise = dice.normal(rows, 1, batch.target.shape[1], height, width)
    return Drawn(batch, noise, dice.times(rows), dice.uniform(rows) >= DROPPED)


def residual(model: Any, mean: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 1, D, H', W') each: what the mean leaves of the truth, where there is one, and where the diffusion learns
    from it: a blend has the mean of blends, but neither their error nor grain."""
    error = model.padded(batch.target[:, None]) - mean
    mask = (model.padded(batch.scored[:, None].float()) > 0.5).float()
    mask[..., batch.target.shape[2] :, :] = 0.0
    mask[..., batch.target.shape[3] :] = 0.0
    return error, mask, mask * batch.whole[:, None, None, None, None]


def rest_of(error: torch.Tensor, scale: torch.Tensor, pure: torch.Tensor) -> torch.Tensor:
    """What the diffusion is of: the error in units of its scale, 0 where it does not learn (``pure`` is 0)."""
    return (error / scale).detach().clamp(-BOUND, BOUND) * pure
