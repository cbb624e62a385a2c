"""MotionOutput: features, joints and what each frame shows.

    output.save("walk.npz")
    output.preview("walk.png")

Legend: F frames, P people.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from longtake.media import check_output
from longtake.outputs import Output

PREVIEW_POSES = 16


@dataclass
class MotionOutput(Output):
    """A motion.

    features: (F, J) float32, de-normalised. joints: (F, 22, 3) float32 metres, y up. captions: the prompt of each
    frame. boundaries: frames at which the prompt changes. fps: frames per second. chains: joints of the skeleton's
    lines.
    """

    features: np.ndarray
    joints: np.ndarray
    captions: list[str]
    fps: float
    boundaries: list[int]
    chains: tuple[tuple[int, ...], ...]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .npz: features, joints, captions, boundaries, fps. Raises UserError."""
        from longtake.journal import atomic_path

        path = check_output(path, (".npz",), overwrite)
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(
                file,
                features=self.features,
                joints=self.joints,
                captions=np.array(self.captions),
                boundaries=np.array(self.boundaries, dtype=np.int64),
                fps=np.float64(self.fps),
            )
        return path

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .png: 16 poses at most, evenly spread, seen from the front left and above, each with its caption."""
        from longtake.journal import atomic_path
        from matplotlib.figure import Figure

        path = check_output(path, (".png",), overwrite)
        count = min(PREVIEW_POSES, len(self.joints))
        chosen = [round(i * (len(self.joints) - 1) / max(1, count - 1)) for i in range(count)]
        figure = Figure(figsize=(2 * min(count, 8), 2.6 * -(-count // 8)))
        for place, frame in enumerate(chosen):
            axis = figure.add_subplot(-(-count // 8), min(count, 8), place + 1)
            pose = self.joints[frame] - self.joints[frame, 0] * np.array([1.0, 0.0, 1.0])
            flat = np.stack([pose[:, 0] + 0.4 * pose[:, 2], pose[:, 1] - 0.15 * pose[:, 2]], 1)
            for chain in self.chains:
                axis.plot(*flat[list(chain)].T, linewidth=2)
            axis.set_xlim(-1.1, 1.1)
            axis.set_ylim(-0.2, 2.1)
            axis.set_aspect("equal")
            axis.axis("off")
            axis.set_title(f"{frame}: {self.captions[frame][:22]}", fontsize=7)
        figure.tight_layout()
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png", dpi=90)
        return path
