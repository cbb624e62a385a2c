"""How fast each prompt goes when nothing holds it, for motions whose way is given.

    speeds = prompt_speeds(run, pipe.scheduler)                   # m/s of each row
    pace = pace_of(run.plan.row_of_frames(), speeds)              # m/s of each step
    frames = frames_for(path, starts, speeds, fps, last=80)       # in which the prompts walk the path

Legend: N frames, R rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from longtake.denoising import Denoising, Strand, Tensors, denoise
from longtake.distributed import Ranks
from longtake.motion.first_take import numbers
from longtake.motion.path import SLOWEST, FloorPath
from longtake.motion.representation import smooth
from longtake.motion.rows import MotionRun
from longtake.motion.sampling import TextDenoiser
from longtake.noise import noise

_SPEED = 5 << 48  # noise numbers of these samples alone
_SAMPLES, _FRAMES, _STEPS = 3, 80, 10  # a prompt's speed is measured on so many, of so many frames and steps
_CHANGE = 5.0  # frames: sigma of the change from one prompt's speed to the next one's


def prompt_speeds(run: MotionRun, scheduler: Any) -> list[float]:
    """m/s at which each row's prompt goes: the mean over a few short samples, the same for any run of this prior,
    prompt and guidance; 1 without texts."""
    net, space = run.denoise, run.space
    text = net.text  # type: ignore[attr-defined]
    if text is None:
        return [1.0] * run.plan.rows
    different, back = torch.unique(text.float().cpu(), dim=0, return_inverse=True)
    frames = max(int(space.config.shortest_row), min(int(space.config.longest_row), _FRAMES))
    rows = different.repeat_interleave(_SAMPLES, 0).to(text)
    alone = TextDenoiser(net.model, rows, net.scale, lengths=[frames] * len(rows))  # type: ignore[attr-defined]
    names = [number for row in range(len(rows)) for number in numbers(_SPEED, row, frames)]
    start = noise(0, 0, names, 0, (run.width,)).to(run.device)

    def predict(samples: Tensors, t: Any, step: int) -> Tensors:
        x = samples["latents"].unflatten(0, (len(rows), frames))
        parts = torch.arange(len(rows)).split(run.chunk_rows)
        clean = [alone(x[part].to(run.dtype), int(t), part.tolist()) for part in parts]
        return {"latents": torch.cat(clean).flatten(0, 1).to(x.dtype)}

    state = Denoising({"latents": Strand(start, names)}, 0)
    steps = min(_STEPS, int(scheduler.config.num_train_timesteps))
    final = denoise(copy.deepcopy(scheduler), state, predict, steps=steps, ranks=Ranks.single(run.device, run.dtype))
    made = space.denormalize(final["latents"].float()).unflatten(0, (len(rows), frames))
    root = space.form.root(made)[1][..., [0, 2]]
    # over half a second, so that swaying does not count
    apart = max(1, round(space.config.fps / 2))
    speed = (root[:, apart:] - root[:, :-apart]).norm(dim=-1).mean(1) * space.config.fps / apart
    mean = speed.unflatten(0, (-1, _SAMPLES)).mean(1)
    return [float(mean[place]) / space.form.metre for place in back.tolist()]


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
