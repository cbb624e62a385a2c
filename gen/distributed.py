"""Distributed runs: set-up under torchrun or accelerate, and "one fails, all fail".

    with setup() as ranks:                     # one process when WORLD_SIZE is not set
        check_same(plan, "the plan", ranks)
        ...
        ranks.barrier()

Leaving the block normally calls `finish`, which returns when every rank has arrived; leaving it by an exception tells
the others why. When a rank raises, is killed or loses its machine, every other rank prints one line and exits with
code 75 (code 2 when the reason is a UserError), whether it waits in a collective or computes. See watchdog.py.

Environment (set by the launchers): RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. LONGTAKE_JOIN_TIMEOUT: how
many seconds to wait at the start for ranks that have not come yet (300; 15 where the command line started all ranks on
one machine). A rank that was there and is gone ends the wait at once.
"""

from __future__ import annotations

import atexit
import errno
import gc
import hashlib
import json
import os
import secrets
import sys
import time
import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from longtake.device import Choice, activate, choose_device, group_backend
from longtake.errors import RankFailure, UserError, one_line, shorten, told
from longtake.launch import JOIN_TIMEOUT_S, NEAR_JOIN_TIMEOUT_S, has_agent, join_timeout, read_address, read_environment
from longtake.watchdog import Watchdog, hand_back, take

GROUP_TIMEOUT_S = 1800.0  # longest wait inside one collective; the watchdog, not this, finds dead ranks
_WORD_S = 5.0  # how long a rank that met a mistake waits for rank 0 to tell of the same
_LOOK_S = 0.5  # how often a rank that waits for others looks for word of a mistake

_active: Ranks | None = None


