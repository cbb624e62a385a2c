"""The watchdog of a distributed run: when one rank ends badly, all ranks end, within seconds.

Every rank keeps one TCP connection to a hub in rank 0, watched by a daemon thread that sleeps in the kernel.
  - A process that dies, by whatever signal, has its connection closed by its kernel: known within milliseconds.
  - A machine that vanishes stops answering TCP keep-alive probes: known after about 14 s.
  - A rank that raises sends its reason first.
  - A rank that ends cleanly says so, and its closed connection alarms nobody.
The kernel answers for a process that is alive but busy, so a rank that computes, or holds Python's lock for a minute,
is never taken for dead. That is why there are no heartbeats from Python, and no store: a store that lives in rank 0
dies with rank 0, and one client object serves one thread at a time.

Where no agent of torchrun started the ranks, the hub listens at MASTER_PORT and the watch begins with the command line,
before torch is imported (`begin`): a rank that was there and is gone is told from one that has not come yet, and a
mistake that a rank meets before the run begins frees the others. Under torchrun a rank also ends when its agent does.

Messages are lines of JSON: {"hello": rank, "token": ...}, {"welcome": true}, {"ready": true}, {"store": port},
{"left": rank}, {"bye": rank}, {"done": true}, {"abort": {"rank": r, "kind": "error" | "user" | "lost", "text": ...}}.
"""

from __future__ import annotations

import hmac
import json
import os
import selectors
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from longtake.errors import RankFailure, UserError
from longtake.launch import has_agent, read_address, read_environment

EXIT_CODE = 75  # EX_TEMPFAIL: the run may be resumed
USER_EXIT_CODE = 2
_ECHO_WAIT_S = 3.0  # how long a failing rank listens for news of an earlier failure elsewhere
MUSTER_S = 5.0  # how long a rank that fails before all have joined waits for those that are late
_SILENCE_S = 30.0  # how long what listens at MASTER_PORT may be silent before it is taken for a stranger
_STRANGERS = 64  # connections that have not said which rank they are, beside one a rank
_PARENT_S = 1.0  # how often a rank under torchrun looks whether its agent lives
_STRANGER_BYTES = 65536  # what somebody who is no rank may send without a line's end
_HUB_FIRST_S = 30.0  # how much longer other ranks wait than rank 0, which knows who is missing
_SEND_S = 5.0  # how long a message may take to leave
_WELCOME = json.dumps({"welcome": True}).encode() + b"\n"

_all_watchdogs: weakref.WeakSet[Watchdog] = weakref.WeakSet()
_begun: Watchdog | None = None
_parent_is_watched = False


def begin() -> None:
    """Start the watch of this process as early as can be; `take` hands it to the run. No effect in a run of one
    process, or when the launcher's environment is wrong or the port taken, of which `setup` tells."""
    global _begun
    try:
        launch = read_environment()
        if launch.world == 1:
            return
        watch_parent()
        if has_agent() or _begun is not None:
            return
        host, port = read_address()
        _begun = Watchdog.muster(launch.rank, launch.world, host, port, launch.one_machine)
    except (UserError, OSError):
        return


def hand_back(watchdog: Watchdog) -> None:
    """The run did not begin: `take` gives the watch to who tells of it."""
    global _begun
    _begun = watchdog


def take() -> Watchdog | None:
    """The watch that `begin` started, which is the caller's from now on."""
    global _begun
    watchdog, _begun = _begun, None
    return watchdog


def watch_parent() -> None:
    """Under torchrun: from now on this process ends, with a line, soon after its agent was killed."""
    global _parent_is_watched
    if _parent_is_watched or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _parent_is_watched = True
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_S)
        _print_line(f"longtake: torchrun was killed; rank {os.environ.get('RANK', '?')} stops")
        os._exit(EXIT_CODE)

    threading.Thread(target=watch, name="longtake-parent", daemon=True).start()


