"""Finished motions of any net, read as a result of ours: joints, SMPL parameters, HumanML3D's features.

    output = read_take("take.npz", fps=30)          # a MotionOutput; fps only where the file does not say
    output.lock_feet(); output.rig = "ue5"; output.save("take.glb")

| the file holds | as |
|---|---|
| joints, positions or motion (F, J, 3), J = 22, 24, 52 or 55 of SMPL's family | joints; of a batch the first |
| features (F, 263) | HumanML3D's features, not normalised, 20 frames a second |
| poses (F, 66 or more) and trans (F, 3), or global_orient, body_pose and transl | axis-angle of SMPL's joints |
| features, joints, captions, boundaries, fps | a result of longtake, with what each frame shows |

Metres or millimetres or centimetres, and y or z up, are found from the body: a shin is 0.3 to 0.6 m, a head is above
its pelvis. Lowest feet are put on the floor. What was found and done is told. SMPL parameters stand on the file's
``rest_offsets`` or on the lengths of SMPL's neutral template; no body model is needed. Legend: F frames, J joints.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.motion.export.rig import Pose, Rig, continuous
from longtake.motion.kinematics import HUMANML, axis_angle_to_matrix, forward_tree, matrix_to_quat, quat_multiply
from longtake.motion.outputs import MotionOutput
from longtake.motion.representation import HUMANML3D
from longtake.timeline import Timeline

JOINT_COUNTS = (22, 24, 52, 55)  # HumanML3D's and SMPL's, SMPL-H's, SMPL-X's; all begin with the same 22
_JOINT_KEYS = ("joints", "positions", "joint_positions", "motion", "posed_joints")
_RATE_KEYS = ("fps", "mocap_framerate", "mocap_frame_rate", "framerate", "frame_rate")
_SHIN = (0.25, 0.65)  # metres
_UNITS = (("metres", 1.0), ("centimetres", 0.01), ("millimetres", 0.001))
_TO_Y_UP = (0.5**0.5, -(0.5**0.5), 0.0, 0.0)
_ON_FLOOR = 0.02  # share of the frames whose lowest foot may be below the floor
_TOLD = 0.005  # metres; a smaller shift is not worth a line
FEWEST = 4  # frames; a seam report needs as many
MOST_FRAMES = 1_000_000

# joint minus parent in SMPL's neutral template, metres, in the order of HumanML3D's joints
_SMPL_OFFSETS = (
    (0, 0, 0), (0.0695, -0.0914, -0.0068), (-0.0677, -0.0905, -0.0043), (-0.0025, 0.1090, -0.0267),
    (0.0343, -0.3752, -0.0045), (-0.0383, -0.3826, -0.0089), (0.0055, 0.1352, 0.0011), (-0.0136, -0.3980, -0.0437),
    (0.0158, -0.3984, -0.0423), (0.0015, 0.0529, 0.0254), (0.0264, -0.0558, 0.1193), (-0.0254, -0.0481, 0.1233),
    (-0.0028, 0.2139, -0.0429), (0.0788, 0.1217, -0.0341), (-0.0818, 0.1188, -0.0386), (0.0052, 0.0650, 0.0514),
    (0.0910, 0.0305, -0.0089), (-0.0960, 0.0326, -0.0091), (0.2596, -0.0128, -0.0275), (-0.2537, -0.0133, -0.0214),
    (0.2492, 0.0090, -0.0012), (-0.2553, 0.0078, -0.0056),
)  # fmt: skip


@dataclass
class _Found:
    joints: np.ndarray  # (F, 22, 3), as the file has them
    fps: float | None
    what: str
    features: np.ndarray | None = None
    second: np.ndarray | None = None
    turns: torch.Tensor | None = None  # (F, 22, 4) relative to the parent, on ``offsets`` (22, 3)
    offsets: torch.Tensor | None = None
    captions: list[str] = field(default_factory=list)
    boundaries: list[int] = field(default_factory=list)


def read_take(path: str | os.PathLike[str], *, fps: float | None = None, prompt: str | None = None) -> MotionOutput:
    """The motion of an .npz or .npy file. fps: frames a second, for a file that does not say. prompt: a Timeline of
    what happens when, in place of the file's own captions.

    Raises UserError for what is not one of the kinds above, for NaN, and where the rate is told twice or never.
    """
    path = Path(path)
    found = _recognise(path, _arrays(path))
    if fps is not None and found.fps is not None and abs(fps - found.fps) > 1e-6:
        raise UserError(f"{path.name} says {found.fps:g} frames a second; given {fps:g}")
    rate = found.fps if found.fps is not None else fps
    if rate is None:
        raise UserError(f"{path.name} does not say its frames a second: give --source-fps")
    if not 1 <= rate <= 1000:
        raise UserError(f"{path.name} has {rate:g} frames a second; a motion has 1 to 1000")
    people = [np.asarray(joints, dtype=np.float64) for joints in (found.joints, found.second) if joints is not None]
    for joints in people:
        if len(joints) < FEWEST or len(joints) > MOST_FRAMES:
            raise UserError(f"{path.name} has {len(joints)} frames; a take has {FEWEST} to {MOST_FRAMES}")
        if not np.isfinite(joints).all():
            raise UserError(f"{path.name} holds NaN or infinity")
    people, notes, factor, z_up = _placed(people, path.name)
    pose = None
    if found.turns is not None and found.offsets is not None:
        local = found.turns.clone()
        if z_up:
            local[:, 0] = quat_multiply(local.new_tensor(_TO_Y_UP).expand_as(local[:, 0]), local[:, 0])
        rig = Rig(HUMANML.names, HUMANML.parents, factor * found.offsets)
        pose = Pose(rig, continuous(local), torch.from_numpy(people[0][:, 0].copy()))
    frames = len(people[0])
    captions, boundaries = found.captions or [""] * frames, found.boundaries
    if prompt is not None:
        captions, boundaries = _said(prompt, frames, rate)
    told = [f"{path.name}: {frames} frames at {rate:g} fps, {found.what}", *notes]
    return MotionOutput(
        features=found.features if found.features is not None else np.zeros((frames, 0), np.float32),
        joints=people[0].astype(np.float32),
        second=people[1].astype(np.float32) if len(people) > 1 else None,
        captions=captions,
        fps=rate,
        boundaries=boundaries,
        chains=HUMANML.chains,
        pose=pose,
        info={"frames": frames, "completed": True, "steps": 1, "source": path.name, "told": told},
    )


def _said(prompt: str, frames: int, fps: float) -> tuple[list[str], list[int]]:
    """The prompt of each frame, and the frames at which it changes."""
    times = Timeline.parse(prompt, fps=fps)
    times.validate(frames)
    starts = [start for start, _ in times.starts]
    captions: list[str] = []
    for (_, text), start, stop in zip(times.starts, starts, [*starts[1:], frames], strict=True):
        captions += [text] * (stop - start)
    return captions, starts[1:]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.load(path, allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            found = {}
            for name in archive.files:
                try:
                    found[name] = archive[name]
                except ValueError:  # an entry of Python objects, which would have to be unpickled
                    continue
            return found
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no whole npz or npy file of numbers: {error}") from error


def _recognise(path: Path, arrays: Mapping[str, np.ndarray]) -> _Found:
    rate = next((float(arrays[key]) for key in _RATE_KEYS if key in arrays and arrays[key].size == 1), None)
    for key in _JOINT_KEYS:
        if key in arrays and arrays[key].dtype.kind == "f":
            joints = _as_joints(arrays[key])
            if joints is not None:
                return _joints_found(arrays, joints, rate)
    if "poses" in arrays or "body_pose" in arrays:
        return _of_smpl(path, arrays, rate)
    for key in ("features", "motion", ""):
        if key in arrays and arrays[key].dtype.kind == "f":
            table = np.squeeze(arrays[key])
            if table.ndim == 2 and table.shape[1] == HUMANML3D.width:
                joints = HUMANML3D.recover(torch.from_numpy(table.astype(np.float64))).numpy()
                return _Found(joints, rate or HUMANML3D.fps, "HumanML3D's features", table.astype(np.float32))
    numbers = [array for array in arrays.values() if array.dtype.kind == "f" and array.ndim >= 2]
    if len(numbers) == 1:
        joints = _as_joints(numbers[0])
        if joints is not None:
            return _Found(joints, rate, f"joints {numbers[0].shape}")
    held = ", ".join(f"{name or 'an array'} {array.shape}" for name, array in list(arrays.items())[:8])
    raise UserError(
        f"{path.name} is no motion that can be read: it needs joints (F, 22 or 24, 3), features (F, 263), or poses "
        f"and trans of SMPL; it holds {held or 'nothing'}"
    )


def _as_joints(array: np.ndarray) -> np.ndarray | None:
    """Joints (F, 22, 3), or None where it is something else. Of a batch the first."""
    if array.ndim == 4:
        array = array[0]
    if array.ndim == 3 and array.shape[1] == 3 and array.shape[0] in JOINT_COUNTS:
        array = array.transpose(2, 0, 1)  # MDM's results.npy: (J, 3, F)
    if array.ndim == 2 and array.shape[1] in [3 * count for count in JOINT_COUNTS]:
        array = array.reshape(len(array), -1, 3)
    if array.ndim != 3 or array.shape[2] != 3 or array.shape[1] not in JOINT_COUNTS:
        return None
    return array[:, :22]


def _joints_found(arrays: Mapping[str, np.ndarray], joints: np.ndarray, rate: float | None) -> _Found:
    found = _Found(joints, rate, f"joints of {joints.shape[1]} names")
    if "second" in arrays:
        found.second = _as_joints(arrays["second"])
        if found.second is None or len(found.second) != len(joints):
            raise UserError(f"second is joints of the same {len(joints)} frames; given {arrays['second'].shape}")
    if "features" in arrays and arrays["features"].ndim == 2 and len(arrays["features"]) == len(joints):
        found.features = arrays["features"]
    if "captions" in arrays and arrays["captions"].shape == (len(joints),):
        found.captions = [str(text) for text in arrays["captions"].tolist()]
    if "boundaries" in arrays and arrays["boundaries"].dtype.kind in "iu":
        found.boundaries = [int(frame) for frame in arrays["boundaries"].reshape(-1) if 0 < frame < len(joints)]
    return found


def _of_smpl(path: Path, arrays: Mapping[str, np.ndarray], rate: float | None) -> _Found:
    if "poses" in arrays:
        vectors = arrays["poses"].reshape(len(arrays["poses"]), -1)
        where = arrays.get("trans", arrays.get("transl"))
    else:
        if "global_orient" not in arrays:
            raise UserError(f"{path.name} has body_pose without global_orient")
        root = arrays["global_orient"].reshape(-1, 3)
        vectors = np.concatenate([root, arrays["body_pose"].reshape(len(root), -1)], 1)
        where = arrays.get("transl", arrays.get("trans"))
    if vectors.shape[1] < 66 or vectors.shape[1] % 3:
        raise UserError(f"{path.name}: poses are 66 or more axis-angle numbers a frame; given {vectors.shape}")
    if where is None or where.shape != (len(vectors), 3):
        given = None if where is None else where.shape
        raise UserError(f"{path.name}: trans is ({len(vectors)}, 3); given {given}")
    own = arrays.get("rest_offsets")
    offsets = torch.tensor(_SMPL_OFFSETS, dtype=torch.float64)
    if own is not None:
        if own.shape != (22, 3):
            raise UserError(f"{path.name}: rest_offsets are (22, 3); given {own.shape}")
        offsets = torch.from_numpy(own.astype(np.float64))
    turns = axis_angle_to_matrix(torch.from_numpy(vectors[:, :66].astype(np.float64)).unflatten(1, (22, 3)))
    joints = forward_tree(HUMANML.parents, turns, torch.from_numpy(where.astype(np.float64)), offsets).numpy()
    whose = "the file's own skeleton" if own is not None else "SMPL's neutral skeleton"
    return _Found(joints, rate, f"SMPL parameters on {whose}", turns=matrix_to_quat(turns), offsets=offsets)


def _placed(people: list[np.ndarray], name: str) -> tuple[list[np.ndarray], list[str], float, bool]:
    """Metres, y up, lowest feet on the floor; what was done, in words; metres of a unit; whether z was up."""
    notes = []
    lengths = HUMANML.bones(torch.from_numpy(people[0])).norm(dim=-1)
    shin = float(lengths[:, [7, 8]].median())
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if _SHIN[0] <= shin * factor <= _SHIN[1]), ("", 0.0))
    if not factor:
        raise UserError(
            f"{name}: the shins are {shin:.4g} long, which is {_SHIN[0]} to {_SHIN[1]} m neither in metres, nor "
            "centimetres, nor millimetres: these are not SMPL's first 22 joints"
        )
    if factor != 1.0:
        people = [factor * joints for joints in people]
        notes.append(f"  {unit} became metres")
    head, ankles = HUMANML.names.index("head"), [HUMANML.names.index(f"{side}_ankle") for side in ("left", "right")]
    body = np.median(people[0][:, head] - people[0][:, ankles].mean(1), axis=0)
    up = int(np.abs(body).argmax())
    if up == 0 or body[up] < 0:
        raise UserError(f"{name}: heads are above ankles along +y or +z; here the body lies along {body.round(2)}")
    if up == 2:
        people = [np.stack([joints[..., 0], joints[..., 2], -joints[..., 1]], -1) for joints in people]
        notes.append("  z up became y up")
    feet = [7, 8, 10, 11]
    floor = min(float(np.quantile(joints[:, feet, 1].min(1), _ON_FLOOR)) for joints in people)
    people = [joints - np.array([0.0, floor, 0.0]) for joints in people]
    if abs(floor) > _TOLD:
        notes.append(f"  the floor moved by {-100 * floor:+.1f} cm, so that the lowest feet stand on it")
    return people, notes, factor, up == 2
