"""The Triton kernels under dual scope and block sparse attention: flash attention over lists of blocks.

Import this module only where triton is installed; triton_dual_scope.py and triton_block_sparse.py do so when called.
Keys come in up to three pieces of memory (own, halo, global), each with its own list of key blocks for every block of
queries, so nothing is concatenated and no mask exists: what a pair gets added is computed from positions (dual scope)
or read from a bitmap of blocks. The backward takes global O and L, one kernel for dQ and one for dK and dV, without
atomics, so the result is the same in every run.

`TRITON_INTERPRET=1` must be set before this module is imported to run on a CPU. The interpreter multiplies the bit
patterns of bf16, so there (UPCAST) operands are widened first.

What belongs together reaches a kernel as one named tuple (Queries, Keys, Added, Past), and the pieces as a tuple of
Keys. Triton takes a tuple apart at the launch: every member is an argument of its own, with its own alignment known, so
a tuple costs no load; a loop over pieces is unrolled.

Shapes: q (B * H, Lq, D), k (B * Hk, Lk, D), v (B * Hk, Lk, Dv), contiguous; L and delta (B * H, Lq) float32.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

BLOCK = 64
INTERPRETED = bool(knobs.runtime.interpret)


class Queries(NamedTuple):
    """q (B * H, Lq, D), places (Lq,) int32, and Lq, H, H / Hk. In a kernel the tensors are pointers."""

    q: Tensor
    places: Tensor
    n: int
    heads: int
    group: int


class Keys(NamedTuple):
    """A piece: k (B * Hk, Lk, D), v (B * Hk, Lk, Dv), places (Lk,) int32, shared (Lk,) int8, and Lk.

    Block b of one side meets the blocks `blocks[starts[b]:starts[b + 1]]` of the other; int32, both. The forward and
    dQ go by blocks of queries, dK and dV by blocks of keys.
    """

    k: Tensor
    v: Tensor
    places: Tensor
    shared: Tensor
    starts: Tensor
    blocks: Tensor
    n: int


class Added(NamedTuple):
    """The scale of q . k and a Rule. The bitmap of head h begins h * step numbers on; a row of it is blocks_k wide."""

    scale: float
    window: int
    bias_local: float
    bias_global: float
    bias_both: float
    bitmap: Tensor
    step: int
    blocks_k: int
    block_q: int
    block_k: int


class Past(NamedTuple):
    """What the backward knows of the forward: dO (B * H, Lq, Dv), L and delta = sum(dO * O), both (B * H, Lq)."""

    d_out: Tensor
    lse: Tensor
    delta: Tensor


@triton.jit
def _load(base, rows, columns, n_rows, n_columns, UPCAST: tl.constexpr):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    x = tl.load(base + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def _store(base, x, rows, columns, n_rows, n_columns):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(base + rows[:, None] * n_columns + columns[None, :], x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _load_queries(queries, bh, rows, D, BD: tl.constexpr, UPCAST: tl.constexpr):
    q = _load(queries.q + bh * queries.n * D, rows, tl.arange(0, BD), queries.n, D, UPCAST)
    return q, tl.load(queries.places + rows, mask=rows < queries.n, other=0)


@triton.jit
def _load_past(past, bh, rows, n_rows, DV, BDV: tl.constexpr, UPCAST: tl.constexpr):
    do = _load(past.d_out + bh * n_rows * DV, rows, tl.arange(0, BDV), n_rows, DV, UPCAST)
    lse = tl.load(past.lse + bh * n_rows + rows, mask=rows < n_rows, other=0.0)
    delta = tl.load(past.delta + bh * n_rows + rows, mask=rows < n_rows, other=0.0)
    return do, tl.where(lse == float("-inf"), 0.0, lse), delta


@triton.jit
def _load_keys(keys, kv, cols, D, DV, BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr):
    k = _load(keys.k + kv * keys.n * D, cols, tl.arange(0, BD), keys.n, D, UPCAST)
    v = _load(keys.v + kv * keys.n * DV, cols, tl.arange(0, BDV), keys.n, DV, UPCAST)
    place = tl.load(keys.places + cols, mask=cols < keys.n, other=0)
    return k, v, place, tl.load(keys.shared + cols, mask=cols < keys.n, other=0)


@triton.jit
def _logits(q, k, q_place, k_place, k_shared, real, added, head, DUAL: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * added.scale
    closed = float("-inf")
    if DUAL:
        gap = q_place[:, None] - k_place[None, :]
        near = (gap <= added.window) & (gap >= -added.window)
        shared = (k_shared != 0)[None, :] & (q_place == q_place)[:, None]
        far = tl.where(shared, added.bias_global, closed)
        bias = tl.where(near, tl.where(shared, added.bias_both, added.bias_local), far)
        return tl.where(real, s + bias, closed)
    else:
        at = (q_place // added.block_q)[:, None] * added.blocks_k + (k_place // added.block_k)[None, :]
        seen = tl.load(added.bitmap + head * added.step + at, mask=real, other=0)
        return tl.where(real & (seen != 0), s, closed)


@triton.jit
def _gather(
    acc, m, norm, q, q_place, inside, keys, kv, added, head, block, D, DV, DUAL: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The running (O, maximum, sum) of a block of queries after one piece of keys; inside: which queries exist."""
    for at in range(tl.load(keys.starts + block), tl.load(keys.starts + block + 1)):
        cols = tl.load(keys.blocks + at) * BN + tl.arange(0, BN)
        k, v, place, shared = _load_keys(keys, kv, cols, D, DV, BD, BDV, UPCAST)
        real = inside[:, None] & (cols < keys.n)[None, :]
        s = _logits(q, k, q_place, place, shared, real, added, head, DUAL)
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
    queries, pieces, added, o_ptr, l_ptr, D, DV, DUAL: tl.constexpr, PIECES: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = block * BM + tl.arange(0, BM)
    inside = rows < queries.n
    q, place = _load_queries(queries, bh, rows, D, BD, UPCAST)
    acc = tl.zeros([BM, BDV], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    norm = tl.zeros([BM], tl.float32)
    for number in tl.static_range(PIECES):
        acc, m, norm = _gather(
            acc, m, norm, q, place, inside, pieces[number], bh // queries.group, added, bh % queries.heads, block,
            D, DV, DUAL, BN, BD, BDV, UPCAST,
        )  # fmt: skip
    blind = norm == 0.0
    out = acc / tl.where(blind, 1.0, norm)[:, None]
    lse = tl.where(blind, float("-inf"), m + tl.log(tl.where(blind, 1.0, norm)))
    _store(o_ptr + bh * queries.n * DV, out, rows, tl.arange(0, BDV), queries.n, DV)
    tl.store(l_ptr + bh * queries.n + rows, lse, mask=inside)


@triton.jit
def _backward_q(
    queries, keys, added, past, dq_ptr, D, DV, DUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = block * BM + tl.arange(0, BM)
    inside = rows < queries.n
    q, place = _load_queries(queries, bh, rows, D, BD, UPCAST)
    do, lse, delta = _load_past(past, bh, rows, queries.n, DV, BDV, UPCAST)
    dq = tl.zeros([BM, BD], tl.float32)
    for at in range(tl.load(keys.starts + block), tl.load(keys.starts + block + 1)):
        cols = tl.load(keys.blocks + at) * BN + tl.arange(0, BN)
        k, v, k_place, shared = _load_keys(keys, bh // queries.group, cols, D, DV, BD, BDV, UPCAST)
        real = inside[:, None] & (cols < keys.n)[None, :]
        s = _logits(q, k, place, k_place, shared, real, added, bh % queries.heads, DUAL)
        p = tl.exp(s - lse[:, None])
        ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None]) * added.scale
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    _store(dq_ptr + bh * queries.n * D, dq, rows, tl.arange(0, BD), queries.n, D)


@triton.jit
def _backward_kv(
    queries, keys, added, past, dk_ptr, dv_ptr, D, DV, DUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, kv = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cols = block * BN + tl.arange(0, BN)
    inside = cols < keys.n
    k, v, k_place, shared = _load_keys(keys, kv, cols, D, DV, BD, BDV, UPCAST)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BDV], tl.float32)
    for member in range(queries.group):
        bh = kv * queries.group + member
        for at in range(tl.load(keys.starts + block), tl.load(keys.starts + block + 1)):
            rows = tl.load(keys.blocks + at) * BM + tl.arange(0, BM)
            q, place = _load_queries(queries, bh, rows, D, BD, UPCAST)
            do, lse, delta = _load_past(past, bh, rows, queries.n, DV, BDV, UPCAST)
            real = (rows < queries.n)[:, None] & inside[None, :]
            s = _logits(q, k, place, k_place, shared, real, added, bh % queries.heads, DUAL)
            p = tl.exp(s - lse[:, None])
            ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None]) * added.scale
            dv += tl.dot(tl.trans(p).to(do.dtype), do, input_precision="ieee")
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    _store(dk_ptr + kv * keys.n * D, dk, cols, tl.arange(0, BD), keys.n, D)
    _store(dv_ptr + kv * keys.n * DV, dv, cols, tl.arange(0, BDV), keys.n, DV)


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

    def added(self, q: Tensor, scale: float) -> Added:
        bitmap = self.bitmap if self.bitmap is not None else torch.zeros(1, 1, 1, dtype=torch.int8, device=q.device)
        step = bitmap.stride(0) if bitmap.shape[0] > 1 else 0
        return Added(
            scale, self.window, self.bias_local, self.bias_global, self.bias_both, bitmap, step, bitmap.shape[-1],
            self.block_q, self.block_k,
        )  # fmt: skip


