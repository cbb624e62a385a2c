"""When each phoneme of a known text is spoken in a short recording: what a prompt of a user's own needs.

Each symbol is a Gaussian over mels from which the recording's mean is taken, fitted where alignments are known; the
best monotone path under them is the alignment (``longtake.speech.alignment.search``). Small, and made in one pass.
Shape legend: V symbols, T frames, C bands, L phonemes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from longtake.errors import UserError
from longtake.speech.alignment import search
from longtake.speech.valle_r.corpus import Flat

LEAST = 20  # frames of a symbol that make a Gaussian of its own
NARROWEST = 0.2  # deviation


@dataclass(frozen=True)
class Aligner:
    """mean, deviation: (V, C) of normalised mels about their utterance's mean."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, flat: Flat, symbols: int = 178) -> Aligner:
        """From aligned utterances; a symbol that is rare there takes the mean and deviation of all frames."""
        device = flat.mels.device
        utterance = torch.repeat_interleave(torch.arange(len(flat.frames), device=device), flat.frames)
        mels = flat.mels.float()
        middle = torch.zeros(len(flat.frames), mels.shape[1], device=device).index_add_(0, utterance, mels)
        mels = mels - (middle / flat.frames[:, None])[utterance]
        symbol = flat.ids[flat.first_symbol[utterance] + flat.owner.long()]
        count = torch.zeros(symbols, device=device).index_add_(0, symbol, torch.ones_like(mels[:, 0]))
        total = torch.zeros(symbols, mels.shape[1], device=device).index_add_(0, symbol, mels)
        square = torch.zeros_like(total).index_add_(0, symbol, mels.square())
        many = count.clamp_min(1)[:, None]
        mean = total / many
        deviation = (square / many - mean.square()).clamp_min(0).sqrt()
        rare = (count < LEAST)[:, None]
        mean = torch.where(rare, mels.mean(0), mean)
        deviation = torch.where(rare, mels.std(0), deviation).clamp_min(NARROWEST)
        return cls(mean.cpu(), deviation.cpu())

    def owner(self, mel: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The index (T,) int64 of each frame's phoneme, none left out, of normalised mels (T, C) and a text (L,).

        Raises AlignmentTooShort for fewer frames than phonemes, UserError for no phoneme.
        """
        if not len(text):
            raise UserError("a recording is aligned with at least one phoneme")
        x = mel.float().cpu() - mel.float().cpu().mean(0)
        mean, deviation = self.mean[text], self.deviation[text]
        distance = ((x[None] - mean[:, None]) / deviation[:, None]).square().sum(2)
        score = -0.5 * (distance + (2 * deviation.log() + math.log(2 * math.pi)).sum(1)[:, None])
        return search(score.double()).argmax(0)
