"""The released conditioner ("ViViT" of ubc-tea/SADM-Longitudinal-Medical-Image-Generation): earlier frames to one
volume.

Written from its layout and numbers, for users' own checkpoints and for comparison; the names of its parameters are
those of the release. What it does and a new net should not: all tokens of all frames in one attention, widths that
shrink by eight each layer to a LayerNorm over two features, patches and places that do not correspond on the way out.

Legend: B rows, T frames, N patches a frame, V voxels of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from longtake.errors import UserError
from torch import nn
from torch.nn import functional as F

FOLD = 8  # how much narrower or longer each layer makes things


class Attention(nn.Module):
    """Self-attention, queries, keys and values without bias."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        out: torch.Tensor = self.to_out(seen.transpose(1, 2).flatten(2))
        return out


class Narrow(nn.Module):
    """One linear layer and GELU."""

    def __init__(self, width: int, to: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, to), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


class PreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fn(self.norm(x))
        return out


class TemporalTransformer(nn.Module):
    """(B, n, width) -> (B, n, width / 8 ** depth)."""

    def __init__(self, width: int, depth: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = PreNorm(width, Attention(width, heads, head_width))
            self.layers.append(
                nn.ModuleList([attention, PreNorm(width, Narrow(width, width)), Narrow(width, width // FOLD)])
            )
            width //= FOLD
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            attention, feed, narrow = layer.children()
            x = attention(x) + x
            x = narrow(feed(x) + x)
        out: torch.Tensor = self.norm(x)
        return out


class SpaceTransformer(nn.Module):
    """(B, n, width) -> (B, n * 8 ** depth, width)."""

    def __init__(self, width: int, depth: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = PreNorm(width, Attention(width, heads, head_width))
            self.layers.append(nn.ModuleList([attention, PreNorm(width, Narrow(width, width))]))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            attention, feed = layer.children()
            x = attention(x) + x
            x = feed(x) + x
            x = x.repeat_interleave(FOLD, -1).unflatten(-1, (FOLD, -1)).transpose(1, 2).flatten(1, 2)
        out: torch.Tensor = self.norm(x)
        return out


class ViViT(nn.Module):
    """Frames (B, T, 1, D, H, W) -> context (B, 1, D, H, W). depth: of the temporal part; the other has one layer more.

    Raises UserError for sizes that the release cannot have: prod(patch_size) must be 8 ** (depth + 1) times a whole
    number which is also what is left of a token's features.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (32, 128, 128),
        patch_size: Sequence[int] = (8, 32, 32),
        num_frames: int = 11,
        depth: int = 3,
        heads: int = 3,
        dim_head: int = 8,
    ) -> None:
        super().__init__()
        voxels = math.prod(patch_size)
        if voxels % FOLD ** (depth + 1) or any(a % b for a, b in zip(image_size, patch_size, strict=True)):
            raise UserError(
                f"patch_size must divide image_size, and its product be a multiple of {FOLD ** (depth + 1)}; given "
                f"{tuple(patch_size)} and {tuple(image_size)}"
            )
        self.grid = tuple(a // b for a, b in zip(image_size, patch_size, strict=True))
        self.patch = tuple(patch_size)
        patches, width = math.prod(self.grid), voxels // FOLD
        self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.Linear(voxels, width))
        self.pos_embedding = nn.Parameter(torch.empty(1, num_frames, patches, width))
        nn.init.normal_(self.pos_embedding)
        self.temporal_transformer = TemporalTransformer(width, depth, heads, dim_head)
        tokens = num_frames * patches
        self.space_transformer = SpaceTransformer(tokens, depth + 1, heads, dim_head)
        self.conv3d = nn.Sequential(nn.Identity(), nn.Identity(), nn.Conv3d(tokens, 1, 3, padding=1))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W)."""
        (a, b, c), (p, q, r) = self.grid, self.patch
        batch, count = frames.shape[:2]
        cut = frames.reshape(batch, count, a, p, b, q, c, r).permute(0, 1, 2, 4, 6, 3, 5, 7)
        tokens = self.to_patch_embedding(cut.reshape(batch, count, a * b * c, p * q * r)) + self.pos_embedding
        found = self.temporal_transformer(tokens.flatten(1, 2)).transpose(1, 2)
        found = self.space_transformer(found)  # (B, V, T N)
        wide = found.repeat_interleave(a * b * c, -1).reshape(batch, p, q, r, a, b, c, -1)
        volume = wide.permute(0, 7, 4, 1, 5, 2, 6, 3).reshape(batch, -1, a * p, b * q, c * r)
        out: torch.Tensor = self.conv3d(volume)
        return out
