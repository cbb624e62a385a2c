"""What a request holds beside its prompt: places to reach, a loop, arms that do something of their own.

    output = make(pipe, "0s: a person walks", 120, upper="0s: waves with the right hand", loop=True, seed=1)
    output.info["loop"], output.info.get("keys_off_m")

Body parts: the legs' run comes first, then the same run with the other prompts, in which the features of the lower body
and the root are held to the first one's (``control.mask_features("lower_body")``), as DiffusionBlending's joint control
does it without training again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from longtake.motion.control import Control, mask_features
from longtake.motion.keys import Keys, told
from longtake.motion.loop import check, close, tie
from longtake.timeline import Timeline

if TYPE_CHECKING:
    from longtake.motion.outputs import MotionOutput
    from longtake.motion.pipeline import LongMotionPipeline


STEPS = 30  # the pipeline's and the command's
_OF_ONE_RUN = ("journal", "checkpoint_every", "callback_on_step_end")  # of the last run, not of the legs' before it


def refuse(settings: Mapping[str, Any], fps: float, pose: Path | None = None) -> None:
    """Raise UserError for keys, loops and body parts that cannot be read, or do not go with the rest. fps: of the
    motion; settings["frames"] is None where the length is open; pose: the file of the poses of keys."""
    frames = settings["frames"]
    for name in ("keys", "loop", "upper"):
        if not settings[name]:
            continue
        if settings["people"] == 2:
            raise UserError(f"--{name} is of one person; given 2 people")
        if settings["take2"] is not None:
            raise UserError(f"--{name} and --take2 do not go together: a second take knows nothing of it")
        if settings["path"] is not None and name != "loop":
            raise UserError(f"--{name} and --path both say where the body is: give one of them")
    if settings["keys"]:
        keys = Keys.parse(settings["keys"], fps, pose)
        if keys.looks and settings["rig"] == "none":
            raise UserError("a look is shown by a rig's head bone: it needs --rig")
        if frames is not None:
            keys.check(frames, fps)
    if settings["upper"]:
        upper = Timeline.parse(settings["upper"], fps=fps)
        if frames is not None:
            upper.validate(frames)
    if settings["loop"] and frames is not None:
        check(frames)


def make(
    pipe: LongMotionPipeline,
    prompt: str | Timeline,
    frames: int | None = None,
    *,
    keys: str | None = None,
    pose: Path | str | None = None,
    loop: bool = False,
    upper: str | None = None,
    num_inference_steps: int = STEPS,
    **call: Any,
) -> MotionOutput:
    """A pipeline's call with keys, a loop, or arms that follow a timeline of their own; other arguments as it has them.
    pose: the file (``rigs.takes``) of the poses that keys name. Raises UserError."""
    fps = float(pipe.space.config.fps)
    timeline = prompt if isinstance(prompt, Timeline) else Timeline.parse(prompt, fps=fps)
    hooks: list[Callable[[torch.Tensor, int], torch.Tensor]] = []
    if keys:
        hooks.append(Keys.parse(keys, fps, pose).guide(pipe.space, num_inference_steps))
    if loop:
        hooks.append(tie)
    call = {**call, "num_inference_steps": num_inference_steps, "hooks": hooks}
    legs = None
    if upper:
        if pipe.space.form.width != 263:
            raise UserError(f"body parts need HumanML3D's 263 features; this prior has {pipe.space.form.width}")
        legs, timeline = timeline, Timeline.parse(upper, fps=fps)
        first = {name: value for name, value in call.items() if name not in _OF_ONE_RUN}
        below = pipe(legs, frames, output_type="latent", **first)
        frames = len(below.features)
        timeline.validate(frames)
        given = torch.as_tensor(below.features).to(pipe.model.device)
        call["control"] = Control(mask_features("lower_body").to(given.device), given, quiet=False)
    output: MotionOutput = pipe(timeline, frames, **call)
    if output.info["completed"]:
        if legs is not None:
            _both_captions(output, legs)
        finish(output, keys=keys, pose=pose, loop=loop)
    return output


def finish(
    output: MotionOutput, *, keys: str | None = None, pose: Path | str | None = None, loop: bool = False
) -> None:
    """Keys met and the loop closed, of a motion that is there; what it cost goes into ``info["told"]``. pose: the file
    of the poses that keys name. Raises UserError."""
    lines = output.info.setdefault("told", [])
    if keys:
        asked = Keys.parse(keys, output.fps, pose)
        lines.append(told(asked, asked.reach(output), output.fps))
    if loop:
        lines.append(close(output).text())


def meet_again(output: MotionOutput, keys: str, pose: Path | str | None = None) -> None:
    """Keys met once more after the feet were locked, which moves legs; told in place of what ``finish`` told of them.
    Raises UserError."""
    lines = output.info["told"]
    lines[:] = [line for line in lines if not line.startswith("keys:")]
    finish(output, keys=keys, pose=pose)


def _both_captions(output: MotionOutput, legs: Timeline) -> None:
    """Each frame's caption says what the legs do and what the arms do."""
    below = _captions(legs, len(output.captions))
    output.captions = [f"{one}, {two}" for one, two in zip(below, output.captions, strict=True)]
    pairs = zip(output.captions, output.captions[1:], strict=False)
    output.boundaries = [frame for frame, (before, after) in enumerate(pairs, 1) if before != after]


def _captions(timeline: Timeline, frames: int) -> list[str]:
    starts = [start for start, _ in timeline.starts]
    found: list[str] = []
    for (_, text), start, stop in zip(timeline.starts, starts, [*starts[1:], frames], strict=True):
        found += [text] * (stop - start)
    return found
