"""A path is walked: within 0.2 m of every point, to the last one, each prompt at its own speed, and the run says so."""

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.motion.pace import frames_for, pace_of
from longtake.motion.path import FASTEST, SLOWEST, FloorPath
from longtake.motion.pipeline import LongMotionPipeline

README = "0s: a person walks | 6s: a person runs", ((0, 0), (0, 4), (4, 6), (8, 4))
OTHERS = (
    ("a person walks", ((1.0, 1.0), (1.0, 5.0), (-2.0, 6.0))),
    ("0s: a person runs | 3s: a person walks", ((0.0, 0.0), (6.0, 6.0), (12.0, 0.0), (6.0, -6.0))),
    ("0s: a person walks | 4s: waves with the right hand | 7s: a person walks", ((-3.0, 2.0), (0.0, 2.0), (3.0, 5.0))),
)


@pytest.fixture(scope="module")
def pipe() -> LongMotionPipeline:
    made = LongMotionPipeline.from_prior("bandai-small")
    made.set_progress_bar_config(disable=True)
    return made


def speeds(out) -> list[float]:
    """Mean root speed of each prompt, m/s, away from its borders."""
    root = out.joints[:, 0, [0, 2]]
    step = np.linalg.norm(np.diff(root, axis=0), axis=1) * out.fps
    bounds = [0, *out.boundaries, len(step)]
    return [float(step[a + 10 : b - 10].mean()) for a, b in zip(bounds, bounds[1:], strict=False)]


@pytest.mark.parametrize(("prompt", "points"), [README, *OTHERS])
@pytest.mark.parametrize("seed", [0, 1])
def test_u2_a_path_is_passed_within_a_fifth_of_a_metre_and_ends_at_its_last_point(pipe, prompt, points, seed) -> None:
    out = pipe(prompt, path=points, seed=seed)
    root = out.joints[:, 0, [0, 2]]
    gaps = [float(np.linalg.norm(root - point, axis=1).min()) for point in points]
    ends = [float(np.linalg.norm(root[place] - points[place])) for place in (0, -1)]
    assert max(gaps) < 0.2 and max(ends) < 0.05
    told = out.info["path_deviation_m"]
    assert told["largest"] == max(told["points"]) < 0.2 and len(told["points"]) == len(points)
    assert np.allclose(told["points"][:-1], gaps[:-1], atol=1e-3)
    assert float(np.linalg.norm(np.diff(root, axis=0), axis=1).max()) * out.fps < 6, "nobody jumps"


@pytest.fixture(scope="module")
def free(pipe) -> list[float]:
    """Speeds of the README's prompts without a path."""
    return speeds(pipe(README[0], 200, seed=3))


@pytest.mark.parametrize("frames", [None, 200])
def test_u2_walking_and_running_have_their_own_speeds_on_a_path(pipe, free, frames) -> None:
    with_path = pipe(README[0], frames, path=README[1], seed=3)
    walk, run = speeds(with_path)
    assert run > 2 * walk and free[1] > 2 * free[0]
    stretch = with_path.info["path_stretch"]
    if frames is None:
        assert 0.9 < stretch < 1.1, "without a length the last prompt ends where the path does"
        assert abs(walk / free[0] - 1) < 0.15 and abs(run / free[1] - 1) < 0.15
    else:
        assert abs(walk / run - free[0] / free[1]) < 0.15, "a given length changes both alike"


def test_u2_a_length_that_does_not_suit_the_prompts_is_said(pipe) -> None:
    with pytest.warns(UserWarning, match="times the speed of its prompts: about"):
        out = pipe("a person walks", 60, path=((0, 0), (0, 9)), num_inference_steps=2)
    assert out.info["path_stretch"] > 2 and out.info["path_deviation_m"]["largest"] < 0.05


def test_a_control_made_of_a_path_is_walked_as_the_path_itself(pipe) -> None:
    given = {"seed": 2, "num_inference_steps": 3}
    one = pipe("a person walks", 100, path=((0, 0), (3, 3)), **given)
    two = pipe("a person walks", 100, control=pipe.path_control([(0, 0), (3, 3)], 100), **given)
    assert np.array_equal(one.joints, two.joints) and one.info["path_deviation_m"] == two.info["path_deviation_m"]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (((0, 0),), "at least two"),
        (((0, 0), (0, 0)), "same"),
        (((0, 0), (float("nan"), 1)), "finite"),
        (((0, 0), (float("inf"), 1)), "finite"),
        (((0, 0), (1e308, 1)), "within"),
        (((0, 0), (1, 2, 3)), "floor points"),
        ((0, 1), "floor points"),
        (((0, 0), (0, 900)), "m/s"),
    ],
)
def test_a_path_that_nobody_can_walk_is_one_line(pipe, points, message) -> None:
    with pytest.raises(UserError, match=message) as told:
        pipe("a person walks", 100, path=points, num_inference_steps=1)
    assert "\n" not in str(told.value)


def test_a_path_and_a_control_are_not_both_taken(pipe) -> None:
    with pytest.raises(UserError, match="one of them"):
        pipe("a person walks", 100, path=((0, 0), (1, 1)), control=pipe.path_control([(0, 0), (1, 1)], 100))


def test_pace_changes_gradually_and_a_standing_prompt_still_moves_a_little() -> None:
    pace = pace_of([0] * 60 + [1] * 60, [1.0, 3.0])
    assert len(pace) == 119 and float(pace.diff().abs().max()) < 0.2
    assert float(pace[10]) == pytest.approx(1.0) and float(pace[-10]) == pytest.approx(3.0)
    assert float(pace_of([0] * 50, [0.0]).min()) == pytest.approx(SLOWEST)
    assert frames_for(FloorPath(((0, 0), (0, 10))), [0], [1.0], 20.0, 80) == 201
    assert frames_for(FloorPath(((0, 0), (0, 10))), [0, 100], [1.0, 2.5], 20.0, 80) == 141
    assert frames_for(FloorPath(((0, 0), (0, 1))), [0, 100], [1.0, 2.5], 20.0, 80) == 180, "walked before"
    assert frames_for(FloorPath(((0, 0), (0, 9))), [0], [0.0], 20.0, 80) == 80, "nobody walks"
    assert FloorPath(((0, 0), (0, 12))).stretch(21, 20.0) == 1.0 and FASTEST == 12.0


def test_points_are_placed_in_the_world_of_the_path() -> None:
    path = FloorPath(((2.0, 3.0), (5.0, 3.0)))
    seen = path.place(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))
    want = torch.tensor([[2.0, 1.0, 3.0], [3.0, 1.0, 3.0], [2.0, 1.0, 2.0]])
    assert torch.allclose(seen, want, atol=1e-6), "+z goes to +x, +x to -z"
