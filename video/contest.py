"""The videos that an evaluation compares: who makes them, and where they are kept.

Each generated video is kept without loss under a name made of all that decides it, so that a rerun makes only what is
missing.

    videos = make_all(pipe, [Job(Method.LONGTAKE, "running", "person running", 240, seed=0)], settings, folder)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from longtake.video.pipeline import LongVideoPipeline

_FORMAT = 1


class Method(StrEnum):
    """Where a row's videos come from.

    Members:
        REAL: real clips, looped to the length; clips that the evaluator was not trained on where the data has them.
        REBUILT: the same through the prior's autoencoder: the best that any sampler of this prior can reach.
        SHORT: 16-frame clips of the prior.
        LONGTAKE: LongVideoPipeline as it comes.
        JOINED: independent 16-frame clips, one after the other.
        STOCK: the stock model over all frames.
        FREENOISE: shuffled noise and windowed temporal attention.
    """

    REAL = "real"
    REBUILT = "rebuilt"
    SHORT = "short"
    LONGTAKE = "longtake"
    JOINED = "joined"
    STOCK = "stock"
    FREENOISE = "freenoise"


LONG_METHODS = (Method.LONGTAKE, Method.JOINED, Method.STOCK, Method.FREENOISE)
LABELS = {
    Method.REAL: "real clips, looped",
    Method.REBUILT: "real clips through the autoencoder",
    Method.LONGTAKE: "longtake",
    Method.JOINED: "independent clips joined",
    Method.STOCK: "one stock run over all frames",
    Method.FREENOISE: "FreeNoise",
}


@dataclass(frozen=True)
class Job:
    """One video to judge: ``prompt`` is what the model is told, ``subject`` what must be seen."""

    method: Method
    subject: str
    prompt: str
    frames: int
    seed: int


@dataclass
class Video:
    """A video of a job: frames uint8 (F, H, W, 3), and the wall-clock seconds its generation took (0: none, real)."""

    frames: np.ndarray
    seconds: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What is the same for all generated videos; ``prior`` is the hash of its weights."""

    prior: str
    steps: int
    guidance: float


def prior_hash(folder: Path) -> str:
    """Hash of a prior's weights and configs, not of its model card."""
    from longtake.journal import fingerprint
    from longtake.weights import file_hash

    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".bin")]
    return fingerprint({str(path.relative_to(folder)): file_hash(path) for path in files})


def job_mark(job: Job, settings: Settings) -> str:
    """Name of a job's file: readable, and with a hash of all that decides the video."""
    from longtake.journal import fingerprint
    from longtake.video.pipeline import default_scope

    plan: dict[str, Any] = {"format": _FORMAT, **asdict(job), **asdict(settings)}
    if job.method is Method.LONGTAKE:
        plan["scope"] = asdict(default_scope(job.frames))
    return f"{job.method}-{job.frames}-{job.subject.replace(' ', '_')}-{fingerprint(plan)[:12]}"


def read_video(path: Path) -> Video:
    """A video written by ``write_video``; raises UserError when the file is damaged."""
    from longtake.weights import load_state

    state = load_state(path)
    return Video(state["frames"].numpy(), float(state["seconds"]))


def write_video(path: Path, video: Video) -> None:
    """Keep a video without loss, atomically."""
    import torch
    from longtake.journal import write_tensors

    write_tensors(path, {"frames": torch.from_numpy(video.frames), "seconds": torch.tensor(video.seconds)})


def make(pipe: LongVideoPipeline, job: Job, settings: Settings, on_step: Callable[[int], None]) -> np.ndarray:
    """Generate the video of one long job, uint8 (F, H, W, 3); on_step(frames) is called after each model step."""
    from longtake.video import baselines

    if job.method is Method.LONGTAKE:
        return pipe(
            job.prompt,
            frames=job.frames,
            seed=job.seed,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            callback_on_step_end=lambda *_: on_step(job.frames),
        ).frames
    method = {Method.JOINED: baselines.joined, Method.STOCK: baselines.stock, Method.FREENOISE: baselines.freenoise}
    return method[job.method](
        pipe, job.prompt, job.frames, job.seed, steps=settings.steps, guidance=settings.guidance, on_step=on_step
    )


def make_all(pipe: LongVideoPipeline, jobs: Sequence[Job], settings: Settings, folder: Path) -> dict[Job, Video]:
    """The videos of all jobs: those in ``folder`` are read, the others made and kept there. Short ones are made in
    batches."""
    from longtake.video import baselines
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    paths = {job: folder / f"{job_mark(job, settings)}.safetensors" for job in jobs}
    missing = [job for job in jobs if not paths[job].exists()]
    todo = {job.method: [other for other in missing if other.method is job.method] for job in missing}
    pipe.set_progress_bar_config(disable=True)
    # the joined baseline always denoises whole clips
    work = sum(-(-job.frames // 16) * 16 for job in missing) * settings.steps
    with tqdm(total=work, desc="videos", unit="frame step", unit_scale=True, disable=not missing) as bar:

        def on_step(frames: int) -> None:
            bar.update(frames)

        short = todo.pop(Method.SHORT, [])
        for first in range(0, len(short), baselines.CLIPS_AT_ONCE):
            part = short[first : first + baselines.CLIPS_AT_ONCE]
            bar.set_postfix_str(f"{len(short)} clips of 16 frames")
            started = time.perf_counter()
            clips = baselines.short_clips(
                pipe,
                [job.prompt for job in part],
                part[0].seed,
                steps=settings.steps,
                guidance=settings.guidance,
                on_step=on_step,
            )
            seconds = (time.perf_counter() - started) / len(part)
            for job, clip in zip(part, clips, strict=True):
                write_video(paths[job], Video(clip, seconds))
        for job in (job for group in todo.values() for job in group):
            bar.set_postfix_str(f"{job.method}, {job.frames} frames: {job.subject}")
            started = time.perf_counter()
            frames = make(pipe, job, settings, on_step)
            write_video(paths[job], Video(frames, time.perf_counter() - started))
    return {job: read_video(path) for job, path in paths.items()}
