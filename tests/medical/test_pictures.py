"""Montage, film and viewer: what they show and that they stay bounded."""

import json
import re

import numpy as np
import pytest
from longtake.medical.picture import film, upright
from longtake.medical.series import Geometry, Series
from longtake.medical.viewer import viewer
from medical_tiny import identity
from PIL import Image


def series_of(shape=(6, 20, 24), visits=6, known=True):
    rng = np.random.default_rng(0)
    geometry = Geometry(np.diag([2.0, 2.0, 5.0, 1.0]), (2.0, 2.0, 5.0), known)
    return Series("p", rng.random((visits, *shape)) * 200, np.arange(visits), "months", geometry=geometry)


@pytest.mark.parametrize(
    ("shape", "times"), [((6, 20, 24), (9,)), ((1, 20, 24), (9, 12)), ((40, 20, 24), range(7, 30))]
)
def test_a_montage_is_a_bounded_picture(tmp_path, shape, times):
    output = identity(series_of(shape), times, seed=1, truth=series_of(shape).images[0] if len(times) == 1 else None)
    with Image.open(output.preview(tmp_path / "m.png")) as picture:
        assert picture.size[0] <= 2600 and picture.size[1] <= 1200
        assert np.asarray(picture.convert("L")).std() > 20


def test_a_film_has_a_frame_for_each_time(tmp_path):
    film(identity(series_of(visits=3), (5, 8), seed=1), tmp_path / "f.gif")
    with Image.open(tmp_path / "f.gif") as picture:
        assert picture.n_frames == 5


def test_front_and_top_are_up_and_the_patients_right_is_left():
    image = np.arange(6).reshape(2, 3)
    ras = Geometry(np.diag([2.0, 2.0, 5.0, 1.0]), (2.0, 2.0, 5.0))
    assert upright(image, ras).tolist() == [[5, 4, 3], [2, 1, 0]]
    lps = Geometry(np.diag([-2.0, -2.0, 5.0, 1.0]), (2.0, 2.0, 5.0))
    assert np.array_equal(upright(image, lps), image)
    assert np.array_equal(upright(image, Geometry(np.eye(4), (1.0, 1.0, 1.0), known=False)), image)


def test_the_viewer_holds_every_time_mean_samples_and_uncertainty_and_nothing_from_elsewhere():
    truth = series_of().images[0]
    text = viewer(identity(series_of(visits=3), (5, 8), seed=1, truth=truth))
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [frame["time"] for frame in data["frames"]] == [0, 1, 2, 5, 5, 8] and data["grid"] == [6, 20, 24]
    made = next(frame for frame in data["frames"] if frame["made"])
    assert {"mean", "sample 1", "sample 2", "sample 3", "std", "interval", "change"} <= set(made)
    assert "not for clinical use" in text and "default-src 'none'" in text and "src=" not in text


def test_a_large_series_is_thinned_for_the_viewer(monkeypatch):
    monkeypatch.setattr("longtake.medical.viewer.MOST_BYTES", 20_000)
    data = json.loads(re.search(r'id="data">(.*?)</script>', viewer(identity(series_of())), re.S)[1])
    assert data["thin"] > 1 and data["grid"][1] < 20
