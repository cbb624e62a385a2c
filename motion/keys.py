"""Hands, feet, head and pelvis at given places at given moments.

    keys = Keys.parse("2s left_hand 0.3,1.4,0.5 | 4s pelvis 0,0.9,3", fps=20)
    out = pipe(prompt, frames, hooks=[keys.guide(pipe.space, 30)])
    keys.reach(out)                                     # metres off, one a key

Two parts. While the motion is made, the limbs of each clean estimate are drawn to the places around the keys' moments,
so that the net makes the body take part; the last steps are free. Afterwards arms and legs bend by what is missing,
which fades out over a third of a second around each key; what a limb cannot reach, the whole body is shifted by.

Places are in the world of the result: x and z on the floor from where it begins, facing +z, y up, metres. A hand is its
wrist, a foot its toe joint. "4s look 0,1.6,9" turns the head of a rig (``rigs.retarget``). Legend: F, N frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.cleanup import bend
from longtake.motion.kinematics import HUMANML, quat_rotate

if TYPE_CHECKING:
    from longtake.motion.outputs import MotionOutput
    from longtake.motion.space import MotionSpace

NAMES = {
    "left_hand": "left_wrist", "right_hand": "right_wrist", "left_foot": "left_foot", "right_foot": "right_foot",
    "head": "head", "pelvis": "pelvis",
}  # fmt: skip
LOOK = "look"  # the head faces a place
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


@dataclass(frozen=True)
class Keys:
    """frames, joints: numbers, one a key; places: (x, y, z) metres. looks: frames and places that the head faces, which
    only a rig's head bone shows."""

    frames: tuple[int, ...]
    joints: tuple[int, ...]
    places: tuple[tuple[float, float, float], ...]
    looks: tuple[tuple[int, tuple[float, float, float]], ...] = ()

    @classmethod
    def parse(cls, text: str, fps: float) -> Keys:
        """Keys of "SECONDs NAME x,y,z | ...". Raises UserError."""
        frames, joints, places = [], [], []
        looks: list[tuple[int, tuple[float, float, float]]] = []
        for part in text.split("|"):
            match = _KEY.fullmatch(part)
            if match is None or match[2] not in (*NAMES, LOOK):
                known, shown = ", ".join((*NAMES, LOOK)), part.strip()[:60]
                raise UserError(f'a key is "2s left_hand 0.3,1.4,0.5" with one of {known}; given {shown!r}')
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
        if len(frames) + len(looks) > MOST_KEYS:
            raise UserError(f"a motion has at most {MOST_KEYS} keys; given {len(frames) + len(looks)}")
        if len(set(zip(frames, joints, strict=True))) < len(frames):
            raise UserError("two keys are of the same joint at the same moment")
        return cls(tuple(frames), tuple(joints), tuple(places), tuple(looks))

    def check(self, frames: int, fps: float) -> None:
        """Raise UserError for keys beyond a motion of so many frames."""
        late = [frame for frame in (*self.frames, *(frame for frame, _ in self.looks)) if frame >= frames]
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
            if step >= _GUIDED * steps or not self.frames:
                return clean
            features = normalizer.denormalize(clean.double().cpu())
            joints = form.recover(features)
            heading, _ = form.root(features)
            needs = self.gaps(joints)
            needs = needs * (_MOST_PULL / needs.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1.0)
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
        return torch.tensor(self.places).to(joints) - joints[list(self.frames), list(self.joints)]

    def reach(self, output: MotionOutput) -> list[float]:
        """Bend the first person's limbs in ``joints`` until the keys are met; metres that each is off, also in
        ``info["keys_off_m"]``. Raises UserError for keys beyond the end."""
        self.check(len(output.joints), output.fps)
        output.looks = self.looks
        if not self.frames:
            return []
        points = torch.as_tensor(output.standard()[0]).double().clone()
        self._even(points)
        for _ in range(_ROUNDS):
            self._bend(points, output.fps)
            missing = self.gaps(points)
            if float(missing.norm(dim=-1).max()) < 0.1 * MET:
                break
            points += self._field(range(len(self.frames)), missing, len(points), output.fps, _BODY_SECONDS).unsqueeze(1)
        self._bend(points, output.fps)
        output.joints, output.pose = points.numpy().astype(np.float32), None  # rotations that were read are no more
        off = [round(gap, 4) for gap in self.gaps(points).norm(dim=-1).tolist()]
        output.info["keys_off_m"] = off
        return off

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
        moments = sorted({self.frames[number] for number in numbers})
        wanted = torch.stack(
            [
                torch.stack(
                    [need for number, need in zip(numbers, needs, strict=True) if self.frames[number] == moment]
                ).mean(0)
                for moment in moments
            ]
        )
        time = torch.arange(frames, dtype=torch.float64)[:, None]
        centre = torch.tensor(moments, dtype=torch.float64)
        weights = torch.exp(-0.5 * ((time - centre) / (seconds * fps)) ** 2)
        sizes = torch.linalg.solve(weights[moments] + 1e-6 * torch.eye(len(moments), dtype=torch.float64), wanted)
        return weights @ sizes


def told(keys: Keys, off: list[float], fps: float) -> str:
    """How far off each key is, in words."""
    if not off:
        return f"keys: {len(keys.looks)} looks, which the head bone of a rig shows"
    lines = [f"keys: {sum(gap <= MET for gap in off)} of {len(off)} met within {100 * MET:g} cm"]
    for frame, joint, gap in zip(keys.frames, keys.joints, off, strict=True):
        mark = "" if gap <= MET else " !"
        lines.append(f"  {frame / fps:g} s {HUMANML.names[joint]}: {100 * gap:.1f} cm off{mark}")
    return "\n".join(lines)
