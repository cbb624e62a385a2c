"""The run that every modality shares: a denoising loop that a kill, a stop or another number of ranks cannot hurt.

Latents are frame first, (n, *shape) for the n frames of this rank, so a diffusers scheduler sees frames as its batch:
its state is cut and joined along the frames, and a stochastic one draws each frame's noise from that frame's own
stream.

    state = Denoising(latents, frames=range(40, 60), seed=7)
    final = denoise(scheduler, state, predict, steps=24, ranks=ranks, journal=journal)

Legend: n frames of this rank, F frames of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from longtake.errors import UserError
from longtake.journal import Journal, piece_name
from longtake.noise import frame_generator, noise

if TYPE_CHECKING:
    from longtake.distributed import Ranks

Predict = Callable[[torch.Tensor, Any, int], torch.Tensor]
_PREFIX = "step"


@dataclass
class Known:
    """Frames that are fixed: ``mask`` (n,) bool, ``clean`` (n, *shape) their clean latents; other rows are not read."""

    mask: torch.Tensor
    clean: torch.Tensor


@dataclass
class Denoising:
    """What a rank holds while it denoises.

    latents: (n, *shape) float32 on the run's device. frames: global numbers of the n frames (noise is named by them).
    offset: global number of the run's first frame; pieces in the journal count from it. known: frames held fixed.
    step: steps done. clean: the current estimate of the clean latents, kept so that a stopped run has something to
    show.
    """

    latents: torch.Tensor
    frames: range
    seed: int
    item: int = 0
    offset: int = 0
    known: Known | None = None
    step: int = 0
    clean: torch.Tensor | None = None
    stopped: bool = field(default=False)


class LongTakePipeline(DiffusionPipeline):
    """Base of the pipelines: diffusers' life cycle, and ``stop()`` to end a run early with what there is."""

    def __init__(self) -> None:
        super().__init__()
        self._stop = False

    def stop(self) -> None:
        """Ask the run to end after the step at work; the result is then the current estimate of the clean latents."""
        self._stop = True


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
    before. Schedulers that draw no noise are left as they are.
    """
    import inspect

    check_scheduler(scheduler)
    stock = scheduler.step
    if "generator" not in inspect.signature(stock).parameters:
        yield
        return
    count = first

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
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
    return tensors, values


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"scalar": value.item()} if value.ndim == 0 else None
    return value


def restore_scheduler(scheduler: Any, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    """Put back what ``scheduler_state`` took, after ``set_timesteps`` with the same number of steps."""
    for name, value in values.items():
        if isinstance(value, list):
            value = [
                torch.tensor(entry["scalar"]) if isinstance(entry, dict) else None if entry == "tensor" else entry
                for entry in value
            ]
        setattr(scheduler, name, value)
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


def save_step(journal: Journal, state: Denoising, scheduler: Any, ranks: Ranks) -> None:
    """Write this rank's piece of the state after ``state.step`` steps."""
    tensors, values = scheduler_state(scheduler, len(state.frames))
    meta = {"start": state.frames.start - state.offset, "count": len(state.frames), "scheduler": values}
    payload = {f"scheduler/{name}": tensor for name, tensor in tensors.items()}
    payload["latents"] = state.latents
    payload["meta"] = torch.frombuffer(bytearray(json.dumps(meta).encode()), dtype=torch.uint8)
    journal.write_tensors(piece_name(_PREFIX, state.step, ranks.rank, ranks.world), payload)


