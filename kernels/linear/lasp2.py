"""Linear attention over ranks by LASP-2: keys and values become one Dk x Dv state a rank, and only states travel.

For speech of hours (VALL-E R, ProsodyFM): encoders without softmax, whose state does not grow with the text.

LASP-2 (arXiv 2502.07563), with the decays of retention (arXiv 2307.08621), Lightning attention, Mamba-2 and gated
linear attention (arXiv 2312.06635): with q and k already through the feature map,

    full    O = Q sum_t k_t v_t^T
    causal  S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t,  g the log of the decay (0 without)

A shard is cut into chunks; inside a chunk the masked product Q K^T counts, across chunks the state. exp(b_t - b_s), b
the running sum of g, is taken for s <= t only, so nothing overflows however strong the decay.

One autograd Function, one all-gather forward and one backward, on every rank: a causal rank 0 uses nothing of what it
gathers, and left to autograd would never join the backward's collective, and all others would wait for ever.

Shapes: B batch, H heads, n my tokens, Dk and Dv widths of keys and values, C chunk, P ranks.

    o = linear_attention(phi(q), phi(k), v, causal=True, decay=log_gamma, transport=Transport())
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from longtake.kernels.linear.fused import CHUNKS, DTYPES, linear_attention_triton
from longtake.kernels.precision import accumulator_dtype, exact
from longtake.kernels.ranks.agreement import agree
from longtake.kernels.ranks.mesh import alone
from longtake.kernels.ranks.summaries import gather_summaries
from longtake.kernels.ranks.transport import Transport
from torch import Tensor


@exact
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decay: Tensor | None = None,
    causal: bool = False,
    normalize: bool = False,
    transport: Transport | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Linear attention of my tokens over the tokens of all ranks (up to themselves when causal). Returns (B, H, n, Dv).

    q, k: (B, H, n, Dk), through the feature map; v: (B, H, n, Dv); one dtype. n may differ between ranks and may be 0.
    decay: natural LOG of the decay, <= 0, causal only: (H,), (B, H, n), or (B, H, n, Dk). Gradients reach it.
    normalize: divide by sum_s phi(q)_t . phi(k)_s (decayed alike); 0 where that sum is 0.
    chunk: tokens a chunk; by default 64, or 16 for a decay of width Dk, which holds (C, C, Dk) numbers a chunk.
    transport: messages between the ranks that hold the sequence; None is this process alone.
    Sent by each rank: B H Dk (Dv, + 1 if normalised) numbers times (P - 1) each way, forward with decay also B H times
    the decay's width; of float32, or float64 for float64. Sums are taken in that dtype. Every rank must run the
    backward.
    On a CUDA device with triton one rank's call goes to one fused kernel (`linear_attention_triton`), but for what
    `not_fused` says.
    Raises ValueError for shapes that do not fit and for a decay without causal, and PlanMismatch on every rank when
    ranks come with different ones (compared once for each transport).
    """
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or q.dim() != 4:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, given {q.dtype}, {k.dtype}, {v.dtype}")
    if decay is not None and not causal:
        raise ValueError("a decay needs an order of time: set causal=True")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, given {chunk}")
    transport = alone() if transport is None else transport
    if not_fused(q, v, decay, normalize, transport, chunk) is None:
        return linear_attention_triton(q, k, v, decay=decay, causal=causal, chunk=chunk or 64)[0]
    told = {
        "batch": q.shape[0], "heads": q.shape[1], "key width": q.shape[3], "value width": v.shape[3],
        "causal": int(causal), "normalize": int(normalize), "width of the decay": 0 if decay is None else decay.dim(),
    }  # fmt: skip
    agree(transport, {**told, "dtype": q.dtype.itemsize}, q.device)
    accumulate = accumulator_dtype(q.dtype)
    log_decay = None if decay is None else _spread(decay, q).to(accumulate)
    wide = log_decay is not None and log_decay.shape[-1] > 1
    values = v.to(accumulate)
    if normalize:  # a column of ones collects the sums of the weights
        values = torch.cat([values, values.new_ones(*values.shape[:3], 1)], dim=-1)
    size = chunk or (16 if wide else 64)
    out: Tensor = _Lasp2.apply(q.to(accumulate), k.to(accumulate), values, log_decay, causal, transport, size)
    if normalize:
        weight = out[..., -1:]
        blind = weight == 0
        out = (out[..., :-1] / weight.masked_fill(blind, 1)).masked_fill(blind, 0)
    return out.to(q.dtype)


