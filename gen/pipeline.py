"""What the pipelines share: diffusers' life cycle and habits, an early end, and the meaning of a call's arguments.

class LongMotionPipeline(LongTakePipeline):
    PRIORS = "longtake.motion"

    def __call__(self, prompt, frames=None, *, num_frames=None, seed=None, generator=None, ...):
        self.begin()
        seed, frames = seed_of(seed, generator), frames_of(frames, num_frames)
        denoise(..., on_step=self.watcher(callback_on_step_end), should_stop=lambda: self.interrupt)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from longtake.denoising import OnStep, Step
from longtake.errors import UserError, one_line

if TYPE_CHECKING:
    from typing import Self

Callback = Callable[[Any, int, Any, dict[str, Any]], Any]  # diffusers' callback_on_step_end
CALLBACK_INPUTS = ("latents", "clean")
MOST_FRAMES = 1_000_000  # of one run; a frame's number names its noise and costs a few bytes everywhere


class LongTakePipeline(DiffusionPipeline):
    """Base of the pipelines: diffusers' life cycle, and ``stop()`` to end a run early with what there is.

    PRIORS: the package whose priors ``from_pretrained`` knows by name. PARTS: modules of ours that hold components;
    diffusers makes a component only when its module has been imported.
    """

    PRIORS: ClassVar[str | None] = None
    PARTS: ClassVar[tuple[str, ...]] = ("longtake.text",)

    def __init__(self) -> None:
        super().__init__()
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, name: Any, **settings: Any) -> Self:
        """As diffusers' (a local folder or a Hub id, dtype=, torch_dtype=, ...), and by the name of a shipped prior.

        Raises UserError for what is neither."""
        for part in cls.PARTS:
            import_module(part)
        found = cls._found(name, settings)
        try:
            return super().from_pretrained(found, **settings)
        except OSError as error:
            if isinstance(found, Path):
                raise
            told = one_line(error)[:200]
            raise UserError(f"there is no folder {name} here, and the Hub does not give it: {told}") from error

    @classmethod
    def _found(cls, name: Any, settings: Mapping[str, Any]) -> Any:
        """The local path behind a name, or the name where diffusers asks the Hub for it. Raises UserError."""
        from longtake.weights import hub_is_offline, is_repository, resolve, shipped_priors

        if cls.PRIORS is None:
            return name
        text = str(name)
        local = Path(text).exists() or text in shipped_priors(cls.PRIORS)
        asks = not (hub_is_offline() or settings.get("local_files_only")) or "cache_dir" in settings
        if not local and asks and is_repository(text):
            return name
        kind = f"{cls.PRIORS.rpartition('.')[2]} prior"
        folder = resolve(text, kind=kind, priors_package=cls.PRIORS, offline=True)
        if not (folder / "model_index.json").is_file():
            raise UserError(f"the {kind} {text} is no pipeline: it has no model_index.json")
        return folder

    # ------------------------------------------------------------------------------------------------------ stopping

    @property
    def interrupt(self) -> bool:
        """Whether somebody asked the run to end; diffusers' name. ``pipe._interrupt = True`` in a callback asks too."""
        return self._interrupt

    def stop(self) -> None:
        """Ask the run to end after the step at work; the result is then the current estimate of the clean latents."""
        self._interrupt = True

    def begin(self) -> None:
        """The first act of each call: from here on a ``stop`` counts, whatever the call is at when it comes."""
        self._interrupt = False

    # ----------------------------------------------------------------------------------- what calls of all kinds share

    def watcher(self, callback: Callback | None, inputs: Sequence[str] = CALLBACK_INPUTS) -> OnStep | None:
        """diffusers' ``callback_on_step_end`` as an ``OnStep``: callback(pipe, index, timestep, tensors).

        index counts from 0. inputs: which of "latents" and "clean" it is given. A returned {"latents": x} is what the
        run goes on with; ``stop()`` and ``_interrupt = True`` end it after this step. Raises UserError for inputs there
        are not, here and for a wrong answer of the callback at its step.
        """
        for name in inputs:
            if name not in CALLBACK_INPUTS:
                raise UserError(
                    f"callback_on_step_end_tensor_inputs may be {' and '.join(CALLBACK_INPUTS)}; given {name!r}"
                )
        if callback is None:
            return None

        def on_step(step: Step) -> bool:
            tensors = {name: getattr(step, name) for name in inputs}
            answer = callback(self, step.number - 1, step.timestep, dict(tensors))
            if isinstance(answer, Mapping):
                for name, value in answer.items():
                    if name != "latents" and value is not tensors.get(name):
                        raise UserError(f"a callback can give back latents only, not {name!r}")
                step.latents = answer.get("latents", step.latents)
            return self._interrupt

        return on_step

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused: a run keeps its parts on one device, where its memory is bounded by the chunks that it works in."""
        raise UserError(
            "enable_model_cpu_offload is not known here: a run keeps its parts on one device; use pipe.to(device), "
            "and smaller chunks to lower its memory"
        )

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused, as ``enable_model_cpu_offload``."""
        raise UserError(
            "enable_sequential_cpu_offload is not known here: a run keeps its parts on one device; use "
            "pipe.to(device), and smaller chunks to lower its memory"
        )


