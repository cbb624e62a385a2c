"""Query heads, and the key heads that they share (grouped queries, GQA).

Shapes: H query heads, Hk key heads, H a multiple of Hk: query head h uses key head h // (H / Hk).
"""

from torch import Tensor


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Each key head once for every query head that shares it: (B, Hk, L, D) -> (B, heads, L, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def gather_heads(grad: Tensor, kv_heads: int) -> Tensor:
    """The gradient of `spread_heads`."""
    return grad if grad.shape[1] == kv_heads else grad.unflatten(1, (kv_heads, -1)).sum(2)


def head_range(heads: int, places: int, place: int) -> tuple[int, int]:
    """Query heads [start, stop) of a place."""
    return place * heads // places, (place + 1) * heads // places


def key_head_range(heads: int, kv_heads: int, places: int, place: int) -> tuple[int, int]:
    """Key heads [start, stop) that a place's query heads use."""
    start, stop = head_range(heads, places, place)
    shared = heads // kv_heads
    return (start // shared, (stop - 1) // shared + 1) if start < stop else (0, 0)
