"""What every forecast must beat, and the cases of a table."""

import numpy as np
from longtake.medical.baselines import copy_last, linear, mean_of_history
from longtake.medical.evaluate import cases_of, region_of, rows_of, shuffled
from longtake.medical.series import Series


def ramp(times=(0.0, 1, 3), values=(10, 20, 40), **more):
    images = np.stack([np.full((1, 6, 6), value, np.float32) for value in values])
    return Series("s", images, times, "days", **more)


def test_s16_the_baselines_are_what_their_names_say():
    series = ramp(values=(0, 20, 40))
    assert (copy_last(series) == 40).all() and (mean_of_history(series) == 20).all()
    assert (linear(ramp(values=(0, 40, 20)), 4.0) == 10).all()
    assert (linear(series, 9.0) == 40).all()  # within the range of the history
    assert linear(series.pick([0]), 9.0) is None


def test_s16_missing_visits_and_what_is_not_valid_do_not_count():
    series = ramp().without([2])
    assert (copy_last(series) == 20).all() and (mean_of_history(series) == 15).all()
    valid = np.ones((3, 1, 6, 6), bool)
    valid[1, 0, 0] = False
    assert mean_of_history(ramp(valid=valid))[0, 0, 0] == 25


def test_s16_repeats_of_one_day_are_one_time():
    series = ramp((0.0, 4, 4.01), (0, 30, 40))
    assert (linear(series, 4.5) == 40).all() and linear(series.pick([1, 2]), 9.0) is None
    assert [case.times for case in cases_of(series)] == [1, 1]


def test_s16_every_row_is_in_the_table_even_where_it_has_no_case():
    rows = rows_of("x", list(cases_of(ramp((0.0, 2), (10, 20)).pick([0, 1]))), None)
    assert [row.label for row in rows] == ["copy-last", "linear", "mean of history"]
    assert rows[0].delta_smae == 1 and rows[1].cases == 0


def test_no_case_knows_its_truth():
    series = ramp()
    for case in cases_of(series):
        assert case.history.times.max() < case.at and len(case.history) < len(series)


def test_shuffled_times_leave_no_image_at_its_own():
    series = ramp((0.0, 1, 3, 7), (1, 2, 3, 4))
    mixed = shuffled(series, 5)
    assert sorted(mixed.images[:, 0, 0, 0]) == [1, 2, 3, 4] and mixed.times.tolist() == series.times.tolist()
    assert (mixed.images[:, 0, 0, 0] != series.images[:, 0, 0, 0]).all()


def test_a_region_is_found_by_its_grey_value_near_the_last_one():
    images = np.zeros((2, 1, 24, 24), np.float32)
    labels = np.zeros_like(images, bool)
    for k, half in enumerate((6, 4)):
        images[k, 0, 12 - half : 12 + half, 12 - half : 12 + half] = 200
        labels[k] = images[k] > 0
    series = Series("h", images, [0, 0.4], "cycle", labels=labels)
    (case,) = cases_of(series)
    assert np.array_equal(region_of(case.truth, case), labels[1])
    truth = rows_of("x", [case], None)[-1]
    assert truth.label == "(the truth)" and abs(truth.region - (64 / 144 - 1)) < 1e-6
