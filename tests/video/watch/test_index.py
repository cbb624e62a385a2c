"""G1: a film's segments, kept by content; found clips are distinct, in order of time, ties go to the earlier."""

import json

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.video.watch.decode import Film
from longtake.video.watch.index import BLOCK_SECONDS, ClipIndex, pieces


def index_of(spans, shots, vectors):
    return ClipIndex(np.array(spans, float), np.array(shots), torch.tensor(vectors).float(), 10.0)


def test_a_shot_ends_where_the_content_changes_and_is_cut_evenly() -> None:
    features = torch.tensor([[1.0, 0]] * 12 + [[0, 1.0]] * 3)
    times = [number / 4 for number in range(15)]
    assert pieces(times, features, 4.0, longest=2.0) == [(0, 6, True), (6, 12, False), (12, 15, True)]
    assert pieces(times, features, 4.0) == [(0, 12, True), (12, 15, True)]


def test_segments_have_the_films_times_and_shots(film, tower, tmp_path) -> None:
    path = film([("red", 2.0), ("blue", 3.0), ("green", 1.0)])
    index = ClipIndex.of(Film(path), tower, tmp_path / "index")
    assert index.complete and abs(index.seconds - 6.0) < 0.01
    assert index.spans[0][0] == 0 and index.spans[-1][1] == pytest.approx(6.0, abs=0.01)
    assert (index.spans[1:, 0] == index.spans[:-1, 1]).all()
    starts = [index.spans[index.shots == shot][0][0] for shot in range(3)]
    assert np.allclose(starts, [0, 2, 5], atol=0.26) and set(index.shots) == {0, 1, 2}


def test_a_second_question_looks_at_nothing_and_a_changed_film_is_looked_at_anew(film, tower, tmp_path) -> None:
    first = ClipIndex.of(Film(film([("red", 2.0)])), tower, tmp_path / "index")
    looked = tower.looked
    again = ClipIndex.of(Film(film([("red", 2.0)], name="renamed.mp4")), tower, tmp_path / "index")
    assert tower.looked == looked and torch.equal(first.vectors, again.vectors)
    ClipIndex.of(Film(film([("blue", 2.0)])), tower, tmp_path / "index")  # the same name, another content
    assert tower.looked > looked


def test_a_picture_is_looked_at_twice_a_second_and_behind_a_cut(film, tower, tmp_path) -> None:
    index = ClipIndex.of(Film(film([("red", 2.3), ("blue", 2.7)], fps=20.0)), tower, tmp_path / "index")
    assert 10 <= tower.looked <= 11, "ten in five seconds, and one at the cut"
    assert index.spans[index.shots == 1][0][0] == pytest.approx(2.3, abs=0.26)
    ClipIndex.of(Film(film([("grey", 5.0)], fps=20.0)), still := type(tower)(), tmp_path / "still")
    assert still.looked <= 10


def test_a_film_is_read_once_for_its_hash_by_plan_and_index(film, tower, tmp_path, monkeypatch) -> None:
    from longtake.domain import domain_of
    from longtake.video.watch import index as module

    read: list[str] = []
    monkeypatch.setattr(module, "file_hash", lambda path: read.append(str(path)) or "0" * 64)
    path = film([("red", 1.0)])
    domain_of("watch").input_mark("film", path)
    ClipIndex.of(Film(path), tower, tmp_path / "index")
    assert len(read) == 1
    film([("blue", 1.5)])
    ClipIndex.of(Film(path), tower, tmp_path / "index")
    assert len(read) == 2, "the file has changed since"


def test_a_planted_clip_is_first_and_k_results_are_distinct_clips_in_time_order() -> None:
    needle = [0.0, 1.0, 0.0]
    rows = [[1.0, 0, 0], [0.9, 0.3, 0], needle, [0.9, 0.3, 0], [1.0, 0, 0]]
    index = index_of([(n, n + 1) for n in range(5)], range(5), rows)
    assert index.best(torch.tensor(needle), 1) == [2]
    assert index.best(torch.tensor(needle), 2) == [1, 2], "of two that tie the earlier is taken"
    assert index.best(torch.tensor(needle), 9) == [0, 1, 2, 3, 4], "k above n returns n"
    assert index.best(torch.tensor(needle), 3, apart=0.99) == [0, 1, 2], "near twins are left out"


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_run_that_was_stopped_goes_on_after_its_last_block_to_the_same_index(
    film, tower, tmp_path, monkeypatch, stop_after
) -> None:
    monkeypatch.setattr("longtake.video.watch.index.BLOCK_SECONDS", 2.0)
    path = film([("red", 3.0), ("blue", 2.0), ("green", 2.0)])
    whole = ClipIndex.of(Film(path), tower, tmp_path / "whole")
    part = ClipIndex.of(Film(path), tower, tmp_path / "index", on_block=lambda done, of: done == stop_after)
    assert not part.complete and part.seconds == 2.0 * stop_after
    looked = tower.looked
    rest = ClipIndex.of(Film(path), tower, tmp_path / "index")
    assert tower.looked - looked < len(range(28)), "what was looked at is not looked at again"
    assert np.array_equal(rest.spans, whole.spans) and torch.equal(rest.vectors, whole.vectors)
    assert np.array_equal(rest.shots, whole.shots)


def test_a_damaged_block_is_made_anew(film, tower, tmp_path) -> None:
    path = film([("red", 2.0), ("blue", 2.0)])
    first = ClipIndex.of(Film(path), tower, tmp_path / "index")
    (block,) = (tmp_path / "index").rglob("block*.npz")
    block.write_bytes(block.read_bytes()[:100])
    again = ClipIndex.of(Film(path), tower, tmp_path / "index")
    assert torch.equal(first.vectors, again.vectors)


def test_memory_does_not_grow_with_the_film(film, tower, tmp_path, monkeypatch) -> None:
    """The pictures that wait are bounded by a block, not by the film."""
    from longtake.video.watch import index as module

    monkeypatch.setattr(module, "BLOCK_SECONDS", 2.0)
    held = []
    stock = module._Maker.add

    def add(self, time, frame):
        stock(self, time, frame)
        held.append((len(self._waiting), sum(map(len, self._features))))

    monkeypatch.setattr(module._Maker, "add", add)
    ClipIndex.of(Film(film([("red", 5.0), ("blue", 15.0)])), tower, tmp_path / "index")
    assert max(waiting for waiting, _ in held) <= module.LOOK_AT_ONCE and max(kept for _, kept in held) <= 8


def test_pictures_that_are_alike_are_looked_at_once(tower, tmp_path) -> None:
    from longtake.media import VideoWriter

    with VideoWriter(tmp_path / "still.mp4", 10) as writer:
        writer.write(np.full((50, 32, 32, 3), 200, np.uint8))
    index = ClipIndex.of(Film(tmp_path / "still.mp4"), tower, tmp_path / "index")
    assert tower.looked <= 2 and abs(index.seconds - 5) < 0.01
    assert json.loads(next((tmp_path / "index").rglob("index.json")).read_text())["blocks"] == 1 < BLOCK_SECONDS


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "no film"), (b"not a film at all" * 50, "no film"), (None, "does not exist")]
)
def test_what_is_no_film_is_told_in_one_line(tmp_path, content, word) -> None:
    path = tmp_path / "film.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        Film(path)
    assert "\n" not in str(caught.value)
