"""Dual-scope attention of one rank: each frame sees a window around itself and a few global frames, in time and
memory O(T (2P + K)).

The method is Video-Infinity's (arXiv 2406.16260, section 3.2); `DualScope` in masks/basic.py defines which keys count
and with which bias. The released code builds a T x (T + 2P + K) matrix of logits. Here queries are cut into tiles of C
frames; each tile meets its C + 2P neighbours and the K global keys in one softmax. Tiles that lie inside the sequence
are strided views, laid side by side in the head dimension of torch's scaled_dot_product_attention, so there is no
loop over rows and hardly one over tiles. That call chooses the kernel of the device (on a CPU its fused flash
kernel). On a GPU, where the calls of a loop over tiles cost more than a copy, all windows are gathered first
(`banded.py`); short clips, whose frames are no more than one block's keys, are one call on every device.

    frames   0 1 2 3 4 5 6 7 8 9 ...      C = 3, P = 2, S = {0, 9}
    tile 1         |q q q|                frames 3 4 5 ask
             . k k k k k k k . .          a view of C + 2P frames, from 1 to 7; the band hides 1 from 4, 5, ...
             s                 s          the global keys, behind them in the same softmax

Shapes: B batch (pixels count as batch), H heads, T query frames, Tk local keys, K global keys, D head size, n tokens
a frame, C tile.

    out = dual_scope_attention(q, k, v, scope=DualScope(8, (0, 63)), q_pos=range(64), k_pos=range(64), total=64)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from longtake.kernels.calls.banded import banded_attention, cut
from longtake.kernels.masks.basic import DualScope, Edge, Overlap, Positions
from longtake.kernels.precision import exact
from torch import Tensor

WORKSPACE_FLOOR = 1 << 20  # bytes: below this, more chunks only cost calls
WORKSPACE_LIMIT_CPU = 8 << 20  # bytes of gathered keys and values at a time: about the caches of a core
WORKSPACE_LIMIT_OTHER = 256 << 20
BANDED_TOKENS = 16  # tokens a frame up to which a window is gathered: above, a frame fills a block by itself
WORKSPACE_SHARE = 4  # otherwise a quarter of the queries' bytes: the peak stays near that of q, k, v and the output


@exact
def dual_scope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scope: DualScope,
    q_pos: range,
    k_pos: Positions,
    k_global: Tensor | None = None,
    v_global: Tensor | None = None,
    total: int,
    scale: float | None = None,
    tile: int | None = None,
    tokens_per_frame: int = 1,
) -> Tensor:
    """Attention of the queries at frames `q_pos` under `scope`. Returns O (B, H, T * n, D) with q's dtype, and in
    q's memory order where that is frames first.

    q: (B, H, T * n, D), frame-major, for the frames `q_pos` (a range with step 1; may be empty).
    k, v: (B, H, Tk * n, D), for the consecutive frames `k_pos`: own frames and halo. While the window is open they
    must hold every frame of `0..total` within `scope.window` of a query; with `bias_local=-inf` they are not looked at.
    k_global, v_global: (B, H, K * n, D), the frames `scope.global_indices` in that order. None takes them from k and
    v, which must hold them.
    total: frames in the whole sequence. scale: of the logits, 1/sqrt(D) by default.
    tile: frames per tile; None uses the measured rule of `tile_frames`.
    tokens_per_frame: n > 1 lets every token of a frame see all tokens of the frames that its frame sees (video
    transformers).
    Raises ValueError for shapes or positions that do not fit. Inference only: NotImplementedError when a gradient
    would be needed.
    """
    frames = len(q_pos)
    tokens = tokens_per_frame
    _check_inputs(q, k, v, q_pos, total, tokens)
    first_key, last_key = _span(k_pos)
    if scope.local_open and frames:
        low, high = max(q_pos.start - scope.window, 0), min(q_pos.stop + scope.window, total)
        if first_key > low or last_key < high:
            raise ValueError(
                f"queries {q_pos} with window {scope.window} need keys [{low}, {high}), given [{first_key}, {last_key})"
            )
    if scope.local_open and (k.shape[2] != (last_key - first_key) * tokens or v.shape[2] != k.shape[2]):
        raise ValueError(
            f"k and v must hold {last_key - first_key} frames of {tokens} tokens, given {k.shape[2]} and {v.shape[2]} "
            "rows"
        )
    everything = tile is None and _sees_all(scope, q_pos, first_key, last_key, total)
    blocks = None
    if frames and tile is None and not everything and _is_banded(scope, tokens):
        blocks = cut(scope, q_pos, first_key, last_key, total, tokens, k_global is not None)
        blocks = blocks if _on_gpu(q) or blocks.whole else None
    if scope.global_open:
        in_place = everything or blocks is not None
        k_global, v_global = _global_keys(
            k, v, k_global, v_global, scope, first_key, last_key, total, tokens, in_place
        )  # fmt: skip
    else:
        k_global = v_global = None
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, k_global, v_global)):
        raise NotImplementedError(
            "dual_scope_attention has no backward: call it under torch.no_grad() or inference_mode()"
        )

    if q.numel() and v.numel() and everything:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if q.numel() and v.numel() and blocks is not None:
        if scope.row_scale is not None:
            q = _scaled(q, scope, q_pos, total, tokens)
        return banded_attention(q, k, v, k_global, v_global, blocks, scale)
    same_width = v.shape[-1] == q.shape[-1]
    out = torch.empty_like(q) if same_width else q.new_empty(*q.shape[:-1], v.shape[-1])
    if out.numel() == 0:
        return out
    factors = scope.row_factors(q_pos, total)
    if factors is not None:
        factors = factors.to(q.device, torch.promote_types(q.dtype, torch.float32))

    if not scope.local_open:
        assert k_global is not None and v_global is not None
        if factors is not None:
            q = _scaled(q, scope, q_pos, total, tokens)
        shared = F.scaled_dot_product_attention(q, k_global, v_global, scale=scale)
        return shared if _on_gpu(q) else out.copy_(shared)

    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1 frame, given {tile}")
    wanted = tile_frames(scope, tokens) if tile is None else tile
    tiles = -(-frames // wanted)
    size = -(-frames // tiles)
    whole = frames // size
    segments = [(0, size, whole)] + ([(whole * size, frames - whole * size, 1)] if frames > whole * size else [])
    limit = WORKSPACE_LIMIT_CPU if q.device.type == "cpu" else WORKSPACE_LIMIT_OTHER
    limit = min(limit, max(WORKSPACE_FLOOR, q.numel() * q.element_size() // WORKSPACE_SHARE))
    tensors = [q, k, v, out] if k_global is None or v_global is None else [q, k, v, out, k_global, v_global]
    merged = [x.flatten(0, 1)[:, None] for x in tensors if _heads_merge(x)]
    tensors = merged if len(merged) == len(tensors) else tensors
    for head in range(tensors[0].shape[1]):
        q_h, k_h, v_h, out_h, *pair = (x[:, head] for x in tensors)
        kg_h, vg_h = pair if pair else (None, None)
        for start, tile_size, count in segments:
            rows = slice(start * tokens, (start + tile_size * count) * tokens)
            first = q_pos.start + start
            layout = _Segment(scope, first, tile_size, count, first_key, last_key, total, tokens)
            part = None if factors is None else factors[start : start + tile_size * count]
            _segment(q_h[:, rows], k_h, v_h, kg_h, vg_h, out_h[:, rows], layout, part, scale, limit)
    return out


def _scaled(q: Tensor, scope: DualScope, q_pos: range, total: int, tokens: int) -> Tensor:
    """Queries times the factor of their row, in their own dtype."""
    factors = _factors(scope, q_pos, total, tokens, torch.promote_types(q.dtype, torch.float32), q.device)
    return (q * factors).to(q.dtype)


@lru_cache(maxsize=64)
def _factors(
    scope: DualScope, q_pos: range, total: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`DualScope.row_factors`, for each row: (T * n, 1)."""
    factors = scope.row_factors(q_pos, total)
    assert factors is not None
    return factors.repeat_interleave(tokens)[:, None].to(device, dtype)


