"""One fails, all fail: real processes, real signals. Each scene starts `_WORKER` once for every rank."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from longtake.distributed import Ranks, check_same, current, setup
from longtake.errors import UserError
from processes import Started, run, start, torchrun
from ranks import free_port, run_ranks

LIMIT_S = 120.0  # from a rank's end to the end of all others; unalarmed they would work for 300 s

_WORKER = """
import ctypes, os, signal, sys, time
import torch
from longtake.distributed import setup
from longtake.errors import UserError

what, victim, where, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
ranks = setup()
with ranks:
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
        while time.time() - start < 300:
            x @ x
print("clean end", flush=True)
"""


@dataclass
class End:
    code: int
    out: str
    err: str
    seconds: float  # from the victim's end to this rank's


def begin(folder: Path, what: str, victim: int, where: str, world: int = 3) -> list[Started]:
    """The ranks of a scene, under way."""
    script = folder / "worker.py"
    script.write_text(_WORKER)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        start(
            *(script, what, victim, where, folder),
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=folder / f"out{rank}",
            stderr=folder / f"err{rank}",
        )
        for rank in range(world)
    ]


def scene(folder: Path, what: str, victim: int, where: str, world: int = 3, timeout: float = 600) -> list[End]:
    processes = begin(folder, what, victim, where, world)
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
    begun = (folder / "end").stat().st_mtime
    return [
        End(
            processes[rank].returncode,
            (folder / f"out{rank}").read_text().strip(),
            (folder / f"err{rank}").read_text().strip(),
            ended[rank] - begun,
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module", autouse=True)
def held(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[Started]]]:
    """Ranks of which one holds Python's lock for 22 s: they wait while the other tests of this file work."""
    folder = tmp_path_factory.mktemp("held")
    wanted = any("holds_pythons_lock" in item.name for item in request.session.items)
    processes = begin(folder, "hold", 1, "collective") if wanted else []
    yield folder, processes
    for process in processes:
        process.kill()
        process.wait()


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
def test_a_rank_that_holds_pythons_lock_for_long_is_not_taken_for_dead(held: tuple[Path, list[Started]]) -> None:
    folder, processes = held
    told = [process.communicate(600) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    assert told == [("clean end\n", "")] * 3
    assert (folder / "out0").stat().st_mtime - (folder / "end").stat().st_mtime > 20  # it was waited for


@pytest.mark.distributed
def test_under_torchrun_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(_WORKER)
    result = run(
        *torchrun("--standalone", "--nproc-per-node", 3),
        *(tmp_path / "worker.py", "kill", "1", "collective", tmp_path),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        [sys.executable, "-c", script], env={**os.environ, **variables}, capture_output=True, text=True, timeout=600
    )
    assert "rank 0 of 2 did not find all others at 127.0.0.1" in result.stdout


# --------------------------------------------------------------------------------------- before all have joined


def start_cli(rank: int, world: int, port: int, folder: Path, *words: str) -> Started:
    """`longtake WORDS` as mpirun would start it: no agent, everything in the environment."""
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return start(*("-m", "longtake", *words), env={**os.environ, **variables, **address}, stderr=folder / f"err{rank}")


def ends(
    processes: Sequence[Started | subprocess.Popen[bytes]], folder: Path, timeout: float = 300
) -> tuple[list[int], list[str]]:
    """Exit codes and the lines of standard error of all ranks; every rank must end in time."""
    deadline = time.monotonic() + timeout
    try:
        codes = [process.wait(max(deadline - time.monotonic(), 0.1)) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    lines = [(folder / f"err{rank}").read_text().strip() for rank in range(len(processes))]
    return codes, lines


def manifest(folder: Path) -> list[str]:
    """A batch of one short motion."""
    job = '{"id": "a", "modality": "motion", "prompt": "a person walks", "parameters": {"frames": 40, "steps": 1}}\n'
    (folder / "jobs.jsonl").write_text(job)
    return ["batch", str(folder / "jobs.jsonl"), "--out", str(folder / "runs")]


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "victim"), [(2, 1), (3, 2), (3, 0)])
def test_a_mistake_of_one_rank_before_the_run_frees_the_others_and_is_told_once(
    tmp_path: Path, world: int, victim: int
) -> None:
    words, port = manifest(tmp_path), free_port()
    started = time.monotonic()
    processes = [
        start_cli(rank, world, port, tmp_path, *words, *(["--bogus"] if rank == victim else []))
        for rank in range(world)
    ]
    codes, lines = ends(processes, tmp_path)
    assert codes == [2] * world and time.monotonic() - started < 120
    assert [line for line in lines if line] == [
        "longtake: error: unrecognized arguments: --bogus (see longtake batch --help)"
    ]


