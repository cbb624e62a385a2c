"""The kernels of fused.py, for where triton is installed: chunked linear attention with a decay a token.

A chunk holds C tokens; b is the running sum of the log decay inside it. Three kernels: `_carry` runs the state over the
chunks (forwards for S, backwards for the gradient of S), one program a block of the state; `_outputs`, `_grads_qk` and
`_grads_v` then take all chunks at once. exp(b_t - b_s) is taken for s <= t only, so nothing overflows. No atomics: the
result is the same in every run. Operands are widened to float32 and multiplied in full float32, also half precision.

Shapes: q, k (B H, n, DK), v (B H, n, DV) contiguous; b (B H, m C) float32, m chunks, padded with the chunk's last
value; states (B H, m, DK, DV) float32, or (B H, 1, DK, DV) for full attention, which has one state for all chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # columns of keys or values that a program holds
SEGMENTS = 64  # programs that share the sum over the tokens of full attention


@triton.jit
def _load(base, rows, columns, n_rows, n_columns):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    return tl.load(base + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(base, rows, columns, n_rows, n_columns, x):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    tl.store(base + at, x, mask=inside)


@triton.jit
def _pair(b_ptr, tokens, DECAY: tl.constexpr):
    """exp(b_t - b_s) for s <= t, else 0."""
    lower = tokens[:, None] >= tokens[None, :]
    if DECAY:
        b = tl.load(b_ptr + tokens)
        return tl.exp(tl.where(lower, b[:, None] - b[None, :], float("-inf")))
    else:
        return tl.where(lower, 1.0, 0.0)


@triton.jit
def _carry(
    x_ptr, y_ptr, b_ptr, first_ptr, states_ptr, last_ptr, n, chunks, segments, share, DK, DV, DECAY: tl.constexpr,
    REVERSE: tl.constexpr, KEEP: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """state <- exp(b_C) state + x^T y over the chunks, x decayed to the chunk's end (REVERSE: to its entry)."""
    segment, bh = tl.program_id(0) % segments, (tl.program_id(0) // segments).to(tl.int64)
    rows, columns = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    b_ptr += bh * chunks * C
    if KEEP:
        state = _load(first_ptr + bh * DK * DV, rows, columns, DK, DV)
    else:
        state = tl.zeros([BK, BV], tl.float32)
    for at in range(segment * share, tl.minimum((segment + 1) * share, chunks)):
        chunk = chunks - 1 - at if REVERSE else at
        tokens = chunk * C + tl.arange(0, C)
        if KEEP:
            _store(states_ptr + (bh * chunks + chunk) * DK * DV, rows, columns, DK, DV, state)
        x = _load(x_ptr + bh * n * DK, tokens, rows, n, DK)
        y = _load(y_ptr + bh * n * DV, tokens, columns, n, DV)
        if DECAY:
            b, whole = tl.load(b_ptr + tokens), tl.load(b_ptr + chunk * C + C - 1)
            x = x * tl.exp(b if REVERSE else whole - b)[:, None]
            state = state * tl.exp(whole)
        state += tl.dot(tl.trans(x), y, input_precision="ieee")
    _store(last_ptr + (bh * segments + segment) * DK * DV, rows, columns, DK, DV, state)


@triton.jit
def _outputs(
    q_ptr, k_ptr, v_ptr, b_ptr, states_ptr, out_ptr, n, chunks, step, DK, DV, CAUSAL: tl.constexpr,
    DECAY: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """O = (A * pair) V + exp(b) Q S, A = Q K^T."""
    chunk, bh = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    tokens, columns = chunk * C + tl.arange(0, C), tl.program_id(1) * BV + tl.arange(0, BV)
    b_ptr += bh * chunks * C
    states_ptr += (bh * (chunks if CAUSAL else 1) + chunk * step) * DK * DV
    out = tl.zeros([C, BV], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for at in range(0, DK, BK):
        width = at + tl.arange(0, BK)
        q = _load(q_ptr + bh * n * DK, tokens, width, n, DK)
        out += tl.dot(q, _load(states_ptr, width, columns, DK, DV), input_precision="ieee")
        if CAUSAL:
            k = _load(k_ptr + bh * n * DK, tokens, width, n, DK)
            scores += tl.dot(q, tl.trans(k), input_precision="ieee")
    if DECAY:
        out = out * tl.exp(tl.load(b_ptr + tokens))[:, None]
    if CAUSAL:
        v = _load(v_ptr + bh * n * DV, tokens, columns, n, DV)
        out += tl.dot(scores * _pair(b_ptr, tokens, DECAY), v, input_precision="ieee")
    _store(out_ptr + bh * n * DV, tokens, columns, n, DV, out)


@triton.jit
def _grads_qk(
    q_ptr, k_ptr, v_ptr, do_ptr, b_ptr, states_ptr, exits_ptr, dq_ptr, dk_ptr, n, chunks, step, DK, DV,
    CAUSAL: tl.constexpr, DECAY: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dQ = (dO V^T * pair) K + exp(b) dO S^T; dK = (dO V^T * pair)^T Q + exp(b_C - b) V G^T, G the gradient of the
    state that leaves the chunk."""
    chunk, bh = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    tokens, width = chunk * C + tl.arange(0, C), tl.program_id(1) * BK + tl.arange(0, BK)
    b_ptr += bh * chunks * C
    place = (bh * (chunks if CAUSAL else 1) + chunk * step) * DK * DV
    dq = tl.zeros([C, BK], tl.float32)
    dk = tl.zeros([C, BK], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for at in range(0, DV, BV):
        columns = at + tl.arange(0, BV)
        do = _load(do_ptr + bh * n * DV, tokens, columns, n, DV)
        v = _load(v_ptr + bh * n * DV, tokens, columns, n, DV)
        dq += tl.dot(do, tl.trans(_load(states_ptr + place, width, columns, DK, DV)), input_precision="ieee")
        dk += tl.dot(v, tl.trans(_load(exits_ptr + place, width, columns, DK, DV)), input_precision="ieee")
        if CAUSAL:
            scores += tl.dot(do, tl.trans(v), input_precision="ieee")
    if DECAY:
        b, whole = tl.load(b_ptr + tokens), tl.load(b_ptr + chunk * C + C - 1)
        dq = dq * tl.exp(b)[:, None]
        dk = dk * tl.exp(whole - b)[:, None]
    if CAUSAL:
        scores = scores * _pair(b_ptr, tokens, DECAY)
        dq += tl.dot(scores, _load(k_ptr + bh * n * DK, tokens, width, n, DK), input_precision="ieee")
        dk += tl.dot(tl.trans(scores), _load(q_ptr + bh * n * DK, tokens, width, n, DK), input_precision="ieee")
    _store(dq_ptr + bh * n * DK, tokens, width, n, DK, dq)
    _store(dk_ptr + bh * n * DK, tokens, width, n, DK, dk)


@triton.jit
def _grads_v(
    q_ptr, k_ptr, do_ptr, b_ptr, exits_ptr, dv_ptr, n, chunks, step, DK, DV, CAUSAL: tl.constexpr,
    DECAY: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dV = (Q K^T * pair)^T dO + exp(b_C - b) K G."""
    chunk, bh = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    tokens, columns = chunk * C + tl.arange(0, C), tl.program_id(1) * BV + tl.arange(0, BV)
    b_ptr += bh * chunks * C
    exits_ptr += (bh * (chunks if CAUSAL else 1) + chunk * step) * DK * DV
    dv = tl.zeros([C, BV], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for at in range(0, DK, BK):
        width = at + tl.arange(0, BK)
        k = _load(k_ptr + bh * n * DK, tokens, width, n, DK)
        dv += tl.dot(k, _load(exits_ptr, width, columns, DK, DV), input_precision="ieee")
        if CAUSAL:
            q = _load(q_ptr + bh * n * DK, tokens, width, n, DK)
            scores += tl.dot(q, tl.trans(k), input_precision="ieee")
    if DECAY:
        dv = dv * tl.exp(tl.load(b_ptr + chunk * C + C - 1) - tl.load(b_ptr + tokens))[:, None]
    if CAUSAL:
        do = _load(do_ptr + bh * n * DV, tokens, columns, n, DV)
        dv += tl.dot(tl.trans(scores * _pair(b_ptr, tokens, DECAY)), do, input_precision="ieee")
    _store(dv_ptr + bh * n * DV, tokens, columns, n, DV, dv)


def _blocks(x: Tensor, y: Tensor) -> dict[str, int]:
    return {
        "BK": min(BLOCK, max(16, triton.next_power_of_2(x.shape[-1]))),
        "BV": min(BLOCK, max(16, triton.next_power_of_2(y.shape[-1]))),
    }


def carry(
    x: Tensor, y: Tensor, b: Tensor | None, first: Tensor, causal: bool, size: int, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """(states before each chunk (B H, m, DK, DV), the last (B H, DK, DV)), of x (B H, n, DK), y (B H, n, DV), first
    (B H, DK, DV). reverse: from the last chunk to the first. Not causal: the sum of all, in both."""
    (heads, n, wide), deep = x.shape, y.shape[2]
    chunks = triton.cdiv(n, size)
    segments = 1 if causal else min(chunks, SEGMENTS)
    states = first.new_empty(heads, chunks if causal else 1, wide, deep)
    last = first.new_empty(heads, segments, wide, deep)
    blocks = _blocks(x, y)
    grid = (heads * segments, triton.cdiv(wide, blocks["BK"]), triton.cdiv(deep, blocks["BV"]))
    _carry[grid](
        x, y, first if b is None else b, first, states, last, n, chunks, segments, triton.cdiv(chunks, segments), wide,
        deep, DECAY=b is not None, REVERSE=reverse, KEEP=causal, C=size, **blocks,
    )  # fmt: skip
    if causal:
        return states, last[:, 0]
    total = first + last.sum(1)
    return total[:, None], total


def outputs(q: Tensor, k: Tensor, v: Tensor, b: Tensor | None, states: Tensor, causal: bool, size: int) -> Tensor:
    """O (B H, n, DV) float32, from the states before each chunk."""
    (heads, n, wide), deep = q.shape, v.shape[2]
    chunks, blocks = triton.cdiv(n, size), _blocks(q, v)
    out = torch.empty(heads, n, deep, dtype=torch.float32, device=q.device)
    _outputs[(heads * chunks, triton.cdiv(deep, blocks["BV"]))](
        q, k, v, states if b is None else b, states, out, n, chunks, int(causal), wide, deep, CAUSAL=causal,
        DECAY=b is not None, C=size, **blocks,
    )  # fmt: skip
    return out


def gradients(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, b: Tensor | None, states: Tensor, exits: Tensor, causal: bool,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dQ, dK, dV) float32, from the states before each chunk and the gradients of the states after each."""
    (heads, n, wide), deep = q.shape, v.shape[2]
    chunks, blocks = triton.cdiv(n, size), _blocks(q, v)
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=torch.float32, device=q.device) for x in (q, k, v))
    sums = states if b is None else b
    settings = {"CAUSAL": causal, "DECAY": b is not None, "C": size, **blocks}
    _grads_qk[(heads * chunks, triton.cdiv(wide, blocks["BK"]))](
        q, k, v, d_out, sums, states, exits, d_q, d_k, n, chunks, int(causal), wide, deep, **settings
    )
    _grads_v[(heads * chunks, triton.cdiv(deep, blocks["BV"]))](
        q, k, d_out, sums, exits, d_v, n, chunks, int(causal), wide, deep, **settings
    )
    return d_q, d_k, d_v
