"""`longtake check`: planted faults are found where they are, and clean films are not accused."""

import json

import numpy as np
import pytest
from faulty_films import (
    SAMPLES,
    along,
    as_pixels,
    blurred,
    flickering,
    frozen,
    moved,
    running,
    straight,
    swinging,
    texture,
    turning,
    write,
)
from longtake.video.check import Kind, check_film
from longtake.video.check.curves import read_curves
from longtake.video.check.loops import find_loops
from longtake.video.metrics import flicker, frame_steps

BASES = {
    "running": lambda: (running(), 12),
    "swinging": lambda: (swinging(120, seed=21), 24),
    "straight": lambda: (straight(120, seed=22, speed=(0.4, -0.9)), 24),
}


@pytest.fixture
def checked(tmp_path):
    """checked(frames, fps): the report of a film that is made of them."""

    def check(film, fps=24, **more):
        return check_film(write(tmp_path / f"film{len(list(tmp_path.iterdir()))}.mp4", film, fps), **more)

    return check


def kinds(report):
    return {str(one.kind) for one in report.findings}


@pytest.mark.parametrize("name", BASES)
def test_d11_clean_films_are_not_accused(checked, name) -> None:
    report = checked(*BASES[name]())
    assert report.clean, report.table()
    assert all(one.word == "clean" or one.number is None for one in report.verdicts)


def test_d11_the_samples_that_ship_are_not_accused_but_of_the_joins_they_have() -> None:
    assert check_film(SAMPLES / "running.mp4").clean
    questions = check_film(
        SAMPLES.parent.parent / "video/watch/samples/sample.mp4"
    )  # four clips, joined at 61, 121, 181
    assert {one.start for one in questions.findings} <= {61, 121, 181} and kinds(questions) <= {"cut", "seam"}


@pytest.mark.parametrize("at", [37, 71])
def test_d11_a_cut_to_another_scene_is_found_and_told_from_a_seam(checked, at) -> None:
    one, two = straight(110, seed=31), swinging(110, seed=32)
    two = as_pixels(two * np.array([0.5, 0.8, 1.1]))
    report = checked(np.concatenate([one[:at], two[at:]]))
    assert [(one.kind, one.start) for one in report.findings] == [(Kind.CUT, at)]


def test_d11_a_jump_within_a_scene_is_a_seam(checked) -> None:
    film = straight(120, seed=33)
    report = checked(np.concatenate([film[:50], film[55:]]))
    assert [(one.kind, one.start) for one in report.findings] == [(Kind.SEAM, 50)]
    assert report.findings[0].start_s == pytest.approx(50 / 24)


@pytest.mark.parametrize(("at", "seed"), [(40, 34), (66, 35)])
def test_d11_a_motion_that_turns_at_a_frame_is_a_seam_though_no_picture_jumps(checked, at, seed) -> None:
    film = turning(110, at, seed)
    steps = frame_steps(film)
    assert steps[at] < 1.2 * np.median(steps) and steps[at - 1] < 1.2 * np.median(steps)
    report = checked(film)
    assert [(one.kind, one.what, one.start) for one in report.findings] == [(Kind.SEAM, "motion", at)]


def test_d11_a_tone_that_jumps_is_a_seam_on_a_white_ground_too(checked) -> None:
    for film, fps in (BASES["running"](), BASES["swinging"]()):
        film = film.astype(float)
        film[44:] *= np.array([1.06, 1.0, 0.94])
        report = checked(as_pixels(film), fps)
        assert [(one.kind, one.what, one.start) for one in report.findings] == [(Kind.SEAM, "tone", 44)]


def test_d11_a_frame_that_flashes_is_a_seam(checked) -> None:
    film = straight(100, seed=36).astype(float)
    film[52] += 40
    report = checked(as_pixels(film))
    assert [(one.kind, one.what, one.start) for one in report.findings] == [(Kind.SEAM, "flash", 52)]


@pytest.mark.parametrize(("name", "lag"), [("running", 32), ("swinging", 45), ("straight", 37)])
def test_d11_a_loop_is_found_with_its_number_of_frames(checked, name, lag) -> None:
    film, fps = BASES[name]()
    report = checked(np.concatenate([film[:lag]] * 3), fps)
    loops = report.of("loop")
    assert [one.what for one in loops] == [f"{lag} frames"], report.table()
    assert loops[0].start <= fps and loops[0].end >= 2.5 * lag


def test_d11_a_part_that_comes_again_later_is_a_loop(checked) -> None:
    film = swinging(300, seed=37)
    again = np.concatenate([film[:200], film[40:100], film[240:]])
    (loop,) = checked(again, allow=["seam", "cut"]).of("loop")
    assert loop.what == "160 frames" and 36 <= loop.start <= 52 and 245 <= loop.end <= 262


def test_d11_a_loop_that_darkens_is_a_loop_and_a_drift(checked) -> None:
    film, fps = BASES["running"]()
    again = np.concatenate([film[:40]] * 3)
    report = checked(as_pixels(again - 16.0 * along(again)), fps)
    assert kinds(report) == {"loop", "drift"}, report.table()


