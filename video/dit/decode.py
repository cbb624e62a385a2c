"""Films out of latents with a family's own VAE, a few frames at a time.

A stock pipeline decodes all latents in one call, which is where long films run out of memory. Its call is caught with
the latents as it made them (denormalised, unpacked), and they are decoded in pieces:

    causal        Wan, CogVideoX, Mochi: the VAE keeps caches of its temporal convolutions; they are carried from piece
                  to piece, so the film is that of one call
    overlapping   others (LTX, HunyuanVideo, Cosmos, Kandinsky): pieces of `PIECE` latent frames with `OVERLAP` shared
                  ones, cross-faded over the shared frames; not equal to one call, and `Decoder.exact` says so

Legend: F latent frames, z (1, C, F, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from longtake.media import to_uint8
from longtake.video.dit.latent_space import awake, denormalised
from longtake.video.piece import Patches
from torch import Tensor

PIECE = 8  # latent frames at a time where pieces overlap
OVERLAP = 3


class Caught:
    """What a stock pipeline asked its VAE to decode. z is None until it did."""

    def __init__(self) -> None:
        self.z: Tensor | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}


@contextmanager
def caught(vae: Any) -> Iterator[Caught]:
    """Inside, `vae.decode` notes what it is given and gives one small black frame."""
    note = Caught()
    had = vae.__dict__.get("decode")

    def decode(z: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        note.z, note.args, note.kwargs = z, args, kwargs
        black = z.new_zeros((z.shape[0], 3, 1, 8, 8))
        if not return_dict:
            return (black,)
        from diffusers.models.autoencoders.vae import DecoderOutput

        return DecoderOutput(sample=black)

    vae.__dict__["decode"] = decode
    try:
        yield note
    finally:
        if had is None:
            del vae.__dict__["decode"]
        else:
            vae.__dict__["decode"] = had


class Decoder:
    """A VAE that decodes z (1, C, F, h, w) piece by piece, as a call of `decode` with these arguments would.

    exact: whether the pieces are those of one call (1e-5 float32).
    """

    def __init__(self, vae: Any, note: Caught) -> None:
        self.vae, self.note = vae, note
        name = type(vae).__name__
        tiled = bool(getattr(vae, "use_tiling", False)) or bool(getattr(vae, "use_slicing", False))
        self.way = {"AutoencoderKLWan": _wan, "AutoencoderKLCogVideoX": _cogvideox, "AutoencoderKLMochi": _mochi}.get(
            name
        )
        if tiled:
            self.way = None
        self.exact = self.way is not None

    @torch.no_grad()  # of a generator: on between its pieces, and when it is left
    def pieces(self) -> Iterator[Tensor]:
        """Frames (n, 3, H, W) in [-1, 1], in order."""
        assert self.note.z is not None
        weight = awake(self.vae)
        z = self.note.z.to(weight.device, weight.dtype)
        if self.way is not None:
            for piece in self.way(self.vae, z):
                yield piece[0].transpose(0, 1)
            return
        yield from self._overlapping(z)

    def chunks(self, frames: int | None = None) -> Iterator[np.ndarray]:
        """The same as uint8 (n, H, W, 3); at most `frames` of them."""
        left = frames
        for piece in self.pieces():
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            if len(piece):
                yield to_uint8((piece.float().clamp(-1, 1) + 1).permute(0, 2, 3, 1) / 2)

    def _overlapping(self, z: Tensor) -> Iterator[Tensor]:
        total = z.shape[2]
        held: Tensor | None = None
        start = 0
        while True:
            stop = min(total, start + PIECE)
            made = self._decoded(z[:, :, start:stop])
            if held is not None:  # the frames of the shared latents: fade from the one piece to the other
                shared = len(held)
                share = torch.linspace(0, 1, shared + 2, device=made.device, dtype=made.dtype)[1:-1, None, None, None]
                made = torch.cat([torch.lerp(held, made[:shared], share), made[shared:]])
            if stop == total:
                yield made
                return
            stride = (len(made) - 1) // max(stop - start - 1, 1)
            keep = (OVERLAP - 1) * stride + 1  # a piece after the first begins with the last frame of its first latent
            yield made[: len(made) - keep]
            held = made[len(made) - keep :]
            start = stop - OVERLAP

    def _decoded(self, z: Tensor) -> Tensor:
        """Frames of one piece: a piece that does not begin the film begins with the frames of a whole latent."""
        out = type(self.vae).decode(self.vae, z, *self.note.args, return_dict=False, **self.note.kwargs)[0]
        return out[0].transpose(0, 1)


def stills(stock: Any, latents: Tensor, places: Sequence[int]) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8 of some latent frames of (F, c, h, w) in the transformer's space.

    Each is decoded as the first frame of a film: a film frame on its way costs all latent frames before it.
    """
    for place in places:
        note = Caught()
        note.z = denormalised(stock, latents[place : place + 1].transpose(0, 1)[None], start=place)
        if getattr(stock.vae.config, "timestep_conditioning", False):
            note.args = (torch.zeros(1).to(note.z),)
        yield next(Decoder(stock.vae, note).chunks(1))[0]


