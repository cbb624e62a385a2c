"""Each figure of the evaluation moves the right way when a film is harmed in the way it is meant to notice."""

import math

import numpy as np
import pytest
from longtake.video import metrics


def film(frames, speed=1.0, phase=0.0, size=32):
    """A soft disc that circles, uint8 (frames, size, size, 3)."""
    angle = 2 * np.pi * (phase + speed * np.arange(frames) / 48)
    x, y = size / 2 + size / 4 * np.cos(angle), size / 2 + size / 4 * np.sin(angle)
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(columns[None] - x[:, None, None], rows[None] - y[:, None, None])
    grey = 255 / (1 + np.exp(5 - distance))
    return np.repeat(np.rint(grey)[..., None], 3, -1).astype(np.uint8)


def noisy(video, sigma):
    rng = np.random.default_rng(0)
    return np.clip(video + rng.normal(0, sigma, video.shape), 0, 255).astype(np.uint8)


def test_an_unbroken_film_has_a_border_ratio_of_one():
    assert metrics.border_ratio(metrics.frame_steps(film(240))) == pytest.approx(1, abs=0.02)


def test_joined_clips_have_a_border_ratio_far_above_one():
    clips = [film(16, phase=phase) for phase in np.random.default_rng(1).random(15)]
    assert metrics.border_ratio(metrics.frame_steps(np.concatenate(clips))) > 3


def test_the_border_ratio_looks_at_multiples_of_sixteen_only():
    cut = np.concatenate([film(21), film(43, phase=0.5)])  # a cut onto frame 21
    assert metrics.border_ratio(metrics.frame_steps(cut)) < 1
    cut = np.concatenate([film(32), film(32, phase=0.5)])  # a cut onto frame 32
    assert metrics.border_ratio(metrics.frame_steps(cut)) > 2


def test_of_several_films_a_lively_one_does_not_outweigh_a_calm_one():
    calm = metrics.frame_steps(np.concatenate([film(16, 0.2), film(16, 0.2, phase=0.5)]))
    lively = metrics.frame_steps(film(32, 3))
    both = metrics.border_ratio([calm, lively])
    assert metrics.border_ratio(lively) < both < metrics.border_ratio(calm)
    assert both == pytest.approx(metrics.border_ratio([calm / 10, lively]))


def test_the_error_of_the_border_ratio_covers_chance():
    """Random steps without any seam: the ratio lies within three errors of 1, and the error falls as films grow."""
    rng = np.random.default_rng(2)
    for frames in (240, 960):
        ratios = [metrics.border_ratio(rng.gamma(4, 1, frames - 1)) for _ in range(200)]
        error = metrics.border_error(rng.gamma(4, 1, frames - 1))
        assert error == pytest.approx(np.std(ratios), rel=0.3)


def test_a_film_that_stands_still_has_no_ratio():
    still = np.repeat(film(1), 40, axis=0)
    assert math.isnan(metrics.border_ratio(metrics.frame_steps(still)))
    assert math.isnan(metrics.border_error(metrics.frame_steps(still)))
    assert math.isnan(metrics.flicker(still))
    assert metrics.motion(still) == 0


def test_flicker_of_known_signals():
    ramp = np.repeat(np.arange(0, 200, 5, dtype=np.uint8), 64 * 3).reshape(40, 8, 8, 3)
    assert metrics.flicker(ramp) == 0
    blink = np.zeros((40, 8, 8, 3), np.uint8)
    blink[::2] = 200
    assert metrics.flicker(blink) == pytest.approx(4)
    static = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3)).astype(np.uint8)
    assert metrics.flicker(static) == pytest.approx(3, rel=0.03)


def test_noise_and_shuffled_frames_raise_flicker():
    smooth = film(96)
    shuffled = smooth[np.random.default_rng(0).permutation(96)]
    assert metrics.flicker(smooth) < 0.2
    assert metrics.flicker(noisy(smooth, 4)) > 2 * metrics.flicker(smooth)
    assert metrics.flicker(shuffled) > 5 * metrics.flicker(smooth)


