"""The skeletons that an export can stand on: bone names, hierarchy, and each bone's axes in the rig's own rest pose.

    RIGS["ue5"].bones[0].name                   # "root"
    rig_of("mixamo").bone_of("left_knee")       # mixamorig:LeftLeg

| rig | names | rest pose | axes at rest |
|---|---|---|---|
| mixamo | mixamorig:Hips ... | T-pose, knees and feet as X Bot's | +Y along the bone |
| ue5 | root, pelvis, spine_01 ... | A-pose with bent elbows | +X along left arms and right legs, -X along the others |
| unity | Hips, LeftUpperLeg ... (HumanBodyBones) | T-pose | those of the world |
| vrm | hips, leftUpperLeg ... (VRM 1.0) | T-pose, facing +z | those of the world |
| smpl | Pelvis, L_Hip ... | SMPL's zero pose | those of the world |
| rigify | DEF-spine, DEF-thigh.L ... (deform bones) | Rigify's human metarig, arms lowered | +Y along the bone |

Where the axes come from. mixamo: the bind pose of Mixamo's X Bot. ue5: the rest pose of Epic's UEFN mannequin, whose
bones and axes are the UE5 mannequin's; spine_04 and spine_05, which its published table leaves out, take what makes the
head stand upright. rigify: the bones of Blender 5.0's basic human metarig. smpl: directions between the joints of the
neutral template. vrm, unity: the humanoid definitions ask for a T-pose. Everything here is y up, a person facing +z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from longtake.errors import UserError

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Bone:
    """A bone of a rig at rest.

    joint: the joint of HumanML3D it turns with, "" for a bone on the floor under the body. share: where it stands on
    the way from that joint to the next of its chain, 0 at the joint itself. axes: (3, 3), its columns are the bone's
    own axes in the world. points: the direction of the limb that it begins, None where the body's own is taken.
    """

    name: str
    parent: str
    joint: str
    axes: np.ndarray
    points: np.ndarray | None = None
    share: float = 0.0


@dataclass(frozen=True)
class RigTable:
    """A skeleton: bones, parents before children. note: what a user should know of it."""

    name: str
    bones: tuple[Bone, ...]
    note: str = ""

    @property
    def parents(self) -> tuple[int, ...]:
        """Number of each bone's parent, -1 for the first."""
        places = {bone.name: place for place, bone in enumerate(self.bones)}
        return tuple(places[bone.parent] if bone.parent else -1 for bone in self.bones)

    @property
    def hips(self) -> int:
        """Number of the bone that is the pelvis."""
        return next(place for place, bone in enumerate(self.bones) if bone.joint == "pelvis")

    def bone_of(self, joint: str) -> str:
        """Name of the bone that begins at a joint of HumanML3D."""
        return next(bone.name for bone in self.bones if bone.joint == joint and bone.share == 0)

    def points(self, joint: str) -> np.ndarray | None:
        """Rest direction of the limb that begins at a joint."""
        return next(bone.points for bone in self.bones if bone.joint == joint and bone.share == 0)


# what each rig calls the 22 joints; "*" and "@" are replaced for left and right
_LIMBS = ("hip", "knee", "ankle", "foot", "collar", "shoulder", "elbow", "wrist")
_NEXT = {"hip": "knee", "knee": "ankle", "ankle": "foot", "shoulder": "elbow", "elbow": "wrist"}


def _unit(vector: Sequence[float] | np.ndarray) -> np.ndarray:
    found = np.asarray(vector, dtype=np.float64)
    return found / np.linalg.norm(found)


def _axes(y: Sequence[float], z: Sequence[float]) -> np.ndarray:
    """Axes (3, 3) of a bone along ``y`` whose z axis is nearest to ``z``."""
    along = _unit(y)
    third = _unit(np.asarray(z) - np.dot(z, along) * along)
    return np.stack([np.cross(along, third), along, third], 1)


def _mirrored(vector: Vector) -> Vector:
    return (-vector[0], vector[1], vector[2])


_Row = tuple[str, str, str, Vector, Vector, float]  # bone, parent, joint, y, z, share


def _along_y(name: str, middle: Sequence[_Row], left: Sequence[_Row], sides: dict[str, str], note: str) -> RigTable:
    """A rig whose bones point along their y axis; the right side is the left one seen in a mirror."""
    rows = [*middle]
    for side, word in sides.items():
        for bone, parent, joint, y, z, share in left:
            turned = (y, z) if side == "left" else (_mirrored(y), _mirrored(z))
            rows.append((bone.replace("*", word), parent.replace("*", word), f"{side}_{joint}", *turned, share))
    bones = []
    for bone, parent, joint, y, z, share in rows:
        limb = joint.split("_")[-1] in _NEXT
        bones.append(Bone(bone, parent, joint, _axes(y, z), _unit(y) if limb else None, share))
    return RigTable(name, tuple(bones), note)


