"""Python programs in processes of their own, without the seconds that torch and diffusers take to load each time.

    run("-m", "longtake", "info", env={...}).stdout                        # as subprocess.run with text=True
    start("-c", code, "word", cwd=folder, stderr=folder / "err")           # as subprocess.Popen

The processes are forked from a server that has loaded what is heavy and belongs to others (of longtake nothing but the
kernels, which keep no state of a process and which most ranks need), and run the words behind them as `python` would:
own __main__, own environment and folder, own files for what they print.
A program that tests what Python itself or a launcher does at its start belongs to `subprocess`. A launch by torchrun
whose ranks may begin with torch loaded is

    run(*torchrun("--standalone", "--nproc-per-node", 3), script, "word")  # the agent is real, it forks its ranks
"""

import atexit
import gc
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
import weakref
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

HEAVY = (
    "torch", "torch.distributed", "diffusers.models.unets.unet_3d_condition", "diffusers.pipelines.pipeline_utils",
    "diffusers.models.autoencoders", "diffusers.schedulers.scheduling_ddpm", "transformers", "peft", "av",
    "scipy.signal", "diffusers.guiders", "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "diffusers.schedulers.scheduling_unipc_multistep", "transformers.models.bert.modeling_bert", "pytest",
    "longtake.kernels.calls.api",
)  # fmt: skip


def torchrun(*options: object) -> list[object]:
    """The words before a script's absolute path. Processes of the agent's own cost each rank the seconds of a start."""
    return ["-m", "torch.distributed.run", *options, "--run-path", "--start-method", "fork"]


def context() -> ForkServerContext:
    """Processes that come from a server with HEAVY loaded, on one thread each."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(HEAVY))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return made


def _child(words: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    gc.freeze()  # what the server loaded stays where it is
    weakref.finalize._registry.clear()  # the server's; to look through them at the end takes 0.05 s
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8", errors="surrogateescape")
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", 1)))
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    try:
        first, *rest = words
        if first == "-m":
            sys.argv = rest
            sys.path.insert(0, cwd)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, "")
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a process without them
        sys.stdout.flush()


class Started:
    """A program under way: what the tests use of `subprocess.Popen`."""

    def __init__(self, words: list[str], env: Mapping[str, str], cwd: Path, out: Path | None, err: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="started-")
        self.out, self.err = out or Path(self._folder.name, "out"), err or Path(self._folder.name, "err")
        for path in (self.out, self.err):
            path.write_bytes(b"")
        job = (words, dict(env), str(cwd.absolute()), str(self.out.absolute()), str(self.err.absolute()))
        self._process = context().Process(target=_child, args=job)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read_text(errors="replace"), self.err.read_text(errors="replace")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    *words: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: Path | None = None,
    stderr: Path | None = None,
) -> Started:
    """Begin `python WORDS`; `-m module`, `-c code` or a script first. env: all of it, as for `subprocess`."""
    return Started([str(word) for word in words], os.environ if env is None else env, cwd or Path.cwd(), stdout, stderr)


def run(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` to its end, with what it printed as text. Raises subprocess.TimeoutExpired."""
    process = start(*words, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess([str(word) for word in words], process.returncode, out, err)
