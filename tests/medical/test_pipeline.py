"""Predictions: observed scans to the bit, no look ahead, seeds, batches, windows, a killed run."""

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.medical.calibration import Calibration, calibrate, weighted_quantile
from longtake.medical.intensity import IntensityMap
from longtake.medical.net import LongitudinalNet
from longtake.medical.pipeline import LongitudinalPipeline
from longtake.medical.series import Series
from longtake.medical.stacking import convex_weights, smooth, stacked
from longtake.medical.windows import estimate_memory, windows
from medical_nets import growing, random_pipeline

FAST = {"num_inference_steps": 2, "samples": 2}


def with_image(series, visit, image):
    images = series.images.copy()
    images[visit] = image
    return Series(series.subject, images, series.times, series.unit, series.observed, modality=series.modality)


def test_s8_observed_scans_come_back_to_the_bit():
    series = growing()
    times = [series.times[-1] + 1, series.times[1], series.times[0] - 1]
    found = random_pipeline().predict(series, times, **FAST)
    assert list(found.generated) == [True, False, True]
    for value in (*found.samples[:, 1], found.mean[1], found.median[1], found.lower[1], found.upper[1]):
        assert np.array_equal(value, series.images[1])
    assert found.samples.dtype == found.mean.dtype == found.lower.dtype == np.float32


@pytest.mark.parametrize("history", ["observed", "all"])
def test_s8_a_causal_prediction_never_looks_at_later_visits(history, monkeypatch):
    pipe, series = random_pipeline(), growing()
    at = (series.times[1] + series.times[2]) / 2
    spoiled = with_image(series, len(series) - 1, series.images[-1][:, ::-1] * 0.9)
    intensities = IntensityMap.fit(series.images, series.observed)
    monkeypatch.setattr(IntensityMap, "fit", lambda *_: intensities)
    found, other = (pipe.predict(s, [at, at + 0.01], history=history, causal=True, **FAST) for s in (series, spoiled))
    assert np.array_equal(found.samples, other.samples)
    free = [pipe.predict(s, [at], **FAST).samples for s in (series, spoiled)]
    assert not np.array_equal(*free)
    with pytest.raises(UserError, match="before the first"):
        pipe.predict(series, [series.times[0] - 1], causal=True, **FAST)


def test_history_all_feeds_predictions_back_and_observed_does_not():
    pipe, series = random_pipeline(), growing()
    last = series.times[-1]
    alone = pipe.predict(series, [last + 2], **FAST)
    kinds = {h: pipe.predict(series, [last + 1, last + 2], history=h, **FAST) for h in ("observed", "all")}
    assert np.allclose(kinds["observed"].expected[1], alone.expected[0], atol=1e-6)
    assert not np.allclose(kinds["all"].expected[1], alone.expected[0], atol=1e-4)
    assert np.allclose(kinds["observed"].samples[:, 0], kinds["all"].samples[:, 0], atol=1e-6)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm"])
