"""Latents to frames, chunk by chunk, on every rank, in one ordered stream.

Chunk k is decoded by rank k mod W, so all ranks work at the same time while rank 0 receives the chunks in order and
holds two at most. Chunk borders depend on the number of frames only: the frames are the same for any number of ranks.
Legend: F frames, c latent channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.media import to_uint8

if TYPE_CHECKING:
    from longtake.distributed import Ranks

CHUNK_FRAMES = 16


def decode_chunk(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """Frames uint8 (n, H, W, 3) of latents (n, c, h, w)."""
    weight = next(vae.parameters())
    with torch.inference_mode():
        sample = vae.decode(latents.to(weight) / vae.config.scaling_factor).sample
    return to_uint8((sample.float().clamp(-1, 1) + 1).permute(0, 2, 3, 1) / 2)


def gather_latents(latents: torch.Tensor, total: int, ranks: Ranks) -> torch.Tensor:
    """All frames' latents (F, c, h, w) float32 on the CPU of every rank, from the ranks' pieces in order."""
    if ranks.world == 1:
        return latents.detach().float().cpu()
    pieces = ranks.gather_object(latents.detach().float().cpu().numpy())
    out = torch.from_numpy(np.concatenate(pieces))
    assert len(out) == total
    return out


def stream_frames(vae: Any, latents: torch.Tensor, ranks: Ranks, chunk: int = CHUNK_FRAMES) -> Iterator[np.ndarray]:
    """Chunks uint8 (n, H, W, 3) in order on rank 0; the other ranks decode their share, send it, and yield nothing.

    latents: (F, c, h, w) float32, the same on every rank. Every rank must run the stream to its end.
    """
    import torch.distributed as dist

    spans = [(start, min(start + chunk, len(latents))) for start in range(0, len(latents), chunk)]
    if ranks.world == 1:
        for start, stop in spans:
            yield decode_chunk(vae, latents[start:stop])
        return
    height, width = (side * 8 for side in latents.shape[2:])
    for first in range(0, len(spans), ranks.world):
        turn = spans[first : first + ranks.world]
        mine = turn[ranks.rank] if ranks.rank < len(turn) else None
        if ranks.rank != 0:
            if mine is not None:
                frames = torch.from_numpy(decode_chunk(vae, latents[mine[0] : mine[1]])).to(ranks.device)
                dist.send(frames.contiguous(), dst=0, group=ranks.group)
            continue
        assert mine is not None
        yield decode_chunk(vae, latents[mine[0] : mine[1]])
        for source, (start, stop) in enumerate(turn[1:], 1):
            box = torch.empty((stop - start, height, width, 3), dtype=torch.uint8, device=ranks.device)
            dist.recv(box, src=source, group=ranks.group)
            yield box.cpu().numpy()
