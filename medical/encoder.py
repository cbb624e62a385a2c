"""The sequence-aware encoder: any number of earlier visits at any times, some missing, become one context volume.

Each visit is cut into patches that carry the time to the target; patches of one visit see each other, then each place
asks all observed visits (attention over time, nothing of a missing one), then places of a slice see each other again.
Factorised as in ViViT (Arnab et al., arXiv 2103.15691), masked and in continuous time after SADM (Yoon et al., arXiv
2212.08228). Beside features it gives *maps*: weighted means of the visits, voxel by voxel, with weights from the same
attention, so that what stays as it was is not painted again.

Legend: B rows, K visits, D slices, H rows, W columns, P patches a slice, C features, N maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from longtake.medical.ranks import Team
from torch import nn
from torch.nn import functional as F

RIDGE = 0.02  # of the slope over time, in units of the scale squared
FAR = 1.5  # most that an extrapolated difference may be, on the scale where intensities lie in [-1, 1]


@dataclass
class Context:
    """What the denoiser is told.

    volume: (B, C, D, H, W). reference: (B, 1, D, H, W) weighted mean of the visits. nearest: (B, 1, D, H, W) the
    observed visit nearest in time. summary: (B, E) of times and visits.
    """

    volume: torch.Tensor
    reference: torch.Tensor
    nearest: torch.Tensor
    summary: torch.Tensor


def time_features(delta: torch.Tensor, frequencies: int) -> torch.Tensor:
    """(..., 2 * frequencies + 3) of times (...) in units of the scale: waves of 2^j pi / 4, the time, its size."""
    waves = delta[..., None] * (2.0 ** torch.arange(frequencies, device=delta.device) * math.pi / 4)
    bounded = torch.stack([delta.clamp(-4, 4) / 2, torch.tanh(2 * delta), delta.abs().log1p()], -1)
    return torch.cat([waves.sin(), waves.cos(), bounded], -1)


def places(rows: int, columns: int, width: int, device: torch.device) -> torch.Tensor:
    """(rows * columns, width) sine-cosine positions of patches."""
    quarter = width // 4
    speed = torch.exp(-math.log(100.0) * torch.arange(quarter, device=device) / quarter)
    down = torch.arange(rows, device=device)[:, None] * speed
    across = torch.arange(columns, device=device)[:, None] * speed
    parts = [
        torch.cat([down.sin(), down.cos()], -1)[:, None].expand(rows, columns, 2 * quarter),
        torch.cat([across.sin(), across.cos()], -1)[None].expand(rows, columns, 2 * quarter),
    ]
    return torch.cat(parts, -1).flatten(0, 1)


class Layer(nn.Module):
    """Pre-norm self-attention and feed-forward over the last axis but one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, P, C) from the same."""
        parts = self.queries(self.before(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        tokens = tokens + self.out(seen.transpose(1, 2).flatten(2))
        return tokens + self.down(F.gelu(self.up(self.between(tokens))))


class SequenceEncoder(nn.Module):
    """Visits (B, K, D, H, W), times to the target and what is observed -> ``Context``.

    width: of a token. heads: of attention. patch: rows and columns of a patch. frame_layers, place_layers: attention
    within a slice, before and after time. features: channels of the context that are no maps. maps: N. condition: width
    of the vector that tells the kind of series. frequencies: see ``time_features``.
    """

    def __init__(
        self,
        width: int = 96,
        heads: int = 4,
        patch: int = 8,
        frame_layers: int = 1,
        place_layers: int = 2,
        features: int = 4,
        maps: int = 4,
        condition: int = 128,
        frequencies: int = 4,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.patch, self.maps, self.features = width, heads, patch, maps, features
        self.frequencies = frequencies
        self.channels = maps + 4 + features
        self.embed = nn.Conv2d(2, width, patch, patch)
        self.times = nn.Sequential(nn.Linear(2 * frequencies + 3, width), nn.SiLU(), nn.Linear(width, width))
        self.kind = nn.Linear(condition, width)
        self.frame = nn.ModuleList([Layer(width, heads) for _ in range(frame_layers)])
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.ask, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.joined = nn.Linear(width, width)
        self.place = nn.ModuleList([Layer(width, heads) for _ in range(place_layers)])
        self.weigh = nn.Linear(2 * width, maps)
        self.norm = nn.LayerNorm(width)
        self.paint = nn.Linear(width, features * patch * patch)
        self.tell = nn.Sequential(
            nn.Linear(3 * (2 * frequencies + 3) + 2 + width, condition), nn.SiLU(), nn.Linear(condition, condition)
        )
        for last in (self.weigh, self.paint):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        visits: torch.Tensor,
        delta: torch.Tensor,
        observed: torch.Tensor,
        kind: torch.Tensor,
        valid: torch.Tensor | None = None,
        team: Team | None = None,
    ) -> Context:
        """visits: (B, K, D, H, W), in about [-1, 1]; a missing visit may hold anything. H and W: multiples of
        ``patch``. delta: (B, K), time of each visit minus the target's, in units of the scale. observed: (B, K) bool.
        kind: (B, E). valid: (B, K, D, H, W) bool, where there are data; None: everywhere.
        """
        there = observed[:, :, None, None, None].expand_as(visits)
        if valid is not None:
            there = there & valid
        visits = torch.where(there, visits, 0.0)
        delta = torch.where(observed, delta.float(), 0.0)
        tokens, seen = self.read(visits, delta, observed, there, kind, team)
        rows, columns = visits.shape[3] // self.patch, visits.shape[4] // self.patch
        weights = self.weights(tokens, seen, there, rows, columns, team)
        maps = torch.einsum("bnkdhw,bkdhw->bndhw", weights.to(visits.dtype), visits)
        nearest, slope, spread = plain(visits, delta, observed, there)
        painted = self.paint(self.norm(seen)).view(
            *seen.shape[:2], rows, columns, self.features, self.patch, self.patch
        )
        painted = painted.permute(0, 4, 1, 2, 5, 3, 6).reshape(len(visits), self.features, *visits.shape[2:])
        anything = there.any(1, keepdim=True).to(visits.dtype)
        volume = torch.cat([maps, nearest, slope, spread, anything, painted], 1)
        return Context(volume, maps[:, :1], nearest, self.summary(delta, observed, seen, team))

    def read(
        self,
        visits: torch.Tensor,
        delta: torch.Tensor,
        observed: torch.Tensor,
        there: torch.Tensor,
        kind: torch.Tensor,
        team: Team | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the visits (B, K, D, P, C), and what each place found among them (B, D, P, C). team: tokens are of
        this rank's visits alone."""
        none = ~observed.any(1)
        if team is not None:
            own = team.own_visits
            visits, delta, observed, there = visits[:, own], delta[:, own], observed[:, own], there[:, own]
        batch, count, depth, height, width = visits.shape
        stacked = torch.stack([visits, there.to(visits.dtype)], 3).flatten(0, 2)  # (B K D, 2, H, W)
        tokens = self.embed(stacked).flatten(2).transpose(1, 2)
        position = places(height // self.patch, width // self.patch, self.width, visits.device).to(tokens.dtype)
        features = time_features(delta, self.frequencies).to(tokens.dtype)
        told = self.times(features) + self.kind(kind)[:, None]  # (B, K, C)
        tokens = tokens + position + told.repeat_interleave(depth, 1).flatten(0, 1)[:, None]
        for layer in self.frame:
            tokens = layer(tokens)
        tokens = tokens.unflatten(0, (batch, count, depth))
        ask = self.ask(self.query + position + self.kind(kind)[:, None]).unflatten(-1, (self.heads, -1))  # (B, P, h, c)
        keys, values = (
            part(tokens).unflatten(-1, (self.heads, -1)) for part in (self.keys, self.values)
        )  # (B, K, D, P, h, c)
        score = torch.einsum("bphc,bkdphc->bkdph", ask, keys) / math.sqrt(self.width // self.heads)
        score = score.float().masked_fill(~observed[:, :, None, None, None], -torch.inf)
        blind = ~observed.any(1)[:, None, None, None, None]
        share = torch.where(blind, 0.0, score).softmax(1).to(values.dtype)
        found = torch.einsum("bkdph,bkdphc->bdphc", share, values)
        if team is not None:
            found = team.merged(torch.where(blind[:, 0], -torch.inf, score.logsumexp(1)), found)
        found = found.flatten(-2)
        found = torch.where(none[:, None, None, None], self.null.to(found.dtype), self.joined(found)) + position
        seen = found.flatten(0, 1)
        for layer in self.place:
            seen = layer(seen)
        return tokens, seen.unflatten(0, (batch, depth))

    def weights(
        self,
        tokens: torch.Tensor,
        seen: torch.Tensor,
        there: torch.Tensor,
        rows: int,
        columns: int,
        team: Team | None = None,
    ) -> torch.Tensor:
        """(B, N, K, D, H, W) weights of the visits at each voxel; they sum to 1 where any visit has data, else to 0."""
        batch, count, depth = tokens.shape[:3]
        pairs = torch.cat([tokens, seen[:, None].expand(-1, count, -1, -1, -1)], -1)
        weighed = self.weigh(pairs)
        if team is not None:
            weighed = team.gathered(weighed)
            count = weighed.shape[1]
        coarse = weighed.unflatten(3, (rows, columns)).permute(0, 1, 2, 5, 3, 4)  # (B, K, D, N, r, c)
        fine = F.interpolate(coarse.flatten(0, 2).float(), size=there.shape[3:], mode="bilinear", align_corners=False)
        score = fine.view(batch, count, depth, self.maps, *there.shape[3:]).permute(0, 3, 1, 2, 4, 5)
        mask = there[:, None]
        score = torch.where(mask, score, -1e4)
        return torch.where(mask, score.softmax(2), 0.0)

    def summary(
        self, delta: torch.Tensor, observed: torch.Tensor, seen: torch.Tensor, team: Team | None = None
    ) -> torch.Tensor:
        """(B, E) of first, nearest and mean time, the number of visits, and the mean of what was found."""
        count = observed.sum(1)
        some = count > 0
        first = torch.where(observed, delta, torch.inf).amin(1)
        nearest = delta.gather(1, torch.where(observed, delta.abs(), torch.inf).argmin(1, keepdim=True))[:, 0]
        mean = delta.sum(1) / count.clamp_min(1)
        times = torch.stack([torch.where(some, value, 0.0) for value in (first, nearest, mean)], 1)
        number = count.to(delta.dtype)
        counted = torch.stack([number.log1p(), (number > 1).to(delta.dtype)], 1)
        told = time_features(times, self.frequencies).flatten(1)
        found = seen.mean((1, 2)) if team is None else team.mean_over_slices(seen)
        out: torch.Tensor = self.tell(torch.cat([told, counted, found.to(told.dtype)], 1).to(seen.dtype))
        return out


def plain(
    visits: torch.Tensor, delta: torch.Tensor, observed: torch.Tensor, there: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What needs no learning, (B, 1, D, H, W) each: the visit nearest in time, the straight line's value at the target
    minus the mean, and the spread over visits. Zero where nothing is observed."""
    size = torch.where(observed, delta.abs(), torch.inf)
    index = size.argmin(1)
    nearest = visits[torch.arange(len(visits), device=visits.device), index][:, None]
    share = there.to(visits.dtype)
    count = share.sum(1, keepdim=True)
    mean = visits.sum(1, keepdim=True) / count.clamp_min(1)
    time = delta[:, :, None, None, None].to(visits.dtype) * share
    middle = time.sum(1, keepdim=True) / count.clamp_min(1)
    off = torch.where(there, time - middle, 0.0)
    gap = torch.where(there, visits - mean, 0.0)
    rise = (off * gap).sum(1, keepdim=True) / ((off * off).sum(1, keepdim=True) + RIDGE)
    line = (-middle * rise).clamp(-FAR, FAR)
    spread = ((gap * gap).sum(1, keepdim=True) / count.clamp_min(1)).clamp_min(1e-8).sqrt()
    return nearest, line, torch.where(count > 0, spread, 0.0)
