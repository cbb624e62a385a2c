"""From a plan to one rank's part of it: its scheme, its tiles, and what it will send and compute.

The forecast is the algorithm itself, run over a transport that only counts, on tensors without memory: it cannot drift
from what it predicts.

    scheme(plan, rank, heads=8, kv_heads=8).forward(call, q, k, v)
    forecast(plan, rank, batch=1, heads=8, kv_heads=8, head_dim=64).sent   # {"ring": ..., "ring_grad": ...}
"""

from functools import lru_cache

import torch
from longtake.kernels.backends.contract import Capabilities, Request
from longtake.kernels.heads import head_range
from longtake.kernels.plan.layout import Layout
from longtake.kernels.plan.plan import Plan, Strategy
from longtake.kernels.plan.tiles import Tile
from longtake.kernels.precision import accumulator_dtype
from longtake.kernels.ranks.transport import Counter, DryTransport
from longtake.kernels.strategies.engine import Call, Scheme
from longtake.kernels.strategies.gather import Context, Fetch
from longtake.kernels.strategies.ring import Ring
from longtake.kernels.strategies.ulysses import Ulysses, ring_of_groups
from torch import Tensor


@lru_cache(maxsize=256)
def scheme(plan: Plan, rank: int, heads: int, kv_heads: int, whole: bool = False) -> Scheme:
    """One rank's part of a plan, cached. whole: the backend takes the mask as it is, in one tile."""
    queries, keys, total = plan.queries.runs, plan.keys.runs, plan.keys.total
    if plan.strategy is Strategy.CONTEXT:
        return Context(plan.mask, queries, keys[0], total, plan.block, rank, whole)
    if plan.strategy in (Strategy.ALLGATHER_KV, Strategy.HALO):
        everything = plan.strategy is Strategy.ALLGATHER_KV
        return Fetch(plan.mask, queries, keys, total, plan.block, rank, everything, whole)
    ring = Ring(plan.mask, queries, keys, total, plan.block, tuple(range(plan.world)), rank, whole)
    if plan.degree == 1:
        return ring
    group = rank // plan.degree
    members = tuple(range(group * plan.degree, (group + 1) * plan.degree))
    return Ulysses(
        ring_of_groups(ring, plan.degree, rank),
        members,
        rank % plan.degree,
        tuple(plan.queries.sizes[member] for member in members),
        tuple(plan.keys.sizes[member] for member in members),
        heads,
        kv_heads,
    )


def tiles(plan: Plan, rank: int, heads: int = 1, kv_heads: int = 1) -> tuple[Tile, ...]:
    """All tiles that a rank computes, in order."""
    part = scheme(plan, rank, heads, kv_heads)
    if isinstance(part, Ulysses):
        part = part.inner
    if isinstance(part, Ring):
        return tuple(tile for step in part.tiles for tile in step)
    assert isinstance(part, Fetch | Context)
    return part.tiles


def flops(plan: Plan, rank: int, *, batch: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Multiply-adds counted as two, of the two products over visible pairs, forward, on one rank."""
    area = sum(tile.area for tile in tiles(plan, rank, heads, kv_heads))
    start, stop = head_range(heads, plan.degree, rank % plan.degree)
    return 4 * head_dim * batch * (stop - start) * area


def balance(plan: Plan, heads: int = 1) -> float:
    """Work of the busiest rank over the mean of all; 1 when there is none."""
    work = [flops(plan, rank, batch=1, heads=heads, kv_heads=heads, head_dim=1) for rank in range(plan.world)]
    return max(work) * plan.world / sum(work) if sum(work) else 1.0


def forecast(
    plan: Plan,
    rank: int,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
) -> Counter:
    """What a rank will send and receive, forward and, unless `backward` is False, backward. value_dim: head_dim by
    default."""
    value_dim = head_dim if value_dim is None else value_dim

    def empty(layout: Layout, count: int, width: int) -> Tensor:
        return torch.empty(batch, count, layout.sizes[rank], width, dtype=dtype, device="meta")

    transport = DryTransport(rank, plan.world)
    call = Call(transport, _NoCompute(), 1.0)
    part = scheme(plan, rank, heads, kv_heads)
    q = empty(plan.queries, heads, head_dim)
    k, v = empty(plan.keys, kv_heads, head_dim), empty(plan.keys, kv_heads, value_dim)
    out, _, saved = part.forward(call, q, k, v)
    if backward:
        part.backward(call, torch.empty_like(out), saved)
    return transport.counter


class _NoCompute:
    """A backend for tensors without memory."""

    name = "none"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=accumulator_dtype(q.dtype))

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    def capabilities(self) -> Capabilities:
        return Capabilities()

    def refuses(self, request: Request) -> str | None:
        return None
