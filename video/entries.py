"""The videos that an evaluation compares: who makes them, and where they are kept.

Each generated video is kept without loss under a name made of all that decides it, so that a rerun makes only what is
missing.

    videos = make_all(pipe, [Entry(Method.LONGTAKE, "running", "a barbarian runs", 240, seed=0)], settings, folder)
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.timeline import Timeline
from longtake.video.metrics import WINDOW

if TYPE_CHECKING:
    import torch
    from longtake.video.pipeline import LongVideoPipeline

_FORMAT = 2
MEGABYTE = 2**20


class Method(StrEnum):
    """Where a row's videos come from.

    Members:
        REAL: real clips, looped to the length; clips that the evaluator was not trained on where the data has them.
        SHORT: 16-frame clips of the prior.
        LONGTAKE: LongVideoPipeline as it comes.
        JOINED: independent 16-frame clips, one after the other.
        STOCK: the stock model over all frames.
        FREENOISE: shuffled noise and windowed temporal attention.
        TIMELINE: LongVideoPipeline by a Timeline; the entry's prompt is its JSON text.
    """

    REAL = "real"
    SHORT = "short"
    LONGTAKE = "longtake"
    JOINED = "joined"
    STOCK = "stock"
    FREENOISE = "freenoise"
    TIMELINE = "timeline"


LONG_METHODS = (Method.LONGTAKE, Method.JOINED, Method.STOCK, Method.FREENOISE)
LABELS = {
    Method.REAL: "real clips, looped",
    Method.LONGTAKE: "longtake",
    Method.JOINED: "independent clips joined",
    Method.STOCK: "one stock run over all frames",
    Method.FREENOISE: "FreeNoise",
}


@dataclass(frozen=True)
class Entry:
    """One video to judge: ``prompt`` is what the model is told, ``subject`` what must be seen."""

    method: Method
    subject: str
    prompt: str
    frames: int
    seed: int


@dataclass
class Video:
    """A video of an entry: frames uint8 (F, H, W, 3), the wall-clock seconds of its making (0: none, real), and the
    memory that it needed at most beside the loaded model, in MB (0: not known)."""

    frames: np.ndarray
    seconds: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What is the same for all generated videos; ``prior_hash`` is of its weights."""

    prior_hash: str
    steps: int
    guidance: float
    dtype: str = "float32"


def entry_mark(entry: Entry, settings: Settings) -> str:
    """Name of an entry's file: readable, and with a hash of all that decides the video."""
    from longtake.journal import fingerprint
    from longtake.video.pipeline import default_scope

    plan: dict[str, Any] = {"format": _FORMAT, **asdict(entry), **asdict(settings)}
    if entry.method in (Method.LONGTAKE, Method.TIMELINE):
        plan["scope"] = asdict(default_scope(entry.frames))
    return f"{entry.method}-{entry.frames}-{entry.subject.replace(' ', '_')}-{fingerprint(plan)[:12]}"


def read_video(path: Path) -> Video:
    """A video written by ``write_video``; raises UserError when the file is damaged."""
    from longtake.weights import load_state

    state = load_state(path)
    return Video(state["frames"].numpy(), float(state["seconds"]), float(state["memory"]))


def write_video(path: Path, video: Video) -> None:
    """Keep a video without loss, atomically."""
    import torch
    from longtake.journal import write_tensors

    facts = {name: torch.tensor(getattr(video, name)) for name in ("seconds", "memory")}
    write_tensors(path, {"frames": torch.from_numpy(video.frames), **facts})


class Peak:
    """The most memory that a block took beside what was held when it began, ``megabytes`` of it (0: not known).

    On an accelerator what torch allocated; on a CPU the resident memory of this process, which Linux counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes = 0.0
        self._began = 0

    def __enter__(self) -> Peak:
        import torch

        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
            self._began = torch.accelerator.memory_allocated(self.device)
            return self
        gc.collect()
        with suppress(OSError, AttributeError):  # a C library that keeps freed memory gives it back
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            self._began = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self.device.type != "cpu":
            self.megabytes = (torch.accelerator.max_memory_allocated(self.device) - self._began) / MEGABYTE
        elif self._began:
            self.megabytes = max(0.0, (_resident("VmHWM") - self._began) / MEGABYTE)


def _resident(name: str) -> int:
    """Bytes of a line of /proc/self/status, which counts in kB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(lines[name].split()[0])


