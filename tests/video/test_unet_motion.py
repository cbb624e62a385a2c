"""AnimateDiff's UNetMotionModel on several ranks, plain and with FreeNoise, is diffusers' on one: exactness, safety."""

import functools
import json

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport
from longtake.video import freenoise
from longtake.video.parallelize import UnsupportedModule, parallelize
from longtake.video.pipeline import InitialNoise, LongVideoPipeline
from longtake.video.scope import Scope
from longtake.video.unet_motion import motion_modules
from ranks import run_ranks
from video_models import fill_parameters, golden, noise

TOLERANCE = 1e-5
SIDE = 4
TINY = {
    "sample_size": 4,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 32,
    "temporal_transformer_layers_per_block": 2,
}


def tiny_motion(**changes):
    from diffusers import UNetMotionModel

    return fill_parameters(UNetMotionModel(**{**TINY, **changes}))


class FreeNoisePipe:
    """As much of a stock AnimateDiffPipeline as its FreeNoise mixin uses."""

    def __new__(cls, unet):
        from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

        pipe = type("FreeNoisePipe", (AnimateDiffFreeNoiseMixin,), {})()
        pipe.unet = pipe.motion_adapter = unet
        pipe.device, pipe.dtype, pipe.vae_scale_factor = unet.device, unet.dtype, 1
        return pipe


def with_freenoise(unet, length=8, stride=4, scheme="pyramid"):
    FreeNoisePipe(unet).enable_free_noise(length, stride, scheme)
    return unet.eval()


def model_of(windows):
    unet = tiny_motion()
    return unet if windows is None else with_freenoise(unet, *windows)


@functools.cache
def _kept(plain):
    return tiny_motion()


def again(windows):
    """`model_of`, made once in a process and set anew; not to be changed otherwise."""
    unet = _kept(windows is None)
    return unet if windows is None else with_freenoise(unet, *windows)


def inputs(frames, side=SIDE, batch=2):
    """Latents, and text that differs from frame to frame."""
    return noise("motion/latents", batch, 4, frames, side, side), noise("motion/text", batch * frames, 5, 16)


def part_of(rows, mine, batch=2):
    """The rows (B*T, ...) of some frames, of rows (B*F, ...)."""
    return rows.unflatten(0, (batch, -1))[:, mine.start : mine.stop].flatten(0, 1)


def even(frames):
    return {world: Partition.even(frames, world).sizes for world in WORLDS}


WORLDS = (2, 3, 4)
# windows (context_length, context_stride, weights), strategies, frames of each rank by number of ranks, latent side
CASES = {
    "plain": (None, ("transpose", "halo", "gather"), even(19), SIDE),
    "freenoise": ((8, 4, "pyramid"), ("transpose", "halo", "gather"), even(20), SIDE),
    "off the lattice": ((8, 3, "flat"), ("transpose", "halo"), {2: (1, 21), 3: (1, 20, 1), 4: (2, 1, 8, 11)}, SIDE),
    "empty pieces": (
        (4, 2, "delayed_reverse_sawtooth"), ("transpose", "halo"), {2: (0, 9), 3: (5, 0, 4), 4: (0, 4, 0, 5)}, SIDE
    ),
    "more ranks than pixels": ((4, 4, "pyramid"), ("transpose", "halo"), {2: (4, 0), 3: (0, 0, 4), 4: (1, 1, 1, 1)}, 2),
    "windows with gaps": ((4, 6, "pyramid"), ("transpose",), even(16), SIDE),
}  # fmt: skip


@functools.cache
def stock(frames, windows, side):
    latents, text = inputs(frames, side)
    with torch.no_grad():
        return again(windows)(latents, 500, text).sample


def part_by_rank(rank, cases):
    """For each (windows, strategy, sizes, side, reference) the difference to the reference, and what is told."""
    answers = []
    for windows, strategy, sizes, side, reference in cases:
        model, partition = again(windows), Partition.from_sizes(sizes)
        mine = partition.range(rank)
        latents, text = inputs(partition.total, side)
        with parallelize(model, partition, None, strategy=strategy) as handle:
            out = model(latents[:, :, mine.start : mine.stop], 500, part_of(text, mine)).sample
            received = dict(handle.counter.as_dict()["received"])
        expected = reference[:, :, mine.start : mine.stop]
        assert out.shape == expected.shape
        answers.append(((out - expected).abs().max().item() if len(mine) else 0.0, received, handle.explain()))
    return answers


