"""Judging sets of videos, and the tables of ``longtake evaluate video`` as text, markdown and pictures.

judge = Judge(evaluator, clips)
row = judge.row("longtake", 240, [("running", video), ...])
print(markdown([row], [], about))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.evaluation import Table, figure
from longtake.video import metrics
from longtake.video.data import UNSAID
from longtake.video.entries import LABELS, Method, Video
from longtake.video.evaluator import PARTS, Evaluator, real_windows
from longtake.video.films import IN_TIME, FilmRow
from longtake.video.likeness import ARROW, POSE, STAYS, SUBJECT, RealFrames, changes

if TYPE_CHECKING:
    from longtake.video.data import Clip

EACH = 4  # of the real windows, every fourth: the evaluator's report has the accuracy of all


@dataclass
class Row:
    """One line of a table; None where there is no figure (a 16-frame clip has no border, no video no subject).

    videos: how many. windows_right: share of 16-frame windows whose first guess is the subject. start: share right in
    the first window. kept: share right in the first and the last. cosine: of first and last embedding, mean. border:
    border over inside difference, border_error its standard error by chance. flicker, motion, sharpness: over those of
    real clips of the subject, geometric means. arrow, stays: see ``RealFrames.arrow_stays``, means. moves: share of the
    videos with an arrow above ``ARROW`` and stays below ``STAYS``. identity: share of the frames that look like the
    character asked for (emoji: like the one of the first 16 frames). identity_changes: how often a video changes it,
    mean. beat_one, beat_two: ``metrics.beat`` after one and two turns of the real loop. drift, spread, jump: of the
    subject's colour, in grey levels, means. seconds: wall clock for 100 frames, with decoding. memory: MB beside the
    model, the most of all videos. each: of every video.
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
    sharpness: float | None = None
    arrow: float | None = None
    stays: float | None = None
    moves: float | None = None
    identity: float | None = None
    identity_changes: float | None = None
    beat_one: float | None = None
    beat_two: float | None = None
    drift: float | None = None
    spread: float | None = None
    jump: float | None = None
    memory: float | None = None


LONG_ONLY = ("start", "kept", "cosine", "identity_changes", "beat_one", "beat_two", "drift", "spread", "jump")
MEANS = ("windows_right", "seconds", "arrow", "stays", "moves", "identity", *LONG_ONLY)


class Judge:
    """Measures videos against real clips of their subject."""

    def __init__(self, evaluator: Evaluator, clips: Sequence[Clip]) -> None:
        self.evaluator = evaluator
        self.clips = clips
        self.everyone = RealFrames.of(clips, SUBJECT)
        self._real: dict[str, tuple[float, float, float]] = {}
        self._poses: dict[str, RealFrames] = {}

    def of(self, subject: str) -> list[Clip]:
        """The real clips of a subject, at least one."""
        found = [clip for clip in self.clips if clip.subject == subject]
        if not found:
            raise ValueError(f"there is no real clip of {subject!r}")
        return found

    def real(self, subject: str) -> tuple[float, float, float]:
        """Flicker, motion (grey levels a frame) and sharpness of the subject's real clips: means over clips.

        Clips that wrap are played twice.
        """
        if subject not in self._real:
            played = [c.frames[c.window(0, 2 * len(c.frames))] if c.wraps else c.frames for c in self.of(subject)]
            each = [(metrics.flicker(film), metrics.motion(film), metrics.sharpness(film)) for film in played]
            self._real[subject] = tuple(float(value) for value in np.nanmean(each, 0))  # type: ignore[assignment]
        return self._real[subject]

    def poses(self, subject: str) -> RealFrames:
        """The real frames that a video of the subject is compared with: of its training clips, if it has any."""
        if subject not in self._poses:
            own = self.of(subject)
            self._poses[subject] = RealFrames.of([clip for clip in own if not clip.held_out] or own, POSE)
        return self._poses[subject]

    def one(self, subject: str, video: Video) -> dict[str, Any]:
        """All figures of one video uint8 (F >= 16, 64, 64, 3) of a subject."""
        film = video.frames
        seen = metrics.judge(film, self.evaluator, subject)
        flicker, motion, sharpness = self.real(subject)
        steps = metrics.frame_steps(film)
        arrow, stays = self.poses(subject).arrow_stays(film)
        who = self.everyone.labels_of(film)
        clip = self.of(subject)[0]
        asked = clip.character or Counter(who[: metrics.WINDOW].tolist()).most_common(1)[0][0]
        colour = metrics.colour_change(film)
        period = clip.period or (len(clip.frames) if clip.wraps else 0)
        beats = [metrics.beat(film, period, strides) if period else math.nan for strides in (1, 2)]
        return {
            "subject": subject,
            "windows_right": seen.windows_right,
            "start": float(seen.start),
            "kept": float(seen.kept),
            "cosine": seen.cosine,
            "border": _known(metrics.border_ratio(steps)),
            "flicker": _known(metrics.flicker(film) / flicker),
            "motion": _known(float(steps.mean()) / motion),
            "sharpness": _known(metrics.sharpness(film) / sharpness),
            "arrow": _known(arrow),
            "stays": _known(stays),
            "moves": float(arrow > ARROW and stays < STAYS),
            "identity": float(np.mean(who == asked)),
            "identity_changes": changes(who),
            "beat_one": _known(beats[0]),
            "beat_two": _known(beats[1]),
            **{name: _known(value) for name, value in asdict(colour).items()},
            "seconds": 100 * video.seconds / len(film) if video.seconds else None,
            "memory": video.memory or None,
        }

    def row(self, label: str, frames: int, videos: Sequence[tuple[str, Video]]) -> Row:
        """The row of some videos, each uint8 (frames, 64, 64, 3) with the subject its prompt names."""
        for subject, video in videos:
            if len(video.frames) != frames:
                raise ValueError(f"{label}: a video of {subject!r} has {len(video.frames)} frames, not {frames}")
        each = [self.one(subject, video) for subject, video in videos]
        steps = [metrics.frame_steps(video.frames) for _, video in videos]
        many = frames > metrics.WINDOW
        figures = {name: _mean([one[name] for one in each]) for name in MEANS if many or name not in LONG_ONLY}
        ratios = {name: geometric_mean([one[name] for one in each]) for name in ("flicker", "motion", "sharpness")}
        return Row(
            label=label,
            frames=frames,
            videos=len(each),
            border=_known(metrics.border_ratio(steps)) if many and steps else None,
            border_error=_known(metrics.border_error(steps)) if many and steps else None,
            each=each,
            memory=max((one["memory"] for one in each if one["memory"]), default=None),
            **figures,
            **ratios,
        )


