"""Films beside the real frames they look like: direction of time, identity, the frame at which an action changes."""

import math

import numpy as np
import pytest
from longtake.video.data import Clip
from longtake.video.likeness import POSE, SUBJECT, RealFrames, changes, identity, turning_point
from video_clips import moving_shape


def clip(kind=0, tone=0, character="knight", wraps=True, frames=20):
    film = moving_shape(kind, tone, frames)
    return Clip("x", f"{character} {kind}", "x", "", False, film, wraps, character=character, action=str(kind))


CIRCLE = clip()


@pytest.mark.parametrize("side", [SUBJECT, POSE])
def test_a_real_loop_has_an_arrow_and_does_not_stay(side):
    film = CIRCLE.frames[CIRCLE.window(7, 60)]
    assert RealFrames.of([CIRCLE], side).arrow_stays(film) == (1, 0)


def test_noise_and_soft_focus_leave_a_real_loop_its_arrow():
    rng = np.random.default_rng(0)
    film = CIRCLE.frames[CIRCLE.window(0, 40)].astype(float)
    soft = np.mean([np.roll(film, step, (1, 2)) for step in (-1, 0, 1)], 0) + rng.normal(0, 10, film.shape)
    arrow, stays = RealFrames.of([CIRCLE], POSE).arrow_stays(np.clip(soft, 0, 255).astype(np.uint8))
    assert arrow > 0.9 and stays < 0.1


def test_a_film_that_runs_backwards_has_no_arrow():
    assert RealFrames.of([CIRCLE], POSE).arrow_stays(CIRCLE.frames[::-1]) == (0, 0)


def test_a_film_that_shimmers_around_one_pose_stays_though_it_moves():
    rng = np.random.default_rng(0)
    still = np.repeat(CIRCLE.frames[3:4], 60, 0).astype(float)
    film = np.clip(still + rng.normal(0, 25, still.shape), 0, 255).astype(np.uint8)
    assert np.abs(np.diff(film.astype(int), axis=0)).mean() > 5
    assert RealFrames.of([CIRCLE], POSE).arrow_stays(film)[1] == 1


def test_frames_in_any_order_have_half_an_arrow():
    film = CIRCLE.frames[np.random.default_rng(0).integers(0, 20, 2000)]
    assert RealFrames.of([CIRCLE], POSE).arrow_stays(film)[0] == pytest.approx(0.5, abs=0.05)


def test_the_ends_of_an_action_that_does_not_wrap_are_their_own_neighbours():
    once = clip(wraps=False)
    real = RealFrames.of([once, once], POSE)
    assert real.before[0] == 0 and real.after[19] == 19 and real.before[20] == 20 and real.after[39] == 39
    assert RealFrames.of([CIRCLE], POSE).before[0] == 19
    assert real.arrow_stays(once.frames) == (1, 0)


def test_a_movement_there_and_back_tells_no_direction_on_its_way_whichever_equal_frame_is_found(monkeypatch):
    """Of equal pictures, rounding decides which is the nearest: the answer must not depend on it."""
    there = clip(1).frames[:6]
    swing = Clip("x", "x", "x", "", False, np.concatenate([there, there[4:0:-1]]), True)
    real = RealFrames.of([swing], POSE)
    assert all(np.isnan(real.arrow_stays(film)).all() for film in (swing.frames, swing.frames[::-1]))
    both = Clip("x", "x", "x", "", False, np.concatenate([there, CIRCLE.frames[:10], there[::-1]]), False)
    real = RealFrames.of([both], POSE)
    first = real.nearest
    last = {i: np.flatnonzero((real.frames == real.frames[i]).all(1))[-1] for i in range(len(real.frames))}
    found = real.arrow_stays(both.frames)
    monkeypatch.setattr(
        RealFrames, "nearest", lambda self, film: (np.array([last[i] for i in first(film)[0]]), first(film)[1])
    )
    assert found == real.arrow_stays(both.frames) and found[0] == 1
    assert real.arrow_stays(both.frames[::-1])[0] == 0


def test_a_film_that_stands_in_a_held_pose_has_no_arrow():
    held = np.concatenate([np.repeat(CIRCLE.frames[:1], 5, 0), CIRCLE.frames[1:]])
    real = RealFrames.of([Clip("x", "x", "x", "", False, held, True)], POSE)
    assert np.isnan(real.arrow_stays(np.repeat(CIRCLE.frames[:1], 8, 0))).all()
    assert real.arrow_stays(held)[0] == 1


def test_a_subject_that_never_moves_says_nothing():
    still = Clip("x", "x", "x", "", False, np.repeat(CIRCLE.frames[:1], 9, 0), True)
    assert all(math.isnan(value) for value in RealFrames.of([still], POSE).arrow_stays(CIRCLE.frames))


def test_who_is_seen_is_read_frame_by_frame():
    knight, mage = clip(0, 0, "knight"), clip(0, 90, "mage")
    real = RealFrames.of([knight, mage], SUBJECT)
    film = np.concatenate([knight.frames, mage.frames, knight.frames])
    assert real.labels_of(film).tolist() == ["knight"] * 20 + ["mage"] * 20 + ["knight"] * 20
    assert changes(real.labels_of(film)) == 2


def test_who_an_emoji_is_has_a_tone():
    emoji = Clip("x", "running", "woman running", "dark", False, CIRCLE.frames, True)
    assert identity(emoji) == "running, dark" and identity(CIRCLE) == "knight"


@pytest.mark.parametrize(
    ("labels", "count"),
    [("aaaaaaaaaa", 0), ("aaaaabbbbb", 1), ("aaaaabbaaaaabaaaaa", 0), ("aaaaabbbbbaaaaa", 2), ("abababab", 0), ("", 0)],
)
def test_a_change_of_who_is_seen_counts_when_it_holds(labels, count):
    assert changes(list(labels)) == count


def test_the_turn_from_one_action_to_the_next_is_found():
    disc, bar = clip(0), clip(1)
    film = np.concatenate([disc.frames[:13], bar.frames])
    distances = [RealFrames.of([one], POSE).nearest(film)[1] for one in (disc, bar)]
    assert turning_point(*distances) == 13
    assert turning_point(*distances[::-1]) in (0, len(film)), "the other way round there is no such turn"


def test_between_frames_that_both_actions_share_the_turn_is_in_the_middle():
    first, second = np.array([0, 0, 1, 1, 1, 9.0]), np.array([9, 9, 1, 1, 1, 0.0])
    assert turning_point(first, second) == 4
    with pytest.raises(ValueError, match="two arrays"):
        turning_point(first, second[1:])


def test_nothing_to_compare_with_is_refused():
    with pytest.raises(ValueError, match="no real clips"):
        RealFrames.of([], POSE)
    with pytest.raises(ValueError, match="no step"):
        RealFrames.of([CIRCLE], POSE).arrow_stays(CIRCLE.frames[:1])