def not_fused(
    q: Tensor, v: Tensor, decay: Tensor | None, normalize: bool, transport: Transport, chunk: int | None
) -> str | None:
    """Why a call of `linear_attention` does not go to the fused kernel; None when it does.

    A decay that wants a gradient stays with torch: the kernel sums gradients of both signs over all tokens in float32,
    which for one number a head leaves 1.8e-5 where 1e-5 is promised.
    """
    if not q.is_cuda or find_spec("triton") is None:
        return "not on a CUDA device with triton"
    if transport.world > 1:
        return "states of several ranks travel"
    if q.dtype not in DTYPES:
        return f"dtype {q.dtype}"
    if normalize:
        return "normalised by a column of ones in float32"
    if decay is not None and decay.dim() == 4:
        return "a decay of width Dk"
    if decay is not None and decay.requires_grad and torch.is_grad_enabled():
        return "a decay that wants a gradient"
    if chunk is not None and chunk not in CHUNKS:
        return f"chunks of {chunk} tokens"
    return None


def _spread(decay: Tensor, q: Tensor) -> Tensor:
    """The decay as (B, H, n, 1 or Dk)."""
    batch, heads, tokens, width = q.shape
    if decay.shape == (heads,):
        return decay.view(1, heads, 1, 1).expand(batch, heads, tokens, 1)
    if decay.shape == (batch, heads, tokens):
        return decay[..., None]
    if decay.shape == (batch, heads, tokens, width):
        return decay
    raise ValueError(
        f"decay must be {(heads,)}, {(batch, heads, tokens)} or {(batch, heads, tokens, width)}, given "
        f"{tuple(decay.shape)}"
    )


def linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None = None, causal: bool = False, normalize: bool = False
) -> Tensor:
    """The definition, token by token, in float64; arguments as for `linear_attention`, all tokens in one place."""
    q, k, v = q.double(), k.double(), v.double()
    gates = torch.ones_like(q) if decay is None else _spread(decay.double(), q).exp().expand_as(q)
    state = torch.zeros_like(k[:, :, :1].mT @ v[:, :, :1])
    weight = torch.zeros_like(q[:, :, 0])
    outputs = []
    if not causal:
        state, weight = k.mT @ v, k.sum(2)
    for t in range(q.shape[2]):
        if causal:
            state = gates[:, :, t, :, None] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
            weight = gates[:, :, t] * weight + k[:, :, t]
        row = (q[:, :, t, None, :] @ state)[:, :, 0]
        outputs.append(row / (q[:, :, t] * weight).sum(-1, keepdim=True) if normalize else row)
    return torch.stack(outputs, 2)


@dataclass(frozen=True)
class _Chunks:
    """Tokens (B, H, m, C, .), padded with zeros to whole chunks, and the decays between them.

    pair: exp(b_t - b_s) for s <= t, else 0: (B, H, m, C, C, 1 or Dk), or (C, C, 1) without decay.
    inside: exp(b_t), from the chunk's entry to t; rest: exp(b_C - b_s), from s to the chunk's end; whole: exp(b_C).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pair: Tensor
    inside: Tensor
    rest: Tensor
    whole: Tensor

    @classmethod
    def cut(cls, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, size: int) -> "_Chunks":
        tokens = q.shape[2]
        count = -(-tokens // size)

        def chunked(x: Tensor) -> Tensor:
            padding = x.new_zeros(*x.shape[:2], count * size - tokens, x.shape[3])
            return torch.cat([x, padding], dim=2).unflatten(2, (count, size))

        lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()[..., None]
        if log_decay is None:
            one = q.new_ones(1, 1, 1, 1, 1)
            pair, inside, rest, whole = lower.to(q.dtype), one, one, one
        else:
            sums = chunked(log_decay).cumsum(3)
            gaps = sums[..., :, None, :] - sums[..., None, :, :]
            pair = gaps.masked_fill(~lower, -torch.inf).exp()
            inside, rest, whole = sums.exp(), (sums[..., -1:, :] - sums).exp(), sums[..., -1:, :].exp()
        return cls(chunked(q), chunked(k), chunked(v), pair, inside, rest, whole)

    def join(self, x: Tensor, tokens: int) -> Tensor:
        return x.flatten(2, 3)[:, :, :tokens]

    def scores(self) -> Tensor:
        """A_ts = sum_d q_td k_sd exp(b_td - b_sd): (B, H, m, C, C)."""
        if self.pair.shape[-1] == 1:
            return (self.q @ self.k.mT) * self.pair[..., 0]
        return torch.einsum("...td,...sd,...tsd->...ts", self.q, self.k, self.pair)

    def entries(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """States that enter each chunk, given what enters the first (B, H, Dk, Dv); and what leaves the last."""
        added = (self.k * self.rest).mT @ self.v
        return _run(first, added, self.whole)

    def exits(self, last: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the states that leave each chunk, given that of the last's; and that of the state that enters
        the first."""
        added = ((self.q * self.inside).mT @ grad).flip(2)
        leaving, first = _run(last, added, self.whole.flip(2))
        return leaving.flip(2), first


