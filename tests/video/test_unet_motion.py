"""AnimateDiff's UNetMotionModel on several ranks, plain and with FreeNoise, is diffusers' on one: exactness, safety."""

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video import freenoise
from longtake.video.parallelize import UnsupportedModule, parallelize
from longtake.video.scope import Scope
from ranks import run_ranks
from video_models import fill_parameters, golden, noise

TOLERANCE = 1e-5
SIDE = 4
TINY = {
    "sample_size": 4,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "block_out_channels": (16, 32),
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


def inputs(frames, batch=2):
    return noise("motion/latents", batch, 4, frames, SIDE, SIDE), noise("motion/text", batch * frames, 5, 16)


def part_of(text, mine, batch=2):
    return text.unflatten(0, (batch, -1))[:, mine.start : mine.stop].flatten(0, 1)


def model_of(windows):
    unet = tiny_motion()
    return unet if windows is None else with_freenoise(unet, *windows)


def stock(frames, windows):
    latents, text = inputs(frames)
    with torch.no_grad():
        return model_of(windows)(latents, 500, text).sample


def compare_many(rank, world, jobs):
    """Run jobs (sizes, windows, strategy, reference) and give the largest difference to its reference for each."""
    torch.set_grad_enabled(False)
    answers = []
    for sizes, windows, strategy, reference in jobs:
        model = model_of(windows)
        partition = Partition.from_sizes(sizes)
        mine = partition.range(rank)
        latents, text = inputs(partition.total)
        with parallelize(model, partition, None, strategy=strategy) as handle:
            out = model(latents[:, :, mine.start : mine.stop], 500, part_of(text, mine)).sample
            counter, reason = handle.counter.as_dict(), handle.explain()
        expected = reference[:, :, mine.start : mine.stop]
        assert out.shape == expected.shape
        answers.append(((out - expected).abs().max().item() if len(mine) else 0.0, counter, reason))
    return answers


def worst(world, jobs):
    return [max(answer[job][0] for answer in run_ranks(compare_many, world, jobs)) for job in range(len(jobs))]


def even(frames, world):
    return Partition.even(frames, world).sizes


GOLDENS = ["v5_freenoise_f40", "v5x_freenoise_f22_offlattice"]


def golden_of(case):
    about, outputs, given, model = golden(case)
    settings = about["free_noise"]
    with_freenoise(model, settings["context_length"], settings["context_stride"], settings["weighting_scheme"])
    return about, outputs, given, model


def run_golden(rank, world, case, strategies):
    torch.set_grad_enabled(False)
    about, outputs, given, model = golden_of(case)
    total = about["total_frames"]
    partition = Partition.from_sizes(about["frames_per_rank_any_of"][str(world)])
    mine = partition.range(rank)
    latents = outputs["in_latents"].repeat(2, 1, 1, 1, 1)[:, :, mine.start : mine.stop]
    text = part_of(given["text"].repeat_interleave(total, 0), mine)
    differences = []
    for strategy in strategies:
        with parallelize(model, partition, None, strategy=strategy):
            for timestep in about["timesteps"]:
                expected = outputs[f"t{timestep}"][:, :, mine.start : mine.stop]
                differences.append((model(latents, timestep, text).sample - expected).abs().max().item())
    return differences


@pytest.mark.distributed
@pytest.mark.parametrize("case", GOLDENS)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a8_freenoise_over_ranks_equals_stock_freenoise(case, world):
    strategies = ["auto"] if world == 1 else ["transpose", "halo"]
    assert max(map(max, run_ranks(run_golden, world, case, strategies))) <= TOLERANCE
