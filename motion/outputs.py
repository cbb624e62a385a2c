"""MotionOutput: features, joints and what each frame shows; the suffix of a name chooses the kind of file.

    output.save("walk.bvh")
    output.save("walk.html")
    output.preview("walk.png")

Legend: F frames, J joints.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError
from longtake.media import check_output
from longtake.motion.kinematics import HUMANML, KIT, Skeleton
from longtake.outputs import FileKind, Output

if TYPE_CHECKING:
    from longtake.motion.cleanup import CleanupReport
    from longtake.motion.seams import SeamReport


@dataclass
class MotionOutput(Output):
    """A motion.

    features: (F, D) float32, de-normalised (a tensor, or normalised, where the call was asked for it). joints:
    (F, 22, 3) float32 metres, y up (KIT: 21 joints, millimetres). captions: the prompt of each frame. boundaries:
    frames at which the prompt changes. fps: frames per second. chains: joints of the skeleton's lines. second: joints
    (F, 22, 3) of a second person in the same world, if there is one. unit: of .bvh, "m" (Blender, Unity) or "cm" (Maya,
    MotionBuilder, Unreal). rig: skeleton of .glb, .bvh and .vrma files, a name of ``rigs.tables.RIGS``, None for the
    joints' own; with one, rig_fps is their frames a second (None: fps), up "y" or "z", and unit holds for .glb too.
    pose: the first person's rotations (``export.rig.Pose``) where a file that was read has them. looks: frames and
    places that the first person's head faces on a rig.
    """

    features: Any
    joints: np.ndarray
    captions: list[str]
    fps: float
    boundaries: list[int]
    chains: tuple[tuple[int, ...], ...]
    second: np.ndarray | None = field(default=None, kw_only=True)
    unit: str = field(default="m", kw_only=True)
    rig: str | None = field(default=None, kw_only=True)
    rig_fps: float | None = field(default=None, kw_only=True)
    up: str = field(default="y", kw_only=True)
    looks: tuple[tuple[int, tuple[float, float, float]], ...] = field(default=(), kw_only=True)
    pose: Any = field(default=None, kw_only=True, repr=False)

    @property
    def people(self) -> list[np.ndarray]:
        """Joints (F, J, 3) of each person."""
        return [np.asarray(joints) for joints in (self.joints, self.second) if joints is not None]

    def arrays(self) -> tuple[Any, ...]:
        """What ``return_dict=False`` gives: the joints of each person, or the features where there are no joints."""
        return tuple(self.people) if len(self.joints.shape) == 3 and self.joints.shape[1] else (self.features,)

    def to_tensors(self) -> None:
        """Features and joints as torch tensors, on the CPU; ``save`` and all else go on working."""
        import torch

        for name in ("features", "joints", "second"):
            if getattr(self, name) is not None:
                setattr(self, name, torch.as_tensor(getattr(self, name)))

    def skeleton(self) -> Skeleton:
        """The skeleton of the joints. Raises UserError when this output has no joints, or unknown ones."""
        for known in (HUMANML, KIT):
            if self.joints.shape[1:] == (known.joints, 3) and self.chains in (known.chains, ()):
                return known
        if not self.joints.size:
            raise UserError("this motion has no joints to show: its prior's rest offsets are missing")
        raise UserError(f"unknown skeleton: {self.joints.shape[1]} joints with the chains {self.chains}")

    def lock_feet(self) -> CleanupReport:
        """Hold standing feet still in ``joints`` and ``second``, and tell the first person's cost; ``features`` stay as
        the net made them. Raises UserError without the 22 joints of HumanML3D. See ``cleanup``."""
        import torch
        from longtake.motion.cleanup import lock_feet
        from longtake.motion.rigid import is_rigid, settled
        from longtake.motion.smoothing import MOST_JERK, frame_jerk, limit_jerk

        self.standard()
        fixed, report = lock_feet(self.people[0], self.fps)
        locked = [fixed, *(lock_feet(joints, self.fps)[0] for joints in self.people[1:])]
        for place, (before, after) in enumerate(zip(self.people, locked, strict=True)):
            # a motion without pops stays one, should a foot have been pulled too fast, and a rigid body too
            given = torch.from_numpy(before)
            if len(after) > 3 and float(frame_jerk(given, self.fps).max()) <= MOST_JERK:
                locked[place] = settled(after, self.fps)[0] if is_rigid(given) else limit_jerk(after, self.fps)
        self.joints = locked[0].numpy()
        if self.second is not None:
            self.second = locked[1].numpy()
        return report

    def seams(self) -> SeamReport:
        """Jerk, root step and foot skate at each change of the prompt. Raises UserError without 22 joints."""
        from longtake.motion.seams import seam_report

        self.standard()
        return seam_report(self.joints, self.boundaries, self.fps, captions=self.captions)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one file. Raises UserError.

        .npz: features, joints, captions, boundaries, fps (and second). .amass.npz: see ``export.write_amass``.
        .bvh, .glb: skeleton and body in motion, solved anew (22 joints only), on ``rig`` if there is one. .vrma: a VRM
        animation. .fbx: ``rig`` by Blender's module bpy. .csv: joints, a row a frame.
        .html: a viewer that works offline. .mp4, .gif: a film of stick figures.
        """
        path = check_output(path, SUFFIXES, overwrite)
        kind_of(path).write(self, path)
        return path

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .png: 16 moments at most, evenly spread, each with its frame number and caption."""
        from longtake.motion.export.film import render_sheet

        path = check_output(path, (".png",), overwrite)
        render_sheet(path, self.metres(), self.skeleton(), captions=self.captions, overwrite=overwrite)
        return path

    def metres(self) -> list[np.ndarray]:
        """Joints (F, J, 3) of each person in metres."""
        scale = 0.001 if self.skeleton() is KIT else 1.0
        return [scale * joints for joints in self.people]

    def standard(self) -> list[np.ndarray]:
        """Joints (F, 22, 3) of each person. Raises UserError when they are not HumanML3D's."""
        if self.skeleton() is not HUMANML:
            raise UserError(
                f"bvh, glb and amass files need the {HUMANML.joints} joints of HumanML3D; this motion has "
                f"{self.joints.shape[1]}: write .csv, .npz, .html or a film"
            )
        return self.people


