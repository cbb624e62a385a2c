"""Pitch set by hand on finished sound: higher and lower words, contours, and questions that rise.

The shipped prior was trained with the pitch of phrase ends and of whole sentences as conditions, and learned to speak
without heeding them (its README has the figures). So pitch is moved where it is heard, in the samples: time-domain
pitch-synchronous overlap-add (TD-PSOLA; Moulines and Charpentier 1990), which leaves times and formants as they are.
Marks are set a period apart by cross-correlation, as Praat sets them; a grain spans the shorter of its period and the
wanted one on either side.

    semitones = moves(units, words, starts, hertz)      # by frame: what the text asks for
    samples = moved(samples, semitones, hertz)

Shape legend: N samples at 22.05 kHz, T = N // 256 frames, W units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from longtake.speech.mel import HOP, RATE
from longtake.speech.text.script import Unit

RISE = (
    6.0  # semitones above the middle of what was said at which a question ends: 't Hart, Collier and Cohen's full rise
)
MOST = 15.0  # semitones that a frame is moved at most, up or down
CROSS = 3  # frames over which one pitch goes over into the next
SEARCH = (0.8, 1.25)  # of a period: where the next mark is looked for
STRESSES = "ˈˌ"  # the stronger first
LEAST = 4  # frames of voice that are moved
LEAST_RISE, LONGEST_RISE = 6, 24  # frames of voice in which a question can rise
CLAUSE = frozenset(",;:.!?—…")
ASKING = frozenset("who whom whose what which when where why how".split())
BEFORE_ASKING = frozenset("and but so then or well oh now from to at in on by for with about of since".split())


# --------------------------------------------------------------------------------------------------- what is asked for


def rising(units: Sequence[Unit], number: int) -> bool:
    """Whether the question that ends with a unit rises: one that asks for yes or no, and a statement with a question
    mark, does; one that begins with who, what, why and the like, or whose last clause does, falls (Bolinger 1989)."""
    if "?" not in units[number].after:
        return False
    start = number
    while start > 0 and not CLAUSE & set(units[start - 1].after):
        start -= 1
    words = [unit.text.lower().strip("\"'“”‘’(") for unit in units[start : number + 1]]
    while words and words[0] in BEFORE_ASKING:
        words = words[1:]
    return not (words and words[0].split("'")[0].split("’")[0] in ASKING)


def asks(units: Sequence[Unit], pitches: Sequence[float]) -> bool:
    """Whether anything has to be moved at all."""
    contoured = any(unit.style.contour for unit in units)
    return contoured or any(pitches) or any(rising(units, number) for number in range(len(units)))


def nucleus(phones: str) -> int:
    """Where the last stressed syllable of a word's phones begins, as a number of symbols; 0 without a stress."""
    for stress in STRESSES:
        if stress in phones:
            return phones.rindex(stress)
    return 0


def moves(
    units: Sequence[Unit],
    pitches: Sequence[float],
    words: Sequence[tuple[int, int]],
    nuclei: Sequence[int],
    hertz: np.ndarray,
) -> np.ndarray:
    """Semitones (T,) by which each frame is to be moved.

    pitches: semitones of each unit, beside its contour. words: (start, end) of each in samples; nuclei: first sample of
    each one's last stressed syllable. hertz (T,): the pitch as it was said, 0 without voice; its median is the level
    that contours and rises start from. A contour runs over the voiced part of the units in a row that share it.
    """
    asked = np.zeros(len(hertz))
    voiced = hertz > 0
    if not voiced.any():
        return asked
    notes = 12 * np.log2(np.where(voiced, hertz, 1.0))
    middle = float(np.median(notes[voiced]))
    frames = np.arange(len(hertz))
    own = np.interp(frames, frames[voiced], notes[voiced])
    ends = [round(word[1] / HOP) for word in words]
    starts = [round(word[0] / HOP) for word in words]
    for number, pitch in enumerate(pitches):
        asked[starts[number] : starts[number + 1] if number + 1 < len(units) else len(asked)] = pitch
    asked[: starts[0]] = pitches[0]
    if len(set(pitches)) > 1:
        asked = np.convolve(np.pad(asked, CROSS, mode="edge"), np.full(2 * CROSS + 1, 1 / (2 * CROSS + 1)), "valid")
    first = 0
    while first < len(units):
        last, points = first, units[first].style.contour
        while points and last + 1 < len(units) and units[last + 1].style.contour == points:
            last += 1
        if points:
            begin, end = _sounding(voiced, starts[first], ends[last])
            share = np.arange(end - begin) / max(1, end - begin - 1)
            wanted = middle + np.interp(share, [at for at, _ in points], [height for _, height in points])
            asked[begin:end] += wanted - own[begin:end]
        elif rising(units, last):
            begin, end = _sounding(voiced, round(nuclei[last] / HOP), ends[last])
            if voiced[begin:end].sum() < LEAST_RISE:  # a whispered or creaky end: the last voice before it rises
                begin, end = _last_run(voiced, ends[last])
            if begin < end:
                wanted = np.linspace(own[begin], max(middle + RISE, own[begin]), end - begin)
                asked[begin:end] += np.maximum(wanted - own[begin:end], 0)
        first = last + 1
    return np.clip(asked, -MOST, MOST)


