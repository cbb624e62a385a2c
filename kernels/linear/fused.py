"""Linear attention of one rank's tokens on a GPU: chunks in Triton kernels, the state that enters and leaves in view.

The chunk form of gated linear attention (arXiv 2312.06635, section 4) for one decay a token and head: with b the
running sum of the log decay inside a chunk and S the state that enters it,

    O = (Q K^T * exp(b_t - b_s), s <= t) V + exp(b) Q S,   S <- exp(b_C) S + (exp(b_C - b) K)^T V

`linear_attention` (lasp2.py) takes this path on a CUDA device; `FusedChunks` has the parts that several ranks would
need. triton is imported when a kernel is needed, not before; the kernels are in fused_kernel.py.

Shapes: B batch, H heads, n tokens, Dk and Dv widths of keys and values, m chunks of C tokens.

    out, leaving = linear_attention_triton(phi(q), phi(k), v, causal=True, decay=log_gamma, entering=state)
"""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from longtake.kernels.precision import exact
from torch import Tensor

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
# tokens: tl.dot takes no less than 16; over 128 tokens the rounding of the decay's float32 sum costs O 4e-6, above 2e-6
CHUNKS = (16, 32, 64)


@exact
def linear_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decay: Tensor | None = None,
    causal: bool = False,
    entering: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """(O, leaving): linear attention of one rank's tokens, and the state after them.

    q, k: (B, H, n, Dk), through the feature map; v: (B, H, n, Dv); one dtype of float32, float16, bfloat16; n may be 0.
    decay: natural LOG of the decay, <= 0, causal only: (H,) or (B, H, n), taken in float32.
    entering: (B, H, Dk, Dv), the state before the first token, taken in float32; zero by default. Causal: what the
    tokens before mine left. Full: the sum of k v^T over all other tokens.
    chunk: tokens a chunk, one of CHUNKS.
    O: (B, H, n, Dv) in q's dtype. leaving: (B, H, Dk, Dv) float32, decayed to my last token. Sums are float32.
    Gradients reach q, k, v, decay and entering, from O and from leaving.
    Raises ValueError for shapes, dtypes, devices and chunks that do not fit, and for a decay without causal.
    """
    if q.dim() != 4 or q.shape != k.shape or q.shape[:3] != v.shape[:3] or v.dim() != 4:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        given = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise ValueError(f"q, k and v need one dtype of float32, float16, bfloat16; given {given}")
    if decay is not None and not causal:
        raise ValueError("a decay needs an order of time: set causal=True")
    if chunk not in CHUNKS:
        raise ValueError(f"chunk must be one of {CHUNKS} tokens, given {chunk}")
    batch, heads, tokens, width = q.shape
    shape = (batch, heads, width, v.shape[3])
    if entering is not None and tuple(entering.shape) != shape:
        raise ValueError(f"entering must be {shape} (B, H, Dk, Dv), given {tuple(entering.shape)}")
    if len({x.device for x in (q, k, v, decay, entering) if x is not None}) > 1:
        raise ValueError("q, k, v, decay and entering must be on one device")
    log_decay = None
    if decay is not None:
        if decay.shape == (heads,):
            log_decay = decay.float().view(1, heads, 1, 1).expand(batch, heads, tokens, 1)
        elif decay.shape == (batch, heads, tokens):
            log_decay = decay.float()[..., None]
        else:
            raise ValueError(f"decay must be {(heads,)} or {(batch, heads, tokens)}, given {tuple(decay.shape)}")
    first = q.new_zeros(shape, dtype=torch.float32) if entering is None else entering.float()
    if 0 in (*q.shape, *v.shape):
        return q.new_zeros(v.shape), first
    out, leaving = _LinearTriton.apply(q, k, v, log_decay, first, causal, chunk)
    return out.to(q.dtype), leaving


