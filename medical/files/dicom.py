"""DICOM: a series in a folder, its files in any order, and a derived series written from it.

image = read_dicom(folder)                       # slices by position along the normal, values by slope and intercept
write_dicom(folder, volume, image.geometry, note)

What is written is marked: ImageType DERIVED\\SECONDARY, "synthetic" in description and comments, new identifiers, the
same frame of reference. Source: DICOM PS3.3, C.7.6.2 (image plane) and C.7.6.1.1.2 (image type).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError, one_line
from longtake.medical.files.nifti import DESCRIPTION, Image
from longtake.medical.series import Geometry

NEEDS_SCALE = ("CT", "PT")  # kinds whose stored numbers mean nothing without slope and intercept
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point left and back, NIfTI's right and front


def is_dicom_folder(folder: Path) -> bool:
    """Whether a folder holds DICOM files itself."""
    return folder.is_dir() and any(is_dicom(path) for path in folder.iterdir() if path.is_file())


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or its mark at byte 128."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    if path.suffix and not path.suffix[1:].isdecimal():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(folder: Path) -> Image:
    """The one series in a folder. Raises UserError: two series, several images at a position, a missing slice, sizes
    that differ, colours, a missing scale, a damaged file."""
    slices = [_read(path) for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path)]
    if not slices:
        raise UserError(f"{folder} holds no DICOM file")
    series = sorted({str(one.get("SeriesInstanceUID", "")) for one in slices})
    if len(series) > 1:
        named = sorted({str(one.get("SeriesDescription", "") or one.get("SeriesNumber", "?")) for one in slices})
        raise UserError(f"{folder} holds {len(series)} series ({', '.join(named)}): put each into a folder of its own")
    for name in ("Rows", "Columns", "Modality", "RescaleSlope", "RescaleIntercept", "PixelSpacing"):
        found = {str(one.get(name)) for one in slices}
        if len(found) > 1 and (name not in ("RescaleSlope", "RescaleIntercept") or "None" in found):
            raise UserError(f"{folder}: the slices differ in {name}: {', '.join(sorted(found)[:3])}")
    first = slices[0]
    kind = str(first.get("Modality", "") or "unknown")
    scaled = first.get("RescaleSlope") is not None
    if scaled != (first.get("RescaleIntercept") is not None) or (kind in NEEDS_SCALE and not scaled):
        lost = "RescaleIntercept" if scaled else "RescaleSlope"
        raise UserError(f"{folder}: {kind} images need slope and intercept to mean anything; {lost} is missing")
    order, affine, known = _order(slices, folder)
    slices = [slices[index] for index in order]
    frames = np.stack([_values(one, folder) for one in slices])[None]
    if not np.isfinite(frames).all():
        raise UserError(f"{folder} holds NaN or infinite values; a scan holds finite numbers only")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    units = ("mm" if known else "unknown", "unknown")
    geometry = Geometry(
        affine, (float(spacing[0]), float(spacing[1]), float(spacing[2])), known, units,
        int(known), int(known), "dicom", folder, facts={"files": [Path(one.filename) for one in slices]},
    )  # fmt: skip
    facts = {"date": _date(slices[0]), "subject": str(first.get("PatientID", "") or "")}
    return Image(frames, geometry, None, kind, scaled, facts)


def _read(path: Path) -> Any:
    import pydicom

    try:
        found = pydicom.dcmread(path)
        if "PixelData" not in found:
            raise UserError(f"{path} holds no image")
        _ = found.pixel_array
    except UserError:
        raise
    except Exception as error:  # pydicom raises many kinds for a torn file
        raise UserError(f"{path} cannot be read as DICOM, it is damaged or cut off: {one_line(error)[:120]}") from None
    if found.pixel_array.ndim != 2:
        raise UserError(f"{path} holds {found.pixel_array.shape}: one grey slice a file is read")
    return found


def _values(one: Any, folder: Path) -> np.ndarray:
    slope, intercept = float(one.get("RescaleSlope", 1)), float(one.get("RescaleIntercept", 0))
    if slope == 0:
        raise UserError(f"{folder}: RescaleSlope is 0, which makes all voxels one")
    values = one.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if str(one.get("PhotometricInterpretation")) == "MONOCHROME1":
        values = float(values.max()) + float(values.min()) - values
    return values


def _order(slices: list[Any], folder: Path) -> tuple[list[int], np.ndarray, bool]:
    """(order of the slices, affine of voxel (column, row, slice) in RAS, whether the spacing is known)."""
    placed = [one.get("ImagePositionPatient") for one in slices]
    oriented = slices[0].get("ImageOrientationPatient")
    pixel = slices[0].get("PixelSpacing")
    if any(place is None for place in placed) or oriented is None:
        numbers = [one.get("InstanceNumber") for one in slices]
        if len(slices) > 1 and (None in numbers or len(set(numbers)) < len(numbers)):
            raise UserError(f"{folder}: the slices have neither positions nor a number each, so their order is unknown")
        order = np.argsort([int(number or 0) for number in numbers], kind="stable")
        return [int(index) for index in order], np.eye(4), False
    axes = np.asarray(oriented, np.float64).reshape(2, 3)  # along a row, along a column
    normal = np.cross(axes[0], axes[1])
    places = np.asarray(placed, np.float64)
    heights = places @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    if len(gaps) and gaps.min() < 1e-3:
        raise UserError(f"{folder} holds several images of one place: put each visit or phase into its own folder")
    if len(gaps) and gaps.max() - gaps.min() > 0.05 * gaps.mean():
        raise UserError(
            f"{folder}: the slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart: one is missing or of another scan"
        )
    between = float(gaps.mean()) if len(gaps) else float(slices[0].get("SliceThickness", 0) or 1.0)
    known = pixel is not None
    row_mm, column_mm = (float(pixel[0]), float(pixel[1])) if known else (1.0, 1.0)
    if not (row_mm > 0 and column_mm > 0 and between > 0):
        raise UserError(f"{folder}: PixelSpacing is {row_mm:g} x {column_mm:g} mm; each must be greater than 0")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * column_mm, axes[1] * row_mm
    affine[:3, 2] = normal * between
    affine[:3, 3] = places[order[0]]
    return [int(index) for index in order], _FLIP @ affine, known


def _date(one: Any) -> str | None:
    for name in ("AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate"):
        text = str(one.get(name, "") or "")
        if len(text) == 8 and text.isdecimal():
            return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return None


def write_dicom(folder: Path, volume: np.ndarray, geometry: Geometry, note: str, uid: str) -> list[Path]:
    """A derived series of `volume` (D, H, W) in an empty folder, 16 bits with its own slope; the files by slice.

    note: into ImageComments. uid: text from which all identifiers are made, so the same run writes the same files.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    low, high = float(volume.min()), float(volume.max())
    slope = (high - low) / 65535 or 1.0
    written = []
    for index, source in enumerate(geometry.facts["files"]):
        made = pydicom.dcmread(source)
        for name in _NOT_OURS:
            if name in made:
                delattr(made, name)
        made.ImageType = ["DERIVED", "SECONDARY"]
        made.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(index)])
        made.SeriesInstanceUID = generate_uid(entropy_srcs=[uid, "series"])
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SeriesDescription = DESCRIPTION
        made.SeriesNumber = 9000 + int(made.get("SeriesNumber") or 0) % 900
        made.DerivationDescription = DESCRIPTION
        made.ImageComments = note[:10240]
        made.InstanceNumber = index + 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, 0
        made.RescaleSlope, made.RescaleIntercept = f"{slope:.10g}"[:16], f"{low:.10g}"[:16]
        made.RescaleType = "US"
        stored = np.rint((volume[index] - float(made.RescaleIntercept)) / float(made.RescaleSlope))
        made.PixelData = np.clip(stored, 0, 65535).astype("<u2").tobytes()
        made["PixelData"].VR = "OW"
        path = folder / f"IM{index:04d}.dcm"
        made.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


_NOT_OURS = (
    "WindowCenter", "WindowWidth", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue",
    "VOILUTSequence", "ModalityLUTSequence", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "PresentationLUTShape",
)  # fmt: skip
