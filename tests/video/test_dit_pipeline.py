"""A stock pipeline of a video transformer as a long-video pipeline (D8, D9)."""

import functools
import warnings

import numpy as np
import pytest
import torch
from dit_pipelines import PIPELINES, SIZES, ltx2, wan
from longtake import LongVideoPipeline
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.noise import noise
from longtake.video.dit.decode import Caught, Decoder, stills
from longtake.video.dit.guidance import firsts_of
from longtake.video.dit.held import encoded
from longtake.video.dit.presets import PRESETS, preset_of
from longtake.video.dit.records import RECORDS
from longtake.video.scope import Scope
from PIL import Image
from video_prior import ranks_here

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 3


def quiet(stock):
    stock.set_progress_bar_config(disable=True)
    return stock


def pipe_of(name="wan", length=3):
    return LongVideoPipeline.from_pipeline(quiet({**PIPELINES, "ltx2": ltx2}[name]()), length=length)


def asked(name="wan", seed=1, **changes):
    side = SIZES.get(name, 32)
    return {"height": side, "width": side, "num_inference_steps": STEPS, "seed": seed, **changes}


def test_d8_within_the_training_length_the_film_is_that_of_the_stock_pipeline():
    pipe = pipe_of()
    film = pipe("a dog runs", 9, **asked()).frames
    latents = noise(1, 0, range(3), 0, (4, 4, 4)).transpose(0, 1)[None]
    stock = quiet(wan())(
        "a dog runs", negative_prompt="", height=32, width=32, num_frames=9, num_inference_steps=STEPS,
        guidance_scale=5.0, latents=latents, output_type="np",
    ).frames[0]  # fmt: skip
    assert film.shape == (9, 32, 32, 3)
    assert np.abs(stock * 255 - film).max() <= 0.51  # rounding to uint8


@pytest.mark.parametrize("name", PIPELINES)
def test_d8_every_family_makes_extends_and_follows_a_timeline(name):
    warnings.simplefilter("ignore")
    pipe = pipe_of(name)
    frames = pipe.preset.film(6)
    film = pipe("a dog runs", frames, **asked(name))
    assert len(film.frames) == frames and len(film.latents) == 6
    longer = pipe("a dog runs", context=pipe.context(film.latents, frames=2 * pipe.preset.stride), **asked(name))
    assert torch.equal(longer.latents[:6], film.latents) and len(longer.frames) == frames + 2 * pipe.preset.stride
    half = frames // 2
    told = pipe(f"0: a dog runs | {half}: a cat swims", frames, **asked(name, scope=Scope(0, 0, gate="off")))
    plain = pipe("a dog runs", frames, **asked(name, scope=Scope(0, 0, gate="off")))
    moved = (told.latents - plain.latents).abs().amax((1, 2, 3))
    assert moved[-1] > 1e-3
    if name in ("wan", "vace", "skyreels", "ltx"):  # text by cross-attention: frames that hear one prompt alone
        assert moved[0] < 1e-5


def test_d8_a_part_is_made_anew_and_all_else_stays():
    pipe = pipe_of()
    film = pipe("a dog runs", 33, **asked())
    again = pipe("a cat swims", context=pipe.context(film.latents, redo=(10, 18)), **asked(seed=5))
    moved = (again.latents - film.latents).abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [False] * 3 + [True] * 3 + [False] * 3
    with pytest.raises(UserError, match="cannot redo frames 30:40 of a video of 33 frames"):
        pipe.context(film.latents, redo=(30, 40))


def test_d8_first_middle_and_last_frames_are_held():
    pipe = pipe_of()
    pictures = {frame: Image.new("RGB", (32, 32), colour) for frame, colour in ((0, "red"), (8, "blue"), (-1, "green"))}
    film = pipe("a dog runs", 17, hold=pictures, **asked())
    for frame, latent in ((0, 0), (8, 2), (-1, 4)):
        wanted = encoded(pipe.stock, pipe.preset, pictures[frame], (32, 32), latent)
        assert torch.allclose(film.latents[latent], wanted, atol=1e-6)
    assert film.latents[1].std() > 0.1
    with pytest.raises(UserError, match="hold names frame 40"):
        pipe("a dog runs", 17, hold={40: pictures[0]}, **asked())


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_d8_a_run_that_was_ended_goes_on_to_the_same_latents(name, tmp_path):
    whole = pipe_of(name)("a dog runs", 17, **asked(name))
    pipe = pipe_of(name)
    with Journal(tmp_path / "run") as journal:
        journal.open({"prompt": "a dog runs"})
        stopped = pipe(
            "a dog runs", 17, journal=journal, callback_on_step_end=lambda p, i, *_: p.stop() if i == 1 else None,
            **asked(name),
        )  # fmt: skip
    assert stopped.info["completed"] is False and stopped.info["steps"] == 2
    assert np.isfinite(stopped.latents).all() and not torch.equal(stopped.latents, whole.latents)
    with Journal(tmp_path / "run") as journal:
        assert journal.open({"prompt": "a dog runs"}, "resume")
        resumed = pipe_of(name)("a dog runs", 17, journal=journal, **asked(name))
    assert resumed.info["completed"] and torch.equal(resumed.latents, whole.latents)