def real_rows(judge: Judge, vae: Any, subjects: Sequence[str] = ()) -> list[Row]:
    """16-frame windows of real clips, plain and through the prior's autoencoder: the best a sampler of it can reach.

    "unseen clip" and "unseen start": see ``real_windows``. subjects: those whose clips the prior was asked for get a
    pair of rows of their own, by the first 16 frames. vae: a FrameAutoencoder; another kind has no second rows.
    """
    from longtake.video.prior import FrameAutoencoder

    asked: list[tuple[str, list[tuple[str, np.ndarray]]]] = []
    if subjects:
        asked.append((", as asked", [(name, reference(judge.clips, name, metrics.WINDOW)) for name in subjects]))
    for held_out, kind in {True: ", unseen clip", False: ", unseen start"}.items():
        windows, names = real_windows(judge.clips, held_out=held_out)
        if names:
            asked.append((kind, list(zip(names, windows, strict=True))[::EACH]))
    rows = []
    for kind, picked in asked:
        rows.append(judge.row(f"real{kind}", metrics.WINDOW, [(name, Video(window)) for name, window in picked]))
        if isinstance(vae, FrameAutoencoder):
            rebuilt = [(name, Video(rebuild(vae, window))) for name, window in picked]
            rows.append(judge.row(f"real through the autoencoder{kind}", metrics.WINDOW, rebuilt))
    return rows


def reference(clips: Sequence[Clip], subject: str, frames: int) -> np.ndarray:
    """A real clip of the subject played to a length: a held-out one if there is one, in the view that a text without
    one means. uint8 (F, H, W, 3)."""
    own = [clip for clip in clips if clip.subject == subject]
    first = min(own, key=lambda clip: (not clip.held_out, clip.view != UNSAID))
    return first.frames[first.window(0, frames)]


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


CLIPS = Table(
    {
        "16-frame clips": lambda row: row.label,
        "videos": lambda row: str(row.videos),
        "right": lambda row: figure(row.windows_right, 2),
        "identity": lambda row: figure(row.identity, 2),
        "arrow": lambda row: figure(row.arrow, 2),
        "stays": lambda row: figure(row.stays, 2),
        "moves": lambda row: figure(row.moves, 2),
        "motion/real": lambda row: figure(row.motion, 2),
        "sharp/real": lambda row: figure(row.sharpness, 2),
        "flicker/real": lambda row: figure(row.flicker, 2),
        "s/100 frames": lambda row: figure(row.seconds, 2),
    }
)
TABLE = Table(
    {
        "method": lambda row: row.label,
        "frames": lambda row: str(row.frames),
        "videos": lambda row: str(row.videos),
        "right": lambda row: figure(row.windows_right, 2),
        "start right": lambda row: figure(row.start, 2),
        "kept": lambda row: figure(row.kept, 2),
        "border": lambda row: figure(row.border, 2) + _plus_or_minus(row.border_error),
        "identity": lambda row: figure(row.identity, 2),
        "changes": lambda row: figure(row.identity_changes, 1),
        "arrow": lambda row: figure(row.arrow, 2),
        "stays": lambda row: figure(row.stays, 2),
        "beat 1": lambda row: figure(row.beat_one, 2),
        "beat 2": lambda row: figure(row.beat_two, 2),
        "motion/real": lambda row: figure(row.motion, 2),
        "sharp/real": lambda row: figure(row.sharpness, 2),
        "flicker/real": lambda row: figure(row.flicker, 2),
        "drift": lambda row: figure(row.drift, 1),
        "spread": lambda row: figure(row.spread, 1),
        "jump": lambda row: figure(row.jump, 1),
        "s/100 frames": lambda row: figure(row.seconds, 2),
        "MB": lambda row: figure(row.memory, 0),
    }
)
FILMS = Table(
    {
        "Timelines": lambda row: row.label,
        "films": lambda row: str(row.films),
        "actions": lambda row: str(row.parts),
        "right": lambda row: figure(row.parts_right, 2),
        "turns": lambda row: str(row.turns),
        "in time": lambda row: figure(row.in_time, 2),
        "late": lambda row: f"{row.late:+.1f}",
        "off": lambda row: figure(row.off, 1),
        "identity": lambda row: figure(row.identity, 2),
        "changes": lambda row: str(row.identity_changes),
        "found": lambda row: figure(row.found, 2),
        "by chance": lambda row: figure(row.found_chance, 2),
    }
)


