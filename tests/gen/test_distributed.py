"""One fails, all fail: real processes, real signals. Each scene starts `_WORKER` once for every rank."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from longtake.distributed import Ranks, check_same, current, setup
from longtake.errors import UserError
from ranks import run_ranks

LIMIT_S = 20.0  # from a rank's end to the end of all others

_WORKER = """
import ctypes, os, signal, sys, time
import torch
from longtake.distributed import setup
from longtake.errors import UserError

what, victim, where, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
ranks = setup()
with ranks:
    ranks.on_abort(lambda: open(f"{folder}/cleaned{ranks.rank}", "w").close())
    assert ranks.gather_object(ranks.rank) == [0, 1, 2] and ranks.broadcast_object(ranks.rank, 2) == 2
    ranks.barrier()
    if ranks.rank == victim:
        time.sleep(0.5)
        open(f"{folder}/end", "w").close()
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "raise":
            raise KeyError("no such frame")
        elif what == "mistake":
            raise UserError("the window is larger than the video")
        elif what == "exit":
            os._exit(0)
        elif what == "early":
            ranks.finish()
        elif what == "hold":
            ctypes.PyDLL(None).sleep(22)  # PyDLL keeps Python's lock, so no thread of this rank can run
    if where == "finish":
        time.sleep(2.0)
    elif where == "collective":
        ranks.barrier()
    elif where == "compute":
        x, start = torch.randn(700, 700), time.time()
        while time.time() - start < 60:
            x @ x
print("clean end", flush=True)
"""


@dataclass
class End:
    code: int
    out: str
    err: str
    seconds: float  # from the victim's end to this rank's


def scene(folder: Path, what: str, victim: int, where: str, world: int = 3, timeout: float = 90) -> list[End]:
    script = folder / "worker.py"
    script.write_text(_WORKER)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, what, str(victim), where, folder],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=open(folder / f"out{rank}", "w"),
            stderr=open(folder / f"err{rank}", "w"),
        )
        for rank in range(world)
    ]
    ended: dict[int, float] = {}
    deadline = time.time() + timeout
    try:
        while len(ended) < world and time.time() < deadline:
            for rank, process in enumerate(processes):
                if rank not in ended and process.poll() is not None:
                    ended[rank] = time.time()
            time.sleep(0.05)
        assert len(ended) == world, f"ranks {set(range(world)) - set(ended)} did not end within {timeout} s"
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    start = (folder / "end").stat().st_mtime
    return [
        End(
            processes[rank].returncode,
            (folder / f"out{rank}").read_text().strip(),
            (folder / f"err{rank}").read_text().strip(),
            ended[rank] - start,
        )
        for rank in range(world)
    ]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("victim", "where"), [(0, "collective"), (1, "collective"), (2, "collective"), (0, "compute"), (2, "compute")]
)
def test_a_killed_rank_ends_all_others_soon_and_each_says_one_line(tmp_path: Path, victim: int, where: str) -> None:
    ends = scene(tmp_path, "kill", victim, where)
    assert ends[victim].code == -9
    for rank in {0, 1, 2} - {victim}:
        assert ends[rank].code == 75
        assert ends[rank].seconds < LIMIT_S
        assert ends[rank].err.splitlines() == [
            f"longtake: rank {victim} of 3 was lost (its process ended without a word: killed, out of memory, or its "
            f"machine is gone); rank {rank} stops"
        ]
        assert (tmp_path / f"cleaned{rank}").exists()


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_raises_tells_the_others_why(tmp_path: Path, victim: int) -> None:
    ends = scene(tmp_path, "raise", victim, "collective")
    assert ends[victim].code == 1
    assert "KeyError: 'no such frame'" in ends[victim].err and "Traceback" in ends[victim].err
    for rank in {0, 1, 2} - {victim}:
        line = f"longtake: rank {victim} of 3 failed (KeyError: 'no such frame'); rank {rank} stops"
        assert (ends[rank].code, ends[rank].err) == (75, line)
        assert ends[rank].seconds < LIMIT_S


@pytest.mark.distributed
def test_a_users_mistake_on_one_rank_is_told_once_by_rank_0(tmp_path: Path) -> None:
    ends = scene(tmp_path, "mistake", 2, "compute")
    assert (ends[0].code, ends[0].err) == (2, "longtake: error: the window is larger than the video")
    assert (ends[1].code, ends[1].err) == (2, "")


@pytest.mark.distributed
def test_a_rank_that_leaves_without_finishing_counts_as_lost(tmp_path: Path) -> None:
    ends = scene(tmp_path, "exit", 1, "collective")
    assert (ends[0].code, ends[2].code) == (75, 75)
    assert "rank 1 of 3 was lost" in ends[0].err


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_finishes_early_alarms_nobody(tmp_path: Path, victim: int) -> None:
    ends = scene(tmp_path, "early", victim, "finish")
    assert [(end.code, end.out, end.err) for end in ends] == [(0, "clean end", "")] * 3


@pytest.mark.distributed
@pytest.mark.slow
def test_a_rank_that_holds_pythons_lock_for_long_is_not_taken_for_dead(tmp_path: Path) -> None:
    ends = scene(tmp_path, "hold", 1, "collective")
    assert [(end.code, end.err) for end in ends] == [(0, "")] * 3
    assert ends[0].seconds > LIMIT_S


@pytest.mark.distributed
def test_under_torchrun_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(_WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    result = subprocess.run(
        [*command, tmp_path / "worker.py", "kill", "1", "collective", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    seconds = time.time() - (tmp_path / "end").stat().st_mtime
    assert result.returncode != 0 and seconds < LIMIT_S
    assert "clean end" not in result.stdout


def _work_in_a_group_that_exists(rank: int, world: int) -> tuple[int, int]:
    with setup() as ranks:
        assert current() is ranks and not ranks.owns_group
        check_same({"frames": 240}, "the plan")
        try:
            check_same({"frames": 240 + rank}, "the plan")
        except UserError as error:
            assert "the ranks disagree about the plan: rank 0 has {'frames': 240}, rank 1 has" in str(error)
        else:
            raise AssertionError("a disagreement went unnoticed")
    assert current() is None
    return ranks.rank, ranks.world


@pytest.mark.distributed
def test_a_group_made_by_another_library_is_used_and_left_open() -> None:
    assert run_ranks(_work_in_a_group_that_exists, 3) == [(0, 3), (1, 3), (2, 3)]


def test_a_run_of_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with setup() as ranks:
        assert (ranks.rank, ranks.world, ranks.group) == (0, 1, None)
        assert ranks.broadcast_object("x") == "x" and ranks.gather_object("x") == ["x"]
        ranks.barrier()
        check_same(1, "the plan", ranks)
    assert Ranks.single().is_main


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
    ],
)
def test_an_incomplete_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        setup()


@pytest.mark.distributed
def test_a_rank_that_never_arrives_is_an_error_within_the_join_timeout(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = (
        "from longtake.distributed import setup\n"
        "from longtake.errors import UserError\n"
        "try: setup(join_timeout_s=2)\n"
        "except UserError as error: print(error)\n"
    )
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    assert "rank 0 of 2 did not find all others at 127.0.0.1" in result.stdout
