"""DiffusionBlending: several nets as one, their clean estimates mixed at every step (PriorMDM, section 6).

G = sum_n w_n G_n with sum w = 1, each net with its own guidance first. Two nets with weights (1 - s, s) are the paper's
G_a + s (G_b - G_a); s beyond 0..1 extrapolates. Weights are numbers, or tensors that broadcast to (N, J): a frame, a
feature, or both may have their own.

    mixed = Blend([control_a, control_b], [0.3, 0.7])         # a Denoise, for any sampler or take

Legend: R rows, T frames of a row, N frames of the whole, J features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from longtake.motion.row_plan import RowPlan
from longtake.motion.sampling import Denoise

Weight = float | torch.Tensor
TOLERANCE = 1e-5  # how far the weights' sum may be from 1


class Blend:
    """Several denoisers as one.

    weights: one a denoiser, or a function of the timestep that gives them; default equal. plan: needed by weights that
    differ over frames of a motion of several rows (without one, a row's frames are the motion's).
    Raises ValueError when the weights do not add up to 1.
    """

    def __init__(
        self,
        denoisers: Sequence[Denoise],
        weights: Sequence[Weight] | Callable[[int], Sequence[Weight]] | None = None,
        *,
        plan: RowPlan | None = None,
    ) -> None:
        if not denoisers:
            raise ValueError("a blend needs at least one denoiser")
        self.denoisers, self.plan = list(denoisers), plan
        self._weights = [1.0 / len(denoisers)] * len(denoisers) if weights is None else weights
        if not callable(self._weights):
            self._check(self._weights)

    def weights(self, timestep: int) -> Sequence[Weight]:
        """The weights at a timestep."""
        if not callable(self._weights):
            return self._weights
        weights = self._weights(timestep)
        self._check(weights)
        return weights

    def __call__(self, x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor:
        mixed: torch.Tensor | None = None
        for denoise, weight in zip(self.denoisers, self.weights(timestep), strict=True):
            if not isinstance(weight, torch.Tensor) and weight == 0.0:
                continue
            estimate = denoise(x, timestep, rows)
            if isinstance(weight, torch.Tensor):
                estimate = self._of_rows(weight.to(x), x, rows) * estimate
            elif weight != 1.0:
                estimate = weight * estimate
            mixed = estimate if mixed is None else mixed + estimate
        assert mixed is not None
        return mixed

    def unconditional(self, lengths: Sequence[int] | None = None) -> Blend:
        """The same mixture of the nets without text; weights over frames cannot follow to other rows."""
        if callable(self._weights) or any(isinstance(weight, torch.Tensor) for weight in self._weights):
            raise ValueError("a second take of a blend needs weights that are numbers")
        return Blend([denoise.unconditional(lengths) for denoise in self.denoisers], self._weights)  # type: ignore[attr-defined]

    def _of_rows(self, weight: torch.Tensor, x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        if weight.ndim < 2 or weight.shape[-2] == 1:
            return weight
        if self.plan is None:
            return weight[..., : x.shape[1], :]
        out = weight.new_zeros(len(rows), x.shape[1], weight.shape[-1])
        for place, row in enumerate(rows):
            out[place, : self.plan.lengths[row]] = weight[self.plan.span(row)]
        return out

    def _check(self, weights: Sequence[Weight]) -> None:
        if len(weights) != len(self.denoisers):
            raise ValueError(f"{len(self.denoisers)} denoisers need as many weights; given {len(weights)}")
        total = sum(torch.as_tensor(weight, dtype=torch.float64) for weight in weights)
        off = float((torch.as_tensor(total) - 1).abs().max())
        if off > TOLERANCE:
            raise ValueError(f"the weights of a blend must add up to 1 everywhere; they are off by up to {off:.3g}")