class Watchdog:
    """One rank's end of the watch. Make it with `muster`, or with `host` (rank 0) and `join` (the others)."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self.port = 0
        self._token = ""
        self._hub: tuple[str, int] | None = None  # where rank 0 is still to be found
        self._silent_since: float | None = None  # what answers there has not said that it is rank 0
        self._listener: socket.socket | None = None
        self._peers: dict[int, socket.socket] = {}
        self._gone: set[int] = set()
        self._left: set[int] = set()  # those that ended cleanly before the run began
        self._strangers: dict[socket.socket, None] = {}  # the oldest first
        self._reported: bool | None = None
        self._ending: dict[str, Any] | None = None  # why this process is about to end
        self._exit_at = 0.0
        self._thread: threading.Thread | None = None
        self._store_port = 0
        self._lock = threading.Lock()  # held for ever by the one thread that speaks for this rank's end
        self._send_lock = threading.Lock()
        self._ready = threading.Event()
        self._done = threading.Event()
        self._store_known = threading.Event()
        self._wake_receive, self._wake_send = socket.socketpair()
        _all_watchdogs.add(self)

    @classmethod
    def host(cls, world: int, token: str, local_only: bool, port: int = 0) -> Watchdog:
        """The hub, in rank 0. local_only: listen on the loopback device only. port: 0 for any. Raises OSError."""
        self = cls(0, world)
        self._token = token
        backlog = world + _STRANGERS
        if local_only:
            self._listener = socket.create_server(("127.0.0.1", port), backlog=backlog)
        elif socket.has_dualstack_ipv6():
            self._listener = socket.create_server(
                ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
        else:
            self._listener = socket.create_server(("", port), backlog=backlog)
        self.port = self._listener.getsockname()[1]
        self._start()
        return self

    @classmethod
    def join(cls, rank: int, world: int, host: str, port: int, token: str, timeout_s: float) -> Watchdog:
        """Connect rank 1, 2, ... to the hub. Raises RankFailure when the hub cannot be reached."""
        self = cls(rank, world)
        try:
            connection = socket.create_connection(
                ("127.0.0.1" if host in ("localhost", "::1") else host, port), timeout=timeout_s
            )
        except OSError as error:
            raise RankFailure(f"rank {rank} cannot reach rank 0 at {host}:{port}: {error}") from error
        _keep_alive(connection)
        self._peers[0] = connection
        self._send(0, {"hello": rank, "token": token})
        self._start()
        return self

    @classmethod
    def muster(cls, rank: int, world: int, host: str, port: int, near: bool) -> Watchdog:
        """The end of any rank where rank 0 has nothing but MASTER_ADDR and MASTER_PORT to tell its place: rank 0
        listens there, the others look for it in the watching thread. near: all ranks share a machine. Raises OSError
        in rank 0."""
        token = f"longtake, {world} ranks"
        if rank == 0:
            return cls.host(world, token, near, port)
        self = cls(rank, world)
        self._token = token
        self._hub = ("127.0.0.1" if near else host, port)
        self._start()
        return self

    def wait_for_all(self, timeout_s: float, look: Callable[[], None] = lambda: None) -> None:
        """Return when every rank is connected; `look` is called meanwhile and may raise. Raises RankFailure after
        `timeout_s`, or as soon as it is clear that they never will be."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(0.1):
            look()
            now = time.monotonic()
            if self._left:
                raise RankFailure(f"rank {min(self._left)} ended before the run began")
            if self._silent_since is not None and now - self._silent_since > min(_SILENCE_S, timeout_s):
                raise RankFailure("something else than rank 0 of this run answers there")
            if now > deadline + (_HUB_FIRST_S if self.rank and 0 in self._peers else 0.0):
                absent = [r for r in range(1, self.world) if r not in self._peers] if self.rank == 0 else [0]
                if self.rank and 0 in self._peers:
                    raise RankFailure(f"rank {self.rank} is there and waited for others")
                raise RankFailure(f"rank {', '.join(map(str, absent[:8]))} did not come")

    def announce_store(self, port: int) -> None:
        """In rank 0, when all are there: tell where the process group's store listens."""
        self._tell_all({"store": port})

    def store_port(self, timeout_s: float) -> int:
        """In the other ranks: where the process group's store listens. Raises RankFailure after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self._store_known.wait(0.1):
            if self._left:
                raise RankFailure(f"rank {min(self._left)} ended before the run began")
            if time.monotonic() > deadline:
                raise RankFailure("rank 0 is there and did not begin the run")
        return self._store_port

    # ------------------------------------------------------------------------------------------------- ends

    def report(self, kind: str, text: str, echo: bool = False, late_s: float = MUSTER_S) -> bool:
        """Tell all ranks that this one ends; whether rank 0 knows. Does not return when an earlier end elsewhere is
        being reported.

        kind: "error" or "user". echo: the error may be the echo of another rank's end, so listen for that first.
        late_s: how long to wait for ranks that have not come yet. Safe to call twice.
        """
        if self._reported is not None:
            return self._reported
        if echo:
            time.sleep(_ECHO_WAIT_S)
        deadline = time.monotonic() + late_s
        while not self._is_heard() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._take_the_word()
        self._reported = self.rank == 0 or (0 in self._peers and 0 not in self._gone)
        self._tell_all({"abort": {"rank": self.rank, "kind": kind, "text": text}})
        return self._reported

    def _is_heard(self) -> bool:
        """Whether everybody whom a message of this rank should reach can be reached now, or never."""
        return self._ready.is_set() or bool(self._left) or (self.rank != 0 and 0 in self._peers)

    def leave(self) -> None:
        """A clean end before the run began, without waiting for anybody."""
        self._tell_all({"left": self.rank})
        self._done.set()
        self._wake_send.send(b"x")
        if self._thread is not None:
            self._thread.join(2.0)
        self.close()

    def finish(self) -> None:
        """Say goodbye and wait until every rank has; then close. A failure elsewhere still ends this process."""
        if self.rank == 0:
            with self._send_lock:
                self._gone.add(0)
            self._wake_send.send(b"x")
        else:
            self._send(0, {"bye": self.rank})
        self._done.wait()
        self._take_the_word()
        if self._thread is not None:
            self._thread.join(2.0)
        self.close()

    def close(self) -> None:
        for connection in [*self._peers.values(), self._listener]:
            if connection is not None:
                connection.close()
        self._wake_send.close()
        self._wake_receive.close()

    def _take_the_word(self) -> None:
        """Only one thread may speak for this process's end; the loser waits for the winner to exit the process."""
        self._lock.acquire()

    def _tell_all(self, message: dict[str, Any]) -> None:
        for peer in list(self._peers):
            self._send(peer, message)

    def _abort(self, news: dict[str, Any]) -> None:
        """In the watching thread: end this process because of another rank."""
        if not self._lock.acquire(blocking=False):
            return
        if self.rank == 0:
            self._tell_all({"abort": news})
        who, kind, text = news["rank"], news["kind"], news["text"]
        if kind == "user":
            # Every rank meets a user's mistake alike; it is told once.
            line = f"longtake: error: {text}" if self.rank == 0 else ""
        elif kind == "lost":
            line = f"longtake: rank {who} of {self.world} was lost ({text}); rank {self.rank} stops"
        else:
            line = f"longtake: rank {who} of {self.world} failed ({text}); rank {self.rank} stops"
        if line:
            _print_line(line)
        self._ending = news
        if self.rank != 0 or self._ready.is_set():
            self._exit()
        self._exit_at = time.monotonic() + MUSTER_S  # those that come late are told too, see _watch_until_done

    def _exit(self) -> None:
        os._exit(USER_EXIT_CODE if self._ending and self._ending["kind"] == "user" else EXIT_CODE)

    # ------------------------------------------------------------------------------------------- the watch

    def _start(self) -> None:
        watch_parent()
        self._thread = threading.Thread(target=self._watch, name="longtake-watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            if self._hub is None or self._find_hub(*self._hub):
                self._watch_until_done()
        except Exception as error:  # a rank without its watchdog could hang for ever; better to stop with a word
            text = f"its watchdog failed: {type(error).__name__}: {error}"
            self._abort({"rank": self.rank, "kind": "error", "text": text})

    def _find_hub(self, host: str, port: int) -> bool:
        """Look for rank 0 until it welcomes this rank; False when this rank ended first."""
        while not self._done.is_set():
            try:
                connection = socket.create_connection((host, port), timeout=_SEND_S)
            except OSError:
                self._silent_since = None  # who answered is gone: rank 0, if it died before its welcome
                time.sleep(0.1)
                continue
            itself = connection.getsockname() == connection.getpeername()  # nobody listens: it was given that very port
            if not itself and self._is_welcome(connection):
                self._silent_since = None
                self._peers[0] = connection
                return True
            connection.close()
            time.sleep(0.1)
        return False

    def _is_welcome(self, connection: socket.socket) -> bool:
        """Say hello, and read one line: whether rank 0 of this run is at the other end."""
        self._silent_since = self._silent_since or time.monotonic()
        line = b""
        try:
            _keep_alive(connection)
            connection.sendall(json.dumps({"hello": self.rank, "token": self._token}).encode() + b"\n")
            connection.settimeout(0.5)
            while not line.endswith(b"\n") and len(line) < 64 and not self._done.is_set():
                try:
                    byte = connection.recv(1)
                except TimeoutError:
                    continue
                if not byte:
                    return False
                line += byte
            connection.settimeout(_SEND_S)
        except OSError:
            return False
        return line == _WELCOME

    def _watch_until_done(self) -> None:
        buffers: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_receive, selectors.EVENT_READ)
            selector.register(self._listener or self._peers[0], selectors.EVENT_READ)
            while not self._done.is_set():
                for key, _ in selector.select(None if self._ending is None else 0.1):
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if connection.fileno() < 0:  # closed while an earlier one of this round was served
                        continue
                    if connection is self._wake_receive:
                        connection.recv(64)
                    elif connection is self._listener:
                        self._accept(connection, buffers, selector)
                    else:
                        self._read(connection, buffers, selector)
                        if self._listener is not None and self._ready.is_set():
                            self._lock_the_door(self._listener, buffers, selector)
                if self._ending is not None and (self._ready.is_set() or time.monotonic() > self._exit_at):
                    self._exit()
                if self.rank == 0 and len(self._gone) == self.world:
                    self._tell_all({"done": True})
                    self._done.set()

    def _accept(self, listener: socket.socket, buffers: dict[socket.socket, bytes], selector: Any) -> None:
        try:
            arrival, _ = listener.accept()
            _keep_alive(arrival)
        except OSError:  # it hung up again, or this process holds all the files it may: nothing that ends a run
            time.sleep(0.05)
            return
        selector.register(arrival, selectors.EVENT_READ)
        self._strangers[arrival] = None
        if len(self._strangers) > self.world + _STRANGERS:  # a rank says hello at once: the oldest is none
            self._turn_away(next(iter(self._strangers)), buffers, selector)

    def _turn_away(self, stranger: socket.socket, buffers: dict[socket.socket, bytes], selector: Any) -> None:
        self._strangers.pop(stranger, None)
        buffers.pop(stranger, None)
        selector.unregister(stranger)
        stranger.close()

    def _lock_the_door(self, listener: socket.socket, buffers: dict[socket.socket, bytes], selector: Any) -> None:
        """All ranks are in: nobody else is let in, or kept."""
        selector.unregister(listener)
        listener.close()
        self._listener = None
        for stranger in list(self._strangers):
            self._turn_away(stranger, buffers, selector)

    def _read(self, connection: socket.socket, buffers: dict[socket.socket, bytes], selector: Any) -> None:
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        *lines, rest = (buffers.pop(connection, b"") + data).split(b"\n")
        if len(rest) > _STRANGER_BYTES and connection not in self._peers.values():
            lines, rest, data = [], b"", b""
        buffers[connection] = rest
        for line in lines:
            if not self._receive(connection, line):
                data = b""
        if not data:
            rank = next((r for r, peer in self._peers.items() if peer is connection), None)
            if rank is None:
                self._turn_away(connection, buffers, selector)
                return
            selector.unregister(connection)
            del buffers[connection]
            if rank not in self._gone and not self._done.is_set():
                text = "its process ended without a word: killed, out of memory, or its machine is gone"
                self._abort({"rank": rank, "kind": "lost", "text": text})

    def _receive(self, connection: socket.socket, line: bytes) -> bool:
        """Act on one message. False: it does not come from a rank of this run, so the connection is to be closed."""
        known = connection in self._peers.values()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            if known:
                raise
            return False
        if not known:
            rank = self._rank_of(message)
            if rank is None:
                return False
            self._strangers.pop(connection, None)
            self._peers[rank] = connection
            self._send(rank, {"welcome": True})
            if self._ending is not None:
                self._send(rank, {"abort": self._ending})
            if len(self._peers) == self.world - 1:
                self._tell_all({"ready": True})
                self._ready.set()
        elif "ready" in message:
            self._ready.set()
        elif "store" in message:
            self._store_port = int(message["store"])
            self._store_known.set()
        elif "left" in message:
            self._gone.add(int(message["left"]))
            self._left.add(int(message["left"]))
        elif "bye" in message:
            with self._send_lock:
                self._gone.add(int(message["bye"]))
        elif "done" in message:
            self._done.set()
        elif "abort" in message:
            self._abort(message["abort"])
        return True

    def _rank_of(self, message: Any) -> int | None:
        """The rank that a first message comes from; None when a stranger sent it."""
        if not isinstance(message, dict):
            return None
        token, rank = message.get("token"), message.get("hello")
        if not isinstance(token, str) or not isinstance(rank, int) or isinstance(rank, bool):
            return None
        if not hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self._token.encode()):
            return None
        return rank if 0 < rank < self.world and rank not in self._peers else None

    def _send(self, peer: int, message: dict[str, Any]) -> None:
        """Send one line; a peer that cannot be reached is noticed by the watching thread, not here."""
        with self._send_lock:
            connection = self._peers.get(peer)
            if connection is None:
                return
            try:
                connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                return


def _keep_alive(connection: socket.socket) -> None:
    """Kernel probes: after 5 silent seconds, every 3 s, three times; so a vanished machine is noticed after 14 s."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(_SEND_S)


def _print_line(line: str) -> None:
    """Write past Python's buffered stderr, which another thread may hold; one write, so that lines do not mix."""
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, (line + "\n").encode())
    except OSError:
        return


def _close_in_forked_child() -> None:
    """A forked child (a data loader's worker) must not keep its dead parent's connections open."""
    for watchdog in list(_all_watchdogs):
        watchdog.close()


os.register_at_fork(after_in_child=_close_in_forked_child)
