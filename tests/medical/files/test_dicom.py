"""DICOM: a series in any order, its scale and place; what is written back says that it is derived and synthetic."""

import json

import numpy as np
import pydicom
import pytest
from longtake import UserError
from longtake.medical.files.dicom import read_dicom
from longtake.medical.files.open import read_series
from medical_tiny import identity
from medical_trees import dicom, volume

DATA = volume(1, (7, 6, 5), 0, 500).T.round().astype(np.float32) // 2 * 2  # even numbers: a slope of 2 keeps them


def test_slices_are_sorted_by_position_whatever_the_files_are_called(tmp_path):
    image = read_dicom(dicom(tmp_path / "a", DATA, order=[4, 0, 3, 1, 2]))
    assert np.array_equal(image.frames[0], DATA) and image.kind == "MR" and image.scaled
    assert image.geometry.spacing == pytest.approx((2.2, 2.2, 6.5))
    assert image.geometry.affine[:3, 3] == pytest.approx([20, 30, 4])


def test_folders_of_one_patient_are_visits_by_their_dates(tmp_path):
    dicom(tmp_path / "later", DATA + 2, date="20190601")
    dicom(tmp_path / "first", DATA, date="20190304")
    series = read_series(tmp_path)
    assert series.subject == "P7" and series.sessions == ["first", "later"] and series.times.tolist() == [0, 89]
    assert series.geometry.kind == "dicom" and series.modality == "MR"


def test_an_unknown_spacing_is_told(tmp_path):
    for name, date in (("a", "20190304"), ("b", "20190404")):
        dicom(tmp_path / name, DATA, date=date, spacing=None, slope=None)
    series = read_series(tmp_path)
    assert not series.geometry.known and "spacing of the voxels is unknown" in series.notes[-1]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"series": "2"}, r"holds 2 series \(series 1, series 2\)"),
        ({"Modality": "CT", "slope": None}, None, "RescaleSlope is missing"),
        ({"Modality": "MR", "slope": (0, 1)}, None, "RescaleSlope is 0"),
        ({"spacing": (0, 2)}, None, "must be greater than 0"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, None, "cut off|one grey slice"),
        ({"ImagePositionPatient": [0, 0, 0]}, None, "several images of one place"),
        ({"ImagePositionPatient": None, "InstanceNumber": 1}, None, "order is unknown"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_one_series_is_refused(tmp_path, first, second, words):
    first = dict(first)
    if first.get("slope") == (0, 1):
        first["slope"], first["RescaleSlope"] = (1, 0), 0
    dicom(tmp_path / "a", DATA, **first)
    if second is not None:
        dicom(tmp_path / "a", DATA, **second)
    with pytest.raises(UserError, match=words) as caught:
        read_dicom(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_missing_slice_and_a_torn_file_are_told(tmp_path):
    folder = dicom(tmp_path / "a", DATA, order=[0, 1, 2, 3, 4])
    (folder / "IM10002.dcm").rename(tmp_path / "away")
    with pytest.raises(UserError, match="6.5 to 13 mm apart"):
        read_dicom(folder)
    torn = folder / "IM10001.dcm"
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(UserError, match="IM10001.dcm cannot be read as DICOM, it is damaged or cut off"):
        read_dicom(folder)


def test_visits_with_and_without_a_slope_cannot_be_compared(tmp_path):
    dicom(tmp_path / "a", DATA, date="20190304")
    dicom(tmp_path / "b", DATA, date="20190404", slope=None)
    with pytest.raises(UserError, match="has no slope for its values"):
        read_series(tmp_path)


def test_s15_dicom_comes_back_as_dicom_marked_synthetic(tmp_path):
    for name, date in (("a", "20190304"), ("b", "20190404")):
        dicom(tmp_path / "scans" / name, DATA, date=date)
    output = identity(read_series(tmp_path / "scans"), (60.0,))
    folder = output.save(tmp_path / "out")
    assert json.loads((folder / "longtake.json").read_text())["synthetic"] is True
    again = read_dicom(folder / "days60_mean")
    assert np.abs(again.frames[0] - DATA).max() <= 0.01 and np.allclose(
        again.geometry.affine, read_dicom(tmp_path / "scans" / "a").geometry.affine
    )
    one = pydicom.dcmread(next((folder / "days60_mean").iterdir()))
    source = pydicom.dcmread(next((tmp_path / "scans" / "a").iterdir()))
    assert list(one.ImageType)[:2] == ["DERIVED", "SECONDARY"] and "synthetic" in one.SeriesDescription
    assert "not for clinical use" in one.ImageComments and one.SeriesInstanceUID != source.SeriesInstanceUID
    assert {path.name for path in folder.iterdir()} == {
        "days60_mean", "days60_std", "days60_sample_01", "days60_sample_02", "longtake.json",
    }  # fmt: skip
    first = (folder / "days60_mean" / "IM0002.dcm").read_bytes()
    output.save(tmp_path / "out", overwrite=True)
    assert (folder / "days60_mean" / "IM0002.dcm").read_bytes() == first
