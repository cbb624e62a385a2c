"""What a run of frames is asked for, whatever the model: which frames to make anew, its Timeline, its cut over ranks.

    context = Context.extend(latents, 120)          # 120 frames more after those
    partition = check_frames(240, world=3, scope=None, sizes=None)

Legend: F frames of the run (of latents, where a latent stands for several frames of film), c h w latent channels, grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from longtake.denoising import Known
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.outputs import VideoOutput
from longtake.timeline import Timeline, has_times
from longtake.video.scope import Scope

CONTEXT_FRAMES = 24  # frozen frames beside new ones: the window on each side and a part of the global set


@dataclass
class Context:
    """The frames to make, and clean latents (F, c, h, w) of an earlier run that they must join, if there is one.

    start, stop: the frames to make anew, in the numbers of the finished video; all others are kept bit for bit.
    before: the prompt that the earlier run ended with. The kept frames hear it, and the new ones fade out of it behind
        the border (see ``Timeline.after``); None: the kept frames hear the new prompt too, which begins at once.
    sound: latents (A, C) of the earlier run's sound, where it has one.
    film: frames of film that the finished video has, where its last latent frame holds more of them; None: all.
    fps: the earlier film's frames a second, where they are known.
    """

    latents: torch.Tensor | None
    start: int
    stop: int
    before: str | None = None
    sound: torch.Tensor | None = None
    film: int | None = None
    fps: float | None = None

    @classmethod
    def new(cls, frames: int) -> Context:
        """``frames`` frames that join nothing."""
        return cls(None, 0, frames)

    @classmethod
    def extend(cls, latents: torch.Tensor, frames: int, before: str | None = None) -> Context:
        """``frames`` more after the last one; before: the prompt that the last one heard, if it is known."""
        return cls(latents, len(latents), len(latents) + frames, before)

    @classmethod
    def redo(cls, latents: torch.Tensor, start: int, stop: int) -> Context:
        """The frames start..stop (stop not included) again, the rest fixed."""
        if not 0 <= start < stop <= len(latents):
            raise UserError(f"cannot redo frames {start}:{stop} of a video of {len(latents)} frames")
        if stop - start == len(latents):
            raise UserError("redoing every frame keeps nothing of the run: make a new one instead")
        return cls(latents, start, stop)

    @property
    def kept(self) -> int:
        """Frames of the earlier run."""
        return 0 if self.latents is None else len(self.latents)

    @property
    def total(self) -> int:
        """Frames of the finished video."""
        return max(self.kept, self.stop)

    def window(self, context_frames: int = CONTEXT_FRAMES) -> range:
        """Frames that the network sees: those to make and up to ``context_frames`` kept ones on each side."""
        return range(max(0, self.start - context_frames), min(self.total, self.stop + context_frames))

    def known(self, numbers: range) -> Known | None:
        """The kept ones among some frames, held fixed; None when nothing is kept."""
        if self.latents is None:
            return None
        mask = torch.tensor([not self.start <= number < self.stop for number in numbers])
        rows = [min(number, len(self.latents) - 1) for number in numbers]
        return Known(mask, self.latents[torch.tensor(rows)])

    def merge(self, made: torch.Tensor, span: range) -> torch.Tensor:
        """The whole video (F, c, h, w) of the frames made in ``span``: kept frames bit for bit, new ones in place."""
        if self.latents is None:
            return made
        new = made[self.start - span.start : self.stop - span.start]
        return torch.cat([self.latents[: self.start].float(), new, self.latents[self.stop :].float()])


def latents_of(run: torch.Tensor | VideoOutput) -> torch.Tensor:
    """The latents (F, c, h, w) of a run's output, or themselves. Raises UserError for an output without any."""
    if not isinstance(run, VideoOutput):
        return run
    if run.latents is None:
        raise UserError("this film holds no latents: it cannot be gone on from")
    return run.latents


def as_timeline(prompt: str | Timeline, fps: float) -> Timeline:
    """A prompt as every door reads it: a Timeline as it is, text with times parsed, other text as one prompt."""
    if isinstance(prompt, Timeline):
        return prompt
    if not isinstance(prompt, str):
        raise UserError(f"prompt is text or a Timeline; given {type(prompt).__name__}")
    return Timeline.parse(prompt, fps=fps) if has_times(prompt) else Timeline(((0, prompt),))


def check_frames(
    total: int, world: int, scope: Scope | None, sizes: Sequence[int] | None, new: int | None = None
) -> Partition:
    """The partition of a run's frames, or UserError: none, fewer than ranks, window larger than the video."""
    if new is not None and new < 1:
        raise UserError(f"frames must be at least 1, got {new}")
    if total < world:
        raise UserError(
            f"{total} frames cannot be shared by {world} ranks: use at most {max(total, 1)} ranks or more frames"
        )
    if scope is not None and scope.window > total:
        raise UserError(f"the window of {scope.window} frames on each side is larger than the video of {total} frames")
    if sizes is None:
        return Partition.even(total, world)
    if len(sizes) != world or sum(sizes) != total or min(sizes) < 1:
        raise UserError(f"sizes {list(sizes)} must be {world} positive numbers that add up to {total} frames")
    return Partition.from_sizes(list(sizes))
