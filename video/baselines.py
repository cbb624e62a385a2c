"""What a user would try first: short clips joined, the stock model over all frames, FreeNoise.

All three are the stock UNet3DConditionModel without `parallelize`, denoised by the loop that LongVideoPipeline uses,
with the same scheduler, guidance and counter-based noise. Legend: B videos, F frames of each, c h w latent channels
and grid.

    latents = sample(pipe, ["a barbarian runs"], first_noise(0, [0], 16, shape), steps=16, guidance=4.0)
    with windowed_attention(pipe.unet):          # FreeNoise, arXiv 2310.15169
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.denoising import Denoising, Tensors, denoise
from longtake.distributed import Ranks
from longtake.noise import noise
from longtake.video.decode import decode_chunk
from longtake.video.metrics import WINDOW
from longtake.video.pipeline import freenoise_index

if TYPE_CHECKING:
    from longtake.video.pipeline import LongVideoPipeline

CLIPS_AT_ONCE = 10  # short clips in one call of the model
FREENOISE_STRIDE = 4  # frames between windows, FreeNoise's own value

Step = Callable[[int], object]


def first_noise(
    seed: int, items: Sequence[int], frames: Sequence[int] | int, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Initial noise (len(items), F, *shape) float32 of several videos; ``frames``: their number, or noise of which
    frames."""
    numbers = range(frames) if isinstance(frames, int) else frames
    return torch.stack([noise(seed, item, numbers, 0, shape) for item in items])


