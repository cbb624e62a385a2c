"""Windows of video tokens: where they lie (`resolve_windows`), and the weighted sum over each (`window_sum`).

A window sum is taken offset by offset: for each of the kt * kh * kw places inside a window, a strided view of the
tokens times one weight per window is added to the output. No window is ever laid out in memory, so the extra memory is
the output and the weights, in the forward as in the backward.

Shapes: B batch, C channels, T frames, H and W tokens of a frame, (kt, kh, kw) kernel, (st, sh, sw) stride, O windows.

    windows = resolve_windows((32, 24, 24), kernel=(2, 3, 3))  # windows.output: (16, 8, 8)
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Any

import torch
from longtake.kernels.precision import accumulator_dtype, exact
from torch import Tensor

Triple = tuple[int, int, int]


class Tail(StrEnum):
    """What happens to tokens behind the last whole window."""

    ERROR = "error"  # raise
    KEEP = "keep"  # one more window, shorter, normalised over what it holds
    DROP = "drop"  # leave them out (the released code, there without saying so)


@dataclass(frozen=True)
class Windows:
    """Windows of one pooling: window j of an axis holds positions `[j * stride, j * stride + kernel)` that exist."""

    input: Triple
    kernel: Triple
    stride: Triple
    output: Triple

    @property
    def tokens(self) -> int:
        """Number of windows, which is the number of tokens that come out."""
        return math.prod(self.output)

    @property
    def padded(self) -> Triple:
        """Positions that the windows span; more than `input` when the last window is kept short, less when dropped."""
        sizes = ((o - 1) * s + k for k, s, o in zip(self.kernel, self.stride, self.output, strict=True))
        t, h, w = sizes
        return t, h, w

    def scatter_add(self, share: Tensor) -> Tensor:
        """One number for each window and offset, (B, *output, *kernel), added up where the tokens are: (B, T, H, W)."""
        total = share.new_zeros(share.shape[0], *self.input)
        for _, took, weight in _offsets(self):
            total[took] += share[weight]
        return total


def resolve_windows(
    size: Triple,
    kernel: int | Triple | None = None,
    stride: int | Triple | None = None,
    output_size: int | Triple | None = None,
    tail: Tail | str = Tail.ERROR,
) -> Windows:
    """Windows for an input of `size` (T, H, W) tokens; per axis with input I, output O, kernel k, stride s:

    kernel [and stride, by default the kernel]: O = floor((I - k) / s) + 1, one more under `Tail.KEEP` for what is left.
    output_size alone: s = floor(I / O), k = I - (O - 1) s. That equals AdaptiveAvgPool3d only where O divides I.
    output_size and kernel: s = floor((I - k) / (O - 1)). output_size and stride: k = I - (O - 1) s.
    Raises ValueError for sizes that do not fit, for all three given, and for a tail that `tail` does not allow.
    """
    tail = Tail(tail)
    kernel3, stride3 = _triple("kernel", kernel), _triple("stride", stride)
    output3 = _triple("output_size", output_size)
    if kernel3 and stride3 and output3:
        raise ValueError("kernel, stride and output_size were all given; two of them determine the third")
    if not kernel3 and not output3:
        raise ValueError("give kernel, or output_size, or output_size with kernel or stride")
    axes = []
    for axis, name in enumerate(("frames", "rows", "columns")):
        given = size[axis]
        k = kernel3[axis] if kernel3 else None
        s = stride3[axis] if stride3 else None
        if output3:
            axes.append(_from_output(name, given, output3[axis], k, s, tail))
        else:
            assert k is not None
            axes.append(_from_kernel(name, given, k, k if s is None else s, tail))
    kernels, strides, outputs = zip(*axes, strict=True)
    return Windows(size, kernels, strides, outputs)


def _triple(name: str, value: int | Triple | None) -> Triple | None:
    if value is None:
        return None
    t, h, w = (value, value, value) if isinstance(value, int) else value
    if min(t, h, w) < 1:
        raise ValueError(f"{name} must be at least 1 in each axis, given {(t, h, w)}")
    return t, h, w


def _from_output(name: str, given: int, out: int, k: int | None, s: int | None, tail: Tail) -> Triple:
    if out > given:
        raise ValueError(f"{given} {name} cannot give output_size {out}")
    if k is not None:
        s = given if out == 1 else (given - k) // (out - 1)
    elif s is None:
        s = given // out
    k = given - (out - 1) * s if k is None else k
    if k < 1 or k > given or s < 1:
        raise ValueError(f"{given} {name}: output_size {out} would need kernel {k} and stride {s}")
    lost = given - (out - 1) * s - k
    if lost and tail is not Tail.DROP:
        raise ValueError(
            f"{lost} of {given} {name} would belong to no window with output_size {out} and kernel {k}; give "
            'output_size alone, or set tail="drop"'
        )
    return k, s, out


def _from_kernel(name: str, given: int, k: int, s: int, tail: Tail) -> Triple:
    out = (given - k) // s + 1 if given >= k else 0
    end = (out - 1) * s + k if out else 0
    if end < given and out * s < given:  # positions that a further window would reach
        if tail is Tail.ERROR:
            raise ValueError(
                f"{given} {name} are not covered by windows of {k} at stride {s}: {given - end} would be lost; set "
                'tail="keep" for a shorter last window or tail="drop"'
            )
        if tail is Tail.KEEP:
            out += 1
    if out == 0:
        raise ValueError(f'kernel {k} is larger than the {given} {name} there are; set tail="keep" for a short window')
    return k, s, out


def window_sum(x: Tensor, share: Tensor, windows: Windows, frame_mask: Tensor | None = None) -> Tensor:
    """Sum of share * x over each window, (B, *output, C) in x's dtype, summed in float32 (float64 for float64).

    x: (B, T, H, W, C), any strides; share: (B, *output, *kernel); frame_mask: (B, T) bool, False where x may hold
    anything. Gradients reach x and share.
    """
    pooled: Tensor = _WindowSum.apply(x, share, windows, frame_mask)
    return pooled


class _WindowSum(torch.autograd.Function):
    """out[j] = sum over offsets o of share[j, o] * x[j * stride + o]; channels last."""

    @staticmethod
    @exact
    def forward(ctx: Any, x: Tensor, share: Tensor, windows: Windows, frame_mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, share, frame_mask)
        ctx.windows = windows
        accumulate = accumulator_dtype(x.dtype)
        # The output keeps x's memory order, so that the inner loop runs along the same dimension in both.
        shape = (x.shape[0], *windows.output, x.shape[4])
        if x.stride(-1) == 1:
            out = x.new_zeros(shape, dtype=accumulate)
        else:
            out = x.new_zeros(shape[0], shape[4], *shape[1:4], dtype=accumulate).movedim(1, -1)
        exists = None if frame_mask is None else frame_mask[:, :, None, None].expand(x.shape[:4])
        for place, took, weight in _offsets(windows):
            tokens = _existing(x[took], exists, took)
            out[place].addcmul_(share[weight][..., None].to(accumulate), tokens.to(accumulate))
        return out.to(x.dtype)

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, share, frame_mask = ctx.saved_tensors
        exists = None if frame_mask is None else frame_mask[:, :, None, None].expand(x.shape[:4])
        want_x, want_share = ctx.needs_input_grad[:2]
        grad_x, grad_share = window_sum_backward(grads[0], x, share, ctx.windows, exists, want_x, want_share)
        return grad_x, grad_share, None, None


def window_sum_backward(
    grad: Tensor,
    x: Tensor,
    share: Tensor,
    windows: Windows,
    exists: Tensor | None,
    want_x: bool = True,
    want_share: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a window sum: grad (B, *output, C), x (B, T, H, W, C), share (B, *output, *kernel), exists None or
    bool (B, T, H, W). Offset by offset, as the forward."""
    accumulate = accumulator_dtype(x.dtype)
    grad = grad.to(accumulate)
    grad_x = torch.zeros_like(x, dtype=accumulate) if want_x else None
    grad_share = torch.zeros_like(share) if want_share else None
    for place, took, weight in _offsets(windows):
        if grad_x is not None:
            grad_x[took].addcmul_(share[weight][..., None].to(accumulate), grad[place])
        if grad_share is not None:
            tokens = _existing(x[took], exists, took).to(accumulate)
            grad_share[weight] = (tokens * grad[place]).sum(-1).to(share.dtype)
    return None if grad_x is None else grad_x.to(x.dtype), grad_share


