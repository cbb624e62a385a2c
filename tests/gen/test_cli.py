import argparse
import importlib.machinery
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
from longtake import cli
from longtake.cli import main
from longtake.errors import UserError

Cli = Callable[..., subprocess.CompletedProcess[str]]


def fake_domain(run: Callable[[argparse.Namespace], int]) -> dict[str, ModuleType]:
    """Modules that make a domain "motion" look installed, with one option and the given `run`."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--frames", type=int, default=16)

    modules = {}
    for name in ("longtake.motion", "longtake.motion.command", "longtake.motion.train"):
        module = ModuleType(name, doc="Make motion.\n\nMore about it.")
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.add_arguments, module.run = add_arguments, run  # type: ignore[attr-defined]
        modules[name] = module
    return modules


@pytest.fixture
def motion(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    def install(run: Callable[[argparse.Namespace], int]) -> None:
        for name, module in fake_domain(run).items():
            monkeypatch.setitem(sys.modules, name, module)

    return install


Capture = pytest.CaptureFixture[str]


def test_a_domains_command_gets_its_own_options(motion: Callable, capsys: Capture) -> None:
    motion(lambda args: args.frames)
    assert main(["motion", "--frames", "7"]) == 7
    assert main(["train", "motion", "--frames", "5"]) == 5
    assert main(["motion", "--help"]) == 0
    assert "usage: longtake motion" in capsys.readouterr().out


def test_a_users_mistake_is_one_line_and_exit_code_2(motion: Callable, capsys: Capture) -> None:
    def run(args: argparse.Namespace) -> int:
        raise UserError("0 frames were asked for;\n at least 1 is needed")

    motion(run)
    assert main(["motion"]) == 2
    assert capsys.readouterr().err == "longtake: error: 0 frames were asked for; at least 1 is needed\n"


def test_a_task_that_a_domain_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'longtake fly motion' is not available: the installed 'motion' has no fly.py"):
        cli._run_module("longtake fly motion", "motion", "fly", [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["motion", "--frames", "many"], "argument --frames: invalid int value: 'many' (see longtake motion --help)"),
        (["motion", "--speed", "2"], "unrecognized arguments: --speed 2"),
        (["speech", "hello"], "no domain 'speech' is installed; installed: video, motion"),
        (["train"], "longtake train needs a domain: video, motion"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    motion: Callable, capsys: Capture, argv: list[str], message: str
) -> None:
    motion(lambda args: 0)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("longtake: error: ") and message in error and error.count("\n") == 1


def test_an_unexpected_error_keeps_its_traceback(motion: Callable, capsys: Capture) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError("our fault")

    motion(run)
    assert main(["motion"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "ZeroDivisionError: our fault" in error


def test_an_interrupt_has_exit_code_130(motion: Callable, capsys: Capture) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    motion(run)
    assert main(["motion"]) == 130
    assert capsys.readouterr().err == "longtake: interrupted\n"


def test_only_rank_0_speaks(motion: Callable, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        print("working")
        raise UserError("no")

    motion(run)
    for rank, expected in (("0", ("working\n", "longtake: error: no\n")), ("1", ("", ""))):
        monkeypatch.setenv("RANK", rank)
        assert main(["motion"]) == 2
        output = capsys.readouterr()
        assert (output.out, output.err) == expected


def test_help_lists_the_commands_and_imports_no_torch(run_cli: Cli) -> None:
    result = run_cli("--help")
    assert result.returncode == 0
    assert all(f"\n    {command} " in result.stdout for command in ("video", "train", "evaluate", "info"))
    code = "import sys; from longtake.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_script_without_arguments_shows_the_help(run_cli: Cli) -> None:
    assert run_cli().stdout == run_cli("--help").stdout
    assert run_cli("--version").stdout.startswith("longtake 0.")


def test_info_tells_versions_devices_backends_and_priors(run_cli: Cli) -> None:
    result = run_cli("info", env={"LONGTAKE_DEVICE": "cpu"})
    assert result.returncode == 0, result.stderr
    for text in ("torch 2.", "chosen: device cpu, float32", "LONGTAKE_DEVICE", "sdpa: usable", "video: ", "MiniLM"):
        assert text in result.stdout
    assert run_cli("info", env={"LONGTAKE_DEVICE": "toaster"}).returncode == 2


_TORCHRUN_JOB = """
import sys
sys.path.insert(0, {folder!r})
from test_cli import fake_domain
from longtake import cli
from longtake.cli import main
from longtake.errors import UserError

def run(args):
    from longtake.distributed import setup
    ranks = setup()
    total = sum(ranks.gather_object(ranks.rank))
    if args.frames == 0:
        raise UserError("0 frames were asked for")
    print("sum", total)
    return 0

sys.modules.update(fake_domain(run))
sys.exit(main(["motion", *sys.argv[1:]]))
"""


@pytest.mark.distributed
def test_under_torchrun_a_run_ends_cleanly_and_a_mistake_is_told_once(tmp_path: object) -> None:
    job = os.path.join(str(tmp_path), "job.py")
    with open(job, "w") as file:
        file.write(_TORCHRUN_JOB.format(folder=os.path.dirname(__file__)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", job]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    good = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert (good.returncode, good.stdout) == (0, "sum 1\n"), good.stderr
    bad = subprocess.run([*command, "--frames", "0"], env=env, capture_output=True, text=True, timeout=90)
    assert bad.returncode != 0
    assert bad.stderr.count("longtake: error: 0 frames were asked for") == 1
    assert "rank 1 of 2 failed" not in bad.stderr
