"""One attention call over ranks against the float64 truth in one process: what the tests of strategies share."""

import math
from functools import lru_cache
from typing import Any

import torch
from longtake.kernels import Layout, Transport, attention, attention_reference, make_plan
from torch import Tensor

ATOL_LSE = 1e-5


def whole_tensors(
    nq: int,
    nk: int,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    batch: int = 2,
    value_dim: int | None = None,
) -> list[Tensor]:
    """q, k, v and the gradient of the output, the same on every rank."""
    generator = torch.Generator().manual_seed(nq * 1000 + heads * 100 + dim)
    value_dim = dim if value_dim is None else value_dim
    shapes = [(batch, heads, nq, dim), (batch, kv_heads, nk, dim), (batch, kv_heads, nk, value_dim)]
    shapes.append((batch, heads, nq, value_dim))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def truth(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, mask: Any, softcap: float = 0.0) -> list[Tensor]:
    """O, dQ, dK, dV, L in float64, from autograd over the dense definition."""
    leaves = [x.detach().double().clone().requires_grad_() for x in (q, k, v)]
    groups = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in leaves[1:])
    out, lse = attention_reference(leaves[0], keys, values, mask, softcap=softcap)
    grads = torch.autograd.grad(out, leaves, d_out.double(), allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
    return [out.detach(), *grads, lse.detach()]


Known = tuple[list[Tensor], list[Tensor]]


@lru_cache(maxsize=160)
def _known(
    nq: int, nk: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, batch: int, value_dim: int | None,
    mask: Any, softcap: float,
) -> Known:  # fmt: skip
    tensors = whole_tensors(nq, nk, heads, kv_heads, dim, dtype, batch, value_dim)
    return tensors, truth(*tensors, mask, softcap)


def known(case: dict[str, Any]) -> Known:
    """A case's `whole_tensors` and their `truth`, for every strategy alike: not to be written to."""
    return _known(
        case.get("nq", case.get("n")), case.get("nk", case.get("n")), case.get("heads", 4),
        case.get("kv_heads", case.get("heads", 4)), case.get("dim", 8), case.get("dtype", torch.float64),
        case.get("batch", 2), case.get("value_dim"), case["mask"], case.get("softcap", 0.0),
    )  # fmt: skip


def relmax(x: Tensor, ref: Tensor) -> float:
    """max |x - ref| / max |ref|; infinite when x is not finite."""
    if not x.numel():
        return 0.0
    if not bool(x.isfinite().all()):
        return math.inf
    return float((x.double() - ref).abs().max() / ref.abs().max().clamp(min=1e-300))


def case_error(
    rank: int, world: int, case: dict[str, Any], transport: Transport | None = None, answer: Known | None = None
) -> dict[str, float]:
    """Errors of O, dQ, dK, dV (relmax) and L (absolute) of this rank's shards in one case.

    case: mask, n (or nq and nk), heads, kv_heads, dim, batch, dtype, softcap, and the arguments of make_plan.
    answer: `known(case)`, where another process has worked it out.
    """
    nq, nk = case.get("nq", case.get("n")), case.get("nk", case.get("n"))
    heads, kv_heads = case.get("heads", 4), case.get("kv_heads", case.get("heads", 4))
    dtype, mask = case.get("dtype", torch.float64), case["mask"]
    (q, k, v, d_out), expected = known(case) if answer is None else answer
    lengths = case.get("lengths", nq)
    keys = case.get("key_lengths", None if nq == nk else nk)
    if keys == "replicated":
        keys = Layout.replicated_on(nk, world)
    plan = make_plan(
        lengths, mask, world=world, layout=case.get("layout", "contiguous"), strategy=case["strategy"],
        key_lengths=keys, degree=case.get("degree"), heads=heads, kv_heads=kv_heads, block=case.get("block", 32),
    )  # fmt: skip
    local = [plan.queries.shard(q, rank), plan.keys.shard(k, rank), plan.keys.shard(v, rank)]
    leaves = [x.clone().requires_grad_() for x in local]
    transport = Transport() if transport is None else transport
    out, lse = attention(
        *leaves, mesh=transport, plan=plan, return_lse=True, backend=case.get("backend", "auto"),
        softcap=case.get("softcap", 0.0),
    )  # fmt: skip
    out.backward(plan.queries.shard(d_out, rank))
    found = [out.detach(), *(x.grad for x in leaves)]
    owners = [plan.queries, plan.queries, plan.keys, plan.keys]
    # Divide by the largest value of the whole tensor: a shard of small values is judged like the rest.
    errors = {}
    for name, x, ref, owner in zip(("O", "dQ", "dK", "dV"), found, expected, owners, strict=False):
        mine = owner.shard(ref, rank)
        assert x is not None and x.dtype == dtype and x.shape == mine.shape, (name, x.shape, mine.shape)
        finite = bool(x.isfinite().all())
        worst = float((x.double() - mine).abs().max() / ref.abs().max().clamp(min=1e-300)) if x.numel() else 0.0
        errors[name] = worst if finite else math.inf
    lse_ref = plan.queries.shard(expected[4], rank)
    seen = lse_ref.isfinite()
    same_blind = torch.equal(lse.isfinite(), seen)
    gaps = (lse.double() - lse_ref)[seen].abs()
    errors["L"] = math.inf if not same_blind else float(gaps.max()) if gaps.numel() else 0.0
    blind = ~seen
    if blind.any() and not (bool((out[blind] == 0).all()) and bool((leaves[0].grad[blind] == 0).all())):
        errors["O"] = math.inf
    return errors


def worst_of(reports: list[list[dict[str, float]]], number: int) -> float:
    """The largest error of case `number` over ranks, L apart."""
    return max(value for report in reports for name, value in report[number].items() if name != "L")


def worst_lse(reports: list[list[dict[str, float]]], number: int) -> float:
    return max(report[number]["L"] for report in reports)
