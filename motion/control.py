"""Fine control: features held to a given motion, keyframes, in-betweening, root paths, goals in the world.

Two ways to hold features (PriorMDM, section 6). Quiet, as the fine-tuned control nets are trained: held features carry
no noise, so they follow sqrt(abar) times the given value at every step and equal it at the end. Otherwise plain
inpainting: they are set in the clean estimate only. Positions are relative to the root: to hold a wrist in the world,
hold the root too.

    held = mask_features("root_horizontal,left_wrist")              # (263,) bool
    control = Control(held, given)                                  # given (N, 263), normalised
    x = sample(denoise, schedule, noise, start=given, quiet=control.mask, adjust=control.adjust)

Legend: N frames, J features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from longtake.motion.representation import HUMANML3D, JointFeatures, Normalizer
from torch.nn import functional as F

LOWER_BODY = (0, 1, 2, 4, 5, 7, 8, 10, 11)  # HumanML3D's joints that lower_body holds
PREFIX_FRAMES = 20
IN_BETWEEN = (0.25, 0.75)  # of the length: where the frames to make begin and end


def control_names(form: JointFeatures = HUMANML3D) -> list[str]:
    """All names that ``mask_features`` knows."""
    return ["root", "root_horizontal", "lower_body", "upper_body", *form.skeleton.names[1:]]


def feature_numbers(name: str, form: JointFeatures = HUMANML3D) -> list[int]:
    """Features that one name holds: a joint's position triple, or root, root_horizontal, lower_body, upper_body."""
    places = form.slices
    if name == "root":
        return [0, 1, 2, 3, *form.joint_features(0, velocities=True)]
    if name == "root_horizontal":
        return [0, 1, 2]
    if name in ("lower_body", "upper_body"):
        lower = {0, 1, 2, 3, *range(places["contacts"].start, places["contacts"].stop)}
        for joint in LOWER_BODY:
            lower |= set(form.joint_features(joint, rotations=True, velocities=True))
        return sorted(lower if name == "lower_body" else set(range(form.width)) - lower)
    if name not in form.skeleton.names[1:]:
        raise ValueError(f"unknown control {name!r}; known: {', '.join(control_names(form))}")
    return form.joint_features(name)


def mask_features(names: str | Sequence[str], form: JointFeatures = HUMANML3D) -> torch.Tensor:
    """(J,) bool: features that are held by any of the names (a list, or one string with commas)."""
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    mask = torch.zeros(form.width, dtype=torch.bool)
    for name in wanted:
        mask[feature_numbers(name, form)] = True
    return mask


def mask_frames(frames: int, keep: Sequence[int] | str) -> torch.Tensor:
    """(N, 1) bool: frames held whole: keyframe numbers, "prefix" (20 frames), or "in_between" (first and last
    quarter)."""
    mask = torch.zeros(frames, 1, dtype=torch.bool)
    if isinstance(keep, str):
        if keep not in ("prefix", "in_between"):
            raise ValueError(f"frames to hold are numbers, 'prefix' or 'in_between'; given {keep!r}")
        mask[: PREFIX_FRAMES if keep == "prefix" else int(IN_BETWEEN[0] * frames)] = True
        if keep == "in_between":
            mask[int(IN_BETWEEN[1] * frames) :] = True
        return mask
    for frame in keep:
        if not 0 <= frame < frames:
            raise ValueError(f"keyframe {frame} is outside a motion of {frames} frames")
        mask[frame] = True
    return mask


