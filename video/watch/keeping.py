"""Prompt keeping: in a film that was made of several prompts, is each found in its own part?

The loop closes: `longtake video` makes a film of a Timeline, `longtake watch` is asked for each of its prompts, and
what it finds first lies in the part of that prompt or does not.

    kept, chance = kept_prompts(frames, 12.0, [(0, 24, "a knight walks"), (24, 48, "a knight falls")], tower)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from longtake.video.watch.index import ClipIndex
from longtake.video.watch.question import caption_of
from longtake.video.watch.tower import Tower

RATE = 4.0  # pictures a second that are looked at: the films are short


def kept_prompts(
    frames: np.ndarray, fps: float, parts: Sequence[tuple[int, int, str]], tower: Tower
) -> tuple[list[bool], list[float]]:
    """For each part (first frame, one past the last, prompt) of a film uint8 (F, H, W, 3): whether the segment that is
    likest to its prompt, of all of the film, has its middle in the part; and the share of the film's time that such
    segments have, which is how often that happens by chance. Prompts that stand twice may be found in either place."""
    index = ClipIndex.of_frames(frames, fps, tower, rate=RATE)
    middles, lasts = index.spans.mean(1) * fps, np.diff(index.spans, axis=1)[:, 0]
    kept, chance = [], []
    for _, _, prompt in parts:
        own = np.zeros(len(index), bool)
        for start, stop, other in parts:
            own |= (other == prompt) & (start <= middles) & (middles < stop)
        best = int(index.scores(tower.ask(caption_of(prompt))).argmax())
        kept.append(bool(own[best]))
        chance.append(float(lasts[own].sum() / lasts.sum()))
    return kept, chance
