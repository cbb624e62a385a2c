"""Prompt-guided pooling: fewer video tokens, each a weighted mean of a window, weighted by what the question asks for.

For PPLLaVA: between the vision tower and the language model.

The method is PPLLaVA's (arXiv 2411.02327, section 3.2; public code d5766c8): a guide scores every token against the
text; g = softmax of the scores over ALL tokens of the video; inside a window the weights are softmax(g / 0.01). With
thousands of tokens g is so flat that most windows are plain averages: the released behaviour keys on a few outlier
tokens. `WeightMode.LOCAL`, one softmax of the scores inside each window, is the alternative that follows the guide
everywhere.

The sum over a window is `window_sum` (windows.py), or one pass of a kernel on a GPU (fused.py).

Shapes: B batch, C channels, T frames, H and W tokens of a frame, (kt, kh, kw) kernel, O windows.

    pooled = prompt_guided_pool3d(x, logits=scores, kernel=(2, 3, 3))  # (B, C, 32, 24, 24) -> (B, C, 16, 8, 8)
"""

import math
from enum import StrEnum
from importlib.util import find_spec
from itertools import product

import torch
import torch.nn.functional as F
from longtake.kernels.pooling.fused import DTYPES, LARGEST_WINDOW, pool_triton
from longtake.kernels.pooling.windows import Tail, Triple, Windows, resolve_windows, window_sum
from longtake.kernels.precision import accumulator_dtype, exact
from torch import Tensor


class WeightMode(StrEnum):
    """Where the weights of a window come from."""

    PPLLAVA = "ppllava"  # softmax over all tokens, then softmax of that / temperature (0.01) inside each window
    LOCAL = "local"  # one softmax of the scores / temperature (1) inside each window
    UNIFORM = "uniform"  # plain average


class Axes(StrEnum):
    """Order of the dimensions of the tokens."""

    BCTHW = "bcthw"  # channels first, as torch's pooling
    BTHWC = "bthwc"  # channels last, as a vision tower gives them


@exact
def global_weights(logits: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """The first softmax: g over all T * H * W tokens of each video, float32 (float64 for float64).

    logits: (B, T, H, W). frame_mask: (B, T) bool, True where the frame exists; other frames get 0, whatever they hold.
    """
    scores = _masked(logits.to(accumulator_dtype(logits.dtype)), frame_mask)
    return _softmax(scores.flatten(1), 1).view(scores.shape)


@exact
def window_weights(
    windows: Windows,
    *,
    logits: Tensor | None = None,
    weights: Tensor | None = None,
    frame_mask: Tensor | None = None,
    weight_mode: WeightMode | str = WeightMode.PPLLAVA,
    temperature: float | None = None,
    batch: int | None = None,
) -> Tensor:
    """Weights of each window: (B, O_t, O_h, O_w, kt, kh, kw), float32 (float64 for float64 guides), differentiable.

    They sum to 1 in each window; 0 on masked frames and beyond the input; a window with nothing real is all 0.
    Arguments as for `prompt_guided_pool3d`; `batch` is needed only when no tensor tells it.
    """
    scores, temperature = _scores(windows, logits, weights, frame_mask, weight_mode, temperature, batch)
    return _shares(scores, windows, temperature)


@exact
def prompt_guided_pool3d(
    x: Tensor,
    *,
    logits: Tensor | None = None,
    weights: Tensor | None = None,
    kernel: int | Triple | None = None,
    stride: int | Triple | None = None,
    output_size: int | Triple | None = None,
    frame_mask: Tensor | None = None,
    tail: Tail | str = Tail.ERROR,
    weight_mode: WeightMode | str = WeightMode.PPLLAVA,
    temperature: float | None = None,
    layout: Axes | str = Axes.BCTHW,
) -> Tensor:
    """Weighted mean of each window. Returns (B, C, O_t, O_h, O_w), or (B, O_t, O_h, O_w, C), in x's dtype.

    x: (B, C, T, H, W), or (B, T, H, W, C) with layout "bthwc"; float, any strides.
    logits: (B, T, H, W) scores of the guide, before any softmax. weights: (B, T, H, W), g itself, for "ppllava" only.
    kernel, stride, output_size, tail: see `resolve_windows`.
    frame_mask: (B, T) bool, True where the frame exists. Other frames may hold anything, NaN too; a window with no
        frame gives 0.
    temperature: of the softmax inside a window; 0.01 for "ppllava", 1 for "local".
    Both softmaxes and the sum are taken in float32 (float64 for float64). Gradients reach x, logits and weights.
    On a CUDA device with triton the softmax inside a window and the sum are one fused kernel (`pool_triton`), but for
    what `not_fused` says.
    Raises ValueError for shapes or settings that do not fit.
    """
    layout = Axes(layout)
    if x.dim() != 5:
        raise ValueError(f"x must be 5-D in the order {layout}, given {tuple(x.shape)}")
    last = x.movedim(1, -1) if layout is Axes.BCTHW else x
    batch, frames, rows, columns = last.shape[:4]
    windows = resolve_windows((frames, rows, columns), kernel, stride, output_size, tail)
    for name, guide in (("logits", logits), ("weights", weights)):
        if guide is not None and guide.shape != last.shape[:4]:
            raise ValueError(f"{name} must have shape {tuple(last.shape[:4])}, given {tuple(guide.shape)}")
    if frame_mask is not None and (frame_mask.shape != (batch, frames) or frame_mask.dtype != torch.bool):
        raise ValueError(
            f"frame_mask must be bool {(batch, frames)}, given {frame_mask.dtype} {tuple(frame_mask.shape)}"
        )
    scores, temperature = _scores(windows, logits, weights, frame_mask, weight_mode, temperature, batch)
    if not_fused(last, scores, windows) is None:
        pooled = pool_triton(last, scores.to(x.device), windows, temperature or 1.0)
    else:
        share = _shares(scores, windows, temperature).to(x.device)
        pooled = window_sum(last, share, windows, frame_mask)
    return pooled.movedim(-1, 1) if layout is Axes.BCTHW else pooled


def not_fused(x: Tensor, scores: Tensor, windows: Windows) -> str | None:
    """Why a call of `prompt_guided_pool3d` does not go to the fused kernel; None when it does.

    x: the tokens as (B, T, H, W, C). scores: (B, T, H, W), what the softmax inside a window is taken of. Tokens that
    lie channels first stay with torch: the kernel would need a copy of them all.
    """
    if not x.is_cuda or find_spec("triton") is None:
        return "not on a CUDA device with triton"
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}"
    if scores.dtype != torch.float32:
        return f"a guide of {scores.dtype}"
    if x.numel() == 0:
        return "no tokens"
    if not x.is_contiguous():
        return "tokens that do not lie channels last in one piece"
    if math.prod(windows.kernel) > LARGEST_WINDOW:
        return f"windows of {math.prod(windows.kernel)} tokens, more than {LARGEST_WINDOW}"
    return None


