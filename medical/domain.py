"""Medical images over time as a modality: its settings, files, cost, and how a request becomes a call of the pipeline.

longtake medical scans/ --at 24 --unit months --samples 8 --out pred.nii.gz --preview pred.png
longtake medical study/ --subject sub-03 --at 6,12,24 --unit months --history all --out pred.html
longtake medical sample --at 24 --unit months --out pred.nii.gz           # the simulated series that ships
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Domain, Example, Forecast, InputFile, OnStep, PythonCall, SideFile
from longtake.errors import UserError, in_brief
from longtake.knob import Knob

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.medical.outputs import MedicalOutput
    from longtake.medical.pipeline import LongitudinalPipeline
    from longtake.medical.series import Series
    from longtake.outputs import FileKind
    from longtake.request import Request

PRIOR = "scans-small"
SAMPLE = "sample"  # stands for the series that ships
SAMPLES = Path(__file__).parent / "samples"
GROWTH = SAMPLES / "growth"
UNITS = ("hours", "days", "weeks", "months", "years", "cycle")
SECONDS_A_VOXEL = 1.1e-5  # of a sample and step, on one core
MEMORY_GB, BYTES_A_VOXEL = 0.7, 2500
MOST_TIMES = 64

KNOBS = (
    Knob(
        name="at", default="", kind=str, metavar="TIMES",
        help="times to predict, counted from the first visit: 24, or 6,12,24 (default: as long after the last visit as "
        "that is after the one before)", page="Times to predict, from the first visit",
    ),
    Knob(
        name="unit", default="", kind=("", *UNITS), metavar="UNIT",
        help="of the times: hours, days, weeks, months, years, or cycle, a heart beat (default: as the scans have it)",
        page="Unit of time",
    ),
    Knob(
        name="samples", default=8, kind=int, least=1, most=256, argument="samples", help="possible scans for each time",
        page="Samples", page_most=32,
    ),
    Knob(
        name="steps", default=12, kind=int, least=1, most=1000, argument="num_inference_steps", help="of the sampler",
        page="Steps", page_most=50,
    ),
    Knob(
        name="guidance", default=1.0, least=0, most=20, argument="guidance_scale",
        help="how much more a sample follows the history, 1 is as trained", page="Guidance by the history",
        page_most=4,
    ),
    Knob(
        name="scheduler", default="ddim", kind=("ddim", "ddpm", "dpm"), argument="scheduler", help="the sampler",
        page="Sampler",
    ),
    Knob(
        name="history", default="observed", kind=("observed", "all"), argument="history",
        help="all: what is predicted joins the history of later times", page="History",
    ),
    Knob(
        name="level", default=0.9, kind=(0.5, 0.8, 0.9, 0.95), argument="level", help="of the interval",
        page="Level of the interval",
    ),
    Knob(
        name="window", default=None, kind=str, metavar="D,H,W",
        help="slices, rows and columns that the model sees at once, for volumes that do not fit (default: all)",
    ),
    Knob(
        name="split", default="samples", kind=("samples", "slices", "visits"), argument="split", decides=False,
        help="under torchrun, what ranks share: samples, or the slices or visits of each scan, for what does not fit",
    ),
    Knob(name="subject", default=None, kind=str, metavar="NAME", help="which one, of several in the scans"),
    Knob(
        name="modality", default=None, kind=str, metavar="KIND",
        help="which images, of several kinds: T1w (BIDS), MR (DICOM); or what they are: cxr, cardiac, glioma",
        page="Kind of images (cxr, cardiac, glioma; empty: unknown)",
    ),
    Knob(name="run", default=None, kind=int, least=0, most=10_000, help="which one, of several runs in a BIDS session"),
    Knob(
        name="time_column", default=None, kind=str, metavar="NAME",
        help="column of the table that says when a visit was (default: a known one)",
    ),
    Knob(
        name="register", default="no", kind=("no", "rigid"),
        help="rigid: move the visits onto the first one, by SimpleITK", page="Register visits",
    ),
    Knob(
        name="spacing", default="any", kind=("any", "known"),
        help="known: refuse scans that do not say how large a voxel is",
    ),
    Knob(
        name="prior", default=PRIOR, kind=str, decides=False, help="a shipped prior, a local folder or a Hub id"
    ),
)  # fmt: skip


class MedicalDomain(Domain):
    """See the module's docstring."""

    NAME = "medical"
    ABOUT = "a patient's next scan from earlier ones, with an interval; research only"
    PROMPT = None
    TIMELINE = False
    KNOBS = KNOBS
    INPUTS = (
        InputFile(
            "scans", "one subject's scans: a folder (BIDS, DICOM, ACDC, files with a table of times), a 4-D NIfTI, a "
            f"table or an npz; {SAMPLE!r} is the one that ships", "SCANS", positional=True,
            page="Scans: NIfTI or pictures named like visit_m06, or longtake.csv with them", many=True,
            kinds=(".gz", ".nii", ".npz", ".csv", ".tsv", ".dcm", ".png", ".jpg"),
        ),
        InputFile(
            "truth", "the real scan at the time asked for, to be shown beside the forecast", "FILE",
            page="The real scan at that time, to compare", kinds=(".gz", ".nii", ".png"),
        ),
    )  # fmt: skip
    SIDES = (
        SideFile(
            "preview", ".png", "a montage: history, mean, two samples, truth, difference, deviation",
            lambda output, path: output.preview(path, overwrite=True), lambda path: _check_picture(path),
        ),
    )  # fmt: skip
    OUT = "pred.nii.gz"
    USUAL = (".nii.gz",)
    PIPELINE = "LongitudinalPipeline"
    EXAMPLES = (
        Example(
            "A growing lesion, simulated", "", parameters={"at": "24", "unit": "months"}, inputs={"scans": GROWTH}
        ),
        Example(
            "The same, past and future", "", parameters={"at": "8,24,30,36", "unit": "months", "samples": 4},
            inputs={"scans": GROWTH},
        ),
    )  # fmt: skip
    SUMMARY = (
        "A patient's scan at another time, from earlier visits at any times. The mean of the samples is smooth; single "
        "samples stand beside it, and an interval says how sure it is. Synthetic images for research, not for clinical "
        "use."
    )
    MOST_SECONDS = 900.0
    _seen: tuple[Any, Series] | None = None

    # ----------------------------------------------------------------------------------------- before a model is there

    def file_kinds(self) -> Mapping[str, FileKind]:
        from longtake.medical.outputs import FILES

        return FILES

    def settle(self, request: Request) -> dict[str, Any]:
        settings = dict(request.settings)
        times_of(settings["at"])
        window_of(settings["window"])
        if not str(settings["prior"]).strip():
            raise UserError("prior is the name of a prior or a folder, given nothing")
        return settings

    def forecast(self, request: Request) -> Forecast:
        series = self.series(request)
        times = asked(request, series)
        self.truth(request, series)
        new = [time for time in times if not _is_observed(series, time)]
        voxels = int(math.prod(series.grid))
        given = request.settings
        work = voxels * len(new) * (given["samples"] * given["steps"] * (2 if given["guidance"] != 1 else 1) + 8)
        samples, visits = given["samples"], len(new)
        amount = f"{samples} samples at {visits} time{'s' if visits != 1 else ''}"
        memory = MEMORY_GB + (BYTES_A_VOXEL * voxels + 4 * voxels * samples * (len(times) + 1)) / 1e9
        return Forecast(2 + SECONDS_A_VOXEL * work, memory, amount, samples)

    def weights(self, request: Request) -> list[Path]:
        from longtake.weights import shipped_priors

        prior = request.settings["prior"]
        if prior == PRIOR and prior not in shipped_priors(self.package) and not Path(prior).exists():
            raise UserError(
                f"the medical prior {PRIOR} is not in this copy: train one (longtake train medical --data PATH), or "
                "name another with --prior FOLDER"
            )
        return super().weights(request)

    def input_path(self, name: str, path: Path) -> Path:
        return GROWTH if name == "scans" and str(path) == SAMPLE and not path.exists() else path

    def input_mark(self, name: str, path: Path) -> str:
        return super().input_mark(name, self.input_path(name, path))

    def series(self, request: Request) -> Series:
        """The request's scans, read once and remembered. Raises UserError."""
        from longtake.medical.files.open import Choice, read_series
        from longtake.medical.modalities import MODALITIES
        from longtake.medical.register import registered

        given, path = request.settings, self.input_path("scans", request.inputs["scans"])
        kind = given["modality"]
        named = kind in MODALITIES
        choice = Choice(
            given["subject"], given["time_column"], given["unit"] or None, given["run"], None if named else kind,
            given["spacing"],
        )  # fmt: skip
        key = (path, choice, given["register"], kind, _stamp(path))
        if self._seen is not None and self._seen[0] == key:
            return self._seen[1]
        series = read_series(path, choice)
        if named:
            series = replace(series, modality=kind)
        _check_visits(series)
        if given["register"] == "rigid":
            series = registered(series)
        self._seen = (key, series)
        return series

    def truth(self, request: Request, series: Series) -> Any:
        """The real scan on the series' grid, float32 (D, H, W), or None. Raises UserError."""
        from longtake.medical.files.grid import onto
        from longtake.medical.files.nifti import AFFINE_ATOL
        from longtake.medical.files.open import read_image

        if "truth" not in request.inputs:
            return None
        if len(asked(request, series)) != 1:
            raise UserError("--truth is the real scan at one time: give one time with --at")
        path = request.inputs["truth"]
        if not path.exists():
            raise UserError(f"the truth {path} does not exist")
        image = read_image(path)
        if len(image.frames) != 1:
            raise UserError(f"the truth {path} has {len(image.frames)} frames; one is needed")
        assert series.geometry is not None
        import numpy as np

        near = np.allclose(image.geometry.affine, series.geometry.affine, rtol=0, atol=AFFINE_ATOL)
        both = image.geometry.known and series.geometry.known
        if image.frames.shape[1:] == series.grid and (near or not both):
            return image.frames[0]
        if not both:
            raise UserError(f"the truth {path} lies on another grid than the scans, and its spacing is unknown")
        return onto(image.frames[0], image.geometry, series.geometry, series.grid)[0]

    # ----------------------------------------------------------------------------------------------------- with a model

    def load(self, request: Request, ranks: Ranks) -> LongitudinalPipeline:
        import torch
        from longtake.medical.pipeline import LongitudinalPipeline

        if ranks.device.type == "cpu" and ranks.choice.dtype != torch.float32:
            raise UserError("on a CPU medical images are computed in float32: leave --dtype out")
        (folder,) = self.weights(request)
        return LongitudinalPipeline.from_prior(folder, device=ranks.device, dtype=ranks.choice.dtype)

    def check(self, pipe: LongitudinalPipeline, request: Request, ranks: Ranks) -> None:
        from longtake.medical.pipeline import checked_times

        series = self.series(request)
        checked_times(series, asked(request, series), series.unit)
        pipe.calibration.factor(series.modality, request.settings["level"])

    def warn(self, pipe: LongitudinalPipeline, request: Request) -> list[str]:
        """What the reader noticed, and visits that lie far apart."""
        from longtake.medical.register import apart

        series = self.series(request)
        told = list(series.notes)
        far = [one for one in apart(series) if one.is_far]
        told += [f"{one.line()}: what moved reads as what changed (--register rigid)" for one in far]
        if request.settings["level"] and not pipe.calibration.factors:
            told.append("this prior was not calibrated: its interval need not cover what it says")
        return told

    def most_ranks(self, pipe: LongitudinalPipeline, request: Request) -> int:
        series = self.series(request)
        by = {"slices": series.grid[0], "visits": len(series.observed_times)}
        return by.get(request.settings["split"], math.ceil(request.settings["samples"] / 2))

    def generate(
        self,
        pipe: LongitudinalPipeline,
        request: Request,
        ranks: Ranks,
        journal: Journal | None,
        on_step: OnStep | None,
    ) -> MedicalOutput:
        from longtake.medical.outputs import MedicalOutput

        series, given = self.series(request), request.settings
        scans = self.input_path("scans", request.inputs["scans"])
        if journal is not None and scans.is_dir() and journal.folder.absolute().is_relative_to(scans.absolute()):
            raise UserError(f"{scans} is what is read: give --out a name outside of it")
        made = pipe.predict(
            series, asked(request, series), series.unit, samples=given["samples"], num_inference_steps=given["steps"],
            guidance_scale=given["guidance"], scheduler=given["scheduler"], history=given["history"],
            window=window_of(given["window"]), level=given["level"], seed=request.seed, ranks=ranks,
            split=given["split"], store=journal,
            on_sample=None if on_step is None else lambda done, of: on_step(done, of, None),
        )  # fmt: skip
        complete = len(made.samples) == given["samples"]
        made.info["register"] = given["register"]
        facts = {"completed": complete, "steps": len(made.samples), "seed": request.seed}
        return MedicalOutput(made, self.truth(request, series), info=facts)

    def python(self, request: Request) -> PythonCall:
        given = request.settings
        said = super().python(request)
        arguments: dict[str, Any] = {"at": times_of(given["at"]), "unit": given["unit"] or None, **said.arguments}
        window = window_of(given["window"])
        before = [
            "from longtake.medical.files.open import read_series",
            f"series = read_series({str(request.inputs['scans'])!r})",
        ]
        return PythonCall("pipe.predict", {**arguments, "window": window}, before)


