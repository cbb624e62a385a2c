"""The answer in words: a vision-language model of every family reads the moments that were found."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.cli import main
from longtake.demos import watch_tab
from longtake.errors import UserError
from longtake.records import read
from longtake.video.watch.decode import Film
from longtake.video.watch.domain import SAMPLE
from longtake.video.watch.moments import Moment
from longtake.video.watch.pipeline import WatchPipeline
from longtake.video.watch.words import PICTURES, VisionLanguageModel, _Clip
from reading_vlms import FAMILY_NAMES
from watch_vlms import write_vlm

MOMENTS = [Moment(4.5, 6.0, 0.9, 5.0), Moment(0.5, 2.0, 0.3, 1.0)]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.video.watch.words.ANSWER_TOKENS", 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {name: write_vlm(place / name, name) for name in FAMILY_NAMES}


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_with_tokens_enough_the_words_are_the_stock_models_and_with_few_the_budget_is_kept(folders, name) -> None:
    model = VisionLanguageModel.from_folder(folders[name])
    film, question = Film(SAMPLE), "what does the mage do?"
    inputs = model.inputs(question, model.clips(film, MOMENTS), 30.0)
    found = model.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    stock = model.processor.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert stock and model.answer(film, question, MOMENTS, seconds=30.0, tokens=10_000).text == stock
    few = model.answer(film, question, MOMENTS, seconds=30.0, tokens=100)
    before, after = map(int, re.findall(r"(\d+) tokens, (\d+) kept", few.read)[0])
    assert before > 400 and 27 <= after <= 100


def test_the_pictures_are_of_the_moments_in_order_of_time_and_more_of_the_better(folders, film) -> None:
    path = film([("red", 4.0), ("green", 4.0), ("blue", 4.0)], fps=20.0)
    model = VisionLanguageModel.from_folder(folders["llava"])
    clips = model.clips(Film(path), [Moment(8.2, 10.2, 0.9, 9.0), Moment(0.5, 1.5, 0.1, 1.0), Moment(4.5, 7.5, 0.5, 5)])
    assert [(clip.start, clip.end) for clip in clips] == [(0.5, 1.5), (4.5, 7.5), (8.2, 10.2)]
    for clip, strongest in zip(clips, (0, 1, 2), strict=True):
        assert all(clip.start <= time < clip.end for time in clip.times)
        assert all(int(frame.mean((0, 1)).argmax()) == strongest for frame in clip.frames)
    counts = [len(clip.times) for clip in clips]
    assert sum(counts) <= PICTURES and counts[0] < counts[1] < counts[2]


def _clips(times: list[list[float]]) -> list[_Clip]:
    grey = np.full((32, 32, 3), 90, np.uint8)
    return [_Clip(some[0], some[-1] + 0.5, some, [grey] * len(some)) for some in times]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_prompt_says_the_films_own_seconds(folders, name) -> None:
    """An hour in: two moments, of four pictures and of three, whose seconds stand in every prompt."""
    model = VisionLanguageModel.from_folder(folders[name])
    times = [[3000.0, 3000.5, 3001.0, 3001.5], [3661.0, 3662.0, 3663.0]]
    inputs = model.inputs("what is it?", _clips(times), 3700.0)
    text = model.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("what is it?") == 1
    if name in ("qwen2_5_vl", "qwen3_vl"):
        assert "From 3000.0 s to 3002.0 s of the film:" in text and "From 3661.0 s to 3663.5 s" in text
        assert inputs["video_grid_thw"][:, 0].tolist() == [2, 2], "the third picture is read with itself"
    else:
        assert "film of 3700.0 s, at these seconds: 3000.0, 3000.5, 3001.0, 3001.5, 3661.0, 3662.0, 3663.0." in text
    if name == "qwen2_5_vl":
        assert torch.allclose(inputs["second_per_grid_ts"], torch.tensor([1.0, 2.0]), atol=2e-3)
    if name == "qwen3_vl":
        assert re.findall(r"<([\d.]+) seconds>", text) == ["3000.2", "3001.2", "3661.5", "3663.0"]
    if name == "smolvlm":
        found = re.findall(r"Frame from (\d+:\d+):", text)
        assert found == ["50:00", "50:00", "50:01", "50:01", "61:01", "61:02", "61:03"] and "1:01:40" in text


def test_the_command_prints_and_writes_the_words_beside_the_moments(folders, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "where is the mage?"
    plain = WatchPipeline.from_prior()(SAMPLE, asked, moments=2, index="index")
    words = ["--model", str(folders["qwen3_vl"]), "--tokens", "200", "--moments", "2", "--index", "index"]
    assert main(["watch", str(SAMPLE), asked, *words]) == 0
    told = json.loads(Path("answer.json").read_text())
    assert told["moments"] == plain.as_json()["moments"] and told["model"] == "qwen3_vl" and told["answer"]
    assert plain.words is None and "answer" not in plain.as_json()
    out = capsys.readouterr().out
    assert (
        f"answer: {told['answer']}" in out and "qwen3_vl read" in told["notes"][-1] and "moments and their" not in out
    )
    job = {"id": "a", "modality": "watch", "prompt": asked, "inputs": {"film": str(SAMPLE)},
           "parameters": {"moments": 2, "tokens": 200, "model": str(folders["qwen3_vl"])}}  # fmt: skip
    Path("jobs.jsonl").write_text(json.dumps(job) + "\n")
    assert main(["batch", "jobs.jsonl", "--out", "made"]) == 0
    (row,) = read(Path("made/results.jsonl"))
    assert row["status"] == "done" and json.loads(Path("made/a.json").read_text())["answer"] == told["answer"]
    answer = WatchPipeline.from_prior()(SAMPLE, asked, moments=2, index="index", model=folders["qwen3_vl"], tokens=200)
    assert answer.words == told["answer"]
    with pytest.raises(UserError, match="at least 64"):
        WatchPipeline.from_prior()(SAMPLE, asked, model=folders["qwen3_vl"], tokens=63)
    assert main(["watch", str(SAMPLE), asked, "--tokens", "200", "--out", "other.json"]) == 2
    assert "name the model's folder" in capsys.readouterr().err
    answer.words = "<script>alert(1)</script>"
    assert "qwen3_vl:</b> &lt;script" in watch_tab.timeline(answer)


def _without_weights(folder: Path, source: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    state.pop(next(key for key in state if "v_proj" in key))
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"), ("empty", "without a model's files"), ("clip", "holds a clip: --model takes"),
        ("torn", "weights"), ("partly", "lacks 1 of the model's weights"), ("mute", "processor"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_such_model_is_one_line(folders, tmp_path, monkeypatch, capsys, kind, said) -> None:
    from watch_towers import write_pair

    monkeypatch.chdir(tmp_path)
    folder, source = tmp_path / "model", folders["qwen2_5_vl"]
    if kind == "empty":
        folder.mkdir()
    elif kind == "clip":
        write_pair(folder, "clip")
    elif kind == "partly":
        _without_weights(folder, source)
    elif kind in ("torn", "mute"):
        folder.mkdir()
        for path in source.iterdir():
            if kind == "torn" or path.name in ("config.json", "model.safetensors"):
                (folder / path.name).write_bytes(path.read_bytes()[: 2000 if path.suffix == ".safetensors" else None])
    assert main(["watch", str(SAMPLE), "a mage", "--model", "./model"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error, error
    assert not Path("answer.json").exists()