def test_d8_a_stopped_run_shows_the_estimate_of_the_clean_frames():
    seen = []
    pipe = pipe_of()
    pipe("a dog runs", 9, callback_on_step_end=lambda _p, i, t, told: seen.append(told), **asked())
    assert [told["latents"].shape for told in seen] == [(3, 4, 4, 4)] * STEPS
    assert torch.allclose(seen[-1]["clean"], seen[-1]["latents"], atol=1e-5)  # the last step ends at its estimate
    assert not torch.allclose(seen[0]["clean"], seen[0]["latents"], atol=1e-2)


def over_ranks(rank, world):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ranks = ranks_here()
    assert ranks.world == world
    made = {}
    for name in ("wan", "cogvideox"):
        pipe = pipe_of(name)
        film = pipe("0s: a dog runs | 1s: a cat swims", 25, ranks=ranks, **asked(name))
        context = pipe.context(film.latents, redo=(6, 18))
        redo = pipe("a cat swims", context=context, ranks=ranks, **asked(name))
        made[name] = (film.latents.numpy(), redo.latents.numpy(), len(film.frames))
    return made


@functools.cache
def one_process():
    alone = {}
    for name in ("wan", "cogvideox"):
        pipe = pipe_of(name)
        film = pipe("0s: a dog runs | 1s: a cat swims", 25, **asked(name))
        redo = pipe("a cat swims", context=pipe.context(film.latents, redo=(6, 18)), **asked(name))
        alone[name] = (film.latents.numpy(), redo.latents.numpy())
    return alone


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_d8_the_same_film_from_any_number_of_ranks(world):
    from ranks import run_ranks

    alone = one_process()
    for rank, made in enumerate(run_ranks(over_ranks, world)):
        for name, (film, redo, frames) in made.items():
            assert np.abs(film - alone[name][0]).max() <= 1e-4 and np.abs(redo - alone[name][1]).max() <= 1e-4
            assert frames == (25 if rank == 0 else 0)


ONE, TWO = "a dog runs", "0s: a dog runs | 0.5s: a cat swims"
GUIDED = {"wan": (ONE, TWO), "cogvideox": (ONE, TWO), "ltx": (TWO,), "ltx2": (ONE, TWO)}


@functools.cache
def guided_alone(name, prompt):
    return pipe_of(name)(prompt, 17, **asked(name))


