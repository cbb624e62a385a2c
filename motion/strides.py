"""Runs of any length from short recordings: the stride that repeats best is gone through again and again.

The root's way is in the features as steps, so that a repeated stride goes on from where the runner is. Runs of the data
last two or three seconds; a prompt may ask for eight. Legend: F frames, D = 263 features.
"""

from __future__ import annotations

import torch
from longtake.motion.representation import HUMANML3D

FADE = 6  # frames in which a stride's end turns into its beginning
SHORTEST = 12  # frames of a stride: a runner's takes 15 to 17
ALIKE = 0.6  # most distance between the two, in deviations; the median of real runs is 0.3
POSITION, STEP = 0.063, 0.025  # metres: deviations of positions and of their steps


def repeated(features: torch.Tensor, frames: int) -> torch.Tensor | None:
    """Features (``frames``, D) that begin as (F, D) and go on with its best stride; None when no stride of it repeats,
    or it is that long already."""
    count = len(features)
    if count >= frames or count < SHORTEST + 2 * FADE:
        return None
    places = HUMANML3D.slices
    seen = [features[:, places["positions"]] / POSITION, features[:, places["velocities"]] / STEP]
    seen.append(features[:, :3] / STEP)
    parts = torch.cat(seen, 1)
    gaps = torch.cdist(parts, parts) / parts.shape[1] ** 0.5
    found = []
    for stride in range(SHORTEST, count - FADE):
        along = gaps.diagonal(stride).unfold(0, FADE, 1).mean(1)
        found.append((float(along.min()), stride, int(along.argmin())))
    gap, stride, start = min(found)
    if gap > ALIKE:
        return None
    end = start + stride
    share = torch.linspace(0, 1, FADE + 2)[1:-1, None]
    joint = (1 - share) * features[end : end + FADE] + share * features[start : start + FADE]
    turn = torch.cat([joint, features[start + FADE : end]])
    turns = -(-(frames - end) // stride)
    return torch.cat([features[:end], *[turn] * turns])[:frames]