def load_step(files: Sequence[Path], step: int, state: Denoising, scheduler: Any) -> None:
    """Fill ``state`` and the scheduler with this rank's frames out of the pieces of any number of ranks."""
    from longtake.weights import load_state

    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    values: dict[str, Any] = {}
    for path in files:
        payload = load_state(path)
        meta = json.loads(bytes(payload.pop("meta").tolist()))
        values = meta["scheduler"] or values
        for name, tensor in payload.items():
            parts.setdefault(name, []).append((meta["start"], tensor))
    first, last = state.frames.start - state.offset, state.frames.stop - state.offset
    mine: dict[str, torch.Tensor] = {}
    for name, pieces in parts.items():
        rows = []
        for start, tensor in sorted(pieces, key=lambda piece: piece[0]):
            a, b = max(first, start), min(last, start + len(tensor))
            if a < b:
                rows.append(tensor[a - start : b - start])
        joined = torch.cat(rows).to(state.latents.device)
        if len(joined) != last - first:
            raise UserError(f"{files[0].parent}: step {step} does not hold all frames; use --overwrite to begin anew")
        mine[name] = joined
    state.latents = mine.pop("latents").to(state.latents.dtype)
    state.step = step
    restore_scheduler(scheduler, {name.removeprefix("scheduler/"): value for name, value in mine.items()}, values)


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
    on_step: Callable[[int, Any, Denoising], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> torch.Tensor:
    """Run the scheduler's steps on this rank's frames; returns the clean latents (n, *shape).

    predict(sample, t, step) gives the model's output for the scaled sample, with guidance applied. progress is a bar
    with
    ``update``. A journal holds the state after every ``checkpoint_every`` steps; when it holds some already the run
    goes
    on from the newest, whatever number of ranks wrote it. When ``should_stop`` says so on any rank, all ranks end after
    that step with ``state.stopped`` set, and the estimate of the clean latents is returned.
    """
    check_scheduler(scheduler)
    scheduler.set_timesteps(steps, device=state.latents.device)
    times = scheduler.timesteps
    start = noise(state.seed, state.item, state.frames, 0, tuple(state.latents.shape[1:])) if state.known else None
    if journal is not None:
        found = journal.latest(_PREFIX)
        ranks.barrier()
        if found is not None:
            load_step(found[1], found[0], state, scheduler)
    if progress is not None and state.step:
        progress.update(state.step)
    with frame_noise(scheduler, state.seed, state.frames, item=state.item, first=state.step):
        while state.step < len(times):
            t = times[state.step]
            if state.known is not None and state.step == 0:
                _fix(scheduler, state, start, times, 0)
            prediction = predict(scheduler.scale_model_input(state.latents, t), t, state.step)
            before = state.latents
            output = scheduler.step(prediction, t, before)
            state.latents = output.prev_sample
            state.step += 1
            if state.known is not None:
                _fix(scheduler, state, start, times, state.step)
            wants = _any(should_stop is not None and should_stop(), ranks)
            if on_step is not None or wants:
                state.clean = clean_estimate(scheduler, output, prediction, t, before)
                if state.known is not None:
                    state.clean[state.known.mask] = state.known.clean[state.known.mask].to(state.clean)
            if journal is not None and (state.step % checkpoint_every == 0 or state.step == len(times) or wants):
                save_step(journal, state, scheduler, ranks)
                ranks.barrier()
                if ranks.is_main:
                    journal.prune(_PREFIX)
            if progress is not None:
                progress.update(1)
            if on_step is not None:
                on_step(state.step, t, state)
            if wants and state.step < len(times):
                state.stopped = True
                assert state.clean is not None
                return state.clean
    return state.latents


def _fix(scheduler: Any, state: Denoising, start: torch.Tensor | None, times: torch.Tensor, step: int) -> None:
    """Bring the known frames to the noise level before ``step``, on the initial noise's path; clean at the end."""
    assert state.known is not None and start is not None
    mask = state.known.mask.to(state.latents.device)
    clean = state.known.clean.to(state.latents)[mask]
    if step < len(times) and mask.any():
        when = times[step].reshape(1).expand(len(clean)).to(clean.device)
        clean = scheduler.add_noise(clean, start.to(state.latents)[mask], when)
    state.latents = state.latents.clone()
    state.latents[mask] = clean


def _any(flag: bool, ranks: Ranks) -> bool:
    if ranks.world == 1:
        return flag
    import torch.distributed as dist

    box = torch.tensor([float(flag)], device=ranks.device)
    dist.all_reduce(box, group=ranks.group)
    return bool(box.item() > 0)
