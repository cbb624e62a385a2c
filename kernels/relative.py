"""Relative position bias by skewing: Music Transformer (arXiv 1809.04281, section 3.4), tile by tile.

The logit of query i and key j is (q_i . k_j + q_i . e_{j-i}) scale, e a learned vector for each distance. Written out,
that takes N x N x D numbers; skewing takes Q E^T, whose row i holds every distance once, and shifts row i so that its
columns become keys. A tile of rows and keys needs only the distances that occur in it, so here even Q E^T exists a tile
at a time, and the backward gives e its gradient the same way. Torch's fused kernels would need the bias as a tensor and
pass no gradient to e without it.

Shapes: B batch, H heads, N tokens, D head size, M longest distance + 1.

    out = relative_attention(q, k, v, e, causal=True)  # e: (H, M, D), e[:, M - 1] is distance 0
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def skew(x: Tensor) -> Tensor:
    """The paper's procedure for a whole causal sequence: x = Q E^T (..., N, N), column c for distance c - (N - 1); out
    (..., N, N) with column j for key j. Right of the diagonal it holds other rows' numbers, which a causal mask hides.
    """
    length = x.shape[-1]
    padded = F.pad(x, (1, 0))  # a column before the first
    return padded.reshape(*x.shape[:-2], length + 1, length)[..., 1:, :]


def relative_bias_tile(q: Tensor, e: Tensor, q0: int, k0: int, keys: int, causal: bool = True) -> Tensor:
    """q_i . e_{j-i} for the rectangle of queries q0, q0 + 1, ... and keys [k0, k0 + keys): (B, H, rows, keys).

    q: (B, H, rows, D). e: as for `relative_attention`. Distances that e does not hold give 0.
    """
    rows = q.shape[2]
    table = _distances(e, k0 - (q0 + rows - 1), rows + keys - 1, causal)
    return _shift(q @ table.mT, rows, keys).clone()


def _distances(e: Tensor, first: int, count: int, causal: bool) -> Tensor:
    """Vectors of the distances j - i = first, first + 1, ...: (H or 1, count, D), zeros where e has none."""
    zero = e.shape[-2] - 1 if causal else e.shape[-2] // 2  # row of distance 0
    low, high = first + zero, first + zero + count
    inside = e[..., min(max(low, 0), e.shape[-2]) : max(min(high, e.shape[-2]), 0), :]
    before = min(max(-low, 0), count)
    return F.pad(inside, (0, 0, before, count - before - inside.shape[-2]))


def _shift(x: Tensor, rows: int, keys: int) -> Tensor:
    """A view of (..., rows, rows + keys - 1): row r from column rows - 1 - r on, so that columns are keys."""
    x = x.contiguous()
    width = rows + keys - 1
    strides = (*x.stride()[:-2], width - 1, 1)
    return x.as_strided((*x.shape[:-2], rows, keys), strides, x.storage_offset() + rows - 1)


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    q_start: int = 0,
    tile: int = 128,
) -> Tensor:
    """Attention with the relative bias. Returns (B, H, n, Dv) in q's dtype.

    q: (B, H, n, D), the queries q_start, q_start + 1, ... of a sequence; k (B, H, N, D), v (B, H, N, Dv): all its keys.
    e: (H, M, D), or (1, M, D) for all heads. causal: M distances -(M - 1) ... 0; otherwise M is odd and they are
    -(M // 2) ... M // 2. Every distance that occurs must be there. scale: of both products, 1/sqrt(D) by default.
    Memory for logits: tile x N a head. Gradients reach q, k, v and e. When queries are cut over ranks, k and v have to
    be gathered by the caller, and each rank's gradient of e is its share: add them up as those of any shared parameter.
    Raises ValueError for shapes that do not fit and for distances that e lacks.
    """
    if q.dim() != 4 or q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if e.dim() != 3 or e.shape[0] not in (1, q.shape[1]) or e.shape[2] != q.shape[3]:
        raise ValueError(f"e must be (H or 1, M, D) = ({q.shape[1]} or 1, M, {q.shape[3]}), given {tuple(e.shape)}")
    if not causal and e.shape[1] % 2 == 0:
        raise ValueError(
            f"without causal, e holds as many distances on both sides of 0: M must be odd, given {e.shape[1]}"
        )
    last, length = q_start + q.shape[2] - 1, k.shape[2]
    if tile < 1 or q_start < 0 or (causal and last >= length):
        raise ValueError(f"queries [{q_start}, {last + 1}) do not fit {length} keys, or tile {tile} is below 1")
    reach = last if causal else max(last, length - 1 - q_start)
    held = e.shape[1] - 1 if causal else e.shape[1] // 2
    if q.shape[2] and reach > held:
        raise ValueError(f"distances up to {reach} occur, e holds them up to {held}")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out: Tensor = _Relative.apply(q, k, v, e, causal, scale, q_start, tile)
    return out


class _Relative(torch.autograd.Function):
    """Saves the inputs, O and L; the backward makes each tile's weights again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, e: Tensor, causal: bool, scale: float, q_start: int, tile: int
    ) -> Tensor:
        accumulate = torch.promote_types(q.dtype, torch.float32)
        ctx.settings = causal, scale, q_start, tile
        q_, k_, v_, e_ = (x.to(accumulate) for x in (q, k, v, e))
        out = q_.new_empty(*q.shape[:3], v.shape[3])
        lse = q_.new_empty(q.shape[:3])
        for start in range(0, q.shape[2], tile):
            rows = slice(start, min(start + tile, q.shape[2]))
            logits, keys = _logits(q_, k_, e_, rows, *ctx.settings[:3])
            lse[:, :, rows] = logits.logsumexp(-1)
            out[:, :, rows] = (logits - lse[:, :, rows, None]).exp() @ v_[:, :, :keys]
        ctx.save_for_backward(q, k, v, e, out, lse)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, e, out, lse = ctx.saved_tensors
        causal, scale, q_start, tile = ctx.settings
        q_, k_, v_, e_, grad = (x.to(out.dtype) for x in (q, k, v, e, grads[0]))
        delta = (grad * out).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v, grad_e = (torch.zeros_like(x) for x in (q_, k_, v_, e_))
        zero = e.shape[1] - 1 if causal else e.shape[1] // 2
        for start in range(0, q.shape[2], tile):
            rows = slice(start, min(start + tile, q.shape[2]))
            logits, keys = _logits(q_, k_, e_, rows, causal, scale, q_start)
            weights = (logits - lse[:, :, rows, None]).exp()
            d_logits = weights * (grad[:, :, rows] @ v_[:, :, :keys].mT - delta[:, :, rows]) * scale
            count, height = rows.stop - rows.start + keys - 1, rows.stop - rows.start
            d_table = d_logits.new_zeros(*d_logits.shape[:3], count)
            _shift(d_table, height, keys).copy_(d_logits)
            first = -(q_start + rows.stop - 1)
            grad_v[:, :, :keys] += weights.mT @ grad[:, :, rows]
            grad_k[:, :, :keys] += d_logits.mT @ q_[:, :, rows]
            grad_q[:, :, rows] = d_logits @ k_[:, :, :keys] + d_table @ _distances(e_, first, count, causal)
            d_vectors = (d_table.mT @ q_[:, :, rows]).sum(0)
            if e.shape[0] == 1:
                d_vectors = d_vectors.sum(0, keepdim=True)
            low, high = max(first + zero, 0), min(first + zero + count, e.shape[1])
            grad_e[:, low:high] += d_vectors[:, low - first - zero : high - first - zero]
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_e.to(e.dtype), None, None, None, None


def _logits(
    q: Tensor, k: Tensor, e: Tensor, rows: slice, causal: bool, scale: float, q_start: int
) -> tuple[Tensor, int]:
    """Logits of some rows over the keys that they may see, and how many keys that are."""
    keys = min(q_start + rows.stop, k.shape[2]) if causal else k.shape[2]
    part, first = q[:, :, rows], q_start + rows.start
    height = rows.stop - rows.start
    table = _distances(e, -(first + height - 1), height + keys - 1, causal)
    logits = (part @ k[:, :, :keys].mT + _shift(part @ table.mT, height, keys)) * scale
    if causal:
        later = torch.arange(keys, device=q.device) > torch.arange(first, first + height, device=q.device)[:, None]
        logits = logits.masked_fill(later, -math.inf)
    return logits, keys
