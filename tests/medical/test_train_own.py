"""A prior from one's own scans: `longtake train medical --data` reads what `longtake medical` reads; early stopping."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from longtake.cli import main
from longtake.errors import UserError
from longtake.journal import atomic_path
from longtake.medical import corpus
from longtake.medical.corpus import BLENDED, Group, Subject, by_own_span
from longtake.medical.files.open import Choice
from longtake.medical.net import LongitudinalNet
from longtake.medical.pipeline import LongitudinalPipeline
from longtake.train import Dice, Settings, Trainer, fit
from medical_nets import SMALL
from medical_trees import bids, dicom, save, volume

CPU = torch.device("cpu")
SHAPE = (16, 16, 3)
LINE = ["--simulated", "0", "--precision", "no", "--checkpoint-minutes", "0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """The net that training makes, at a size for tests."""
    monkeypatch.setattr("longtake.medical.net.LongitudinalNet", lambda **given: LongitudinalNet(**(given or SMALL)))


def study(root, people=3):
    """A BIDS tree whose sessions are labelled against time order; the last subject has one visit."""
    for number in range(1, people + 1):
        bids(root, f"{number:02d}", shape=SHAPE)
    return bids(root, f"{people + 1:02d}", {"A": ("1900-01-01", 0)}, shape=SHAPE)


def beats(root):
    """Two ACDC patients with images, of a 4-D file."""
    for name in ("patient001", "patient002"):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ES: 3\nED: 1\nNbFrame: 4\nGroup: NOR\n")
        save(folder / f"{name}_4d.nii.gz", np.stack([volume(n, SHAPE) for n in range(4)], -1))
    return root


def listed(root):
    """Pictures of two subjects with a table."""
    from PIL import Image

    rows = []
    for subject in "ab":
        for number, day in enumerate((0, 3, 9)):
            name = f"{subject}{number}.png"
            root.mkdir(exist_ok=True)
            Image.fromarray(volume(number, (16, 16, 1))[..., 0].astype(np.uint8)).save(root / name)
            rows.append((subject, f"v{number}", name, day, "days"))
    with open(root / "longtake.csv", "w", newline="") as file:
        csv.writer(file).writerows([("subject", "session", "path", "time", "unit"), *rows])
    return root


def series(root):
    """Two visits of a DICOM patient."""
    for name, date in (("a", "20190304"), ("b", "20190404")):
        dicom(root / name, volume(len(name), SHAPE, 0, 500).T, date=date)
    return root


TREES = {
    "bids": (study, 3, "days"),
    "acdc": (beats, 2, "cycle"),
    "table": (listed, 2, "days"),
    "dicom": (series, 1, "days"),
}


@pytest.mark.parametrize("kind", TREES)
def test_s19_a_prior_is_trained_from_every_kind_of_place_and_forecasts(here, small, kind, capsys):
    make, people, unit = TREES[kind]
    make(here / "scans")
    found, notes = corpus.own(here / "scans", Choice())
    assert len(found) == people and all(one.unit == unit and len(one.times) > 1 for one in found)
    assert (kind == "bids") == any("left out" in note and "sub-04" in note for note in notes)
    line = ["train", "medical", "--data", "scans", "--steps", "2", "--judge-every", "2", *LINE, "--out", "run"]
    assert main(line) == 0
    told = capsys.readouterr().out
    assert ("nobody is held back" in told) == (people == 1)
    pipe = LongitudinalPipeline.from_prior(here / "run" / "prior")
    assert pipe.calibration.known(found[0].modality).startswith("none" if people == 1 else "split conformal on 1 ")
    one = ["--subject", {"bids": "sub-01", "acdc": "patient001", "table": "a", "dicom": "P7"}[kind]]
    at = ["--at", "0.7", "--unit", "cycle"] if unit == "cycle" else ["--at", "90", "--unit", "days"]
    asked = ["medical", "scans", *one, *at, "--samples", "4", "--steps", "2", "--prior", "run/prior", "--out", "p.npz"]
    assert main(asked) == 0
    with np.load("p.npz") as held:
        assert np.isfinite(held["mean"]).all() and (held["std"] > 0).any()


def test_s19_twenty_steps_that_were_cut_resume_to_the_same_prior_and_predict_nifti(here, small, monkeypatch):
    study(here / "study")
    line = ["train", "medical", "--data", "study", "--steps", "20", "--judge-every", "5", *LINE, "--out"]
    assert main([*line, "whole"]) == 0
    write = Trainer.checkpoint

    def killed(self):
        row = write(self)
        if self.done == 10:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(Trainer, "checkpoint", killed)
    assert main([*line, "cut"]) == 130
    monkeypatch.setattr(Trainer, "checkpoint", write)
    assert not (here / "cut" / "prior").exists()
    assert main([*line, "cut"]) == 0
    for name in ("net/diffusion_pytorch_model.safetensors", "calibration.json"):
        assert (here / "cut" / "prior" / name).read_bytes() == (here / "whole" / "prior" / name).read_bytes()
    asked = ["medical", "study", "--subject", "01", "--at", "24", "--unit", "months", "--samples", "4", "--steps", "2"]
    assert main([*asked, "--prior", "cut/prior", "--out", "pred.nii.gz"]) == 0
    mean, std = (nibabel.load(name).get_fdata() for name in ("pred.nii.gz", "pred_std.nii.gz"))
    assert mean.shape == SHAPE and std.max() > 0
    assert json.loads((here / "pred.json").read_text())["synthetic"] is True


def test_a_prior_is_measured_anew_without_training(here, small):
    study(here / "study")
    line = ["train", "medical", "--data", "study", *LINE]
    assert main([*line, "--steps", "1", "--out", "run"]) == 0
    first = here / "run" / "prior"
    told = (first / "calibration.json").read_text()
    (first / "calibration.json").write_text(json.dumps({"factors": {}, "spread": {}, "patients": {}}))
    assert main([*line, "--calibrate", "--start-from", "run/prior", "--out", "again"]) == 0
    again = here / "again" / "prior"
    assert (again / "calibration.json").read_text() == told
    weights = "net/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (first / weights).read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "nowhere"], "does not exist"),
        (["--data", "alone"], "no subject has two visits"),
        (["--data", "study", "--modality", "FLAIR"], "FLAIR"),
        (["--data", "sets", "--run", "1"], "say run themselves"),
        (["--data", "study", "--judge-every", "0"], "--judge-every"),
        (["--data", "study", "--rate", "2"], "--rate"),
        (["--data", "study", "--simulated", "-1"], "--simulated"),
        (["--data", "study", "--start-from", "nowhere"], "nowhere"),
        (["--data", "study", "--calibrate"], "--start-from"),
        (["--data", "study", "--lighter"], "--start-from"),
        (["--data", "study", "--lighter", "--calibrate", "--start-from", "scans-small"], "without --calibrate"),
    ],
)
def test_a_training_that_cannot_be_is_one_line_and_leaves_nothing(here, small, capsys, words, told):
    study(here / "study", people=1)
    bids(here / "alone", "01", {"A": ("1900-01-01", 0)}, shape=SHAPE)
    (here / "sets").mkdir()
    (here / "sets" / "cxr_train.npz").write_bytes(b"PK")
    before = {path.name for path in here.iterdir()}
    assert main(["train", "medical", *LINE, "--steps", "2", "--out", "run", *words]) == 2
    said = capsys.readouterr().err
    assert told in said.splitlines()[-1] and {path.name for path in here.iterdir()} == before


def test_scans_of_any_range_come_as_grey_values_and_back(here):
    study(here / "study")
    found, _ = corpus.own(here / "study", Choice())
    assert all(one.images.dtype == np.float16 for one in found)
    low, high = found[0].percentiles().mean(0)
    assert low == pytest.approx(0, abs=0.5) and high == pytest.approx(255, abs=0.5)
    read = corpus.load(corpus.save(here / "data.zip", found))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(found, read, strict=True))
    group = Group.of([part for one in found for part in one.slabs(3)], 4, turns=False)
    assert float(group.batch(Dice(0, 0, CPU)).visits.abs().max()) < 3


def test_times_of_an_unknown_kind_are_measured_by_the_span_of_its_own_visits():
    """As `scale_of` does when a series is forecast; of one visit as they are."""
    delta, observed = torch.tensor([[-6.0, -2.0, 9.0], [-6.0, 5.0, 5.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert torch.equal(by_own_span(delta, observed), torch.tensor([[-1.5, -0.5, 2.25], [-6.0, 5.0, 5.0]]))


def person(number, level):
    """Visits that hold one level each, 10 apart, from ``level``."""
    images = np.stack([np.full((1, 16, 16), level + 10 * k, np.uint8) for k in range(4)])
    images[:, :, :2, :8], images[:, :, :2, 8:] = 0, 255
    return Subject(images, np.arange(4.0), None, "cxr", "days", number)


def test_a_blend_lays_history_over_history_and_target_over_target_and_is_marked():
    people = [person(0, 40), person(1, 140)]
    group = Group.of(people, 4000, turns=False, blends=True)
    drawn = Dice(0, 1, CPU)
    subject = torch.zeros(4000, dtype=torch.long)
    picked = torch.tensor([[0, 1, 2]]).expand(4000, -1)
    values, shown = group.scaled(subject, picked, torch.ones(4000, 2, dtype=torch.bool))
    mixed, _, whole = group.blended(values, shown, drawn)
    assert abs(float(whole.float().mean()) - (1 - BLENDED)) < 0.03
    assert torch.equal(mixed[whole], values[whole]) and shown.all()
    middle = mixed[~whole][:, :, 0, 8, 8] * 127.5
    assert (middle[:, 2] > 55 - 1e-3).all() and (middle[:, 2] < 125).all()
    assert (middle.std(0) > 1).all(), "another share each time"
    # a history is never later than its target in either patient: the blend's target is the brightest of its visits
    assert (middle[:, 2:] > middle[:, :2]).all()


def test_bends_move_what_is_seen_and_scored_alike():
    dice = np.random.default_rng(0)
    image = dice.integers(0, 255, (1, 1, 32, 32)).astype(np.uint8)
    same = Subject(np.repeat(image, 3, 0), np.arange(3.0), None, "cxr", "days", 0)
    straight, bent = (Group.of([same], 8, turns=False, bends=bends).batch(Dice(0, 0, CPU)) for bends in (False, True))
    assert not torch.equal(straight.target, bent.target)
    assert torch.equal(bent.visits[:, 0], bent.target), "all visits of a row are bent alike"


def test_the_weights_of_the_best_judgement_are_kept_and_the_record_says_which(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)
    judged = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.0}
    seen = {}

    def judge(network, step):
        seen[step] = network.weight.detach().clone()
        return {"far": judged[step]}

    def loss(network, step):
        return (network(torch.ones(1, 1)) - step).square().mean()

    run = Settings(8, 1e-1, warmup=1, checkpoint_every=2, graphs=False)
    made = fit(model, loss, run, tmp_path, name="m", on_checkpoint=judge, best="far")
    assert torch.equal(made.weight, seen[4]) and not torch.equal(seen[4], seen[8])
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["best_step"] for row in rows] == [2, 4, 4, 4]
    again = fit(torch.nn.Linear(1, 1, bias=False), loss, run, tmp_path, name="m", on_checkpoint=judge, best="far")
    assert torch.equal(again.weight, seen[4]), "resumed when all is done: the same"
    with atomic_path(tmp_path / "m.best") as partial:
        partial.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"m\.best is missing, damaged"):
        fit(torch.nn.Linear(1, 1, bias=False), loss, run, tmp_path, name="m", on_checkpoint=judge, best="far")