def seed_of(seed: int | None, generator: Any = None) -> int:
    """The seed of a run: ``seed``, or the initial seed of diffusers' ``generator`` (a torch.Generator or a list of
    one), or 0.

    Noise is named by frame, so a generator gives its seed only: it is not used up, and the same one gives the same
    result again. Raises UserError when both are given, or for anything else.
    """
    if generator is None:
        seed = 0 if seed is None else seed
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= int(seed) < 2**64:
            raise UserError(f"a seed is a whole number from 0 to 2**64 - 1; given {seed!r}")
        return int(seed)
    if seed is not None:
        raise UserError("seed and generator both name the run's noise: give one of them")
    if isinstance(generator, (list, tuple)) and len(generator) == 1:
        generator = generator[0]
    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator is a torch.Generator, one a prompt; given {type(generator).__name__}")
    return generator.initial_seed() % 2**64


def frames_of(
    frames: int | None, num_frames: int | None = None, seconds: float | None = None, fps: float | None = None
) -> int | None:
    """The length that a call asks for: ``frames``, diffusers' ``num_frames``, or ``seconds`` at ``fps``; None when none
    is given.

    Raises UserError when more than one is given, or when it is no number of frames from 1 to MOST_FRAMES.
    """
    given = {"frames": frames, "num_frames": num_frames, "seconds": seconds}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both say how long the result is: give one of them")
    if not named:
        return None
    value = given[named[0]]
    if named[0] == "seconds":
        if fps is None:
            raise UserError("seconds need a frame rate: give frames")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise UserError(f"seconds is a finite number greater than 0; given {value!r}")
        if value * fps > MOST_FRAMES:
            raise UserError(f"seconds may be {MOST_FRAMES / fps:.0f} at most, at {fps:g} fps; given {value!r}")
        return max(1, round(value * fps))
    if value is None or isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UserError(f"{named[0]} is a whole number; given {value!r}")
    if not 1 <= int(value) <= MOST_FRAMES:
        raise UserError(f"{named[0]} must be at least 1 and at most {MOST_FRAMES}, got {value}")
    return int(value)


def steps_of(steps: Any, most: int | None = None) -> int:
    """A number of sampling steps. Raises UserError unless it is a whole number from 1 to ``most``, the steps that the
    scheduler was trained on."""
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or int(steps) < 1:
        raise UserError(f"num_inference_steps must be at least 1, got {steps!r}")
    if most is not None and int(steps) > most:
        raise UserError(f"num_inference_steps may be {most} at most, the steps of training; got {steps}")
    return int(steps)
