"""The public call: exact attention over one rank or many, forward and backward, for any mask, strategy and split.

    out = attention(q, k, v, mask=Causal())                                    # one process
    out = attention(q, k, v, mask=Causal(), mesh=transport, plan=plan)         # this rank's shards of a plan
    print(explain(q, k, v, mask=Causal(), mesh=transport))                     # what would be done, and why

The way of a call: mask -> plan (layouts, strategy) -> this rank's tiles and messages -> backend, tile by tile -> merge.
One autograd Function holds it: it keeps the final output and log-sum-exp, and its backward runs every tile again with
those, so gradients are exact sums and none flows through a merge. Double backward is not supported and raises.

Shapes: q (B, H, nq, D), k (B, Hk, nk, D), v (B, Hk, nk, Dv), this rank's rows; layout="bshd" swaps the middle two.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from longtake.kernels.backends.registry import Backend, Request, backends, choose_backend, declines, takes_whole
from longtake.kernels.calls.compiled import compiled_attention
from longtake.kernels.errors import CapabilityError, ShapeError
from longtake.kernels.masks.basic import Full, Lambda, Mask, TileKind
from longtake.kernels.plan.choose import pick_strategy
from longtake.kernels.plan.plan import Plan, Strategy, make_plan
from longtake.kernels.ranks.agreement import raise_together
from longtake.kernels.ranks.transport import DryTransport, Transport
from longtake.kernels.strategies.engine import Run, Scheme
from longtake.kernels.strategies.ulysses import Ulysses
from torch import Tensor

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FULL = Full()
_TELL = 18  # numbers that ranks compare


class _Call(torch.autograd.Function):
    """One call of one rank: (O, L); L carries no gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, run: Run) -> tuple[Tensor, Tensor]:
        out, lse, saved = scheme.forward(run, q, k, v)
        ctx.scheme, ctx.run = scheme, run
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; a gradient taken as constant would be wrong in silence
            raise NotImplementedError("attention has no second derivative: call backward without create_graph")
        return *ctx.scheme.backward(ctx.run, d_out, ctx.saved_tensors), None, None


def as_transport(mesh: Any) -> tuple[Transport, int | None]:
    """A transport, and the Ulysses degree of a two-dimensional mesh.

    mesh: None (one process by itself), a Transport, a process group, a DeviceMesh of one dimension, or one of two
    dimensions (ring, ulysses) over all ranks.
    """
    if isinstance(mesh, Transport):
        return mesh, None
    if mesh is None:
        return _alone(), None
    if isinstance(mesh, dist.ProcessGroup):
        return Transport(mesh), None
    if mesh.ndim == 1:
        return Transport(mesh.get_group()), None
    if mesh.ndim == 2:
        if mesh.size() != dist.get_world_size() or mesh.mesh.flatten().tolist() != list(range(mesh.size())):
            raise CapabilityError(
                "a two-dimensional mesh must hold all ranks in order; flatten a sub-mesh and give the plan a degree"
            )
        return Transport(), int(mesh.size(1))
    raise CapabilityError(f"a mesh of {mesh.ndim} dimensions; one (ring or ulysses) or two (ring, ulysses) are served")


