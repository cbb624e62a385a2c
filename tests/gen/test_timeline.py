import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longtake.errors import UserError
from longtake.timeline import Timeline


def test_one_prompt_holds_for_every_frame() -> None:
    timeline = Timeline.parse("  a person walks: slowly ")
    assert timeline.prompts == ("a person walks: slowly",)
    assert timeline.weights(0) == timeline.weights(10_000) == ((0, 1.0),)


def test_seconds_milliseconds_and_frames_say_the_same() -> None:
    in_frames = Timeline.parse("0: walks | 96: jumps | 108: falls")
    assert Timeline.parse("0s: walks | 4s: jumps | 4.5s: falls", fps=24) == in_frames
    assert Timeline.parse("0ms: walks | 4000ms: jumps | 4500 ms: falls", fps=24) == in_frames
    assert in_frames.segments(120) == [(0, 96, "walks"), (96, 108, "jumps"), (108, 120, "falls")]


def test_a12_the_new_prompt_fades_in_linearly_around_the_switch() -> None:
    timeline = Timeline([(0, "a"), (10, "b")], blend=4)
    expected = np.array([[1, 0], [1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1], [0, 1]], dtype=np.float32)
    matrix = timeline.weight_matrix(range(7, 14))
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("blend", [1, 2, 3, 7, 8, 20])
def test_the_middle_of_a_fade_is_the_frame_that_was_asked_for(blend: int) -> None:
    timeline = Timeline([(0, "a"), (50, "b")], blend=blend)
    weight = timeline.weight_matrix(range(100))[:, 1]
    assert weight[50] == 0.5 and (np.diff(weight) >= 0).all()
    np.testing.assert_allclose(weight[50:91], 1 - weight[50:9:-1], atol=1e-6)
    assert weight.sum() == pytest.approx(49.5)


def test_without_blend_the_cut_is_at_the_switch() -> None:
    timeline = Timeline([(0, "a"), (10, "b")], blend=0)
    assert (timeline.weights(9), timeline.weights(10)) == (((0, 1.0),), ((1, 1.0),))


def test_a_fade_reaches_half_way_into_a_segment_that_another_fade_ends() -> None:
    timeline = Timeline([(0, "a"), (4, "b"), (6, "c")], blend=100)
    assert timeline.weights(3) == ((0, 1.0),)
    assert timeline.weights(4) == ((0, 0.5), (1, 0.5))
    assert timeline.weights(5) == ((1, 1.0),)
    assert timeline.weights(6) == ((1, 0.5), (2, 0.5))
    assert timeline.weights(7) == ((2, 1.0),)
    assert Timeline([(0, "a"), (10, "b"), (30, "c")], blend=4).weights(10) == ((0, 0.5), (1, 0.5))


