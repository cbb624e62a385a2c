"""Timeline: what happens when.

A timeline is a list of prompts, each with the frame at which it starts. A frame is the unit of the modality (a video
frame, a motion frame, a visit); seconds need a frame rate. The new prompt fades in linearly, and the middle of the
fade is the frame that was asked for: with `blend=8` and a switch at frame 96 its weight is 0 up to frame 92, 1/2 at
frame 96 and 1 from frame 100 on.

    Timeline.parse("0s: a person walks | 4s: a person jumps", fps=24).weights(96)   # ((0, 0.5), (1, 0.5))

Accepted by `Timeline.parse`:
  - one prompt:        a person walks
  - a string:          0: a person walks | 96: a person jumps        (frames)
                       0s: a person walks | 4.5s: a person jumps     (seconds; ms too)
  - a .json file:      {"segments": [{"start": 0, "prompt": "..."}, {"start": "4s", "prompt": "..."}], "blend": 8}
  - a .csv file:       lines of start,prompt (a header line "start,prompt" may come first)

Limits: 2,000 letters a prompt, starts up to frame 1,000,000,000, files up to 16 MiB. Messages speak the unit that was
written: a start given as "4s" is called 4 s.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, shorten
from longtake.reading import local_path, parse_json, read_text

if TYPE_CHECKING:
    import numpy as np

DEFAULT_BLEND = 8  # frames; a third of a second at 24 fps

MAX_PROMPT = 2_000  # letters; more than a page
MAX_FRAME = 1_000_000_000  # more than a year at 24 frames a second
_MAX_FILE_BYTES = 16 * 2**20

_TIME = re.compile(r"\s*(?P<number>[+-]?\d+(?:\.\d+)?)\s*(?P<unit>s|ms)?\s*")
_STARTS_WITH_TIME = re.compile(r"\s*[+-]?\d+(?:\.\d+)?\s*(?:s|ms)?\s*:")
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")  # control characters and halves of surrogate pairs
_FILE_SUFFIXES = (".json", ".csv")


@dataclass(frozen=True)
class Timeline:
    """Prompts with their start frames, and the length of the cross-fade at each switch.

    starts: (start frame, prompt) pairs; the first starts at 0 and the starts increase.
    blend: frames of linear cross-fade around a switch, 0 for a hard cut. A fade stays centred and gets shorter where
        there is no room: it reaches half way into a segment that another fade ends or begins, and at most to the first
        frame and to the last one of a run whose length is told. So no frame hears more than two prompts, and a run
        begins and ends with one.
    written: for messages, how each start was written ("4 s"; None: as a frame); not a part of the value.
    fps: frames per second that seconds were converted with, for messages too.
    Raises UserError when the list is empty, unsorted, has equal, negative or enormous starts, or a prompt that is
    empty, longer than MAX_PROMPT letters or no text.
    """

    starts: tuple[tuple[int, str], ...]
    blend: int = DEFAULT_BLEND
    written: tuple[str | None, ...] = field(default=(), compare=False, repr=False)
    fps: float | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        try:
            pairs = [(start, prompt) for start, prompt in self.starts]
        except (TypeError, ValueError):
            raise UserError("a Timeline is a list of (start frame, prompt) pairs") from None
        if not pairs:
            raise UserError("the Timeline is empty: it needs at least one prompt that starts at frame 0")
        if len(self.written) != len(pairs):
            object.__setattr__(self, "written", (None,) * len(pairs))
        previous: int | None = None
        clean: list[tuple[int, str]] = []
        for number, (start, prompt) in enumerate(pairs, 1):
            start = _whole(start, f"Timeline segment {number}: the start")
            at = self._at(number - 1, start)
            _check_prompt(prompt, f"Timeline segment {number} ({at})")
            if start < 0:
                raise UserError(f"Timeline segment {number} starts at {at}: starts cannot be negative")
            if previous is None and start != 0:
                raise UserError(f"the first Timeline segment starts at {at}; it must start at frame 0")
            if previous is not None and start <= previous:
                before = self._at(number - 2, previous)
                if start < previous:
                    raise UserError(
                        f"Timeline segment {number} starts at {at}, before segment {number - 1} ({before}): list the "
                        "segments in order of time"
                    )
                both = f"frame {start}" if at == before else f"frame {start} ({before} and {at})"
                raise UserError(f"Timeline segments {number - 1} and {number} both start at {both}")
            previous = start
            clean.append((start, prompt.strip()))
        if isinstance(self.blend, bool) or not hasattr(self.blend, "__index__") or not 0 <= self.blend <= MAX_FRAME:
            given = shorten(str(self.blend)) if isinstance(self.blend, float) else _told(self.blend)
            raise UserError(f"the Timeline's blend is {given}; it must be a whole number of frames, 0 or more")
        object.__setattr__(self, "starts", tuple(clean))
        object.__setattr__(self, "blend", int(self.blend))

    def _at(self, index: int, start: int) -> str:
        """A start in the unit that was written: "frame 96" or "4 s"."""
        return self.written[index] or f"frame {start}"

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
        if not isinstance(text, str):
            raise UserError(f"the prompt is {_told(text)}; it must be a text")
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise UserError(f"fps is {fps}; it must be a number greater than 0")
        if not text.strip():
            raise UserError("the prompt is empty")
        stripped = text.strip()
        if stripped.startswith("{"):
            return cls._from_json(stripped, "the Timeline", fps, blend)
        if has_times(text):
            return cls._from_string(text, fps, blend)
        if stripped.lower().endswith(_FILE_SUFFIXES) and "\n" not in stripped:
            return cls._from_file(local_path(stripped), fps, blend)
        return cls(((0, stripped),), DEFAULT_BLEND if blend is None else blend)

    @classmethod
    def _build(cls, found: list[tuple[_Start, str]], fps: float | None, blend: int | None) -> Timeline:
        starts = tuple((start.frame, prompt) for start, prompt in found)
        written = tuple(start.written for start, _ in found)
        return cls(starts, DEFAULT_BLEND if blend is None else blend, written, fps)

    @classmethod
    def _from_string(cls, text: str, fps: float | None, blend: int | None) -> Timeline:
        found: list[tuple[_Start, str]] = []
        for number, part in enumerate(text.split("|"), 1):
            where = f"part {number} of the Timeline, {shorten(part, 40)!r},"
            start, colon, prompt = part.partition(":")
            if not part.strip():
                raise UserError(f"part {number} of the Timeline is empty: write 'START: prompt | START: prompt'")
            if not colon or not _TIME.fullmatch(start):
                raise UserError(f"{where} has no readable start: write '96: prompt' (frames) or '4s: prompt' (seconds)")
            found.append((_read_start(start, fps, where), prompt))
        return cls._build(found, fps, blend)

    @classmethod
    def _from_file(cls, path: Path, fps: float | None, blend: int | None) -> Timeline:
        name = f"the Timeline file {path}"
        if path.suffix.lower() not in _FILE_SUFFIXES:
            raise UserError(f"{name} must end in .json or .csv")
        content = read_text(path, name, _MAX_FILE_BYTES)
        if not content.strip():
            raise UserError(f"{name} is empty")
        if path.suffix.lower() == ".json":
            return cls._from_json(content, name, fps, blend)
        return cls._from_csv(content, name, fps, blend)

    @classmethod
    def _from_json(cls, content: str, name: str, fps: float | None, blend: int | None) -> Timeline:
        data = parse_json(content, name)
        if not isinstance(data, dict) or not isinstance(data.get("segments"), list):
            raise UserError(f'{name} must be {{"segments": [{{"start": 0, "prompt": "..."}}, ...], "blend": 8}}')
        unknown = sorted(set(data) - {"segments", "blend"})
        if unknown:
            raise UserError(f"{name} has an unknown key {_told(unknown[0])}; allowed are 'segments' and 'blend'")
        found: list[tuple[_Start, str]] = []
        for number, entry in enumerate(data["segments"], 1):
            where = f"{name}: segment {number}"
            if not isinstance(entry, dict) or set(entry) != {"start", "prompt"}:
                raise UserError(f"{where} must have exactly the keys 'start' and 'prompt'")
            if not isinstance(entry["prompt"], str):
                raise UserError(f"{where}: the prompt must be a string")
            found.append((_read_start(entry["start"], fps, where), entry["prompt"]))
        return cls._build(found, fps, data.get("blend", DEFAULT_BLEND) if blend is None else blend)

    @classmethod
    def _from_csv(cls, content: str, name: str, fps: float | None, blend: int | None) -> Timeline:
        found: list[tuple[_Start, str]] = []
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
            found.append((_read_start(row[0], fps, where), row[1]))
        return cls._build(found, fps, blend)

    # --------------------------------------------------------------------------------------------------- asking

    @property
    def prompts(self) -> tuple[str, ...]:
        """The different prompts, in order of first appearance. `weights` counts in this tuple."""
        return tuple(dict.fromkeys(prompt for _, prompt in self.starts))

    def weights(self, frame: int, total: int | None = None) -> tuple[tuple[int, float], ...]:
        """(index in `prompts`, weight) of the one or two prompts at `frame`; weights are positive and sum to 1.

        total: frames of the run; its last frame then hears the last prompt alone. None: a run without an end.
        """
        if frame < 0:
            raise ValueError(f"frame {frame} is negative")
        prompts = self.prompts
        current = bisect_right(self.starts, frame, key=lambda segment: segment[0]) - 1
        new = prompts.index(self.starts[current][1])
        for switch in (current, current + 1):  # the fade that this segment began with, the one that ends it
            if not 1 <= switch < len(self.starts):
                continue
            reach = self._reach(switch, total)
            distance = frame - self.starts[switch][0]
            if abs(distance) < reach:
                old, new = (prompts.index(self.starts[index][1]) for index in (switch - 1, switch))
                weight = 0.5 + distance / (2 * reach)
                return ((old, 1.0),) if old == new else ((old, 1.0 - weight), (new, weight))
        return ((new, 1.0),)

    def _reach(self, switch: int, total: int | None) -> float:
        """Frames that the fade of segment `switch` (1 or more) reaches to each side of its start."""
        before, start = self.starts[switch - 1][0], self.starts[switch][0]
        reach = min(self.blend / 2, (start - before) / (1 if switch == 1 else 2))
        if switch + 1 < len(self.starts):
            return min(reach, (self.starts[switch + 1][0] - start) / 2)
        return reach if total is None else max(0, min(reach, total - 1 - start))

    def weight_matrix(self, frames: Sequence[int] | Iterable[int], total: int | None = None) -> np.ndarray:
        """Weights of all prompts for `frames`: float32 array (len(frames), len(prompts)), rows sum to 1; total: as in
        `weights`."""
        import numpy as np

        frames = list(frames)
        matrix = np.zeros((len(frames), len(self.prompts)), dtype=np.float32)
        for row, frame in enumerate(frames):
            for index, weight in self.weights(frame, total):
                matrix[row, index] = weight
        return matrix

    def after(self, earlier: str, total: int) -> Timeline:
        """This timeline for `total` frames that go on from a film whose last frames heard the prompt `earlier`.

        The frames before are fixed, so the fade lies behind the border: frame 0 hears `earlier` alone, the middle of
        the fade is half a blend later. Without room for that (or with blend 0) the first prompt begins at once.
        """
        end = self.starts[1][0] if len(self.starts) > 1 else total
        middle = min((self.blend + 1) // 2, end // 2)
        if middle < 1 or middle >= end:
            return self
        (_, first), *others = self.starts
        return replace(self, starts=((0, earlier), (middle, first), *others), written=(None, None, *self.written[1:]))

    def segments(self, total: int) -> list[tuple[int, int, str]]:
        """(start, stop, prompt) of each segment for a run of `total` frames. Raises UserError like `validate`."""
        self.validate(total)
        stops = [start for start, _ in self.starts[1:]] + [total]
        return [(start, stop, prompt) for (start, prompt), stop in zip(self.starts, stops, strict=True)]

    def validate(self, total_frames: int) -> None:
        """Raise UserError when a segment starts at or after the end of a run of `total_frames` frames."""
        for index, (start, prompt) in enumerate(self.starts):
            if start >= total_frames:
                length = f"{total_frames} frames"
                if self.written[index] and self.fps:
                    length = f"{total_frames / self.fps:.3g} s ({total_frames} frames at {self.fps:g} fps)"
                raise UserError(
                    f"Timeline segment {index + 1} ({shorten(prompt, 40)!r}) starts at {self._at(index, start)}, but "
                    f"the run has only {length}"
                )

    def to_json(self) -> str:
        """JSON text that `Timeline.parse` reads back to an equal timeline; starts are in frames."""
        segments = [{"start": start, "prompt": prompt} for start, prompt in self.starts]
        return json.dumps({"segments": segments, "blend": self.blend}, ensure_ascii=False)


def has_times(text: str) -> bool:
    """Whether a text is a timeline string ("0s: walks | 4s: waves") rather than one prompt."""
    return "|" in text or _STARTS_WITH_TIME.match(text) is not None


@dataclass(frozen=True)
class _Start:
    """frame: where a segment starts. written: "4 s" where it was given as a time, None where as a frame."""

    frame: int
    written: str | None = None


def _read_start(value: Any, fps: float | None, where: str) -> _Start:
    """A start given as a number of frames (96, "96") or a time ("4s", "250ms"). Raises UserError, naming `where`."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return _Start(_whole(value, f"{where} has a start that"))
    if match is None:
        raise UserError(f"{where} has the start {_told(value)}: write a whole number of frames (96) or seconds ('4s')")
    number, unit = match["number"], match["unit"]
    if len(number) > 30:
        raise UserError(f"{where} has the start {shorten(number, 20)}, of {len(number)} letters; the most are 30")
    if unit is None:
        if "." in number:
            raise UserError(f"{where} has the start {number}: frames are whole numbers; for seconds write {number}s")
        return _Start(_whole(int(number), f"{where} has a start that"))
    if fps is None:
        raise UserError(f"{where} gives its start in seconds, which needs a frame rate (fps); none was given")
    seconds = float(number) / (1000.0 if unit == "ms" else 1.0)
    if abs(seconds) * fps > MAX_FRAME:
        raise UserError(f"{where} has the start {number} {unit}, beyond frame {MAX_FRAME}, the last allowed")
    return _Start(round(seconds * fps), f"{number} {unit}")


def _whole(value: Any, what: str) -> int:
    """A frame number within the limits, or UserError that begins with `what`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UserError(f"{what} {_told(value)} is not a whole number of frames")
    if not -MAX_FRAME <= value <= MAX_FRAME:
        raise UserError(f"{what} is beyond frame {MAX_FRAME}, the last allowed")
    return int(value)


def _check_prompt(prompt: Any, where: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where} has no prompt")
    if len(prompt.strip()) > MAX_PROMPT:
        raise UserError(f"{where} has a prompt of {len(prompt.strip())} letters; the most are {MAX_PROMPT}")
    wrong = _NO_TEXT.search(prompt)
    if wrong is not None:
        raise UserError(f"{where} has a prompt with U+{ord(wrong[0]):04X}, which is no letter of a text")


def _told(value: Any) -> str:
    """`repr` for a message: one short line, whatever the value."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python converts
        text = f"a number of about {value.bit_length() * 3 // 10} digits"
    return shorten(text.encode("utf-8", "backslashreplace").decode(), 60)
