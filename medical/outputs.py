"""MedicalOutput: a prediction with its series; the suffix of a name chooses the kind of file.

    output.save("pred.nii.gz")        # the mean, with pred_std, pred_lower, pred_upper and pred.json beside it
    output.save("pred.html")          # a viewer: slices, time, mean, samples, uncertainty
    output.save("pred")               # a folder as the input was: DICOM, BIDS derivatives, or NIfTI

Every file says that it is synthetic: NIfTI in `descrip`, DICOM in type, description and comments, all in a JSON beside.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError, explain_disk_errors
from longtake.journal import atomic_path, partial_path
from longtake.media import FOLDER_RECORD, check_film, check_output, check_picture
from longtake.medical.files.nifti import DESCRIPTION, check_nifti, write_nifti
from longtake.medical.series import Geometry, convert
from longtake.outputs import FileKind, Output
from longtake.reading import read_json_object

if TYPE_CHECKING:
    from longtake.medical.prediction import Prediction

WARNING = "synthetic image, not for clinical use"
MAPS = ("std", "lower", "upper")  # beside the mean
_BIDS_VERSION = "1.8.0"


@dataclass
class MedicalOutput(Output):
    """prediction: as the pipeline gives it. truth: float32 (D, H, W), the real scan at the first time, if known."""

    prediction: Prediction
    truth: np.ndarray | None = field(default=None, repr=False)

    @property
    def geometry(self) -> Geometry:
        """Of the first observed visit."""
        found = self.prediction.series.geometry
        return Geometry(np.eye(4), (1.0, 1.0, 1.0), False, ("unknown", "unknown")) if found is None else found

    def maps(self) -> dict[str, np.ndarray]:
        """Name -> float32 (T, D, H, W): "mean", "std" and the ends of the interval."""
        made = self.prediction
        return {"mean": made.mean, "std": made.std, "lower": made.lower, "upper": made.upper}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one file, or a folder where the name has no suffix. Raises UserError."""
        path = check_output(path, tuple({Path("x" + suffix).suffix for suffix in FILES}), overwrite)
        kind_of(path).write(self, path)
        return path

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .png: history, mean, two samples, truth if known, difference, deviation."""
        from longtake.medical.picture import draw

        path = check_output(path, (".png",), overwrite)
        draw(self, path)
        return path

    def facts(self) -> dict[str, Any]:
        """What the sidecar says, as JSON values; no folder of this machine."""
        from importlib.metadata import version

        made = self.prediction
        source = self.geometry.source
        given = {
            "subject": made.series.subject,
            "reference": None if source is None else source.name,
            "sessions": made.series.sessions,
            "times": [float(time) for time in made.series.times],
            "observed": [bool(flag) for flag in made.series.observed],
            "modality": made.series.modality,
            "notes": made.series.notes,
        }
        return {
            "synthetic": True,
            "use": "research only, not for clinical use",
            "software": f"longtake {version('longtake')}",
            **made.info,
            "unit": made.unit,
            "times": [float(time) for time in made.times],
            "interval": f"{made.level:.0%} at each voxel, on average over patients like those it was calibrated on",
            "grid": [int(size) for size in made.samples.shape[:1:-1]],
            "spacing_known": self.geometry.known,
            "input": given,
        }

    def step(self) -> tuple[float, str] | None:
        """(time between frames, its NIfTI unit) of evenly spaced times; None where there is no such step."""
        times = self.prediction.times
        gaps = np.diff(times)
        if len(gaps) == 0 or not np.allclose(gaps, gaps[0]) or gaps[0] <= 0:
            return None
        if self.prediction.unit == "cycle":
            return float(gaps[0]), "unknown"
        return float(convert(gaps[0], self.prediction.unit, "hours")) * 3600, "sec"

    def write_volume(self, path: Path, values: np.ndarray) -> None:
        """Write (T, D, H, W) as NIfTI, three axes for one time."""
        one = len(values) == 1
        write_nifti(path, values[0] if one else values, self.geometry, None if one else self.step())


def _suffix(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix


def beside(path: Path) -> dict[str, Path]:
    """Name -> the files that belong to pred.nii.gz: pred_std.nii.gz, ..., and pred.json."""
    suffix = _suffix(path)
    stem = path.name[: -len(suffix)]
    found = {name: path.with_name(f"{stem}_{name}{suffix}") for name in MAPS}
    return {**found, "sidecar": path.with_name(f"{stem}.json")}


def _write_nifti(output: MedicalOutput, path: Path) -> None:
    """The mean; of a complete run also its maps and the sidecar, which replace no file of somebody else's."""
    maps = output.maps()
    others = beside(path) if output.info.get("completed", True) else {}
    for other in others.values():
        if other.exists() and not _is_ours(other):
            raise UserError(f"{other} is in the way and was not written here: move it, or give --out another name")
    output.write_volume(path, maps["mean"])
    for name, other in others.items():
        if name == "sidecar":
            _write_json(other, {**output.facts(), "files": {"mean": path.name, **_names(others)}})
        else:
            output.write_volume(other, maps[name])


def _names(files: dict[str, Path]) -> dict[str, str]:
    return {name: path.name for name, path in files.items() if name != "sidecar"}


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            return read_json_object(path).get("synthetic") is True
        import nibabel

        image: Any = nibabel.load(path)
        return bytes(image.header["descrip"]).rstrip(b"\0") == DESCRIPTION.encode()
    except Exception:  # whatever it is, it was not written here
        return False


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _whole_nifti(path: Path) -> None:
    check_nifti(path)
    held = beside(path)
    for name in read_json_object(held["sidecar"])["files"].values():
        check_nifti(path.with_name(name))


