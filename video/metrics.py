"""What is measured of a long video: subject, borders, flicker, motion, sharpness, beat, colour.

Pixels are uint8 RGB in grey levels 0..255. Legend: F frames, H W pixels, n windows, D embedding width.

    judged = judge(video, evaluator, "running")      # Judged: right at the start, kept to the end, cosine, ...
    border_ratio(frame_steps(video))                 # 1.0: the step at a border is like any other
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SIDE = 32  # of the shrunk frames that a beat is found in
GROUND = 240  # grey levels; a pixel that is darker in any colour belongs to the subject, not to the white ground
WINDOW = 16  # frames the prior was trained on, the clip length of the joined baseline and of the evaluator


class Classifier(Protocol):
    """Tells subjects apart; see ``evaluator.Evaluator``."""

    @property
    def subjects(self) -> Sequence[str]: ...

    def classify(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def check_video(video: np.ndarray, at_least: int = 2) -> None:
    """Raise ValueError unless ``video`` is uint8 (F, H, W, 3) with F >= ``at_least``."""
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or len(video) < at_least:
        raise ValueError(f"a video is uint8 (F >= {at_least}, H, W, 3), not {video.dtype} {video.shape}")


def frame_steps(video: np.ndarray) -> np.ndarray:
    """Mean absolute change from frame t to t+1, in grey levels, over all pixels and colours: (F - 1,) float64."""
    check_video(video)
    out = np.empty(len(video) - 1)
    for t in range(len(out)):
        out[t] = np.abs(video[t + 1].astype(np.int16) - video[t]).mean()
    return out


def motion(video: np.ndarray) -> float:
    """Mean of ``frame_steps``, grey levels a frame."""
    return float(frame_steps(video).mean())


def border_steps(steps: np.ndarray, period: int = WINDOW) -> tuple[float, float]:
    """Mean step at borders and mean step inside, both divided by the video's mean step (so that videos weigh alike).

    steps: (F - 1,) from ``frame_steps``. A border is the step onto a frame whose number is a multiple of ``period``:
    for the joined baseline that is where clips meet, for the others a place like any other. NaN for a video that
    stands still or that has no border.
    """
    at_border = (np.arange(1, len(steps) + 1) % period) == 0
    mean = steps.mean()
    if mean == 0 or not at_border.any() or at_border.all():
        return float("nan"), float("nan")
    return float(steps[at_border].mean() / mean), float(steps[~at_border].mean() / mean)


def border_ratio(videos_steps: Sequence[np.ndarray] | np.ndarray, period: int = WINDOW) -> float:
    """Frame difference at clip borders over the difference inside; 1 is seamless, far above 1 is a cut.

    videos_steps: ``frame_steps`` of one video or of several. Of several, the ratio of the means of ``border_steps``
    (a mean of ratios would be biased upwards). NaN when no video has both motion and a border.
    """
    if isinstance(videos_steps, np.ndarray):
        videos_steps = [videos_steps]
    pairs = np.array([border_steps(steps, period) for steps in videos_steps])
    pairs = pairs[~np.isnan(pairs).any(1)]
    return float(pairs[:, 0].mean() / pairs[:, 1].mean()) if len(pairs) else float("nan")


def border_error(videos_steps: Sequence[np.ndarray] | np.ndarray, period: int = WINDOW) -> float:
    """Standard error of ``border_ratio`` if borders are places like any other: chance alone gives this much.

    The spread of the steps inside (each over its video's mean step) over the root of the number of borders. NaN as
    there.
    """
    if isinstance(videos_steps, np.ndarray):
        videos_steps = [videos_steps]
    inside, borders = [], 0
    for steps in videos_steps:
        if not np.isnan(border_steps(steps, period)).any():
            at_border = (np.arange(1, len(steps) + 1) % period) == 0
            inside.append(steps[~at_border] / steps.mean())
            borders += int(at_border.sum())
    if not inside:
        return float("nan")
    pooled = np.concatenate(inside)
    return float(pooled.std() / pooled.mean() / np.sqrt(borders))


def flicker(video: np.ndarray) -> float:
    """Energy of the second difference in time over the energy of the first, without unit.

    mean((x[t+1] - 2 x[t] + x[t-1])^2) / mean((x[t+1] - x[t])^2) over pixels, colours and frames. Motion that goes on
    as it went is near 0; a walk of independent increments (also a hard edge that sweeps over pixels, each changing
    once) 2; white noise on a still picture 3; two pictures that alternate 4. NaN for a video that stands still. It is
    read against the same figure of real clips.
    """
    check_video(video, 3)
    first = second = 0.0
    previous: np.ndarray | None = None
    for t in range(1, len(video)):
        step = video[t].astype(np.int32) - video[t - 1]
        first += float(np.square(step).mean())
        if previous is not None:
            second += float(np.square(step - previous).mean())
        previous = step
    return (second / (len(video) - 2)) / (first / (len(video) - 1)) if first > 0 else float("nan")


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames uint8 (F, H, W, 3) as means of squares of pixels, (F, side * side * 3) float32 in 0..1."""
    count, height, width, _ = frames.shape
    if height % side or width % side:
        raise ValueError(f"frames of {height}x{width} cannot be shrunk to {side}x{side} by means of whole squares")
    parts = frames.reshape(count, side, height // side, side, width // side, 3)
    return (parts.mean((2, 4), dtype=np.float32) / 255.0).reshape(count, -1)


def sharpness(video: np.ndarray) -> float:
    """Mean square of the Laplacian (four neighbours less four times the pixel) of the grey picture, in grey levels."""
    check_video(video, 1)
    grey = video.mean(3, dtype=np.float32)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float(np.square(around - 4 * inner).mean())


def beat(video: np.ndarray, period: float, strides: int = 1) -> float:
    """How well a film repeats after ``strides`` turns of ``period`` frames: autocorrelation, 1 is the same again.

    Frames are shrunk and lose their mean over time. Of the lags within a tenth of the asked one (at least a frame to
    each side) the largest counts: a gait may be a little quicker than the real one. NaN for a film that stands still or
    is shorter than such a lag and one period more.
    """
    check_video(video)
    lag = strides * period
    slack = max(1.0, 0.1 * lag)
    lags = range(max(1, math.floor(lag - slack)), math.ceil(lag + slack) + 1)
    if len(video) < lags[-1] + period:
        return float("nan")
    shown = shrink(video, SIDE).astype(np.float64)
    shown -= shown.mean(0)
    energy = np.square(shown).sum(1).mean()
    if energy == 0:
        return float("nan")
    return float(max((shown[:-step] * shown[step:]).sum(1).mean() / energy for step in lags))


def subject_colours(video: np.ndarray) -> np.ndarray:
    """Mean colour of the subject, all that is no white ground, in each frame: (F, 3) float64; NaN where there is
    none."""
    check_video(video, 1)
    out = np.full((len(video), 3), np.nan)
    for place, frame in enumerate(video):
        pixels = frame[frame.min(2) < GROUND]
        if len(pixels):
            out[place] = pixels.mean(0)
    return out


@dataclass(frozen=True)
class ColourChange:
    """How the subject's colour changes along a film, in grey levels of the colour that changes most.

    drift: from the first to the last third. spread: standard deviation of the means of 16 frames. jump: largest step
    from one mean of 16 frames to the next. NaN where a film is too short.
    """

    drift: float
    spread: float
    jump: float


def colour_change(video: np.ndarray) -> ColourChange:
    """The changes of ``subject_colours`` of a video uint8 (F, H, W, 3); a loop has as much as its poses make."""
    colours = subject_colours(video)
    third = len(colours) // 3
    count = len(colours) // WINDOW
    seen = ~np.isnan(colours).any(1)
    blocks = [np.arange(place * WINDOW, (place + 1) * WINDOW) for place in range(count)]
    means = np.array([colours[block][seen[block]].mean(0) for block in blocks if seen[block].any()])
    nothing = float("nan")
    first, last = (colours[part][seen[part]] for part in (slice(0, third), slice(len(colours) - third, None)))
    return ColourChange(
        drift=float(np.abs(last.mean(0) - first.mean(0)).max()) if len(first) and len(last) else nothing,
        spread=float(means.std(0).max()) if len(means) > 1 else nothing,
        jump=float(np.abs(np.diff(means, axis=0)).max()) if len(means) > 1 else nothing,
    )


def window_starts(frames: int, length: int = WINDOW) -> list[int]:
    """Starts of the windows a video is judged by: 0, length, 2 length, ..., and the last ``length`` frames."""
    if frames < length:
        raise ValueError(f"a video of {frames} frames has no window of {length}")
    starts = list(range(0, frames - length + 1, length))
    return starts if starts[-1] == frames - length else [*starts, frames - length]


@dataclass(frozen=True)
class Judged:
    """What the evaluator sees in one video.

    windows_right: share (0..1) of the 16-frame windows whose first guess is the prompted subject. start, end: whether
    the first and the last 16 frames are. kept: both of them. cosine: of the embeddings of the first and the last
    window, -1..1.
    """

    windows_right: float
    start: bool
    end: bool
    kept: bool
    cosine: float


def judge(video: np.ndarray, evaluator: Classifier, subject: str) -> Judged:
    """Classify the windows of a video uint8 (F >= 16, H, W, 3) against the subject its prompt names."""
    check_video(video, WINDOW)
    if subject not in evaluator.subjects:
        raise ValueError(f"the evaluator does not know {subject!r}; it knows {', '.join(evaluator.subjects)}")
    windows = np.stack([video[start : start + WINDOW] for start in window_starts(len(video))])
    guess, embedding = evaluator.classify(windows)
    right = [evaluator.subjects[index] == subject for index in guess]
    return Judged(
        windows_right=float(np.mean(right)),
        start=right[0],
        end=right[-1],
        kept=right[0] and right[-1],
        cosine=float(embedding[0] @ embedding[-1]),
    )
