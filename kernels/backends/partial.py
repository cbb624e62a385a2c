"""Attention over a part of the keys, and the merge of parts: the one primitive under every distributed strategy.

For queries i and a key set S:

    s_ij = scale q_i . k_j + bias_ij,   L_i(S) = log sum_{j in S} exp s_ij,   O_i(S) = sum_{j in S} exp(s_ij - L_i) v_j

Parts over disjoint key sets merge exactly; the merge is associative and commutative, and (O = 0, L = -inf) is its
identity, which is also what a row that sees no key gets. (FlashAttention, arXiv 2205.14135, section 3.1.)

Two implementations, chosen by `partial_backend` from device and shapes and never by catching a failure:
    aten_cpu   CPU tensors with equal key and value head size: torch's fused CPU kernel, which returns L
    math       everything else: readable torch operations, which hold the logits of this part in memory

    O, L = merge(*partial_attention(q, k1, v1), *partial_attention(q, k2, v2))

`partial_backward` is the gradient of one part, from the merged O and L of all parts: P = exp(s - L) is then each key's
share of the whole, and gradients of the parts add up exactly. No gradient ever flows through a merge.
"""

import math
from enum import StrEnum
from importlib.util import find_spec

import torch
from longtake.kernels.backends.triton_merge import merge_triton
from longtake.kernels.heads import gather_heads, spread_heads
from longtake.kernels.precision import accumulator_dtype, exact
from torch import Tensor


class PartialBackend(StrEnum):
    """Who computes a part."""

    ATEN_CPU = "aten_cpu"
    MATH = "math"


def partial_backend(q: Tensor, k: Tensor, v: Tensor) -> PartialBackend:
    """The backend that `partial_attention` uses for these tensors."""
    return PartialBackend.ATEN_CPU if q.device.type == "cpu" and q.shape[-1] == v.shape[-1] else PartialBackend.MATH


@exact
def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    blind: bool = True,
    scale: float | None = None,
    softcap: float = 0.0,
    backend: PartialBackend | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of q over the keys k, with its log-sum-exp.

    q: (B, H, Lq, D); k: (B, Hk, Lk, D); v: (B, Hk, Lk, Dv); H a multiple of Hk; Lq and Lk may be 0.
    bias: added to the scaled logits, broadcastable to (B, H, Lq, Lk), -inf hides a pair; or bool, True = visible.
    causal: query i sees keys 0..i; needs Lq = Lk and no bias. blind=False promises that the bias leaves every row a
    key, which saves a look at it.
    scale: 1/sqrt(D) by default. softcap: c > 0 makes a scaled logit s into c tanh(s / c), before the bias; math only.
    backend: None means `partial_backend`; ValueError when the one given cannot serve.
    Returns O (B, H, Lq, Dv) in q's dtype and L (B, H, Lq) float32, float64 for float64. Neither carries a gradient:
    NotImplementedError when one would be needed.
    """
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k and v must be 4-D; given {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if causal and (bias is not None or q.shape[2] != k.shape[2]):
        raise ValueError(f"causal needs as many queries as keys and no bias; given {q.shape[2]} and {k.shape[2]}")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        # The CPU kernel's L never requires grad: autograd through a merge would lose its part silently.
        raise NotImplementedError(
            "partial_attention has no backward: call it under torch.no_grad() or inference_mode()"
        )
    fits = partial_backend(q, k, v)
    if backend is PartialBackend.ATEN_CPU and fits is not PartialBackend.ATEN_CPU:
        raise ValueError(
            f"backend aten_cpu needs CPU tensors with D = Dv; given {q.device}, {q.shape[-1]}, {v.shape[-1]}"
        )
    chosen = _serves_cap(fits if backend is None else backend, softcap, backend is not None)
    accumulate = accumulator_dtype(q.dtype)
    batch, heads, rows, width = q.shape
    if rows == 0 or k.shape[2] == 0:  # the aten kernel would kill the process (SIGFPE)
        nothing = q.new_full((batch, heads, rows), -math.inf, dtype=accumulate)
        return q.new_zeros(batch, heads, rows, v.shape[3]), nothing
    scale = 1 / math.sqrt(width) if scale is None else scale
    if bias is not None and bias.dtype == torch.bool:  # the aten kernel takes additive biases only
        bias = torch.zeros(bias.shape, dtype=q.dtype, device=q.device).masked_fill_(~bias, -math.inf)
    if chosen is PartialBackend.MATH:
        return _math(q, k, v, bias, causal, scale, softcap, accumulate)
    bias = _fit_bias(bias, q, k)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=bias, scale=scale
    )
    if bias is not None and blind:  # the kernel reports L = 0 for a row without a visible key
        hidden = (bias == -math.inf).all(-1)
        lse = lse.masked_fill(hidden, -math.inf)
        out = out.masked_fill(hidden[..., None], 0)
    return out, lse


@exact
def partial_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    backend: PartialBackend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one part: (dQ, dK, dV), shaped like q, k, v; their sums over all parts are the gradients of all.

    d_out, out: (B, H, Lq, Dv), the gradient of and the output over *all* parts. lse: (B, H, Lq), L over all parts.
    The rest as for `partial_attention`. aten_cpu answers in q's dtype, math in float32 (float64 for float64).
    """
    accumulate = accumulator_dtype(q.dtype)
    if q.shape[2] == 0 or k.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    lse = lse.masked_fill(lse == -math.inf, 0)  # such a row is hidden here too: exp(-inf - 0) = 0, not NaN
    chosen = _serves_cap(partial_backend(q, k, v) if backend is None else backend, softcap, backend is not None)
    if chosen is PartialBackend.MATH:
        return _math_backward(d_out, q, k, v, out, lse, bias, causal, scale, softcap, accumulate)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_out.to(q.dtype), q, k, v, out.to(q.dtype), lse.to(accumulate), 0.0, causal,
        attn_mask=_fit_bias(bias, q, k), scale=scale,
    )  # fmt: skip


