"""A subject's visits: what a series holds, and which mistakes it refuses."""

import numpy as np
import pytest
from longtake import UserError
from longtake.medical.series import Series, convert


def a_series(**changes):
    given = {"subject": "s", "images": np.ones((3, 2, 4, 5), np.float32), "times": [0, 6, 13], "unit": "months"}
    return Series(**(given | changes))


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [(24, "months", "years", 2), (1, "years", "days", 365.25), (2, "weeks", "days", 14), (36, "hours", "days", 1.5)],
)
def test_units_of_time_are_converted(value, unit, to, expected):
    assert convert(value, unit, to) == pytest.approx(expected, rel=1e-12)


def test_a_beat_has_no_length_in_days():
    assert convert(0.3, "cycle", "cycle") == 0.3
    with pytest.raises(UserError, match="cannot be turned into"):
        convert(0.3, "cycle", "days")
    with pytest.raises(UserError, match="fortnights"):
        convert(1, "fortnights", "days")


def test_missing_visits_hold_zeros_and_the_given_array_is_left_alone():
    images = np.full((3, 2, 4, 5), np.nan, np.float32)
    images[[0, 2]] = 1
    series = a_series(images=images, observed=[True, False, True])
    assert series.images[1].sum() == 0 and np.isnan(images[1]).all()
    assert series.observed_times.tolist() == [0, 13]
    assert a_series().without([2]).images[2].sum() == 0


def test_a_part_of_a_series_keeps_names_flags_and_masks_together():
    series = a_series(valid=np.ones((3, 2, 4, 5), bool), sessions=["a", "b", "c"])
    part = series.pick([2, 0])
    assert part.sessions == ["a", "c"] and part.times.tolist() == [0, 13] and part.valid.shape == (2, 2, 4, 5)
    assert series.before(1).sessions == ["a"] and series.grid == (2, 4, 5) and len(series) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"times": [0, 6, 6]}, "both at 6 months"),
        ({"times": [0, 6, 3]}, "must increase"),
        ({"times": [0, 6, np.nan]}, "needs a time"),
        ({"times": [0, 6]}, "3 images, 2 times"),
        ({"unit": "moons"}, "moons"),
        ({"images": np.full((3, 2, 4, 5), np.nan)}, "holds NaN"),
        ({"images": np.ones((3, 4, 5))}, "slices, rows, columns"),
        ({"valid": np.ones((3, 4, 5), bool)}, "valid is"),
        ({"sessions": ["a"]}, "1 names"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        a_series(**changes)
    assert "\n" not in str(caught.value)
