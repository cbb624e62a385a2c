"""Frames that a run is told to keep: those of an earlier run, and pictures that stand at certain frames.

Legend: F latent frames, f frames of film, c h w latent channels and grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from longtake.errors import UserError
from longtake.media import read_picture
from longtake.video.dit.drive import Kept
from longtake.video.dit.latent_space import awake, normalised
from longtake.video.dit.presets import Preset
from longtake.video.run import Context
from torch import Tensor


def held(
    stock: Any, preset: Preset, context: Context, span: range, pictures: Mapping[int, Any] | None, size: tuple[int, int]
) -> Kept | None:
    """What is kept of the latent frames in ``span``; None where nothing is.

    pictures: by frame of the finished film, negative numbers from its end: PIL pictures or files. size: pixels, height
    and width. Raises UserError for frames that the film has not, that are not made anew, or that share a latent frame.
    """
    known = context.known(span)
    if not pictures:
        return None if known is None else Kept(known.mask, known.clean)
    film = context.film or preset.film(context.total)
    mask = torch.zeros(len(span), dtype=torch.bool) if known is None else known.mask.clone()
    clean: Tensor | None = None if known is None else known.clean.clone()
    for frame, picture in pictures.items():
        place = frame + film if frame < 0 else frame
        if not 0 <= place < film:
            raise UserError(f"hold names frame {frame}; the film has {film} frames")
        latent = preset.latent_of(place)
        if not context.start <= latent < context.stop:
            raise UserError(f"a picture is to be held at frame {place}, which is of the earlier film and is kept")
        row = latent - span.start
        if mask[row]:
            raise UserError(f"two pictures are to be held at frame {place}: one latent frame holds both places")
        told = encoded(stock, preset, picture, size, latent)
        clean = told.new_zeros((len(span), *told.shape)) if clean is None else clean
        mask[row], clean[row] = True, told.to(clean)
    assert clean is not None
    return Kept(mask, clean)


def encoded(stock: Any, preset: Preset, picture: Any, size: tuple[int, int], place: int) -> Tensor:
    """The latent frame (c, h, w) of a still picture: the first of a film, or one within it."""
    vae = stock.vae
    if isinstance(picture, (str, os.PathLike)):
        picture = read_picture(picture)
    elif hasattr(picture, "convert"):
        picture = picture.convert("RGB")
    image = stock.video_processor.preprocess(picture, *size)  # (1, 3, H, W) in [-1, 1]
    count = 1 if place == 0 else 1 + preset.stride
    weight = awake(vae)
    film = image.to(weight)[:, :, None].expand(-1, -1, count, -1, -1).contiguous()
    latent = vae.encode(film).latent_dist.mode()
    return normalised(stock, latent[:, :, -1:], place)[0, :, 0].float().cpu()
