"""One call of `attention` as a value: what was asked, what ranks compare of it, and what it comes to on this rank.

`Asked` is what a caller gave. `settle` checks it, compares it with the other ranks, and answers with `Ready`: the plan,
the backend, this rank's scheme, the scale and the row factors. `attention` and its node in a compiled graph both run
what `settle` gives them.

    ready = settle(Asked(q, k, v, mask=Causal()), transport)
    out, lse, saved = ready.scheme.forward(ready.call, ready.scaled(q), k, v)

Shapes: q (B, H, nq, D), k (B, Hk, nk, D), v (B, Hk, nk, Dv), this rank's rows.
"""

import math
from dataclasses import dataclass

import torch
from longtake.kernels.backends.contract import Backend, Request, takes_whole
from longtake.kernels.backends.registry import choose_backend
from longtake.kernels.errors import CapabilityError, ShapeError
from longtake.kernels.masks.basic import Full, Lambda, Mask, TileKind
from longtake.kernels.plan.plan import Plan, Strategy, make_plan
from longtake.kernels.ranks.agreement import agree, number_of
from longtake.kernels.ranks.transport import Transport
from longtake.kernels.strategies.build import scheme
from longtake.kernels.strategies.engine import Call, Scheme
from torch import Tensor

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FULL = Full()


@dataclass(frozen=True)
class Asked:
    """A call as one rank makes it; the settings are those of `attention`.

    degree: of a two-dimensional mesh, None when there is none. grad: whether a gradient may be asked for; read off the
    tensors by default.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask | None = None
    strategy: str = "auto"
    plan: Plan | None = None
    backend: str = "auto"
    scale: float | None = None
    enable_gqa: bool | None = None
    softcap: float = 0.0
    dropout_p: float = 0.0
    debug: bool = False
    degree: int | None = None
    grad: bool | None = None

    @property
    def wanted(self) -> Mask:
        """The mask of the call: the one given, else the plan's, else Full."""
        return self.mask if self.mask is not None else self.plan.mask if self.plan is not None else _FULL

    @property
    def needs_grad(self) -> bool:
        if self.grad is not None:
            return self.grad
        return torch.is_grad_enabled() and any(x.requires_grad for x in (self.q, self.k, self.v))

    @property
    def scale_of_logits(self) -> float:
        return 1 / math.sqrt(self.q.shape[-1]) if self.scale is None else self.scale

    @property
    def request(self) -> Request:
        """What is asked of a backend."""
        kinds = {TileKind.FULL}
        if not isinstance(self.wanted, Full):
            kinds |= {TileKind.CAUSAL, TileKind.DENSE}
        return Request(
            self.q.dtype, self.q.shape[3], self.v.shape[3], self.q.device.type, frozenset(kinds),
            self.q.shape[1] != self.k.shape[1], self.needs_grad, self.wanted, float(self.softcap),
        )  # fmt: skip

    def check(self) -> None:
        """ShapeError or CapabilityError for a call that no rank could serve, whatever the others say."""
        check_tensors(self.q, self.k, self.v)
        shapes = f"q {tuple(self.q.shape)}, k {tuple(self.k.shape)}, v {tuple(self.v.shape)}"
        if self.enable_gqa is False and self.q.shape[1] != self.k.shape[1]:
            raise ShapeError(f"fewer key heads than query heads, but enable_gqa is False: {shapes}")
        if not self.softcap >= 0:
            raise ShapeError(f"softcap must be 0 (none) or greater, given {self.softcap}")
        if self.dropout_p:
            raise CapabilityError("dropout is not served: its pattern would depend on the number of ranks; set it to 0")
        if self.debug:
            for name, x in (("q", self.q), ("k", self.k), ("v", self.v)):
                if not bool(x.isfinite().all()):
                    raise ShapeError(f"{name} holds NaN or infinity, which kernels may swallow")
        _check_mask(self.wanted, self.q)

    def facts(self, backend: str) -> dict[str, int]:
        """What must be the same on every rank. backend: the one that this rank would take."""
        return {
            **_sizes(self.q, "batch", "query heads", None, "head size"),
            **_sizes(self.k, None, "key heads", None, "key head size"),
            **_sizes(self.v, None, None, None, "value size"),
            "dtype": _DTYPES.index(self.q.dtype) if self.q.dtype in _DTYPES else -1,
            "needs a gradient": int(self.needs_grad),
            "mask": number_of(self.wanted.digest()),
            "strategy": number_of(self.strategy),
            "backend": number_of(backend),
            "degree": self.degree or 0,
            "plan": 0 if self.plan is None else number_of(self.plan.digest()),
            "device": number_of(self.q.device.type),
            "softcap": number_of(str(float(self.softcap))),
        }

    def lengths(self) -> dict[str, int]:
        """What may differ between ranks, and without a plan must be told."""
        return {**_sizes(self.q, None, None, "query rows", None), **_sizes(self.k, None, None, "key rows", None)}


