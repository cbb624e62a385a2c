"""LongMotionPipeline: minutes of human motion from a short-clip prior, the same from one process or many.

    pipe = LongMotionPipeline.from_prior(FOLDER)
    pipe("0: a person walks | 80: waves | 140: runs", frames=220, seed=1).save("take.npz")

The way of a prompt: Timeline -> rows with handshakes (Plan) -> text features -> noise per frame -> a denoising loop
over one canvas (DoubleTake's first take) -> second take, if asked for -> features, joints, captions.
Legend: N frames of the run, n of this rank, B rows, J features, E text features.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from longtake.denoising import Denoising, Known, Tensors, denoise
from longtake.distributed import Ranks, check_same, current
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.kernels.partition import Partition
from longtake.motion.canvas import Canvas
from longtake.motion.control import Control, mask_features, root_path, smooth_path
from longtake.motion.doubletake import CHUNK_ROWS, Fade, Mode, Plan, take_one_rows
from longtake.motion.model import Padding
from longtake.motion.outputs import MotionOutput
from longtake.motion.representation import RotationFeatures, z_up_to_y_up
from longtake.motion.rows import HANDSHAKE, Hook, Run, plan_of
from longtake.motion.sampling import GUIDANCE, Schedule, TextDenoiser, betas
from longtake.motion.space import MotionSpace
from longtake.motion.take2 import Preset, grouped, held_share, remake, sandwiches, write_back
from longtake.noise import noise
from longtake.pipeline import LongTakePipeline
from longtake.timeline import Timeline

BLEND = 10
LAST_SECONDS = 4.0  # length of the last prompt when no length is given

# A frame's noise is named by its number. Frames that are not the canvas's own lie in ranges of numbers of their own.
_ROWS, _SANDWICHES = 1 << 48, 2 << 48
_STRIDE = 1 << 24


class LongMotionPipeline(LongTakePipeline):
    """Text to long motion with an MDM that was trained on short clips.

    model: MDM. scheduler: diffusers' DDPMScheduler or DDIMScheduler with prediction_type "sample". text_encoder: CLIP
    with projection and its tokenizer, or ``longtake.text.SentenceEncoder`` without one. space: MotionSpace.
    """

    PRIORS = "longtake.motion"
    PARTS = ("longtake.text", "longtake.motion.model", "longtake.motion.space")
    _optional_components = ["tokenizer", "text_encoder"]
    model_cpu_offload_seq = "text_encoder->model"

    def __init__(self, model: Any, scheduler: Any, space: Any, text_encoder: Any = None, tokenizer: Any = None) -> None:
        super().__init__()
        self.register_modules(
            model=model, scheduler=scheduler, space=space, text_encoder=text_encoder, tokenizer=tokenizer
        )

    # ------------------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_prior(cls, name: str | Path, *, dtype: torch.dtype = torch.float32) -> LongMotionPipeline:
        """Load a shipped prior, a local folder or a Hub id. Raises UserError when it is missing, damaged or no motion
        prior."""
        from longtake.weights import resolve

        folder = resolve(str(name), kind="motion prior", priors_package="longtake.motion")
        if not (folder / "model_index.json").exists():
            raise UserError(f"{folder} is no motion prior: it has no model_index.json")
        # diffusers instantiates a component of ours only when its module has been imported
        import longtake.text  # noqa: F401
        from safetensors import SafetensorError

        try:
            pipe = cls.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except (SafetensorError, OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"the motion prior in {folder} cannot be loaded: {error}") from error
        pipe.model.eval()
        return pipe

    @classmethod
    def from_public(
        cls,
        checkpoint: str | Path,
        *,
        mean: str | Path,
        std: str | Path,
        clip: str | Path | None = "openai/clip-vit-base-patch32",
        train_steps: int = 1000,
        fps: float = 20.0,
        clip_context: int = 22,
        average: bool = True,
    ) -> LongMotionPipeline:
        """A public MDM checkpoint (.pt) with its data set's Mean.npy and Std.npy.

        clip: folder or Hub id of CLIP ViT-B/32; None: texts come as features only. train_steps: 1000, or 50 for the
        checkpoints trained with 50. clip_context: 22 for HumanML3D and KIT, 77 for BABEL.
        """
        from diffusers import DDPMScheduler
        from longtake.motion.convert import load_motion_model
        from longtake.weights import resolve

        model = load_motion_model(checkpoint, average=average)
        scheduler = DDPMScheduler(
            num_train_timesteps=train_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample=False,
            timestep_spacing="trailing",
        )
        encoder = tokenizer = None
        if clip is not None:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection

            folder = resolve(clip, kind="CLIP text encoder")
            encoder = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        space = MotionSpace.from_numpy(mean, std, fps=fps, clip_context=clip_context)
        return cls(model, scheduler, space, encoder, tokenizer)

    # ------------------------------------------------------------------------------------------------------ texts

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text features (len(prompts), E) float32, each prompt on its own."""
        if self.text_encoder is None:
            raise UserError("this pipeline has no text encoder: give it the prompts' features (text=...)")
        if self.tokenizer is None:
            return self.text_encoder.encode(list(prompts))[:, 0].float()
        context, most = int(self.space.config.clip_context), int(self.tokenizer.model_max_length)
        rows = []
        for prompt in prompts:
            cut = self.tokenizer([prompt], truncation=True, max_length=min(context, most), return_tensors="pt")
            ids = cut.input_ids
            ids = torch.nn.functional.pad(ids, (0, most - ids.shape[1]))  # zeros, as the public nets were trained
            rows.append(self.text_encoder(input_ids=ids.to(self.text_encoder.device)).text_embeds[0].float())
        return torch.stack(rows)

    # ------------------------------------------------------------------------------------------------------ the call

    def prepare(
        self,
        prompt: str | Timeline,
        frames: int | None = None,
        *,
        seed: int = 0,
        item: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float = GUIDANCE,
        handshake: int = HANDSHAKE,
        fade: Fade | str = Fade.RELEASED,
        chunk_rows: int = CHUNK_ROWS,
        control: Control | None = None,
        hooks: Sequence[Hook] = (),
        text: torch.Tensor | None = None,
    ) -> tuple[Run, list[str]]:
        """The run that a call would make, and the prompt of each row; arguments as in ``__call__``."""
        config = self.space.config
        timeline = prompt if isinstance(prompt, Timeline) else Timeline.parse(prompt, fps=config.fps)
        if frames is None:
            frames = timeline.starts[-1][0] + round(LAST_SECONDS * config.fps)
        if frames < 2:
            raise UserError(f"a motion needs at least 2 frames, got {frames}")
        steps = num_inference_steps or int(self.scheduler.config.num_train_timesteps)
        plan, prompts = plan_of(timeline, frames, handshake=handshake, longest=config.longest_row, fade=fade)
        short = sorted({length for length in plan.lengths if length < config.shortest_row})
        if short:
            warnings.warn(
                f"rows of {short} frames are shorter than the {config.shortest_row} this prior was trained on; "
                "give such prompts more time or use a longer handshake",
                stacklevel=3,
            )
        different = list(dict.fromkeys(prompts))
        if text is None and guidance_scale != 0.0:
            text = self.encode_prompts(different)
        if text is not None and len(text) != len(different):
            raise UserError(f"{len(different)} different prompts need as many text features; given {len(text)}")
        rows = None if text is None else text[[different.index(name) for name in prompts]].to(self.model.device)
        net = TextDenoiser(
            self.model,
            rows,
            guidance_scale,
            lengths=plan.lengths,
            transition=plan.transition_flags() if self.model.config.transition_embedding else None,
        )
        if control is not None and control.given.shape != (plan.total, self.model.config.features):
            raise UserError(
                f"a control for this run is ({plan.total}, {self.model.config.features}); "
                f"given {tuple(control.given.shape)}"
            )
        mixed = self.model.padding is Padding.MASK
        width = int(self.model.config.features)
        run = Run(plan, net, steps, seed, item, chunk_rows, mixed, width, self.model.device, control, tuple(hooks))
        return run, prompts

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Timeline,
        frames: int | None = None,
        *,
        seed: int = 0,
        item: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float = GUIDANCE,
        handshake: int = HANDSHAKE,
        fade: Fade | str = Fade.RELEASED,
        mode: Mode | str = Mode.CANVAS,
        take2: Preset | str | None = None,
        blend: int = BLEND,
        chunk_rows: int = CHUNK_ROWS,
        control: Control | None = None,
        hooks: Sequence[Hook] = (),
        text: torch.Tensor | None = None,
        ranks: Ranks | None = None,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
    ) -> MotionOutput:
        """Make a motion of ``frames`` frames (default: the last prompt gets 4 s).

        prompt: text or a Timeline, in frames at the prior's rate (or with seconds: "4s: ..."). num_inference_steps:
        default all the scheduler was trained on. guidance_scale: 0 without text, 1 without guidance.
        handshake: frames neighbours share. mode: "canvas", or "rows" as released (one process, no journal, no
        control). take2: second take, "release" or "paper", with ``blend`` frames. chunk_rows: rows of one call of the
        net; memory grows with it. control: features held, (N, J) normalised. hooks: each takes and returns the clean
        estimate (N, J) before a step (one process). text: features of the different prompts (P, E) in place of the
        encoder's.
        journal: an opened journal; the run goes on from its newest complete step. ranks: default the run this process
        is in. callback_on_step_end(pipe, step, timestep, {"latents", "clean"}): of this rank, (n, J).
        Every rank gets the whole result, the same for any number of ranks. Raises UserError before it computes.
        """
        started = time.monotonic()
        self.begin()
        ranks = ranks or current() or Ranks.single(self.model.device, self.model.dtype)
        engine: Mode = _choice(Mode, mode, "mode")
        preset = None if take2 is None else _choice(Preset, take2, "take2")
        run, prompts = self.prepare(
            prompt,
            frames,
            seed=seed,
            item=item,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            handshake=handshake,
            fade=fade,
            chunk_rows=chunk_rows,
            control=control,
            hooks=hooks,
            text=text,
        )
        self._refuse(run, engine, preset, blend, ranks, journal)
        check_same((run.plan.lengths, run.plan.handshakes, run.seed, run.steps, prompts), "the run", ranks)
        if engine is Mode.ROWS:
            whole, done, stopped = self._take_one_rows(run), run.steps, False
        else:
            whole, state = self.solve(run, ranks, journal, checkpoint_every, callback_on_step_end)
            done, stopped = state.step, state.stopped
        if preset is not None and not stopped and run.plan.rows > 1:
            whole = self._take_two(run, whole, preset, blend, ranks, engine)
        if not torch.isfinite(whole).all():
            raise FloatingPointError("the run ended with NaN or infinity; the journal keeps the last step")
        info = {
            "frames": len(whole),
            "rows": list(run.plan.lengths),
            "handshakes": list(run.plan.handshakes),
            "seed": seed,
            "steps": done,
            "mode": str(engine),
            "take2": None if preset is None else str(preset),
            "completed": not stopped,
            "seconds": round(time.monotonic() - started, 2),
        }
        return self.output(run.plan, prompts, whole, info)

    def pair(self, prompt: str | Timeline, frames: int | None = None, **settings: Any) -> MotionOutput:
        """Two people in one world; both hear the same prompts: see ``pair_pipeline.generate_pair``."""
        from longtake.motion.pair.pipeline import generate_pair

        return generate_pair(self, prompt, frames, **settings)

    def path_control(self, points: Sequence[tuple[float, float]], frames: int) -> Control:
        """A control that walks along floor points (n, 2), metres x and z, at even speed; ``prompt`` says how it looks.
        Corners are rounded by a spline through the points (a body does not turn in one frame).

        Inpainting, as this is for priors that were not fine-tuned for control. Raises UserError for a form without a
        root in 263 or 251 features, and for points that cannot be walked.
        """
        form = self.space.form
        if isinstance(form, RotationFeatures):
            raise UserError(f"{form.name} has no root path to hold: use a prior in HumanML3D's or KIT's form")
        given = torch.zeros(frames, form.width)
        try:
            given[:, :3] = root_path(smooth_path(torch.tensor(points)), frames)
        except ValueError as error:
            raise UserError(str(error)) from error
        return Control(mask_features("root_horizontal", form), self.space.normalize(given), quiet=False)

    # ------------------------------------------------------------------------------------------------------ its parts

    def solve(
        self,
        run: Run,
        ranks: Ranks,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        callback: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
        *,
        first_frame: int = 0,
        known: Known | None = None,
        quiet: bool = False,
    ) -> tuple[torch.Tensor, Denoising]:
        """First take on a canvas: the whole (N, J) on every rank, and this rank's state.

        first_frame: number of the run's frame 0, which names the noise. known: frames held, in this rank's order.
        """
        canvas = Canvas(run.plan, run.denoise, ranks, chunk_rows=run.chunk_rows, mixed=run.mixed)
        mine = canvas.frames
        numbers = range(first_frame + mine.start, first_frame + mine.stop)
        start = noise(run.seed, run.item, numbers, 0, (run.width,))
        state = Denoising.of(start.to(run.device), numbers, run.seed, run.item, offset=first_frame, known=known)
        held = None if run.control is None else _part(run.control, mine)

        def predict(samples: Tensors, t: Any, step: int) -> Tensors:
            sample = samples["latents"]
            if held is not None:
                sample.copy_(held.settle(sample, float(self.scheduler.alphas_cumprod[int(t)])))
            clean = canvas.estimate(sample.to(self.model.dtype), int(t)).to(sample.dtype)
            for hook in run.hooks:
                clean = hook(clean, step)
            return {"latents": clean if held is None else held.adjust(clean)}

        bar = self.progress_bar(total=run.steps) if ranks.is_main and not quiet else None
        final = denoise(
            self.scheduler,
            state,
            predict,
            steps=run.steps,
            ranks=ranks,
            journal=journal,
            checkpoint_every=checkpoint_every,
            progress=bar,
            on_step=self.watcher(callback),
            should_stop=lambda: self.interrupt,
        )["latents"]
        if bar is not None:
            bar.close()
        if held is not None:
            final = held.adjust(final)
        return canvas.gather(final.float()), state

    def schedule(self, steps: int) -> Schedule:
        """The scheduler's steps as float64 tables, for the engines that inject their noise."""
        eta = Schedule.from_scheduler(self.scheduler).eta
        self.scheduler.set_timesteps(steps)
        kind = "cosine" if self.scheduler.config.beta_schedule == "squaredcos_cap_v2" else "linear"
        times = [int(t) for t in self.scheduler.timesteps]
        return Schedule.of_times(betas(int(self.scheduler.config.num_train_timesteps), kind), times, eta)

    def _take_one_rows(self, run: Run) -> torch.Tensor:
        plan = run.plan

        def draw(count: int) -> torch.Tensor:
            rows = [
                noise(run.seed, run.item, _numbers(_ROWS, row, plan.longest), count, (run.width,))
                for row in range(plan.rows)
            ]
            return torch.stack(rows).to(run.device)

        rows = take_one_rows(plan, run.denoise, self.schedule(run.steps), draw, chunk_rows=run.chunk_rows)
        return plan.unfold(rows).float()

    def _take_two(
        self, run: Run, whole: torch.Tensor, preset: Preset, blend: int, ranks: Ranks, mode: Mode
    ) -> torch.Tensor:
        plan, net = run.plan, run.denoise
        every = sandwiches(plan)
        # nets that attend to padding get the released padding in the released mode, none otherwise
        pad_to = None
        if mode is Mode.ROWS and not run.mixed:
            pad_to = max(part.length for part in every)

        def draw(count: int, pairs: Sequence[int]) -> torch.Tensor:
            frames = pad_to or max(every[pair].length for pair in pairs)
            parts = [
                noise(run.seed, run.item, _numbers(_SANDWICHES, pair, frames), count, (run.width,)) for pair in pairs
            ]
            return torch.stack(parts).to(run.device)

        groups = grouped(every, range(len(every)), run.chunk_rows, run.mixed or pad_to is not None)
        mine = [pair for index in Partition.even(len(groups), ranks.world).range(ranks.rank) for pair in groups[index]]
        bare = net.unconditional([part.length for part in every])  # type: ignore[attr-defined]
        made = remake(
            plan,
            whole,
            bare,
            self.schedule(run.steps),
            draw,
            preset=preset,
            blend=blend,
            pairs=mine,
            chunk_rows=run.chunk_rows,
            mixed=run.mixed,
            pad_to=pad_to,
        )
        together: dict[int, torch.Tensor] = {}
        for share in ranks.gather_object({pair: part.cpu() for pair, part in made.items()}):
            together.update({pair: part.to(whole) for pair, part in share.items()})
        result = write_back(plan, whole, together, preset, blend)
        return result if run.control is None else run.control.adjust(result)

    def _refuse(
        self, run: Run, mode: Mode, preset: Preset | None, blend: int, ranks: Ranks, journal: Journal | None
    ) -> None:
        if mode is Mode.ROWS:
            for given, what in (
                (ranks.world > 1, "several ranks"),
                (journal is not None, "a journal"),
                (run.control is not None or run.hooks, "control or hooks"),
            ):
                if given:
                    raise UserError(f"mode 'rows' repeats the released sampler and knows no {what}; use mode 'canvas'")
        if run.hooks and ranks.world > 1:
            raise UserError("hooks see the whole motion: run them in one process")
        if (mode is Mode.ROWS or preset is not None) and type(self.scheduler).__name__ not in (
            "DDPMScheduler",
            "DDIMScheduler",
        ):
            raise UserError("mode 'rows' and second takes need a DDPMScheduler or DDIMScheduler")
        if preset is not None:
            for part in sandwiches(run.plan):
                try:
                    held_share(part, preset, blend)
                except ValueError as error:
                    raise UserError(f"no second take: {error}") from error

    def output(self, plan: Plan, prompts: Sequence[str], whole: torch.Tensor, info: dict[str, Any]) -> MotionOutput:
        """The result from normalised features (N, J) on a plan's rows."""
        form = self.space.form
        features = self.space.denormalize(whole)
        owners = plan.row_of_frames()
        if isinstance(form, RotationFeatures) and not bool(self.space.offsets.any()):
            joints = torch.zeros(len(whole), 0, 3)
        else:
            joints = self.space.joints(whole)
            if isinstance(form, RotationFeatures):
                joints = z_up_to_y_up(joints)
        captions = [prompts[row] for row in owners]
        return MotionOutput(
            features=features.cpu().numpy(),
            joints=joints.cpu().numpy(),
            captions=captions,
            fps=float(self.space.config.fps),
            boundaries=[i for i in range(1, len(captions)) if owners[i] != owners[i - 1]],
            chains=() if isinstance(form, RotationFeatures) else form.skeleton.chains,
            info=info,
        )


def _numbers(kind: int, index: int, frames: int) -> range:
    start = kind + index * _STRIDE
    return range(start, start + frames)


def _part(control: Control, frames: range) -> Control:
    whole = control.mask.expand(control.given.shape)
    place = slice(frames.start, frames.stop)
    return Control(whole[place], control.given[place], control.quiet)


def _choice(kind: Any, value: Any, what: str) -> Any:
    if value not in list(kind):
        raise UserError(f"{what} must be one of {', '.join(kind)}; given {value!r}")
    return kind(value)
