"""Attention over a part of the keys, and the merge of parts: the one primitive under every distributed strategy.

For queries i and a key set S: `s_ij = scale q_i . k_j + bias_ij`, `L_i(S) = log sum_{j in S} exp s_ij` (natural
logarithm) and
`O_i(S) = sum_{j in S} exp(s_ij - L_i) v_j`. Parts over disjoint key sets merge exactly; the merge is associative and
commutative, and
(O = 0, L = -inf) is its identity, which is also what a row that sees no key gets. (FlashAttention, arXiv 2205.14135,
section 3.1.)

Two implementations, chosen by `partial_backend` from device and shapes and never by catching a failure:
    aten_cpu   CPU tensors with equal key and value head size: torch's fused CPU kernel, which returns L
    math       everything else: readable torch operations, which hold the logits of this part in memory

    O, L = merge(*partial_attention(q, k1, v1), *partial_attention(q, k2, v2))
"""

import math
from enum import StrEnum

import torch
from torch import Tensor


class PartialBackend(StrEnum):
    """Who computes a part."""

    ATEN_CPU = "aten_cpu"
    MATH = "math"


def partial_backend(q: Tensor, k: Tensor, v: Tensor) -> PartialBackend:
    """The backend that `partial_attention` uses for these tensors."""
    return PartialBackend.ATEN_CPU if q.device.type == "cpu" and q.shape[-1] == v.shape[-1] else PartialBackend.MATH


def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    backend: PartialBackend | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of q over the keys k, with its log-sum-exp.

    q: (B, H, Lq, D); k: (B, Hk, Lk, D); v: (B, Hk, Lk, Dv); H a multiple of Hk; Lq and Lk may be 0.
    bias: added to the scaled logits, broadcastable to (B, H, Lq, Lk), -inf hides a pair; or bool, True = visible.
    scale: 1/sqrt(D) by default. backend: None means `partial_backend`; ValueError when the one given cannot serve.
    Returns O (B, H, Lq, Dv) in q's dtype and L (B, H, Lq) float32, float64 for float64. Neither carries a gradient:
    NotImplementedError when one would be needed.
    """
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k and v must be 4-D; given {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
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
    chosen = fits if backend is None else backend
    accumulate = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, rows, width = q.shape
    if rows == 0 or k.shape[2] == 0:  # the aten kernel would kill the process (SIGFPE)
        nothing = q.new_full((batch, heads, rows), -math.inf, dtype=accumulate)
        return q.new_zeros(batch, heads, rows, v.shape[3]), nothing
    if bias is not None and bias.dtype == torch.bool:  # the aten kernel takes additive biases only
        bias = torch.zeros(bias.shape, dtype=q.dtype, device=q.device).masked_fill_(~bias, -math.inf)
    scale = 1 / math.sqrt(width) if scale is None else scale
    if chosen is PartialBackend.MATH:
        return _math(q, k, v, bias, scale, accumulate)
    if bias is not None:
        if bias.dtype != q.dtype:
            bias = bias.to(accumulate)
        bias = bias[(None,) * (4 - bias.dim())]
        # The kernel wants the last two dims in full, except (.., 1, Lk) for one query row.
        bias = bias.expand(*bias.shape[:2], rows, k.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
    if bias is not None:  # the kernel reports L = 0 for a row without a visible key
        blind = (bias == -math.inf).all(-1)
        lse = lse.masked_fill(blind, -math.inf)
        out = out.masked_fill(blind[..., None], 0)
    return out, lse


def _math(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, accumulate: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The definition, in float32 (float64 for float64)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1).to(accumulate), v.repeat_interleave(repeat, dim=1).to(accumulate)
    logits = (q.to(accumulate) * scale) @ k.mT
    if bias is not None:
        logits = logits + bias
    lse = logits.logsumexp(-1)
    safe = lse.masked_fill(lse == -math.inf, 0)
    return ((logits - safe[..., None]).exp() @ v).to(q.dtype), lse


def merge(o1: Tensor, l1: Tensor, o2: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts over disjoint key sets as one. O (B, H, Lq, D) in any dtype, L (B, H, Lq); both returned in L's dtype
    (float32 or float64).

    The maximum is taken out before the exponentials, and replaced by 0 where both L are -inf, so no NaN arises.
    """
    top = torch.maximum(l1, l2)
    top = top.masked_fill(top == -math.inf, 0)
    w1, w2 = (l1 - top).exp(), (l2 - top).exp()
    weight = w1 + w2
    safe = weight.masked_fill(weight == 0, 1)
    out = (w1 / safe)[..., None] * o1.to(l1.dtype) + (w2 / safe)[..., None] * o2.to(l1.dtype)
    return out, top + weight.log()