def golden_of(case):
    about, outputs, given, model = golden(case)
    settings = about["free_noise"]
    with_freenoise(model, settings["context_length"], settings["context_stride"], settings["weighting_scheme"])
    return about, outputs, given, model


def golden_by_rank(rank, world, case, strategies):
    """The largest difference to the golden at each timestep, for each strategy."""
    about, outputs, given, model = golden_of(case)
    partition = Partition.from_sizes(about["frames_per_rank_any_of"][str(world)])
    mine = partition.range(rank)
    latents = outputs["in_latents"].repeat(2, 1, 1, 1, 1)[:, :, mine.start : mine.stop]
    text = part_of(given["text"].repeat_interleave(partition.total, 0), mine)
    differences = []
    for strategy in strategies:
        with parallelize(model, partition, None, strategy=strategy):
            for timestep in about["timesteps"]:
                expected = outputs[f"t{timestep}"][:, :, mine.start : mine.stop]
                differences.append((model(latents, timestep, text).sample - expected).abs().max().item())
    return differences


def variants_by_rank(rank):
    """What each way to call a model of 10 frames differs from the stock one by; and whether that comes back."""
    frames, windows = 10, (4, 2, "pyramid")
    partition = Partition.from_sizes((6, 0, 4))
    mine = partition.range(rank)
    latents, rows = inputs(frames)
    own = latents[:, :, mine.start : mine.stop]
    text = part_of(rows, mine)
    one = noise("motion/one text", 2, 5, 16)
    middle = noise("motion/middle", 2 * frames, 16, 2, 2)
    model = model_of(windows)

    def differs(out, expected):
        return (out - expected[:, :, mine.start : mine.stop]).abs().max().item() if len(mine) else 0.0

    whole = model(latents, 500, rows).sample
    whole_one = model(latents, 500, one.repeat_interleave(frames, 0)).sample
    whole_middle = model(latents, 500, rows, mid_block_additional_residual=middle).sample
    found = {}
    with parallelize(model, partition, None) as handle:
        found["one text for a video"] = differs(model(own, 500, one).sample, whole_one)
        found["text of all frames"] = differs(model(own, 500, encoder_hidden_states=rows).sample, whole)
        handle.set_text(lambda some: rows.unflatten(0, (2, frames))[:, some.start : some.stop])
        found["text by provider"] = differs(model(own, 500, one, return_dict=False)[0], whole)
        handle.set_text(None)
        given = {"mid_block_additional_residual": part_of(middle, mine)}
        found["residuals of a ControlNet"] = differs(model(own, 500, text, **given).sample, whole_middle)
    found["stock after remove"] = 0.0 if torch.equal(model(latents, 500, rows).sample, whole) else 1.0
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    FreeNoisePipe(model).enable_free_noise_split_inference(spatial_split_size=5, temporal_split_size=2)
    for strategy in ("transpose", "halo"):
        with parallelize(model, partition, None, strategy=strategy):
            found[f"split inference, {strategy}"] = differs(model(own, 500, text).sample, whole)
    return found


def sample_by_rank(rank, world):
    """Three guided DDIM steps from shuffled noise: this rank's latents."""
    from diffusers import DDIMScheduler

    frames, windows = 14, (8, 4, "pyramid")
    partition = Partition.even(frames, world)
    mine = partition.range(rank)
    index = freenoise.shuffled_frames(frames, 8, 4, torch.Generator().manual_seed(5))[mine.start : mine.stop]
    latents = noise("motion/run", 1, 4, frames, SIDE, SIDE)[:, :, index]
    text = part_of(inputs(frames)[1], mine)
    model, scheduler = again(windows), DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(3)
    with parallelize(model, partition, None):
        for t in scheduler.timesteps:
            empty, full = model(latents.expand(2, -1, -1, -1, -1), t, text).sample.chunk(2)
            latents = scheduler.step(empty + 5.0 * (full - empty), t, latents).prev_sample
    return latents


