"""What a step of training learns from: a batch with its noise, and what the mean leaves of the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from longtake.medical.corpus import Group
    from longtake.train import Dice

DROPPED = 0.1  # of the rows: the denoiser must do without their visits
BOUND = 4.0  # of the rest, in units of its scale


class Drawn(NamedTuple):
    """A step's tensors. The first eight: of a ``Batch`` of B rows. noise: (N, 1, D, H, W), N = B * looks, those of a
    row one after the other; time: (N,) in 0..999; keep: (N,) bool, which of them keep their visits. H and W of the
    noise: the next multiples of the net's step."""

    visits: torch.Tensor
    delta: torch.Tensor
    observed: torch.Tensor
    valid: torch.Tensor
    kind: torch.Tensor
    target: torch.Tensor
    scored: torch.Tensor
    whole: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor
    keep: torch.Tensor


def draw(group: Group, dice: Dice, step: int, looks: int = 1) -> Drawn:
    """A step's tensors, ``looks`` noises of each row, sizes multiples of ``step``."""
    batch = group.batch(dice)
    rows = len(batch.target) * looks
    height, width = (side + -side % step for side in batch.target.shape[2:])
    noise = dice.normal(rows, 1, batch.target.shape[1], height, width)
    drawn = (*batch.tensors(), noise, dice.times(rows), dice.uniform(rows) >= DROPPED)
    return Drawn._make(drawn)


def residual(model: Any, mean: torch.Tensor, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 1, D, H', W') each: what the mean leaves of the truth, where there is one, and where the diffusion learns
    from it: a blend has the mean of blends, but neither their error nor grain."""
    error = model.padded(drawn.target[:, None]) - mean
    mask = (model.padded(drawn.scored[:, None].float()) > 0.5).float()
    mask[..., drawn.target.shape[2] :, :] = 0.0
    mask[..., drawn.target.shape[3] :] = 0.0
    return error, mask, mask * drawn.whole[:, None, None, None, None]


def rest_of(error: torch.Tensor, scale: torch.Tensor, pure: torch.Tensor) -> torch.Tensor:
    """What the diffusion is of: the error in units of its scale, 0 where it does not learn (``pure`` is 0)."""
    return (error / scale).detach().clamp(-BOUND, BOUND) * pure
