"""Pairs of people made from single recordings, for the two-person block: two real clips placed in one world.

Each pair is two windows of real motion and the place of the second person, drawn by what its caption says: side by
side, one behind the other, face to face. Of people who move together the second is the one of sixteen windows whose
way over the ground is most like the first one's. No window of a pair was recorded together with the other.

    pairs = Pairs.of(clips, space, encoder, mirror=True)
    batch = pairs.batch(80, 16, Dice(seed, step, device))    # batch.motion (B, 2, F, D), batch.canon (B, D), batch.text

Legend: B rows, F frames, D features, E text features, C clips. The first person stands at the origin and looks along
+z, so x is to his left; metres and radians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from longtake.errors import UserError
from longtake.motion.captions import mirrored_action
from longtake.motion.data import features_of, mirrored_features
from longtake.motion.pair.model import encode_canon
from longtake.motion.representation import HUMANML3D

if TYPE_CHECKING:
    from longtake.motion.data import Clip
    from longtake.motion.space import MotionSpace
    from longtake.train import Dice

CANDIDATES = 16
FAR = 1e6  # metres: more than any two ways differ


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


class PairBatch(NamedTuple):
    """motion: (B, 2, F, D) normalised. canon: the second person's token (B, D). text: (B, E). kinds: (B,) int64 places
    in ``KINDS``. together: (B,) True where the two move together."""

    motion: torch.Tensor
    canon: torch.Tensor
    text: torch.Tensor
    kinds: torch.Tensor
    together: torch.Tensor

    @property
    def names(self) -> list[str]:
        """Each row's kind."""
        return [list(KINDS)[number] for number in self.kinds.tolist()]


class Windows(NamedTuple):
    """A person's clips and first frames there, (B,) each."""

    clip: torch.Tensor
    start: torch.Tensor


@dataclass(frozen=True)
class Pairs:
    """Clips by kind of pair, with each one's way over the ground; all tensors on one device, clip after clip.

    ``fitting`` keeps, for each number of frames that was asked for, the clips that have so many.
    """

    features: torch.Tensor  # (sum of F, D) normalised
    yaw: torch.Tensor  # (sum of F,) heading, radians
    ground: torch.Tensor  # (sum of F, 2) x and z
    starts: torch.Tensor  # (C,) first frame of each clip
    frames: tuple[int, ...]  # of each clip
    members: dict[str, list[int]]
    texts: dict[str, torch.Tensor]
    fitting: dict[int, Fitting] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, clips: Sequence[Clip], space: MotionSpace, encoder: Any, *, mirror: bool) -> Pairs:
        """From labelled clips and, with ``mirror``, their mirror images; ``encoder`` encodes the captions."""
        from longtake.text import kept_vectors

        captions = list(dict.fromkeys(text for kind in KINDS.values() for text in kind.captions))
        texts = dict(zip(captions, kept_vectors(encoder, captions), strict=True))
        return cls.build(clips, space, texts, mirror=mirror)

    @classmethod
    def build(
        cls, clips: Sequence[Clip], space: MotionSpace, texts: Mapping[str, torch.Tensor], *, mirror: bool
    ) -> Pairs:
        """As ``of``, from the captions' vectors (E,)."""
        wanted = {action for kind in KINDS.values() for action in kind.actions}
        chosen = [clip for clip in clips if clip.action in wanted or mirrored_action(clip.action) in wanted]
        raw, actions = features_of(chosen), [clip.action for clip in chosen]
        if mirror:
            raw += [mirrored_features(features) for features in raw]
            actions += [mirrored_action(action) for action in actions]
        kept = [place for place, action in enumerate(actions) if action in wanted]
        raw, actions = [raw[place] for place in kept], [actions[place] for place in kept]
        if not raw:
            raise UserError("no clips of walking, running, waving or bowing to make pairs of")
        members = {
            name: [row for row, action in enumerate(actions) if action in kind.actions] for name, kind in KINDS.items()
        }
        roots = [HUMANML3D.root(features.double()) for features in raw]
        frames = [len(features) for features in raw]
        return cls(
            space.normalize(torch.cat(raw)),
            torch.cat([heading(turn).float() for turn, _ in roots]),
            torch.cat([place[:, [0, 2]].float() for _, place in roots]),
            torch.tensor([sum(frames[:place]) for place in range(len(frames))]),
            tuple(frames),
            {name: rows for name, rows in members.items() if len(rows) > 1},
            {text: texts[text] for kind in KINDS.values() for text in kind.captions},
        )

    def to(self, device: torch.device) -> Pairs:
        """The pairs on a device."""
        texts = {text: vector.to(device) for text, vector in self.texts.items()}
        moved = {name: getattr(self, name).to(device) for name in ("features", "yaw", "ground", "starts")}
        return replace(self, **moved, texts=texts, fitting={})

    def clip(self, number: int) -> torch.Tensor:
        """Normalised features (F, D) of one clip."""
        return self.features[int(self.starts[number]) :][: self.frames[number]]

    def way(self, windows: Windows, frames: int) -> torch.Tensor:
        """Where windows end, seen from their start (x, z), and how far they have turned: (*, 3)."""
        first = self.starts[windows.clip] + windows.start
        last = first + frames - 1
        angle = self.yaw[first]
        step = self.ground[last] - self.ground[first]
        cos, sin = angle.cos(), angle.sin()
        ahead, aside = cos * step[..., 1] - sin * step[..., 0], cos * step[..., 0] + sin * step[..., 1]
        return torch.stack([aside, ahead, self.yaw[last] - angle], -1)

    def window(self, kinds: torch.Tensor, frames: int, dice: Dice) -> Windows:
        """A window of each kind's clips that have so many frames; kinds: (*,) places in ``Fitting.names``."""
        fit = self.fit(frames)
        first, count = fit.members[kinds].unbind(-1)
        clip = fit.order[first + dice.below(count)]
        return Windows(clip, dice.below(fit.room[clip]))

    def people(self, kinds: torch.Tensor, frames: int, dice: Dice) -> tuple[Windows, Windows]:
        """Windows of the two persons of each row; kinds: (B,) places in ``Fitting.names``."""
        fit = self.fit(frames)
        first = self.window(kinds, frames, dice)
        others = self.window(kinds[:, None].expand(-1, CANDIDATES), frames, dice)
        gap = (self.way(others, frames) - self.way(first, frames)[:, None]).abs().sum(-1)
        # the same clip only when nothing else is there; of two who do not move together the first drawn is as good
        gap = gap + FAR * (others.clip == first.clip[:, None])
        best = torch.where(fit.together[kinds], gap.argmin(1), 0)[:, None]
        return first, Windows(others.clip.gather(1, best)[:, 0], others.start.gather(1, best)[:, 0])

    def batch(self, frames: int, rows: int, dice: Dice, drop_text: float = 0.1) -> PairBatch:
        """Rows of every kind alike."""
        fit = self.fit(frames)
        kinds = (torch.arange(rows, device=fit.order.device) + dice.integers(len(fit.names), 1)) % len(fit.names)
        place = torch.arange(frames, device=kinds.device)
        people = self.people(kinds, frames, dice)
        motion = torch.stack([self.features[(self.starts[one.clip] + one.start)[:, None] + place] for one in people], 1)
        x, z, turn = (fit.stands[kinds] + fit.spread[kinds] * dice.normal(rows, 3)).unbind(1)
        # a token's turn is undone where the second person is placed: see ``place_pair``
        tokens = encode_canon(-turn, torch.stack([x, z], 1), motion.shape[-1])
        said = fit.said[kinds]
        texts = fit.vectors[said[:, 0] + dice.below(said[:, 1])]
        texts = texts * (dice.uniform(rows, 1) >= drop_text).to(texts.dtype)
        return PairBatch(motion, tokens, texts, fit.number[kinds], fit.together[kinds])

    def fit(self, frames: int) -> Fitting:
        """What a batch of so many frames is drawn from. Raises UserError when no clip is long enough."""
        if frames not in self.fitting:
            self.fitting[frames] = Fitting.of(self, frames)
        return self.fitting[frames]

    def lengths(self, wanted: Sequence[int]) -> list[int]:
        """Those of the wanted numbers of frames that some kind's clips have. Raises UserError when there is none."""
        found = [frames for frames in wanted if any(self.long(kind, frames) for kind in self.members)]
        if not found:
            raise UserError(f"no two clips of walking, running, waving or bowing have {min(wanted)} frames")
        return found

    def long(self, kind: str, frames: int) -> list[int]:
        """The clips of a kind that have so many frames."""
        return [row for row in self.members[kind] if self.frames[row] >= frames]


