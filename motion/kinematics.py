"""Rotations, skeletons, forward and inverse kinematics of a point skeleton; everything vectorised over leading axes.

Quaternions are (w, x, y, z); matrices act on columns. Legend: F frames, J joints, * any leading axes.
Skeleton tables: HumanML3D's and KIT-ML's, as in Guo et al., "Generating Diverse and Natural 3D Human Motions from
Text" (CVPR 2022).

    local, root = HUMANML.inverse(joints, heading)      # swing-only rotations of each bone
    joints = HUMANML.forward(local, root, root_position, offsets)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.nn import functional as F

# ------------------------------------------------------------------------------------------------------ quaternions


def quat_multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hamilton product (*, 4): apply b first, then a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def quat_inverse(q: torch.Tensor) -> torch.Tensor:
    """Inverse of unit quaternions (*, 4)."""
    return q * q.new_tensor([1.0, -1.0, -1.0, -1.0])


def quat_rotate(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Vectors (*, 3) turned by unit quaternions (*, 4); leading axes broadcast."""
    axis, v = torch.broadcast_tensors(q[..., 1:], v)
    twice = 2.0 * torch.linalg.cross(axis, v)
    return v + q[..., :1] * twice + torch.linalg.cross(axis, twice)


def quat_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The shortest turn (*, 4) that takes the direction of ``a`` to the direction of ``b`` (*, 3), neither zero.

    Opposite directions have no shortest turn; a half turn about some axis across ``a`` is taken.
    """
    a, b = torch.broadcast_tensors(a, b)
    axis = torch.linalg.cross(a, b)
    w = (a.square().sum(-1, keepdim=True) * b.square().sum(-1, keepdim=True)).sqrt() + (a * b).sum(-1, keepdim=True)
    q = torch.cat([w, axis], -1)
    size = a.square().sum(-1, keepdim=True)
    opposite = q.square().sum(-1, keepdim=True) < 1e-14 * size * size
    if bool(opposite.any()):
        helper = F.one_hot(a.abs().argmin(-1), 3).to(a)
        half = torch.cat([torch.zeros_like(w), torch.linalg.cross(a, helper)], -1)
        q = torch.where(opposite, half, q)
    return F.normalize(q, dim=-1)


def quat_to_matrix(q: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (*, 3, 3) of unit quaternions (*, 4)."""
    w, x, y, z = q.unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def matrix_to_quat(matrix: torch.Tensor) -> torch.Tensor:
    """Unit quaternions (*, 4) with w >= 0 of rotation matrices (*, 3, 3); the best conditioned of four formulas."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrix.unbind(-2))
    # row i of `candidates` is the quaternion times four times its own i-th entry
    rows = (
        (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
        (zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx),
        (xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy),
        (yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz),
    )
    candidates = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    q = torch.gather(candidates, -2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    q = F.normalize(q, dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def axis_angle_to_matrix(vector: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (*, 3, 3) of rotation vectors (*, 3) in radians."""
    half = 0.5 * vector.norm(dim=-1, keepdim=True)
    return quat_to_matrix(torch.cat([half.cos(), 0.5 * vector * torch.sinc(half / torch.pi)], -1))


def matrix_to_axis_angle(matrix: torch.Tensor) -> torch.Tensor:
    """Rotation vectors (*, 3) in radians, of length at most pi."""
    q = matrix_to_quat(matrix)
    size = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2.0 * torch.atan2(size, q[..., :1])
    return q[..., 1:] * torch.where(size > 1e-12, angle / size.clamp_min(1e-12), torch.full_like(size, 2.0))


def columns_6d(matrix: torch.Tensor) -> torch.Tensor:
    """The first two columns of rotation matrices (*, 3, 3) one after the other: HumanML3D's six numbers (*, 6)."""
    return torch.cat([matrix[..., 0], matrix[..., 1]], -1)


def rows_6d(matrix: torch.Tensor) -> torch.Tensor:
    """The first two rows of rotation matrices (*, 3, 3) one after the other: BABEL's six numbers (*, 6)."""
    return matrix[..., :2, :].flatten(-2)


