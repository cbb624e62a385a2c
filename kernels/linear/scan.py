"""Linear recurrences over ranks: every rank sums up its piece in one small state, one all-gather, one local combine.

For longitudinal images (SADM): state spaces over many visits, with ConvS5 where the state is an image.

`prefix_scan` is the primitive (all-gather of equal summaries and an associative `combine`); LASP-2 in lasp2.py, and
here the diagonal state spaces, stand on it. Its traffic does not depend on the length of the sequence.

    diagonal_scan  x_t = a_t x_{t-1} + u_t, real or complex, a constant or different at each step
    diagonal_ssm   S4D (arXiv 2206.11893) and S5 (arXiv 2208.04933): y = Re(C x) + D u with x' = A x + B u discretised
    conv_s5        ConvS5 (arXiv 2310.19694): the state is an image, A is diagonal and B, C are convolutions

Shapes: B batch, n my steps, N of all ranks, S state channels, P ranks.

    x = diagonal_scan(a, u, transport=Transport(), partition=Partition.even(total, world))
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from longtake.kernels.partition import Partition
from longtake.kernels.precision import exact
from longtake.kernels.ranks.agreement import agree
from longtake.kernels.ranks.mesh import alone
from longtake.kernels.ranks.summaries import Summary, gather_summaries
from longtake.kernels.ranks.transport import Transport
from torch import Tensor

Combine = Callable[[Summary, Summary], Summary]


class Discretization(StrEnum):
    """From x' = A x + B u to steps of length dt."""

    ZOH = "zoh"  # exp(A dt), (exp(A dt) - 1) / A B: the input is constant during a step (S4D, S5)
    BILINEAR = "bilinear"  # (1 + A dt / 2) / (1 - A dt / 2), dt / (1 - A dt / 2) B (S4)


@exact
def prefix_scan(
    summary: Summary, combine: Combine, *, identity: Summary, transport: Transport | None = None, reverse: bool = False
) -> Summary:
    """What the ranks before mine add up to: combine(s_0, combine(s_1, ...)) over ranks < mine; `identity` on rank 0.

    summary: tensors of one dtype, the same shapes on every rank; they carry gradients.
    combine(earlier, later): associative, differentiable, in the order of time.
    identity: the neutral summary, with the shapes of `summary`.
    reverse: the ranks after mine instead, still combined in the order of time.
    One collective forward and one backward, joined by every rank, also by rank 0 that uses nothing: so every rank has
    to run the backward, and tensors must require a gradient on all ranks or on none.
    """
    transport = alone() if transport is None else transport
    if [tensor.shape for tensor in summary] != [tensor.shape for tensor in identity]:
        raise ValueError("identity must have the shapes of the summary")
    told = {f"size {d} of tensor {n}": size for n, x in enumerate(summary) for d, size in enumerate(x.shape)}
    agree(transport, {"tensors": len(summary), **told}, summary[0].device)
    outputs = _PrefixScan.apply(combine, identity, transport, reverse, *summary)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _others(everyone: Sequence[Summary], rank: int, combine: Combine, identity: Summary, reverse: bool) -> Summary:
    """The summaries before (after) `rank`, combined in the order of time."""
    parts = list(everyone[rank + 1 :] if reverse else everyone[:rank])
    if not parts:
        return identity
    total = parts[0]
    for part in parts[1:]:
        total = combine(total, part)
    return total


class _PrefixScan(torch.autograd.Function):
    """Backward: rank t's summary acts on every later rank r, so dL/ds_t sums over r what r's cotangent says; the
    cotangents are gathered, everything else is known here.

    Four ranks, s_r the summary of rank r, * for combine, g_r the cotangent of what rank r carried:

        rank r         0          1          2             3
        carried        identity   s_0        s_0 * s_1     s_0 * s_1 * s_2       forward: one gather of s
        cotangent      g_0        g_1        g_2           g_3                   backward: one gather of g
                                             |             |
        dL/ds_1   =               g_2 . d(s_0 * s_1)/ds_1  +  g_3 . d(s_0 * s_1 * s_2)/ds_1

    Rank 1 builds what its users, ranks 2 and 3, carried once more, with its own summary as the leaf. With `reverse` its
    one user is rank 0, which carried s_1 * s_2 * s_3.
    """

    @staticmethod
    @exact
    def forward(
        ctx: Any, combine: Combine, identity: Summary, transport: Transport, reverse: bool, *summary: Tensor
    ) -> Summary:
        everyone = gather_summaries(transport, summary)
        ctx.combine, ctx.identity, ctx.transport, ctx.reverse = combine, identity, transport, reverse
        ctx.width = len(summary)
        ctx.save_for_backward(*(tensor for part in everyone for tensor in part))
        ctx.set_materialize_grads(True)
        return tuple(tensor.clone() for tensor in _others(everyone, transport.rank, combine, identity, reverse))

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved, width, rank = ctx.saved_tensors, ctx.width, ctx.transport.rank
        everyone = [saved[start : start + width] for start in range(0, len(saved), width)]
        cotangents = gather_summaries(ctx.transport, tuple(grads))
        mine = tuple(tensor.detach().requires_grad_() for tensor in everyone[rank])
        everyone[rank] = mine
        users = range(rank) if ctx.reverse else range(rank + 1, len(everyone))
        outputs: list[Tensor] = []
        seeds: list[Tensor] = []
        with torch.enable_grad():
            for user in users:
                carried = _others(everyone, user, ctx.combine, ctx.identity, ctx.reverse)
                for tensor, cotangent in zip(carried, cotangents[user], strict=True):
                    if tensor.requires_grad:
                        outputs.append(tensor)
                        seeds.append(cotangent)
        zero = tuple(torch.zeros_like(tensor) for tensor in mine)
        if not outputs:
            return (None, None, None, None, *zero)
        found = torch.autograd.grad(outputs, mine, seeds, allow_unused=True)
        return (None, None, None, None, *(z if g is None else g for z, g in zip(zero, found, strict=True)))


