"""Which strategy serves a call best, by rules that can be read and that say why.

| situation | strategy |
|---|---|
| one rank | none |
| keys that every rank holds | context |
| the mask reaches little of what other ranks hold | halo |
| fewer key heads than ranks (GQA, MQA) | allgather_kv |
| as many heads as ranks, no two-dimensional mesh | ulysses |
| a two-dimensional mesh, or fewer heads than ranks | usp |
| heads that share no divisor with the ranks, biased mask | allgather_kv |
| the same, mask without biases | ring |
"""

from dataclasses import dataclass

from longtake.kernels.masks.basic import Mask
from longtake.kernels.plan.layout import Layout
from longtake.kernels.plan.plan import Strategy
from longtake.kernels.strategies.ring import needed_rows

HALO_SHARE = 0.25  # of the keys held elsewhere: a rank that needs no more fetches only those


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
    """The first rule that applies. degree: of a two-dimensional mesh, None when there is none."""
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