def _alone() -> Transport:
    return DryTransport(0, 1)


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
    scale: 1/sqrt(D). softcap: c > 0 makes a scaled logit s into c tanh(s / c), before the mask's biases (Gemma 2,
    arXiv 2408.00118, section 2); served by math and flash-attn. enable_gqa: False refuses fewer key heads than query
    heads. debug: refuse NaN and infinity.
    Raises ShapeError, CapabilityError or PlanMismatch, on every rank and before anything else is sent.
    Dropout is not served and raises.
    """
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout must be 'bhsd' or 'bshd', given {layout!r}")
    compiling = torch.compiler.is_compiling()
    if compiling and (mesh is not None or plan is not None or strategy not in ("auto", "none") or debug or softcap):
        return _outside_the_graph(
            q, k, v, mask=mask, mesh=mesh, strategy=strategy, plan=plan, backend=backend, scale=scale, layout=layout,
            return_lse=return_lse, enable_gqa=enable_gqa, softcap=softcap, dropout_p=dropout_p, debug=debug,
        )  # fmt: skip
    if layout == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if compiling:
        _check(q, k, v, enable_gqa, softcap, dropout_p, debug)
        usual = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        out, lse = compiled_attention(q, k, v, _FULL if mask is None else mask, backend, usual)
        out = out.transpose(1, 2) if layout == "bshd" else out
        return (out, lse) if return_lse else out
    transport, degree = as_transport(mesh)
    ready = _prepare(
        q, k, v, mask, transport, degree, strategy, plan, backend, enable_gqa, softcap, dropout_p, debug
    )  # fmt: skip
    factors = ready.plan.mask.row_factors(ready.plan.queries.positions(transport.rank), ready.plan.keys.total)
    if factors is not None:
        q = (q * factors.to(q.device, torch.promote_types(q.dtype, torch.float32))[:, None]).to(q.dtype)
    run = Run(transport, ready.backend, 1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scheme = ready.plan.scheme(transport.rank, q.shape[1], k.shape[1], ready.whole)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out, lse = _Call.apply(q, k, v, scheme, run)  # type: ignore[no-untyped-call]
    else:
        out, lse, _ = scheme.forward(run, q, k, v)
    if layout == "bshd":
        out = out.transpose(1, 2)
    if not return_lse:
        return out
    return out, scheme.gather_lse(run, lse) if isinstance(scheme, Ulysses) else lse


@torch.compiler.disable
def _outside_the_graph(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Any:
    """The call as it is without torch.compile, between two graphs; with fullgraph=True torch refuses it."""
    return attention(q, k, v, **settings)


@dataclass(frozen=True)
class _Ready:
    """A call that every rank agreed on. whole: the backend takes the mask as it is."""

    plan: Plan
    backend: Backend
    whole: bool


def _number(text: str) -> int:
    """A number of 60 bits from a name or a digest of 16 hex digits."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None,
    transport: Transport,
    degree: int | None,
    strategy: str,
    plan: Plan | None,
    backend: str,
    enable_gqa: bool | None,
    softcap: float,
    dropout_p: float,
    debug: bool,
) -> _Ready:
    """Check what this rank was given, compare it with the others, and settle plan and backend."""
    problem: Exception | None = None
    chosen: Backend | None = None
    grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    wanted = mask if mask is not None else plan.mask if plan is not None else _FULL
    try:
        _check(q, k, v, enable_gqa, softcap, dropout_p, debug)
        _check_mask(wanted, q)
        if plan is not None:
            check_plan(plan, wanted, strategy, transport, q, k)
        chosen = choose_backend(_request(q, k, v, wanted, grad, softcap), None if backend == "auto" else backend)
    except (ValueError, CapabilityError) as error:
        problem = error
    said = [
        int(problem is not None), *_dims(q, 4), *_dims(k, 4)[1:], *_dims(v, 4)[3:],
        _DTYPES.index(q.dtype) if q.dtype in _DTYPES else -1, int(grad), _number(wanted.digest()),
        _number(strategy), _number(chosen.name if chosen is not None else backend), degree or 0,
        _number(plan.digest()) if plan is not None else 0, _number(q.device.type),
        _number(str(float(softcap))),
    ]  # fmt: skip
    assert len(said) == _TELL
    if transport.world == 1:
        if problem is not None:
            raise problem
        everybody = [said]
    else:
        key = tuple(said)
        if plan is not None and key in transport.verified and problem is None:
            assert chosen is not None
            return _Ready(plan, chosen, takes_whole(chosen.capabilities(), wanted))
        everybody = transport.compare(said, q.device)
        raise_together(everybody, _FIELDS, transport.rank, problem, _MAY_DIFFER)
        transport.verified.add(key)
    assert chosen is not None
    if plan is None:
        plan = _plan_from(everybody, wanted, strategy, degree, q.shape[1], k.shape[1])
    return _Ready(plan, chosen, takes_whole(chosen.capabilities(), wanted))


def _dims(x: Tensor, count: int) -> list[int]:
    return [*x.shape[:count], *([-1] * (count - x.dim()))]


_FIELDS = (
    "validity", "batch", "query heads", "query rows", "head size", "key heads", "key rows", "key head size",
    "value size", "dtype", "needs a gradient", "mask", "strategy", "backend", "degree", "plan", "device", "softcap",
)  # fmt: skip
_MAY_DIFFER = {"query rows", "key rows"}


