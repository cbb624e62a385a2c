"""Monotone alignment: which symbol is spoken in which frame.

Three searches, each exact: forced alignment of a text to the emissions of a CTC recogniser (Graves et al., 2006),
monotonic alignment search between two sequences (Kim et al., arXiv 2005.11129), and the projection of labels with times
onto the coarser frames of a codec, in which every symbol keeps at least one frame.
Shape legend: B batch, L symbols, T frames, V vocabulary, S = 2 L + 1 states of a CTC lattice.

    path, score = ctc_align(log_probs, targets)             # which symbol each frame belongs to, -1 for blank
    frames = project(starts, ends, count)                   # symbol of each codec frame
    path = search(scores)                                   # (B, L, T) zeros and ones
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from longtake.errors import UserError

BLANK = -1  # in a path of ctc_align: a frame that belongs to no symbol


class AlignmentTooShort(UserError):
    """There are fewer frames than the symbols need."""


# ------------------------------------------------------------------------------------------------------------ CTC


def ctc_align(log_probs: torch.Tensor, targets: Sequence[int], blank: int = 0) -> tuple[torch.Tensor, float]:
    """The likeliest path of a text through the emissions of a CTC recogniser.

    log_probs: (T, V) logarithms. targets: L symbol ids, none of them ``blank``.
    Returns (path (T,) int64 on the CPU: the index 0..L-1 of each frame's symbol, ``BLANK`` between; its log-likelihood,
    which float32 sums in float64). O(T S) memory of one byte each. Raises AlignmentTooShort when the frames are fewer
    than the symbols and the blanks that equal neighbours need, UserError for a symbol outside of the vocabulary.
    """
    emissions = log_probs.detach().to("cpu", torch.float64).numpy()
    symbols = np.asarray(targets, dtype=np.int64)
    frames, vocabulary = emissions.shape
    wrong = symbols[(symbols < 0) | (symbols >= vocabulary) | (symbols == blank)]
    if len(wrong):
        raise UserError(f"a CTC target is a symbol from 0 to {vocabulary - 1} other than blank {blank}, got {wrong[0]}")
    least = len(symbols) + int((symbols[1:] == symbols[:-1]).sum())
    if frames < max(1, least):
        raise AlignmentTooShort(f"{len(symbols)} symbols need at least {max(1, least)} frames, got {frames}")
    states = np.full(2 * len(symbols) + 1, blank)
    states[1::2] = symbols
    skips = np.zeros(len(states), bool)  # where the blank before may be left out
    skips[3::2] = symbols[1:] != symbols[:-1]

    score = np.full(len(states), -np.inf)
    score[:2] = emissions[0, states[:2]]
    back = np.zeros((frames, len(states)), np.int8)
    ways = np.full((3, len(states)), -np.inf)
    for frame in range(1, frames):
        ways[0], ways[1, 1:] = score, score[:-1]
        ways[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        back[frame] = ways.argmax(0)
        score = ways.max(0) + emissions[frame, states]
    state = len(states) - 1
    if state and score[state - 1] > score[state]:
        state -= 1
    total = float(score[state])
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state // 2 if state % 2 else BLANK
        state -= int(back[frame, state])
    return torch.from_numpy(path), total


def spans(path: torch.Tensor, symbols: int) -> torch.Tensor:
    """First and one past last frame (L, 2) of each symbol of a ``ctc_align`` path (T,)."""
    frames = torch.arange(len(path))
    found = torch.zeros(symbols, 2, dtype=torch.int64)
    for symbol in range(symbols):
        mine = frames[path == symbol]
        found[symbol] = torch.stack([mine[0], mine[-1] + 1])
    return found


# ----------------------------------------------------------------------------------------- monotonic alignment search


def search(
    scores: torch.Tensor, text_lengths: torch.Tensor | None = None, frame_lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """The monotone path of the largest sum that gives every symbol a frame and every frame one symbol.

    scores: (B, L, T), or (L, T) for one item; text_lengths, frame_lengths: (B,) int64 of what is real, None: all.
    Ties are resolved as the public Glow-TTS code does: the path stays. Returns zeros and ones of the shape and dtype of
    ``scores``, zero outside of the lengths. Computed where ``scores`` lives, one pass over the frames each way, without
    waiting for the device. Raises AlignmentTooShort where lengths on the CPU show fewer frames than symbols.
    """
    if scores.ndim == 2:
        return search(scores[None], text_lengths, frame_lengths)[0]
    items, symbols, frames = scores.shape
    device = scores.device
    scores = scores.detach()
    rows = torch.arange(symbols, device=device)
    texts = torch.full((items,), symbols, device=device) if text_lengths is None else text_lengths.to(device)
    lasts = torch.full((items,), frames, device=device) if frame_lengths is None else frame_lengths.to(device)
    if device.type == "cpu" and bool((texts > lasts).any()):
        bad = int((texts > lasts).nonzero()[0])
        raise AlignmentTooShort(f"{int(texts[bad])} symbols need at least as many frames, got {int(lasts[bad])}")
    value = scores.new_full((items, symbols), -torch.inf)
    value[:, 0] = scores[:, 0, 0]
    moves = torch.zeros(frames, items, symbols, dtype=torch.bool, device=device)  # whether the frame began its symbol
    for frame in range(1, frames):
        before = torch.nn.functional.pad(value[:, :-1], (1, 0), value=-torch.inf)
        moves[frame] = (value < before) | (rows == frame)
        value = torch.maximum(value, before) + scores[:, :, frame]
    at = texts - 1
    chosen = torch.empty(items, frames, dtype=torch.int64, device=device)
    for frame in range(frames - 1, -1, -1):
        inside = lasts > frame
        chosen[:, frame] = torch.where(inside, at, -1)
        moved = moves[frame].gather(1, at[:, None])[:, 0] & inside & (at > 0)
        at = at - moved.long()
    return (chosen[:, None, :] == rows[:, None]).to(scores.dtype)


# ------------------------------------------------------------------------------------------------------- projection


def project(starts: Sequence[float], ends: Sequence[float], frames: int) -> torch.Tensor:
    """Symbols with times onto frames, none dropped: the monotone labels that agree with the times for longest.

    starts, ends: of each of L symbols, in units of a frame, fractions allowed. frames: how many there are.
    Returns (frames,) int64, from 0 to L - 1 in steps of 0 or 1. Raises AlignmentTooShort for fewer frames than symbols,
    UserError for no symbol or times that are not finite.
    """
    begin, end = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    if not len(begin) or begin.shape != end.shape:
        raise UserError(f"a projection needs a start and an end of each symbol, got {begin.size} and {end.size}")
    if not (np.isfinite(begin).all() and np.isfinite(end).all()):
        raise UserError("times of symbols must be finite numbers")
    if frames < len(begin):
        raise AlignmentTooShort(
            f"{len(begin)} symbols need at least as many frames, got {frames}: use frames of half the length"
        )
    left = np.arange(frames)
    overlap = np.minimum(end[:, None], left + 1) - np.maximum(begin[:, None], left)
    return search(torch.from_numpy(overlap.clip(min=0.0))).argmax(0)


def durations(labels: torch.Tensor, symbols: int) -> torch.Tensor:
    """How many frames (L,) int64 each symbol has in ``labels`` (T,)."""
    return torch.bincount(labels, minlength=symbols)
