"""Which positions each rank holds, and in which order: contiguous, zigzag, striped, or any lists of positions.

A `Layout` is the general form of a `Partition` (whose pieces are contiguous): a rank's rows are runs of positions laid
end to end. Zigzag (head and tail) and striped balance causal work; `Layout.balanced` balances any mask.

    layout = Layout.zigzag(16, 2)      # rank 0 holds 0..3 and 12..15, rank 1 holds 4..11
    x_local = layout.shard(x, rank=0)  # x (B, H, N, D) -> (B, H, 8, D)
    x = layout.unshard(shards)
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from longtake.kernels.masks.basic import Mask
from longtake.kernels.partition import Partition
from longtake.kernels.plan.tiles import Runs, as_runs, length_of, positions_of
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """runs: for each rank its runs of positions. total: positions in the whole sequence. replicated: every rank holds
    all positions (a context that everybody has).

    Raises ValueError unless every position of `0..total` belongs to exactly one rank (to all, when replicated).
    """

    runs: tuple[Runs, ...]
    total: int
    replicated: bool = False

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a layout needs at least one rank")
        object.__setattr__(self, "runs", tuple(tuple(run for run in runs if len(run)) for runs in self.runs))
        if any(run.step < 1 or run.start < 0 for runs in self.runs for run in runs):
            raise ValueError("runs must have positive steps and positions >= 0")
        if self.replicated:
            if any(runs != self.runs[0] for runs in self.runs):
                raise ValueError("a replicated layout has the same runs on every rank")
            held = positions_of(self.runs[0])
        else:
            held = torch.cat([positions_of(runs) for runs in self.runs])
        if not torch.equal(held.sort().values, torch.arange(self.total)):
            raise ValueError(f"every position of 0..{self.total - 1} must be held exactly once, by one rank")

    @classmethod
    def contiguous(cls, sizes: Iterable[int]) -> "Layout":
        """Pieces of the given sizes in order; zeros are allowed. `Partition.even(n, parts).sizes` cuts evenly."""
        return cls.from_partition(Partition.from_sizes(sizes))

    @classmethod
    def from_partition(cls, partition: Partition) -> "Layout":
        """One piece a rank; ValueError when pieces overlap."""
        partition.validate_disjoint()
        return cls(tuple((partition.range(part),) for part in range(partition.parts)), partition.total)

    @classmethod
    def zigzag(cls, total: int, parts: int) -> "Layout":
        """Rank r holds chunks r and 2 parts - 1 - r of 2 parts nearly even ones: causal work is balanced."""
        chunks = Partition.even(total, 2 * parts)
        return cls(tuple((chunks.range(r), chunks.range(2 * parts - 1 - r)) for r in range(parts)), total)

    @classmethod
    def striped(cls, total: int, parts: int) -> "Layout":
        """Rank r holds r, r + parts, r + 2 parts, ... (Striped Attention, arXiv 2311.09431)."""
        return cls(tuple((range(rank, total, parts),) for rank in range(parts)), total)

    @classmethod
    def indices(cls, positions: Sequence[Sequence[int]]) -> "Layout":
        """Any lists of positions, one for each rank, in the order in which the rank holds them."""
        return cls(tuple(as_runs(held) for held in positions), sum(len(held) for held in positions))

    @classmethod
    def replicated_on(cls, total: int, parts: int) -> "Layout":
        """Every rank holds everything."""
        return cls(((range(total),),) * parts, total, replicated=True)

    @classmethod
    def balanced(cls, mask: Mask, total: int, parts: int, chunk: int) -> "Layout":
        """Chunks of `chunk` positions dealt out so that the work of self-attention under `mask` is even.

        Longest processing time first: chunks by falling cost, each to the rank with the least work among those that
        hold the fewest chunks allowed; ranks differ by at most one chunk.
        """
        pieces = [range(start, min(start + chunk, total)) for start in range(0, total, chunk)]
        costs = [mask.flops(piece.start, piece.stop, 0, total, 1) for piece in pieces]
        most, extra = divmod(len(pieces), parts)
        load, held = [0] * parts, [list[int]() for _ in range(parts)]
        for number in sorted(range(len(pieces)), key=lambda n: (-costs[n], n)):
            fuller = sum(len(chunks) > most for chunks in held)
            open_ranks = [r for r in range(parts) if len(held[r]) < most or (len(held[r]) == most and fuller < extra)]
            rank = min(open_ranks, key=lambda r: (load[r], r))
            load[rank] += costs[number]
            held[rank].append(number)
        return cls(tuple(tuple(pieces[n] for n in sorted(chunks)) for chunks in held), total)

    @property
    def parts(self) -> int:
        """Number of ranks."""
        return len(self.runs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each rank."""
        return tuple(length_of(runs) for runs in self.runs)

    def positions(self, rank: int) -> Tensor:
        """Positions of a rank's rows, int64."""
        return positions_of(self.runs[rank])

    def shard(self, x: Tensor, rank: int, dim: int = 2) -> Tensor:
        """A rank's rows of a whole tensor, a copy."""
        if x.shape[dim] != self.total:
            raise ValueError(f"dim {dim} has {x.shape[dim]} rows, the layout has {self.total}")
        return x.index_select(dim, self.positions(rank).to(x.device))

    def unshard(self, shards: Sequence[Tensor], dim: int = 2) -> Tensor:
        """All rows in global order from every rank's shard."""
        if self.replicated:
            return shards[0]
        order = torch.cat([self.positions(rank) for rank in range(self.parts)])
        return torch.cat(list(shards), dim=dim).index_select(dim, order.argsort().to(shards[0].device))

    def digest(self) -> str:
        """A hash that is the same in every process: 16 hex digits."""
        return hashlib.sha256(repr((self.runs, self.total, self.replicated)).encode()).hexdigest()[:16]