Index = tuple[slice | int, ...]


def _offsets(windows: Windows) -> list[tuple[Index, Index, Index]]:
    """For each offset inside a window: the windows that have it, the tokens they take, their weights.

    Rows of windows (O_t) are taken one after the other, so that the part of the output being added to stays in cache.
    """
    parts: list[tuple[Index, Index, Index]] = []
    for row in range(windows.output[0]):
        for t, h, w in product(*map(range, windows.kernel)):
            frame = row * windows.stride[0] + t
            counts = [
                min(windows.output[axis], -(-(windows.input[axis] - offset) // windows.stride[axis]))
                for axis, offset in ((1, h), (2, w))
            ]
            if frame >= windows.input[0] or min(counts) <= 0:
                continue
            place = (slice(None), slice(row, row + 1), slice(counts[0]), slice(counts[1]))
            spans = [
                slice(offset, offset + (count - 1) * windows.stride[axis] + 1, windows.stride[axis])
                for axis, offset, count in ((1, h, counts[0]), (2, w, counts[1]))
            ]
            parts.append((place, (slice(None), slice(frame, frame + 1), *spans), (*place, t, h, w)))
    return parts


def _existing(tokens: Tensor, exists: Tensor | None, took: Index) -> Tensor:
    """0 times NaN is NaN, so what masked frames hold has to go before the product."""
    return tokens if exists is None else tokens.masked_fill(~exists.to(tokens.device)[took][..., None], 0)
