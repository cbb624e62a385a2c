"""Stock pipelines with a picture, two transformers, a guider or sound: each as it is alone, and longer (D8)."""

import sys
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dit_pipelines import (
    HUNYUAN_TEMPLATE,
    PIPELINES,
    SIZES,
    STOCKS,
    cogvideox,
    hunyuan_i2v,
    ltx,
    ltx2,
    minimax,
    wan_two,
)
from longtake import LongVideoPipeline
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.noise import noise
from longtake.video.dit.asking import guarded
from longtake.video.dit.held import encoded
from longtake.video.scope import Scope
from PIL import Image
from video_prior import ranks_here

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 3
ALL = Scope(0, 0, gate="off")


def quiet(stock):
    stock.set_progress_bar_config(disable=True)
    return stock


def pipe_of(name, length=3):
    made = STOCKS.get(name) or PIPELINES[name]
    return LongVideoPipeline.from_pipeline(quiet(made()), length=length)


def picture(name, colour=(200, 40, 40)):
    side = SIZES.get(name, 32)
    made = np.full((side, side, 3), colour, np.uint8)
    made[: side // 2, : side // 3] = (30, 180, 90)
    return Image.fromarray(made)


def asked(name, image=True, **changes):
    side = SIZES.get(name, 32)
    given = {"height": side, "width": side, "num_inference_steps": STEPS, "seed": 1}
    if image and name.endswith(("i2v", "ti2v")):
        given["image"] = picture(name)
    if name == "hunyuan-i2v":
        given["prompt_template"] = HUNYUAN_TEMPLATE
    return {**given, **changes}


@pytest.mark.parametrize("name", STOCKS)
def test_d8_within_the_training_length_the_film_is_that_of_the_stock_pipeline(name, monkeypatch):
    count = 6 if name == "kandinsky-i2v" else 3
    pipe = pipe_of(name, count)
    frames = pipe.preset.film(count)
    film = pipe("a dog runs", frames, **asked(name))
    stock = quiet(STOCKS[name]())
    draws = iter(range(100))

    def drawn(shape, generator=None, device=None, dtype=None, layout=None):
        draw, axis = next(draws), 2 if len(shape) == 4 or shape[2] == count else 1
        rest = [side for place, side in enumerate(shape) if place not in (0, axis)]
        made = noise(1, 0, range(shape[axis]), draw, tuple(rest))
        return made.movedim(0, axis - 1)[None].to(dtype)

    monkeypatch.setattr(sys.modules[type(stock).__module__], "randn_tensor", drawn)
    given = asked(name)
    del given["seed"]
    if name.startswith("ltx"):
        given["frame_rate"] = 24.0
    if name.startswith("cosmos"):
        given["fps"] = 24.0
    if name == "hunyuan15-i2v":
        del given["height"], given["width"]  # by its picture
    generator = torch.Generator().manual_seed(1_000_003)
    alone = stock(
        prompt="a dog runs", negative_prompt="", num_frames=frames, generator=generator, output_type="np", **given
    )
    # rounding to uint8, which Cosmos' guardrail does by cutting off
    assert np.abs(alone.frames[0] * 255 - film.frames).max() <= (1.01 if name.startswith("cosmos") else 0.51)
    if name.startswith("ltx2"):
        sound = alone.audio[0].float().numpy().T
        short = min(len(sound), len(film.sound))
        assert np.abs(sound[:short] - film.sound[:short]).max() <= 1e-5 and np.abs(sound).max() > 1e-4


@pytest.mark.parametrize("name", STOCKS)
def test_d8_each_goes_on_from_a_film_and_from_its_picture(name):
    pipe = pipe_of(name)
    frames, stride = pipe.preset.film(6), pipe.preset.stride
    short = {"num_inference_steps": 2}
    film = pipe("a dog runs", frames, **asked(name, **short))
    earlier = {"latents": film.latents, "sound": getattr(film, "sound_latents", None)}
    longer = pipe("a dog runs", context=pipe.context(**earlier, frames=2 * stride), **asked(name, image=False, **short))
    assert torch.equal(longer.latents[:6], film.latents) and len(longer.frames) == frames + 2 * stride
    assert torch.isfinite(longer.latents).all() and longer.latents[6:].std() > 0.01
    again = pipe(
        "a cat swims", context=pipe.context(**earlier, redo=(1 + stride, 2 * stride)),
        **asked(name, image=False, seed=5, **short),
    )  # fmt: skip
    moved = (again.latents - film.latents).abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("name", STOCKS)
def test_d8_each_follows_a_timeline_of_prompts_of_any_length(name):
    pipe = pipe_of(name)
    frames = pipe.preset.film(5)
    given = asked(name, scope=ALL, num_inference_steps=2)
    plain = pipe("a dog runs", frames, **given)
    told = pipe(f"0: a dog runs | {frames // 2}: a red cat swims over the sea", frames, **given)
    moved = (told.latents - plain.latents).abs().amax((1, 2, 3))
    assert moved[-1] > 1e-4
    if name.startswith("ltx2"):
        assert np.abs(told.sound - plain.sound).max() > 1e-6


def test_d8_hunyuan_1_5_takes_guidance_for_its_guider():
    pipe = pipe_of("hunyuan15")
    usual, same, other = (
        pipe("a dog runs", 9, **asked("hunyuan15", guidance_scale=scale)).latents for scale in (None, 4.0, 9.0)
    )
    assert torch.equal(usual, same) and not torch.equal(usual, other)
    assert pipe.stock.guider.guidance_scale == 4.0  # put back


def test_d8_two_transformers_change_over_at_the_boundary_and_both_hear_the_prompts():
    asks = []
    stock = quiet(wan_two())
    for name in ("transformer", "transformer_2"):
        model = getattr(stock, name)
        model.condition_embedder.register_forward_pre_hook(lambda _m, args, name=name: asks.append(name))
    pipe = LongVideoPipeline.from_pipeline(stock, length=3)
    plain = pipe("a dog runs", 17, **asked("wan-two", scope=ALL, num_inference_steps=5))
    timesteps = stock.scheduler.timesteps.tolist()
    early = sum(time >= 800 for time in timesteps)
    assert 0 < early < 5
    assert asks == ["transformer"] * (2 * early) + ["transformer_2"] * (2 * (5 - early))  # with and without the prompt
    seen = {}
    for number, prompt in enumerate(("a dog runs", "a cat swims")):
        told = pipe(
            f"0: a dog runs | 9: {prompt}", 17, guidance_scale_2=3.0,
            **asked("wan-two", scope=ALL, num_inference_steps=5),
        )  # fmt: skip
        seen[number] = told.latents
    assert (seen[0] - seen[1])[-1].abs().max() > 1e-3 and (seen[0] - seen[1])[0].abs().max() < 1e-5
    assert not torch.equal(seen[0], plain.latents)  # guidance_scale_2 reaches the second


def ended(pipe, folder, name, frames, after=1, resume=False, **changes):
    with Journal(folder) as journal:
        assert journal.open({"prompt": "a dog runs"}, *(["resume"] if resume else [])) or not resume
        stop = None if resume else (lambda p, i, *_: p.stop() if i == after else None)
        return pipe("a dog runs", frames, journal=journal, callback_on_step_end=stop, **asked(name, **changes))


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("wan-two", 2),
        ("wan-ti2v", 1),
        ("ltx-i2v", 1),
        ("ltx2", 0),
        ("ltx2", 2),
        ("cosmos-i2v", 1),
        ("skyreels-forcing", 2),
        ("cogvideox-dpm", 0),
        ("cogvideox-dpm", 2),
    ],
)
def test_d8_a_run_that_was_ended_goes_on_to_the_same_film_and_sound(name, after, tmp_path, monkeypatch):
    from diffusers import CogVideoXDPMScheduler

    def dpm():
        stock = cogvideox()
        stock.scheduler = CogVideoXDPMScheduler.from_config(stock.scheduler.config)
        return stock

    monkeypatch.setitem(STOCKS, "cogvideox-dpm", dpm)
    frames = 33 if name.startswith("ltx") else 17
    given = {"num_inference_steps": 4}
    whole = pipe_of(name)("a dog runs", frames, **asked(name, **given))
    stopped = ended(pipe_of(name), tmp_path / "run", name, frames, after, **given)
    assert stopped.info["completed"] is False and stopped.info["steps"] == after + 1
    assert not torch.equal(stopped.latents, whole.latents) and torch.isfinite(stopped.latents).all()
    resumed = ended(pipe_of(name), tmp_path / "run", name, frames, resume=True, **given)
    assert resumed.info["completed"] and torch.equal(resumed.latents, whole.latents)
    assert np.array_equal(resumed.frames, whole.frames)
    if name.startswith("ltx2"):
        assert np.array_equal(resumed.sound, whole.sound) and not np.array_equal(stopped.sound, whole.sound)


@pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx"])
def test_d8_a_stopped_film_is_the_estimate_that_its_latents_are(name):
    pipe = pipe_of(name)
    stop = lambda p, i, *_: p.stop() if i == 1 else None  # noqa: E731
    film = pipe("a dog runs", pipe.preset.film(3), callback_on_step_end=stop, **asked(name, num_inference_steps=6))
    again = pipe.output(film.latents, film.fps, None, {}, "film") if name != "ltx" else None
    if again is not None:
        assert np.abs(again.frames.astype(int) - film.frames).max() <= 1
    assert torch.isfinite(film.latents).all() and film.info["steps"] == 2


def test_d8_a_first_frame_that_the_pipeline_holds_is_in_the_latents():
    for name in ("wan-ti2v", "ltx-i2v"):
        pipe = pipe_of(name)
        film = pipe("a dog runs", pipe.preset.film(3), **asked(name))
        side = SIZES.get(name, 32)
        wanted = encoded(pipe.stock, pipe.preset, picture(name), (side, side), 0)
        if name == "wan-ti2v":
            assert torch.allclose(film.latents[0], wanted, atol=1e-5)
        assert film.latents[0].shape == wanted.shape and len(film.latents) == 3
        other = pipe("a dog runs", pipe.preset.film(3), **asked(name) | {"image": picture(name, (20, 30, 220))})
        assert (other.latents[0] - film.latents[0]).abs().max() > 1e-3