@torch.no_grad()
def sample(
    pipe: LongVideoPipeline,
    prompts: Sequence[str],
    start: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    on_step: Step | None = None,
) -> torch.Tensor:
    """Denoise B videos at once with the stock model: noise (B, F, c, h, w) to latents of that shape, float32.

    prompts: one for each video. on_step(F): called after each step with the number of frames of all videos together.
    """
    videos, frames = start.shape[:2]
    device, dtype = pipe.unet.device, pipe.unet.dtype
    states = pipe.encode_prompts(list(prompts))
    guided = guidance != 1.0
    hidden = torch.cat([pipe.encode_prompts([""]).expand_as(states), states]) if guided else states

    def predict(samples: Tensors, t: Any, step: int) -> Tensors:
        latents = samples["latents"]
        video = latents.unflatten(0, (videos, frames)).transpose(1, 2).to(dtype)
        output = pipe.unet(video.repeat(len(hidden) // videos, 1, 1, 1, 1), t, encoder_hidden_states=hidden).sample
        output = output.to(latents.dtype)
        if guided:
            without, given = output.chunk(2)
            output = without + guidance * (given - without)
        if on_step is not None:
            on_step(videos * frames)
        return {"latents": output.transpose(1, 2).flatten(0, 1).contiguous()}

    first = start.flatten(0, 1).to(device)
    state = Denoising.of(first, range(len(first)), seed=0)
    final = denoise(pipe.scheduler, state, predict, steps=steps, ranks=Ranks.single(device, dtype))
    return final["latents"].float().cpu().unflatten(0, (videos, frames))


def decode(pipe: LongVideoPipeline, latents: torch.Tensor, chunk: int = 16) -> np.ndarray:
    """Latents (F, c, h, w) to frames uint8 (F, H, W, 3)."""
    return np.concatenate([decode_chunk(pipe.vae, part) for part in latents.split(chunk)])


def short_clips(
    pipe: LongVideoPipeline,
    prompts: Sequence[str],
    seed: int,
    *,
    steps: int,
    guidance: float,
    on_step: Step | None = None,
) -> list[np.ndarray]:
    """A 16-frame clip, uint8 (16, H, W, 3), for each prompt: what the prior was trained to make."""
    shape = pipe.latent_shape(None, None)
    out: list[np.ndarray] = []
    for start in range(0, len(prompts), CLIPS_AT_ONCE):
        part = list(prompts[start : start + CLIPS_AT_ONCE])
        begin = first_noise(seed, [0] * len(part), WINDOW, shape)
        latents = sample(pipe, part, begin, steps=steps, guidance=guidance, on_step=on_step)
        out += [decode(pipe, video) for video in latents]
    return out


def joined(
    pipe: LongVideoPipeline,
    prompt: str,
    frames: int,
    seed: int,
    *,
    steps: int,
    guidance: float,
    on_step: Step | None = None,
) -> np.ndarray:
    """Independent 16-frame clips of one prompt, each from noise of its own, one after the other: uint8 (F, H, W, 3)."""
    shape = pipe.latent_shape(None, None)
    count = -(-frames // WINDOW)
    clips = []
    for start in range(0, count, CLIPS_AT_ONCE):
        items = range(start, min(start + CLIPS_AT_ONCE, count))
        begin = first_noise(seed, items, WINDOW, shape)
        latents = sample(pipe, [prompt] * len(items), begin, steps=steps, guidance=guidance, on_step=on_step)
        clips += [decode(pipe, video) for video in latents]
    return np.concatenate(clips)[:frames]


def stock(
    pipe: LongVideoPipeline,
    prompt: str,
    frames: int,
    seed: int,
    *,
    steps: int,
    guidance: float,
    on_step: Step | None = None,
) -> np.ndarray:
    """The stock model over all frames at once, full temporal attention: uint8 (F, H, W, 3)."""
    begin = first_noise(seed, [0], frames, pipe.latent_shape(None, None))
    return decode(pipe, sample(pipe, [prompt], begin, steps=steps, guidance=guidance, on_step=on_step)[0])


def freenoise(
    pipe: LongVideoPipeline,
    prompt: str,
    frames: int,
    seed: int,
    *,
    steps: int,
    guidance: float,
    on_step: Step | None = None,
) -> np.ndarray:
    """FreeNoise: shuffled noise, temporal attention in 16-frame windows fused with pyramid weights; the rest is stock.

    The attention blocks are diffusers' own. Its pipelines have them for AnimateDiff only; here the convolutions along
    time and the group norms, which AnimateDiff lacks, see all frames.
    """
    index = [int(frame) for frame in freenoise_index(seed, frames, WINDOW, FREENOISE_STRIDE)]
    begin = first_noise(seed, [0], index, pipe.latent_shape(None, None))
    with windowed_attention(pipe.unet):
        latents = sample(pipe, [prompt], begin, steps=steps, guidance=guidance, on_step=on_step)
    return decode(pipe, latents[0])


@contextmanager
def windowed_attention(unet: Any, window: int = WINDOW, stride: int = FREENOISE_STRIDE) -> Iterator[None]:
    """Inside the block, every temporal transformer block of a UNet3DConditionModel is diffusers' FreeNoise block.

    Weights are shared, not copied; videos need at least ``window`` frames.
    """
    from diffusers.models.attention import FreeNoiseTransformerBlock
    from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

    changed = []
    try:
        for module in list(unet.modules()):
            if not isinstance(module, TransformerTemporalModel):
                continue
            for place, old in enumerate(module.transformer_blocks):
                block = FreeNoiseTransformerBlock(
                    dim=old.dim,
                    num_attention_heads=old.num_attention_heads,
                    attention_head_dim=old.attention_head_dim,
                    cross_attention_dim=old.cross_attention_dim,
                    activation_fn=old.activation_fn,
                    attention_bias=old.attention_bias,
                    double_self_attention=old.double_self_attention,
                    context_length=window,
                    context_stride=stride,
                    weighting_scheme="pyramid",
                )
                block.load_state_dict(old.state_dict(), strict=True, assign=True)
                changed.append((module.transformer_blocks, place, old))
                module.transformer_blocks[place] = block.eval()
        yield
    finally:
        for blocks, place, old in changed:
            blocks[place] = old
