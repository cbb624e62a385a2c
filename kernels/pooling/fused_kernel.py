"""The kernel of fused.py, for where triton is installed: one program a window and block of channels.

Shapes: x (B, T, H, W, C) contiguous; scores (B, T, H, W) float32; out (B, O_t, O_h, O_w, C); share (B, O,
kt * kh * kw).
"""

import torch
import triton
import triton.language as tl
from longtake.kernels.pooling.windows import Windows
from torch import Tensor

CHANNELS = 256


@triton.jit
def _pool(
    x_ptr, score_ptr, out_ptr, share_ptr, sharpness, T, H, W, C, OT, OH, OW, ST, SH, SW, KT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    window, block = tl.program_id(0), tl.program_id(1)
    windows = OT * OH * OW
    batch, place = (window // windows).to(tl.int64), window % windows
    t0, h0, w0 = place // (OH * OW) * ST, place // OW % OH * SH, place % OW * SW
    offset = tl.arange(0, BK)
    t, h, w = t0 + offset // (KH * KW), h0 + offset // KW % KH, w0 + offset % KW
    inside = (offset < KT * KH * KW) & (t < T) & (h < H) & (w < W)
    token = ((batch * T + t) * H + h) * W + w
    scores = tl.load(score_ptr + token, mask=inside, other=float("-inf"))
    exists = scores != float("-inf")  # NaN exists, and shows
    top = tl.max(scores, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    p = tl.where(exists, tl.exp((scores - top) * sharpness), 0.0)
    total = tl.sum(p, 0)
    p = p / tl.where(total == 0.0, 1.0, total)
    tl.store(share_ptr + window.to(tl.int64) * (KT * KH * KW) + offset, p, mask=(offset < KT * KH * KW) & (block == 0))
    channels = block * BC + tl.arange(0, BC)
    wanted = (inside & exists)[:, None] & (channels < C)[None, :]
    x = tl.load(x_ptr + token[:, None] * C + channels[None, :], mask=wanted, other=0.0)
    out = tl.sum(p[:, None] * x.to(tl.float32), 0)
    tl.store(out_ptr + window.to(tl.int64) * C + channels, out.to(out_ptr.dtype.element_ty), mask=channels < C)


def forward(x: Tensor, scores: Tensor, windows: Windows, sharpness: float) -> tuple[Tensor, Tensor]:
    """(pooled, weights of each window as (B, *output, *kernel))."""
    batch, channels = x.shape[0], x.shape[4]
    out = x.new_empty(batch, *windows.output, channels)
    share = torch.empty(batch, *windows.output, *windows.kernel, dtype=torch.float32, device=x.device)
    size = windows.kernel[0] * windows.kernel[1] * windows.kernel[2]
    _pool[(batch * windows.tokens, triton.cdiv(channels, CHANNELS))](
        x, scores, out, share, sharpness, *windows.input, channels, *windows.output, *windows.stride,
        KT=windows.kernel[0], KH=windows.kernel[1], KW=windows.kernel[2], BK=triton.next_power_of_2(size), BC=CHANNELS,
    )  # fmt: skip
    return out, share
