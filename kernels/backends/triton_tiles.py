"""The Triton kernels under dual scope and block sparse attention: flash attention over lists of blocks.

Import this module only where triton is installed; triton_dual_scope.py and triton_block_sparse.py do so when called.
Keys come in up to three pieces of memory (own, halo, global), each with its own list of key blocks for every block of
queries, so nothing is concatenated and no mask exists: what a pair gets added is computed from positions (dual scope)
or read from a bitmap of blocks. The backward takes global O and L, one kernel for dQ and one for dK and dV, without
atomics, so the result is the same in every run.

`TRITON_INTERPRET=1` must be set before this module is imported to run on a CPU. The interpreter multiplies the bit
patterns of bf16, so there (UPCAST) operands are widened first.

Shapes: q (B * H, Lq, D), k (B * Hk, Lk, D), v (B * Hk, Lk, Dv), contiguous; L and delta (B * H, Lq) float32.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

BLOCK = 64
INTERPRETED = bool(knobs.runtime.interpret)


@triton.jit
def _load(base, rows, columns, n_rows, n_columns, UPCAST: tl.constexpr):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    x = tl.load(base + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def _logits(
    q, k, q_place, k_place, k_shared, rows, cols, n_rows, n_cols, scale, window, bias_local, bias_global, bias_both,
    bitmap, blocks_k, block_q, block_k, DUAL: tl.constexpr,
):  # fmt: skip
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    real = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    closed = float("-inf")
    if DUAL:
        gap = q_place[:, None] - k_place[None, :]
        near = (gap <= window) & (gap >= -window)
        shared = (k_shared != 0)[None, :] & (q_place == q_place)[:, None]
        bias = tl.where(near, tl.where(shared, bias_both, bias_local), tl.where(shared, bias_global, closed))
        return tl.where(real, s + bias, closed)
    else:
        at = (q_place // block_q)[:, None] * blocks_k + (k_place // block_k)[None, :]
        seen = tl.load(bitmap + at, mask=real, other=0)
        return tl.where(real & (seen != 0), s, closed)


@triton.jit
def _gather(
    acc, m, norm, q, q_place, rows, n_rows, k_base, v_base, k_places, k_shared, starts, blocks, n_cols, block,
    scale, window, bias_local, bias_global, bias_both, bitmap, blocks_k, block_q, block_k, D, DV, DUAL: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    for at in range(tl.load(starts + block), tl.load(starts + block + 1)):
        cols = tl.load(blocks + at) * BN + tl.arange(0, BN)
        k = _load(k_base, cols, tl.arange(0, BD), n_cols, D, UPCAST)
        v = _load(v_base, cols, tl.arange(0, BDV), n_cols, DV, UPCAST)
        place = tl.load(k_places + cols, mask=cols < n_cols, other=0)
        shared = tl.load(k_shared + cols, mask=cols < n_cols, other=0)
        s = _logits(
            q, k, q_place, place, shared, rows, cols, n_rows, n_cols, scale, window, bias_local, bias_global, bias_both,
            bitmap, blocks_k, block_q, block_k, DUAL,
        )  # fmt: skip
        top = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp(s - safe[:, None])
        shrink = tl.exp(m - safe)
        norm = norm * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = top
    return acc, m, norm


@triton.jit
def _forward(
    q_ptr, o_ptr, l_ptr, q_places, k0, v0, kp0, ks0, st0, bl0, n0, k1, v1, kp1, ks1, st1, bl1, n1,
    k2, v2, kp2, ks2, st2, bl2, n2, n_rows, heads, group, scale, window, bias_local, bias_global, bias_both,
    bitmap, bitmap_step, blocks_k, block_q, block_k, D, DV, DUAL: tl.constexpr, PIECES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    kv = bh // group
    bitmap += (bh % heads) * bitmap_step
    rows = block * BM + tl.arange(0, BM)
    q = _load(q_ptr + bh * n_rows * D, rows, tl.arange(0, BD), n_rows, D, UPCAST)
    place = tl.load(q_places + rows, mask=rows < n_rows, other=0)
    acc = tl.zeros([BM, BDV], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    norm = tl.zeros([BM], tl.float32)
    acc, m, norm = _gather(
        acc, m, norm, q, place, rows, n_rows, k0 + kv * n0 * D, v0 + kv * n0 * DV, kp0, ks0, st0, bl0, n0, block,
        scale, window, bias_local, bias_global, bias_both, bitmap, blocks_k, block_q, block_k, D, DV, DUAL, BN, BD, BDV,
        UPCAST,
    )  # fmt: skip
    if PIECES > 1:
        acc, m, norm = _gather(
            acc, m, norm, q, place, rows, n_rows, k1 + kv * n1 * D, v1 + kv * n1 * DV, kp1, ks1, st1, bl1, n1, block,
            scale, window, bias_local, bias_global, bias_both, bitmap, blocks_k, block_q, block_k, D, DV, DUAL, BN, BD,
            BDV, UPCAST,
        )  # fmt: skip
    if PIECES > 2:
        acc, m, norm = _gather(
            acc, m, norm, q, place, rows, n_rows, k2 + kv * n2 * D, v2 + kv * n2 * DV, kp2, ks2, st2, bl2, n2, block,
            scale, window, bias_local, bias_global, bias_both, bitmap, blocks_k, block_q, block_k, D, DV, DUAL, BN, BD,
            BDV, UPCAST,
        )  # fmt: skip
    blind = norm == 0.0
    out = acc / tl.where(blind, 1.0, norm)[:, None]
    lse = tl.where(blind, float("-inf"), m + tl.log(tl.where(blind, 1.0, norm)))
    columns = tl.arange(0, BDV)
    inside = (rows < n_rows)[:, None] & (columns < DV)[None, :]
    base = o_ptr + bh * n_rows * DV
    tl.store(base + rows[:, None] * DV + columns[None, :], out.to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(l_ptr + bh * n_rows + rows, lse, mask=rows < n_rows)


@triton.jit
def _backward_q(
    q_ptr, do_ptr, dq_ptr, l_ptr, delta_ptr, q_places, k_ptr, v_ptr, k_places, k_shared, starts, blocks, n_cols, n_rows,
    heads, group, scale, window, bias_local, bias_global, bias_both, bitmap, bitmap_step, blocks_k, block_q, block_k,
    D, DV, DUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    kv = bh // group
    bitmap += (bh % heads) * bitmap_step
    rows = block * BM + tl.arange(0, BM)
    q = _load(q_ptr + bh * n_rows * D, rows, tl.arange(0, BD), n_rows, D, UPCAST)
    do = _load(do_ptr + bh * n_rows * DV, rows, tl.arange(0, BDV), n_rows, DV, UPCAST)
    place = tl.load(q_places + rows, mask=rows < n_rows, other=0)
    lse = tl.load(l_ptr + bh * n_rows + rows, mask=rows < n_rows, other=0.0)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    delta = tl.load(delta_ptr + bh * n_rows + rows, mask=rows < n_rows, other=0.0)
    dq = tl.zeros([BM, BD], tl.float32)
    for at in range(tl.load(starts + block), tl.load(starts + block + 1)):
        cols = tl.load(blocks + at) * BN + tl.arange(0, BN)
        k = _load(k_ptr + kv * n_cols * D, cols, tl.arange(0, BD), n_cols, D, UPCAST)
        v = _load(v_ptr + kv * n_cols * DV, cols, tl.arange(0, BDV), n_cols, DV, UPCAST)
        k_place = tl.load(k_places + cols, mask=cols < n_cols, other=0)
        shared = tl.load(k_shared + cols, mask=cols < n_cols, other=0)
        s = _logits(
            q, k, place, k_place, shared, rows, cols, n_rows, n_cols, scale, window, bias_local, bias_global, bias_both,
            bitmap, blocks_k, block_q, block_k, DUAL,
        )  # fmt: skip
        p = tl.exp(s - lse[:, None])
        ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None]) * scale
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    columns = tl.arange(0, BD)
    inside = (rows < n_rows)[:, None] & (columns < D)[None, :]
    tl.store(dq_ptr + bh * n_rows * D + rows[:, None] * D + columns[None, :], dq, mask=inside)


@triton.jit
def _backward_kv(
    q_ptr, do_ptr, dk_ptr, dv_ptr, l_ptr, delta_ptr, q_places, k_ptr, v_ptr, k_places, k_shared, starts, blocks, n_cols,
    n_rows, heads, group, scale, window, bias_local, bias_global, bias_both, bitmap, bitmap_step, blocks_k, block_q,
    block_k, D, DV, DUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    block, kv = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cols = block * BN + tl.arange(0, BN)
    k = _load(k_ptr + kv * n_cols * D, cols, tl.arange(0, BD), n_cols, D, UPCAST)
    v = _load(v_ptr + kv * n_cols * DV, cols, tl.arange(0, BDV), n_cols, DV, UPCAST)
    k_place = tl.load(k_places + cols, mask=cols < n_cols, other=0)
    shared = tl.load(k_shared + cols, mask=cols < n_cols, other=0)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BDV], tl.float32)
    for member in range(group):
        bh = kv * group + member
        for at in range(tl.load(starts + block), tl.load(starts + block + 1)):
            rows = tl.load(blocks + at) * BM + tl.arange(0, BM)
            q = _load(q_ptr + bh * n_rows * D, rows, tl.arange(0, BD), n_rows, D, UPCAST)
            do = _load(do_ptr + bh * n_rows * DV, rows, tl.arange(0, BDV), n_rows, DV, UPCAST)
            place = tl.load(q_places + rows, mask=rows < n_rows, other=0)
            lse = tl.load(l_ptr + bh * n_rows + rows, mask=rows < n_rows, other=0.0)
            lse = tl.where(lse == float("-inf"), 0.0, lse)
            delta = tl.load(delta_ptr + bh * n_rows + rows, mask=rows < n_rows, other=0.0)
            s = _logits(
                q, k, place, k_place, shared, rows, cols, n_rows, n_cols, scale, window, bias_local, bias_global,
                bias_both, bitmap + (bh % heads) * bitmap_step, blocks_k, block_q, block_k, DUAL,
            )  # fmt: skip
            p = tl.exp(s - lse[:, None])
            ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None]) * scale
            dv += tl.dot(tl.trans(p).to(do.dtype), do, input_precision="ieee")
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    columns = tl.arange(0, BD)
    inside = (cols < n_cols)[:, None] & (columns < D)[None, :]
    tl.store(dk_ptr + kv * n_cols * D + cols[:, None] * D + columns[None, :], dk, mask=inside)
    columns = tl.arange(0, BDV)
    inside = (cols < n_cols)[:, None] & (columns < DV)[None, :]
    tl.store(dv_ptr + kv * n_cols * DV + cols[:, None] * DV + columns[None, :], dv, mask=inside)


@dataclass(frozen=True)
class Piece:
    """Keys in one piece of memory. k (B, Hk, Lk, D), v (B, Hk, Lk, Dv); places (Lk,) int32, their positions; shared
    (Lk,) int8, whether they are global keys; tiles: bool (query blocks, key blocks), which pairs of blocks meet."""

    k: Tensor
    v: Tensor
    places: Tensor
    shared: Tensor
    tiles: Tensor


@dataclass(frozen=True)
class Rule:
    """What is added to a pair. Dual scope: window and the biases of window keys, global keys and keys that are both.
    Block sparse: bitmap int8 (H or 1, query blocks, key blocks) of block_q x block_k."""

    window: int = 0
    bias_local: float = 0.0
    bias_global: float = 0.0
    bias_both: float = 0.0
    bitmap: Tensor | None = None
    block_q: int = 1
    block_k: int = 1

    def arguments(self, q: Tensor, group: int, scale: float) -> tuple[object, ...]:
        bitmap = self.bitmap if self.bitmap is not None else torch.zeros(1, 1, 1, dtype=torch.int8, device=q.device)
        step = bitmap.stride(0) if bitmap.shape[0] > 1 else 0
        return (
            q.shape[1], group, scale, self.window, self.bias_local, self.bias_global, self.bias_both, bitmap, step,
            bitmap.shape[-1], self.block_q, self.block_k,
        )  # fmt: skip


def _lists(tiles: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of a bool matrix as lists: where each begins in the second tensor, and the numbers of its True columns."""
    starts = torch.zeros(tiles.shape[0] + 1, dtype=torch.int32)
    starts[1:] = tiles.sum(1).cumsum(0)
    return starts.to(device), tiles.nonzero()[:, 1].to(device, torch.int32)


