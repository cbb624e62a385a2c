"""Toy motion files like the real ones, for tests of training and judging: a figure that sways in its own way."""

import math

import numpy as np
import torch
from longtake.motion.export.rig import measure
from longtake.motion.kinematics import HUMANML, axis_angle_to_matrix, forward_tree
from motion_models import Golden

FPS = 20.0
GENTLE = (0.25, 0.25, 0.1)  # rad; how far ordinary joints turn about x, y, z

# a standing figure, metres: hips, spine, knees, ankles, feet, neck, collars, head, shoulders, elbows, wrists
STANDING = [
    (0, 0.95, 0), (0.1, 0.9, 0), (-0.1, 0.9, 0), (0, 1.1, 0), (0.1, 0.5, 0), (-0.1, 0.5, 0), (0, 1.2, 0), (0.1, 0.1, 0),
    (-0.1, 0.1, 0), (0, 1.3, 0), (0.1, 0.02, 0.12), (-0.1, 0.02, 0.12), (0, 1.5, 0), (0.08, 1.4, 0), (-0.08, 1.4, 0),
    (0, 1.65, 0.03), (0.18, 1.4, 0), (-0.18, 1.4, 0), (0.2, 1.1, 0), (-0.2, 1.1, 0), (0.22, 0.85, 0.02),
    (-0.22, 0.85, 0.02),
]  # fmt: skip


def swaying(kind, frames, phase):
    """(frames, 22, 3): kind 0 walks, 1 raises the left hand, 2 the right."""
    joints = torch.tensor(STANDING, dtype=torch.float32).repeat(frames, 1, 1)
    t = torch.arange(frames) / 20.0
    swing = torch.sin(2 * math.pi * t + phase)
    if kind == 0:
        joints[..., 2] += 1.2 * t[:, None]
        for left, sign in ((True, 1), (False, -1)):
            for name, reach in (("knee", 0.1), ("ankle", 0.25), ("foot", 0.25)):
                joints[:, HUMANML.names.index(f"{'left' if left else 'right'}_{name}"), 2] += sign * reach * swing
    else:
        side = "left" if kind == 1 else "right"
        for name, reach in (("elbow", 0.25), ("wrist", 0.6)):
            joints[:, HUMANML.names.index(f"{side}_{name}"), 1] += reach * (0.6 + 0.4 * swing)
    return joints


def write_motions(folder, clips=8, frames=56):
    """``bandai_train.npz`` and ``bandai_val.npz`` in ``folder``: walks and raised hands in two manners."""
    names = [name.replace("left_", "l_").replace("right_", "r_") for name in HUMANML.names]
    actions = ("walk", "raise-up-left-hand", "raise-up-right-hand")
    for file, count, start in (("bandai_train.npz", clips, 0.0), ("bandai_val.npz", 3, 0.05)):
        every = [(action, number) for action in range(3) for number in range(count)]
        joints = torch.cat([swaying(action, frames + number, start + 0.7 * number) for action, number in every])
        np.savez_compressed(
            folder / file,
            root=joints[:, 0].numpy(),
            relative=((joints[:, 1:] - joints[:, :1]).numpy() * 1e4).round().astype(np.int16),
            lengths=np.array([frames + number for _, number in every], dtype=np.int32),
            name=np.array([f"clip-{action}-{number}" for action, number in every]),
            action=np.array([actions[action] for action, _ in every]),
            style=np.array([("normal", "tired")[number % 2] for _, number in every]),
            joints=np.array(names),
            fps=np.int64(20),
        )
    return folder


def dance(frames: int = 90, seed: int = 0, reach: float = 1.0) -> torch.Tensor:
    """Joints (F, 22, 3) float64 of a rigid-boned person who moves smoothly: bent knees, turning body, waving arms."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.from_numpy(Golden("M7_synth_a").arrays["joints"]).double()
    rig = measure(real)
    time = torch.arange(frames, dtype=torch.float64)[:, None, None] / FPS
    speed = 0.5 + 2.0 * torch.rand(22, 3, generator=generator, dtype=torch.float64)
    phase = 6.3 * torch.rand(22, 3, generator=generator, dtype=torch.float64)
    vectors = torch.sin(speed * time + phase) * reach * torch.tensor(GENTLE, dtype=torch.float64)
    index = {name: place for place, name in enumerate(HUMANML.names)}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        vectors[:, index[f"{side}_shoulder"], 2] -= sign * 1.1
        vectors[:, index[f"{side}_elbow"], 1] -= sign * 0.9
        vectors[:, index[f"{side}_knee"], 0] += 0.6
    vectors[:, 0] = 0.0
    vectors[:, 0, 1] = 4.0 * time[:, 0, 0]  # turns round and round
    root = torch.stack([time[:, 0, 0], 0.9 + 0.05 * torch.sin(3 * time[:, 0, 0]), 0.3 * time[:, 0, 0]], -1)
    return forward_tree(HUMANML.parents, axis_angle_to_matrix(vectors), root, rig.offsets)
