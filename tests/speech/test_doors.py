"""``longtake speech``: command, resume, redo, batch, Python, page, with a tiny prior of random weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from longtake import LongSpeechPipeline
from longtake.cli import main
from longtake.domain import domain_of, installed
from longtake.errors import UserError
from longtake.records import read
from longtake.speech.longform.loudness import Meter
from processes import run as run_python
from speech_prior import write
from speech_voice import Toy

TEXT = "Good evening, said the captain. Was that a question? It was not a question at all, he said."


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield write(tmp_path_factory.mktemp("speech") / "prior")
    torch.set_num_threads(before)


@pytest.fixture
def say(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(text: str | None, *words: str) -> int:
        return main(["speech", *([] if text is None else [text]), "--prior", str(prior), "--phonemes", "words", *words])

    return run


def test_the_command_writes_every_kind_of_file(say, capsys) -> None:
    kinds = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".srt", ".vtt", ".json", ".chapters"]
    outs = [word for kind in kinds for word in ("--out", f"a{kind}")]
    assert say(TEXT, *outs, "--preview", "a.png", "--loudness", "-19", "--voice", "b") == 0
    assert "speech" in capsys.readouterr().out
    wav, rate = soundfile.read("a.wav")
    assert rate == 22_050 and np.array_equal(wav, soundfile.read("a.flac")[0])
    told = json.loads(Path("a.json").read_text())
    assert [row["word"] for row in told["words"]] == TEXT.split() and told["samples"] == len(wav)
    assert told["voice"] == "b" and told["seed"] == 0
    assert Path("a.srt").read_text().count("-->") == 3 and Path("a.vtt").read_text().startswith("WEBVTT")
    assert Path("a.png").stat().st_size > 10_000
    domain = domain_of("speech")
    for kind in kinds:
        domain.file_kinds()[kind].whole(Path(f"a{kind}"))


def test_without_the_shipped_prior_one_line_says_what_is_missing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longtake.weights.shipped_priors", lambda package: {})
    assert main(["speech", "Good evening.", "--out", "hello.wav"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and "longtake train speech" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["speech", ""], "nothing to say"),
        (["speech"], "text"),
        (["speech", "...", "--out", "a.wav"], "no words"),
        (["speech", "😀 مرحبا", "--out", "a.wav"], "no words"),
        (["speech", "<speak>a<b></speak>", "--out", "a.wav"], "line 1, column"),
        (["speech", "a", "--voice", "nobody"], "no speaker"),
        (["speech", "a", "--out", "a.aac"], ".wav, .flac"),
        (["speech", "a", "--rate", "9"], "at most 4"),
        (["speech", "a", "--sentence", "1"], "--redo"),
        (["speech", "a", "--redo", ".", "--sentence", "1"], "no finished run"),
        (["speech", "a", "--text", "none.txt"], "one of them"),
        (["speech", "--text", "none.txt"], "does not exist"),
        (["speech", "--text", "torn.epub"], "no whole EPUB"),
        (["speech", "a", "--lexicon", "bad.lex"], "line 1"),
        (["speech", "a", "--reference", "a.wav"], "does not speak as a recording does"),
        (["speech", "a", "--reference-text", "x"], "--reference"),
        (["speech", "[pause:soon] a"], "60 s at most"),
        (["speech", "a", "--vocoder", "none.pt"], "does not exist"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(prior, tmp_path, monkeypatch, capsys, words, what) -> None:
    """C9."""
    monkeypatch.chdir(tmp_path)
    Path("torn.epub").write_bytes(b"PK\3\4 torn")
    Path("bad.lex").write_text("word 字\n")
    before = sorted(tmp_path.iterdir())
    assert main([*words, "--prior", str(prior), "--phonemes", "words"]) == 2
    said = capsys.readouterr().err.strip()
    assert what in said and len(said.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def stopped(words: list[str], after: int) -> int:
    code = (
        "import signal, sys, torch; torch.set_num_threads(1); from longtake import progress\n"
        "stock = progress.Progress.at\n"
        f"def at(self, done, of):\n    stock(self, done, of)\n"
        f"    if done == {after}: signal.raise_signal(signal.SIGINT)\n"
        "progress.Progress.at = at\n"
        "from longtake.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_python("-c", code, *words, env=env).returncode


def test_a_stopped_take_goes_on_to_the_same_bytes(say, prior, capsys) -> None:
    """C3."""
    assert say(TEXT, "--out", "whole.wav", "--carry", "tail") == 0
    words = ["speech", TEXT, "--prior", str(prior), "--phonemes", "words", "--carry", "tail", "--out", "a.wav"]
    assert stopped(words, 2) == 130
    assert Path("a.unfinished.wav").exists() and not Path("a.wav").exists()
    assert main([*words, "--seed", "9", "--resume"]) == 2
    assert main([*words, "--resume"]) == 0
    assert Path("a.wav").read_bytes() == Path("whole.wav").read_bytes() and not Path("a.unfinished.wav").exists()
    Path("a.wav").write_bytes(b"torn")
    assert main([*words, "--resume"]) == 0
    assert Path("a.wav").read_bytes() == Path("whole.wav").read_bytes()


def test_a_sentence_is_redone_and_the_rest_stays(say, capsys) -> None:
    assert say(TEXT, "--out", "a.wav", "--out", "a.json") == 0
    assert say(TEXT, "--redo", "a.wav.run", "--sentence", "2", "--seed", "5", "--out", "b.wav", "--out", "b.json") == 0
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in "ab")
    sounds = [soundfile.read(f"{name}.wav")[0] for name in "ab"]
    for number, same in ((0, True), (1, False), (2, True)):
        parts = []
        for told, sound in zip((one, two), sounds, strict=True):
            rows = [row for row in told["words"] if row["sentence"] == number]
            parts.append(sound[round(rows[0]["start"] * 22_050) : round(rows[-1]["end"] * 22_050)])
        assert (len(parts[0]) == len(parts[1]) and np.array_equal(*parts)) is same
    gaps = []
    for told in (one, two):
        rows = told["words"]
        gaps.append(
            [b["start"] - a["end"] for a, b in zip(rows, rows[1:], strict=False) if a["sentence"] != b["sentence"]]
        )
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-9)
    edited = TEXT.replace("Was that a question?", "Was it really a question?")
    assert say(edited, "--redo", "b.wav.run", "--sentence", "2", "--out", "c.wav") == 0
    capsys.readouterr()
    assert say(edited, "--redo", "a.wav.run", "--sentence", "1", "--out", "d.wav") == 2
    assert "only a redone sentence may differ" in capsys.readouterr().err
    assert say(TEXT, "--redo", "a.wav.run", "--sentence", "7", "--out", "d.wav") == 2
    assert "1 to 3" in capsys.readouterr().err


def test_a_book_has_its_chapters(say) -> None:
    Path("t.md").write_text("# One\n\nThe old captain waited.\n\n# Two\n\nHe went home again.\n")
    assert say(None, "--text", "t.md", "--out", "t.wav", "--out", "t.chapters", "--out", "t.json") == 0
    assert Path("t.chapters").read_text().count("[CHAPTER]") == 2
    chapters = json.loads(Path("t.json").read_text())["chapters"]
    assert [chapter["title"] for chapter in chapters] == ["One", "Two"] and chapters[0]["start"] == 0 < chapters[1][
        "start"
    ]


def test_a_batch_says_what_it_cannot_and_makes_the_rest(prior, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("me.wav", 0.3 * np.sin(np.arange(16_000) / 9), 8_000)
    common = {
        "modality": "speech",
        "parameters": {"prior": str(prior), "phonemes": "words", "outputs": [".wav", ".srt"]},
    }
    jobs = [
        {"id": "a", "prompt": "Good evening.", **common},
        {"id": "b", "prompt": "", "inputs": {"text": "t.txt"}, **common},
        {"id": "c", "prompt": "Good evening.", "inputs": {"reference": "me.wav"}, **common},
    ]
    Path("t.txt").write_text("He went home again.")
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    assert main(["batch", "jobs.jsonl", "--out", "runs"]) != 0
    rows = {row["id"]: row for row in read(Path("runs/results.jsonl"))}
    assert rows["a"]["status"] == rows["b"]["status"] == "done"
    assert "does not speak as a recording does" in json.dumps(rows["c"])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a.srt", "a.wav", "b.srt", "b.wav", "results.jsonl"]


def test_python_says_the_same_and_streams_it(prior) -> None:
    """C4, C6."""
    pipe = LongSpeechPipeline.from_prior(prior)
    out = pipe(TEXT, seed=3, phonemes="words")
    packets = list(pipe.stream(TEXT, seed=3, phonemes="words"))
    assert np.array_equal(out.samples, np.concatenate([packet.samples for packet in packets]))
    pieces = list(pipe.stream(iter([TEXT[:20], TEXT[20:]]), seed=3, phonemes="words"))
    assert np.array_equal(out.samples, np.concatenate([packet.samples for packet in pieces]))
    again = pipe(TEXT, generator=torch.Generator().manual_seed(3), phonemes="words")
    assert np.array_equal(out.samples, again.samples)
    samples, rate = pipe(TEXT, seed=3, phonemes="words", output_type="pt", return_dict=False)
    assert rate == 22_050 and np.array_equal(samples.numpy(), out.samples)
    seen = []

    def stop(pipe, index, chunk, tensors):
        seen.append(chunk)
        pipe.stop()

    part = pipe(TEXT, seed=3, phonemes="words", callback_on_step_end=stop)
    assert seen == [1] and not part.info["completed"] and part.length < out.length


def test_a_pipeline_is_saved_and_loaded_as_diffusers_does(prior, tmp_path) -> None:
    pipe = LongSpeechPipeline.from_prior(prior)
    pipe.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["_class_name"] == "LongSpeechPipeline"
    sounds = [
        loaded("Good evening.", phonemes="words").samples
        for loaded in (
            pipe,
            LongSpeechPipeline.from_pretrained(tmp_path / "saved"),
            LongSpeechPipeline.from_prior(tmp_path / "saved"),
            LongSpeechPipeline.from_pretrained(prior),
        )
    ]
    assert all(np.array_equal(sounds[0], sound) for sound in sounds[1:])
    assert pipe.to("cpu").device.type == "cpu"


def test_any_voice_of_the_protocol_is_a_pipeline() -> None:
    out = LongSpeechPipeline(Toy())(TEXT, voice="high", phonemes="words")
    assert out.rate == 8000 and len(out.sentences()) == 3
    with pytest.raises(UserError, match="-70 and 0"):
        LongSpeechPipeline(Toy())(TEXT, loudness=3.0)
    with pytest.raises(UserError, match="nothing to say"):
        LongSpeechPipeline(Toy())("")


def test_files_have_the_loudness_asked_for(tmp_path) -> None:
    pipe = LongSpeechPipeline(Toy())
    for target in (-19.0, -30.0):
        path = pipe(TEXT, loudness=target, phonemes="words").save(tmp_path / f"{-target}.wav")
        meter = Meter(8000)
        meter.add(soundfile.read(path)[0])
        assert abs(meter.integrated() - target) < 0.1 and meter.peak < 0.9


def test_speech_is_a_domain_of_the_house() -> None:
    assert installed()[:3] == ["video", "motion", "speech"]


def test_the_page_has_a_tab_for_it(prior, monkeypatch, tmp_path) -> None:
    from longtake.demos.bench import Bench
    from longtake.demos.form import Form

    monkeypatch.setattr("longtake.weights.shipped_priors", lambda package: {"prosody-small": prior})
    bench = Bench()
    try:
        form = Form(bench, domain_of("speech"))
        values = form.values_of({"modality": "speech", "prompt": TEXT, "parameters": {"rate": 1.5}})
        *_, end = form.run("me", values, skip=None)
        assert any("longtake speech" in str(part) and "--rate 1.5" in str(part) for part in end), end
    finally:
        bench.close()


def test_another_number_format_than_float32_is_refused_not_ignored(say, capsys):
    assert say("Good evening.", "--out", "a.wav", "--dtype", "bfloat16") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "float32" in said[-1] and not Path("a.wav").exists()
