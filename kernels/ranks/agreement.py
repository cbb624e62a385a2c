"""What ranks must have in common before the first message of an operator, compared in one small all-gather.

    agree(transport, {"batch": q.shape[0], "heads": q.shape[1]}, q.device)
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from longtake.kernels.errors import PlanMismatch
from longtake.kernels.ranks.transport import Transport


def agree(
    transport: Transport,
    numbers: Mapping[str, int],
    device: torch.device,
    problem: Exception | None = None,
    free: Mapping[str, int] | None = None,
) -> list[dict[str, int]]:
    """Compare `numbers` over ranks. Returns everybody's `free` numbers, which may differ, in order of ranks.

    numbers, free: the same names on every rank, below 2^62. problem: what this rank found wrong with its own input.
    Raises `problem` where everybody has one or there is one rank only; otherwise PlanMismatch, on every rank, which
    names the number and both values. Asked once for each set of numbers; with `free`, at every call.
    """
    free = {} if free is None else free
    if transport.world == 1:
        if problem is not None:
            raise problem
        return [dict(free)]
    said = [int(problem is not None), *numbers.values(), *free.values()]
    key = ("agreed", *numbers, *said)
    if problem is None and not free and key in transport.verified:
        return [{}] * transport.world
    everybody = transport.compare(said, device)
    raise_together(everybody, ("validity", *numbers, *free), transport.rank, problem, set(free))
    if not free:
        transport.verified.add(key)
    first = 1 + len(numbers)
    return [dict(zip(free, other[first:], strict=True)) for other in everybody]


def raise_together(
    everybody: Sequence[Sequence[int]],
    names: Sequence[str],
    rank: int,
    problem: Exception | None,
    may_differ: Collection[str],
) -> None:
    """The same verdict on every rank about numbers that all ranks have told.

    everybody: each rank's numbers, the first is 1 where that rank found fault with its own input (`problem`).
    """
    faulty = [number for number, said in enumerate(everybody) if said[0]]
    if len(faulty) == len(everybody) and problem is not None:
        raise problem
    if faulty:
        told = f": {problem}" if problem is not None else "; their own messages say what"
        raise PlanMismatch(f"rank {rank}: ranks {faulty} of {len(everybody)} cannot make this call{told}") from problem
    for index, name in enumerate(names):
        values = [said[index] for said in everybody]
        if name not in may_differ and len(set(values)) > 1:
            other = next(number for number, value in enumerate(values) if value != values[rank])
            raise PlanMismatch(
                f"rank {rank}: {name} differs between ranks: {values[rank]} here, {values[other]} on rank {other}"
            )
