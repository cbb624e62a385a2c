"""A small U-Net for slices and volumes by one code: convolutions within the slice, two taps to the neighbouring slices.

A single slice has no neighbours, so the taps cost it nothing; normalisation and attention stay within a slice, so that
a volume split along its slices needs one slice from each neighbour and nothing else. After Ronneberger et al. (arXiv
1505.04597), with FiLM (Perez et al., arXiv 1709.07871).

Legend: B rows, D slices, C channels, H rows, W columns; slices lie in the batch: (B * D, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 8
Neighbours = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # (B, D, ...) -> slices before and after


def within(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each slice of (B, D, ...) the one before and the one after, zeros beyond the ends."""
    empty = torch.zeros_like(volume[:, :1])
    return torch.cat([empty, volume[:, :-1]], 1), torch.cat([volume[:, 1:], empty], 1)


class Taps(nn.Module):
    """Adds to each slice a linear function of its two neighbours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(channels, channels, 1, bias=False)
        self.after = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.before.weight)
        nn.init.zeros_(self.after.weight)

    def forward(self, x: torch.Tensor, depth: int, neighbours: Neighbours | None) -> torch.Tensor:
        """(B * D, C, H, W) from the same. neighbours: where slices of other ranks come from; None: there are none."""
        if depth == 1 and neighbours is None:
            return x
        volume = x.unflatten(0, (-1, depth))
        if neighbours is None:
            low, high = self.before(x).unflatten(0, (-1, depth)), self.after(x).unflatten(0, (-1, depth))
            out = volume.clone()
            out[:, 1:] += low[:, :-1]
            out[:, :-1] += high[:, 1:]
            return out.flatten(0, 1)
        below, above = neighbours(volume)
        return x + self.before(below.flatten(0, 1)) + self.after(above.flatten(0, 1))


class Block(nn.Module):
    """Norm, condition, two convolutions, the neighbours' taps, and the input beside it."""

    def __init__(self, inside: int, outside: int, condition: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(GROUPS, inside)
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.taps = Taps(outside)
        self.film = nn.Linear(condition, 2 * outside)
        self.second_norm = nn.GroupNorm(GROUPS, outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.beside = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        for layer in (self.film, self.second):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, depth: int, neighbours: Neighbours | None
    ) -> torch.Tensor:
        """(B * D, outside, H, W); condition: (B, E)."""
        middle = self.taps(self.first(F.silu(self.first_norm(x))), depth, neighbours)
        scale, shift = self.film(condition).repeat_interleave(depth, 0)[:, :, None, None].chunk(2, 1)
        middle = self.second_norm(middle) * (1 + scale) + shift
        return self.beside(x) + self.second(F.silu(middle))


class SliceAttention(nn.Module):
    """Self-attention among the places of a slice."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.queries, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        parts = self.queries(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2]).transpose(1, 2).flatten(2)
        return x + self.out(seen).transpose(1, 2).view_as(x)


class UNet(nn.Module):
    """(B, inside, D, H, W) and a condition (B, E) -> (B, outside, D, H, W); H and W multiples of ``stride``.

    stem: side of the square of pixels that the first layer takes at once. channels: of each level, in-plane size
    halved from one to the next. The last layer starts at zero.
    """

    def __init__(self, inside: int, outside: int, channels: Sequence[int], condition: int, stem: int = 2) -> None:
        super().__init__()
        self.stem = stem
        self.stride = stem * 2 ** (len(channels) - 1)
        self.enter = nn.Conv2d(inside * stem * stem, channels[0], 3, padding=1)
        self.down = nn.ModuleList([Block(size, size, condition) for size in channels[:-1]])
        self.narrow = nn.ModuleList(
            [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:], strict=False)]
        )
        deepest = channels[-1]
        self.middle = nn.ModuleList([Block(deepest, deepest, condition) for _ in range(2)])
        self.attention = SliceAttention(deepest)
        above = [b for _, b in zip(channels, channels[1:], strict=False)]
        self.widen = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in zip(channels, above, strict=False)])
        self.up = nn.ModuleList([Block(2 * size, size, condition) for size in channels[:-1]])
        self.norm = nn.GroupNorm(GROUPS, channels[0])
        self.leave = nn.Conv2d(channels[0], outside * stem * stem, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, neighbours: Neighbours | None = None) -> torch.Tensor:
        depth = x.shape[2]
        flat = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        flat = self.enter(F.pixel_unshuffle(flat, self.stem))
        kept = []
        for block, narrow in zip(self.down, self.narrow, strict=True):
            flat = block(flat, condition, depth, neighbours)
            kept.append(flat)
            flat = narrow(flat)
        flat = self.attention(self.middle[0](flat, condition, depth, neighbours))
        flat = self.middle[1](flat, condition, depth, neighbours)
        for block, widen in zip(reversed(self.up), reversed(self.widen), strict=True):
            beside = kept.pop()
            flat = F.interpolate(widen(flat), scale_factor=2.0, mode="nearest")
            flat = block(torch.cat([flat, beside], 1), condition, depth, neighbours)
        flat = F.pixel_shuffle(self.leave(F.silu(self.norm(flat))), self.stem)
        return flat.unflatten(0, (-1, depth)).transpose(1, 2)
