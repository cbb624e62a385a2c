"""Attention as one node of torch.compile's graph, for one process.

`attention` calls `compiled_attention` while a graph is being traced. The mask enters the graph as its digest, a
constant; the node finds it again when it runs. A call with a mesh does not come here:
it breaks the graph (api.py).
"""

import torch
from longtake.kernels.backends.registry import choose_backend, takes_whole
from longtake.kernels.masks.basic import Mask
from longtake.kernels.plan.plan import make_plan
from longtake.kernels.ranks.transport import DryTransport
from longtake.kernels.strategies.engine import Run, Scheme, accumulator_dtype
from torch import Tensor

_MASKS: dict[str, Mask] = {}  # immutable values by their own digest: an entry never changes


@torch.compiler.assume_constant_result
def _name_mask(mask: Mask) -> str:
    digest = mask.digest()
    _MASKS[digest] = mask
    return digest


def _ready(q: Tensor, k: Tensor, v: Tensor, name: str, backend: str, scale: float) -> tuple[Scheme, Run, Tensor | None]:
    from longtake.kernels.calls.api import checked_request

    mask = _MASKS[name]
    chosen = choose_backend(checked_request(q, k, v, mask), None if backend == "auto" else backend)
    plan = make_plan(q.shape[2], mask, world=1, key_lengths=k.shape[2], strategy="none")
    whole = takes_whole(chosen.capabilities(), mask)
    factors = mask.row_factors(plan.queries.positions(0), plan.keys.total)
    if factors is not None:
        factors = factors.to(q.device, torch.promote_types(q.dtype, torch.float32))[:, None]
    return plan.scheme(0, q.shape[1], k.shape[1], whole), Run(DryTransport(0, 1), chosen, scale), factors


@torch.library.custom_op("longtake::attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, mask: str, backend: str, scale: float) -> tuple[Tensor, Tensor]:
    scheme, run, factors = _ready(q, k, v, mask, backend, scale)
    q = q if factors is None else (q * factors).to(q.dtype)
    out, lse, _ = scheme.forward(run, q, k, v)
    return out.contiguous(), lse.contiguous()


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: str, backend: str, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=accumulator_dtype(q.dtype))


@torch.library.custom_op("longtake::attention_backward", mutates_args=())
def _backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: str, backend: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    scheme, run, factors = _ready(q, k, v, mask, backend, scale)
    q = q if factors is None else (q * factors).to(q.dtype)
    d_q, d_k, d_v = scheme.backward(run, d_out, (q, k, v, out, lse))
    d_q = d_q if factors is None else (d_q * factors).to(d_q.dtype)
    return d_q.contiguous(), d_k.contiguous(), d_v.contiguous()


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
