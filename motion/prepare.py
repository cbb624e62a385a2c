"""What the motion recipes train on: labelled clips and the sentence vectors of all captions, as one file.

``longtake train motion --data DIR --prepare FILE`` writes it; ``--prepared FILE`` trains from it with torch and numpy
alone. Training with ``--data`` does both in memory, so that the two give the same weights.
Joints are kept in tenths of a millimetre as second differences along time, high and low bytes apart; vectors in eight
bits a number. Legend: F frames of all clips, C clips, E text features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.captions import ACTIONS, MANNERS, captions_of, mirrored_action
from longtake.motion.data import FPS, Clip
from longtake.motion.kinematics import HUMANML
from longtake.motion.pair.data import KINDS

RECIPE = "motion"
UNIT = 1e-4  # metres
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Prepared:
    """The clips of both splits, and the sentence vector (E,) float32 of every caption that training can draw."""

    train: list[Clip]
    val: list[Clip]
    texts: dict[str, torch.Tensor]

    @classmethod
    def of(cls, clips: Sequence[Clip], held_out: Sequence[Clip], encoder: Any) -> Prepared:
        """From labelled clips and a text encoder, with the rounding that a file would bring."""
        return cls.unpack(*pack(clips, held_out, encoder))

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Prepared:
        """From what ``pack`` gave. Raises UserError when a part is missing or does not fit."""
        try:
            splits = [_clips(arrays, facts["actions"], facts["styles"], split) for split in SPLITS]
            vectors = arrays["text_codes"].astype(np.float32) * arrays["text_scales"][:, None]
            texts = dict(zip(facts["texts"], torch.from_numpy(vectors), strict=True))
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"the prepared motion data lack something or do not fit together: {error}") from error
        return cls(splits[0], splits[1], texts)

    @classmethod
    def read(cls, path: Path) -> Prepared:
        """From a file of ``--prepare``. Raises UserError for any other file."""
        from longtake.prepared import load

        return cls.unpack(*load(path, RECIPE))


def pack(clips: Sequence[Clip], held_out: Sequence[Clip], encoder: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts as ``longtake.prepared.save`` takes them."""
    every = [*clips, *held_out]
    labels = {(action, clip.style) for clip in every for action in (clip.action, mirrored_action(clip.action))}
    texts = [text for pair in sorted(labels) for text in captions_of(*pair)]
    texts += [text for kind in KINDS.values() for text in kind.captions]
    texts = list(dict.fromkeys(texts))
    from longtake.text import kept_vectors

    vectors = kept_vectors(encoder, texts).numpy()
    scales = np.maximum(np.abs(vectors).max(1), 1e-12) / 127
    facts = {"actions": list(ACTIONS), "styles": list(MANNERS), "texts": texts, "fps": FPS}
    arrays = {
        "text_codes": np.round(vectors / scales[:, None]).astype(np.int8),
        "text_scales": scales.astype(np.float32),
        **_arrays(clips, "train"),
        **_arrays(held_out, "val"),
    }
    return arrays, facts


def write(path: Path, clips: Sequence[Clip], held_out: Sequence[Clip], encoder: Any) -> Path:
    """The prepared file of these clips."""
    from longtake.prepared import save

    return save(path, RECIPE, *pack(clips, held_out, encoder))


def _arrays(clips: Sequence[Clip], split: str) -> dict[str, np.ndarray]:
    joints = np.concatenate([clip.joints.numpy() for clip in clips]).astype(np.float64)
    lengths = np.array([len(clip.joints) for clip in clips], np.int32)
    firsts = np.cumsum(lengths) - lengths
    places = np.round(
        np.concatenate([joints[:, 0], (joints[:, 1:] - joints[:, :1]).reshape(len(joints), -1)], 1) / UNIT
    )
    whole = places.astype(np.int64)
    starts = whole[firsts, :3].astype(np.int32)
    whole[:, :3] -= np.repeat(starts, lengths, 0)
    # sixteen bits wrap around, and the sums that undo the differences wrap back
    twice: np.ndarray = np.diff(whole.astype(np.int16), n=2, axis=0, prepend=np.zeros((2, whole.shape[1]), np.int16))
    folded = ((twice << 1) ^ (twice >> 15)).astype(np.uint16).T  # small numbers of either sign have small codes
    return {
        f"{split}_low": (folded & 255).astype(np.uint8),
        f"{split}_high": (folded >> 8).astype(np.uint8),
        f"{split}_starts": starts,
        f"{split}_lengths": lengths,
        f"{split}_actions": np.array([list(ACTIONS).index(clip.action) for clip in clips], np.uint8),
        f"{split}_styles": np.array([list(MANNERS).index(clip.style) for clip in clips], np.uint8),
    }


def _clips(arrays: Mapping[str, np.ndarray], actions: list[str], styles: list[str], split: str) -> list[Clip]:
    low, high, starts, lengths, action, style = (
        arrays[f"{split}_{name}"] for name in ("low", "high", "starts", "lengths", "actions", "styles")
    )
    folded = ((high.astype(np.uint16) << 8) | low).T
    twice = ((folded >> 1) ^ (0 - (folded & 1))).astype(np.int16)
    once = np.cumsum(twice, axis=0, dtype=np.int16)
    whole = np.cumsum(once, axis=0, dtype=np.int16)
    firsts = np.cumsum(lengths) - lengths
    steps = once[:, :3].astype(np.int32)  # a way may be longer than sixteen bits, a step of it never is
    steps[firsts] = 0
    way = np.cumsum(steps, axis=0)
    root = way + np.repeat(starts - way[firsts], lengths, 0)
    joints = root[:, None] + np.concatenate([np.zeros_like(root), whole[:, 3:]], 1).reshape(len(root), -1, 3)
    metres = torch.from_numpy((joints * UNIT).astype(np.float32))
    if metres.shape[1] != HUMANML.joints:
        raise ValueError(f"{metres.shape[1]} joints for {HUMANML.joints}")
    parts = metres.split(lengths.tolist())
    return [
        Clip(f"{split}-{number}", actions[int(one)], styles[int(other)], part.contiguous())
        for number, (one, other, part) in enumerate(zip(action, style, parts, strict=True))
    ]
