"""One job at a time; who may stop it; what becomes of its errors."""

import tempfile
import threading
import time
from pathlib import Path

import pytest
from longtake.demos.bench import Bench, Finished, Progress
from longtake.errors import UserError


def start(bench: Bench, session: str, work, tmp_path: Path, forecast: float = 5.0):
    return bench.run(session, "toy", forecast, work, lambda clean, path: path.write_text(clean), tmp_path)


def walk(steps: int = 5, pause: float = 0.0, ended: list | None = None):
    def work(on_step):
        for step in range(1, steps + 1):
            stops = on_step(step, steps, f"clean {step}")
            time.sleep(pause)
            if stops:
                if ended is not None:
                    ended.append(step)
                return f"stopped after {step}"
        return "whole"

    return work


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


def test_a_run_tells_its_steps_and_shows_its_first_one(bench, tmp_path: Path) -> None:
    *steps, end = start(bench, "me", walk(), tmp_path)
    assert [note.step for note in steps if isinstance(note, Progress)] == [1, 2, 3, 4, 5]
    assert steps[0].glimpse.read_text() == "clean 1" and all(note.glimpse is None for note in steps[1:])
    assert isinstance(end, Finished) and end.result == "whole"
    pace, measured = bench.pace("toy")
    assert measured and pace == end.seconds / 5.0 and bench.pace("other") == (1.0, False)


def test_a_preview_that_fails_is_logged_once_and_the_run_goes_on(bench, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("longtake.demos.bench.GLIMPSE_SECONDS", 0.0)

    def glimpse(clean, path):
        raise AttributeError("no such part")

    *steps, end = bench.run("me", "toy", 5.0, walk(), glimpse, tmp_path)
    assert [note.step for note in steps] == [1, 2, 3, 4, 5] and all(note.glimpse is None for note in steps)
    assert isinstance(end, Finished) and end.result == "whole"
    assert [record.getMessage() for record in caplog.records] == ["no preview of toy: the run goes on without"]
    assert "no such part" in caplog.text


def test_only_the_session_that_runs_can_stop_it_and_keeps_what_is_done(bench, tmp_path: Path) -> None:
    notes = start(bench, "me", walk(pause=0.05), tmp_path)
    next(notes)
    assert "Nothing" in bench.stop("another")
    assert "kept" in bench.stop("me")
    *_, end = notes
    assert end.result.startswith("stopped after")
    assert "Nothing" in bench.stop("me")


def test_a_job_that_waits_can_be_given_up(bench) -> None:
    bench.expect("me")
    assert "queue" in bench.stop("me")
    with pytest.raises(UserError, match="before it began"):
        bench.begin("me")
    bench.begin("me")  # the next one is wanted again
    bench.expect("me")
    bench.begin("me")


def test_jobs_run_one_after_the_other(bench, tmp_path: Path) -> None:
    inside, most = [], []

    def work(on_step):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return "done"

    def one(session: str) -> None:
        list(start(bench, session, work, tmp_path))

    threads = [threading.Thread(target=one, args=(str(n),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_an_error_of_the_run_is_raised_where_its_steps_are_read(bench, tmp_path: Path) -> None:
    def work(on_step):
        on_step(1, 5, "x")
        raise UserError("too long")

    notes = start(bench, "me", work, tmp_path)
    assert next(notes).step == 1
    with pytest.raises(UserError, match="too long"):
        next(notes)
    *_, end = start(bench, "me", walk(), tmp_path)
    assert end.result == "whole", "the bench goes on"


def test_a_reader_that_leaves_ends_the_run(bench, tmp_path: Path) -> None:
    ended: list[int] = []
    notes = start(bench, "me", walk(steps=1000, pause=0.02, ended=ended), tmp_path)
    next(notes)
    notes.close()
    assert ended and ended[0] < 1000, "closing waits for the run, which ends early"


def test_copies_never_replace_older_ones(bench, tmp_path: Path) -> None:
    bench.keep = tmp_path / "kept"
    for text in ("one", "two"):
        source = tmp_path / "walk.txt"
        source.write_text(text)
        bench.copy([source])
    assert [(bench.keep / f"walk-{n}" / "walk.txt").read_text() for n in (1, 2)] == ["one", "two"]


def test_the_folder_of_a_page_that_was_killed_goes_at_the_next_start(bench, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "longtake-demo-killed"
    left.mkdir()
    (left / "lock").touch()
    (left / "walk.npz").touch()
    other = tmp_path / "longtake-demo-of-somebody-else"
    other.mkdir()
    alive = Bench()
    again = Bench()
    assert not left.exists() and other.exists() and alive.folder.exists()
    alive.close()
    again.close()
