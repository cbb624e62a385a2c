"""The clips of a training on its device: windows, lengths and texts of a batch are gathered there, nothing waits.

    corpus = Corpus.of(prepared.train, prepared.texts, space, mirror=True).to(device)
    batch = corpus.batch(100, 64, Dice(seed, step, device))     # batch.motion (64, 100, 263)

A clip is drawn by its pair of action and manner, a pair as often as the square root of the number of its recordings.
Legend: C clips, P pairs, F frames, D features, E text features, B rows, n captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from longtake.motion.captions import captions_of, mirrored_action
from longtake.motion.data import FPS, Clip, features_of, mirrored_features, paced
from longtake.motion.space import MotionSpace
from longtake.motion.strides import repeated
from longtake.train import Dice

DROP_TEXT = 0.1
NO_MANNER = 0.3  # share of the texts that say nothing of the manner
RARE = 5  # recordings: actions with fewer also join in slower and faster
SPEEDS = (0.8, 0.9, 1.1, 1.25)
STEADY = 0.5  # share of a walker's windows that lie where he walks steadily
WALKS = ("walk", "walk-back", "walk-left", "walk-right", "run", "dash")
SHORTEST = 20  # frames of a steady part
RUNS, LONGEST = ("run", "dash"), 160  # short recordings of these also join in prolonged to so many frames


class Batch(NamedTuple):
    """motion: (B, F, D) normalised, zero beyond ``lengths`` (B,). text: (B, E), zero where there is none."""

    motion: torch.Tensor
    lengths: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class Corpus:
    """Normalised features of clips and of their mirror images, and the vectors of all captions they may have.

    All tensors lie on one device; whole numbers are int64.
    """

    features: torch.Tensor  # (sum of F, D), clip after clip, and a frame of zeros at the end
    starts: torch.Tensor  # (C,) first frame of each clip
    lengths: torch.Tensor  # (C,)
    steady: torch.Tensor  # (C, 2) first frame in the clip and length of the part where a walker walks steadily
    order: torch.Tensor  # (C,) clips, pair after pair
    members: torch.Tensor  # (P, 2) where each pair's clips lie in ``order``, and how many
    odds: torch.Tensor  # (P,) float32
    vectors: torch.Tensor  # (n, E), the captions of one pair after those of another
    plain: torch.Tensor  # (P, 2) where each pair's captions without a manner lie, and how many
    manner: torch.Tensor  # (P, 2) those with one

    @classmethod
    def of(
        cls, clips: Sequence[Clip], texts: Mapping[str, torch.Tensor], space: MotionSpace, *, mirror: bool
    ) -> Corpus:
        """From labelled clips, normalised by ``space``; ``texts``: the vectors of their captions and more."""
        return cls.build(Takes.of(clips, mirror=mirror), texts, space)

    @classmethod
    def build(cls, takes: Takes, texts: Mapping[str, torch.Tensor], space: MotionSpace) -> Corpus:
        """From features that are there already."""
        pairs = sorted(set(takes.labels))
        of_pair: dict[tuple[str, str], list[int]] = {pair: [] for pair in pairs}
        for row, label in enumerate(takes.labels):
            of_pair[label].append(row)
        counts = [len(of_pair[pair]) for pair in pairs]
        recorded = [sum(takes.recorded[row] for row in of_pair[pair]) for pair in pairs]
        vectors: list[torch.Tensor] = []
        plain, manner = [], []
        for action, style in pairs:
            captions = captions_of(action, style)
            bare = len(captions_of(action, style, manners=False))
            plain.append((len(vectors), bare))
            manner.append((len(vectors) + bare, len(captions) - bare))
            vectors += [texts[text] for text in captions]
        lengths = [len(part) for part in takes.features]
        flat = torch.cat([*takes.features, takes.features[0].new_zeros(1, takes.features[0].shape[1])])
        flat[:-1] = space.normalize(flat[:-1])
        return cls(
            flat,
            torch.tensor(np.cumsum(lengths) - lengths),
            torch.tensor(lengths),
            torch.tensor(takes.steady),
            torch.tensor([row for pair in pairs for row in of_pair[pair]]),
            torch.tensor(list(zip((np.cumsum(counts) - counts).tolist(), counts, strict=True))),
            torch.tensor(recorded, dtype=torch.float32).clamp_min(1).sqrt(),
            torch.stack(vectors),
            torch.tensor(plain),
            torch.tensor(manner),
        )

    def to(self, device: torch.device) -> Corpus:
        """The corpus on a device."""
        return replace(self, **{one.name: getattr(self, one.name).to(device) for one in fields(self)})

    def batch(self, frames: int, rows: int, dice: Dice) -> Batch:
        """Windows of ``frames``, some of them shorter, with their texts."""
        pair = dice.pick(self.odds, rows)
        first, count = self.members[pair].unbind(1)
        clip = self.order[first + dice.below(count)]
        whole = torch.stack([torch.zeros_like(clip), self.lengths[clip]], 1)
        begin, have = torch.where(dice.uniform(rows, 1) < STEADY, self.steady[clip], whole).unbind(1)
        start = begin + dice.below((have - frames + 1).clamp_min(1))
        lengths = (begin + have - start).clamp_max(frames)
        place = torch.arange(frames, device=clip.device)
        frame = (self.starts[clip] + start)[:, None] + place
        frame = torch.where(place < lengths[:, None], frame, len(self.features) - 1)
        said = torch.where(dice.uniform(rows, 1) < NO_MANNER, self.plain[pair], self.manner[pair])
        caption = said[:, 0] + dice.below(said[:, 1])
        told = (dice.uniform(rows, 1) >= DROP_TEXT).to(self.vectors.dtype)
        return Batch(self.features[frame], lengths, self.vectors[caption] * told)


@dataclass(frozen=True)
class Takes:
    """Features (F, D) of clips in metres, not normalised, with labels (action, manner); ``recorded`` is False for one
    that another speed or repeated strides made. ``steady``: see ``Corpus``."""

    features: list[torch.Tensor]
    labels: list[tuple[str, str]]
    recorded: list[bool]
    steady: list[tuple[int, int]]

    @classmethod
    def of(cls, clips: Sequence[Clip], *, mirror: bool) -> Takes:
        """Encode clips; with ``mirror`` also what is made of them: mirror images, of rare actions other speeds, of runs
        longer ones."""
        names = [clip.action for clip in clips]
        rare = {name for name in names if names.count(name) < RARE} if mirror else set()
        made = [paced(clip, speed) for clip in clips if clip.action in rare for speed in SPEEDS]
        every = [*clips, *made]
        features = features_of(every)
        labels = [(clip.action, clip.style) for clip in every]
        recorded = [place < len(clips) for place in range(len(every))]
        if mirror:
            for part, label in list(zip(features, labels, strict=True)):
                longer = repeated(part, LONGEST) if label[0] in RUNS else None
                if longer is not None:
                    features.append(longer)
                    labels.append(label)
                    recorded.append(False)
        parts = [steady(part, label[0]) for part, label in zip(features, labels, strict=True)]
        if mirror:
            features += [mirrored_features(part) for part in features]
            labels += [(mirrored_action(action), style) for action, style in labels]
            recorded, parts = 2 * recorded, 2 * parts
        return cls(features, labels, recorded, parts)


def steady(features: torch.Tensor, action: str) -> tuple[int, int]:
    """First frame and length of the longest part of a walker's clip (F, D) where his speed, taken over a second, is at
    least 0.8 of its median; of other clips, and of too short parts, the whole."""
    second = int(FPS)
    if action not in WALKS or len(features) <= second + SHORTEST:
        return 0, len(features)
    speed = features[:, 1:3].norm(dim=-1).double().numpy()
    smooth = np.convolve(speed, np.ones(second) / second, mode="same") / np.convolve(
        np.ones(len(speed)), np.ones(second) / second, mode="same"
    )
    fast = np.concatenate([[0], (smooth >= 0.8 * np.median(smooth)).astype(np.int64), [0]])
    edges = np.flatnonzero(np.diff(fast)).reshape(-1, 2)
    start, stop = max(edges.tolist(), key=lambda edge: edge[1] - edge[0])
    return (start, stop - start) if stop - start >= SHORTEST else (0, len(features))
