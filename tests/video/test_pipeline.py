"""LongVideoPipeline: the same video for any number of ranks, after any stop, with any scheduler."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    UniPCMultistepScheduler,
)
from longtake.denoising import frame_noise
from longtake.errors import UserError
from longtake.journal import Journal, Policy
from longtake.kernels.partition import Partition
from longtake.noise import noise
from longtake.timeline import Timeline
from longtake.video.parallelize import parallelize
from longtake.video.pipeline import Context, InitialNoise, LongVideoPipeline, check_frames, freenoise_index
from longtake.video.scope import Scope
from longtake.video.train import SCHEDULE
from ranks import run_ranks
from video_prior import ranks_here, tiny_pipe

SDE = {"algorithm_type": "sde-dpmsolver++", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**SCHEDULE),
    "sde-dpmsolver++": lambda: DPMSolverMultistepScheduler(**SDE),
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="v_prediction"),
    "euler ancestral": lambda: EulerAncestralDiscreteScheduler(prediction_type="v_prediction"),
}
TWO_PROMPTS = Timeline(((0, "a dog"), (9, "a cat")), blend=4)
FRAMES = 19


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def run_pipe(rank, world, name, sizes=None):
    pipe = tiny_pipe(SCHEDULERS[name]())
    scope = Scope(window=3, global_frames=5, gate="off")
    settings = {"seed": 5, "num_inference_steps": 5, "scope": scope, "ranks": ranks_here(), "sizes": sizes}
    out = pipe(TWO_PROMPTS, FRAMES, **settings)
    return out.latents, out.frames


def every_run(rank, world, sizes):
    runs = {name: run_pipe(rank, world, name, sizes) for name in SCHEDULERS}
    runs["stock"] = stock_run(rank, world)
    if world == 3:
        runs["extended"] = extended(rank, world)
    return runs


@pytest.fixture(scope="module")
def over_ranks():
    """By world, what each rank made of every run. One launch a world: ranks load what they need once."""
    return {world: run_ranks(every_run, world, sizes) for world, sizes in ((2, None), (3, (10, 2, 7)))}


@pytest.mark.distributed
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a5_latents_do_not_depend_on_the_number_of_ranks(name, over_ranks):
    alone, frames = run_pipe(0, 1, name)
    assert torch.isfinite(alone).all() and frames.shape == (FRAMES, 64, 64, 3)
    for runs in over_ranks.values():
        answers = [run[name] for run in runs]
        for latents, _ in answers:
            assert relative(latents, alone) <= 1e-4
        shown = answers[0][1]
        assert shown.shape == frames.shape and np.abs(shown.astype(int) - frames).max() <= 1
        assert all(len(other) == 0 for _, other in answers[1:])


def stock_run(rank, world):
    """Diffusers' own TextToVideoSDPipeline on this rank's frames, with the parallelized UNet inside."""
    from diffusers import AutoencoderKL, TextToVideoSDPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    ours = tiny_pipe()
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=384, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4).eval()
    pipe = TextToVideoSDPipeline(vae, text, None, ours.unet, SCHEDULERS["sde-dpmsolver++"]())
    pipe.set_progress_bar_config(disable=True)
    states = ours.encode_prompts(["a dog", ""])
    partition = Partition.even(FRAMES, world)
    mine = partition.range(rank)
    start = noise(5, 0, mine, 0, (4, 8, 8))
    with parallelize(pipe.unet, partition, Scope(3, 5, "off")), frame_noise(pipe.scheduler, 5, mine):
        out = pipe(
            num_frames=len(mine),
            num_inference_steps=5,
            prompt_embeds=states[:1],
            negative_prompt_embeds=states[1:],
            latents=start.transpose(0, 1).unsqueeze(0).clone(),
            output_type="latent",
            height=64,
            width=64,
        )
    return start, out.frames


@pytest.mark.distributed
def test_a5_stock_text_to_video_pipeline_with_a_stochastic_solver(over_ranks):
    start, alone = stock_run(0, 1)
    for runs in over_ranks.values():
        answers = [run["stock"] for run in runs]
        assert torch.equal(torch.cat([own for own, _ in answers]), start)
        assert relative(torch.cat([part for _, part in answers], 2), alone) <= 1e-4


class BrownianPath(DDIMScheduler):
    """Has what diffusers' DPMSolverSDEScheduler has, which cannot be made without torchsde: a noise sampler."""

    noise_sampler = None