@exact
def diagonal_scan(
    a: Tensor,
    u: Tensor,
    *,
    dim: int = 1,
    transport: Transport | None = None,
    partition: Partition | None = None,
) -> Tensor:
    """x_t = a_t x_{t-1} + u_t along `dim`, from x = 0 before the first step of rank 0. Returns x, shaped like u.

    u: my steps in `dim`, e.g. (B, n, S); real or complex, of a's dtype; n may differ between ranks and may be 0.
    a: without `dim`, e.g. (1, S): the same at every step; or with it, (B, n, S): one for each of my steps.
        Broadcastable to u otherwise.
    partition: the steps of all ranks; needed with several ranks when a is constant, whose powers then need not travel.
    Bytes sent: (P - 1) times one state (u without `dim`), and as much as one step of a when a changes with time; the
    backward sends one state. One collective each way.
    """
    transport = alone() if transport is None else transport
    dim = dim % u.dim()
    steady = a.dim() == u.dim() - 1
    if a.dtype != u.dtype or not (steady or (a.dim() == u.dim() and a.shape[dim] == u.shape[dim])):
        raise ValueError(
            f"a {tuple(a.shape)} {a.dtype} must have the dtype and dims of u {tuple(u.shape)} {u.dtype}, with as many "
            f"steps in dim {dim}, or without that dim when it is constant"
        )
    if transport.world > 1 and partition is None and steady:
        raise ValueError("a constant a over several ranks needs the partition of the steps, to know its powers")
    if partition is not None and (
        partition.parts != transport.world or partition.sizes[transport.rank] != u.shape[dim]
    ):
        raise ValueError(
            f"rank {transport.rank} of {transport.world} holds {u.shape[dim]} steps, the partition says {partition}"
        )
    told = {f"size {n}": size for n, size in enumerate(u.shape) if n != dim}
    agree(transport, {"dims": u.dim(), "dim": dim, "steady": int(steady), **told}, u.device)
    if steady:
        partition = Partition.from_sizes([u.shape[dim]]) if partition is None else partition
    steps = a[None] if steady else a.movedim(dim, 0)
    x: Tensor = _DiagonalScan.apply(steps, u.movedim(dim, 0), transport, partition if steady else None)
    return x.movedim(0, dim)


def diagonal_scan_reference(a: Tensor, u: Tensor, dim: int = 1) -> Tensor:
    """The definition, step by step, in the dtype given."""
    steps, state = [], torch.zeros_like(u.select(dim, 0))
    for step in range(u.shape[dim]):
        state = (a if a.dim() < u.dim() else a.select(dim, step)) * state + u.select(dim, step)
        steps.append(state)
    return torch.stack(steps, dim)


