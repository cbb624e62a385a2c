"""Pictures to look at: contact sheets of many clips, and of long videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from longtake.video.entries import Entry, Video

SHEET_FRAMES = 16
SUBJECT_FRAMES = 8
LINES = 32  # of subjects below each other; more stand in another column
FPS = 12.0  # of the clips the prior was trained on


def subject_sheet(clips: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """A line of ``SUBJECT_FRAMES`` frames for each clip, uint8 (F, H, W, 3), its subject below it; at most ``LINES``
    lines a column."""
    from longtake.media import contact_sheet

    blank = np.full(clips[0][1].shape[1:], 255, np.uint8)
    lines = min(LINES, len(clips))
    columns = math.ceil(len(clips) / lines)
    frames: list[np.ndarray] = []
    captions: list[str] = []
    for line in range(lines):
        for column in range(columns):
            place = column * lines + line
            if place >= len(clips):
                frames += [blank] * SUBJECT_FRAMES
                captions += [""] * SUBJECT_FRAMES
                continue
            subject, film = clips[place]
            picked = np.linspace(0, len(film) - 1, SUBJECT_FRAMES).round().astype(int)
            frames += [film[index] for index in picked]
            words = [subject[start : start + 10] for start in range(0, len(subject), 10)][:SUBJECT_FRAMES]
            captions += words + [""] * (SUBJECT_FRAMES - len(words))
    contact_sheet(frames, path, SUBJECT_FRAMES * columns, captions, overwrite=True)


def sheets(videos: Mapping[Entry, Video], wanted: Sequence[Entry], folder: Path, *, mp4: bool) -> None:
    """``sheet-<frames>.png``, a line of 16 frames for each long video; with ``mp4`` also the videos."""
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