def _plus_or_minus(error: float | None) -> str:
    return "" if error is None else f"±{error:.2f}"


def describe_evaluator(report: dict[str, Any]) -> str:
    """The evaluator's own accuracy on real clips, in words."""
    lines = []
    named = {
        "unseen_clips": "held-out clips (a skin tone, or a character in an action, that no training clip shows)",
        "unseen_starts": "subjects with one clip, windows at starts kept out of training (their frames were seen)",
    }
    for key, text in named.items():
        if key in report:
            part = report[key]
            lines.append(
                f"Evaluator on real {text}: {100 * part['accuracy']:.1f} %, degraded by blur, noise and colour "
                f"{100 * part['accuracy_degraded']:.1f} % of {part['windows']} windows, {part['subjects']} subjects"
                + "".join(f", {name} {100 * part[f'{name}_right']:.1f} %" for name in PARTS if f"{name}_right" in part)
                + "."
            )
    return "\n".join(lines)


def movers(rows: Sequence[Row]) -> list[str]:
    """Lines that name the subjects of the prior's clips: which move as real ones do, which do not."""
    lines = []
    for row in rows:
        if row.frames == metrics.WINDOW and row.label.startswith("prior"):
            order = sorted(row.each, key=lambda one: (one["arrow"] or 0) - (one["stays"] or 0), reverse=True)
            for word, wanted in (("move", 1.0), ("do not", 0.0)):
                names = [one["subject"] for one in order if one["moves"] == wanted]
                lines.append(f"{row.label}, {len(names)} {word}: {', '.join(names) or '-'}.")
    return lines


def strangers(rows: Sequence[Row]) -> list[str]:
    """A line for each row of joined clips: the subjects whose films change who is seen."""
    label = LABELS[Method.JOINED]
    return [
        f"{label}, {row.frames} frames, change who is seen in {len(names)} of {row.videos}: {', '.join(names) or '-'}."
        for row in rows
        if row.label == label
        for names in [[one["subject"] for one in row.each if one["identity_changes"]]]
    ]


def markdown(rows: Sequence[Row], films: Sequence[FilmRow], about: dict[str, Any]) -> str:
    """The tables with aligned columns, and below them what their figures mean. about: ``evaluate``'s result."""
    short = [row for row in rows if row.frames == metrics.WINDOW]
    long = [row for row in rows if row.frames != metrics.WINDOW]
    text = []
    for table, some in ((CLIPS, short), (FILMS, films), (TABLE, long)):
        text += [table.markdown(some), ""] if some else []
    text += [
        *movers(rows),
        *strangers(rows),
        f"Prior {about['prior']} ({about['evaluator_subjects']} subjects), {about['steps']} steps, "
        f"guidance {about['guidance']:g}, seed {about['seed']}.",
        describe_evaluator(about["evaluator"]),
        "right, start right, kept: share of 16-frame windows, first ones, and (first and last window) whose first "
        "guess is the subject of the prompt. identity: share of the frames that look like the one asked for; "
        "changes: how often a video changes to somebody else. arrow: share of the steps that go on as the real "
        "clip goes on from the frame they look like, 0.5 is no direction of time; stays: share that look like no "
        f"step at all; moves: share of the videos with an arrow above {ARROW} and stays below {STAYS}. beat 1, "
        "beat 2: autocorrelation after one and two turns of the real loop. border: frame difference onto each "
        "16th frame over the others, 1 is seamless, chance alone gives the error shown. flicker: energy of the "
        "second over the first difference. sharp: square of the Laplacian. flicker, motion and sharp: over those "
        "of real clips of the subject. drift, spread, jump: mean colour of the subject, first to last third, over "
        "and between means of 16 frames, in grey levels. MB: most memory beside the model.",
    ]
    if films:
        text.append(
            "Timelines: right: actions that the evaluator sees in at least half of their windows; in time: turns from "
            f"one action to the next within {IN_TIME} frames of the asked one; late, off: mean error and its mean size "
            "in frames. found: share of the prompts that longtake watch finds first in their own part, and what chance "
            "finds."
        )
    if about.get("command"):
        text.append(f"Made by: {about['command']}")
    return "\n".join(text)
