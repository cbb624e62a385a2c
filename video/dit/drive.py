"""A stock diffusers pipeline as the loop of a long run: noise by frame, kept frames, a journal, stop and resume.

The pipeline is called as its users call it, so prompts, guidance, image conditioning, LoRA and offload stay its own.
Four things around it are replaced while it runs, and put back: where it draws noise, its scheduler's `step`, its
transformers' call (cut over ranks by `parallelize`), and its VAE's `decode` (see `decode.py`).

Resume: the loop is run again from its start, but for the steps that the journal holds the transformer answers with
zeros at once; then the journal's latents and scheduler state are put in. So a run goes on to the same latents in
whatever loop the pipeline has.

Legend: F latent frames, latents as the pipeline has them: (1, C, F, h, w), (1, F, C, h, w) or packed (1, F * n, C).
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from longtake.denoising import Denoising, OnStep, Step, any_rank, clean_estimate, load_step, newest_step, save_step
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.noise import noise
from longtake.video.dit.records import Record, record_of
from torch import Tensor


class Layout:
    """Between a pipeline's latents and frames first: (F, c, h, w).

    record: of the transformer. frames: F. height, width: of the latents, needed for packed ones.
    """

    def __init__(self, record: Record, frames: int, pixels: tuple[int, int] | None = None) -> None:
        self.record, self.frames, self.pixels = record, frames, pixels

    def first(self, x: Tensor) -> Tensor:
        """Frames first."""
        if self.record.packed:
            assert self.pixels is not None
            height, width = self.pixels
            return x[0].unflatten(0, (self.frames, height, width)).permute(0, 3, 1, 2)
        return x[0].permute(*self._order)

    def back(self, x: Tensor) -> Tensor:
        """As the pipeline has them, from frames first."""
        if self.record.packed:
            return x.permute(0, 2, 3, 1).flatten(0, 2)[None]
        return x.permute(*sorted(range(4), key=self._order.__getitem__))[None]

    @property
    def _order(self) -> list[int]:
        """Axes of one entry of the batch, as frames, channels, rows, columns."""
        first = [self.record.sample[1] - 1, self.record.channels - 1]
        return first + [axis for axis in range(4) if axis not in first]

    def noise(self, shape: tuple[int, ...], seed: int, numbers: range, draw: int) -> Tensor | None:
        """Unit noise of that shape, each frame's from its own stream; None for a shape without an axis of frames."""
        axes = [axis for axis in (2, 1) if len(shape) == 5 and shape[axis] == self.frames]
        if not axes or shape[0] != 1:
            return None
        axis = axes[0] if len(axes) == 1 else (1 if self.record.sample[1] == 1 and not self.record.packed else 2)
        rest = [side for place, side in enumerate(shape) if place not in (0, axis)]
        drawn = noise(seed, 0, numbers, draw, tuple(rest))
        return drawn.movedim(0, axis - 1)[None]


@dataclass
class Kept:
    """Frames that are held. mask: (F,) bool. clean: (F, c, h, w) their clean latents, as the transformer's space has
    them; other rows are not read."""

    mask: Tensor
    clean: Tensor


