"""How a film's look changes: drift along a shot, flicker from frame to frame.

Drift. A shot is split into twelve equal parts. In each of the 64 tiles a line is fitted to the means of the parts; the
drift is the median of the tiles' changes from first to last part, so what enters or leaves a picture, which changes
some tiles one way and others the other way, counts little. It is a finding when it is large enough to be seen, when
the parts go one way (Kendall's rank correlation with time), and when most tiles go along. Of contrast and sharpness,
logarithms are taken, in tiles that have some of it; a shot with fewer than 16 of those is not judged (a small figure
on a white ground).

Flicker. The tone that most tiles share, frame by frame; how far each frame lies off the line between its neighbours,
averaged over a second without the largest fifth (so that one flash is none), twice: the swing from peak to peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from longtake.video.check.curves import LUMA, Curves
from longtake.video.check.finding import Finding, Kind, Verdict, place

PARTS = 12
LEAST_SHOT = 4 * PARTS  # frames
LEAST_TILES = 16
# Kendall's tau of the parts: planted 0.69 to 1; clean films pass it, but not with the size and the share
ONE_WAY = 0.65
TOGETHER = 0.6  # share of tiles that go the drift's way by half of its floor at least (sharpness: a third)
# side -> floor of the drift: grey levels, or log of a ratio. No clean film that goes one way comes near; a half of one,
# 66 frames of it, loses 0.30 of sharpness (as a log) by what it shows.
FLOORS = {"brightness": 6.0, "colour": 6.0, "contrast": math.log(1.18), "sharpness": math.log(1.4)}
LEAST_SPREAD, LEAST_SHARP = 1.0, 0.5  # grey levels; a tile with less has no contrast or detail to lose

# grey levels from peak to peak: clean films reach 0.15, a growing blur 1.35; planted swings of 4 read 2.5 to 4
SWING = 1.6
LEAST_WINDOW = 12  # frames
RETURNS = 0.5  # a tone that goes further than this share of its way does not flicker, it changes


@dataclass(frozen=True)
class Trend:
    """size: median change from first to last part; one_way: -1..1; together: share of tiles, 0..1."""

    size: float
    one_way: float
    together: float

    @property
    def drifts(self) -> bool:
        """Whether it goes one way, and in most of the picture."""
        return abs(self.one_way) >= ONE_WAY and self.together >= TOGETHER


def find_drift(curves: Curves, jumps: Sequence[int]) -> tuple[list[Finding], list[Verdict]]:
    """Drifts of every shot, and their verdicts. jumps: numbers of the frames after a cut or a jump of tone, where one
    shot ends and the next begins."""
    shots = list(zip([0, *jumps], [*jumps, curves.frames], strict=True))
    found: list[Finding] = []
    verdicts = []
    for what, floor in FLOORS.items():
        sizes, here = [], []
        for first, stop in shots:
            trend = shot_trend(curves, what, first, stop)
            if trend is None:
                continue
            sizes.append(abs(trend.size) if trend.drifts else 0.0)
            if trend.drifts and abs(trend.size) >= floor:
                text = _words(what, trend.size, curves, (first, stop))
                here.append(place(curves, Kind.DRIFT, what, (first, stop - 1), trend.size, floor, text))
        number = max(sizes) if sizes else None
        is_ratio = what in ("contrast", "sharpness")
        unit = "of itself, one way" if is_ratio else "grey levels, one way"
        if is_ratio:
            number, floor = None if number is None else math.expm1(number), math.expm1(floor)
        found += here
        verdicts.append(Verdict(Kind.DRIFT, what, number, floor, unit, len(here), LEAST_SHOT))
    return found, verdicts


def shot_trend(curves: Curves, what: str, first: int, stop: int) -> Trend | None:
    """The drift of frames first .. stop - 1, None where it cannot be judged."""
    if stop - first < LEAST_SHOT:
        return None
    if what in ("brightness", "colour"):
        parts = np.stack([part.mean(0, dtype=np.float64) for part in np.array_split(curves.tiles[first:stop], PARTS)])
        luma = parts @ LUMA
        if what == "brightness":
            return _trend(luma, FLOORS[what] / 2)
        channels = [_trend(parts[..., channel] - luma, FLOORS[what] / 2) for channel in range(3)]
        return max(channels, key=lambda one: abs(one.size))
    if what == "contrast":
        values, least = curves.spread[first:stop], LEAST_SPREAD
    else:
        values, least = curves.sharp[(curves.sharp_at >= first) & (curves.sharp_at < stop)], LEAST_SHARP
    if len(values) < PARTS:
        return None
    parts = np.stack([part.mean(0, dtype=np.float64) for part in np.array_split(values, PARTS)])
    chosen = parts.max(0) >= 4 * least
    if chosen.sum() < LEAST_TILES:
        return None
    vote = FLOORS[what] / (2 if what == "contrast" else 3)
    return _trend(np.log(np.maximum(parts[:, chosen], least / 4)), vote)


def _trend(parts: np.ndarray, vote: float) -> Trend:
    """Of (12, tiles). vote: change from which on a tile goes along."""
    level = parts - parts.mean(0)
    place_ = np.arange(PARTS) - (PARTS - 1) / 2
    change = (place_[:, None] * level).sum(0) / np.square(place_).sum() * (PARTS - 1)
    size = float(np.median(change))
    curve = np.median(level, axis=1)
    one, two = np.triu_indices(PARTS, 1)
    together = float((change * np.sign(size) >= vote).mean())
    return Trend(size, float(np.sign(curve[two] - curve[one]).mean()), together)


def _words(what: str, size: float, curves: Curves, shot: tuple[int, int]) -> str:
    if what == "brightness":
        return f"{'darkens' if size < 0 else 'brightens'} by {abs(size):.1f} grey levels from first to last"
    if what == "contrast":
        return f"contrast goes to {100 * math.exp(size):.0f} % of what it was at first"
    if what == "sharpness":
        return f"sharpness goes to {100 * math.exp(size):.0f} % of what it was at first"
    tiles = curves.tiles[shot[0] : shot[1]]
    count = max(1, len(tiles) // PARTS)
    change = np.median(tiles[-count:].mean(0, dtype=np.float64) - tiles[:count].mean(0, dtype=np.float64), axis=0)
    told = ", ".join(f"{name} {value:+.1f}" for name, value in zip(("red", "green", "blue"), change, strict=True))
    return f"colour shifts by {abs(size):.1f} grey levels from first to last ({told})"


def find_flicker(curves: Curves) -> tuple[list[Finding], list[Verdict]]:
    """Parts of a second and more whose tone goes up and down, and the verdict."""
    window = max(LEAST_WINDOW, round(curves.fps))
    need = window + 2
    unit = "grey levels"
    if curves.frames < need:
        return [], [Verdict(Kind.FLICKER, "", None, SWING, unit, 0, need)]
    tone = curves.tone @ LUMA
    sides = np.concatenate([tone[:, None], curves.tone - tone[:, None]], 1)  # brightness, then colour
    off = np.abs(np.diff(sides, axis=0)) / 2  # of frame t + 1, from the line between its neighbours
    largest, runs = 0.0, list[tuple[int, int, float]]()
    for start in range(0, len(off) - window + 1, max(1, window // 4)):
        part = np.sort(off[start : start + window], axis=0)[: math.ceil(0.8 * window)].mean(0)
        way = np.abs(sides[start : start + window + 1])
        turns = np.abs(sides[start : start + window + 1].sum(0)) <= RETURNS * way.sum(0)
        swing = float((part * turns).max())
        largest = max(largest, swing)
        if swing < SWING / 2:  # a run that has begun goes on down to half of the limit
            continue
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], start + window, max(runs[-1][2], swing))
        else:
            runs.append((start, start + window, swing))
    found = [run for run in runs if run[2] >= SWING]
    findings = []
    for first, last, swing in found:
        end = min(last + 1, curves.frames - 1)
        text = f"the tone swings by {swing:.1f} grey levels from frame to frame"
        findings.append(place(curves, Kind.FLICKER, "", (first, end), swing, SWING, text))
    return findings, [Verdict(Kind.FLICKER, "", largest, SWING, unit, len(findings), need)]
