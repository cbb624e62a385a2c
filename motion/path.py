"""Walking along floor points: the way between them, how fast each prompt takes it, and how far the motion is from it.

    path = FloorPath(((0, 0), (0, 4), (4, 6), (8, 4)))               # x and z in metres
    control = path.control(space, 200, pace)                    # holds the root's way; pace (199,) m/s, one a step
    joints = path.place(joints)                                 # from the features' world to the path's
    path.deviations(joints)                                     # metres, one a point

The root's numbers are held to the way exactly, and the body answers to them. The features begin at the origin facing
+z, so the world of the path is the features' world turned by the way's first direction and shifted to its first point.
Legend: N frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from longtake.errors import UserError
from longtake.motion.control import Control, mask_features, places_along, root_features, smooth_path

if TYPE_CHECKING:
    from longtake.motion.space import MotionSpace

FASTEST = 12.0  # m/s, beyond what people run
FARTHEST = 1e5  # metres
SLOWEST = 0.05  # m/s of a prompt that stands, so that a path of such prompts alone is still a path


@dataclass(frozen=True)
class FloorPath:
    """Floor points (x, z) in metres. Corners are rounded by a spline through the points (a body does not turn in one
    frame). Raises UserError for points that cannot be walked."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        try:
            points = tuple((float(x), float(z)) for x, z in self.points)
        except (TypeError, ValueError):
            raise UserError(f"a path is floor points (x, z) in metres; given {self.points!r}") from None
        object.__setattr__(self, "points", points)
        if len(points) < 2:
            raise UserError(f"a path has at least two points (x, z) in metres; given {len(points)}")
        if not all(math.isfinite(number) for point in points for number in point):
            raise UserError("a path's points are finite numbers of metres")
        if max(abs(number) for point in points for number in point) > FARTHEST:
            raise UserError(f"a path's points lie within {FARTHEST:g} m of the origin")
        if any(one == two for one, two in zip(points, points[1:], strict=False)):
            raise UserError("two points of the path that follow each other are the same")

    @cached_property
    def way(self) -> torch.Tensor:
        """(m, 2) float64: the finer path through the points."""
        return smooth_path(torch.tensor(self.points, dtype=torch.float64))

    @property
    def length(self) -> float:
        """Metres along the way."""
        return float((self.way[1:] - self.way[:-1]).norm(dim=1).sum())

    def stretch(self, frames: int, fps: float, pace: torch.Tensor | None = None) -> float:
        """The path's speed over that of ``pace`` (N - 1,) m/s. Raises UserError when nobody could run it."""
        seconds = (frames - 1) / fps
        if self.length > FASTEST * seconds:
            raise UserError(
                f"a path of {self.length:.1f} m in {seconds:.1f} s means {self.length / seconds:.1f} m/s, more than "
                f"{FASTEST:g}: give it {math.ceil(self.length / FASTEST * fps) + 1} frames or more"
            )
        return 1.0 if pace is None else self.length / float(pace.clamp_min(SLOWEST).sum() / fps)

    def places(self, frames: int, pace: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Root places (N, 2) and facing angles (N,) in the path's world."""
        return places_along(self.way, frames, None if pace is None else pace.clamp_min(SLOWEST))

    def control(self, space: MotionSpace, frames: int, pace: torch.Tensor | None = None) -> PathControl:
        """What holds the root to the way: each step in proportion to ``pace`` (N - 1,), or even. Raises UserError for a
        form without a root's way of its own."""
        check_form(space)
        self.stretch(frames, float(space.config.fps))
        given = torch.zeros(frames, space.form.width)
        place, angle = self.places(frames, pace)
        given[:, :3] = root_features(space.form.metre * place, angle)
        mask = mask_features("root_horizontal", space.form)
        return PathControl(mask, space.normalize(given), quiet=False, path=self, pace=pace)

    def place(self, points: torch.Tensor, metre: float = 1.0) -> torch.Tensor:
        """Points (*, 3) of the features' world (from the origin, facing +z) in the path's world; ``metre``: so many of
        their units are one."""
        first = self.way[1] - self.way[0]
        angle = torch.atan2(first[0], first[1])
        cos, sin = float(angle.cos()), float(angle.sin())
        x, y, z = points.unbind(-1)
        start_x, start_z = (metre * number for number in self.points[0])
        return torch.stack([cos * x + sin * z + start_x, y, cos * z - sin * x + start_z], -1)

    def deviations(self, joints: torch.Tensor, metre: float = 1.0) -> list[float]:
        """Metres from each point to the root of joints (N, J, 3) in the path's world: where it passes nearest, and at
        the end for the last point."""
        root = joints[:, 0, [0, 2]].double() / metre
        gaps = [float((root - torch.tensor(point)).norm(dim=1).min()) for point in self.points[:-1]]
        return [*gaps, float((root[-1] - torch.tensor(self.points[-1])).norm())]


@dataclass(frozen=True)
class PathControl(Control):
    """A control that walks along ``path`` with steps in proportion to ``pace`` (N - 1,) m/s; None: not known yet, and a
    call takes the prompts' own."""

    path: FloorPath = field(kw_only=True)
    pace: torch.Tensor | None = field(default=None, kw_only=True)


def check_form(space: MotionSpace) -> None:
    """Raise UserError when the features have no root's way of their own."""
    if not space.form.holds_paths:
        raise UserError(f"{space.form.name} has no root path to hold: use a prior in HumanML3D's or KIT's form")