def _wan(vae: Any, z: Tensor) -> Iterator[Tensor]:
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    try:
        for frame in range(z.shape[2]):
            vae._conv_idx = [0]
            first = {"first_chunk": True} if frame == 0 else {}
            x = vae.post_quant_conv(z[:, :, frame : frame + 1])
            out = vae.decoder(x, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first)
            if vae.config.patch_size is not None:
                out = unpatchify(out, patch_size=vae.config.patch_size)
            yield out.clamp(-1, 1)
    finally:
        vae.clear_cache()


def _cogvideox(vae: Any, z: Tensor) -> Iterator[Tensor]:
    size = vae.num_latent_frames_batch_size
    total = z.shape[2]
    count = max(total // size, 1)
    rest = total % size
    cache = None
    for index in range(count):  # the stock cut: the first piece takes the rest
        start = size * index + (0 if index == 0 else rest)
        stop = size * (index + 1) + rest
        x = z[:, :, start:stop]
        if vae.post_quant_conv is not None:
            x = vae.post_quant_conv(x)
        out, cache = vae.decoder(x, conv_cache=cache)
        yield out


def _mochi(vae: Any, z: Tensor) -> Iterator[Tensor]:
    """The first frames, which the first latent makes too many, are dropped as the stock call drops them.

    diffusers' own framewise decoding of this VAE carries no cache (its convolutions pad by replicating, and then return
    none), so its pieces know nothing of each other; here the convolutions carry their last inputs.
    """
    size = vae.num_latent_frames_batch_size
    left = vae.temporal_compression_ratio - 1 if vae.drop_last_temporal_frames else 0
    patches = Patches()
    try:
        for module in vae.decoder.modules():
            if type(module).__name__ == "CogVideoXCausalConv3d" and module.pad_mode == "replicate":
                patches.forward(module, _carrying(module))
        for start in range(0, z.shape[2], size):
            out, _ = vae.decoder(z[:, :, start : start + size])
            skip = min(out.shape[2], left)
            left -= skip
            if out.shape[2] > skip:
                yield out[:, :, skip:]
    finally:
        patches.undo()


def _carrying(module: Any) -> Any:
    """A causal convolution over a stream: the first piece is padded with its first frame, others with what came."""
    pad = tuple(module.time_causal_padding)  # of width, height, time, each before and after
    kept: list[Tensor] = []

    def forward(inputs: Tensor, conv_cache: Any = None) -> tuple[Tensor, None]:
        front = pad[4]
        before = kept.pop() if kept else inputs[:, :, :1].expand(-1, -1, front, -1, -1)
        whole = torch.cat([before, inputs], 2)
        kept.append(whole[:, :, whole.shape[2] - front :].clone())
        return module.conv(nnf.pad(whole, (*pad[:4], 0, 0), mode="replicate")), None

    return forward
