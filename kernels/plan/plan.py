"""What one attention call over several ranks will do: who holds which rows, and by which strategy keys meet queries.

A plan is a layout of queries, a layout of keys, a mask and a strategy. It is immutable and hashable, and the same on
every rank. What it means for one rank (tiles, messages, bytes) is worked out in strategies/build.py.

    plan = make_plan(4096, Causal(), world=4, layout="zigzag", strategy="ring")
    x_local = plan.queries.shard(x, rank)
    balance(plan)                                                  # busiest rank / mean, 1.0 is even
    forecast(plan, rank, batch=1, heads=8, kv_heads=8, head_dim=64).sent   # {"ring": ..., "ring_grad": ...}
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from longtake.kernels.errors import CapabilityError
from longtake.kernels.masks.basic import Full, Mask
from longtake.kernels.partition import Partition
from longtake.kernels.plan.layout import Layout
from longtake.kernels.plan.tiles import BLOCK_ROWS, needed_rows

HALO_SHARE = 0.25  # of the keys held elsewhere: a rank that needs no more fetches only those


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


@lru_cache(maxsize=256)
def _digest(plan: Plan) -> str:
    parts = (plan.mask.digest(), plan.strategy, plan.queries.digest(), plan.keys.digest(), plan.degree, plan.block)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Choice:
    """A strategy and the reasons, one line for each rule that was looked at."""

    strategy: Strategy
    reasons: tuple[str, ...]


def default_degree(world: int, heads: int, kv_heads: int) -> int:
    """Ranks in a Ulysses group: the largest divisor of the ranks that is at most the number of key heads."""
    return max(u for u in range(1, world + 1) if world % u == 0 and u <= max(kv_heads, 1))


def fetched_share(mask: Mask, queries: Layout, keys: Layout, block: int) -> float:
    """Of the keys that other ranks hold, the share that the neediest rank fetches."""
    worst = 0.0
    for rank in range(queries.parts):
        elsewhere = keys.total - keys.sizes[rank]
        fetched = sum(
            stop - start
            for source in range(keys.parts)
            if source != rank
            for start, stop in needed_rows(mask, queries.runs[rank], keys.runs[source], block)
        )
        worst = max(worst, fetched / elsewhere if elsewhere else 0.0)
    return worst


def pick_strategy(
    mask: Mask, queries: Layout, keys: Layout, heads: int, kv_heads: int, degree: int | None, block: int
) -> Choice:
    """The first rule that applies, by which `strategy="auto"` goes. degree: of a two-dimensional mesh, or None.

    | situation | strategy |
    |---|---|
    | one rank | none |
    | keys that every rank holds (text) | context |
    | the mask reaches at most a quarter of what other ranks hold | halo |
    | fewer key heads than ranks (GQA, MQA) | allgather_kv |
    | as many heads as ranks, no two-dimensional mesh | ulysses |
    | a two-dimensional mesh, or fewer heads than ranks | usp |
    | heads that share no divisor with the ranks, biased mask | allgather_kv |
    | the same, mask without biases | ring |
    """
    reasons: list[str] = []

    def take(strategy: Strategy, why: str) -> Choice:
        return Choice(strategy, (*reasons, f"{strategy}: {why}"))

    world = queries.parts
    if world == 1:
        return take(Strategy.NONE, "one rank")
    if keys.replicated:
        return take(Strategy.CONTEXT, "every rank holds all keys, nothing need travel")
    share = fetched_share(mask, queries, keys, block)
    if share <= HALO_SHARE:
        return take(Strategy.HALO, f"a rank needs {share:.0%} of the keys held elsewhere, at most {HALO_SHARE:.0%}")
    reasons.append(f"not halo: a rank needs {share:.0%} of the keys held elsewhere, more than {HALO_SHARE:.0%}")
    if kv_heads < heads and kv_heads < world:
        return take(Strategy.ALLGATHER_KV, f"{kv_heads} key heads for {world} ranks: keys are small beside queries")
    if degree is not None and 1 < degree < world:
        return take(Strategy.USP, f"a mesh of {world // degree} groups of {degree}")
    if heads >= world:
        return take(Strategy.ULYSSES, f"{heads} heads for {world} ranks")
    reasons.append(f"not ulysses: {heads} heads for {world} ranks")
    if default_degree(world, heads, kv_heads) > 1:
        return take(Strategy.USP, f"groups of {default_degree(world, heads, kv_heads)} share the heads")
    if mask.plain:
        return take(Strategy.RING, "no biases, one head")
    return take(Strategy.ALLGATHER_KV, "one head and a mask with biases: one call with the rank's rows of it")


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
    strategy: a member of `Strategy`, or "auto" (`pick_strategy`). degree: ranks in a Ulysses group, for usp; by default
    the largest divisor of the world that is at most `heads`. heads, kv_heads: for the choices only.
    Raises ValueError for lengths that do not fit, CapabilityError for a strategy that cannot serve.
    """
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
