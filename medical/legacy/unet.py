"""The released denoiser ("ContextUnet"), for volumes of one size, with the names of the release's parameters.

No attention; one pooled vector at the bottom; the context comes in by concatenation, and with its sign turned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SQUASH = 1.414  # of a sum of two, as the release rounds it


class ConvBlock(nn.Module):
    """Two convolutions with BatchNorm and GELU; residual: the two outputs (or the input and the second) added up."""

    def __init__(self, inside: int, outside: int, residual: bool = False) -> None:
        super().__init__()
        self.residual, self.same = residual, inside == outside
        self.conv1 = nn.Sequential(nn.Conv3d(inside, outside, 3, 1, 1), nn.BatchNorm3d(outside), nn.GELU())
        self.conv2 = nn.Sequential(nn.Conv3d(outside, outside, 3, 1, 1), nn.BatchNorm3d(outside), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv1(x)
        second: torch.Tensor = self.conv2(first)
        if not self.residual:
            return second
        return ((x if self.same else first) + second) / SQUASH


class Chain(nn.Module):
    """Layers under the name ``model``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x)
        return out


class ContextUnet(nn.Module):
    """(B, 1, D, H, W) noisy, context of the same shape, time (B,) in 0..1, context_mask (B,) 1 where the context is
    dropped -> the noise (B, 1, D, H, W)."""

    def __init__(self, in_channels: int = 1, n_feat: int = 8, in_shape: Sequence[int] = (1, 32, 128, 128)) -> None:
        super().__init__()
        n, bottom = n_feat, (in_shape[1] // 4, in_shape[2] // 4, in_shape[3] // 4)
        self.init_conv = ConvBlock(in_channels, n, residual=True)
        self.down1 = Chain(ConvBlock(n + 1, n), nn.MaxPool3d(2))
        self.down2 = Chain(ConvBlock(n, 2 * n), nn.MaxPool3d(2))
        self.to_vec = nn.Sequential(nn.AvgPool3d(bottom), nn.GELU())
        self.timeembed1 = Chain(nn.Linear(1, 2 * n), nn.GELU(), nn.Linear(2 * n, 2 * n))
        self.up0 = nn.Sequential(nn.ConvTranspose3d(4 * n, 2 * n, bottom, bottom), nn.GroupNorm(8, 2 * n), nn.ReLU())
        self.up1 = Chain(nn.ConvTranspose3d(4 * n, n, 2, 2), ConvBlock(n, n), ConvBlock(n, n))
        self.up2 = Chain(nn.ConvTranspose3d(2 * n, n, 2, 2), ConvBlock(n, n), ConvBlock(n, n))
        self.out = nn.Sequential(
            nn.Conv3d(2 * n + 1, n, 3, 1, 1), nn.GroupNorm(8, n), nn.ReLU(), nn.Conv3d(n, in_channels, 3, 1, 1)
        )

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, time: torch.Tensor, context_mask: torch.Tensor
    ) -> torch.Tensor:
        kept = context * (-1 * (1 - context_mask.view(-1, 1, 1, 1, 1)))
        features = torch.cat([self.init_conv(x), kept], 1)
        first = self.down1(features)
        second = self.down2(first)
        vector = self.to_vec(second)
        told = self.timeembed1(time.view(-1, 1)).view(-1, vector.shape[1], 1, 1, 1)
        rising = self.up0(torch.cat([vector, told.expand(len(vector), -1, -1, -1, -1)], 1))
        rising = self.up1(torch.cat([rising, second], 1))
        rising = self.up2(torch.cat([rising, first], 1))
        out: torch.Tensor = self.out(torch.cat([rising, features], 1))
        return out
