"""``longtake train all``: every domain's commands side by side, each domain's own in their order."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from longtake import cli, together
from longtake.errors import UserError


def say(text, out):
    """The words of a `longtake` command that writes a file of its own: the texts of a shell's completion."""
    return ["completion", "bash"] if text == "fine" else ["train", "no such domain", "--out", str(out)]


@pytest.fixture
def chains(monkeypatch, tmp_path):
    """Two domains: of one both commands work, of the other the first of two fails."""
    asked = []

    def recipe(name, words):
        def whole(prepared: Path, minutes: float, out: Path):
            asked.append((name, prepared.name, minutes, out.name))
            (out).mkdir(parents=True, exist_ok=True)
            (out / "stop.json").write_text(json.dumps({"figure": 0.5, "each": {"a": 1}}))
            return [say(word, out) for word in words]

        return whole

    monkeypatch.setattr(
        together, "recipes", lambda: {"one": recipe("one", ["fine", "fine"]), "two": recipe("two", ["bad", "fine"])}
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.prepared").touch()
    return asked


def test_a_domain_that_fails_does_not_stop_the_others_and_is_told(chains, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["train", "all", "--prepared", str(tmp_path), "--minutes", "2.5", "--out", str(out)]) == 1
    assert chains == [("one", "one.prepared", 2.5, "one"), ("two", "two.prepared", 2.5, "two")]
    first, second = ((out / name / "log.txt").read_text() for name in ("one", "two"))
    assert first.count("longtake completion bash") == 2 and first.count("complete -o") + first.count("complete -F") == 2
    assert "completion" not in second  # what follows a failed command is not begun
    said = capsys.readouterr().out
    assert "two failed (exit code 2)" in said and "one failed" not in said
    assert 'one, stop: {"figure": 0.5}' in said


def test_missing_files_and_half_an_order_are_one_line(chains, tmp_path):
    (tmp_path / "two.prepared").unlink()
    for words, expected in (
        (["--prepared", str(tmp_path)], "two.prepared"),
        (["--data", str(tmp_path)], "--data DIR and --prepare DIR together"),
        (["--prepared", str(tmp_path), "--prepare", str(tmp_path)], "together"),
    ):
        parser = argparse.ArgumentParser()
        together.add_arguments(parser)
        with pytest.raises(UserError, match=expected):
            together.run(parser.parse_args(words))


def test_trainings_end_with_the_command_that_was_told_to_end(tmp_path):
    script = f"""
import subprocess, sys
from pathlib import Path
from longtake import together
real = subprocess.Popen
child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(120)"
subprocess.Popen = lambda words, **more: real([sys.executable, "-c", child], **more)
together._side_by_side({{"one": [["train", "one"]]}}, Path({str(tmp_path)!r}))
"""
    running = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(120) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{(tmp_path / 'child').read_text()}").exists()


@pytest.mark.parametrize("option", ["--out", "--prepare"])
def test_a_file_in_the_way_is_told_before_anything_is_read(tmp_path, option, capsys):
    (tmp_path / "afile").touch()
    words = ["--data", str(tmp_path / "no such data"), option, str(tmp_path / "afile" / "x")]
    assert cli.main(["train", "motion", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert "is a file, not a folder" in said and len(said.splitlines()) == 1


def test_minutes_that_are_no_number_are_one_line(chains, tmp_path, capsys):
    assert (
        cli.main(["train", "all", "--prepared", str(tmp_path), "--minutes", "nan", "--out", str(tmp_path / "o")]) == 2
    )
    assert "--minutes" in capsys.readouterr().err and not chains


def test_what_was_reached_is_the_last_line_of_the_newest_record(tmp_path):
    (tmp_path / "one").mkdir()
    rows = [{"step": 5, "loss": 2.0, "rate": 1e-3, "seconds": 3.0}, {"step": 10, "loss": 0.5, "rate": 0, "seconds": 6}]
    (tmp_path / "one" / "unet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chains = {"one": [], "two": []}
    assert together._reached(tmp_path, chains) == "one: unet step 10, loss 0.5 | two: starting"