def _write_npz(output: MedicalOutput, path: Path) -> None:
    made = output.prediction
    arrays = {
        **output.maps(), "samples": made.samples, "times": made.times, "history": made.series.images,
        "history_times": made.series.times, "observed": made.series.observed, "affine": output.geometry.affine,
        "facts": np.array(json.dumps(output.facts())),
    }  # fmt: skip
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _whole_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        if "mean" not in {name for name in file if file[name] is not None}:
            raise UserError(f"{path} holds no prediction")


# --------------------------------------------------------------------------------------------------------- a folder


def _write_folder(output: MedicalOutput, path: Path) -> None:
    """As the input was. An earlier folder of ours is replaced, another is refused."""
    if path.exists() and not (path / FOLDER_RECORD).is_file():
        raise UserError(f"cannot overwrite {path}: it holds no {FOLDER_RECORD}, so it was not written here")
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    kinds: dict[str, Callable[[MedicalOutput, Path], None]] = {"dicom": _dicom, "bids": _bids}
    try:
        with explain_disk_errors(path):
            partial.mkdir()
            kinds.get(output.geometry.kind, _plain)(output, partial)
            files = {
                file.relative_to(partial).as_posix(): file.stat().st_size
                for file in sorted(partial.rglob("*")) if file.is_file()
            }  # fmt: skip
            _write_json(partial / FOLDER_RECORD, {**output.facts(), "files": files})
            if path.exists():
                shutil.rmtree(path)
            os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _plain(output: MedicalOutput, folder: Path) -> None:
    for name, values in output.maps().items():
        output.write_volume(folder / f"{name}.nii.gz", values)
    for number, sample in enumerate(output.prediction.samples, 1):
        output.write_volume(folder / f"sample_{number:02d}.nii.gz", sample)


def _dicom(output: MedicalOutput, folder: Path) -> None:
    """A series for each time and map: mean, std, and the first two samples."""
    from longtake.journal import fingerprint
    from longtake.medical.files.dicom import write_dicom

    made = output.prediction
    mark = fingerprint({"facts": output.facts()})
    series = {"mean": made.mean, "std": made.std}
    series |= {f"sample_{number + 1:02d}": made.samples[number] for number in range(min(2, len(made.samples)))}
    for place, time in enumerate(made.times):
        for name, values in series.items():
            into = folder / f"{label(time, made.unit)}_{name}"
            into.mkdir()
            made_by = output.facts()["software"]
            note = f"{WARNING}; {name} of {len(made.samples)} samples at {time:g} {made.unit}; {made_by}"
            write_dicom(into, values[place], output.geometry, note, f"{mark} {time!r} {name}")


def label(time: float, unit: str) -> str:
    """A name for a time, of letters and digits: months24, days0p5, daysminus3."""
    return unit + f"{time:g}".replace("-", "minus").replace(".", "p").replace("+", "")


def _bids(output: MedicalOutput, folder: Path) -> None:
    """A derivative: a session for each time, desc-sadm for the mean, desc-sadmstd and the ends of the interval."""
    made = output.prediction
    facts = output.facts()
    description = {
        "Name": "longtake predictions",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "longtake", "Version": facts["software"].split()[-1], "Description": WARNING}],
    }
    _write_json(folder / "dataset_description.json", description)
    source = output.geometry.source
    kind = "T1w" if source is None else source.name.split(".")[0].rpartition("_")[2]
    for place, time in enumerate(made.times):
        session = f"ses-{label(time, made.unit)}"
        place_of = folder / made.series.subject / session / "anat"
        place_of.mkdir(parents=True)
        for name, values in output.maps().items():
            desc = "sadm" if name == "mean" else f"sadm{name}"
            stem = f"{made.series.subject}_{session}_desc-{desc}_{kind}"
            output.write_volume(place_of / f"{stem}.nii.gz", values[place : place + 1])
            _write_json(place_of / f"{stem}.json", {**facts, "times": [float(time)], "map": name})


def _whole_folder(path: Path) -> None:
    for name, size in read_json_object(path / FOLDER_RECORD)["files"].items():
        if (path / name).stat().st_size != size:
            raise UserError(f"{path / name} is cut off")


# ---------------------------------------------------------------------------------------------------------- pictures


def _write_html(output: MedicalOutput, path: Path) -> None:
    from longtake.medical.viewer import write_viewer

    write_viewer(output, path)


def _whole_html(path: Path) -> None:
    from longtake.reading import read_text

    if not read_text(path, limit=512 * 2**20).rstrip().endswith("</html>"):
        raise UserError(f"{path} is cut off")


def _write_gif(output: MedicalOutput, path: Path) -> None:
    from longtake.medical.picture import film

    film(output, path)


_NIFTI = FileKind(_write_nifti, _whole_nifti)

FILES: dict[str, FileKind] = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".npz": FileKind(_write_npz, _whole_npz),
    ".html": FileKind(_write_html, _whole_html),
    ".gif": FileKind(_write_gif, check_film),
    ".png": FileKind(lambda output, path: output.preview(path, overwrite=True), check_picture),
    "": FileKind(_write_folder, _whole_folder),
}


def kind_of(path: Path) -> FileKind:
    """The kind of file that a name stands for. Raises UserError."""
    name = path.name.lower()
    fits = [suffix for suffix in FILES if suffix and name.endswith(suffix) and name != suffix]
    if not fits and path.suffix:
        allowed = ", ".join(suffix or "a folder" for suffix in FILES)
        raise UserError(f"cannot write {path}: allowed are {allowed}")
    return FILES[max(fits, key=len)] if fits else FILES[""]
