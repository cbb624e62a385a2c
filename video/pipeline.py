"""LongVideoPipeline: minutes of video from a 16-frame model, the same from one process or many.

    pipe = LongVideoPipeline.from_prior("emoji-small")
    pipe("person running", frames=240, seed=1).save("running.mp4")

The way of a prompt: Timeline -> text states per frame -> noise per frame -> a denoising loop in which the
parallelized UNet
sees this rank's frames -> chunks of frames in order (Video-Infinity, arXiv 2406.16260; noise option: FreeNoise,
2310.15169). Legend: F frames of the run, n of this rank, c h w latent channels and grid, T text tokens, D text width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.denoising import Denoising, Known, Predict, Tensors, denoise
from longtake.distributed import Ranks, current
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport, Transport
from longtake.noise import noise
from longtake.outputs import VideoOutput
from longtake.pipeline import LongTakePipeline
from longtake.timeline import Timeline
from longtake.video.decode import gather_latents, stream_frames
from longtake.video.parallelize import Handle, parallelize
from longtake.video.scope import Scope

if TYPE_CHECKING:
    from longtake.distributed import Ranks as RanksType

DEFAULT_PRIOR = "emoji-small"
CHUNK_ABOVE = 320  # frames on one rank from which the spatial layers run in chunks
CHUNK_FRAMES = 64
CONTEXT_FRAMES = 24  # frozen frames beside new ones: the window on each side and a part of the global set


def default_scope(total: int) -> Scope:
    """The scope of a run of ``total`` frames unless another is asked for: both scopes at every step, W-independent."""
    return Scope(window=min(8, total), global_frames=16, gate="off")


class InitialNoise(StrEnum):
    """Where the run's first noise comes from.

    Members:
        INDEPENDENT: each frame its own.
        FREENOISE: later frames reuse the first 16 frames' noise, shuffled within strides of 4.
    """

    INDEPENDENT = "independent"
    FREENOISE = "freenoise"


@dataclass
class Context:
    """Clean latents (F, c, h, w) of an earlier run that new frames must join.

    start, stop: the frames to make anew, in the numbers of the finished video; all others are kept bit for bit.
    """

    latents: torch.Tensor
    start: int
    stop: int

    @classmethod
    def extend(cls, latents: torch.Tensor, frames: int) -> Context:
        """``frames`` more after the last one."""
        return cls(latents, len(latents), len(latents) + frames)

    @classmethod
    def redo(cls, latents: torch.Tensor, start: int, stop: int) -> Context:
        """The frames start..stop (stop not included) again, the rest fixed."""
        if not 0 <= start < stop <= len(latents):
            raise UserError(f"cannot redo frames {start}:{stop} of a video of {len(latents)} frames")
        if stop - start == len(latents):
            raise UserError("redoing every frame keeps nothing of the run: make a new one instead")
        return cls(latents, start, stop)

    def window(self, context_frames: int) -> range:
        """Frames that the network sees: those to make and up to ``context_frames`` kept ones on each side."""
        return range(
            max(0, self.start - context_frames), min(max(len(self.latents), self.stop), self.stop + context_frames)
        )


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

    PRIORS = "longtake.video"
    PARTS = ("longtake.text", "longtake.video.prior")
    _optional_components = ["tokenizer"]

    def __init__(self, vae: Any, text_encoder: Any, unet: Any, scheduler: Any, tokenizer: Any = None) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)

    # ------------------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_prior(
        cls, name: str | Path = DEFAULT_PRIOR, *, dtype: torch.dtype = torch.float32, base: str | None = None
    ) -> LongVideoPipeline:
        """Load a shipped prior, a local folder or a Hub id; a bare VideoCrafter2 UNet borrows the rest from ``base``.

        Raises UserError when the weights are missing, damaged or of another kind.
        """
        from longtake.video.convert import find_base, is_bare_unet, load_bare_unet
        from longtake.weights import resolve

        folder = resolve(str(name), kind="video prior", priors_package="longtake.video")
        if is_bare_unet(folder):
            whole = _load(cls, find_base(base, str(name)), dtype)
            whole.register_modules(unet=load_bare_unet(folder, dtype))
            return whole
        if not (folder / "model_index.json").exists():
            raise UserError(f"{folder} is no video prior: it has neither model_index.json nor a UNet's config.json")
        return _load(cls, folder, dtype)

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

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(c, h, w) of one frame; sizes in pixels must be multiples of the latent grid's step times the UNet's."""
        step = 8 * 2 ** (len(self.unet.config.block_out_channels) - 1)
        side = self.unet.config.sample_size
        grid = (side, side) if isinstance(side, int) else tuple(side or (8, 8))
        height, width = height or 8 * grid[0], width or 8 * grid[1]
        if height % step or width % step or min(height, width) < step:
            raise UserError(f"height and width must be multiples of {step}, got {height} and {width}")
        return int(self.unet.config.in_channels), height // 8, width // 8

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Timeline,
        frames: int = 240,
        *,
        seed: int = 0,
        num_inference_steps: int = 16,
        guidance_scale: float = 3.0,
        negative_prompt: str = "",
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
        ranks: RanksType | None = None,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
        output_type: str = "np",
    ) -> VideoOutput:
        """Make a video of ``frames`` frames, or the frames that ``context`` asks for.

        prompt: text, or a Timeline in frames of this call. guidance_scale: classifier-free guidance, 1 switches it off.
        scope: what a frame attends to; "auto" is ``default_scope``, None is every frame. sizes: frames of each rank
        (default: even).
        initial_noise: see ``InitialNoise``. chunk_frames: spatial layers at a time (default: chosen by length).
        journal: an opened journal; the run goes on from its newest complete step. ranks: default the run this process
        is in. callback_on_step_end(pipe, step, timestep, {"latents", "clean"}): latents of this rank (n, c, h, w).
        output_type: "np" gives frames uint8 (F, H, W, 3) on rank 0 (empty elsewhere); "stream" chunks, to be read on
        every rank; "latent" latents only. ``VideoOutput.latents`` is always (F, c, h, w) float32, on every rank.
        Raises UserError for settings that do not go together, before anything is computed.
        """
        started = time.monotonic()
        self.begin()
        ranks = ranks or current() or Ranks.single(self.unet.device, self.unet.dtype)
        timeline = prompt if isinstance(prompt, Timeline) else Timeline(((0, prompt),))
        if initial_noise not in list(InitialNoise):
            raise UserError(f"initial_noise must be one of {', '.join(InitialNoise)}; given {initial_noise!r}")
        if output_type not in ("np", "stream", "latent"):
            raise UserError(f"output_type must be np, stream or latent; given {output_type!r}")
        if num_inference_steps < 1:
            raise UserError(f"steps must be at least 1, got {num_inference_steps}")
        shape = self.latent_shape(height, width)
        span = range(frames) if context is None else context.window(context_frames)
        if isinstance(scope, str):
            if scope != "auto":
                raise UserError(f"scope must be a Scope, 'auto' or None; given {scope!r}")
            scope = default_scope(len(span))
        partition = check_frames(len(span), ranks.world, scope, sizes, new=frames if context is None else None)
        timeline.validate(frames if context is None else context.stop - context.start)
        if context is not None and tuple(context.latents.shape[1:]) != shape:
            raise UserError(
                f"the earlier run has latents {tuple(context.latents.shape[1:])} a frame, this prior {shape}"
            )

        mine = partition.range(ranks.rank)
        numbers = range(span.start + mine.start, span.start + mine.stop)
        state = Denoising.of(
            self._initial(numbers, len(span), seed, shape, InitialNoise(initial_noise)).to(ranks.device),
            numbers,
            seed,
            offset=span.start,
            known=None if context is None else _known(context, numbers),
        )
        if chunk_frames is None and len(mine) > CHUNK_ABOVE and mode == "exact":
            chunk_frames = CHUNK_FRAMES
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
            predict = self._predictor(handle, timeline, negative_prompt, guidance_scale, span, context)
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
                on_step=self.watcher(callback_on_step_end),
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
        if context is not None:
            whole = _merge(context, whole, span)
        info.update(
            frames=len(whole),
            seed=seed,
            steps=state.step,
            completed=not state.stopped,
            seconds=round(time.monotonic() - started, 2),
        )
        return self._output(whole, fps, ranks, info, output_type)

    # ------------------------------------------------------------------------------------------------------ its parts

    def _initial(
        self, numbers: range, total: int, seed: int, shape: tuple[int, int, int], kind: InitialNoise
    ) -> torch.Tensor:
        source: Sequence[int] = numbers
        if kind is InitialNoise.FREENOISE:
            index = freenoise_index(seed, numbers.stop if total < numbers.stop else total)
            source = [int(index[number]) for number in numbers]
        return noise(seed, 0, source, 0, shape)

    def _predictor(
        self, handle: Handle, timeline: Timeline, negative: str, guidance: float, span: range, context: Context | None
    ) -> Predict:
        """The guided prediction of this rank's frames: (n, c, h, w), t -> (n, c, h, w)."""
        states = self.encode_prompts(timeline.prompts)
        empty = self.encode_prompts([negative])
        guided = guidance != 1.0
        first = span.start if context is None else context.start

        def text_of(frames: range) -> torch.Tensor:
            weights = torch.from_numpy(timeline.weight_matrix([max(0, frame + span.start - first) for frame in frames]))
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

    def _output(
        self, latents: torch.Tensor, fps: float, ranks: RanksType, info: dict[str, Any], kind: str
    ) -> VideoOutput:
        height, width = (8 * side for side in latents.shape[2:])
        nothing = np.empty((0, height, width, 3), np.uint8)
        if kind == "latent":
            return VideoOutput(nothing, fps, latents, info=info)
        stream = stream_frames(self.vae, latents, ranks)
        if kind == "stream":
            return VideoOutput(stream, fps, latents, len(latents) if ranks.is_main else None, info=info)
        chunks = list(stream)
        return VideoOutput(np.concatenate(chunks) if chunks else nothing, fps, latents, info=info)


