"""A stock video pipeline of diffusers as a long-video pipeline.

    pipe = LongVideoPipeline.from_pipeline(WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"))
    pipe("0s: a dog runs | 8s: it swims", seconds=16, seed=1).save("dog.mp4")

The stock pipeline makes the film, with its own prompts, guidance and conditions (`drive.py`); its transformer sees the
frames of this rank and what the scope shows it (`adapter.py`); its VAE decodes in a stream (`decode.py`).

Legend: F latent frames, f frames of film, P prompts, s stride (film frames a latent frame).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.distributed import Ranks, current
from longtake.errors import UserError
from longtake.kernels.ranks.transport import DryTransport, Transport
from longtake.outputs import VideoOutput
from longtake.pipeline import CALLBACK_INPUTS, Callback, frames_of, seed_of, steps_of
from longtake.timeline import Timeline
from longtake.video.dit.asking import (
    arguments_of,
    checked,
    first_frames,
    forced,
    grey,
    guarded,
    guider_of,
    makes_sound,
    pictured,
    quiet,
    refuse_undriven,
    repository,
    size_by_picture,
    sized,
    steps_all_but_first,
    synchronous,
    takes_of,
)
from longtake.video.dit.decode import Caught, Decoder, caught
from longtake.video.dit.drive import Drive, Layout, channels_of, names_of, side_by_side, texts_of, zeros_of
from longtake.video.dit.film_sound import with_sound
from longtake.video.dit.guidance import Guided, Halves, Pass
from longtake.video.dit.held import held
from longtake.video.dit.latent_space import check_channels, denormalised, moments_of
from longtake.video.dit.positions import Positions
from longtake.video.dit.presets import Preset, preset_of
from longtake.video.dit.prompts import frame_weights
from longtake.video.dit.records import Record, record_of
from longtake.video.dit.scopes import FrameScope, RotatingAnchors
from longtake.video.dit.track import check_sound, decoded_sound, track_of
from longtake.video.parallelize import Handle, parallelize
from longtake.video.piece import Patches
from longtake.video.run import Context, as_timeline, check_frames, latents_of
from longtake.video.scope import Scope
from longtake.video.stock_video import gives_stock
from torch import Tensor

if TYPE_CHECKING:
    from longtake.journal import Journal

Probes = list[list[tuple[dict[str, Tensor], Pass]]]
CONTEXT_FRAMES = 24  # latent frames of an earlier run that new ones see on each side
_TRANSFORMERS = ("transformer", "transformer_2")
# what stock pipelines call the film frames of a latent frame, and the pixels of a latent one
_STRIDES = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
_SCALES = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor", "vae_scale_factor")


class TransformerVideoPipeline:
    """See the module's docstring. Made by `LongVideoPipeline.from_pipeline` and `from_prior`.

    stock: a diffusers pipeline whose `transformer` has a record. preset: what the checkpoint was trained for.
    """

    def __init__(self, stock: Any, preset: Preset, name: str | None = None) -> None:
        refuse_undriven(stock)
        self.record: Record = record_of(stock.transformer)
        stride = _first_of(stock, _STRIDES)
        self.stock, self.name = synchronous(stock), name
        self._forced = self.stock is not stock
        self.preset = preset if stride is None else replace(preset, stride=stride)
        self._interrupt = False

    # ------------------------------------------------------------------------------------------------------ loading

    @classmethod
    def of(cls, stock: Any, name: str | None = None, **preset: Any) -> TransformerVideoPipeline:
        """Around a stock pipeline. name: its repository, by which the preset is found; preset: fields of it to name."""
        record = record_of(getattr(stock, "transformer", None))
        if name is None:
            name = repository(stock)
        return cls(stock, preset_of(name, record, type(stock), **preset), name)

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, name: str | None = None, **preset: Any
    ) -> TransformerVideoPipeline:
        """A local folder in diffusers' layout. Raises UserError for one that does not load."""
        from diffusers import DiffusionPipeline

        try:
            stock = DiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{folder} does not load as a diffusers pipeline: {reason}") from error
        return cls.of(stock, name, **preset)

    def to(self, *args: Any, **kwargs: Any) -> TransformerVideoPipeline:
        """Move the stock pipeline."""
        self.stock.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Of the stock pipeline's bar, as diffusers has it: ``disable=True`` and what tqdm takes."""
        self.stock.set_progress_bar_config(**config)

    @property
    def device(self) -> torch.device:
        return torch.device(self.stock.device)

    @property
    def transformers(self) -> list[Any]:
        """The models that are cut: two for Wan 2.2."""
        found = (getattr(self.stock, name, None) for name in _TRANSFORMERS)
        return [model for model in found if model is not None]

    @property
    def begins_from_a_picture(self) -> bool:
        """Whether the stock pipeline takes its first frame as an image."""
        return "image" in takes_of(self.stock)

    @property
    def makes_sound(self) -> bool:
        """Whether its films have sound."""
        return makes_sound(self.stock)

    def stop(self) -> None:
        """Ask the run to end after the step at work; the result is then the estimate of the clean latents."""
        self._interrupt = True

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    # ------------------------------------------------------------------------------------------------------ settings

    def default_scope(self, total: int) -> Scope | FrameScope | None:
        """All frames up to the training length; beyond it a window and rotating anchors within that budget."""
        if total <= self.preset.length:
            return None
        window = max(0, min(3, (self.preset.length - 3) // 2 - 1))
        return RotatingAnchors(self.preset.length, window=window)

    def context(
        self, latents: Tensor | VideoOutput, *, frames: int | None = None, redo: tuple[int, int] | None = None,
        before: str | None = None, sound: Tensor | None = None, film: int | None = None,
    ) -> Context:  # fmt: skip
        """What an earlier run is asked for: `frames` more of film, or film frames `redo`.

        latents: of the run (F, c, h, w), or its whole output, which says `sound` and `film` by itself. sound: the
        latents of its sound (A, C), where it has one: `film.sound_latents`. film: the frames that the earlier film had,
        `film.info["frames"]`, where its last latent frame holds more (None: all that they hold). A part of a latent
        frame cannot be made: the film has at least one frame of the last new one.
        """
        if isinstance(latents, VideoOutput):
            sound = getattr(latents, "sound_latents", None) if sound is None else sound
            film = latents.info.get("frames") if film is None else film
        pace = latents.fps if isinstance(latents, VideoOutput) else None
        known = latents_of(latents)
        stride, had = self.preset.stride, self.film(len(known), film)
        if (frames is None) == (redo is None):
            raise UserError("say frames, how many more, or redo, which ones anew")
        if redo is None:
            assert frames is not None
            more = max(self.preset.latents(had + frames) - len(known), min(frames, 1))
            least = self.preset.film(len(known) + more) - stride + 1
            return replace(Context.extend(known, more, before), sound=sound, film=max(had + frames, least), fps=pace)
        start, stop = redo
        if not 0 <= start < stop <= had:
            raise UserError(f"cannot redo frames {start}:{stop} of a video of {had} frames")
        made = Context.redo(known, self.preset.latent_of(start), self.preset.latent_of(stop - 1) + 1)
        return replace(made, sound=sound, film=had, fps=pace)

    def latents(self, frames: int) -> int:
        """Latent frames that hold so many frames of film."""
        return self.preset.latents(frames)

    def check_inputs(
        self, timeline: Timeline, context: Context, *, height: int | None, width: int | None,
        scope: Scope | FrameScope | None | str, span: range | None = None, sizes: Sequence[int] | None = None,
        world: int = 1,
    ) -> Any:  # fmt: skip
        """How the latent frames are cut over ranks. Raises UserError for what cannot be made."""
        check_sound(self.stock, context)
        check_channels(self.stock, context)
        span = context.window(CONTEXT_FRAMES) if span is None else span
        dual = scope if isinstance(scope, Scope) else None
        partition = check_frames(len(span), world, dual, sizes, new=context.stop - context.start)
        return partition

    # ------------------------------------------------------------------------------------------------------ the call

    @gives_stock
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Timeline,
        frames: int | None = None,
        *,
        num_frames: int | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        generator: Any = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = "",
        fps: float | None = None,
        height: int | None = None,
        width: int | None = None,
        scope: Scope | FrameScope | str | None = "auto",
        positions: Positions | str = "auto",
        context: Context | None = None,
        hold: Mapping[int, Any] | None = None,
        sizes: Sequence[int] | None = None,
        guidance_ranks: bool = False,
        ranks: Ranks | None = None,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_INPUTS,
        output_type: str = "film",
        initial_noise: str = "independent",
        **stock: Any,
    ) -> VideoOutput:
        """Make a film, or the frames that `context` asks for.

        prompt: text or a Timeline. frames, num_frames or seconds: how long, in frames of film; the model makes the next
        length of its rule (s * k + 1) and the film is cut. num_inference_steps, guidance_scale, fps, height, width:
        the preset's unless given. scope: "auto" is `default_scope`; None is every frame. positions: "auto" is clip
        beyond the training length, absolute within it. context: see `context`. hold: pictures (PIL) that the film must
        show, by frame of film; negative numbers count from the end. sizes: latent frames of each rank (of a half
        of them under guidance_ranks). guidance_ranks: the two passes of guidance on two halves of the ranks, which are
        an even number, instead of both on all. output_type:
        "film", "stream" or "latent"; "np", "pt" and "pil" give a ``StockVideo``. Other keywords go to the stock
        pipeline (image, video, guidance_scale_2, ...).
        The latents (F, c, h, w) of the output are in the transformer's space, as `context` wants them.
        Raises UserError for settings that do not go together.
        """
        started = time.monotonic()
        self._interrupt = False
        if output_type not in ("film", "stream", "latent"):
            raise UserError(f"output_type must be one of film, stream, latent, np, pt, pil; given {output_type!r}")
        if initial_noise != "independent":
            raise UserError(f"initial_noise={initial_noise} is for UNets; video transformers take independent noise")
        preset = self.preset
        fps = fps or (context.fps if isinstance(context, Context) else None) or preset.fps
        steps = steps_of(preset.steps if num_inference_steps is None else num_inference_steps)
        asked = frames_of(frames, num_frames, seconds, fps)
        asked = asked if asked is not None else preset.frames
        timeline = as_timeline(prompt, fps)
        ranks = ranks or current() or Ranks.single(self.device)
        seed = seed_of(seed, generator)
        if context is None:
            context = replace(Context.new(preset.latents(asked)), film=asked)
        elif not isinstance(context, Context):
            raise UserError(f"context is what pipe.context(film, frames=...) gives; got {type(context).__name__}")
        film = context.film
        span = context.window(CONTEXT_FRAMES)
        if isinstance(scope, str):
            if scope != "auto":
                raise UserError(f"scope must be a scope, 'auto' or None; given {scope!r}")
            scope = self.default_scope(len(span))
        if positions == "auto":
            positions = "clip" if len(span) > preset.length and self._clips else "absolute"
        if not isinstance(positions, Positions):
            positions = Positions(positions, preset.length)
        partition = self.check_inputs(
            timeline, context, height=height, width=width, scope=scope, span=span, sizes=sizes,
            world=ranks.world // 2 if guidance_ranks and ranks.world > 1 else ranks.world,
        )  # fmt: skip
        given = pictured(self.stock, context, span, stock)
        height, width = self._size(height, width, context, given.get("image"))
        kept = held(self.stock, preset, context, span, hold, (height, width))
        layout = Layout(self.record, len(span), self._pixels(height, width))
        track = track_of(self.stock, context, span, preset, fps) if makes_sound(self.stock) else None
        arguments = arguments_of(
            self.stock, preset, timeline, len(span), fps, guidance_scale, negative_prompt, height, width, given
        )

        with ExitStack() as stack:
            stack.enter_context(guider_of(self.stock, guidance_scale))
            halves = Halves.of(ranks) if guidance_ranks and ranks.world > 1 else None
            if halves is not None:
                transport: Transport = halves.inner
            else:
                transport = Transport(ranks.group) if ranks.world > 1 else DryTransport(0, 1)
            told = halves is not None or self._several(timeline, context)
            probes = self._probes(timeline, context, arguments) if told else None
            handles = [
                stack.enter_context(
                    parallelize(model, partition, scope, transport=transport, positions=positions, whole=True)
                )
                for model in self.transformers
            ]

            def at_step(step: int) -> None:
                for handle in handles:
                    handle.set_step(step)

            drive = Drive(
                self.stock, layout, range(span.start, span.stop), seed, steps, ranks, journal, checkpoint_every,
                _watch(self, callback_on_step_end, callback_on_step_end_tensor_inputs), lambda: self._interrupt, kept,
                at_step, track=track, held_first=steps_all_but_first(self.stock),
                forced=self._forced,
            )  # fmt: skip
            for handle, model in zip(handles, self.transformers, strict=True):
                handle.set_step(0)
                self._guide(stack, model, handle, drive, probes, timeline, context, span, halves, fps)
            note = stack.enter_context(caught(self.stock.vae))
            stack.enter_context(moments_of(self.stock, len(span)))
            touched = stack.enter_context(first_frames(self.stock, context))
            stack.enter_context(quiet(self.stock, ranks.is_main))
            made = checked(self.stock, lambda: drive.run(**arguments))
            if drive.latents is None:
                raise UserError(
                    f"{type(self.stock).__name__} did not step the scheduler that it holds: its loop cannot be driven"
                )
            if touched:
                drive.latents = layout.first(touched[-1]).detach().float().cpu()
            info: dict[str, Any] = {"run": handles[0].explain(), "traffic": handles[0].counter.as_dict()}
        whole = context.merge(drive.latents, span)
        info.update(
            frames=film or preset.film(len(whole)), seed=seed, steps=drive.step, completed=not drive.stopped,
            seconds=round(time.monotonic() - started, 2), scope=str(scope), positions=str(positions.policy),
        )  # fmt: skip
        joined = drive.held_first and context.latents is not None  # the stock pipeline has decoded another first frame
        output = self._output(
            whole, drive.latents, note, fps, film, ranks, info, output_type, int(drive.held_first), joined
        )
        if track is None:
            return output
        assert drive.sound is not None
        heard = None if context.latents is not None else made.audio
        return self._sounding(output, track.merge(drive.sound), ranks, output_type, heard)

    # ------------------------------------------------------------------------------------------------------ its parts

    @property
    def _clips(self) -> bool:
        """Whether distances can be clipped: positions must be rotated, not added."""
        config = self.stock.transformer.config
        return not self.record.name.startswith(("CogVideoX", "ConsisID")) or bool(
            config.use_rotary_positional_embeddings
        )

    def _size(
        self, height: int | None, width: int | None, context: Context, picture: Any = None
    ) -> tuple[int, int]:  # fmt: skip
        """Pixels: those of an earlier run, or given, or the preset's; or those that a stock pipeline chooses."""
        scale = self._spatial()
        chosen = None if picture is None else size_by_picture(self.stock, picture)
        if chosen is not None:
            if context.latents is not None:
                height, width = (side * scale for side in context.latents.shape[-2:])
            if (height or chosen[0], width or chosen[1]) != chosen:
                raise UserError(
                    f"{type(self.stock).__name__} chooses {chosen[1]} x {chosen[0]} pixels by its picture; "
                    f"{width} x {height} were asked for"
                )
            return chosen
        if context.latents is not None:
            rows, columns = context.latents.shape[-2:]
            made = (rows * scale, columns * scale)
            if (height or made[0], width or made[1]) != made:
                raise UserError(f"the earlier run has {made[1]} x {made[0]} pixels; {width} x {height} were asked for")
            return made
        patch = self.record.patch(self.stock.transformer)
        height, width = sized(self.stock, self.preset, scale, height, width, self.name)
        for side, step, name in ((height, scale * patch[1], "height"), (width, scale * patch[2], "width")):
            if side % step:
                raise UserError(f"{name} must be a multiple of {step}, got {side}")
        return height, width

    def _spatial(self) -> int:
        scale = _first_of(self.stock, _SCALES)
        if scale is None:
            raise UserError(f"{type(self.stock).__name__} does not say how much smaller its latents are")
        return scale

    def _pixels(self, height: int, width: int) -> tuple[int, int]:
        scale = self._spatial()
        patch = self.record.patch(self.stock.transformer)
        return height // scale // patch[1], width // scale // patch[2]

    def _several(self, timeline: Timeline, context: Context) -> bool:
        return len(self._prompts(timeline, context)) > 1

    def _prompts(self, timeline: Timeline, context: Context) -> list[str]:
        return list(self._faded(timeline, context).prompts)

    def _faded(self, timeline: Timeline, context: Context) -> Timeline:
        """The Timeline of the new frames, faded out of what the earlier run ended with."""
        if context.before is None:
            return timeline
        return timeline.after(context.before, self.preset.stride * (context.stop - context.start))

    def _weights(self, timeline: Timeline, context: Context, span: range) -> Tensor:
        """(F, P) over the frames that the network sees; kept ones hear what their nearest new frame hears."""
        stride, new = self.preset.stride, context.stop - context.start
        faded = self._faded(timeline, context)
        if context.latents is None:
            return frame_weights(faded, new, stride)
        film = new * stride
        middle = [min(film - 1, index * stride + stride // 2) for index in range(new)]
        weights = torch.from_numpy(faded.weight_matrix(middle, film)).double()
        rows = [min(max(frame - context.start, 0), new - 1) for frame in span]
        return weights[rows]

    def _probes(self, timeline: Timeline, context: Context, arguments: Mapping[str, Any]) -> Probes:
        """By prompt, by call of one step: the text arguments that the stock pipeline gives, and which pass it is."""
        sample = self.record.sample[0]
        probes = (self._probe({**arguments, "prompt": text}) for text in self._prompts(timeline, context))
        return [[(texts_of(call), Pass.of(call, sample)) for call in probe] for probe in probes]

    def first_call(
        self, prompt: str, latents: int, *, height: int | None = None, width: int | None = None
    ) -> dict[str, Any]:
        """All arguments of the stock pipeline's first call of its transformer, for so many latent frames."""
        context = Context.new(latents)
        given = grey(self.stock, *self._size(height, width, context))
        height, width = self._size(height, width, context, given.get("image"))
        timeline = as_timeline(prompt, self.preset.fps)
        arguments = arguments_of(
            self.stock, self.preset, timeline, latents, self.preset.fps, None, "", height, width, given
        )
        call = self._probe(arguments)[0]
        return forced(call, latents, self.preset.fps) if self._forced else call

    def _probe(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The calls of the first step, with a transformer that answers zeros."""
        calls: list[dict[str, Any]] = []
        patches = Patches()

        class _Done(Exception):
            pass

        def answer(model: Any) -> Callable[..., Any]:
            names = names_of(model)

            def forward(*args: Any, **kwargs: Any) -> Any:
                given = {**dict(zip(names, args, strict=False)), **kwargs}
                calls.append(given)
                return zeros_of(given[self.record.sample[0]], model, given)

            return forward

        def step(*_: Any, **__: Any) -> Any:
            raise _Done

        for model in self.transformers:
            patches.forward(model, answer(model))
        self.stock.scheduler.__dict__["step"] = step
        try:
            latents = self.preset.latents(arguments["num_frames"])
            with caught(self.stock.vae), quiet(self.stock, False), moments_of(self.stock, latents):
                generator = torch.Generator().manual_seed(0)
                checked(self.stock, lambda: self.stock(num_inference_steps=2, generator=generator, **arguments))
        except _Done:
            pass
        finally:
            del self.stock.scheduler.__dict__["step"]
            patches.undo()
            self.stock.maybe_free_model_hooks()
        return calls

    def _guide(
        self, stack: ExitStack, model: Any, handle: Handle, drive: Drive, probes: Probes | None,
        timeline: Timeline, context: Context, span: range, halves: Halves | None, fps: float,
    ) -> None:  # fmt: skip
        """Around the model's call: answer steps that need not be computed, hold kept frames at the start, give every
        frame its own text, part the passes of guidance over halves of the ranks."""
        patches = Patches()
        stack.callback(patches.undo)
        stock = model.__dict__["forward"]
        names = names_of(model)
        texts = None if probes is None else [[told for told, _ in probe] for probe in probes]
        weights = None if texts is None else self._weights(timeline, context, span)
        number = {"step": -1, "call": 0}
        guided = None
        if halves is not None and probes is not None:
            guided = Guided(halves, [one for _, one in probes[0]], self.record.sample[0], type(self.stock).__name__)
        several = texts is not None and len(texts) > 1
        sides = [side_by_side(list(prompts)) for prompts in zip(*texts, strict=True)] if texts and several else []

        def words(call: int, given: dict[str, Any]) -> dict[str, Any]:
            """The arguments with the text of a call of the step: of all prompts, where they differ there."""
            assert texts is not None
            if not several:
                return {**given, **texts[0][call]}
            told = sides[call]
            handle.set_prompts(None if told is None else weights, None if told is None else told[1])
            return {**given, **(texts[0][call] if told is None else told[0])}

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if self._forced:
                given = forced(given, len(span), fps)
            sample = given[self.record.sample[0]]
            if drive.skipping:
                drive.note(given, channels_of(model) or sample.shape[self.record.channels])
                return zeros_of(sample, model, given)
            given = drive.before_call(
                given, channels_of(model) or sample.shape[self.record.channels], self.stock.scheduler
            )
            if texts is None:
                return stock(**given)
            if number["step"] != drive.step:
                number.update(step=drive.step, call=0)
            call = number["call"]
            number["call"] += 1
            if guided is None:
                return stock(**words(call, given))
            return guided(stock, given, call, words)

        patches.forward(model, forward)

    def _output(
        self, whole: Tensor, made: Tensor, note: Any, fps: float, film: int | None, ranks: Ranks,
        info: dict[str, Any], kind: str, outside: int = 0, joined: bool = False,
    ) -> VideoOutput:  # fmt: skip
        """The film from clean latents (F, c, h, w) in the transformer's space.

        made: those that the stock pipeline made; the first `outside` of them it held. joined: whether what it decoded
        is not the film.
        """
        latents = whole.detach().float().cpu()
        if kind == "latent" or not ranks.is_main:
            return VideoOutput(np.empty((0, 8, 8, 3), np.uint8), fps, latents, info=info)
        length = film or self.preset.film(len(latents))
        if len(latents) != len(made) or note.z is None or joined:  # the stock pipeline has seen a part of the film
            part = None if note.z is None else (made[outside:], note.z[:, :, outside:])
            note.z = denormalised(self.stock, latents.transpose(0, 1)[None], part)
        decoder = Decoder(self.stock.vae, note)
        info["decode"] = "exact" if decoder.exact else "pieces overlap and are cross-faded: not equal to one call"
        if kind == "stream":
            return VideoOutput(guarded(self.stock, decoder.chunks(length)), fps, latents, length, info=info)
        return VideoOutput(np.concatenate(list(guarded(self.stock, decoder.chunks(length)))), fps, latents, info=info)

    def _sounding(self, film: VideoOutput, sound: Tensor, ranks: Ranks, kind: str, waves: Any = None) -> VideoOutput:
        """A film with the sound of its latents (A, C); waves: what they decode to, if that is known."""
        if kind == "latent" or not ranks.is_main:
            waves = None
        elif waves is None:
            waves = decoded_sound(self.stock, sound)
        rate = int(self.stock.vocoder.config.output_sampling_rate)
        return with_sound(film, sound, waves, rate, film.info["frames"] / film.fps)

    def output(
        self, latents: Tensor, fps: float, ranks: Ranks | None, info: dict[str, Any], kind: str,
        sound: Tensor | None = None,
    ) -> VideoOutput:  # fmt: skip
        """The film of latents that a finished run kept, and of its sound's; info: "frames" of it, where it is not all
        that they hold."""
        ranks = ranks or Ranks.single(self.device)
        made = self._output(latents, latents, Caught(), fps, info.get("frames"), ranks, info, kind)
        if sound is None:
            return made
        made.info.setdefault("frames", self.preset.film(len(latents)))
        return self._sounding(made, sound, ranks, kind)

    def film(self, latents: int, noted: Any = None) -> int:
        """Frames of film of so many latent frames: those that a run noted, where its last latent frame begins them."""
        whole = self.preset.film(latents)
        fits = isinstance(noted, int) and whole - self.preset.stride < noted <= whole
        return noted if fits else whole


def _first_of(stock: Any, names: Sequence[str]) -> int | None:
    return next((int(getattr(stock, name)) for name in names if getattr(stock, name, None)), None)


def _watch(pipe: Any, callback: Callback | None, inputs: Sequence[str]) -> Any:
    from longtake.pipeline import LongTakePipeline

    return LongTakePipeline.watcher(pipe, callback, inputs)
