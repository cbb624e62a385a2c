"""Masks made of blocks, documents, slices and matrices.

    Documents((0, 5, 12)).dense(range(12), range(12))          # two documents that do not see each other
    BlockSparse(64, 64, bitmap)                                # which blocks of keys each block of queries sees

Shapes: H heads, Nq and Nk the lengths of the whole sequences, nq and nk their numbers of blocks.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from longtake.kernels.masks.basic import (
    UNBOUNDED,
    Bounds,
    Mask,
    Positions,
    TileKind,
    as_positions,
    classify_band,
    merge_ranges,
)
from torch import Tensor


class _TensorMask(Mask):
    """A mask that holds a tensor: equal and hashed by its bytes, so that it can be a key of a plan's cache."""

    tensor: Tensor

    def _hold(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach().to("cpu").contiguous().clone()
        raw = self.tensor.reshape(-1).view(torch.uint8) if self.tensor.numel() else torch.empty(0, dtype=torch.uint8)
        self._sha = hashlib.sha256(bytes(raw.numpy().data)).hexdigest()[:16]

    def _key(self) -> tuple[Any, ...]:
        return (type(self).__name__, tuple(self.tensor.shape), str(self.tensor.dtype), self._sha)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TensorMask) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._key()[1:]}"

    @property
    def heads(self) -> int | None:
        return int(self.tensor.shape[-3]) if self.tensor.dim() >= 3 and self.tensor.shape[-3] > 1 else None

    @property
    def batch(self) -> int | None:
        return int(self.tensor.shape[0]) if self.tensor.dim() == 4 and self.tensor.shape[0] > 1 else None