def test_s8_the_seed_decides_to_the_bit(scheduler):
    pipe, series = random_pipeline(), growing()
    runs = [pipe.predict(series, [9.0], scheduler=scheduler, seed=seed, **FAST).samples for seed in (4, 4, 5)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_s8_a_batch_of_two_equals_two_of_one():
    pipe, series = random_pipeline(), growing()
    both = pipe.predict(series, [9.0], num_inference_steps=3, samples=2).samples
    one = pipe.predict(series, [9.0], num_inference_steps=3, samples=1).samples
    span = np.ptp(series.images)
    assert np.abs(both[:1] - one).max() <= 1e-5 * span


def test_s7_guidance_of_one_and_zero_are_the_two_ways_exactly():
    pipe, series = random_pipeline(), growing()
    view = pipe.view(pipe.patient(series), 2.0)
    x, level = torch.randn(1, 1, *view.outlook.mean.shape[2:]), torch.tensor([0.5])
    with torch.inference_mode():
        given = pipe.net(x, level, view.outlook)
        without = pipe.net(x, level, view.outlook, keep=torch.tensor([False]))
    assert torch.equal(view.velocity(x, 0.5, 1.0), given)
    assert torch.equal(view.velocity(x, 0.5, 0.0), without)
    assert torch.allclose(view.velocity(x, 0.5, 1.2), without + 1.2 * (given - without), atol=1e-6)


def test_s10_any_size_is_predicted_on_its_own_grid():
    found = random_pipeline().predict(growing((7, 19, 23)), [9.0], **FAST)
    assert found.samples.shape == (2, 1, 7, 19, 23)
    assert np.isfinite(found.samples).all()


def test_s10_a_window_as_large_as_the_volume_changes_nothing():
    pipe, series = random_pipeline(), growing((4, 32, 40))
    plain = pipe.predict(series, [9.0], **FAST)
    assert np.array_equal(plain.samples, pipe.predict(series, [9.0], window=(4, 32, 40), **FAST).samples)
    assert not np.array_equal(plain.samples, pipe.predict(series, [9.0], window=(2, 16, 16), **FAST).samples)


def test_s10_windows_cover_each_voxel_with_weights_that_sum_to_one():
    made = windows((5, 40, 48), (2, 16, 16), 8)
    total = torch.zeros(5, 40, 48, dtype=torch.float64)
    for index in range(len(made.places)):
        made.add(total, torch.ones(2, 16, 16, dtype=torch.float64), index)
    assert float((total - 1).abs().max()) <= 1e-6


def test_the_memory_said_is_what_was_measured_and_less_with_windows():
    measured = {(8, 3, 1): 114.3e6, (8, 3, 2): 190.6e6, (16, 3, 1): 202.3e6, (8, 8, 1): 166.2e6}
    for (slices, visits, samples), taken in measured.items():
        assert 0.7 < estimate_memory((slices, 128, 128), visits, samples) / taken < 1.6
    whole, cut = (estimate_memory((64, 256, 256), 4, window=window) for window in (None, (16, 128, 128)))
    assert cut < whole / 2


def test_s10_the_order_of_windows_does_not_matter():
    pipe, series = random_pipeline(), growing((4, 32, 40))
    patient = pipe.patient(series)
    view = pipe.view(patient, 3.0, (2, 16, 16))
    turned = pipe.view(patient, 3.0, (2, 16, 16))
    turned.windows.places.reverse()
    turned.parts.reverse()
    x = torch.randn(1, 1, *view.outlook.mean.shape[2:])
    assert float((view.velocity(x, 0.5, 1.2) - turned.velocity(x, 0.5, 1.2)).abs().max()) <= 1e-5


def test_a_killed_run_goes_on_to_the_same_samples(tmp_path):
    pipe, series = random_pipeline(), growing()
    whole = pipe.predict(series, [9.0, 10.0], samples=5, num_inference_steps=2, history="all")
    calls = []

    def dies(done, of):
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    settings = {"samples": 5, "num_inference_steps": 2, "history": "all"}
    with Journal(tmp_path / "run") as journal:
        journal.open({"seed": 0})
        with pytest.raises(KeyboardInterrupt):
            pipe.predict(series, [9.0, 10.0], store=journal, on_sample=dies, **settings)
    with Journal(tmp_path / "run") as journal:
        journal.open({"seed": 0})
        assert len(journal.complete_sets("sample")) == 4
        pieces = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("sample*")}
        again = pipe.predict(series, [9.0, 10.0], store=journal, **settings)
        assert all((tmp_path / "run" / name).stat().st_mtime_ns == at for name, at in pieces.items())
    for name in ("samples", "lower", "upper", "expected"):
        assert np.array_equal(getattr(whole, name), getattr(again, name))


def test_a_stopped_run_ends_with_the_samples_there_are():
    found = random_pipeline().predict(growing(), [9.0], samples=6, num_inference_steps=1, on_sample=lambda *_: True)
    assert found.samples.shape[0] == found.info["samples"] == 2


