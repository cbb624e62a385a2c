"""LTX-2's picture and sound when a film goes on or is mended: both streams by the same seconds (D7, D8)."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dit_pipelines import ltx2
from longtake import LongVideoPipeline
from longtake.cli import main
from longtake.noise import noise
from longtake.video.dit import pipeline
from longtake.video.dit.track import track_of
from longtake.video.latents import read_run, read_sound

pytestmark = pytest.mark.filterwarnings("ignore")

ASKED = {"height": 64, "width": 64, "num_inference_steps": 3, "seed": 1}


@pytest.fixture(scope="module")
def pipe():
    stock = ltx2()
    stock.set_progress_bar_config(disable=True)
    return LongVideoPipeline.from_pipeline(stock, length=3)


@pytest.fixture(scope="module")
def film(pipe):
    return pipe("a dog runs", 41, **ASKED)


def test_d8_what_goes_on_is_the_stock_loop_with_the_known_rows_held(pipe, film, monkeypatch):
    """The same by the stock pipeline alone, whose schedulers put known rows where they belong after each step."""
    from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler

    longer = pipe(
        "a dog runs",
        scope=None,
        positions="absolute",
        context=pipe.context(film.latents, frames=16, sound=film.sound_latents),
        **ASKED,
    )
    frames, sound = noise(1, 0, range(8), 0, (4, 2, 2)), noise(1, 0, range(59), 1, (2, 2))
    packed = lambda x: x.permute(0, 2, 3, 1).flatten(0, 2)  # noqa: E731
    known = {32: (packed(film.latents), packed(frames)[:24]), 59: (film.sound_latents, sound.flatten(1)[:43])}
    stock_step, made = Scheduler.step, {}

    def step(self, model_output, timestep, sample, return_dict=True):
        moved = stock_step(self, model_output, timestep, sample, return_dict=False)[0]
        clean, unit = known[moved.shape[1]]
        sigma = self.sigmas[self.step_index]
        moved[0, : len(clean)] = (1 - sigma) * clean + sigma * unit
        made[moved.shape[1]] = moved[0].clone()
        return (moved,)

    stock = ltx2()
    stock.set_progress_bar_config(disable=True)
    monkeypatch.setattr(Scheduler, "step", step)
    stock(
        "a dog runs", negative_prompt="", height=64, width=64, num_frames=57, num_inference_steps=3, frame_rate=24.0,
        guidance_scale=pipe.preset.guidance, latents=packed(frames)[None], output_type="np",
        audio_latents=stock._denormalize_audio_latents(
            sound.flatten(1)[None], stock.audio_vae.latents_mean, stock.audio_vae.latents_std
        ),
    )  # fmt: skip
    assert (packed(longer.latents) - made[32]).abs().max() <= 1e-5 * made[32].abs().max()
    assert (longer.sound_latents - made[59]).abs().max() <= 1e-5 * made[59].abs().max()


def test_d8_new_frames_and_their_sound_follow_the_earlier_sound(pipe, film):
    def longer(sound):
        return pipe("a dog runs", context=pipe.context(film.latents, frames=8, sound=sound), **ASKED)

    one, other = longer(film.sound_latents), longer(film.sound_latents.flip(0))
    assert (one.sound_latents - other.sound_latents)[43:].abs().max() > 1e-3
    assert (one.latents - other.latents)[6:].abs().max() > 1e-4


@pytest.mark.parametrize("fps", [24.0, 25.0, 10.0])
def test_d8_a_run_that_sees_a_part_of_the_film_hears_it_at_its_seconds(fps, pipe):
    """A latent frame but the first is 8 frames of film; an audio latent but the first 40 ms, in the VAE's time."""
    rope, stock = pipe.stock.transformer.audio_rope, pipe.stock
    latents = torch.zeros(60, 4, 2, 2)
    total = round((59 * 8 + 1) / fps * 25)
    for asked in ({"frames": 40}, {"redo": (300, 310)}, {"redo": (1, 9)}):
        context = pipe.context(latents, sound=torch.arange(total * 4.0).view(total, 4), **asked)
        span = context.window(pipeline.CONTEXT_FRAMES)
        track = track_of(stock, context, span, pipe.preset, fps)
        whole = rope.prepare_audio_coords(1, track.total, torch.device("cpu"))[0, 0, track.first :][: track.count]
        here = rope.prepare_audio_coords(1, track.count, torch.device("cpu"))[0, 0] + track.shift
        assert (here + 8 * span.start / fps - whole)[1:].abs().max() < 1e-4 and abs(track.shift) <= 0.04
        new = track.first + (~track.known).nonzero().flatten()
        begins, ends = ((8 * at + 1 - 8) / fps for at in (context.start, context.stop))
        middle = (new * 0.04 - 0.01).clamp_min(0.005)
        if "redo" in asked:
            assert bool(((middle >= begins) & (middle < ends)).all())
            assert abs(len(new) - (ends - begins) * 25) <= 1
        else:
            assert new.tolist() == list(range(total, track.total))
        made = track.merge(torch.full((track.count, 4), -1.0))
        kept = [row for row in range(total) if row not in new.tolist()]
        assert torch.equal(made[kept], context.sound[kept]) and bool((made[new] == -1).all())


