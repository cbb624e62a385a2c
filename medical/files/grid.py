"""One grid for all visits: those that lie on another are resampled onto that of the first observed visit.

image, valid, changed = onto(reference, moving)
"""

from __future__ import annotations

import numpy as np
from longtake.errors import UserError
from longtake.medical.files.nifti import AFFINE_ATOL, Image
from longtake.medical.series import Geometry


def same_grid(first: Image, other: Image) -> bool:
    """Whether two images lie on one grid, to 1e-3 mm."""
    return first.frames.shape[1:] == other.frames.shape[1:] and np.allclose(
        first.geometry.affine, other.geometry.affine, rtol=0, atol=AFFINE_ATOL
    )


def onto(
    frame: np.ndarray, geometry: Geometry, reference: Geometry, shape: tuple[int, ...], order: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A frame (D, H, W) on the reference's grid of `shape`: (values, where it has data), zeros elsewhere.

    order: 1 is linear, 0 the nearest voxel. Raises UserError when the two do not overlap.
    """
    from scipy.ndimage import affine_transform

    step = np.linalg.inv(geometry.affine) @ reference.affine  # reference voxel (x, y, z) -> voxel of the frame
    flip = np.eye(4)[[2, 1, 0, 3]]
    step = flip @ step @ flip  # both as (slice, row, column)
    values = affine_transform(frame, step[:3, :3], step[:3, 3], shape, order=order, mode="nearest")
    axes = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij", sparse=True)
    valid = np.ones(shape, bool)
    for axis, size in enumerate(frame.shape):
        at = step[axis, 3] + sum(step[axis, one] * axes[one] for one in range(3))
        valid &= (at >= -0.5) & (at <= size - 0.5)
    if not valid.any():
        raise UserError(f"{geometry.source} lies beside {reference.source}: the two have no voxel in common")
    return np.where(valid, values, 0).astype(np.float32), valid