def test_a_prior_is_written_and_read(tmp_path):
    pipe, series = random_pipeline(), growing()
    rows = {"simulated": {0: np.linspace(0, 3, 100), 1: np.linspace(0, 2, 50)}}
    pipe.calibration = calibrate(rows)
    pipe.save(tmp_path / "prior")
    read = LongitudinalPipeline.from_prior(tmp_path / "prior")
    assert read.calibration == pipe.calibration and len(read.weights) == 64
    again = LongitudinalPipeline.from_prior(pipe.save(tmp_path / "second"))
    assert again.weights == LongitudinalPipeline.from_prior(tmp_path / "prior").weights
    found = read.predict(series, [9.0], **FAST)
    assert np.allclose(found.samples, pipe.predict(series, [9.0], **FAST).samples, atol=2e-3 * np.ptp(series.images))
    (tmp_path / "prior" / "calibration.json").write_text("{}")
    with pytest.raises(UserError, match="calibration"):
        LongitudinalPipeline.from_prior(tmp_path / "prior")


def test_half_precision_predicts_nearly_the_same():
    series = growing()
    plain, half = random_pipeline(), random_pipeline()
    torch.nn.Module.to(half.net, dtype=torch.bfloat16)
    found, other = (pipe.predict(series, [9.0], guidance_scale=1.2, **FAST) for pipe in (plain, half))
    span = np.ptp(series.images)
    assert np.abs(found.expected - other.expected).max() < 0.03 * span
    assert np.abs(found.samples - other.samples).max() < 0.15 * span


def test_the_interval_is_the_mean_and_a_factor_of_the_scale():
    pipe, series = random_pipeline(), growing()
    found = pipe.predict(series, [9.0], **FAST)
    assert np.allclose(found.upper - found.expected, 1.645 * found.error, atol=1e-4)
    pipe.calibration = Calibration({"simulated": {str(level): 2.0 for level in (0.5, 0.8, 0.9, 0.95)}})
    wide = pipe.predict(series, [9.0], level=0.5, **FAST)
    assert np.allclose(wide.upper - wide.lower, 4 * wide.error, atol=1e-4)
    with pytest.raises(UserError, match="level"):
        pipe.predict(series, [9.0], level=0.42, **FAST)


def test_a_calibrated_interval_covers_new_patients_of_the_same_kind():
    rng = np.random.default_rng(0)
    rows = {n: np.abs(rng.normal(0, 1.7, 4000)) for n in range(12)}
    factor = calibrate({"cxr": rows}).factor("cxr", 0.9)
    covered = np.mean(np.abs(rng.normal(0, 1.7, 40000)) <= factor)
    assert abs(covered - 0.9) < 0.01
    assert weighted_quantile([np.zeros(1000), np.ones(10)], 0.4) == 0
    assert weighted_quantile([np.zeros(1000), np.ones(10)], 0.6) == 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"at": []}, "at least one"),
        ({"at": [1.0, 1.0]}, "once"),
        ({"at": [float("nan")]}, "finite"),
        ({"at": [1.0], "unit": "cycle"}, "cycle"),
        ({"samples": 0}, "samples"),
        ({"num_inference_steps": 0}, "steps"),
        ({"guidance_scale": -1.0}, "guidance"),
        ({"history": "some"}, "history"),
        ({"scheduler": "euler"}, "scheduler"),
        ({"window": (0, 8, 8)}, "window"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, word):
    with pytest.raises(UserError, match=word):
        random_pipeline().predict(growing(), **{"at": [9.0], **settings})


def test_s17_the_map_of_intensities_is_fitted_on_observed_visits_alone():
    series = growing()
    hidden = series.observed.copy()
    hidden[-1] = False
    maps = [
        IntensityMap.fit(with_image(series, -1, series.images[-1] * factor).images, hidden) for factor in (1.0, 50.0)
    ]
    assert maps[0] == maps[1]
    values = torch.from_numpy(series.images)
    assert torch.equal(maps[0].forward(values), maps[1].forward(values))
    assert torch.allclose(maps[0].inverse(maps[0].forward(values)), values, atol=1e-6)


