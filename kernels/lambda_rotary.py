"""LM-Infinite (arXiv 2308.16137): the first tokens and a local window, with rotary distances that never exceed a limit.

A model with rotary positions, trained on short text, meets two strangers in long text: more keys than ever before, and
distances it has never seen. The lambda-shaped mask takes away the first; a ceiling d_max on the distance the second.
A key farther away than d_max is turned as if it were d_max away, so the softmax has two parts with different rotary
phases: near keys with true positions, far ones with the query at d_max and the key at 0. The parts have disjoint keys
and are merged by their log-sum-exp.

Shapes: B batch, H heads, Hk key heads, N tokens, D head size (even).

    out = lambda_attention(q, k, v, n_global=10, n_local=2048)  # q, k before the rotary embedding
"""

import math
from typing import Any

import torch
from longtake.kernels.partial import merge
from torch import Tensor


def rotary(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) in the halves layout of LLaMA: x (..., N, D) turned by `positions` (N,).

    Component i of the first half and of the second half are one plane, turned by position * theta^(-2 i / D).
    """
    half = x.shape[-1] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    rates = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions.to(x.device, torch.float64)[:, None] * rates
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x[..., :half].to(dtype), x[..., half:].to(dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def lambda_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    n_global: int = 10,
    n_local: int = 2048,
    max_distance: int | None = None,
    theta: float = 10000.0,
    scale: float | None = None,
    tile: int = 128,
) -> Tensor:
    """Causal attention of N tokens at positions 0 .. N - 1. Returns (B, H, N, Dv) in q's dtype.

    q: (B, H, N, D); k: (B, Hk, N, D), both before the rotary embedding; v: (B, Hk, N, Dv).
    n_global: first tokens, seen by everyone. n_local: query i sees i - n_local + 1 ... i, the length of training.
    max_distance: d_max >= n_local - 1; n_local by default, the paper's choice.
    Time O(N (n_global + n_local + tile)); logits of one tile at a time in memory.
    Raises ValueError for settings out of range. Gradients reach q, k and v.
    """
    if q.dim() != 4 or q.shape[2] != k.shape[2] or k.shape[:3] != v.shape[:3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    limit = n_local if max_distance is None else max_distance
    if q.shape[3] % 2 or q.shape[3] != k.shape[3]:
        raise ValueError(f"rotary needs an even head size, equal for q and k; given {q.shape[3]}, {k.shape[3]}")
    if n_global < 0 or n_local < 1 or tile < 1 or limit < n_local - 1:
        raise ValueError(
            f"n_global >= 0, n_local >= 1, tile >= 1 and max_distance >= n_local - 1 are needed; given {n_global}, "
            f"{n_local}, {tile}, {limit}"
        )
    repeat = q.shape[1] // k.shape[1]
    places = torch.arange(q.shape[2], device=q.device)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    accumulate = torch.promote_types(q.dtype, torch.float32)
    wide_q, wide_k = q.to(accumulate), k.to(accumulate).repeat_interleave(repeat, dim=1)
    near = rotary(wide_q, places, theta), rotary(wide_k, places, theta)
    far_q = rotary(wide_q, torch.full_like(places, limit), theta)
    values = v.to(accumulate).repeat_interleave(repeat, dim=1)
    settings = n_global, n_local, limit, scale, tile
    out: Tensor = _Lambda.apply(*near, far_q, wide_k[:, :, :n_global], values, settings)
    return out.to(q.dtype)


def lambda_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, n_global: int, n_local: int, max_distance: int, theta: float = 10000.0
) -> Tensor:
    """The definition, one pair after the other: float64, rotated by the clipped distance."""
    q, k, v = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1), v.double()
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    rows = []
    for i in range(q.shape[2]):
        seen = [j for j in range(i + 1) if j < n_global or i - j < n_local]
        logits = []
        for j in seen:
            distance = torch.tensor([min(i - j, max_distance)])
            logits.append((rotary(q[:, :, i : i + 1], distance, theta) * k[:, :, j : j + 1]).sum((-2, -1)))
        weights = (torch.stack(logits, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        rows.append((weights[..., None] * v[:, :, seen]).sum(2))
    return torch.stack(rows, 2)


class _Lambda(torch.autograd.Function):
    """Tiles of queries; near keys are two spans, far keys the first ones. Saves O and L of both parts together, whose
    weights the backward makes again, so no gradient flows through the merge."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, far_q: Tensor, far_k: Tensor, v: Tensor, settings: tuple[Any, ...]
    ) -> Tensor:
        ctx.settings = settings
        out, lse = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])
        for start in range(0, q.shape[2], settings[4]):
            parts = []
            rows = slice(start, min(start + settings[4], q.shape[2]))
            for _, columns, logits, _, _ in _parts(start, q, k, far_q, far_k, settings):
                top = logits.logsumexp(-1)
                safe = top.masked_fill(top == -math.inf, 0)
                parts.append(((logits - safe[..., None]).exp() @ v[:, :, columns], top))
            out[:, :, rows], lse[:, :, rows] = merge(*parts[0], *parts[1]) if len(parts) > 1 else parts[0]
        ctx.save_for_backward(q, k, far_q, far_k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, far_q, far_k, v, out, lse = ctx.saved_tensors
        scale, tile = ctx.settings[3:]
        grad = grads[0]
        delta = (grad * out).sum(-1, keepdim=True)
        d_near_q, d_near_k, d_far_q, d_far_k, d_v = (torch.zeros_like(x) for x in (q, k, far_q, far_k, v))
        for start in range(0, q.shape[2], tile):
            for rows, columns, logits, far, keys in _parts(start, q, k, far_q, far_k, ctx.settings):
                weights = (logits - lse[:, :, rows, None]).exp()
                d_logits = weights * (grad[:, :, rows] @ v[:, :, columns].mT - delta[:, :, rows]) * scale
                queries = (far_q if far else q)[:, :, rows]
                (d_far_q if far else d_near_q)[:, :, rows] += d_logits @ keys
                (d_far_k if far else d_near_k).index_add_(2, columns, d_logits.mT @ queries)
                d_v.index_add_(2, columns, weights.mT @ grad[:, :, rows])
        return d_near_q, d_near_k, d_far_q, d_far_k, d_v, None


def _parts(
    start: int, q: Tensor, k: Tensor, far_q: Tensor, far_k: Tensor, settings: tuple[Any, ...]
) -> list[tuple[slice, Tensor, Tensor, bool, Tensor]]:
    """(rows, key columns, logits, whether far, keys) of the near part and, if there is one, of the far part."""
    n_global, n_local, limit, scale, tile = settings
    rows = slice(start, min(start + tile, q.shape[2]))
    window = max(start - n_local + 1, 0)
    shared = min(n_global, rows.stop)
    device = q.device
    columns = torch.cat([torch.arange(min(shared, window)), torch.arange(window, rows.stop)]).to(device)
    queries = torch.arange(rows.start, rows.stop, device=device)[:, None]
    distance = queries - columns
    seen = (distance >= 0) & ((distance < n_local) | ((columns < n_global) & (distance <= limit)))
    keys = k[:, :, columns]
    parts = [(rows, columns, ((q[:, :, rows] @ keys.mT) * scale).masked_fill(~seen, -math.inf), False, keys)]
    if shared and rows.stop - 1 > limit:
        columns = torch.arange(shared, device=device)
        keys = far_k[:, :, :shared]
        beyond = queries - columns > limit
        logits = ((far_q[:, :, rows] @ keys.mT) * scale).masked_fill(~beyond, -math.inf)
        parts.append((rows, columns, logits, True, keys))
    return parts