def test_d8_a_film_with_sound_is_written_with_it(tmp_path):
    import av

    film = pipe_of("ltx2")("a dog runs", 33, **asked("ltx2"))
    seconds = 33 / film.fps
    assert film.sound.shape == (round(seconds * 24000), 2) and film.rate == 24000
    assert film.info["sound"] == {"rate": 24000, "channels": 2, "seconds": round(seconds, 3)}
    time = np.arange(len(film.sound)) / film.rate
    film.sound = np.stack([0.5 * np.sin(2 * np.pi * 440 * time), 0 * time], 1).astype(np.float32)
    with av.open(str(film.save(tmp_path / "dog.mp4"))) as file:
        assert (file.streams.video[0].frames, file.streams.audio[0].codec_context.sample_rate) == (33, 24000)
        heard = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1)
    loudest = np.abs(np.fft.rfft(heard[0, 4000:16000])).argmax() * 24000 / 12000
    assert abs(loudest - 440) <= 2 and np.abs(heard[1]).max() < 0.01  # the left one sings, the right one is silent
    film.save(tmp_path / "dog.gif")
    with wave.open(str(tmp_path / "dog.wav")) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (len(film.sound), 24000, 2)
        read = np.frombuffer(file.readframes(-1), "<i2").reshape(-1, 2) / 32767
    assert np.abs(read - film.sound).max() <= 1 / 32767
    with pytest.raises(UserError, match="dog.wav"):
        film.save(tmp_path / "dog")  # the folder would be new, the sound is there
    assert not (tmp_path / "dog").exists()


def films_of(ranks=None):
    """By name: latents, and the sound and its latents where there is one. A film, one that goes on, one mended."""
    pipe, given = pipe_of("ltx2"), asked("ltx2", num_inference_steps=2)
    film = pipe("a dog runs", 41, ranks=ranks, **given)
    earlier = {"latents": film.latents, "sound": film.sound_latents}
    made = {
        "ltx2": film,
        "ltx2 longer": pipe("0s: a dog runs | 1s: a cat swims", context=pipe.context(**earlier, frames=16), **given,
                            ranks=ranks),
        "ltx2 again": pipe("a cat swims", context=pipe.context(**earlier, redo=(9, 25)), ranks=ranks, **given),
        "wan-i2v": pipe_of("wan-i2v")("a dog runs", 13, ranks=ranks, **asked("wan-i2v", num_inference_steps=2)),
    }  # fmt: skip
    parts = ("latents", "sound", "sound_latents")
    return {name: {part: np.asarray(getattr(one, part)) for part in parts if hasattr(one, part)} for name, one in
            made.items()}  # fmt: skip


def over_ranks(rank, world):
    torch.set_num_threads(1)
    return films_of(ranks_here())


