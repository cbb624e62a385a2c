"""A neural codec over mels: ConvNeXt encoder, residual quantiser with a merged first layer, ConvNeXt decoder.

A vocoder makes sound of its mels, so that the codec itself is small and learns in minutes. The blocks follow ConvNeXt
(Liu et al., arXiv 2201.03545) in one dimension; the codebooks are moving averages of what fell to them (van den Oord et
al., arXiv 1711.00937, appendix) and entries that nothing falls to are set on a vector of the batch; decoding with fewer
layers than there are is trained by quantiser dropout (SoundStream, arXiv 2107.03312).
Shape legend: B batch, T frames, C = 80 bands, D layers, K entries.

    codec = MelCodec()
    codes = codec.encode(mel)                # (B, 80, T) -> (B, 8, T)
    mel = codec.decode(codes[:, :4])         # four of eight layers: coarser
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.speech.codec import quantiser
from torch import nn

DECAY = 0.97  # of a codebook's moving averages
DEAD = 0.03  # an entry that is used less than this share of an even use is set elsewhere
FRESH = 0.2  # the share of an even use that it then counts as
COMMITMENT = 0.25
KERNEL = 7
SQUARES = 0.5  # share of the squared error beside the absolute one


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast, where the device has any."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class Block(nn.Module):
    """ConvNeXt's block on x (B, T, width)."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        held = x if mask is None else x * mask
        y = self.depthwise(held.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))


