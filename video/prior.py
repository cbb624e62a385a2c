"""The small video prior's autoencoder: single frames to an 8x smaller latent grid and back.

Convolutional, deterministic, patchified by two so that every layer works at half resolution or less. The latent is
whitened by batch statistics (no learned scale), so a diffusion model sees unit variance without a scaling constant, and
noise added to it in training makes the decoder forgive the sampler's small errors.
Shape legend: B frames, C image channels (3), H W pixels, c latent channels, h w = H/8 W/8.

    frames = autoencoder.decode(autoencoder.encode(images).latent)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class Residual(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, added to the input. (B, width, h, w) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Upsample(nn.Module):
    """Doubles height and width: 3x3 convolution to four times the channels, then pixel shuffle."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, 4 * width_out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


@dataclass
class Encoded:
    """Result of ``encode``: ``latent`` (B, c, H/8, W/8), about unit variance."""

    latent: torch.Tensor


@dataclass
class Decoded:
    """Result of ``decode``: ``sample`` (B, 3, H, W) in [-1, 1] (not clamped)."""

    sample: torch.Tensor


class FrameAutoencoder(ModelMixin, ConfigMixin):
    """Autoencoder of single frames, 8x down in height and width; H and W must be multiples of 8.

    widths, encoder_blocks, decoder_blocks: channels and residual blocks at half, quarter and eighth resolution.
    decoder_widths: the decoder's own, where they differ.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        widths: tuple[int, int, int] = (48, 96, 160),
        encoder_blocks: tuple[int, int, int] = (1, 2, 2),
        decoder_blocks: tuple[int, int, int] = (2, 2, 3),
        scaling_factor: float = 1.0,
        decoder_widths: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        low, middle, high = widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, low, 3, padding=1),
            *[Residual(low) for _ in range(encoder_blocks[0])],
            nn.Conv2d(low, middle, 3, stride=2, padding=1),
            *[Residual(middle) for _ in range(encoder_blocks[1])],
            nn.Conv2d(middle, high, 3, stride=2, padding=1),
            *[Residual(high) for _ in range(encoder_blocks[2])],
            nn.GroupNorm(8, high),
            nn.SiLU(),
            nn.Conv2d(high, latent_channels, 3, padding=1),
        )
        self.whiten = nn.BatchNorm2d(latent_channels, affine=False)
        low, middle, high = decoder_widths or widths
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, high, 3, padding=1),
            *[Residual(high) for _ in range(decoder_blocks[2])],
            Upsample(high, middle),
            *[Residual(middle) for _ in range(decoder_blocks[1])],
            Upsample(middle, low),
            *[Residual(low) for _ in range(decoder_blocks[0])],
            nn.GroupNorm(8, low),
            nn.SiLU(),
            nn.Conv2d(low, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, images: torch.Tensor) -> Encoded:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, c, H/8, W/8); raises ValueError for other sizes."""
        if images.shape[-1] % 8 or images.shape[-2] % 8:
            raise ValueError(f"height and width must be multiples of 8, got {tuple(images.shape[-2:])}")
        return Encoded(self.whiten(self.encoder(images)))

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Latents (B, c, h, w) to images (B, 3, 8h, 8w)."""
        return Decoded(self.decoder(latent))

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Images (B, 3, H, W) through the latent and back; ``noise`` (B, c, H/8, W/8) is added to the latent."""
        latent = self.encode(images).latent
        return self.decode(latent if noise is None else latent + noise).sample