def _sounding(voiced: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """Frames begin..end-1 from the first voiced one to the last; none where there is none."""
    found = np.flatnonzero(voiced[begin:end])
    return (begin + int(found[0]), begin + int(found[-1]) + 1) if len(found) else (begin, begin)


def _last_run(voiced: np.ndarray, end: int) -> tuple[int, int]:
    """The last voiced frames in a row before ``end``, at least LEAST_RISE and at most LONGEST_RISE of them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced[:end].astype(int), [0]])))
    for first, stop in zip(edges[-2::-2], edges[::-2], strict=True):
        if stop - first >= LEAST_RISE:
            return max(int(first), int(stop) - LONGEST_RISE), int(stop)
    return end, end


# --------------------------------------------------------------------------------------------------------- moving it


def moved(wave: np.ndarray, semitones: np.ndarray, hertz: np.ndarray) -> np.ndarray:
    """A wave (N,) float32 whose voiced stretches are moved by semitones (T,); the rest stays as it is, to the bit.

    hertz (T,): its pitch, 0 where there is no voice (``longtake.speech.pitch``).
    """
    out = wave.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (hertz > 0).astype(int), [0]])))
    for first, stop in zip(edges[::2], edges[1::2], strict=True):
        if stop - first >= LEAST and np.abs(semitones[first:stop]).max() > 0.05:
            _move(wave, out, first, stop, semitones, hertz)
    return out


def marks(wave: np.ndarray, start: int, stop: int, period: np.ndarray) -> np.ndarray:
    """Samples of a voiced stretch start..stop-1 that stand a period apart. period: in samples, by frame.

    From the highest peak near the middle, outwards: the next mark is where the wave of the period around this one is
    most alike, between 0.8 and 1.25 periods away.
    """

    def at(sample: int) -> float:
        return float(period[min(len(period) - 1, max(0, sample // HOP))])

    middle = (start + stop) // 2
    reach = int(at(middle))
    low = max(start, middle - reach // 2)
    first = low + int(np.abs(wave[low : min(stop, low + reach)]).argmax())
    found = [first]
    for way in (1, -1):
        here = first
        while True:
            length = at(here)
            half = int(length) // 2
            near, far = (here + way * round(share * length) for share in SEARCH)
            low, high = min(near, far), max(near, far)
            if low < start or high >= stop or here - half < 0 or low - half < 0 or high + half + 1 > len(wave):
                break
            this = wave[here - half : here + half + 1]
            others = np.lib.stride_tricks.sliding_window_view(wave[low - half : high + half + 1], len(this))
            alike = others @ this / np.sqrt(np.square(others).sum(1) + 1e-9)
            here = low + int(alike.argmax())
            found.append(here)
    return np.array(sorted(found))


def _move(wave: np.ndarray, out: np.ndarray, first: int, stop: int, semitones: np.ndarray, hertz: np.ndarray) -> None:
    """Write the moved stretch of frames first..stop-1 into ``out``."""
    period = RATE / np.maximum(hertz, 1.0)
    period = np.interp(np.arange(len(hertz)), np.arange(first, stop), period[first:stop])
    places = marks(wave, first * HOP, min(len(wave), stop * HOP), period)
    if len(places) < 3:
        return
    begin, end = int(places[0]), int(places[-1])
    width = np.diff(places).astype(float)
    made, cover = np.zeros(end - begin + 1), np.zeros(end - begin + 1)
    time = float(begin)
    while time <= end:
        nearest = int(np.abs(places - time).argmin())
        before = width[max(0, nearest - 1)]
        after = width[min(len(width) - 1, nearest)]
        ratio = 2.0 ** (semitones[min(len(semitones) - 1, round(time) // HOP)] / 12)
        left, right = (int(min(side, side / ratio)) for side in (before, after))
        sides = max(left, 2), max(right, 2)
        _add(wave, made, cover, int(places[nearest]), round(time) - begin, *sides, 1 / math.sqrt(ratio))
        time += 0.5 * (before + after) / ratio
    # before the first grain and after the last the wave goes on as it was
    steps = np.arange(len(made))
    low, high = min(len(made), int(width[0])), max(0, len(made) - int(width[-1]))
    rest = np.where((steps < low) | (steps >= high), np.clip(1 - cover, 0, 1), 0.0)
    out[begin : end + 1] = (made + rest * wave[begin : end + 1]).astype(np.float32)


def _add(
    wave: np.ndarray, made: np.ndarray, cover: np.ndarray, source: int, target: int, left: int, right: int, gain: float
) -> None:
    """Add the grain around a mark, ``left`` and ``right`` samples of it, at a place of ``made``; gain: that keeps the
    level, where grains come more often or more seldom."""
    steps = np.arange(-left, right + 1)
    window = np.where(steps < 0, 0.5 + 0.5 * np.cos(np.pi * steps / left), 0.5 + 0.5 * np.cos(np.pi * steps / right))
    inside = (source + steps >= 0) & (source + steps < len(wave)) & (target + steps >= 0) & (target + steps < len(made))
    steps, window = steps[inside], window[inside]
    made[target + steps] += gain * window * wave[source + steps]
    cover[target + steps] += window
