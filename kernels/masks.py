"""The mask algebra: which keys a query may see, said in global positions, so that schedulers can skip what is not seen.

Each mask answers four questions: `dense` (the oracle, a boolean matrix), `classify` (is this rectangle of queries and
keys empty, full, a band or mixed), `reach` (which keys do these queries need: drives what is sent to whom) and `flops`.

`DualScope` is the attention of Video-Infinity (arXiv 2406.16260, section 3.2): a window of P frames on each side of
the query and a small set S of frames that everybody sees.

    DualScope(window=8, global_indices=(0, 10, 20)).dense(range(4), range(32))  # (4, 32) bool
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

Positions = Sequence[int] | Tensor


class TileKind(StrEnum):
    """What a rectangle of the mask looks like."""

    EMPTY = "empty"  # no query sees any key
    FULL = "full"  # every query sees every key
    BAND = "band"  # query i sees key j exactly when |i - j| is at most the window
    DENSE = "dense"  # anything else


class Overlap(StrEnum):
    """What happens to a key that lies both in the window and in the global set."""

    UNION = "union"  # counted once, as a window key
    MULTISET = "multiset"  # counted twice, once with each bias (the released Video-Infinity code)


class Edge(StrEnum):
    """What a window holds beyond the ends of the sequence."""

    DROP = "drop"  # nothing
    ZERO = "zero"  # zero keys and zero values, with logit 0 plus the window's bias (the released Video-Infinity code)


def as_positions(positions: Positions) -> Tensor:
    """Positions as an int64 vector on the CPU."""
    if isinstance(positions, Tensor):
        return positions.detach().to("cpu", torch.int64)
    if isinstance(positions, range):
        return torch.arange(positions.start, positions.stop, positions.step, dtype=torch.int64)
    return torch.tensor(list(positions), dtype=torch.int64)


class Mask:
    """Base class. Rectangles are half-open: queries `[q0, q1)`, keys `[k0, k1)`, in global positions."""

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """Visible pairs as a boolean tensor (len(q_pos), len(k_pos))."""
        raise NotImplementedError

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """What is added to the scaled logits, float64 (len(q_pos), len(k_pos)): 0 where visible, -inf where not."""
        visible = self.dense(q_pos, k_pos)
        return torch.zeros(visible.shape, dtype=torch.float64).masked_fill_(~visible, -math.inf)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        """The kind of a rectangle; an empty rectangle is EMPTY."""
        raise NotImplementedError

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        """Sorted, disjoint key ranges that contain every key visible to queries `[q0, q1)`, and no key that none of
        them sees.

        Ranges may go beyond the ends of the sequence; the caller, who knows its length, clips them.
        """
        raise NotImplementedError

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        """Multiply-adds counted as two, of the two products, for one batch entry and head over the visible pairs of a
        rectangle."""
        return 4 * head_dim * int(self.dense(range(q0, q1), range(k0, k1)).sum())


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key."""

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return torch.ones(len(q_pos), len(k_pos), dtype=torch.bool)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        return TileKind.FULL if q0 < q1 and k0 < k1 else TileKind.EMPTY

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        raise ValueError("Full reaches every key: the caller knows the length of the sequence, this mask does not")

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        return 4 * head_dim * max(q1 - q0, 0) * max(k1 - k0, 0)


