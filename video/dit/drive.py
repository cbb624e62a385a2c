"""A stock diffusers pipeline as the loop of a long run: noise by frame, kept frames, a journal, stop and resume.

The pipeline is called as its users call it, so prompts, guidance, image conditioning, LoRA and offload stay its own.
Four things around it are replaced while it runs, and put back: where it draws noise, its scheduler's `step`, its
transformers' call (cut over ranks by `parallelize`), and its VAE's `decode` (see `decode.py`).

Resume: the loop is run again from its start, but for the steps that the journal holds the transformer answers with
zeros at once; then the journal's latents and scheduler state are put in. So a run goes on to the same latents in
whatever loop the pipeline has. What else a loop carries from step to step is in the journal too: the latents of the
sound, which a copy of the scheduler steps (LTX-2), and a multistep scheduler's last estimate (CogVideoX's DPM).

A pipeline that starts from a picture may hold its first frame itself: it steps the others alone (LTX, HunyuanVideo), or
gives its tokens a timestep of 0 (Wan 2.2 5B). That frame is then the earlier run's, where there is one.

Legend: F latent frames, latents as the pipeline has them: (1, C, F, h, w), (1, F, C, h, w) or packed (1, F * n, C); A
audio latents.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from longtake.denoising import (
    Denoising,
    OnStep,
    Step,
    Strand,
    any_rank,
    clean_estimate,
    load_step,
    newest_step,
    save_step,
)
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.noise import noise
from longtake.video.dit.asking import asks_twice
from longtake.video.dit.latent_space import variance_explodes
from longtake.video.dit.records import Record, record_of
from longtake.video.dit.track import Track
from torch import Tensor


class Layout:
    """Between a pipeline's latents and frames first: (F, c, h, w).

    record: of the transformer. frames: F. height, width: of the latents, needed for packed ones.
    """

    def __init__(self, record: Record, frames: int, pixels: tuple[int, int] | None = None) -> None:
        self.record, self.frames, self.pixels = record, frames, pixels

    def first(self, x: Tensor) -> Tensor:
        """Frames first; a loop that holds the first frame itself has the others."""
        if self.record.packed and x.ndim == 5:
            return x[0].transpose(0, 1)
        if self.record.packed:
            assert self.pixels is not None
            height, width = self.pixels
            return x[0].unflatten(0, (self.frames, height, width)).permute(0, 3, 1, 2)
        return x[0].permute(*self._order)

    def back(self, x: Tensor, like: Tensor) -> Tensor:
        """As the pipeline has them (as `like`), from frames first."""
        if self.record.packed and like.ndim == 5:
            return x.transpose(0, 1)[None]
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
    track: the sound, where a copy of the scheduler steps latents of one after each step of the video. forced: diffusion
    forcing writes a step's latents over those before it, which its multistep schedulers still hold.
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
    track: Track | None = None
    forced: bool = False
    step: int = 0
    stopped: bool = False
    latents: Tensor | None = None  # frames first, after the newest step
    sound: Tensor | None = None  # (A, C), after the newest step
    held_first: bool = False  # whether the pipeline holds its first frame itself
    _head: Tensor | None = None  # (1, c, h, w) that frame, as the transformer was last given it
    _audio: Tensor | None = None  # (1, A, C) sound as the transformer was last given it
    _carried: dict[str, Tensor] = field(default_factory=dict)  # what the loop carries beside the latents
    _audio_done: bool = False
    _found_sound: tuple[Any, Tensor] | None = None  # a scheduler and latents out of the journal
    _unsaved: tuple[Any, Tensor] | None = None  # what is written once the sound has stepped
    _skip: int = 0
    _found: tuple[int, list[Any]] | None = None
    _unit: Tensor | None = None
    _unit_sound: Tensor | None = None  # (A, C)
    _draws: int = 0
    _total: int = 0

    def run(self, **arguments: Any) -> Any:
        """Call the pipeline; returns what it returns. `latents` then holds the clean latents, frames first."""
        if self.journal is not None:
            self._found = newest_step(self.journal)
            self.ranks.barrier()
            self._skip = 0 if self._found is None else self._found[0]
        with self._noise_by_frame(), self._own_step():
            return self.pipe(num_inference_steps=self.steps, generator=self._generator(0), **arguments)

    @property
    def asks_twice(self) -> bool:
        return asks_twice(self.pipe)

    @property
    def explodes(self) -> bool:
        return variance_explodes(self.pipe)

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
            if own is None and self.track is not None and len(shape) == 4 and shape[0] == 1:  # (1, channels, A, bins)
                own = self._noise_of_sound(self.track, shape)
            elif own is None:
                own = torch.randn(tuple(shape), generator=self._generator(1 + self._draws))
            elif self._unit is None:
                self._unit = own
                own = self._begun(own)
            self._draws += 1
            return own.to(device=device, dtype=dtype)

        for module in modules:
            module.randn_tensor = drawn  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module, function in stock.items():
                module.randn_tensor = function  # type: ignore[attr-defined]

    def _begun(self, unit: Tensor) -> Tensor:
        """The first noise; kept frames lie beneath it where a pipeline adds noise to latents as they are."""
        if self.kept is None or not self.explodes:
            return unit
        frames = self.layout.first(unit).clone()
        mask = self.kept.mask
        frames[mask] += self.kept.clean[mask].to(frames) / float(self.pipe.scheduler.config.sigma_max)
        return self.layout.back(frames, unit).reshape(unit.shape)

    def _noise_of_sound(self, track: Track, shape: Any) -> Tensor:
        """Each audio latent's from its own stream."""
        if shape[2] != track.count:
            raise UserError(
                f"{type(self.pipe).__name__} makes {shape[2]} latents of sound where {track.count} were expected: say "
                "the film's pace by fps"
            )
        numbers = range(track.first, track.first + track.count)
        rows = noise(self.seed, 0, numbers, self._draws, (shape[1], shape[3]))
        self._unit_sound = rows.flatten(1)
        return rows.transpose(0, 1)[None]

    # ---- steps --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _own_step(self) -> Iterator[None]:
        """`scheduler.step` with what comes after each step. A copy that a pipeline makes steps its sound."""
        scheduler = self.pipe.scheduler
        names = [name for name in inspect.signature(type(scheduler).step).parameters if name != "self"]
        drive = self

        def step(itself: Any, *args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if drive.asks_twice and given.get("pred_original_sample") is None:  # an estimate, no step
                return type(itself).step(itself, **given)
            plain = given.get("return_dict") is False
            if given.get("generator") is not None and itself is scheduler:
                given["generator"] = drive._generator(1000 + drive.step)
            before = given["sample"]
            out = type(itself).step(itself, **{**given, "return_dict": True})
            if isinstance(out, tuple):  # CogVideoX's DPM scheduler gives one for its first and last step in any case
                from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

                out = DDIMSchedulerOutput(prev_sample=out[0], pred_original_sample=out[1])
            if itself is not scheduler:
                out.prev_sample = drive._after_sound(itself, out, given["model_output"], before)
            else:
                drive._carried.clear()
                if "old_pred_original_sample" in names:
                    drive._carried["estimate"] = out.pred_original_sample
                out.prev_sample = drive._after(itself, out, given["model_output"], given["timestep"], before)
                if "estimate" in drive._carried:
                    out.pred_original_sample = drive._carried["estimate"]
            if plain:
                rest = tuple(value for key, value in out.items() if key != "prev_sample")
                return (out.prev_sample, *rest)
            return out

        scheduler.__dict__["step"] = types.MethodType(step, scheduler)
        try:
            yield
        finally:
            del scheduler.__dict__["step"]

    def _after(self, scheduler: Any, out: Any, prediction: Tensor, t: Any, before: Tensor) -> Tensor:
        self._total = len(scheduler.timesteps)
        moved: Tensor = out.prev_sample
        if self.stopped:  # the estimate stays what it is
            return before.to(moved.dtype)
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
                clean = self._all(self.layout.first(self._estimate(scheduler, out, prediction, t, before)).float())
            told = Step(self.step, self._total, t, self._all(self.layout.first(moved).float()), clean)
            shown = told.latents
            asked = bool(self.on_step(told))
            if told.latents is not shown:
                own = told.latents[self._outside(told.latents, moved) :]
                moved = self.layout.back(own.to(moved), moved).reshape(moved.shape)
        wants = any_rank(asked or (self.should_stop is not None and self.should_stop()), self.ranks)
        if self.forced and getattr(scheduler, "last_sample", None) is not None:
            scheduler.last_sample = moved.to(out.prev_sample.dtype, copy=True)
        if self.journal is not None and (self.step % self.checkpoint_every == 0 or self.step == self._total or wants):
            self._unsaved = (scheduler, moved)
            if self.track is None:
                self._save()
        if wants and self.step < self._total:
            moved = self._estimate(scheduler, out, prediction, t, before)
            moved = self._held(moved, None)
            self.stopped = True
        self.latents = self._all(self.layout.first(moved).detach().float()).cpu()
        if self.at_step is not None:
            self.at_step(self.step)
        return moved.to(out.prev_sample.dtype)

    def _after_sound(self, scheduler: Any, out: Any, prediction: Tensor, before: Tensor) -> Tensor:
        """A step of the sound, which comes after the video's."""
        moved: Tensor = out.prev_sample
        if self._found_sound is not None:  # the video was revived just now
            found, latents = self._found_sound
            self._found_sound = None
            vars(scheduler).update({name: value for name, value in vars(found).items() if name != "step"})
            moved = latents.to(moved)
        else:
            moved = self._held_sound(moved, self.step if self.step < self._total else None, scheduler)
        if self._unsaved is not None:
            if not torch.isfinite(moved).all():
                raise UserError(f"step {self.step} gave NaN or infinity in the sound, so the run ends here")
            self._carried["audio"] = moved
            self._save()
        if self.stopped and self._audio_done:
            return before.to(moved.dtype)
        if self.stopped:
            self._audio_done = True
            clean = before - sigma_at(scheduler, self.step - 1) * prediction.to(before.dtype)
            moved = self._held_sound(clean, None, scheduler).to(moved.dtype)
        self.sound = moved[0].detach().float().cpu()
        return moved

    # ---- a first frame that the pipeline holds ------------------------------------------------------------------

    def before_call(self, given: dict[str, Any], channels: int, scheduler: Any) -> dict[str, Any]:
        """Arguments of a call of the transformer: kept frames on their noise's path, and the first one as it is held.

        channels: of the latents; those beyond are conditions, and stay.
        """
        name, _ = self.layout.record.sample
        sample = given[name]
        self.note(given, channels)
        given = self._heard(given, scheduler)
        begins = self.step == 0 and self.kept is not None and not self.explodes
        if not self.held_first and not begins:
            return given
        axis = self.layout.record.channels
        rows = []
        for one in sample.split(1):
            own = one.narrow(axis, 0, channels)
            rest = one.narrow(axis, channels, one.shape[axis] - channels)
            frames = self.layout.first(own)
            if begins:
                frames = self.layout.first(self._held(own, 0, scheduler))
            if self.held_first:
                assert self._head is not None
                frames = torch.cat([self._head.to(frames), frames[1:]])
            rows.append(torch.cat([self.layout.back(frames, own).to(one.dtype), rest], axis))
        return {**given, name: torch.cat(rows)}

    def _heard(self, given: dict[str, Any], scheduler: Any) -> dict[str, Any]:
        """The sound of a call: at its seconds, kept latents on their noise's path."""
        if self.track is None:
            return given
        made = dict(given)
        if self.track.shift:
            made["audio_coords"] = given["audio_coords"] + self.track.shift
        if self.step == 0 and self.track.known is not None:
            rows = given["audio_hidden_states"].split(1)
            made["audio_hidden_states"] = torch.cat([self._held_sound(row, 0, scheduler) for row in rows])
        return made

    def note(self, given: Mapping[str, Any], channels: int) -> None:
        """What a call of the transformer tells of the loop: sound, and whether the first frame is held."""
        if isinstance(given.get("audio_hidden_states"), Tensor):
            self._audio = given["audio_hidden_states"][-1:]
        self.held_first = self.held_first or _holds_first(given.get("timestep"), self.layout.frames)
        if self.held_first:
            sample = given[self.layout.record.sample[0]][-1:]
            head = self.layout.first(sample.narrow(self.layout.record.channels, 0, channels))[:1]
            if self.kept is not None and bool(self.kept.mask[0]):
                head = self.kept.clean[:1].to(head)
            self._head = head.detach().float()

    def _outside(self, frames: Tensor, stepped: Tensor) -> int:
        """Frames that the loop does not step: 1 where it holds the first, else 0."""
        return len(frames) - len(self.layout.first(stepped))

    def _all(self, frames: Tensor) -> Tensor:
        """All frames of the run, the first as the pipeline holds it."""
        if not self.held_first or self._head is None:
            return frames
        return torch.cat([self._head.to(frames), frames[-(self.layout.frames - 1) :]])

    def _estimate(self, scheduler: Any, out: Any, prediction: Tensor, t: Any, before: Tensor) -> Tensor:
        """The clean latents that the step's prediction stands for."""
        if is_flow(scheduler) and not self.asks_twice:
            return before - sigma_at(scheduler, self.step - 1) * prediction.to(before.dtype)
        return clean_estimate(scheduler, out, prediction, t, before)

    # ---- kept frames --------------------------------------------------------------------------------------------

    def _fixed(self, scheduler: Any, moved: Tensor) -> Tensor:
        """After a step: kept frames at the noise level of the next one, clean after the last."""
        return self._held(moved, self.step if self.step < self._total else None, scheduler)

    def _held(self, x: Tensor, index: int | None, scheduler: Any = None) -> Tensor:
        if self.kept is None:
            return x
        frames = self.layout.first(x).clone()
        skip = len(self.kept.mask) - len(frames)
        mask = self.kept.mask[skip:].to(frames.device)
        clean = self.kept.clean[skip:].to(frames)[mask]
        if index is not None and len(clean):
            assert self._unit is not None
            unit = self._frames_of(self._unit)[skip:].to(frames)[mask]
            if self.explodes:
                clean = clean + sigma_at(scheduler, index) * unit
            else:
                clean = noised(scheduler, clean, unit, index)
        frames[mask] = clean
        return self.layout.back(frames, x).reshape(x.shape)

    def _held_sound(self, x: Tensor, index: int | None, scheduler: Any) -> Tensor:
        """The same of the sound (1, A, C)."""
        if self.track is None or self.track.known is None:
            return x
        known = self.track.known.to(x.device)
        clean = self.track.clean.to(x)[known]
        if index is not None and len(clean):
            assert self._unit_sound is not None
            clean = noised(scheduler, clean, self._unit_sound.to(x)[known], index)
        made = x.clone()
        made[0, known] = clean
        return made

    def _frames_of(self, unit: Tensor) -> Tensor:
        """Noise as it was drawn, frames first: packed latents are drawn unpacked, (1, C, F, h, w)."""
        return unit[0].transpose(0, 1) if self.layout.record.packed else self.layout.first(unit)

    # ---- journal ------------------------------------------------------------------------------------------------

    def _state(self, latents: Tensor) -> Denoising:
        """The whole latents as one row of a denoising state: its file holds the scheduler's state too."""
        state = Denoising.of(latents.detach(), range(1), self.seed)
        for name, x in self._carried.items():
            state.strands[name] = Strand(x.detach().float(), range(1))
        return state

    def _save(self) -> None:
        assert self.journal is not None and self._unsaved is not None
        scheduler, latents = self._unsaved
        self._unsaved = None
        if self.ranks.is_main:
            state = self._state(latents)
            state.step = self.step
            schedulers = dict.fromkeys(state.strands, scheduler)
            save_step(self.journal, state, schedulers, self._total, Ranks.single(self.ranks.device))
            self.journal.prune("step")
        self.ranks.barrier()

    def _revived(self, scheduler: Any, like: Tensor) -> Tensor:
        assert self._found is not None
        if self.track is not None:
            assert self._audio is not None
            self._carried["audio"] = self._audio
        state = self._state(like)
        own = scheduler.__dict__.pop("step")
        schedulers = {name: scheduler if name == "latents" else copy.deepcopy(scheduler) for name in state.strands}
        load_step(self._found[1], self._found[0], state, schedulers, self._total)
        scheduler.__dict__["step"] = own
        for name in self._carried:
            self._carried[name] = state.strands[name].latents.to(self._carried[name])
        if self.track is not None:
            self._found_sound = (schedulers["audio"], state.strands["audio"].latents)
        self.latents = self._all(self.layout.first(state.latents).detach().float()).cpu()
        if self.at_step is not None:
            self.at_step(self.step)
        return state.latents.to(like)


def _holds_first(timestep: Any, frames: int) -> bool:
    """Whether a call's timesteps, by token or frame, are 0 over the first frame alone."""
    if not isinstance(timestep, Tensor) or timestep.ndim != 2 or timestep.shape[1] < frames or frames < 2:
        return False
    told = timestep[-1].unflatten(0, (frames, -1)) if timestep.shape[1] % frames == 0 else timestep[-1:]
    return len(told) == frames and bool((told[0] == 0).all()) and bool((told[1:] > 0).all())


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
        and (name.startswith(("encoder_", "audio_encoder_", "pooled")) or name == "text_rope_pos")
    }