def test_s17_a_constant_image_gives_numbers():
    flat = Series("flat", np.full((2, 1, 16, 16), 7.0), [0.0, 1.0], "years")
    found = random_pipeline().predict(flat, [2.0], **FAST)
    assert np.isfinite(found.samples).all() and np.isfinite(found.upper).all()
    with pytest.raises(UserError, match="no visit is observed"):
        IntensityMap.fit(flat.images, [False, False])


def test_three_means_are_followed_as_far_as_held_back_patients_say() -> None:
    """By least squares over weights that are 0 or more and sum to 1; each patient weighs the same."""
    dice = np.random.default_rng(0)
    grams = []
    for count in (4000, 40):
        errors = dice.standard_normal((3, count)) * [[1.0], [2.0], [0.5]]
        grams.append(errors @ errors.T / count)
    found = convex_weights(grams)
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    grid = [np.array([a, b, 1 - a - b]) for a in np.linspace(0, 1, 101) for b in np.linspace(0, 1 - a, 101)]
    assert found @ sum(grams) @ found <= min(one @ sum(grams) @ one for one in grid) + 1e-9
    worse = np.array([[1.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 9.0]])  # the others are the first and noise
    assert np.allclose(convex_weights([worse]), [1, 0, 0])
    assert np.allclose(convex_weights([np.zeros((3, 3))]), 1 / 3), "all are right: none is preferred"
    made = Calibration(shares={"cxr": 0.25}, softs={"cxr": 0.5})
    assert made.share("cxr") == 0.25 and made.share("cardiac") == 1
    assert made.soft("cxr") == 0.5 and made.soft("cardiac") == 0
    assert Calibration.from_json(made.to_json()) == made
    assert Calibration.from_json({**made.to_json(), "shares": {}}).share("cxr") == 1


def test_a_smooth_mean_leaves_constants_and_never_looks_where_nothing_is() -> None:
    there = np.ones((2, 64, 64), bool)
    there[:, :, 40:] = False
    flat = np.where(there, 3.0, np.nan)
    assert np.allclose(smooth(flat, there)[there], 3, atol=1e-12)
    dice = np.random.default_rng(0)
    noise = dice.standard_normal(there.shape)
    soft = smooth(noise, there)
    assert soft[there].std() < 0.3 * noise[there].std() and np.array_equal(soft[~there], noise[~there])
    assert np.array_equal(smooth(noise[:1], there[:1]), soft[:1]), "slice by slice"
    base = dice.standard_normal(there.shape)
    assert stacked(noise, base, there, 1.0, 0.0) is noise
    assert np.allclose(stacked(noise, base, there, 0.0, 1.0), smooth(base, there), atol=1e-12)


def test_a_share_moves_mean_interval_and_samples_alike_and_one_changes_nothing() -> None:
    net = LongitudinalNet(width=32, channels=(16, 32), mean_channels=(16, 32), condition=32).eval()
    dice = np.random.default_rng(1)
    images = dice.uniform(0, 1, (3, 1, 16, 16)).astype(np.float32)
    series = Series("one", images, np.array([0.0, 1.0, 3.0]), "years", modality="cxr")
    asked = {"samples": 2, "num_inference_steps": 2}
    whole = LongitudinalPipeline(net).predict(series, [4.0], **asked)
    half = LongitudinalPipeline(net, Calibration(shares={"cxr": 0.5})).predict(series, [4.0], **asked)
    none = LongitudinalPipeline(net, Calibration(shares={"cxr": 0.0})).predict(series, [4.0], **asked)
    same = LongitudinalPipeline(net, Calibration(shares={"cxr": 1.0})).predict(series, [4.0], **asked)
    assert np.array_equal(whole.samples, same.samples) and np.array_equal(whole.expected, same.expected)
    assert np.allclose(none.expected[0], images.mean(0), atol=1e-5), "not followed at all: the mean of the history"
    assert np.allclose(half.expected, (whole.expected + none.expected) / 2, atol=1e-5)
    assert np.allclose(half.samples - whole.samples, half.expected - whole.expected, atol=1e-5)
    assert np.allclose(half.upper - half.lower, whole.upper - whole.lower, atol=1e-5)
