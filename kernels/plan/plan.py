"""What one attention call over several ranks will do: who holds which rows, what travels, which tiles are computed.

A plan is a layout of queries, a layout of keys, a mask and a strategy. It is immutable and hashable, the same on every
rank, and knows before anything is sent how many bytes will travel and how the work is shared.

    plan = make_plan(4096, Causal(), world=4, layout="zigzag", strategy="ring")
    x_local = plan.queries.shard(x, rank)
    plan.balance()                                             # busiest rank / mean, 1.0 is even
    plan.forecast(rank, batch=1, heads=8, kv_heads=8, head_dim=64).sent   # {"ring": ..., "ring_grad": ...}
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import torch
from longtake.kernels.backends.registry import Capabilities, Request
from longtake.kernels.errors import CapabilityError
from longtake.kernels.masks.basic import Full, Mask
from longtake.kernels.partition import Partition
from longtake.kernels.plan.layout import Layout
from longtake.kernels.plan.tiles import BLOCK_ROWS, Tile
from longtake.kernels.ranks.transport import Counter, DryTransport
from longtake.kernels.strategies.engine import Run, Scheme
from longtake.kernels.strategies.gather import Context, Fetch
from longtake.kernels.strategies.ring import Ring
from longtake.kernels.strategies.ulysses import Ulysses, head_range, ring_of_groups
from torch import Tensor


class Strategy(StrEnum):
    """How queries and keys come together."""

    NONE = "none"  # one rank
    ULYSSES = "ulysses"  # all tokens, a share of the heads
    RING = "ring"  # keys travel
    USP = "usp"  # Ulysses inside groups, ring over groups
    ALLGATHER_KV = "allgather_kv"  # every rank fetches all keys
    HALO = "halo"  # every rank fetches the keys in its reach
    CONTEXT = "context"  # every rank holds all keys already


class LayoutKind(StrEnum):
    """How positions are dealt out to ranks."""

    CONTIGUOUS = "contiguous"
    ZIGZAG = "zigzag"
    STRIPED = "striped"


@dataclass(frozen=True)
class Plan:
    """degree: ranks in a Ulysses group (1 for strategies without). block: queries in a block of a mixed mask.

    Raises ValueError for layouts of different numbers of ranks, a degree that does not divide them, or a mask made for
    other lengths; CapabilityError for a strategy that cannot serve the layouts.
    """

    mask: Mask
    strategy: Strategy
    queries: Layout
    keys: Layout
    degree: int = 1
    block: int = BLOCK_ROWS

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", Strategy(self.strategy))
        if self.queries.parts != self.keys.parts:
            raise ValueError(f"queries lie on {self.queries.parts} ranks, keys on {self.keys.parts}")
        if self.queries.replicated:
            raise CapabilityError("queries on every rank: shard them, or call without a mesh")
        if self.degree < 1 or self.world % self.degree:
            raise ValueError(f"degree {self.degree} does not divide {self.world} ranks")
        if self.strategy is Strategy.NONE and self.world > 1:
            raise CapabilityError(f"strategy none serves one rank, the plan has {self.world}")
        if self.keys.replicated != (self.strategy is Strategy.CONTEXT) and self.world > 1:
            raise CapabilityError(
                f"strategy {self.strategy} with {'replicated' if self.keys.replicated else 'sharded'} keys; replicated "
                "keys are served by context, sharded ones by the others"
            )
        if self.block < 1:
            raise ValueError(f"block must be at least 1 query, given {self.block}")
        self.mask.check_lengths(self.queries.total, self.keys.total)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.queries.parts

    def digest(self) -> str:
        """A hash that is the same in every process: 16 hex digits."""
        return _digest(self)

    def scheme(self, rank: int, heads: int, kv_heads: int, whole: bool = False) -> Scheme:
        """One rank's part of the plan, cached. whole: the backend takes the mask as it is, in one tile."""
        return _scheme(self, rank, heads, kv_heads, whole)

    def tiles(self, rank: int, heads: int = 1, kv_heads: int = 1) -> tuple[Tile, ...]:
        """All tiles that a rank computes, in order."""
        scheme = self.scheme(rank, heads, kv_heads)
        if isinstance(scheme, Ulysses):
            scheme = scheme.inner
        if isinstance(scheme, Ring):
            return tuple(tile for step in scheme.tiles for tile in step)
        assert isinstance(scheme, Fetch | Context)
        return scheme.tiles

    def flops(self, rank: int, *, batch: int, heads: int, kv_heads: int, head_dim: int) -> int:
        """Multiply-adds counted as two, of the two products over visible pairs, forward, on one rank."""
        area = sum(tile.area for tile in self.tiles(rank, heads, kv_heads))
        start, stop = head_range(heads, self.degree, rank % self.degree)
        return 4 * head_dim * batch * (stop - start) * area

    def balance(self, heads: int = 1) -> float:
        """Work of the busiest rank over the mean of all; 1 when there is none."""
        work = [self.flops(rank, batch=1, heads=heads, kv_heads=heads, head_dim=1) for rank in range(self.world)]
        return max(work) * self.world / sum(work) if sum(work) else 1.0

    def forecast(
        self,
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
        """What a rank will send and receive: the same code over a transport that only counts, on tensors without
        memory."""
        value_dim = head_dim if value_dim is None else value_dim

        def empty(layout: Layout, count: int, width: int) -> Tensor:
            return torch.empty(batch, count, layout.sizes[rank], width, dtype=dtype, device="meta")

        transport = DryTransport(rank, self.world)
        run = Run(transport, _NoCompute(), 1.0)
        scheme = self.scheme(rank, heads, kv_heads)
        q = empty(self.queries, heads, head_dim)
        k, v = empty(self.keys, kv_heads, head_dim), empty(self.keys, kv_heads, value_dim)
        out, _, saved = scheme.forward(run, q, k, v)
        if backward:
            scheme.backward(run, torch.empty_like(out), saved)
        return transport.counter


class _NoCompute:
    """A backend for tensors without memory."""

    name = "none"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=dtype)

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    def capabilities(self) -> Capabilities:
        return Capabilities()

    def refuses(self, request: Request) -> str | None:
        return None


