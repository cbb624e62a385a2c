"""NIfTI: what is read is scaled, what is written keeps geometry, codes and units, and says that it is synthetic."""

import gzip

import nibabel
import numpy as np
import pytest
from longtake import UserError
from longtake.medical.files.nifti import read_nifti, write_nifti
from longtake.medical.files.open import read_series
from longtake.medical.series import Series
from longtake.reading import read_json_object
from medical_tiny import identity
from medical_trees import OBLIQUE, save, volume

FLIPPED = np.array([[0, 0, 5.0, -9], [-2.0, 0, 0, 12], [0, -2.0, 0, 7], [0, 0, 0, 1]])  # slices along x: PIR or so
SMALL = {"sform": 0, "qform": 1}
CASES = {
    "int16 scaled": {"scale": (0.25, -3)},
    "oblique, determinant below 0": {"affine": OBLIQUE, "qform": 0},
    "sform alone": {"qform": 0, "sform": 2},
    "qform alone": SMALL,
    "both, different codes": {"qform": 1, "sform": 4},
    "not RAS": {"affine": FLIPPED},
    "no codes": {"affine": np.eye(4), "sform": 0, "qform": 0, "units": ("unknown", "unknown")},
    "microns": {"units": ("micron", "unknown")},
}


@pytest.mark.parametrize("name", CASES)
def test_s15_an_identity_model_gives_the_file_back(tmp_path, name):
    source = save(tmp_path / "scan_m00.nii.gz", volume(1), **CASES[name])
    save(tmp_path / "scan_m12.nii.gz", volume(1), **CASES[name])
    output = identity(read_series(tmp_path))
    written = output.save(tmp_path / "out.nii.gz")
    before, after = nibabel.load(source), nibabel.load(written)
    reach = float(np.ptp(before.get_fdata()))
    assert np.abs(after.get_fdata() - before.get_fdata()).max() <= 1e-5 * reach
    assert after.get_data_dtype() == np.float32
    assert np.array_equal(after.affine, before.affine)
    assert np.allclose(after.header.get_qform(), before.header.get_qform(), atol=1e-4)
    for key in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim"):
        assert np.array_equal(after.header[key], before.header[key]), key
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units() and after.shape == before.shape
    assert bytes(after.header["descrip"]).startswith(b"longtake SADM synthetic")
    sidecar = read_json_object(tmp_path / "out.json")
    assert sidecar["synthetic"] is True and "not for clinical use" in sidecar["use"]
    assert sidecar["times"] == [24] and sidecar["unit"] == "months" and sidecar["weights"] == "0" * 64
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    for part in ("std", "lower", "upper"):
        assert nibabel.load(tmp_path / f"out_{part}.nii.gz").shape == before.shape


def test_s15_several_times_become_a_fourth_axis_with_step_and_unit(tmp_path):
    for month in (0, 12):
        save(tmp_path / f"scan_m{month:02d}.nii.gz", volume(month), OBLIQUE, qform=0)
    series = read_series(tmp_path)
    even = nibabel.load(identity(series, (18, 24, 30)).save(tmp_path / "even.nii"))
    assert even.shape == (9, 8, 5, 3) and even.header.get_xyzt_units() == ("mm", "sec")
    assert even.header.get_zooms()[3] == pytest.approx(6 / 12 * 365.25 * 86400)
    assert np.array_equal(even.affine, nibabel.load(tmp_path / "scan_m00.nii.gz").affine)
    uneven = nibabel.load(identity(series, (18, 20, 30)).save(tmp_path / "uneven.nii.gz"))
    assert uneven.header.get_xyzt_units()[1] == "unknown"


def test_s15_a_file_with_time_is_a_series_by_its_own_step(tmp_path):
    frames = np.stack([volume(k) for k in range(4)], -1)
    path = save(tmp_path / "four.nii.gz", frames)
    image = nibabel.load(path)
    image.header.set_zooms((2, 2, 5, 7200))
    nibabel.save(image, path)
    series = read_series(path)
    assert series.times.tolist() == [0, 2, 4, 6] and series.unit == "hours" and series.grid == (5, 8, 9)
    image.header.set_zooms((2, 2, 5, 1))
    image.header.set_xyzt_units("mm", "unknown")
    nibabel.save(image, path)
    again = read_series(path)
    assert again.unit == "cycle" and again.times.tolist() == [0, 0.25, 0.5, 0.75] and "one cycle" in again.notes[0]


def test_s15_nifti_2_stays_nifti_2(tmp_path):
    for month in (0, 6):
        nibabel.save(nibabel.Nifti2Image(volume(month), OBLIQUE), tmp_path / f"s_m{month}.nii")
    made = nibabel.load(identity(read_series(tmp_path)).save(tmp_path / "out.nii"))
    assert isinstance(made, nibabel.Nifti2Image) and np.array_equal(made.affine, OBLIQUE)


def test_visits_on_another_grid_are_resampled_onto_the_first_and_that_is_told(tmp_path):
    fine = np.diag([1.0, 1.0, 5.0, 1.0])
    ramp = np.fromfunction(lambda x, y, z: 10 * x + y, (16, 16, 4)).astype(np.float32)
    save(tmp_path / "s_m0.nii.gz", ramp, fine)
    coarse = np.diag([2.0, 2.0, 5.0, 1.0])
    coarse[:2, 3] = 4
    save(tmp_path / "s_m6.nii.gz", ramp[4::2, 4::2], coarse)
    series = read_series(tmp_path)
    inside = series.valid[1]
    assert not inside.all() and inside[:, 5:14, 5:14].all() and "resampled (linear)" in series.notes[0]
    assert np.abs(series.images[1] - series.images[0])[:, 5:13, 5:13].max() < 1e-3


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:400]), "damaged or cut off"),
        (lambda p: p.write_bytes(b"no image"), "damaged or cut off"),
        (lambda p: save(p, np.full((4, 4, 4), np.nan)), "NaN or infinite"),
        (lambda p: _patch(p, 88, 0), "each size must be greater than 0"),
        (lambda p: _patch(p, 84, np.nan), "each size must be greater than 0"),
        (lambda p: _patch(p, 280, 0), "cannot be turned round"),
        (lambda p: nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), p), "complex"),
        (lambda p: _patch(p, 280, 9), "contradicts itself"),
    ],
)
def test_damaged_and_impossible_files_are_told_in_one_line(tmp_path, break_it, words):
    path = save(tmp_path / "s_m0.nii.gz", volume())
    break_it(path)
    with pytest.raises(UserError, match=words) as caught:
        read_nifti(path)
    assert "\n" not in str(caught.value) and "s_m0.nii.gz" in str(caught.value)


def _patch(path, offset, value):
    """A float of the header changed."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(gzip.compress(bytes(data)))


def test_a_file_of_somebody_elses_is_not_replaced(tmp_path):
    series = Series("s", np.stack([volume(k).T for k in (0, 1)]), [0, 6], "months")
    (tmp_path / "out.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="out.json is in the way"):
        identity(series).save(tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()
    (tmp_path / "out.json").unlink()
    identity(series).save(tmp_path / "out.nii.gz")
    identity(series).save(tmp_path / "out.nii.gz", overwrite=True)


def test_the_headers_of_the_written_file_do_not_quantise(tmp_path):
    source = read_nifti(save(tmp_path / "a.nii.gz", volume(), scale=(0.5, 1)))
    values = np.random.default_rng(0).random(source.frames.shape[1:]).astype(np.float32)
    write_nifti(tmp_path / "b.nii.gz", values, source.geometry)
    assert np.array_equal(read_nifti(tmp_path / "b.nii.gz").frames[0], values)
