"""Motion as features: HumanML3D-263, KIT-251 and BABEL-135; encoding, recovery and normalisation, differentiable.

263 numbers of frame f (N frames of joints give N-1 of features; Guo et al., CVPR 2022; y up, metres, 20 fps):

    0        half the yaw step f -> f+1, rad      4:67     joints 1..21 in the heading frame, height kept
    1:3      root step x, z in heading frame      67:193   joints 1..21: rotation, two columns
    3        root height                          193:259  22 joints: step f -> f+1 in the heading frame
                                                  259:263  contact of left ankle, left foot, right ankle, right foot

KIT-251 is the same for 21 joints. BABEL-135 (TEACH; z up, 30 fps): root height, planar step, 22 rotations as two rows.

    features = HUMANML3D.encode(joints)             # (*, N, 22, 3) -> (*, N-1, 263)
    joints = HUMANML3D.recover(features)            # (*, N-1, 22, 3)

Legend: N frames of joints, J joints, D features, * any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from longtake.errors import UserError
from longtake.motion.kinematics import (
    HUMANML,
    KIT,
    Skeleton,
    axis_angle_to_matrix,
    columns_6d,
    forward_tree,
    matrix_from_columns,
    matrix_from_rows,
    matrix_to_axis_angle,
    quat_between,
    quat_inverse,
    quat_multiply,
    quat_rotate,
    quat_to_matrix,
    rows_6d,
    yaw_quat,
)
from torch.nn import functional as F

SMOOTHING_FRAMES = 20.0  # sigma of the heading's gaussian in the published process
_SMOOTHING_REACH = 4.0  # sigmas at which scipy cuts a gaussian


@dataclass(frozen=True)
class Alignment:
    """A clip as its features describe it.

    joints: (*, N, J, 3) after fit, floor, origin and facing. heading: (*, N, 4) turns from the world to the heading.
    """

    joints: torch.Tensor
    heading: torch.Tensor


@dataclass(frozen=True)
class JointFeatures:
    """The features of HumanML3D and KIT-ML: one layout for any skeleton with feet and a front.

    contact: a foot's joint is in contact when it moves less than this in one frame, squared, in the data's units.
    fps: frames per second of the public data. metre: so many of the data's units are a metre.
    """

    name: str
    skeleton: Skeleton
    contact: float
    fps: float
    metre: float = 1.0

    @property
    def slices(self) -> dict[str, slice]:
        """Name of each part -> where it lies."""
        joints = self.skeleton.joints
        sizes = {
            "yaw_step": 1,
            "root_step": 2,
            "root_height": 1,
            "positions": 3 * (joints - 1),
            "rotations": 6 * (joints - 1),
            "velocities": 3 * joints,
            "contacts": 4,
        }
        places, start = {}, 0
        for name, size in sizes.items():
            places[name] = slice(start, start + size)
            start += size
        return places

    @property
    def width(self) -> int:
        """D."""
        return self.slices["contacts"].stop

    @property
    def joints(self) -> int:
        return self.skeleton.joints

    @property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """Joints of the skeleton's lines."""
        return self.skeleton.chains

    @property
    def alike(self) -> tuple[str, ...]:
        """The parts whose numbers share one deviation in the public statistics."""
        return tuple(self.slices)

    needs_offsets = False  # joints come from the features alone
    holds_paths = True  # the root's way is in features of its own, in the heading frame

    def y_up(self, points: torch.Tensor) -> torch.Tensor:
        """Recovered points (*, 3) in the world of all outputs, y up: these are."""
        return points

    def align(self, joints: torch.Tensor, offsets: torch.Tensor | None = None, *, published: bool = True) -> Alignment:
        """Fit to a skeleton, stand on the floor, begin at the origin, face +z; and the smoothed heading.

        joints: (*, N, J, 3), N >= 2. offsets: (J, 3) rest offsets to fit to; None keeps the clip's own bones.
        published: with the quirks of the public process, which checkpoints and metrics depend on: hips with the wrong
        sign in the smoothed heading, and frame 0's heading forced to +z though the smoothed one is elsewhere. False:
        right sign, and the clip is turned so that the smoothed heading of frame 0 is +z.
        """
        skeleton = self.skeleton
        _check_joints(joints, skeleton.joints)
        if offsets is not None:
            joints = skeleton.fit(joints, offsets)
        floor = joints[..., 1].amin((-1, -2))
        start = joints[..., 0, 0, :]
        shift = torch.stack([start[..., 0], floor, start[..., 2]], -1)
        joints = joints - shift[..., None, None, :]
        front = joints.new_tensor([0.0, 0.0, 1.0])
        turn = quat_between(skeleton.forward_direction(joints[..., 0, :, :]), front)
        joints = quat_rotate(turn[..., None, None, :], joints)
        facing = smooth(skeleton.forward_direction(joints, published=published), SMOOTHING_FRAMES)
        if not published:
            turn = quat_between(facing[..., 0, :], front)
            joints, facing = quat_rotate(turn[..., None, None, :], joints), quat_rotate(turn[..., None, :], facing)
        heading = quat_between(F.normalize(facing, dim=-1), front)
        identity = heading.new_tensor([1.0, 0.0, 0.0, 0.0]).expand_as(heading[..., :1, :])
        return Alignment(joints, torch.cat([identity, heading[..., 1:, :]], -2))

    def encode(
        self, joints: torch.Tensor, offsets: torch.Tensor | None = None, *, published: bool = True
    ) -> torch.Tensor:
        """Features (*, N-1, D) of joint positions (*, N, J, 3); see ``align``."""
        return self.encode_aligned(self.align(joints, offsets, published=published))

    def encode_aligned(self, clip: Alignment) -> torch.Tensor:
        """Features (*, N-1, D) of an aligned clip."""
        joints, heading = clip.joints, clip.heading
        step = joints[..., 1:, :, :] - joints[..., :-1, :, :]
        yaw = quat_multiply(heading[..., 1:, :], quat_inverse(heading[..., :-1, :]))[..., 2:3].arcsin()
        root_step = quat_rotate(heading[..., 1:, :], step[..., 0, :])[..., [0, 2]]
        ground = joints[..., :1, :] * joints.new_tensor([1.0, 0.0, 1.0])
        local = quat_rotate(heading[..., None, :], joints - ground)[..., :-1, :, :]
        rotations = columns_6d(quat_to_matrix(self.skeleton.inverse(joints, heading)[..., :-1, 1:, :]))
        velocities = quat_rotate(heading[..., :-1, None, :], step)
        contacts = (step[..., list(self.skeleton.feet), :].square().sum(-1) < self.contact).to(joints.dtype)
        return torch.cat(
            [
                yaw,
                root_step,
                joints[..., :-1, 0, 1:2],
                local[..., 1:, :].flatten(-2),
                rotations.flatten(-2),
                velocities.flatten(-2),
                contacts,
            ],
            -1,
        )

    def root(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Heading (*, N, 4), world to heading, and the root's path (*, N, 3), integrated from the origin facing +z."""
        _check_width(features, self.width, self.name)
        half_yaw = F.pad(features[..., :-1, 0].cumsum(-1), (1, 0))
        heading = yaw_quat(half_yaw)
        step = features[..., :-1, 1:3]
        step = torch.stack([step[..., 0], torch.zeros_like(step[..., 0]), step[..., 1]], -1)
        path = quat_rotate(quat_inverse(heading), F.pad(step, (0, 0, 1, 0))).cumsum(-2)
        return heading, torch.stack([path[..., 0], features[..., 3], path[..., 2]], -1)

    def recover(self, features: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        """Joint positions (*, N, J, 3) from the root's numbers and the local positions; offsets are not needed."""
        heading, path = self.root(features)
        local = features[..., self.slices["positions"]].unflatten(-1, (-1, 3))
        joints = quat_rotate(quat_inverse(heading).unsqueeze(-2), local)
        joints = joints + (path * path.new_tensor([1.0, 0.0, 1.0])).unsqueeze(-2)
        return torch.cat([path.unsqueeze(-2), joints], -2)

    def recover_from_rotations(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Joint positions (*, N, J, 3) from the root's numbers, the rotations and rest offsets (J, 3)."""
        heading, path = self.root(features)
        local = matrix_from_columns(features[..., self.slices["rotations"]].unflatten(-1, (-1, 6)))
        local = torch.cat([quat_to_matrix(heading).unsqueeze(-3), local], -3)
        return self.skeleton.forward(local, path, offsets.to(features))

    def joint_features(self, joint: int | str, *, rotations: bool = False, velocities: bool = False) -> list[int]:
        """Feature numbers of one joint: its position triple, and its rotation and velocity if asked. Joint 0 has no
        position or rotation of its own (its height is feature 3)."""
        number = joint if isinstance(joint, int) else self._joint(joint)
        places, found = self.slices, []
        if number > 0:
            found += _run(places["positions"].start + 3 * (number - 1), 3)
            if rotations:
                found += _run(places["rotations"].start + 6 * (number - 1), 6)
        if velocities:
            found += _run(places["velocities"].start + 3 * number, 3)
        return found

    def _joint(self, name: str) -> int:
        if name not in self.skeleton.names:
            raise ValueError(f"unknown joint {name!r}; joints of {self.name}: {', '.join(self.skeleton.names)}")
        return self.skeleton.names.index(name)


HUMANML3D = JointFeatures("HumanML3D-263", HUMANML, contact=0.002, fps=20.0)
KIT_ML = JointFeatures("KIT-251", KIT, contact=0.05, fps=12.5, metre=1000.0)


@dataclass(frozen=True)
class RotationFeatures:
    """BABEL-135 (TEACH): height, planar step and joint rotations of an SMPL-like body, z up.

    parents: of the 22 joints, SMPL's order, which is HumanML3D's.
    """

    name: str
    parents: tuple[int, ...]
    fps: float

    chains = ()  # the 22 joints are HumanML3D's, whose chains an output without any takes
    alike = ("root_step",)
    needs_offsets = True
    holds_paths = False
    metre = 1.0

    @property
    def joints(self) -> int:
        return len(self.parents)

    def y_up(self, points: torch.Tensor) -> torch.Tensor:
        """See ``JointFeatures.y_up``."""
        return z_up_to_y_up(points)

    @property
    def width(self) -> int:
        return 3 + 6 * self.joints

    @property
    def slices(self) -> dict[str, slice]:
        return {"root_height": slice(0, 1), "root_step": slice(1, 3), "rotations": slice(3, self.width)}

    def encode(self, rotations: torch.Tensor, position: torch.Tensor, *, canonical: bool = False) -> torch.Tensor:
        """Features (*, N, 135) from rotations (*, N, 22, 3, 3) relative to the parent and root positions (*, N, 3).

        The planar step of frame 0 is 0. canonical: turn the clip about z so that frame 0 faces one way (as in
        training): the z part of frame 0's root rotation vector, plus a quarter turn, is taken off.
        """
        _check_joints(rotations.flatten(-2), self.joints, last=9)
        step = F.pad(position[..., 1:, :2] - position[..., :-1, :2], (0, 0, 1, 0))
        if canonical:
            vector = matrix_to_axis_angle(rotations[..., 0, 0, :, :])
            turn = torch.zeros_like(vector)
            turn[..., 2] = vector[..., 2] + torch.pi / 2
            back = axis_angle_to_matrix(turn).transpose(-1, -2).unsqueeze(-3)
            root = back @ rotations[..., 0, :, :]
            rotations = torch.cat([root.unsqueeze(-3), rotations[..., 1:, :, :]], -3)
            step = (back[..., :2, :2] @ step.unsqueeze(-1)).squeeze(-1)
        return torch.cat([position[..., 2:3], step, rows_6d(rotations).flatten(-2)], -1)

    def recover_rotations(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations (*, N, 22, 3, 3) and root positions (*, N, 3); the path begins above the origin."""
        _check_width(features, self.width, self.name)
        path = features[..., 1:3].cumsum(-2)
        path = path - path[..., :1, :]
        rotations = matrix_from_rows(features[..., 3:].unflatten(-1, (-1, 6)))
        return rotations, torch.cat([path, features[..., :1]], -1)

    def recover(self, features: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        """Joint positions (*, N, 22, 3), z up, on a skeleton of rest offsets (22, 3) (joint minus parent, metres).
        Raises UserError without offsets."""
        if offsets is None or not bool(offsets.any()):
            raise UserError(f"{self.name} gives joints only with rest offsets: set_statistics(offsets=...)")
        rotations, position = self.recover_rotations(features)
        return forward_tree(self.parents, rotations, position, offsets.to(features))


BABEL = RotationFeatures("BABEL-135", HUMANML.parents, fps=30.0)


def z_up_to_y_up(points: torch.Tensor) -> torch.Tensor:
    """(x, y, z) -> (x, z, -y): BABEL's world to HumanML3D's, (*, 3)."""
    return torch.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


REPRESENTATIONS: dict[int, Any] = {form.width: form for form in (HUMANML3D, KIT_ML, BABEL)}


def representation_of(width: int) -> Any:
    """The representation with ``width`` features. ValueError lists the known ones."""
    if width not in REPRESENTATIONS:
        known = ", ".join(f"{form.name}" for form in REPRESENTATIONS.values())
        raise ValueError(f"no motion representation has {width} features; known: {known}")
    return REPRESENTATIONS[width]


@dataclass(frozen=True)
class Normalizer:
    """x -> (x - mean) / std per feature, and back. mean, std: (D,). floor: added to std (BABEL has 1e-12)."""

    mean: torch.Tensor
    std: torch.Tensor
    floor: float = 0.0

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean.to(features)) / (self.std.to(features) + self.floor)

    def denormalize(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.std.to(features) + self.mean.to(features)


def smooth(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing along axis -2 of (*, N, C), the edges repeated, cut at 4 sigma (as scipy's "nearest")."""
    reach = int(_SMOOTHING_REACH * sigma + 0.5)
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (weights / weights.sum()).to(values)
    lead, frames, channels = values.shape[:-2], values.shape[-2], values.shape[-1]
    rows = values.reshape(-1, frames, channels).transpose(1, 2).reshape(-1, 1, frames)
    rows = F.conv1d(F.pad(rows, (reach, reach), mode="replicate"), kernel.view(1, 1, -1))
    return rows.reshape(-1, channels, frames).transpose(1, 2).reshape(*lead, frames, channels)


def _run(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def _check_joints(joints: torch.Tensor, count: int, last: int = 3) -> None:
    if joints.ndim < 3 or tuple(joints.shape[-2:]) != (count, last) or joints.shape[-3] < 2:
        raise ValueError(f"expected (..., N >= 2, {count}, {last}), got {tuple(joints.shape)}")
    if not joints.is_floating_point():
        raise ValueError(f"expected floating point numbers, got {joints.dtype}")


def _check_width(features: torch.Tensor, width: int, name: str) -> None:
    if features.ndim < 2 or features.shape[-1] != width:
        raise ValueError(f"{name} has {width} features a frame; got a tensor of shape {tuple(features.shape)}")
