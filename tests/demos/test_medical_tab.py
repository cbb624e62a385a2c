"""The medical tab: a viewer that needs no other file, the montage, what the readers noticed."""

from pathlib import Path

from longtake.demos.form import Form
from longtake.demos.medical_tab import TAB, show
from longtake.domain import domain_of
from longtake.medical.files.open import read_series
from medical_tiny import identity


def test_a_result_is_a_viewer_a_montage_and_its_notes():
    domain = domain_of("medical")
    series = read_series(domain.input_path("scans", Path("sample")))
    series.notes.append("visit <b> lies far away")
    frame, montage, told = show(identity(series, (24,), seed=1), [], None)
    assert "srcdoc" in frame and "sandbox" in frame and "growing" not in frame
    assert montage.startswith("<img") and "not for clinical use" in told and "&lt;b&gt;" in told


def test_the_form_starts_from_the_sample_that_ships(page):
    form = Form(page.bench, domain_of("medical"))
    assert form.names[0] == "seed" and form.names[-2:] == ["scans", "truth"] and "at" in form.names
    values = form._first_values(form.examples[0])
    line = form.line_of(values)
    assert line["inputs"]["scans"] and line["parameters"]["at"] == "24"
    assert set(TAB.kinds) <= set(domain_of("medical").file_kinds())