def _lists(tiles: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of a bool matrix as lists: where each begins in the second tensor, and the numbers of its True columns."""
    starts = torch.zeros(tiles.shape[0] + 1, dtype=torch.int32)
    starts[1:] = tiles.sum(1).cumsum(0)
    return starts.to(device), tiles.nonzero()[:, 1].to(device, torch.int32)


def _queries(q: Tensor, places: Tensor, piece: Piece) -> Queries:
    return Queries(q.contiguous(), places, q.shape[2], q.shape[1], q.shape[1] // piece.k.shape[1])


def _keys(piece: Piece, tiles: Tensor) -> Keys:
    """tiles: of the piece, or their transpose: whose rows a kernel goes by."""
    k, v = piece.k.contiguous(), piece.v.contiguous()
    return Keys(k, v, piece.places, piece.shared, *_lists(tiles, k.device), k.shape[2])


def _constants(q: Tensor, v: Tensor, rule: Rule) -> dict[str, Any]:
    return {
        "D": q.shape[3], "DV": v.shape[3], "DUAL": rule.bitmap is None, "BM": BLOCK, "BN": BLOCK,
        "BD": max(triton.next_power_of_2(q.shape[3]), 16), "BDV": max(triton.next_power_of_2(v.shape[3]), 16),
        "UPCAST": INTERPRETED,
    }  # fmt: skip


def forward(q: Tensor, q_places: Tensor, pieces: list[Piece], rule: Rule, scale: float) -> tuple[Tensor, Tensor]:
    """(O, L) of q (B, H, Lq, D) over one to three pieces of keys; L float32, -inf where nothing is seen."""
    batch, heads, rows, _ = q.shape
    out = q.new_empty(batch, heads, rows, pieces[0].v.shape[3])
    lse = torch.empty(batch, heads, rows, dtype=torch.float32, device=q.device)
    _forward[(triton.cdiv(rows, BLOCK), batch * heads)](
        _queries(q, q_places, pieces[0]), tuple(_keys(piece, piece.tiles) for piece in pieces), rule.added(q, scale),
        out, lse, PIECES=len(pieces), **_constants(q, pieces[0].v, rule),
    )  # fmt: skip
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, q_places: Tensor, pieces: list[Piece], rule: Rule, scale: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """dQ and the (dK, dV) of each piece, float32, from global O and L."""
    batch, heads, rows, _ = q.shape
    queries, added = _queries(q, q_places, pieces[0]), rule.added(q, scale)
    delta = (d_out.float() * out.float()).sum(-1).contiguous()
    past = Past(d_out.to(q.dtype).contiguous(), lse.float().contiguous(), delta)
    total = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    grads = []
    for piece in pieces:
        constants = _constants(q, piece.v, rule)
        d_q = torch.empty_like(total)
        d_k = torch.empty(piece.k.shape, dtype=torch.float32, device=q.device)
        d_v = torch.empty(piece.v.shape, dtype=torch.float32, device=q.device)
        _backward_q[(triton.cdiv(rows, BLOCK), batch * heads)](
            queries, _keys(piece, piece.tiles), added, past, d_q, **constants
        )
        _backward_kv[(triton.cdiv(piece.k.shape[2], BLOCK), batch * piece.k.shape[1])](
            queries, _keys(piece, piece.tiles.T), added, past, d_k, d_v, **constants
        )
        total += d_q
        grads.append((d_k, d_v))
    return total, grads