def pool_reference(
    x: Tensor, weights: Tensor, kernel: Triple, stride: Triple, output: Triple, temperature: float = 0.01
) -> Tensor:
    """The definition, window by window, in float64: x (B, C, T, H, W), weights g (B, T, H, W)."""
    x, g = x.double(), weights.double()
    out = x.new_zeros(*x.shape[:2], *output)
    for t, h, w in product(*map(range, output)):
        corner = [j * s for j, s in zip((t, h, w), stride, strict=True)]
        box = tuple(slice(start, start + k) for start, k in zip(corner, kernel, strict=True))
        p = (g[(slice(None), *box)] / temperature).flatten(1).softmax(1)
        out[:, :, t, h, w] = (x[(slice(None), slice(None), *box)].flatten(2) * p[:, None]).sum(-1)
    return out


def _scores(
    windows: Windows, logits: Tensor | None, weights: Tensor | None, frame_mask: Tensor | None,
    weight_mode: WeightMode | str, temperature: float | None, batch: int | None,
) -> tuple[Tensor, float | None]:  # fmt: skip
    """What the softmax inside a window is taken of: (B, T, H, W), -inf on masked frames, and its temperature."""
    mode = WeightMode(weight_mode)
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be > 0, given {temperature}")
    if mode is WeightMode.UNIFORM:
        if logits is not None or weights is not None or temperature is not None:
            raise ValueError("weight_mode uniform uses neither logits nor weights nor temperature")
        if batch is None and frame_mask is None:
            raise ValueError("weight_mode uniform needs batch or frame_mask to know how many videos there are")
        rows = frame_mask.shape[0] if batch is None and frame_mask is not None else batch
        device = None if frame_mask is None else frame_mask.device
        scores = _masked(torch.zeros(rows or 0, *windows.input, device=device), frame_mask)
    elif (logits is None) == (weights is None):
        raise ValueError("give either logits (scores before any softmax) or weights (g, which sums to 1 over a video)")
    elif mode is WeightMode.LOCAL:
        if logits is None:
            raise ValueError("weight_mode local takes one softmax of logits; g has lost them to underflow: give logits")
        scores = _masked(logits.to(accumulator_dtype(logits.dtype)), frame_mask)
    else:
        if logits is not None:
            g = global_weights(logits, frame_mask)
        else:
            assert weights is not None
            g = weights.to(accumulator_dtype(weights.dtype))
        scores = _masked(g, frame_mask)
        temperature = temperature or 0.01
    if scores.shape[1:] != windows.input:
        raise ValueError(f"the guide has {tuple(scores.shape[1:])} tokens, the windows are for {windows.input}")
    return scores, temperature


def _shares(scores: Tensor, windows: Windows, temperature: float | None) -> Tensor:
    """The softmax inside each window: (B, *output, *kernel)."""
    span, extra = windows.padded, []
    for have, want in zip(reversed(windows.input), reversed(span), strict=True):
        extra += [0, max(want - have, 0)]
    cut = F.pad(scores, extra, value=-math.inf)
    for axis in range(3):
        cut = cut.narrow(axis + 1, 0, span[axis]).unfold(axis + 1, windows.kernel[axis], windows.stride[axis])
    cut_flat = cut.flatten(4)
    if temperature is not None:  # the window's largest goes first: the division would magnify its rounding
        top = cut_flat.amax(4, keepdim=True).detach()
        cut_flat = (cut_flat - top.masked_fill(top == -math.inf, 0)) / temperature
    return _softmax(cut_flat, 4).view(cut.shape)


def _masked(scores: Tensor, frame_mask: Tensor | None) -> Tensor:
    if frame_mask is None:
        return scores
    return scores.masked_fill(~frame_mask.to(scores.device)[:, :, None, None], -math.inf)


def _softmax(scores: Tensor, dim: int) -> Tensor:
    """Softmax that gives 0 instead of NaN where everything is -inf."""
    blind = (scores == -math.inf).all(dim, keepdim=True)
    return scores.masked_fill(blind, 0).softmax(dim).masked_fill(blind, 0)
