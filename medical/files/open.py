"""Whatever holds a patient's scans, as a `Series`: BIDS, ACDC, DICOM, a folder of files, a table, a 4-D file, an npz.

series = read_series(Path("scans/"))                      # of one subject
series = read_series(Path("study/"), subject="sub-03", time_column="scan_age", unit="years")
every = read_subjects(Path("study/"))

Readers make visits (`table.Visit`); `gather` reads their images, brings them onto the grid of the first observed one,
and refuses what does not belong together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError, one_line
from longtake.medical.files import acdc, bids, sets
from longtake.medical.files.dicom import is_dicom_folder, read_dicom
from longtake.medical.files.grid import onto, same_grid
from longtake.medical.files.nifti import Image, is_nifti, kind_of_name, read_nifti
from longtake.medical.files.table import NAME, Visit, from_first, read_table
from longtake.medical.series import Geometry, Series

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MOST_VOXELS = 512 * 2**20  # of one series: 2 GB
_FULL_DATE = re.compile(r"(?:^|[^0-9])((?:19|20)\d\d)-?([01]\d)-?([0-3]\d)(?:[^0-9]|$)")
_COUNTS = (
    (re.compile(r"(?:^|[-_])d(?:ay)?[-_]?(\d+(?:\.\d+)?)(?=$|[-_])", re.I), "days"),
    (re.compile(r"(?:^|[-_])w(?:eek)?[-_]?(\d+(?:\.\d+)?)(?=$|[-_])", re.I), "weeks"),
    (re.compile(r"(?:^|[-_])m(?:onth)?[-_]?(\d+(?:\.\d+)?)(?=$|[-_])", re.I), "months"),
    (re.compile(r"(?:^|[-_])y(?:ear)?[-_]?(\d+(?:\.\d+)?)(?=$|[-_])", re.I), "years"),
)


@dataclass(frozen=True)
class Choice:
    """What the user says about scans. subject: of several. time_column, unit: when a visit was, where a table does not
    tell as usual. run: of several in a session. modality: kind of image. spacing: "any", or "known" to refuse scans
    that do not say how large a voxel is."""

    subject: str | None = None
    time_column: str | None = None
    unit: str | None = None
    run: int | None = None
    modality: str | None = None
    spacing: str = "any"


def read_series(path: str | Path, choice: Choice | None = None) -> Series:
    """One subject's scans. Raises UserError when there are several and none is chosen, and for what does not fit."""
    choice, path = choice or Choice(), Path(path)
    found = subjects_of(path, choice)
    return found[_chosen(list(found), choice.subject, path)]()


def read_subjects(path: str | Path, choice: Choice | None = None) -> list[Series]:
    """Every subject's scans. Raises UserError."""
    return [read() for read in subjects_of(Path(path), choice or Choice()).values()]


