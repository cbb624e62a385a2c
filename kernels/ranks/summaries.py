"""A few numbers of every rank on every rank: states of a recurrence, sums of a cluster."""

import torch
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import Transport
from torch import Tensor

Summary = tuple[Tensor, ...]


def gather_summaries(transport: Transport, summary: Summary) -> list[Summary]:
    """The summaries of all ranks, in rank order: one call, (P - 1) times my summary's bytes each way.

    summary: tensors of one dtype and device whose shapes are the same on every rank.
    """
    if transport.world == 1:
        return [summary]
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in summary])[None]
    complex_dtype = flat.dtype if flat.is_complex() else None
    if complex_dtype is not None:
        flat = torch.view_as_real(flat).flatten(1)
    everyone = Partition.even(transport.world, transport.world)
    (gathered,) = transport.start_gather([flat], 0, everyone, range(transport.world)).wait()
    if complex_dtype is not None:
        gathered = torch.view_as_complex(gathered.view(transport.world, -1, 2))
    sizes, shapes = [tensor.numel() for tensor in summary], [tensor.shape for tensor in summary]
    return [tuple(piece.view(shape) for piece, shape in zip(row.split(sizes), shapes, strict=True)) for row in gathered]
