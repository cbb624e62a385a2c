"""What ``longtake batch`` and the demo need to make video: parameters of a job, checks, the pipeline and the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.outputs import VideoOutput
    from longtake.timeline import Timeline
    from longtake.video.pipeline import LongVideoPipeline

FPS = 12.0
DEFAULTS: dict[str, Any] = {
    "frames": 240,
    "steps": 16,
    "guidance": 3.0,
    "negative": "",
    "fps": FPS,
    "height": None,
    "width": None,
    "prior": "emoji-small",
    "outputs": [".mp4"],
    "preview": False,
}
SUFFIXES = (".mp4", ".gif")
SECONDS = 0.0156  # a frame and step with guidance, emoji-small at 64 x 64: 240 frames, 16 steps in 60 s
MEMORY_GB = 1.5  # peak of 2,300 frames with emoji-small


def check(parameters: dict[str, Any], timeline: Timeline) -> tuple[int, int]:
    """(frames, steps) of a job. Raises UserError."""
    for name in ("frames", "steps"):
        if not isinstance(parameters[name], int) or parameters[name] < 1:
            raise UserError(f"{name} is a whole number from 1 on; given {parameters[name]!r}")
    if not isinstance(parameters["fps"], int | float) or not parameters["fps"] > 0:
        raise UserError(f"fps is a number greater than 0; given {parameters['fps']!r}")
    outputs = parameters["outputs"]
    if not isinstance(outputs, list) or not outputs or any(kind not in SUFFIXES for kind in outputs):
        raise UserError(f"outputs is a list of {', '.join(SUFFIXES)}; given {outputs!r}")
    return parameters["frames"], parameters["steps"]


def load(prior: str, ranks: Ranks) -> LongVideoPipeline:
    """The pipeline, on the rank's device."""
    from longtake.video.pipeline import LongVideoPipeline

    pipe = LongVideoPipeline.from_prior(prior, dtype=ranks.choice.dtype)
    pipe.to(ranks.device)
    return pipe


def generate(
    pipe: LongVideoPipeline,
    timeline: Timeline,
    seed: int,
    parameters: dict[str, Any],
    ranks: Ranks,
    callback: Callable[..., Any] | None = None,
) -> VideoOutput:
    """The video of one job, a stream unless several files need its frames. callback: as the pipeline's
    ``callback_on_step_end``."""
    return pipe(
        timeline,
        parameters["frames"],
        seed=seed,
        num_inference_steps=parameters["steps"],
        guidance_scale=parameters["guidance"],
        negative_prompt=parameters["negative"],
        fps=parameters["fps"],
        height=parameters["height"],
        width=parameters["width"],
        ranks=ranks,
        callback_on_step_end=callback,
        output_type="stream" if len(parameters["outputs"]) == 1 else "np",
    )


def write(output: VideoOutput, parameters: dict[str, Any], stem: Path) -> list[Path]:
    """The films that a job asks for and its clean latents, which ``longtake video --extend`` reads."""
    from longtake.video.command import save_latents

    films = [stem.with_name(stem.name + kind) for kind in parameters["outputs"]]
    picture = stem.with_name(stem.name + ".png") if parameters["preview"] else None
    for number, film in enumerate(films):
        output.save(film, overwrite=True, preview=picture if number == 0 else None)
    note = {
        "prior": parameters["prior"],
        "fps": parameters["fps"],
        "seed": output.info["seed"],
        "steps": output.info["steps"],
    }
    assert output.latents is not None
    latents = stem.with_name(stem.name + ".safetensors")
    save_latents(latents, output.latents, note)
    return [*films, latents, *([picture] if picture else [])]


def make(
    pipe: LongVideoPipeline, timeline: Timeline, seed: int, parameters: dict[str, Any], ranks: Ranks, stem: Path
) -> list[Path]:
    """Make one job and write its files."""
    from longtake.runs import on_main

    output = generate(pipe, timeline, seed, parameters, ranks)

    def save() -> list[Path]:
        try:
            return write(output, parameters, stem)
        except BaseException:
            for _ in output.frames:  # the other ranks send what they decode: it must be taken
                pass
            raise

    if not ranks.is_main:
        for _ in output.chunks():
            pass
    return on_main(ranks, save)


def most_ranks(pipe: LongVideoPipeline, timeline: Timeline, parameters: dict[str, Any]) -> int:
    """Every rank needs a frame."""
    return int(parameters["frames"])


def opens(path: Path) -> None:
    """Raise when a file of a job is missing or damaged."""
    from longtake.media import check_film, check_picture
    from longtake.weights import load_state

    if path.suffix in SUFFIXES:
        check_film(path)
    elif path.suffix == ".safetensors":
        load_state(path)
    else:
        check_picture(path)
