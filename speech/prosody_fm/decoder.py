"""The flow-matching decoder of Matcha-TTS and ProsodyFM: its vector field, its loss, and Euler steps along it.

Padding: the public code adds its 0/1 mask to the attention scores and takes GroupNorm's statistics over padded frames
too, so what is padded changes what is not. ``strict`` masks both; ``compat`` keeps the public numbers.
Module names are those of public checkpoints (``decoder.estimator``).
Shape legend: B sentences, n mels, T frames (a multiple of 4 in the field), S speaker channels, D channels; masks
are (B, 1, T) float32 of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MULTIPLE = 4  # frames of a mel in the field
SIGMA = 1e-4  # of the noise that is left at time 1


class MaskedNorm(nn.GroupNorm):
    """GroupNorm over (B, D, T); strict: with the statistics of valid frames alone."""

    strict = True

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if not self.strict or mask is None:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float().reshape(len(x), self.num_groups, -1, x.shape[-1])
            valid = rows * mask[:, None].float()
            count = mask.float().sum(-1)[..., None] * (x.shape[1] // self.num_groups)  # (B, 1, 1)
            mean = valid.sum((2, 3))[..., None] / count
            power = valid.square().sum((2, 3))[..., None] / count - mean.square()
            scale = torch.rsqrt(power.clamp_min(0) + self.eps) * self.weight.reshape(self.num_groups, -1)
            shift = self.bias.reshape(self.num_groups, -1) - mean * scale
            return torch.addcmul(shift[..., None], rows, scale[..., None]).reshape(x.shape).to(x.dtype)


class Block(nn.Module):
    """Convolution, GroupNorm of 8 groups, Mish."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(inside, outside, 3, padding=1), MaskedNorm(8, outside))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.mish(self.block[1](self.block[0](x * mask), mask)) * mask


class Resnet(nn.Module):
    """Two blocks, the time between them, and a shortcut."""

    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, outside))
        self.block1, self.block2 = Block(inside, outside), Block(outside, outside)
        self.res_conv = nn.Conv1d(inside, outside, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = self.block1(x, mask) + self.mlp(time)[..., None]
        return self.block2(y, mask) + self.res_conv(x * mask)


class SelfAttention(nn.Module):
    """Attention among frames (B, T, D)."""

    def __init__(self, channels: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, heads * width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(heads * width, channels), nn.Dropout(dropout)])

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            net(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for net in (self.to_q, self.to_k, self.to_v)
        )
        if bias.dtype != torch.bool:
            bias = bias.to(query.dtype)
        found = F.scaled_dot_product_attention(query, key, value, bias)
        return self.to_out[1](self.to_out[0](found.transpose(1, 2).flatten(2)))


