"""longtake train speech: the commands, a whole tiny run from data and from a prepared file, and that it learns."""

import json

import pytest
import torch
from longtake import UserError
from longtake.cli import main
from longtake.graphs import Split
from longtake.speech import data, train, vocoder
from longtake.speech.data import Corpus
from longtake.speech.prosody_fm import convert
from longtake.speech.prosody_fm import train as recipe
from longtake.speech.prosody_fm.speak import speak
from longtake.train import Settings
from speech_data import write_corpus

TINY = {
    "layers": 1,
    "channels": 32,
    "inner": 32,
    "inner_duration": 32,
    "token_width": 16,
    "pitch_hidden": 16,
    "aligner": 16,
    "speaker_width": 16,
    "field": (32, 32),
    "field_width": 16,
    "field_middle": 1,
    "dropout": 0.0,
    "prenet_dropout": 0.0,
    "field_dropout": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def corpora(folder):
    source = data.prepared(data.load_corpora(folder))
    seen = Corpus.of(source, "train", "cpu")
    return seen, Corpus.of(source, "val", "cpu", voices=seen.voices)


def test_the_commands_share_the_minutes(tmp_path):
    commands = train.whole(tmp_path / "p", 6.0, tmp_path / "out", tmp_path / "voc")
    assert [command[5] for command in commands] == ["prosody", "valle_r", "vocoder"]
    minutes = [float(command[command.index("--minutes") + 1]) for command in commands]
    assert sum(minutes) == pytest.approx(6.0 - 3 * train.BESIDE, abs=0.01)
    assert minutes[0] / sum(minutes) == pytest.approx(0.5, abs=0.01)
    without = train.whole(tmp_path / "p", 6.0, tmp_path / "out")
    assert len(without) == 2 and float(without[0][without[0].index("--minutes") + 1]) > minutes[0]
    with pytest.raises(UserError, match="more than 0.9 minutes"):
        train.whole(tmp_path / "p", 0.5, tmp_path / "out", tmp_path / "voc")


def test_prepared_data_train_as_the_corpora_do_and_the_prior_speaks(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "SMALL", {**recipe.SMALL, **TINY})
    file = tmp_path / "speech.prepared"
    assert main(["train", "speech", "--data", str(folder), "--prepare", str(file)]) == 0
    told = ["--stages", "prosody", "--steps", "2", "--batch", "2", "--frames", "40", "--precision", "no"]
    for name, source in (("one", ["--data", str(folder)]), ("two", ["--prepared", str(file)])):
        assert main(["train", "speech", *source, *told, "--out", str(tmp_path / name)]) == 0
    assert "stop figures of prosody" in capsys.readouterr().out
    priors = [convert.load(tmp_path / name / "prosody" / "prior") for name in ("one", "two")]
    one, two = (prior.state_dict() for prior in priors)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "one" / "prosody" / "prosody.png").is_file()
    said = speak(priors[0], "wˈʌn, tˈuː.", voice="bob")
    assert said.mel.isfinite().all()


def test_the_vocoder_stage_leaves_a_smaller_generator(folder, tmp_path, capsys):
    torch.manual_seed(0)
    teacher = vocoder.Vocoder(vocoder.Config(channels=32)).eval()
    vocoder.save(teacher, tmp_path / "teacher")
    told = ["--stages", "vocoder", "--vocoder", str(tmp_path / "teacher"), "--vocoder-steps", "2", "--precision", "no"]
    assert main(["train", "speech", "--data", str(folder), *told, "--out", str(tmp_path)]) == 0
    made = vocoder.load(tmp_path / "vocoder" / "prior")
    stays = sum(made.config.hidden) / sum(size >> stage for size in [16] for stage in range(4) for _ in range(9))
    assert made.config.blocks == teacher.config.blocks and 0.3 < stays < 1
    assert "stop figures of the vocoder" in capsys.readouterr().out
    begun, record = tmp_path / "vocoder" / "begun.safetensors", (tmp_path / "vocoder" / "vocoder.jsonl").read_text()
    written = begun.stat().st_mtime_ns
    assert main(["train", "speech", "--data", str(folder), *told, "--out", str(tmp_path)]) == 0
    assert begun.stat().st_mtime_ns == written and (tmp_path / "vocoder" / "vocoder.jsonl").read_text() == record
    assert "decibels" in record


def test_prepare_needs_data(tmp_path, capsys):
    told = ["train", "speech", "--prepared", str(tmp_path / "p"), "--prepare", str(tmp_path / "q")]
    assert main(told) == 2 and "give --data" in capsys.readouterr().err


def test_a_small_model_learns_a_small_corpus(corpora, tmp_path):
    """ACCEPTANCE B5, in small: what is left of durations and mean mels halves, and the flow falls with them."""
    seen, unseen = corpora
    config = recipe.config_for(seen, **TINY)
    settings = Settings(120, 4e-3, warmup=10, ema=0.9, checkpoint_every=50)
    model = recipe.train_model(seen, unseen, tmp_path, settings, batch=6, frames=48, limits=(), seed=0, config=config)
    rows = [json.loads(line) for line in (tmp_path / "prosody.jsonl").read_text().splitlines()]
    first = recipe.ProsodyFM(config).eval()
    from longtake.train import Dice

    with torch.inference_mode():
        batch = unseen.crops(Dice(0, 0, torch.device("cpu")), 16, 48)
        before = first(*recipe.inputs(batch, Dice(1, 0, torch.device("cpu")), 1.1)).tolist()
        after = model(*recipe.inputs(batch, Dice(1, 0, torch.device("cpu")), 1.1)).tolist()
    floor = 0.919  # of the prior's loss: a mean that is exactly right
    assert after[0] < 0.5 * before[0] and after[1] - floor < 0.5 * (before[1] - floor) and after[2] < before[2]
    assert rows[-1]["step"] == 120


def test_calibrated_durations_sum_to_the_real_ones(corpora):
    seen, _ = corpora
    model = recipe.ProsodyFM(recipe.config_for(seen, **TINY)).eval()
    assert recipe.calibrate(model, seen) > 1.5
    assert recipe.calibrate(model, seen) == pytest.approx(1.0, abs=1e-4)


def test_the_recipes_losses_can_be_recorded(corpora, tmp_path, monkeypatch):
    from longtake import train as loop

    seen = []
    monkeypatch.setattr(loop, "fit", lambda model, loss, *_, **__: seen.append((model, loss)))
    config = recipe.config_for(corpora[0], **TINY)
    recipe.train_model(*corpora, tmp_path, Settings(1), batch=2, frames=32, limits=(20,), seed=0, config=config)
    model, loss = seen[0]
    assert isinstance(loss, Split)
    shapes = {tuple(tuple(x.shape) for x in loss.draw(step)) for step in range(12)}
    assert len(shapes) == 2  # one a length of text
    drawn = loss.draw(3)
    model.eval()
    assert torch.equal(loss.value(model, *drawn), loss.value(model, *loss.draw(3)))
