"""Films set beside the real frames they look like: which way time runs, who is seen, when an action changes.

Nothing here is trained: frames are shrunk and compared, squared distance over pixels and colours in 0..1. A film that
shimmers around one pose has motion but no direction of time; these figures see that.

    real = RealFrames.of(clips, POSE)                   # the clips of one subject
    arrow, stays = real.arrow_stays(film)               # 1 and 0 for a real film; a still one stays 1
    who = RealFrames.of(every_clip, SUBJECT, label=identity).labels_of(film)

Legend: F frames of a film, n real frames, H W pixels, D numbers a shrunk frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from longtake.video.metrics import shrink

if TYPE_CHECKING:
    from longtake.video.data import Clip

SUBJECT = 16  # side of a shrunk frame that shows who is seen
POSE = 32  # and of one that shows what they do
ARROW, STAYS = 0.85, 0.25  # a clip moves with an arrow above and stays below
AT_ONCE = 256  # frames of a film compared in one product


def identity(clip: Clip) -> str:
    """Who is seen in a real clip: the character, or the emoji's subject and skin tone."""
    return clip.character or ", ".join(part for part in (clip.subject, clip.tone) if part)


@dataclass(frozen=True)
class RealFrames:
    """The frames of real clips, each with the one before it and the one after it.

    frames: (n, D) shrunk. before, after: (n,) index of the neighbours in time; around the loop where a clip wraps, else
    the first and the last frame are their own. labels: of each frame (n,).
    """

    side: int
    frames: np.ndarray
    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, clips: Sequence[Clip], side: int, label: Callable[[Clip], str] = identity) -> RealFrames:
        """The frames of ``clips``; ``label`` names the frames of one. Raises ValueError when there are none."""
        if not clips:
            raise ValueError("there are no real clips to compare with")
        before, after, labels, start = [], [], [], 0
        for clip in clips:
            count = len(clip.frames)
            places = np.arange(count)
            earlier, later = (
                (places + step) % count if clip.wraps else np.clip(places + step, 0, count - 1) for step in (-1, 1)
            )
            before.append(start + earlier)
            after.append(start + later)
            labels += [label(clip)] * count
            start += count
        frames = np.concatenate([shrink(clip.frames, side) for clip in clips])
        return cls(side, frames, np.concatenate(before), np.concatenate(after), np.array(labels))

    def nearest(self, film: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index (F,) of the real frame that each frame of a film uint8 (F, H, W, 3) is nearest to, and the squared
        distance (F,), a mean over pixels and colours."""
        shown = shrink(film, self.side)
        norms = np.square(self.frames).sum(1)
        index, distance = [], []
        for start in range(0, len(shown), AT_ONCE):
            part = shown[start : start + AT_ONCE]
            apart = norms - 2 * part @ self.frames.T  # less the frame's own square, which is the same for all
            best = apart.argmin(1)
            index.append(best)
            distance.append(np.square(part - self.frames[best]).mean(1))
        return np.concatenate(index), np.concatenate(distance)

    def labels_of(self, film: np.ndarray) -> np.ndarray:
        """The label (F,) of the real frame that each frame of a film looks like."""
        return self.labels[self.nearest(film)[0]]

    def arrow_stays(self, film: np.ndarray) -> tuple[float, float]:
        """(arrow, stays) of a film uint8 (F >= 2, H, W, 3), each 0..1.

        Frame t looks like one real picture. arrow: share of the steps whose frame t + 1 is nearer to that picture's
        successor than to its predecessor; 0.5 is no direction of time. stays: share of the steps whose frame t + 1 is
        nearer to that same picture than to either; where it is large, the arrow says nothing. A picture that the real
        clips show more than once (a movement there and back, a pose that is held) has several successors and
        predecessors, of which the nearest count. Steps as near to the one as to the other, or to a neighbour that is
        the same picture, tell no direction and are left out of both; NaN when no step is left.
        """
        if len(film) < 2:
            raise ValueError("a film of one frame has no step")
        here = self.nearest(film)[0][:-1]
        later = shrink(film, self.side)[1:]
        to_after, to_before, to_here = np.empty((3, len(here)))
        for step, (index, frame) in enumerate(zip(here, later, strict=True)):
            shown = self._shown_as(index)
            to_here[step] = np.square(frame - self.frames[index]).mean()
            to_after[step], to_before[step] = (
                np.square(frame - self.frames[beside[shown]]).mean(1).min() for beside in (self.after, self.before)
            )
        telling = (to_after != to_before) & (to_here != np.minimum(to_after, to_before))
        if not telling.any():
            return float("nan"), float("nan")
        forward = to_after < to_before
        still = to_here < np.minimum(to_after, to_before)
        return float(forward[telling].mean()), float(still[telling].mean())

    def _shown_as(self, index: int) -> np.ndarray:
        """Indices of the real frames that are the same picture as one."""
        return np.flatnonzero((self.frames == self.frames[index]).all(1))


def changes(labels: Sequence[str] | np.ndarray, settle: int = 5) -> int:
    """How often the label changes for good along a film: from one that holds ``settle`` frames to another that does.

    Shorter stretches (a frame that looks like somebody else in passing) count as no change.
    """
    held: str | None = None
    count, run, previous = 0, 0, None
    for label in labels:
        run = run + 1 if label == previous else 1
        previous = label
        if run >= settle and label != held:
            count += held is not None
            held = label
    return count


def turning_point(first: np.ndarray, second: np.ndarray) -> int:
    """The frame from which a film looks like a second thing: squared distances (F,) to each, frame by frame.

    Of all cuts the one that leaves the smallest sum, first things before it and second from it on; 0..F. Of equal ones
    the middle one.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"distances to two things are two arrays (F,), not {first.shape} and {second.shape}")
    gain = np.concatenate([[0.0], np.cumsum(first.astype(np.float64) - second)])  # of calling frames 0..t-1 the first
    best = np.flatnonzero(gain <= gain.min() + 1e-12)
    return int(best[len(best) // 2])
