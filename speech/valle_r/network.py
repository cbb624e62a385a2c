"""The transformer of VALL-E and VALL-E R: pre-norm, ReLU, sinusoidal places with a learned weight.

Attention is handed in by the caller as ``attend(layer, q, k, v)``, so that the same blocks serve a whole sequence, a
padded batch and a cache.
Shape legend: B batch, N rows of a sequence, d width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.kernels import attention
from torch import nn

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
PLACES = 4096  # rows of the table of places; longer sequences have theirs computed


@dataclass(frozen=True)
class Size:
    """Of a transformer: width d, heads, layers, width of the feed-forward part."""

    width: int
    heads: int
    layers: int
    feedforward: int

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.layers, self.feedforward) < 1 or self.width % (2 * self.heads):
            raise UserError(f"a transformer needs a width that is an even multiple of its heads, got {self}")


PRESETS = {
    "paper": Size(1024, 16, 12, 4096),
    "small": Size(256, 4, 6, 1024),
    "test": Size(64, 4, 3, 256),
}


def size_of(name: str) -> Size:
    """A preset's size. UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; allowed are {', '.join(PRESETS)}")
    return PRESETS[name]


def sinusoids(places: torch.Tensor, width: int) -> torch.Tensor:
    """sin and cos in turn (..., width) float32 of places (...), base 10,000 (Vaswani et al., arXiv 1706.03762)."""
    rates = torch.exp(torch.arange(0, width, 2, device=places.device) * (-math.log(10000.0) / width))
    angles = places[..., None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


class Places(nn.Module):
    """Sinusoids of places times a learned weight ``alpha`` (1,)."""

    table: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.register_buffer("table", sinusoids(torch.arange(PLACES), width), persistent=False)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """(..., width) of places (...) int64 below ``PLACES``."""
        return self.alpha * F.embedding(places, self.table)

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The same of any places, computed."""
        return self.alpha * sinusoids(places, self.table.shape[1])

    def first(self, count: int) -> torch.Tensor:
        """(count, width) of the places 0..count-1, however many."""
        if count <= PLACES:
            return self.alpha * self.table[:count]
        return self.alpha * sinusoids(torch.arange(count, device=self.table.device), self.table.shape[1])


class StageNorm(nn.Module):
    """A layer norm whose scale and shift come from a stage's vector: w(n) LN(x) + b(n), [w, b] = Linear(stage)."""

    def __init__(self, width: int, stage: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project_layer = nn.Linear(stage, 2 * width)
        with torch.no_grad():
            self.project_layer.weight.mul_(0.1)
            self.project_layer.bias.copy_(torch.cat([torch.ones(width), torch.zeros(width)]))

    def forward(self, x: torch.Tensor, stage: torch.Tensor | None) -> torch.Tensor:
        scale, shift = self.project_layer(stage)[:, None].chunk(2, -1)
        return scale * self.norm(x) + shift


class PlainNorm(nn.LayerNorm):
    """A layer norm that has no stage."""

    def forward(self, x: torch.Tensor, stage: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


class Layer(nn.Module):
    """One block on x (B, N, d)."""

    def __init__(self, size: Size, dropout: float, stage: int | None) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm1: Any = PlainNorm(width) if stage is None else StageNorm(width, stage)
        self.norm2: Any = PlainNorm(width) if stage is None else StageNorm(width, stage)
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, size.feedforward), nn.Linear(size.feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, number: int, attend: Attend, stage: torch.Tensor | None) -> torch.Tensor:
        rows = self.in_proj(self.norm1(x, stage)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = attend(number, rows[0], rows[1], rows[2])
        x = x + self.dropout(self.out_proj(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(self.norm2(x, stage))))))


class Transformer(nn.Module):
    """Blocks and a last norm. stage: width of the stage's vector where norms depend on one, None: they do not."""

    def __init__(self, size: Size, dropout: float = 0.1, stage: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(size, dropout, stage) for _ in range(size.layers))
        self.norm: Any = PlainNorm(size.width) if stage is None else StageNorm(size.width, stage)

    def forward(self, x: torch.Tensor, attend: Attend, stage: torch.Tensor | None = None) -> torch.Tensor:
        """Rows (B, N, d) of rows (B, N, d); stage: (B, s)."""
        for number, layer in enumerate(self.layers):
            x = layer(x, number, attend, stage)
        return self.norm(x, stage)


def by_mask(visible: torch.Tensor) -> Attend:
    """Attention of a padded batch: visible (B, N, N) bool, every row sees something."""
    mask = visible[:, None]
    return lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_rule(mask: Any, mesh: Any = None) -> Attend:
    """Attention of whole sequences under a mask of ``longtake.kernels``, None: everything sees everything. mesh: the
    ranks over which the rows are split, in order."""
    return lambda _, q, k, v: attention(q, k, v, mask=mask, mesh=mesh)
