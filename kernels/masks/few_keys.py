"""The part of a mask that shows every query a few keys: the first ones of Lambda, the global ones of DualScope."""

import math
from dataclasses import dataclass

import torch
from longtake.kernels.masks.basic import DualScope, Mask, Positions, TileKind
from torch import Tensor


@dataclass(frozen=True)
class FewKeys(Mask):
    """A part of `whole`: what it shows of the keys in `spans`, less what its part `rest` shows.

    Made by `Mask.parts`; `whole` is Lambda or DualScope.
    """

    whole: Mask
    rest: Mask
    spans: tuple[tuple[int, int], ...]

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.score(q_pos, k_pos) != -math.inf

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        if isinstance(self.whole, DualScope):
            hidden = ~self.whole.global_visible(q_pos, k_pos)
            bias = torch.full(hidden.shape, self.whole.bias_global, dtype=torch.float64)
        else:
            hidden = ~self.whole.dense(q_pos, k_pos) | self.rest.dense(q_pos, k_pos)
            bias = torch.zeros(hidden.shape, dtype=torch.float64)
        return bias.masked_fill_(hidden, -math.inf)

    @property
    def plain(self) -> bool:
        return not (isinstance(self.whole, DualScope) and self.whole.bias_global)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if not any(start < k1 and k0 < stop for start, stop in self.spans):
            return TileKind.EMPTY
        return self._settle(q0, q1, k0, k1)

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return list(self.spans) if q0 < q1 else []