def make(pipe: LongVideoPipeline, entry: Entry, settings: Settings, on_step: Callable[[int], object]) -> np.ndarray:
    """Generate the video of one long entry, uint8 (F, H, W, 3); on_step(frames) is called after each model step."""
    from longtake.video import baselines

    if entry.method in (Method.LONGTAKE, Method.TIMELINE):
        film = pipe(
            Timeline.parse(entry.prompt) if entry.method is Method.TIMELINE else entry.prompt,
            frames=entry.frames,
            seed=entry.seed,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            callback_on_step_end=lambda *_: on_step(entry.frames),
        ).frames
        assert isinstance(film, np.ndarray)
        return film
    method = {Method.JOINED: baselines.joined, Method.STOCK: baselines.stock, Method.FREENOISE: baselines.freenoise}
    return method[entry.method](
        pipe, entry.prompt, entry.frames, entry.seed, steps=settings.steps, guidance=settings.guidance, on_step=on_step
    )


def missing(asked: Sequence[Entry], settings: Settings, folder: Path) -> list[Entry]:
    """Those of the asked whose videos are not in ``folder`` yet."""
    every = dict.fromkeys(asked)
    return [entry for entry in every if not (folder / f"{entry_mark(entry, settings)}.safetensors").exists()]


def make_all(
    pipe: LongVideoPipeline, asked: Sequence[Entry], settings: Settings, folder: Path, *, minutes: float = 0
) -> dict[Entry, Video]:
    """The videos of the asked: those in ``folder`` are read, the others made in order and kept there.

    minutes: wall-clock limit, 0 for none; an entry that would not end in time, judged by the slowest so far, is passed
    over and its video is missing from the result. Short clips are made several at once and share their seconds.
    """
    from longtake.video import baselines
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    paths = {entry: folder / f"{entry_mark(entry, settings)}.safetensors" for entry in asked}
    open_ = missing(asked, settings, folder)
    pipe.set_progress_bar_config(disable=True)
    if open_:
        pipe.encode_prompts([""])  # loads the text encoder, which is no part of any entry's seconds
    began, slowest = time.perf_counter(), 0.0  # slowest: seconds a frame
    # the joined baseline always denoises whole clips
    work = sum(-(-entry.frames // WINDOW) * WINDOW for entry in open_) * settings.steps
    with tqdm(total=work, desc="videos", unit="frame step", unit_scale=True, disable=not open_) as bar:
        for group in _together(open_, baselines.CLIPS_AT_ONCE):
            frames = sum(entry.frames for entry in group)
            started = time.perf_counter()
            if minutes and started - began + slowest * frames > 60 * minutes:
                continue
            bar.set_postfix_str(f"{group[0].method}, {group[0].frames} frames: {group[0].subject}")
            with Peak(pipe.unet.device) as peak:
                if group[0].method is Method.SHORT:
                    prompts, seed = [entry.prompt for entry in group], group[0].seed
                    films = baselines.short_clips(
                        pipe, prompts, seed, steps=settings.steps, guidance=settings.guidance, on_step=bar.update
                    )
                else:
                    films = [make(pipe, group[0], settings, bar.update)]
                seconds = time.perf_counter() - started
            slowest = max(slowest, seconds / frames)
            for entry, film in zip(group, films, strict=True):
                write_video(paths[entry], Video(film, seconds / len(group), peak.megabytes))
    return {entry: read_video(path) for entry, path in paths.items() if path.exists()}


def _together(asked: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Entries in order, up to ``limit`` neighbours of kind SHORT with one seed as one group, any other alone."""
    groups: list[list[Entry]] = []
    for entry in asked:
        last = groups[-1] if groups else []
        alike = bool(last) and (last[0].method, last[0].seed) == (entry.method, entry.seed)
        joins = alike and entry.method is Method.SHORT
        if joins and len(last) < limit:
            last.append(entry)
        else:
            groups.append([entry])
    return groups
