"""Whole poses at given moments: "at second 3 the body is as it is at second 1.5 of that file".

    poses = Poses.read("poses.npz", [(60, 1.5)])             # frame 60 takes the pose of second 1.5
    points, off = poses.reach(points, fps=20)                # joints (F, 22, 3), metres off one a pose

A pose is where the joints lie beside the pelvis, and how high that is: the person takes it where the motion has come
to, facing as the motion does there. It is put on the bones of the motion's own person, each bone pointing where the
file's does and the lowest joint as high as there, by the length of the legs, so the file may be of anybody. Frames
around it give way by a shift of each joint that fades out over a third of a second, on rigid bones again. Legend: F
frames, n poses; metres, y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import Rig, measure
from longtake.motion.kinematics import HUMANML, quat_between, quat_rotate
from longtake.motion.rigid import is_rigid, nearest, pointed, settled
from longtake.motion.rigs.takes import read_take

SECONDS = 0.3  # sigma of how a pose comes and goes
_LEG = (4, 7)  # knee and ankle: their bones are a leg
_STILL = 1e-6  # metres; a frame whose shift is smaller stays bit for bit
_ROUNDS = 10
_MET = 1e-4  # metres


@dataclass(frozen=True)
class Poses:
    """frames: of the motion, one a pose; shapes: (n, 22, 3) float64, the pelvis over the origin, facing +z."""

    frames: tuple[int, ...]
    shapes: torch.Tensor

    @classmethod
    def read(cls, path: Path | str, wanted: Sequence[tuple[int, float]]) -> Poses:
        """Poses of a file (``rigs.takes``): (frame of the motion, second of the file) each. Raises UserError."""
        take = read_take(path)
        late = [second for _, second in wanted if round(second * take.fps) >= len(take.joints)]
        if late:
            end = (len(take.joints) - 1) / take.fps
            raise UserError(f"{Path(path).name} ends after {end:g} s; a key takes its pose of second {max(late):g}")
        chosen = torch.from_numpy(take.joints[[round(second * take.fps) for _, second in wanted]]).double()
        turn = quat_between(HUMANML.forward_direction(chosen), chosen.new_tensor([0.0, 0.0, 1.0]))
        ground = chosen[:, :1] * chosen.new_tensor([1.0, 0.0, 1.0])
        return cls(tuple(frame for frame, _ in wanted), quat_rotate(turn[:, None], chosen - ground))

    def wanted(self, points: torch.Tensor, person: Rig, pelvis: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Joints (n, 22, 3) of the person in the poses, where a motion (F, 22, 3) has come to. pelvis: frame -> place
        (3,) of the pelvis, where that is given."""
        there = points[list(self.frames)]
        shapes = pointed(self.shapes, person)
        legs = person.offsets.norm(dim=-1)[list(_LEG)].sum()
        scale = legs / HUMANML.bones(self.shapes).norm(dim=-1)[:, list(_LEG)].sum(1)
        lowest = scale * self.shapes[..., 1].amin(1)
        shapes = shapes + (lowest - shapes[..., 1].amin(1))[:, None, None] * shapes.new_tensor([0.0, 1.0, 0.0])
        turn = quat_between(HUMANML.forward_direction(shapes), HUMANML.forward_direction(there))
        at = there[:, 0] * there.new_tensor([1.0, 0.0, 1.0]) + shapes[:, 0]
        for number, frame in enumerate(self.frames):
            at[number] = (pelvis or {}).get(frame, at[number])
        return quat_rotate(turn[:, None], shapes - shapes[:, :1]) + at[:, None]

    def gaps(self, points: torch.Tensor, person: Rig, pelvis: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """What is missing (n, 22, 3), metres, of joints (F, 22, 3)."""
        return self.wanted(points, person, pelvis) - points[list(self.frames)]

    def reach(
        self, points: torch.Tensor, fps: float, person: Rig, pelvis: dict[int, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """A motion (F, 22, 3) float64 of a rigid person that takes the poses."""
        for _ in range(_ROUNDS):
            gaps = self.gaps(points, person, pelvis)
            if float(gaps.norm(dim=-1).max()) < _MET:
                break
            shift = spread(self.frames, gaps.flatten(1), len(points), SECONDS * fps).unflatten(1, (-1, 3))
            moved = shift.norm(dim=-1).amax(1) > _STILL
            points = points.clone()
            points[moved] = nearest(points[moved] + shift[moved], person)
        return points


def on_rigid_bones(points: torch.Tensor, fps: float) -> tuple[torch.Tensor, Rig]:
    """A motion (F, 22, 3) of a rigid person, the same if it is one, and the person."""
    if not is_rigid(points):
        points = settled(points, fps)[0]
    return points, measure(points)


def spread(moments: Sequence[int], wanted: torch.Tensor, frames: int, width: float) -> torch.Tensor:
    """Numbers (F, C) that are what is ``wanted`` (n, C) at some moments and fade away from them, as Gaussians of
    ``width`` frames do; of rows of one moment the mean."""
    places = sorted(set(moments))
    rows = [[number for number, moment in enumerate(moments) if moment == place] for place in places]
    mean = torch.stack([wanted[row].mean(0) for row in rows])
    time = torch.arange(frames, dtype=torch.float64)[:, None]
    centre = torch.tensor(places, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((time - centre) / width) ** 2)
    sizes = torch.linalg.solve(weights[places] + 1e-6 * torch.eye(len(places), dtype=torch.float64), mean)
    return weights @ sizes


def largest(gaps: torch.Tensor) -> list[float]:
    """Metres of the joint that is farthest off, one a pose."""
    return [round(gap, 4) for gap in gaps.norm(dim=-1).amax(-1).tolist()] if np.prod(gaps.shape) else []
