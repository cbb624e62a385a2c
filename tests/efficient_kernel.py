"""torch's efficient attention as its CUDA kernel reads memory, on the CPU: what it takes from strides and what it
takes for granted.

Read off `kernel_backward.h` of torch 2.12 (ATen/native/transformers/cuda/mem_eff_attention): every tensor comes with
its strides, but for the output in half precision, whose rows lie `heads * value size` apart whatever the tensor says
(`o_strideM`), as they do in what the forward returns. L has rows in multiples of 32.
"""

import math
from typing import Any

import pytest
import torch
from longtake.kernels.backends.partial import PartialBackend, partial_attention, partial_backward
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    want_lse: bool,
    dropout: float,
    causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    check_bias(bias, q, k)
    out, lse = partial_attention(
        q, k, v, bias=bias, causal=causal, scale=scale, blind=False, backend=PartialBackend.MATH
    )
    laid = torch.empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3], dtype=q.dtype).transpose(1, 2).copy_(out)
    rows = -(-q.shape[2] // 32) * 32
    return laid, torch.nn.functional.pad(lse, (0, rows - q.shape[2]), value=math.inf), None, None


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    seed: Tensor,
    offset: Tensor,
    dropout: float,
    wanted: list[bool],
    causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    check_bias(bias, q, k)
    assert lse.shape[2] % 32 == 0 and lse.stride(2) == 1 and lse.dtype == torch.float32
    if q.dtype in HALF:
        out = as_the_kernel_reads(out)
    grads = partial_backward(
        d_out, q, k, v, out, lse[..., : q.shape[2]], bias=bias, causal=causal, scale=scale, backend=PartialBackend.MATH
    )
    return *(grad.to(q.dtype) for grad in grads), None


def as_the_kernel_reads(out: Tensor) -> Tensor:
    """(B, H, L, Dv) at the addresses that the kernel computes; NaN where they lie outside of the tensor's memory."""
    heads, width = out.shape[1], out.shape[3]
    storage = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
    places = sum(
        torch.arange(size).view([-1 if dim == at else 1 for at in range(4)]) * stride
        for dim, (size, stride) in enumerate(
            zip(out.shape, (out.stride(0), out.stride(1), heads * width, 1), strict=True)
        )
    )
    places = places + out.storage_offset()
    read = storage[places.clamp(max=len(storage) - 1)]
    return read.masked_fill(places >= len(storage), math.nan)


def check_bias(bias: Tensor | None, q: Tensor, k: Tensor) -> None:
    """What the operators refuse."""
    if bias is None:
        return
    assert bias.dtype == q.dtype and bias.shape == (*q.shape[:3], k.shape[2])
    assert bias.stride(3) == 1 and all(bias.stride(dim) % 8 == 0 for dim in range(3) if bias.shape[dim] > 1)


def put_in(patch: pytest.MonkeyPatch) -> None:
    """In the place of torch's operators."""
    patch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", forward)
    patch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention_backward", backward)
