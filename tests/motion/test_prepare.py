"""What a training needs in one file: the same weights as from the data, without a text encoder, and small enough."""

import json

import numpy as np
import pytest
import torch
from longtake import cli
from longtake.errors import UserError
from longtake.motion import train
from longtake.motion.captions import captions_of, mirrored_action
from longtake.motion.corpus import Corpus, steady
from longtake.motion.data import Clip, features_of, load_motions, mirrored_features, paced
from longtake.motion.metrics import frame_jerk
from longtake.motion.pair.data import KINDS
from longtake.motion.prepare import Prepared
from longtake.motion.representation import HUMANML3D
from longtake.motion.space import MotionSpace
from longtake.motion.strides import repeated
from longtake.train import Dice
from longtake.weights import load_state
from motion_data import swaying, write_motions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def file(data):
    assert cli.main(["train", "motion", "--data", str(data), "--prepare", str(data / "motion.zip")]) == 0
    return data / "motion.zip"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(train, "MODEL", {**train.MODEL, "width": 32, "feedforward": 64, "layers": 2})
    monkeypatch.setattr(train, "FRAMES_A_STEP", 400)


def weights(folder):
    return load_state(next(folder.rglob("*.safetensors")))


def test_prepared_clips_are_the_recorded_ones_to_a_tenth_of_a_millimetre(data, file):
    prepared = Prepared.read(file)
    for split, mine in (("train", prepared.train), ("val", prepared.val)):
        given = load_motions(data, split)
        assert [(a.action, a.style) for a in given] == [(b.action, b.style) for b in mine]
        assert all(float((a.joints - b.joints).abs().max()) < 6e-5 for a, b in zip(given, mine, strict=True))
    labels = {(action, clip.style) for clip in given for action in (clip.action, mirrored_action(clip.action))}
    texts = {text for pair in labels for text in captions_of(*pair)} | {t for k in KINDS.values() for t in k.captions}
    assert texts <= set(prepared.texts)


def test_a_way_longer_than_sixteen_bits_comes_back(tmp_path):
    from longtake.motion.prepare import pack

    class Words:
        def encode(self, texts):
            return torch.ones(1, 1, 4)

    far = swaying(0, 200, 0.0)
    far[..., 2] *= 3.0
    far = far + torch.tensor([-40.0, 0.0, 7.0])
    clips = [Clip("a", "walk", "normal", swaying(0, 30, 0.5)), Clip("b", "walk", "tired", far)]
    back = Prepared.unpack(*pack(clips, clips[:1], Words()))
    assert float((back.train[1].joints - far).abs().max()) < 6e-5


