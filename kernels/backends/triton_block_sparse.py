"""Block-sparse attention on a GPU: a bitmap of blocks, per head, read in the kernel; what no query sees is skipped.

Any block sizes serve, also the 1 x 1 of clustered keys: the kernel's own blocks are 64 x 64, a list holds those with
anything visible in any head, and inside them each pair looks up its bit. triton is imported when a function here is
called, not before.

    out, lse = block_sparse_triton(q, k, v, hip_select(q, k))
"""

import math
from typing import Any

import torch
from longtake.kernels.backends.contract import Capabilities, Request, accelerators, lacks
from longtake.kernels.backends.triton_dual_scope import DTYPES, tiles_module
from longtake.kernels.masks.basic import Positions, as_positions
from longtake.kernels.masks.tables import BlockSparse
from longtake.kernels.plan.tiles import Tile, positions_of
from longtake.kernels.precision import exact
from torch import Tensor


@exact
def block_sparse_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockSparse,
    q_pos: Positions | None = None,
    k_pos: Positions | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """O (B, H, Lq, Dv) in q's dtype and L (B, H, Lq) float32, not differentiable; gradients reach q, k and v.

    q: (B, H, Lq, D); k: (B, Hk, Lk, D); v: (B, Hk, Lk, Dv), Lq and Lk > 0. q_pos, k_pos: positions, 0, 1, ... by
    default. Raises ValueError for dtypes and heads that do not fit.
    """
    q_places = as_positions(range(q.shape[2]) if q_pos is None else q_pos)
    k_places = as_positions(range(k.shape[2]) if k_pos is None else k_pos)
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        given = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise ValueError(f"q, k and v need one dtype of float32, float16, bfloat16; given {given}")
    if mask.heads not in (None, q.shape[1]):
        raise ValueError(f"the mask has {mask.heads} heads, q has {q.shape[1]}")
    if 0 in (q.shape[2], k.shape[2]) or len(q_places) != q.shape[2] or len(k_places) != k.shape[2]:
        raise ValueError("q and k need at least one row, and a position for each")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out, lse = _BlockSparseTriton.apply(q, k, v, mask, q_places, k_places, scale)
    return out, lse


def _prepare(
    mask: BlockSparse, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor
) -> tuple[Tensor, Any, Any]:
    """Positions of the queries, the piece of keys and the rule. Positions beyond the bitmap see nothing: a border of
    closed blocks stands for them."""
    module = tiles_module()
    bitmap = mask.index if mask.index.dim() == 3 else mask.index[None]
    needed = [int(pos.max()) // size + 1 for pos, size in ((q_pos, mask.block_q), (k_pos, mask.block_k))]
    border = [max(need - have, 0) for need, have in zip(needed, bitmap.shape[1:], strict=True)]
    bitmap = torch.nn.functional.pad(bitmap, (0, border[1], 0, border[0]))

    def blocks(pos: Tensor, size: int, count: int) -> Tensor:
        """Which mask blocks occur in each kernel block: (kernel blocks, mask blocks)."""
        found = torch.zeros(-(-len(pos) // module.BLOCK), count)
        found[torch.arange(len(pos)) // module.BLOCK, pos // size] = 1
        return found

    rows, columns = blocks(q_pos, mask.block_q, bitmap.shape[1]), blocks(k_pos, mask.block_k, bitmap.shape[2])
    tiles = rows @ bitmap.any(0).float() @ columns.mT > 0
    places = k_pos.to(k.device, torch.int32)
    piece = module.Piece(k, v, places, torch.zeros_like(places, dtype=torch.int8), tiles)
    packed = bitmap.to(q.device, torch.int8).contiguous()
    rule = module.Rule(bitmap=packed, block_q=mask.block_q, block_k=mask.block_k)
    return q_pos.to(q.device, torch.int32), piece, rule


class _BlockSparseTriton(torch.autograd.Function):
    @staticmethod
    @exact
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: BlockSparse, q_pos: Tensor, k_pos: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        places, piece, rule = _prepare(mask, q, k, v, q_pos, k_pos)
        out, lse = tiles_module().forward(q, places, [piece], rule, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.arguments = mask, q_pos, k_pos, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        mask, q_pos, k_pos, scale = ctx.arguments
        places, piece, rule = _prepare(mask, q, k, v, q_pos, k_pos)
        d_q, ((d_k, d_v),) = tiles_module().backward(grads[0], q, out, lse, places, [piece], rule, scale)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None, None, None


class TritonBlockSparse:
    """Backend that computes a BlockSparse mask whole."""

    name = "triton_block_sparse"

    def capabilities(self) -> Capabilities:
        devices = None if tiles_module().INTERPRETED else accelerators()  # the interpreter runs anywhere
        return Capabilities(
            dtypes=DTYPES, devices=devices, head_dims=range(1, 257), kinds=frozenset(),
            masks=frozenset({"BlockSparse"}), value_dim_differs=True,
        )  # fmt: skip

    def refuses(self, request: Request) -> str | None:
        if not isinstance(request.mask, BlockSparse):
            return "masks other than BlockSparse"
        return lacks(self.capabilities(), request)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = tiles_module().forward(q, *self._arguments(q, k, v, tile), scale)
        return out, lse

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_q, ((d_k, d_v),) = tiles_module().backward(d_out, q, out, lse, *self._arguments(q, k, v, tile), scale)
        return d_q, d_k, d_v

    def _arguments(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile) -> tuple[Tensor, list[Any], Any]:
        assert isinstance(tile.mask, BlockSparse)
        places, piece, rule = _prepare(tile.mask, q, k, v, positions_of(tile.q_runs), positions_of(tile.k_runs))
        return places, [piece], rule


def make_backends() -> list[Any]:
    """For the registry of backends."""
    return [TritonBlockSparse()]