@dataclass
class Ranks:
    """This process among the others.

    rank in 0 .. world-1, local_rank on its machine; group: the default process group, None in a run of one process and
    once a group of our own is closed; device: where this rank computes; choice: the device with dtype, attention
    backend and the reason.
    """

    rank: int
    world: int
    local_rank: int
    group: dist.ProcessGroup | None
    device: torch.device
    choice: Choice
    watchdog: Watchdog | None = None
    owns_group: bool = False
    finished: bool = field(default=False, repr=False)

    @classmethod
    def single(cls, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Ranks:
        """A run of one process, without a process group."""
        choice = choose_device(device, dtype)
        return cls(rank=0, world=1, local_rank=0, group=None, device=choice.device, choice=choice)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            # In a group of our own the wait is gloo's also beside NCCL, and needs no GPU stream.
            dist.all_reduce(torch.zeros(1, device="cpu" if self.owns_group else self.device), group=self.group)

    def broadcast_object(self, obj: Any, source: int = 0) -> Any:
        """`obj` of rank `source`, on every rank (what the others pass is not looked at)."""
        if self.world == 1:
            return obj
        box = [obj]
        dist.broadcast_object_list(box, src=source, group=self.group)
        return box[0]

    def gather_object(self, obj: Any) -> list[Any]:
        """The objects of all ranks in order of rank, on every rank."""
        if self.world == 1:
            return [obj]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, obj, group=self.group)
        return everyone

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one ends because of `error`.

        Returns when this rank is the one to report its error. Does not return when another rank's end came first (the
        error here is then only its echo, e.g. a closed connection): the watchdog reports that and exits the process.
        """
        if self.finished:
            return
        self.finished = True
        _forget(self)
        atexit.register(self.close_group)  # not here: a collective may wait until the others have ended
        if self.watchdog is not None:
            kind = "user" if isinstance(error, UserError) else "error"
            # A collective that lost a peer raises one of these two.
            self.watchdog.report(kind, told(error), echo=isinstance(error, (RuntimeError, OSError)))

    def finish(self) -> None:
        """A clean end: waits until every rank has finished, then closes the process group. Safe to call twice."""
        if self.finished:
            return
        if self.watchdog is not None:
            self.watchdog.finish()
        self.finished = True
        _forget(self)
        self.close_group()

    def close_group(self) -> None:
        """Of a run that has finished or failed: close the process group, if it is this run's own, and wait until its
        threads have ended. `finish` calls it, and the interpreter's end does after `fail`. Safe to call twice.

        A thread of the group frees tensors, and callbacks, that belong to Python too. One that still has to do so while
        the interpreter ends aborts the process. The threads are joined when the last reference to the group goes.
        """
        if not self.owns_group or self.group is None:
            return
        alive = weakref.ref(self.group)
        self.group = None
        if dist.is_initialized():
            dist.destroy_process_group()
        if alive() is not None:  # in a circle
            gc.collect()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.finish()
        else:
            self.fail(error)


def setup(
    timeout_s: float = GROUP_TIMEOUT_S,
    join_timeout_s: float | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Ranks:
    """Join the run that the launcher's environment describes; a run of one process when there is none.

    timeout_s: longest wait inside one collective. join_timeout_s: longest wait for all ranks to
    arrive (LONGTAKE_JOIN_TIMEOUT when None).
    An existing process group (accelerate makes one) is used as it is and left open by `finish`.
    Raises UserError when the environment is incomplete.
    """
    global _active
    if _active is not None:
        raise RuntimeError("longtake.distributed.setup was called twice; finish the first run before the next")
    launch = read_environment()
    world = dist.get_world_size() if dist.is_initialized() else launch.world
    if world == 1:
        return Ranks.single(device, dtype)
    rank = dist.get_rank() if dist.is_initialized() else launch.rank
    local_rank = launch.local_rank if os.environ.get("LOCAL_RANK") else rank
    choice = choose_device(device, dtype, local_rank)
    activate(choice.device)
    owns_group = not dist.is_initialized()
    if owns_group:
        watchdog = _start_group(rank, world, choice, timeout_s, join_timeout_s)
    else:
        watchdog = _watch_existing_group(rank, world, join_timeout_s or join_timeout(JOIN_TIMEOUT_S))
    ranks = Ranks(rank, world, local_rank, dist.group.WORLD, choice.device, choice, watchdog, owns_group)
    _active = ranks
    _report_uncaught_errors()
    return ranks


def current() -> Ranks | None:
    """The distributed run that this process is in: set up, not finished, not failed. None in a run of one process."""
    return _active


def check_same(obj: Any, what: str, ranks: Ranks | None = None) -> None:
    """Raise UserError on every rank when the ranks do not hold an equal `obj`; `what` names it in the message."""
    ranks = ranks or _active
    if ranks is None or ranks.world == 1:
        return
    everyone = ranks.gather_object(obj)
    different = [r for r, other in enumerate(everyone) if other != everyone[0]]
    if different:
        other = different[0]
        raise UserError(
            f"the ranks disagree about {what}: rank 0 has {shorten(repr(everyone[0]), 120)}, rank {other} has "
            f"{shorten(repr(everyone[other]), 120)}"
        )


# ------------------------------------------------------------------------------------------------------- set-up


def _start_group(rank: int, world: int, choice: Choice, timeout_s: float, join_timeout_s: float | None) -> Watchdog:
    # Its functions take the group of the moment of their import for a default, and would keep ours for ever.
    import_module("torch.distributed.nn.functional")
    store, watchdog = (_meet_at_agent if has_agent() else _meet)(rank, world, join_timeout_s)
    dist.init_process_group(
        group_backend(choice.device),
        store=dist.PrefixStore("longtake/group", store),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )
    return watchdog


def _meet(rank: int, world: int, join_timeout_s: float | None) -> tuple[dist.Store, Watchdog]:
    """No agent: rank 0's watchdog is at MASTER_PORT, and tells where the store is."""
    host, port = read_address()
    near = read_environment().one_machine
    watchdog = take()
    together = watchdog is not None and near
    limit = join_timeout_s or join_timeout(NEAR_JOIN_TIMEOUT_S if together else JOIN_TIMEOUT_S)
    if watchdog is None:
        try:
            watchdog = Watchdog.muster(rank, world, host, port, near)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"port {port} of {host} is in use: set MASTER_PORT to a free one") from error
            raise UserError(f"rank 0 cannot listen at port {port} of {host}: {one_line(error)}") from error
    join = timedelta(seconds=max(limit, JOIN_TIMEOUT_S))  # all are there and alive: the slowest is waited for
    home = "127.0.0.1" if near else host
    try:
        watchdog.wait_for_all(limit)
        if rank == 0:
            store = dist.TCPStore(home, 0, world, True, timeout=join, wait_for_workers=False)
            watchdog.announce_store(store.port)
        else:
            store = dist.TCPStore(
                home, watchdog.store_port(join.total_seconds()), world, False, timeout=join, wait_for_workers=False
            )
    except (RankFailure, dist.DistError) as error:
        hand_back(watchdog)  # the command line tells the others by it
        raise _not_found(rank, world, host, port, limit, error) from error
    return store, watchdog