def test_d8_a_long_film_goes_on_and_is_mended_within_what_the_network_sees(pipe, film, monkeypatch):
    monkeypatch.setattr(pipeline, "CONTEXT_FRAMES", 2)
    earlier = {"latents": film.latents, "sound": film.sound_latents}
    longer = pipe("a cat swims", context=pipe.context(**earlier, frames=8), **ASKED)
    assert torch.equal(longer.latents[:6], film.latents) and torch.equal(longer.sound_latents[:43], film.sound_latents)
    assert longer.sound_latents.shape == (51, 4) and bool((longer.sound_latents[43:].abs().amax(1) > 0).all())
    assert longer.sound.shape == (49000, 2) and len(longer.frames) == 49
    again = pipe("a cat swims", context=pipe.context(**earlier, redo=(25, 33)), **ASKED | {"seed": 7})
    changed = (again.sound_latents != film.sound_latents).any(1).nonzero().flatten().tolist()
    assert changed == list(range(27, 35))  # latent frame 4 is 1.04 s to 1.375 s, an audio latent ends at 0.04 a + 0.01
    assert (again.latents != film.latents).flatten(1).any(1).tolist() == [False] * 4 + [True] + [False]


def test_d8_a_mended_film_that_was_ended_goes_on_to_the_same_picture_and_sound(pipe, film, tmp_path):
    from longtake.journal import Journal

    asked = {"context": pipe.context(film.latents, redo=(9, 25), sound=film.sound_latents), **ASKED}
    whole = pipe("a cat swims", **asked)
    made = {}
    for run in ("stopped", "resumed"):
        stop = (lambda p, i, *_: p.stop() if i == 1 else None) if run == "stopped" else None
        with Journal(tmp_path / "run") as journal:
            journal.open({"prompt": "a cat swims"}, "resume")
            made[run] = pipe("a cat swims", journal=journal, callback_on_step_end=stop, **asked)
    assert torch.equal(made["resumed"].sound_latents, whole.sound_latents)
    assert torch.equal(made["resumed"].latents, whole.latents) and np.array_equal(made["resumed"].sound, whole.sound)
    known = (whole.sound_latents == film.sound_latents).all(1)
    assert torch.equal(made["stopped"].sound_latents[known], film.sound_latents[known]) and not known.all()
    assert not torch.equal(made["stopped"].sound_latents, whole.sound_latents)


def test_d8_the_command_keeps_the_sound_and_goes_on_from_it(pipe, tmp_path, capsys):
    import av

    folder = tmp_path / "ltx2"
    pipe.stock.save_pretrained(folder)
    words = ["--prior", str(folder), "--length", "3", "--steps", "2", "--height", "64", "--width", "64"]

    def made(name, *asked):
        assert main(["video", "a dog runs", *words, *asked, "--out", str(tmp_path / name)]) == 0, capsys.readouterr()
        with av.open(str(tmp_path / name)) as file:
            heard = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1)
            assert file.streams.audio[0].codec_context.sample_rate == 24000
        return read_run(tmp_path / name)[0], read_sound(tmp_path / name), heard

    first, longer = (
        made("a.mp4", "--frames", "33"),
        made("b.mp4", "--extend", str(tmp_path / "a.mp4"), "--frames", "16"),
    )
    again = made("c.mp4", "--extend", str(tmp_path / "b.mp4"), "--redo", "9:17", "--seed", "4")
    assert [len(part) for part in first[:2]] == [5, 34] and [len(part) for part in longer[:2]] == [7, 51]
    assert torch.equal(longer[0][:5], first[0]) and torch.equal(longer[1][:34], first[1])
    assert (again[1] != longer[1]).any(1).nonzero().flatten().tolist() == list(range(10, 18))
    assert len(longer[2][0]) >= 49000
    (tmp_path / "c.mp4").unlink()
    written = made("c.mp4", "--extend", str(tmp_path / "b.mp4"), "--redo", "9:17", "--seed", "4", "--resume")
    assert np.array_equal(written[2], again[2])  # a finished run is written again from what it kept
    assert main(["video", "a", *words, "--fps", "12", "--extend", str(tmp_path / "a.mp4"), "--out", "d.mp4"]) == 2
    assert "at fps=12 there must be 69 of them: name the fps" in capsys.readouterr().err


def test_d8_several_files_of_a_stream_hold_the_sound(pipe, film, tmp_path):
    import av

    streamed = pipe("a dog runs", 41, output_type="stream", **ASKED)
    streamed.save_all([tmp_path / "a.mp4", tmp_path / "a.gif"])
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert len(file.streams.audio) == 1 and file.streams.video[0].frames == 41
    assert (tmp_path / "a.wav").is_file()


def test_d8_the_nodes_of_comfyui_hand_the_sound_on(pipe, monkeypatch):
    file = Path(__file__).resolve().parents[2] / "demos/comfyui/nodes.py"  # in the source tree, not in the package
    spec = importlib.util.spec_from_file_location("nodes_of_comfyui", file)
    nodes = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, nodes)
    spec.loader.exec_module(nodes)
    settings = {"steps": 2, "guidance": 3.0, "seed": 1, "negative": ""}
    _, run, fps = nodes.LongtakeGenerate().make(pipe, "a dog", frames=33, fps=24.0, width=64, height=64, **settings)
    _, longer, _ = nodes.LongtakeExtend().make(pipe, run, "a cat", frames=16, **settings)
    assert torch.equal(longer.sound[:34], run.sound) and longer.sound.shape == (51, 4)
    images, again, _ = nodes.LongtakeRedo().make(pipe, longer, "a cat", start=9, stop=17, **settings | {"seed": 4})
    assert (again.sound != longer.sound).any(1).nonzero().flatten().tolist() == list(range(10, 18))
    assert len(images) == 49
