"""Labelled clips of joint positions for training and judging the motion prior.

Reads an npz with ``root`` (N, 3) float32 metres, ``relative`` (N, 21, 3) int16 in 0.1 mm (joints 1..21 less the root),
``lengths``, ``name``, ``action`` and ``style`` of each clip, and ``joints``, the 22 names in HumanML3D's order; 20
frames a second, Y up. Legend: F frames, 22 joints, D = 263 features.
"""

from __future__ import annotations

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
    names = HUMANML.names
    twin = [names.index(_other_side(name)) for name in names]
    return joints[..., twin, :] * joints.new_tensor([-1.0, 1.0, 1.0])


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
