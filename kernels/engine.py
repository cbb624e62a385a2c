"""Running a rank's tiles: forward into a merged output, backward into summed gradients.

Shapes: q (B, H, Lq, D), k (B, Hk, Lk, D), v (B, Hk, Lk, Dv), local rows. O and sums are kept in float32 (float64 for
float64) whatever the tensors are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from longtake.kernels.backends import Backend
from longtake.kernels.masks import Mask
from longtake.kernels.partial import merge
from longtake.kernels.tiles import Runs, Span, Tile, positions_of, take
from longtake.kernels.transport import Transport
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """What one call carries through its strategy: the messages, who computes tiles, and the scale of the logits."""

    transport: Transport
    backend: Backend
    scale: float


class Scheme(Protocol):
    """One way to bring queries and keys together. Called on every rank with its own shards."""

    def forward(self, run: Run, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(O like q, L, what the backward wants to keep)."""
        ...

    def backward(self, run: Run, d_out: Tensor, saved: Sequence[Tensor]) -> Grads:
        """(dQ, dK, dV) of this rank's shards."""
        ...


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Merged:
    """Parts merged row by row. Rows that nothing has reached are O = 0, L = -inf.

    zero_lse: (Lq,) log-sum-exp of zero keys that each row sees to begin with (`Mask.zero_key_lse`).
    """

    def __init__(self, q: Tensor, value_dim: int, zero_lse: Tensor | None = None):
        self._dtype = q.dtype
        self._shape = (*q.shape[:3], value_dim)
        self._like = q
        self._whole: tuple[Tensor, Tensor] | None = None  # one part that covers all rows needs no accumulator
        self._out: Tensor | None = None
        self._lse: Tensor | None = None
        self._reached: list[Span] = []
        if zero_lse is not None:
            out, lse = self._open()
            lse.copy_(zero_lse.to(q.device, lse.dtype).expand_as(lse))
            self._reached = [(0, q.shape[2])]

    def _open(self) -> tuple[Tensor, Tensor]:
        if self._out is None or self._lse is None:
            accumulate = accumulator_dtype(self._dtype)
            if self._whole is not None:
                self._out, self._lse = self._whole[0].to(accumulate), self._whole[1]
                self._whole = None
            else:
                self._out = self._like.new_zeros(self._shape, dtype=accumulate)
                self._lse = self._like.new_full(self._shape[:3], -math.inf, dtype=accumulate)
        return self._out, self._lse

    def add(self, rows: Span, out: Tensor, lse: Tensor) -> None:
        """Merge a part of rows [start, stop)."""
        fresh = all(stop <= rows[0] or rows[1] <= start for start, stop in self._reached)
        self._reached.append(rows)
        if fresh and rows == (0, self._shape[2]):
            self._whole = (out, lse)
            return
        total_out, total_lse = self._open()
        old_out, old_lse = total_out[:, :, rows[0] : rows[1]], total_lse[:, :, rows[0] : rows[1]]
        if fresh:
            old_out.copy_(out)
            old_lse.copy_(lse)
        else:
            merged_out, merged_lse = merge(old_out, old_lse, out, lse)
            old_out.copy_(merged_out)
            old_lse.copy_(merged_lse)

    def result(self) -> tuple[Tensor, Tensor]:
        """O in q's dtype and L."""
        if self._whole is not None:
            return self._whole
        out, lse = self._open()
        return out.to(self._dtype), lse


def zero_lse_of(mask: Mask, q_runs: Runs, total: int) -> Tensor | None:
    """`Mask.zero_key_lse` of a rank's queries."""
    return mask.zero_key_lse(positions_of(q_runs), total)


def attend(run: Run, tiles: Iterable[Tile], q: Tensor, k: Tensor, v: Tensor, into: Merged) -> None:
    """Merge the tiles of q against k and v into `into`."""
    if not q.numel() or not k.numel():
        return
    for tile in tiles:
        part = q[:, :, tile.rows[0] : tile.rows[1]]
        into.add(tile.rows, *run.backend.forward(part, take(k, tile.keys), take(v, tile.keys), tile, run.scale))


def attend_backward(
    run: Run,
    tiles: Iterable[Tile],
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
) -> None:
    """Add the gradients of the tiles to d_q, d_k and d_v. out, lse: over all keys of all ranks, never of these tiles
    alone."""
    if not q.numel() or not k.numel():
        return
    for tile in tiles:
        rows = slice(*tile.rows)
        grad_q, grad_k, grad_v = run.backend.backward(
            d_out[:, :, rows], q[:, :, rows], take(k, tile.keys), take(v, tile.keys), out[:, :, rows], lse[:, :, rows],
            tile, run.scale,
        )  # fmt: skip
        d_q[:, :, rows] += grad_q
        first = 0
        for start, stop in tile.keys:
            d_k[:, :, start:stop] += grad_k[:, :, first : first + stop - start]
            d_v[:, :, start:stop] += grad_v[:, :, first : first + stop - start]
            first += stop - start


def zeros_for(x: Tensor) -> Tensor:
    """A gradient sum for x."""
    return torch.zeros_like(x, dtype=accumulator_dtype(x.dtype), memory_format=torch.contiguous_format)


def pack(k: Tensor, v: Tensor) -> Tensor:
    """K and V as one contiguous buffer."""
    return torch.cat([k.reshape(-1), v.reshape(-1)])


def unpack(buffer: Tensor, like_k: Tensor, like_v: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """K and V of `rows` rows, views of a packed buffer."""
    shape_k = (*like_k.shape[:2], rows, like_k.shape[3])
    shape_v = (*like_v.shape[:2], rows, like_v.shape[3])
    k, v = buffer.split([math.prod(shape_k), math.prod(shape_v)])
    return k.view(shape_k), v.view(shape_v)
