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
    run = subprocess.run([sys.executable, *show[1:]], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert "[1, 1, 1, 0, 0, 0, 0, 0, 0, 1]" in run.stdout, run.stderr
    assert all((ROOT / path).is_dir() for path in tests[1:])
    short = benchmark[1 : benchmark.index("--frames")] + ["--frames", "32", "--rounds", "1"]
    run = subprocess.run([sys.executable, *short], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert re.search(r"^ +32( +[\d.]+){3} +\d\.\de-\d\d$", run.stdout, re.MULTILINE), run.stderr + run.stdout


def test_the_drawn_example_is_what_the_code_says() -> None:
    from longtake.kernels import Lambda, Layout
    from longtake.kernels.plan.tiles import compile_tiles

    text = (ROOT / "kernels" / "README.md").read_text()
    lines = text.split("key 0 1 2 3 4 5 6 7\n")[1].splitlines()[:8]
    drawn = [line[len("    query 0     ") :][:15].split() for line in lines]
    mask, layout = Lambda(sink=1, local=3), Layout.zigzag(8, 2)
    few, window = mask.parts()
    marks = {"s": few.dense(range(8), range(8)), "x": window.dense(range(8), range(8))}
    for query, row in enumerate(drawn):
        assert row == [next((m for m, seen in marks.items() if seen[query, key]), ".") for key in range(8)]
    assert layout.runs == ((range(0, 2), range(6, 8)), (range(2, 4), range(4, 6)))
    assert mask.reach(6, 8) == [(0, 1), (4, 8)]
    assert compile_tiles(mask, layout.runs[0], layout.runs[0])
