"""Stick figures with thick limbs on a ground: films and contact sheets, drawn frame by frame.

    render_film("take.mp4", [joints], HUMANML, fps=20, captions=captions)
    render_sheet("take.png", [joints], HUMANML, captions=captions)

A perspective camera stands in front, to the left and above, and follows the roots smoothly. Left limbs are blue, right
ones orange, the trunk grey (a second person's paler). The line on the ground is the root's path: solid where the person
has been. One frame is in memory at a time. Legend: F frames, J joints; metres, y up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.motion.kinematics import Skeleton

SIZE = (480, 640)  # height and width of a film in pixels
CELL = (300, 260)  # of a contact sheet's picture
SHEET_POSES, SHEET_COLUMNS = 16, 8
_SUPER = 2  # drawn twice as large, then reduced: smooth edges
_SKY, _GROUND, _GRID = (246, 248, 250), (228, 232, 237), (203, 210, 218)
_SHADOW, _PATH, _BEEN, _INK = (200, 206, 214), (176, 190, 214), (88, 116, 180), (38, 43, 51)
_COLOURS = (  # middle, left, right
    ((92, 99, 110), (38, 110, 214), (232, 110, 22)),
    ((140, 146, 155), (110, 168, 232), (240, 168, 96)),
)
_LIMB = 0.045  # metres, half the thickness of a limb
_TRUNK, _HEAD = 0.065, 0.105
_EYE = np.array([1.15, 0.62, 2.1])  # where the camera stands, seen from what it looks at; scaled by the distance
_HALF_SECOND = 10  # frames of smoothing for the camera's way
_FIELD = 0.3  # half the height that is seen at a distance of 1
_TRAIL = 300  # frames of the path that are drawn before and after the present one


@dataclass
class Scene:
    """People on a ground, and where the camera looks in each frame.

    people: (F, J, 3) each, metres. captions: one a frame, or none. floor: the lowest a joint comes, metres.
    """

    people: Sequence[np.ndarray]
    skeleton: Skeleton
    captions: Sequence[str] = ()
    size: tuple[int, int] = SIZE
    floor: float = field(init=False)

    def __post_init__(self) -> None:
        shapes = {joints.shape for joints in self.people}
        if len(shapes) != 1 or next(iter(shapes))[1:] != (self.skeleton.joints, 3) or not next(iter(shapes))[0]:
            raise UserError(f"a picture needs joints (frames, {self.skeleton.joints}, 3) of each; given {shapes}")
        if not all(np.isfinite(joints).all() for joints in self.people):
            raise UserError("the joints hold NaN or infinity: nothing to draw")
        if self.captions and len(self.captions) != self.frames:
            raise ValueError(f"{len(self.captions)} captions for {self.frames} frames")
        self.people = [np.asarray(joints, dtype=np.float64) for joints in self.people]
        self.floor = float(min(np.percentile(joints[..., 1].min(1), 5) for joints in self.people)) - 0.03

    @property
    def frames(self) -> int:
        return len(self.people[0])

    @cached_property
    def looks_at(self) -> np.ndarray:
        """(F, 3): the middle of the roots, its way smoothed, at the height of a hip."""
        middle = np.mean([joints[:, 0] for joints in self.people], 0)
        smooth = _smooth(middle)
        smooth[:, 1] = self.floor + 0.9
        return smooth

    @cached_property
    def distance(self) -> np.ndarray:
        """(F,) how far off the camera stands: enough for the people and what they do with their arms."""
        apart = np.max([np.abs(joints[:, 0] - self.looks_at)[:, [0, 2]].max(1) for joints in self.people], 0)
        return 1.75 + 1.1 * _smooth(np.maximum(0.0, apart - 0.5)[:, None])[:, 0]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Columns (F, C) under a window of a second, the ends held."""
    kernel = np.hanning(2 * _HALF_SECOND + 3)[1:-1]
    padded = np.pad(values, ((_HALF_SECOND, _HALF_SECOND), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)


def _camera(target: np.ndarray, distance: float, size: tuple[int, int]) -> Any:
    """A function from points (N, 3) to pixels (N, 2), pixels a metre (N,) and depths (N,)."""
    eye = target + _EYE * distance
    ahead = (target - eye) / np.linalg.norm(target - eye)
    across = np.cross(ahead, [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across)
    up = np.cross(across, ahead)
    height, width = size
    focal = height / (2 * _FIELD)

    def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = points - eye
        depth = seen @ ahead
        scale = focal / np.maximum(depth, 0.05)
        place = np.stack([width / 2 + scale * (seen @ across), height * 0.5 - scale * (seen @ up)], -1)
        return place, scale, depth

    return project


@lru_cache
def _font(size: int) -> Any:
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def draw(scene: Scene, frame: int, *, bar: bool = True, note: str = "") -> np.ndarray:
    """One picture, uint8 (H, W, 3). bar: a line along the bottom that shows how much has passed. note: small print."""
    from PIL import Image, ImageDraw

    height, width = (side * _SUPER for side in scene.size)
    image = Image.new("RGB", (width, height), _SKY)
    pen = ImageDraw.Draw(image)
    target = scene.looks_at[frame]
    project = _camera(target, float(scene.distance[frame]), (height, width))
    _draw_ground(pen, project, target, 2.2 + float(scene.distance[frame]), scene.floor)
    for joints in scene.people:
        _draw_path(pen, project, joints, frame, scene)
    for joints in scene.people:
        _draw_shadow(pen, project, joints[frame], scene)
    _draw_bodies(pen, project, [joints[frame] for joints in scene.people], scene.skeleton)
    small = image.resize((scene.size[1], scene.size[0]), Image.Resampling.BOX)
    _write(ImageDraw.Draw(small), scene, frame, bar, note)
    return np.asarray(small)


def _draw_ground(pen: Any, project: Any, target: np.ndarray, reach: float, floor: float) -> None:
    """A disc of ground with lines every half metre that stay where they are while the camera moves."""
    turn = np.linspace(0, 2 * np.pi, 72)
    rim = np.stack([target[0] + reach * np.cos(turn), np.full(72, floor), target[2] + reach * np.sin(turn)], -1)
    place, _, _ = project(rim)
    pen.polygon([tuple(point) for point in place], fill=_GROUND)
    for axis in (0, 2):
        first = np.ceil((target[axis] - reach) * 2) / 2
        for value in np.arange(first, target[axis] + reach, 0.5):
            half = np.sqrt(max(0.0, reach**2 - (value - target[axis]) ** 2))
            ends = np.empty((2, 3))
            ends[:, 1] = floor
            ends[:, axis] = value
            ends[:, 2 - axis] = target[2 - axis] + half * np.array([-1, 1])
            place, _, _ = project(ends)
            bold = abs(value - round(value)) < 1e-6
            pen.line([tuple(point) for point in place], fill=_GRID, width=_SUPER * (2 if bold else 1))


def _draw_path(pen: Any, project: Any, joints: np.ndarray, frame: int, scene: Scene) -> None:
    """The root's way on the ground near what is seen: where it goes, and over that where it has been."""
    first = max(0, frame - _TRAIL)
    root = joints[first : frame + _TRAIL, 0].copy()
    root[:, 1] = scene.floor
    away = np.abs(root[:, [0, 2]] - scene.looks_at[frame][[0, 2]]).max(1) > 2.2 + scene.distance[frame]
    now = frame - first
    start = int(np.flatnonzero(away[:now]).max(initial=-1)) + 1
    stop = now + int(np.flatnonzero(away[now:]).min(initial=len(root) - now))
    for part, colour in ((root[start:stop], _PATH), (root[start : now + 1], _BEEN)):
        if len(part) > 1:
            place, _, _ = project(part)
            pen.line([tuple(point) for point in place], fill=colour, width=2 * _SUPER, joint="curve")


def _draw_shadow(pen: Any, project: Any, pose: np.ndarray, scene: Scene) -> None:
    flat = pose.copy()
    flat[:, 1] = scene.floor
    place, scale, _ = project(flat)
    for parent, joint in _bones(scene.skeleton):
        thick = max(1, round(1.6 * _LIMB * float(scale[joint])))
        pen.line([tuple(place[parent]), tuple(place[joint])], fill=_SHADOW, width=thick)
        for end in (parent, joint):
            r = thick / 2
            pen.ellipse([place[end][0] - r, place[end][1] - r, place[end][0] + r, place[end][1] + r], fill=_SHADOW)


def _bones(skeleton: Skeleton) -> list[tuple[int, int]]:
    return [(parent, joint) for joint, parent in enumerate(skeleton.parents) if parent >= 0]


def _side(name: str) -> int:
    return 1 if name.startswith("left_") else 2 if name.startswith("right_") else 0


def _draw_bodies(pen: Any, project: Any, poses: Sequence[np.ndarray], skeleton: Skeleton) -> None:
    """Limbs from far to near, each with a darker edge, so that what is in front covers what is behind."""
    parts: list[tuple[float, np.ndarray, np.ndarray, tuple[int, int, int]]] = []
    for number, pose in enumerate(poses):
        colours = _COLOURS[number % 2]
        place, scale, depth = project(pose)
        for parent, joint in _bones(skeleton):
            name = skeleton.names[joint]
            side = _side(name)
            half = _LIMB if side and "hip" not in name and "collar" not in name else _TRUNK
            radii = half * scale[[parent, joint]]
            if name.endswith(("wrist", "foot", "ankle")):
                radii = radii * np.array([1.0, 0.8])
            parts.append((float(depth[[parent, joint]].mean()), place[[parent, joint]], radii, colours[side]))
        if "head" in skeleton.names:
            head = skeleton.names.index("head")
            up = pose[head] - pose[skeleton.parents[head]]
            centre = pose[head] + 0.06 * up / max(float(np.linalg.norm(up)), 1e-6)
            spot, size, far = project(centre[None])
            parts.append((float(far[0]), np.repeat(spot, 2, 0), np.repeat(_HEAD * size, 2), colours[0]))
    for _, ends, radii, colour in sorted(parts, key=lambda part: -part[0]):
        edge = tuple(int(0.72 * value) for value in colour)
        _limb(pen, ends, radii + 0.8 * _SUPER, edge)
        _limb(pen, ends, radii, colour)


def _limb(pen: Any, ends: np.ndarray, radii: np.ndarray, colour: tuple[int, ...]) -> None:
    """A tapered stroke with round ends."""
    way = ends[1] - ends[0]
    length = float(np.linalg.norm(way))
    if length > 1e-6:
        normal = np.array([-way[1], way[0]]) / length
        corners = [ends[0] + normal * radii[0], ends[1] + normal * radii[1]]
        corners += [ends[1] - normal * radii[1], ends[0] - normal * radii[0]]
        pen.polygon([tuple(corner) for corner in corners], fill=colour)
    for end, r in zip(ends, radii, strict=True):
        pen.ellipse([end[0] - r, end[1] - r, end[0] + r, end[1] + r], fill=colour)


def _write(pen: Any, scene: Scene, frame: int, bar: bool, note: str) -> None:
    height, width = scene.size
    size = max(11, round(height / 26))
    font = _font(size)
    if scene.captions:
        for row, line in enumerate(_lines(scene.captions[frame], font, width - 2 * size)):
            pen.text((size, size * (0.6 + 1.25 * row)), line, fill=_INK, font=font)
    if note:
        corner = (width - 0.5 * size, height - 0.4 * size)
        pen.text(corner, note, fill=_BEEN, font=_font(round(0.8 * size)), anchor="rs")
    if bar:
        passed = round(width * (frame + 1) / scene.frames)
        pen.rectangle([0, height - 5, width, height], fill=_GRID)
        pen.rectangle([0, height - 5, passed, height], fill=_BEEN)


def _lines(text: str, font: Any, width: float, most: int = 2) -> list[str]:
    """A caption on at most ``most`` lines; what does not fit ends in an ellipsis.

    Linear in the text: letters beyond one a pixel of the lines cannot be shown and are not measured.
    """
    shown = text[: round(most * width)]
    lines = [""]
    for word in shown.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == most:
            return [*lines[:-1], _cut(longer, font, width)]
        else:
            lines.append(word)
        if font.getlength(lines[-1]) > width:
            return [*lines[:-1], _cut(lines[-1], font, width)]
    return lines if len(shown) == len(text) else [*lines[:-1], _cut(lines[-1], font, width)]


def _cut(text: str, font: Any, width: float) -> str:
    """The longest beginning of a text that fits with its ellipsis, found by halving."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def _frames(scene: Scene) -> Iterator[np.ndarray]:
    for frame in range(scene.frames):
        yield draw(scene, frame)


def render_film(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray],
    skeleton: Skeleton,
    fps: float,
    *,
    captions: Sequence[str] = (),
    size: tuple[int, int] = SIZE,
    overwrite: bool = False,
) -> None:
    """Write .mp4 (constant memory) or .gif. people: (F, J, 3) each. size: height and width. Raises UserError."""
    from longtake.media import VideoWriter, check_output, write_gif

    path = check_output(path, (".mp4", ".gif"), overwrite)
    scene = Scene(people, skeleton, captions, size)
    if path.suffix.lower() == ".gif":
        write_gif(_frames(scene), path, fps, overwrite)
        return
    with VideoWriter(path, fps, overwrite=overwrite) as writer:
        for picture in _frames(scene):
            writer.write(picture[None])


def render_sheet(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray],
    skeleton: Skeleton,
    *,
    captions: Sequence[str] = (),
    frames: Sequence[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a .png of 16 moments at most (or of the given frames), each with its number and caption. Raises
    UserError."""
    from longtake.media import check_output, contact_sheet

    path = check_output(path, (".png",), overwrite)
    scene = Scene(people, skeleton, captions, CELL)
    if frames is None:
        count = min(SHEET_POSES, scene.frames)
        frames = [round(place * (scene.frames - 1) / max(1, count - 1)) for place in range(count)]
    pictures = [draw(scene, frame, bar=False, note=str(frame)) for frame in frames]
    contact_sheet(pictures, path, columns=SHEET_COLUMNS, overwrite=overwrite)