@dataclass
class Drive:
    """One run of a stock pipeline.

    numbers: the frames' numbers, which name their noise. on_step, should_stop, journal: as for `longtake.denoising`.
    """

    pipe: Any
    layout: Layout
    numbers: range
    seed: int
    steps: int
    ranks: Ranks
    journal: Journal | None = None
    checkpoint_every: int = 1
    on_step: OnStep | None = None
    should_stop: Callable[[], bool] | None = None
    kept: Kept | None = None
    at_step: Callable[[int], None] | None = None
    step: int = 0
    stopped: bool = False
    latents: Tensor | None = None  # frames first, after the newest step
    _skip: int = 0
    _found: tuple[int, list[Any]] | None = None
    _unit: Tensor | None = None
    _draws: int = 0
    _total: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def run(self, **arguments: Any) -> Any:
        """Call the pipeline; returns what it returns. `latents` then holds the clean latents, frames first."""
        if self.journal is not None:
            self._found = newest_step(self.journal)
            self.ranks.barrier()
            self._skip = 0 if self._found is None else self._found[0]
        with self._noise_by_frame(), self._own_step():
            return self.pipe(num_inference_steps=self.steps, generator=self._generator(0), **arguments)

    @property
    def skipping(self) -> bool:
        """Whether this step is in the journal already, or the run was stopped: the transformer need not be asked."""
        return self.step < self._skip or self.stopped

    # ---- noise --------------------------------------------------------------------------------------------------

    def _generator(self, draw: int) -> torch.Generator:
        """What the pipeline draws that has no frames."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + draw) % 2**63)

    @contextlib.contextmanager
    def _noise_by_frame(self) -> Iterator[None]:
        """`randn_tensor` of the pipeline's modules draws each frame's noise from the frame's own stream."""
        modules = {sys.modules[base.__module__] for base in type(self.pipe).__mro__ if "randn_tensor" in vars(
            sys.modules[base.__module__]
        )}  # fmt: skip
        stock = {module: module.randn_tensor for module in modules}

        def drawn(
            shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
        ) -> Tensor:
            own = self.layout.noise(tuple(shape), self.seed, self.numbers, self._draws)
            if own is None:
                own = torch.randn(tuple(shape), generator=self._generator(1 + self._draws))
            elif self._unit is None:
                self._unit = own
            self._draws += 1
            return own.to(device=device, dtype=dtype)

        for module in modules:
            module.randn_tensor = drawn  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module, function in stock.items():
                module.randn_tensor = function  # type: ignore[attr-defined]

    # ---- steps --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _own_step(self) -> Iterator[None]:
        """`scheduler.step` with what comes after each step. Copies that a pipeline makes (for sound) step as stock."""
        scheduler = self.pipe.scheduler
        drive = self

        def step(itself: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            stock = type(itself).step
            if itself is not scheduler:
                return stock(itself, model_output, timestep, sample, *args, **kwargs)
            if "generator" in kwargs and kwargs["generator"] is not None:
                kwargs["generator"] = drive._generator(1000 + drive.step)
            plain = kwargs.get("return_dict") is False
            before = sample
            out = stock(itself, model_output, timestep, sample, *args, **{**kwargs, "return_dict": True})
            moved = drive._after(itself, out, model_output, timestep, before)
            if plain:
                rest = tuple(value for key, value in out.items() if key != "prev_sample")
                return (moved, *rest)
            out.prev_sample = moved
            return out

        scheduler.__dict__["step"] = types.MethodType(step, scheduler)
        try:
            yield
        finally:
            del scheduler.__dict__["step"]

    def _after(self, scheduler: Any, out: Any, prediction: Tensor, t: Any, before: Tensor) -> Tensor:
        self._total = len(scheduler.timesteps)
        moved = out.prev_sample
        if self.stopped:
            return moved
        self.step += 1
        if self.step < self._skip:
            return moved
        if self.step == self._skip and self._found is not None:
            return self._revived(scheduler, moved)
        moved = self._fixed(scheduler, moved)
        if not torch.isfinite(moved).all():
            raise UserError(
                f"step {self.step} gave NaN or infinity, so the run ends here: the guidance is too large for this "
                "model, or its weights are damaged; earlier steps are kept"
            )
        asked = False
        if self.on_step is not None:
            clean = None
            with contextlib.suppress(UserError):
                clean = self.layout.first(self._estimate(scheduler, out, prediction, t, before)).float()
            told = Step(self.step, self._total, t, self.layout.first(moved).float(), clean)
            shown = told.latents
            asked = bool(self.on_step(told))
            if told.latents is not shown:
                moved = self.layout.back(told.latents.to(moved))
        wants = any_rank(asked or (self.should_stop is not None and self.should_stop()), self.ranks)
        if self.journal is not None and (self.step % self.checkpoint_every == 0 or self.step == self._total or wants):
            self._save(scheduler, moved)
        if wants and self.step < self._total:
            moved = self._estimate(scheduler, out, prediction, t, before)
            moved = self._held(moved, None)
            self.stopped = True
        self.latents = self.layout.first(moved).detach().float().cpu()
        if self.at_step is not None:
            self.at_step(self.step)
        return moved.to(out.prev_sample.dtype)

    def _estimate(self, scheduler: Any, out: Any, prediction: Tensor, t: Any, before: Tensor) -> Tensor:
        """The clean latents that the step's prediction stands for."""
        if is_flow(scheduler):
            return before - sigma_at(scheduler, self.step - 1) * prediction.to(before.dtype)
        return clean_estimate(scheduler, out, prediction, t, before)

    # ---- kept frames --------------------------------------------------------------------------------------------

    def at_start(self, latents: Tensor, scheduler: Any) -> Tensor:
        """Latents of the first call with kept frames on their noise's path."""
        return latents if self.step or self.kept is None else self._held(latents, 0, scheduler)

    def _fixed(self, scheduler: Any, moved: Tensor) -> Tensor:
        """After a step: kept frames at the noise level of the next one, clean after the last."""
        return self._held(moved, self.step if self.step < self._total else None, scheduler)

    def _held(self, x: Tensor, index: int | None, scheduler: Any = None) -> Tensor:
        if self.kept is None:
            return x
        frames = self.layout.first(x).clone()
        mask = self.kept.mask.to(frames.device)
        clean = self.kept.clean.to(frames)[mask]
        if index is not None:
            assert self._unit is not None
            unit = self._frames_of(self._unit).to(frames)[mask]
            clean = noised(scheduler, clean, unit, index)
        frames[mask] = clean
        return self.layout.back(frames).reshape(x.shape)

    def _frames_of(self, unit: Tensor) -> Tensor:
        """Noise as it was drawn, frames first: packed latents are drawn unpacked, (1, C, F, h, w)."""
        return unit[0].transpose(0, 1) if self.layout.record.packed else self.layout.first(unit)

    # ---- journal ------------------------------------------------------------------------------------------------

    def _state(self, latents: Tensor) -> Denoising:
        """The whole latents as one row of a denoising state: its file holds the scheduler's state too."""
        return Denoising.of(latents.detach(), range(1), self.seed)

    def _save(self, scheduler: Any, latents: Tensor) -> None:
        assert self.journal is not None
        if self.ranks.is_main:
            state = self._state(latents)
            state.step = self.step
            save_step(self.journal, state, {"latents": scheduler}, self._total, Ranks.single(self.ranks.device))
            self.journal.prune("step")
        self.ranks.barrier()

    def _revived(self, scheduler: Any, like: Tensor) -> Tensor:
        assert self._found is not None
        state = self._state(like)
        own = scheduler.__dict__["step"]
        load_step(self._found[1], self._found[0], state, {"latents": scheduler}, self._total)
        scheduler.__dict__["step"] = own  # what is loaded was a copy, and its step is bound to the copy
        self.latents = self.layout.first(state.latents).detach().float().cpu()
        if self.at_step is not None:
            self.at_step(self.step)
        return state.latents.to(like)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler interpolates between clean latents and noise (flow matching)."""
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def sigma_at(scheduler: Any, index: int) -> float:
    return float(scheduler.sigmas[index])


def noised(scheduler: Any, clean: Tensor, unit: Tensor, index: int) -> Tensor:
    """Clean frames (m, ...) at the noise level before step `index`."""
    if is_flow(scheduler):
        sigma = sigma_at(scheduler, index)
        return (1 - sigma) * clean + sigma * unit
    when = scheduler.timesteps[index].reshape(1).expand(len(clean)).to(clean.device)
    made: Tensor = scheduler.add_noise(clean, unit, when)
    return made


def texts_of(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The text arguments of a transformer's call: states, masks and pooled states."""
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, Tensor)
        and (name.startswith("encoder_") or name.startswith("pooled") or name == "text_rope_pos")
    }


