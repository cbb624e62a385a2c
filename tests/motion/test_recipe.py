"""From labelled clips to a prior and its table: ``longtake train motion``, ``longtake motion``, ``evaluate motion``."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from longtake import cli
from longtake.motion import captions, evaluator, train
from longtake.motion.data import Clip, load_motions, mirror
from longtake.motion.kinematics import HUMANML
from longtake.motion.pipeline import LongMotionPipeline
from longtake.motion.representation import HUMANML3D
from motion_data import swaying, write_motions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def prior(data):
    """A prior of the recipe's own making, tiny and hardly trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "MODEL", {**train.MODEL, "width": 32, "feedforward": 64, "layers": 1})
        patch.setattr(train, "FRAMES_A_STEP", 400)
        command = ["train", "motion", "--data", str(data), "--out", str(data / "run"), "--precision", "no"]
        assert cli.main([*command, "--steps", "2"]) == 0
        assert cli.main([*command, "--steps", "4"]) == 0
    return data / "run/prior"


def test_clips_are_read_as_they_were_written(data):
    clips = load_motions(data)
    assert [clip.action for clip in clips[:9]] == ["walk"] * 8 + ["raise-up-left-hand"]
    assert torch.allclose(clips[1].joints, swaying(0, 57, 0.7), atol=6e-5)
    features = clips[1].features()
    there = HUMANML3D.align(clips[1].joints.double(), published=False).joints[:-1]
    assert torch.allclose(HUMANML3D.recover(features.double()), there, atol=1e-5)


def test_a_mirrored_clip_is_the_other_hand_and_twice_mirrored_the_same():
    clip = Clip("a", "raise-up-left-hand", "normal", swaying(1, 50, 0.3))
    other = clip.mirrored()
    assert other.action == "raise-up-right-hand"
    assert torch.allclose(other.joints, swaying(2, 50, 0.3), atol=1e-6)
    assert torch.equal(mirror(other.joints), clip.joints)
    assert captions.mirrored_action("walk-turn-right") == "walk-turn-left"


def test_no_held_out_wording_is_trained_on():
    for action, words in captions.ACTIONS.items():
        for style in captions.MANNERS:
            texts = captions.captions_of(action, style)
            assert texts and not set(texts) & set(words.held_out)
    rng = np.random.default_rng(0)
    drawn = {captions.caption("walk", "sad", rng) for _ in range(200)}
    assert drawn <= set(captions.captions_of("walk", "sad")) and len(drawn) > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.array(["moonwalk"] * 9)}, "labels without a caption: moonwalk"),
        ({"joints": np.array(["a", "b"])}, "expected pelvis, l_hip"),
        ({"root": None}, "is damaged or no motion data"),
    ],
)
def test_other_files_are_refused_by_name(data, tmp_path, change, message):
    from longtake.errors import UserError

    with np.load(data / "bandai_val.npz") as archive:
        table = {**{key: archive[key] for key in archive.files}, **change}
    np.savez(tmp_path / "bandai_val.npz", **{key: value for key, value in table.items() if value is not None})
    with pytest.raises(UserError, match=message):
        load_motions(tmp_path, "val")


def test_text_layer_begins_with_left_and_right_apart():
    from longtake.motion.model import MDM
    from longtake.text import SentenceEncoder

    encoder = SentenceEncoder()
    texts = [text for name in captions.ACTIONS for text in captions.captions_of(name, "normal")[:6]]
    rows = [encoder.encode([text])[0, 0] for text in texts]
    pair = torch.stack([encoder.encode([f"a person raises the {side} hand"])[0, 0] for side in ("left", "right")])
    torch.manual_seed(0)
    model = MDM(**train.MODEL)

    def angle():
        out = model.embed_text(pair)
        return float(torch.nn.functional.cosine_similarity(out[0], out[1], dim=0).detach())

    assert torch.nn.functional.cosine_similarity(pair[0], pair[1], dim=0) > 0.95
    train.spread_text(model, rows)
    assert angle() < 0.9


