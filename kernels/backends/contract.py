"""What a backend is: its capabilities, the request it is asked, and one tile forward and backward.

The backward takes the *global* output and log-sum-exp of its rows, so the gradients of the tiles of one call add up
exactly, whatever rank computed them:
    P = exp(scale q.k + bias - L);  delta = sum_d dO O;  dS = P (dO.v - delta)
    dV = P^T dO;  dQ = scale dS k;  dK = scale dS^T q            (FlashAttention-2, arXiv 2307.08691, section 3.1)
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from longtake.kernels.masks.basic import Mask, TileKind
from longtake.kernels.plan.tiles import Tile
from torch import Tensor

FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do. `masks` names mask classes that it computes whole, without a plan's tiles."""

    dtypes: frozenset[torch.dtype] = FLOATS
    devices: frozenset[str] | None = None  # device types; None is every one
    head_dims: range = range(1, 1025)
    kinds: frozenset[TileKind] = frozenset({TileKind.FULL, TileKind.CAUSAL, TileKind.DENSE})
    masks: frozenset[str] = frozenset()
    gqa: bool = True  # fewer key heads than query heads
    grad: bool = True
    value_dim_differs: bool = False
    softcap: bool = False  # has a method `capped(softcap)`
    on_request: str = ""  # why it serves only when asked for by name; empty: whenever it can


@dataclass(frozen=True)
class Request:
    """What is asked of a backend. device: a device type; kinds: of the tiles; mask: the whole mask."""

    dtype: torch.dtype
    head_dim: int
    value_dim: int
    device: str
    kinds: frozenset[TileKind] = frozenset({TileKind.FULL})
    gqa: bool = False
    grad: bool = False
    mask: Mask | None = None
    softcap: float = 0.0


class Backend(Protocol):
    """Shapes: q (B, H, Lq, D), k (B, Hk, Lk, D), v (B, Hk, Lk, Dv), none of them empty; O like q with Dv, in q's dtype;
    L (B, H, Lq) float32, float64 for float64, natural logarithm, -inf where nothing is visible."""

    name: str

    def capabilities(self) -> Capabilities: ...

    def refuses(self, request: Request) -> str | None:
        """Why this backend cannot serve the request; None when it can."""
        ...

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        """(O, L) of one tile; q, k, v are the tile's rows already."""
        ...

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(dQ, dK, dV) of one tile, from the global O and L of its rows; any floating dtype not below q's."""
        ...


def accelerators() -> frozenset[str]:
    """Device types besides the CPU that this machine has: none, or one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return frozenset() if found is None else frozenset({found.type})


def lacks(capabilities: Capabilities, request: Request) -> str | None:
    """The first stated capability that a request exceeds, in words."""
    c, r = capabilities, request
    if c.devices is not None and not c.devices:
        return "no accelerator that it serves on this machine"
    if c.devices is not None and r.device not in c.devices:
        return f"device {r.device}; serves {', '.join(sorted(c.devices))}"
    if r.dtype not in c.dtypes:
        return f"dtype {r.dtype}; serves {', '.join(sorted(str(dtype) for dtype in c.dtypes))}"
    if r.head_dim not in c.head_dims:
        return f"head size {r.head_dim}; serves {c.head_dims.start} to {c.head_dims.stop - 1} by {c.head_dims.step}"
    if r.value_dim != r.head_dim and not c.value_dim_differs:
        return f"value size {r.value_dim} beside head size {r.head_dim}; needs them equal"
    if r.gqa and not c.gqa:
        return "fewer key heads than query heads"
    if r.grad and not c.grad:
        return "no backward"
    if r.softcap and not c.softcap:
        return "a soft cap of the logits"
    missing = sorted(r.kinds - c.kinds)
    return f"tiles of kind {', '.join(missing)}" if missing and not takes_whole(c, r.mask) else None


def takes_whole(capabilities: Capabilities, mask: Mask | None) -> bool:
    """Whether such a backend computes this mask by itself, without tiles of ours."""
    return type(mask).__name__ in capabilities.masks