def test_motion_follows_speed_and_is_in_grey_levels():
    assert metrics.motion(film(96, 2)) == pytest.approx(2 * metrics.motion(film(96, 1)), rel=0.1)
    step = np.zeros((2, 4, 4, 3), np.uint8)
    step[1] = 10
    assert metrics.motion(step) == 10
    assert metrics.motion(step[::-1]) == 10  # falling values do not wrap around in uint8


@pytest.mark.parametrize("frames, starts", [(16, [0]), (32, [0, 16]), (40, [0, 16, 24])])
def test_windows_cover_start_and_end(frames, starts):
    assert metrics.window_starts(frames) == starts


def test_what_is_no_video_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        metrics.frame_steps(film(4).astype(np.float32))
    with pytest.raises(ValueError, match="no window"):
        metrics.window_starts(15)


def test_sharpness_falls_with_soft_focus_and_a_flat_picture_has_none():
    sharp = np.full((2, 32, 32, 3), 255, np.uint8)
    sharp[:, 10:20, 10:20] = 0
    soft = np.mean([np.roll(sharp, step, (1, 2)).astype(float) for step in (-1, 0, 1)], 0).astype(np.uint8)
    assert metrics.sharpness(soft) < 0.5 * metrics.sharpness(sharp)
    assert metrics.sharpness(np.full((2, 32, 32, 3), 90, np.uint8)) == 0


def test_the_beat_of_a_loop_is_one_at_its_period_and_lost_when_the_speed_wanders():
    steady = film(240, speed=4)  # a turn every 12 frames
    assert metrics.beat(steady, 12) > 0.98 and metrics.beat(steady, 12, 2) > 0.98
    assert metrics.beat(steady, 18) < 0
    wandering = np.cumsum(np.random.default_rng(0).uniform(0.2, 1.8, 240)).astype(int) % 12
    lost = film(12, speed=4)[wandering]
    assert metrics.beat(lost, 12) < 0.8 and metrics.beat(lost, 12, 2) < 0.8 * metrics.beat(steady, 12, 2)


def test_a_beat_of_a_fraction_of_a_frame_is_found_and_a_quicker_gait_is_forgiven():
    quick = film(240, speed=48 / 9.67)
    assert metrics.beat(quick, 9.67) > 0.9 and metrics.beat(quick, 9.67, 2) > 0.9
    assert metrics.beat(quick, 10.5) > 0.9


def test_a_film_too_short_for_a_beat_has_none():
    assert math.isnan(metrics.beat(film(24, speed=4), 12, 2))
    assert math.isnan(metrics.beat(np.repeat(film(1), 40, axis=0), 12))


def coloured(levels):
    """A square of a grey level a frame on white."""
    video = np.full((len(levels), 32, 32, 3), 255, np.uint8)
    for frame, level in zip(video, levels, strict=True):
        frame[8:24, 8:24] = level
    return video


def test_the_colour_of_the_subject_leaves_out_the_white_ground():
    assert metrics.subject_colours(coloured([40, 200])).tolist() == [[40] * 3, [200] * 3]
    assert np.isnan(metrics.subject_colours(np.full((2, 32, 32, 3), 255, np.uint8))).all()


def test_drift_spread_and_jump_of_a_colour():
    steady = metrics.colour_change(coloured([100] * 96))
    assert (steady.drift, steady.spread, steady.jump) == (0, 0, 0)
    slow = metrics.colour_change(coloured(range(100, 196)))
    assert slow.drift == pytest.approx(64) and slow.jump == pytest.approx(16)
    joined = metrics.colour_change(coloured([100] * 16 + [180] * 16 + [100] * 64))
    assert joined.jump == 80 and joined.spread == pytest.approx(np.std([100, 180, 100, 100, 100, 100]))
    assert joined.drift == pytest.approx(40), "a third of 32 frames, half of them changed"
    alone = metrics.colour_change(coloured([100] * 16))
    assert alone.drift == 0 and math.isnan(alone.spread) and math.isnan(alone.jump)


def test_frames_shrink_to_means_of_squares():
    video = np.zeros((1, 4, 4, 3), np.uint8)
    video[0, :2, :2] = 255
    assert metrics.shrink(video, 2).reshape(2, 2, 3)[..., 0].tolist() == [[1, 0], [0, 0]]
    with pytest.raises(ValueError, match="cannot be shrunk"):
        metrics.shrink(video, 3)
