"""The released Video-Infinity code, from goldens made by it: as ranks and as a one-process emulation."""

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video.legacy import LegacyConfig, Phase
from longtake.video.parallelize import parallelize
from longtake.video.scope import Scope
from ranks import run_ranks
from video_models import golden, tiny_unet

CASES = ["v1_w2_t8_p2_k4", "v1_w3_t6_p2_k5", "v1_w4_t5_p3_k3", "v1x_scale_w2_t6_p2_k6", "v1x_w1_t9_p3_k6"]
TOLERANCE = 1e-5  # the goldens' own float32 noise is 2.5e-6
SAME_FUNCTION = 1e-9  # in float64: in float32 the order of sums alone gives 2.7e-6


def config_of(about):
    def phase(given):
        return Phase(given["t"], given["local_biase"], given["global_biase"]) if given else Phase()

    attn = about["attn"]
    return LegacyConfig(
        padding=attn["padding"],
        top_k=attn["top_k"],
        attn_scale=attn["attn_scale"],
        token_num_scale=attn["token_num_scale"],
        dynamic_scale=attn["dynamic_scale"],
        local_phase=phase(attn["local_phase"]),
        global_phase=phase(attn["global_phase"]),
        clips=about["world_size"],
    )


def run_legacy(rank, world, case, dtype=torch.float32):
    """This rank's output at every timestep of a golden."""
    torch.set_grad_enabled(False)
    about, _, inputs, model = golden(case)
    model, inputs = model.to(dtype), {name: x.to(dtype) for name, x in inputs.items()}
    partition = Partition.even(about["total_frames"], world)
    mine = partition.range(rank)
    with parallelize(model, partition, None, mode="legacy", legacy=config_of(about)):
        latents = inputs["latents"][:, :, mine.start : mine.stop]
        return {t: model(latents, torch.tensor(t), inputs["text"]).sample for t in about["timesteps"]}


def run_both(rank, world, case):
    """The golden's precision, and float64."""
    return run_legacy(rank, world, case), run_legacy(rank, world, case, torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_golden_v1_in_one_process(case):
    about, outputs, _, _ = golden(case)
    frames = about["frames_per_rank"][0]
    with torch.no_grad():
        result = run_legacy(0, 1, case)
    for t, out in result.items():
        for rank, part in enumerate(out.split(frames, dim=2)):
            assert (part - outputs[f"t{t}_rank{rank}"]).abs().max() <= TOLERANCE


@pytest.mark.distributed
@pytest.mark.parametrize("case", [case for case in CASES if "w1" not in case])
def test_a4_legacy_ranks_equal_the_golden_and_the_one_process_emulation(case):
    about, outputs, _, _ = golden(case)
    world, frames = about["world_size"], about["frames_per_rank"][0]
    with torch.no_grad():
        alone = run_legacy(0, 1, case, torch.float64)
    for rank, (result, exact) in enumerate(run_ranks(run_both, world, case)):
        for t, out in result.items():
            assert (out - outputs[f"t{t}_rank{rank}"]).abs().max() <= TOLERANCE
            emulated = alone[t][:, :, rank * frames : (rank + 1) * frames]
            assert (exact[t] - emulated).abs().max() <= SAME_FUNCTION


@pytest.mark.parametrize("case", CASES)
def test_the_released_choice_of_global_frames(case):
    about, _, _, _ = golden(case)
    shared = config_of(about).global_indices(about["world_size"], about["frames_per_rank"][0])
    assert list(shared) == about["facts"]["global_frames_absolute_in_key_order"]


def test_legacy_refuses_what_the_released_code_cannot_do():
    with pytest.raises(UserError, match="equal length"):
        parallelize(tiny_unet(), Partition.even(19, 1), None, mode="legacy", legacy=LegacyConfig(clips=2))
    with pytest.raises(UserError, match="shorter"):
        parallelize(tiny_unet(), Partition.even(12, 1), None, mode="legacy", legacy=LegacyConfig(clips=2))
    with pytest.raises(UserError, match="leave scope None"):
        parallelize(tiny_unet(), Partition.even(12, 1), Scope(), mode="legacy")
    with pytest.raises(UserError, match="mode=legacy only"):
        parallelize(tiny_unet(), Partition.even(12, 1), Scope(), legacy=LegacyConfig())