def test_a_run_begins_and_ends_with_one_prompt() -> None:
    early, late = Timeline([(0, "a"), (2, "b")], blend=8), Timeline([(0, "a"), (37, "b")], blend=8)
    np.testing.assert_array_equal(early.weight_matrix(range(6), 40)[:, 1], [0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_array_equal(late.weight_matrix(range(34, 40), 40)[:, 1], [0, 0, 0.25, 0.5, 0.75, 1])
    assert Timeline([(0, "a"), (39, "b")], blend=8).weight_matrix(range(38, 40), 40)[:, 1].tolist() == [0, 1]
    assert late.weights(38) == ((0, 0.375), (1, 0.625)), "without a length nothing is cut"


def test_a_film_that_goes_on_begins_with_the_prompt_before_and_fades_behind_the_border() -> None:
    going_on = Timeline([(0, "b"), (40, "c")], blend=8).after("a", 80)
    assert going_on.prompts == ("a", "b", "c")
    weights = going_on.weight_matrix(range(80), 80)
    np.testing.assert_array_equal(weights[:10, 1], [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1])
    np.testing.assert_array_equal(
        weights[30:], Timeline([(0, "b"), (40, "c")], blend=8).weight_matrix(range(30, 80)) @ [[0, 1, 0], [0, 0, 1]]
    )
    same = Timeline([(0, "b")]).after("b", 80)
    assert same.prompts == ("b",)


@pytest.mark.parametrize("total", range(1, 12))
def test_a_short_film_that_goes_on_still_ends_with_its_own_prompt(total: int) -> None:
    weights = Timeline([(0, "b")], blend=8).after("a", total).weight_matrix(range(total), total)
    assert weights[-1, -1] == 1 and (np.diff(weights[:, -1]) >= 0).all()
    assert total == 1 or weights[0, 0] == 1
    assert Timeline([(0, "b")], blend=0).after("a", total).prompts == ("b",)


def test_a_prompt_that_returns_is_listed_once() -> None:
    timeline = Timeline([(0, "a"), (4, "b"), (8, "a")], blend=0)
    assert timeline.prompts == ("a", "b")
    assert timeline.weights(9) == ((0, 1.0),)


@given(
    gaps=st.lists(st.integers(1, 30), min_size=0, max_size=5),
    blend=st.integers(0, 40),
    names=st.lists(st.sampled_from("abc"), min_size=6, max_size=6),
)
def test_weights_always_sum_to_one_over_at_most_two_prompts(gaps: list[int], blend: int, names: list[str]) -> None:
    starts = [0, *np.cumsum(gaps).tolist()]
    timeline = Timeline([(start, names[i]) for i, start in enumerate(starts)], blend=blend)
    for total in (None, starts[-1] + 1, starts[-1] + blend + 2):
        for frame in range(starts[-1] + blend + 2):
            weights = timeline.weights(frame, total)
            assert 1 <= len(weights) <= 2
            assert all(weight > 0 for _, weight in weights)
            assert sum(weight for _, weight in weights) == pytest.approx(1.0)
    np.testing.assert_allclose(timeline.weight_matrix(range(50)).sum(1), 1.0, rtol=1e-6)


def test_it_is_a_value() -> None:
    timeline = Timeline([(0, "a"), (4, "ü")], blend=3)
    assert hash(timeline) == hash(Timeline(((0, "a"), (4, "ü")), 3))
    assert Timeline.parse(timeline.to_json()) == timeline


def test_files_are_read(tmp_path: Path) -> None:
    expected = Timeline([(0, "walks, slowly"), (48, "jumps")], blend=3)
    json_file, csv_file = tmp_path / "t.json", tmp_path / "t.csv"
    segments = [{"start": 0, "prompt": "walks, slowly"}, {"start": "4s", "prompt": "jumps"}]
    json_file.write_text(json.dumps({"segments": segments, "blend": 3}))
    csv_file.write_text('start,prompt\n0,"walks, slowly"\n4s, jumps\n', encoding="utf-8-sig")
    assert Timeline.parse(str(json_file), fps=12) == expected
    assert Timeline.parse(csv_file, fps=12, blend=3) == expected
    assert Timeline.parse(json_file, fps=12, blend=9).blend == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompt is empty"),
        ("0: a | : b", "part 2"),
        ("0: a | later: b", "'later: b'"),
        ("0: a |", "part 2 of the Timeline is empty"),
        ("0: a | 4:", "segment 2 \\(frame 4\\) has no prompt"),
        ("3: a", "must start at frame 0"),
        ("0: a | -4: b", "cannot be negative"),
        ("0: a | 9: b | 4: c", "segment 3 starts at frame 4, before segment 2"),
        ("0: a | 4: b | 4: c", "segments 2 and 3 both start at frame 4"),
        ("0: a | 4.5: b", "write 4.5s"),
        ("0s: a | 4s: b", "needs a frame rate"),
        ("missing.json", "missing.json does not exist"),
        ("missing.CSV", "missing.CSV does not exist"),
        ('{"segments": []}', "empty"),
        ('{"segments": [', "not valid JSON"),
        ('{"segments": [{"start": 0, "prompt": "a"}], "fade": 3}', "unknown key 'fade'"),
        ('{"segments": [{"start": 0}]}', "segment 1"),
        ('{"segments": [{"start": true, "prompt": "a"}]}', "segment 1 has the start True"),
        ('{"segments": [{"start": 0, "prompt": "a"}], "blend": -1}', "blend is -1"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_that_names_the_part(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        Timeline.parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"0,a\n4,b,c\n", "row 2 has 3 fields"),
        ("a.csv", b"0,a\nsoon,b\n", "row 2 has the start 'soon'"),
        ("a.csv", b"start,prompt\n", "empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\xff\xfe\x00", "UTF-8"),
        ("a.json", b"[1, 2]", "segments"),
        ("a.json", b'{"segments": [{"start": "x", "prompt": "a"}]}', "segment 1 has the start 'x'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Timeline.parse(str(path))


def test_a_segment_after_the_end_is_refused() -> None:
    timeline = Timeline([(0, "a"), (240, "b")])
    timeline.validate(241)
    with pytest.raises(UserError, match="starts at frame 240, but the run has only 240 frames"):
        timeline.validate(240)


def test_messages_speak_the_unit_that_was_written() -> None:
    timeline = Timeline.parse("0s: a | 4s: b", fps=20)
    assert timeline == Timeline([(0, "a"), (80, "b")]) and hash(timeline) == hash(Timeline([(0, "a"), (80, "b")]))
    with pytest.raises(UserError, match=r"starts at 4 s, but the run has only 3 s \(60 frames at 20 fps\)"):
        timeline.validate(60)
    with pytest.raises(UserError, match="starts at 2 s, before segment 2 \\(4 s\\)"):
        Timeline.parse("0s: a | 4s: b | 2s: c", fps=20)
    with pytest.raises(UserError, match="both start at frame 0 \\(0 s and 0.01 s\\)"):
        Timeline.parse("0s: a | 0.01s: b", fps=20)
    with pytest.raises(UserError, match="starts at frame 60, but the run has only 60 frames"):
        Timeline.parse("0: a | 60: b", fps=20).validate(60)


DIGITS = "9" * 5000


@pytest.mark.parametrize(
    "text",
    [
        f"0: a | {DIGITS}: b",
        f"0s: a | {'9' * 400}s: b",
        f'{{"segments": [{{"start": {DIGITS}, "prompt": "a"}}]}}',
        f'{{"segments": [{{"start": "{DIGITS}s", "prompt": "a"}}]}}',
        '{"segments": ' + "[" * 50_000,
        '{"segments": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"segments": [{"start": 0, "prompt": "\\ud800"}]}',
        '{"segments": [{"start": 0, "prompt": "a\\u0000b"}]}',
        '{"segments": [{"start": 0, "prompt": "a"}], "blend": 1e400}',
        '{"\\ud800": 1, "segments": []}',
        "a\udcffb",
        "~nosuchuser/t.json",
        "a\0.json",
        "a" * 300 + ".json",
        "word " * 500,
        "1000000001: a",
    ],
    ids=range(16),
)
def test_whatever_others_wrote_is_read_or_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(UserError) as refusal:
        Timeline.parse(text, fps=24)
    told = str(refusal.value)
    assert "\n" not in told and len(told) < 500
    told.encode()


@pytest.mark.parametrize("text", [None, 5, ["a"], {"a": 1}], ids=str)
def test_only_text_is_a_prompt(text: object) -> None:
    with pytest.raises(UserError, match="the prompt is .*; it must be a text"):
        Timeline.parse(text)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no prompt"):
        Timeline([(0, text)])  # type: ignore[list-item]


def test_numbers_of_any_size_are_refused_in_words() -> None:
    for start in (10**5000, -(10**5000)):
        with pytest.raises(UserError, match="beyond frame 1000000000"):
            Timeline([(0, "a"), (start, "b")])
    with pytest.raises(UserError, match="the Timeline's blend is a number of about"):
        Timeline([(0, "a")], blend=10**5000)
    for fps in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(UserError, match="fps is"):
            Timeline.parse("0s: a | 1s: b", fps=fps)
    assert Timeline([(0, "a" * 2000)]).prompts == ("a" * 2000,)


def test_a_file_must_be_a_file_and_hold_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json is a pipe or a device, not a file"):
        Timeline.parse(str(tmp_path / "pipe.json"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="folder.csv is a folder, not a file"):
        Timeline.parse(str(tmp_path / "folder.csv"))
    (tmp_path / "nul.csv").write_bytes(b"0,a\0b\n")
    with pytest.raises(UserError, match="U\\+0000"):
        Timeline.parse(tmp_path / "nul.csv")
    with open(tmp_path / "large.csv", "wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(UserError, match="larger than 16 MiB"):
        Timeline.parse(tmp_path / "large.csv")
