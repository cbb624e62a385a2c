"""The run that every modality shares: a denoising loop that a kill, a stop or another number of ranks cannot hurt.

A state is one tensor or several (strands), frame first: (n, *shape) for the n frames of this rank, so a diffusers
scheduler sees frames as its batch. Its own state is cut and joined along the frames, and a stochastic one draws each
frame's noise from that frame's own stream.

    state = Denoising.of(latents, frames=range(40, 60), seed=7)
    final = denoise(scheduler, state, predict, steps=24, ranks=ranks, journal=journal)["latents"]

Legend: n frames of this rank, F frames of the run.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from longtake.journal import Journal, piece_name
from longtake.noise import frame_generator, noise

if TYPE_CHECKING:
    from longtake.distributed import Ranks

Tensors = dict[str, torch.Tensor]  # one tensor a strand
Predict = Callable[[Tensors, Any, int], Tensors]
_PREFIX = "step"
_ONE = "latents"


@dataclass
class Known:
    """Frames that are fixed: ``mask`` (n,) bool, ``clean`` (n, *shape) their clean latents; other rows are not read."""

    mask: torch.Tensor
    clean: torch.Tensor


@dataclass
class Strand:
    """One tensor of a state.

    latents: (n, *shape) float32 on the run's device: at the start unit noise, which ``denoise`` scales. frames: numbers
    of the n frames, which name their noise. start: place of the first of them among all ranks' frames; pieces in the
    journal lie there. known: frames held fixed. clean: the current estimate of the clean latents, while it is wanted.
    """

    latents: torch.Tensor
    frames: Sequence[int]
    start: int = 0
    known: Known | None = None
    clean: torch.Tensor | None = None


@dataclass
class Denoising:
    """What a rank holds while it denoises. The first strand is the one that callbacks see. step: steps done."""

    strands: dict[str, Strand]
    seed: int
    item: int = 0
    step: int = 0
    stopped: bool = field(default=False)

    @classmethod
    def of(
        cls,
        latents: torch.Tensor,
        frames: range,
        seed: int,
        item: int = 0,
        *,
        offset: int = 0,
        known: Known | None = None,
    ) -> Denoising:
        """A state of one tensor, named "latents". offset: global number of the run's first frame."""
        return cls({_ONE: Strand(latents, frames, frames.start - offset, known)}, seed, item)

    @property
    def main(self) -> Strand:
        """The first strand."""
        return next(iter(self.strands.values()))

    @property
    def latents(self) -> torch.Tensor:
        """The first strand's latents (n, *shape)."""
        return self.main.latents


@dataclass
class Step:
    """A step that was just done, for those who watch a run.

    number: steps done, from 1. of: steps in all. latents, clean: (n, *shape) of the state's first strand on this rank;
    what is put into ``latents`` is what the run goes on with. clean is None with a scheduler that gives no estimate.
    """

    number: int
    of: int
    timestep: Any
    latents: torch.Tensor
    clean: torch.Tensor | None


OnStep = Callable[[Step], bool]  # True ends the run


def check_scheduler(scheduler: Any) -> None:
    """Raise UserError for a scheduler whose noise cannot be drawn per frame."""
    if hasattr(scheduler, "noise_sampler"):
        raise UserError(
            f"{type(scheduler).__name__} draws noise along a Brownian path of its own, not frame by frame; "
            "use DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++'"
        )


def step_generators(seed: int, item: int, frames: Sequence[int], draw: int) -> list[torch.Generator]:
    """One generator a frame for one scheduler step; draws count from 1 (0 is the initial noise)."""
    return [frame_generator(seed, item, frame, draw) for frame in frames]