def guided_over_ranks(rank, world):
    """One pass a call (Wan) and both in one batch (CogVideoX, LTX, LTX-2), with one prompt and with two."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ranks, made = ranks_here(), {}
    for name, prompts in GUIDED.items():
        for prompt in prompts:
            pipe = pipe_of(name)
            film = pipe(prompt, 17, ranks=ranks, guidance_ranks=True, **asked(name))
            made[name, prompt] = (film.latents.numpy(), film.info["traffic"]["received"])
            if name == "ltx2":
                made["sound of ltx2", prompt] = (film.sound_latents.numpy(), film.info["traffic"]["received"])
    return made


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 4])
def test_d8_guidance_on_halves_of_the_ranks_is_the_film_of_one(world):
    from ranks import run_ranks

    for made in run_ranks(guided_over_ranks, world):
        assert len(made) == 9
        for (name, prompt), (latents, received) in made.items():
            model = name.removeprefix("sound of ")
            film = guided_alone(model, prompt)
            alone = (film.latents if name == model else film.sound_latents).numpy()
            assert np.abs(latents - alone).max() <= 1e-4 * max(1.0, np.abs(alone).max())
            assert ("frames" in received) == (world == 4)  # two ranks: each half holds the whole video


def odd_halves(rank, world):
    try:
        pipe_of()("a dog runs", 9, ranks=ranks_here(), guidance_ranks=True, **asked())
    except UserError as error:
        return str(error)
    return "made"


@pytest.mark.distributed
def test_d8_guidance_over_an_odd_number_of_ranks_is_refused():
    from ranks import run_ranks

    assert set(run_ranks(odd_halves, 3)) == {"guidance over ranks parts them in two halves; given 3 ranks"}


@pytest.mark.parametrize("name", ["wan", "cogvideox", "mochi"])
def test_d8_a_causal_vae_decodes_in_a_stream_what_it_decodes_at_once(name):
    vae = PIPELINES[name]().vae
    note = Caught()
    note.z = torch.randn(1, vae.config.get("z_dim") or vae.config.latent_channels, 7, 4, 4)
    decoder = Decoder(vae, note)
    pieces = list(decoder.pieces())
    with torch.no_grad():
        whole = vae.decode(note.z, return_dict=False)[0][0].transpose(0, 1)
    assert decoder.exact and len(pieces) > 1
    assert (torch.cat(pieces).clamp(-1, 1) - whole.clamp(-1, 1)).abs().max() <= 1e-5


def test_d8_a_vae_that_offload_keeps_elsewhere_is_fetched_before_it_is_used():
    """accelerate's hook brings a module to its device when diffusers' own encode or decode is called; parts of a VAE
    are called here too."""
    pipe = pipe_of()
    called = []

    class Hook:
        def pre_forward(self, module, *args, **kwargs):
            called.append(module)
            return args, kwargs

    film = pipe("a dog runs", 9, **asked(output_type="stream"))
    pipe.stock.vae._hf_hook = Hook()
    assert sum(len(chunk) for chunk in film.chunks()) == 9 and called[0] is pipe.stock.vae
    called.clear()
    encoded(pipe.stock, pipe.preset, Image.new("RGB", (32, 32)), (32, 32), 0)
    assert called[0] is pipe.stock.vae


@pytest.mark.parametrize("name", ["ltx", "hunyuan"])
def test_d8_other_vaes_decode_in_pieces_that_overlap_and_say_so(name):
    vae = PIPELINES[name]().vae
    note = Caught()
    note.z = torch.randn(1, 4, 20, 4, 4)
    decoder = Decoder(vae, note)
    pieces = list(decoder.pieces())
    with torch.no_grad():
        whole = vae.decode(note.z, return_dict=False)[0][0].transpose(0, 1)
    made = torch.cat(pieces)
    assert made.shape == whole.shape and not decoder.exact and len(pieces) == 4
    step = (whole[1:] - whole[:-1]).abs().mean()
    assert (made[1:] - made[:-1]).abs().mean() < 1.1 * step  # no jump where pieces meet


def test_d9_presets_by_repository_and_a_question_for_an_unknown_one():
    record = RECORDS["WanTransformer3DModel"]
    known = preset_of("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", record)
    assert (known.length, known.frames, known.fps) == (21, 81, 16.0)
    assert [known.latents(frames) for frames in (1, 2, 5, 81, 82)] == [1, 2, 2, 21, 22]
    assert [known.latent_of(frame) for frame in (0, 1, 4, 5)] == [0, 1, 1, 2]
    with pytest.raises(UserError, match="no preset for somebody/a-model: say its training length"):
        preset_of("somebody/a-model", record)
    assert preset_of("somebody/a-model", record, length=31, fps=24).frames == 121
    for preset in PRESETS.values():
        assert preset.height % 16 == preset.width % 16 == 0 and preset.length > 1


def test_d9_a_public_layout_loads_from_a_folder_by_the_usual_door(tmp_path):
    quiet(wan()).save_pretrained(tmp_path / "wan")
    pipe = LongVideoPipeline.from_prior(tmp_path / "wan")
    film = pipe("a dog runs", 9, **asked())
    other = pipe_of(length=21)(
        "a dog runs", 9, **asked()
    ).frames  # the last bit of a weight that was read may round otherwise
    assert np.abs(film.frames.astype(int) - other.astype(int)).max() <= 1
    loaded = LongVideoPipeline.from_pretrained(tmp_path / "wan", torch_dtype=torch.bfloat16, length=9)
    assert loaded.record is pipe.record and (loaded.preset.length, loaded.preset.height) == (9, 480)
    assert loaded.stock.transformer.dtype == torch.bfloat16 and loaded.stock.vae.dtype == torch.bfloat16


def test_d9_what_is_no_folder_here_is_one_line_by_either_door(tmp_path):
    for load in (LongVideoPipeline.from_pretrained, LongVideoPipeline.from_prior):
        for name, told in {
            "models/wam": "there is no folder models/wam here", str(tmp_path / "wam"): "wam does not exist",
            "wam": "unknown video prior 'wam'; priors that ship: kay", str(tmp_path): "without a model's files",
        }.items():  # fmt: skip
            with pytest.raises(UserError, match=told) as refusal:
                load(name)
            assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="length is for video transformers, which kaykit-small is not"):
        LongVideoPipeline.from_pretrained("kaykit-small", length=9)


def test_what_cannot_be_driven_is_refused_by_name():
    pipe = pipe_of()
    assert (firsts_of([1, 1], ""), firsts_of([2], ""), firsts_of([2, 1, 1], "")) == ({0}, set(), {1})
    for batches in ([1], [2, 1], [1, 1, 1], [4]):
        with pytest.raises(UserError, match="needs passes in pairs; LTX2Pipeline makes calls of batch"):
            firsts_of(batches, "LTX2Pipeline")
    with pytest.raises(UserError, match="WanPipeline does not take image"):
        pipe("a dog runs", 9, image=None, **asked())
    with pytest.raises(UserError, match="height must be a multiple of 16, got 40"):
        pipe("a dog runs", 9, **asked(height=40))
    with pytest.raises(UserError, match="output_type must be one of"):
        pipe("a dog runs", 9, output_type="gif", **asked())


def test_a_still_of_the_first_latent_frame_is_the_films_first_frame():
    """Of a VAE whose norms know one frame at a time, as Wan's."""
    pipe = pipe_of("wan", 3)
    film = pipe("a dog runs", 9, **asked())
    first, last = stills(pipe.stock, film.latents, [0, 2])
    assert np.abs(first.astype(int) - film.frames[0].astype(int)).max() <= 1
    assert last.shape == first.shape and not np.array_equal(first, last)
