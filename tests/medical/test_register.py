"""How far apart visits lie, and moving them onto each other."""

import numpy as np
import pytest
from longtake.medical.register import apart, correlation, registered
from longtake.medical.series import Geometry, Series
from scipy.ndimage import gaussian_filter, rotate, shift


def scene(shape, seed=0):
    rng = np.random.default_rng(seed)
    values = gaussian_filter(rng.standard_normal(shape), [min(2, n / 8) for n in shape])
    return (100 + 400 * values / np.abs(values).max()).astype(np.float32)


def pair(moved, base, spacing=None):
    geometry = None
    if spacing is not None:
        geometry = Geometry(np.diag([*spacing, 1.0]), spacing)
    return Series("s", np.stack([base, moved]), [0, 1], "years", geometry=geometry, sessions=["a", "b"])


def test_a_shift_is_found_in_voxels_and_in_millimetres():
    base = scene((12, 40, 40))
    moved = shift(base, (2, -3, 4), order=0, mode="nearest")
    (found,) = apart(pair(moved, base))
    assert found.shift == (2, -3, 4) and found.unit == "voxels" and found.after > 0.99 > found.correlation
    (found,) = apart(pair(moved, base, (2.0, 1.0, 5.0)))
    assert found.distance == pytest.approx(np.sqrt((2 * 5) ** 2 + 3**2 + (4 * 2) ** 2)) and found.unit == "mm"
    assert found.is_far and "visit b lies" in found.line() and "mm from visit a" in found.line()


def test_visits_that_lie_on_each_other_are_not_told_of():
    base = scene((1, 40, 40))
    (found,) = apart(pair(base * 1.1 + 3, base))
    assert found.shift == (0, 0, 0) and found.correlation > 0.999 and not found.is_far
    assert correlation(base, np.zeros_like(base), None) == 0


def test_a_turned_and_moved_visit_comes_back():
    pytest.importorskip("SimpleITK")
    base = scene((1, 64, 64))
    moved = shift(rotate(base, 6, axes=(1, 2), reshape=False, order=1, mode="nearest"), (0, 3, -2), mode="nearest")
    series = registered(pair(moved, base))
    valid = series.valid[1]
    assert correlation(base, series.images[1], valid) > 0.95 > 0.7 > correlation(base, moved, None)
    assert np.array_equal(series.images[1], registered(pair(moved, base)).images[1])
    assert "visit b was moved" in series.notes[0] and "turned 6." in series.notes[0] or "turned 5." in series.notes[0]


def test_what_no_move_helps_is_left_as_it_is():
    pytest.importorskip("SimpleITK")
    base = scene((1, 48, 48))
    series = registered(pair(base, base))
    assert np.array_equal(series.images[1], base) and "left where it lies" in series.notes[0]