@contextmanager
def frame_noise(scheduler: Any, seed: int, frames: Sequence[int], *, item: int = 0, first: int = 0) -> Iterator[None]:
    """Inside the block, ``scheduler.step`` draws its noise from the frames' own streams, whoever calls it.

    The sample it is given must have the frames as its batch, as diffusers' video pipelines do. first: steps done
    before. Schedulers that draw no noise are left as they are, and steps with an eta of 0 (DDIM) get none made ready.
    """
    check_scheduler(scheduler)
    stock = scheduler.step
    known = list(inspect.signature(stock).parameters)
    if "generator" not in known or not getattr(scheduler, "draws_noise", True):
        yield
        return
    count = first
    eta = known.index("eta") if "eta" in known else None

    def draws(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return eta is None or bool(args[eta] if len(args) > eta else kwargs.get("eta", 0.0))

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if draws(args, kwargs):
            kwargs["generator"] = step_generators(seed, item, frames, count)
        return stock(*args, **kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


def scheduler_state(scheduler: Any, count: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What a scheduler remembers between steps: tensors (count, *shape) by path, and plain values."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in vars(scheduler).items():
        if name in ("_internal_dict", "timesteps", "sigmas") or callable(value):
            continue
        entries = value if isinstance(value, list) else [value]
        for index, entry in enumerate(entries):
            if isinstance(entry, torch.Tensor) and entry.ndim >= 2 and entry.shape[0] == count:
                tensors[f"{name}/{index if isinstance(value, list) else -1}"] = entry
        if isinstance(value, list):
            values[name] = ["tensor" if isinstance(e, torch.Tensor) and e.ndim >= 2 else _plain(e) for e in value]
        elif value is None or isinstance(value, (bool, int, float)):
            values[name] = value
        elif isinstance(value, torch.Tensor) and value.ndim == 0:
            values[name] = _plain(value)
    return tensors, values


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"scalar": value.item(), "dtype": str(value.dtype)} if value.ndim == 0 else None
    return value


def _revived(value: Any) -> Any:
    """A value as ``_plain`` had found it."""
    if isinstance(value, dict):
        return torch.tensor(value["scalar"], dtype=getattr(torch, value["dtype"].removeprefix("torch.")))
    return value


def restore_scheduler(scheduler: Any, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    """Put back what ``scheduler_state`` took, after ``set_timesteps`` with the same number of steps."""
    for name, value in values.items():
        if isinstance(value, list):
            value = [None if entry == "tensor" else _revived(entry) for entry in value]
        setattr(scheduler, name, _revived(value))
    for path, tensor in tensors.items():
        name, _, index = path.rpartition("/")
        if int(index) < 0:
            setattr(scheduler, name, tensor)
        else:
            getattr(scheduler, name)[int(index)] = tensor


def clean_estimate(scheduler: Any, output: Any, prediction: torch.Tensor, t: Any, sample: torch.Tensor) -> torch.Tensor:
    """The clean latents that a step's prediction stands for; needs the scheduler's own estimate or its alphas."""
    estimate = getattr(output, "pred_original_sample", None)
    if estimate is not None:
        return estimate
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise UserError(
            f"{type(scheduler).__name__} gives no estimate of the clean frames, so this run cannot stop early"
        )
    alpha = alphas[int(t)].to(sample)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - (1 - alpha).sqrt() * prediction) / alpha.sqrt().clamp_min(1e-4)
    if kind == "v_prediction":
        return alpha.sqrt() * sample - (1 - alpha).sqrt() * prediction
    if kind == "sample":
        return prediction
    raise UserError(f"prediction_type {kind!r} gives no estimate of the clean frames, so this run cannot stop early")


# ------------------------------------------------------------------------------------------------------ step files


def save_step(journal: Journal, state: Denoising, schedulers: Mapping[str, Any], steps: int, ranks: Ranks) -> None:
    """Write this rank's piece of the state after ``state.step`` steps of ``steps``.

    A piece holds for each strand its latents, what its scheduler remembers, and in "meta" (JSON) where they lie.
    """
    payload: Tensors = {}
    places: dict[str, Any] = {}
    for name, strand in state.strands.items():
        tensors, values = scheduler_state(schedulers[name], len(strand.frames))
        payload[name] = strand.latents
        payload.update({f"{name}/scheduler/{path}": tensor for path, tensor in tensors.items()})
        places[name] = {
            "start": strand.start,
            "count": len(strand.frames),
            "kind": type(schedulers[name]).__name__,
            "scheduler": values,
        }
    meta = {"step": state.step, "of": steps, "strands": places}
    payload["meta"] = torch.frombuffer(bytearray(json.dumps(meta).encode()), dtype=torch.uint8)
    journal.write_tensors(piece_name(_PREFIX, state.step, ranks.rank, ranks.world), payload)


class _Foreign(Exception):
    """What is wrong with a step file."""


def load_step(files: Sequence[Path], step: int, state: Denoising, schedulers: Mapping[str, Any], steps: int) -> None:
    """Fill ``state`` and the schedulers with this rank's frames out of the pieces of any number of ranks.

    Raises UserError for pieces that are not this run's: damaged, of other strands, shapes or steps, with NaN, or that
    do not hold all frames. The state is then as it was.
    """
    current = files[0]
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    values: dict[str, dict[str, Any]] = {}
    try:
        if step > steps:
            raise _Foreign(f"the run has {steps} steps")
        for current in files:
            for path, start, tensor in _pieces_of(current, step, steps, state, schedulers, values):
                parts.setdefault(path, []).append((start, tensor))
        mine = {path: _own_share(path, pieces, state) for path, pieces in parts.items()}
        revived = {name: copy.deepcopy(scheduler) for name, scheduler in schedulers.items()}
        for name, scheduler in revived.items():
            head = f"{name}/scheduler/"
            tensors = {path.removeprefix(head): value for path, value in mine.items() if path.startswith(head)}
            restore_scheduler(scheduler, tensors, values[name])
    except _Foreign as error:
        raise UserError(f"{current} is no step of this run ({error}): remove it, or --overwrite the run") from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{current} is no step of this run ({type(error).__name__}): remove it, or --overwrite the run"
        ) from error
    for name, strand in state.strands.items():
        strand.latents = mine[name].to(strand.latents.dtype)
        vars(schedulers[name]).update(vars(revived[name]))
    state.step = step


def _pieces_of(
    path: Path,
    step: int,
    steps: int,
    state: Denoising,
    schedulers: Mapping[str, Any],
    values: dict[str, dict[str, Any]],
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(name, first row, rows) of each tensor of a step file that fits the run; its schedulers' values go to
    ``values``."""
    from longtake.weights import load_state

    payload = load_state(path)
    meta = payload.pop("meta", None)
    if meta is None or meta.dtype != torch.uint8 or meta.ndim != 1:
        raise _Foreign("it does not say what it holds")
    told = json.loads(bytes(meta.tolist()))
    if not isinstance(told, dict) or (told.get("step"), told.get("of")) != (step, steps):
        raise _Foreign(f"it is not step {step} of {steps}")
    if set(told["strands"]) != set(state.strands):
        raise _Foreign(f"it holds {', '.join(told['strands'])}, the run has {', '.join(state.strands)}")
    for name, scheduler in schedulers.items():
        if told["strands"][name]["kind"] != type(scheduler).__name__:
            raise _Foreign(f"it was made with {told['strands'][name]['kind']}")
    if not set(state.strands) <= set(payload):
        raise _Foreign("it holds no latents")
    for name, tensor in payload.items():
        owner, _, rest = name.partition("/")
        if owner not in state.strands:
            raise _Foreign(f"it holds {name}")
        place, like = told["strands"][owner], state.strands[owner].latents
        if not rest and (tensor.shape[1:] != like.shape[1:] or not tensor.is_floating_point()):
            raise _Foreign(f"{name} is {tensor.dtype} {tuple(tensor.shape[1:])} a frame, not {tuple(like.shape[1:])}")
        if tensor.ndim < 1 or len(tensor) != place["count"] or place["start"] < 0:
            raise _Foreign(f"{name} has not the frames that it says")
        if not rest and not torch.isfinite(tensor).all():
            raise _Foreign("it holds NaN or infinity")
        values[owner] = place["scheduler"] or values.get(owner, {})
        yield name, place["start"], tensor


def _own_share(name: str, pieces: list[tuple[int, torch.Tensor]], state: Denoising) -> torch.Tensor:
    """This rank's rows out of the pieces, which must lie end to end."""
    strand = state.strands[name.partition("/")[0]]
    first, last = strand.start, strand.start + len(strand.frames)
    rows, end = [], 0
    for start, tensor in sorted(pieces, key=lambda piece: piece[0]):
        if start != end:
            raise _Foreign("its ranks' frames do not lie end to end")
        end += len(tensor)
        rows.append(tensor[max(0, first - start) : max(0, last - start)])
    if end < last:
        raise _Foreign("it does not hold all frames")
    return torch.cat(rows).to(strand.latents.device)


def newest_step(journal: Journal) -> tuple[int, list[Path]] | None:
    """The newest step of a journal. Raises UserError for a file whose head cannot be read."""
    try:
        return journal.latest(_PREFIX)
    except (AttributeError, TypeError, KeyError, IndexError, RecursionError, ValueError) as error:
        raise UserError(f"{journal.folder} holds a damaged step file: remove it, or --overwrite the run") from error


# ------------------------------------------------------------------------------------------------------ the loop


def denoise(
    scheduler: Any,
    state: Denoising,
    predict: Predict,
    *,
    steps: int,
    ranks: Ranks,
    journal: Journal | None = None,
    checkpoint_every: int = 1,
    progress: Any = None,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
    after: Callable[[Tensors], Tensors] | None = None,
) -> Tensors:
    """Run the scheduler's steps on this rank's frames; returns the clean latents (n, *shape) of each strand.

    The state begins as unit noise. predict(samples, t, step) gives the model's output for the scaled samples, with
    guidance applied. progress is a bar with ``update``. after: changes the samples that a step ended with, before
    anybody sees them. A journal holds the state after every ``checkpoint_every`` steps; when it holds some already the
    run goes on from the newest, whatever number of ranks wrote it. When ``on_step`` or ``should_stop`` say so on any
    rank, all ranks end after that step with ``state.stopped`` set, and the estimate of the clean latents is returned.
    Raises UserError for a scheduler or step file that cannot be used, and when a step gives NaN.
    """
    check_scheduler(scheduler)
    scheduler.set_timesteps(steps, device=state.latents.device)
    times = scheduler.timesteps
    schedulers = {name: scheduler if i == 0 else copy.deepcopy(scheduler) for i, name in enumerate(state.strands)}
    units = {name: _unit_noise(state, strand) for name, strand in state.strands.items()}
    found = None
    if journal is not None:
        found = newest_step(journal)
        ranks.barrier()
    if found is not None:
        load_step(found[1], found[0], state, schedulers, len(times))
    else:
        for strand in state.strands.values():
            strand.latents = strand.latents * float(scheduler.init_noise_sigma)
    if progress is not None and state.step:
        progress.update(state.step)
    with ExitStack() as stack:
        for name, strand in state.strands.items():
            named = frame_noise(schedulers[name], state.seed, strand.frames, item=state.item, first=state.step)
            stack.enter_context(named)
        while state.step < len(times):
            t = times[state.step]
            if state.step == 0:
                _fix(scheduler, state, units, times)
            samples = {
                name: schedulers[name].scale_model_input(strand.latents, t) for name, strand in state.strands.items()
            }
            predictions = predict(samples, t, state.step)
            before = {name: strand.latents for name, strand in state.strands.items()}
            outputs = {name: _stepped(schedulers[name], predictions[name], t, before[name]) for name in state.strands}
            moved = {name: output.prev_sample for name, output in outputs.items()}
            for name, latents in (moved if after is None else after(moved)).items():
                state.strands[name].latents = latents
            state.step += 1
            _fix(scheduler, state, units, times)
            _refuse_nan(state)
            asked = False
            if on_step is not None:
                with suppress(UserError):  # a scheduler that gives no estimate can be watched without one
                    _estimate(schedulers, state, outputs, predictions, t, before)
                asked = _watched(on_step, state, len(times), t)
            wants = any_rank(asked or (should_stop is not None and should_stop()), ranks)
            if wants and (on_step is None or state.main.clean is None):
                _estimate(schedulers, state, outputs, predictions, t, before)
            if journal is not None and (state.step % checkpoint_every == 0 or state.step == len(times) or wants):
                save_step(journal, state, schedulers, len(times), ranks)
                ranks.barrier()
                if ranks.is_main:
                    journal.prune(_PREFIX)
            if progress is not None:
                progress.update(1)
            if wants and state.step < len(times):
                state.stopped = True
                return {name: _there(strand.clean) for name, strand in state.strands.items()}
    return {name: strand.latents for name, strand in state.strands.items()}


def _stepped(scheduler: Any, prediction: torch.Tensor, t: Any, sample: torch.Tensor) -> Any:
    try:
        return scheduler.step(prediction, t, sample)
    except NotImplementedError as error:
        name = type(scheduler).__name__
        raise UserError(f"{name} does not fit this prior: {error}; use another scheduler") from error


def _there(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def _unit_noise(state: Denoising, strand: Strand) -> torch.Tensor | None:
    """The noise (n, *shape) that a strand's known frames are noised with; None when there are none."""
    if strand.known is None:
        return None
    return noise(state.seed, state.item, strand.frames, 0, tuple(strand.latents.shape[1:]))


def _estimate(
    schedulers: Mapping[str, Any],
    state: Denoising,
    outputs: Mapping[str, Any],
    predictions: Tensors,
    t: Any,
    at: Tensors,
) -> None:
    """Set each strand's estimate of the clean latents from the step that was made at the samples ``at``."""
    for name, strand in state.strands.items():
        strand.clean = clean_estimate(schedulers[name], outputs[name], predictions[name], t, at[name])
        if strand.known is not None:
            strand.clean[strand.known.mask] = strand.known.clean[strand.known.mask].to(strand.clean)


def _watched(on_step: OnStep, state: Denoising, of: int, t: Any) -> bool:
    """Show a step to ``on_step``; what it put into the latents is taken over. Whether it ends the run."""
    strand = state.main
    step = Step(state.step, of, t, strand.latents, strand.clean)
    asked = bool(on_step(step))
    if step.latents is not strand.latents:
        if not isinstance(step.latents, torch.Tensor) or step.latents.shape != strand.latents.shape:
            raise UserError(f"a callback must give back latents of shape {tuple(strand.latents.shape)}")
        strand.latents = step.latents.to(strand.latents)
        _refuse_nan(state)
    return asked


def _refuse_nan(state: Denoising) -> None:
    for strand in state.strands.values():
        if not torch.isfinite(strand.latents).all():
            raise UserError(
                f"step {state.step} gave NaN or infinity, so the run ends here: the guidance is too large for this "
                "prior, or its weights are damaged; earlier steps are kept"
            )


def _fix(scheduler: Any, state: Denoising, units: Mapping[str, torch.Tensor | None], times: torch.Tensor) -> None:
    """Bring known frames to the noise level before ``state.step``, on the initial noise's path; clean at the end."""
    for name, strand in state.strands.items():
        start = units[name]
        if strand.known is None or start is None:
            continue
        mask = strand.known.mask.to(strand.latents.device)
        clean = strand.known.clean.to(strand.latents)[mask]
        if state.step < len(times) and mask.any():
            when = times[state.step].reshape(1).expand(len(clean)).to(clean.device)
            clean = scheduler.add_noise(clean, start.to(strand.latents)[mask], when)
        strand.latents = strand.latents.clone()
        strand.latents[mask] = clean


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is set on any rank; all ranks call it together."""
    if ranks.world == 1:
        return flag
    import torch.distributed as dist

    box = torch.tensor([float(flag)], device=ranks.device)
    dist.all_reduce(box, group=ranks.group)
    return bool(box.item() > 0)
