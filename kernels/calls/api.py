"""The public call: exact attention over one rank or many, forward and backward, for any mask, strategy and split.

    out = attention(q, k, v, mask=Causal())                                    # one process
    out = attention(q, k, v, mask=Causal(), mesh=transport, plan=plan)         # this rank's shards of a plan
    print(explain(q, k, v, mask=Causal(), mesh=transport))                     # what would be done, and why

Full and square Causal on one rank are torch's own function and nothing else (stock.py). Otherwise:
The way of a call: mask -> plan (layouts, strategy) -> this rank's tiles and messages -> backend, tile by tile -> merge.
One autograd Function holds it: it keeps the final output and log-sum-exp, and its backward runs every tile again with
those, so gradients are exact sums and none flows through a merge. Double backward is not supported and raises (where
torch computes alone, with torch's own words).

Shapes: q (B, H, nq, D), k (B, Hk, nk, D), v (B, Hk, nk, Dv), this rank's rows; layout="bshd" swaps the middle two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from longtake.kernels.backends.registry import backends, declines
from longtake.kernels.calls.request import Asked, check_plan, settle
from longtake.kernels.calls.stock import is_stock, is_window, picked, stock_attention, window_attention
from longtake.kernels.masks.basic import Mask
from longtake.kernels.plan.plan import Plan, pick_strategy
from longtake.kernels.precision import alike, exact
from longtake.kernels.ranks.mesh import as_transport
from longtake.kernels.ranks.transport import Transport
from longtake.kernels.strategies.build import balance, flops, forecast
from longtake.kernels.strategies.engine import Call, Scheme
from longtake.kernels.strategies.ulysses import Ulysses
from torch import Tensor


class _Attend(torch.autograd.Function):
    """One call of one rank: (O, L); L carries no gradient."""

    @staticmethod
    @exact
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, call: Call) -> tuple[Tensor, Tensor]:
        out, lse, saved = scheme.forward(call, q, k, v)
        ctx.scheme, ctx.call = scheme, call
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @exact
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; a gradient taken as constant would be wrong in silence
            raise NotImplementedError("attention has no second derivative: call backward without create_graph")
        return *ctx.scheme.backward(ctx.call, d_out, ctx.saved_tensors), None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    mesh: Any = None,
    strategy: str = "auto",
    plan: Plan | None = None,
    backend: str = "auto",
    scale: float | None = None,
    return_lse: bool = False,
    enable_gqa: bool | None = None,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    layout: str = "bhsd",
    debug: bool = False,
) -> Any:
    """Attention of this rank's queries over all visible keys of all ranks. Returns O, in q's layout and dtype, or
    (O, L) with L (B, H, nq) float32 (float64 for float64), natural logarithm, without gradient.

    mask: Full by default; with a plan it is the plan's. mesh: None, a DeviceMesh, a process group, or a Transport.
    Keep a Transport: it counts bytes, and remembers which plans its ranks agreed on, so that the small comparison
    before the first message is made once. Without a plan ranks tell each other their lengths at every call and the
    rows are taken as contiguous, in order of ranks.
    strategy, plan: a name of `Strategy`, "auto", or a plan of `make_plan`. backend: a name, or "auto".
    q, k and v have one dtype, in which O comes back whatever autocast says; tensors of different dtypes are brought to
    autocast's, as torch's own attention does. scale: 1/sqrt(D). softcap: c > 0 makes a scaled logit s into
    c tanh(s / c), before the mask's biases (Gemma 2, arXiv 2408.00118, section 2); served by math and flash-attn.
    enable_gqa: False refuses fewer key heads than query heads. debug: refuse NaN and infinity.
    Raises ShapeError, CapabilityError or PlanMismatch, on every rank and before anything else is sent.
    Dropout is not served and raises.
    """
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout must be 'bhsd' or 'bshd', given {layout!r}")
    compiling = torch.compiler.is_compiling()
    if compiling and (mesh is not None or plan is not None or strategy not in ("auto", "none") or debug or softcap):
        from longtake.kernels.calls.compiled import outside_the_graph

        return outside_the_graph(
            attention, q, k, v, mask=mask, mesh=mesh, strategy=strategy, plan=plan, backend=backend, scale=scale,
            layout=layout, return_lse=return_lse, enable_gqa=enable_gqa, softcap=softcap, dropout_p=dropout_p,
            debug=debug,
        )  # fmt: skip
    if layout == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    q, k, v = alike(q, k, v)
    transport, degree = as_transport(None if compiling else mesh)
    asked = Asked(
        q, k, v, mask, strategy, plan, backend, scale, enable_gqa, softcap, dropout_p, debug, degree
    )  # fmt: skip
    if compiling:
        from longtake.kernels.calls.compiled import compiled_attention

        asked.check()
        out, lse = compiled_attention(q, k, v, asked.wanted, backend, asked.scale_of_logits)
    else:
        out, lse = _run(asked, transport, return_lse)
    if layout == "bshd":
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


def _run(asked: Asked, transport: Transport, want_lse: bool) -> tuple[Tensor, Tensor]:
    """(O, L) of a call outside of a graph; L is of no use to the caller unless it is wanted."""
    if _is_checked(is_stock, asked, transport):
        alone = stock_attention(asked, want_lse)
        if alone is not None:
            return alone[0], alone[0] if alone[1] is None else alone[1]
    elif not want_lse and _is_checked(is_window, asked, transport):
        out = window_attention(asked)
        return out, out
    ready = settle(asked, transport)
    q, k, v = ready.scaled(asked.q), asked.k, asked.v
    if asked.needs_grad:
        out, lse = _Attend.apply(q, k, v, ready.scheme, ready.call)  # type: ignore[no-untyped-call]
    else:
        out, lse, _ = exact(ready.scheme.forward)(ready.call, q, k, v)
    if want_lse and isinstance(ready.scheme, Ulysses):
        lse = ready.scheme.gather_lse(ready.call, lse)
    return out, lse


def _is_checked(rule: Callable[[Asked, Transport], bool], asked: Asked, transport: Transport) -> bool:
    """Whether a short way serves a call; the call's own mistakes raise as everywhere."""
    if asked.q.dim() != 4 or asked.k.dim() != 4 or not rule(asked, transport):
        return False
    asked.check()
    if asked.plan is not None:
        check_plan(asked.plan, asked.wanted, asked.strategy, transport, asked.q, asked.k)
    asked.wanted.check_lengths(asked.q.shape[2], asked.k.shape[2])
    return True