@pytest.fixture(scope="module")
def alone():
    return films_of()


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_d8_any_number_of_ranks_makes_extends_and_mends_the_same_film_and_sound(world, alone):
    from ranks import run_ranks

    for rank, made in enumerate(run_ranks(over_ranks, world)):
        for name, parts in alone.items():
            for part, wanted in parts.items():
                if part == "sound" and rank:
                    assert made[name][part].size == 0
                else:
                    assert made[name][part].shape == wanted.shape and np.abs(made[name][part] - wanted).max() <= 1e-4


@pytest.mark.parametrize(
    "name", ["wan-i2v", "cogvideox-i2v", "ltx-i2v", "hunyuan15", "kandinsky", "ltx2", "ltx", "mochi", "hunyuan", "vace"]
)
def test_d8_no_negative_prompt_long_prompts_and_any_number_of_frames(name):
    pipe = pipe_of(name)
    words = "a dog runs over the hill and jumps over the red sea " * 30
    film = pipe(words, pipe.preset.film(2) + 1, **asked(name, negative_prompt=None, num_inference_steps=2))
    assert len(film.frames) == pipe.preset.film(2) + 1 and len(film.latents) == 3


def test_d8_image_rows_of_hunyuan_1_5_stand_beside_each_prompt():
    """Frames that hear one prompt alone are those of a call with it, picture and padded rows included."""
    from dit_models import call_of, make
    from longtake.kernels.partition import Partition
    from longtake.video.parallelize import parallelize

    model, given = make("hunyuan15"), call_of("hunyuan15", 6)
    second = call_of("hunyuan15", 6, texts=2)
    for name, length in (("encoder_hidden_states", 5), ("encoder_hidden_states_2", 3)):
        told = torch.randn(2, length, given[name].shape[2], generator=torch.Generator().manual_seed(length))
        second[name] = torch.cat([given[name], told], 1)
    for name in ("encoder_attention_mask", "encoder_attention_mask_2"):
        second[name] = torch.cat([given[name], given[name].flip(0)], 1)
    own = {name: second[name].chunk(2, 1)[1] for name in second if name.startswith("encoder_")}
    wanted = [model(**given).sample, model(**{**given, **own}).sample]
    with parallelize(model, Partition.even(6, 1), ALL, whole=True) as handle:
        alone = [model(**{**given, **told}).sample for told in ({}, own)]
        weights = torch.zeros(6, 2)
        weights[:3, 0] = weights[3:, 1] = 1
        handle.set_prompts(weights, 5)
        both = model(**second).sample
        for number in (0, 1):
            handle.set_prompts(torch.eye(2)[number].expand(6, 2), 5)
            one = model(**second).sample
            assert (one - alone[number]).abs().max() <= 1e-5
    assert (both[:, :, 0] - both[:, :, 3]).abs().max() > 1e-3 and not torch.equal(*wanted)


@pytest.mark.parametrize("name", ["cosmos-i2v", "cosmos2-i2v"])
def test_d8_cosmos_begins_from_a_film_too(name):
    pipe = pipe_of(name)
    told = [picture(name, (200 - 30 * frame, 40, 40)) for frame in range(5)]
    given = asked(name, image=False, scope=None, positions="absolute")
    film = pipe("a dog runs", 13, video=told, **given)
    other = pipe("a dog runs", 13, video=told[::-1], **given)
    held = pipe("a dog runs", 13, image=told[0], **given)
    assert (film.latents - other.latents)[0].abs().max() > 1e-3
    moved = (film.latents - held.latents).abs().amax((1, 2, 3))
    assert moved[1] > 1e-3 and moved[0] < 1e-4  # the second latent frame is the film's, the first the picture's


def test_d8_cosmos_takes_longer_films_than_its_vae_has_moments_for_and_its_guardrail_sees_them():
    pipe = pipe_of("cosmos")
    before = dict(pipe.stock.vae.config)
    film = pipe("a dog runs", 21, **asked("cosmos"))
    assert len(before["latents_mean"]) == 16 and dict(pipe.stock.vae.config) == before  # moments of 4 frames, put back
    pipe.stock.safety_checker.seen = 0
    longer = pipe("a dog runs", context=pipe.context(film.latents, frames=8), **asked("cosmos"))
    assert pipe.stock.safety_checker.seen >= len(longer.frames) == 29
    pipe.stock.safety_checker.check_video_safety = lambda frames: frames if len(frames) == 1 else None
    with pytest.raises(UserError, match="the guardrail of CosmosTextToWorldPipeline does not let this film pass"):
        pipe("a dog runs", 21, **asked("cosmos"))


