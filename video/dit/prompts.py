"""Several prompts along one video: how much each latent frame hears each of them.

    weights = frame_weights(timeline, frames=21, stride=4)          # (21, P), rows add up to 1
    handle.set_prompts(weights, length=512)                         # texts of 512 tokens side by side

Legend: F latent frames, P prompts, L text rows of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from longtake.errors import UserError
from longtake.video.dit.attend import Prompts
from longtake.video.dit.records import Text
from torch import Tensor

if TYPE_CHECKING:
    from longtake.timeline import Timeline
    from longtake.video.dit.adapter import Call

TOLERANCE = 1e-6


def set_prompts(call: Call, weights: Tensor | None, length: int | Sequence[int] | None) -> None:
    """See `Handle.set_prompts`. Raises UserError for weights that do not fit."""
    if weights is None:
        call.prompts = None
        return
    if weights.ndim != 2 or weights.shape[0] != call.piece.total or bool((weights < 0).any()):
        raise UserError(
            f"prompts need weights (frames, prompts) >= 0 over {call.piece.total} frames; given {tuple(weights.shape)}"
        )
    if bool(((weights.sum(1) - 1).abs() > TOLERANCE).any()):
        raise UserError("the weights of the prompts must add up to 1 in every frame")
    count = weights.shape[1]
    lengths = (length,) * count if isinstance(length, int) else tuple(length or ())
    if len(lengths) != count or min(lengths, default=0) < 1:
        raise UserError("prompts need the number of text tokens of one of them, or of each")
    if len(set(lengths)) > 1 and call.record.text is not Text.CROSS:
        raise UserError(f"{call.record.name} takes texts of one length; given {', '.join(map(str, lengths))} tokens")
    call.prompts = Prompts(weights.double().cpu())
    call.texts = lengths


def frame_weights(timeline: Timeline, frames: int, stride: int) -> Tensor:
    """How much each of `frames` latent frames hears each prompt of a Timeline in frames of film: float64 (F, P).

    A latent frame stands for `stride` frames of film (the first for one); it hears what the middle one of them hears.
    """
    film = (frames - 1) * stride + 1
    middle = [0] + [min(film - 1, 1 + index * stride + (stride - 1) // 2) for index in range(frames - 1)]
    return torch.from_numpy(timeline.weight_matrix(middle, film)).double()