@dataclass(frozen=True)
class Fitting:
    """The clips that have so many frames, on the device. K kinds, those of ``names``; whole numbers are int64."""

    names: tuple[str, ...]
    order: torch.Tensor  # clips, kind after kind
    members: torch.Tensor  # (K, 2) where each kind's clips lie in ``order``, and how many
    room: torch.Tensor  # (C,) first frames that a window of each clip can have
    stands: torch.Tensor  # (K, 3) x, z and yaw of the second person
    spread: torch.Tensor  # (K, 3)
    together: torch.Tensor  # (K,) bool
    number: torch.Tensor  # (K,) place in ``KINDS``
    vectors: torch.Tensor  # (captions, E), kind after kind
    said: torch.Tensor  # (K, 2) where each kind's captions lie, and how many

    @classmethod
    def of(cls, pairs: Pairs, frames: int) -> Fitting:
        """See ``Pairs.fit``."""
        long = {name: rows for name in pairs.members if (rows := pairs.long(name, frames))}
        if not long:
            raise UserError(f"no two clips of walking, running, waving or bowing have {frames} frames")
        kinds = [KINDS[name] for name in long]
        device = pairs.features.device

        def spans(counts: Sequence[int]) -> torch.Tensor:
            return torch.tensor([[sum(counts[:place]), count] for place, count in enumerate(counts)]).to(device)

        return cls(
            tuple(long),
            torch.tensor([row for rows in long.values() for row in rows]).to(device),
            spans([len(rows) for rows in long.values()]),
            (torch.tensor(pairs.frames) - frames + 1).clamp_min(1).to(device),
            torch.tensor([(*kind.place, kind.yaw) for kind in kinds]).to(device),
            torch.tensor([kind.spread for kind in kinds]).to(device),
            torch.tensor([kind.together for kind in kinds]).to(device),
            torch.tensor([list(KINDS).index(name) for name in long]).to(device),
            torch.stack([pairs.texts[text] for kind in kinds for text in kind.captions]),
            spans([len(kind.captions) for kind in kinds]),
        )


def heading(quaternion: torch.Tensor) -> torch.Tensor:
    """Angles (F,) about +y without jumps, of quaternions (F, 4) that turn the world into the body's view."""
    import numpy as np

    angle = 2 * torch.atan2(quaternion[:, 2], quaternion[:, 0])
    return torch.from_numpy(np.unwrap(angle.numpy()))