def _constants(q: Tensor, v: Tensor, rule: Rule) -> dict[str, object]:
    return {
        "D": q.shape[3], "DV": v.shape[3], "DUAL": rule.bitmap is None, "BM": BLOCK, "BN": BLOCK,
        "BD": max(triton.next_power_of_2(q.shape[3]), 16), "BDV": max(triton.next_power_of_2(v.shape[3]), 16),
        "UPCAST": INTERPRETED,
    }  # fmt: skip


def forward(q: Tensor, q_places: Tensor, pieces: list[Piece], rule: Rule, scale: float) -> tuple[Tensor, Tensor]:
    """(O, L) of q (B, H, Lq, D) over one to three pieces of keys; L float32, -inf where nothing is seen."""
    batch, heads, rows, _ = q.shape
    width = pieces[0].v.shape[3]
    out = q.new_empty(batch, heads, rows, width)
    lse = torch.empty(batch, heads, rows, dtype=torch.float32, device=q.device)
    arguments: list[object] = []
    for piece in (*pieces, *[pieces[0]] * (3 - len(pieces))):
        starts, blocks = _lists(piece.tiles, q.device)
        arguments += [piece.k.contiguous(), piece.v.contiguous(), piece.places, piece.shared, starts, blocks]
        arguments.append(piece.k.shape[2])
    settings = rule.arguments(q, heads // pieces[0].k.shape[1], scale)
    _forward[(triton.cdiv(rows, BLOCK), batch * heads)](
        q.contiguous(), out, lse, q_places, *arguments, rows, *settings, PIECES=len(pieces),
        **_constants(q, pieces[0].v, rule),
    )  # fmt: skip
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, q_places: Tensor, pieces: list[Piece], rule: Rule, scale: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """dQ and the (dK, dV) of each piece, float32, from global O and L."""
    batch, heads, rows, _ = q.shape
    group = heads // pieces[0].k.shape[1]
    delta = (d_out.float() * out.float()).sum(-1).contiguous()
    d_out, q, lse = d_out.to(q.dtype).contiguous(), q.contiguous(), lse.float().contiguous()
    total = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    grads = []
    for piece in pieces:
        k, v = piece.k.contiguous(), piece.v.contiguous()
        settings, constants = rule.arguments(q, group, scale), _constants(q, v, rule)
        d_q = torch.empty_like(total)
        d_k = torch.empty(k.shape, dtype=torch.float32, device=q.device)
        d_v = torch.empty(v.shape, dtype=torch.float32, device=q.device)
        keys = (k, v, piece.places, piece.shared)
        starts, blocks = _lists(piece.tiles, q.device)
        _backward_q[(triton.cdiv(rows, BLOCK), batch * heads)](
            q, d_out, d_q, lse, delta, q_places, *keys, starts, blocks, k.shape[2], rows, *settings, **constants
        )
        starts, blocks = _lists(piece.tiles.T, q.device)
        _backward_kv[(triton.cdiv(k.shape[2], BLOCK), batch * k.shape[1])](
            q, d_out, d_k, d_v, lse, delta, q_places, *keys, starts, blocks, k.shape[2], rows, *settings, **constants
        )
        total += d_q
        grads.append((d_k, d_v))
    return total, grads
