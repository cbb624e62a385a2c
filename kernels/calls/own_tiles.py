"""Attention whose logits are more than q . k and a mask, over one rank or many: the strategies of `attention`, with a
backend that the operator brings along.

A backend made for one call sees each piece of work as a whole tile, with the global positions of its rows and keys. So
an operator says only what a piece is (forward, backward), and gets ring, all-gather, halo and Ulysses for it. What it
learns besides q, k and v (a table of distances) is on every rank; its gradient is added up over all of them.

Used by `relative_attention` and `lambda_attention`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from longtake.kernels.backends.contract import Capabilities, Request, lacks
from longtake.kernels.calls.request import check_plan
from longtake.kernels.errors import CapabilityError, ShapeError
from longtake.kernels.heads import gather_heads, spread_heads
from longtake.kernels.masks.basic import Bounds, Mask, Positions, TileKind
from longtake.kernels.plan.plan import Plan, Strategy, make_plan
from longtake.kernels.plan.tiles import Runs, Span, Tile, positions_of, rows_within, run_bounds, sub_runs, take
from longtake.kernels.precision import accumulator_dtype, exact
from longtake.kernels.ranks.agreement import agree, number_of
from longtake.kernels.ranks.mesh import as_transport
from longtake.kernels.ranks.transport import Transport
from longtake.kernels.strategies.build import scheme as scheme_of
from longtake.kernels.strategies.engine import Call, Scheme, add_keys, zeros_for
from torch import Tensor


@dataclass(frozen=True)
class HeadRange(Mask):
    """`inner`, for query heads [start, stop) of all: tells a backend which heads a rank computes.

    Ulysses cuts heads through `slice_heads`, by numbers that count from the first head of what it cuts. A backend gets
    only its heads' q, but the learned table e of all of them. Six heads on two ranks:

        HeadRange(inner, 0, 6)                               q heads   0 1 2 3 4 5
            slice_heads(0, 3) -> HeadRange(inner, 0, 3)      rank 0    0 1 2            with e[0:3]
            slice_heads(3, 6) -> HeadRange(inner, 3, 6)      rank 1          0 1 2      with e[3:6]
                slice_heads(1, 3) -> HeadRange(inner, 4, 6)                    0 1      with e[4:6]
    """

    inner: Mask
    start: int
    stop: int

    def dense(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        return self.inner.dense(q_pos, k_pos)

    def classify(self, q0: int, q1: int, k0: int, k1: int) -> TileKind:
        return self.inner.classify(q0, q1, k0, k1)

    def band(self, q0: int, q1: int, k0: int, k1: int) -> Bounds:
        return self.inner.band(q0, q1, k0, k1)

    def reach(self, q0: int, q1: int) -> list[tuple[int, int]]:
        return self.inner.reach(q0, q1)

    @property
    def heads(self) -> int | None:
        return self.stop - self.start

    def slice_heads(self, start: int, stop: int) -> "HeadRange":
        return HeadRange(self.inner, self.start + start, self.start + stop)


class OwnTiles:
    """A backend of one call that makes its own logits, some rows at a time. Subclasses say what a logit is.

    rows: queries whose logits are in memory together.
    """

    name = "own"

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def logits(self, q: Tensor, k: Tensor, q_run: range, k_runs: Runs, heads: slice) -> Tensor:
        """(B, H, rows, keys) of some rows, scale and mask not yet in it; k has as many heads as q."""
        raise NotImplementedError

    def logit_grads(
        self, grad: Tensor, q: Tensor, k: Tensor, q_run: range, k_runs: Runs, heads: slice
    ) -> tuple[Tensor, Tensor]:
        """(dQ, dK) from the gradient of `logits`; gradients of learned tensors are added to their sums."""
        raise NotImplementedError

    def learned(self) -> list[Tensor]:
        """Sums of the gradients of learned tensors."""
        return []

    def capabilities(self) -> Capabilities:
        return Capabilities(masks=frozenset({"HeadRange"}), value_dim_differs=True)

    def refuses(self, request: Request) -> str | None:
        return lacks(self.capabilities(), request)

    def _chunks(self, tile: Tile, q: Tensor) -> Iterator[tuple[slice, range, list[Span], Runs, Tensor, slice]]:
        """(rows, their positions, key spans in reach, those keys' positions, score, heads)."""
        mask = tile.mask
        assert isinstance(mask, HeadRange)
        first = 0
        for run in tile.q_runs:
            for start in range(0, len(run), self.rows):
                piece = run[start : start + self.rows]
                spans = rows_within(tile.k_runs, mask.reach(*run_bounds(piece)))
                k_runs = sub_runs(tile.k_runs, spans)
                if spans:
                    score = mask.inner.score(piece, positions_of(k_runs)).to(q.device, accumulator_dtype(q.dtype))
                    rows = slice(first + start, first + start + len(piece))
                    yield rows, piece, spans, k_runs, score, slice(mask.start, mask.stop)
            first += len(run)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        wide = accumulator_dtype(q.dtype)
        out = q.new_zeros(*q.shape[:3], v.shape[3], dtype=wide)
        lse = q.new_full(q.shape[:3], -math.inf, dtype=wide)
        for rows, q_run, spans, k_runs, score, heads in self._chunks(tile, q):
            part, keys, values = _wide(q[:, :, rows], take(k, spans), take(v, spans))
            logits = self.logits(part, keys, q_run, k_runs, heads) * scale + score
            top = logits.logsumexp(-1)
            safe = top.masked_fill(top == -math.inf, 0)
            out[:, :, rows], lse[:, :, rows] = (logits - safe[..., None]).exp() @ values, top
        return out.to(q.dtype), lse

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_q, d_k, d_v = (zeros_for(x) for x in (q, k, v))
        lse = lse.masked_fill(lse == -math.inf, 0)
        for rows, q_run, spans, k_runs, score, heads in self._chunks(tile, q):
            part, keys, values = _wide(q[:, :, rows], take(k, spans), take(v, spans))
            grad, whole = d_out[:, :, rows].to(part.dtype), out[:, :, rows].to(part.dtype)
            logits = self.logits(part, keys, q_run, k_runs, heads) * scale + score
            weights = (logits - lse[:, :, rows, None]).exp()
            delta = (grad * whole).sum(-1, keepdim=True)
            d_logits = weights * (grad @ values.mT - delta) * scale
            grad_q, grad_k = self.logit_grads(d_logits, part, keys, q_run, k_runs, heads)
            d_q[:, :, rows] += grad_q
            add_keys(d_k, d_v, spans, *(gather_heads(x, k.shape[1]) for x in (grad_k, weights.mT @ grad)))
        return d_q, d_k, d_v


def _wide(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the accumulator's dtype, keys and values once for every query head."""
    wide = accumulator_dtype(q.dtype)
    return q.to(wide), spread_heads(k, q.shape[1]).to(wide), spread_heads(v, q.shape[1]).to(wide)


class _AttendOwn(torch.autograd.Function):
    """make: learned tensors -> a backend that holds them."""

    @staticmethod
    @exact
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scheme: Scheme,
        transport: Transport,
        scale: float,
        make: Callable[..., OwnTiles],
        *learned: Tensor,
    ) -> Tensor:
        out, _, saved = scheme.forward(Call(transport, make(*learned), scale), q, k, v)
        ctx.settings = scheme, transport, scale, make, len(learned)
        ctx.save_for_backward(*learned, *saved)
        return out

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scheme, transport, scale, make, count = ctx.settings
        learned, saved = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        backend = make(*learned)
        found = scheme.backward(Call(transport, backend, scale), grads[0], saved)
        sums = [transport.start_sum("learned_grad", grad).wait() for grad in backend.learned()]
        return *found, None, None, None, None, *(g.to(x.dtype) for g, x in zip(sums, learned, strict=True))


def attend_own(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    make: Callable[..., OwnTiles],
    learned: Sequence[Tensor] = (),
    *,
    scale: float,
    mesh: Any = None,
    plan: Plan | None = None,
    strategy: str = "auto",
    settings: Sequence[int] = (),
    check_total: Callable[[int], None] | None = None,
) -> Tensor:
    """This rank's rows of attention with the backend `make(*learned)`, under `mask`.

    q: (B, H, nq, D); k: (B, Hk, nk, D); v: (B, Hk, nk, Dv), local rows. settings: whole numbers that must be the same
    on every rank. check_total: raises for a whole length that does not fit. Otherwise as `attention`.
    Raises ShapeError, CapabilityError, or PlanMismatch on every rank.
    """
    transport, degree = as_transport(mesh)
    problem: Exception | None = None
    if plan is not None:
        try:
            check_plan(plan, mask, strategy, transport, q, k)
        except ShapeError as error:
            problem = error
    told = {
        "batch": q.shape[0], "query heads": q.shape[1], "head size": q.shape[3], "key heads": k.shape[1],
        "value size": v.shape[3], "plan": 0 if plan is None else number_of(plan.digest()),
        "mask": number_of(mask.digest()), **{f"setting {n}": value for n, value in enumerate(settings)},
    }  # fmt: skip
    lengths = agree(transport, told, q.device, problem, free={"query rows": q.shape[2], "key rows": k.shape[2]})
    if plan is None:
        plan = make_plan(
            [own["query rows"] for own in lengths], mask, key_lengths=[own["key rows"] for own in lengths],
            strategy=strategy, degree=degree, heads=q.shape[1], kv_heads=k.shape[1],
        )  # fmt: skip
    if check_total is not None:
        check_total(plan.keys.total)
    if plan.strategy is Strategy.CONTEXT:
        raise CapabilityError("keys on every rank are not served here; shard them")
    own = replace(plan, mask=HeadRange(mask, 0, q.shape[1]))
    scheme = scheme_of(own, transport.rank, q.shape[1], k.shape[1], whole=True)
    out: Tensor = _AttendOwn.apply(q, k, v, scheme, transport, scale, make, *learned)
    return out
