"""The hub's port is open to every process of the machine: nothing that a stranger sends ends a run."""

import json
import os
import socket
import time

import pytest
from longtake.errors import RankFailure
from longtake.watchdog import Watchdog

TOKEN = "0123abcd"


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"token": "\u00e9", "hello": 1}),
        json.dumps({"token": "\ud800", "hello": 1}),
        "[" * 200_000,
        "[" * 50_000,
        "{" * 40_000,
        "5",
        "null",
        json.dumps({"token": None}),
        json.dumps({"token": TOKEN}),
        json.dumps({"token": TOKEN, "hello": "1"}),
        json.dumps({"token": TOKEN, "hello": 7}),
        json.dumps({"token": TOKEN, "hello": True}),
        json.dumps({"abort": {"rank": 1, "kind": "error", "text": "x"}}),
        "9" * 5000,
    ],
    ids=range(14),
)
def test_no_line_of_a_stranger_ends_a_run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    hub = Watchdog.host(2, TOKEN, local_only=True)
    with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
        stranger.sendall(line.encode() + b"\n")
        stranger.settimeout(120)
        try:
            assert stranger.recv(1) == b""
        except ConnectionResetError:
            pass
    other = Watchdog.join(1, 2, "127.0.0.1", hub.port, TOKEN, 120)
    other.wait_for_all(120)
    hub.wait_for_all(120)
    assert not ended
    other._send(0, {"bye": 1})
    hub.finish()
    deadline = time.monotonic() + 60
    while not other._done.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    other.close()
    assert not ended


def test_a_connection_that_met_itself_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def alone(_address: object, timeout: float) -> socket.socket:
        """What a look for a port that nobody listens at may be given where it is one of the system's own choice."""
        made.append(socket.socket())
        made[-1].settimeout(timeout)
        made[-1].bind(("127.0.0.1", 0))
        made[-1].connect(made[-1].getsockname())
        return made[-1]

    monkeypatch.setattr(socket, "create_connection", alone)
    monkeypatch.setattr("longtake.watchdog._SILENCE_S", 0.3)
    rank = Watchdog.muster(1, 2, "127.0.0.1", 1, near=True)
    with pytest.raises(RankFailure, match="rank 0 did not come"):
        rank.wait_for_all(2.0)
    rank._done.set()
    rank.close()
    assert len(made) > 1 and all(one.fileno() == -1 for one in made[:-1])


def test_who_answered_once_and_is_gone_is_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank 0 that dies between its listening and its welcome: nobody else answers there."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("longtake.watchdog._SILENCE_S", 0.5)
    rank = Watchdog.muster(1, 2, *listener.getsockname(), near=True)
    connection, _ = listener.accept()
    listener.close()
    connection.close()
    with pytest.raises(RankFailure, match="rank 0 did not come"):
        rank.wait_for_all(2.5)
    rank._done.set()
    rank.close()


def test_strangers_are_capped_in_number_and_keep_no_rank_out() -> None:
    hub = Watchdog.host(2, TOKEN, local_only=True)
    idle = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(200)]
    deadline = time.monotonic() + 60
    while len(hub._strangers) < 66 and time.monotonic() < deadline:
        time.sleep(0.01)
    idle[0].settimeout(120)
    assert idle[0].recv(1) == b""  # the oldest was turned away
    assert len(hub._strangers) <= 66
    other = Watchdog.join(1, 2, "127.0.0.1", hub.port, TOKEN, 120)
    other.wait_for_all(120)
    hub.wait_for_all(120)
    idle[-1].settimeout(120)
    assert idle[-1].recv(1) == b""  # all ranks are in: nobody else is kept,
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", hub.port), timeout=1)  # or let in
    other._send(0, {"bye": 1})
    hub.finish()
    other._done.wait(120)
    other.close()
    for connection in idle:
        connection.close()
