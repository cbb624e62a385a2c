"""Text that changes along the video reaches every spatial cross-attention, frame by frame."""

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video.parallelize import parallelize
from longtake.video.scope import Scope
from ranks import run_ranks
from video_models import noise, tiny_unet

FRAMES, SWITCH, BLEND = 13, 5, 4


def lerp(frames):
    """Two prompts, cross-faded over BLEND frames from SWITCH on: (2, frames, 5, 32)."""
    first, second = noise("prompt a", 2, 1, 5, 32), noise("prompt b", 2, 1, 5, 32)
    weight = torch.tensor([min(max((frame - SWITCH) / BLEND, 0.0), 1.0) for frame in frames])[None, :, None, None]
    return first * (1 - weight) + second * weight


def captured(rank, world, chunk_frames):
    """Every text state that a spatial cross-attention projects to keys, as (2, T, 5, 32) per module."""
    torch.set_grad_enabled(False)
    model = tiny_unet()
    partition = Partition.even(FRAMES, world)
    mine = partition.range(rank)
    seen = {}
    for name, module in model.named_modules():
        if ".attentions." in name and name.endswith("attn2.to_k"):
            hook = lambda _m, args, name=name: seen.setdefault(name, []).append(args[0].unflatten(0, (2, -1)))  # noqa: E731
            module.register_forward_pre_hook(hook)
    with parallelize(model, partition, Scope(1, 3, gate="off"), chunk_frames=chunk_frames) as handle:
        handle.set_text(lerp)
        model(noise("latents", 2, 4, FRAMES, 4, 4)[:, :, mine.start : mine.stop], 500, noise("text", 2, 5, 32))
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "chunk_frames"), [(1, None), (1, 4), (2, None), (3, None)])
def test_a12_the_text_at_each_cross_attention_is_the_lerp_of_its_frame(world, chunk_frames):
    answers = run_ranks(captured, world, chunk_frames)
    assert len(answers[0]) == 4  # one in the down block, one in the middle, two in the up block
    for name in answers[0]:
        states = torch.cat([answer[name] for answer in answers], 1)
        assert (states - lerp(range(FRAMES))).abs().max() <= 1e-6


def test_a12_one_prompt_for_all_frames_is_the_stock_run_bit_for_bit():
    model = tiny_unet()
    latents, text = noise("latents", 2, 4, 6, 4, 4), noise("text", 2, 5, 32)
    with torch.no_grad():
        stock = model(latents, 500, text).sample
        with parallelize(model, Partition.even(6, 1), None) as handle:
            handle.set_text(lambda frames: text[:, None].expand(-1, len(frames), -1, -1))
            same = model(latents, 500, torch.zeros_like(text)).sample
            handle.set_text(None)
            plain = model(latents, 500, text).sample
    assert torch.equal(stock, same) and torch.equal(stock, plain)


def test_a_provider_of_the_wrong_shape_is_told_what_is_wanted():
    model = tiny_unet()
    with parallelize(model, Partition.even(6, 1), Scope(gate="off")) as handle:
        handle.set_text(lambda frames: torch.zeros(1, len(frames), 5, 32))
        with pytest.raises(UserError, match=r"\(2, 6, n, D\)"):
            model(noise("latents", 2, 4, 6, 4, 4), 500, noise("text", 2, 5, 32))