def _sees_all(scope: DualScope, q_pos: range, first_key: int, last_key: int, total: int) -> bool:
    """Whether every query sees just the frames held, each once and all alike: nothing is left to hide or to weigh."""
    reaches = q_pos.start - scope.window <= 0 and q_pos.stop - 1 - scope.window <= 0
    reaches = reaches and q_pos.start + scope.window >= total - 1
    once = scope.overlap is Overlap.UNION or not scope.global_open
    plain = scope.row_scale is None and scope.edge is Edge.DROP
    return scope.local_open and reaches and once and plain and (first_key, last_key) == (0, total)


def _on_gpu(x: Tensor) -> bool:
    return x.device.type != "cpu"


def _is_banded(scope: DualScope, tokens: int) -> bool:
    """Whether windows can be gathered: unless zero keys stand beyond the ends or a frame has many tokens."""
    return scope.local_open and scope.edge is Edge.DROP and tokens <= BANDED_TOKENS


def tile_frames(scope: DualScope, tokens_per_frame: int = 1) -> int:
    """Frames per tile, from measurements on a CPU (D = 16 to 64): wide enough to feed the matrix product, narrow
    enough to waste little.

    A tile of C frames computes C + 2P + K columns of which a row needs 2P + 1 + K, and copies (C + 2P + K) / C keys a
    query.
    """
    extra = 2 * scope.window + (len(scope.global_indices) if scope.global_open else 0)
    frames = 32 if extra <= 64 else 64 if extra <= 256 else 128
    return max(1, frames // tokens_per_frame)


@dataclass(frozen=True)
class _Segment:
    """Where the tiles of one segment lie: `count` tiles of `size` frames from frame `first`; keys held are
    `[key_start, key_stop)`."""

    scope: DualScope
    first: int
    size: int
    count: int
    key_start: int
    key_stop: int
    total: int
    tokens: int

    @property
    def window(self) -> int:
        """Frames of local keys of a tile."""
        return self.size + 2 * self.scope.window

    def window_start(self, tile: int) -> int:
        """First frame of a tile's local keys; may lie before the keys held."""
        return self.first + tile * self.size - self.scope.window

    def inside(self, tile: int) -> bool:
        """Whether all local keys of a tile are held."""
        start = self.window_start(tile)
        return self.key_start <= start and start + self.window <= self.key_stop

    def runs(self, most: int) -> list[tuple[int, int, bool]]:
        """Consecutive tiles `[t0, t1)` of one kind, at most `most` together: (t0, t1, inside).

        Tiles that reach beyond the keys held are run one by one, with fewer keys, unless zero keys have to stand there.
        """
        runs: list[tuple[int, int, bool]] = []
        for tile in range(self.count):
            inside = self.inside(tile)
            together = inside if self.scope.edge is Edge.DROP else True
            if runs and together and runs[-1][2] == inside and tile - runs[-1][0] < most:
                runs[-1] = (runs[-1][0], tile + 1, inside)
            else:
                runs.append((tile, tile + 1, inside))
        return runs


@lru_cache(maxsize=64)
def _tile_bias(layout: _Segment, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the logits of each tile: (1, tiles, C * n or 1, (C + 2P + K) * n). Small: no batch, no heads."""
    scope = layout.scope
    closed = torch.tensor(-torch.inf, dtype=torch.float64)
    tiles = torch.arange(layout.count)[:, None, None] * layout.size
    queries = layout.first + tiles + torch.arange(layout.size)[None, :, None]
    keys = layout.first - scope.window + tiles + torch.arange(layout.window)[None, None, :]
    visible = (queries - keys).abs() <= scope.window
    if scope.edge is Edge.DROP:
        visible &= (keys >= 0) & (keys < layout.total)
    parts = [torch.where(visible, torch.tensor(scope.bias_local, dtype=torch.float64), closed)]
    if scope.global_open:
        shared = scope.global_visible(queries.reshape(-1), torch.tensor(scope.global_indices))
        shared = shared.view(layout.count, layout.size, -1)
        parts.append(torch.where(shared, torch.tensor(scope.bias_global, dtype=torch.float64), closed))
    bias = torch.cat(parts, dim=-1)
    if layout.tokens > 1:
        bias = bias.repeat_interleave(layout.tokens, dim=-1)
        if layout.size > 1:
            bias = bias.repeat_interleave(layout.tokens, dim=-2)
    return bias.to(device, dtype)[None]


@dataclass(frozen=True)
class _Single:
    """One tile by itself: held local frames [a, b) of its window, which global columns, and the bias of those columns
    (None: all zero)."""

    a: int
    b: int
    shared: Tensor | None
    bias: Tensor | None


@lru_cache(maxsize=64)
def _single(layout: _Segment, tile: int, dtype: torch.dtype, device: torch.device) -> _Single:
    """Leave out of a tile what none of its rows sees: frames beyond the sequence, and global frames inside every
    row's window."""
    start, tokens = layout.window_start(tile), layout.tokens
    a = max(layout.key_start - start, 0)
    b = min(layout.key_stop - start, layout.window)
    bias = _tile_bias(layout, dtype, device)[:, tile : tile + 1]
    local, shared = bias[..., a * tokens : b * tokens], bias[..., layout.window * tokens :]
    seen = (shared != -torch.inf).any(dim=-2).flatten()
    columns = None if bool(seen.all()) else seen.nonzero().flatten()
    bias = torch.cat([local, shared if columns is None else shared[..., columns]], dim=-1)
    return _Single(a, b, columns, bias if bool(bias.any()) else None)


def _segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_global: Tensor | None,
    v_global: Tensor | None,
    out: Tensor,
    layout: _Segment,
    factors: Tensor | None,
    scale: float | None,
    limit: int,
) -> None:
    """One head, tiles of one size: q, out (B, count * C * n, D); k, v (B, Tk * n, D); k_global, v_global (B, K * n,
    D)."""
    batch, tokens = q.shape[0], layout.tokens
    local_rows = layout.window * tokens
    global_rows = 0 if k_global is None else k_global.shape[1]
    tile_bytes = (local_rows + global_rows) * (k.shape[-1] + v.shape[-1]) * k.element_size()
    most = max(1, limit // tile_bytes)  # tiles, counted over the batch, that share the workspace
    rows = layout.size * tokens
    q_tiles, out_tiles = q.unflatten(1, (layout.count, rows)), out.unflatten(1, (layout.count, rows))
    # Half-precision biases would be rounded; the CPU kernel takes float32 ones, others want the dtype of the queries.
    widen = q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16)
    bias_dtype = torch.float32 if widen else q.dtype
    zero_edge = layout.scope.edge is Edge.ZERO
    together = min(most, batch * layout.count) * (local_rows + global_rows)
    gathers = global_rows > 0 or (zero_edge and not all(layout.inside(tile) for tile in range(layout.count)))
    spaces = [x.new_empty(together * x.shape[-1] if gathers else 0) for x in (k, v)]

    for t0, t1, inside in layout.runs(most):
        alone = t1 - t0 == 1 and (inside or not zero_edge)
        single = _single(layout, t0, bias_dtype, q.device) if alone else None
        bias = single.bias if single is not None else _tile_bias(layout, bias_dtype, q.device)[:, t0:t1]
        step = min(batch, max(1, most // (t1 - t0)))
        for b0 in range(0, batch, step):
            b1 = min(b0 + step, batch)
            operands = []
            for space, x, shared in zip(spaces, (k, v), (k_global, v_global), strict=True):
                chunk, chunk_shared = x[b0:b1], None if shared is None else shared[b0:b1]
                if single is not None:
                    operands.append(_single_rows(space, chunk, chunk_shared, layout, t0, single))
                elif inside and shared is None:
                    operands.append(_windows(chunk, layout, t0, t1))
                else:
                    operands.append(_gathered(space, chunk, chunk_shared, layout, t0, t1, inside))
            queries = q_tiles[b0:b1, t0:t1]
            if factors is not None:
                tile_factors = factors.view(layout.count, layout.size, 1)[t0:t1].repeat_interleave(tokens, dim=1)
                queries = (queries * tile_factors).to(q.dtype)
            out_tiles[b0:b1, t0:t1] = F.scaled_dot_product_attention(
                queries, operands[0], operands[1], attn_mask=bias, scale=scale
            )


def _single_rows(
    space: Tensor, x: Tensor, shared: Tensor | None, layout: _Segment, tile: int, single: _Single
) -> Tensor:
    """The keys of one tile, held local ones and the global ones it needs: (B, 1, rows, D).

    A view of x when there are no global ones, otherwise laid out in the flat workspace `space`.
    """
    first = layout.window_start(tile) - layout.key_start
    local = x[:, (first + single.a) * layout.tokens : (first + single.b) * layout.tokens]
    if shared is None:
        return local[:, None]
    if single.shared is not None:
        shared = shared.index_select(1, single.shared)
    rows = local.shape[1] + shared.shape[1]
    laid = space[: x.shape[0] * rows * x.shape[2]].view(x.shape[0], 1, rows, x.shape[2])
    laid[:, 0, : local.shape[1]] = local
    laid[:, 0, local.shape[1] :] = shared
    return laid


def _windows(x: Tensor, layout: _Segment, t0: int, t1: int) -> Tensor:
    """The local rows of tiles that lie inside the keys held, as overlapping views: (B, t1 - t0, (C + 2P) * n, D)."""
    tokens = layout.tokens
    start = (layout.window_start(t0) - layout.key_start) * tokens
    batch_stride, row_stride, stride = x.stride()
    return x.as_strided(
        (x.shape[0], t1 - t0, layout.window * tokens, x.shape[2]),
        (batch_stride, layout.size * tokens * row_stride, row_stride, stride),
        x.storage_offset() + start * row_stride,
    )


def _gathered(
    flat: Tensor, x: Tensor, shared: Tensor | None, layout: _Segment, t0: int, t1: int, inside: bool
) -> Tensor:
    """Local and global rows of tiles [t0, t1) in the workspace: (B, t1 - t0, rows, D); zeros where no key is held."""
    tokens = layout.tokens
    local_rows = layout.window * tokens
    shape = (x.shape[0], t1 - t0, local_rows + (0 if shared is None else shared.shape[1]), x.shape[2])
    space = flat[: math.prod(shape)].view(shape)
    if inside:
        space[:, :, :local_rows] = _windows(x, layout, t0, t1)
    else:
        for tile in range(t0, t1):
            start = layout.window_start(tile)
            a = min(max(layout.key_start - start, 0), layout.window)
            b = max(min(layout.key_stop - start, layout.window), a)
            rows = space[:, tile - t0]
            rows[:, : a * tokens] = 0
            rows[:, b * tokens : local_rows] = 0
            held = (start + a - layout.key_start) * tokens
            rows[:, a * tokens : b * tokens] = x[:, held : held + (b - a) * tokens]
    if shared is not None:
        space[:, :, local_rows:] = shared[:, None]
    return space


def _heads_merge(x: Tensor) -> bool:
    """Whether (B, H, R, D) can be seen as (B * H, R, D) without a copy."""
    return x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)


def _span(positions: Positions) -> tuple[int, int]:
    """First position and one past the last; ValueError unless consecutive."""
    if isinstance(positions, range) and positions.step == 1:
        return positions.start, max(positions.stop, positions.start)
    listed: Sequence[int] = positions.tolist() if isinstance(positions, Tensor) else list(positions)
    if not listed:
        return 0, 0
    if list(listed) != list(range(listed[0], listed[0] + len(listed))):
        raise ValueError(f"k_pos must be consecutive increasing frames, given {listed[:8]}...")
    return listed[0], listed[0] + len(listed)


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, q_pos: range, total: int, tokens: int) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(
            f"q, k and v must be (B, H, rows, D); given {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[:2] != k.shape[:2] or q.shape[:2] != v.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} differ in batch, heads or head size"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k and v need one floating-point dtype, given {q.dtype}, {k.dtype}, {v.dtype}")
    if tokens < 1:
        raise ValueError(f"tokens_per_frame must be at least 1, given {tokens}")
    if q_pos.step != 1 or (len(q_pos) and not 0 <= q_pos.start < q_pos.stop <= total):
        raise ValueError(f"q_pos must be consecutive frames inside [0, {total}), given {q_pos}")
    if q.shape[2] != len(q_pos) * tokens:
        raise ValueError(f"q must hold {len(q_pos)} frames of {tokens} tokens, given {q.shape[2]} rows")


def _global_keys(
    k: Tensor,
    v: Tensor,
    k_global: Tensor | None,
    v_global: Tensor | None,
    scope: DualScope,
    first: int,
    last: int,
    total: int,
    tokens: int,
    in_place: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The keys and values of S, checked, or taken from the local ones when all of them are there; in_place: left
    there, (None, None)."""
    indices = scope.global_indices
    if indices[-1] >= total:
        raise ValueError(f"global frame {indices[-1]} is outside [0, {total})")
    if (k_global is None) != (v_global is None):
        raise ValueError("give both k_global and v_global, or neither")
    if k_global is None or v_global is None:
        if not first <= indices[0] or not indices[-1] < last:
            raise ValueError(f"k_global is needed: the local keys [{first}, {last}) do not hold all of {indices}")
        if in_place:
            return None, None
        rows = (torch.tensor(indices)[:, None] - first) * tokens + torch.arange(tokens)
        rows = rows.reshape(-1).to(k.device)
        return k.index_select(2, rows), v.index_select(2, rows)
    for name, shared, local in (("k_global", k_global, k), ("v_global", v_global, v)):
        shape = (*local.shape[:2], len(indices) * tokens, local.shape[3])
        if tuple(shared.shape) != shape or shared.dtype != local.dtype:
            raise ValueError(f"{name} must be {shape} {local.dtype}, given {tuple(shared.shape)} {shared.dtype}")
    return k_global, v_global
