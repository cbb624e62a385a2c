"""VALL-E R as a voice: named speakers, a recording, carry; with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speech_codes
import torch
from longtake.cli import main
from longtake.errors import UserError
from longtake.records import read
from longtake.speech import evaluate
from longtake.speech import vocoder as vocoders
from longtake.speech.backends.valle import ValleVoice
from longtake.speech.backends.voice import Utterance
from longtake.speech.codec.mels import MelCodec
from longtake.speech.data import load_zip
from longtake.speech.longform.engine import LongForm
from longtake.speech.reference import read_reference
from longtake.speech.text.script import Unit, Writer
from longtake.speech.valle_r import train
from longtake.speech.valle_r.aligner import Aligner
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.corpus import Coded
from longtake.speech.valle_r.decode import Limits
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import Size
from longtake.speech.valle_r.prior import ValleR
from speech_data import write_zip
from speech_prior import generator

UNITS = (Unit("old", "ˈoʊld"), Unit("one,", "wˈʌn", ","), Unit("well.", "wˈɛl", "."))


@pytest.fixture(scope="module")
def voice() -> ValleVoice:
    torch.manual_seed(0)
    codec = MelCodec(latent=16, entries=64, width=32, depth=1, decoder_width=32, decoder_depth=1).eval()
    codec.books.normal_()
    size = Size(32, 4, 2, 64)
    ar, nar = AR(size, entries=64, around=1, place=True, dwell=8), NAR(size, entries=64, tie="same", stage=8)
    voices = train.choose_voices(Coded.of(speech_codes.flat(6), codec), ["ann", "bob"])
    model = ValleR(codec, ar, nar, voices, Aligner.fit(speech_codes.flat(40)))
    model.limits = Limits(vowel=6, consonant=4)
    return ValleVoice.of(model, generator())


def test_a_chunk_is_said_with_times_of_its_words(voice: ValleVoice) -> None:
    said = voice.say(Utterance(UNITS, seed=3))
    assert len(said.words) == 3 and said.words[-1][1] <= len(said.samples) and said.exact
    assert all(a < b for a, b in said.words)
    assert np.array_equal(said.samples, voice.say(Utterance(UNITS, seed=3)).samples)
    assert not np.array_equal(said.samples, voice.say(Utterance(UNITS, seed=3, speaker="bob")).samples)
    with pytest.raises(UserError, match="takes no steps"):
        voice.say(Utterance(UNITS, steps=3))


def test_a_long_take_is_made_with_and_without_carry(voice: ValleVoice) -> None:
    for carry in ("none", "tail"):
        form = LongForm(voice, Writer("words"), carry=carry, name=voice.kind)
        words = [
            w.text
            for packet in form.stream("The old captain waited. Then he went home again.", 1)
            for w in packet.words
        ]
        assert words == "The old captain waited. Then he went home again.".split()
    with pytest.raises(UserError, match="rate of single words"):
        list(LongForm(voice, Writer("words")).stream("<speak><prosody rate='2'>a</prosody></speak>"))


@pytest.fixture
def prior(voice: ValleVoice, tmp_path: Path) -> Path:
    voice.save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def speech(path: Path, rate: int = 8_000, channels: int = 2, seconds: float = 2.0, level: float = 0.3) -> Path:
    time = np.arange(round(seconds * rate)) / rate
    wave = level * np.sin(2 * np.pi * 150 * time) * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    soundfile.write(path, np.stack([wave] * channels, 1), rate)
    return path


def test_a_recording_of_8_khz_stereo_is_a_voice_of_a_batch(prior: Path, tmp_path: Path, monkeypatch) -> None:
    """C9, and the batch's door with a reference voice as input file."""
    monkeypatch.chdir(tmp_path)
    speech(tmp_path / "me.wav")
    common = {"modality": "speech", "prompt": "Old one.", "inputs": {"reference": "me.wav"}}
    given = {"prior": str(prior), "phonemes": "words"}
    jobs = [
        {"id": "told", **common, "parameters": {**given, "reference_text": "one old"}},
        {"id": "untold", **common, "parameters": given},
    ]
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    assert main(["batch", "jobs.jsonl", "--out", "runs"]) != 0
    rows = {row["id"]: row for row in read(Path("runs/results.jsonl"))}
    assert rows["told"]["status"] == "done" and soundfile.info("runs/told.wav").frames > 1000
    assert "reference_text" in json.dumps(rows["untold"])


