"""Small generated trees of scans: BIDS, ACDC, DICOM, NIfTI with every trap that readers must know."""

from pathlib import Path

import nibabel
import numpy as np

OBLIQUE = np.array([[-2.1, 0.3, 0.1, 40.0], [0.25, 2.0, -0.9, -30.0], [0.2, 0.5, 6.1, -20.0], [0, 0, 0, 1]])


def volume(seed=0, shape=(9, 8, 5), low=0.0, high=200.0):
    """(X, Y, Z) float32 as NIfTI has it: a bright ball that the seed moves and widens, on texture."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = np.exp(-sum((a - 0.05 * seed) ** 2 for a in axes) * 3)
    values = 0.7 * ball + 0.3 * rng.random(shape)
    return (low + (high - low) * values).astype(np.float32)


def save(path: Path, array, affine=None, *, dtype=np.float32, sform=1, qform=1, units=("mm", "sec"), scale=None):
    """Write NIfTI with codes as told; `scale` (slope, inter) stores int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0, 2.0, 5.0, 1.0]) if affine is None else affine
    if scale is not None:
        array, dtype = np.rint((array - scale[1]) / scale[0]), np.int16
    image = nibabel.Nifti1Image(array.astype(dtype), affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units(*units)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nibabel.save(image, path)
    return path


def table(path: Path, *rows):
    """A tsv of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n")


def bids(root: Path, subject="01", sessions=None, *, extra=("",), kind="T1w", shape=(9, 8, 5), **changes):
    """One subject: sessions label -> row of sessions.tsv (None writes no table)."""
    sessions = {"B": ("1900-01-01", 0), "A": ("1900-03-17", 75)} if sessions is None else sessions
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    name = f"sub-{subject}"
    for number, label in enumerate(sessions):
        for one in extra:
            stem = f"{name}_ses-{label}{one}_{kind}"
            save(root / name / f"ses-{label}" / "anat" / f"{stem}.nii.gz", volume(number, shape), **changes)
    if any(sessions.values()):
        rows = [(f"ses-{label}", *row) for label, row in sessions.items() if row]
        table(root / name / f"{name}_sessions.tsv", ("session_id", "acq_time", "days"), *rows)
    return root


def acdc(root: Path, name="patient001", *, ed=1, es=8, frames=12, said=None, four=True, order=("ED", "ES", "NbFrame")):
    """One patient; frame f of the 4-D file holds the value f everywhere but in a corner."""
    folder = root / name
    folder.mkdir(parents=True)
    values = {"ED": ed, "ES": es, "NbFrame": frames if said is None else said, "Group": "NOR", "Height": "n/a"}
    keys = [*order, *(key for key in ("Group", "Height"))]
    (folder / "Info.cfg").write_text("".join(f"{key}: {values[key]}\n" for key in keys if values[key] is not None))
    whole = np.stack([np.full((8, 8, 3), f, np.float32) for f in range(1, frames + 1)], -1)
    whole[0, 0] = 0
    blank = {"affine": np.eye(4), "sform": 0, "qform": 0, "units": ("unknown", "unknown")}
    if four:
        save(folder / f"{name}_4d.nii.gz", whole, **blank)
    for frame in (ed, es):
        if frame is not None:
            save(folder / f"{name}_frame{frame:02d}.nii.gz", whole[..., frame - 1], **blank)
            marks = np.zeros((8, 8, 3))
            marks[2:5, 2:5], marks[5, 5] = 3, 1
            save(folder / f"{name}_frame{frame:02d}_gt.nii.gz", marks, dtype=np.uint8, **blank)
    return folder


def dicom(folder: Path, array, *, date="20190304", series="1", slope=(2, -10), spacing=(2.2, 2.2), order=None, **more):
    """A series of array (D, H, W), shuffled file names."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(3).permutation(len(array)) if order is None else order
    for index, plane in enumerate(array):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        one.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), series, str(index)])
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.SeriesInstanceUID = generate_uid(entropy_srcs=[str(folder), series])
        one.StudyInstanceUID = generate_uid(entropy_srcs=[str(folder)])
        one.PatientID, one.PatientName, one.Modality, one.StudyDate = "P7", "P7", "MR", date
        one.SeriesNumber, one.InstanceNumber, one.SeriesDescription = series, index + 1, f"series {series}"
        one.Rows, one.Columns, one.SamplesPerPixel = *plane.shape, 1
        one.PhotometricInterpretation = "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.ImagePositionPatient = [-20.0, -30.0, 4.0 + 6.5 * index]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        if spacing is not None:
            one.PixelSpacing = list(spacing)
        stored = plane
        if slope is not None:
            one.RescaleSlope, one.RescaleIntercept = slope
            stored = (plane - slope[1]) / slope[0]
        for name, value in more.items():
            setattr(one, name, value)
        one.PixelData = np.rint(stored).astype("<u2").tobytes()
        one["PixelData"].VR = "OW"
        one.save_as(folder / f"IM{series}{names[index]:04d}.dcm", enforce_file_format=True)
    return folder