def subjects_of(path: Path, choice: Choice) -> dict[str, Callable[[], Series]]:
    """Subject -> what reads its scans. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return _of_file(path, choice)
    if (path / NAME).is_file():
        return _of_table(path / NAME, choice)
    if acdc.is_acdc(path):
        return {one.name: _later(choice, partial(acdc.read_patient, one)) for one in acdc.patients_of(path)}
    if bids.is_bids(path):
        return {one.name: _later(choice, partial(_of_bids, one, choice)) for one in bids.subjects_of(path)}
    if any(is_dicom_folder(one) for one in (path, *_folders(path))):
        return _grouped(_of_dicom(path), choice)
    tables = sorted(one for one in path.iterdir() if one.suffix.lower() in (".csv", ".tsv") and one.is_file())
    if len(tables) == 1:
        return _of_table(tables[0], choice)
    archives = sorted(path.glob("*.npz"))
    files = [one for one in sorted(path.rglob("*")) if is_nifti(one) or one.suffix.lower() in PICTURES]
    if archives and not files:
        return {name: read for one in archives for name, read in _of_set(one, choice).items()}
    return {path.name: _later(choice, lambda: _of_names(path, files, choice))}


def _later(choice: Choice, visits: Callable[[], tuple[list[Visit], list[str]]]) -> Callable[[], Series]:
    def read() -> Series:
        found, notes = visits()
        return gather(found, notes, choice)

    return read


def _of_file(path: Path, choice: Choice) -> dict[str, Callable[[], Series]]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _of_table(path, choice)
    if suffix == ".npz":
        return _of_set(path, choice)
    if is_nifti(path):
        return {path.name.split(".")[0]: _later(choice, lambda: _of_four_axes(path))}
    raise UserError(f"{path} holds no series: a folder of scans, a table ({NAME}), a 4-D NIfTI or an npz is needed")


def _of_table(path: Path, choice: Choice) -> dict[str, Callable[[], Series]]:
    return _grouped(read_table(path, time_column=choice.time_column, unit=choice.unit), choice)


def _of_set(path: Path, choice: Choice) -> dict[str, Callable[[], Series]]:
    return {one.subject: partial(_checked, one, choice) for one in sets.read_set(path)}


def _grouped(visits: list[Visit], choice: Choice) -> dict[str, Callable[[], Series]]:
    found: dict[str, list[Visit]] = {}
    for visit in visits:
        found.setdefault(visit.subject, []).append(visit)
    return {name: _later(choice, partial(_of_rows, rows)) for name, rows in found.items()}


def _of_rows(rows: list[Visit]) -> tuple[list[Visit], list[str]]:
    return _one_unit(rows), []


def _chosen(names: Sequence[str], wanted: str | None, path: Path) -> str:
    if wanted is not None:
        for name in (wanted, f"sub-{wanted}"):
            if name in names:
                return name
        raise UserError(f"{path} has no subject {wanted}; it has {', '.join(names[:12])}")
    if len(names) > 1:
        raise UserError(f"{path} holds {len(names)} subjects: choose one with --subject, of {', '.join(names[:12])}")
    return names[0]


# ---------------------------------------------------------------------------------------------------- kinds of places


def _one_unit(visits: list[Visit]) -> list[Visit]:
    units = {visit.unit for visit in visits}
    if len(units) > 1:
        raise UserError(f"{visits[0].subject} has times in {' and '.join(sorted(units))}: one unit is needed")
    return visits if units == {"cycle"} else from_first(visits)


def _of_bids(folder: Path, choice: Choice) -> tuple[list[Visit], list[str]]:
    visits = bids.read_subject(
        folder, time_column=choice.time_column, unit=choice.unit, run=choice.run, modality=choice.modality
    )
    return visits, []


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_dir())


def _of_dicom(path: Path) -> list[Visit]:
    """Each folder with DICOM files is a visit; its date or its name tells when."""
    folders = [one for one in (path, *_folders(path)) if is_dicom_folder(one)]
    visits = []
    for folder in folders:
        image = read_dicom(folder)
        time, unit = _named(folder.name)
        if time is None and image.facts["date"] is not None:
            time, unit = float(date.fromisoformat(image.facts["date"]).toordinal()), "days"
        if time is None:
            raise UserError(f"{folder} has no date, nor a name such as day12: list folders and times in {NAME}")
        subject = image.facts["subject"] or path.name
        visits.append(Visit(subject, folder.name, folder, time, unit, True, None, image.kind))
    return visits


def _named(stem: str) -> tuple[float | None, str]:
    """(time, unit) that a name tells: visit_m06, d0129, 2019-03-04, bl."""
    for pattern, unit in _COUNTS:
        if (found := pattern.search(stem)) is not None:
            return float(found[1]), unit
    if (found := _FULL_DATE.search(stem)) is not None:
        try:
            return float(date(int(found[1]), int(found[2]), int(found[3])).toordinal()), "days"
        except ValueError:
            return None, ""
    return (0.0, "") if re.search(r"(?:^|[-_])(bl|baseline)(?=$|[-_])", stem, re.I) else (None, "")


def _of_names(path: Path, files: list[Path], choice: Choice) -> tuple[list[Visit], list[str]]:
    """A folder of one subject's files, whose names say when they were made."""
    if choice.modality is not None:
        files = [one for one in files if kind_of_name(one).lower() == choice.modality.lower()]
    if not files:
        raise UserError(f"{path} holds no scans: NIfTI, DICOM, pictures, an npz, or a table {NAME} is looked for")
    if len(files) == 1 and is_nifti(files[0]):
        return _of_four_axes(files[0])
    told = [_named(one.name.split(".")[0]) for one in files]
    units = {unit for _, unit in told if unit}
    lost = [one.name for one, (time, _) in zip(files, told, strict=True) if time is None]
    if lost or len(units) != 1:
        raise UserError(
            f"{path}: it is not known when {lost[0] if lost else files[0].name} was made: write {NAME} with columns "
            "session, path, time, unit, or name the files like visit_m06.nii.gz"
        )
    (unit,) = units
    visits = [
        Visit(path.name, one.name.split(".")[0], one, time, unit, True, None, kind_of_name(one))
        for one, (time, _) in zip(files, told, strict=True)
    ]
    return _one_unit(visits), []


