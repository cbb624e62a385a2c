"""What ranks must have in common before the first message of an operator, compared in one small all-gather.

agree(transport, {"batch": q.shape[0], "heads": q.shape[1]}, q.device)
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import torch
from longtake.kernels.errors import PlanMismatch
from longtake.kernels.ranks.transport import Transport


def number_of(text: str) -> int:
    """A number of 60 bits for a name or a digest, the same in every process."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def agree(
    transport: Transport,
    numbers: Mapping[str, int],
    device: torch.device,
    problem: Exception | None = None,
    free: Mapping[str, int] | None = None,
    remember: bool | None = None,
) -> list[dict[str, int]]:
    """Compare `numbers` over ranks. Returns everybody's `free` numbers, which may differ, in order of ranks.

    numbers, free: the same names on every rank, below 2^62. problem: what this rank found wrong with its own input.
    remember: ask once for each set of numbers and answer from memory after that; by default where nothing is free.
    Something must then fix the free numbers of all ranks, as a plan among `numbers` does.
    Raises `problem` where everybody has one or there is one rank only; otherwise PlanMismatch, on every rank, which
    names the number and both values.
    """
    free = {} if free is None else free
    remember = not free if remember is None else remember
    if transport.world == 1:
        if problem is not None:
            raise problem
        return [dict(free)]
    said = (int(problem is not None), *numbers.values(), *free.values())
    key = (*numbers, *free, *said)
    if problem is None and remember and key in transport.verified:
        return transport.verified[key]
    everybody = transport.compare(said, device)
    raise_together(everybody, ("validity", *numbers, *free), transport.rank, problem, set(free))
    first = 1 + len(numbers)
    told = [dict(zip(free, other[first:], strict=True)) for other in everybody]
    if remember:
        transport.verified[key] = told
    return told


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
