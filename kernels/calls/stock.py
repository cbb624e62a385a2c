"""One rank and no mask but "all keys" or "keys up to one's own": torch's attention as it is, forward and backward.

Nothing of ours stands around it, no copy, cast or autograd Function, so it costs what `F.scaled_dot_product_attention`
costs, and torch picks the kernel (cuDNN on recent GPUs). Where L is asked for, the operator that torch would have
picked is called by its own name, because the public function does not return it.

    if is_stock(asked, transport):
        out, lse = stock_attention(asked, want_lse=False)    # lse: None
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from longtake.kernels.calls.request import Asked
from longtake.kernels.masks.basic import Causal, Full
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
    mask, plan, q, k = asked.wanted, asked.plan, asked.q, asked.k
    if transport.world != 1 or asked.backend != "auto" or asked.strategy not in ("auto", "none") or asked.softcap:
        return False
    if not (isinstance(mask, Full) or (mask == Causal() and q.shape[2] == k.shape[2])):
        return False
    if not q.numel() or not k.numel() or (q.shape[1] != k.shape[1] and q.device.type == "cpu"):
        return False
    if q.device.type == "cpu" and picked(asked) == "math":
        return False
    if plan is None:
        return True
    whole = all(layout.runs == ((range(layout.total),),) for layout in (plan.queries, plan.keys))
    return whole and plan.strategy == "none"


def picked(asked: Asked) -> str:
    """The kernel that torch picks for a stock call, by the name that it has among our backends."""
    causal = isinstance(asked.wanted, Causal)
    number = torch._fused_sdp_choice(
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
