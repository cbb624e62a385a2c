"""Folders of one's own: tables, names that tell the time, pictures, npz sets; and what must not be mixed."""

import numpy as np
import pytest
from longtake import UserError
from longtake.medical.files.open import Choice, read_series, read_subjects
from longtake.medical.files.table import read_table, write_table
from medical_tiny import identity
from medical_trees import bids, save, volume
from PIL import Image


def test_a_table_says_what_is_where_and_when(tmp_path):
    for k in range(3):
        save(tmp_path / "img" / f"v{k}.nii.gz", volume(k))
    (tmp_path / "longtake.csv").write_text(
        "subject,session,path,time,unit,observed,sex\n"
        "p1,b,img/v1.nii.gz,70.5,years,1,F\np1,a,img/v0.nii.gz,70,years,,F\np1,c,,71,years,0,F\np2,a,img/v2.nii.gz,3,days,1,M\n"
    )
    series = read_series(tmp_path, Choice(subject="p1"))
    assert series.sessions == ["a", "b", "c"] and series.times.tolist() == [0, 0.5, 1] and series.unit == "years"
    assert series.observed.tolist() == [True, True, False]
    visits = read_table(tmp_path / "longtake.csv")
    write_table(tmp_path / "again.csv", visits)
    assert read_table(tmp_path / "again.csv") == visits


def test_other_names_of_columns_are_known_and_dates_are_days(tmp_path):
    for k in range(2):
        save(tmp_path / f"v{k}.nii.gz", volume(k))
    (tmp_path / "scans.tsv").write_text(
        "subject_id\timage_path\tdate\nx\tv0.nii.gz\t2019-03-04\nx\tv1.nii.gz\t2019-03-14\n"
    )
    assert read_series(tmp_path).times.tolist() == [0, 10]


@pytest.mark.parametrize(
    ("names", "times", "unit"),
    [
        (("visit_m00", "visit_m06"), [0, 6], "months"),
        (("p_d0000", "p_d0129"), [0, 129], "days"),
        (("p-week2", "p-week8"), [0, 6], "weeks"),
        (("scan_2019-03-04", "scan_20190314"), [0, 10], "days"),
        (("adni_bl", "adni_m12"), [0, 12], "months"),
    ],
)
def test_names_of_files_tell_the_time(tmp_path, names, times, unit):
    for k, name in enumerate(names):
        save(tmp_path / f"{name}.nii.gz", volume(k))
    series = read_series(tmp_path)
    assert series.times.tolist() == times and series.unit == unit


def test_pictures_are_slices(tmp_path):
    for k in range(2):
        Image.fromarray(volume(k, (12, 10, 1))[..., 0].T.astype(np.uint8)).save(tmp_path / f"x_d{k}.png")
    assert read_series(tmp_path).images.shape == (2, 1, 10, 12)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)).save(tmp_path / "x_d2.png")
    with pytest.raises(UserError, match="picture of colours"):
        read_series(tmp_path)


def test_npz_sets_give_every_patient(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8)).astype(np.uint8)
    days, patients = np.array([0, 2, 2, 0, 7]), np.array([4, 4, 4, 9, 9])
    np.savez(tmp_path / "cxr_val.npz", images=images, day=days, patient=patients)
    first, second = read_subjects(tmp_path / "cxr_val.npz")
    assert first.times.tolist() == [0, 2, 2.01] and "repeats" in first.notes[0] and first.modality == "cxr"
    assert second.subject == "cxr-9" and np.array_equal(second.images[:, 0], images[3:])
    assert len(read_subjects(tmp_path)) == 2
    np.savez(tmp_path / "bad.npz", other=images)
    with pytest.raises(UserError, match="needs the arrays images and patient"):
        read_subjects(tmp_path / "bad.npz")


