"""How a rank's buffers reach the others: over a process group, or not at all.

`Transport` decides what travels and counts it; a `Wire` carries it. The dry one posts nothing, so the same code that
sends is its own forecast.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

Message = tuple[int, Tensor]  # a rank of the group, and a contiguous buffer


class Wire(Protocol):
    """What a transport needs of the world. What is posted answers with works to wait for.

    imagined: whether the other ranks are.
    """

    rank: int
    world: int
    imagined: bool

    def messages(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[Any]:
        """Buffers to ranks and from ranks, all at once."""
        ...

    def all_to_all(self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int]) -> list[Any]:
        """Part r of `input` to rank r, part r of `output` from it."""
        ...

    def add_up(self, tensor: Tensor) -> list[Any]:
        """The sum over all ranks, in place."""
        ...

    def compare(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """Everybody's numbers, as many on each rank, in order of ranks."""
        ...

    def connect(self, device: torch.device) -> None:
        """Called before the first messages that not every rank takes part in."""
        ...


class GroupWire:
    """A process group. group: None is the default group, or a world of one when torch.distributed is not initialised.

    Raises ValueError when a group is given and torch.distributed is not initialised, or this process is not in it.
    """

    imagined = False

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        alive = dist.is_available() and dist.is_initialized()
        if group is not None and not alive:
            raise ValueError("a process group was given but torch.distributed is not initialised")
        self.group = group
        self.rank = dist.get_rank(group) if alive else 0
        self.world = dist.get_world_size(group) if alive else 1
        if self.rank < 0:
            raise ValueError("this process is not a member of the given group")
        self._connected = False

    def messages(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[Any]:
        def peer(rank: int) -> int:
            return rank if self.group is None else dist.get_global_rank(self.group, rank)

        operations = [dist.P2POp(dist.isend, buffer, peer(rank), self.group) for rank, buffer in sends]
        operations += [dist.P2POp(dist.irecv, buffer, peer(rank), self.group) for rank, buffer in receives]
        return dist.batch_isend_irecv(operations) if operations else []

    def all_to_all(self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int]) -> list[Any]:
        return [dist.all_to_all_single(output, input, output_splits, input_splits, group=self.group, async_op=True)]

    def add_up(self, tensor: Tensor) -> list[Any]:
        return [dist.all_reduce(tensor, group=self.group, async_op=True)]

    def compare(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        if self.world == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        everybody = mine.new_empty(self.world * len(numbers))
        dist.all_gather_into_tensor(everybody, mine, group=self.group)
        return everybody.view(self.world, -1).tolist()

    def connect(self, device: torch.device) -> None:
        # NCCL wants every rank in the first call of a group; one without messages would be missing from a batched send.
        if not self._connected and dist.get_backend(self.group) == "nccl":
            dist.all_reduce(torch.zeros(1, device=device), group=self.group)
        self._connected = True


class DryWire:
    """A rank of an imagined group: nothing is posted, what would arrive stays as it is. Imagined ranks come with the
    same numbers."""

    imagined = True

    def __init__(self, rank: int, world: int) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} ranks")
        self.rank, self.world = rank, world

    def messages(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[Any]:
        return []

    def all_to_all(self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int]) -> list[Any]:
        return []

    def add_up(self, tensor: Tensor) -> list[Any]:
        return []

    def compare(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        return [list(numbers)] * self.world

    def connect(self, device: torch.device) -> None:
        return
