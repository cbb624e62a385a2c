import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_of_the_readme_run() -> None:
    block = re.search(r"```sh\n(.*?)```", (ROOT / "kernels" / "README.md").read_text(), re.DOTALL)
    assert block is not None
    commands = [shlex.split(line) for line in block[1].splitlines()]
    assert [command[0] for command in commands] == ["python", "pytest", "python"]
    show, tests, benchmark = commands
    run = subprocess.run([sys.executable, *show[1:]], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "[1, 1, 1, 0, 0, 0, 0, 0, 0, 1]" in run.stdout, run.stderr
    assert all((ROOT / path).is_dir() for path in tests[1:])
    short = benchmark[1 : benchmark.index("--frames")] + ["--frames", "32", "--rounds", "1"]
    run = subprocess.run([sys.executable, *short], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert re.search(r"^ +32( +[\d.]+){3} +\d\.\de-\d\d$", run.stdout, re.MULTILINE), run.stderr + run.stdout
