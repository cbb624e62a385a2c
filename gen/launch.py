"""What the launcher's environment says of this process, read without torch: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*.

launch = read_environment()          # Launch(rank=0, world=1, local_rank=0) when no launcher started this process
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from longtake.errors import UserError, shorten

_ADVICE = "start the run with torchrun or accelerate"
JOIN_TIMEOUT_S = 300  # longest wait for all ranks to arrive at the start, on several machines
NEAR_JOIN_TIMEOUT_S = 15  # the same where they share a machine and were started together
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Launch:
    """rank in 0 .. world-1; local_rank on its machine; one_machine: whether all ranks are known to share a machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    one_machine: bool = True


def read_environment(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process among the others. Raises UserError for a variable that is no number, out of range, or missing."""
    world = _integer(environment, "WORLD_SIZE", 1, 2**20)
    rank = _integer(environment, "RANK", 0, 2**20)
    local_rank = _integer(environment, "LOCAL_RANK", 0, 2**20)
    local_world = _integer(environment, "LOCAL_WORLD_SIZE", 1, 2**20)
    if world is None:
        if rank is not None:
            raise UserError(f"RANK is set but WORLD_SIZE is not: {_ADVICE}, or unset RANK")
        return Launch()
    if rank is None:
        if world == 1:
            return Launch()
        raise UserError(f"WORLD_SIZE is set but RANK is not: {_ADVICE}")
    if rank >= world:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {world}: ranks go from 0 to {world - 1}")
    near = local_world == world or environment.get("MASTER_ADDR", "") in _LOOPBACK
    return Launch(rank, world, rank if local_rank is None else local_rank, world == 1 or near)


def read_address(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Where the ranks of a run of several meet: MASTER_ADDR and MASTER_PORT. Raises UserError."""
    host = environment.get("MASTER_ADDR")
    if not host:
        raise UserError(f"WORLD_SIZE is more than 1 but MASTER_ADDR is not set: {_ADVICE}")
    port = _integer(environment, "MASTER_PORT", 1, 65535)
    if port is None:
        raise UserError(f"WORLD_SIZE is more than 1 but MASTER_PORT is not set: {_ADVICE}")
    return host, port


def has_agent(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an agent of torchrun (or accelerate) started this process, keeps the store at MASTER_PORT, and ends the
    other processes of its machine when one fails."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def join_timeout(default: float, environment: Mapping[str, str] = os.environ) -> float:
    """Seconds to wait for all ranks at the start: LONGTAKE_JOIN_TIMEOUT, or ``default``. Raises UserError."""
    return _integer(environment, "LONGTAKE_JOIN_TIMEOUT", 1, 86400) or default


def rank() -> int:
    """This process's rank, 0 without a launcher. Raises UserError like `read_environment`."""
    return read_environment().rank


def world() -> int:
    """How many ranks there are, 1 without a launcher. Raises UserError like `read_environment`."""
    return read_environment().world


def _integer(environment: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = environment.get(name)
    if text is None or text == "":
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise UserError(
            f"the environment variable {name} is {shorten(repr(text), 40)}; it must be a whole number from {least} to "
            f"{most}"
        )
    return int(text)
