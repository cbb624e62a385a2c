"""The answer: moments, what a question asks for, subtitles, files."""

import json

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.video.watch.index import ClipIndex
from longtake.video.watch.moments import find_moments, read_subtitles
from longtake.video.watch.pipeline import WatchPipeline
from longtake.video.watch.question import caption_of


@pytest.mark.parametrize(
    ("question", "caption"),
    [
        ("When does the dog appear?", "the dog"), ("when does a knight run?", "a knight run"), ("a cat", "a cat"),
        ("Show me the scene where the rogue is shown", "the rogue is"), ("find the bicycle!", "the bicycle"),
        ("At what time is the octopus shown on screen?", "the octopus"),
        ("  where   is the dog in the picture? ", "the dog"),
        ("When?", "When"), ("wann kommt der Hund?", "wann kommt der Hund"),
    ],
)  # fmt: skip
def test_a_question_is_read_as_a_caption(question: str, caption: str) -> None:
    assert caption_of(question) == caption


@pytest.mark.parametrize("question", ["", "   ", "???", "x" * 5000])
def test_a_question_without_words_or_too_long_is_refused(question: str) -> None:
    with pytest.raises(UserError):
        caption_of(question)


def test_a_moment_grows_within_its_shot_and_moments_do_not_overlap() -> None:
    shots = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    index = ClipIndex(np.array([(n, n + 1.0) for n in range(10)]), np.array(shots), torch.zeros(10, 1), 10.0)
    found = find_moments(index, torch.tensor([0.0, 0.8, 0.9, 0.85, 0.1, 0.5, 0, 0, 0, 0]), 9)
    assert [(one.start, one.end) for one in found] == [(1.0, 3.0), (3.0, 4.0), (5.0, 6.0), (4.0, 5.0)]
    assert [one.score for one in found] == pytest.approx([0.9, 0.85, 0.5, 0.1]) and found[0].best == 2.5
    nothing = find_moments(index, torch.full((10,), -0.1), 9)
    assert len(nothing) == 1 and nothing[0].start == 0, "the best of nothing is told, once"


def test_the_asked_colour_is_found_and_the_files_say_so(film, tower, tmp_path) -> None:
    path = film([("red", 6.0), ("green", 2.0), ("blue", 6.0)])
    answer = WatchPipeline(tower)(path, "when is it green?", index=tmp_path / "index", moments=2)
    first = answer.moments[0]
    assert abs(first.start - 6) < 0.3 and abs(first.end - 8) < 0.3
    for suffix in (".json", ".csv", ".vtt"):
        answer.save(tmp_path / f"a{suffix}")
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["moments"][0]["start"] == pytest.approx(first.start) and told["seconds"] == pytest.approx(14, abs=0.01)
    assert set(told["moments"][0]) == {"start", "end", "score", "best"} and "language model" in told["notes"][-1]
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("1,6.0")
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n\n")
    answer.preview(tmp_path / "a.png")
    assert len(answer.pictures) == len(answer.maps) == len(answer.moments)


def test_what_is_said_is_found_where_it_is_said(film, tower, tmp_path) -> None:
    path = film([("red", 10.0), ("blue", 10.0)])
    lines = "1\n00:00:14,000 --> 00:00:16,500\n<i>the green parrot</i>\nflies away\n\n"
    lines += "2\n00:00:17,000 --> 00:00:18,000\nYes.\n"
    (tmp_path / "film.srt").write_text(lines)
    answer = WatchPipeline(tower)(
        path, "when is the green parrot mentioned?", subtitles=tmp_path / "film.srt", index=tmp_path / "index"
    )
    best = answer.moments[0]
    assert (
        best.heard == "the green parrot flies away" and 12 < best.start < 15 and answer.as_json()["moments"][0]["heard"]
    )


@pytest.mark.parametrize("text", ["", "hello\nworld\n", "1\n00:00:05 -> 00:00:07\nno arrow\n"])
def test_subtitles_that_are_none_are_refused(tmp_path, text: str) -> None:
    (tmp_path / "x.srt").write_text(text)
    with pytest.raises(UserError, match="no subtitles"):
        read_subtitles(tmp_path / "x.srt")


def test_letters_that_the_tower_cannot_read_are_told(film, tower, tmp_path) -> None:
    pipe = WatchPipeline(tower)
    with pytest.raises(UserError, match="English"):
        pipe.asked("когда появляется собака?")
    assert any("not Latin" in line for line in pipe.warnings("when does the собака dog appear?"))
    assert any("500 words" in line for line in pipe.warnings("dog " * 500))