def _plan_from(
    everybody: list[list[int]], mask: Mask, strategy: str, degree: int | None, heads: int, kv_heads: int
) -> Plan:
    """A plan for contiguous rows, from everybody's lengths."""
    rows, keys = [said[3] for said in everybody], [said[6] for said in everybody]
    return make_plan(
        tuple(rows), mask, strategy=strategy, key_lengths=tuple(keys), degree=degree, heads=heads, kv_heads=kv_heads
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool | None, softcap: float, dropout_p: float, debug: bool
) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ShapeError(f"q, k and v must be 4-D; given {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.shape[0] == k.shape[0] == v.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"batch, key heads, key rows and head size must agree: {shapes}")
    if not k.shape[1] or q.shape[1] % k.shape[1] or not q.shape[3] or not v.shape[3]:
        raise ShapeError(f"query heads must be a multiple of key heads, and sizes at least 1: {shapes}")
    if enable_gqa is False and q.shape[1] != k.shape[1]:
        raise ShapeError(f"fewer key heads than query heads, but enable_gqa is False: {shapes}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise ShapeError(f"q, k and v need one dtype of {_DTYPES}; given {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ShapeError(f"q, k and v need one device; given {q.device}, {k.device}, {v.device}")
    if not softcap >= 0:
        raise ShapeError(f"softcap must be 0 (none) or greater, given {softcap}")
    if dropout_p:
        raise CapabilityError("dropout is not served: its pattern would depend on the number of ranks; set it to 0")
    if debug:
        for name, x in (("q", q), ("k", k), ("v", v)):
            if not bool(x.isfinite().all()):
                raise ShapeError(f"{name} holds NaN or infinity, which kernels may swallow")


def _check_mask(mask: Mask, q: Tensor) -> None:
    if isinstance(mask, Lambda) and mask.max_distance is not None:
        raise CapabilityError(
            "a Lambda with max_distance needs q and k before their rotary embedding: call lambda_attention"
        )
    if mask.heads is not None and mask.heads != q.shape[1]:
        raise ShapeError(f"the mask has {mask.heads} heads, q has {q.shape[1]}")
    if mask.batch is not None and mask.batch != q.shape[0]:
        raise ShapeError(f"the mask has {mask.batch} batch entries, q has {q.shape[0]}")


def check_plan(plan: Plan, mask: Mask, strategy: str, transport: Transport, q: Tensor, k: Tensor) -> None:
    """ShapeError unless a plan fits the ranks, this rank's rows, and what is given beside it."""
    if plan.world != transport.world:
        raise ShapeError(f"the plan is for {plan.world} ranks, the mesh has {transport.world}")
    if mask != plan.mask:
        raise ShapeError(f"mask {mask!r} is given beside a plan for {plan.mask!r}: leave one of them out")
    if strategy != "auto" and Strategy(strategy) is not plan.strategy:
        raise ShapeError(f"strategy {strategy} is given beside a plan for {plan.strategy}: leave one of them out")
    rows, keys = plan.queries.sizes[transport.rank], plan.keys.sizes[transport.rank]
    if (q.shape[2], k.shape[2]) != (rows, keys):
        raise ShapeError(
            f"rank {transport.rank}: the plan gives it {rows} query rows and {keys} key rows, given {q.shape[2]} and "
            f"{k.shape[2]}"
        )


def _request(q: Tensor, k: Tensor, v: Tensor, mask: Mask, grad: bool, softcap: float = 0.0) -> Request:
    kinds = {TileKind.FULL}
    if not isinstance(mask, Full):
        kinds |= {TileKind.CAUSAL, TileKind.DENSE}
    return Request(
        q.dtype, q.shape[3], v.shape[3], q.device.type, frozenset(kinds), q.shape[1] != k.shape[1], grad, mask,
        float(softcap),
    )


def checked_request(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Request:
    """A request that may need a gradient, after the checks of shapes and mask."""
    _check(q, k, v, None, 0.0, 0.0, False)
    _check_mask(mask, q)
    return _request(q, k, v, mask, grad=True)


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

    def __str__(self) -> str:
        plan = self.plan
        lines = [
            f"mask {plan.mask!r}: {plan.queries.total} queries, {plan.keys.total} keys on {plan.world} ranks",
            f"strategy {plan.strategy}",
            *(f"  {reason}" for reason in self.why_strategy),
            f"backend {self.backend}",
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
    ready = _prepare(q, k, v, mask, transport, degree, strategy, plan, backend, None, softcap, 0.0, False)
    given = plan
    plan = ready.plan
    if given is None and strategy == "auto":
        choice = pick_strategy(plan.mask, plan.queries, plan.keys, q.shape[1], k.shape[1], degree, plan.block)
        why = choice.reasons
    else:
        why = ("asked for",)
    request = _request(q, k, v, plan.mask, q.requires_grad, softcap)
    rejected = []
    for known in backends():
        if known.name in ready.backend.name.split("+"):
            break
        rejected.append(f"{known.name}: {declines(known, request) or 'another one was asked for'}")
    counter = plan.forecast(
        transport.rank, batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], head_dim=q.shape[3],
        value_dim=v.shape[3], dtype=q.dtype,
    )  # fmt: skip
    flops = plan.flops(
        transport.rank, batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], head_dim=q.shape[3]
    )  # fmt: skip
    return Explanation(
        plan, ready.backend.name, why, tuple(rejected), dict(counter.sent), flops, plan.balance(q.shape[1])
    )  # fmt: skip

