"""Timelines beside real films: actions that are seen, turns in time, who is seen; what a prior is asked to make."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.timeline import Timeline
from longtake.video import catalogue, entries, films
from longtake.video.data import Clip, Film, Segment
from longtake.video.likeness import SUBJECT, RealFrames
from longtake.video.watch.tower import Tower
from video_clips import moving_shape

ACTIONS = ("circle", "sweep", "jump")


def acting(character, action, view="right", held_out=False, loops=True):
    frames = moving_shape(ACTIONS.index(action), 90 * (character == "mage"))
    said = f"a {character} does a {action}"
    return Clip(
        f"{character}_{action}_{view}.webp", f"{character} {action}", said, "", held_out, frames, True, (said,),
        character, action, view, loops, 20.0 if loops else 0.0,
    )  # fmt: skip


CLIPS = [acting(who, what) for who in ("knight", "mage") for what in ("circle", "sweep")]
CLIPS += [acting("knight", "circle", "left"), acting("knight", "jump", loops=False)]
CLIPS += [acting("mage", "jump", held_out=True, loops=False)]


class Nearest:
    """Names a window by the clip that its first frame is in."""

    def named(self, windows):
        real = RealFrames.of(CLIPS, SUBJECT, label=lambda clip: f"{clip.character}|{clip.action}")
        return [tuple(label.split("|")) for label in real.labels_of(windows[:, 0])]


def film(*parts, who="knight", fps=10.0):
    """Parts of two seconds, as a truth film."""
    frames = np.concatenate([moving_shape(ACTIONS.index(what), 90 * (who == "mage")) for what in parts])
    segments = tuple(Segment(2.0 * n, 2.0 * n + 2, what, f"a {who} does a {what}") for n, what in enumerate(parts))
    return Film("film_07_knight.webp", who, "right", frames, fps, 0.3, segments)


class Shapes(Tower):
    """A picture is its pixels, small; a prompt the mean picture of the real clip of which it speaks."""

    size, width, mark = 16, 768, "shapes"

    def look(self, frames):
        return torch.tensor(frames).float().flatten(1)

    def segment(self, features):
        return torch.nn.functional.normalize(features.mean(0) - features.mean(), dim=-1)

    def ask(self, caption):
        (clip,) = [clip for clip in CLIPS if clip.caption == caption and clip.view == "right"]
        return self.segment(self.look(clip.frames[:, 2::4, 2::4]))

    def map(self, frames, caption):
        raise NotImplementedError


@pytest.fixture
def judge():
    return films.FilmJudge(Nearest(), CLIPS, RealFrames.of(CLIPS, SUBJECT), Shapes())


TRUTH = film("circle", "sweep", "circle")


def test_a_truth_film_becomes_a_timeline_in_frames_that_says_the_view_where_it_must():
    assert films.timeline_of(TRUTH).starts == (
        (0, "a knight does a circle"), (20, "a knight does a sweep"), (40, "a knight does a circle"),
    )  # fmt: skip
    left = Film(**{**vars(TRUTH), "view": "left"})
    assert films.timeline_of(left).starts[1] == (20, "a knight does a sweep, facing left")
    entry = films.film_entry(TRUTH, 3)
    assert (entry.subject, entry.frames, entry.seed) == ("film_07_knight", 60, 3)
    assert Timeline.parse(entry.prompt) == films.timeline_of(TRUTH)


def test_a_real_film_is_right_and_in_time(judge):
    row = judge.row("real films", [(TRUTH, TRUTH.frames)])
    assert (row.films, row.parts, row.turns) == (1, 3, 2)
    assert row.parts_right == row.in_time == row.identity == 1
    assert row.late == row.off == row.identity_changes == 0
    assert row.found == 1 and row.found_chance == pytest.approx((4 / 6 + 2 / 6 + 4 / 6) / 3, abs=0.05)


@pytest.mark.parametrize("late", [-6, -2, 2, 6])
def test_a_turn_that_comes_late_or_early_is_measured(judge, late):
    """The first action is shown on, or the second one begun before it is asked for."""
    video = TRUTH.frames.copy()
    circle, sweep = (clip.frames for clip in CLIPS[:2])
    if late > 0:
        video[20 : 20 + late] = circle[:late]
    else:
        video[20 + late : 20] = sweep[late:]
    seen = judge.judge(TRUTH, video)
    assert seen["late"] == [late, 0]
    assert judge.row("x", [(TRUTH, video)]).in_time == (1 if abs(late) <= 2 else 0.5)


def test_an_action_that_never_comes_is_not_right(judge):
    video = np.concatenate([CLIPS[0].frames] * 3)
    row = judge.row("x", [(TRUTH, video)])
    assert row.parts_right == pytest.approx(2 / 3)
    late = np.concatenate([TRUTH.frames[20:40], TRUTH.frames[:20], TRUTH.frames[20:40]])
    assert judge.judge(TRUTH, late)["found"] == [False, False, False], "each prompt is seen in another's part"


def test_another_character_is_another_identity(judge):
    video = TRUTH.frames.copy()
    video[30:] = film("circle", "sweep", "circle", who="mage").frames[30:]
    seen = judge.judge(TRUTH, video)
    assert seen["identity"] == 0.5 and seen["identity_changes"] == 1
    with pytest.raises(ValueError, match="film_07"):
        judge.judge(TRUTH, video[:50])


def test_a_kaykit_prior_is_asked_for_what_it_names_and_for_pairs_it_never_saw():
    asked = catalogue.Catalogue.of(CLIPS, ["a knight does a circle", "a knight does a jump", "someone else"])
    assert asked.named == {"knight circle": "a knight does a circle", "knight jump": "a knight does a jump"}
    assert asked.unseen == {"mage jump": "a mage does a jump"} and asked.unseen_label == "pairs never seen"
    assert asked.looping == ("knight circle",)
    every = catalogue.Catalogue.of(CLIPS, [])
    assert every.looping and set(every.looping) < {clip.subject for clip in CLIPS if clip.loops}
    still = replace(
        CLIPS[0], subject="knight stand", caption="a knight stands", frames=CLIPS[0].frames[:1].repeat(20, 0)
    )
    assert "knight stand" not in catalogue.Catalogue.of([*CLIPS, still], []).looping
    assert len(catalogue.Catalogue.of(CLIPS, []).named) == 5
    with pytest.raises(UserError, match="--corpus"):
        catalogue.Catalogue.of(CLIPS, ["woman running"])


@pytest.mark.parametrize(
    ("about", "knows", "given", "corpus"),
    [
        (None, None, None, None),
        (None, ["woman running", "a runner"], None, "emoji"),
        (None, ["a knight walks"], None, "kaykit"),
        ({"corpus": "emoji"}, ["a knight walks"], None, "emoji"),
        ({"minutes": 9}, ["a knight walks"], None, "kaykit"),
        ({"corpus": "emoji"}, None, "kaykit", "kaykit"),
    ],
)
def test_a_prior_says_or_shows_which_corpus_it_is_of(tmp_path, about, knows, given, corpus):
    for name, value in (("prior.json", about), ("knows.json", knows)):
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value))
    assert catalogue.corpus_of(tmp_path, given) == corpus


def test_a_corpus_there_is_not_is_refused(tmp_path):
    (tmp_path / "prior.json").write_text('{"corpus": "films"}')
    with pytest.raises(UserError, match="'films'; known are kaykit, emoji"):
        catalogue.corpus_of(tmp_path, None)


def test_the_memory_of_a_block_is_what_it_held_at_most():
    import torch

    with entries.Peak(torch.device("cpu")) as peak:
        held = np.ones(100 * 2**20, np.uint8)
        del held
    with entries.Peak(torch.device("cpu")) as less:
        pass
    assert less.megabytes < 20
    if Path("/proc/self/clear_refs").exists():
        assert 90 < peak.megabytes < 150
    else:
        assert peak.megabytes == 0
