"""LongVideoPipeline: minutes of video from a 16-frame model, the same from one process or many.

    pipe = LongVideoPipeline.from_prior("kaykit-small")
    pipe("a barbarian runs", frames=240, seed=1).save("running.mp4")

The way of a prompt: Timeline -> text states per frame -> noise per frame -> a denoising loop in which the parallelized
UNet sees this rank's frames -> chunks of frames in order (Video-Infinity, arXiv 2406.16260; noise option: FreeNoise,
2310.15169). Legend: F frames of the run, n of this rank, c h w latent channels and grid, T text tokens, D text width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from longtake.denoising import Denoising, OnStep, Predict, Tensors, check_scheduler, denoise
from longtake.distributed import Ranks, current
from longtake.errors import UserError, one_line
from longtake.journal import Journal
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport, Transport
from longtake.noise import noise
from longtake.outputs import VideoOutput
from longtake.pipeline import CALLBACK_INPUTS, Callback, LongTakePipeline, frames_of, seed_of, steps_of
from longtake.priors import WRONG_VALUES, load_prior
from longtake.timeline import Timeline
from longtake.video.decode import gather_latents, stream_frames
from longtake.video.freenoise import switch, windows_of
from longtake.video.parallelize import Handle, parallelize
from longtake.video.run import CONTEXT_FRAMES, Context, as_timeline, check_frames, latents_of
from longtake.video.scope import Scope
from longtake.video.stock_video import STOCK_TYPES, stock_video
from safetensors import SafetensorError

DEFAULT_PRIOR = "kaykit-small"
CHUNK_ABOVE = 320  # frames on one rank from which the spatial layers run in chunks
CHUNK_FRAMES = 64

OUTPUT_TYPES = ("film", "stream", "latent", "np", "pt", "pil")
FRAMES = 240


def default_scope(total: int) -> Scope:
    """The scope of a run of ``total`` frames unless another is asked for: both scopes at every step, W-independent."""
    return Scope(window=min(8, total), global_frames=16, gate="off")


class InitialNoise(StrEnum):
    """Where the run's first noise comes from.

    Members:
        INDEPENDENT: each frame its own.
        FREENOISE: later frames reuse the first 16 frames' noise, shuffled within strides of 4 (in the windows of
            AnimateDiff, where they are switched on).
    """

    INDEPENDENT = "independent"
    FREENOISE = "freenoise"


def freenoise_index(seed: int, total: int, window: int = 16, stride: int = 4) -> np.ndarray:
    """Which base frame's noise each of ``total`` frames takes (FreeNoise): (total,) int64 in 0..window-1.

    Frames past the window take the noise of the frames one window earlier, shuffled within strides; a function of the
    seed and the total alone, so every rank computes the same.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 0xF4EE]))
    index = np.arange(max(total, window))
    for start in range(window, total, stride):
        source = index[start - window : start - window + stride].copy()
        rng.shuffle(source)
        index[start : start + stride] = source[: max(0, len(index[start : start + stride]))]
    return index[:total]