def test_the_recipe_resumes_and_its_prior_makes_motion(prior):
    record = [json.loads(line) for line in (prior.parent / "mdm.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record] == [2, 4] and all(row["loss_held_out"] > 0 for row in record)
    pipe = LongMotionPipeline.from_prior(prior)
    out = pipe("0: a person walks | 50: a person waves", 100, num_inference_steps=2)
    assert out.joints.shape == (100, 22, 3) and out.captions[0] == "a person walks"
    assert pipe.space.config.longest_row == train.LENGTHS[-1]


def test_the_command_writes_each_file_and_refuses_mistakes_in_one_line(prior, tmp_path, capsys):
    command = ["motion", "0s: a person walks | 3s: waves", "--prior", str(prior), "--steps", "2"]
    outs = [str(tmp_path / "take.npz"), str(tmp_path / "take.bvh")]
    assert cli.main([*command, "--seconds", "5", "--out", outs[0], "--out", outs[1]]) == 0
    with np.load(outs[0]) as saved:
        assert saved["joints"].shape == (100, 22, 3)
    assert "Frames: 100" in (tmp_path / "take.bvh").read_text()
    capsys.readouterr()
    assert cli.main([*command, "--seconds", "5", "--out", outs[0]]) == 2
    assert "already exists" in capsys.readouterr().err
    for wrong in (["--seconds", "0"], ["--frames", "1"], ["--seconds", "2"], ["--steps", "0"], ["--out", "a.fbx"]):
        assert cli.main([*command, "--out", str(tmp_path / "other.npz"), *wrong]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in lines if line.startswith("longtake: error:")]) == 1
    assert not list(tmp_path.glob("other*"))


def test_a_stopped_command_goes_on_to_the_same_motion(prior, tmp_path):
    command = ["motion", "0s: a person walks | 3s: waves", "--prior", str(prior), "--steps", "4", "--seconds", "5"]
    assert cli.main([*command, "--out", str(tmp_path / "whole.npz")]) == 0
    original = LongMotionPipeline.__call__

    class Stop(Exception):
        pass

    def dies(pipe, step, *_):
        if step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LongMotionPipeline, "__call__", lambda self, *a, **k: original(self, *a, callback_on_step_end=dies, **k)
        )
        assert cli.main([*command, "--out", str(tmp_path / "part.npz")]) == 1
    assert not (tmp_path / "part.npz").exists()
    assert cli.main([*command, "--out", str(tmp_path / "part.npz"), "--resume"]) == 0
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "part.npz") as part:
        assert np.array_equal(whole["joints"], part["joints"])


def test_the_evaluator_learns_and_the_table_is_made(data, prior, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluator, "FEWEST_CLIPS", 3)
    command = ["evaluate", "motion", "--data", str(data), "--prior", str(prior), "--out", str(tmp_path)]
    command += ["--evaluator-steps", "40", "--seeds", "2"]
    assert cli.main([*command, "--sequences", "1", "--steps", "2", "--methods", "longtake", "joined", "plain"]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["evaluator"]["accuracy_real_held_out"] > 0.9
    rows = {row["label"]: row for row in table["rows"]}
    assert rows["longtake (canvas)"]["windows"] == 8 and rows["longtake (canvas)"]["peak_jerk"] > 0
    assert rows["prior, wordings never seen"]["peak_jerk"] is None
    moves = json.loads((tmp_path / "moves.json").read_text())
    walk = next(row for row in moves["rows"] if row["label"] == "walk")
    assert walk["real"]["speed"] == pytest.approx(1.2, rel=0.02) and walk["clips"] == 8 and walk["made"]["jerk"] > 0
    assert moves["nearest_right_on_real"] == 1.0 and 0 <= moves["summary"]["action_right"] <= 1
    assert "| walk " in (tmp_path / "moves.md").read_text()
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert "| joined clips | 1 | 8 |" in [re.sub(" +", " ", line)[:24] for line in lines]


def test_changed_data_of_the_same_count_is_another_evaluator(data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "FEWEST_CLIPS", 3)
    clips, val = load_motions(data), load_motions(data, "val")
    settings = evaluator.EvaluatorSettings(2, 4, 3e-3, 16, 8, 0)
    judge, report = evaluator.load_or_train(clips, val, tmp_path, settings)
    moved = [replace(clips[0], joints=clips[0].joints + 0.1), *clips[1:]]
    assert evaluator.load_or_train(moved, val, tmp_path, settings)[1]["hash"] != report["hash"]
    monkeypatch.setattr(evaluator, "train", lambda *_: pytest.fail("trained again"))
    again, same = evaluator.load_or_train(clips, val, tmp_path, settings)
    windows, _ = evaluator.windows_of(val, judge.actions)
    assert same == report and torch.equal(judge.classify(windows)[1], again.classify(windows)[1])


def test_frechet_distance_of_a_set_to_itself_is_nothing_and_grows_with_a_shift():
    points = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    assert abs(evaluator.frechet_distance(points, points)) < 1e-6
    assert evaluator.frechet_distance(points, points + 1.0) == pytest.approx(6.0, abs=1e-6)


def test_left_and_right_are_named_in_the_skeleton():
    assert sum(name.startswith("left_") for name in HUMANML.names) == 8
