"""Relative position bias by skewing: Music Transformer (arXiv 1809.04281, section 3.4), tile by tile.

For music and speech models with learned distances: the text encoder of VALL-E R (speech) will call it.

The logit of query i and key j is (q_i . k_j + q_i . e_{j-i}) scale, e a learned vector for each distance. Written out,
that takes N x N x D numbers; skewing takes Q E^T, whose row i holds every distance once, and shifts row i so that its
columns become keys. A tile of rows and keys needs only the distances that occur in it, so here even Q E^T exists a tile
at a time, and the backward gives e its gradient the same way. Torch's fused kernels would need the bias as a tensor and
pass no gradient to e without it.

Over ranks it goes by every strategy of `attention`; e is on every rank.

Shapes: B batch, H heads, N tokens, n this rank's, D head size, M longest distance + 1.

    out = relative_attention(q, k, v, e, causal=True)  # e: (H, M, D), e[:, M - 1] is distance 0
    out = relative_attention(q, k, v, e, causal=True, mesh=transport, plan=plan)
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from longtake.kernels.calls.own_tiles import OwnTiles, attend_own
from longtake.kernels.errors import ShapeError
from longtake.kernels.masks.basic import Causal, Full
from longtake.kernels.plan.plan import Plan
from longtake.kernels.plan.tiles import Runs, positions_of
from longtake.kernels.precision import accumulator_dtype, exact
from torch import Tensor


def skew(x: Tensor) -> Tensor:
    """The paper's procedure for a whole causal sequence: x = Q E^T (..., N, N), column c for distance c - (N - 1); out
    (..., N, N) with column j for key j. Right of the diagonal it holds other rows' numbers, which a causal mask hides.
    """
    length = x.shape[-1]
    padded = F.pad(x, (1, 0))  # a column before the first
    return padded.reshape(*x.shape[:-2], length + 1, length)[..., 1:, :]


@exact
def relative_bias_tile(q: Tensor, e: Tensor, q0: int, k0: int, keys: int, causal: bool = True) -> Tensor:
    """q_i . e_{j-i} for the rectangle of queries q0, q0 + 1, ... and keys [k0, k0 + keys): (B, H, rows, keys).

    q: (B, H, rows, D). e: as for `relative_attention`. Distances that e does not hold give 0.
    """
    rows = q.shape[2]
    table = _distances(e, k0 - (q0 + rows - 1), rows + keys - 1, causal)
    return _shift(q @ table.mT, rows, keys).clone()


def _distances(e: Tensor, first: int, count: int, causal: bool) -> Tensor:
    """Vectors of the distances j - i = first, first + 1, ...: (H or 1, count, D), zeros where e has none."""
    zero = e.shape[-2] - 1 if causal else e.shape[-2] // 2  # row of distance 0
    low, high = first + zero, first + zero + count
    inside = e[..., min(max(low, 0), e.shape[-2]) : max(min(high, e.shape[-2]), 0), :]
    before = min(max(-low, 0), count)
    return F.pad(inside, (0, 0, before, count - before - inside.shape[-2]))


def _shift(x: Tensor, rows: int, keys: int) -> Tensor:
    """A view of (..., rows, rows + keys - 1): row r from column rows - 1 - r on, so that columns are keys."""
    x = x.contiguous()
    width = rows + keys - 1
    strides = (*x.stride()[:-2], width - 1, 1)
    return x.as_strided((*x.shape[:-2], rows, keys), strides, x.storage_offset() + rows - 1)


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    mesh: Any = None,
    plan: Plan | None = None,
    strategy: str = "auto",
    tile: int = 128,
) -> Tensor:
    """Attention with the relative bias. Returns (B, H, n, Dv) in q's dtype.

    q, k: (B, H, n, D), v: (B, H, n, Dv), this rank's rows. e: (H, M, D), or (1, M, D) for all heads, on every rank.
    causal: M distances -(M - 1) ... 0; otherwise M is odd and they are -(M // 2) ... M // 2. Every distance that occurs
    must be there. scale: of both products, 1/sqrt(D) by default. mesh, plan, strategy: as for `attention`; the mask is
    Causal or Full. tile: queries whose logits are in memory together.
    Gradients reach q, k, v and e; e's is the sum over all ranks, on every rank.
    Raises ShapeError for shapes that do not fit and for distances that e lacks, PlanMismatch as `attention` does.
    """
    if q.dim() != 4 or q.shape[:3] != k.shape[:3] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if e.dim() != 3 or e.shape[0] not in (1, q.shape[1]) or e.shape[2] != q.shape[3]:
        raise ShapeError(f"e must be (H or 1, M, D) = ({q.shape[1]} or 1, M, {q.shape[3]}), given {tuple(e.shape)}")
    if not causal and e.shape[1] % 2 == 0:
        raise ShapeError(
            f"without causal, e holds as many distances on both sides of 0: M must be odd, given {e.shape[1]}"
        )
    if tile < 1:
        raise ShapeError(f"tile must be at least 1 query, given {tile}")
    held = e.shape[1] - 1 if causal else e.shape[1] // 2

    def enough(total: int) -> None:
        if total - 1 > held:
            raise ShapeError(f"distances up to {total - 1} occur, e holds them up to {held}")

    return attend_own(
        q, k, v, Causal() if causal else Full(), lambda table: _RelativeTiles(table, causal, tile), (e,),
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale, mesh=mesh, plan=plan, strategy=strategy,
        settings=(*e.shape, tile), check_total=enough,
    )  # fmt: skip


class _RelativeTiles(OwnTiles):
    """Logits q . k + q . e, runs of keys one after the other: skewed where positions are consecutive, looked up where
    they are not (striped rows)."""

    name = "relative"

    def __init__(self, e: Tensor, causal: bool, rows: int) -> None:
        super().__init__(rows)
        self.causal = causal
        self.zero = e.shape[1] - 1 if causal else e.shape[1] // 2
        self.e = e.detach().to(accumulator_dtype(e.dtype))
        self.grad = torch.zeros_like(self.e)

    def learned(self) -> list[Tensor]:
        return [self.grad]

    def _table(self, heads: slice) -> Tensor:
        return self.e if self.e.shape[0] == 1 else self.e[heads]

    def _numbers(self, q_run: range, k_run: range, device: torch.device) -> tuple[Tensor, Tensor]:
        """(row of e for each pair, whether e has it)."""
        numbers = positions_of((k_run,)) - positions_of((q_run,))[:, None] + self.zero
        inside = (numbers >= 0) & (numbers < self.e.shape[1])
        return numbers.clamp(0, self.e.shape[1] - 1).to(device), inside.to(device)

    def logits(self, q: Tensor, k: Tensor, q_run: range, k_runs: Runs, heads: slice) -> Tensor:
        table = self._table(heads).to(q.dtype)
        biases = []
        for k_run in k_runs:
            if _consecutive(q_run, k_run):
                biases.append(relative_bias_tile(q, table, q_run[0], k_run[0], len(k_run), self.causal))
            else:
                numbers, inside = self._numbers(q_run, k_run, q.device)
                biases.append((q @ table.mT).gather(-1, numbers.expand(*q.shape[:2], -1, -1)) * inside)
        return q @ k.mT + torch.cat(biases, -1)

    def logit_grads(
        self, grad: Tensor, q: Tensor, k: Tensor, q_run: range, k_runs: Runs, heads: slice
    ) -> tuple[Tensor, Tensor]:
        table = self._table(heads).to(q.dtype)
        d_q = grad @ k
        for k_run, part in zip(k_runs, grad.split([len(run) for run in k_runs], -1), strict=True):
            if _consecutive(q_run, k_run):
                count, first = len(q_run) + len(k_run) - 1, k_run[0] - q_run[-1]
                d_table = part.new_zeros(*part.shape[:3], count)
                _shift(d_table, len(q_run), len(k_run)).copy_(part)
                d_q = d_q + d_table @ _distances(table, first, count, self.causal)
                low, high = max(first + self.zero, 0), min(first + self.zero + count, table.shape[1])
                d_table = d_table[..., low - first - self.zero : high - first - self.zero]
            else:
                numbers, inside = self._numbers(q_run, k_run, q.device)
                d_table = part.new_zeros(*part.shape[:3], table.shape[1])
                d_table.scatter_add_(-1, numbers.expand_as(part), part * inside)
                d_q = d_q + d_table @ table
                low, high = 0, table.shape[1]
            d_vectors = (d_table.mT @ q).sum(0)
            if self.e.shape[0] == 1:
                self.grad[:, low:high] += d_vectors.sum(0, keepdim=True)
            else:
                self.grad[heads, low:high] += d_vectors
        return d_q, grad.mT @ q


def _consecutive(q_run: range, k_run: range) -> bool:
    return (q_run.step == 1 or len(q_run) == 1) and (k_run.step == 1 or len(k_run) == 1)
