"""Dual-scope attention on a GPU without a concatenated copy of the keys and without a mask tensor.

A rank holds its own keys, those of its neighbours and the global ones in three pieces of memory; the kernel reads all
three, and works out from positions which pairs see each other and with which bias. Blocks of keys that none of a
block's queries sees are not in its list. triton is imported when a function here is called, not before.

    pieces = [(k, v, range(8, 16)), (k_halo, v_halo, halo), (k_all, v_all, shared)]
    out, lse = dual_scope_triton(q, pieces, scope, range(8, 16))
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from longtake.kernels.backends.contract import Capabilities, Request, accelerators, lacks
from longtake.kernels.masks.basic import DualScope, Edge, Overlap, Positions, as_positions
from longtake.kernels.plan.tiles import Tile, positions_of
from longtake.kernels.precision import exact
from torch import Tensor

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
KeyPiece = tuple[Tensor, Tensor, Positions]


def tiles_module() -> Any:
    """triton_tiles, which needs triton."""
    return importlib.import_module("longtake.kernels.backends.triton_tiles")


def unsupported(scope: DualScope) -> str | None:
    """What of a scope the kernel does not do; None when it does all of it."""
    if scope.edge is Edge.ZERO:
        return "zero keys beyond the ends (edge zero)"
    return "row_scale" if scope.row_scale is not None else None


@exact
def dual_scope_triton(
    q: Tensor, pieces: Sequence[KeyPiece], scope: DualScope, q_pos: Positions, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """O (B, H, Lq, Dv) in q's dtype and L (B, H, Lq) float32, not differentiable; gradients reach q and all pieces.

    q: (B, H, Lq, D) at positions q_pos. pieces: one to three (k (B, Hk, Lk, D), v (B, Hk, Lk, Dv), positions), none
    empty and no position twice. Positions need no order, but blocks of 64 that stay together skip more.
    Raises ValueError for a scope that the kernel does not do and for pieces that do not fit.
    """
    reason = unsupported(scope)
    if reason is not None:
        raise ValueError(f"the Triton dual-scope kernel does not do {reason}")
    if not 1 <= len(pieces) <= 3 or any(k.shape[2] == 0 or k.shape[2] != len(pos) for k, _, pos in pieces):
        raise ValueError("one to three pieces of keys are needed, none empty, each with a position for every key")
    if q.dtype not in DTYPES or any(x.dtype != q.dtype for k, v, _ in pieces for x in (k, v)):
        raise ValueError(f"q, k and v need one dtype of float32, float16, bfloat16; q has {q.dtype}")
    places = torch.cat([as_positions(pos) for _, _, pos in pieces])
    if len(places.unique()) != len(places):
        raise ValueError("a position occurs twice among the keys: its weight would count twice")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    flat = [x for k, v, _ in pieces for x in (k, v)]
    k_places = [as_positions(pos) for _, _, pos in pieces]
    out, lse = _DualScopeTriton.apply(q, scope, as_positions(q_pos), k_places, scale, *flat)
    return out, lse


def _prepare(scope: DualScope, q_pos: Tensor, k: Tensor, v: Tensor, k_pos: Tensor, block: int) -> tuple[Any, ...]:
    """Arguments of a Piece: which blocks meet is decided from the smallest and largest position of each."""
    shared = torch.isin(k_pos, torch.tensor(scope.global_indices, dtype=torch.int64)) & scope.global_open

    def spans(pos: Tensor) -> tuple[Tensor, Tensor]:
        parts = pos.split(block)
        return torch.stack([part.min() for part in parts]), torch.stack([part.max() for part in parts])

    (q_low, q_high), (k_low, k_high) = spans(q_pos), spans(k_pos)
    tiles = torch.stack([part.any() for part in shared.split(block)]).expand(len(q_low), -1).clone()
    if scope.local_open:
        tiles |= (k_low <= q_high[:, None] + scope.window) & (k_high >= q_low[:, None] - scope.window)
    return k, v, k_pos.to(k.device, torch.int32), shared.to(k.device, torch.int8), tiles


def _rule(scope: DualScope) -> dict[str, Any]:
    """Biases: of a key in the window, in S, and in both."""
    local, shared = scope.bias_local, scope.bias_global if scope.global_open else -math.inf
    both = local
    if not scope.local_open:
        both = shared
    elif scope.overlap is Overlap.MULTISET and scope.global_open:
        top = max(local, shared)
        both = top + math.log(math.exp(local - top) + math.exp(shared - top))
    return {"window": scope.window, "bias_local": local, "bias_global": shared, "bias_both": both}


class _DualScopeTriton(torch.autograd.Function):
    """One Function for all pieces: O and L are global, so each piece's gradients are exact sums."""

    @staticmethod
    @exact
    def forward(
        ctx: Any, q: Tensor, scope: DualScope, q_pos: Tensor, k_pos: list[Tensor], scale: float, *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        module = tiles_module()
        pairs = list(zip(flat[::2], flat[1::2], k_pos, strict=True))
        pieces = [module.Piece(*_prepare(scope, q_pos, k, v, pos, module.BLOCK)) for k, v, pos in pairs]
        rule = module.Rule(**_rule(scope))
        places = q_pos.to(q.device, torch.int32)
        out, lse = module.forward(q, places, pieces, rule, scale)
        ctx.save_for_backward(q, out, lse, places, *flat)
        ctx.pieces = [(piece.places, piece.shared, piece.tiles) for piece in pieces]
        ctx.rule, ctx.scale = rule, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        module = tiles_module()
        q, out, lse, places, *flat = ctx.saved_tensors
        pieces = [module.Piece(k, v, *rest) for k, v, rest in zip(flat[::2], flat[1::2], ctx.pieces, strict=True)]
        d_q, pairs = module.backward(grads[0], q, out, lse, places, pieces, ctx.rule, ctx.scale)
        flat_grads = [grad.to(q.dtype) for pair in pairs for grad in pair]
        return d_q.to(q.dtype), None, None, None, None, *flat_grads


class TritonDualScope:
    """Backend that computes a DualScope mask whole, from positions."""

    name = "triton_dual_scope"

    def capabilities(self) -> Capabilities:
        devices = None if tiles_module().INTERPRETED else accelerators()  # the interpreter runs anywhere
        return Capabilities(
            dtypes=DTYPES, devices=devices, head_dims=range(1, 257), kinds=frozenset(),
            masks=frozenset({"DualScope"}), value_dim_differs=True,
        )  # fmt: skip

    def refuses(self, request: Request) -> str | None:
        if not isinstance(request.mask, DualScope):
            return "masks other than DualScope"
        return lacks(self.capabilities(), request) or unsupported(request.mask)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        places, piece, rule = self._arguments(q, k, v, tile)
        out, lse = tiles_module().forward(q, places, [piece], rule, scale)
        return out, lse

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        places, piece, rule = self._arguments(q, k, v, tile)
        d_q, ((d_k, d_v),) = tiles_module().backward(d_out, q, out, lse, places, [piece], rule, scale)
        return d_q, d_k, d_v

    def _arguments(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile) -> tuple[Tensor, Any, Any]:
        assert isinstance(tile.mask, DualScope)
        module = tiles_module()
        q_pos = positions_of(tile.q_runs)
        piece = module.Piece(*_prepare(tile.mask, q_pos, k, v, positions_of(tile.k_runs), module.BLOCK))
        return q_pos.to(q.device, torch.int32), piece, module.Rule(**_rule(tile.mask))


def make_backends() -> list[Any]:
    """For the registry of backends."""
    return [TritonDualScope()]
