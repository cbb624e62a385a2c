"""Figures of a forecast against scikit-image where it is installed, else against its numbers."""

import math

import numpy as np
import pytest
from longtake import UserError
from longtake.medical import metrics
from longtake.medical.metrics import Score, Summary

A = np.clip(0.5 + 0.25 * np.sin(np.add.outer(np.arange(24) / 3, np.arange(20) / 2.2)), 0, 1)
B = np.clip(A + 0.15 * np.cos(np.multiply.outer(np.arange(24), np.arange(20)) / 7), 0, 1)
V, W = (
    np.stack([np.roll(A, k, 0) * (0.6 + 0.03 * k) for k in range(13)]),
    np.stack([np.roll(B, k, 1) for k in range(13)]),
)
# scikit-image 0.26: structural_similarity, peak_signal_noise_ratio, normalized_root_mse of B against A (W, V for 3-D)
STORED = {
    "gauss": 0.7140974284954719,
    "box": 0.8024069056637567,
    "gauss 3d": 0.22934906847664072,
    "box 3d": 0.2258972293860002,
    "psnr": 19.13868470949071,
    "minmax": 0.2208516047441402,
    "euclidean": 0.2045906298139125, "mean": 0.21654364934487533,
}  # fmt: skip


@pytest.mark.parametrize("window", ["gauss", "box"])
@pytest.mark.parametrize("axes", ["", " 3d"])
def test_s16_ssim_equals_scikit_image(window, axes):
    first, second = (A, B) if not axes else (V, W)
    assert metrics.ssim(second, first, 1.0, window) == pytest.approx(STORED[window + axes], abs=1e-6)


def test_s16_psnr_equals_scikit_image():
    assert metrics.psnr(metrics.mse(B, A), 1.0) == pytest.approx(STORED["psnr"], abs=1e-8)


@pytest.mark.parametrize("norm", metrics.NORMS)
def test_s16_nrmse_equals_scikit_image_in_each_norm(norm):
    assert metrics.nrmse(B, A, norm=norm) == pytest.approx(STORED[norm], abs=1e-8)


def test_s16_the_stored_numbers_are_those_of_the_installed_scikit_image():
    try:
        from skimage import metrics as theirs
    except ImportError:
        assert not math.isnan(sum(STORED.values()))
        return
    assert theirs.normalized_root_mse(A, B, normalization="min-max") == pytest.approx(STORED["minmax"], abs=1e-12)
    settings = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert theirs.structural_similarity(A, B, **settings) == pytest.approx(STORED["gauss"], abs=1e-12)


def test_s16_an_unknown_norm_is_refused():
    with pytest.raises(UserError, match="minmax, euclidean, mean"):
        metrics.nrmse(A, B, norm="max")


def test_s16_equal_images_are_perfect_and_constant_ones_divide_by_nothing():
    assert metrics.ssim(A, A, 1.0) == 1 and metrics.psnr(metrics.mse(A, A), 1.0) == math.inf
    flat = np.ones((2, 8, 8))
    assert metrics.nrmse(flat, flat) == 0 and metrics.nrmse(flat + 1, flat) == math.inf
    assert metrics.delta_rmae(flat, flat, flat) == 0 and metrics.delta_smae(flat, flat, flat) == 0
    assert metrics.slice_ssim(flat, flat, 1.0) == 1 and math.isnan(metrics.slice_ssim(flat, flat, 1.0, flat < 0))


def test_psnr_of_many_is_of_the_mean_error():
    assert metrics.mean_psnr([0.01, 0.03], 1.0) == pytest.approx(-10 * math.log10(0.02))


def test_the_change_is_judged_with_and_without_its_sign():
    last, truth = np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.2)
    assert metrics.delta_rmae(last, truth, last) == metrics.delta_smae(last, truth, last) == 1
    assert metrics.delta_rmae(-truth, truth, last) == 0 and metrics.delta_smae(-truth, truth, last) == 2
    assert metrics.delta_smae(truth, truth, last) == 0
    valid = np.array([[[True, True], [False, False]]])
    half = np.where(valid, truth, 9)
    assert metrics.delta_smae(half, truth, last, valid) == 0


def test_what_is_not_valid_does_not_count():
    valid = np.zeros((1, 24, 20), bool)
    valid[:, 4:20, 3:17] = True
    other = np.where(valid, B[None], 7)
    first, second = (Score.of(one, A[None], A[None] * 0.9, valid, 1.0) for one in (other, B[None]))
    assert first == second and Summary.of([first, second], 1.0).cases == 2


def test_coverage_is_a_share_and_width_a_mean():
    truth = np.array([0.0, 1, 2, 3])
    share, width = metrics.coverage(np.array([0.0, 0, 3, 3]), np.array([1.0, 1, 4, 4]), truth)
    assert share == 0.75 and width == 1
    assert metrics.coverage(truth, truth, truth, truth > 1) == (1, 0)


def test_regions_change_relative_to_what_was_there():
    labels = np.zeros((2, 1, 4, 4), bool)
    labels[0, :, :2], labels[1, :, :1] = True, True
    assert metrics.region_volumes(labels).tolist() == [8, 4]
    assert metrics.region_volumes(labels, (2.0, 2.0, 5.0)).tolist() == [160, 80]
    assert metrics.region_change(*labels) == -0.5 and metrics.region_change(labels[0] & False, labels[1]) == math.inf