@pytest.mark.distributed
def test_a_mistake_that_all_ranks_share_is_told_once(tmp_path: Path) -> None:
    port, missing = free_port(), tmp_path / "nothing.jsonl"
    codes, lines = ends([start_cli(rank, 3, port, tmp_path, "batch", str(missing)) for rank in range(3)], tmp_path)
    assert codes == [2, 2, 2]
    assert lines == [f"longtake: error: cannot read the manifest {missing}: it is not there", "", ""]


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_killed_at_birth_frees_the_others_with_a_reason(
    tmp_path: Path, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if victim:  # once with the usual 15 s of waiting, once with less
        monkeypatch.setenv("LONGTAKE_JOIN_TIMEOUT", "5")
    words, port = manifest(tmp_path), free_port()
    started = time.monotonic()
    processes = [start_cli(rank, 3, port, tmp_path, *words) for rank in range(3)]
    time.sleep(0.02)
    processes[victim].kill()
    codes, lines = ends(processes, tmp_path)
    assert codes[victim] == -9 and all(code in (2, 75) for rank, code in enumerate(codes) if rank != victim)
    assert time.monotonic() - started < 120
    told = "\n".join(lines)
    assert f"rank {victim} did not come" in told or f"rank {victim} of 3 was lost" in told
    assert "Traceback" not in told


@pytest.mark.distributed
def test_a_rank_killed_while_it_loads_frees_the_others_at_once(tmp_path: Path) -> None:
    port = free_port()
    script = "import time, longtake.watchdog as w; w.begin(); print('there', flush=True); time.sleep(60)"
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    loading = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **variables, "RANK": "1", "LONGTAKE_JOIN_TIMEOUT": "300"},
        stdout=subprocess.PIPE,
    )
    assert loading.stdout is not None and loading.stdout.readline() == b"there\n"
    other = start_cli(0, 2, port, tmp_path, *manifest(tmp_path))
    time.sleep(2.0)
    loading.kill()
    loading.wait()
    codes, lines = ends([other], tmp_path, 120)
    assert codes == [75] and "rank 1 of 2 was lost" in lines[0]