class SnakeBeta(nn.Module):
    """A linear layer and y + sin(y exp(alpha))^2 / (exp(beta) + 1e-9)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(outside)), nn.Parameter(torch.zeros(outside))
        self.proj = nn.Linear(inside, outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.proj(x)
        wave = torch.sin(y * self.alpha.exp().to(y.dtype))
        return y + wave * wave / (self.beta.exp() + 1e-9).to(y.dtype)


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [SnakeBeta(channels, 4 * channels), nn.Dropout(dropout), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for net in self.net:
            x = net(x)
        return x


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward over frames."""

    def __init__(self, channels: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, heads, width, dropout)
        self.ff = FeedForward(channels, dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Of (B, D, T)."""
        x = x.transpose(1, 2)
        x = x + self.attn1(self.norm1(x), bias)
        x = x + self.ff(self.norm3(x))
        return x.transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Times (B,) -> (B, 4 D): sines of 1,000 t, then two linear layers with SiLU between."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.inside = inside
        self.linear_1, self.linear_2 = nn.Linear(inside, outside), nn.Linear(outside, outside)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        half = self.inside // 2
        speed = torch.exp(torch.arange(half, device=time.device, dtype=torch.float32) * (-math.log(10000) / (half - 1)))
        angle = (1000 * time)[:, None] * speed
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.sin(), angle.cos()], -1))))


class Resample(nn.Module):
    """A convolution that halves or doubles the frames."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose1d if up else nn.Conv1d
        self.conv = kind(channels, channels, 4 if up else 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Estimator(nn.Module):
    """The vector field: two levels down, ``middle`` blocks, two levels up."""

    def __init__(
        self, mels: int, speaker: int, channels: tuple[int, int], heads: int, width: int, middle: int, dropout: float
    ) -> None:
        super().__init__()
        first, second = channels
        inside, time = 2 * mels + speaker, 4 * first

        def level(a: int, b: int, *more: nn.Module) -> nn.ModuleList:
            blocks = nn.ModuleList([TransformerBlock(b, heads, width, dropout)])
            return nn.ModuleList([Resnet(a, b, time), blocks, *more])

        self.time_mlp = TimeEmbedding(inside, time)
        self.down_blocks = nn.ModuleList(
            [
                level(inside, first, Resample(first, up=False)),
                level(first, second, nn.Conv1d(second, second, 3, padding=1)),
            ]
        )
        self.mid_blocks = nn.ModuleList(level(second, second) for _ in range(middle))
        self.up_blocks = nn.ModuleList(
            [
                level(2 * second, first, Resample(first, up=True)),
                level(2 * first, first, nn.Conv1d(first, first, 3, padding=1)),
            ]
        )
        self.final_block = Block(first, first)
        self.final_proj = nn.Conv1d(first, mels, 1)
        self._strict = True

    @property
    def strict(self) -> bool:
        """Whether padding leaves valid frames alone; False: as the public code computes."""
        return self._strict

    @strict.setter
    def strict(self, value: bool) -> None:
        self._strict = value
        for module in self.modules():
            if isinstance(module, MaskedNorm):
                module.strict = value

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        mu: torch.Tensor,
        time: torch.Tensor,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity (B, n, T) of x (B, n, T) at times (B,), for mu (B, n, T) and speakers (B, S)."""
        moment = self.time_mlp(time)
        parts = [x, mu] if speaker is None else [x, mu, speaker[..., None].expand(-1, -1, x.shape[-1])]
        x = torch.cat(parts, 1)
        masks = [mask, mask[..., ::2]]
        biases = [m[:, None] > 0 if self._strict else m[:, None] for m in masks]
        saved = []
        down, middle, up = ([tuple(level) for level in side] for side in self._sides())
        for depth, (resnet, blocks, then) in enumerate(down):
            x = self._level(resnet, blocks, x, masks[depth], moment, biases[depth])
            saved.append(x)
            x = then(x * masks[depth])
        for resnet, blocks in middle:
            x = self._level(resnet, blocks, x, masks[1], moment, biases[1])
        for depth, (resnet, blocks, then) in zip((1, 0), up, strict=True):
            x = torch.cat([x, saved.pop()], 1)
            x = self._level(resnet, blocks, x, masks[depth], moment, biases[depth])
            x = then(x * masks[depth])
        return self.final_proj(self.final_block(x, mask) * mask) * mask

    def _sides(self) -> tuple[Any, Any, Any]:
        return self.down_blocks, self.mid_blocks, self.up_blocks

    @staticmethod
    def _level(
        resnet: nn.Module,
        blocks: nn.ModuleList,
        x: torch.Tensor,
        mask: torch.Tensor,
        moment: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        x = resnet(x, mask, moment)
        for block in blocks:
            x = block(x, bias)
        return x


Field = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def euler(
    field: Field,
    start: torch.Tensor,
    steps: int,
    *,
    known: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """From ``start`` (B, n, T) at time 0 along ``field(x, times (B,))`` to time 1 in ``steps`` equal steps.

    known (B, n, k) and noise (B, n, k): the first k frames are held on the straight path from noise to known, so that
    what follows goes on from them (flow in-painting).
    """
    moments = torch.linspace(0, 1, steps + 1, device=start.device)
    x, time = start, moments[0]
    for step in range(1, steps + 1):
        if known is not None and noise is not None:
            x = torch.cat([(1 - (1 - SIGMA) * time) * noise + time * known, x[..., known.shape[-1] :]], -1)
        ahead = moments[step] - time
        x = x + ahead * field(x, time.expand(len(x)))
        time = time + ahead
    if known is not None:
        x = torch.cat([known, x[..., known.shape[-1] :]], -1)
    return x


def flow_target(noise: torch.Tensor, clean: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The point at times (B,) of the straight path from noise to clean (B, n, T), and its velocity."""
    moment = time[:, None, None]
    return (1 - (1 - SIGMA) * moment) * noise + moment * clean, clean - (1 - SIGMA) * noise


class Decoder(nn.Module):
    """Holds the estimator under its public name.

    spread: 0 for the public decoder, whose estimator is the velocity itself. Above 0 the estimator tells only what is
    left of the velocity beside its best linear guess from x and mu, for mels that lie around mu with this deviation,
    in units of what is left (the preconditioning of Karras et al., 2022, for this path): a net learns that much sooner.
    """

    def __init__(self, estimator: Estimator, spread: float = 0.0) -> None:
        super().__init__()
        self.estimator, self.spread = estimator, spread
        if spread:
            nn.init.zeros_(estimator.final_proj.weight)
            nn.init.zeros_(estimator.final_proj.bias)  # type: ignore[arg-type]

    def velocity(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        mu: torch.Tensor,
        time: torch.Tensor,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``Estimator.forward``."""
        found = self.estimator(x, mask, mu, time, speaker)
        if not self.spread:
            return found
        moment, power = time[:, None, None], self.spread**2
        level = (1 - moment).square() + moment.square() * power
        guess = mu + (moment * power - (1 - moment)) / level * (x - moment * mu)
        return (guess + self.spread * torch.rsqrt(level) * found.float()) * mask

    def forward(
        self,
        mu: torch.Tensor,
        mask: torch.Tensor,
        start: torch.Tensor,
        steps: int,
        speaker: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mels (B, n, T) from noise ``start``; see ``euler``; T a multiple of 4."""

        def field(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.velocity(x, mask, mu, time, speaker)

        noise = None if known is None else start[..., : known.shape[-1]]
        return euler(field, start, steps, known=known, noise=noise)
