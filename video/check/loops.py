"""Frames that come again: a film whose content repeats after n frames.

For windows of half a second, the mean squared distance d(n) between a frame and the one n frames later, of tile means
(8 x 8, RGB, without the frame's own tone), over all n: the autocorrelation of frame features, as a distance. It is
divided by the mean of d(1) ... d(n), as YIN does for the pitch of a voice (de Cheveigné and Kawahara 2002, JASA 111(4),
step 3): 0 is the same again, 1 is as unlike as any two frames. Repeats of a file lie at 0.001 to 0.034 with
compression, a gait of the sample films at 0.13, and a turn of a walk that was rendered is as exact as a repeat but
takes about a second: repeats of less than 1.25 s are a beat, and no fault. An hour at 24 frames a second, every lag, is
searched in about two minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from longtake.video.check.curves import Curves
from longtake.video.check.finding import Finding, Kind, Verdict, place

WINDOW_S = 0.5
LEAST_WINDOW = 12  # frames
SAME = 0.06  # largest distance of a repeat: planted 0.001 to 0.034, clean films 0.085 and more
LEAST_LAG = 6  # frames; below, neighbours are alike in any slow film
BEAT_S = 1.25
STEP_SHARE = 0.75  # a repeat is nearer than this share of a step: planted 0.05 to 0.67
LEAST_MOTION = 0.8  # grey levels, root mean square over the lag: a still scene repeats at every lag
MOST_LAG = 90_000  # frames that are compared, an hour at 25 a second


@dataclass(frozen=True)
class _Repeat:
    start: int
    lag: int
    score: float


def find_loops(curves: Curves) -> tuple[list[Finding], list[Verdict]]:
    """Parts of the film that come again, and the verdict. number: the smallest normalised distance over windows."""
    window = max(LEAST_WINDOW, round(WINDOW_S * curves.fps))
    need = 2 * window + LEAST_LAG
    if curves.frames < need:
        return [], [Verdict(Kind.LOOP, "", None, SAME, "of the usual distance (less is nearer)", 0, need)]
    repeats, nearest = _repeats(curves, window)
    found = []
    for group in _groups(repeats, window, curves.frames):
        first, lag, score = group[0].start, min(one.lag for one in group), min(one.score for one in group)
        last = group[-1].start + window - 1
        if last - first + 1 < curves.fps or len(group) < 2 or lag < BEAT_S * curves.fps:
            continue
        end = min(last + lag, curves.frames - 1)
        text = (
            f"frames {first} to {last} come again {lag} frames ({lag / curves.fps:.2f} s) later, "
            f"at {score:.3f} of the usual distance"
        )
        found.append(place(curves, Kind.LOOP, f"{lag} frames", (first, end), score, SAME, text))
    number = min([nearest, *(one.number for one in found)])
    judged = number if math.isfinite(number) else None
    return found, [Verdict(Kind.LOOP, "", judged, SAME, "of the usual distance (less is nearer)", len(found), need)]


def features(curves: Curves) -> np.ndarray:
    """(F, 192) float32: the tiles without each frame's own tone (the median of its tiles), so that what comes again a
    little darker is the same, and without their mean over time."""
    tiles = curves.tiles.astype(np.float32)
    tiles -= np.median(tiles, axis=1, keepdims=True)
    tiles = tiles.reshape(curves.frames, -1)
    return np.asarray(tiles - tiles.mean(0), np.float32)


def _repeats(curves: Curves, window: int) -> tuple[list[_Repeat], float]:
    """For each window its first repeat, if it has one; and the smallest distance of any at a lag that counts."""
    tiles = features(curves)
    energy = np.square(tiles).sum(1)
    width = tiles.shape[1]
    found, nearest = [], math.inf
    for start in range(0, curves.frames - window - LEAST_LAG, window):
        lags = min(curves.frames - window - start, MOST_LAG)
        rows, beyond = slice(start, start + window), slice(start, start + window + lags)
        apart = energy[rows, None] + energy[None, beyond] - 2 * tiles[rows] @ tiles[beyond].T
        by_lag = np.lib.stride_tricks.as_strided(
            apart, (window, lags + 1), (apart.strides[0] + apart.strides[1], apart.strides[1])
        )
        distance = np.maximum(by_lag.mean(0, dtype=np.float64), 0.0)[1:] / width
        usual = np.cumsum(distance) / np.arange(1, lags + 1)
        share = distance / np.maximum(usual, 1e-9)
        # both tests in one figure: near to what is usual at this lag, and nearer than a step
        score = np.maximum(share, SAME / STEP_SHARE * np.sqrt(distance / max(float(distance[0]), 1e-9)))
        score[: LEAST_LAG - 1] = np.inf
        score[usual < LEAST_MOTION**2] = np.inf
        at = np.flatnonzero(score <= SAME)
        if at.size:
            lag = int(at[0])
            while lag + 1 < lags and share[lag + 1] < share[lag]:
                lag += 1
            found.append(_Repeat(start, lag + 1, float(score[lag])))
        else:  # what repeats with a beat repeats with its multiples, too, and is left out of the figure
            nearest = min(nearest, float(score[max(0, math.ceil(BEAT_S * curves.fps) - 1) :].min(initial=math.inf)))
    return found, nearest


def _groups(repeats: list[_Repeat], window: int, frames: int) -> list[list[_Repeat]]:
    """Neighbouring windows that repeat after the same number of frames (or a multiple)."""
    groups: list[list[_Repeat]] = []
    for one in repeats:
        if groups and groups[-1][-1].start + window == one.start and _same_lag(groups[-1][0].lag, one.lag):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _same_lag(one: int, two: int) -> bool:
    less, more = sorted((one, two))
    return abs(more - round(more / less) * less) <= max(1, round(more / less))
