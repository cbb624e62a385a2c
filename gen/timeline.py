"""Timeline: what happens when.

A timeline is a list of prompts, each with the frame at which it starts. A frame is the unit of the modality (a video
frame, a motion frame, a visit); seconds need a frame rate. At a switch the new prompt fades in linearly: with
`blend=8` and a switch at frame 96 its weight is 0 at frame 96, 1/2 at frame 100 and 1 from frame 104 on.

    Timeline.parse("0s: a person walks | 4s: a person jumps", fps=24).weights(100)   # ((0, 0.5), (1, 0.5))

Accepted by `Timeline.parse`:
  - one prompt:        a person walks
  - a string:          0: a person walks | 96: a person jumps        (frames)
                       0s: a person walks | 4.5s: a person jumps     (seconds; ms too)
  - a .json file:      {"segments": [{"start": 0, "prompt": "..."}, {"start": "4s", "prompt": "..."}], "blend": 8}
  - a .csv file:       lines of start,prompt (a header line "start,prompt" may come first)
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_BLEND = 8  # frames; a third of a second at 24 fps

_TIME = re.compile(r"\s*(?P<number>[+-]?\d+(?:\.\d+)?)\s*(?P<unit>s|ms)?\s*")
_STARTS_WITH_TIME = re.compile(r"\s*[+-]?\d+(?:\.\d+)?\s*(?:s|ms)?\s*:")
_FILE_SUFFIXES = (".json", ".csv")


@dataclass(frozen=True)
class Timeline:
    """Prompts with their start frames, and the length of the cross-fade at each switch.

    starts: (start frame, prompt) pairs; the first starts at 0 and the starts increase.
    blend: frames of linear cross-fade after a switch, 0 for a hard cut. A fade ends at the latest where the next
        segment starts, so that no frame hears more than two prompts.
    Raises UserError when the list is empty, unsorted, has equal or negative starts or an empty prompt.
    """

    starts: tuple[tuple[int, str], ...]
    blend: int = DEFAULT_BLEND

    def __post_init__(self) -> None:
        try:
            pairs = [(start, prompt) for start, prompt in self.starts]
        except (TypeError, ValueError):
            raise UserError("a Timeline is a list of (start frame, prompt) pairs") from None
        if not pairs:
            raise UserError("the Timeline is empty: it needs at least one prompt that starts at frame 0")
        previous: int | None = None
        clean: list[tuple[int, str]] = []
        for number, (start, prompt) in enumerate(pairs, 1):
            if isinstance(start, bool) or not hasattr(start, "__index__"):
                raise UserError(f"Timeline segment {number}: the start {start!r} is not a whole number of frames")
            start = int(start)
            if not isinstance(prompt, str) or not prompt.strip():
                raise UserError(f"Timeline segment {number} (frame {start}) has no prompt")
            if start < 0:
                raise UserError(f"Timeline segment {number} starts at frame {start}: starts cannot be negative")
            if previous is None and start != 0:
                raise UserError(f"the first Timeline segment starts at frame {start}; it must start at frame 0")
            if previous is not None and start == previous:
                raise UserError(f"Timeline segments {number - 1} and {number} both start at frame {start}")
            if previous is not None and start < previous:
                raise UserError(
                    f"Timeline segment {number} starts at frame {start}, before segment {number - 1} "
                    f"(frame {previous}): list the segments in order of time"
                )
            previous = start
            clean.append((start, prompt.strip()))
        if isinstance(self.blend, bool) or not hasattr(self.blend, "__index__") or int(self.blend) < 0:
            raise UserError(f"the Timeline's blend is {self.blend!r}; it must be a whole number of frames, 0 or more")
        object.__setattr__(self, "starts", tuple(clean))
        object.__setattr__(self, "blend", int(self.blend))

    # ------------------------------------------------------------------------------------------------- reading

    @classmethod
    def parse(cls, text: str | Path, fps: float | None = None, blend: int | None = None) -> Timeline:
        """Read a prompt, a timeline string, JSON text, or a .json or .csv file (see the module's docstring).

        fps: frames per second, needed only where a start is given in seconds.
        blend: cross-fade in frames; given here it wins over the file's own.
        Raises UserError, one line that names the part at fault.
        """
        if isinstance(text, Path):
            return cls._from_file(text, fps, blend)
        if not text.strip():
            raise UserError("the prompt is empty")
        stripped = text.strip()
        if stripped.startswith("{"):
            return cls._from_json(stripped, "the Timeline", fps, blend)
        if has_times(text):
            return cls._from_string(text, fps, blend)
        if stripped.lower().endswith(_FILE_SUFFIXES) and "\n" not in stripped:
            return cls._from_file(Path(stripped).expanduser(), fps, blend)
        return cls(((0, stripped),), DEFAULT_BLEND if blend is None else blend)

    @classmethod
    def _from_string(cls, text: str, fps: float | None, blend: int | None) -> Timeline:
        segments: list[tuple[int, str]] = []
        for number, part in enumerate(text.split("|"), 1):
            where = f"part {number} of the Timeline, {_shorten(part)!r},"
            start, colon, prompt = part.partition(":")
            if not part.strip():
                raise UserError(f"part {number} of the Timeline is empty: write 'START: prompt | START: prompt'")
            if not colon or not _TIME.fullmatch(start):
                raise UserError(f"{where} has no readable start: write '96: prompt' (frames) or '4s: prompt' (seconds)")
            segments.append((_to_frame(start, fps, where), prompt))
        return cls(tuple(segments), DEFAULT_BLEND if blend is None else blend)

    @classmethod
    def _from_file(cls, path: Path, fps: float | None, blend: int | None) -> Timeline:
        name = f"the Timeline file {path}"
        if path.suffix.lower() not in _FILE_SUFFIXES:
            raise UserError(f"{name} must end in .json or .csv")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise UserError(f"{name} does not exist") from None
        except UnicodeDecodeError:
            raise UserError(f"{name} is not a UTF-8 text file") from None
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from None
        if not content.strip():
            raise UserError(f"{name} is empty")
        if path.suffix.lower() == ".json":
            return cls._from_json(content, name, fps, blend)
        return cls._from_csv(content, name, fps, blend)

    @classmethod
    def _from_json(cls, content: str, name: str, fps: float | None, blend: int | None) -> Timeline:
        try:
            data: Any = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is not valid JSON: {error.msg} at line {error.lineno}") from None
        if not isinstance(data, dict) or not isinstance(data.get("segments"), list):
            raise UserError(f'{name} must be {{"segments": [{{"start": 0, "prompt": "..."}}, ...], "blend": 8}}')
        unknown = sorted(set(data) - {"segments", "blend"})
        if unknown:
            raise UserError(f"{name} has an unknown key {unknown[0]!r}; allowed are 'segments' and 'blend'")
        segments: list[tuple[int, str]] = []
        for number, entry in enumerate(data["segments"], 1):
            where = f"{name}: segment {number}"
            if not isinstance(entry, dict) or set(entry) != {"start", "prompt"}:
                raise UserError(f"{where} must have exactly the keys 'start' and 'prompt'")
            if not isinstance(entry["prompt"], str):
                raise UserError(f"{where}: the prompt must be a string")
            segments.append((_to_frame(entry["start"], fps, where), entry["prompt"]))
        return cls(tuple(segments), data.get("blend", DEFAULT_BLEND) if blend is None else blend)

    @classmethod
    def _from_csv(cls, content: str, name: str, fps: float | None, blend: int | None) -> Timeline:
        segments: list[tuple[int, str]] = []
        try:
            rows = [row for row in csv.reader(io.StringIO(content), skipinitialspace=True, strict=True) if row]
        except csv.Error as error:
            raise UserError(f"{name} is not valid CSV: {error}") from None
        if rows and [cell.strip().lower() for cell in rows[0]] == ["start", "prompt"]:
            rows = rows[1:]
        for number, row in enumerate(rows, 1):
            where = f"{name}: row {number}"
            if len(row) != 2:
                raise UserError(f"{where} has {len(row)} fields, not 2 (start,prompt); quote a prompt that has commas")
            segments.append((_to_frame(row[0], fps, where), row[1]))
        return cls(tuple(segments), DEFAULT_BLEND if blend is None else blend)

    # --------------------------------------------------------------------------------------------------- asking

    @property
    def prompts(self) -> tuple[str, ...]:
        """The different prompts, in order of first appearance. `weights` counts in this tuple."""
        return tuple(dict.fromkeys(prompt for _, prompt in self.starts))

    def weights(self, frame: int) -> tuple[tuple[int, float], ...]:
        """(index in `prompts`, weight) of the one or two prompts at `frame`; weights are positive and sum to 1."""
        if frame < 0:
            raise ValueError(f"frame {frame} is negative")
        prompts = self.prompts
        current = max(i for i, (start, _) in enumerate(self.starts) if start <= frame)
        start, prompt = self.starts[current]
        new = prompts.index(prompt)
        fade = self.blend
        if current + 1 < len(self.starts):
            fade = min(fade, self.starts[current + 1][0] - start)
        if current == 0 or frame >= start + fade:
            return ((new, 1.0),)
        old = prompts.index(self.starts[current - 1][1])
        weight = (frame - start) / fade
        if old == new or weight == 0.0:
            return ((old, 1.0),)
        return ((old, 1.0 - weight), (new, weight))

    def weight_matrix(self, frames: Sequence[int] | Iterable[int]) -> np.ndarray:
        """Weights of all prompts for `frames`: float32 array (len(frames), len(prompts)), rows sum to 1."""
        import numpy as np

        frames = list(frames)
        matrix = np.zeros((len(frames), len(self.prompts)), dtype=np.float32)
        for row, frame in enumerate(frames):
            for index, weight in self.weights(frame):
                matrix[row, index] = weight
        return matrix

    def segments(self, total: int) -> list[tuple[int, int, str]]:
        """(start, stop, prompt) of each segment for a run of `total` frames. Raises UserError like `validate`."""
        self.validate(total)
        stops = [start for start, _ in self.starts[1:]] + [total]
        return [(start, stop, prompt) for (start, prompt), stop in zip(self.starts, stops, strict=True)]

    def validate(self, total_frames: int) -> None:
        """Raise UserError when a segment starts at or after the end of a run of `total_frames` frames."""
        for number, (start, prompt) in enumerate(self.starts, 1):
            if start >= total_frames:
                raise UserError(
                    f"Timeline segment {number} ({_shorten(prompt)!r}) starts at frame {start}, but the run has only "
                    f"{total_frames} frames"
                )

    def to_json(self) -> str:
        """JSON text that `Timeline.parse` reads back to an equal timeline; starts are in frames."""
        segments = [{"start": start, "prompt": prompt} for start, prompt in self.starts]
        return json.dumps({"segments": segments, "blend": self.blend}, ensure_ascii=False)


def has_times(text: str) -> bool:
    """Whether a text is a timeline string ("0s: walks | 4s: waves") rather than one prompt."""
    return "|" in text or _STARTS_WITH_TIME.match(text) is not None


def _to_frame(value: Any, fps: float | None, where: str) -> int:
    """A start given as a number of frames (96, "96") or a time ("4s", "250ms") as a frame number."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if match is None:
        raise UserError(f"{where} has the start {value!r}: write a whole number of frames (96) or seconds ('4s')")
    number, unit = match["number"], match["unit"]
    if unit is None:
        if "." in number:
            raise UserError(f"{where} has the start {number}: frames are whole numbers; for seconds write {number}s")
        return int(number)
    if fps is None:
        raise UserError(f"{where} gives its start in seconds, which needs a frame rate (fps); none was given")
    seconds = float(number) / (1000.0 if unit == "ms" else 1.0)
    return round(seconds * fps)


def _shorten(text: str, limit: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