@pytest.mark.parametrize(
    ("kind", "what"),
    [("silent", "is silent"), ("short", "1 to 30 s"), ("torn", "no sound|cut off"), ("text", "no sound"),
     ("folder", "no file"), ("long", "1 to 30 s"), ("nan", "no numbers")],
)  # fmt: skip
def test_a_recording_that_is_none_is_one_line(tmp_path: Path, kind: str, what: str) -> None:
    """C9: silence, a truncated file."""
    path = tmp_path / "me.wav"
    if kind == "silent":
        speech(path, level=0.0)
    elif kind == "short":
        speech(path, seconds=0.2)
    elif kind == "long":
        speech(path, seconds=40)
    elif kind == "torn":
        speech(tmp_path / "me.flac")
        (tmp_path / "me.flac").write_bytes((tmp_path / "me.flac").read_bytes()[:1500])
        path = tmp_path / "me.flac"
    elif kind == "text":
        path.write_text("no sound")
    elif kind == "nan":
        soundfile.write(path, np.full(16_000, np.nan), 8_000, subtype="FLOAT")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=what) as told:
        read_reference(path)
    assert "\n" not in str(told.value)


def test_a_recording_is_brought_to_the_models_rate_and_level(tmp_path: Path) -> None:
    wave = read_reference(speech(tmp_path / "me.wav", 44_100, 1, level=0.01))
    assert abs(len(wave) / 22_050 - 2.0) < 0.15 and float(wave.square().mean().sqrt()) == pytest.approx(0.07, rel=0.01)


def test_the_evaluation_has_rows_of_a_prior_of_valle_r(voice: ValleVoice, tmp_path: Path) -> None:
    told = load_zip(write_zip(tmp_path / "aligned_val.zip"), "val")[:2]

    class Same:
        def vector(self, wave: np.ndarray, rate: int) -> np.ndarray:
            return np.array([1.0, 0.0])

        def alike(self, wave: np.ndarray, rate: int, reference: np.ndarray) -> float:
            return float(len(wave) > 0)

    voice.model.save(tmp_path / "prior")
    vocoders.save(generator(), tmp_path / "vocoder")
    made = evaluate._voice(tmp_path / "prior", tmp_path / "vocoder")
    assert made.kind == "valle_r" and evaluate._both(made, ["ann", "zoe"]) == ["ann"]
    judges = evaluate.Judges(lambda wave, rate: "one two", Same(), told)
    row = judges.row("made", told, evaluate._maker(made, None, None))
    assert row.sentences == 2 and row.similarity == 1.0 and row.length > 0 and row.rtf > 0
    with pytest.raises(UserError, match="none of the voices"):
        evaluate._both(made, ["zoe"])


def test_speakers_of_no_training_are_judged_beside_a_voice_of_the_prior(voice: ValleVoice, tmp_path: Path) -> None:
    told = load_zip(write_zip(tmp_path / "human_val.zip", copies=2), "val")
    heard: list[str | None] = []

    class Same:
        def vector(self, wave, rate):
            return np.array([1.0, 0.0])

        def alike(self, wave, rate, reference):
            return float(reference[0])

    class Watched(ValleVoice):
        def say(self, asked, state=None):
            heard.append(asked.speaker)
            return super().say(asked, state)

    judge = evaluate.Judges(lambda wave, rate: "one two", Same(), told)
    watched = Watched.of(voice.model, generator())
    rows = list(evaluate._clones(judge, "it", watched, told, 3))
    assert [(row.label, row.sentences) for row in rows] == [("real", 3), ("it, as ann", 3), ("it, cloned", 3)]
    assert evaluate._steps(watched, [4, 10]) == [None]
    assert [evaluate._told(steps) for steps in (None, 4)] == ["", ", 4 steps"]
    assert heard == ["ann"] * 3 + [None] * 3 and watched.recorded is not None
    assert all(evaluate._prompt(one, told).voice == one.voice and evaluate._prompt(one, told) != one for one in told)
    with pytest.raises(UserError, match="has one recording"):
        evaluate._prompt(told[0], told[:1])