def all_of_a_rank(rank, world, cases):
    torch.set_grad_enabled(False)
    strategies = ("transpose", "halo") if world == 3 else ("transpose",)
    return {
        "cases": part_by_rank(rank, cases),
        "goldens": {case: golden_by_rank(rank, world, case, strategies) for case in GOLDENS},
        "variants": variants_by_rank(rank) if world == 3 else None,
        "sample": sample_by_rank(rank, world),
    }


@functools.cache
def answers_of(world):
    """Everything that ranks compute, at once: processes are slow to start."""
    cases = [
        (windows, strategy, sizes[world], side, stock(sum(sizes[world]), windows, side))
        for windows, strategies, sizes, side in CASES.values()
        for strategy in strategies
    ]
    return run_ranks(all_of_a_rank, world, cases)


def cases_of(world):
    """{(name, strategy): [(difference, received, explained) of each rank]}"""
    names = [(name, strategy) for name, (_, strategies, *_) in CASES.items() for strategy in strategies]
    return {name: [answer["cases"][place] for answer in answers_of(world)] for place, name in enumerate(names)}


GOLDENS = ["v5_freenoise_f40", "v5x_freenoise_f22_offlattice"]


@pytest.mark.distributed
@pytest.mark.parametrize("case", GOLDENS)
@pytest.mark.parametrize("world", WORLDS)
def test_a8_freenoise_over_ranks_equals_stock_freenoise(case, world):
    assert max(max(answer["goldens"][case]) for answer in answers_of(world)) <= TOLERANCE


@pytest.mark.parametrize("case", GOLDENS)
def test_a8_one_process_is_stock_freenoise(case):
    with torch.no_grad():
        assert max(golden_by_rank(0, 1, case, ("auto",))) <= TOLERANCE


@pytest.mark.distributed
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_a1_any_pieces_and_strategy_equal_stock_on_concatenated_latents(name, world):
    found = {strategy: answers for (case, strategy), answers in cases_of(world).items() if case == name}
    assert set(found) == set(CASES[name][1])
    assert {key: max(answer[0] for answer in answers) for key, answers in found.items()} == pytest.approx(
        dict.fromkeys(found, 0.0), abs=TOLERANCE
    )


@pytest.mark.distributed
def test_text_in_every_form_residuals_and_split_inference_equal_stock_and_remove_restores_it():
    for answer in answers_of(3):
        assert len(answer["variants"]) == 7
        assert answer["variants"] == pytest.approx(dict.fromkeys(answer["variants"], 0.0), abs=TOLERANCE)
        assert answer["variants"]["stock after remove"] == 0.0


@pytest.mark.distributed
def test_a5_a_guided_run_does_not_depend_on_the_number_of_ranks():
    with torch.no_grad():
        alone = sample_by_rank(0, 1)
    assert alone.abs().max() > 0.1
    for world in WORLDS:
        together = torch.cat([answer["sample"] for answer in answers_of(world)], 2)
        assert (together - alone).norm() <= 1e-4 * alone.norm()


@pytest.mark.distributed
def test_a9_bytes_are_those_that_are_told():
    answers = cases_of(3)["freenoise", "transpose"]
    pixels, batch, size = SIDE * SIDE, 2, 4
    told = float(answers[0][2].split("transpose ")[-1].split(",")[0])
    # pixels are cut by whole pixels, 16 = 6 + 5 + 5 and 4 = 2 + 1 + 1: the busiest rank is at most that much above
    most = max(received["transpose"] for _, received, _ in answers)
    assert told * pixels * batch * size * 0.9 <= most <= told * pixels * batch * size * 1.5
    halo = cases_of(3)["freenoise", "halo"]
    told = float(halo[0][2].split("halo ")[-1].split(",")[0])
    assert max(received["halo"] for _, received, _ in halo) == told * pixels * batch * size
    assert "as asked" in halo[0][2] and "strategy halo" in halo[0][2]