@dataclass(frozen=True)
class Control:
    """Features held to a given motion.

    mask: bool, broadcasting to (*, N, J). given: (*, N, J) normalised features. quiet: held features carry no noise.
    """

    mask: torch.Tensor
    given: torch.Tensor
    quiet: bool = True

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"a control's mask is bool, not {self.mask.dtype}")
        torch.broadcast_shapes(self.mask.shape, self.given.shape)

    def adjust(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """The clean estimate with the held features in place."""
        return torch.where(self.mask.to(x0.device), self.given.to(x0), x0)

    def settle(self, x: torch.Tensor, level: float) -> torch.Tensor:
        """x, at noise level ``level`` (abar), with the held features where they are without noise."""
        return torch.where(self.mask.to(x.device), level**0.5 * self.given.to(x), x) if self.quiet else x

    def part(self, frames: range) -> Control:
        """The control of some frames of the motion."""
        place = slice(frames.start, frames.stop)
        return Control(self.mask.expand(self.given.shape)[place], self.given[place], self.quiet)

    def union(self, other: Control) -> Control:
        """Both controls; where both hold, the other's values."""
        mask = other.mask.expand(torch.broadcast_shapes(self.mask.shape, other.mask.shape, self.given.shape))
        given = torch.where(mask, other.given.to(self.given), self.given)
        return Control(self.mask | other.mask, given, self.quiet and other.quiet)


def root_path(points: torch.Tensor, frames: int, pace: torch.Tensor | None = None) -> torch.Tensor:
    """Features (N, 3) yaw step and root step, not normalised, of a walk along floor points (n, 2), metres x and z.

    The path is taken at even speed, or with each of the N - 1 steps in proportion to ``pace``, and the person faces
    where it goes. The world is turned and shifted so that the motion begins at the origin facing +z, as recovery has
    it.
    """
    return root_features(*places_along(points, frames, pace))


def places_along(
    points: torch.Tensor, frames: int, pace: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (N, 2) and angles (N,), 0 facing +z and a quarter turn +x, of a walk along a path; see ``root_path``."""
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or frames < 2:
        raise ValueError(f"a root path has at least two points (n, 2) and two frames; given {tuple(points.shape)}")
    points = points.double()
    edge = (points[1:] - points[:-1]).norm(dim=1)
    if float(edge.min()) <= 0:
        raise ValueError("two points of the root path that follow each other are the same")
    along = F.pad(edge.cumsum(0), (1, 0))
    wanted = torch.linspace(0, float(along[-1]), frames, dtype=torch.float64)
    if pace is not None:
        share = F.pad(pace.double().clamp_min(1e-6).cumsum(0), (1, 0))
        wanted = float(along[-1]) * (share / share[-1])
    index = (torch.searchsorted(along, wanted, right=True) - 1).clamp(0, len(edge) - 1)
    share = ((wanted - along[index]) / edge[index]).unsqueeze(1)
    place = points[index] + share * (points[index + 1] - points[index])
    step = place[1:] - place[:-1]
    angle = torch.atan2(step[:, 0], step[:, 1])
    return place, torch.cat([angle, angle[-1:]])


def root_features(place: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Features (N, 3) of a root that is at ``place`` (N, 2) and faces ``angle`` (N,), rad, in each frame."""
    step = place[1:] - place[:-1]
    turn = torch.remainder(angle[1:] - angle[:-1] + torch.pi, 2 * torch.pi) - torch.pi
    # the heading quaternion takes the world to the front: it turns against the person, by half angles
    yaw = F.pad(-0.5 * turn, (0, 1))
    after = angle[1:]
    cos, sin = after.cos(), after.sin()
    local = torch.stack([cos * step[:, 0] - sin * step[:, 1], sin * step[:, 0] + cos * step[:, 1]], 1)
    return torch.cat([yaw.unsqueeze(1), F.pad(local, (0, 0, 0, 1))], 1).float()


def smooth_path(points: torch.Tensor, pieces: int = 16) -> torch.Tensor:
    """A finer path (m, 2) through floor points (n, 2), metres: a natural cubic spline over the length of the legs.

    Two points stay a straight line. Raises ValueError when two points that follow each other are the same.
    """
    import numpy as np
    from scipy.interpolate import CubicSpline

    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"a root path has at least two points (n, 2); given {tuple(points.shape)}")
    if len(points) == 2:
        return points
    way = points.double().numpy()
    length = np.linalg.norm(np.diff(way, axis=0), axis=1)
    if length.min() <= 0:
        raise ValueError("two points of the root path that follow each other are the same")
    knots = np.concatenate([[0.0], np.cumsum(length)])
    at = np.concatenate([np.linspace(a, b, pieces, endpoint=False) for a, b in zip(knots, knots[1:], strict=False)])
    return torch.from_numpy(CubicSpline(knots, way, bc_type="natural")(np.append(at, knots[-1])))


@dataclass(frozen=True)
class WorldGoals:
    """Joints that should be at places in the world, by descending the squared distance through the recovery.

    frames, joints: (n,) numbers. places: (n, 3) metres. axes: which of x, y, z count. Applied to the clean estimate:
    ``iterations`` of Adam with step ``rate`` (in units of the features' deviation) a sampling step.
    """

    frames: torch.Tensor
    joints: torch.Tensor
    places: torch.Tensor
    normalizer: Normalizer
    form: JointFeatures = HUMANML3D
    axes: tuple[int, ...] = (0, 1, 2)
    iterations: int = 10
    rate: float = 0.05

    def distance(self, x0: torch.Tensor) -> torch.Tensor:
        """(n,) distance of each joint from its place, metres, for features (N, J)."""
        joints = self.form.recover(self.normalizer.denormalize(x0))
        gap = joints[self.frames, self.joints] - self.places.to(x0)
        return gap[:, list(self.axes)].norm(dim=-1)

    def adjust(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """x0 (N, J) moved towards the goals."""
        with torch.enable_grad():
            moved = x0.detach().clone().requires_grad_(True)
            optimizer = torch.optim.Adam([moved], lr=self.rate)
            for _ in range(self.iterations):
                optimizer.zero_grad()
                self.distance(moved).square().sum().backward()
                optimizer.step()
        return moved.detach()
