"""Films in the shapes that diffusers' text-to-video pipelines give.

pictures = pipe("a barbarian runs", num_frames=24, output_type="pil").frames[0]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from longtake.outputs import VideoOutput

STOCK_TYPES = ("np", "pt", "pil")


@dataclass
class StockVideo:
    """Videos as diffusers' text-to-video pipelines give them.

    frames: "np" float32 (B, F, H, W, 3) in 0..1; "pt" float32 (B, F, 3, H, W) in 0..1; "pil" B lists of F pictures.
    outputs: the same as our own, with latents, info and save.
    """

    frames: Any
    outputs: list[VideoOutput]

    def __getitem__(self, index: int) -> Any:
        return (self.frames,)[index]


def stock_video(outputs: list[VideoOutput], kind: str) -> StockVideo:
    """Films in the shapes of diffusers. kind: "np", "pt" or "pil"."""
    films: list[Any] = [output.frames for output in outputs]
    if kind == "pil":
        from PIL import Image

        return StockVideo([[Image.fromarray(frame) for frame in film] for film in films], outputs)
    stacked = np.stack(films).astype(np.float32) / 255.0
    if kind == "np":
        return StockVideo(stacked, outputs)
    return StockVideo(torch.from_numpy(stacked).permute(0, 1, 4, 2, 3).contiguous(), outputs)


def gives_stock(call: Callable[..., VideoOutput]) -> Callable[..., Any]:
    """A pipeline's call that makes a film, which then also takes ``output_type`` "np", "pt" and "pil"."""

    @functools.wraps(call)
    def wrapped(self: Any, *args: Any, output_type: str = "film", **more: Any) -> Any:
        if output_type not in STOCK_TYPES:
            return call(self, *args, output_type=output_type, **more)
        return stock_video([call(self, *args, output_type="film", **more)], output_type)

    return wrapped
