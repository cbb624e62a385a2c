"""Pairs of people made from single recordings, for the two-person block: two real clips placed in one world.

Each pair is two windows of real motion and the place of the second person, drawn by what its caption says: side by
side, one behind the other, face to face. Of people who move together the second is the one of sixteen windows whose
way over the ground is most like the first one's. No window of a pair was recorded together with the other.

    pairs = Pairs.of(clips, space, encoder, mirror=True)
    batch = pairs.batch(80, rows=16, rng=rng)                # batch.motion (B, 2, F, D), batch.canon (B, D), batch.text

Legend: B rows, F frames, D features, E text features. The first person stands at the origin and looks along +z, so x is
to his left; metres and radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from longtake.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from longtake.motion.data import Clip
    from longtake.motion.space import MotionSpace

CANDIDATES = 16


class Kind(NamedTuple):
    """What two people do. ``actions``: labels of either's clip. ``held_out`` sentences never join in training.

    place: where the second one stands (x, z), ``yaw`` how he is turned, ``spread`` deviations of x, z and yaw.
    """

    captions: tuple[str, ...]
    held_out: tuple[str, ...]
    actions: tuple[str, ...]
    place: tuple[float, float]
    yaw: float
    spread: tuple[float, float, float]
    together: bool


KINDS: dict[str, Kind] = {
    "side by side": Kind(
        ("two people walk side by side", "two people walk next to each other", "two people are walking together"),
        ("a couple walks along side by side",),
        ("walk",), (0.9, 0.0), 0.0, (0.1, 0.1, 0.08), True,
    ),
    "behind": Kind(
        ("a person walks behind another", "one person follows another", "two people walk one behind the other"),
        ("somebody walks and another person follows behind",),
        ("walk",), (0.0, -1.4), 0.0, (0.1, 0.15, 0.08), True,
    ),
    "running": Kind(
        ("two people run side by side", "two people run together", "two people are running next to each other"),
        ("a couple jogs along side by side",),
        ("run",), (1.1, 0.0), 0.0, (0.1, 0.1, 0.08), True,
    ),
    "waving": Kind(
        ("two people wave to each other", "two people face each other and wave", "two people greet with a wave"),
        ("somebody waves to another person, who waves back",),
        ("wave-left-hand", "wave-right-hand", "wave-both-hands"), (0.0, 1.8), math.pi, (0.15, 0.15, 0.12), False,
    ),
    "bowing": Kind(
        ("two people bow to each other", "two people face each other and bow", "two people greet with a bow"),
        ("somebody bows to another person, who bows back",),
        ("bow",), (0.0, 1.5), math.pi, (0.1, 0.12, 0.1), False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PairBatch:
    """motion: (B, 2, F, D) normalised. canon: the second person's token (B, D). text: (B, E). kinds: names, (B,)."""

    motion: torch.Tensor
    canon: torch.Tensor
    text: torch.Tensor
    kinds: list[str]

    def to(self, device: torch.device) -> PairBatch:
        """The batch with its tensors on a device."""
        return PairBatch(self.motion.to(device), self.canon.to(device), self.text.to(device), self.kinds)