def check_frames(
    total: int, world: int, scope: Scope | None, sizes: Sequence[int] | None, new: int | None = None
) -> Partition:
    """The partition of a run's frames, or UserError: none, fewer than ranks, window larger than the video."""
    if new is not None and new < 1:
        raise UserError(f"frames must be at least 1, got {new}")
    if total < world:
        raise UserError(
            f"{total} frames cannot be shared by {world} ranks: use at most {max(total, 1)} ranks or more frames"
        )
    if scope is not None and scope.window > total:
        raise UserError(f"the window of {scope.window} frames on each side is larger than the video of {total} frames")
    if sizes is None:
        return Partition.even(total, world)
    if len(sizes) != world or sum(sizes) != total or min(sizes) < 1:
        raise UserError(f"sizes {list(sizes)} must be {world} positive numbers that add up to {total} frames")
    return Partition.from_sizes(list(sizes))


def _known(context: Context, numbers: range) -> Known:
    mask = torch.tensor([not context.start <= number < context.stop for number in numbers])
    rows = [min(number, len(context.latents) - 1) for number in numbers]
    return Known(mask, context.latents[torch.tensor(rows)])


def _merge(context: Context, made: torch.Tensor, span: range) -> torch.Tensor:
    """The whole video: kept frames bit for bit, the new ones in their place."""
    new = made[context.start - span.start : context.stop - span.start]
    return torch.cat([context.latents[: context.start].float(), new, context.latents[context.stop :].float()])


def _load(cls: type[LongVideoPipeline], folder: Path, dtype: torch.dtype) -> LongVideoPipeline:
    # diffusers instantiates a component of ours only when its module has been imported
    import longtake.text
    import longtake.video.prior  # noqa: F401
    from safetensors import SafetensorError

    try:
        pipe = cls.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (SafetensorError, OSError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"the video prior in {folder} cannot be loaded: {error}") from error
    pipe.unet.eval()
    pipe.vae.eval()
    return pipe