class LongVideoPipeline(LongTakePipeline):
    """Text to long video with a UNet3DConditionModel that was trained on short clips.

    Components as in diffusers' text-to-video pipelines, so ModelScope and zeroscope folders load with
    ``from_pretrained``; the text encoder is CLIP with its tokenizer, or ``longtake.text.SentenceEncoder`` without one.
    """

    _optional_components = ["tokenizer"]
    PRIORS = "longtake.video"
    PARTS = ("longtake.text", "longtake.video.prior")

    def __init__(self, vae: Any, text_encoder: Any, unet: Any, scheduler: Any, tokenizer: Any = None) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)

    # ------------------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_prior(
        cls,
        name: str | Path = DEFAULT_PRIOR,
        *,
        dtype: torch.dtype = torch.float32,
        base: str | None = None,
        length: int | None = None,
    ) -> Any:
        """Load a shipped prior, a local folder or a Hub id; a bare VideoCrafter2 UNet borrows the rest from ``base``.

        A folder with a video transformer gives a ``TransformerVideoPipeline``; length: its training length in latent
        frames, where no preset knows it.

        Raises UserError when the weights are missing, damaged or of another kind.
        """
        from longtake.video.convert import find_base, is_bare_unet, is_transformer, load_bare_unet
        from longtake.weights import resolve

        folder = resolve(str(name), kind="video prior", priors_package="longtake.video")
        if is_bare_unet(folder):
            whole = load_prior(cls, find_base(base, str(name)), "video prior", dtype=dtype, parts=("unet", "vae"))
            whole.register_modules(unet=load_bare_unet(folder, dtype))
            return whole
        if is_transformer(folder):
            return cls._of_folder(folder, str(name), dtype, length)
        if not (folder / "model_index.json").exists():
            raise UserError(f"{folder} is no video prior: it has neither model_index.json nor a UNet's config.json")
        return load_prior(cls, folder, "video prior", dtype=dtype, parts=("unet", "vae"))

    @classmethod
    def from_pretrained(cls, name: Any, **settings: Any) -> Any:
        """As diffusers' (dtype=, torch_dtype=, variant=, ...), also by the name of a shipped prior; what has a video
        transformer is loaded by its stock pipeline and gives a ``TransformerVideoPipeline``, as ``from_prior`` does.

        length: training length in latent frames of such a model, where no preset knows it. Raises UserError for a
        folder or repository that is not there, or does not load as what it says it is.
        """
        from longtake.video.convert import has_transformer
        from longtake.video.dit.presets import PRESETS

        length = settings.pop("length", None)
        found = cls._found(name, settings)
        if not has_transformer(found, settings):
            if length is not None:
                raise UserError(f"length is for video transformers, which {name} is not")
            return super().from_pretrained(name, **settings)
        try:
            stock = DiffusionPipeline.from_pretrained(found, **settings)
        except (SafetensorError, OSError, *WRONG_VALUES) as error:
            raise UserError(f"{name} does not load as a diffusers pipeline: {one_line(error)[:200]}") from error
        return cls.from_pipeline(stock, str(name) if str(name) in PRESETS else None, length=length)

    @classmethod
    def from_pipeline(cls, stock: Any, name: str | None = None, **preset: Any) -> Any:
        """A stock diffusers pipeline as one that makes long films.

        stock: a text-, image- or video-to-video pipeline with a video transformer (Wan, LTX, HunyuanVideo, ...: see
            ``video/dit/records.py``) or a UNet3DConditionModel. Its weights, LoRA, offload and scheduler stay its own.
        name: its repository on the Hub, where it was loaded from a folder: its preset is found by it.
        preset: fields of the preset to name, as length (training length in latent frames) or fps.
        Raises UserError for a pipeline with neither.
        """
        if getattr(stock, "transformer", None) is not None:
            from longtake.video.dit.pipeline import TransformerVideoPipeline

            return TransformerVideoPipeline.of(stock, name, **preset)
        parts = ("vae", "text_encoder", "unet", "scheduler")
        if not all(hasattr(stock, part) for part in parts):
            raise UserError(f"{type(stock).__name__} has neither a video transformer nor {', '.join(parts)}")
        return cls(**{part: getattr(stock, part) for part in parts}, tokenizer=getattr(stock, "tokenizer", None))

    @classmethod
    def _of_folder(cls, folder: Path, name: str, dtype: torch.dtype, length: int | None) -> Any:
        from longtake.video.dit.pipeline import TransformerVideoPipeline
        from longtake.video.dit.presets import PRESETS

        known = name if name in PRESETS else None
        return TransformerVideoPipeline.from_folder(folder, dtype=dtype, name=known, length=length)

    def context(
        self, latents: torch.Tensor | VideoOutput, *, frames: int | None = None, redo: tuple[int, int] | None = None,
        before: str | None = None,
    ) -> Context:  # fmt: skip
        """What an earlier run, its output or latents (F, c, h, w), is asked for: ``frames`` more, or the frames
        ``redo`` (start, stop) anew."""
        known = latents_of(latents)
        if (frames is None) == (redo is None):
            raise UserError("say frames, how many more, or redo, which ones anew")
        if redo is not None:
            return Context.redo(known, *redo)
        assert frames is not None
        return Context.extend(known, frames, before)

    # ------------------------------------------------------------------------------------------------------ the call

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states (len(prompts), T, D) float32, each prompt on its own."""
        if self.tokenizer is None:
            return self.text_encoder.encode(list(prompts)).to(self.unet.device, self.unet.dtype)
        rows = []
        for prompt in prompts:
            tokens = self.tokenizer(
                [prompt],
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                rows.append(self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0][0])
        return torch.stack(rows).to(self.unet.device, self.unet.dtype)

    @property
    def _windows_of_its_own(self) -> bool:
        """AnimateDiff's UNet sees the whole video, or FreeNoise's windows where they are switched on."""
        return type(self.unet).__name__ == "UNetMotionModel"

    def free_noise(self, windows: tuple[int, int] | None) -> None:
        """FreeNoise on, in windows of (frames, frames apart), or off (None): AnimateDiff beyond its positions, and over
        any number of ranks. Raises UserError for another model and for windows that it cannot count."""
        switch(self.unet, windows)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(c, h, w) of one frame; sizes in pixels must be multiples of the latent grid's step times the UNet's."""
        step = 8 * 2 ** (len(self.unet.config.block_out_channels) - 1)
        side = self.unet.config.sample_size
        grid = (side, side) if isinstance(side, int) else tuple(side or (8, 8))
        height, width = height or 8 * grid[0], width or 8 * grid[1]
        if height % step or width % step or min(height, width) < step:
            raise UserError(f"height and width must be multiples of {step}, got {height} and {width}")
        return int(self.unet.config.in_channels), height // 8, width // 8

    def check_inputs(
        self,
        timeline: Timeline,
        context: Context,
        *,
        height: int | None,
        width: int | None,
        scope: Scope | None,
        span: range | None = None,
        sizes: Sequence[int] | None = None,
        world: int = 1,
    ) -> tuple[tuple[int, int, int], Partition]:
        """Shape (c, h, w) of a frame's latents, and how the frames in ``span`` are cut over ranks. Raises UserError for
        what cannot be made."""
        check_scheduler(self.scheduler)
        shape = self.latent_shape(height, width)
        span = context.window() if span is None else span
        new = context.stop - context.start
        partition = check_frames(len(span), world, scope, sizes, new=new)
        timeline.validate(new)
        if context.latents is not None and tuple(context.latents.shape[1:]) != shape:
            raise UserError(
                f"the earlier run has latents {tuple(context.latents.shape[1:])} a frame, this prior {shape}"
            )
        return shape, partition

    def __call__(
        self,
        prompt: str | Timeline | Sequence[str | Timeline] | None = None,
        frames: int | None = None,
        *,
        num_frames: int | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        generator: Any = None,
        num_inference_steps: int = 16,
        guidance_scale: float = 3.0,
        negative_prompt: str | None = "",
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        fps: float = 12.0,
        height: int | None = None,
        width: int | None = None,
        scope: Scope | str | None = "auto",
        strategy: str = "auto",
        mode: str = "exact",
        initial_noise: InitialNoise | str = InitialNoise.INDEPENDENT,
        context: Context | None = None,
        context_frames: int = CONTEXT_FRAMES,
        chunk_frames: int | None = None,
        sizes: Sequence[int] | None = None,
        ranks: Ranks | None = None,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_INPUTS,
        output_type: str = "film",
        return_dict: bool = True,
    ) -> Any:
        """Make a video, or the frames that ``context`` asks for.

        prompt: text, a Timeline (as text too: "0s: ... | 4s: ..."), or a list of them: one video each, the n-th with
        seed + n. frames (240), num_frames or seconds at ``fps``: how long. seed (0), or a torch.Generator's.
        guidance_scale: classifier-free guidance, 1 switches it off. prompt_embeds, negative_prompt_embeds: text states
        (1, T, D) in place of the prompts'. scope: what a frame attends to; "auto" is ``default_scope`` (None for
        AnimateDiff), None is every frame. sizes: frames of each rank (default: even). initial_noise: see
        ``InitialNoise``. chunk_frames: spatial
        layers at a time (default: chosen by length). journal: an opened journal; the run goes on from its newest
        complete step. ranks: default the run this process is in. callback_on_step_end(pipe, step, timestep, tensors):
        tensors are "latents" and "clean" of this rank (n, c, h, w), step counts from 0; see ``watcher``.
        output_type: "film" gives a ``VideoOutput`` with frames uint8 (F, H, W, 3) on rank 0 (empty elsewhere); "stream"
        one with chunks, to be read on every rank; "latent" one with latents only (F, c, h, w) float32, which every
        other kind has too, on every rank. "np", "pt" and "pil" give a ``StockVideo``, with ``frames`` as diffusers has
        them. return_dict: False gives (frames,).
        Raises UserError for settings that do not go together, before anything is computed.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; given {output_type!r}")
        if prompt is None and prompt_embeds is None:
            raise UserError("a prompt is needed, or prompt_embeds in its place")
        self.watcher(None, callback_on_step_end_tensor_inputs)
        frames = frames_of(frames, num_frames, seconds, fps) or FRAMES
        settings: dict[str, Any] = {
            "frames": frames,
            "num_inference_steps": steps_of(num_inference_steps),
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt or "",
            "embeds": (prompt_embeds, negative_prompt_embeds),
            "fps": fps,
            "height": height,
            "width": width,
            "scope": scope,
            "strategy": strategy,
            "mode": mode,
            "initial_noise": initial_noise,
            "context": context,
            "context_frames": context_frames,
            "chunk_frames": chunk_frames,
            "sizes": sizes,
            "ranks": ranks,
            "journal": journal,
            "checkpoint_every": checkpoint_every,
            "on_step": self.watcher(callback_on_step_end, callback_on_step_end_tensor_inputs),
            "output_type": "film" if output_type in STOCK_TYPES else output_type,
        }
        self.begin()
        result: Any
        if prompt is None or isinstance(prompt, (str, Timeline)) or not isinstance(prompt, (list, tuple)):
            one = self._one(prompt, seed=seed_of(seed, generator), **settings)  # type: ignore[arg-type]
            result = stock_video([one], output_type) if output_type in STOCK_TYPES else one
        else:
            made = self._batch(prompt, seed, generator, settings)
            result = stock_video(made, output_type) if output_type in STOCK_TYPES else made
        if return_dict:
            return result
        return ([output.frames for output in result] if isinstance(result, list) else result.frames,)

    def _batch(
        self, prompts: Sequence[Any], seed: int | None, generator: Any, settings: dict[str, Any]
    ) -> list[VideoOutput]:
        """One video a prompt, one after the other."""
        if not prompts:
            raise UserError("the list of prompts is empty")
        for given, name in ((settings["journal"], "journal"), (settings["context"], "context")):
            if given is not None:
                raise UserError(f"a {name} belongs to one video: give one prompt, not a list")
        if settings["embeds"] != (None, None):
            raise UserError("prompt_embeds stand in place of one prompt, not of a list")
        if isinstance(generator, (list, tuple)):
            if len(generator) != len(prompts):
                raise UserError(f"{len(prompts)} prompts need as many generators; given {len(generator)}")
            if seed is not None:
                raise UserError("seed and generator both name the run's noise: give one of them")
            seeds = [seed_of(None, one) for one in generator]
        else:
            first = seed_of(seed, generator)
            seeds = [(first + number) % 2**64 for number in range(len(prompts))]
        made = []
        for prompt, its_seed in zip(prompts, seeds, strict=True):
            made.append(self._one(prompt, seed=its_seed, **settings))
            if self.interrupt:
                break
        return made

    @torch.no_grad()
    def _one(
        self,
        prompt: str | Timeline | None,
        *,
        frames: int,
        seed: int,
        num_inference_steps: int,
        guidance_scale: float,
        negative_prompt: str,
        embeds: tuple[torch.Tensor | None, torch.Tensor | None],
        fps: float,
        height: int | None,
        width: int | None,
        scope: Scope | str | None,
        strategy: str,
        mode: str,
        initial_noise: InitialNoise | str,
        context: Context | None,
        context_frames: int,
        chunk_frames: int | None,
        sizes: Sequence[int] | None,
        ranks: Ranks | None,
        journal: Journal | None,
        checkpoint_every: int,
        on_step: OnStep | None,
        output_type: str,
    ) -> VideoOutput:
        """One video; arguments as in ``__call__``."""
        started = time.monotonic()
        ranks = ranks or current() or Ranks.single(self.unet.device, self.unet.dtype)
        timeline = as_timeline("given as embeddings" if prompt is None else prompt, fps)
        context = context or Context.new(frames)
        if initial_noise not in list(InitialNoise):
            raise UserError(f"initial_noise must be one of {', '.join(InitialNoise)}; given {initial_noise!r}")
        span = context.window(context_frames)
        if isinstance(scope, str):
            if scope != "auto":
                raise UserError(f"scope must be a Scope, 'auto' or None; given {scope!r}")
            scope = None if self._windows_of_its_own else default_scope(len(span))
        shape, partition = self.check_inputs(
            timeline, context, height=height, width=width, scope=scope, span=span, sizes=sizes, world=ranks.world
        )

        mine = partition.range(ranks.rank)
        numbers = range(span.start + mine.start, span.start + mine.stop)
        state = Denoising.of(
            self._initial(numbers, len(span), seed, shape, InitialNoise(initial_noise)).to(ranks.device),
            numbers,
            seed,
            offset=span.start,
            known=context.known(numbers),
        )
        if chunk_frames is None and mode == "exact":
            chunk_frames = self._chunk(len(mine), shape, ranks.device, 1 if guidance_scale == 1.0 else 2)
        with parallelize(
            self.unet,
            partition,
            scope,
            # a run of one process inside a distributed one (a job of a batch) has nobody to talk to
            transport=Transport(ranks.group) if ranks.world > 1 else DryTransport(0, 1),
            strategy="halo" if chunk_frames and strategy == "auto" else strategy,
            mode=mode,
            chunk_frames=chunk_frames,
        ) as handle:
            predict = self._predictor(handle, timeline, negative_prompt, embeds, guidance_scale, span, context)
            bar = self.progress_bar(total=num_inference_steps) if ranks.is_main else None
            final = denoise(
                self.scheduler,
                state,
                predict,
                steps=num_inference_steps,
                ranks=ranks,
                journal=journal,
                checkpoint_every=checkpoint_every,
                progress=bar,
                on_step=on_step,
                should_stop=lambda: self.interrupt,
            )["latents"]
            if bar is not None:
                bar.close()
            info: dict[str, Any] = {"run": handle.explain(), "traffic": handle.counter.as_dict()}
        whole = gather_latents(final, len(span), ranks)
        if not torch.isfinite(whole).all():
            raise FloatingPointError(
                "the run ended with NaN or infinity in its latents; the journal keeps the last step"
            )
        whole = context.merge(whole, span)
        info.update(
            frames=len(whole),
            seed=seed,
            steps=state.step,
            completed=not state.stopped,
            seconds=round(time.monotonic() - started, 2),
        )
        return self.output(whole, fps, ranks, info, output_type)

    # ------------------------------------------------------------------------------------------------------ its parts

    def _chunk(self, frames: int, shape: tuple[int, int, int], device: torch.device, batch: int) -> int | None:
        """Frames of the spatial layers at a time: what suits a CPU's caches, elsewhere what memory holds."""
        if device.type == "cpu":
            return CHUNK_FRAMES if frames > CHUNK_ABOVE else None
        from longtake.video.chunked import chunk_that_fits

        return chunk_that_fits(self.unet, frames, shape[1], shape[2], batch, device)

    def _initial(
        self, numbers: range, total: int, seed: int, shape: tuple[int, int, int], kind: InitialNoise
    ) -> torch.Tensor:
        source: Sequence[int] = numbers
        if kind is InitialNoise.FREENOISE:
            index = freenoise_index(seed, max(total, numbers.stop), *(windows_of(self.unet) or ()))
            source = [int(index[number]) for number in numbers]
        return noise(seed, 0, source, 0, shape)

    def _predictor(
        self,
        handle: Handle,
        timeline: Timeline,
        negative: str,
        embeds: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: float,
        span: range,
        context: Context,
    ) -> Predict:
        """The guided prediction of this rank's frames: (n, c, h, w), t -> (n, c, h, w)."""
        given, given_empty = (None if one is None else self._states(one) for one in embeds)
        if given is not None and len(timeline.prompts) > 1:
            raise UserError("prompt_embeds stand in place of one prompt, not of a Timeline of several")
        new = context.stop - context.start
        if context.before is not None:
            if given is not None:
                raise UserError("prompt_embeds cannot fade out of an earlier prompt: give the context no 'before'")
            timeline = timeline.after(context.before, new)
        states = self.encode_prompts(timeline.prompts) if given is None else given
        empty = self.encode_prompts([negative]) if given_empty is None else given_empty
        if states.shape[1:] != empty.shape[1:]:
            raise UserError(
                f"prompt_embeds {tuple(states.shape)} and negative_prompt_embeds {tuple(empty.shape)} do not fit"
            )
        guided = guidance != 1.0

        def text_of(frames: range) -> torch.Tensor:
            ours = [max(0, frame + span.start - context.start) for frame in frames]
            weights = torch.from_numpy(timeline.weight_matrix(ours, new))
            blended = torch.einsum("fp,ptd->ftd", weights.to(states), states)
            return torch.stack([empty.expand_as(blended), blended] if guided else [blended])

        handle.set_text(text_of if len(timeline.prompts) > 1 else None)
        hidden = torch.cat([empty, states[:1]]) if guided else states[:1]

        def predict(samples: Tensors, t: Any, step: int) -> Tensors:
            sample = samples["latents"]
            video = sample.to(self.unet.dtype).transpose(0, 1).unsqueeze(0)
            video = video.expand(len(hidden), -1, -1, -1, -1)
            output = self.unet(video, t, encoder_hidden_states=hidden).sample.to(sample.dtype)
            result = output[-1] if not guided else output[0] + guidance * (output[1] - output[0])
            return {"latents": result.transpose(0, 1).contiguous()}

        return predict

    def _states(self, embeds: torch.Tensor) -> torch.Tensor:
        """Text states (1, T, D) that a caller gave, checked."""
        width = int(self.unet.config.cross_attention_dim)
        if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3 or embeds.shape[0] != 1 or embeds.shape[2] != width:
            shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
            raise UserError(f"prompt_embeds are text states (1, T, {width}); given {shape}")
        return embeds.to(self.unet.device, self.unet.dtype)

    def output(
        self, latents: torch.Tensor, fps: float, ranks: Ranks | None, info: dict[str, Any], kind: str
    ) -> VideoOutput:
        """The result from clean latents (F, c, h, w); kind: as ``output_type`` of the call."""
        ranks = ranks or Ranks.single(self.unet.device, self.unet.dtype)
        height, width = (8 * side for side in latents.shape[2:])
        nothing = np.empty((0, height, width, 3), np.uint8)
        if kind == "latent":
            return VideoOutput(nothing, fps, latents, info=info)
        stream = stream_frames(self.vae, latents, ranks)
        if kind == "stream":
            return VideoOutput(stream, fps, latents, len(latents) if ranks.is_main else None, info=info)
        chunks = list(stream)
        return VideoOutput(np.concatenate(chunks) if chunks else nothing, fps, latents, info=info)