@dataclass(frozen=True)
class Explanation:
    """What a call would do and why. `print` it."""

    plan: Plan
    backend: str
    why_strategy: tuple[str, ...]
    rejected_backends: tuple[str, ...]
    sent_bytes: dict[str, int]
    flops: int
    balance: float
    how: str = ""  # where torch's own function computes it: on what

    def __str__(self) -> str:
        plan = self.plan
        lines = [
            f"mask {plan.mask!r}: {plan.queries.total} queries, {plan.keys.total} keys on {plan.world} ranks",
            f"strategy {plan.strategy}",
            *(f"  {reason}" for reason in self.why_strategy),
            f"backend {self.backend}{self.how}",
            *(f"  not {reason}" for reason in self.rejected_backends),
            f"this rank sends {sum(self.sent_bytes.values())} bytes, forward and backward: {self.sent_bytes}",
            f"this rank computes {self.flops / 1e9:.3f} GFLOP forward; busiest rank / mean {self.balance:.2f}",
        ]
        return "\n".join(lines)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    mesh: Any = None,
    strategy: str = "auto",
    plan: Plan | None = None,
    backend: str = "auto",
    softcap: float = 0.0,
) -> Explanation:
    """What `attention` with the same arguments would do, without doing it. With a mesh and no plan, all ranks must
    call it."""
    transport, degree = as_transport(mesh)
    asked = Asked(q, k, v, mask, strategy, plan, backend, softcap=softcap, degree=degree)
    ready = settle(asked, transport)
    made = ready.plan
    heads, kv_heads = q.shape[1], k.shape[1]
    why: tuple[str, ...] = ("asked for",)
    if plan is None and strategy == "auto":
        why = pick_strategy(made.mask, made.queries, made.keys, heads, kv_heads, degree, made.block).reasons
    rejected = []
    chosen, how, other = ready.backend.name, "", "another one was asked for"
    if _is_checked(is_stock, asked, transport):
        chosen, how, other = picked(asked), ", picked by torch: its own function as it is", "torch picks another"
    elif _is_checked(is_window, asked, transport):
        chosen, other = "torch", f"slower than gathered windows; serves where L is asked for ({chosen} then)"
        how = "'s own function on gathered windows: one call, no merge"
    for known in backends():
        if known.name in chosen.split("+"):
            break
        rejected.append(f"{known.name}: {declines(known, asked.request) or other}")
    counter = forecast(
        made, transport.rank, batch=q.shape[0], heads=heads, kv_heads=kv_heads, head_dim=q.shape[3],
        value_dim=v.shape[3], dtype=q.dtype,
    )  # fmt: skip
    work = flops(made, transport.rank, batch=q.shape[0], heads=heads, kv_heads=kv_heads, head_dim=q.shape[3])
    return Explanation(
        made, chosen, why, tuple(rejected), dict(counter.sent), work, balance(made, heads), how
    )  # fmt: skip
