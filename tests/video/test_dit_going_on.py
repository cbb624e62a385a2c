"""Films that go on and pictures that they must show: as long as asked to the frame, at their own pace, nothing lost."""

import json

import numpy as np
import pytest
import torch
from dit_pipelines import ltx2, wan
from longtake import LongVideoPipeline, UserError
from longtake.cli import main
from longtake.media import iterate_video, read_picture
from longtake.video.latents import read_note, read_run
from PIL import Image


def quiet(stock):
    stock.set_progress_bar_config(disable=True)
    return stock


SIZE = ["--height", "32", "--width", "32", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("wan") / "model"
    quiet(wan()).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def pipe():
    return LongVideoPipeline.from_pipeline(quiet(wan()), length=5)


@pytest.fixture
def make(folder, tmp_path, capsys):
    """Run the command: frames of the film, its fps, and what was printed."""
    import av

    def run(name, *words):
        told = ["video", "a dog runs", "--prior", str(folder), "--length", "5", *words, "--out", str(tmp_path / name)]
        code = main(told)
        said = capsys.readouterr()
        if code:
            return code, None, said.err
        with av.open(str(tmp_path / name)) as opened:
            fps = float(opened.streams.video[0].average_rate)
        return sum(1 for _ in iterate_video(tmp_path / name)), fps, said.out + said.err

    return run


def test_a_film_is_longer_by_what_was_asked_whatever_its_latents_hold(make, tmp_path):
    """10 frames take 4 latent frames of Wan, which hold 13."""
    assert make("a.mp4", *SIZE, "--frames", "10")[:2] == (10, 16.0)
    assert make("b.mp4", "--steps", "2", "--extend", str(tmp_path / "a.mp4"), "--frames", "10")[0] == 20
    assert make("c.mp4", "--steps", "2", "--extend", str(tmp_path / "b.mp4"), "--seconds", "0.5")[0] == 28
    frames, _, said = make("d.mp4", "--steps", "2", "--extend", str(tmp_path / "b.mp4"), "--redo", "6:10")
    assert "it/s]" not in said and "making: step 2 of 2" in said  # one bar: ours
    assert frames == 20 and "whole latent frames are made anew, frames 5 to 12" in said
    frames, _, said = make("f.mp4", "--steps", "2", "--extend", str(tmp_path / "a.mp4"), "--frames", "2")
    assert frames == 14 and "the film has 14 frames, not 12" in said
    code, _, said = make("e.mp4", "--steps", "2", "--extend", str(tmp_path / "a.mp4"), "--redo", "9:13")
    assert code == 2 and "cannot redo frames 9:13 of a video of 10 frames" in said
    kept, made = read_run(tmp_path / "b.mp4")[0], read_run(tmp_path / "d.mp4")[0]
    assert [torch.equal(one, two) for one, two in zip(kept, made, strict=True)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_a_film_goes_on_at_its_own_pace_and_another_prior_is_told(make, tmp_path, folder):
    import shutil

    assert make("a.mp4", *SIZE, "--frames", "9", "--fps", "30")[:2] == (9, 30.0)
    assert make("b.mp4", "--steps", "2", "--extend", str(tmp_path / "a.mp4"), "--frames", "4")[:2] == (13, 30.0)
    words = ["--steps", "2", "--extend", str(tmp_path / "a.mp4"), "--frames", "4"]
    assert make("c.mp4", *words, "--fps", "15")[:2] == (13, 15.0)
    shutil.copytree(folder, tmp_path / "other")
    frames, _, said = make("d.mp4", *words, "--prior", str(tmp_path / "other"))
    assert frames == 13 and f"is of the prior {folder}, and goes on with {tmp_path / 'other'}" in " ".join(said.split())
    assert "is of the prior" not in make("e.mp4", *words)[2]


def test_settings_that_do_nothing_or_contradict_each_other_are_told(make, tmp_path, folder, capsys):
    assert make("a.mp4", *SIZE, "--frames", "9")[0] == 9
    code, _, said = make("b.mp4", "--extend", str(tmp_path / "a.mp4"), "--redo", "5:9", "--seconds", "3")
    assert code == 2 and "leave --frames and --seconds out" in said
    frames, _, said = make("c.mp4", *SIZE, "--frames", "9", "--guidance", "1", "--negative", "rain", "--base", "x")
    assert frames == 9 and "is not heeded" in said and "--base is for bare UNets" in said
    assert "the model reads" not in said
    words = ["--prior", str(folder), "--length", "5", *SIZE, "--frames", "5", "--out", str(tmp_path / "l.mp4")]
    assert main(["video", "a dog runs " * 9, *words]) == 0
    assert "the model reads 8 of the 27 tokens of the prompt 'a dog runs" in capsys.readouterr().err
    assert make("d.mp4", *SIZE, "--frames", "9", "--gate", "soft")[0] == 9  # the usual window fits 3 latent frames


def test_pictures_of_every_kind_are_taken_and_others_are_one_line(make, tmp_path):
    colour = np.zeros((20, 30, 4), np.uint8)
    colour[..., 0], colour[..., 3] = 200, 255
    kinds = {"rgba": Image.fromarray(colour), "grey": Image.new("L", (30, 20), 90), "palette": Image.new("P", (9, 9))}
    kinds["deep"] = Image.fromarray(np.full((20, 30), 25700, np.uint16))
    for name, picture in kinds.items():
        picture.save(tmp_path / f"{name}.png")
    assert read_picture(tmp_path / "deep.png").getpixel((0, 0)) == (100, 100, 100)
    assert read_picture(tmp_path / "rgba.png").getpixel((3, 3)) == (200, 0, 0)
    assert make("a.mp4", *SIZE, "--frames", "9", "--first", str(tmp_path / "rgba.png"))[0] == 9
    assert make("b.mp4", *SIZE, "--frames", "9", "--last", str(tmp_path / "deep.png"))[0] == 9
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgba.png").read_bytes()[:60])
    for number, name in enumerate(("words.png", "cut.png")):
        code, _, said = make(f"n{number}.mp4", *SIZE, "--frames", "9", "--first", str(tmp_path / name))
        assert code == 2 and "is not a readable picture" in said and len(said.strip().splitlines()) == 1
        assert not (tmp_path / f"n{number}.mp4.run").exists()


def test_a_picture_stands_where_the_finished_film_has_it(pipe, tmp_path):
    """Also in a film that goes on, and where the network sees a part of it alone."""
    colours = {"red": (220, 20, 20), "blue": (20, 20, 220)}
    for name, colour in colours.items():
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    asked = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent", "seed": 1}
    film = pipe("a dog runs", 33, **asked)
    longer = pipe.context(film, frames=8)
    with pytest.raises(UserError, match="context is what pipe.context"):
        pipe("a dog runs", context=film.latents, **asked)
    red, blue = (
        pipe("a dog runs", context=longer, hold={-1: tmp_path / f"{name}.png"}, **asked).latents for name in colours
    )
    assert torch.equal(red[:9], film.latents) and (red[-1] - blue[-1]).abs().max() > 0.01
    again = pipe("a dog runs", context=longer, hold={40: Image.open(tmp_path / "red.png")}, **{**asked, "seed": 2})
    assert torch.equal(again.latents[-1], red[-1])  # held, whatever the seed
    for place in (0, -9, 32):
        with pytest.raises(UserError, match="is of the earlier film and is kept"):
            pipe("a dog runs", context=longer, hold={place: tmp_path / "red.png"}, **asked)
    with pytest.raises(UserError, match="hold names frame 41; the film has 41 frames"):
        pipe("a dog runs", context=longer, hold={41: tmp_path / "red.png"}, **asked)
    with pytest.raises(UserError, match="one latent frame holds both"):
        pipe("a dog runs", context=longer, hold={-1: tmp_path / "red.png", 39: tmp_path / "blue.png"}, **asked)


def test_a_first_picture_of_a_film_that_goes_on_is_refused_and_a_last_one_is_taken(make, tmp_path):
    Image.new("RGB", (32, 32), (9, 200, 9)).save(tmp_path / "green.png")
    assert make("a.mp4", *SIZE, "--frames", "12")[0] == 12
    words = ["--steps", "2", "--extend", str(tmp_path / "a.mp4")]
    picture = str(tmp_path / "green.png")
    assert make("b.mp4", *words, "--frames", "8", "--last", picture)[0] == 20
    for number, more in enumerate((["--frames", "8", "--first", picture], ["--redo", "2:5", "--last", picture])):
        code, _, said = make(f"n{number}.mp4", *words, *more)
        assert code == 2 and "is a frame of the earlier film here" in said
    assert make("c.mp4", *words, "--redo", "0:4", "--first", picture)[0] == 12


def test_the_output_of_a_run_says_how_long_its_film_is(pipe):
    asked = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
    film = pipe("a dog runs", 10, **asked)
    assert pipe("a dog", context=pipe.context(film, frames=10), **asked).info["frames"] == 20
    assert pipe("a dog", context=pipe.context(film.latents, frames=10), **asked).info["frames"] == 23
    assert pipe("a dog", context=pipe.context(film.latents, frames=10, film=10), **asked).info["frames"] == 20
    assert pipe("a dog", context=pipe.context(film, frames=1), **asked).info["frames"] == 14  # one latent frame more
    slow = pipe("a dog runs", 10, fps=8, **asked)
    assert pipe("a dog", context=pipe.context(slow, frames=10), **asked).fps == 8
    with pytest.raises(UserError, match="say frames, how many more, or redo"):
        pipe.context(film)


def test_films_come_in_the_shapes_of_diffusers_too(pipe):
    asked = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 3}
    film = pipe("a dog runs", 6, **asked)
    (pictures,) = pipe("a dog runs", 6, output_type="pil", **asked).frames
    assert len(pictures) == 6 and np.array_equal(np.stack([np.asarray(one) for one in pictures]), film.frames)
    stacked = pipe("a dog runs", 6, output_type="np", **asked)
    assert stacked.frames.shape == (1, 6, 32, 32, 3) and torch.equal(stacked.outputs[0].latents, film.latents)
    with pytest.raises(UserError, match="one of film, stream, latent, np, pt, pil; given 'mp4'"):
        pipe("a dog runs", 6, output_type="mp4", **asked)


def test_the_python_lines_of_a_run_that_goes_on_make_the_same_film(make, tmp_path, folder):
    from longtake.request import Request

    Image.new("RGB", (32, 32), (9, 200, 9)).save(tmp_path / "green.png")
    assert make("a.mp4", *SIZE, "--frames", "10", "--fps", "30")[0] == 10
    for number, (inputs, parameters) in enumerate((
        ({"extend": "a.mp4"}, {"frames": 7}),
        ({"extend": "a.mp4", "last": "green.png"}, {"frames": 7}),
        ({"extend": "a.mp4"}, {"redo": "6:9"}),
        ({"first": "green.png"}, {"frames": 5, "height": 32, "width": 32}),
    )):  # fmt: skip
        paths = {name: str(tmp_path / file) for name, file in inputs.items()}
        parameters = {"prior": str(folder), "length": 5, "steps": 2, **parameters}
        line = {
            "modality": "video",
            "prompt": "it sleeps",
            "inputs": paths,
            "parameters": parameters,
        }
        text = Request.read(line).as_python(str(tmp_path / f"python{number}"))
        exec(text, {})  # as a user would paste it
        words = [word for name, path in paths.items() for word in (f"--{name}", path)]
        words += [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
        assert main(["video", "it sleeps", *words, "--out", str(tmp_path / f"{number}.mp4")]) == 0
        ours, theirs = (list(iterate_video(tmp_path / f"{name}{number}.mp4")) for name in ("", "python"))
        assert len(ours) == len(theirs) and np.array_equal(np.stack(ours), np.stack(theirs)), text


def test_latents_of_another_number_of_channels_are_refused(pipe):
    with pytest.raises(UserError, match="latents of 7 channels, WanPipeline of 4"):
        pipe("a", context=pipe.context(torch.zeros(3, 7, 4, 4), frames=4), height=32, width=32, num_inference_steps=1)


def test_a_run_goes_on_in_its_own_arithmetic(make, tmp_path, folder):
    assert make("a.mp4", *SIZE, "--frames", "9", "--dtype", "bfloat16")[0] == 9
    code, _, said = make("a.mp4", *SIZE, "--frames", "9", "--dtype", "float32", "--resume")
    assert code == 2 and "it was made in bfloat16, this is float32: say --dtype bfloat16" in said
    (tmp_path / "a.mp4").unlink()
    assert make("a.mp4", *SIZE, "--frames", "9", "--dtype", "bfloat16", "--resume")[0] == 9


def test_a_sound_beside_a_film_overwrites_nothing_and_is_told(tmp_path, capsys):
    quiet(ltx2()).save_pretrained(tmp_path / "model")
    words = ["video", "a dog runs", "--prior", str(tmp_path / "model"), "--length", "3", "--steps", "2"]
    words += ["--height", "64", "--width", "64", "--frames", "9"]
    (tmp_path / "a.wav").write_text("mine")
    assert main([*words, "--out", str(tmp_path / "a.gif")]) == 2
    assert "a.wav exists, and the result writes it too" in capsys.readouterr().err
    assert (tmp_path / "a.wav").read_text() == "mine" and not (tmp_path / "a.gif").exists()
    assert main([*words, "--out", str(tmp_path / "b.v2")]) == 2  # no such kind of film
    assert main([*words, "--out", str(tmp_path / "b"), "--out", str(tmp_path / "c.mp4")]) == 0
    assert f"{tmp_path / 'b.wav'}" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "b.wav").read_bytes()[:4] == b"RIFF" and not (tmp_path / "c.wav").exists()
    assert main([*words, "--out", str(tmp_path / "b"), "--out", str(tmp_path / "c.mp4"), "--resume"]) == 0
    assert read_note(tmp_path / "b.run" / "latents.safetensors")["film"] == 9
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "one.wav").write_text("mine")
    parameters = {"prior": str(tmp_path / "model"), "length": 3, "steps": 2, "height": 64, "width": 64, "frames": 9}
    line = {"id": "one", "modality": "video", "prompt": "a dog", "parameters": {**parameters, "outputs": [".gif"]}}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["batch", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "many")]) == 1
    assert (tmp_path / "many" / "one.wav").read_text() == "mine"
    assert main(["batch", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "many2")]) == 0
    assert (tmp_path / "many2" / "one.wav").read_bytes()[:4] == b"RIFF"
