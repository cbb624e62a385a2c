"""One rank and no mask but "all keys" or "keys up to one's own": torch's attention as it is, forward and backward.

Nothing of ours stands around it, no copy, cast or autograd Function, so it costs what `F.scaled_dot_product_attention`
costs, and torch picks the kernel (cuDNN on recent GPUs). Where L is asked for, the operator that torch would have
picked is called by its own name, because the public function does not return it.

A window on a GPU is that function too, on gathered keys (banded.py).

    if is_stock(asked, transport):
        out, lse = stock_attention(asked, want_lse=False)    # lse: None
    elif is_window(asked, transport):
        out = window_attention(asked)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from longtake.kernels.calls.banded import banded_attention, cut
from longtake.kernels.calls.request import Asked
from longtake.kernels.masks.basic import Causal, DualScope, Edge, Full, SlidingWindow
from longtake.kernels.precision import exact
from longtake.kernels.ranks.transport import Transport
from torch import Tensor
from torch.nn.attention import SDPBackend

_NAMES = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


def is_stock(asked: Asked, transport: Transport) -> bool:
    """Whether torch's own function computes just what is asked: one rank, backend and strategy left open, no soft cap,
    rows in order, and the mask Full or a square Causal. On a CPU only where torch takes its fused kernel: its
    definition's backward would follow an autocast that is on around `backward()`."""
    mask, q, k = asked.wanted, asked.q, asked.k
    if not _is_open(asked, transport) or not (
        isinstance(mask, Full) or (mask == Causal() and q.shape[2] == k.shape[2])
    ):
        return False
    if q.shape[1] != k.shape[1] and q.device.type == "cpu":
        return False
    if q.device.type == "cpu" and picked(asked) == "math":
        return False
    return True


def is_window(asked: Asked, transport: Transport) -> bool:
    """Whether a window, and a few shared keys, are gathered and given to torch: on a GPU, one rank, as many heads and
    rows of keys as of queries, L of no interest to the caller."""
    q, k = asked.q, asked.k
    alike = q.device.type != "cpu" and q.shape[:3] == k.shape[:3]
    return alike and _is_open(asked, transport) and _scope(asked) is not None


def window_attention(asked: Asked) -> Tensor:
    """O of a call of which `is_window` holds."""
    scope, q, rows = _scope(asked), asked.q, asked.q.shape[2]
    assert scope is not None
    factors = scope.row_factors(range(rows), rows)
    if factors is not None:
        wide = torch.promote_types(q.dtype, torch.float32)
        q = (q * factors.to(q.device, wide)[:, None]).to(q.dtype)
    blocks = cut(scope, range(rows), 0, rows, rows, 1, apart=False)
    return exact(banded_attention)(q, asked.k, asked.v, None, None, blocks, asked.scale)


def _scope(asked: Asked) -> DualScope | None:
    """The mask as a window around each query and shared keys; None when it is something else."""
    mask = asked.wanted
    if isinstance(mask, SlidingWindow):
        return DualScope(mask.left) if mask.left is not None and mask.left == mask.right else None
    if not isinstance(mask, DualScope) or not mask.local_open or mask.edge is not Edge.DROP:
        return None
    return mask


def _is_open(asked: Asked, transport: Transport) -> bool:
    """One rank that holds all rows in order, some at least, and everything left to us."""
    plan = asked.plan
    if transport.world != 1 or asked.backend != "auto" or asked.strategy not in ("auto", "none") or asked.softcap:
        return False
    if not asked.q.numel() or not asked.k.numel():
        return False
    if plan is None:
        return True
    whole = all(layout.runs == ((range(layout.total),),) for layout in (plan.queries, plan.keys))
    return whole and plan.strategy == "none"


def picked(asked: Asked) -> str:
    """The kernel that torch picks for a stock call, by the name that it has among our backends."""
    causal = isinstance(asked.wanted, Causal)
    number: int = torch._fused_sdp_choice(
        asked.q, asked.k, asked.v, None, 0.0, causal, scale=asked.scale, enable_gqa=_grouped(asked)
    )
    name = _NAMES.get(SDPBackend(number), "math")
    return "aten_cpu" if name == "flash" and asked.q.device.type == "cpu" else name


def stock_attention(asked: Asked, want_lse: bool) -> tuple[Tensor, Tensor | None] | None:
    """(O, L) of a call of which `is_stock` holds; L without a gradient, None unless it is wanted. None where L is
    wanted and the operator that torch would pick has none, or wants other head sizes."""
    causal = isinstance(asked.wanted, Causal)
    if not want_lse:
        return _sdpa(asked.q, asked.k, asked.v, causal, asked.scale, _grouped(asked)), None
    operator = _WITH_LSE.get(picked(asked))
    sizes = {asked.q.shape[3], asked.v.shape[3]}
    if operator is None or len(sizes) > 1 or (asked.q.device.type != "cpu" and sizes.pop() % 8) or _grouped(asked):
        return None
    out, lse = exact(operator)(asked.q, asked.k, asked.v, causal, asked.scale_of_logits)
    return out, lse.detach()


def _grouped(asked: Asked) -> bool:
    return asked.q.shape[1] != asked.k.shape[1]


@exact
def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, grouped: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, lse


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
    return out, lse[..., : q.shape[2]]


def _efficient(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return found[0], found[1][..., : q.shape[2]]


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return found[0], found[1].reshape(*q.shape[:2], -1)[..., : q.shape[2]]


_WITH_LSE: dict[str, Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]] = {
    "aten_cpu": _on_cpu,
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
}