def test_frames_meet_in_the_motion_modules_only():
    model = tiny_motion()
    latents, text = inputs(5)
    changed = latents.clone()
    changed[:, :, 2] += 1.0
    with torch.no_grad():
        mixed = model(latents, 500, text).sample != model(changed, 500, text).sample
        for module in motion_modules(model).values():
            module.forward = lambda hidden_states, *_, **__: hidden_states
        local = model(latents, 500, text).sample != model(changed, 500, text).sample
    assert [bool(mixed[:, :, frame].any()) for frame in range(5)] == [True] * 5
    assert [bool(local[:, :, frame].any()) for frame in range(5)] == [False, False, True, False, False]


# ---- noise and windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDENS)
def test_a8_shuffled_noise_is_the_golden(case):
    about, outputs, _, _ = golden(case)
    settings, latents = about["free_noise"], about["latents"]
    generator = torch.Generator().manual_seed(latents["torch_cpu_generator_seed"])
    base = torch.randn(latents["shape"], generator=generator)
    index = freenoise.shuffled_frames(
        about["total_frames"], settings["context_length"], settings["context_stride"], generator
    )
    assert torch.equal(index, outputs["in_frame_index"].long())
    assert torch.equal(base[:, :, index], outputs["in_latents"])


def stock_noise(kind, total, length, stride, **given):
    pipe = FreeNoisePipe(tiny_motion())
    pipe.enable_free_noise(length, stride, "pyramid", kind)
    return pipe._prepare_latents_free_noise(1, 2, total, 3, 3, torch.float32, "cpu", **given)


@pytest.mark.parametrize("total, length, stride", [(8, 8, 4), (9, 8, 4), (21, 8, 3), (30, 4, 6), (19, 5, 5)])
def test_a8_shuffled_noise_is_stock_and_repeated_noise_repeats(total, length, stride):
    generator = torch.Generator().manual_seed(3)
    base = torch.randn((1, 2, total, 3, 3), generator=generator)
    index = freenoise.shuffled_frames(total, length, stride, generator)
    stock = stock_noise("shuffle_context", total, length, stride, generator=torch.Generator().manual_seed(3))
    assert torch.equal(base[:, :, index], stock)

    repeated = base[:, :, freenoise.repeated_frames(total, length)]
    assert torch.equal(repeated[:, :, length:], repeated[:, :, :-length])
    if total > length:  # given one window of noise, diffusers does repeat it
        assert torch.equal(repeated, stock_noise("repeat_context", total, length, stride, latents=base[:, :, :length]))


@pytest.mark.parametrize("length, stride", [(4, 1), (4, 2), (5, 3), (6, 4), (4, 4), (1, 1)])
@pytest.mark.parametrize("total", [6, 7, 8, 11, 16])
def test_a_neighbourhood_has_the_windows_of_the_whole_video(total, length, stride):
    from diffusers.models.attention import FreeNoiseTransformerBlock

    indices = FreeNoiseTransformerBlock(4, 1, 4, context_length=length, context_stride=stride)._get_frame_indices

    def shares(frames):
        """By frame, the windows that count and its place in them; the odd last one counts for its new frames."""
        found = [[] for _ in range(frames)]
        spans = indices(frames)
        for start, stop in spans:
            for frame in range(start, stop):
                found[frame].append((start, frame - start))
        for frame in range(spans[-1][1], frames):
            found[frame].append((frames - length, frame - (frames - length), frame - spans[-1][1]))
        return found

    whole = shares(total)
    for start in range(total):
        for stop in range(start + 1, total + 1):
            span = freenoise.neighbourhood(range(start, stop), total, length, stride)
            part = shares(len(span))
            for frame in range(start, stop):
                moved = [(window + span.start, *place) for window, *place in part[frame - span.start]]
                assert moved == whole[frame]
            assert start - span.start < length + stride and span.stop - stop < length
    assert len(freenoise.neighbourhood(range(3, 3), total, length, stride)) == 0


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(match, frames=6, world=1, windows=None, **settings):
    model = model_of(windows)
    partition = Partition.even(frames, world)
    transport = DryTransport(0, world) if world > 1 else None
    with pytest.raises(UserError, match=match):
        parallelize(model, partition, settings.pop("scope", None), transport=transport, **settings)
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())


