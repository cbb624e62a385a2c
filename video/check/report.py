"""The whole check of a film: `check_film`, and the report that it gives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.journal import atomic_path
from longtake.media import check_fps, check_output
from longtake.video.check.breaks import find_breaks
from longtake.video.check.curves import Curves, OnFrame, measure, pictures_of, read_curves
from longtake.video.check.finding import Finding, Kind, Verdict
from longtake.video.check.loops import find_loops
from longtake.video.check.tone import find_drift, find_flicker
from longtake.video.watch.picture import clock

FORMAT = 1  # of the JSON


@dataclass
class Report:
    """What was found in a film.

    findings: in order of time, without the kinds that were allowed; verdicts: one for each kind, and for each side of
    a drift. path: None for frames that are no file. curves: what they were read off, for a picture.
    """

    path: Path | None
    frames: int
    fps: float
    seconds: float
    size: tuple[int, int]
    findings: list[Finding]
    verdicts: list[Verdict]
    notes: list[str]
    allowed: tuple[Kind, ...] = ()
    curves: Curves | None = field(default=None, repr=False)

    @property
    def clean(self) -> bool:
        """Whether nothing was found, allowed kinds apart."""
        return not self.findings

    def of(self, kind: str) -> list[Finding]:
        """Findings of a kind."""
        return [one for one in self.findings if one.kind == Kind(kind)]

    def as_dict(self) -> dict[str, Any]:
        """What stands in the JSON; seconds, frame numbers from 0, and numbers in the unit of their verdict."""
        verdicts = [{**asdict(one), "verdict": one.word, "allowed": one.kind in self.allowed} for one in self.verdicts]
        return {
            "format": FORMAT,
            "film": None if self.path is None else str(self.path),
            "frames": self.frames,
            "fps": round(self.fps, 4),
            "seconds": round(self.seconds, 4),
            "width": self.size[0],
            "height": self.size[1],
            "clean": self.clean,
            "verdicts": verdicts,
            "findings": [asdict(one) for one in self.findings],
            "notes": self.notes,
        }

    def write_json(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the report. Raises UserError when it cannot be written there."""
        target = check_output(path, (".json",), overwrite)
        with atomic_path(target) as partial:
            partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def table(self) -> str:
        """For a terminal: the film, a verdict a line, the findings."""
        shown = f"{self.size[0]} x {self.size[1]}, {self.frames} frames, {self.fps:.4g} fps, {self.seconds:.2f} s"
        lines = [f"{self.path or 'frames'}: {shown}", *(f"note: {note}" for note in self.notes), ""]
        for one in self.verdicts:
            name = f"{one.what} {one.kind}" if one.what else str(one.kind)
            if one.number is None:
                told = f"needs {one.least_frames} frames" if self.frames < one.least_frames else "too little to go by"
            else:
                told = f"{one.number:.3g} {one.unit}" + ("" if one.limit == 1 else f", limit {one.limit:.3g}")
            word = "allowed" if one.found and one.kind in self.allowed else one.word
            lines.append(f"  {name:<17} {word + (f' {one.found}' if one.found else ''):<11} {told}")
        if self.findings:
            lines += ["", f"  {'seconds':>15} {'frames':>13}"]
        for place in self.findings:
            one_frame = place.start == place.end
            when = clock_of(place.start_s) if one_frame else f"{clock_of(place.start_s)}-{clock_of(place.end_s)}"
            frames = str(place.start) if one_frame else f"{place.start}-{place.end}"
            lines.append(f"  {when:>15} {frames:>13}  {place.kind}: {place.text}")
        lines += ["", "clean" if self.clean else f"{len(self.findings)} found"]
        return "\n".join(lines)


def clock_of(seconds: float) -> str:
    """Seconds with hundredths below a minute, then as people read them."""
    return f"{seconds:.2f}" if seconds < 60 else clock(seconds)


def check_film(path: str | Path, *, allow: Iterable[str] = (), on_frame: OnFrame | None = None) -> Report:
    """Look through a film file for cuts, seams, loops, freezes, drift and flicker.

    The file is decoded once; of each frame about 0.7 KB stay. allow: kinds that are wanted ("cut" in an edited film):
    they are counted in the verdicts, but are no findings. on_frame(read, of): called after each frame; of is 0 where
    the file does not say how many it has. Raises UserError when the file is missing, is no film, or has no pictures.
    """
    allowed = tuple(_kind(name) for name in allow)
    return _judge(Path(path), read_curves(path, on_frame), allowed)


def check_frames(
    frames: Iterable[np.ndarray], fps: float, *, allow: Iterable[str] = (), on_frame: OnFrame | None = None
) -> Report:
    """`check_film` for frames that are no file: uint8 (H, W, 3), all of one size, one by one. Raises UserError when
    there is none."""
    allowed = tuple(_kind(name) for name in allow)
    check_fps(fps)
    curves = measure(pictures_of(frames, fps), on_frame=on_frame)
    if not curves.frames:
        raise UserError("there are no frames to check")
    return _judge(None, curves, allowed)


def _judge(path: Path | None, curves: Curves, allowed: tuple[Kind, ...]) -> Report:
    broken, verdicts = find_breaks(curves)
    jumps = [one.start for one in broken if one.kind is Kind.CUT or one.what == "tone"]
    loops, of_loops = find_loops(curves)
    drifts, of_drifts = find_drift(curves, jumps)
    flickers, of_flickers = find_flicker(curves)
    found = sorted([*broken, *loops, *drifts, *flickers], key=lambda one: (one.start, one.end))
    return Report(
        path=path,
        frames=curves.frames,
        fps=curves.fps,
        seconds=curves.seconds,
        size=curves.size,
        findings=[one for one in found if one.kind not in allowed],
        verdicts=[*verdicts[:2], *of_loops, verdicts[2], *of_drifts, *of_flickers],
        notes=list(curves.notes),
        allowed=allowed,
        curves=curves,
    )


def _kind(name: str) -> Kind:
    try:
        return Kind(name)
    except ValueError:
        raise UserError(f"allow must name kinds of {', '.join(Kind)}; given {str(name)[:40]!r}") from None
