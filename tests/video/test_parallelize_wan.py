"""WanTransformer3DModel on several ranks is WanTransformer3DModel on one."""

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video.parallelize import UnsupportedModule, parallelize
from longtake.video.scope import Scope
from ranks import run_ranks
from video_models import golden, noise, tiny_wan

TOLERANCE = 1e-5
CASES = ["v4_wan_f11", "v4x_wan_f11_t2d"]


def timesteps(about, span):
    """The golden's timestep argument for the frames of `span`."""
    if about["timesteps"] is not None:
        return torch.tensor(about["timesteps"])
    by_frame = torch.tensor(about["per_token_timestep_by_frame"])[span.start : span.stop]
    return by_frame.repeat_interleave(about["tokens_per_frame"])[None].expand(2, -1)


def run_golden(rank, world, case):
    """Largest difference to the golden for every scope, strategy and an uneven split."""
    torch.set_grad_enabled(False)
    about, outputs, inputs, model = golden(case)
    scopes = {"stock": None} | {f"dual{i}": Scope(d["P"], d["K"], gate="off") for i, d in enumerate(about["duals"])}
    uneven = {1: [11], 2: [1, 10], 3: [5, 0, 6], 4: [2, 1, 7, 1]}[world]
    worst = 0.0
    for sizes in (about["frames_per_rank_any_of"][str(world)], uneven):
        partition = Partition.from_sizes(sizes)
        mine = partition.range(rank)
        latents = inputs["latents"][:, :, mine.start : mine.stop]
        for name, scope in scopes.items():
            for strategy in ("halo", "gather"):
                with parallelize(model, partition, scope, strategy=strategy):
                    out = model(latents, timesteps(about, mine), inputs["text"]).sample
                expected = outputs[name][:, :, mine.start : mine.stop]
                assert out.shape == expected.shape
                worst = max(worst, (out - expected).abs().max().item() if len(mine) else 0.0)
    return worst


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_a6_golden_v4_wan_for_every_world_size(case, world):
    assert max(run_ranks(run_golden, world, case)) <= TOLERANCE


def test_rotary_table_of_a_rank_has_absolute_frame_numbers():
    about, outputs, inputs, model = golden("v4_wan_f11")
    from longtake.kernels.ranks.transport import DryTransport

    with parallelize(model, Partition.from_sizes([4, 4, 3]), Scope(gate="off"), transport=DryTransport(1, 3)):
        cos, sin = model.rope(inputs["latents"][:, :, 4:8])
    rows = slice(4 * about["tokens_per_frame"], 8 * about["tokens_per_frame"])
    assert (cos[0, :, 0] - outputs["rope_cos"][rows]).abs().max() <= 1e-6
    assert (sin[0, :, 0] - outputs["rope_sin"][rows]).abs().max() <= 1e-6


def frame_text(frames):
    """Text states that differ from frame to frame, (1, frames, 5, 16)."""
    return torch.stack([noise(f"text{frame // 3}", 1, 5, 16) for frame in frames], 1)


def test_text_that_changes_along_the_video_reaches_each_frame():
    model = tiny_wan(num_layers=1)
    latents, timestep = noise("latents", 1, 4, 6, 4, 4), torch.tensor([500])
    local = Scope(window=0, global_frames=0, gate="off")  # frames do not see each other: each can be checked alone
    with torch.no_grad(), parallelize(model, Partition.even(6, 1), local) as handle:
        handle.set_text(frame_text)
        varied = model(latents, timestep, frame_text([0])[:, 0]).sample
        handle.set_text(None)
        first = model(latents, timestep, frame_text([0])[:, 0]).sample
        second = model(latents, timestep, frame_text([3])[:, 0]).sample
    assert (varied[:, :, :3] - first[:, :, :3]).abs().max() <= TOLERANCE
    assert (varied[:, :, 3:] - second[:, :, 3:]).abs().max() <= TOLERANCE
    assert (first - second).abs().max() > 1e-2


def test_wan_refuses_what_it_cannot_honour():
    with pytest.raises(UserError, match="transpose does not apply"):
        parallelize(tiny_wan(), Partition.even(6, 1), Scope(), strategy="transpose")
    with pytest.raises(UserError, match="ends at 64 latent frames"):
        parallelize(tiny_wan(), Partition.even(65, 1), Scope())
    with pytest.raises(UserError, match="mode=exact"):
        parallelize(tiny_wan(), Partition.even(6, 1), Scope(), mode="fast")
    with pytest.raises(UnsupportedModule, match="patch"):
        parallelize(tiny_wan(patch_size=(2, 2, 2)), Partition.even(6, 1), Scope())


def test_remove_restores_wan_bit_for_bit():
    model = tiny_wan()
    call = (noise("latents", 1, 4, 5, 4, 4), torch.tensor([500]), noise("text", 1, 5, 16))
    with torch.no_grad():
        before = model(*call).sample
        with parallelize(model, Partition.even(5, 1), Scope(1, 2, gate="off")):
            during = model(*call).sample
        after = model(*call).sample
    assert torch.equal(before, after) and not torch.allclose(before, during, atol=1e-3)
