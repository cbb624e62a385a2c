"""`longtake bench attention`: ours is right on gloo ranks, a wrong answer is told as wrong, nothing is passed over."""

import pytest
from longtake import bench
from longtake.cli import main

RIGHT = {"O": 1e-7, "dQ": 1e-7, "dK": 1e-7, "dV": 1e-7}


@pytest.mark.distributed
def test_ours_is_right_in_every_case_on_three_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--world", "3", "--only", "longtake"]) == 0
    said = capsys.readouterr().out
    assert all(f"3 ranks  {case:<12} right" in said for case in bench.CASES)


@pytest.mark.distributed
def test_a_library_is_run_as_it_is_and_refuses_in_its_own_words() -> None:
    found = bench.all_cases("diffusers Ulysses", 2)
    assert found["all keys"] == "right" and list(found) == list(bench.CASES)
    assert found["causal"].startswith("refused (ValueError: Causal attention")


def test_a_wrong_answer_is_told_with_its_error() -> None:
    assert bench.verdict(RIGHT) == "right"
    assert bench.verdict(RIGHT | {"dK": 0.25}) == "WRONG dK 0.25"
    assert bench.verdict({"O": 1e-7, "refused": "backward: none"}) == "O right, refused (backward: none)"
    assert bench.verdict({"refused": "TypeError: x"}) == "refused (TypeError: x)"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda package: None)
    assert main(["bench", "attention"]) == 0
    said = capsys.readouterr().out
    assert "not installed: " in said and "yunchang ring (pip install yunchang)" in said
    assert "ring-attention-pytorch (pip install ring-attention-pytorch)" in said


@pytest.mark.parametrize("words", [["--world", "5"], ["--world", "1"], ["--only", "nobody"]])
def test_what_there_is_not_is_refused_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("longtake: error: ") and said.count("\n") == 1