@dataclass
class Pairs:
    """Clips by kind of pair, with each one's way over the ground."""

    features: list[torch.Tensor]  # (F, D) normalised
    yaw: list[torch.Tensor]  # (F,) heading, radians
    ground: list[torch.Tensor]  # (F, 2) x and z
    members: dict[str, list[int]]
    texts: dict[str, torch.Tensor]

    @classmethod
    def of(cls, clips: list[Clip], space: MotionSpace, encoder: Any, *, mirror: bool) -> Pairs:
        """From labelled clips and, with ``mirror``, their mirror images."""
        from longtake.motion.representation import HUMANML3D

        every = [*clips, *(clip.mirrored() for clip in clips)] if mirror else clips
        wanted = {action for kind in KINDS.values() for action in kind.actions}
        every = [clip for clip in every if clip.action in wanted]
        raw = [clip.features() for clip in every]
        members = {
            name: [row for row, clip in enumerate(every) if clip.action in kind.actions] for name, kind in KINDS.items()
        }
        texts = [text for kind in KINDS.values() for text in kind.captions]
        roots = [HUMANML3D.root(features.double()) for features in raw]
        return cls(
            [space.normalize(features) for features in raw],
            [heading(turn).float() for turn, _ in roots],
            [place[:, [0, 2]].float() for _, place in roots],
            {name: rows for name, rows in members.items() if len(rows) > 1},
            {text: encoder.encode([text])[0, 0] for text in texts},
        )

    def way(self, clip: int, start: int, frames: int) -> torch.Tensor:
        """Where a window ends, seen from its start (x, z), and how far it has turned: (3,)."""
        last = start + frames - 1
        angle = self.yaw[clip][start]
        step = self.ground[clip][last] - self.ground[clip][start]
        cos, sin = angle.cos(), angle.sin()
        here = torch.stack([cos * step[0] + sin * step[1], cos * step[1] - sin * step[0]])
        return torch.cat([here, (self.yaw[clip][last] - angle).reshape(1)])

    def window(self, kind: str, frames: int, rng: np.random.Generator) -> tuple[int, int]:
        """(clip, first frame) of a window that lies in its clip. Raises ValueError when no clip is long enough."""
        long = [row for row in self.members[kind] if len(self.features[row]) >= frames]
        if not long:
            raise ValueError(f"no clip of {kind!r} has {frames} frames")
        clip = int(rng.choice(long))
        return clip, int(rng.integers(len(self.features[clip]) - frames + 1))

    def pair(self, kind: str, frames: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
        """Windows of the two persons."""
        first = self.window(kind, frames, rng)
        if not KINDS[kind].together:
            return first, self.window(kind, frames, rng)
        goal = self.way(first[0], first[1], frames)
        others = [self.window(kind, frames, rng) for _ in range(CANDIDATES)]
        others = [other for other in others if other[0] != first[0]] or others
        return first, min(others, key=lambda other: float((self.way(other[0], other[1], frames) - goal).abs().sum()))

    def batch(self, frames: int, rows: int, rng: np.random.Generator, drop_text: float = 0.1) -> PairBatch:
        """Rows of every kind alike."""
        from longtake.motion.pair.model import encode_canon

        names = [name for name in self.members if self._reaches(name, frames)]
        motions, tokens, texts, kinds = [], [], [], []
        for row in range(rows):
            name = names[(row + int(rng.integers(len(names)))) % len(names)]
            kind = KINDS[name]
            people = self.pair(name, frames, rng)
            motions.append(torch.stack([self.features[clip][start : start + frames] for clip, start in people]))
            x, z, turn = (
                mean + spread * float(rng.standard_normal())
                for mean, spread in zip((*kind.place, kind.yaw), kind.spread, strict=True)
            )
            # a token's turn is undone where the second person is placed: see ``place_pair``
            tokens.append(encode_canon(torch.tensor(-turn), torch.tensor([x, z]), motions[-1].shape[-1]))
            vector = self.texts[kind.captions[int(rng.integers(len(kind.captions)))]]
            texts.append(torch.zeros_like(vector) if rng.random() < drop_text else vector)
            kinds.append(name)
        return PairBatch(torch.stack(motions), torch.stack(tokens), torch.stack(texts), kinds)

    def lengths(self, wanted: Sequence[int]) -> list[int]:
        """Those of the wanted numbers of frames that some kind's clips have. Raises UserError when there is none."""
        found = [frames for frames in wanted if any(self._reaches(kind, frames) for kind in self.members)]
        if not found:
            raise UserError(f"no two clips of walking, running, waving or bowing have {min(wanted)} frames")
        return found

    def _reaches(self, kind: str, frames: int) -> bool:
        return any(len(self.features[row]) >= frames for row in self.members[kind])


def heading(quaternion: torch.Tensor) -> torch.Tensor:
    """Angles (F,) about +y without jumps, of quaternions (F, 4) that turn the world into the body's view."""
    import numpy as np

    angle = 2 * torch.atan2(quaternion[:, 2], quaternion[:, 0])
    return torch.from_numpy(np.unwrap(angle.numpy()))