def test_a_scheduler_with_a_brownian_path_is_refused():
    source = find_spec("diffusers.schedulers.scheduling_dpmsolver_sde").origin
    assert "self.noise_sampler = " in Path(source).read_text()
    with pytest.raises(UserError, match="BrownianPath draws noise along a Brownian path of its own"):
        tiny_pipe(BrownianPath())("a dog", 8, num_inference_steps=2)


class Crash(Exception):
    pass


def run_until(rank, world, folder, crash_at, name):
    pipe = tiny_pipe(SCHEDULERS[name]())
    ranks = ranks_here()
    journal = Journal(folder)
    if ranks.is_main:
        journal.open({"test": 1}, Policy.RESUME)
    ranks.barrier()

    def crash(pipe, step, t, state):
        if step == crash_at:
            raise Crash

    settings = {"seed": 5, "num_inference_steps": 6, "scope": Scope(3, 5, "off"), "ranks": ranks}
    try:
        out = pipe(TWO_PROMPTS, FRAMES, journal=journal, callback_on_step_end=crash, output_type="latent", **settings)
    except Crash:
        return None
    finally:
        journal.close()
    return out.latents


def run_each_until(rank, world, folder, crash_at):
    return {name: run_until(rank, world, Path(folder, name), crash_at, name) for name in RESUMED}


RESUMED = ("ddim", "sde-dpmsolver++", "unipc")


@pytest.fixture(scope="module")
def ended_and_resumed(tmp_path_factory):
    """What three ranks give that crash at step 3, then what two give that go on, each with every scheduler."""
    folder = str(tmp_path_factory.mktemp("runs"))
    return run_ranks(run_each_until, 3, folder, 3), run_ranks(run_each_until, 2, folder, None)


@pytest.mark.distributed
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_ended_at_step_3_goes_on_with_another_number_of_ranks(name, tmp_path, ended_and_resumed):
    whole = run_until(0, 1, tmp_path / "whole", None, name)
    ended, resumed = ended_and_resumed
    assert [run[name] for run in ended] == [None] * 3 and len(resumed) == 2
    for run in resumed:
        assert relative(run[name], whole) <= 1e-4


def test_resume_does_not_repeat_steps(tmp_path):
    run_until(0, 1, tmp_path, 4, "ddim")
    steps = []
    pipe = tiny_pipe()
    journal = Journal(tmp_path)
    journal.open({"test": 1}, Policy.RESUME)
    note = lambda pipe, step, t, state: steps.append(step)  # noqa: E731
    settings = {"seed": 5, "num_inference_steps": 6, "scope": Scope(3, 5, "off"), "output_type": "latent"}
    pipe(TWO_PROMPTS, FRAMES, journal=journal, callback_on_step_end=note, **settings)
    assert steps == [4, 5], "counted from 0, as diffusers does"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipe()


@pytest.fixture(scope="module")
def first(pipe):
    return pipe("a dog", 20, num_inference_steps=4, output_type="latent").latents


def test_extend_keeps_the_run_bit_for_bit_and_joins_it(pipe, first):
    extend = {"num_inference_steps": 4, "output_type": "latent"}
    longer = pipe("a dog", context=Context.extend(first, 10), **extend).latents
    assert len(longer) == 30 and torch.equal(longer[:20], first)
    other = pipe("a dog", context=Context.extend(first.flip(0), 10), **extend).latents
    assert relative(other[20:], longer[20:]) > 1e-3, "new frames must depend on the frames that they join"