def test_d11_a_beat_of_less_than_a_second_and_a_quarter_is_no_loop(checked) -> None:
    t = np.arange(120)
    gait = np.stack([9 * np.sin(2 * np.pi * t / 20), 12 * np.cos(2 * np.pi * t / 20)], 1)
    assert checked(moved(texture(38), gait), 24).clean
    assert checked(moved(texture(38), gait), 12).of("loop"), "the same frames, half as fast: a loop of 1.67 s"


@pytest.mark.parametrize("name", BASES)
def test_d11_a_freeze_of_six_frames_is_found(checked, name) -> None:
    film, fps = BASES[name]()
    report = checked(frozen(film, 40, 6), fps)
    (freeze,) = report.of("freeze")
    assert abs(freeze.start - 39) <= 1 and abs(freeze.end - 45) <= 1
    assert kinds(report) == {"freeze"}


def test_d11_a_film_of_pictures_shown_twice_does_not_freeze(checked) -> None:
    film, fps = BASES["swinging"]()
    assert checked(np.repeat(film, 2, 0)[:200], 48).clean
    assert checked(np.repeat(film, 6, 0)[:300], 60).clean, "10 pictures a second in a film of 60 frames a second"


@pytest.mark.parametrize("name", ["running", "swinging"])
def test_d11_slow_drifts_are_found_with_their_size(checked, name) -> None:
    film, fps = BASES[name]()
    darker = checked(as_pixels(film - 20.0 * along(film)), fps)
    (dark,) = darker.of("drift")
    assert dark.what == "brightness" and -24 < dark.number < -14
    warmer = checked(as_pixels(film + along(film) * np.array([12.0, 0.0, -18.0])), fps).of("drift")
    assert [one.what for one in warmer] == ["colour"] and -27 < warmer[0].number < -12, (
        "blue loses 18 and brightness gains 2"
    )
    greyer = checked(as_pixels(128 + (film - 128.0) * (1 - 0.35 * along(film))), fps).of("drift")
    contrast = next(one for one in greyer if one.what == "contrast")
    assert -0.55 < contrast.number < -0.25, "to 65 % of what it was: the log is -0.43"


@pytest.mark.parametrize("name", ["running", "straight"])
def test_d11_a_blur_that_grows_is_a_drift_of_sharpness(checked, name) -> None:
    film, fps = BASES[name]()
    report = checked(blurred(film, 2.5), fps)
    sharp = next(one for one in report.of("drift") if one.what == "sharpness")
    assert sharp.number < -0.25 and "sharpness goes to" in sharp.text
    assert kinds(report) == {"drift"}


@pytest.mark.parametrize("name", ["running", "swinging"])
def test_d11_flicker_is_found_over_all_and_over_a_part(checked, name) -> None:
    film, fps = BASES[name]()
    whole = flickering(film, 2.0)
    assert flicker(whole) > flicker(film)
    (all_of_it,) = checked(whole, fps).findings
    assert all_of_it.kind is Kind.FLICKER and all_of_it.start <= fps / 4 and all_of_it.end >= len(film) - fps / 2
    (part,) = checked(flickering(film, 3.0, 40, 40 + int(1.5 * fps)), fps).of("flicker")
    assert abs(part.start - 40) <= fps and abs(part.end - 40 - 1.5 * fps) <= fps


def test_d11_what_is_allowed_is_counted_but_no_finding(checked) -> None:
    film = straight(120, seed=33)
    report = checked(np.concatenate([film[:50], film[55:]]), allow=["seam"])
    assert report.clean and next(one for one in report.verdicts if one.kind is Kind.SEAM).found == 1
    assert "allowed" in report.table()


def test_d11_a_verdict_stands_for_every_kind_with_its_number_and_its_limit(checked) -> None:
    report = checked(*BASES["swinging"]())
    told = json.loads(json.dumps(report.as_dict()))
    assert {one["kind"] for one in told["verdicts"]} == {str(kind) for kind in Kind}
    assert [one["what"] for one in told["verdicts"] if one["kind"] == "drift"] == [
        "brightness", "colour", "contrast", "sharpness",
    ]  # fmt: skip
    for one in told["verdicts"]:
        assert one["verdict"] == "clean" and (one["number"] > one["limit"]) == (one["kind"] == "loop"), one


def test_the_distance_of_a_repeat_is_the_mean_over_pairs_written_out(checked, tmp_path) -> None:
    """The fast search by products against the definition, d(n) over the mean of d(1) to d(n), pair by pair."""
    film = swinging(60, seed=39)
    curves = read_curves(write(tmp_path / "loop.mp4", np.concatenate([film[:40], film[:40]])))
    tiles = curves.tiles.astype(np.float64)
    tiles = (tiles - np.median(tiles, axis=1, keepdims=True)).reshape(curves.frames, -1)
    apart = [
        np.mean([np.square(tiles[t] - tiles[t + lag]).mean() for t in range(12)])
        for lag in range(1, curves.frames - 12)
    ]
    share = apart[39] / np.mean(apart[:40])
    (found,), _ = find_loops(curves)
    assert found.what == "40 frames"
    assert found.number <= max(share, 0.06 / 0.75 * np.sqrt(apart[39] / apart[0])) + 1e-4
