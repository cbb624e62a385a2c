"""BIDS: the visits of a subject, in the order of time, whatever their labels say.

    sub-01/sub-01_sessions.tsv                       session_id, and when: acq_time, or a column that the user names
    sub-01/ses-B/sub-01_ses-B_scans.tsv              filename, acq_time; asked where the sessions say nothing
    sub-01/ses-B/anat/sub-01_ses-B_T1w.nii.gz        sessions called d0129 need no table: that is day 129

Source: the Brain Imaging Data Structure 1.8; derivatives are written as its section on them says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from longtake.errors import UserError
from longtake.medical.files.nifti import is_nifti, kind_of_name
from longtake.medical.files.table import TIMES, Visit, from_first, read_rows, time_of

_DAY = re.compile(r"(?:^|[-_])d(\d+)$")
_MONTH = re.compile(r"(?:^|[-_])m(\d+)$")


def is_bids(folder: Path) -> bool:
    """Whether a folder is a data set in BIDS, or one subject of it."""
    return folder.is_dir() and (
        (folder / "dataset_description.json").is_file()
        or folder.name.startswith("sub-")
        or next(folder.glob("sub-*"), None) is not None
    )


def subjects_of(folder: Path) -> list[Path]:
    """The subjects' folders. Raises UserError when there are none."""
    if folder.name.startswith("sub-"):
        return [folder]
    found = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    if not found:
        raise UserError(f"{folder} holds no subject: a folder sub-NAME is needed")
    return found


def read_subject(
    folder: Path,
    *,
    time_column: str | None = None,
    unit: str | None = None,
    run: int | None = None,
    modality: str | None = None,
) -> list[Visit]:
    """Visits of one subject (sub-01), by time from the first; a session without an image is a missing visit.

    run: of several runs in a session. modality: suffix of the images, "T1w". Raises UserError when several images of a
    session remain, listing them, when kinds are mixed, or when a session has no time.
    """
    name = folder.name
    table = folder / f"{name}_sessions.tsv"
    rows = {}
    if table.is_file():
        for row in read_rows(table):
            if "session_id" not in row:
                raise UserError(f"{table} has no column session_id; it has {', '.join(row)}")
            label = row["session_id"]
            rows[label if label.startswith("ses-") else f"ses-{label}"] = row
    sessions = sorted({path.name for path in folder.glob("ses-*") if path.is_dir()} | set(rows))
    if not sessions:
        raise UserError(f"{folder} holds no session: folders ses-NAME are needed, one for each visit")
    images = {session: _images(folder / session, modality) for session in sessions}
    kinds = sorted({kind_of_name(path) for paths in images.values() for path in paths})
    if len(kinds) > 1:
        raise UserError(
            f"{name} mixes kinds of images, {', '.join(kinds)}: choose one with --modality, e.g. {kinds[-1]}"
        )
    if not kinds:
        wanted = f" of the kind {modality}" if modality else ""
        raise UserError(f"{folder} holds no images{wanted}: ses-*/anat/*.nii.gz is looked for")
    paths = {session: _one(images[session], session, name, run) for session in sessions}
    times = _times(folder, paths, rows, time_column, unit)
    visits = [
        Visit(name, session, path, *times[session], path is not None, None, kinds[0], _mask(path, folder))
        for session, path in paths.items()
        if session in times
    ]
    seen = from_first([visit for visit in visits if visit.path is not None])
    start = times[seen[0].session][0]
    missing = [replace(visit, time=times[visit.session][0] - start) for visit in visits if visit.path is None]
    return sorted([*seen, *missing], key=lambda visit: (visit.time, visit.session))


def _images(folder: Path, modality: str | None) -> list[Path]:
    found = sorted(path for path in folder.glob("*/*") if is_nifti(path) and kind_of_name(path))
    return [path for path in found if modality is None or kind_of_name(path).lower() == modality.lower()]


def _one(paths: list[Path], session: str, name: str, run: int | None) -> Path | None:
    if run is not None and len(paths) > 1:
        chosen = [path for path in paths if (found := re.search(r"_run-(\d+)_", path.name)) and int(found[1]) == run]
        if not chosen:
            raise UserError(f"{name} {session} has no run {run}; it has {', '.join(path.name for path in paths)}")
        paths = chosen
    if len(paths) > 1:
        listed = ", ".join(path.name for path in paths)
        raise UserError(f"{name} {session} has {len(paths)} images, {listed}: choose with --run N or --modality KIND")
    return paths[0] if paths else None


def _times(
    folder: Path,
    paths: dict[str, Path | None],
    rows: dict[str, dict[str, str]],
    column: str | None,
    unit: str | None,
) -> dict[str, tuple[float, str]]:
    """Session -> (time, unit), from one source for all sessions with an image: a column of sessions.tsv, acq_time of
    scans.tsv, or the labels. A session without an image that this source does not know is left out."""
    names = [column] if column is not None else [name for name in TIMES if any(name in row for row in rows.values())]
    sources: list[Callable[[str], tuple[float | None, str]]] = []
    for name in names:
        sources.append(lambda session, name=name: _of_row(folder, session, rows.get(session), name, unit))  # type: ignore[misc]
    sources += [lambda session: _of_scans(folder, session, paths[session], unit), _of_label]
    for source in sources:
        found = {session: source(session) for session in paths}
        if all(found[session][0] is not None for session, path in paths.items() if path is not None):
            return {session: (time, its) for session, (time, its) in found.items() if time is not None}
    lost = [session for session, path in paths.items() if path is not None and found[session][0] is None]
    told = f"column {column}" if column is not None else "sessions.tsv, scans.tsv or the labels"
    raise UserError(
        f"{folder.name} {', '.join(lost)}: no time in {told}, from one source for all; name a column with --time-column"
    )


def _of_row(
    folder: Path, session: str, row: dict[str, str] | None, column: str, unit: str | None
) -> tuple[float | None, str]:
    if row is None:
        return None, ""
    return time_of(row, column, unit, f"{folder.name}_sessions.tsv, {session}")[:2]


def _of_scans(folder: Path, session: str, path: Path | None, unit: str | None) -> tuple[float | None, str]:
    table = folder / session / f"{folder.name}_{session}_scans.tsv"
    if path is not None and table.is_file():
        for row in read_rows(table):
            if row.get("filename", "").rsplit("/", 1)[-1] == path.name:
                return time_of(row, None, unit, str(table))[:2]
    return None, ""


def _of_label(session: str) -> tuple[float | None, str]:
    """129 days of OAS30001_MR_d0129, 6 months of m06."""
    for pattern, unit in ((_DAY, "days"), (_MONTH, "months")):
        if (found := pattern.search(session)) is not None:
            return float(found[1]), unit
    return None, ""


def _mask(path: Path | None, folder: Path) -> Path | None:
    """A mask of a derivative beside the data set, if exactly one belongs to the image."""
    if path is None:
        return None
    stem = path.name.split(".")[0].rpartition("_")[0]
    place = path.relative_to(folder.parent).parent
    found = sorted(folder.parent.glob(f"derivatives/*/{place}/{stem}_*mask.nii.gz"))
    return found[0] if len(found) == 1 else None
