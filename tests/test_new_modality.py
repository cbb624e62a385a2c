"""The acid test of the house: a modality that nobody here knows (tests/toy_domain.py) has every door."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from longtake.batch import forecast, read_manifest
from longtake.cli import main
from longtake.domain import _found, domain_of, installed
from longtake.records import read

TESTS = Path(__file__).parent


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy, installed as any package is: its metadata names it. The folder is the working folder."""
    place = tmp_path / "site"
    (place / "counter-1.0.dist-info").mkdir(parents=True)
    (place / "counter-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: counter\nVersion: 1.0\n")
    named = "[longtake.domains]\ncounter = toy_domain:DOMAIN\n"
    (place / "counter-1.0.dist-info" / "entry_points.txt").write_text(named)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(TESTS)]))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    _found.cache_clear()
    yield work
    _found.cache_clear()


def test_the_toy_has_fewer_than_60_lines() -> None:
    assert len((TESTS / "toy_domain.py").read_text().splitlines()) < 60


def test_it_is_a_command_with_its_own_help(counter: Path, capsys) -> None:
    assert installed()[-1] == "counter"
    assert main(["--help"]) == 0
    assert "count aloud" in capsys.readouterr().out
    assert main(["counter", "sheep", "--to", "4", "--out", "a.txt", "--out", "b.txt", "--proof", "c.proof"]) == 0
    made = {Path(name).read_text() for name in ("a.txt", "b.txt", "c.proof")}
    assert made == {"1 sheep\n2 sheep\n3 sheep\n4 sheep\n"}
    capsys.readouterr()
    for wrong in (["--to", "0"], ["--to", "many"], ["--slow", "nan"], ["--out", "a.doc"], ["--out", "a.txt"]):
        assert main(["counter", "sheep", *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_killed_count_goes_on_where_it_was(counter: Path) -> None:
    words = [sys.executable, "-m", "longtake", "counter", "sheep", "--to", "60", "--out", "a.txt"]
    running = subprocess.Popen([*words, "--slow", "0.1"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(Path("a.txt.run").glob("count*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not Path("a.txt").exists()
    done = max(int(path.stem.removeprefix("count")) for path in Path("a.txt.run").glob("count*.json"))
    assert 2 <= done < 60
    head = Path("a.txt.run") / f"count{done:06d}.json"
    head.write_text(json.dumps([f"was {n}" for n in range(done)]))  # proves that it is gone on from
    assert main(["counter", "sheep", "--to", "60", "--out", "a.txt"]) == 2
    assert main(["counter", "goats", "--to", "60", "--out", "a.txt", "--resume"]) == 2
    assert main(["counter", "sheep", "--to", "60", "--out", "a.txt", "--resume"]) == 0
    assert Path("a.txt").read_text().splitlines() == [f"was {n}" for n in range(done)] + [
        f"{n} sheep" for n in range(done + 1, 61)
    ]


def test_a_stopped_count_says_so_and_goes_on(counter: Path) -> None:
    words = [sys.executable, "-m", "longtake", "counter", "sheep", "--to", "50", "--out", "a.txt"]
    running = subprocess.Popen([*words, "--slow", "0.1"], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(Path("a.txt.run").glob("count*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=600)
    assert running.returncode == 130 and "a.unfinished.txt" in told and "--resume" in told
    assert not Path("a.txt").exists() and Path("a.unfinished.txt").exists()
    assert main(["counter", "sheep", "--to", "50", "--out", "a.txt", "--resume"]) == 0
    assert len(Path("a.txt").read_text().splitlines()) == 50 and not Path("a.unfinished.txt").exists()


def test_it_runs_in_a_batch_that_estimates_it(counter: Path) -> None:
    lines = [
        {"id": f"c{n}", "modality": "counter", "prompt": "sheep", "parameters": {"to": n, "proof": n == 4}}
        for n in (2, 4)
    ]
    Path("jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    jobs, _ = read_manifest(Path("jobs.jsonl"))
    assert [job.id for job in jobs] == ["c4", "c2"] and jobs[0].cost == pytest.approx(4.01)
    assert "4 numbers" in forecast(jobs, [], 1)
    assert main(["batch", "jobs.jsonl", "--out", "runs"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["c2.txt", "c4.proof", "c4.txt", "results.jsonl"]
    Path("runs/c4.proof").write_text("torn")
    assert main(["batch", "jobs.jsonl", "--out", "runs", "--resume"]) == 0
    assert [row["id"] for row in read(Path("runs/results.jsonl"))].count("c4") == 2


def test_it_is_a_tab_of_the_page(counter: Path) -> None:
    from longtake.demos.app import build
    from longtake.demos.bench import Bench
    from longtake.demos.form import Form

    bench = Bench()
    try:
        page, _ = build(bench)
        events = {name for function in page.fns.values() if isinstance(name := function.api_name, str)}
        assert {"counter", "counter_estimate", "counter_stop", "motion", "video"} <= events
        form = Form(bench, domain_of("counter"))
        assert form.names == ["timeline", "seed", "to", "files"]
        *_, end = form.run("me", ["sheep", 1, 3, [".txt"]], skip=None)
        assert "3 numbers" in end[0] and "counter-1.txt" in end[1] and "longtake counter sheep --seed 1" in end[-1]
    finally:
        bench.close()
