"""BIDS: visits by time, whatever tables and labels say."""

import numpy as np
import pytest
from longtake import UserError
from longtake.medical.files.open import Choice, read_series, read_subjects
from medical_trees import bids, save, table, volume


def test_s14_sessions_sort_by_time_not_by_label(tmp_path):
    series = read_series(bids(tmp_path))
    assert series.sessions == ["ses-B", "ses-A"] and series.times.tolist() == [0, 75] and series.unit == "days"
    assert np.array_equal(series.images[0], volume(0).T) and series.geometry.kind == "bids"


def test_s14_dates_alone_give_days(tmp_path):
    root = bids(tmp_path, sessions={"1": ("1900-01-30T09:00:00", "n/a"), "2": ("1900-01-01T21:00:00", "n/a")})
    assert read_series(root).times.tolist() == [0, 28.5]


def test_s14_scans_tsv_serves_where_there_is_no_sessions_tsv(tmp_path):
    root = bids(tmp_path, sessions={"01": None, "02": None})
    for label, date in (("01", "1900-02-01T09:00:00"), ("02", "1900-01-01T09:00:00")):
        name = f"sub-01_ses-{label}"
        table(root / "sub-01" / f"ses-{label}" / f"{name}_scans.tsv", ("filename", "acq_time"),
              (f"anat/{name}_T1w.nii.gz", date))  # fmt: skip
    series = read_series(root)
    assert series.sessions == ["ses-02", "ses-01"] and series.times.tolist() == [0, 31]


def test_s14_a_column_of_the_users_and_its_unit(tmp_path):
    root = bids(tmp_path)
    rows = ("session_id", "scan_age", "days"), ("ses-B", 61.5, 0), ("ses-A", 60.0, 75)
    table(root / "sub-01" / "sub-01_sessions.tsv", *rows)
    series = read_series(root, Choice(time_column="scan_age", unit="years"))
    assert series.sessions == ["ses-A", "ses-B"] and series.times.tolist() == [0, 1.5]
    assert series.times_in("months") == pytest.approx([0, 18])
    with pytest.raises(UserError, match="no column 'age'.*scan_age"):
        read_series(root, Choice(time_column="age"))


def test_s14_a_visit_without_image_is_missing_and_keeps_its_time(tmp_path):
    root = bids(tmp_path, sessions={"01": ("1900-01-01", 0), "03": ("1900-03-05", 63)})
    rows = ("ses-01", "1900-01-01", 0), ("ses-02", "n/a", 31.5), ("ses-03", "1900-03-05", 63)
    table(root / "sub-01" / "sub-01_sessions.tsv", ("session_id", "acq_time", "days"), *rows)
    series = read_series(root)
    assert series.times.tolist() == [0, 31.5, 63] and series.observed.tolist() == [True, False, True]
    assert not series.images[1].any() and series.sessions[1] == "ses-02"


def test_s14_oasis_labels_are_days(tmp_path):
    root = bids(tmp_path, "OAS30001", sessions={"d0129": None, "d0000": None})
    assert read_series(root).times.tolist() == [0, 129]


def test_s14_a_subject_with_one_visit_is_read(tmp_path):
    assert len(read_series(bids(tmp_path, sessions={"01": ("1900-01-01", 0)}))) == 1


def test_s14_two_runs_are_chosen_or_listed(tmp_path):
    root = bids(tmp_path, extra=("_run-01", "_run-02"))
    with pytest.raises(UserError, match=r"2 images, .*run-01_T1w.nii.gz, .*run-02.*--run"):
        read_series(root)
    assert len(read_series(root, Choice(run=2))) == 2
    with pytest.raises(UserError, match="no run 3"):
        read_series(root, Choice(run=3))


def test_s14_mixed_kinds_are_chosen_or_refused(tmp_path):
    root = bids(tmp_path)
    save(root / "sub-01" / "ses-A" / "anat" / "sub-01_ses-A_FLAIR.nii.gz", volume(4))
    with pytest.raises(UserError, match="mixes kinds of images, FLAIR, T1w"):
        read_series(root)
    assert len(read_series(root, Choice(modality="T1w"))) == 2
    with pytest.raises(UserError, match="of the kind PET"):
        read_series(root, Choice(modality="PET"))


def test_s14_masks_of_a_derivative_come_along_and_subjects_are_chosen(tmp_path):
    root = bids(bids(tmp_path), "02")
    mask = np.zeros((9, 8, 5))
    mask[2:4, 2:4, 2] = 1
    place = root / "derivatives" / "masks" / "sub-01" / "ses-A" / "anat"
    save(place / "sub-01_ses-A_label-lesion_mask.nii.gz", mask)
    assert read_series(root, Choice(subject="01")).labels.sum((1, 2, 3)).tolist() == [0, 4]
    with pytest.raises(UserError, match="holds 2 subjects"):
        read_series(root)
    assert [one.subject for one in read_subjects(root)] == ["sub-01", "sub-02"]


def test_s14_no_time_is_told_with_the_sessions(tmp_path):
    with pytest.raises(UserError, match="ses-1, ses-2: no time in sessions.tsv"):
        read_series(bids(tmp_path, sessions={"1": None, "2": None}))
