"""torch's fused GPU kernels as backends: cuDNN, flash and efficient attention, tile by tile.

They are called as torch's own operators (`aten::_scaled_dot_product_*`), because only these return L and take the
global O and L in the backward. What each of them wants is settled here: head sizes in eights (padded, the scale stays
that of the true size), biases in rows of sixteen, L without its padding, equal numbers of heads.

    flash      half precision, no bias, fewer key heads than query heads; runs FlashAttention 3 or 4 once
               `torch.nn.attention.activate_flash_attention_impl` was called
    cudnn      half precision, no bias, forward only: with a mask tensor its backward has returned NaN
               (pytorch issue 196678), and nobody has checked it here with the L of other tiles
    efficient  float32 too, and biases, which it takes in q's dtype

Tiles without a bias and tiles with one may go to different backends of one call (`registry.ByKind`).
"""

import math

import torch
import torch.nn.functional as F
from longtake.kernels.backends.contract import Backend, Capabilities, Request, accelerators, lacks
from longtake.kernels.heads import gather_heads, spread_heads
from longtake.kernels.plan.tiles import Tile, TileKind
from torch import Tensor

HALF = frozenset({torch.bfloat16, torch.float16})
_PLAIN = frozenset({TileKind.FULL, TileKind.CAUSAL})
_LSE_ROWS = 32  # efficient attention keeps L in multiples of so many rows
_BIAS_COLUMNS = 16


def cuda_devices() -> frozenset[str]:
    """The device type of this machine's CUDA accelerator; empty where there is none."""
    return accelerators() if torch.cuda.is_available() else frozenset()


