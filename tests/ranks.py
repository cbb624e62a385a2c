"""Run a function on several gloo processes of this machine and bring the results back.

    def both_add(rank, world, number):
        total = torch.tensor(number * (rank + 1)); torch.distributed.all_reduce(total); return int(total)

    assert run_ranks(both_add, 2, 5) == [15, 15]

The processes come from a fork server that has torch imported once (`processes`), talk through a file store (no port),
use one thread each, and are ended through their own handles. The function is found again by file and name, so any test
module works whatever name pytest gave it.
"""

import gc
import importlib.util
import inspect
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from processes import context

_PATIENCE = 8.0  # the most that `timeout` is stretched on a machine that others keep busy
_GRACE_S = 5.0  # after the first failure, time for the others to report theirs


def _load(file: str, name: str) -> Callable[..., Any]:
    module_name = f"ranks_job_{Path(file).stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def _child(folder: str, file: str, name: str, rank: int, world: int, timeout: float) -> None:
    gc.freeze()  # what the server loaded stays where it is
    os.environ.update(
        OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank)
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    answer = Path(folder, f"answer{rank}")
    try:
        here = str(Path(__file__).parent)
        if here not in sys.path:
            sys.path.append(here)
        function = _load(file, name)
        args = pickle.loads(Path(folder, "args").read_bytes())
        store = Path(folder, "store").as_uri()
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
        result = (True, function(rank, world, *args))
        dist.barrier()
    except BaseException:
        result = (False, traceback.format_exc())
    partial = answer.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(result))
    partial.replace(answer)
    if not result[0]:
        os._exit(1)  # a pending collective of a failed rank must not keep the process
    dist.destroy_process_group()


def run_ranks(fn: Callable[..., Any], world: int, *args: Any, timeout: float = 300) -> list[Any]:
    """`[fn(rank, world, *args) for rank in range(world)]`, each in its own process with gloo ready.

    fn: a module-level function; its result and `args` must be picklable.
    timeout: seconds until everything is ended and TimeoutError raised (a guard against a hang); times the load per
        core, at most 8 times as long, on a busy machine.
    Raises RuntimeError with the traceback of the rank that failed first.
    """
    file = inspect.getsourcefile(fn)
    assert file is not None
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        Path(folder, "args").write_bytes(pickle.dumps(args))
        job = (folder, os.path.abspath(file), fn.__name__)
        server = context()
        workers = [
            server.Process(target=_child, args=(*job, rank, world, timeout * _PATIENCE), daemon=True)
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
        patience = min(_PATIENCE, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
        deadline = time.monotonic() + timeout * patience
        failed: list[int] = []
        try:
            # asked once a turn: to wait for nobody, all having ended since, would be to wait until the deadline
            while running := [worker.sentinel for worker in workers if worker.is_alive()]:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                wait(running, timeout=min(0.2, left) if failed else left)
                news = [
                    rank
                    for rank, worker in enumerate(workers)
                    if worker.exitcode not in (None, 0) and rank not in failed
                ]
                if news and not failed:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
                failed += news
            ended = [rank for rank, worker in enumerate(workers) if worker.exitcode not in (None, 0)]
            failed += [rank for rank in ended if rank not in failed]
            late = [rank for rank, worker in enumerate(workers) if worker.is_alive()]
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                worker.join()
        answers: list[Any] = []
        times: list[float] = []
        for rank in range(world):
            path = Path(folder, f"answer{rank}")
            answers.append(pickle.loads(path.read_bytes()) if path.exists() else None)
            times.append(path.stat().st_mtime if path.exists() else float("inf"))
        told = sorted(
            (times[rank], rank) for rank in range(world) if answers[rank] is not None and not answers[rank][0]
        )
        if told:
            rank = told[0][1]
            raise RuntimeError(f"rank {rank} of {world} failed first:\n{answers[rank][1]}")
        if failed:
            raise RuntimeError(
                f"rank {failed[0]} of {world} died with exit code {workers[failed[0]].exitcode} and no traceback"
            )
        if late:
            raise TimeoutError(f"ranks {late} of {world} were still busy after {timeout} s")
        return [answer[1] for answer in answers]


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago, for launchers that want a number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
