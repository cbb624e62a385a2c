"""Tables for other programs: AMASS-style npz and csv. BVH is in ``export_bvh``, glTF in ``export_glb``.

    write_amass("take.amass.npz", [joints], fps=20)
    write_csv("take.csv", [joints], fps=20, captions=captions)

Legend: F frames, J = 22 joints.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import Pose, solve
from longtake.motion.kinematics import matrix_to_axis_angle, quat_multiply, quat_to_matrix

NOTE = (
    "Rotations solved from joint positions on a skeleton of this motion's own bone lengths (rest_offsets, T-pose). "
    "No SMPL body was fitted: betas are 0 and the surface of a body model will not match exactly."
)
_Z_UP = (0.5**0.5, 0.5**0.5, 0.0, 0.0)  # a quarter turn about +x: y up becomes z up


def write_amass(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray | torch.Tensor],
    fps: float,
    *,
    overwrite: bool = False,
) -> list[Pose]:
    """Write .npz with AMASS's names; no SMPL body was fitted, which the entry ``note`` says too.

    poses: (F, 66) axis-angle in radians of the 22 joints in SMPL's order, from the export's own inverse kinematics.
    trans: (F, 3) metres, where the pelvis is (a loader of a body model subtracts its pelvis at rest). Z is up, as in
    AMASS. mocap_framerate, betas (10,) zeros, gender "neutral", rest_offsets (22, 3) with y up. A second person's
    arrays end in ``_2``. Raises UserError.
    """
    from longtake.journal import atomic_path
    from longtake.media import check_output

    path = check_output(path, (".npz",), overwrite)
    poses = [solve(joints) for joints in people]
    arrays: dict[str, np.ndarray] = {}
    for number, pose in enumerate(poses, 1):
        end = "" if number == 1 else f"_{number}"
        local = pose.local.clone()
        local[:, 0] = quat_multiply(local.new_tensor(_Z_UP), local[:, 0])
        vectors = matrix_to_axis_angle(quat_to_matrix(local)).flatten(1)
        x, y, z = pose.root.unbind(-1)
        arrays[f"poses{end}"] = vectors.numpy().astype(np.float32)
        arrays[f"trans{end}"] = torch.stack([x, -z, y], -1).numpy().astype(np.float32)
        arrays[f"rest_offsets{end}"] = pose.rig.offsets.numpy().astype(np.float32)
    arrays |= {
        "mocap_framerate": np.array(fps, dtype=np.float64),
        "betas": np.zeros(10, dtype=np.float32),
        "gender": np.array("neutral"),
        "note": np.array(NOTE),
    }
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return poses


def write_csv(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray],
    fps: float,
    names: Sequence[str],
    *,
    captions: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write one row a frame: frame, second, NAME_x, NAME_y, NAME_z of each joint (metres), caption.

    people: (F, J, 3) each, names: (J,). A second person's columns begin with ``person2_``. Raises UserError.
    """
    from longtake.journal import atomic_path
    from longtake.media import check_output

    path = check_output(path, (".csv",), overwrite)
    for joints in people:
        if joints.shape != (len(people[0]), len(names), 3):
            raise UserError(f"csv needs joints ({len(people[0])}, {len(names)}, 3); given {joints.shape}")
    head = ["frame", "second"]
    for number in range(1, len(people) + 1):
        prefix = "" if number == 1 else f"person{number}_"
        head += [f"{prefix}{name}_{axis}" for name in names for axis in "xyz"]
    table = np.concatenate([joints.reshape(len(joints), -1) for joints in people], 1)
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head + (["caption"] if captions is not None else []))
        for frame, row in enumerate(table.tolist()):
            numbers = [str(frame), f"{frame / fps:.4f}", *(f"{value:.6f}" for value in row)]
            writer.writerow(numbers + ([captions[frame]] if captions is not None else []))


def check_csv(path: str | os.PathLike[str]) -> None:
    """Raise UserError when a table is missing, cut off, or has rows of different lengths."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        rows = list(csv.reader(text.splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no readable table: {error}") from error
    if not text.endswith("\n") or len({len(row) for row in rows}) != 1:
        raise UserError(f"{path} is no whole table")
