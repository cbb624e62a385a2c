"""ACDC: a patient's folder of one heart beat, cine short-axis slices from the end of diastole to that of systole.

    patient001/Info.cfg                       ED: 1, ES: 12, NbFrame: 30, ... by key, in any order
    patient001/patient001_4d.nii.gz           all phases; without it ED and ES alone are read
    patient001/patient001_frame01_gt.nii.gz   labels 0 to 3; 3 is the cavity of the left ventricle

Times are cycles from ED: frame f stands at ((f - ED) mod NbFrame) / NbFrame. Where ES stands before ED, the frames run
over the end of the file to its start. Source: the challenge's description (Bernard et al. 2018).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longtake.errors import UserError, in_brief
from longtake.medical.files.table import Visit
from longtake.reading import read_text

LEFT_VENTRICLE = 3


def is_acdc(folder: Path) -> bool:
    """Whether a folder is a patient of ACDC, or holds such patients."""
    return folder.is_dir() and ((folder / "Info.cfg").is_file() or next(folder.rglob("Info.cfg"), None) is not None)


def patients_of(folder: Path) -> list[Path]:
    """The patients' folders."""
    return sorted(path.parent for path in folder.rglob("Info.cfg"))


def read_info(path: Path) -> dict[str, str]:
    """Info.cfg by key. Raises UserError for a line without a colon."""
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            key, colon, value = line.partition(":")
            if not colon:
                raise UserError(f"{path}, line {number}: 'key: value' is needed, given {in_brief(line)}")
            found[key.strip()] = value.strip()
    return found


def read_patient(folder: Path) -> tuple[list[Visit], list[str]]:
    """(visits from ED to ES by time, notes). Raises UserError that names file and key."""
    path = folder / "Info.cfg"
    info = read_info(path)
    frames = {}
    for key in ("ED", "ES", "NbFrame"):
        text = info.get(key)
        if text is None and key != "NbFrame":
            raise UserError(f"{path} has no key {key}: the number of that frame, from 1, is needed")
        if text is not None and (not text.isdecimal() or int(text) < 1):
            raise UserError(f"{path}: {key} is the number of a frame, from 1; given {in_brief(text)}")
        frames[key] = 0 if text is None else int(text)
    first, last = frames["ED"], frames["ES"]
    if first == last:
        raise UserError(f"{path}: ED and ES are both frame {first}; two phases are needed")
    notes = []
    whole = _file(folder, "_4d")
    count = frames["NbFrame"]
    if whole is not None:
        held = _held(whole)
        if count and count != held:
            notes.append(f"{path} says NbFrame {count}, {whole.name} holds {held}: {held} is taken")
        count = held
    elif not count:
        raise UserError(f"{path} has no key NbFrame, and there is no 4-D file to count: the times cannot be known")
    for key, frame in (("ED", first), ("ES", last)):
        if frame > count:
            raise UserError(f"{path}: {key} is frame {frame} of {count}")
    steps = (last - first) % count
    if whole is None:
        notes.append(f"{folder.name} has no 4-D file: ED and ES alone are read")
        chosen = [first, last]
    else:
        chosen = [(first - 1 + step) % count + 1 for step in range(steps + 1)]
    visits = []
    for frame in chosen:
        file = whole if whole is not None else _file(folder, f"_frame{frame:02d}")
        if file is None:
            raise UserError(f"{folder} has no {folder.name}_frame{frame:02d}.nii.gz, which {path.name} names")
        time = ((frame - first) % count) / count
        visits.append(
            Visit(folder.name, f"frame{frame:02d}", file, time, "cycle", True, None if whole is None else frame - 1,
                  "cine", _file(folder, f"_frame{frame:02d}_gt"))
        )  # fmt: skip
    return visits, notes


def _file(folder: Path, ending: str) -> Path | None:
    found = [folder / f"{folder.name}{ending}{suffix}" for suffix in (".nii.gz", ".nii")]
    return next((path for path in found if path.is_file()), None)


def _held(path: Path) -> int:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        shape = image.shape
    except Exception:  # a torn header: each of nibabel, zlib and numpy has its own error
        raise UserError(f"{path} cannot be read as NIfTI, it is damaged or cut off") from None
    if len(shape) != 4:
        raise UserError(f"{path} has shape {shape}; four axes are needed, the last one time")
    return int(shape[3])
