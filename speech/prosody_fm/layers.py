"""Layers of the text encoder that Matcha-TTS and ProsodyFM share: channel norm, rotary attention, prenet, durations.

Module names are those of public checkpoints. Shape legend: B texts, C channels, T symbols, H heads; a mask is
(B, 1, T) float32 of 0 and 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def lengths_mask(lengths: torch.Tensor, most: int) -> torch.Tensor:
    """(B, 1, most) float32, 1 for the first ``lengths`` (B,) places."""
    return (torch.arange(most, device=lengths.device) < lengths[:, None]).float()[:, None]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, T), eps 1e-4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.transpose(1, 2), self.gamma.shape, self.gamma, self.beta, 1e-4).transpose(1, 2)


class Prenet(nn.Module):
    """Three convolutions over the symbols and a projection that starts at zero, added to the input."""

    def __init__(self, channels: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(nn.Conv1d(channels, channels, 5, padding=2) for _ in range(3))
        self.norm_layers = nn.ModuleList(ChannelNorm(channels) for _ in range(3))
        self.proj = nn.Conv1d(channels, channels, 1)
        self.dropout = dropout
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = x
        for conv, norm in zip(self.conv_layers, self.norm_layers, strict=True):
            y = F.dropout(F.relu(norm(conv(y * mask))), self.dropout, self.training)
        return (x + self.proj(y)) * mask


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Heads (B, H, T, c) with their first c // 2 channels turned by their place (RoPE, the halves as pairs)."""
    turning = x.shape[-1] // 2
    speed = 10000 ** (-torch.arange(0, turning, 2, device=x.device, dtype=torch.float32) / turning)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * speed
    angle = torch.cat([angle, angle], -1)
    part, rest = x[..., :turning], x[..., turning:]
    one, two = part.chunk(2, -1)
    turned = part * angle.cos().to(x.dtype) + torch.cat([-two, one], -1) * angle.sin().to(x.dtype)
    return torch.cat([turned, rest], -1)


class Attention(nn.Module):
    """Self-attention with RoPE; convolutions of width 1 as projections."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.conv_q, self.conv_k, self.conv_v, self.conv_o = (nn.Conv1d(channels, channels, 1) for _ in range(4))
        for conv in (self.conv_q, self.conv_k, self.conv_v):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(len(y), self.heads, -1, y.shape[-1]).transpose(2, 3)

        query, key, value = (split(conv(x)) for conv in (self.conv_q, self.conv_k, self.conv_v))
        found = F.scaled_dot_product_attention(
            rotated(query), rotated(key), value, mask[:, None] > 0, self.dropout if self.training else 0.0
        )
        return self.conv_o(found.transpose(2, 3).flatten(1, 2))


class FeedForward(nn.Module):
    """Two convolutions over the symbols with ReLU between."""

    def __init__(self, channels: int, inner: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels, inner, kernel, padding=kernel // 2)
        self.conv_2 = nn.Conv1d(inner, channels, kernel, padding=kernel // 2)
        self.dropout = dropout

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = F.dropout(F.relu(self.conv_1(x * mask)), self.dropout, self.training)
        return self.conv_2(y * mask) * mask


class Encoder(nn.Module):
    """Post-norm blocks of attention and convolutions over (B, C, T)."""

    def __init__(self, channels: int, inner: int, heads: int, layers: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(Attention(channels, heads, dropout) for _ in range(layers))
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(FeedForward(channels, inner, kernel, dropout) for _ in range(layers))
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))
        self.dropout = dropout

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for attend, first, feed, second in zip(
            self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True
        ):
            x = x * mask
            x = first(x + F.dropout(attend(x, mask), self.dropout, self.training))
            x = second(x + F.dropout(feed(x, mask), self.dropout, self.training))
        return x * mask


class DurationPredictor(nn.Module):
    """Logarithms of durations in frames, (B, 1, T), from states (B, C, T) that it does not train."""

    def __init__(self, channels: int, inner: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels, inner, kernel, padding=kernel // 2)
        self.norm_1 = ChannelNorm(inner)
        self.conv_2 = nn.Conv1d(inner, inner, kernel, padding=kernel // 2)
        self.norm_2 = ChannelNorm(inner)
        self.proj = nn.Conv1d(inner, 1, 1)
        self.dropout = dropout

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.detach()
        for conv, norm in ((self.conv_1, self.norm_1), (self.conv_2, self.norm_2)):
            x = F.dropout(norm(F.relu(conv(x * mask))), self.dropout, self.training)
        return self.proj(x * mask) * mask


class ContextEncoder(nn.Module):
    """A small reader of symbols (B, T) -> states (B, T, width), for what only needs to know the sentence's kind."""

    def __init__(self, symbols: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.emb = nn.Embedding(symbols, width)
        nn.init.normal_(self.emb.weight, 0, width**-0.5)
        self.prenet = Prenet(width, dropout)
        self.encoder = Encoder(width, 2 * width, 2, 2, 3, dropout)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids).transpose(1, 2) * math.sqrt(self.emb.embedding_dim)
        return self.encoder(self.prenet(x, mask), mask).transpose(1, 2)
