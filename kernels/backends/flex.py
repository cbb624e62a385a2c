"""torch's flex_attention as a backend: masks given as rules on positions, whole, without tiles of ours.

A mask becomes a rule `visible(query row, key row)` (`mask_rule`) and a table of 128 x 128 blocks that are empty, full
or mixed, which `Mask.classify` fills in (`block_table`). On a CUDA device the operator is compiled, forward and
backward. On a CPU it runs uncompiled, dense and forward only: good for checking rules against, and it says so.

flex gives its own O and L and the gradients of both, but takes no global ones. The gradients of one part of a larger
softmax follow from the chain rule (`part_gradients`):
    dO_part = w dO,  dL_part = w (dO . O_part - dO . O),  w = exp(L_part - L)
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from longtake.kernels.backends.contract import Backend, Capabilities, Request, lacks
from longtake.kernels.backends.torch_cuda import cuda_devices
from longtake.kernels.heads import spread_heads
from longtake.kernels.masks.basic import Causal, DualScope, Full, Lambda, Mask, SlidingWindow, TileKind
from longtake.kernels.masks.combined import And, Or
from longtake.kernels.masks.tables import BlockSparse, Documents, KeyPadding
from longtake.kernels.plan.tiles import Runs, Tile, positions_of
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]  # rows of queries and keys, int64, broadcast -> visible, bool
BLOCK = 128
_MASKS = (
    "Full", "Causal", "SlidingWindow", "Lambda", "DualScope", "Documents", "KeyPadding", "BlockSparse", "And", "Or",
)  # fmt: skip


def unsuited(mask: Mask | None) -> str | None:
    """Why a mask has no rule here; None when it has one."""
    if mask is None:
        return None
    if isinstance(mask, And | Or):
        return unsuited(mask.first) or unsuited(mask.second)
    if type(mask).__name__ not in _MASKS:
        return f"masks of class {type(mask).__name__}"
    if not mask.plain:
        return "masks with biases"
    if mask.heads is not None or mask.batch is not None:
        return "masks that differ between heads or batch entries"
    return None


def mask_rule(mask: Mask, q_pos: Tensor, k_pos: Tensor) -> Rule:
    """The rule of a mask for rows at global positions q_pos (Lq,) and k_pos (Lk,), int64."""
    if isinstance(mask, And | Or):
        first, second = mask_rule(mask.first, q_pos, k_pos), mask_rule(mask.second, q_pos, k_pos)
        if isinstance(mask, And):
            return lambda q, k: first(q, k) & second(q, k)
        return lambda q, k: first(q, k) | second(q, k)
    if isinstance(mask, Causal):
        return _band_rule(-mask.shift, None, q_pos, k_pos)
    if isinstance(mask, SlidingWindow):
        return _band_rule(None if mask.right is None else -mask.right, mask.left, q_pos, k_pos)
    if isinstance(mask, Lambda):
        window, causal = _band_rule(0, mask.local - 1, q_pos, k_pos), _band_rule(0, None, q_pos, k_pos)
        sink = mask.sink
        return lambda q, k: window(q, k) | (causal(q, k) & (k_pos[k] < sink))
    if isinstance(mask, DualScope):
        shared = torch.zeros_like(k_pos, dtype=torch.bool)
        if mask.global_open:
            shared = torch.isin(k_pos, torch.tensor(mask.global_indices, device=k_pos.device))
        if not mask.local_open:
            return lambda q, k: shared[k] & (q >= 0)
        near = _band_rule(-mask.window, mask.window, q_pos, k_pos)
        return lambda q, k: near(q, k) | shared[k]
    if isinstance(mask, Documents):
        q_doc, k_doc = (_documents(ends, pos) for ends, pos in zip(mask.offsets, (q_pos, k_pos), strict=True))
        return lambda q, k: (q_doc[q] == k_doc[k]) & (q_doc[q] >= 0)
    if isinstance(mask, KeyPadding):
        length = int(mask.lengths) if isinstance(mask.lengths, int) else int(mask.lengths[0])
        return lambda q, k: (k_pos[k] < length) & (q >= 0)
    if isinstance(mask, BlockSparse):
        table = mask.tensor.to(q_pos.device)
        q_block, k_block = q_pos // mask.block_q, k_pos // mask.block_k
        inside_q, inside_k = q_block < table.shape[0], k_block < table.shape[1]
        q_block, k_block = q_block.clamp(max=table.shape[0] - 1), k_block.clamp(max=table.shape[1] - 1)
        return lambda q, k: table[q_block[q], k_block[k]] & inside_q[q] & inside_k[k]
    assert isinstance(mask, Full)
    return lambda q, k: (q >= 0) & (k >= 0)


def _band_rule(lower: int | None, upper: int | None, q_pos: Tensor, k_pos: Tensor) -> Rule:
    low = -(1 << 62) if lower is None else lower
    high = (1 << 62) if upper is None else upper
    return lambda q, k: (q_pos[q] - k_pos[k] >= low) & (q_pos[q] - k_pos[k] <= high)


def _documents(offsets: tuple[int, ...], positions: Tensor) -> Tensor:
    """The document of each position; -1 beyond the last one."""
    numbers = torch.searchsorted(torch.tensor(offsets, device=positions.device), positions, right=True)
    return torch.where(numbers < len(offsets), numbers, -1)


def block_table(mask: Mask, q_pos: Tensor, k_pos: Tensor, rule: Rule) -> Any:
    """torch's BlockMask, from `classify` of each 128 x 128 block's smallest and largest positions."""
    from torch.nn.attention.flex_attention import BlockMask

    spans = [[(int(x.min()), int(x.max()) + 1) for x in pos.split(BLOCK)] for pos in (q_pos, k_pos)]
    kinds = [[mask.classify(*rows, *keys) for keys in spans[1]] for rows in spans[0]]
    full = torch.tensor([[kind is TileKind.FULL for kind in row] for row in kinds], device=q_pos.device)
    some = torch.tensor([[kind is not TileKind.EMPTY for kind in row] for row in kinds], device=q_pos.device) & ~full

    def listed(present: Tensor) -> tuple[Tensor, Tensor]:
        """How many blocks each row of blocks has, and which, those first."""
        order = present.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
        return present.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]

    return BlockMask.from_kv_blocks(
        *listed(some), *listed(full), BLOCK_SIZE=BLOCK, mask_mod=lambda b, h, q, k: rule(q, k),
        seq_lengths=(len(q_pos), len(k_pos)),
    )  # fmt: skip


def part_gradients(
    part: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) of one part of a softmax, from the global O and L of its rows.

    part: (q, k, v) -> (O, L) of this part alone, both differentiable. d_out, out: (B, H, Lq, Dv); lse: (B, H, Lq), -inf
    where no part shows a key.
    """
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        part_out, part_lse = part(*leaves)
    wide = part_lse.dtype
    d_out, out = d_out.to(wide), out.to(wide)
    share = (part_lse.detach() - lse.masked_fill(lse == -math.inf, math.inf)).exp()
    inner = (d_out * (part_out.detach().to(wide) - out)).sum(-1)
    blind = part_lse.detach() == -math.inf
    d_part = (share[..., None] * d_out).to(part_out.dtype)
    d_lse = (share * inner).masked_fill(blind, 0)
    d_q, d_k, d_v = torch.autograd.grad((part_out, part_lse), leaves, (d_part, d_lse))
    return d_q, d_k, d_v


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=64)
def _table(mask: Mask, q_runs: Runs, k_runs: Runs, device: torch.device) -> Any:
    """The table of a tile, made once for its forward calls and backwards."""
    q_pos, k_pos = positions_of(q_runs).to(device), positions_of(k_runs).to(device)
    return block_table(mask, q_pos, k_pos, mask_rule(mask, q_pos, k_pos))