class Tower(nn.Module):
    """Features (B, T, before) to (B, T, after) through blocks of one width."""

    def __init__(self, before: int, width: int, depth: int, after: int, expansion: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(before, width, KERNEL, padding=KERNEL // 2)
        self.blocks = nn.ModuleList(Block(width, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, after)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        held = x if mask is None else x * mask
        x = self.enter(held.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(self.norm(x))


class MelCodec(nn.Module):
    """See the module. mean, deviation: of the log mels it was trained on. merge: rate of each layer.

    Raises UserError for rates that do not fit the layers.
    """

    books: torch.Tensor
    sizes: torch.Tensor
    sums: torch.Tensor

    def __init__(
        self,
        *,
        bands: int = 80,
        latent: int = 64,
        layers: int = 8,
        entries: int = 1024,
        merge: Sequence[int] = quantiser.MERGE,
        width: int = 192,
        depth: int = 4,
        decoder_width: int = 256,
        decoder_depth: int = 6,
        expansion: int = 2,
        mean: float = -5.5,
        deviation: float = 2.1,
    ) -> None:
        super().__init__()
        self.merge = quantiser.check_merge(merge, layers)
        self.config: dict[str, Any] = {
            "bands": bands,
            "latent": latent,
            "layers": layers,
            "entries": entries,
            "merge": list(self.merge),
            "width": width,
            "depth": depth,
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
            "expansion": expansion,
            "mean": mean,
            "deviation": deviation,
        }
        self.layers, self.entries, self.mean, self.deviation = layers, entries, mean, deviation
        self.encoder = Tower(bands, width, depth, latent, expansion)
        self.decoder = Tower(latent, decoder_width, decoder_depth, bands, expansion)
        self.register_buffer("books", torch.zeros(layers, entries, latent))
        self.register_buffer("sizes", torch.zeros(layers, entries))  # how many vectors a step fall to each entry
        self.register_buffer("sums", torch.zeros(layers, entries, latent))  # and their sum

    @property
    def halo(self) -> int:
        """Frames on each side that a decoded frame depends on."""
        return KERNEL // 2 * (1 + len(self.decoder.blocks))

    # ------------------------------------------------------------------------------------------------- training

    def vectors(self, rows: int, frames: int) -> int:
        """How few vectors a layer sees of a batch of ``rows`` x ``frames``: ``picks`` are below."""
        return rows * -(-frames // max(self.merge))

    def forward(self, mel: torch.Tensor, used: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of normalised mels (B, T, C); in training the codebooks learn too.

        used: layers (B,) int64, 1 to D, that each row is decoded from. picks: (D, K) int64 below ``vectors(B, T)``,
        the vector of the batch that each entry is set on if it is dead.
        """
        latent = self.encoder(mel)
        with in_float32(mel.device):
            said, commitment = self.quantise(latent.float(), used, picks)
        error = self.decoder(said).float() - mel
        return error.abs().mean() + SQUARES * error.square().mean() + COMMITMENT * commitment

    def quantise(
        self, latent: torch.Tensor, used: torch.Tensor, picks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the codes of a latent (B, T, c) say, with its gradient, and the mean squared distance to them."""
        frames = latent.shape[1]
        residual, said = latent, torch.zeros_like(latent)
        commitment = latent.new_zeros(())
        for layer, rate in enumerate(self.merge):
            group = quantiser.average(residual, rate)
            if self.training:
                self.revive(layer, group.detach(), picks[layer])
            codes = quantiser.nearest(group.detach(), self.books[layer])
            entry = F.embedding(codes, self.books[layer])
            if self.training:
                self.learn(layer, group.detach(), codes)
            on = (used > layer)[:, None, None]
            commitment = commitment + torch.where(on, (group - entry).square(), 0.0).mean()
            whole = quantiser.restore(entry.transpose(1, 2), rate, frames).transpose(1, 2)
            said = said + torch.where(on, whole, 0.0)
            residual = residual - whole
        return latent + (said - latent).detach(), commitment

    @torch.no_grad()
    def revive(self, layer: int, group: torch.Tensor, picks: torch.Tensor) -> None:
        """Set the entries that nothing falls to on vectors of ``group`` (B, t, c)."""
        even = group.shape[0] * group.shape[1] / self.entries
        dead = self.sizes[layer] < DEAD * even
        fresh = group.flatten(0, 1)[picks]
        self.books[layer].copy_(torch.where(dead[:, None], fresh, self.books[layer]))
        self.sums[layer].copy_(torch.where(dead[:, None], FRESH * even * fresh, self.sums[layer]))
        self.sizes[layer].copy_(torch.where(dead, FRESH * even, self.sizes[layer]))

    @torch.no_grad()
    def learn(self, layer: int, group: torch.Tensor, codes: torch.Tensor) -> None:
        """Move the entries towards what fell to them."""
        flat, where = group.flatten(0, 1), codes.flatten()
        count = torch.zeros_like(self.sizes[layer]).index_add_(0, where, torch.ones_like(flat[:, 0]))
        total = torch.zeros_like(self.sums[layer]).index_add_(0, where, flat)
        self.sizes[layer].mul_(DECAY).add_(count, alpha=1 - DECAY)
        self.sums[layer].mul_(DECAY).add_(total, alpha=1 - DECAY)
        self.books[layer].copy_(self.sums[layer] / self.sizes[layer].clamp_min(1e-6)[:, None])

    # ------------------------------------------------------------------------------------------------------ use

    @torch.no_grad()
    def encode(self, mel: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (B, D, T) int64 of log mels (B, C, T).

        lengths: (B,) frames of each row that are real; a row's codes of those are what it would have alone.
        Raises UserError for mels of another number of bands.
        """
        if mel.shape[1] != self.config["bands"]:
            raise UserError(f"this codec reads mels of {self.config['bands']} bands, got {mel.shape[1]}")
        x = (mel.transpose(1, 2) - self.mean) / self.deviation
        mask = None
        if lengths is not None:
            mask = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None].to(x.dtype)
        latent = self.encoder(x, mask).float()
        if lengths is not None:  # the last real frame stands for those after it, as in a row alone
            place = torch.minimum(torch.arange(x.shape[1], device=x.device), lengths[:, None] - 1)
            latent = latent.gather(1, place[..., None].expand(-1, -1, latent.shape[2]))
        return quantiser.encode(latent.transpose(1, 2), list(self.books), self.merge).transpose(0, 1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Log mels (B, C, T) of codes (B, D', T) of the first D' layers. UserError for more layers than there are."""
        return self.decode_latent(quantiser.decode(codes.transpose(0, 1), list(self.books)).transpose(1, 2))

    @torch.no_grad()
    def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
        """Log mels (B, C, T) of sums of code vectors, or of what is expected of them (B, T, c)."""
        return (self.decoder(latent) * self.deviation + self.mean).transpose(1, 2)

    def stream(self) -> MelStream:
        """A decoder of one sequence that takes codes in pieces and gives the same mels."""
        return MelStream(self)


class MelStream:
    """Decodes codes in pieces; a frame comes once the ``halo`` frames after it are known. Cost and memory of a piece do
    not depend on what came before."""

    def __init__(self, codec: MelCodec) -> None:
        self.codec = codec
        self.window: torch.Tensor | None = None  # codes that are still needed
        self.given = 0  # frames of the window whose mels were given out

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Log mels (1, C, n) that codes (1, D, t) complete."""
        self.window = codes if self.window is None else torch.cat([self.window, codes], -1)
        return self._until(self.window.shape[-1] - self.codec.halo)

    def flush(self) -> torch.Tensor:
        """The rest (1, C, n)."""
        return self._until(0 if self.window is None else self.window.shape[-1])

    def _until(self, end: int) -> torch.Tensor:
        if self.window is None or end <= self.given:
            return torch.zeros(1, self.codec.config["bands"], 0)
        mel = self.codec.decode(self.window)[..., self.given : end]
        drop = max(0, end - self.codec.halo)
        self.window, self.given = self.window[..., drop:], end - drop
        return mel