def _meet_at_agent(rank: int, world: int, join_timeout_s: float | None) -> tuple[dist.Store, Watchdog]:
    """The agent's store is at MASTER_PORT, and tells where rank 0's watchdog is and of mistakes met before."""
    host, port = read_address()
    limit = join_timeout_s or join_timeout(JOIN_TIMEOUT_S)
    key = "longtake/watchdog"
    try:
        agent = _agent_store(limit)
        store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=timedelta(seconds=limit)))
        store.set_timeout(timedelta(seconds=limit))
        if rank == 0:
            token = secrets.token_hex(16)
            near = read_environment().one_machine
            watchdog = Watchdog.host(world, token, local_only=near)
            place = {"host": "127.0.0.1" if near else host, "port": watchdog.port, "token": token}
            store.set(key, json.dumps(place))
        else:
            deadline = time.monotonic() + limit
            while not store.check([key]):
                _look_for_mistakes(agent)
                if time.monotonic() > deadline:
                    raise RankFailure("rank 0 did not come")
                time.sleep(_LOOK_S / 5)
            hub = json.loads(store.get(key))
            watchdog = Watchdog.join(rank, world, hub["host"], hub["port"], hub["token"], limit)
        looked = [0.0]

        def look() -> None:
            if time.monotonic() - looked[0] > _LOOK_S:
                looked[0] = time.monotonic()
                _look_for_mistakes(agent)

        watchdog.wait_for_all(limit, look)
    except (RankFailure, dist.DistError) as error:
        raise _not_found(rank, world, host, port, limit, error) from error
    return store, watchdog


def _not_found(rank: int, world: int, host: str, port: int, limit: float, error: BaseException) -> UserError:
    return UserError(
        f"rank {rank} of {world} did not find all others at {host}:{port} within {limit:.0f} s: {one_line(error)} "
        f"(LONGTAKE_JOIN_TIMEOUT=SECONDS sets how long to wait)"
    )


# ------------------------------------------------------------------------------ mistakes before the run, under torchrun


def _agent_store(timeout_s: float) -> dist.Store:
    host, port = read_address()
    store = dist.TCPStore(host, port, None, False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    return dist.PrefixStore(f"longtake/attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def leave_word(error: BaseException) -> bool:
    """Under torchrun, of a rank that fails before it joined: tell those that wait for it; whether another rank has told
    the user of the same mistake, or will."""
    try:
        rank = read_environment().rank
        store = _agent_store(_WORD_S)
        text = told(error)
        claim = "told/" + hashlib.sha256(text.encode()).hexdigest()
        deadline = time.monotonic() + _WORD_S
        while rank != 0 and not store.check([claim]) and time.monotonic() < deadline:
            time.sleep(0.05)
        first = store.add(claim, 1) == 1
        if first:
            word = {"rank": rank, "text": text, "is_user": isinstance(error, UserError)}
            store.set("mistake", json.dumps(word))
        else:
            time.sleep(_LOOK_S)  # the agent ends all when one ends: the line must be out
        return not first
    except (RuntimeError, OSError, UserError):  # no agent any more: better told twice than never
        return False


def _look_for_mistakes(agent: dist.Store) -> None:
    if agent.check(["mistake"]):
        word = json.loads(agent.get("mistake"))
        if word["is_user"]:
            raise UserError(word["text"])  # the same words: `leave_word` knows that they are told
        raise RankFailure(f"rank {word['rank']} failed ({word['text']})")


def _watch_existing_group(rank: int, world: int, join_timeout_s: float) -> Watchdog:
    """The hub's address travels by a broadcast, because the group may have been made without a TCP store."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    box: list[Any] = [None]
    if rank == 0:
        token = secrets.token_hex(16)
        near = read_environment().one_machine or host in ("127.0.0.1", "localhost", "::1")
        watchdog = Watchdog.host(world, token, local_only=near)
        host = "127.0.0.1" if near else host
        box = [{"host": host, "port": watchdog.port, "token": token}]
    dist.broadcast_object_list(box, src=0)
    if rank != 0:
        watchdog = Watchdog.join(rank, world, box[0]["host"], box[0]["port"], box[0]["token"], join_timeout_s)
    watchdog.wait_for_all(join_timeout_s)
    return watchdog


def _report_uncaught_errors() -> None:
    """An exception that nobody catches reaches the other ranks too, before its traceback is printed."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if _active is not None:
            _active.fail(error)
        previous(kind, error, trace)

    sys.excepthook = hook


def _forget(ranks: Ranks) -> None:
    global _active
    if _active is ranks:
        _active = None