def test_a_guardrail_leaves_the_device_when_the_film_ends_is_left_or_is_refused():
    moved, frames = [], np.zeros((1, 8, 8, 3))
    checker = SimpleNamespace(to=moved.append, check_video_safety=lambda chunk: None if chunk.any() else chunk)
    stock = SimpleNamespace(safety_checker=checker, _execution_device="there")
    assert len(list(guarded(stock, iter([frames, frames])))) == 2
    left = guarded(stock, iter([frames, frames]))
    next(left)
    left.close()
    with pytest.raises(UserError, match="does not let this film pass"):
        list(guarded(stock, iter([frames, frames + 1])))
    assert moved == ["there", "cpu"] * 3


def test_d8_what_cannot_be_driven_or_given_is_refused_by_name():
    from diffusers import SkyReelsV2DiffusionForcingImageToVideoPipeline as Forcing

    with pytest.raises(UserError, match="DiffusionForcingImageToVideoPipeline steps a scheduler of its own for each"):
        LongVideoPipeline.from_pipeline(Forcing(**PIPELINES["skyreels"]().components))
    with pytest.raises(UserError, match="SkyReelsV2Pipeline does not take ar_step"):
        pipe_of("skyreels-forcing")("a dog runs", 9, ar_step=5, **asked("skyreels-forcing"))
    with pytest.raises(UserError, match="LTXConditionPipeline steps tokens of conditions"):
        LongVideoPipeline.from_pipeline(ltx("LTXConditionPipeline"))
    with pytest.raises(UserError, match="image_condition_type=latent_concat drops the film's first frames"):
        LongVideoPipeline.from_pipeline(hunyuan_i2v("latent_concat"))
    with pytest.raises(UserError, match="MiniMaxH3ModularPipeline is made of blocks, each with a loop"):
        LongVideoPipeline.from_pipeline(minimax())
    with pytest.raises(UserError, match="evens its first 4 latent frames out with those behind them: at least 5"):
        pipe_of("kandinsky-i2v")("a dog runs", 9, **asked("kandinsky-i2v"))
    with pytest.raises(UserError, match="chooses 32 x 32 pixels by its picture; None x 64 were asked for"):
        pipe_of("hunyuan15-i2v")("a dog runs", 9, **asked("hunyuan15-i2v", height=64, width=None))
    pipe = pipe_of("wan-i2v")
    with pytest.raises(UserError, match="WanImageToVideoPipeline begins from a picture: give image="):
        pipe("a dog runs", 9, **asked("wan-i2v", image=False))
    with pytest.raises(UserError, match="WanImageToVideoPipeline: `image` has to be of type"):
        pipe("a dog runs", 9, **asked("wan-i2v") | {"image": "dog.png"})
    with pytest.raises(UserError, match="guidance_scale_2. is only supported"):
        pipe("a dog runs", 9, guidance_scale_2=2.0, **asked("wan-i2v"))
    for key, value in (("latents", torch.zeros(1)), ("num_videos_per_prompt", 2), ("prompt_embeds", torch.zeros(1))):
        with pytest.raises(UserError, match=f"{key} cannot be given to WanImageToVideoPipeline here"):
            pipe("a dog runs", 9, **{key: value}, **asked("wan-i2v"))
    far = torch.randn(40, 4, 4, 4)
    with pytest.raises(UserError, match="image is the film's first frame, and this run sees latent frames 16 to 40"):
        pipe("a dog runs", context=pipe.context(far, frames=4), **asked("wan-i2v"))
    sounding = LongVideoPipeline.from_pipeline(quiet(ltx2()), length=3)
    film = torch.randn(4, 4, 2, 2)
    with pytest.raises(UserError, match="LTX2Pipeline makes sound with the film, and the earlier run holds none"):
        sounding("a dog", context=sounding.context(film, frames=8), **asked("ltx2"))
    with pytest.raises(UserError, match="there must be 26 of them: name the fps that it was made with"):
        sounding("a dog", context=sounding.context(film, frames=8, sound=torch.zeros(20, 4)), **asked("ltx2"))
    with pytest.raises(UserError, match="the earlier run has sound, and WanImageToVideoPipeline makes none"):
        pipe("a dog", context=pipe.context(far, redo=(0, 9), sound=torch.zeros(20, 4)), **asked("wan-i2v"))