def test_volumes_keep_the_slices_that_all_visits_have(tmp_path):
    images = np.ones((1, 2, 3, 8, 8), np.uint8)
    valid = np.array([[[True, True, False], [True, True, True]]])
    np.savez(tmp_path / "cardiac_val.npz", images=images, slice_valid=valid, time=np.array([[0, 0.4]]),
             patient=np.array([1]), lv=images > 0)  # fmt: skip
    (series,) = read_subjects(tmp_path / "cardiac_val.npz")
    assert series.images.shape == (2, 2, 8, 8) and series.unit == "cycle" and series.labels.all()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"v_m0": {}, "v_m6": {"array": volume(1, (9, 8, 1))}}, "single slice among volumes"),
        ({"v_m0": {}, "v_m6": {"scale": (0.5, 0)}}, "has no slope for its values"),
        ({"v_m0": {}, "w_m0": {}}, "both at 0 months"),
        ({"first": {}, "second": {}}, "not known when first.nii.gz was made: write longtake.csv"),
        ({"v_m0": {}, "v_d6": {}}, "not known when"),
        ({}, "holds no scans"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, files, words):
    for name, how in files.items():
        how = dict(how)
        save(tmp_path / f"{name}.nii.gz", how.pop("array", volume(0)), **how)
    if words is None:
        assert len(read_series(tmp_path)) == 2
        return
    with pytest.raises(UserError, match=words) as caught:
        read_series(tmp_path)
    assert "\n" not in str(caught.value)


def test_grids_that_do_not_touch_and_unknown_spacing_are_refused(tmp_path):
    far = np.diag([2.0, 2, 5, 1])
    save(tmp_path / "v_m0.nii.gz", volume(0))
    far[:3, 3] = 900
    save(tmp_path / "v_m6.nii.gz", volume(0), far)
    with pytest.raises(UserError, match="no voxel in common"):
        read_series(tmp_path)
    blank = {"affine": np.eye(4), "sform": 0, "qform": 0, "units": ("unknown", "unknown")}
    save(tmp_path / "v_m0.nii.gz", volume(0), **blank)
    save(tmp_path / "v_m6.nii.gz", volume(0, (9, 8, 4)), **blank)
    with pytest.raises(UserError, match="without a known spacing"):
        read_series(tmp_path)
    save(tmp_path / "v_m6.nii.gz", volume(0), **blank)
    assert "unknown" in read_series(tmp_path).notes[0]
    with pytest.raises(UserError, match="--spacing known asks for it"):
        read_series(tmp_path, Choice(spacing="known"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject,time\na,1\n", "no column path"),
        ("path,time\nv.nii.gz,1\n", "line 2: the path .*v.nii.gz does not exist"),
        ("path,time\nx.nii.gz,soon\n", "must be a number or a date"),
        ("path,unit\nx.nii.gz,days\n", "has no time"),
        ("path,time,unit\nx.nii.gz,1,moons\n", "unit of time is one of"),
        ("path,date\nx.nii.gz,04.03.2019\n", "a date is written 2019-03-04|must be a number or a date"),
        ("path\n", "has no rows"),
    ],
)
def test_tables_that_say_too_little_are_told_with_the_line(tmp_path, text, words):
    save(tmp_path / "x.nii.gz", volume(0))
    (tmp_path / "longtake.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_series(tmp_path)


def test_bids_in_gives_bids_derivatives_out(tmp_path):
    output = identity(read_series(bids(tmp_path / "in")), (120.0, 150.5))
    folder = output.save(tmp_path / "derivatives")
    described = (folder / "dataset_description.json").read_text()
    assert '"derivative"' in described and "GeneratedBy" in described
    place = folder / "sub-01" / "ses-days150p5" / "anat"
    assert {path.name for path in place.iterdir()} == {
        f"sub-01_ses-days150p5_desc-sadm{name}_T1w.{kind}"
        for name in ("", "std", "lower", "upper") for kind in ("json", "nii.gz")
    }  # fmt: skip
    with pytest.raises(UserError, match="holds other files"):
        output.save(tmp_path / "in", overwrite=True)