class Flex:
    """`torch.nn.attention.flex_attention`."""

    name = "flex"

    def capabilities(self) -> Capabilities:
        cuda = cuda_devices()
        dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})
        if not cuda:  # uncompiled
            return Capabilities(
                grad=False,
                kinds=frozenset(),
                masks=frozenset(_MASKS),
                value_dim_differs=True,
                on_request="uncompiled and dense on a CPU",
            )
        return Capabilities(
            dtypes=dtypes, devices=cuda, head_dims=range(16, 257), kinds=frozenset(), masks=frozenset(_MASKS),
            value_dim_differs=True,
            on_request="10 to 125 times slower than dense on an H200, each mask is compiled anew",
        )  # fmt: skip

    def refuses(self, request: Request) -> str | None:
        if request.mask is None:
            return "calls without a whole mask"
        return unsuited(request.mask) or lacks(self.capabilities(), request)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        return self._part(tile, scale, q)(q.detach(), k.detach(), v.detach())

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return part_gradients(self._part(tile, scale, q), d_out, q, k, v, out, lse)

    @staticmethod
    def _part(tile: Tile, scale: float, like: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention

        assert tile.mask is not None
        table = _table(tile.mask, tile.q_runs, tile.k_runs, like.device)
        plain: Any = flex_attention
        run = _compiled() if cuda_devices() else plain

        def part(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            heads = q.shape[1]
            out, aux = run(
                q, spread_heads(k, heads), spread_heads(v, heads), block_mask=table, scale=scale,
                return_aux=AuxRequest(lse=True),
            )  # fmt: skip
            return out, aux.lse

        return part


def make_backends() -> list[Backend]:
    """For the registry of backends."""
    return [Flex()]
