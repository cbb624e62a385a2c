"""A folder of a video transformer behind the command: its own pace and settings, its cost, a run written again."""

import json
from pathlib import Path

import av
import pytest
import torch
from dit_pipelines import ltx, mochi, wan, wan_i2v
from longtake.cli import main
from longtake.request import Request
from longtake.video.dit.folder import model_at
from longtake.video.dit.presets import PRESETS
from longtake.video.latents import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "wan"
    wan().save_pretrained(place)
    return place


def asked(folder, **parameters):
    line = {
        "modality": "video",
        "prompt": "0s: a dog runs | 2s: it sits",
        "parameters": {"prior": str(folder), **parameters},
    }
    return Request.read(line)


def frames_of(film):
    with av.open(str(film)) as opened:
        return sum(1 for _ in opened.decode(video=0)), float(opened.streams.video[0].average_rate)


def test_what_nobody_names_is_as_the_model_is_usually_run(folder):
    request = asked(folder)
    assert (request.settings["steps"], request.settings["guidance"], request.settings["fps"]) == (50, 5.0, 16.0)
    assert request.times.starts[1][0] == 32
    assert "--steps" not in request.as_command("x") and "--fps" not in request.as_command("x")
    assert asked(folder, seconds=3.0).settings["frames"] == 48
    named = asked(folder, steps=4, fps=8.0, guidance=1.0)
    assert (named.settings["steps"], named.settings["guidance"], named.settings["fps"]) == (4, 1.0, 8.0)
    assert "--steps 4" in named.as_command("x") and named.times.starts[1][0] == 16
    ours = Request.read({"modality": "video", "prompt": "a dog runs", "parameters": {}})
    assert (ours.settings["steps"], ours.settings["guidance"], ours.settings["fps"]) == (16, 3.0, 12.0)


@pytest.mark.parametrize(
    ("make", "steps", "guidance", "fps"), [(ltx, 50, 3.0, 24.0), (mochi, 64, 4.5, 30.0)], ids=["ltx", "mochi"]
)
def test_a_class_without_a_preset_takes_what_its_stock_pipeline_takes(make, steps, guidance, fps, tmp_path):
    stock = make()
    stock.save_pretrained(tmp_path / "model")
    preset = model_at(tmp_path / "model").preset
    assert (preset.steps, preset.guidance, preset.fps) == (steps, guidance, fps)


def test_the_cost_grows_with_the_model_the_picture_and_the_length(folder):
    def seconds(**parameters):
        request = asked(folder, **{"height": 64, "width": 64, "steps": 2, **parameters})
        return request.domain.forecast(request).seconds

    one = seconds(frames=81)
    assert seconds(frames=81, guidance=1.0) == pytest.approx(one / 2) and seconds(frames=81, steps=4) == 2 * one
    assert seconds(frames=81, height=128) > 1.9 * one
    # beyond the training length the cost of a frame does not grow
    assert seconds(frames=801) / seconds(frames=401) == pytest.approx(201 / 101, rel=1e-6)
    model = model_at(folder)
    stored = (folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert model.parameters == stored // 4 and model.bytes > stored
    assert model_at(Path("video/priors/kaykit-small")) is None


def test_a_damaged_model_is_one_line(folder, tmp_path, capsys):
    for name, text in (("model_index.json", "{"), ("model_index.json", "[1]")):
        broken = tmp_path / f"broken{len(list(tmp_path.iterdir()))}"
        broken.mkdir()
        (broken / name).write_text(text)
        assert main(["video", "a dog", "--prior", str(broken), "--out", str(tmp_path / "a.mp4")]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "a.mp4").exists()


def test_a_finished_run_written_again_has_the_length_that_was_asked(folder, tmp_path):
    """82 frames take 22 latent frames, which hold 85."""
    out = tmp_path / "a.mp4"
    words = ["video", "a dog runs", "--prior", str(folder), "--frames", "10", "--steps", "2", "--out", str(out)]
    words += ["--height", "32", "--width", "32", "--length", "21"]
    assert main(words) == 0 and frames_of(out) == (10, 16.0)
    out.unlink()
    assert main([*words, "--resume"]) == 0 and frames_of(out) == (10, 16.0)


def test_every_preset_is_told_by_name_alone():
    for name, preset in PRESETS.items():
        request = asked(name)
        told = tuple(request.settings[key] for key in ("steps", "guidance", "fps"))
        assert told == (preset.steps, preset.guidance, preset.fps), json.dumps(told)


def test_a_model_that_begins_from_a_picture_takes_it_from_the_command(tmp_path, capsys):
    from PIL import Image

    wan_i2v().save_pretrained(tmp_path / "model")
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    words = ["video", "a dog runs", "--prior", str(tmp_path / "model"), "--steps", "2", "--length", "21"]
    words += ["--height", "32", "--width", "32", "--frames", "9"]

    def made(name, *more):
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0, capsys.readouterr().err
        return read_run(tmp_path / name)[0]

    red, blue = (made(f"{name}.mp4", "--first", str(tmp_path / f"{name}.png")) for name in ("red", "blue"))
    assert (red - blue).abs().max() > 1e-3
    longer = made("longer.mp4", "--extend", str(tmp_path / "red.mp4"))
    assert torch.equal(longer[:3], red) and len(longer) == 6
    assert main([*words, "--out", str(tmp_path / "none.mp4")]) == 2
    assert "WanImageToVideoPipeline begins from a picture: give image= (--first)" in capsys.readouterr().err