def names_of(model: Any) -> list[str]:
    import inspect

    return [name for name in inspect.signature(type(model).forward).parameters if name != "self"]


def zeros_of(sample: Tensor, model: Any, given: Mapping[str, Any]) -> Any:
    """An answer of zeros with the shape of the model's."""
    channels = int(getattr(model.config, "out_channels", None) or getattr(model.config, "out_visual_dim", 0) or 0)
    shape = list(sample.shape)
    axis = record_of(model).channels
    shape[axis] = channels or shape[axis]
    out = sample.new_zeros(shape)
    if given.get("return_dict") is False:
        return (out,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=out)


def with_kept(drive: Drive, sample: Tensor, scheduler: Any) -> Tensor:
    """The first call's latents with kept frames on their noise's path; channels beyond the latents' are conditions."""
    rows = []
    assert drive.kept is not None
    channels = drive.kept.clean.shape[1]
    for one in sample.split(1):
        axis = drive.layout.record.channels
        own = one.narrow(axis, 0, channels)
        rest = one.narrow(axis, channels, one.shape[axis] - channels)
        rows.append(torch.cat([drive.at_start(own, scheduler).to(own.dtype), rest], axis))
    return torch.cat(rows)


def side_by_side(calls: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], int] | None:
    """The texts of one call for all prompts in a row, and the length of one; None when they are all the same."""
    first = calls[0]
    if all(torch.equal(call["encoder_hidden_states"], first["encoder_hidden_states"]) for call in calls[1:]):
        return None
    made: dict[str, Tensor] = {}
    for name, value in first.items():
        others = [call[name] for call in calls]
        if name.startswith("encoder_hidden_states_image") or name.startswith("pooled"):
            made[name] = value
        elif name == "text_rope_pos":
            made[name] = torch.cat(others)
        else:
            made[name] = torch.cat(others, 1)
    return made, int(first["encoder_hidden_states"].shape[1])
