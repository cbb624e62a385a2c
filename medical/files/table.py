"""The table of visits: what every reader makes, and what a folder of one's own may hold as longtake.csv.

    subject,session,path,time,unit,observed
    p7,base,p7/base.nii.gz,0,months,1
    p7,m06,p7/month6.nii.gz,6,months,1

Other names are understood (`NAMES`); columns that nobody asks for are left alone. Paths count from the table's folder.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from longtake.errors import UserError, in_brief
from longtake.journal import atomic_path
from longtake.medical.series import UNITS
from longtake.reading import read_text

NAME = "longtake.csv"
COLUMNS = ("subject", "session", "path", "time", "unit", "observed", "frame", "modality", "label")
NAMES = {
    "subject": ("subject", "subject_id", "participant_id", "patient", "ptid"),
    "session": ("session", "session_id", "visit", "viscode"),
    "path": ("path", "image_path", "filename", "file", "image"),
    "label": ("label", "segm_path", "label_path", "mask"),
    "modality": ("modality", "suffix", "kind"),
    "observed": ("observed",),
    "unit": ("unit", "time_unit"),
    "frame": ("frame",),
}
TIMES = {  # column -> its unit, None for dates
    "time": "", "hours": "hours", "days": "days", "day": "days", "weeks": "weeks", "months": "months",
    "years": "years", "age": "years", "scan_age": "", "cycle": "cycle", "acq_time": None, "date": None,
    "examdate": None,
}  # fmt: skip
MISSING = ("", "n/a", "na", "nan", "none", "null")


@dataclass(frozen=True)
class Visit:
    """A row. path: None where there is no image. time: None where nobody knows it. frame: of a file with time."""

    subject: str
    session: str
    path: Path | None
    time: float | None
    unit: str
    observed: bool = True
    frame: int | None = None
    modality: str = ""
    label: Path | None = None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv or .tsv with a line of names. Raises UserError."""
    text = read_text(path)
    found = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        rows = [{(key or "").strip().lower(): (value or "").strip() for key, value in row.items() if key is not None
                 and not isinstance(value, list)} for row in found]  # fmt: skip
    except csv.Error as error:
        raise UserError(f"{path} is no table: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows: one line for each visit is needed, under a line of names")
    return rows


def is_missing(value: str | None) -> bool:
    """Whether a cell says nothing."""
    return value is None or value.strip().lower() in MISSING


def time_of(row: Mapping[str, str], column: str | None, unit: str | None, where: str) -> tuple[float | None, str, bool]:
    """(time, its unit, whether it is a date in days since 1 January 1) of a row.

    column: the user's choice, None for the first known one that says something. unit: of a column that does not tell.
    Raises UserError for a column that is not there and for what is no number or date.
    """
    if column is not None and column.lower() not in row:
        raise UserError(f"{where} has no column {column!r}; it has {', '.join(row)}")
    names = [column.lower()] if column is not None else [name for name in TIMES if name in row]
    for name in names:
        text = row[name]
        if is_missing(text):
            continue
        if TIMES.get(name, "") is None or re.match(r"\d{4}-\d{2}-\d{2}", text):
            return _date(text, where), "days", True
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{where}: {name} must be a number or a date such as 2019-03-04, given {in_brief(text)}")
        said = row.get("unit", row.get("time_unit", "")).lower()
        found = said if not is_missing(said) else TIMES.get(name) or unit or ("years" if "age" in name else "days")
        if found not in UNITS:
            raise UserError(f"{where}: a unit of time is one of {', '.join(UNITS)}; given {in_brief(found)}")
        return value, found, False
    return None, unit or "days", False


def _date(text: str, where: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{where}: a date is written 2019-03-04 or 2019-03-04T09:30:00, given {in_brief(text)}"
        ) from None
    found = found.replace(tzinfo=None)
    return found.toordinal() + (found.hour + found.minute / 60 + found.second / 3600) / 24


def read_table(path: Path, *, time_column: str | None = None, unit: str | None = None) -> list[Visit]:
    """Every visit of a table. Raises UserError for a row without path or time, or a path that does not exist."""
    rows = read_rows(path)
    names = {key: next((name for name in NAMES[key] if name in rows[0]), None) for key in NAMES}
    if names["path"] is None:
        raise UserError(f"{path} has no column path; it has {', '.join(rows[0])}")
    found: list[Visit] = []
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"

        def cell(key: str, row: Mapping[str, str] = row) -> str | None:
            name = names[key]
            return None if name is None or is_missing(row[name]) else row[name]

        time, its_unit, _ = time_of(row, time_column, unit, where)
        if time is None:
            raise UserError(f"{where} has no time: give a column time and one unit, or --time-column NAME")
        files = {key: _inside(path.parent, cell(key)) for key in ("path", "label")}
        observed = (cell("observed") or "1").lower() not in ("0", "false", "no") and files["path"] is not None
        for key, file in files.items():
            if file is not None and observed and not file.exists():
                raise UserError(f"{where}: the {key} {file} does not exist")
        frame = cell("frame")
        if frame is not None and not frame.isdecimal():
            raise UserError(f"{where}: frame is a whole number from 0, given {in_brief(frame)}")
        subject = cell("subject") or path.parent.name
        session = cell("session") or f"{sum(one.subject == subject for one in found) + 1:02d}"
        found.append(
            Visit(subject, session, files["path"], time, its_unit, observed, None if frame is None else int(frame),
                  cell("modality") or "", files["label"])
        )  # fmt: skip
    return found


def _inside(folder: Path, text: str | None) -> Path | None:
    return None if text is None else folder / text


def _told(file: Path, folder: Path) -> Path:
    return file.relative_to(folder) if file.is_relative_to(folder) else file.absolute()


def write_table(path: Path, visits: Sequence[Visit]) -> None:
    """Write visits as a table that `read_table` reads, paths from its folder where they lie in it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for visit in visits:
        files = [
            ""
            if file is None
            else file.relative_to(path.parent)
            if file.is_relative_to(path.parent)
            else file.absolute()
            for file in (visit.path, visit.label)
        ]
        writer.writerow(
            [visit.subject, visit.session, files[0], "" if visit.time is None else repr(visit.time), visit.unit,
             int(visit.observed), "" if visit.frame is None else visit.frame, visit.modality, files[1]]
        )  # fmt: skip
    with atomic_path(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def from_first(visits: Iterable[Visit]) -> list[Visit]:
    """The visits of one subject by time, which counts from the first one's."""
    known = [visit for visit in visits if visit.time is not None]
    start = min((visit.time for visit in known if visit.time is not None), default=0.0)
    ordered = sorted(known, key=lambda visit: (visit.time, visit.session))
    return [replace(visit, time=(visit.time or 0.0) - start) for visit in ordered]
