"""A window of frames and a few shared ones in a handful of kernels, for GPUs, where starting a kernel costs more than
copying: the form of `dual_scope_attention` there.

Queries are cut in blocks of C frames. Each block's window and the shared keys are gathered once, side by side, by one
`index_select` for K and one for V; one batched attention with one bias does the rest, and nothing is merged. Windows of
the first and last blocks are moved inside the sequence, so all have the same size, and the bias hides what is too much.

    frames   0 1 2 3 4 5 6 7 8      C = 3, P = 2, S = {0, 8}
    block 0  |q q q|                gathers 0..6 and 0, 8
    block 1        |q q q|          gathers 1..7 and 0, 8
    block 2              |q q q|    gathers 2..8 and 0, 8

Bytes: K and V are read once, written and read (C + 2P + K) / C times; q and the output pass once, in the memory order
that a video model has them (frames before heads), so nobody lays them anew. On a CPU `dual_scope.py` keeps its own way,
views of overlapping windows in cache-sized pieces: gathering takes 0.9 to 1.1 times as long there, and more memory. But
keys that are no more than one block would gather are taken as they lie, on a CPU too, in 0.25 to 0.45 of the time (16
and 64 frames, P = 8, 4 and 16 shared; one thread, float32, medians of interleaved rounds).

Shapes: q (B, H, T * n, D), k, v (B, H, Tk * n, D), shared (B, H, K * n, D), n tokens a frame.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from longtake.kernels.masks.basic import DualScope
from longtake.kernels.precision import accumulator_dtype
from torch import Tensor

GATHERED = 1 << 32  # bytes of gathered keys and values at a time
ROWS = 64  # queries in a block of a narrow window
MOST_ROWS = 512  # of a wide one
COLUMNS = 16  # torch lays a bias anew whose rows are no multiple of this
MOST_BATCH = (1 << 16) - 1  # batch entries of one call: a grid's third dimension


@dataclass(frozen=True)
class Blocks:
    """Which rows each block of queries meets: `count` blocks of `size` frames from frame `first`; keys held are frames
    `[key_start, key_stop)`, and behind them in memory, if `apart`, the shared ones."""

    scope: DualScope
    first: int
    frames: int
    size: int
    count: int
    key_start: int
    key_stop: int
    total: int
    tokens: int
    apart: bool

    @property
    def window(self) -> int:
        """Frames of a block's window."""
        return min(self.size + 2 * self.scope.window, self.key_stop - self.key_start)

    @property
    def shared(self) -> tuple[int, ...]:
        return self.scope.global_indices if self.scope.global_open else ()

    @property
    def columns(self) -> int:
        """Keys of a block, with those that only fill up."""
        return -(-(self.window + len(self.shared)) * self.tokens // COLUMNS) * COLUMNS

    @property
    def padding(self) -> int:
        """Frames of queries that only fill up."""
        return self.size * self.count - self.frames

    @property
    def whole(self) -> bool:
        """Whether the keys held are no more than one block would gather: they are taken as they lie."""
        return (self.key_stop - self.key_start + self.apart * len(self.shared)) * self.tokens <= self.columns

    def starts(self) -> Tensor:
        """First frame of each window, inside the keys held: (count,)."""
        wanted = self.first + torch.arange(self.count) * self.size - self.scope.window
        return wanted.clamp(self.key_start, self.key_stop - self.window)


def cut(scope: DualScope, q_pos: range, key_start: int, key_stop: int, total: int, tokens: int, apart: bool) -> Blocks:
    """Blocks of about a quarter of what a query sees, 64 rows at least and 512 at most; of a size that divides the
    frames where one is near."""
    frames = len(q_pos)
    seen = 2 * scope.window + 1 + (len(scope.global_indices) if scope.global_open else 0)
    rows = min(max(1 << round(math.log2(max(seen * tokens // 4, 1))), ROWS), MOST_ROWS)
    wanted = max(min(rows // tokens, frames), 1)
    near = [size for size in range(max(wanted // 2, 1), min(2 * wanted, frames) + 1) if frames % size == 0]
    size = min(near, key=lambda size: abs(size - wanted), default=-(-frames // -(-frames // wanted)))
    return Blocks(scope, q_pos.start, frames, size, -(-frames // size), key_start, key_stop, total, tokens, apart)


@lru_cache(maxsize=64)
def rows_of(blocks: Blocks, device: torch.device) -> Tensor:
    """Rows of the keys that the blocks meet, block after block: int64 (count * columns,)."""
    frames = blocks.starts()[:, None] - blocks.key_start + torch.arange(blocks.window)
    if blocks.shared:
        held = blocks.key_stop - blocks.key_start
        numbers = range(held, held + len(blocks.shared)) if blocks.apart else blocks.shared
        at = torch.tensor(list(numbers)) - (0 if blocks.apart else blocks.key_start)
        frames = torch.cat([frames, at.expand(blocks.count, -1)], 1)
    rows = (frames[..., None] * blocks.tokens + torch.arange(blocks.tokens)).flatten(1)
    return F.pad(rows, (0, blocks.columns - rows.shape[1])).flatten().to(device)


@lru_cache(maxsize=32)
def bias_of(blocks: Blocks, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to each block's logits: (count, size * n, columns)."""
    scope, wide = blocks.scope, torch.float64 if dtype == torch.float64 else torch.float32
    queries = blocks.first + torch.arange(blocks.count * blocks.size).view(blocks.count, -1, 1)
    keys = blocks.starts()[:, None, None] + torch.arange(blocks.window)
    parts = [_biased((queries - keys).abs() <= scope.window, scope.bias_local, wide)]
    if blocks.shared:
        visible = scope.global_visible(queries.flatten(), torch.tensor(blocks.shared))
        parts.append(_biased(visible.view(blocks.count, blocks.size, -1), scope.bias_global, wide))
    bias = torch.cat(parts, -1)
    if blocks.tokens > 1:
        bias = bias.repeat_interleave(blocks.tokens, -1).repeat_interleave(blocks.tokens, -2)
    return F.pad(bias, (0, blocks.columns - bias.shape[-1]), value=-math.inf).to(device, dtype)


@lru_cache(maxsize=32)
def whole_bias(blocks: Blocks, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the logits of all queries against the keys as they lie: (T * n, keys), rows aligned."""
    scope, queries = blocks.scope, blocks.first + torch.arange(blocks.frames)
    held = torch.arange(blocks.key_start, blocks.key_stop)
    bias = replace(scope, bias_global=-math.inf).score(queries, held) if blocks.apart else scope.score(queries, held)
    if blocks.apart:
        visible = scope.global_visible(queries, torch.tensor(blocks.shared))
        bias = torch.cat([bias, _biased(visible, scope.bias_global, bias.dtype)], 1)
    bias = bias.repeat_interleave(blocks.tokens, 0).repeat_interleave(blocks.tokens, 1)
    return F.pad(bias, (0, -bias.shape[1] % COLUMNS)).to(device, dtype)[:, : bias.shape[1]]


def _biased(visible: Tensor, bias: float, dtype: torch.dtype) -> Tensor:
    return torch.full(visible.shape, bias, dtype=dtype).masked_fill_(~visible, -math.inf)


def banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_shared: Tensor | None,
    v_shared: Tensor | None,
    blocks: Blocks,
    scale: float | None,
) -> Tensor:
    """O (B, H, T * n, Dv) of the queries of `blocks`, with gradients for q, k and v where they want them. k_shared,
    v_shared: None where k and v hold the shared frames."""
    if k_shared is not None and v_shared is not None:
        k, v = torch.cat([k, k_shared], 2), torch.cat([v, v_shared], 2)
    if blocks.whole:
        bias = whole_bias(blocks, _bias_dtype(q), q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    rows = q.shape[2]
    frames_first = q.shape[1] == 1 or q.stride(1) < q.stride(2)
    if blocks.padding:
        more = blocks.padding * blocks.tokens
        q = (
            F.pad(q.transpose(1, 2), (0, 0, 0, 0, 0, more)).transpose(1, 2)
            if frames_first
            else F.pad(q, (0, 0, 0, more))
        )
    index = rows_of(blocks, q.device)
    bias = bias_of(blocks, _bias_dtype(q), q.device)
    entry = blocks.count * blocks.columns * q.shape[1] * (k.shape[3] + v.shape[3]) * k.element_size()
    step = max(min(GATHERED // entry, MOST_BATCH // blocks.count if frames_first else MOST_BATCH), 1)
    attend = _frames_first if frames_first else _heads_first
    parts = [
        attend(q[b : b + step], k[b : b + step], v[b : b + step], index, bias, scale)
        for b in range(0, q.shape[0], step)
    ]
    out = parts[0]
    if len(parts) > 1:
        out = torch.cat([x.transpose(1, 2) for x in parts]).transpose(1, 2) if frames_first else torch.cat(parts)
    return out[:, :, :rows]


def _frames_first(q: Tensor, k: Tensor, v: Tensor, index: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """Memory (B, T, H, D): the batch is entries times blocks, and the bias is repeated for each entry."""
    batch, (count, size) = q.shape[0], bias.shape[:2]
    queries = q.transpose(1, 2).unflatten(1, (count, size)).flatten(0, 1).transpose(1, 2)
    keys, values = (
        _gathered(x.transpose(1, 2), index).unflatten(1, (count, -1)).flatten(0, 1).transpose(1, 2) for x in (k, v)
    )
    each = bias[:, None] if batch == 1 else bias.repeat(batch, 1, 1)[:, None]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=each, scale=scale)
    return out.transpose(1, 2).unflatten(0, (batch, count)).flatten(1, 2).transpose(1, 2)


def _heads_first(q: Tensor, k: Tensor, v: Tensor, index: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """Memory (B, H, T, D): the batch is entries times heads, blocks stand in the heads' place."""
    count, size = bias.shape[:2]
    queries = q.flatten(0, 1).unflatten(1, (count, size))
    keys, values = (_gathered(x.flatten(0, 1), index).unflatten(1, (count, -1)) for x in (k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None], scale=scale)
    return out.flatten(1, 2).unflatten(0, q.shape[:2])


class _Gather(torch.autograd.Function):
    """Rows of dim 1, of which some are taken several times: their gradients are summed in float32, whatever x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.shape, dtype=accumulator_dtype(grad.dtype))
        return total.index_add_(1, index, grad.to(total.dtype)).to(grad.dtype), None


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        rows: Tensor = _Gather.apply(x, index)  # type: ignore[no-untyped-call]
        return rows
    return x.index_select(1, index)


def _bias_dtype(q: Tensor) -> torch.dtype:
    """A CPU's kernel takes a bias in float32 beside half precision, others want the dtype of the queries."""
    return torch.float32 if q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16) else q.dtype
