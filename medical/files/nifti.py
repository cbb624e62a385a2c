"""NIfTI-1 and NIfTI-2: an image with its geometry, and another image written on the same grid.

image = read_nifti("visit1.nii.gz")                     # image.frames (1, D, H, W) float32, image.geometry
write_nifti("pred.nii.gz", array, image.geometry)       # float32, codes, units and spacing as the source has them

The header of the reference travels as it is, so affines come back bit for bit; only what describes the numbers (type,
scale, description, range of display) is set anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError, one_line
from longtake.journal import partial_path
from longtake.medical.series import Geometry

DESCRIPTION = "longtake SADM synthetic"  # 79 bytes at most
SUFFIXES = (".nii", ".nii.gz")
AFFINE_ATOL = 1e-3  # mm; affines that differ by less are one
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


@dataclass
class Image:
    """An image file.

    frames: float32 (T, D, H, W), scaled as the file says. seconds: between frames, None where the file does not say.
    kind: "T1w" or so, where name or header tell. scaled: whether the file holds a scale.
    """

    frames: np.ndarray
    geometry: Geometry
    seconds: float | None = None
    kind: str = ""
    scaled: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def is_nifti(path: Path) -> bool:
    """Whether a file's name says NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path) -> Image:
    """An image of three or four axes. Raises UserError for a file that is missing, damaged, of colours or complex
    numbers, or whose geometry cannot be: a spacing of 0, an affine that cannot be turned round."""
    import nibabel

    if not path.is_file():
        raise UserError(f"the image {path} does not exist")
    try:
        image: Any = nibabel.load(path)
        dtype = np.dtype(image.get_data_dtype())
        with nibabel.openers.ImageOpener(str(path)) as file:  # as it stands there: nibabel makes 1 of a 0
            stored = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
        if dtype.fields is not None or dtype.kind not in "iuf":
            raise UserError(f"{path} holds colours or complex numbers ({dtype}); an image of one grey value is needed")
        data = np.asarray(image.dataobj, dtype=np.float32)
    except UserError:
        raise
    except Exception as error:  # nibabel, zlib and numpy each have their own for a torn file
        raise UserError(f"{path} cannot be read as NIfTI, it is damaged or cut off: {one_line(error)[:120]}") from None
    shape = data.shape
    while data.ndim > 4 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 2:
        data = data[..., None]
    if data.ndim not in (3, 4) or 0 in data.shape:
        raise UserError(f"{path} has shape {shape}; an image of three axes, or four with time, is needed")
    if not np.isfinite(data).all():
        raise UserError(f"{path} holds NaN or infinite values; a scan holds finite numbers only")
    frames = np.ascontiguousarray(data.T if data.ndim == 4 else data.T[None])
    return Image(frames, _geometry(path, image, stored), _step(image), kind_of_name(path), _is_scaled(image))


def _geometry(path: Path, image: Any, stored: np.ndarray) -> Geometry:
    header, affine = image.header, np.asarray(image.affine, np.float64)
    if not np.isfinite(stored).all() or (stored <= 0).any():
        raise UserError(f"{path} says a voxel is {_sizes(stored)} large: each size must be greater than 0")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path} has an affine that cannot be turned round: it puts all voxels in one plane")
    codes = int(header["sform_code"]), int(header["qform_code"])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if codes[0] and not np.allclose(spacing, stored, rtol=0.02, atol=1e-3):
        raise UserError(
            f"{path} contradicts itself: a voxel is {_sizes(stored)} by pixdim and {_sizes(spacing)} by its sform"
        )
    units = header.get_xyzt_units()
    known = any(codes) or units[0] != "unknown" or not np.allclose(stored, 1)
    return Geometry(
        affine, (float(spacing[0]), float(spacing[1]), float(spacing[2])), known, units, codes[0], codes[1],
        source=path, header=header.binaryblock,
    )  # fmt: skip


def _sizes(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _step(image: Any) -> float | None:
    zooms, unit = image.header.get_zooms(), image.header.get_xyzt_units()[1]
    if len(zooms) < 4 or not np.isfinite(zooms[3]) or zooms[3] <= 0 or unit not in _SECONDS:
        return None
    return float(zooms[3]) * _SECONDS[unit]


def _is_scaled(image: Any) -> bool:
    slope = getattr(image.dataobj, "slope", None)
    return slope is not None and (slope, image.dataobj.inter) != (1, 0)


def kind_of_name(path: Path) -> str:
    """What kind of image a name tells of, as BIDS has it: "T1w" of sub-01_ses-02_T1w.nii.gz; "" for none."""
    stem = path.name.split(".")[0]
    last = stem.rpartition("_")[2]
    return last if stem.startswith("sub-") and "-" not in last and last[:1].isalpha() else ""


def write_nifti(path: Path, image: np.ndarray, geometry: Geometry, step: tuple[float, str] | None = None) -> None:
    """Write float32 (D, H, W), or (T, D, H, W) with the time between frames and its unit ("sec" or "unknown").

    path ends with .nii or .nii.gz; an earlier file is replaced at once. Raises UserError.
    """
    import nibabel

    array = np.ascontiguousarray(np.asarray(image, np.float32).T)
    header, kind = _blank_header(geometry)
    made = kind(array, None, header)
    made.header.set_data_dtype(np.float32)
    made.header.set_slope_inter(1, 0)
    made.header["descrip"] = DESCRIPTION.encode()
    made.header["cal_min"] = made.header["cal_max"] = 0
    made.header["intent_code"] = 0
    space = geometry.units[0]
    if array.ndim == 4:
        seconds, unit = step if step is not None else (1.0, "unknown")
        made.header.set_zooms((*made.header.get_zooms()[:3], seconds))
        made.header.set_xyzt_units(space, unit)
    else:
        made.header.set_xyzt_units(*geometry.units)
    partial = partial_path(path)
    named = partial.with_name(partial.name + (".nii.gz" if path.name.lower().endswith(".gz") else ".nii"))
    from longtake.journal import atomic_path

    with atomic_path(path) as aim:
        try:
            nibabel.save(made, named)
            named.replace(aim)
        finally:
            named.unlink(missing_ok=True)


def _blank_header(geometry: Geometry) -> tuple[Any, Any]:
    """The reference's header without its numbers' scale, and the class of its images."""
    import nibabel

    if geometry.header is not None:
        two = len(geometry.header) == nibabel.Nifti2Header.sizeof_hdr
        kinds = (nibabel.Nifti2Header, nibabel.Nifti2Image) if two else (nibabel.Nifti1Header, nibabel.Nifti1Image)
        header = kinds[0](geometry.header, check=False)
        return header, _with_affine(kinds[1])
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_zooms(geometry.spacing)
    if geometry.known:
        header.set_qform(geometry.affine, code=geometry.qform_code or 1)
        header.set_sform(geometry.affine, code=geometry.sform_code or 1)
    return header, _with_affine(nibabel.Nifti1Image)


def _with_affine(kind: Any) -> Any:
    """Images whose header keeps its own sform and qform."""

    def make(array: np.ndarray, _: None, header: Any) -> Any:
        pixdim, rows = header["pixdim"].copy(), {key: header[key].copy() for key in _PLACE}
        image = kind(array, None, header)
        image.header["pixdim"][:4] = pixdim[:4]
        for key, value in rows.items():
            image.header[key] = value
        return image

    return make


_PLACE = (
    "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z",
)  # fmt: skip


def check_nifti(path: Path) -> None:
    """Raise unless the file is whole: all its voxels can be read."""
    import nibabel

    image: Any = nibabel.load(path)
    np.asarray(image.dataobj)
