"""ACDC: Info.cfg by key, phases in their order round the beat."""

import pytest
from longtake import UserError
from longtake.medical.files.open import Choice, read_series, read_subjects
from medical_trees import acdc


def test_s13_phases_run_from_end_diastole_to_end_systole(tmp_path):
    acdc(tmp_path)
    series = read_series(tmp_path)
    assert series.images[:, 1, 4, 4].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and series.unit == "cycle"
    assert series.times.tolist() == [k / 12 for k in range(8)] and series.modality == "cardiac"
    assert series.labels[0].sum() == 27 and series.labels[-1].sum() == 27 and not series.labels[1:-1].any()


def test_s13_es_before_ed_runs_over_the_end_of_the_file(tmp_path):
    acdc(tmp_path, ed=9, es=3)
    series = read_series(tmp_path)
    assert series.images[:, 1, 4, 4].tolist() == [9, 10, 11, 12, 1, 2, 3]
    assert series.times == pytest.approx([k / 12 for k in range(7)])


def test_s13_keys_may_stand_in_any_order(tmp_path):
    acdc(tmp_path, order=("NbFrame", "ES", "ED"))
    assert len(read_series(tmp_path)) == 8


def test_s13_without_the_4d_file_the_two_phases_are_read(tmp_path):
    acdc(tmp_path, four=False)
    series = read_series(tmp_path)
    assert series.images[:, 1, 4, 4].tolist() == [1, 8] and series.times == pytest.approx([0, 7 / 12])
    assert any("no 4-D file" in note for note in series.notes)


def test_s13_the_file_says_how_many_frames_there_are(tmp_path):
    acdc(tmp_path, said=30)
    series = read_series(tmp_path)
    assert series.times[1] == pytest.approx(1 / 12) and any("NbFrame 30" in note for note in series.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"es": None}, "Info.cfg has no key ES"),
        ({"ed": None}, "Info.cfg has no key ED"),
        ({"es": 12, "frames": 12, "said": 9, "four": False}, "ES is frame 12 of 9"),
        ({"es": 1}, "both frame 1"),
    ],
)
def test_s13_what_is_wrong_is_told_with_file_and_key(tmp_path, changes, words):
    acdc(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        read_series(tmp_path)


def test_s13_several_patients_are_chosen_by_name(tmp_path):
    acdc(tmp_path, "patient001")
    acdc(tmp_path, "patient002", ed=9, es=3)
    with pytest.raises(UserError, match="2 subjects"):
        read_series(tmp_path)
    assert len(read_series(tmp_path, Choice(subject="patient002"))) == 7
    assert [series.subject for series in read_subjects(tmp_path)] == ["patient001", "patient002"]
