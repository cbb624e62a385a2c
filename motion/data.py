"""Labelled clips of joint positions for training and judging the motion prior.

Reads an npz with ``root`` (N, 3) float32 metres, ``relative`` (N, 21, 3) int16 in 0.1 mm (joints 1..21 less the root),
``lengths``, ``name``, ``action`` and ``style`` of each clip, and ``joints``, the 22 names in HumanML3D's order; 20
frames a second, Y up. Legend: F frames, 22 joints, D = 263 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.captions import ACTIONS, MANNERS, mirrored_action
from longtake.motion.kinematics import HUMANML
from longtake.motion.representation import HUMANML3D

FPS = 20.0
SPLITS = {"train": "bandai_train.npz", "val": "bandai_val.npz"}


@dataclass(frozen=True)
class Clip:
    """One recording: ``joints`` (F, 22, 3) float32 in metres, Y up."""

    name: str
    action: str
    style: str
    joints: torch.Tensor

    def mirrored(self) -> Clip:
        """The clip as seen in a mirror: left is right, in the body and in the action's name."""
        return Clip(f"{self.name}-mirrored", mirrored_action(self.action), self.style, mirror(self.joints))

    def features(self) -> torch.Tensor:
        """HumanML3D features (F - 1, 263), with the sound heading (see ``JointFeatures.align``)."""
        return HUMANML3D.encode(self.joints.double(), published=False).float()


def mirror(joints: torch.Tensor) -> torch.Tensor:
    """Joint positions (*, 22, 3) of the mirrored person: x changes sign, left joints change places with right ones."""
    return joints[..., twins(), :] * joints.new_tensor([-1.0, 1.0, 1.0])


def twins() -> list[int]:
    """The joint on the other side, of each joint: itself on the spine."""
    names = HUMANML.names
    return [names.index(_other_side(name)) for name in names]


def _other_side(name: str) -> str:
    for here, there in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(here):
            return there + name.removeprefix(here)
    return name


def load_motions(path: str | Path, split: str = "train") -> list[Clip]:
    """The clips of one split, "train" or "val", from a folder with ``bandai_train.npz`` and ``bandai_val.npz``.

    Raises UserError when the file is missing, damaged, or has other joints or labels than this recipe knows.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    file = Path(path) / SPLITS[split] if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"no motion data at {file}: expected a folder with {' and '.join(SPLITS.values())}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            table = {key: archive[key] for key in archive.files}
        roots, relative, lengths = table["root"], table["relative"], table["lengths"]
        names, actions, styles, joints = (table[key].tolist() for key in ("name", "action", "style", "joints"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged or no motion data: {error}") from error
    expected = [name.replace("left_", "l_").replace("right_", "r_") for name in HUMANML.names]
    if joints != expected:
        raise UserError(f"{file} has the joints {', '.join(joints)}; expected {', '.join(expected)}")
    unknown = sorted((set(actions) - set(ACTIONS)) | (set(styles) - set(MANNERS)))
    if unknown:
        raise UserError(f"{file} has labels without a caption: {', '.join(unknown)}")
    whole = np.concatenate([roots[:, None], roots[:, None] + relative.astype(np.float32) * 1e-4], 1)
    stops = np.cumsum(lengths)
    return [
        Clip(name, action, style, torch.from_numpy(whole[stop - length : stop]))
        for name, action, style, length, stop in zip(names, actions, styles, lengths, stops, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- features


def features_of(clips: Sequence[Clip]) -> list[torch.Tensor]:
    """``Clip.features`` of each clip, (F - 1, 263) float32; clips of equal length go through in one call."""
    groups: dict[int, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(len(clip.joints), []).append(number)
    found: dict[int, torch.Tensor] = {}
    for members in groups.values():
        stacked = torch.stack([clips[number].joints for number in members]).double()
        found.update(zip(members, HUMANML3D.encode(stacked, published=False).float(), strict=True))
    return [found[number] for number in range(len(clips))]


def mirrored_features(features: torch.Tensor) -> torch.Tensor:
    """Features (F, 263) of the clip as seen in a mirror: x changes sign, left joints change places with right ones."""
    places, twin = HUMANML3D.slices, twins()
    across = features.new_tensor([-1.0, 1.0, 1.0])
    rest = [number - 1 for number in twin[1:]]
    positions = features[:, places["positions"]].unflatten(-1, (-1, 3))[:, rest] * across
    rotations = features[:, places["rotations"]].unflatten(-1, (-1, 2, 3))[:, rest]
    rotations = rotations * torch.stack([-across, across])  # M R M: its first column changes sign once more
    velocities = features[:, places["velocities"]].unflatten(-1, (-1, 3))[:, twin] * across
    turned = features[:, :4] * features.new_tensor([-1.0, -1.0, 1.0, 1.0])
    contacts = features[:, places["contacts"]][:, [2, 3, 0, 1]]
    parts = [positions, rotations.flatten(-2), velocities]
    return torch.cat([turned, *(part.flatten(1) for part in parts), contacts], 1)


def paced(clip: Clip, speed: float) -> Clip:
    """The clip played ``speed`` times as fast, its frames drawn by cubic interpolation (Catmull-Rom)."""
    joints = clip.joints
    place = torch.arange(0, len(joints) - 1 + 1e-6, speed, dtype=torch.float64)
    whole = place.floor().long()
    share = (place - whole).float()[:, None, None]
    a, b, c, d = (joints[(whole + step).clamp(0, len(joints) - 1)] for step in (-1, 0, 1, 2))
    curve = b + 0.5 * share * (c - a + share * (2 * a - 5 * b + 4 * c - d + share * (3 * (b - c) + d - a)))
    return Clip(f"{clip.name}-{speed:g}", clip.action, clip.style, curve)
