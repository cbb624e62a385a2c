"""Residual vector quantisation whose layers may share a code between neighbouring frames (VALL-E R, arXiv 2406.07855).

Layer d with merge rate m averages what is left to say over m frames, chooses one code for them, and subtracts its
vector from what each of the frames had left, so that later layers recover the detail. With every rate 1 this is
EnCodec's quantiser, code for code.
Shape legend: B batch, C latent channels, T frames, K entries of a codebook, D layers.

    codes = encode(latent, codebooks, merge=(2, 1, 1, 1, 1, 1, 1, 1))     # (D, B, T)
    first = store(codes[0], 2)                                            # (B, ceil(T / 2))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from longtake.errors import UserError

MERGE = (2, 1, 1, 1, 1, 1, 1, 1)  # of VALL-E R


def check_merge(merge: Sequence[int], layers: int) -> tuple[int, ...]:
    """One rate for each of ``layers``, of the first of them where fewer are used. UserError for others."""
    rates = tuple(merge)
    if len(rates) < layers or any(not isinstance(rate, int) or rate < 1 for rate in rates):
        raise UserError(f"merge needs a whole number of frames, 1 or more, for each of {layers} layers, got {rates}")
    return rates[:layers]


def average(x: torch.Tensor, rate: int) -> torch.Tensor:
    """Means (B, ceil(T / rate), C) of ``rate`` frames of x (B, T, C); the last frame stands for those missing."""
    if rate == 1:
        return x
    short = -x.shape[1] % rate
    if short:
        x = torch.cat([x, x[:, -1:].expand(-1, short, -1)], 1)
    return x.unflatten(1, (-1, rate)).mean(2)


def store(codes: torch.Tensor, rate: int) -> torch.Tensor:
    """The stream of codes (..., T) that a merged layer keeps: (..., ceil(T / rate))."""
    return codes[..., ::rate]


def restore(stream: torch.Tensor, rate: int, frames: int) -> torch.Tensor:
    """Codes (..., frames) of a kept stream (..., ceil(frames / rate)). UserError for a stream of another length."""
    if stream.shape[-1] != -(-frames // rate):
        raise UserError(f"{frames} frames at merge rate {rate} need {-(-frames // rate)} codes, got {stream.shape[-1]}")
    return stream.repeat_interleave(rate, -1)[..., :frames]


def nearest(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index (...,) int64 of the entry of ``codebook`` (K, C) nearest to x (..., C), the first among equals.

    The distance is written as EnCodec writes it: another order of the sums would round otherwise.
    """
    flat = x.reshape(-1, x.shape[-1])
    table = codebook.t()
    distance = -(flat.pow(2).sum(1, keepdim=True) - 2 * flat @ table + table.pow(2).sum(0, keepdim=True))
    return distance.max(-1).indices.view(x.shape[:-1])


def encode(latent: torch.Tensor, codebooks: Sequence[torch.Tensor], merge: Sequence[int] | None = None) -> torch.Tensor:
    """Codes (D, B, T) int64 of a latent (B, C, T).

    codebooks: D tables (K, C). merge: rate of each layer, None: 1. The frames of a merged group have equal codes, also
    in a last group that is not full. Raises UserError for rates that do not fit.
    """
    rates = check_merge(merge or (1,) * len(codebooks), len(codebooks))
    residual = latent.transpose(1, 2)
    frames = residual.shape[1]
    found = []
    for codebook, rate in zip(codebooks, rates, strict=True):
        codes = restore(nearest(average(residual, rate), codebook), rate, frames)
        residual = residual - codebook[codes]
        found.append(codes)
    return torch.stack(found)


def decode(codes: torch.Tensor, codebooks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The latent (B, C, T) that codes (D', B, T) of the first D' layers say. UserError for more layers than tables."""
    if len(codes) > len(codebooks):
        raise UserError(f"this codec has {len(codebooks)} layers, got codes of {len(codes)}")
    total = codebooks[0][codes[0]]
    for layer, codebook in zip(codes[1:], codebooks[1:], strict=False):
        total = total + codebook[layer]
    return total.transpose(1, 2)
