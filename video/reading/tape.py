"""TimeSuite's two parts: token shuffle (m neighbouring tokens become one) and TAPE, which tells tokens where in time
they stand.

Method: TimeSuite (arXiv 2410.19702; public code d68f5fe). Both start by changing nothing: the shuffle equals the mean
of the m tokens and then the projector, TAPE gives exactly 0, until training moves them.

    shuffle = TokenShuffle.from_projector(projector, 4)      # (B, L, C) -> (B, L / 4, D)
    signal = TemporalAdapter(768, 192, 4096, merge=4)        # (B, L, 768) -> (B, L / 4, 4096), to be added to it
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenShuffle(nn.Module):
    """Groups of `merge` consecutive tokens are put side by side, and one linear layer (`merge_proj`) projects them."""

    def __init__(self, channels: int, width: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.merge_proj = nn.Linear(merge * channels, width)

    @classmethod
    def from_projector(cls, projector: nn.Linear, merge: int) -> "TokenShuffle":
        """The start values: W = [W_p | W_p | ...] / merge, b = b_p, which is the mean of the group, projected."""
        made = cls(projector.in_features, projector.out_features, merge).to(projector.weight)
        with torch.no_grad():
            made.merge_proj.weight.copy_(projector.weight.repeat(1, merge) / merge)
            if projector.bias is None:
                made.merge_proj.bias.zero_()
            else:
                made.merge_proj.bias.copy_(projector.bias)
        return made

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens: (B, L, C) -> (B, ceil(L / merge), D). mask: (B, L) bool, True where the token is real.

        The last group is filled up, and tokens that are not real may hold anything: in their place stands the mean of
        the real ones of their group, so at the start values a group is the mean of what is real in it. A group with
        nothing real is projected zeros.
        """
        return self.merge_proj(grouped(tokens, self.merge, mask).flatten(2))

    def repeat(self, tokens: Tensor) -> Tensor:
        """A still picture's tokens (B, L, C) -> (B, L, D): each stands `merge` times in a group of its own."""
        return self.merge_proj(tokens.repeat(1, 1, self.merge))


def grouped(tokens: Tensor, merge: int, mask: Tensor | None = None) -> Tensor:
    """Tokens (B, L, C) in groups: (B, ceil(L / merge), merge, C); what is not real is the mean of its group's real."""
    lack = -tokens.shape[1] % merge
    if lack == 0 and mask is None:
        return tokens.unflatten(1, (-1, merge))
    real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
    real = F.pad(real, (0, lack)).unflatten(1, (-1, merge))[..., None]
    groups = F.pad(tokens, (0, 0, 0, lack)).unflatten(1, (-1, merge)).masked_fill(~real, 0)
    mean = groups.sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
    return torch.where(real, groups, mean)


def ungrouped(groups: Tensor, length: int | None = None) -> Tensor:
    """The inverse of `grouped`: (B, G, merge, C) -> (B, length, C)."""
    return groups.flatten(1, 2)[:, :length]


class _LayerNorm(nn.Module):
    """LayerNorm over the channels of (B, C, L)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(x.transpose(1, 2)).transpose(1, 2)


def _depthwise(channels: int, size: int, stride: int, pad: int) -> nn.Sequential:
    over_time = nn.Conv1d(channels, channels, size, stride=stride, padding=pad, groups=channels)
    return nn.Sequential(over_time, nn.Conv1d(channels, channels, 1), _LayerNorm(channels), nn.GELU())


class TemporalAdapter(nn.Module):
    """TAPE: a small U-Net over time whose zero padding tells where the film begins and ends; 0 until trained.

    channels of a token, `middle` inside, `width` that comes out; merge: tokens of a group; clips: of the film, sets the
    reach of the lowest level. Keys are those of TimeSuite's `temp_adap`. 1,721,344 parameters at 768, 192, 4096, 4, 16.
    """

    def __init__(self, channels: int, middle: int, width: int, merge: int = 4, clips: int = 16) -> None:
        super().__init__()
        self.merge = merge
        self.linear_input = nn.Linear(channels, middle)
        self.pool = nn.AvgPool1d(merge)
        self.DwConv1 = _depthwise(middle, 2 * merge + 1, 4, merge)
        self.DwConv2 = _depthwise(middle, 2 * merge + 1, 4, merge)
        self.fc = nn.Sequential(nn.Conv1d(middle, middle, clips + 1, padding=clips // 2), _LayerNorm(middle), nn.GELU())
        self.UpConv1 = _depthwise(middle, merge + 1, 1, merge // 2)
        self.UpConv0 = _depthwise(middle, merge + 1, 1, merge // 2)
        self.linear_output = nn.Linear(middle, width)
        nn.init.zeros_(self.linear_output.weight)
        nn.init.zeros_(self.linear_output.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, L, channels) -> (B, ceil(L / merge), width). Any L >= 1: what the levels do not divide is filled
        with zeros behind the film and cut off again; where 16 * merge divides L that changes nothing."""
        x = self.linear_input(tokens).transpose(1, 2)
        lack = -x.shape[2] % self.merge
        if lack:
            x = torch.cat([x, x[:, :, -1:].expand(-1, -1, lack)], 2)  # the mean of the last group stays in its range
        level0 = self.pool(x)
        length = level0.shape[2]
        level0 = F.pad(level0, (0, -length % 16))
        level1 = self.DwConv1(level0)
        level2 = self.fc(self.DwConv2(level1))
        level1 = self.UpConv1(level2.repeat_interleave(4, 2)[:, :, : level1.shape[2]] + level1)
        level0 = self.UpConv0(level1.repeat_interleave(4, 2)[:, :, : level0.shape[2]] + level0)
        return self.linear_output(level0[:, :, :length].transpose(1, 2))