@dataclass(frozen=True)
class Ready:
    """A call that every rank agreed on, as this rank runs it.

    factors: what each query's logits are multiplied by (`Mask.row_factors`), (nq, 1) on q's device; None for 1.
    """

    plan: Plan
    scheme: Scheme
    call: Call
    factors: Tensor | None

    @property
    def backend(self) -> Backend:
        return self.call.backend

    def scaled(self, q: Tensor) -> Tensor:
        """Queries, or their gradients, times the row factors, in their own dtype."""
        return q if self.factors is None else (q * self.factors).to(q.dtype)


def settle(asked: Asked, transport: Transport) -> Ready:
    """Check what this rank was given, compare it with the others, and settle plan, backend and scheme.

    Raises ShapeError, CapabilityError or PlanMismatch, on every rank. With a plan the comparison is made once for each
    transport, without one at every call, because ranks tell each other their lengths.
    """
    problem: Exception | None = None
    chosen: Backend | None = None
    try:
        asked.check()
        if asked.plan is not None:
            check_plan(asked.plan, asked.wanted, asked.strategy, transport, asked.q, asked.k)
        chosen = choose_backend(asked.request, None if asked.backend == "auto" else asked.backend)
    except ValueError as error:
        problem = error
    facts = asked.facts(asked.backend if chosen is None else chosen.name)
    told = agree(
        transport, facts, asked.q.device, problem, free=asked.lengths(), remember=asked.plan is not None
    )  # fmt: skip
    assert chosen is not None
    heads, kv_heads = asked.q.shape[1], asked.k.shape[1]
    plan = asked.plan
    if plan is None:
        plan = make_plan(
            [own["query rows"] for own in told], asked.wanted, key_lengths=[own["key rows"] for own in told],
            strategy=asked.strategy, degree=asked.degree, heads=heads, kv_heads=kv_heads,
        )  # fmt: skip
    factors = plan.mask.row_factors(plan.queries.positions(transport.rank), plan.keys.total)
    if factors is not None:
        factors = factors.to(asked.q.device, torch.promote_types(asked.q.dtype, torch.float32))[:, None]
    part = scheme(plan, transport.rank, heads, kv_heads, takes_whole(chosen.capabilities(), asked.wanted))
    return Ready(plan, part, Call(transport, chosen, asked.scale_of_logits), factors)


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ShapeError unless q, k and v fit each other in shape, dtype and device."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ShapeError(f"q, k and v must be 4-D; given {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.shape[0] == k.shape[0] == v.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"batch, key heads, key rows and head size must agree: {shapes}")
    if not k.shape[1] or q.shape[1] % k.shape[1] or not q.shape[3] or not v.shape[3]:
        raise ShapeError(f"query heads must be a multiple of key heads, and sizes at least 1: {shapes}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise ShapeError(f"q, k and v need one dtype of {_DTYPES}; given {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ShapeError(f"q, k and v need one device; given {q.device}, {k.device}, {v.device}")


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


def _check_mask(mask: Mask, q: Tensor) -> None:
    if isinstance(mask, Lambda) and mask.max_distance is not None:
        raise CapabilityError(
            "a Lambda with max_distance needs q and k before their rotary embedding: call lambda_attention"
        )
    if mask.heads is not None and mask.heads != q.shape[1]:
        raise ShapeError(f"the mask has {mask.heads} heads, q has {q.shape[1]}")
    if mask.batch is not None and mask.batch != q.shape[0]:
        raise ShapeError(f"the mask has {mask.batch} batch entries, q has {q.shape[0]}")


def _sizes(x: Tensor, *names: str | None) -> dict[str, int]:
    """The named dims of a tensor; -1 for one that it lacks (every rank tells as many numbers, also about a mistake)."""
    return {name: x.shape[dim] if dim < x.dim() else -1 for dim, name in enumerate(names) if name is not None}
