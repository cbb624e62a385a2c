"""Gate schedules: what a frame sees at a timestep, and what therefore never travels."""

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video.parallelize import parallelize
from longtake.video.scope import Gate, Scope
from ranks import run_ranks
from video_models import keep_mask, mask_time, noise, tiny_unet, tiny_wan

FRAMES, WINDOW, COUNT = 12, 1, 3
TOLERANCE = 1e-5
TIMESTEPS = (100, 799, 800, 900)


def inputs():
    return noise("gate latents", 1, 4, FRAMES, 4, 4), noise("gate text", 1, 5, 32)


def run_gate(rank, world, gate):
    """{timestep: (output, received bytes of attention by kind)} on this rank."""
    torch.set_grad_enabled(False)
    model = tiny_unet()
    latents, text = inputs()
    partition = Partition.even(FRAMES, world)
    mine = partition.range(rank)
    answers = {}
    with parallelize(model, partition, Scope(WINDOW, COUNT, gate=gate), strategy="halo") as handle:
        for timestep in TIMESTEPS:
            handle.counter.reset()
            out = model(latents[:, :, mine.start : mine.stop], torch.tensor(timestep), text).sample
            answers[timestep] = (out, handle.counter.as_dict())
    return answers


def joined(answers, timestep):
    return torch.cat([answer[timestep][0] for answer in answers], 2)


def stock_with(score, timestep):
    latents, text = inputs()
    with torch.no_grad():
        return mask_time(tiny_unet(), score)(latents, timestep, text).sample


@pytest.mark.distributed
def test_a3_hard_gate_sends_nothing_of_the_dropped_scope_and_equals_its_mask():
    answers = run_ranks(run_gate, 3, "hard")
    shared = Scope(WINDOW, COUNT).global_indices(FRAMES)
    conv_halo = {t: [answer[t][1]["received"]["halo"] for answer in answers] for t in TIMESTEPS}
    for timestep in TIMESTEPS:
        keep = keep_mask(FRAMES, WINDOW, ()) if timestep < 800 else keep_mask(FRAMES, -1, shared)
        assert (joined(answers, timestep) - stock_with(keep, timestep)).abs().max() <= TOLERANCE
        for answer in answers:
            counter = answer[timestep][1]
            assert (counter["sent"].get("gather", 0) == 0) == (timestep < 800)
            # without the window, halo calls are those of the convolutions: 4 stages of 8 layers
            assert counter["calls"]["halo"] == (32 + 10 if timestep < 800 else 32)
    assert all(less < more for less, more in zip(conv_halo[900], conv_halo[100], strict=True))


@pytest.mark.distributed
def test_a3_soft_gate_equals_its_definition_by_biases():
    answers = run_ranks(run_gate, 3, "soft")
    scope = Scope(WINDOW, COUNT)
    near = keep_mask(FRAMES, WINDOW, ())
    far = keep_mask(FRAMES, WINDOW, scope.global_indices(FRAMES)) & ~near
    for timestep in TIMESTEPS:
        local, shared = (10.0, 0.0) if timestep < 800 else (0.0, 10.0)
        score = torch.full((FRAMES, FRAMES), -torch.inf)
        score[near], score[far] = local, shared
        assert (joined(answers, timestep) - stock_with(score, timestep)).abs().max() <= TOLERANCE


def test_set_timestep_replaces_the_argument_of_the_call():
    model = tiny_unet()
    latents, text = inputs()
    with torch.no_grad(), parallelize(model, Partition.even(FRAMES, 1), Scope(WINDOW, COUNT, gate="hard")) as handle:
        early = model(latents, 900, text).sample
        handle.set_timestep(100.0)
        fixed = model(latents, 900, text).sample
        handle.set_timestep(None)
        again = model(latents, 900, text).sample
    assert torch.equal(early, again) and (early - fixed).abs().max() > 1e-3


def refused_everywhere(rank, world):
    model = tiny_wan()
    with torch.no_grad(), parallelize(model, Partition.even(4, world), Scope(1, 2, gate="hard")) as handle:
        call = (noise("latents", 1, 4, 2, 4, 4), torch.full((1, 8), 500 * rank), noise("text", 1, 5, 16))
        try:
            model(*call)
        except UserError as error:
            message = str(error)
        else:
            message = ""
        handle.set_timestep(500.0)
        model(*call)
    return message


@pytest.mark.distributed
def test_timesteps_per_token_need_set_timestep_when_the_gate_could_differ_between_ranks():
    for message in run_ranks(refused_everywhere, 2):
        assert "set_timestep" in message


def test_scope_values_are_checked():
    with pytest.raises(UserError, match="soft, hard, off"):
        Scope(gate="sometimes")
    with pytest.raises(UserError, match=">= 0"):
        Scope(window=-1)
    with pytest.raises(UserError, match="global_frames >= 1"):
        Scope(global_frames=0, gate="hard")
    assert Scope(gate="hard").gate is Gate.HARD


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(19, 5, (0, 4, 9, 14, 18)), (7, 1, (0,)), (3, 8, (0, 1, 2)), (1, 4, (0,)), (10, 0, ()), (11, 3, (0, 5, 10))],
)
def test_global_indices_depend_on_the_total_only(total, count, expected):
    assert Scope(global_frames=count, gate="off").global_indices(total) == expected