def _of_four_axes(path: Path) -> tuple[list[Visit], list[str]]:
    """Frames of one file with a time axis, by its header's step; in parts of a beat where that says nothing."""
    image = read_nifti(path)
    count = len(image.frames)
    name = path.name.split(".")[0]
    if count == 1:
        return [Visit(name, "01", path, 0.0, "days", True, 0, image.kind)], []
    step, unit, notes = image.seconds, "hours", []
    if step is None or step * count < 5:
        step, unit = 1 / count, "cycle"
        notes = [f"{path.name} does not say when its {count} frames were made, or spans a beat: they share one cycle"]
    else:
        step /= 3600
    visits = [
        Visit(name, f"frame{index + 1:02d}", path, index * step, unit, True, index, image.kind)
        for index in range(count)
    ]
    return visits, notes


# -------------------------------------------------------------------------------------------------------- the images


def read_image(path: Path) -> Image:
    """A NIfTI file, a folder of one DICOM series, or a grey picture. Raises UserError."""
    if path.is_dir():
        return read_dicom(path)
    if is_nifti(path):
        return read_nifti(path)
    if path.suffix.lower() in PICTURES:
        return _picture(path)
    raise UserError(f"{path} is no image that is read here: .nii, .nii.gz, a DICOM folder, {', '.join(PICTURES)}")


def _picture(path: Path) -> Image:
    from PIL import Image as Pictures

    try:
        with Pictures.open(path) as picture:
            picture.load()
            shown: Any = picture
            if picture.mode not in ("L", "I", "F", "I;16", "1"):
                channels = np.asarray(picture.convert("RGB"))
                if (channels != channels[..., :1]).any():
                    raise UserError(f"{path} is a picture of colours; a scan has one grey value")
                shown = picture.convert("L")
            values = np.asarray(shown, np.float32)
    except UserError:
        raise
    except Exception as error:  # Pillow has many kinds for a torn file
        raise UserError(f"{path} cannot be read as a picture, it is damaged: {one_line(error)[:100]}") from None
    geometry = Geometry(np.eye(4), (1.0, 1.0, 1.0), False, ("unknown", "unknown"), kind="picture", source=path)
    return Image(values[None, None], geometry)


def gather(visits: Sequence[Visit], notes: Sequence[str], choice: Choice) -> Series:
    """The series of one subject's visits. Raises UserError for what does not belong together."""
    name = visits[0].subject if visits else "the subject"
    if choice.modality is not None and any(visit.modality for visit in visits):
        chosen = [visit for visit in visits if visit.modality.lower() == choice.modality.lower()]
        if not chosen:
            kinds = sorted({visit.modality for visit in visits if visit.modality})
            raise UserError(f"{name} has no images of the kind {choice.modality}; it has {', '.join(kinds)}")
        visits = chosen
    kinds = sorted({visit.modality for visit in visits if visit.observed and visit.modality})
    if len(kinds) > 1:
        raise UserError(f"{name} mixes kinds of images, {', '.join(kinds)}: choose one with --modality {kinds[-1]}")
    opened: dict[Path, Image] = {}
    seen = [visit for visit in visits if visit.observed and visit.path is not None]
    if not seen:
        raise UserError(f"{name} has no image at all: one visit at least must have been observed")
    for visit in seen:
        assert visit.path is not None
        if visit.path not in opened:
            opened[visit.path] = read_image(visit.path)
    return _checked(_build(name, visits, seen, opened, list(notes), kinds), choice)


