"""The answer of ``longtake watch``: moments with scores, as JSON, CSV or chapters, and as a picture."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from longtake.journal import atomic_path
from longtake.media import check_output
from longtake.outputs import FileKind, Output
from longtake.video.watch.moments import Moment


@dataclass
class Answer(Output):
    """moments: best first. seconds: how long the film is. times, curve: middle of each segment in seconds, its score.
    pictures: for each of the first moments its best picture uint8 (H, W, 3); maps: how much each of its patches speaks
    for what is asked for, 0..1, (h, w). words, model: what a language model said of the moments, and its name; None
    where none was asked."""

    film: str
    question: str
    asked: str
    moments: list[Moment]
    seconds: float
    times: np.ndarray
    curve: np.ndarray
    pictures: list[np.ndarray] = field(default_factory=list)
    maps: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: str | None = None
    model: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What the .json file holds."""
        moments = [
            {
                "start": round(one.start, 3),
                "end": round(one.end, 3),
                "score": round(one.score, 4),
                "best": round(one.best, 3),
                **({} if one.heard is None else {"heard": one.heard}),
            }
            for one in self.moments
        ]
        return {
            "film": self.film,
            "question": self.question,
            "asked": self.asked,
            "seconds": round(self.seconds, 3),
            "moments": moments,
            **({} if self.words is None else {"answer": self.words, "model": self.model}),
            "notes": list(self.notes),
            "completed": bool(self.info.get("completed", True)),
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .json, .csv (a line a moment) or .vtt (the moments as chapters, in order of time)."""
        path = check_output(path, tuple(FILES), overwrite)
        write = {".json": self._json, ".csv": self._csv, ".vtt": self._vtt}[path.suffix.lower()]
        with atomic_path(path) as partial:
            partial.write_text(write(), encoding="utf-8")
        return path

    def _json(self) -> str:
        return json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n"

    def _csv(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["rank", "start", "end", "score"])
        for rank, one in enumerate(self.moments, 1):
            rows.writerow([rank, f"{one.start:.3f}", f"{one.end:.3f}", f"{one.score:.4f}"])
        return text.getvalue()

    def _vtt(self) -> str:
        blocks = ["WEBVTT"]
        ranks = {id(one): rank for rank, one in enumerate(self.moments, 1)}
        for one in sorted(self.moments, key=lambda one: one.start):
            blocks.append(
                f"{_stamp(one.start)} --> {_stamp(one.end)}\n{ranks[id(one)]}. {self.asked} ({one.score:.2f})"
            )
        return "\n\n".join(blocks) + "\n"

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a .png: likeness over time with the moments in it, and their pictures beside where it was seen."""
        from longtake.video.watch.picture import draw

        path = check_output(path, (".png",), overwrite)
        with atomic_path(path) as partial:
            draw(self, partial)
        return path


def _stamp(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    hours, rest = divmod(thousandths, 3_600_000)
    return f"{hours:02d}:{rest // 60_000:02d}:{rest // 1000 % 60:02d}.{rest % 1000:03d}"


def _write(output: Any, path: Path) -> None:
    output.save(path, overwrite=True)


def _whole_json(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8"))["moments"], list):
        raise ValueError(f"{path} has no moments")


def _whole_csv(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("rank,start,end,score\n") or not text.endswith("\n"):
        raise ValueError(f"{path} is cut off")


def _whole_vtt(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("WEBVTT") or not text.endswith("\n"):
        raise ValueError(f"{path} is cut off")


FILES = {
    ".json": FileKind(_write, _whole_json),
    ".csv": FileKind(_write, _whole_csv),
    ".vtt": FileKind(_write, _whole_vtt),
}