def _run(state: Tensor, added: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """state <- whole_c state + added_c over the chunks (dim 2): the states before each, and the last."""
    factors = whole.mT.expand(*added.shape[:3], -1, 1)  # (B, H, m, 1 or Dk, 1)
    states = []
    for index in range(added.shape[2]):
        states.append(state)
        state = factors[:, :, index] * state + added[:, :, index]
    return (torch.stack(states, 2) if states else added), state


class _Lasp2(torch.autograd.Function):
    """State S of each rank (Dk x Dv), all-gathered; gradients of states all-gathered on the way back."""

    @staticmethod
    @exact
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        causal: bool,
        transport: Transport,
        size: int,
    ) -> Tensor:
        ctx.causal, ctx.transport, ctx.size = causal, transport, size
        rank = transport.rank
        if not causal:
            state = sum((part[0] for part in gather_summaries(transport, (k.mT @ v,))), torch.zeros_like(k.mT @ v))
            ctx.save_for_backward(q, k, v, state)
            return q @ state
        chunks = _Chunks.cut(q, k, v, log_decay, size)
        zero = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
        factors: list[Tensor] = []
        entering = zero
        if transport.world > 1:
            _, mine = chunks.entries(zero)
            if log_decay is None:
                everyone = gather_summaries(transport, (mine,))
                factors = [q.new_ones(1, 1, 1)] * transport.world
            else:
                everyone = gather_summaries(transport, (mine, log_decay.sum(2).exp()))
                factors = [part[1] for part in everyone]
            for part, factor in zip(everyone[:rank], factors, strict=False):
                entering = factor[..., None] * entering + part[0]
        states, _ = chunks.entries(entering)
        out = chunks.scores() @ chunks.v + (chunks.q * chunks.inside) @ states
        ctx.save_for_backward(q, k, v, log_decay, entering, *factors)
        return chunks.join(out, q.shape[2])

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        transport, rank = ctx.transport, ctx.transport.rank
        if not ctx.causal:
            q, k, v, state = ctx.saved_tensors
            mine = q.mT @ grads[0]
            grad_state = sum((part[0] for part in gather_summaries(transport, (mine,))), torch.zeros_like(mine))
            return grads[0] @ state.mT, v @ grad_state.mT, k @ grad_state, None, None, None, None
        q, k, v, log_decay, entering, *factors = ctx.saved_tensors
        tokens = q.shape[2]
        chunks = _Chunks.cut(q, k, v, log_decay, ctx.size)
        padding = grads[0].new_zeros(*v.shape[:2], chunks.v.shape[2] * ctx.size - tokens, v.shape[3])
        grad = torch.cat([grads[0], padding], dim=2).view(chunks.v.shape)
        arriving = torch.zeros_like(entering)
        if transport.world > 1:
            _, mine = chunks.exits(arriving, grad)
            everyone = gather_summaries(transport, (mine,))
            for other in reversed(range(rank + 1, transport.world)):
                arriving = factors[other][..., None] * arriving + everyone[other][0]
        states, last = chunks.entries(entering)
        leaving, _ = chunks.exits(arriving, grad)
        scores = grad @ chunks.v.mT
        if chunks.pair.shape[-1] == 1:
            scores = scores * chunks.pair[..., 0]
            grad_q, grad_k = scores @ chunks.k, scores.mT @ chunks.q
        else:
            grad_q = torch.einsum("...ts,...sd,...tsd->...td", scores, chunks.k, chunks.pair)
            grad_k = torch.einsum("...ts,...td,...tsd->...sd", scores, chunks.q, chunks.pair)
        grad_q = grad_q + chunks.inside * (grad @ states.mT)
        grad_k = grad_k + chunks.rest * (chunks.v @ leaving.mT)
        grad_v = chunks.scores().mT @ grad + (chunks.k * chunks.rest) @ leaving
        grad_q, grad_k, grad_v = (chunks.join(x, tokens) for x in (grad_q, grad_k, grad_v))
        grad_decay = None
        if log_decay is not None and ctx.needs_input_grad[3]:
            # The running sum b_t multiplies q_t by e^b and k_t by e^-b, so db = q dq - k dk, and g_t acts on every
            # later b: a sum from behind, which begins with what later ranks owe to the state that I hand on.
            own = (q * grad_q - k * grad_k).flip(2).cumsum(2).flip(2) + (last * arriving).sum(-1)[:, :, None]
            grad_decay = own.sum(-1, keepdim=True) if log_decay.shape[-1] == 1 else own
        return grad_q, grad_k, grad_v, grad_decay, None, None, None