def test_a14_more_frames_than_positions_are_refused_with_the_remedy():
    refused(r"down_blocks\.0\.motion_modules\.0\S* has 32 positions.*33 frames.*enable_free_noise\(", frames=33)
    refused(r"has 32 positions.*context_length is 33.*up to 32", frames=40, windows=(33, 4, "pyramid"))
    refused(r"context_length=8 frames; the video has 7", frames=7, windows=(8, 4, "pyramid"))
    refused(r"at least 1; given 8, 0", frames=9, windows=(8, 0, "pyramid"))
    latents, text = inputs(32)
    with torch.no_grad(), parallelize(tiny_motion(), Partition.even(32, 1), None):
        pass  # 32 are the most


def test_a14_freenoise_that_changes_between_calls_is_checked_again():
    model = model_of((8, 4, "pyramid"))
    latents, text = inputs(8)
    with parallelize(model, Partition.even(8, 1), None), torch.no_grad():
        model(latents, 500, text)
        with_freenoise(model, 9, 4)
        with pytest.raises(UserError, match="context_length=9 frames; the video has 8"):
            model(latents, 500, text)


def test_a14_settings_that_mean_nothing_here_are_refused_by_name():
    refused("takes scope None", scope=Scope())
    refused("chunk_frames is for UNet3DConditionModel", chunk_frames=2)
    refused("takes mode exact; given fast", mode="fast")
    refused("takes mode exact; given legacy", mode="legacy")
    refused("video transformers", positions="absolute")
    refused(
        "context_stride=6 apart.*strategy transpose", frames=16, world=2, windows=(4, 6, "pyramid"), strategy="halo"
    )


def test_a14_text_of_another_number_of_frames_is_refused():
    model = tiny_motion()
    latents, text = inputs(6)
    with parallelize(model, Partition.even(6, 1), None):
        with pytest.raises(UserError, match=r"has 11 rows.*2 videos.*\(12\)"):
            model(latents, 500, text[:11])
        with pytest.raises(UserError, match="given NoneType"):
            model(latents, 500, None)
        with pytest.raises(UserError, match="given 5 frames"):
            model(latents[:, :, :5], 500, text[:10])


def test_a14_unknown_modules_and_blocks_are_named():
    model = tiny_motion()
    model.mid_block.extra = torch.nn.Conv3d(4, 4, (3, 1, 1))
    with pytest.raises(UnsupportedModule, match=r"mid_block\.extra \(Conv3d\)"):
        parallelize(model, Partition.even(6, 1), None)
    model = tiny_motion()
    block = model.mid_block.motion_modules[0].transformer_blocks[0]
    block.attn1.is_cross_attention = True
    with pytest.raises(UnsupportedModule, match=r"mid_block\S*transformer_blocks\.0\.attn1 is not a self-attention"):
        parallelize(model, Partition.even(6, 1), None)
    model.mid_block.motion_modules[0].transformer_blocks[0] = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModule, match=r"mid_block\S*transformer_blocks\.0 is a Linear"):
        parallelize(model, Partition.even(6, 1), None)


def animatediff(windows):
    """A stock AnimateDiffPipeline of tiny random weights, FreeNoise on where `windows` says how."""
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
    from dit_pipelines import tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, cross_attention_dim=8, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    adapter = MotionAdapter((8, 8), 1, motion_num_attention_heads=2, motion_norm_num_groups=2, motion_max_seq_length=16)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    told = CLIPTextConfig(
        vocab_size=1000, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    stock = AnimateDiffPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(told).eval(), tokenizer=tokenizer(8), unet=unet,
        motion_adapter=adapter, scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )  # fmt: skip
    fill_parameters(stock.unet).eval()
    if windows is not None:
        stock.enable_free_noise(*windows)
    stock.set_progress_bar_config(disable=True)
    return stock


ASKED = {"num_inference_steps": 3, "height": 64, "width": 64}


