"""What ``longtake batch`` and the demo need to make motion: parameters of a job, checks, the pipeline and the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.motion.command import DEFAULT_PRIOR, STEPS, SUFFIXES

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.motion.outputs import MotionOutput
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.timeline import Timeline

FPS = 20.0
DEFAULTS: dict[str, Any] = {
    "frames": None,
    "steps": STEPS,
    "guidance": 2.5,
    "handshake": 20,
    "take2": None,
    "chunk_rows": 16,
    "lock_feet": False,
    "prior": DEFAULT_PRIOR,
    "outputs": [".npz"],
    "preview": False,
}
SECONDS = 0.00042  # a frame and step with guidance, bandai-small on one core: 12,000 frames, 20 steps in 100 s
MEMORY_GB = 1.1  # peak of 12,000 frames with bandai-small
LAST_SECONDS = 4.0


def check(parameters: dict[str, Any], timeline: Timeline) -> tuple[int, int]:
    """(frames, steps) of a job. Raises UserError."""
    frames = parameters["frames"]
    if frames is None:
        frames = timeline.starts[-1][0] + round(LAST_SECONDS * FPS)
    if not isinstance(frames, int) or frames < 2:
        raise UserError(f"frames is a whole number from 2 on; given {frames!r}")
    if not isinstance(parameters["steps"], int) or parameters["steps"] < 1:
        raise UserError(f"steps is a whole number from 1 on; given {parameters['steps']!r}")
    outputs = parameters["outputs"]
    if not isinstance(outputs, list) or not outputs or any(kind not in SUFFIXES for kind in outputs):
        raise UserError(f"outputs is a list of {', '.join(SUFFIXES)}; given {outputs!r}")
    return frames, parameters["steps"]


def load(prior: str, ranks: Ranks) -> LongMotionPipeline:
    """The pipeline, on the rank's device."""
    from longtake.motion.pipeline import LongMotionPipeline

    pipe = LongMotionPipeline.from_prior(prior, dtype=ranks.choice.dtype)
    pipe.to(ranks.device)
    return pipe


def generate(
    pipe: LongMotionPipeline,
    timeline: Timeline,
    seed: int,
    parameters: dict[str, Any],
    ranks: Ranks,
    callback: Callable[..., Any] | None = None,
) -> MotionOutput:
    """The motion of one job. callback: as the pipeline's ``callback_on_step_end``."""
    frames, steps = check(parameters, timeline)
    output = pipe(
        timeline,
        frames,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=parameters["guidance"],
        handshake=parameters["handshake"],
        take2=parameters["take2"],
        chunk_rows=parameters["chunk_rows"],
        ranks=ranks,
        callback_on_step_end=callback,
    )
    if parameters["lock_feet"]:
        output.lock_feet()
    return output


def write(output: MotionOutput, parameters: dict[str, Any], stem: Path) -> list[Path]:
    """The files that a job asks for, named by ``stem``."""
    files = [output.save(stem.with_name(stem.name + kind), overwrite=True) for kind in parameters["outputs"]]
    if parameters["preview"]:
        files.append(output.preview(stem.with_name(stem.name + ".png"), overwrite=True))
    return files


def make(
    pipe: LongMotionPipeline, timeline: Timeline, seed: int, parameters: dict[str, Any], ranks: Ranks, stem: Path
) -> list[Path]:
    """Make one job on one rank and write its files."""
    return write(generate(pipe, timeline, seed, parameters, ranks), parameters, stem)


def opens(path: Path) -> None:
    """Raise when a file of a job is missing or damaged: .npz is read whole, others must be there and not empty."""
    import numpy as np

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    elif path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