class BlockSparse(_TensorMask):
    """Each block of `block_q` queries sees whole blocks of `block_k` keys.

    index: bool, (nq, nk) or per head (H, nq, nk): True where the query block sees the key block; nested tuples serve
    too. The last blocks may be cut short by the ends of the sequences. Positions beyond the last block see nothing.
    Raises ValueError for block sizes below 1 or an index that is not boolean with 2 or 3 dimensions.
    """

    def __init__(self, block_q: int, block_k: int, index: Tensor | Sequence[Any]):
        bitmap = index if isinstance(index, Tensor) else torch.tensor(index, dtype=torch.bool)
        if block_q < 1 or block_k < 1:
            raise ValueError(f"block_q and block_k must be at least 1, given {block_q} and {block_k}")
        if bitmap.dtype != torch.bool or bitmap.dim() not in (2, 3):
            raise ValueError(
                f"index must be bool (nq, nk) or (H, nq, nk), given {bitmap.dtype} {tuple(bitmap.shape)}: a list of "
                "block numbers is a bitmap after scatter_"
            )
        self.block_q, self.block_k = int(block_q), int(block_k)
        self._hold(bitmap)
        any_head = self.tensor if self.tensor.dim() == 2 else self.tensor.any(0)
        every_head = self.tensor if self.tensor.dim() == 2 else self.tensor.all(0)
        self._any, self._every = any_head, every_head

    @property
    def index(self) -> Tensor:
        """The bitmap."""
        return self.tensor

    def _key(self) -> tuple[Any, ...]:
        return (*super()._key(), self.block_q, self.block_k)

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        rows, columns = as_positions(q_pos) // self.block_q, as_positions(k_pos) // self.block_k
        nq, nk = self.tensor.shape[-2:]
        held = ((rows >= 0) & (rows < nq))[:, None] & ((columns >= 0) & (columns < nk))[None, :]
        if not nq or not nk:
            return torch.zeros(*self.tensor.shape[:-2], len(rows), len(columns), dtype=torch.bool)
        picked = self.tensor.index_select(-2, rows.clamp(0, nq - 1)).index_select(-1, columns.clamp(0, nk - 1))
        return picked & held

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if q0 >= q1 or k0 >= k1:
            return TileKind.EMPTY
        rows = slice(q0 // self.block_q, (q1 - 1) // self.block_q + 1)
        columns = slice(k0 // self.block_k, (k1 - 1) // self.block_k + 1)
        if not self._any[rows, columns].any():
            return TileKind.EMPTY
        inside = rows.stop <= self.tensor.shape[-2] and columns.stop <= self.tensor.shape[-1]
        return TileKind.FULL if inside and bool(self._every[rows, columns].all()) else TileKind.DENSE

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        if q0 >= q1:
            return []
        seen = self._any[q0 // self.block_q : (q1 - 1) // self.block_q + 1].any(0).nonzero().flatten().tolist()
        return merge_ranges([(block * self.block_k, (block + 1) * self.block_k) for block in seen])

    def slice_heads(self, start: int, stop: int) -> Mask:
        if self.heads is None:
            return self
        return BlockSparse(self.block_q, self.block_k, self.tensor[start:stop])

    def check_lengths(self, queries: int, keys: int) -> None:
        nq, nk = self.tensor.shape[-2:]
        if nq * self.block_q < queries or nk * self.block_k < keys:
            raise ValueError(
                f"BlockSparse covers {nq} x {self.block_q} queries and {nk} x {self.block_k} keys, the sequences have "
                f"{queries} and {keys}"
            )


class Dense(_TensorMask):
    """A given matrix, in global positions: bool (True is visible), or floating, added to the scaled logits.

    tensor: (Nq, Nk), (H, Nq, Nk) or (B, H or 1, Nq, Nk). Positions outside see nothing. No gradient reaches it:
    ValueError for a tensor that requires one, and for another number of dimensions or another dtype.
    """

    def __init__(self, tensor: Tensor):
        if tensor.dim() not in (2, 3, 4) or not (tensor.dtype == torch.bool or tensor.is_floating_point()):
            raise ValueError(
                f"Dense takes a bool or floating matrix of 2, 3 or 4 dims, given {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.requires_grad:
            raise ValueError("Dense passes no gradient to its matrix: detach it")
        if tensor.is_floating_point() and bool((tensor.isnan() | (tensor == math.inf)).any()):
            raise ValueError("an additive matrix must be finite or -inf")
        self._hold(tensor)
        visible = self.tensor if self.tensor.dtype == torch.bool else self.tensor > -math.inf
        zero = visible if self.tensor.dtype == torch.bool else self.tensor == 0
        self._visible = visible
        self._any = visible.reshape(-1, *visible.shape[-2:]).any(0)
        self._every = visible.reshape(-1, *visible.shape[-2:]).all(0)
        self._plain = bool((zero | ~visible).all())

    @property
    def plain(self) -> bool:
        return self._plain

    def _pick(self, source: Tensor, q_pos: Positions, k_pos: Positions, outside: bool | float) -> Tensor:
        rows, columns = as_positions(q_pos), as_positions(k_pos)
        nq, nk = source.shape[-2:]
        held = ((rows >= 0) & (rows < nq))[:, None] & ((columns >= 0) & (columns < nk))[None, :]
        if not nq or not nk:
            return torch.full((*source.shape[:-2], len(rows), len(columns)), outside, dtype=source.dtype)
        picked = source.index_select(-2, rows.clamp(0, nq - 1)).index_select(-1, columns.clamp(0, nk - 1))
        return picked.masked_fill(~held, outside)

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self._pick(self._visible, q_pos, k_pos, False)

    def score(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        if self._plain:
            return super().score(q_pos, k_pos)
        return self._pick(self.tensor, q_pos, k_pos, -math.inf).double()

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if q0 >= q1 or k0 >= k1 or not self._any[q0:q1, k0:k1].any():
            return TileKind.EMPTY
        inside = q1 <= self.tensor.shape[-2] and k1 <= self.tensor.shape[-1]
        return TileKind.FULL if inside and bool(self._every[q0:q1, k0:k1].all()) else TileKind.DENSE

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        seen = self._any[q0:q1].any(0).nonzero().flatten().tolist() if q0 < q1 else []
        return merge_ranges([(key, key + 1) for key in seen])

    def slice_heads(self, start: int, stop: int) -> Mask:
        return self if self.heads is None else Dense(self.tensor[..., start:stop, :, :])

    def check_lengths(self, queries: int, keys: int) -> None:
        if tuple(self.tensor.shape[-2:]) != (queries, keys):
            raise ValueError(
                f"Dense holds {tuple(self.tensor.shape[-2:])} pairs, the sequences have {queries} queries and {keys} "
                "keys"
            )


def _check_offsets(name: str, offsets: tuple[int, ...]) -> None:
    if len(offsets) < 2 or offsets[0] != 0 or any(a > b for a, b in zip(offsets, offsets[1:], strict=False)):
        raise ValueError(f"{name} must be 0 followed by non-decreasing offsets, given {offsets}")


@dataclass(frozen=True)
class Documents(Mask):
    """Packed documents: a query sees the keys of its own document.

    cu_seqlens: 0, then the end of each document (the cumulated lengths of varlen attention); cu_seqlens_k: those of
    the keys where they differ, as many. Positions beyond the last document see nothing and are seen by nobody.
    """

    cu_seqlens: tuple[int, ...]
    cu_seqlens_k: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cu_seqlens", tuple(int(offset) for offset in self.cu_seqlens))
        _check_offsets("cu_seqlens", self.cu_seqlens)
        if self.cu_seqlens_k is not None:
            object.__setattr__(self, "cu_seqlens_k", tuple(int(offset) for offset in self.cu_seqlens_k))
            _check_offsets("cu_seqlens_k", self._keys)
            if len(self._keys) != len(self.cu_seqlens):
                raise ValueError(f"{len(self.cu_seqlens) - 1} documents of queries, {len(self._keys) - 1} of keys")

    @property
    def offsets(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """cu_seqlens of queries and of keys."""
        return self.cu_seqlens, self._keys

    @property
    def _keys(self) -> tuple[int, ...]:
        return self.cu_seqlens if self.cu_seqlens_k is None else self.cu_seqlens_k

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        q_ends, k_ends = torch.tensor(self.cu_seqlens), torch.tensor(self._keys)
        queries = torch.searchsorted(q_ends, as_positions(q_pos), right=True)
        keys = torch.searchsorted(k_ends, as_positions(k_pos), right=True)
        inside = (queries > 0) & (queries < len(q_ends))
        return (queries[:, None] == keys[None, :]) & inside[:, None]

    def _span(self, q0: int, q1: int) -> tuple[int, int]:
        """Numbers of the first document and of the one past the last among queries `[q0, q1)`."""
        return bisect_right(self.cu_seqlens, q0) - 1, bisect_right(self.cu_seqlens, q1 - 1)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if q0 >= q1 or k0 >= k1:
            return TileKind.EMPTY
        first, stop = self._span(q0, q1)
        last = len(self.cu_seqlens) - 1
        meets = [
            d
            for d in range(max(first, 0), min(stop, last))
            if max(self.cu_seqlens[d], q0) < min(self.cu_seqlens[d + 1], q1)
            and max(self._keys[d], k0) < min(self._keys[d + 1], k1)
        ]
        if not meets:
            return TileKind.EMPTY
        d = meets[0]
        whole = self.cu_seqlens[d] <= q0 and q1 <= self.cu_seqlens[d + 1]
        whole = whole and self._keys[d] <= k0 and k1 <= self._keys[d + 1]
        return TileKind.FULL if whole else TileKind.DENSE

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        if q0 >= q1:
            return []
        first, stop = self._span(q0, q1)
        spans = [
            (self._keys[d], self._keys[d + 1])
            for d in range(max(first, 0), min(stop, len(self.cu_seqlens) - 1))
            if self.cu_seqlens[d] < self.cu_seqlens[d + 1]
        ]
        return merge_ranges(spans)

    def flops(self, q0: int, q1: int, k0: int, k1: int, head_dim: int) -> int:
        pairs = 0
        for d in range(len(self.cu_seqlens) - 1):
            rows = min(self.cu_seqlens[d + 1], q1) - max(self.cu_seqlens[d], q0)
            columns = min(self._keys[d + 1], k1) - max(self._keys[d], k0)
            pairs += max(rows, 0) * max(columns, 0)
        return 4 * head_dim * pairs


def _for_every_query(seen: Tensor, queries: int) -> Tensor:
    """Keys seen by each batch entry (B, keys) as `dense` has it: (queries, keys), (B, 1, queries, keys) for several."""
    rows = seen[:, None, :].expand(-1, queries, -1)
    return rows[0] if len(rows) == 1 else rows[:, None]


@dataclass(frozen=True)
class KeyPadding(Mask):
    """Only the first keys are real: `lengths` of them, one number, or one for each batch entry."""

    lengths: int | tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, int):
            object.__setattr__(self, "lengths", tuple(int(length) for length in self.lengths))
        if not self._all or any(length < 0 for length in self._all):
            raise ValueError(f"lengths must be numbers of keys >= 0, given {self.lengths}")

    @property
    def _all(self) -> tuple[int, ...]:
        return (self.lengths,) if isinstance(self.lengths, int) else self.lengths

    @property
    def batch(self) -> int | None:
        return len(self._all) if len(self._all) > 1 else None

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        seen = as_positions(k_pos)[None, :] < torch.tensor(self._all)[:, None]
        return _for_every_query(seen, len(q_pos))

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        if q0 >= q1 or k0 >= k1 or k0 >= max(self._all):
            return TileKind.EMPTY
        return TileKind.FULL if k1 <= min(self._all) else TileKind.DENSE

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return [(0, max(self._all))] if q0 < q1 and max(self._all) else []


class KeyMask(_TensorMask):
    """Only some keys are real, whichever: the general form of KeyPadding.

    tensor: bool (N,), or (B, N) where batch entries differ; True is a real key. Positions beyond N are seen by nobody.
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor = torch.as_tensor(tensor)
        if tensor.dtype != torch.bool or tensor.dim() not in (1, 2):
            raise ValueError(f"KeyMask takes bool (N,) or (B, N), given {tensor.dtype} {tuple(tensor.shape)}")
        self._hold(tensor if tensor.dim() == 2 else tensor[None])
        counts = self.tensor.any(0).long().cumsum(0), self.tensor.all(0).long().cumsum(0)
        self._some, self._every = (torch.nn.functional.pad(count, (1, 0)).tolist() for count in counts)
        ends = torch.nn.functional.pad(self.tensor.any(0).int(), (1, 1)).diff().nonzero().flatten().tolist()
        self._spans = list(zip(ends[::2], ends[1::2], strict=True))

    @property
    def heads(self) -> int | None:
        return None

    @property
    def batch(self) -> int | None:
        return int(self.tensor.shape[0]) if self.tensor.shape[0] > 1 else None

    def check_lengths(self, queries: int, keys: int) -> None:
        if keys > self.tensor.shape[1]:
            raise ValueError(f"KeyMask covers {self.tensor.shape[1]} keys, the sequence has {keys}")

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        keys, length = as_positions(k_pos), self.tensor.shape[1]
        inside = keys < length
        seen = self.tensor[:, keys.clamp(max=max(length - 1, 0))] & inside if length else inside.new_zeros(1, len(keys))
        return _for_every_query(seen, len(q_pos))

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        length = self.tensor.shape[1]
        if q0 >= q1 or k0 >= min(k1, length) or self._some[min(k1, length)] == self._some[k0]:
            return TileKind.EMPTY
        return TileKind.FULL if k1 <= length and self._every[k1] - self._every[k0] == k1 - k0 else TileKind.DENSE

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return list(self._spans) if q0 < q1 else []


class SliceKind(StrEnum):
    """The shape of one slice of `Ranges` (MagiAttention's four)."""

    FULL = "full"  # the whole rectangle
    CAUSAL = "causal"  # the last query sees all keys, each earlier one a key less at the end
    INVERSE_CAUSAL = "inverse_causal"  # the first query sees all keys, each later one a key less at the beginning
    BI_CAUSAL = "bi_causal"  # both cuts


@dataclass(frozen=True)
class Ranges(Mask):
    """The union of slices (q0, q1, k0, k1, kind): rectangles, or rectangles with their corners cut off (MagiAttention,
    arXiv 2505.13211)."""

    slices: tuple[tuple[int, int, int, int, SliceKind], ...]

    def __post_init__(self) -> None:
        slices = tuple((int(a), int(b), int(c), int(d), SliceKind(kind)) for a, b, c, d, kind in self.slices)
        for a, b, c, d, _ in slices:
            if not (0 <= a <= b and 0 <= c <= d):
                raise ValueError(f"a slice needs 0 <= q0 <= q1 and 0 <= k0 <= k1, given {(a, b, c, d)}")
        object.__setattr__(self, "slices", slices)

    @staticmethod
    def _bounds(a: int, b: int, c: int, d: int, kind: SliceKind) -> Bounds:
        lower = b - d if kind in (SliceKind.CAUSAL, SliceKind.BI_CAUSAL) else None
        upper = a - c if kind in (SliceKind.INVERSE_CAUSAL, SliceKind.BI_CAUSAL) else None
        return lower, upper

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        queries, keys = as_positions(q_pos)[:, None], as_positions(k_pos)[None, :]
        visible = torch.zeros(len(q_pos), len(k_pos), dtype=torch.bool)
        for a, b, c, d, kind in self.slices:
            inside = (queries >= a) & (queries < b) & (keys >= c) & (keys < d)
            lower, upper = self._bounds(a, b, c, d, kind)
            if lower is not None:
                inside &= queries - keys >= lower
            if upper is not None:
                inside &= queries - keys <= upper
            visible |= inside
        return visible

    def _met(self, q0: int, q1: int, k0: int, k1: int) -> list[tuple[int, int, int, int, SliceKind]]:
        met = []
        for a, b, c, d, kind in self.slices:
            part = (max(a, q0), min(b, q1), max(c, k0), min(d, k1))
            if classify_band(self._bounds(a, b, c, d, kind), *part) is not TileKind.EMPTY:
                met.append((a, b, c, d, kind))
        return met

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        met = self._met(q0, q1, k0, k1)
        if not met:
            return TileKind.EMPTY
        if len(met) == 1 and met[0][0] <= q0 and q1 <= met[0][1] and met[0][2] <= k0 and k1 <= met[0][3]:
            return classify_band(self._bounds(*met[0]), q0, q1, k0, k1)
        return self._settle(q0, q1, k0, k1)

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        return self._bounds(*self._met(q0, q1, k0, k1)[0])

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        spans = []
        for a, b, c, d, kind in self._met(q0, q1, 0, UNBOUNDED):
            lower, upper = self._bounds(a, b, c, d, kind)
            first, last = max(a, q0), min(b, q1) - 1
            start = c if upper is None else max(c, first - upper)
            stop = d if lower is None else min(d, last - lower + 1)
            spans.append((start, stop))
        return merge_ranges(spans)
