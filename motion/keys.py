"""Hands, feet, head and pelvis at given places at given moments.

    keys = Keys.parse("2s left_hand 0.3,1.4,0.5 | 4s pelvis 0,0.9,3", fps=20)
    out = pipe(prompt, frames, hooks=[keys.guide(pipe.space, 30)])
    keys.reach(out)                                     # metres off, one a key

Two parts. While the motion is made, the limbs of each clean estimate are drawn to the places around the keys' moments,
so that the net makes the body take part; the last steps are free. Afterwards arms and legs bend by what is missing,
which fades out over a third of a second around each key; what a limb cannot reach, the whole body is shifted by.

Places are in the world of the result: x and z on the floor from where it begins, facing +z, y up, metres. A hand is its
wrist, a foot its toe joint. "4s look 0,1.6,9" turns the head of a rig (``rigs.retarget``). "3s pose 1.5" has the whole
body as it is at second 1.5 of a file (``poses``), its pelvis where a key of that moment says. Legend: F, N frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.cleanup import bend
from longtake.motion.export.rig import measure
from longtake.motion.kinematics import HUMANML, quat_rotate
from longtake.motion.poses import Poses, largest, on_rigid_bones, spread

if TYPE_CHECKING:
    from longtake.motion.outputs import MotionOutput
    from longtake.motion.space import MotionSpace

NAMES = {
    "left_hand": "left_wrist", "right_hand": "right_wrist", "left_foot": "left_foot", "right_foot": "right_foot",
    "head": "head", "pelvis": "pelvis",
}  # fmt: skip
LOOK = "look"  # the head faces a place
POSE = "pose"  # the whole body, of a file
_LIMBS = {  # joint of a key: the limb that bends for it, from its root; what goes along with its end
    "left_wrist": (("left_shoulder", "left_elbow", "left_wrist"), ()),
    "right_wrist": (("right_shoulder", "right_elbow", "right_wrist"), ()),
    "left_foot": (("left_hip", "left_knee", "left_ankle"), ("left_foot",)),
    "right_foot": (("right_hip", "right_knee", "right_ankle"), ("right_foot",)),
}
_LEAN = {"spine2": 0.2, "spine3": 0.3, "neck": 0.3, "head": 0.3}  # an arm alone would be stretched
_PULLED = {  # joint of a key: what is drawn along, by which share
    "left_wrist": {"left_wrist": 1.0, "left_elbow": 0.5, "left_shoulder": 0.5, "left_collar": 0.4, **_LEAN},
    "right_wrist": {"right_wrist": 1.0, "right_elbow": 0.5, "right_shoulder": 0.5, "right_collar": 0.4, **_LEAN},
    "left_foot": {"left_foot": 1.0, "left_ankle": 1.0, "left_knee": 0.5},
    "right_foot": {"right_foot": 1.0, "right_ankle": 1.0, "right_knee": 0.5},
    "head": {"head": 1.0, "neck": 0.8, "spine3": 0.6, "spine2": 0.4},
}
_MOST_PULL = 0.6  # metres that an estimate is drawn at once
MET = 0.02  # metres; a key that is farther off was not met
MOST_KEYS = 1000
_LIMB_SECONDS, _BODY_SECONDS = 0.15, 0.4  # sigmas of how a shift comes and goes
_GUIDED = 0.9  # share of the denoising steps that are guided
_ROUNDS = 12
_KEY = re.compile(r"\s*(\d+(?:\.\d+)?)s\s+(\w+)\s+([^,\s]+),([^,\s]+),([^,\s]+)\s*")
_POSE = re.compile(r"\s*(\d+(?:\.\d+)?)s\s+pose\s+(\d+(?:\.\d+)?)s?\s*")


@dataclass(frozen=True)
class Keys:
    """frames, joints: numbers, one a key; places: (x, y, z) metres. looks: frames and places that the head faces, which
    only a rig's head bone shows. poses: of the whole body, None where there are none."""

    frames: tuple[int, ...]
    joints: tuple[int, ...]
    places: tuple[tuple[float, float, float], ...]
    looks: tuple[tuple[int, tuple[float, float, float]], ...] = ()
    poses: Poses | None = None

    @classmethod
    def parse(cls, text: str, fps: float, pose: Path | str | None = None) -> Keys:
        """Keys of "SECONDs NAME x,y,z | SECONDs pose SECOND | ...". pose: the file of the poses. Raises UserError."""
        frames, joints, places = [], [], []
        looks: list[tuple[int, tuple[float, float, float]]] = []
        poses: list[tuple[int, float]] = []
        for part in text.split("|"):
            whole = _POSE.fullmatch(part)
            if whole is not None:
                poses.append((round(float(whole[1]) * fps), float(whole[2])))
                continue
            match = _KEY.fullmatch(part)
            if match is None or match[2] not in (*NAMES, LOOK):
                known, shown = ", ".join((*NAMES, LOOK)), part.strip()[:60]
                raise UserError(
                    f'a key is "2s left_hand 0.3,1.4,0.5" with one of {known}, or "3s pose 1.5" with a second of the '
                    f"file of --pose; given {shown!r}"
                )
            try:
                place = (float(match[3]), float(match[4]), float(match[5]))
            except ValueError:
                raise UserError(f"a key's place is three numbers of metres; given {part.strip()[:60]!r}") from None
            if not all(math.isfinite(number) and abs(number) <= 1000 for number in place):
                raise UserError(f"a key's place lies within 1 km; given {part.strip()[:60]!r}")
            if match[2] == LOOK:
                looks.append((round(float(match[1]) * fps), place))
                continue
            frames.append(round(float(match[1]) * fps))
            joints.append(HUMANML.names.index(NAMES[match[2]]))
            places.append(place)
        if len({frame for frame, _ in looks}) < len(looks):
            raise UserError("two looks are at the same moment")
        count = len(frames) + len(looks) + len(poses)
        if count > MOST_KEYS:
            raise UserError(f"a motion has at most {MOST_KEYS} keys; given {count}")
        if len(set(zip(frames, joints, strict=True))) < len(frames):
            raise UserError("two keys are of the same joint at the same moment")
        return cls(tuple(frames), tuple(joints), tuple(places), tuple(looks), _poses(poses, frames, joints, pose))

    def check(self, frames: int, fps: float) -> None:
        """Raise UserError for keys beyond a motion of so many frames."""
        whole = () if self.poses is None else self.poses.frames
        late = [frame for frame in (*self.frames, *whole, *(frame for frame, _ in self.looks)) if frame >= frames]
        if late:
            raise UserError(
                f"a key stands at {max(late) / fps:g} s, the motion ends after {(frames - 1) / fps:g} s: make it longer"
            )

    def guide(self, space: MotionSpace, steps: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """A hook of a run of ``steps`` steps that draws the clean estimate (N, J) to the keys. Raises UserError for
        features that are not HumanML3D's."""
        if space.form.width != 263:
            raise UserError(f"keys need HumanML3D's 263 features; this prior has {space.form.width}")
        form, normalizer, fps = space.form, space.normalizer, float(space.config.fps)
        places = form.slices["positions"].start

        def hook(clean: torch.Tensor, step: int) -> torch.Tensor:
            self.check(len(clean), fps)
            if step >= _GUIDED * steps or not (self.frames or self.poses):
                return clean
            features = normalizer.denormalize(clean.double().cpu())
            joints = form.recover(features)
            heading, _ = form.root(features)
            if self.poses is not None:
                needs = _within(self.poses.gaps(joints, measure(joints), self._pelvis()))
                width = _LIMB_SECONDS * fps
                shifts = spread(self.poses.frames, needs.flatten(1), len(clean), width).unflatten(1, (-1, 3))
                features[:, form.slices["root_height"]] += shifts[:, 0, 1:2]
                features[:, form.slices["positions"]] += quat_rotate(heading[:, None], shifts)[:, 1:].flatten(1)
            needs = _within(self.gaps(joints))
            for joint in set(self.joints):
                mine = [number for number, other in enumerate(self.joints) if other == joint]
                shift = quat_rotate(heading, self._field(mine, needs[mine], len(clean), fps, _LIMB_SECONDS))
                for name, share in _PULLED.get(HUMANML.names[joint], {}).items():
                    start = places + 3 * (HUMANML.names.index(name) - 1)
                    features[:, start : start + 3] += share * shift
            return normalizer.normalize(features).to(clean)

        return hook

    def gaps(self, joints: torch.Tensor) -> torch.Tensor:
        """What is missing (n, 3), metres, of joints (F, 22, 3)."""
        if not self.frames:
            return joints.new_zeros(0, 3)
        return torch.tensor(self.places).to(joints) - joints[list(self.frames), list(self.joints)]

    def reach(self, output: MotionOutput) -> list[float]:
        """Bend the first person's limbs in ``joints`` until the keys are met, and give the whole body its poses; metres
        that each key is off, then each pose (its farthest joint), also in ``info["keys_off_m"]``. Joints that are not
        rigid become so for a pose. Raises UserError for keys beyond the end."""
        self.check(len(output.joints), output.fps)
        output.looks = self.looks
        if not self.frames and self.poses is None:
            return []
        points, person = torch.as_tensor(output.standard()[0]).double().clone(), None
        if self.poses is not None:
            points, person = on_rigid_bones(points, output.fps)
        self._even(points)
        for _ in range(_ROUNDS):
            if self.poses is not None and person is not None:
                points = self.poses.reach(points, output.fps, person, self._pelvis())
            self._bend(points, output.fps)
            missing = self.gaps(points)
            if float(missing.norm(dim=-1).amax(0) if len(missing) else 0.0) < 0.1 * MET:
                break
            every = range(len(self.frames))
            points = points + self._field(every, missing, len(points), output.fps, _BODY_SECONDS).unsqueeze(1)
        self._bend(points, output.fps)
        output.joints, output.pose = points.numpy().astype(np.float32), None  # rotations that were read are no more
        off = [round(gap, 4) for gap in self.gaps(points).norm(dim=-1).tolist()]
        if self.poses is not None and person is not None:
            off += largest(self.poses.gaps(points, person, self._pelvis()))
        output.info["keys_off_m"] = off
        return off

    def _pelvis(self) -> dict[int, torch.Tensor]:
        """Frame -> place (3,) that a key says for the pelvis."""
        return {
            frame: torch.tensor(place, dtype=torch.float64)
            for frame, joint, place in zip(self.frames, self.joints, self.places, strict=True)
            if joint == 0
        }

    def _even(self, points: torch.Tensor) -> None:
        """Give the limbs of keys one length over all frames, in place: the net stretches what it was drawn by, and a
        rig could not follow."""
        for name, (limb, more) in _LIMBS.items():
            if HUMANML.names.index(name) not in self.joints:
                continue
            chain = [HUMANML.names.index(part) for part in (*limb, *more)]
            bones = [points[:, after] - points[:, before] for before, after in zip(chain, chain[1:], strict=False)]
            for before, after, bone in zip(chain, chain[1:], bones, strict=False):
                length = bone.norm(dim=-1, keepdim=True)
                points[:, after] = points[:, before] + bone * (length.median() / length.clamp_min(1e-9))

    def _bend(self, points: torch.Tensor, fps: float) -> None:
        """Bend each limb of a key, in place."""
        ahead = HUMANML.forward_direction(points)
        for name, (limb, more) in _LIMBS.items():
            joint = HUMANML.names.index(name)
            mine = [number for number, other in enumerate(self.joints) if other == joint]
            if not mine:
                continue
            start, middle, end = (HUMANML.names.index(part) for part in limb)
            shift = self._field(mine, self.gaps(points)[mine], len(points), fps, _LIMB_SECONDS)
            (elbow, wrist), _ = bend(points[:, start], points[:, middle], points[:, end], shift, ahead)
            moved = wrist - points[:, end]
            points[:, middle], points[:, end] = elbow, wrist
            for part in more:
                points[:, HUMANML.names.index(part)] += moved

    def _field(
        self, numbers: range | list[int], needs: torch.Tensor, frames: int, fps: float, seconds: float
    ) -> torch.Tensor:
        """A shift (F, 3) that is what ``needs`` (n, 3) says at the moments of some keys and fades away from them; of
        keys at one moment the mean."""
        return spread([self.frames[number] for number in numbers], needs, frames, seconds * fps)


def _within(needs: torch.Tensor) -> torch.Tensor:
    """Shifts (*, 3) of at most ``_MOST_PULL``."""
    return needs * (_MOST_PULL / needs.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1.0)


def _poses(
    wanted: list[tuple[int, float]], frames: list[int], joints: list[int], file: Path | str | None
) -> Poses | None:
    """The poses that keys ask for. Raises UserError."""
    if not wanted:
        if file is not None:
            raise UserError('--pose is the file of poses that keys name: give --keys "3s pose 1.5"')
        return None
    if file is None:
        raise UserError('"3s pose 1.5" takes a pose of the file of --pose: give --pose FILE.npz')
    moments = [frame for frame, _ in wanted]
    if len(set(moments)) < len(moments):
        raise UserError("two poses are at the same moment")
    if any(frame in moments and joint for frame, joint in zip(frames, joints, strict=True)):
        raise UserError("a pose says where the whole body is: of other keys only pelvis may be at its moment")
    return Poses.read(file, wanted)


def told(keys: Keys, off: list[float], fps: float) -> str:
    """How far off each key is, in words."""
    if not off:
        return f"keys: {len(keys.looks)} looks, which the head bone of a rig shows"
    lines = [f"keys: {sum(gap <= MET for gap in off)} of {len(off)} met within {100 * MET:g} cm"]
    names = [HUMANML.names[joint] for joint in keys.joints] + [POSE] * (len(off) - len(keys.joints))
    moments = (*keys.frames, *(() if keys.poses is None else keys.poses.frames))
    for frame, name, gap in zip(moments, names, off, strict=True):
        mark = "" if gap <= MET else " !"
        lines.append(f"  {frame / fps:g} s {name}: {100 * gap:.1f} cm off{mark}")
    return "\n".join(lines)
