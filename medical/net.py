"""The net of the prior: an encoder of the visits, a head that says the mean and how far off it may be, and a denoiser
of what the mean leaves open.

A scan x is ``mean + scale * rest``: the mean starts from a learned weighted mean of the visits, the scale is an
expected error at each voxel, and the rest, about unit noise without the anatomy, is what the diffusion draws. So what
can be known is not drawn anew, and samples have the grain of scans. Three forms of the target are known for diffusion;
this net says v (Salimans and Ho, arXiv 2202.00512).

Legend: B rows, K visits, D slices, H rows, W columns, E width of the condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from longtake.medical.diffusion import guided
from longtake.medical.encoder import Context, SequenceEncoder
from longtake.medical.modalities import SLOTS
from longtake.medical.ranks import Team
from longtake.medical.unet import Neighbours, UNet
from torch import nn
from torch.nn import functional as F

LEAST, MOST = math.log(0.01), math.log(1.5)  # of the scale, where intensities lie in [-1, 1]
USUAL = math.log(0.15)  # where the scale starts
EDGE = 1.3  # how far beyond [-1, 1] a value may lie


@dataclass
class Sight:
    """What encoder and mean know. seen: (B, C, D, H, W) that a denoiser is told; the others as in ``Outlook``."""

    mean: torch.Tensor
    scale: torch.Tensor
    seen: torch.Tensor
    condition: torch.Tensor
    size: tuple[int, int]


@dataclass
class Outlook:
    """What the net knows before a sample is drawn. mean, scale: (B, 1, D, H, W). told: (B * D, C, h, w) what the
    denoiser's first layer makes of what it sees beside the noise. condition: (B, E). size: H and W before they were
    padded."""

    mean: torch.Tensor
    scale: torch.Tensor
    told: torch.Tensor
    condition: torch.Tensor
    size: tuple[int, int]


class LongitudinalNet(ModelMixin, ConfigMixin):
    """See the module. width, heads, patch, features, maps, frequencies: of ``SequenceEncoder``. channels, stem: of the
    denoiser (see ``UNet``), mean_channels, mean_stem: of the mean's head. condition: E. ways: 2 where the denoiser says
    in one pass what v is and what knowing the visits adds to it, 1 where guidance takes two.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 96,
        heads: int = 4,
        patch: int = 8,
        frame_layers: int = 1,
        place_layers: int = 2,
        features: int = 4,
        maps: int = 4,
        frequencies: int = 4,
        channels: Sequence[int] = (32, 64, 96, 128),
        mean_channels: Sequence[int] = (32, 64, 96, 128),
        condition: int = 128,
        stem: int = 2,
        mean_stem: int = 2,
        ways: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(
            width, heads, patch, frame_layers, place_layers, features, maps, condition, frequencies
        )
        self.kinds = nn.Embedding(SLOTS, condition)
        self.expect = UNet(self.encoder.channels, 2, channels=mean_channels, condition=condition, stem=mean_stem)
        self.noise = nn.Sequential(nn.Linear(17, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.nothing = nn.Parameter(torch.randn(condition) * 0.02)
        self.denoiser = UNet(self.encoder.channels + 3, ways, channels=channels, condition=condition, stem=stem)
        step = math.lcm(self.expect.stride, self.denoiser.stride, patch)
        self.step = step

    def outlook(
        self,
        visits: torch.Tensor,
        delta: torch.Tensor,
        observed: torch.Tensor,
        kind: torch.Tensor,
        valid: torch.Tensor | None = None,
        team: Team | None = None,
    ) -> Outlook:
        """What is known of the target. visits: (B, K, D, H, W) of any size; kind: (B,) rows of the table of kinds;
        the others as ``SequenceEncoder`` has them."""
        return self.entered(self.sight(visits, delta, observed, kind, valid, team))

    def sight(
        self,
        visits: torch.Tensor,
        delta: torch.Tensor,
        observed: torch.Tensor,
        kind: torch.Tensor,
        valid: torch.Tensor | None = None,
        team: Team | None = None,
    ) -> Sight:
        """The part of ``outlook`` that every denoiser of this encoder shares."""
        size = (visits.shape[3], visits.shape[4])
        visits = self.padded(torch.where(observed[:, :, None, None, None], visits, 0.0))
        there = None if valid is None else self.padded(valid.float()) > 0.5
        which = self.kinds(kind)
        context: Context = self.encoder(visits, delta, observed, which, there, team)
        condition = context.summary + which
        out = self.expect(context.volume, condition, neighbours_of(team)).float()
        mean = (context.reference.float() + out[:, :1]).clamp(-EDGE, EDGE)
        scale = (USUAL + out[:, 1:]).clamp(LEAST, MOST).exp()
        seen = torch.cat([context.volume, mean.detach(), scale.detach().log() / 2], 1)
        return Sight(mean, scale, seen, condition, size)

    def entered(self, sight: Sight) -> Outlook:
        """With what this net's denoiser makes of it."""
        told = self.denoiser.entered(sight.seen.to(self.denoiser.enter.weight.dtype))
        return Outlook(sight.mean, sight.scale, told, sight.condition, sight.size)

    def padded(self, volume: torch.Tensor) -> torch.Tensor:
        """(..., H, W) grown by its edge values to sizes that the nets can halve."""
        height, width = (-side % self.step for side in volume.shape[-2:])
        if not height and not width:
            return volume
        flat = F.pad(volume.flatten(0, 2), (0, width, 0, height), mode="replicate")
        return flat.view(*volume.shape[:3], *flat.shape[-2:])

    def forward(
        self,
        noisy: torch.Tensor,
        level: torch.Tensor,
        outlook: Outlook,
        keep: torch.Tensor | None = None,
        team: Team | None = None,
        *,
        guidance: float | None = 1.0,
    ) -> torch.Tensor:
        """v of the rest, (B, 1, D, H', W') float32. noisy: (B, 1, D, H', W'), sizes padded as in ``outlook``; the
        outlook may be of one row for all. level: (B,), the share of the clean signal's variance. keep: (B,) bool, False
        for a row that must not know its visits; None: all know them. guidance: scale of classifier-free guidance (Ho
        and Salimans, arXiv 2207.12598), 1: none, 0: no row knows its visits; None: both ways, (B, 2, D, H', W'), first
        v with the visits."""
        told = noisy, level, outlook, keep, team
        if self.config["ways"] == 2:
            found = self._passed(*told)
            known, blind = found[:, :1], found[:, :1] - found[:, 1:]
            if keep is not None:
                known = torch.where(keep[:, None, None, None, None], known, blind)
            return torch.cat([known, blind], 1) if guidance is None else guided(blind, known, guidance)
        if guidance == 1:
            return self._passed(*told)
        without = self._passed(*told, blind=True)
        if guidance == 0:
            return without
        known = self._passed(*told)
        return torch.cat([known, without], 1) if guidance is None else guided(without, known, guidance)

    def _passed(
        self,
        noisy: torch.Tensor,
        level: torch.Tensor,
        outlook: Outlook,
        keep: torch.Tensor | None,
        team: Team | None,
        blind: bool = False,
    ) -> torch.Tensor:
        told: torch.Tensor | None = outlook.told
        condition = outlook.condition
        if blind:
            told, condition = None, self.nothing.to(condition.dtype).expand(len(noisy), -1)
        elif keep is not None and self.config["ways"] == 1:
            kept = keep.repeat_interleave(noisy.shape[2], output_size=len(outlook.told))
            told = torch.where(kept[:, None, None, None], outlook.told, 0.0)
            condition = torch.where(keep[:, None], condition, self.nothing.to(condition.dtype))
        angle = torch.acos(level.clamp(0, 1).sqrt()) * (2 / math.pi)
        waves = angle[:, None] * (2.0 ** torch.arange(8, device=angle.device) * math.pi / 2)
        features = torch.cat([waves.sin(), waves.cos(), angle[:, None]], 1)
        condition = condition + self.noise(features.to(condition.dtype))
        noisy = noisy.to(self.denoiser.enter.weight.dtype)
        found: torch.Tensor = self.denoiser(noisy, condition, neighbours_of(team), told)
        return found.float()


def neighbours_of(team: Team | None) -> Neighbours | None:
    """Where slices of other ranks come from; None where slices are not dealt out."""
    return team.neighbours if team is not None and team.slices is not None else None
