"""Running a rank's tiles: forward into a merged output, backward into summed gradients.

Shapes: q (B, H, Lq, D), k (B, Hk, Lk, D), v (B, Hk, Lk, Dv), local rows. O and sums are kept in float32 (float64 for
float64) whatever the tensors are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from longtake.kernels.backends.contract import Backend
from longtake.kernels.backends.partial import merge_shares
from longtake.kernels.masks.basic import Mask
from longtake.kernels.plan.tiles import Runs, Span, Tile, positions_of, take
from longtake.kernels.precision import accumulator_dtype
from longtake.kernels.ranks.transport import Transport
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor]
LOGITS = 1 << 26  # of one call of a backend that holds them in memory


@dataclass(frozen=True)
class Call:
    """What one call carries through its strategy: the messages, who computes tiles, and the scale of the logits."""

    transport: Transport
    backend: Backend
    scale: float


class Scheme(Protocol):
    """One way to bring queries and keys together. Called on every rank with its own shards."""

    def forward(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(O like q, L, what the backward wants to keep)."""
        ...

    def backward(self, call: Call, d_out: Tensor, saved: Sequence[Tensor]) -> Grads:
        """(dQ, dK, dV) of this rank's shards."""
        ...


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
            merged_lse, share = merge_shares(old_lse, lse)
            old_out.lerp_(out.to(old_out.dtype), share[..., None])
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


def attend(call: Call, tiles: Iterable[Tile], q: Tensor, k: Tensor, v: Tensor, into: Merged) -> None:
    """Merge the tiles of q against k and v into `into`."""
    if not q.numel() or not k.numel():
        return
    for tile in tiles:
        for part in _pieces(tile, q):
            if part.blocks == 1:
                rows = q[:, :, part.rows[0] : part.rows[1]]
                keys, values = take(k, part.keys), take(v, part.keys)
                into.add(part.rows, *call.backend.forward(rows, keys, values, part, call.scale))
            else:
                out, lse = call.backend.forward(
                    _blocks_of_rows(q, part), _blocks_of_keys(k, part), _blocks_of_keys(v, part), part, call.scale
                )
                into.add(part.rows, _laid_out(out, q), _laid_out(lse, q))


def attend_backward(
    call: Call,
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
        for part in _pieces(tile, q):
            rows = slice(*part.rows)
            if part.blocks == 1:
                grad_q, grad_k, grad_v = call.backend.backward(
                    d_out[:, :, rows], q[:, :, rows], take(k, part.keys), take(v, part.keys), out[:, :, rows],
                    lse[:, :, rows], part, call.scale,
                )  # fmt: skip
                d_q[:, :, rows] += grad_q
                add_keys(d_k, d_v, part.keys, grad_k, grad_v)
                continue
            grad_q, grad_k, grad_v = call.backend.backward(
                _blocks_of_rows(d_out, part), _blocks_of_rows(q, part), _blocks_of_keys(k, part),
                _blocks_of_keys(v, part), _blocks_of_rows(out, part), _blocks_of_rows(lse, part), part, call.scale,
            )  # fmt: skip
            d_q[:, :, rows] += _laid_out(grad_q, q)
            start, stop = part.keys[0]
            for block in range(part.blocks):
                span = (start + block * part.step, stop + block * part.step)
                shape = (*k.shape[:2], stop - start, -1)
                add_keys(d_k, d_v, (span,), grad_k[block].reshape(shape), grad_v[block].reshape(shape))


def add_keys(d_k: Tensor, d_v: Tensor, spans: Iterable[Span], grad_k: Tensor, grad_v: Tensor) -> None:
    """Add gradients of keys that lie side by side to the rows they came from."""
    first = 0
    for start, stop in spans:
        d_k[:, :, start:stop] += grad_k[:, :, first : first + stop - start]
        d_v[:, :, start:stop] += grad_v[:, :, first : first + stop - start]
        first += stop - start


def _pieces(tile: Tile, q: Tensor) -> Iterable[Tile]:
    """A tile of many blocks, as few blocks at a time as keep the logits of one call within LOGITS."""
    if tile.blocks == 1:
        return (tile,)
    rows = tile.n_rows // tile.blocks
    most = max(LOGITS // (q.shape[0] * q.shape[1] * rows * tile.n_keys), 1)
    if most >= tile.blocks:
        return (tile,)
    pieces = []
    for first in range(0, tile.blocks, most):
        count = min(most, tile.blocks - first)
        start = tile.rows[0] + first * rows
        keys = tuple((a + first * tile.step, b + first * tile.step) for a, b in tile.keys)
        pieces.append(replace(tile, rows=(start, start + count * rows), keys=keys, blocks=count))
    return pieces


def _blocks_of_rows(x: Tensor, tile: Tile) -> Tensor:
    """(B, H, Lq, ...) -> (blocks, B * H, rows of a block, ...)."""
    flat = x.flatten(0, 1)[:, tile.rows[0] : tile.rows[1]]
    return flat.unflatten(1, (tile.blocks, tile.n_rows // tile.blocks)).transpose(0, 1)


def _blocks_of_keys(x: Tensor, tile: Tile) -> Tensor:
    """(B, Hk, Lk, D) -> (blocks, B * Hk, keys of a block, D), overlapping views."""
    flat = x.flatten(0, 1)
    head, row, column = flat.stride()
    shape = (tile.blocks, flat.shape[0], tile.n_keys, flat.shape[2])
    first = flat.storage_offset() + tile.keys[0][0] * row
    return flat.as_strided(shape, (tile.step * row, head, row, column), first)


def _laid_out(x: Tensor, q: Tensor) -> Tensor:
    """(blocks, B * H, rows, ...) -> (B, H, blocks * rows, ...)."""
    return x.transpose(0, 1).flatten(1, 2).unflatten(0, q.shape[:2])


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
