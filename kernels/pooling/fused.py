"""Prompt-guided pooling on a GPU: softmax of a window and weighted sum in one pass over the tokens.

The kernel takes the scores of the second softmax (g for "ppllava", the guide's logits for "local"), so weights exist
only in registers. Tokens are channels last. triton is imported when a function here is called, not before; the kernel
itself is in fused_kernel.py. `prompt_guided_pool3d` (guided.py) takes this path on a CUDA device.

    pooled = pool_triton(x, scores, resolve_windows((32, 24, 24), (2, 3, 3)), temperature=0.01)
"""

import importlib
import math
from typing import Any

import torch
from longtake.kernels.pooling.windows import Windows, window_sum_backward
from longtake.kernels.precision import exact
from torch import Tensor

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
LARGEST_WINDOW = 64  # tokens: a program holds a window times 256 channels in registers, 128 numbers a thread


@exact
def pool_triton(x: Tensor, scores: Tensor, windows: Windows, temperature: float) -> Tensor:
    """Weighted mean of each window, (B, O_t, O_h, O_w, C) in x's dtype; gradients reach x and scores.

    x: (B, T, H, W, C), float32, float16 or bfloat16. scores: (B, T, H, W), what the softmax inside a window is taken
    of, after division by temperature: -inf for tokens that do not exist, which then may hold anything; a window
    without any gives 0. The sum is float32.
    Raises ValueError for shapes that do not fit.
    """
    if x.dim() != 5 or x.shape[:4] != scores.shape or tuple(scores.shape[1:]) != windows.input:
        raise ValueError(
            f"x {tuple(x.shape)} must be (B, T, H, W, C), scores {tuple(scores.shape)} (B, T, H, W), windows for "
            f"{windows.input}"
        )
    if x.dtype not in DTYPES or not temperature > 0:
        raise ValueError(f"x must be float32, float16 or bfloat16 and temperature > 0; given {x.dtype}, {temperature}")
    out: Tensor = _PoolTriton.apply(x, scores, windows, temperature)
    return out


class _PoolTriton(torch.autograd.Function):
    """Backward: with p the weights and d_p = x . dO, the scores get p (d_p - sum p d_p) / temperature."""

    @staticmethod
    @exact
    def forward(ctx: Any, x: Tensor, scores: Tensor, windows: Windows, temperature: float) -> Tensor:
        kernel = importlib.import_module("longtake.kernels.pooling.fused_kernel")
        out, share = kernel.forward(x.contiguous(), scores.float().contiguous(), windows, 1 / temperature)
        ctx.save_for_backward(x, share, scores)
        ctx.windows, ctx.temperature = windows, temperature
        result: Tensor = out
        return result

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, share, scores = ctx.saved_tensors
        exists = scores != -math.inf
        grad_x, grad_share = window_sum_backward(
            grads[0], x, share, ctx.windows, exists, want_x=ctx.needs_input_grad[0], want_share=ctx.needs_input_grad[1]
        )
        grad_scores = None
        if grad_share is not None:
            inner = (share * grad_share).flatten(4).sum(-1)[..., None, None, None]
            grad_scores = ctx.windows.scatter_add(share * (grad_share - inner) / ctx.temperature).to(scores.dtype)
        return grad_x, grad_scores, None, None
