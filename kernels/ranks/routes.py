"""Which frames go from whom to whom, and how they lie in a message: plain functions of a partition, nothing is sent.

    Eight frames on three ranks, a halo of two on each side:

    rank 0  [0 1 2] 3 4          before: -          after: 3 4 from rank 1
    rank 1      1 2 [3 4] 5 6    before: 1 2 from 0, after: 5 6 from rank 2
    rank 2          3 4 [5 6 7]  before: 3 4 from 1, after: -
    halo_route(partition, 0, 2, 2)[1]     gives (1 2, -) and takes (-, 3 4): (before, after) the one who gets them

Shapes: tensors have one frame a position in `dim`; a message holds, side after side, those frames of each tensor flat.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from longtake.kernels.partition import Partition
from torch import Tensor


@dataclass(frozen=True)
class Swap:
    """Between me and one rank: global positions of the frames that I give it and take from it. The sides are those
    before and those after the piece of the one who gets them."""

    give: tuple[range, range]
    take: tuple[range, range]


def halo_route(partition: Partition, rank: int, left: int, right: int) -> list[Swap]:
    """What `rank` swaps with each rank, when everybody asks for the `left` frames before and the `right` frames after
    its piece. Pieces may be shorter than a halo; an empty piece asks for nothing."""

    def wanted(other: int) -> tuple[range, range]:
        start, stop = partition.pieces[other]
        if start == stop:
            return range(start, start), range(stop, stop)
        return range(max(start - left, 0), start), range(stop, min(stop + right, partition.total))

    def common(spans: tuple[range, range], held: range) -> tuple[range, range]:
        before, after = (
            range(start := max(span.start, held.start), max(min(span.stop, held.stop), start)) for span in spans
        )
        return before, after

    return [
        Swap(common(wanted(other), partition.range(rank)), common(wanted(rank), partition.range(other)))
        for other in range(partition.parts)
    ]


def gather_route(partition: Partition, indices: Sequence[int]) -> list[list[int]]:
    """For each rank, which of the frames `indices` it holds, ascending, a repeated one once. ValueError for a frame
    outside of the sequence."""
    for index in indices:
        if not 0 <= index < partition.total:
            raise ValueError(f"frame {index} is outside [0, {partition.total})")
    unique = sorted(set(indices))
    return [[index for index in unique if index in partition.range(rank)] for rank in range(partition.parts)]


def frames_of(tensor: Tensor, dim: int, positions: range | list[int], first: int) -> Tensor:
    """The frames at global `positions` of a tensor whose frame 0 is position `first`: a view for a range."""
    if isinstance(positions, range):
        return tensor.narrow(dim, positions.start - first, len(positions))
    return tensor.index_select(dim, index_of([position - first for position in positions], tensor))


def pack(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces flat, one after the other, as a message."""
    return torch.cat([piece.reshape(-1) for piece in pieces])


def unpack(buffer: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Pieces of the given shapes, views of a message."""
    parts = buffer.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def with_frames(tensor: Tensor, dim: int, frames: int) -> torch.Size:
    """The shape of a tensor with so many frames."""
    shape = list(tensor.shape)
    shape[dim] = frames
    return torch.Size(shape)


def join(parts: Sequence[Tensor], template: Tensor, dim: int) -> Tensor:
    """Parts side by side along `dim`; a single part is not copied, none are a tensor without frames."""
    if not parts:
        return template.new_empty(with_frames(template, dim, 0))
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def index_of(positions: list[int], like: Tensor) -> Tensor:
    """Numbers as an index on a tensor's device."""
    return torch.tensor(positions, dtype=torch.int64, device=like.device)