@pytest.mark.distributed
def test_a_port_in_use_is_said_first_and_frees_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_JOIN_TIMEOUT", "5")
    words = manifest(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = time.monotonic()
        codes, lines = ends([start_cli(rank, 3, port, tmp_path, *words) for rank in range(3)], tmp_path)
    assert codes == [2, 2, 2] and time.monotonic() - started < 120
    assert lines[0] == f"longtake: error: port {port} of 127.0.0.1 is in use: set MASTER_PORT to a free one"
    for rank in (1, 2):
        assert f"longtake: error (rank {rank}): rank {rank} of 3 did not find all others at 127.0.0.1" in lines[rank]


@pytest.mark.distributed
def test_ranks_without_an_agent_make_what_one_process_makes(tmp_path: Path) -> None:
    words, port = manifest(tmp_path), free_port()
    codes, lines = ends([start_cli(rank, 2, port, tmp_path, *words) for rank in range(2)], tmp_path, 120)
    assert codes == [0, 0], lines
    assert (tmp_path / "runs" / "results.jsonl").exists()


_LATE = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from longtake.distributed import setup

def late(future):  # in a thread of the process group
    time.sleep(3)
    print("late", flush=True)

ranks = setup()
with ranks:
    import torch.distributed.nn  # as diffusers does while it loads a model
    ranks.barrier()
    if sys.argv[1] == "finish" or ranks.rank == 0:
        dist.all_reduce(torch.zeros(1), async_op=True).get_future().then(late)
    if sys.argv[1] == "raise":
        time.sleep(0.5 if ranks.rank == 0 else 60)
        raise KeyError("no such frame")  # while the sum waits for rank 1
names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
print([name for name in names if name.startswith("pt_")])
"""


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("end", "codes", "out"), [("finish", [0, 0], ["late\n[]"] * 2), ("raise", [1, 75], ["late", ""])]
)
def test_no_thread_of_the_process_group_outlives_the_run(
    tmp_path: Path, end: str, codes: list[int], out: list[str]
) -> None:
    (tmp_path / "late.py").write_text(_LATE)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        start(
            *(tmp_path / "late.py", end),
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=tmp_path / f"out{rank}",
            stderr=tmp_path / f"err{rank}",
        )
        for rank in range(2)
    ]
    ended, lines = ends(processes, tmp_path)
    assert ended == codes, lines
    assert "terminate" not in "".join(lines)
    assert [(tmp_path / f"out{rank}").read_text().strip() for rank in range(2)] == out


@pytest.mark.distributed
def test_a_rank_that_needs_no_others_waits_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_JOIN_TIMEOUT", "300")
    started = time.monotonic()
    codes, lines = ends([start_cli(0, 2, free_port(), tmp_path, "--version")], tmp_path)
    assert (codes, lines) == ([0], [""]) and time.monotonic() - started < 120


# ------------------------------------------------------------------------------------------------ under torchrun


_MISTAKEN = """
import os, sys
from longtake.cli import main
from longtake.errors import UserError

if sys.argv[1] in (os.environ["RANK"], "all"):
    sys.argv[1:] = ["batch", sys.argv[2] + "/nothing.jsonl"]
else:
    sys.argv[1:] = ["batch", sys.argv[2] + "/jobs.jsonl", "--out", sys.argv[2] + "/runs"]
sys.exit(main())
"""


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "victim", "who"), [(2, "1", " (rank 1)"), (3, "all", ""), (3, "0", "")])
def test_under_torchrun_every_mistake_is_told_once(tmp_path: Path, world: int, victim: str, who: str) -> None:
    manifest(tmp_path)
    script = tmp_path / "mistaken.py"
    script.write_text(_MISTAKEN)
    launch = torchrun("--standalone", "--nproc-per-node", world)
    result = run(*launch, script, victim, tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = [line for line in result.stderr.splitlines() if line.startswith("longtake: error")]
    expected = f"longtake: error{who}: cannot read the manifest {tmp_path}/nothing.jsonl: it is not there"
    assert result.returncode != 0 and told == [expected]


_ORPHAN = """
import os, sys, time
from longtake.distributed import setup

with setup() as ranks:
    open(f"{sys.argv[1]}/pid{ranks.rank}.partial", "w").write(str(os.getpid()))
    os.rename(f"{sys.argv[1]}/pid{ranks.rank}.partial", f"{sys.argv[1]}/pid{ranks.rank}")
    time.sleep(120)
"""


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_ranks_end_soon_after_torchrun_was_killed(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(_ORPHAN)
    # ranks that the agent forks would get a signal from the kernel at its end, so these are processes of their own
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    agent = start(*launch, tmp_path / "orphan.py", tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    pids: list[int] = []
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not all((tmp_path / f"pid{rank}").exists() for rank in range(2)):
            time.sleep(0.1)
        pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
        agent.kill()
        agent.wait()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and any(map(_is_alive, pids)):
            time.sleep(0.1)
        assert not any(map(_is_alive, pids))
    finally:
        agent.kill()
        for pid in filter(_is_alive, pids):
            os.kill(pid, 9)


# --------------------------------------------------------------------------------------------- several machines


@pytest.mark.distributed
def test_two_agents_make_the_files_of_one_process(tmp_path: Path) -> None:
    jobs = "".join(
        f'{{"id": "{name}", "modality": "motion", "prompt": "a person walks", "seed": {seed}, '
        '"parameters": {"frames": 40, "steps": 1, "outputs": [".npz", ".bvh"]}}\n'
        for seed, name in enumerate("ab")
    )
    (tmp_path / "jobs.jsonl").write_text(jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(tmp_path / "jobs.jsonl"), "--out"]
    assert run("-m", "longtake.batch", *words, tmp_path / "one", env=environment).returncode == 0
    (tmp_path / "job.py").write_text("import runpy; runpy.run_module('longtake.batch', run_name='__main__')")
    place = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", "two"]
    launch = torchrun("--nnodes", "2", "--nproc_per_node", "1", *place)
    agents = [
        start(*launch, tmp_path / "job.py", *words, tmp_path / "two", env=environment, stderr=tmp_path / f"err{node}")
        for node in range(2)
    ]
    codes, lines = ends(agents, tmp_path, 240)
    assert codes == [0, 0], lines
    made = sorted(path.name for path in (tmp_path / "one").iterdir() if path.suffix in (".npz", ".bvh"))
    assert made == ["a.bvh", "a.npz", "b.bvh", "b.npz"]
    for name in made:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