def test_training_with_prepared_data_gives_the_weights_of_training_with_the_data(data, file, tmp_path, monkeypatch):
    common = ["train", "motion", "--steps", "3", "--precision", "no"]
    assert cli.main([*common, "--data", str(data), "--out", str(tmp_path / "data")]) == 0
    from longtake.text import SentenceEncoder

    offers = {name: getattr(SentenceEncoder, name) for name in ("encode", "vectors")}
    for name in offers:
        monkeypatch.setattr(SentenceEncoder, name, lambda *_: pytest.fail("a text was encoded"))
    assert cli.main([*common, "--prepared", str(file), "--out", str(tmp_path / "file")]) == 0
    one, two = weights(tmp_path / "data/prior/model"), weights(tmp_path / "file/prior/model")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    block = ["--pairs", "--prior", str(tmp_path / "file/prior")]
    assert cli.main([*common, *block, "--prepared", str(file), "--out", str(tmp_path / "file")]) == 0
    for name, offer in offers.items():
        monkeypatch.setattr(SentenceEncoder, name, offer)
    assert cli.main([*common, *block, "--data", str(data), "--out", str(tmp_path / "data")]) == 0
    one, two = weights(tmp_path / "data/pair"), weights(tmp_path / "file/pair")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(file, tmp_path):
    common = ["train", "motion", "--precision", "no", "--ends-at", "1", "--prepared", str(file)]
    assert cli.main([*common, "--steps", "4", "--out", str(tmp_path / "whole")]) == 0
    for steps in ("2", "4"):
        assert cli.main([*common, "--steps", steps, "--out", str(tmp_path / "parts")]) == 0
    one, two = weights(tmp_path / "whole/prior/model"), weights(tmp_path / "parts/prior/model")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_training_ends_when_its_time_is_over_and_tells_what_its_prior_is_worth(file, tmp_path, capsys):
    words = ["train", "motion", "--prepared", str(file), "--precision", "no", "--minutes", "0.02"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    record = [json.loads(line) for line in (tmp_path / "mdm.jsonl").read_text().splitlines()]
    assert record[-1]["seconds"] < 60 and 0 < record[-1]["error_held_out"] < record[-1]["loss_held_out"]
    stop = json.loads((tmp_path / "stop.json").read_text())
    walk = stop["kinds"]["walk"]
    assert walk["real"]["speed"] == pytest.approx(1.2, rel=0.01) and walk["made"]["speed"] > 0
    assert walk["real"]["bones"] >= 0 and stop["largest_real_jerk"] > 0 and "run" not in stop["kinds"]
    assert "walk: speed" in capsys.readouterr().out


def test_the_commands_of_the_whole_share_the_minutes(tmp_path):
    prior, block = train.whole(tmp_path / "motion.zip", 9.0, tmp_path / "out")
    minutes = [float(words[words.index("--minutes") + 1]) for words in (prior, block)]
    assert sum(minutes) == pytest.approx(9.0 - 2 * train.START) and minutes[0] == pytest.approx(3 * minutes[1])
    assert "--pairs" in block and block[block.index("--prior") + 1] == str(tmp_path / "out/prior")
    with pytest.raises(UserError, match="at least 1.7 minutes"):
        train.whole(tmp_path, 1.0, tmp_path)


def test_what_does_not_go_together_is_refused_in_one_line(data, file, tmp_path, capsys):
    for words, told in (
        (["--prepared", str(file), "--prepare", str(tmp_path / "b.zip")], "give --data, not --prepared"),
        (["--prepared", str(data / "bandai_val.npz")], "is no file of longtake train --prepare"),
        (["--prepared", str(file), "--batch-frames", "20"], "--batch-frames must be at least 160"),
    ):
        assert cli.main(["train", "motion", *words, "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_of_many_clips_and_of_mirror_images_are_those_of_each():
    clips = [Clip(str(n), "walk", "normal", swaying(n % 3, 40 + n % 2, 0.3 * n)) for n in range(6)]
    for clip, features in zip(clips, features_of(clips), strict=True):
        assert torch.allclose(features, clip.features(), atol=1e-6)
        assert torch.allclose(mirrored_features(features), clip.mirrored().features(), atol=1e-6)


def test_a_clip_at_another_pace_goes_the_same_way_in_another_time():
    clip = Clip("a", "walk", "normal", swaying(0, 81, 0.3))
    fast = paced(clip, 1.25)
    assert len(fast.joints) == 65 and torch.equal(paced(clip, 1.0).joints, clip.joints)
    assert float((fast.joints[4] - clip.joints[5]).abs().max()) < 1e-5
    exact = swaying(0, 2, 0.3 + 2 * np.pi * 1.25 * 20 / 20.0)[0]
    exact[:, 2] += 1.2 * 1.25
    assert float((fast.joints[20] - exact).abs().max()) < 2e-3


def test_batches_are_windows_of_the_clips_with_captions_of_their_labels():
    clips = [
        Clip(str(n), ("walk", "wave-left-hand")[n % 2], "tired", swaying(n % 2, 50 + n, 0.4 * n)) for n in range(10)
    ]
    labels = {(action, "tired") for clip in clips for action in (clip.action, mirrored_action(clip.action))}
    names = [text for pair in sorted(labels) for text in captions_of(*pair)]
    texts = {text: torch.full((3,), 1.0 + number) for number, text in enumerate(names)}
    space = MotionSpace().fit(features_of(clips))
    corpus = Corpus.of(clips, texts, space, mirror=True)
    seen, bare, empty = set(), 0, 0
    for step in range(8):
        batch = corpus.batch(64, 16, Dice(0, step, CPU))
        again = corpus.batch(64, 16, Dice(0, step, CPU))
        assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))
        for motion, length, vector in zip(*batch, strict=True):
            assert 20 <= int(length) <= 60 and not motion[int(length) :].any()
            place = (corpus.features - motion[0]).abs().sum(1).argmin()
            assert torch.equal(corpus.features[place : place + int(length)], motion[: int(length)])
            if not vector.any():
                empty += 1
                continue
            row = int((corpus.starts <= place).sum()) - 1
            action = [*clips, *(clip.mirrored() for clip in clips)][row].action
            text = names[int(vector[0]) - 1]
            assert text in captions_of(action, "tired")
            bare += text in captions_of(action, "tired", manners=False)
            seen.add(action)
    assert seen == {action for action, _ in labels}
    assert 2 <= empty <= 30 and 15 <= bare <= 60, "of 128 rows a tenth and three tenths"


def test_a_repeated_stride_goes_on_without_a_jerk_and_straight_on():
    clip = Clip("a", "run", "normal", swaying(0, 61, 0.3))
    long = repeated(clip.features(), 160)
    assert torch.equal(long[:20], clip.features()[:20])
    joints = HUMANML3D.recover(long)
    far = joints[-1, 0] - joints[0, 0]
    assert float(far[2]) == pytest.approx(1.2 * 159 / 20, rel=0.02) and abs(float(far[0])) < 0.02
    real = float(frame_jerk(clip.joints, 20).amax())
    assert float(frame_jerk(joints, 20).amax()) < 1.3 * real
    assert repeated(long, 160) is None and repeated(clip.features()[:20], 160) is None
    still = clip.features() + torch.linspace(0, 3, 60)[:, None]
    assert repeated(still, 160) is None, "what never comes back has no stride"


def test_the_steady_part_of_a_walk_is_where_it_is_fast():
    features = torch.zeros(90, 263)
    features[30:, 2] = 0.06
    start, length = steady(features, "walk")
    assert 25 <= start <= 40 and start + length == 90
    assert steady(features, "wave-left-hand") == (0, 90) and steady(features[:30], "walk") == (0, 30)