@lru_cache(maxsize=256)
def _digest(plan: Plan) -> str:
    parts = (plan.mask.digest(), plan.strategy, plan.queries.digest(), plan.keys.digest(), plan.degree, plan.block)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=256)
def _scheme(plan: Plan, rank: int, heads: int, kv_heads: int, whole: bool) -> Scheme:
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


def make_layout(lengths: int | Sequence[int] | Layout, kind: str, world: int, degree: int = 1) -> Layout:
    """A layout from a number of positions or, contiguous only, from each rank's number.

    degree: zigzag and striped are laid over groups of `degree` ranks, so that a group's rows end to end are a node's.
    """
    if isinstance(lengths, Layout):
        return lengths
    kind = LayoutKind(kind)
    if not isinstance(lengths, int):
        if kind is not LayoutKind.CONTIGUOUS:
            raise ValueError(f"lengths of each rank fit a contiguous layout only; give {kind} the total length")
        return Layout.contiguous(lengths)
    if kind is LayoutKind.CONTIGUOUS:
        return Layout.contiguous(Partition.even(lengths, world).sizes)
    nodes = world // degree
    coarse = Layout.zigzag(lengths, nodes) if kind is LayoutKind.ZIGZAG else Layout.striped(lengths, nodes)
    if degree == 1:
        return coarse
    positions = [coarse.positions(node).tolist() for node in range(nodes)]
    cuts = [Partition.even(len(held), degree).pieces for held in positions]
    return Layout.indices([positions[node][a:b] for node in range(nodes) for a, b in cuts[node]])


def make_plan(
    lengths: int | Sequence[int] | Layout,
    mask: Mask | None = None,
    *,
    world: int | None = None,
    layout: str = "contiguous",
    strategy: str = "auto",
    key_lengths: int | Sequence[int] | Layout | None = None,
    degree: int | None = None,
    heads: int = 1,
    kv_heads: int | None = None,
    block: int = BLOCK_ROWS,
) -> Plan:
    """A plan for queries of `lengths` positions and keys of `key_lengths` (the same by default).

    lengths: the whole length, cut by `layout` ("contiguous", "zigzag" or "striped"); or each rank's length, in order
    (contiguous); or a Layout (`Layout.indices` for anything else, `Layout.replicated_on` for keys that everybody has).
    world: number of ranks; read off the lengths when those tell it.
    strategy: a member of `Strategy`, or "auto" (choose.py). degree: ranks in a Ulysses group, for usp; the largest
    divisor of the world that is at most `heads` by default. heads, kv_heads: for the choices only.
    Raises ValueError for lengths that do not fit, CapabilityError for a strategy that cannot serve.
    """
    from longtake.kernels.plan.choose import default_degree, pick_strategy

    mask = Full() if mask is None else mask
    for given in (lengths, key_lengths):
        if given is not None and not isinstance(given, int):
            parts = given.parts if isinstance(given, Layout) else len(given)
            if world is not None and world != parts:
                raise ValueError(f"lengths are given for {parts} ranks, world is {world}")
            world = parts
    if world is None:
        raise ValueError("world, the number of ranks, is needed with a whole length")
    usp_degree = degree if degree is not None else default_degree(world, heads, kv_heads or heads)
    degrees = {Strategy.USP: usp_degree, Strategy.ULYSSES: world}
    laid_degree = 1 if strategy == "auto" else degrees.get(Strategy(strategy), 1)
    queries = make_layout(lengths, layout, world, laid_degree)
    keys = queries if key_lengths is None else make_layout(key_lengths, layout, world, laid_degree)
    if strategy == "auto":
        chosen = pick_strategy(mask, queries, keys, heads, kv_heads or heads, degree, block).strategy
    else:
        chosen = Strategy(strategy)
    return Plan(mask, chosen, queries, keys, degrees.get(chosen, 1), block)