def times_of(text: str) -> list[float]:
    """The numbers of "6,12,24"; none of an empty text. Raises UserError."""
    words = [word for word in text.replace(";", ",").replace(" ", ",").split(",") if word]
    found = []
    for word in words:
        try:
            time = float(word)
        except ValueError:
            time = math.nan
        if not math.isfinite(time):
            raise UserError(f"at is a number or several, 24 or 6,12,24; given {in_brief(word)}")
        found.append(time)
    if len(found) > MOST_TIMES:
        raise UserError(f"at names {len(found)} times; {MOST_TIMES} at most")
    if len(set(found)) < len(found):
        raise UserError(f"at names {max(found, key=found.count):g} twice")
    return found


def window_of(text: str | None) -> tuple[int, int, int] | None:
    """The sides of "8,64,64". Raises UserError."""
    if text is None:
        return None
    sides = [word.strip() for word in text.split(",")]
    if len(sides) != 3 or not all(side.isdecimal() and 0 < int(side) <= 4096 for side in sides):
        raise UserError(f"window is slices, rows and columns, 8,64,64; given {in_brief(text)}")
    return int(sides[0]), int(sides[1]), int(sides[2])


def asked(request: Request, series: Series) -> list[float]:
    """The times to predict, in the series' unit. Raises UserError."""
    from longtake.medical.series import convert

    unit = request.settings["unit"] or series.unit
    times = times_of(request.settings["at"])
    if times:
        return [float(convert(time, unit, series.unit)) for time in times]
    seen = series.observed_times
    return [float(seen[-1] + (seen[-1] - seen[-2]))] if len(seen) > 1 else [0.4]


def _check_visits(series: Series) -> None:
    if len(series.observed_times) < 2 and series.unit != "cycle":
        only = series.sessions[int(series.observed.argmax())]
        raise UserError(
            f"{series.subject} has one visit, {only}: two at least are needed to see a change (one alone is enough for "
            "a heart beat, --unit cycle)"
        )


def _is_observed(series: Series, time: float) -> bool:
    return any(math.isclose(time, one, rel_tol=1e-9, abs_tol=1e-9) for one in series.observed_times)


def _stamp(path: Path) -> tuple[int, int]:
    """Number and newest time of the files, by which a changed folder is seen."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return len(files), max((one.stat().st_mtime_ns for one in files), default=0)


def _check_picture(path: Path) -> None:
    from longtake.media import check_picture

    check_picture(path)


DOMAIN = MedicalDomain()
