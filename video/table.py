"""Judging sets of videos, and the table of ``longtake evaluate video`` as text, markdown and pictures.

judge = Judge(evaluator, clips)
row = judge.row("longtake", 240, [("running", video), ...])
print(markdown([row], about))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.evaluation import Table, figure
from longtake.video import metrics
from longtake.video.entries import Entry, Video
from longtake.video.evaluator import Evaluator, real_windows

if TYPE_CHECKING:
    from longtake.video.data import Clip

SHEET_FRAMES = 16
EACH = 4  # of the real windows, every fourth: the evaluator's report has the accuracy of all
FPS = 12.0  # of the clips the prior was trained on


@dataclass
class Row:
    """One line of the table; None where there is no figure (a 16-frame clip has no border, no video no subject).

    videos: how many. windows_right: share of 16-frame windows whose first guess is the subject. start: share right in
    the first window. kept: share right in the first and the last. cosine: of first and last embedding, mean. border:
    border over inside difference, border_error its standard error by chance. flicker, motion: over those of real
    clips of the subject, geometric means. seconds: wall clock for 100 frames, with decoding. each: of every video.
    """

    label: str
    frames: int
    videos: int
    windows_right: float | None
    border: float | None
    border_error: float | None
    flicker: float | None
    motion: float | None
    each: list[dict[str, Any]]
    seconds: float | None = None
    start: float | None = None
    kept: float | None = None
    cosine: float | None = None


class Judge:
    """Measures videos against real clips of their subject."""

    def __init__(self, evaluator: Evaluator, clips: Sequence[Clip]) -> None:
        self.evaluator = evaluator
        self.clips = clips
        self._real: dict[str, tuple[float, float]] = {}

    def real(self, subject: str) -> tuple[float, float]:
        """Flicker and motion (grey levels a frame) of the subject's real clips, each played twice: means over clips."""
        if subject not in self._real:
            loops = [c.frames[c.window(0, 2 * len(c.frames))] for c in self.clips if c.subject == subject]
            figures = np.array([(metrics.flicker(loop), metrics.motion(loop)) for loop in loops])
            self._real[subject] = tuple(float(value) for value in np.nanmean(figures, 0))  # type: ignore[assignment]
        return self._real[subject]

    def row(self, label: str, frames: int, videos: Sequence[tuple[str, Video]]) -> Row:
        """The row of some videos, each uint8 (frames, 64, 64, 3) with the subject its prompt names."""
        each: list[dict[str, Any]] = []
        steps: list[np.ndarray] = []
        for subject, video in videos:
            if len(video.frames) != frames:
                raise ValueError(f"{label}: a video of {subject!r} has {len(video.frames)} frames, not {frames}")
            seen = metrics.judge(video.frames, self.evaluator, subject)
            flicker, motion = self.real(subject)
            steps.append(metrics.frame_steps(video.frames))
            each.append(
                {
                    "subject": subject,
                    "windows_right": seen.windows_right,
                    "start": seen.start,
                    "kept": seen.kept,
                    "cosine": seen.cosine,
                    "border": _known(metrics.border_ratio(steps[-1])),
                    "flicker": _known(metrics.flicker(video.frames) / flicker),
                    "motion": _known(float(steps[-1].mean()) / motion),
                    "seconds": 100 * video.seconds / frames if video.seconds else None,
                }
            )
        many = frames > metrics.WINDOW
        mean = {
            name: _mean([one[name] for one in each])
            for name in ("windows_right", "start", "kept", "cosine", "seconds")
            if many or name not in ("start", "kept", "cosine")
        }
        return Row(
            label=label,
            frames=frames,
            videos=len(each),
            border=_known(metrics.border_ratio(steps)) if many and steps else None,
            border_error=_known(metrics.border_error(steps)) if many and steps else None,
            flicker=geometric_mean([one["flicker"] for one in each]),
            motion=geometric_mean([one["motion"] for one in each]),
            each=each,
            **mean,
        )


def real_rows(judge: Judge, vae: Any) -> list[Row]:
    """16-frame windows of real clips, plain and through the prior's autoencoder: the best a sampler of it can reach.

    "unseen clip" and "unseen start": see ``real_windows``. vae: a FrameAutoencoder; another kind has no second rows.
    """
    from longtake.video.prior import FrameAutoencoder

    rows = []
    kinds = {True: "unseen clip", False: "unseen start"}
    for held_out, kind in kinds.items():
        windows, subjects = real_windows(judge.clips, held_out=held_out)
        if not subjects:
            continue
        picked = list(zip(subjects, windows, strict=True))[::EACH]
        plain = [(subject, Video(window)) for subject, window in picked]
        rows.append(judge.row(f"real, {kind}", metrics.WINDOW, plain))
        if isinstance(vae, FrameAutoencoder):
            rebuilt = [(subject, Video(rebuild(vae, video.frames))) for subject, video in plain]
            rows.append(judge.row(f"real through the autoencoder, {kind}", metrics.WINDOW, rebuilt))
    return rows