def padded(x: Tensor, multiple: int = 8, least: int = 0) -> Tensor:
    """x (..., D) with zeros behind, so that D is a multiple and at least `least`."""
    wanted = max(-(-x.shape[-1] // multiple) * multiple, least)
    return F.pad(x, (0, wanted - x.shape[-1])) if wanted > x.shape[-1] else x


def finite_lse(lse: Tensor) -> Tensor:
    """L with 0 for -inf: such rows see nothing in any tile, and exp(-inf - 0) is 0 where exp(-inf + inf) is NaN."""
    return lse.float().masked_fill(lse == -math.inf, 0)


class _Fused:
    """What the three have in common."""

    name = ""
    dtypes = HALF
    kinds = _PLAIN
    gqa = True
    grad = True
    widest = 256

    def capabilities(self) -> Capabilities:
        return Capabilities(
            dtypes=self.dtypes, devices=cuda_devices(), head_dims=range(1, self.widest + 1), kinds=self.kinds,
            gqa=True, grad=self.grad, value_dim_differs=True,
        )  # fmt: skip

    def refuses(self, request: Request) -> str | None:
        if request.value_dim > self.widest:
            return f"value size {request.value_dim}; serves 1 to {self.widest}"
        return lacks(self.capabilities(), request)

    def _fit(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Equal head sizes in eights, and equal heads where the operator wants them."""
        width = max(q.shape[-1], v.shape[-1])
        q, k, v = (padded(x, least=-(-width // 8) * 8) for x in (q, k, v))
        return (q, k, v) if self.gqa else (q, spread_heads(k, q.shape[1]), spread_heads(v, q.shape[1]))

    @staticmethod
    def _cut(grads: tuple[Tensor, Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_q, d_k, d_v = grads
        heads = k.shape[1]
        d_k, d_v = gather_heads(d_k, heads), gather_heads(d_v, heads)
        return d_q[..., : q.shape[-1]], d_k[..., : k.shape[-1]], d_v[..., : v.shape[-1]]


class TorchFlash(_Fused):
    """`aten::_scaled_dot_product_flash_attention`."""

    name = "flash"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            *self._fit(q, k, v), 0.0, tile.kind is TileKind.CAUSAL, scale=scale
        )[:2]
        return out[..., : v.shape[-1]], lse[..., : q.shape[2]].float()

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide_q, wide_k, wide_v = self._fit(q, k, v)
        width = wide_q.shape[-1]
        seed = torch.zeros((), dtype=torch.int64, device=q.device)  # of a dropout that does not take place
        grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            padded(d_out.to(q.dtype), least=width), wide_q, wide_k, wide_v, padded(out.to(q.dtype), least=width),
            finite_lse(lse).contiguous(), None, None, q.shape[2], k.shape[2], 0.0, tile.kind is TileKind.CAUSAL,
            seed, seed, scale=scale,
        )  # fmt: skip
        return self._cut(grads, q, k, v)


class TorchCudnn(_Fused):
    """`aten::_scaled_dot_product_cudnn_attention`, forward."""

    name = "cudnn"
    gqa = False
    grad = False
    widest = 128

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *self._fit(q, k, v), None, True, 0.0, tile.kind is TileKind.CAUSAL, scale=scale
        )[:2]
        return out[..., : v.shape[-1]], lse.reshape(*q.shape[:2], -1)[..., : q.shape[2]].float()

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError("cudnn serves the forward only; its capabilities say so")


class TorchEfficient(_Fused):
    """`aten::_scaled_dot_product_efficient_attention`."""

    name = "efficient"
    dtypes = HALF | {torch.float32}
    kinds = _PLAIN | {TileKind.DENSE}
    gqa = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        bias = aligned_bias(tile, q, k)
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
            *self._fit(q, k, v), bias, True, 0.0, tile.kind is TileKind.CAUSAL, scale=scale
        )[:2]
        out, lse = out[..., : v.shape[-1]], lse[..., : q.shape[2]].float()
        if tile.blind and bias is not None:
            nothing = (bias == -math.inf).all(-1)
            out, lse = out.masked_fill(nothing[..., None], 0), lse.masked_fill(nothing, -math.inf)
        return out, lse

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide_q, wide_k, wide_v = self._fit(q, k, v)
        width = wide_q.shape[-1]
        rows = -(-q.shape[2] // _LSE_ROWS) * _LSE_ROWS
        padded_lse = F.pad(finite_lse(lse), (0, rows - q.shape[2]), value=math.inf)  # exp(s - inf) = 0
        seed = torch.zeros((), dtype=torch.int64, device=q.device)
        d_q, d_k, d_v, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            padded(d_out.to(q.dtype), least=width), wide_q, wide_k, wide_v, aligned_bias(tile, q, k),
            rows_of_heads(padded(out.to(q.dtype), least=width)), padded_lse, seed, seed, 0.0,
            [True, True, True, False],
            tile.kind is TileKind.CAUSAL, scale=scale,
        )  # fmt: skip
        return self._cut((d_q, d_k, d_v), q, k, v)


def rows_of_heads(out: Tensor) -> Tensor:
    """out (B, H, L, Dv) with all heads of a row side by side in memory, as the operator's own forward lays it.

    The backward is told every other stride, but takes the step between two rows of O as H * Dv (`o_strideM` in torch's
    mem_eff_attention/kernel_backward.h, where half precision sums dO * O in the kernel). Laid out otherwise, as merged
    tiles are, it reads other heads' and rows' numbers, and dQ and dK are wrong without a word.
    """
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def aligned_bias(tile: Tile, q: Tensor, k: Tensor) -> Tensor | None:
    """A tile's bias as efficient attention takes it: q's dtype, (B, H, Lq, Lk) by broadcast, rows aligned."""
    if tile.bias is None:
        return None
    bias = tile.bias.to(q.device, q.dtype)
    bias = bias[(None,) * (4 - bias.dim())]
    columns = -(-k.shape[2] // _BIAS_COLUMNS) * _BIAS_COLUMNS
    laid = F.pad(bias.expand(*bias.shape[:2], q.shape[2], k.shape[2]), (0, columns - k.shape[2]))
    return laid[..., : k.shape[2]].expand(q.shape[0], q.shape[1], -1, -1)


def make_backends() -> list[Backend]:
    """In order of preference."""
    return [TorchCudnn(), TorchFlash(), TorchEfficient()]
