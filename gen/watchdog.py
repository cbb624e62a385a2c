"""The watchdog of a distributed run: when one rank ends badly, all ranks end, within seconds.

Every rank keeps one TCP connection to a hub in rank 0, watched by a daemon thread that sleeps in the kernel.
  - A process that dies, by whatever signal, has its connection closed by its kernel: known within milliseconds.
  - A machine that vanishes stops answering TCP keep-alive probes: known after about 14 s.
  - A rank that raises sends its reason first.
  - A rank that ends cleanly says so, and its closed connection alarms nobody.
The kernel answers for a process that is alive but busy, so a rank that computes, or holds Python's lock for a minute,
is never taken for dead. That is why there are no heartbeats from Python, and no store: a store that lives in rank 0
dies with rank 0, and one client object serves one thread at a time.

Messages are lines of JSON: {"hello": rank, "token": ...}, {"ready": true}, {"bye": rank}, {"done": true},
{"abort": {"rank": r, "kind": "error" | "user" | "lost", "text": ...}}.
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

from longtake.errors import RankFailure

EXIT_CODE = 75  # EX_TEMPFAIL: the run may be resumed
USER_EXIT_CODE = 2
_ECHO_WAIT_S = 3.0  # how long a failing rank listens for news of an earlier failure elsewhere
_CLEANUP_S = 5.0  # how long the cleanup callbacks may take
_STRANGER_BYTES = 65536  # what somebody who is no rank may send without a line's end
_SEND_S = 5.0  # how long a message may take to leave

_all_watchdogs: weakref.WeakSet[Watchdog] = weakref.WeakSet()


class Watchdog:
    """One rank's end of the watch. Make it with `host` (rank 0) or `join` (the others)."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self.port = 0
        self.cleanups: list[Callable[[], None]] = []
        self._token = ""
        self._listener: socket.socket | None = None
        self._peers: dict[int, socket.socket] = {}
        self._gone: set[int] = set()
        self._lock = threading.Lock()  # held for ever by the one thread that speaks for this rank's end
        self._send_lock = threading.Lock()
        self._ready = threading.Event()
        self._done = threading.Event()
        self._wake_receive, self._wake_send = socket.socketpair()
        _all_watchdogs.add(self)

    @classmethod
    def host(cls, world: int, token: str, local_only: bool) -> Watchdog:
        """The hub, in rank 0. local_only: listen on the loopback device only."""
        self = cls(0, world)
        self._token = token
        if local_only:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=world)
        elif socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, backlog=world, dualstack_ipv6=True)
        else:
            self._listener = socket.create_server(("", 0), backlog=world)
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

    def wait_for_all(self, timeout_s: float) -> None:
        """Return when every rank is connected. Raises RankFailure after `timeout_s`."""
        if not self._ready.wait(timeout_s):
            raise RankFailure(f"rank {self.rank} waited {timeout_s:.0f} s for all {self.world} ranks to connect")

    # ------------------------------------------------------------------------------------------------- ends

    def report(self, kind: str, text: str, echo: bool) -> None:
        """Tell all ranks that this one ends. Does not return when an earlier end elsewhere is being reported.

        kind: "error" or "user". echo: the error may be the echo of another rank's end, so listen for that first.
        """
        if echo:
            time.sleep(_ECHO_WAIT_S)
        self._take_the_word()
        self._publish({"rank": self.rank, "kind": kind, "text": text})

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

    def _publish(self, news: dict[str, Any]) -> None:
        for peer in list(self._peers):
            self._send(peer, {"abort": news})

    def _abort(self, news: dict[str, Any]) -> None:
        """In the watching thread: end this process because of another rank."""
        if not self._lock.acquire(blocking=False):
            return
        if self.rank == 0:
            self._publish(news)
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
        cleaner = threading.Thread(target=self._clean_up, daemon=True)
        cleaner.start()
        cleaner.join(_CLEANUP_S)
        os._exit(USER_EXIT_CODE if kind == "user" else EXIT_CODE)

    def _clean_up(self) -> None:
        for cleanup in reversed(self.cleanups):
            try:
                cleanup()
            except Exception as error:  # one failing cleanup must not keep the others from running
                _print_line(f"longtake: rank {self.rank}: clean-up failed: {error}")

    # ------------------------------------------------------------------------------------------- the watch

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="longtake-watchdog", daemon=True).start()

    def _watch(self) -> None:
        try:
            self._watch_until_done()
        except Exception as error:  # a rank without its watchdog could hang for ever; better to stop with a word
            text = f"its watchdog failed: {type(error).__name__}: {error}"
            self._abort({"rank": self.rank, "kind": "error", "text": text})

    def _watch_until_done(self) -> None:
        buffers: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_receive, selectors.EVENT_READ)
            selector.register(self._listener or self._peers[0], selectors.EVENT_READ)
            while not self._done.is_set():
                for key, _ in selector.select():
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if connection is self._wake_receive:
                        connection.recv(64)
                    elif connection is self._listener:
                        self._accept(connection, selector)
                    else:
                        self._read(connection, buffers, selector)
                if self.rank == 0 and len(self._gone) == self.world:
                    for peer in list(self._peers):
                        self._send(peer, {"done": True})
                    self._done.set()

    def _accept(self, listener: socket.socket, selector: Any) -> None:
        try:
            arrival, _ = listener.accept()
            _keep_alive(arrival)
        except OSError:  # it hung up again, or strangers hold all file descriptors: nothing that ends a run
            time.sleep(0.05)
            return
        selector.register(arrival, selectors.EVENT_READ)

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
            selector.unregister(connection)
            del buffers[connection]
            rank = next((r for r, peer in self._peers.items() if peer is connection), None)
            if rank is None:
                connection.close()  # a stranger on our port
            elif rank not in self._gone and not self._done.is_set():
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
            self._peers[rank] = connection
            if len(self._peers) == self.world - 1:
                for peer in list(self._peers):
                    self._send(peer, {"ready": True})
                self._ready.set()
        elif "ready" in message:
            self._ready.set()
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
