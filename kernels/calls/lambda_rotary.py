"""LM-Infinite (arXiv 2308.16137): the first tokens and a local window, with rotary distances that never exceed a limit.

For language models behind long-video understanding (PPLLaVA), which read more tokens than they were trained on.

A model with rotary positions, trained on short text, meets two strangers in long text: more keys than ever before, and
distances it has never seen. The lambda-shaped mask takes away the first; a ceiling d_max on the distance the second.
A key farther away than d_max is turned as if it were d_max away, so the softmax has two parts with different rotary
phases: near keys with true positions, far ones with the query at d_max and the key at 0. Keys travel between ranks as
they are and are turned where they are used.

Shapes: B batch, H heads, Hk key heads, N tokens, D head size (even).

    out = lambda_attention(q, k, v, n_global=10, n_local=2048)  # q, k before the rotary embedding
"""

import math
from typing import Any

import torch
from longtake.kernels.calls.own_tiles import OwnTiles, attend_own
from longtake.kernels.errors import ShapeError
from longtake.kernels.masks.basic import Lambda
from longtake.kernels.plan.plan import Plan
from longtake.kernels.plan.tiles import Runs, positions_of
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
    mask: Lambda | None = None,
    mesh: Any = None,
    plan: Plan | None = None,
    strategy: str = "auto",
    tile: int = 128,
) -> Tensor:
    """Causal attention of N tokens at positions 0 .. N - 1. Returns (B, H, n, Dv) in q's dtype.

    q: (B, H, n, D); k: (B, Hk, n, D), both before the rotary embedding; v: (B, Hk, n, Dv): this rank's rows.
    n_global: first tokens, seen by everyone. n_local: query i sees i - n_local + 1 ... i, the length of training.
    max_distance: d_max >= n_local - 1; n_local by default, the paper's choice. mask: a Lambda, instead of these three.
    mesh, plan, strategy: as for `attention`; a plan is made for `Lambda(n_global, n_local, max_distance)`.
    Time O(N (n_global + n_local + tile)); logits of `tile` queries at a time in memory.
    Raises ShapeError for settings out of range. Gradients reach q, k and v.
    """
    if q.dim() != 4 or q.shape[2] != k.shape[2] or k.shape[:3] != v.shape[:3] or q.shape[1] % k.shape[1]:
        raise ShapeError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if q.shape[3] % 2 or q.shape[3] != k.shape[3]:
        raise ShapeError(f"rotary needs an even head size, equal for q and k; given {q.shape[3]}, {k.shape[3]}")
    if tile < 1:
        raise ShapeError(f"tile must be at least 1 query, given {tile}")
    if mask is None:
        mask = Lambda(n_global, n_local, n_local if max_distance is None else max_distance)
    limit = mask.local if mask.max_distance is None else mask.max_distance
    sink = mask.sink
    return attend_own(
        q, k, v, mask, lambda: _LambdaTiles(sink, limit, theta, tile),
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale, mesh=mesh, plan=plan, strategy=strategy,
        settings=(tile, hash(float(theta)) % (1 << 60)),
    )  # fmt: skip


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


class _LambdaTiles(OwnTiles):
    """Near keys: both turned by their positions. First keys farther away than the limit: the query turned by the
    limit, the key not at all."""

    name = "lambda"

    def __init__(self, sink: int, limit: int, theta: float, rows: int) -> None:
        super().__init__(rows)
        self.sink, self.limit, self.theta = sink, limit, theta

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        return rotary(x, positions, self.theta)

    def _places(self, q_run: range, k_runs: Runs, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(positions of queries, of keys, columns of the first keys, which pairs of those are far)."""
        queries, keys = positions_of((q_run,)).to(device), positions_of(k_runs).to(device)
        first = (keys < self.sink).nonzero().flatten()
        return queries, keys, first, queries[:, None] - keys[first] > self.limit

    def logits(self, q: Tensor, k: Tensor, q_run: range, k_runs: Runs, heads: slice) -> Tensor:
        queries, keys, first, far = self._places(q_run, k_runs, q.device)
        logits = self._turn(q, queries) @ self._turn(k, keys).mT
        if bool(far.any()):
            far_q = self._turn(q, torch.full_like(queries, self.limit))
            logits[..., first] = torch.where(far, far_q @ k[:, :, first].mT, logits[..., first])
        return logits

    def logit_grads(
        self, grad: Tensor, q: Tensor, k: Tensor, q_run: range, k_runs: Runs, heads: slice
    ) -> tuple[Tensor, Tensor]:
        queries, keys, first, far = self._places(q_run, k_runs, q.device)
        near = grad
        if bool(far.any()):
            near = grad.clone()
            near[..., first] = near[..., first].masked_fill(far, 0)
        d_q = self._turn(near @ self._turn(k, keys), -queries)
        d_k = self._turn(near.mT @ self._turn(q, queries), -keys)
        if bool(far.any()):
            beyond, limits = grad[..., first] * far, torch.full_like(queries, self.limit)
            d_q = d_q + self._turn(beyond @ k[:, :, first], -limits)
            d_k.index_add_(2, first, beyond.mT @ self._turn(q, limits))
        return d_q, d_k