def rebuild(vae: Any, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 (F, H, W, 3) through a FrameAutoencoder and back."""
    import torch
    from longtake.video.decode import decode_chunk

    weight = next(vae.parameters())
    with torch.inference_mode():
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).to(weight) / 127.5 - 1
        return decode_chunk(vae, vae.encode(images).latent * vae.config.scaling_factor)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Geometric mean of the positive numbers among ``values``: the mean of ratios, for which 2 and 1/2 cancel."""
    known = [value for value in values if value is not None and value > 0]
    return float(np.exp(np.mean(np.log(known)))) if known else None


# ------------------------------------------------------------------------------------------------------ text


TABLE = Table(
    {
        "method": lambda row: row.label,
        "frames": lambda row: str(row.frames),
        "videos": lambda row: str(row.videos),
        "windows right": lambda row: figure(row.windows_right, 2),
        "start right": lambda row: figure(row.start, 2),
        "kept": lambda row: figure(row.kept, 2),
        "cosine": lambda row: figure(row.cosine, 2),
        "border": lambda row: figure(row.border, 2) + _plus_or_minus(row.border_error),
        "flicker/real": lambda row: figure(row.flicker, 2),
        "motion/real": lambda row: figure(row.motion, 2),
        "s/100 frames": lambda row: figure(row.seconds, 2),
    }
)


def _plus_or_minus(error: float | None) -> str:
    return "" if error is None else f"±{error:.2f}"


def describe_evaluator(report: dict[str, Any]) -> str:
    """The evaluator's own accuracy on real clips, in words."""
    lines = []
    named = {
        "unseen_clips": "held-out clips (people in a skin tone this subject was not trained in)",
        "unseen_starts": "subjects with one clip, windows at starts kept out of training (their frames were seen)",
    }
    for key, text in named.items():
        if key in report:
            part = report[key]
            lines.append(
                f"Evaluator on real {text}: {100 * part['accuracy']:.1f} %, degraded by blur, noise and colour "
                f"{100 * part['accuracy_degraded']:.1f} % of {part['windows']} windows, {part['subjects']} subjects."
            )
    return "\n".join(lines)


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """The table with aligned columns, and below it what its figures mean. about: ``evaluate``'s result."""
    text = [
        TABLE.markdown(rows),
        "",
        f"Prior {about['prior']} ({about['evaluator_subjects']} subjects), {about['steps']} steps, "
        f"guidance {about['guidance']:g}, seed {about['seed']}.",
        describe_evaluator(about["evaluator"]),
        "windows right, start right, kept: share of 16-frame windows, first ones, and (first and last window) whose "
        "first guess is the subject of the prompt. border: frame difference onto each 16th frame over the others, 1 is "
        "seamless, chance alone gives the error shown. flicker: energy of the second over the first difference. "
        "flicker and motion: over those of real clips of the subject.",
    ]
    if about.get("command"):
        text.append(f"Made by: {about['command']}")
    return "\n".join(text)


# ------------------------------------------------------------------------------------------------------ files


def sheets(videos: Mapping[Entry, Video], wanted: Sequence[Entry], folder: Path, *, mp4: bool) -> None:
    """For looking: ``sheet-<frames>.png``, a line of 16 frames for each long video; with ``mp4`` also the videos."""
    from longtake.media import contact_sheet
    from longtake.outputs import VideoOutput

    wanted = [entry for entry in wanted if entry in videos]
    for length in dict.fromkeys(entry.frames for entry in wanted):
        frames, captions = [], []
        for entry in sorted((entry for entry in wanted if entry.frames == length), key=lambda entry: entry.subject):
            picked = np.linspace(0, length - 1, SHEET_FRAMES).round().astype(int)
            frames += [videos[entry].frames[index] for index in picked]
            captions += [str(entry.method), entry.subject[:10], *(str(index) for index in picked[2:])]
            if mp4:
                name = f"{entry.method}-{length}-{entry.subject.replace(' ', '_')}.mp4"
                VideoOutput(videos[entry].frames, FPS).save(folder / name, overwrite=True)
        contact_sheet(frames, folder / f"sheet-{length}.png", SHEET_FRAMES, captions, overwrite=True)