def _build(
    name: str, visits: Sequence[Visit], seen: list[Visit], opened: dict[Path, Image], notes: list[str], kinds: list[str]
) -> Series:
    assert seen[0].path is not None
    first = opened[seen[0].path]
    shape = first.frames.shape[1:]
    if len(visits) * int(np.prod(shape)) > MOST_VOXELS:
        raise UserError(f"{name}: {len(visits)} visits of {_size(shape)} voxels are more than {MOST_VOXELS}")
    images = np.zeros((len(visits), *shape), np.float32)
    valid, labels = np.ones_like(images, bool), np.zeros_like(images, bool)
    has_labels = False
    for index, visit in enumerate(visits):
        if not visit.observed or visit.path is None:
            valid[index] = False
            continue
        image = opened[visit.path]
        images[index], valid[index] = _fitted(image, visit, first, seen[0], notes)
        if visit.label is not None:
            marks = read_image(visit.label)
            if same_grid(image, marks):
                wanted = (marks.frames[0] == acdc.LEFT_VENTRICLE) if visit.modality == "cine" else marks.frames[0] > 0
                moved = wanted.astype(np.float32)
                if not same_grid(first, marks):
                    moved = onto(moved, marks.geometry, first.geometry, shape, order=0)[0]
                labels[index], has_labels = moved > 0.5, True
    if not first.geometry.known:
        notes.append("the spacing of the voxels is unknown: sizes are in voxels, and in what is written too")
    kind = first.geometry.kind
    if kind == "nifti" and name.startswith("sub-") and seen[0].session.startswith("ses-"):
        kind = "bids"
    geometry = replace(first.geometry, kind=kind, facts={**first.geometry.facts, "session": seen[0].session})
    return Series(
        name, images, [visit.time for visit in visits], visits[0].unit, [visit.observed for visit in visits],
        None if valid[[visit.observed for visit in visits]].all() else valid, geometry,
        "cardiac" if kinds == ["cine"] else kinds[0] if kinds else "unknown", labels if has_labels else None,
        [visit.session for visit in visits], notes,
    )  # fmt: skip


def _fitted(image: Image, visit: Visit, first: Image, base: Visit, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(frame, where it has data) on the grid of the first observed visit."""
    count = len(image.frames)
    if visit.frame is None and count > 1:
        raise UserError(f"{visit.path} has {count} frames, {visit.session} does not say which: give the column frame")
    if visit.frame is not None and visit.frame >= count:
        raise UserError(f"{visit.path} has {count} frames; frame {visit.frame} is asked for, they count from 0")
    frame = image.frames[visit.frame or 0]
    shape = first.frames.shape[1:]
    if image.scaled != first.scaled:
        with_scale, without = (visit, base) if image.scaled else (base, visit)
        raise UserError(
            f"{without.path} has no slope for its values, {with_scale.path} has one: they cannot be compared"
        )
    if same_grid(image, first):
        return frame, np.ones(shape, bool)
    if (frame.shape[0] == 1) != (shape[0] == 1):
        flat = visit if frame.shape[0] == 1 else base
        raise UserError(f"{flat.path} is a single slice among volumes: visits must be all slices, or all volumes")
    if not (image.geometry.known and first.geometry.known):
        if frame.shape != shape:
            raise UserError(
                f"{visit.path} has {_size(frame.shape)} voxels, {base.path} {_size(shape)}, and without a known "
                "spacing they cannot be brought onto one grid"
            )
        return frame, np.ones(shape, bool)
    moved, valid = onto(frame, image.geometry, first.geometry, shape)
    notes.append(f"{visit.session} lies on another grid: resampled (linear) onto that of {base.session}")
    return moved, valid


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape[::-1])


def _checked(series: Series, choice: Choice) -> Series:
    if choice.spacing == "known" and series.geometry is not None and not series.geometry.known:
        raise UserError(f"{series.subject}: the spacing of the voxels is unknown, and --spacing known asks for it")
    return series