# ------------------------------------------------------------------------------------------------------ kinds of files


def _write_npz(output: MotionOutput, path: Path) -> None:
    from longtake.journal import atomic_path

    arrays = {
        "features": output.features,
        "joints": output.joints,
        "captions": np.array(output.captions),
        "boundaries": np.array(output.boundaries, dtype=np.int64),
        "fps": np.float64(output.fps),
    }
    if output.second is not None:
        arrays["second"] = output.second
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _whole_npz(path: Path) -> None:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no whole npz file: {error}") from error


def _write_amass(output: MotionOutput, path: Path) -> None:
    from longtake.motion.export.tables import write_amass

    write_amass(path, output.standard(), output.fps, overwrite=True)


def _write_bvh(output: MotionOutput, path: Path) -> None:
    if output.rig is not None:
        return _write_on_rig(output, path)
    from longtake.motion.export.bvh import write_bvh

    write_bvh(path, output.standard(), output.fps, unit=output.unit, overwrite=True)


def _whole_bvh(path: Path) -> None:
    from longtake.motion.export.bvh import read_bvh

    read_bvh(path)


def _write_glb(output: MotionOutput, path: Path) -> None:
    if output.rig is not None:
        return _write_on_rig(output, path)
    from longtake.motion.export.glb import write_glb

    write_glb(path, output.standard(), output.fps, captions=output.captions, overwrite=True)


def _write_on_rig(output: MotionOutput, path: Path) -> None:
    from longtake.motion.rigs.export import write_on_rig

    write_on_rig(output, path)


def _whole_fbx(path: Path) -> None:
    from longtake.motion.rigs.fbx import check_fbx

    check_fbx(path)


def _whole_glb(path: Path) -> None:
    from longtake.motion.export.glb import check_glb

    check_glb(path)


def _write_csv(output: MotionOutput, path: Path) -> None:
    from longtake.motion.export.tables import write_csv

    names = output.skeleton().names
    write_csv(path, output.metres(), output.fps, names, captions=output.captions, overwrite=True)


def _whole_csv(path: Path) -> None:
    from longtake.motion.export.tables import check_csv

    check_csv(path)


def _write_html(output: MotionOutput, path: Path) -> None:
    from longtake.motion.export.viewer import write_viewer

    write_viewer(path, output.metres(), output.skeleton(), output.fps, captions=output.captions, overwrite=True)


def _whole_html(path: Path) -> None:
    from longtake.motion.export.viewer import check_viewer

    check_viewer(path)


def _write_film(output: MotionOutput, path: Path) -> None:
    from longtake.motion.export.film import render_film

    render_film(path, output.metres(), output.skeleton(), output.fps, captions=output.captions, overwrite=True)


def _whole_film(path: Path) -> None:
    from longtake.media import check_film

    check_film(path)


AMASS = ".amass.npz"
FILES: dict[str, FileKind] = {
    ".npz": FileKind(_write_npz, _whole_npz),
    ".bvh": FileKind(_write_bvh, _whole_bvh),
    ".glb": FileKind(_write_glb, _whole_glb),
    ".vrma": FileKind(_write_on_rig, _whole_glb),
    ".fbx": FileKind(_write_on_rig, _whole_fbx),
    ".csv": FileKind(_write_csv, _whole_csv),
    ".html": FileKind(_write_html, _whole_html),
    ".mp4": FileKind(_write_film, _whole_film),
    ".gif": FileKind(_write_film, _whole_film),
    AMASS: FileKind(_write_amass, _whole_npz),
}
SUFFIXES = tuple(suffix for suffix in FILES if suffix != AMASS)  # .amass.npz is a .npz by its last suffix


def kind_of(path: Path) -> FileKind:
    """The kind of file that a name stands for. Raises UserError for a suffix that is none of ``FILES``."""
    name = path.name.lower()
    for suffix in sorted(FILES, key=len, reverse=True):
        if name.endswith(suffix):
            return FILES[suffix]
    raise UserError(f"{path} is no file of motion; known are {', '.join(SUFFIXES)}")