# ------------------------------------------------------------------------------------------------------------- Mixamo

_DOWN_Z: Vector = (0.0, -1.0, 0.0)
_MIXAMO_SPINE: tuple[Vector, Vector] = ((0.0, 0.98913, -0.14703), (0.0, 0.14703, 0.98913))
_MIXAMO_CHEST: tuple[Vector, Vector] = ((0.0, 0.99259, -0.12149), (0.0, 0.12149, 0.99259))
_MIXAMO = _along_y(
    "mixamo",
    [
        ("mixamorig:Hips", "", "pelvis", (0.0, 0.99992, 0.01292), (0.0, -0.01292, 0.99992), 0.0),
        ("mixamorig:Spine", "mixamorig:Hips", "spine1", *_MIXAMO_SPINE, 0.0),
        ("mixamorig:Spine1", "mixamorig:Spine", "spine2", *_MIXAMO_SPINE, 0.0),
        ("mixamorig:Spine2", "mixamorig:Spine1", "spine3", *_MIXAMO_CHEST, 0.0),
        ("mixamorig:Neck", "mixamorig:Spine2", "neck", *_MIXAMO_CHEST, 0.0),
        ("mixamorig:Head", "mixamorig:Neck", "head", *_MIXAMO_CHEST, 0.0),
    ],
    [
        ("mixamorig:*UpLeg", "mixamorig:Hips", "hip", (0.0, -0.99997, 0.00782), (0.0, 0.00782, 0.99997), 0.0),
        ("mixamorig:*Leg", "mixamorig:*UpLeg", "knee", (0.0, -0.99766, -0.06836), (0.0, -0.06836, 0.99766), 0.0),
        ("mixamorig:*Foot", "mixamorig:*Leg", "ankle", (0.0, -0.63174, 0.77518), (0.0, 0.77518, 0.63174), 0.0),
        ("mixamorig:*ToeBase", "mixamorig:*Foot", "foot", (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), 0.0),
        (
            *("mixamorig:*Shoulder", "mixamorig:Spine2", "collar"),
            *((0.97736, -0.0484, -0.20596), (-0.04946, -0.99878, 0.0), 0.0),
        ),
        ("mixamorig:*Arm", "mixamorig:*Shoulder", "shoulder", (1.0, 0.0, 0.0), _DOWN_Z, 0.0),
        ("mixamorig:*ForeArm", "mixamorig:*Arm", "elbow", (1.0, 0.0, 0.0), _DOWN_Z, 0.0),
        ("mixamorig:*Hand", "mixamorig:*ForeArm", "wrist", (1.0, 0.0, 0.0), _DOWN_Z, 0.0),
    ],
    {"left": "Left", "right": "Right"},
    "fingers, eyes and the _End bones of a Mixamo character are not animated",
)

# ------------------------------------------------------------------------------------------------------------- Rigify


def _from_blender(vector: Vector) -> Vector:
    """Blender's world (z up, a person facing -y) to ours."""
    return (vector[0], vector[2], -vector[1])


def _blender(bone: str, parent: str, joint: str, y: Vector, z: Vector, share: float = 0.0) -> _Row:
    return (bone, parent, joint, _from_blender(y), _from_blender(z), share)