def shares_heard(pipe, new, **settings):
    """The prompt's share (F,) in the text that the spatial cross-attentions hear of "a dog" and ``new``."""
    heard = []
    for name, module in pipe.unet.named_modules():
        if ".attentions." in name and name.endswith("attn2.to_k"):
            hook = module.register_forward_pre_hook(lambda _module, args: heard.append(args[0]))
            break
    try:
        latents = pipe(new, num_inference_steps=1, guidance_scale=1.0, output_type="latent", **settings).latents
    finally:
        hook.remove()
    old, state = pipe.encode_prompts(["a dog", "a cat"])
    way = state - old
    return latents, ((torch.cat(heard) - old) * way).sum((1, 2)) / way.square().sum()


def test_extend_with_another_prompt_fades_out_of_the_one_before_behind_the_border(pipe, first):
    latents, share = shares_heard(pipe, "a cat", context=Context.extend(first, 20, "a dog"))
    expected = [0.0] * 20 + [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875] + [1.0] * 12
    torch.testing.assert_close(share, torch.tensor(expected), atol=1e-5, rtol=0)
    assert len(latents) == 40 and torch.equal(latents[:20], first), "kept frames stay bit for bit"


def test_extend_with_the_same_prompt_is_one_prompt_bit_for_bit(pipe, first):
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    plain = pipe("a dog", context=Context.extend(first, 10), **settings).latents
    assert torch.equal(pipe("a dog", context=Context.extend(first, 10, "a dog"), **settings).latents, plain)


def test_a_switch_near_the_end_is_over_by_the_last_frame(pipe):
    _, share = shares_heard(pipe, Timeline(((0, "a dog"), (17, "a cat"))), frames=20)
    torch.testing.assert_close(share[14:], torch.tensor([0, 0, 0.25, 0.5, 0.75, 1]), atol=1e-5, rtol=0)


def extended(rank, world):
    pipe = tiny_pipe()
    first = noise(1, 0, range(20), 0, (4, 8, 8))
    settings = {"num_inference_steps": 3, "ranks": ranks_here(), "output_type": "latent"}
    return pipe("a cat", context=Context.extend(first, 13, "a dog"), **settings).latents


@pytest.mark.distributed
def test_a_fade_behind_a_border_does_not_depend_on_the_number_of_ranks(over_ranks):
    alone = extended(0, 1)
    assert len(over_ranks[3]) == 3
    for run in over_ranks[3]:
        assert relative(run["extended"], alone) <= 1e-4


def test_text_states_cannot_fade_out_of_a_prompt(pipe, first):
    with pytest.raises(UserError, match="cannot fade out of an earlier prompt"):
        states = pipe.encode_prompts(["a cat"])
        pipe(prompt_embeds=states, context=Context.extend(first, 10, "a dog"), num_inference_steps=1)


def test_redo_changes_the_range_and_nothing_else(pipe, first):
    again = pipe(
        "a cat", context=Context.redo(first, 6, 11), seed=9, num_inference_steps=4, output_type="latent"
    ).latents
    assert torch.equal(again[:6], first[:6]) and torch.equal(again[11:], first[11:])
    assert (again[6:11] - first[6:11]).abs().amin((1, 2, 3)).max() >= 0 and relative(again[6:11], first[6:11]) > 1e-2


@pytest.mark.parametrize("start, stop", [(5, 5), (8, 30), (-1, 4), (0, 20)])
def test_redo_of_a_range_that_is_not_there_is_refused(first, start, stop):
    with pytest.raises(UserError):
        Context.redo(first, start, stop)


def test_stop_keeps_what_there_is(pipe):
    def stop(pipe, step, t, state):
        if step == 2:
            pipe.stop()

    out = pipe("a dog", 12, num_inference_steps=6, callback_on_step_end=stop)
    assert out.info["completed"] is False and out.info["steps"] == 3
    assert out.frames.shape == (12, 64, 64, 3) and torch.isfinite(out.latents).all()


def test_one_prompt_timeline_is_the_plain_prompt_bit_for_bit(pipe):
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    line = pipe(Timeline(((0, "a dog"),)), 9, **settings).latents
    assert torch.equal(line, pipe("a dog", 9, **settings).latents)