@pytest.mark.parametrize(("frames", "windows"), [(12, None), (24, (8, 4))])
def test_a_stock_animatediff_pipeline_makes_its_own_film_and_follows_a_timeline(frames, windows):
    stock = animatediff(windows)
    pipe = LongVideoPipeline.from_pipeline(stock)
    film = pipe("a dog runs", frames, seed=1, **ASKED)
    start = pipe._initial(range(frames), frames, 1, (4, 8, 8), InitialNoise.INDEPENDENT).transpose(0, 1)[None]
    alone = stock(
        "a dog runs",
        num_frames=frames,
        negative_prompt="",
        guidance_scale=3.0,
        latents=start,
        output_type="np",
        **ASKED,
    )
    assert np.abs(alone.frames[0] * 255 - film.frames).max() <= 0.51  # rounding to uint8
    told = pipe(f"0: a dog runs | {frames // 2}: a cat swims", frames, seed=1, **ASKED)
    assert (told.latents - film.latents).abs().amax((1, 2, 3))[-1] > 1e-3
    longer = pipe("a dog runs", context=pipe.context(film.latents[:8], frames=4), **ASKED)
    assert torch.equal(longer.latents[:8], film.latents[:8]) and len(longer.frames) == 12


def test_animatediff_without_freenoise_says_how_long_it_can_be():
    with pytest.raises(UserError, match="has 16 positions in time, but the video has 24 frames: switch FreeNoise on"):
        LongVideoPipeline.from_pipeline(animatediff(None))("a dog runs", 24, **ASKED)


def animated(rank, world):
    torch.set_num_threads(1)
    pipe = LongVideoPipeline.from_pipeline(animatediff((8, 4)))
    return pipe("0: a dog runs | 12: a cat swims", 24, seed=1, output_type="latent", **ASKED).latents


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_animatediff_over_ranks_makes_the_film_of_one(world):
    one = animated(0, 1)
    for latents in run_ranks(animated, world)[:1]:
        assert (latents - one).abs().max() <= 1e-4 * one.abs().max()


def test_a_folder_of_animatediff_takes_freenoise_from_the_command_and_from_a_batch(tmp_path, capsys):
    from longtake.cli import main
    from longtake.request import Request
    from longtake.video.latents import read_run

    animatediff(None).save_pretrained(tmp_path / "model")
    small = {"prior": str(tmp_path / "model"), "steps": 2, "height": 64, "width": 64}
    words = [f"--{name}={value}" for name, value in small.items()]

    def made(name, *more):
        code = main(["video", "a dog runs", *words, *more, "--out", str(tmp_path / name)])
        return code, capsys.readouterr().err.strip()

    assert made("a.mp4", "--frames", "24", "--free-noise", "8:4", "--noise", "freenoise")[0] == 0
    stock = LongVideoPipeline.from_pipeline(animatediff((8, 4)))
    wanted = stock(
        "a dog runs", 24, num_inference_steps=2, height=64, width=64, initial_noise="freenoise", output_type="latent"
    )
    first = read_run(tmp_path / "a.mp4")[0]
    assert (first - wanted.latents).abs().max() <= 1e-5
    jobs = [
        {"prompt": "a dog runs", "id": name, "parameters": {**small, "frames": frames, **more}}
        for name, frames, more in (("b", 24, {"free_noise": "8:4", "noise": "freenoise"}), ("c", 12, {}))
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps({"modality": "video", **job}) + "\n" for job in jobs))
    assert main(["batch", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "made")]) == 0, capsys.readouterr().err
    assert torch.equal(read_run(tmp_path / "made" / "b.mp4")[0], first)
    plain = LongVideoPipeline.from_pipeline(animatediff(None))
    alone = plain("a dog runs", 12, num_inference_steps=2, height=64, width=64, output_type="latent").latents
    # the same loaded model, off again
    assert (read_run(tmp_path / "made" / "c.mp4")[0] - alone).abs().max() <= 1e-5
    for more, line in (
        (("--frames", "24"), "16 positions in time, but the video has 24 frames"),
        (("--free-noise", "17:4"), "have at most 16 frames, the positions of this model"),
        (("--free-noise", "8"), "--free-noise wants the frames of a window and how far apart"),
        (("--free-noise", "8:4", "--prior", "kaykit-small"), "--free-noise is for AnimateDiff"),
        (("--window", "4"), "takes scope None"),
    ):
        code, told = made("x.mp4", *more)
        assert code == 2 and line in told.splitlines()[-1], told
    said = Request.read({"modality": "video", "prompt": "a", "parameters": {**small, "free_noise": "8:4"}})
    assert "--free-noise 8:4" in said.as_command("x") and "pipe.free_noise((8, 4))" in said.as_python("x")
