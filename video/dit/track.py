"""The sound of a run beside its frames (LTX-2): which latents of it the network sees, which of them are kept.

Sound is cut by time: an audio latent belongs to the latent frame in whose time its middle lies (as in `sound.py`), so
frames that are made anew have their sound made anew, and all other sound stays to the bit. A run that sees a part of
the film begins its clock at that part's first frame; sound is moved there by the seconds that do not fill a latent.

    track = track_of(stock, context, span, preset, fps=24.0)
    track.first, track.count                   # audio latents first .. first + count - 1 of the whole film
    whole = track.merge(made)                  # (A, C)

Legend: F latent frames, A audio latents of the whole film, n of what the network sees, C channels times mel bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from longtake.errors import UserError
from longtake.video.dit.asking import makes_sound
from longtake.video.dit.presets import Preset
from longtake.video.dit.sound import frame_in_time
from longtake.video.run import Context
from torch import Tensor


@dataclass(frozen=True)
class Track:
    """first, count: which audio latents the network sees. shift: seconds by which their stock times are too early.
    total: A. known: (n,) bool, the kept ones, and earlier: (A of the earlier run, C) clean; None for a new film."""

    first: int
    count: int
    total: int
    shift: float = 0.0
    known: Tensor | None = None
    earlier: Tensor | None = None

    @property
    def clean(self) -> Tensor:
        """(n, C): the earlier run's latents in their places; rows that are not `known` mean nothing."""
        assert self.earlier is not None
        places = torch.arange(self.first, self.first + self.count).clamp_max(len(self.earlier) - 1)
        return self.earlier[places]

    def merge(self, made: Tensor) -> Tensor:
        """The whole sound (A, C) of what was made (n, C): kept latents bit for bit."""
        if self.earlier is None or self.known is None:
            return made
        whole = made.new_zeros(self.total, made.shape[1])
        whole[: len(self.earlier)] = self.earlier.to(made)
        new = (~self.known).nonzero().flatten()
        whole[self.first + new] = made[new]
        return whole


def check_sound(stock: Any, context: Context) -> None:
    """Raises UserError for an earlier run without the sound that goes on, or with one that cannot."""
    if context.latents is None:
        return
    name = type(stock).__name__
    if makes_sound(stock) and context.sound is None:
        raise UserError(
            f"{name} makes sound with the film, and the earlier run holds none (in Python: sound=film.sound_latents)"
        )
    if not makes_sound(stock) and context.sound is not None:
        raise UserError(f"the earlier run has sound, and {name} makes none")


def track_of(stock: Any, context: Context, span: range, preset: Preset, fps: float) -> Track:
    """The sound of a run whose network sees the latent frames `span`. Raises UserError for sound of another length."""
    rate = stock.audio_sampling_rate / stock.audio_hop_length / float(stock.audio_vae_temporal_compression_ratio)

    def latents(frames: int) -> int:  # as the stock pipeline counts them
        return round(preset.film(frames) / fps * rate)

    frames = max(context.kept, context.stop)
    total, count = latents(frames), latents(len(span))
    begins = preset.stride * span.start / fps
    first = total - count if span.stop == frames else round(begins * rate)
    shift = first / rate - begins
    if context.sound is None:
        return Track(first, count, total, shift)
    earlier = context.sound
    if earlier.ndim != 2 or len(earlier) != latents(context.kept):
        raise UserError(
            f"the earlier run has {context.kept} latent frames and latents of sound {tuple(earlier.shape)}; at "
            f"fps={fps:g} there must be {latents(context.kept)} of them: name the fps that it was made with"
        )
    numbers = torch.arange(first, first + count)
    frame = _frame_of(stock.transformer, frames, total, fps)[numbers]
    known = (numbers < len(earlier)) & ((frame < context.start) | (frame >= context.stop))
    return Track(first, count, total, shift, known, earlier)


def _frame_of(model: Any, frames: int, total: int, fps: float) -> Tensor:
    """The latent frame in whose time each audio latent of the film lies: int64 (A,)."""
    cpu = torch.device("cpu")
    ends = model.rope.prepare_video_coords(1, frames, 1, 1, cpu, fps=fps)[0, 0, :, 1].double()
    middle = model.audio_rope.prepare_audio_coords(1, total, cpu)[0, 0].double().mean(-1)
    return frame_in_time(ends, middle)


def decoded_sound(stock: Any, sound: Tensor) -> Tensor:
    """Waves (1, channels, samples) of latents (A, C) in the transformer's space, by the stock audio VAE and vocoder."""
    vae = stock.audio_vae
    weight = next(vae.parameters())
    with torch.no_grad():
        z = stock._denormalize_audio_latents(sound[None].to(stock._execution_device), vae.latents_mean, vae.latents_std)
        bins = vae.config.mel_bins // stock.audio_vae_mel_compression_ratio
        z = stock._unpack_audio_latents(z, len(sound), num_mel_bins=bins).to(weight.dtype)
        waves: Tensor = stock.vocoder(vae.decode(z, return_dict=False)[0])
    stock.maybe_free_model_hooks()
    return waves
