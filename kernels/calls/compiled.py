"""What `attention` is to torch.compile: one node of its graph for one process, and else a break between two graphs.

The mask enters the graph as its digest, a constant; the node finds it again when it runs. The module is imported while
a graph is being traced, and only then: torch's compiler alone takes seconds to load.
"""

from collections.abc import Callable
from typing import Any

import torch
from longtake.kernels.calls.request import Asked, Ready, settle
from longtake.kernels.masks.basic import Mask
from longtake.kernels.precision import accumulator_dtype, exact
from longtake.kernels.ranks.mesh import alone
from torch import Tensor

_MASKS: dict[str, Mask] = {}  # immutable values by their own digest: an entry never changes


@torch.compiler.assume_constant_result
def _name_mask(mask: Mask) -> str:
    digest = mask.digest()
    _MASKS[digest] = mask
    return digest


def _ready(q: Tensor, k: Tensor, v: Tensor, name: str, backend: str, scale: float) -> Ready:
    return settle(Asked(q, k, v, _MASKS[name], "none", backend=backend, scale=scale, grad=True), alone())


@torch.library.custom_op("longtake::attention", mutates_args=())
@exact
def _forward(q: Tensor, k: Tensor, v: Tensor, mask: str, backend: str, scale: float) -> tuple[Tensor, Tensor]:
    ready = _ready(q, k, v, mask, backend, scale)
    out, lse, _ = ready.scheme.forward(ready.call, ready.scaled(q), k, v)
    return out.contiguous(), lse.contiguous()


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: str, backend: str, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=accumulator_dtype(q.dtype))


@torch.library.custom_op("longtake::attention_backward", mutates_args=())
@exact
def _backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: str, backend: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    ready = _ready(q, k, v, mask, backend, scale)
    d_q, d_k, d_v = ready.scheme.backward(ready.call, d_out, (ready.scaled(q), k, v, out, lse))
    return ready.scaled(d_q).contiguous(), d_k.contiguous(), d_v.contiguous()


@_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: str, backend: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output)


def _gradients(ctx, d_out: Tensor, d_lse: Tensor | None):  # type: ignore[no-untyped-def]
    return *_backward(d_out, *ctx.saved_tensors, *ctx.settings), None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def compiled_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, backend: str, scale: float
) -> tuple[Tensor, Tensor]:
    """(O, L) as one node. L's gradient is dropped by detaching it."""
    out, lse = _forward(q, k, v, _name_mask(mask), backend, scale)
    return out, lse.detach()


@torch.compiler.disable
def outside_the_graph(call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Any:
    """The call as it is without torch.compile, between two graphs; with fullgraph=True torch refuses it."""
    return call(q, k, v, **settings)