def _local_scan(a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Steps in dim 0: the states from 0, and the products a_0 ... a_t. Doubling: log2(n) passes over the whole piece.

    The pair (a_i, b_i) followed by (a_j, b_j) is (a_j a_i, a_j b_i + b_j).
    """
    a = a.expand(u.shape[0], *a.shape[1:]).clone()
    x = u.clone()
    reach = 1
    while reach < x.shape[0]:
        x[reach:] = x[reach:] + a[reach:] * x[:-reach]
        a[reach:] = a[reach:] * a[:-reach]
        reach *= 2
    return x, a


class _DiagonalScan(torch.autograd.Function):
    """Backward is the same recurrence in reversed time: l_t = dx_t + conj(a_{t+1}) l_{t+1}; du_t = l_t,
    da_t = l_t conj(x_{t-1})."""

    @staticmethod
    @exact
    def forward(ctx: Any, a: Tensor, u: Tensor, transport: Transport, partition: Partition | None) -> Tensor:
        # partition: given exactly when a is constant in time
        x, products = _local_scan(a, u)
        last = x[-1] if len(x) else torch.zeros_like(u.sum(0))
        carry = torch.zeros_like(last)
        factors: list[Tensor] = []
        if transport.world > 1:
            if partition is not None:
                ends = [part[0] for part in gather_summaries(transport, (last,))]
                factors = [a[0] ** size for size in partition.sizes]
            else:
                factor = products[-1] if len(products) else torch.ones_like(a.sum(0))
                parts = gather_summaries(transport, (factor, last))
                factors, ends = [part[0] for part in parts], [part[1] for part in parts]
            for factor, end in zip(factors[: transport.rank], ends[: transport.rank], strict=True):
                carry = factor * carry + end
            x = x + products * carry
        ctx.transport, ctx.steady = transport, partition is not None
        ctx.save_for_backward(a, x, carry, *factors)
        return x

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        a, x, carry, *factors = ctx.saved_tensors
        transport, steps = ctx.transport, x.shape[0]
        # With time reversed, the adjoint enters step t through a_{t+1}; the last factor is the next rank's.
        everywhere = a.expand(steps, *a.shape[1:]).conj()
        shifted = torch.cat([torch.ones_like(everywhere[:1]), everywhere[1:].flip(0)]) if steps else everywhere
        adjoint, products = _local_scan(shifted, grads[0].flip(0))
        if transport.world > 1:
            # my summary: what leaves my first step towards earlier ranks
            leaving = everywhere[0] * adjoint[-1] if steps else torch.zeros_like(carry)
            others = gather_summaries(transport, (leaving,))
            tail = torch.zeros_like(carry)
            for rank in reversed(range(transport.rank + 1, transport.world)):
                tail = factors[rank].conj() * tail + others[rank][0]
            adjoint = adjoint + products * tail
        adjoint = adjoint.flip(0)
        grad_a = None
        if ctx.needs_input_grad[0]:
            before = torch.cat([carry[None], x[:-1]]) if steps else x
            grad_a = (adjoint * before.conj()).sum_to_size(steps, *a.shape[1:])
            grad_a = grad_a.sum(0, keepdim=True) if ctx.steady else grad_a
        return grad_a, adjoint, None, None


@exact
def diagonal_ssm(
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    step: Tensor | float = 1.0,
    discretization: Discretization | str = Discretization.ZOH,
    conjugate: bool = True,
    transport: Transport | None = None,
    partition: Partition | None = None,
) -> Tensor:
    """A diagonal state space with many inputs and outputs (S5; S4D is one such system a channel). Returns (B, n, Y).

    u: (B, n, U), real. a: (S,), b: (S, U), c: (Y, S), complex, continuous time, Re(a) < 0. d: (Y, U) or None.
    step: dt, a number or (S,). conjugate: a, b, c hold one of each conjugate pair, so y = 2 Re(C x) + D u; otherwise
    y = Re(C x) + D u. transport, partition: as for `diagonal_scan`.
    """
    dt = torch.as_tensor(step, dtype=a.real.dtype, device=a.device)
    if Discretization(discretization) is Discretization.ZOH:
        a_bar = (a * dt).exp()
        b_bar = ((a_bar - 1) / a)[:, None] * b
    else:
        inverse = 1 / (1 - a * dt / 2)
        a_bar = inverse * (1 + a * dt / 2)
        b_bar = (inverse * dt)[:, None] * b
    x = diagonal_scan(a_bar[None], u.to(b_bar.dtype) @ b_bar.mT, transport=transport, partition=partition)
    y = (x @ c.mT).real * (2 if conjugate else 1)
    return y if d is None else y + u @ d.mT


@exact
def conv_s5(
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    transport: Transport | None = None,
    partition: Partition | None = None,
) -> Tensor:
    """ConvS5 over time: x_t = a x_{t-1} + B * u_t, y_t = Re(C * x_t) + D * u_t, with * a convolution of equal size.

    u: (B, n, U, H, W) real. a: (S,), b: (S, U, kh, kw), c: (Y, S, kh, kw), discrete time, real or complex. d: (Y, U,
    kh, kw) or None. Kernels of odd size; images are whole on every rank, time is cut. Returns (B, n, Y, H, W).
    """
    if any(kernel is not None and (kernel.shape[-1] % 2 == 0 or kernel.shape[-2] % 2 == 0) for kernel in (b, c, d)):
        raise ValueError("the kernels of ConvS5 keep the image's size: their sides must be odd")
    batch, steps = u.shape[:2]
    images = u.flatten(0, 1)
    driven = F.conv2d(images.to(b.dtype), b, padding="same").unflatten(0, (batch, steps))
    x = diagonal_scan(a.view(1, -1, 1, 1), driven, transport=transport, partition=partition).flatten(0, 1)
    y = F.conv2d(x, c.to(x.dtype), padding="same")
    y = y.real if y.is_complex() else y
    if d is not None:
        y = y + F.conv2d(images, d, padding="same")
    return y.unflatten(0, (batch, steps))
