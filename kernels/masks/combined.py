"""Masks combined: `And` (a pair is visible when both masks show it) and `Or` (when one does).

And(Causal(), Documents((0, 100, 300)))      # causal inside each packed document
"""

from collections.abc import Callable
from dataclasses import dataclass

from longtake.kernels.masks.basic import Bounds, DualScope, Edge, Mask, Positions, TileKind, classify_band, merge_ranges
from torch import Tensor


def _shared(a: int | None, b: int | None, what: str) -> int | None:
    if a is not None and b is not None and a != b:
        raise ValueError(f"one mask has {a} {what}, the other {b}")
    return b if a is None else a


@dataclass(frozen=True)
class _Pair(Mask):
    first: Mask
    second: Mask

    def __post_init__(self) -> None:
        for mask in (self.first, self.second):
            if isinstance(mask, DualScope) and (mask.edge is Edge.ZERO or mask.row_scale is not None):
                raise ValueError(f"zero edges and row_scale cannot be combined with another mask: {mask!r}")
        _ = self.heads, self.batch

    @property
    def heads(self) -> int | None:
        return _shared(self.first.heads, self.second.heads, "heads")

    @property
    def batch(self) -> int | None:
        return _shared(self.first.batch, self.second.batch, "batch entries")

    def slice_heads(self, start: int, stop: int) -> Mask:
        return type(self)(self.first.slice_heads(start, stop), self.second.slice_heads(start, stop))

    def check_lengths(self, queries: int, keys: int) -> None:
        self.first.check_lengths(queries, keys)
        self.second.check_lengths(queries, keys)


@dataclass(frozen=True)
class And(_Pair):
    """Visible where both are; scores add."""

    @property
    def plain(self) -> bool:
        return self.first.plain and self.second.plain

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.first.dense(q_pos, k_pos) & self.second.dense(q_pos, k_pos)

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.first.score(q_pos, k_pos) + self.second.score(q_pos, k_pos)

    def _bounds(self, q0: int, q1: int, k0: int, k1: int) -> Bounds | None:
        """Bounds of i - j when both masks are full or a band here."""
        both: list[Bounds] = []
        for mask in (self.first, self.second):
            kind = mask.classify(q0, q1, k0, k1)
            if kind in (TileKind.CAUSAL, TileKind.BAND):
                both.append(mask.band(q0, q1, k0, k1))
            elif kind is not TileKind.FULL:
                return None
        lower = _tightest([bounds[0] for bounds in both], max)
        return lower, _tightest([bounds[1] for bounds in both], min)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        kinds = {mask.classify(q0, q1, k0, k1) for mask in (self.first, self.second)}
        if TileKind.EMPTY in kinds:
            return TileKind.EMPTY
        bounds = self._bounds(q0, q1, k0, k1)
        return self._settle(q0, q1, k0, k1) if bounds is None else classify_band(bounds, q0, q1, k0, k1)

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        bounds = self._bounds(q0, q1, k0, k1)
        assert bounds is not None
        return bounds

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        spans = [
            (max(a, c), min(b, d)) for a, b in self.first.reach(q0, q1) for c, d in self.second.reach(q0, q1)
        ]  # fmt: skip
        return merge_ranges(spans)


@dataclass(frozen=True)
class Or(_Pair):
    """Visible where one is. Masks with biases are refused (ValueError): which bias would count?"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for mask in (self.first, self.second):
            if not mask.plain:
                raise ValueError(f"Or takes masks without biases, given {mask!r}")

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.first.dense(q_pos, k_pos) | self.second.dense(q_pos, k_pos)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        first, second = self.first.classify(q0, q1, k0, k1), self.second.classify(q0, q1, k0, k1)
        if TileKind.FULL in (first, second):
            return TileKind.FULL
        if TileKind.EMPTY in (first, second):
            return second if first is TileKind.EMPTY else first
        return self._settle(q0, q1, k0, k1)

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        empty = self.first.classify(q0, q1, k0, k1) is TileKind.EMPTY
        return (self.second if empty else self.first).band(q0, q1, k0, k1)

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return merge_ranges(self.first.reach(q0, q1) + self.second.reach(q0, q1))


def _tightest(values: list[int | None], pick: Callable[[list[int]], int]) -> int | None:
    given = [value for value in values if value is not None]
    return pick(given) if given else None
