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
from longtake.outputs import Output

if TYPE_CHECKING:
    from longtake.motion.cleanup import CleanupReport
    from longtake.motion.seams import SeamReport

SUFFIXES = (".npz", ".bvh", ".glb", ".csv", ".html", ".mp4", ".gif")
AMASS = ".amass.npz"


@dataclass
class MotionOutput(Output):
    """A motion.

    features: (F, D) float32, de-normalised. joints: (F, 22, 3) float32 metres, y up (KIT: 21 joints, millimetres).
    captions: the prompt of each frame. boundaries: frames at which the prompt changes. fps: frames per second.
    chains: joints of the skeleton's lines. second: joints (F, 22, 3) of a second person in the same world, if there is
    one. unit: of .bvh, "m" (Blender, Unity) or "cm" (Maya, MotionBuilder, Unreal).
    """

    features: np.ndarray
    joints: np.ndarray
    captions: list[str]
    fps: float
    boundaries: list[int]
    chains: tuple[tuple[int, ...], ...]
    second: np.ndarray | None = field(default=None, kw_only=True)
    unit: str = field(default="m", kw_only=True)

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
        from longtake.motion.cleanup import lock_feet

        self._standard()
        fixed, report = lock_feet(self.joints, self.fps)
        self.joints = fixed.numpy()
        if self.second is not None:
            self.second = lock_feet(self.second, self.fps)[0].numpy()
        return report

    def seams(self) -> SeamReport:
        """Jerk, root step and foot skate at each change of the prompt. Raises UserError without 22 joints."""
        from longtake.motion.seams import seam_report

        self._standard()
        return seam_report(self.joints, self.boundaries, self.fps, captions=self.captions)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one file. Raises UserError.

        .npz: features, joints, captions, boundaries, fps (and second). .amass.npz: see ``export.write_amass``.
        .bvh, .glb: skeleton and body in motion, solved anew (22 joints only). .csv: joints, a row a frame.
        .html: a viewer that works offline. .mp4, .gif: a film of stick figures.
        """
        path = check_output(path, SUFFIXES, overwrite)
        kind = path.suffix.lower()
        if path.name.lower().endswith(AMASS):
            from longtake.motion.export.tables import write_amass

            write_amass(path, self._standard(), self.fps, overwrite=overwrite)
        elif kind == ".npz":
            self._save_arrays(path)
        elif kind == ".bvh":
            from longtake.motion.export.bvh import write_bvh

            write_bvh(path, self._standard(), self.fps, unit=self.unit, overwrite=overwrite)
        elif kind == ".glb":
            from longtake.motion.export.glb import write_glb

            write_glb(path, self._standard(), self.fps, captions=self.captions, overwrite=overwrite)
        elif kind == ".csv":
            from longtake.motion.export.tables import write_csv

            names = self.skeleton().names
            write_csv(path, self._metres(), self.fps, names, captions=self.captions, overwrite=overwrite)
        elif kind == ".html":
            from longtake.motion.export.viewer import write_viewer

            write_viewer(
                path, self._metres(), self.skeleton(), self.fps, captions=self.captions, overwrite=overwrite
            )
        else:
            from longtake.motion.export.film import render_film

            render_film(path, self._metres(), self.skeleton(), self.fps, captions=self.captions, overwrite=overwrite)
        return path

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .png: 16 moments at most, evenly spread, each with its frame number and caption."""
        from longtake.motion.export.film import render_sheet

        path = check_output(path, (".png",), overwrite)
        render_sheet(path, self._metres(), self.skeleton(), captions=self.captions, overwrite=overwrite)
        return path

    def _metres(self) -> list[np.ndarray]:
        scale = 0.001 if self.skeleton() is KIT else 1.0
        return [scale * joints for joints in self.people]

    def _standard(self) -> list[np.ndarray]:
        if self.skeleton() is not HUMANML:
            raise UserError(
                f"bvh, glb and amass files need the {HUMANML.joints} joints of HumanML3D; this motion has "
                f"{self.joints.shape[1]}: write .csv, .npz, .html or a film"
            )
        return self.people

    def _save_arrays(self, path: Path) -> None:
        from longtake.journal import atomic_path

        arrays = {
            "features": self.features,
            "joints": self.joints,
            "captions": np.array(self.captions),
            "boundaries": np.array(self.boundaries, dtype=np.int64),
            "fps": np.float64(self.fps),
        }
        if self.second is not None:
            arrays["second"] = self.second
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