@dataclass(frozen=True)
class FusedChunks:
    """One rank's tokens for the kernels, cut into chunks.

    q, k: (B H, n, Dk); v: (B H, n, Dv); sums: b (B H, m C) float32, or None without decay; lead: (B, H).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    sums: Tensor | None
    lead: tuple[int, int]
    size: int
    causal: bool = True

    @classmethod
    def cut(
        cls, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, size: int, causal: bool = True
    ) -> "FusedChunks":
        """q, k: (B, H, n, Dk); v: (B, H, n, Dv); log_decay: (B, H, n, 1) or None; size: one of CHUNKS; none empty."""
        sums = None
        if log_decay is not None:
            log_decay = log_decay.flatten(2).flatten(0, 1).float()
            padded = torch.nn.functional.pad(log_decay, (0, -log_decay.shape[1] % size))
            sums = padded.unflatten(1, (-1, size)).cumsum(2).flatten(1)
        lead = (q.shape[0], q.shape[1])
        q, k, v = (x.contiguous().flatten(0, 1) for x in (q, k, v))
        return cls(q, k, v, sums, lead, size, causal)

    def entries(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """States that enter each chunk (B H, m or 1, Dk, Dv), given what enters the first (B, H, Dk, Dv); and what
        leaves the last (B, H, Dk, Dv)."""
        first = first.contiguous().flatten(0, 1)
        states, last = _kernel().carry(self.k, self.v, self.sums, first, self.causal, self.size)
        return states, last.unflatten(0, self.lead)

    def exits(self, last: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the states that leave each chunk, given that of the last's (B, H, Dk, Dv) and that of the output
        (B, H, n, Dv); and that of the state that enters the first."""
        last, grad = last.contiguous().flatten(0, 1), grad.contiguous().flatten(0, 1)
        leaving, first = _kernel().carry(self.q, grad, self.sums, last, self.causal, self.size, reverse=True)
        return leaving, first.unflatten(0, self.lead)

    def output(self, states: Tensor) -> Tensor:
        """O (B, H, n, Dv) float32, from `entries`."""
        out: Tensor = _kernel().outputs(self.q, self.k, self.v, self.sums, states, self.causal, self.size)
        return out.unflatten(0, self.lead)

    def gradients(self, grad: Tensor, states: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(dQ, dK, dV) float32 in the shapes of q, k, v, from the output's gradient, `entries` and `exits`."""
        d_q, d_k, d_v = _kernel().gradients(
            grad.contiguous().flatten(0, 1), self.q, self.k, self.v, self.sums, states, leaving, self.causal, self.size
        )
        return d_q.unflatten(0, self.lead), d_k.unflatten(0, self.lead), d_v.unflatten(0, self.lead)


def _kernel() -> Any:
    return importlib.import_module("longtake.kernels.linear.fused_kernel")


class _LinearTriton(torch.autograd.Function):
    @staticmethod
    @exact
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        entering: Tensor,
        causal: bool,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        chunks = FusedChunks.cut(q, k, v, log_decay, size, causal)
        states, leaving = chunks.entries(entering)
        ctx.save_for_backward(q, k, v, log_decay, entering, leaving)
        ctx.settings = size, causal
        return chunks.output(states), leaving

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, entering, leaving = ctx.saved_tensors
        grad, arriving = grads
        chunks = FusedChunks.cut(q, k, v, log_decay, *ctx.settings)
        states, _ = chunks.entries(entering)
        exits, first = chunks.exits(arriving, grad)
        grad_q, grad_k, grad_v = chunks.gradients(grad, states, exits)
        grad_decay = None
        if log_decay is not None and ctx.needs_input_grad[3]:
            grad_decay = _decay_gradient((q * grad_q - k * grad_k).sum(-1), states, leaving, exits, ctx.settings[0])
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_decay, first, None, None


def _decay_gradient(steps: Tensor, states: Tensor, leaving: Tensor, exits: Tensor, size: int) -> Tensor:
    """(B, H, n, 1): the gradient of the log decay of each token.

    steps: q . dq - k . dk of each token (B, H, n). Summed from behind to the end they give the gradient, but over a
    long sequence they nearly cancel. Beyond the end of a chunk they add up to <S, dS> of the state that leaves it,
    which is at hand; so they are summed inside each chunk only.
    states, exits: (B H, m, Dk, Dv); leaving: (B, H, Dk, Dv).
    """
    left = torch.cat([states[:, 1:], leaving.flatten(0, 1)[:, None]], dim=1)
    beyond = (left * exits).sum((-2, -1)).unflatten(0, steps.shape[:2])  # (B, H, m)
    tokens = steps.shape[2]
    inside = torch.nn.functional.pad(steps, (0, -tokens % size)).unflatten(2, (-1, size))
    inside = inside.flip(3).cumsum(3).flip(3) + beyond[..., None]
    return inside.flatten(2)[:, :, :tokens, None]