def _serves_cap(backend: PartialBackend, softcap: float, forced: bool) -> PartialBackend:
    """The backend, or the one that knows soft caps in its place."""
    if softcap < 0:
        raise ValueError(f"softcap must be 0 (none) or greater, given {softcap}")
    if softcap and forced and backend is not PartialBackend.MATH:
        raise ValueError(f"backend {backend} knows no softcap")
    return PartialBackend.MATH if softcap else backend


def _fit_bias(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """A bias as the aten kernel takes it: 4-D, the last two dims in full, q's dtype or its accumulator's."""
    if bias is None:
        return None
    if bias.dtype != q.dtype:
        bias = bias.to(accumulator_dtype(q.dtype))
    bias = bias[(None,) * (4 - bias.dim())]
    return bias.expand(*bias.shape[:2], q.shape[2], k.shape[2])


def _logits(
    q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float, softcap: float, accumulate: torch.dtype
) -> Tensor:
    logits = (q.to(accumulate) * scale) @ k.mT
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    if bias is not None:
        logits = logits + bias
    if causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, -math.inf)
    return logits


def _math(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
    accumulate: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The definition, in float32 (float64 for float64)."""
    k, v = (spread_heads(x, q.shape[1]).to(accumulate) for x in (k, v))
    logits = _logits(q, k, bias, causal, scale, softcap, accumulate)
    lse = logits.logsumexp(-1)
    safe = lse.masked_fill(lse == -math.inf, 0)
    return ((logits - safe[..., None]).exp() @ v).to(q.dtype), lse


def _math_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
    accumulate: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of the backward, as they stand in FlashAttention-2 (arXiv 2307.08691, section 3.1); of a soft cap
    the slope is 1 - tanh^2."""
    kv_heads = k.shape[1]
    k, v = (spread_heads(x, q.shape[1]).to(accumulate) for x in (k, v))
    q, d_out, out = q.to(accumulate), d_out.to(accumulate), out.to(accumulate)
    p = (_logits(q, k, bias, causal, scale, softcap, accumulate) - lse[..., None]).exp()
    delta = (d_out * out).sum(-1, keepdim=True)
    d_scores = p * (d_out @ v.mT - delta)
    if softcap:
        d_scores = d_scores * (1 - (scale / softcap * q @ k.mT).tanh() ** 2)
    d_q, d_k, d_v = scale * d_scores @ k, scale * d_scores.mT @ q, p.mT @ d_out
    return d_q, gather_heads(d_k, kv_heads), gather_heads(d_v, kv_heads)


@exact
def merge(o1: Tensor, l1: Tensor, o2: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts over disjoint key sets as one. O (B, H, Lq, D) in any dtype, L (B, H, Lq); both returned in L's dtype
    (float32 or float64).

    Where both L are -inf no NaN arises: O1 stays, which is 0 there. On a CUDA device where triton is installed, and no
    gradient is asked for, one kernel reads and writes O and L once (`merge_triton`); torch takes four passes.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (o1, l1, o2, l2))
    if o1.is_cuda and not wanted and l1.dtype == l2.dtype and o1.shape == o2.shape and find_spec("triton") is not None:
        return merge_triton(o1, l1, o2, l2)
    lse, share = merge_shares(l1, l2)
    return torch.lerp(o1.to(l1.dtype), o2.to(l1.dtype), share[..., None]), lse


def merge_shares(l1: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """(L, share) of a merge: the outputs become O1 + share (O2 - O1); share is 0 where both L are -inf."""
    lse = torch.logaddexp(l1, l2)
    return lse, (l2 - lse).exp_().masked_fill_(lse == -math.inf, 0)