_THIGH: tuple[Vector, Vector] = ((0.0, -0.0764, -0.9971), (0.0, 0.9971, -0.0764))
_SHIN: tuple[Vector, Vector] = ((0.0, 0.0986, -0.9951), (0.0, 0.9951, 0.0986))
_ARM: tuple[Vector, Vector] = ((0.8565, 0.2142, -0.4697), (0.1878, -0.9768, -0.103))
_FOREARM: tuple[Vector, Vector] = ((0.8256, -0.1495, -0.5441), (-0.1249, -0.9888, 0.0822))
_RIGIFY = _along_y(
    "rigify",
    [
        _blender("DEF-spine", "", "pelvis", (0.0, -0.2496, 0.9683), (0.0, -0.9683, -0.2496)),
        _blender("DEF-spine.001", "DEF-spine", "spine1", (0.0, -0.123, 0.9924), (0.0, -0.9924, -0.123)),
        _blender("DEF-spine.002", "DEF-spine.001", "spine2", (0.0, 0.0318, 0.9995), (0.0, -0.9995, 0.0318)),
        _blender("DEF-spine.003", "DEF-spine.002", "spine3", (0.0, 0.0286, 0.9996), (0.0, -0.9996, 0.0286)),
        _blender("DEF-spine.004", "DEF-spine.003", "neck", (0.0, -0.3688, 0.9295), (0.0, -0.9295, -0.3688)),
        _blender("DEF-spine.005", "DEF-spine.004", "neck", (0.0, -0.1866, 0.9824), (0.0, -0.9824, -0.1866), 0.5),
        _blender("DEF-spine.006", "DEF-spine.005", "head", (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
    ],
    [
        _blender("DEF-thigh.*", "DEF-spine", "hip", *_THIGH),
        _blender("DEF-thigh.*.001", "DEF-thigh.*", "hip", *_THIGH, 0.5),
        _blender("DEF-shin.*", "DEF-thigh.*.001", "knee", *_SHIN),
        _blender("DEF-shin.*.001", "DEF-shin.*", "knee", *_SHIN, 0.5),
        _blender("DEF-foot.*", "DEF-shin.*.001", "ankle", (0.0, -0.848, -0.53), (0.0, 0.53, -0.848)),
        _blender("DEF-toe.*", "DEF-foot.*", "foot", (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),
        _blender("DEF-shoulder.*", "DEF-spine.003", "collar", (0.8619, 0.5071, -0.0006), (0.0005, 0.0002, 1.0)),
        _blender("DEF-upper_arm.*", "DEF-shoulder.*", "shoulder", *_ARM),
        _blender("DEF-upper_arm.*.001", "DEF-upper_arm.*", "shoulder", *_ARM, 0.5),
        _blender("DEF-forearm.*", "DEF-upper_arm.*.001", "elbow", *_FOREARM),
        _blender("DEF-forearm.*.001", "DEF-forearm.*", "elbow", *_FOREARM, 0.5),
        _blender("DEF-hand.*", "DEF-forearm.*.001", "wrist", (0.7984, -0.0998, -0.5938), (-0.0801, -0.995, 0.0595)),
    ],
    {"left": "L", "right": "R"},
    "deform bones (DEF-): what a game export of a Rigify character has, not its controls",
)

# ---------------------------------------------------------------------------------------------------------- UE5 Manny

# degrees relative to the parent, turned about y, then x, then z; right-handed, z up, a person facing -y
_MANNY: tuple[tuple[str, str, str, Vector, float], ...] = (
    ("root", "", "", (0.0, 0.0, 0.0), 0.0),
    ("pelvis", "root", "pelvis", (0.0, -90.0, -2.1), 0.0),
    ("spine_01", "pelvis", "spine1", (0.0, 0.0, 3.9), 0.0),
    ("spine_02", "spine_01", "spine1", (0.0, 0.0, 2.7), 0.5),
    ("spine_03", "spine_02", "spine2", (0.0, 0.0, 1.7), 0.0),
    ("spine_04", "spine_03", "spine2", (0.0, 0.0, -1.05), 0.5),
    ("spine_05", "spine_04", "spine3", (0.0, 0.0, -1.05), 0.0),
    ("neck_01", "spine_05", "neck", (0.0, 0.0, -23.1), 0.0),
    ("neck_02", "neck_01", "neck", (0.0, 0.0, 5.8), 0.5),
    ("head", "neck_02", "head", (0.0, 0.0, 13.2), 0.0),
    ("clavicle_l", "spine_05", "left_collar", (4.4, 93.9, 3.2), 0.0),
    ("upperarm_l", "clavicle_l", "left_shoulder", (2.8, 37.8, -0.1), 0.0),
    ("lowerarm_l", "upperarm_l", "left_elbow", (4.6, 0.0, -28.4), 0.0),
    ("hand_l", "lowerarm_l", "left_wrist", (-86.1, -96.7, 108.8), 0.0),
    ("clavicle_r", "spine_05", "right_collar", (-4.4, -93.9, -176.8), 0.0),
    ("upperarm_r", "clavicle_r", "right_shoulder", (2.8, 37.8, -0.1), 0.0),
    ("lowerarm_r", "upperarm_r", "right_elbow", (4.6, 0.0, -28.4), 0.0),
    ("hand_r", "lowerarm_r", "right_wrist", (-86.1, -96.7, 108.8), 0.0),
    ("thigh_l", "pelvis", "left_hip", (0.2, -6.6, 1.8), 0.0),
    ("calf_l", "thigh_l", "left_knee", (0.1, 1.8, -4.5), 0.0),
    ("foot_l", "calf_l", "left_ankle", (4.6, 5.4, 4.2), 0.0),
    ("ball_l", "foot_l", "left_foot", (0.0, 0.0, -89.9), 0.0),
    ("thigh_r", "pelvis", "right_hip", (-0.2, 6.6, -178.2), 0.0),
    ("calf_r", "thigh_r", "right_knee", (0.1, 1.8, -4.5), 0.0),
    ("foot_r", "calf_r", "right_ankle", (4.6, 5.4, 4.2), 0.0),
    ("ball_r", "foot_r", "right_foot", (0.0, 0.0, -89.9), 0.0),
)
_MANNY_BALL = (-10.45, -16.58, 0.08)  # where the ball of the left foot stands from its ankle, centimetres


def _turn(axis: int, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    found = np.eye(3)
    one, two = (axis + 1) % 3, (axis + 2) % 3
    found[one, one] = found[two, two] = cos
    found[two, one], found[one, two] = sin, -sin
    return found


def _manny() -> RigTable:
    world: dict[str, np.ndarray] = {"": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}  # z up to y up
    bones = []
    for name, parent, joint, (x, y, z), share in _MANNY:
        world[name] = world[parent] @ _turn(1, y) @ _turn(0, x) @ _turn(2, z)
        points, limb = None, joint.split("_")[-1]
        if limb in _NEXT:
            sign = 1.0 if joint.startswith("left_") else -1.0
            along = np.array(_MANNY_BALL) if limb == "ankle" else np.array([1.0 if "arm" in name else -1.0, 0, 0])
            points = _unit(world[name] @ (sign * along))
        bones.append(Bone(name, parent, joint, world[name], points, share))
    note = "root moves along the floor and turns with the body; twist, ik and finger bones are not animated"
    return RigTable("ue5", tuple(bones), note)


# ------------------------------------------------------------------------------------- rigs with the axes of the world

_T_POSE: dict[str, Vector] = {
    "hip": _DOWN_Z, "knee": _DOWN_Z, "ankle": (0.0, -0.45, 0.9), "shoulder": (1.0, 0.0, 0.0), "elbow": (1.0, 0.0, 0.0),
}  # fmt: skip
_SMPL_POSE: dict[str, Vector] = {
    "hip": (0.091, -0.996, -0.012), "knee": (-0.034, -0.993, -0.109), "ankle": (0.197, -0.416, 0.888),
    "shoulder": (0.993, -0.049, -0.105), "elbow": (0.999, 0.036, -0.004),
}  # fmt: skip
_TREE = (  # joint, and the joint its bone hangs on
    ("pelvis", ""), ("spine1", "pelvis"), ("spine2", "spine1"), ("spine3", "spine2"), ("neck", "spine3"),
    ("head", "neck"), ("hip", "pelvis"), ("knee", "hip"), ("ankle", "knee"), ("foot", "ankle"), ("collar", "spine3"),
    ("shoulder", "collar"), ("elbow", "shoulder"), ("wrist", "elbow"),
)  # fmt: skip


def _plain(name: str, names: str, sides: tuple[str, str], pose: dict[str, Vector], note: str = "") -> RigTable:
    """A rig whose bones have the world's axes. names: of the joints of ``_TREE`` in order, "*" for the side's word."""
    called = dict(zip((joint for joint, _ in _TREE), names.split(), strict=True))
    bones: list[Bone] = []
    for joint, parent in _TREE:
        if joint not in _LIMBS:
            bones.append(Bone(called[joint], called.get(parent, ""), joint, np.eye(3)))
    for side, word in zip(("left", "right"), sides, strict=True):
        for joint, parent in _TREE:
            if joint in _LIMBS:
                points = pose.get(joint)
                if points is not None:
                    points = points if side == "left" else _mirrored(points)
                own, above = called[joint].replace("*", word), called[parent].replace("*", word)
                bones.append(Bone(own, above, f"{side}_{joint}", np.eye(3), None if points is None else _unit(points)))
    return RigTable(name, tuple(bones), note)


_UNITY = _plain(
    "unity",
    "Hips Spine Chest UpperChest Neck Head *UpperLeg *LowerLeg *Foot *Toes *Shoulder *UpperArm *LowerArm *Hand",
    ("Left", "Right"),
    _T_POSE,
    "names are Unity's HumanBodyBones: the humanoid avatar finds them by itself",
)
_VRM = _plain(
    "vrm",
    "hips spine chest upperChest neck head *UpperLeg *LowerLeg *Foot *Toes *Shoulder *UpperArm *LowerArm *Hand",
    ("left", "right"),
    _T_POSE,
)
_SMPL = _plain(
    "smpl",
    "Pelvis Spine1 Spine2 Spine3 Neck Head *_Hip *_Knee *_Ankle *_Foot *_Collar *_Shoulder *_Elbow *_Wrist",
    ("L", "R"),
    _SMPL_POSE,
    "the bones of SMPL with this person's lengths; no SMPL body is in the file",
)

RIGS: dict[str, RigTable] = {rig.name: rig for rig in (_MIXAMO, _manny(), _UNITY, _VRM, _SMPL, _RIGIFY)}


def rig_of(name: str) -> RigTable:
    """The rig of that name. Raises UserError."""
    if name not in RIGS:
        raise UserError(f"rig must be one of {', '.join(RIGS)}; given {name!r}")
    return RIGS[name]