def names_of(model: Any) -> list[str]:
    return [name for name in inspect.signature(type(model).forward).parameters if name != "self"]


def channels_of(model: Any) -> int:
    """Channels of a transformer's answer; 0 where its configuration does not say."""
    return int(getattr(model.config, "out_channels", None) or getattr(model.config, "out_visual_dim", 0) or 0)


def zeros_of(sample: Tensor, model: Any, given: Mapping[str, Any]) -> Any:
    """An answer of zeros with the shape of the model's."""
    shape = list(sample.shape)
    axis = record_of(model).channels
    shape[axis] = channels_of(model) or shape[axis]
    out = sample.new_zeros(shape)
    if given.get("audio_hidden_states") is not None:
        audio = given["audio_hidden_states"]
        sound = audio.new_zeros((*audio.shape[:-1], int(model.config.audio_out_channels)))
        if given.get("return_dict") is False:
            return (out, sound)
        from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput

        return AudioVisualModelOutput(sample=out, audio_sample=sound)
    if given.get("return_dict") is False:
        return (out,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=out)


def side_by_side(calls: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], list[int]] | None:
    """The texts of one call for all prompts in a row, and the length of each; None when they are all the same."""
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
    return made, [int(call["encoder_hidden_states"].shape[1]) for call in calls]