@dataclass(frozen=True)
class DualScope(Mask):
    """A window around each query, and a set of keys that every query sees.

    For a query i: `L(i) = {j : |j - i| <= window}` and `G(i) = S`, less L(i) under `Overlap.UNION`. A key of L(i)
    gets `bias_local` added to its scaled logit, a key of G(i) gets `bias_global`. A bias of -inf is a hard gate: that
    scope does not exist at all, so with `bias_local=-inf` every key of S is seen, also those near the query.
    `Overlap.MULTISET` with `Edge.ZERO` is the released Video-Infinity code (acfcd17).

    window: one-sided window P in frames, >= 0.
    global_indices: S, strictly increasing positions >= 0.
    row_scale: None, or the number of keys n_train that the model was trained with, > 1: logits of query i are
    multiplied by
        log(n_i) / log(n_train), n_i the number of keys (with multiplicity, zero keys included) that it sees.
    Raises ValueError for values out of range, and when no scope is left open.
    """

    window: int
    global_indices: tuple[int, ...] = ()
    overlap: Overlap = Overlap.UNION
    edge: Edge = Edge.DROP
    bias_local: float = 0.0
    bias_global: float = 0.0
    row_scale: float | None = None

    def __post_init__(self) -> None:
        indices = tuple(int(index) for index in self.global_indices)
        object.__setattr__(self, "global_indices", indices)
        object.__setattr__(self, "overlap", Overlap(self.overlap))
        object.__setattr__(self, "edge", Edge(self.edge))
        if self.window < 0:
            raise ValueError(f"window must be >= 0 frames, given {self.window}")
        if any(index < 0 for index in indices) or any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
            raise ValueError(f"global_indices must be strictly increasing positions >= 0, given {indices}")
        for name, bias in (("bias_local", self.bias_local), ("bias_global", self.bias_global)):
            if math.isnan(bias) or bias == math.inf:
                raise ValueError(f"{name} must be finite, or -inf to close that scope; given {bias}")
        if not self.local_open and not self.global_open:
            raise ValueError(
                "no key is visible: bias_local is -inf and "
                + ("global_indices is empty" if self.bias_global != -math.inf else "bias_global is -inf too")
            )
        if self.row_scale is not None and not self.row_scale > 1:
            raise ValueError(
                f"row_scale is the number of keys at training time and must be > 1, given {self.row_scale}"
            )

    @property
    def local_open(self) -> bool:
        """Whether window keys take part."""
        return self.bias_local != -math.inf

    @property
    def global_open(self) -> bool:
        """Whether keys of S take part (False as well when S is empty)."""
        return self.bias_global != -math.inf and bool(self.global_indices)

    def local_visible(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """Pairs in L, whatever the sequence's length: bool (len(q_pos), len(k_pos))."""
        if not self.local_open:
            return torch.zeros(len(q_pos), len(k_pos), dtype=torch.bool)
        return (as_positions(q_pos)[:, None] - as_positions(k_pos)[None, :]).abs() <= self.window

    def global_visible(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """Pairs in G: bool (len(q_pos), len(k_pos))."""
        if not self.global_open:
            return torch.zeros(len(q_pos), len(k_pos), dtype=torch.bool)
        member = torch.isin(as_positions(k_pos), torch.tensor(self.global_indices, dtype=torch.int64))
        visible = member[None, :].expand(len(q_pos), -1)
        return visible & ~self.local_visible(q_pos, k_pos) if self.overlap is Overlap.UNION else visible

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.local_visible(q_pos, k_pos) | self.global_visible(q_pos, k_pos)

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """Biases, -inf where not visible. A key counted twice with biases a and b is one key with bias log(e^a +
        e^b)."""
        closed = torch.tensor(-math.inf, dtype=torch.float64)
        local = torch.where(
            self.local_visible(q_pos, k_pos), torch.tensor(self.bias_local, dtype=torch.float64), closed
        )
        shared = torch.where(
            self.global_visible(q_pos, k_pos), torch.tensor(self.bias_global, dtype=torch.float64), closed
        )
        return torch.logaddexp(local, shared)

    def visible_counts(self, q_pos: Positions, total: int) -> Tensor:
        """n_i: keys that each query sees in a sequence of `total` positions, with multiplicity and zero keys: int64
        (len(q_pos),)."""
        queries = as_positions(q_pos)
        counts = torch.zeros_like(queries)
        if self.local_open:
            first, last = queries - self.window, queries + self.window
            if self.edge is Edge.DROP:
                first, last = first.clamp(min=0), last.clamp(max=total - 1)
            counts += last - first + 1
        if self.global_open:
            indices = torch.tensor(self.global_indices, dtype=torch.int64)
            counts += len(self.global_indices)
            if self.overlap is Overlap.UNION and self.local_open:
                inside = torch.searchsorted(indices, queries + self.window, right=True) - torch.searchsorted(
                    indices, queries - self.window
                )
                counts -= inside
        return counts

    def row_factors(self, q_pos: Positions, total: int) -> Tensor | None:
        """log(n_i) / log(n_train), float64 (len(q_pos),); None when `row_scale` is None."""
        if self.row_scale is None:
            return None
        return self.visible_counts(q_pos, total).double().log() / math.log(self.row_scale)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if q0 >= q1 or k0 >= k1:
            return TileKind.EMPTY
        inside = sum(k0 <= index < k1 for index in self.global_indices) if self.global_open else 0
        if inside == k1 - k0:
            return TileKind.FULL
        if not self.local_open:
            return TileKind.DENSE if inside else TileKind.EMPTY
        nearest = max(k0 - (q1 - 1), q0 - (k1 - 1), 0)
        farthest = max(k1 - 1 - q0, q1 - 1 - k0)
        if farthest <= self.window:
            return TileKind.FULL
        if inside:
            lone = [k for k in range(k0, k1) if max(abs(k - q0), abs(k - (q1 - 1))) > self.window]
            return TileKind.FULL if all(k in self.global_indices for k in lone) else TileKind.DENSE
        return TileKind.EMPTY if nearest > self.window else TileKind.BAND

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        if q0 >= q1:
            return []
        spans = [(q0 - self.window, q1 + self.window)] if self.local_open else []
        if self.global_open:
            spans += [(index, index + 1) for index in self.global_indices]
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(spans):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            else:
                merged.append((start, stop))
        return merged
