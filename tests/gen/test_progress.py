"""What a log is told of a run: how far it is, and how long it will take by the pace after the first unit."""

import pytest
from longtake import progress
from longtake.progress import Progress


@pytest.fixture
def told(monkeypatch, capsys):
    """told([(clock, done)], of) -> lines in a log of a run that starts at 0 s."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def tell(seen, of):
        with Progress("denoising") as shown:
            shown.is_terminal = False
            for clock[0], done in seen:
                shown.at(done, of)
        return capsys.readouterr().err.splitlines()

    return tell


def test_a_slow_first_step_is_not_taken_for_the_pace(told):
    lines = told([(60.0, 1), (62.0, 2), (70.0, 6), (78.0, 10)], 10)
    assert lines == [
        "denoising: step 1 of 10, 60 s, about 540 s left",
        "denoising: step 6 of 10, 70 s, about 8 s left",
        "denoising: step 10 of 10, 78 s",
    ]


def test_a_resumed_run_goes_by_its_own_steps(told):
    assert told([(6.0, 8), (16.0, 9)], 10)[1] == "denoising: step 9 of 10, 16 s, about 10 s left"
