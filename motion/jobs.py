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
    "people": 1,
    "prior": DEFAULT_PRIOR,
    "outputs": [".npz"],
    "preview": False,
}
SECONDS = 0.00042  # a frame and step with guidance, bandai-small on one core: 12,000 frames, 20 steps in 100 s
MEMORY_GB = 1.1  # peak of 12,000 frames with bandai-small
LAST_SECONDS = 4.0
_GLTF = 0x46546C67  # "glTF"


def check(parameters: dict[str, Any], timeline: Timeline) -> tuple[int, int]:
    """(frames, steps) of a job. Raises UserError."""
    frames = parameters["frames"]
    if frames is None:
        frames = timeline.starts[-1][0] + round(LAST_SECONDS * FPS)
    if not isinstance(frames, int) or frames < 2:
        raise UserError(f"frames is a whole number from 2 on; given {frames!r}")
    if not isinstance(parameters["steps"], int) or parameters["steps"] < 1:
        raise UserError(f"steps is a whole number from 1 on; given {parameters['steps']!r}")
    if parameters["people"] not in (1, 2):
        raise UserError(f"people is 1 or 2; given {parameters['people']!r}")
    if parameters["people"] == 2 and parameters["take2"] is not None:
        raise UserError("two people know no take2")
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
    settings: dict[str, Any] = {
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": parameters["guidance"],
        "handshake": parameters["handshake"],
        "chunk_rows": parameters["chunk_rows"],
        "callback_on_step_end": callback,
    }
    if parameters["people"] == 2:
        output = pipe.pair(timeline, frames, **settings)
    else:
        output = pipe(timeline, frames, take2=parameters["take2"], ranks=ranks, **settings)
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
    """Make one job and write its files."""
    from longtake.runs import on_main

    output = generate(pipe, timeline, seed, parameters, ranks)
    return on_main(ranks, lambda: write(output, parameters, stem))


def most_ranks(pipe: LongMotionPipeline, timeline: Timeline, parameters: dict[str, Any]) -> int:
    """Ranks share whole chunks of rows, so that a result does not depend on their number; two people are not shared."""
    if parameters["people"] == 2:
        return 1
    from longtake.motion.model import Padding
    from longtake.motion.rows import plan_of

    frames, _ = check(parameters, timeline)
    longest = int(pipe.space.config.longest_row)
    plan, _ = plan_of(timeline, frames, handshake=parameters["handshake"], longest=longest)
    return len(plan.chunks(int(parameters["chunk_rows"]), mixed=pipe.model.padding is Padding.MASK))


def opens(path: Path) -> None:
    """Raise when a file of a job is missing or damaged: every kind is read by what reads it."""
    import numpy as np

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    elif path.suffix == ".bvh":
        from longtake.motion.export.bvh import read_bvh

        read_bvh(path)
    elif path.suffix == ".glb":
        head = np.fromfile(path, "<u4", 3)
        if len(head) != 3 or head[0] != _GLTF or head[2] != path.stat().st_size:
            raise UserError(f"{path} is no whole glTF file")
    elif path.suffix == ".html":
        from longtake.motion.export.viewer import unpack

        page = path.read_text(encoding="utf-8")
        unpack(page)
        if not page.rstrip().endswith("</html>"):
            raise UserError(f"{path} is no whole page")
    elif path.suffix == ".csv":
        import csv

        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n") or len({len(row) for row in csv.reader(text.splitlines())}) != 1:
            raise UserError(f"{path} is no whole table")
    elif path.suffix in (".mp4", ".gif"):
        from longtake.media import check_film

        check_film(path)
    else:
        from longtake.media import check_picture

        check_picture(path)
