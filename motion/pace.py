"""How fast each prompt goes when nothing holds it, for motions whose way is given.

    speeds = prompt_speeds(run, pipe.scheduler)                   # m/s of each row
    pace = pace_of(run.plan.row_of_frames(), speeds)              # m/s of each step
    frames = frames_for(path, starts, speeds, fps, last=80)       # in which the prompts walk the path

Legend: N frames.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from longtake.denoising import denoise
from longtake.distributed import Ranks
from longtake.motion.first_take import canvas_take
from longtake.motion.path import SLOWEST, FloorPath
from longtake.motion.representation import smooth
from longtake.motion.rows import MotionRun

_CHANGE = 5.0  # frames: sigma of the change from one prompt's speed to the next one's


def prompt_speeds(run: MotionRun, scheduler: Any) -> list[float]:
    """m/s at which each row's prompt goes in this run when nothing holds it; rows of one prompt go alike.

    Measured on the run itself, made without its control, so a path costs a second run: what stands beside a prompt
    changes its speed, and so does the number of steps. Half a second beside each change of prompt does not count. The
    same on every rank.
    """
    alone = Ranks.single(run.device, run.dtype)
    take = canvas_take(replace(run, control=None, hooks=()), copy.deepcopy(scheduler), alone)
    whole = take.whole(denoise(take.scheduler, take.state, take.predict, steps=run.steps, ranks=alone))
    space, fps = run.space, float(run.space.config.fps)
    root = space.form.root(space.denormalize(whole))[1][:, [0, 2]] / space.form.metre
    # over half a second, so that swaying does not count
    apart = min(max(1, round(fps / 2)), len(root) - 1)
    speed = (root[apart:] - root[:-apart]).norm(dim=1).cpu() * fps / apart  # between frame k and frame k + apart
    found: dict[str, list[torch.Tensor]] = {}
    owners = torch.tensor(run.plan.row_of_frames())
    for row in range(run.plan.rows):
        frames = (owners == row).nonzero().squeeze(1)
        inside = frames[(frames < len(speed)) & (frames + apart <= int(frames[-1]))]
        chosen = inside if len(inside) else frames.clamp(max=len(speed) - 1)
        found.setdefault(run.prompts[row], []).append(speed[chosen])
    mean = {prompt: float(torch.cat(parts).mean()) for prompt, parts in found.items()}
    return [mean[run.prompts[row]] for row in range(run.plan.rows)]


def pace_of(owners: Sequence[int], speeds: Sequence[float]) -> torch.Tensor:
    """(N - 1,) m/s of each step, from the row that each frame belongs to and each row's speed; changes are gradual."""
    pace = torch.tensor([speeds[row] for row in owners], dtype=torch.float64).clamp_min(SLOWEST)
    return smooth(pace.unsqueeze(1), _CHANGE)[1:, 0]


def frames_for(path: FloorPath, starts: Sequence[int], speeds: Sequence[float], fps: float, last: int) -> int:
    """The number of frames in which prompts that begin at ``starts`` walk the path at their own ``speeds`` (m/s): the
    last prompt ends where the path does. ``last`` frames for it when it stands, or when the path is walked before."""
    walked = sum(
        max(speed, SLOWEST) * (stop - start) / fps
        for start, stop, speed in zip(starts, starts[1:], speeds, strict=False)
    )
    rest = path.length - walked
    if speeds[-1] < 4 * SLOWEST or rest <= 0:
        return starts[-1] + last
    return starts[-1] + max(round(fps), 1 + round(rest / speeds[-1] * fps))
