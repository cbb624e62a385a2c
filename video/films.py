"""Timelines set beside real films of several actions: is each action seen, does the picture turn when it was asked to.

A truth film shows one character do two or more actions, cross-faded; its index says when each begins. The prior makes
the same by a Timeline. When a film turns from one action to the next is read from the real clips of both: of all frames
at which it could turn, the one that explains the frames around it best (``likeness.turning_point``).

    judged = judge_film(truth, video, evaluator, clips)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from longtake.timeline import Timeline
from longtake.video.data import FACING, UNSAID, Clip, Film
from longtake.video.entries import Entry, Method
from longtake.video.evaluator import Evaluator
from longtake.video.likeness import POSE, RealFrames, changes, turning_point
from longtake.video.metrics import WINDOW
from longtake.video.watch.keeping import kept_prompts
from longtake.video.watch.tower import Tower

IN_TIME = 2  # frames
APART = 4  # frames between the windows that an action is read from


@dataclass
class FilmRow:
    """One line of the table of Timelines.

    parts: how many actions; parts_right: share of them that the evaluator sees in at least half of their 16-frame
    windows. turns: changes of action; in_time: share that come within two frames of the asked one; late: mean of frame
    less asked frame; off: mean of its size. identity: share of the frames that look like the character;
    identity_changes: times that a film changes character. found: share of the prompts that `longtake watch` finds first
    in their own part, found_chance what chance would find (`kept_prompts`). each: of every film.
    """

    label: str
    films: int
    parts: int
    parts_right: float
    turns: int
    in_time: float
    late: float
    off: float
    identity: float
    identity_changes: int
    found: float
    found_chance: float
    each: list[dict[str, Any]]


def timeline_of(film: Film) -> Timeline:
    """What a truth film shows, as a Timeline in frames; the view is said where it is not the usual one."""
    told = "" if film.view == UNSAID else FACING[film.view]
    return Timeline(tuple((round(part.start * film.fps), part.caption + told) for part in film.segments))


def film_entry(film: Film, seed: int) -> Entry:
    """The video that a prior makes of a truth film's Timeline."""
    return Entry(Method.TIMELINE, film.name.split(".")[0], timeline_of(film).to_json(), len(film.frames), seed)


class FilmJudge:
    """Judges films of several actions by real clips. everyone: the frames of all clips, each labelled by who is
    seen. tower: in which prompts are looked for."""

    def __init__(self, evaluator: Evaluator, clips: Sequence[Clip], everyone: RealFrames, tower: Tower) -> None:
        self.evaluator = evaluator
        self.tower = tower
        self.clips = clips
        self.everyone = everyone

    def acted(self, film: Film, action: str) -> RealFrames:
        """The real frames of one action of a film, by its character in its view."""
        return RealFrames.of(
            [
                clip
                for clip in self.clips
                if (clip.character, clip.action, clip.view) == (film.character, action, film.view)
            ],
            POSE,
        )

    def judge(self, film: Film, video: np.ndarray) -> dict[str, Any]:
        """One video uint8 (F, 64, 64, 3) that should show what a truth film of as many frames shows."""
        if video.shape != film.frames.shape:
            raise ValueError(f"{film.name} has frames {film.frames.shape}, the video {video.shape}")
        segments = timeline_of(film).segments(len(video))
        right: list[float] = []
        distances = []
        for (start, stop, _), part in zip(segments, film.segments, strict=True):
            starts = range(start, max(start + 1, stop - WINDOW + 1), APART)
            windows = [video[np.minimum(np.arange(place, place + WINDOW), len(video) - 1)] for place in starts]
            seen = self.evaluator.named(np.stack(windows))
            right.append(float(np.mean([names[-1] == part.action for names in seen])))
            distances.append(self.acted(film, part.action).nearest(video)[1])
        late = []
        for index in range(1, len(segments)):
            begin, asked, end = segments[index - 1][0], segments[index][0], segments[index][1]
            found = turning_point(distances[index - 1][begin:end], distances[index][begin:end])
            late.append(begin + found - asked)
        who = self.everyone.labels_of(video)
        told = [(start, stop, part.caption) for (start, stop, _), part in zip(segments, film.segments, strict=True)]
        kept, chance = kept_prompts(video, film.fps, told, self.tower)
        return {
            "film": film.name,
            "actions": [part.action for part in film.segments],
            "right": right,
            "late": late,
            "identity": float(np.mean(who == film.character)),
            "identity_changes": changes(who),
            "found": kept,
            "found_chance": chance,
        }

    def row(self, label: str, videos: Sequence[tuple[Film, np.ndarray]]) -> FilmRow:
        """The row of some videos, at least one, beside the films that they should show."""
        each = [self.judge(film, video) for film, video in videos]
        right = np.array([share >= 0.5 for one in each for share in one["right"]])
        late = np.array([frames for one in each for frames in one["late"]])
        return FilmRow(
            label=label,
            films=len(each),
            parts=len(right),
            parts_right=float(right.mean()),
            turns=len(late),
            in_time=float((np.abs(late) <= IN_TIME).mean()),
            late=float(late.mean()),
            off=float(np.abs(late).mean()),
            identity=float(np.mean([one["identity"] for one in each])),
            identity_changes=sum(one["identity_changes"] for one in each),
            found=float(np.mean([was for one in each for was in one["found"]])),
            found_chance=float(np.mean([share for one in each for share in one["found_chance"]])),
            each=each,
        )
