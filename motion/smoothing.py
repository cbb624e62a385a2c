"""No pops: a motion whose jerk stays within that of real people, changed in the few frames that exceed it alone.

    frame_jerk(joints, 20.0).max()                  # m/s3, mean over joints
    joints = limit_jerk(joints, 20.0)               # (N, 22, 3)

A small prior now and then throws a limb by half a metre in one frame, above all in runs and at changes of the prompt.
The limited motion x is the one that minimises |x - joints|^2 + sum_k w_k |third difference of x at k|^2 over all
joints together, with weights w_k that are 0 where the jerk is within the limit and grow until it is everywhere.
(P-spline smoothing, Eilers and Marx 1996, with a weight a frame.) Frames that no weight reaches stay bit for bit, and
the work is linear in the length. Legend: N frames, J joints.
"""

from __future__ import annotations

import numpy as np
import torch

MOST_JERK = 567.0  # m/s3, mean over joints: the largest of real runs (28 held-out clips)
ONE_JOINT = 6.0  # times the mean's limit is the limit of a single joint: 3,400 m/s3, as the fastest real kick has
_BELOW = 0.98  # of the limit is aimed at, so that rounding to float32 does not pass it
_FIRST = 0.02  # the weight that a frame over the limit begins with
_ROUNDS = 400


def frame_jerk(joints: torch.Tensor, fps: float) -> torch.Tensor:
    """(N - 3,) m/s3: the third difference of joint positions (N, J, 3) over time, its length's mean over joints."""
    return _lengths(joints, fps).mean(-1)


def worst(joints: torch.Tensor, fps: float) -> float:
    """The largest ``frame_jerk`` of joints (N, J, 3), or of a single joint over ``ONE_JOINT``; 0 below four frames."""
    return float(_strain(joints, fps).max()) if len(joints) > 3 and joints.shape[1] else 0.0


def limit_jerk(joints: torch.Tensor, fps: float, most: float = MOST_JERK) -> torch.Tensor:
    """Joint positions (N, J, 3), metres, whose ``frame_jerk`` is at most ``most`` everywhere, and no joint's own above
    ``ONE_JOINT`` times that. The dtype stays; a motion within the limits is returned as it is."""
    if len(joints) < 4 or not joints.shape[1]:
        return joints
    given = joints.detach().cpu().double().flatten(1).numpy()
    weights = np.zeros(len(given) - 3)
    x = given
    for _ in range(_ROUNDS):
        over = _strain(torch.from_numpy(x).unflatten(1, (-1, 3)), fps).numpy() / (_BELOW * most)
        wrong = over > 1
        if not wrong.any():
            break
        weights[wrong] = (weights[wrong] + _FIRST) * over[wrong].clip(1.05, 4.0)
        x = _smoothed(given, weights)
    changed = torch.from_numpy((x != given).any(1)).to(joints.device)
    if not bool(changed.any()):
        return joints
    new = torch.from_numpy(x).to(joints).unflatten(1, (-1, 3))
    return torch.where(changed[:, None, None], new, joints)


def _strain(joints: torch.Tensor, fps: float) -> torch.Tensor:
    """(N - 3,) m/s3: what is held below the limit."""
    length = _lengths(joints, fps)
    return torch.maximum(length.mean(-1), length.amax(-1) / ONE_JOINT)


def _lengths(joints: torch.Tensor, fps: float) -> torch.Tensor:
    """(N - 3, J) m/s3."""
    return joints.double().diff(n=3, dim=0).norm(dim=-1) * fps**3


def _smoothed(given: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x (N, C) with (1 + D^T W D) x = given, where D (N - 3, N) takes third differences."""
    from scipy.linalg import solveh_banded

    frames, stencil = len(given), (-1.0, 3.0, -3.0, 1.0)
    band = np.zeros((4, frames))  # band[d, i] is entry (i + d, i)
    band[0] = 1.0
    for i, one in enumerate(stencil):
        for j, other in enumerate(stencil[: i + 1]):
            band[i - j, j : j + len(weights)] += weights * one * other
    # a stretch that no weight touches stands alone, so only the others are solved
    touched = np.zeros(frames, bool)
    for i in range(4):
        touched[i : i + len(weights)] |= weights > 0
    result = given.copy()
    if touched.any():
        place = np.flatnonzero(touched)
        first, last = int(place[0]), int(place[-1]) + 1
        solved = solveh_banded(band[:, first:last], given[first:last], lower=True)
        inside = touched[first:last]
        result[first:last][inside] = solved[inside]
    return result
