"""The mask algebra: which keys a query may see, said in global positions, so that schedulers can skip what is not seen.

Each mask answers four questions: `dense` (the oracle, a boolean matrix), `classify` (is this rectangle of queries and
keys empty, full, causal, a band or mixed), `reach` (which keys do these queries need: drives what is sent to whom) and
`flops`. Masks made of blocks, documents and matrices are in tables.py, and `And` and `Or` in combined.py.

`DualScope` is the attention of Video-Infinity (arXiv 2406.16260, section 3.2): a window of P frames on each side of
the query and a small set S of frames that everybody sees.

    DualScope(window=8, global_indices=(0, 10, 20)).dense(range(4), range(32))  # (4, 32) bool
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

Positions = Sequence[int] | Tensor
Bounds = tuple[int | None, int | None]

UNBOUNDED = 1 << 62  # the end of a key range that goes on to the end of any sequence
_EXACT_AREA = 1 << 16  # pairs; up to here an undecided rectangle is settled by looking at each of them


class TileKind(StrEnum):
    """What a rectangle of the mask looks like."""

    EMPTY = "empty"  # no query sees any key
    FULL = "full"  # every query sees every key
    CAUSAL = "causal"  # query i sees key j exactly when i - j is at least the lower of `Mask.band`
    BAND = "band"  # query i sees key j exactly when i - j is between the bounds of `Mask.band`
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
        """Visible pairs as a boolean tensor (len(q_pos), len(k_pos)); (H, q, k) when heads differ, (B, 1 or H, q, k)
        when batch entries do."""
        raise NotImplementedError

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """What is added to the scaled logits, float64, shaped like `dense`: 0 where visible, -inf where not."""
        visible = self.dense(q_pos, k_pos)
        return torch.zeros(visible.shape, dtype=torch.float64).masked_fill_(~visible, -math.inf)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        """The kind of a rectangle; an empty rectangle is EMPTY. DENSE says nothing; every other kind is exact."""
        raise NotImplementedError

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        """(lower, upper) of a CAUSAL or BAND rectangle: query i sees key j exactly when lower <= i - j <= upper; None
        is no bound."""
        raise ValueError(f"{self!r} has no bands")

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        """Sorted, disjoint key ranges that contain every key visible to queries `[q0, q1)`, and as little else as the
        mask can tell: nothing for windows and dual scopes, whole blocks for block masks.

        Ranges may go beyond the ends of the sequence (to UNBOUNDED where every later key is seen); the caller, who
        knows its length, clips them.
        """
        raise NotImplementedError

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        """Multiply-adds counted as two, of the two products, for one batch entry and head (the mean over those that
        differ) over the visible pairs of a rectangle."""
        visible = self.dense(range(q0, q1), range(k0, k1))
        copies = max(math.prod(visible.shape[:-2]), 1)
        return 4 * head_dim * int(visible.sum()) // copies

    @property
    def plain(self) -> bool:
        """Whether `score` is 0 or -inf everywhere."""
        return True

    @property
    def heads(self) -> int | None:
        """H of a mask that differs between heads; None when all heads see the same."""
        return None

    @property
    def batch(self) -> int | None:
        """B of a mask that differs between batch entries; None when all see the same."""
        return None

    def slice_heads(self, start: int, stop: int) -> "Mask":
        """The mask of query heads `[start, stop)`."""
        return self

    def check_lengths(self, queries: int, keys: int) -> None:
        """ValueError when the mask was made for other lengths than these."""

    def parts(self) -> tuple["Mask", ...]:
        """Masks over disjoint sets of pairs (for a multiset, of counted pairs) that together are this one: each is cut
        into tiles by itself, the outputs are merged."""
        return (self,)

    def row_factors(self, q_pos: Positions, total: int) -> Tensor | None:
        """What the logits of each query are multiplied by, float64 (len(q_pos),), for `total` keys; None for 1."""
        return None

    def zero_key_lse(self, q_pos: Positions, total: int) -> Tensor | None:
        """Log-sum-exp of the zero keys (logit 0, value 0) that each query sees beside the real ones, float64
        (len(q_pos),); None when there are none."""
        return None

    def digest(self) -> str:
        """A hash that is the same in every process: 16 hex digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def _settle(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        """EMPTY, FULL or DENSE by looking at each pair; DENSE unseen when there are too many."""
        if q0 >= q1 or k0 >= k1:
            return TileKind.EMPTY
        if (q1 - q0) * (k1 - k0) > _EXACT_AREA:
            return TileKind.DENSE
        visible = self.dense(range(q0, q1), range(k0, k1))
        return TileKind.FULL if visible.all() else TileKind.DENSE if visible.any() else TileKind.EMPTY


def classify_band(bounds: Bounds, q0: int, q1: int, k0: int, k1: int) -> TileKind:
    """The kind of a rectangle in which query i sees key j exactly when i - j lies within `bounds`."""
    if q0 >= q1 or k0 >= k1:
        return TileKind.EMPTY
    lower, upper = bounds
    least, most = q0 - (k1 - 1), (q1 - 1) - k0  # of i - j
    if (lower is not None and most < lower) or (upper is not None and least > upper):
        return TileKind.EMPTY
    if lower is not None and upper is not None and lower > upper:
        return TileKind.EMPTY
    cut_below, cut_above = lower is not None and least < lower, upper is not None and most > upper
    if not cut_below and not cut_above:
        return TileKind.FULL
    return TileKind.BAND if cut_above else TileKind.CAUSAL


def merge_ranges(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, disjoint ranges that cover the same positions; neighbours become one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key."""

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return torch.ones(len(q_pos), len(k_pos), dtype=torch.bool)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        return TileKind.FULL if q0 < q1 and k0 < k1 else TileKind.EMPTY

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return [(0, UNBOUNDED)] if q0 < q1 else []

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        return 4 * head_dim * max(q1 - q0, 0) * max(k1 - k0, 0)


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """Query i sees the keys i - left to i + right. None is no limit on that side; right=0 is a causal window.

    Raises ValueError for a negative width.
    """

    left: int | None
    right: int | None

    def __post_init__(self) -> None:
        if any(width is not None and width < 0 for width in (self.left, self.right)):
            raise ValueError(f"left and right must be >= 0 or None, given {self.left} and {self.right}")

    @property
    def _bounds(self) -> Bounds:
        return None if self.right is None else -self.right, self.left

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return _band_dense(self._bounds, q_pos, k_pos)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        return classify_band(self._bounds, q0, q1, k0, k1)

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        return self._bounds

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        if q0 >= q1:
            return []
        return [(0 if self.left is None else q0 - self.left, UNBOUNDED if self.right is None else q1 + self.right)]

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        return 4 * head_dim * _band_area(self._bounds, q0, q1, k0, k1)


@dataclass(frozen=True)
class Causal(Mask):
    """Query i sees the keys up to i + shift. shift: the number of keys before the first query, where those are more."""

    shift: int = 0

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return _band_dense((-self.shift, None), q_pos, k_pos)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        return classify_band((-self.shift, None), q0, q1, k0, k1)

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        return -self.shift, None

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return [(0, q1 + self.shift)] if q0 < q1 and q1 + self.shift > 0 else []

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        return 4 * head_dim * _band_area((-self.shift, None), q0, q1, k0, k1)


@dataclass(frozen=True)
class Lambda(Mask):
    """The mask of LM-Infinite (arXiv 2308.16137, section 4.1): causal, the first `sink` keys and the last `local` ones.

    Query i sees key j <= i when j < sink or i - j < local. max_distance: the paper's ceiling on rotary distances; it
    does not change what is seen, and only `lambda_attention`, which turns q and k itself, serves it.
    Raises ValueError unless sink >= 0, local >= 1 and max_distance >= local - 1.
    """

    sink: int
    local: int
    max_distance: int | None = None

    def __post_init__(self) -> None:
        if self.sink < 0 or self.local < 1:
            raise ValueError(f"sink must be >= 0 and local >= 1, given {self.sink} and {self.local}")
        if self.max_distance is not None and self.max_distance < self.local - 1:
            raise ValueError(f"max_distance must be >= local - 1 = {self.local - 1}, given {self.max_distance}")

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        keys = as_positions(k_pos)[None, :]
        distance = as_positions(q_pos)[:, None] - keys
        return (distance >= 0) & ((distance < self.local) | (keys < self.sink))

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        sinks = classify_band((0, None), q0, q1, k0, min(k1, self.sink))
        rest = classify_band((0, self.local - 1), q0, q1, max(k0, self.sink), k1)
        if k0 >= self.sink:
            return rest
        if k1 <= self.sink:
            return sinks
        if sinks is rest and sinks in (TileKind.EMPTY, TileKind.FULL):
            return sinks
        return classify_band((0, None), q0, q1, k0, k1) if rest is TileKind.CAUSAL else TileKind.DENSE

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        return (0, self.local - 1) if k0 >= self.sink else (0, None)

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        if q0 >= q1:
            return []
        return merge_ranges([(0, min(self.sink, q1)), (max(q0 - self.local + 1, 0), q1)])

    def parts(self) -> tuple[Mask, ...]:
        window = SlidingWindow(self.local - 1, 0)
        return (FewKeys(self, window, ((0, self.sink),)), window) if self.sink else (window,)


def _band_dense(bounds: Bounds, q_pos: Positions, k_pos: Positions) -> Tensor:
    difference = as_positions(q_pos)[:, None] - as_positions(k_pos)[None, :]
    visible = torch.ones(difference.shape, dtype=torch.bool)
    if bounds[0] is not None:
        visible &= difference >= bounds[0]
    if bounds[1] is not None:
        visible &= difference <= bounds[1]
    return visible


def _band_area(bounds: Bounds, q0: int, q1: int, k0: int, k1: int) -> int:
    """Visible pairs of a band inside a rectangle."""
    queries = torch.arange(q0, max(q1, q0))
    first = queries * 0 + k0 if bounds[1] is None else (queries - bounds[1]).clamp(min=k0)
    last = queries * 0 + k1 if bounds[0] is None else (queries - bounds[0] + 1).clamp(max=k1)
    return int((last - first).clamp(min=0).sum())


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
        multiplied by log(n_i) / log(n_train), n_i the number of keys (with multiplicity, zero keys included) it sees.
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

    @property
    def plain(self) -> bool:
        biases = [self.bias_local] * self.local_open + [self.bias_global] * self.global_open
        doubled = self.overlap is Overlap.MULTISET and self.local_open and self.global_open
        return not doubled and not any(biases)

    def check_lengths(self, queries: int, keys: int) -> None:
        if self.global_open and self.global_indices[-1] >= keys:
            raise ValueError(f"global position {self.global_indices[-1]} is outside [0, {keys})")
        if queries != keys and (self.edge is Edge.ZERO or self.row_scale is not None):
            raise ValueError(f"zero edges and row_scale need as many queries as keys, given {queries} and {keys}")

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

    def zero_key_lse(self, q_pos: Positions, total: int) -> Tensor | None:
        if self.edge is not Edge.ZERO or not self.local_open:
            return None
        queries = as_positions(q_pos)
        missing = (self.window - queries).clamp(min=0) + (queries + self.window - (total - 1)).clamp(min=0)
        return missing.double().log() + self.bias_local

    def parts(self) -> tuple[Mask, ...]:
        if not self.local_open or not self.global_open:
            return (self,)
        window = replace(self, bias_global=-math.inf)
        spans = merge_ranges([(index, index + 1) for index in self.global_indices])
        return FewKeys(self, window, tuple(spans)), window

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        return -self.window, self.window

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
        return merge_ranges(spans)


@dataclass(frozen=True)
class FewKeys(Mask):
    """The part of a mask that shows every query a few keys: the first ones of Lambda, the global ones of DualScope.

    What `whole` shows of the keys in `spans`, less what its part `rest` shows. Made by `Mask.parts`.
    """

    whole: Mask
    rest: Mask
    spans: tuple[tuple[int, int], ...]

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.score(q_pos, k_pos) != -math.inf

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        if isinstance(self.whole, DualScope):
            hidden = ~self.whole.global_visible(q_pos, k_pos)
            bias = torch.full(hidden.shape, self.whole.bias_global, dtype=torch.float64)
        else:
            hidden = ~self.whole.dense(q_pos, k_pos) | self.rest.dense(q_pos, k_pos)
            bias = torch.zeros(hidden.shape, dtype=torch.float64)
        return bias.masked_fill_(hidden, -math.inf)

    @property
    def plain(self) -> bool:
        return not (isinstance(self.whole, DualScope) and self.whole.bias_global)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if not any(start < k1 and k0 < stop for start, stop in self.spans):
            return TileKind.EMPTY
        return self._settle(q0, q1, k0, k1)

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return list(self.spans) if q0 < q1 else []
