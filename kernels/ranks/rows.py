"""Every rank's rows as all rows on every rank, with a gradient."""

from typing import Any

import torch
from longtake.kernels.partition import Partition
from longtake.kernels.precision import exact
from longtake.kernels.ranks.transport import Transport
from torch import Tensor


def gather_rows(x: Tensor, transport: Transport, partition: Partition, dim: int, *, add_up: bool = False) -> Tensor:
    """The rows of all ranks in `dim`, in order, from this rank's piece of `partition`.

    add_up: the gradient is what all ranks' copies got together, otherwise only this rank's copy counts.
    """
    out: Tensor = _GatherRows.apply(x, transport, partition, dim, add_up)
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    @exact
    def forward(ctx: Any, x: Tensor, transport: Transport, partition: Partition, dim: int, add_up: bool) -> Tensor:
        ctx.transport, ctx.place, ctx.dim, ctx.add_up = transport, partition.pieces[transport.rank], dim, add_up
        if transport.world == 1:
            return x.clone()
        everything = list(range(partition.total))
        return transport.start_gather([x.contiguous()], dim, partition, everything).wait()[0]

    @staticmethod
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if ctx.add_up:
            grad = ctx.transport.start_sum("rows_grad", grad.contiguous().clone()).wait()
        start, stop = ctx.place
        return grad.narrow(ctx.dim, start, stop - start), None, None, None, None