def test_second_prompt_changes_later_frames_more(pipe):
    settings = {"num_inference_steps": 3, "output_type": "latent", "scope": Scope(1, 0, "off")}
    plain = pipe("a dog", 40, **settings).latents
    changed = pipe(Timeline(((0, "a dog"), (20, "a rocket")), blend=4), 40, **settings).latents
    difference = (plain - changed).abs().mean((1, 2, 3))
    assert difference[24:].mean() > 3 * difference[:10].mean()


def test_guidance_and_negative_prompt_matter(pipe):
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    plain = pipe("a dog", 9, guidance_scale=1.0, **settings).latents
    guided = pipe("a dog", 9, guidance_scale=4.0, **settings).latents
    negative = pipe("a dog", 9, guidance_scale=4.0, negative_prompt="a cat", **settings).latents
    assert relative(plain, guided) > 1e-3 and relative(negative, guided) > 1e-4


def test_seed_decides(pipe):
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    a, b, c = (pipe("a dog", 9, seed=seed, **settings).latents for seed in (1, 1, 2))
    assert torch.equal(a, b) and relative(a, c) > 0.1


def test_chunked_run_equals_the_plain_one(pipe):
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    plain = pipe(TWO_PROMPTS, 24, **settings).latents
    assert relative(pipe(TWO_PROMPTS, 24, chunk_frames=5, **settings).latents, plain) <= 1e-5


@pytest.mark.parametrize("total", [3, 16, 17, 40, 61])
def test_freenoise_shuffles_the_first_window(total):
    index = freenoise_index(seed=3, total=total)
    assert len(index) == total and set(index) <= set(range(16))
    assert (index[: min(16, total)] == np.arange(min(16, total))).all()
    for start in range(16, total - 3, 4):
        assert sorted(index[start : start + 4]) == sorted(index[start - 16 : start - 12])
    longer = freenoise_index(seed=3, total=total + 8)
    assert (longer[: max(16, total - 4)][:total] == index[: max(16, total - 4)]).all()


def test_freenoise_frames_share_noise_with_the_first_window(pipe):
    start = pipe._initial(range(0, 32), 32, 7, (4, 8, 8), InitialNoise.FREENOISE)
    index = freenoise_index(7, 32)
    assert all(torch.equal(start[f], start[int(index[f])]) for f in range(32))
    assert (index[16:] != np.arange(16)).any()


def test_save_and_load_round_trip(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "prior")
    again = LongVideoPipeline.from_prior(tmp_path / "prior")
    again.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    assert torch.equal(again("a dog", 9, **settings).latents, pipe("a dog", 9, **settings).latents)
    assert not list((tmp_path / "prior" / "text_encoder").glob("*.safetensors")), "MiniLM belongs to its package"


def test_damaged_weights_are_named(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "prior")
    file = next((tmp_path / "prior" / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        LongVideoPipeline.from_prior(tmp_path / "prior")


@pytest.mark.parametrize(
    "total, world, scope, sizes, words",
    [
        (0, 1, None, None, "at least 1"),
        (-3, 1, None, None, "at least 1"),
        (2, 3, None, None, "cannot be shared"),
        (6, 1, Scope(8, 2, "off"), None, "larger than the video"),
        (6, 2, None, (3, 4), "add up"),
        (6, 2, None, (6, 0), "positive"),
    ],
)
def test_a14_impossible_frames_are_refused_with_a_reason(total, world, scope, sizes, words):
    with pytest.raises(UserError, match=words):
        check_frames(total, world, scope, sizes, new=total)


@pytest.mark.parametrize(
    "settings",
    [{"output_type": "gif"}, {"num_inference_steps": 0}, {"initial_noise": "pink"}, {"height": 60}, {"scope": "wide"}],
)
def test_settings_that_cannot_be_honoured_are_refused(pipe, settings):
    with pytest.raises(UserError):
        pipe("a dog", 9, **settings)
