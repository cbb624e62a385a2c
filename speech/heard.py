"""Whether what is set by hand is heard: questions that end higher than the same words as a statement, drawn contours,
and breaks that pause. Everything is measured in the sound, after the vocoder, by the pitch tracker and by level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from longtake.speech.backends.voice import Said, Utterance
from longtake.speech.mel import RATE
from longtake.speech.shaping import rising
from longtake.speech.text.script import Unit
from longtake.speech.text.segments import Style
from longtake.speech.text.symbols import BREAK_MARK, PAUSES

ADDED_S = 0.08  # that a break must add
RUN, ENDING = 5, 6  # frames of the last voiced run at least, and of it that are the end
BLOCK = RATE // 100  # samples of a level
QUIET_DB = 32.0  # under the loud parts of a sentence: a pause
UP, DOWN = ((0.0, -2.0), (1.0, 4.0)), ((0.0, 2.0), (1.0, -4.0))  # contours that rise and fall

Case = tuple[tuple[Unit, ...], str]  # units, and who says them
Say = Callable[[Utterance], Said]


def units_of(phones: str, text: str = "") -> tuple[Unit, ...]:
    """Units of a row of symbols; their texts are the words of ``text`` where it has as many, else their phones."""
    parts = [part for part in phones.replace(BREAK_MARK, " ").split(" ") if part]
    words = text.split()
    found: list[Unit] = []
    for number, part in enumerate(parts):
        body = part.rstrip("".join(PAUSES) + '"”')
        if not body:  # a mark alone goes to the word before
            found[-1] = replace(found[-1], after=found[-1].after + part)
            continue
        shown = words[number] if len(words) == len(parts) else part
        found.append(Unit(shown, body, part[len(body) :], spoken=shown))
    return tuple(found)


def final_rise(wave: np.ndarray) -> float:
    """Semitones by which a wave (N,) at 22.05 kHz ends, in the last 70 ms of its last voiced run of 58 ms or more,
    above its median; 0 without voice."""
    import torch
    from longtake.speech.pitch import own_range

    hertz = own_range(torch.from_numpy(wave))
    voiced = np.flatnonzero(hertz > 0)
    runs = [run for run in np.split(voiced, np.flatnonzero(np.diff(voiced) > 1) + 1) if len(run) >= RUN]
    if not runs:
        return 0.0
    notes = 12 * np.log2(np.maximum(hertz, 1.0))
    return float(np.median(notes[runs[-1][-ENDING:]]) - np.median(notes[voiced]))


def pause(wave: np.ndarray, start: int, stop: int) -> float:
    """Seconds of the longest stretch within samples start..stop-1 that is 32 dB under the sentence's loud parts."""
    count = len(wave) // BLOCK
    level = 10 * np.log10(np.square(wave[: count * BLOCK].reshape(count, BLOCK), dtype=np.float64).mean(1) + 1e-12)
    quiet = level < np.percentile(level, 90) - QUIET_DB
    longest = run = 0
    for block in quiet[start // BLOCK : -(-stop // BLOCK)]:
        run = run + 1 if block else 0
        longest = max(longest, run)
    return longest * BLOCK / RATE


def cases(told: Sequence[tuple[str, str]], speakers: Sequence[str], count: int) -> list[Case]:
    """``count`` sentences that may be asked for yes or no, with a speaker each in turn, from (phones, text), the
    shortest first; a sentence comes again with another speaker where there are too few."""
    usable = []
    for phones, text in sorted(told, key=lambda one: len(one[0])):
        units = units_of(phones, text)
        asked = (*units[:-1], replace(units[-1], after="?"))
        if len(units) >= 3 and rising(asked, len(asked) - 1):
            usable.append(units)
    if not usable:
        return []
    return [(usable[number % len(usable)], speakers[number % len(speakers)]) for number in range(count)]


def _ended(units: tuple[Unit, ...], after: str, style: Style | None = None) -> tuple[Unit, ...]:
    last = replace(units[-1], after=after)
    return (*units[:-1], last if style is None else replace(last, style=style))


def _higher(say: Say, told: Sequence[Case], ways: Callable[[tuple[Unit, ...]], Sequence[tuple[Unit, ...]]]) -> float:
    right = []
    for units, speaker in told:
        up, down = (final_rise(say(Utterance(way, seed=1, speaker=speaker)).samples) for way in ways(units))
        right.append(up > down)
    return float(np.mean(right)) if right else float("nan")


def controls(say: Say, told: Sequence[Case], show: Callable[[str], None] = print) -> dict[str, float]:
    """All three, sentence by sentence, told as they come: shares of ``told`` where each is heard."""
    found: dict[str, list[float]] = {"question": [], "contour": [], "break": [], "break_timed": []}
    for number, case in enumerate(told, 1):
        found["question"].append(questions(say, [case]))
        found["contour"].append(contours(say, [case]))
        for name, share in zip(("break", "break_timed"), breaks(say, [case]), strict=True):
            found[name].append(share)
        right = ", ".join(f"{name} {sum(shares):.0f}" for name, shares in found.items())
        show(f"{number} of {len(told)}, {case[1]}: {right} right")
    return {name: float(np.mean(shares)) if shares else float("nan") for name, shares in found.items()}


def questions(say: Say, told: Sequence[Case]) -> float:
    """Share of sentences that end higher with a question mark than with a full stop."""
    return _higher(say, told, lambda units: [_ended(units, mark) for mark in "?."])


def contours(say: Say, told: Sequence[Case]) -> float:
    """Share of statements that end higher when their last word is drawn to rise than when it is drawn to fall."""
    return _higher(say, told, lambda units: [_ended(units, ".", Style(contour=shape)) for shape in (UP, DOWN)])


def breaks(say: Say, told: Sequence[Case]) -> tuple[float, float]:
    """(share of sentences in whose middle a comma adds 80 ms or more of silence between its two words, share where it
    does so by the voice's own times)."""
    heard, timed = [], []
    for units, speaker in told:
        middle = len(units) // 2 - 1
        plain = tuple(replace(unit, after="") for unit in units[:-1]) + units[-1:]
        broken = tuple(replace(unit, after=",") if place == middle else unit for place, unit in enumerate(plain))
        silent, gaps = [], []
        for row in (plain, broken):
            said = say(Utterance(row, seed=1, speaker=speaker))
            (first, end), (start, last) = said.words[middle], said.words[middle + 1]
            silent.append(pause(said.samples, (first + end) // 2, (start + last) // 2))
            gaps.append((start - end) / RATE)
        heard.append(silent[1] - silent[0] >= ADDED_S)
        timed.append(gaps[1] - gaps[0] >= ADDED_S)
    return (float(np.mean(heard)), float(np.mean(timed))) if heard else (float("nan"), float("nan"))