def matrix_from_rows(six: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (*, 3, 3) whose first rows are Gram-Schmidt of the six numbers (*, 6) (Zhou et al. 2019)."""
    first, second = six[..., :3], six[..., 3:]
    b1 = F.normalize(first, dim=-1)
    b2 = F.normalize(second - (b1 * second).sum(-1, keepdim=True) * b1, dim=-1)
    return torch.stack([b1, b2, torch.linalg.cross(b1, b2)], -2)


def matrix_from_columns(six: torch.Tensor) -> torch.Tensor:
    """As ``matrix_from_rows`` with columns for rows."""
    return matrix_from_rows(six).transpose(-1, -2)


def yaw_quat(half_angle: torch.Tensor) -> torch.Tensor:
    """Quaternions (*, 4) of a turn about +y by TWICE ``half_angle`` (*,) radians."""
    zero = torch.zeros_like(half_angle)
    return torch.stack([half_angle.cos(), zero, half_angle.sin(), zero], -1)


# -------------------------------------------------------------------------------------------------------- skeletons

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_LEFT, _RIGHT, _UP, _DOWN, _FRONT = _X, (-1.0, 0.0, 0.0), _Y, (0.0, -1.0, 0.0), _Z  # a person facing +z


@dataclass(frozen=True)
class Skeleton:
    """A point skeleton: joint names, chains from the root outwards, and the direction of each bone at rest.

    facing: right hip, left hip, right shoulder, left shoulder. legs: knee and ankle whose bone lengths give the scale.
    feet: left ankle, left foot, right ankle, right foot.
    """

    names: tuple[str, ...]
    chains: tuple[tuple[int, ...], ...]
    rest: tuple[tuple[float, float, float], ...]
    facing: tuple[int, int, int, int]
    legs: tuple[int, int]
    feet: tuple[int, int, int, int]
    parents: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        parents = [-1] * len(self.names)
        for chain in self.chains:
            for parent, joint in zip(chain, chain[1:], strict=False):
                parents[joint] = parent
        object.__setattr__(self, "parents", tuple(parents))

    @property
    def joints(self) -> int:
        return len(self.names)

    @cached_property
    def chain_parents(self) -> tuple[int, ...]:
        """The joint whose rotation a joint's own is relative to: 0 for the first of each chain, arms too (published).

        Entry j - 1 belongs to joint j.
        """
        previous = [0] * self.joints
        for chain in self.chains:
            for position in range(2, len(chain)):
                previous[chain[position]] = chain[position - 1]
        return tuple(previous[1:])

    def rest_directions(self, like: torch.Tensor) -> torch.Tensor:
        """(J, 3) unit directions of the bones at rest (0 for the root), with the dtype and device of ``like``."""
        return torch.tensor(self.rest, dtype=like.dtype, device=like.device)

    def offsets_of(self, pose: torch.Tensor) -> torch.Tensor:
        """Rest offsets (*, J, 3) with the bone lengths of a pose (*, J, 3)."""
        return self.rest_directions(pose) * self.bones(pose).norm(dim=-1, keepdim=True)

    def bones(self, joints: torch.Tensor) -> torch.Tensor:
        """Joint minus parent, (*, J, 3); zero for the root."""
        bones = joints[..., 1:, :] - joints[..., list(self.parents[1:]), :]
        return F.pad(bones, (0, 0, 1, 0))

    def across(self, joints: torch.Tensor, *, published: bool = False) -> torch.Tensor:
        """The person's left-to-right direction (*, 3) from hips and shoulders, not normalised.

        published: with the hips' sign turned, as HumanML3D's inverse kinematics has it (its issues 107 to 137).
        """
        right_hip, left_hip, right_shoulder, left_shoulder = self.facing
        hips = joints[..., right_hip, :] - joints[..., left_hip, :]
        shoulders = joints[..., right_shoulder, :] - joints[..., left_shoulder, :]
        return shoulders - hips if published else shoulders + hips

    def forward_direction(self, joints: torch.Tensor, *, published: bool = False) -> torch.Tensor:
        """Where the person faces, horizontal, (*, 3); not normalised further than ``across``."""
        across = F.normalize(self.across(joints, published=published), dim=-1)
        up = torch.tensor(_UP, dtype=joints.dtype, device=joints.device)
        return torch.linalg.cross(up.expand_as(across), across)

    def swing(self, joints: torch.Tensor) -> torch.Tensor:
        """Shortest turns (*, J-1, 4) from each bone's rest direction to where it points; no twist."""
        return quat_between(self.rest_directions(joints)[1:], self.bones(joints)[..., 1:, :])

    def inverse(self, joints: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        """Rotations (*, J, 4) of each joint relative to the one before it on its chain; entry 0 is ``root`` (*, 4)."""
        turns = torch.cat([root.unsqueeze(-2), self.swing(joints)], -2)
        local = quat_multiply(quat_inverse(turns[..., list(self.chain_parents), :]), turns[..., 1:, :])
        return torch.cat([root.unsqueeze(-2), local], -2)

    def forward(self, local: torch.Tensor, position: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Joint positions (*, J, 3) from rotation matrices.

        local: (*, J, 3, 3), entry 0 the root's, relative along chains as ``inverse`` gives them; a bone's offset turns
        with its own joint's rotation (bone orientation, not BVH's convention). position: (*, 3) of the root.
        offsets: (J, 3) or (*, J, 3) rest offsets in metres.
        """
        places: list[torch.Tensor | None] = [None] * self.joints
        places[0] = position
        for chain in self.chains:
            turn = local[..., 0, :, :]
            for parent, joint in zip(chain, chain[1:], strict=False):
                turn = turn @ local[..., joint, :, :]
                start = places[parent]
                assert start is not None
                places[joint] = start + (turn @ offsets[..., joint, :, None])[..., 0]
        return torch.stack([place for place in places if place is not None], -2)

    def fit(self, joints: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """The same motion (*, F, J, 3) on another skeleton: bones keep their directions and take the new lengths.

        offsets: (J, 3) target rest offsets. The root's path scales with the length of the legs, measured on frame 0.
        """
        source = self.offsets_of(joints[..., :1, :, :])
        first, second = self.legs

        def leg(table: torch.Tensor) -> torch.Tensor:
            return table[..., first, :].abs().amax(-1) + table[..., second, :].abs().amax(-1)

        scale = leg(offsets) / leg(source)
        vectors = quat_rotate(self.swing(joints), offsets[1:].to(joints))
        places: list[torch.Tensor] = [joints[..., 0, :] * scale.unsqueeze(-1)]
        order: dict[int, torch.Tensor] = {0: places[0]}
        for chain in self.chains:
            for parent, joint in zip(chain, chain[1:], strict=False):
                order[joint] = order[parent] + vectors[..., joint - 1, :]
        return torch.stack([order[joint] for joint in range(self.joints)], -2)


def forward_tree(
    parents: tuple[int, ...], local: torch.Tensor, position: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Joint positions (*, J, 3) in the usual convention (SMPL, BVH): a bone's offset turns with its parent's rotation.

    local: (*, J, 3, 3) relative to the parent. offsets: (J, 3) joint minus parent at rest; entry 0 is not read.
    """
    turns = [local[..., 0, :, :]]
    places = [position]
    for joint in range(1, len(parents)):
        parent = parents[joint]
        places.append(places[parent] + (turns[parent] @ offsets[..., joint, :, None])[..., 0])
        turns.append(turns[parent] @ local[..., joint, :, :])
    return torch.stack(places, -2)


HUMANML = Skeleton(
    names=tuple(
        "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot "
        "right_foot neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow "
        "left_wrist right_wrist".split()
    ),
    chains=(
        (0, 2, 5, 8, 11),
        (0, 1, 4, 7, 10),
        (0, 3, 6, 9, 12, 15),
        (9, 14, 17, 19, 21),
        (9, 13, 16, 18, 20),
    ),
    rest=(
        (0.0, 0.0, 0.0),
        *(_LEFT, _RIGHT, _UP, _DOWN, _DOWN, _UP, _DOWN, _DOWN, _UP, _FRONT, _FRONT),
        *(_UP, _LEFT, _RIGHT, _FRONT, _DOWN, _DOWN, _DOWN, _DOWN, _DOWN, _DOWN),
    ),
    facing=(2, 1, 17, 16),
    legs=(5, 8),
    feet=(7, 10, 8, 11),
)

KIT = Skeleton(
    names=tuple(
        "root spine1 spine2 neck head right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist "
        "right_hip right_knee right_ankle right_heel right_toe left_hip left_knee left_ankle left_heel left_toe".split()
    ),
    chains=(
        (0, 11, 12, 13, 14, 15),
        (0, 16, 17, 18, 19, 20),
        (0, 1, 2, 3, 4),
        (3, 5, 6, 7),
        (3, 8, 9, 10),
    ),
    rest=(
        (0.0, 0.0, 0.0),
        *(_UP, _UP, _UP, _UP, _LEFT, _DOWN, _DOWN, _RIGHT, _DOWN, _DOWN),
        *(_LEFT, _DOWN, _DOWN, _FRONT, _FRONT, _RIGHT, _DOWN, _DOWN, _FRONT, _FRONT),
    ),
    facing=(11, 16, 5, 8),
    legs=(17, 18),
    feet=(19, 20, 14, 15),
)
