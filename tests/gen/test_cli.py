import argparse
import importlib.machinery
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
from longtake import command, domain
from longtake.cli import main
from longtake.domain import Domain
from longtake.errors import UserError
from longtake.knob import Knob

Cli = Callable[..., subprocess.CompletedProcess[str]]


class Toy(Domain):
    """A domain "motion" with one option, whose command, recipe and evaluation are the given `run`."""

    NAME, ABOUT, PROMPT, OUT = "motion", "Make motion.", None, "a.txt"
    KNOBS = (Knob(name="frames", kind=int, default=16, help="frames"),)
    package = "toy_package"

    def file_kinds(self):
        return {}


def fake_domain(run: Callable[[argparse.Namespace], int]) -> tuple[Toy, ModuleType]:
    """The domain and the module of its recipe."""
    recipe = ModuleType("toy_package.train", doc="Make motion.\n\nMore about it.")
    recipe.__spec__ = importlib.machinery.ModuleSpec("toy_package.train", None)
    recipe.add_arguments = lambda parser: parser.add_argument("--frames", type=int, default=16)  # type: ignore
    recipe.run = run  # type: ignore[attr-defined]
    return Toy(), recipe


def install(run: Callable[[argparse.Namespace], int], put: Callable[[object, str, object], None]) -> None:
    """Have "motion" be the toy. put: as monkeypatch.setattr."""
    toy, recipe = fake_domain(run)
    sys.modules["toy_package"] = package = ModuleType("toy_package")
    package.__path__ = []
    package.__spec__ = importlib.machinery.ModuleSpec("toy_package", None)
    sys.modules["toy_package.train"] = recipe
    known = {"video": SimpleNamespace(load=lambda: toy), "motion": SimpleNamespace(load=lambda: toy)}
    put(domain, "_found", lambda: known)
    put(command, "run", lambda args, _: run(args))


@pytest.fixture
def motion(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[argparse.Namespace], int]], None]]:
    yield lambda run: install(run, monkeypatch.setattr)
    for name in ("toy_package", "toy_package.train"):
        sys.modules.pop(name, None)


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


def test_a_task_that_a_domain_does_not_have_is_refused_by_name(motion: Callable, capsys: Capture) -> None:
    motion(lambda args: 0)
    assert main(["evaluate", "motion"]) == 2
    told = capsys.readouterr().err
    assert "'longtake evaluate motion' is not available: the installed 'motion' has no evaluate.py" in told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["motion", "--frames", "many"], "argument --frames: invalid int value: 'many' (see longtake motion --help)"),
        (["motion", "--speed", "2"], "unrecognized arguments: --speed 2"),
        (["song", "hello"], "invalid choice: 'song'"),
        (["train", "song"], "no domain 'song' is installed; installed: video, motion"),
        (["motion", "--frames=--"], "argument --frames: expected one argument"),
        (["motion", "--frames", "\udcff"], "no valid text"),
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
        monkeypatch.setenv("WORLD_SIZE", "2")
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
    backends = ("aten_cpu: usable", "math: usable", "cudnn: not usable")
    for text in ("torch 2.", "chosen: device cpu, float32", "LONGTAKE_DEVICE", *backends, "video: ", "MiniLM"):
        assert text in result.stdout
    assert run_cli("info", env={"LONGTAKE_DEVICE": "toaster"}).returncode == 2


_TORCHRUN_JOB = """
import sys
sys.path.insert(0, {folder!r})
from test_cli import install
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

install(run, setattr)
sys.exit(main(["motion", *sys.argv[1:]]))
"""


@pytest.mark.distributed
def test_under_torchrun_a_run_ends_cleanly_and_a_mistake_is_told_once(tmp_path: object) -> None:
    from processes import run, torchrun  # the job imports this file, and has not this folder's parent on its path

    job = os.path.join(str(tmp_path), "job.py")
    with open(job, "w") as file:
        file.write(_TORCHRUN_JOB.format(folder=os.path.dirname(__file__)))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", job]
    good = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert (good.returncode, good.stdout) == (0, "sum 1\n"), good.stderr
    bad = run(*torchrun("--standalone", "--nproc-per-node", 2), job, "--frames", "0", env=env)
    assert bad.returncode != 0
    assert bad.stderr.count("longtake: error: 0 frames were asked for") == 1
    assert "rank 1 of 2 failed" not in bad.stderr
