"""LongMotionPipeline: minutes of human motion from a short-clip prior, the same from one process or many.

    pipe = LongMotionPipeline.from_prior(FOLDER)
    pipe("0: a person walks | 80: waves | 140: runs", frames=220, seed=1).save("take.npz")

The way of a prompt: Timeline -> rows with handshakes (RowPlan) -> text features -> noise per frame -> the one denoising
loop over a canvas of one or two people (DoubleTake's first take) -> second take, if asked for -> features -> joints
without pops, in the world of the path -> captions.
Legend: N frames of the run, n of this rank, B rows, J features, E text features.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.denoising import Denoising, Known, OnStep, denoise
from longtake.distributed import Ranks, check_same, current
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.motion.control import Control
from longtake.motion.first_take import FirstTake, canvas_take, rows_take
from longtake.motion.model import Padding
from longtake.motion.outputs import MotionOutput
from longtake.motion.pace import frames_for, pace_of, prompt_speeds
from longtake.motion.pair.model import ComMDM, decode_canon
from longtake.motion.pair.pipeline import DEFAULT_BLOCK, PairTake, in_one_world, kept_block, pair_take
from longtake.motion.path import FloorPath, PathControl, check_form
from longtake.motion.rigid import finished
from longtake.motion.row_plan import CHUNK_ROWS, Fade, Mode, RowPlan
from longtake.motion.rows import HANDSHAKE, Hook, MotionRun, plan_of
from longtake.motion.sampling import Schedule, TextDenoiser, betas
from longtake.motion.second_take import Preset, held_share, sandwiches, second_take
from longtake.motion.smoothing import MOST_JERK
from longtake.pipeline import CALLBACK_INPUTS, Callback, LongTakePipeline, frames_of, seed_of, steps_of
from longtake.priors import load_prior
from longtake.timeline import Timeline
from safetensors import SafetensorError

DEFAULT_PRIOR = "bandai-medium"
STEPS, GUIDANCE = 30, 1.25  # the command's too
BLEND = 10
LAST_SECONDS = 4.0  # length of the last prompt when no length is given
OUTPUT_TYPES = ("np", "pt", "latent")

# what diffusers and safetensors raise for a folder whose files are not what they should be
_DAMAGED = (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)


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
    def from_prior(cls, name: str | Path = DEFAULT_PRIOR, *, dtype: torch.dtype = torch.float32) -> LongMotionPipeline:
        """Load a shipped prior, a local folder or a Hub id. Raises UserError when it is missing, damaged or no motion
        prior."""
        from longtake.weights import resolve

        folder = resolve(str(name), kind="motion prior", priors_package="longtake.motion")
        pipe = load_prior(cls, folder, "motion prior", dtype=dtype, parts=("model",))
        _check_prediction(pipe.scheduler)
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
        from longtake.motion.convert import public_parts

        return cls(**public_parts(checkpoint, mean, std, clip, train_steps, fps, clip_context, average))

    @classmethod
    def from_net(cls, net: Any) -> LongMotionPipeline:
        """Around any net that is a ``nets.MotionPrior``. Raises UserError."""
        from longtake.motion.nets import net_parts

        return cls(**net_parts(net))

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
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE,
        handshake: int = HANDSHAKE,
        fade: Fade | str = Fade.RELEASED,
        longest_row: int | None = None,
        chunk_rows: int = CHUNK_ROWS,
        control: Control | None = None,
        hooks: Sequence[Hook] = (),
        text: torch.Tensor | None = None,
    ) -> tuple[MotionRun, list[str]]:
        """The run that a call would make, and the prompt of each row; arguments as in ``__call__``."""
        _check_prediction(self.scheduler)
        config, timeline = self.space.config, self._timeline(prompt)
        if frames is None:
            frames = timeline.starts[-1][0] + round(LAST_SECONDS * config.fps)
        if frames < 2:
            raise UserError(f"a motion needs at least 2 frames, got {frames}")
        if chunk_rows < 1:
            raise UserError(f"chunk_rows must be at least 1, got {chunk_rows}")
        if not math.isfinite(guidance_scale):
            raise UserError(f"guidance_scale is a finite number; given {guidance_scale}")
        steps = steps_of(num_inference_steps, int(self.scheduler.config.num_train_timesteps))
        plan, prompts = plan_of(
            timeline, frames, handshake=handshake, longest=longest_row or int(config.longest_row), fade=fade
        )
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
        run = MotionRun(
            plan=plan,
            denoise=net,
            steps=steps,
            seed=seed,
            item=item,
            chunk_rows=chunk_rows,
            mixed=self.model.padding is Padding.MASK,
            width=int(self.model.config.features),
            device=self.model.device,
            dtype=self.model.dtype,
            space=self.space,
            prompts=tuple(prompts),
            control=control,
            hooks=tuple(hooks),
        )
        return run, prompts

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Timeline | Sequence[str],
        frames: int | None = None,
        *,
        num_frames: int | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        generator: Any = None,
        item: int = 0,
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE,
        negative_prompt: None = None,
        handshake: int = HANDSHAKE,
        fade: Fade | str = Fade.RELEASED,
        longest_row: int | None = None,
        mode: Mode | str = Mode.CANVAS,
        take2: Preset | str | None = None,
        blend: int = BLEND,
        people: int = 1,
        block: ComMDM | str | Path | None = None,
        path: Sequence[tuple[float, float]] | None = None,
        most_jerk: float | None = MOST_JERK,
        chunk_rows: int = CHUNK_ROWS,
        control: Control | None = None,
        hooks: Sequence[Hook] = (),
        text: torch.Tensor | None = None,
        ranks: Ranks | None = None,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_INPUTS,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> Any:
        """Make a motion of ``frames`` frames (default: the last prompt gets 4 s); a ``MotionOutput``.

        prompt: text or a Timeline, in frames at the prior's rate (or with seconds: "4s: ..."). A list of texts is a
        batch: a list of outputs with the seeds ``seed``, ``seed + 1``, ..., each as a call of its own would make it.
        num_frames, seconds: other names of the length. seed (0), or generator: a torch.Generator (a batch: one each),
        of which the initial seed is taken; it is not used up. guidance_scale: 0 without text, 1 without guidance.
        handshake: frames neighbours share. longest_row: frames of a row at most (default: those of the training).
        mode: "canvas", or "rows" as released (one process, no control). take2: second take, "release" or "paper", with
        ``blend`` frames. chunk_rows: rows of one call of the net; memory grows with it.
        people: 2 see each other through ``block``, a shipped one's name or a folder or a ComMDM; both hear the same
        prompts, and a control is the first one's. path: floor points (x, z) in metres, walked at the prompts' own
        speeds; without a length, the last prompt ends where the path does. ``info`` tells path_deviation_m and
        path_stretch (its speed over the prompts'). most_jerk: m/s3 that no frame exceeds, of bodies with rigid bones
        (``rigid``); None as the net made it. control: features held, (N, J) normalised. hooks: each takes and returns
        the clean estimate (N, J) before a step (one process). text: features of the different prompts (P, E) in place
        of the encoder's. journal: an opened journal; the run goes on from its newest complete step. ranks: default the
        run this process is in. callback_on_step_end(pipe, index, timestep, {"latents", "clean"}): of this rank and the
        first person, (n, J); see ``LongTakePipeline.watcher``. output_type: "np"; "pt" gives tensors; "latent"
        normalised features without joints. return_dict=False: a tuple of each person's joints, or of the features.
        Every rank gets the whole result, the same for any number of ranks. Raises UserError before it computes.
        """
        self.begin()
        if output_type not in OUTPUT_TYPES:
            raise UserError(
                f"output_type must be {', '.join(OUTPUT_TYPES)}; given {output_type!r}: for files use "
                "output.save(), for a picture output.preview()"
            )
        if negative_prompt is not None:
            raise UserError("a motion prior knows no negative_prompt: its guidance is away from no text at all")
        length = frames_of(frames, num_frames, seconds, float(self.space.config.fps))
        make = partial(
            self._make,
            length=length,
            item=item,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            handshake=handshake,
            fade=fade,
            longest_row=longest_row,
            mode=_choice(Mode, mode, "mode"),
            preset=None if take2 is None else _choice(Preset, take2, "take2"),
            blend=blend,
            people=people,
            block=block,
            path=path,
            most_jerk=most_jerk,
            chunk_rows=chunk_rows,
            control=control,
            hooks=hooks,
            text=text,
            ranks=ranks,
            journal=journal,
            checkpoint_every=checkpoint_every,
            on_step=self.watcher(callback_on_step_end, callback_on_step_end_tensor_inputs),
            output_type=output_type,
        )
        if isinstance(prompt, (list, tuple)):
            outputs = []
            for name, one in zip(prompt, _seeds(len(prompt), seed, generator, journal, text), strict=True):
                outputs.append(make(name, seed=one))
                if self.interrupt:
                    break
            return outputs if return_dict else tuple(output.arrays() for output in outputs)
        output = make(prompt, seed=seed_of(seed, generator))
        return output if return_dict else output.arrays()

    def pair(self, prompt: str | Timeline, frames: int | None = None, **settings: Any) -> Any:
        """Two people in one world, who see each other; arguments as in ``__call__``, block: "bandai-pair"."""
        return self(prompt, frames, people=2, **settings)

    def path_control(self, points: Sequence[tuple[float, float]], frames: int) -> PathControl:
        """A control that walks along floor points (n, 2), metres x and z; ``prompt`` says how it looks and, in a call,
        how fast it goes where. Inpainting, as this is for priors that were not fine-tuned for control.

        Raises UserError for a form without a root in 263 or 251 features, and for points that cannot be walked.
        """
        return FloorPath(tuple(points)).control(self.space, frames)

    # ------------------------------------------------------------------------------------------------------ its parts

    def _timeline(self, prompt: Any) -> Timeline:
        if isinstance(prompt, Timeline):
            return prompt
        if not isinstance(prompt, (str, Path)):
            raise UserError(f"a prompt is a text, a Timeline or a list of texts; given {type(prompt).__name__}")
        return Timeline.parse(prompt, fps=self.space.config.fps)

    def _make(
        self,
        prompt: Any,
        *,
        seed: int,
        length: int | None,
        mode: Mode,
        preset: Preset | None,
        blend: int,
        people: int,
        block: ComMDM | str | Path | None,
        path: Sequence[tuple[float, float]] | None,
        most_jerk: float | None,
        control: Control | None,
        ranks: Ranks | None,
        journal: Journal | None,
        checkpoint_every: int,
        on_step: OnStep | None,
        output_type: str,
        **settings: Any,
    ) -> MotionOutput:
        """One motion; see ``__call__``."""
        started = time.monotonic()
        ranks = ranks or current() or Ranks.single(self.model.device, self.model.dtype)
        if most_jerk is not None and not most_jerk > 0:
            raise UserError(f"most_jerk is greater than 0 m/s3, or None; given {most_jerk}")
        timeline = self._timeline(prompt)
        if path is not None and control is not None:
            raise UserError("path and control both say what is held: give one of them")
        way = FloorPath(tuple(path)) if path is not None else control.path if isinstance(control, PathControl) else None
        run, prompts = self.prepare(timeline, length, seed=seed, control=control, **settings)
        stretch = None
        if way is not None:
            run, prompts, stretch = self._on_its_way(way, run, prompts, timeline, length, control, settings)
        self._refuse(run, mode, preset, blend, ranks, people, block)
        check_same((run.plan.lengths, run.plan.handshakes, run.seed, run.steps, prompts, people), "the run", ranks)
        take = self._first_take(run, mode, ranks, people, block)
        whole = self._run(take, run, ranks, journal, checkpoint_every, on_step)
        done, stopped = take.state.step, take.state.stopped
        if preset is not None and not stopped and run.plan.rows > 1:
            whole = second_take(run, whole, self.schedule(run.steps), preset, blend, ranks, mode)
        info: dict[str, Any] = {
            "frames": len(whole),
            "rows": list(run.plan.lengths),
            "handshakes": list(run.plan.handshakes),
            "seed": seed,
            "steps": done,
            "mode": "pair" if people == 2 else str(mode),
            "take2": None if preset is None else str(preset),
            "people": people,
            "completed": not stopped,
        }
        output = self.output(run.plan, prompts, whole if people == 1 else whole[:, 0], info)
        if output_type == "latent":
            output.features, output.joints = whole.float().cpu(), np.zeros((len(whole), 0, 3), np.float32)
        else:
            if isinstance(take, PairTake):
                self._second(output, whole[:, 1], take)
            self._finish(output, way, stretch, most_jerk)
        if output_type == "pt":
            output.to_tensors()
        info["seconds"] = round(time.monotonic() - started, 2)
        return output

    def _second(self, output: MotionOutput, features: torch.Tensor, take: PairTake) -> None:
        """Put the second person (N, J) into the world of the first."""
        second = self.space.joints(features).cpu()
        output.second = in_one_world(torch.from_numpy(output.joints), second, take.token).numpy()
        _, at = decode_canon(take.token)
        output.info["second_stands_at"] = [round(float(at[axis]), 3) for axis in (0, 2)]

    def _finish(
        self, output: MotionOutput, way: FloorPath | None, stretch: float | None, most_jerk: float | None
    ) -> None:
        """Joints of rigid bodies without pops, in the world of the path, and what is to be known about them."""
        metre = self.space.form.metre
        people, told = finished([torch.from_numpy(one) for one in output.people], output.fps, metre, most_jerk)
        output.info.update(told)
        if way is not None:
            people = [way.place(joints, metre) for joints in people]
            gaps = [round(gap, 4) for gap in way.deviations(people[0], metre)]
            output.info["path_deviation_m"] = {"points": gaps, "largest": max(gaps)}
            output.info["path_stretch"] = None if stretch is None else round(stretch, 3)
        output.joints = people[0].float().numpy()
        if output.second is not None:
            output.second = people[1].float().numpy()

    def _on_its_way(
        self,
        way: FloorPath,
        run: MotionRun,
        prompts: list[str],
        timeline: Timeline,
        length: int | None,
        control: Control | None,
        settings: dict[str, Any],
    ) -> tuple[MotionRun, list[str], float | None]:
        """The run with its root held to the way, at the prompts' own speeds; and how much faster than them it goes."""
        fps = float(self.space.config.fps)
        check_form(self.space)
        speeds = prompt_speeds(run, self.scheduler)
        if length is None and control is None:
            starts = [start for start, _ in timeline.starts]
            by_prompt = dict(zip(prompts, speeds, strict=True))
            own = [by_prompt[name] for _, name in timeline.starts]
            frames = frames_of(frames_for(way, starts, own, fps, round(LAST_SECONDS * fps)))
            run, prompts = self.prepare(timeline, frames, seed=run.seed, **settings)
            speeds = [by_prompt[name] for name in prompts]
        pace = pace_of(run.plan.row_of_frames(), speeds)
        stretch = way.stretch(run.plan.total, fps, pace)
        if not 0.5 <= stretch <= 2.0:
            warnings.warn(
                f"the path of {way.length:.1f} m in {run.plan.total} frames takes {stretch:.2g} times the speed of its "
                f"prompts: about {max(2, round(run.plan.total * stretch))} frames would suit it",
                stacklevel=5,
            )
        return replace(run, control=way.control(self.space, run.plan.total, pace)), prompts, stretch

    def _first_take(
        self, run: MotionRun, mode: Mode, ranks: Ranks, people: int = 1, block: ComMDM | str | Path | None = None
    ) -> FirstTake:
        if people == 2:
            model = block if isinstance(block, ComMDM) else kept_block(self, DEFAULT_BLOCK if block is None else block)
            return pair_take(run, self.schedule(run.steps), model, ranks)
        if mode is Mode.ROWS:
            return rows_take(run, self.schedule(run.steps))
        return canvas_take(run, self.scheduler, ranks)

    def solve(
        self,
        run: MotionRun,
        ranks: Ranks,
        journal: Journal | None = None,
        *,
        mode: Mode = Mode.CANVAS,
        first_frame: int = 0,
        known: Known | None = None,
        quiet: bool = False,
    ) -> tuple[torch.Tensor, Denoising]:
        """The first take of one person: the whole (N, J) on every rank, and this rank's state; see ``canvas_take``."""
        if mode is Mode.ROWS:
            take = self._first_take(run, mode, ranks)
        else:
            take = canvas_take(run, self.scheduler, ranks, first_frame=first_frame, known=known)
        return self._run(take, run, ranks, journal, quiet=quiet), take.state

    def _run(
        self,
        take: FirstTake,
        run: MotionRun,
        ranks: Ranks,
        journal: Journal | None = None,
        checkpoint_every: int = 1,
        on_step: OnStep | None = None,
        *,
        quiet: bool = False,
    ) -> torch.Tensor:
        bar = self.progress_bar(total=run.steps) if ranks.is_main and not quiet else None
        try:
            final = denoise(
                take.scheduler,
                take.state,
                take.predict,
                steps=run.steps,
                ranks=ranks,
                journal=journal,
                checkpoint_every=checkpoint_every,
                progress=bar,
                on_step=on_step,
                should_stop=lambda: self.interrupt,
                after=take.after,
            )
        finally:
            if bar is not None:
                bar.close()  # so that an error's one line does not stand behind it
        return take.whole(final)

    def schedule(self, steps: int) -> Schedule:
        """The scheduler's steps as float64 tables, for the engines that inject their noise."""
        eta = Schedule.from_scheduler(self.scheduler).eta
        self.scheduler.set_timesteps(steps)
        kind = "cosine" if self.scheduler.config.beta_schedule == "squaredcos_cap_v2" else "linear"
        times = [int(t) for t in self.scheduler.timesteps]
        return Schedule.of_times(betas(int(self.scheduler.config.num_train_timesteps), kind), times, eta)

    def _refuse(
        self,
        run: MotionRun,
        mode: Mode,
        preset: Preset | None,
        blend: int,
        ranks: Ranks,
        people: int,
        block: ComMDM | str | Path | None,
    ) -> None:
        """Raise UserError for settings that do not go together."""
        if people not in (1, 2):
            raise UserError(f"people is 1 or 2; given {people!r}")
        if people == 1 and block is not None:
            raise UserError("block is the two-person block: it needs people=2")
        if people == 2 and (mode is Mode.ROWS or preset is not None):
            raise UserError("two people know no take2 and no mode but 'canvas'")
        if mode is Mode.ROWS:
            for given, what in (
                (ranks.world > 1, "several ranks"),
                (run.control is not None or run.hooks, "control or hooks"),
            ):
                if given:
                    raise UserError(f"mode 'rows' repeats the released sampler and knows no {what}; use mode 'canvas'")
        if run.hooks and ranks.world > 1:
            raise UserError("hooks see the whole motion: run them in one process")
        linear = type(self.scheduler).__name__ in ("DDPMScheduler", "DDIMScheduler")
        if (people == 2 or mode is Mode.ROWS or preset is not None) and not linear:
            raise UserError("two people, mode 'rows' and second takes need a DDPMScheduler or DDIMScheduler")
        if preset is not None:
            for part in sandwiches(run.plan):
                try:
                    held_share(part, preset, blend)
                except ValueError as error:
                    raise UserError(f"no second take: {error}") from error

    def output(self, plan: RowPlan, prompts: Sequence[str], whole: torch.Tensor, info: dict[str, Any]) -> MotionOutput:
        """The result from normalised features (N, J) on a plan's rows."""
        form, whole = self.space.form, whole.float()
        owners = plan.row_of_frames()
        if form.needs_offsets and not bool(self.space.offsets.any()):
            joints = torch.zeros(len(whole), 0, 3)
        else:
            joints = form.y_up(self.space.joints(whole))
        captions = [prompts[row] for row in owners]
        return MotionOutput(
            features=self.space.denormalize(whole).cpu().numpy(),
            joints=joints.cpu().numpy(),
            captions=captions,
            fps=float(self.space.config.fps),
            boundaries=[i for i in range(1, len(captions)) if owners[i] != owners[i - 1]],
            chains=form.chains,
            info=info,
        )


def _check_prediction(scheduler: Any) -> None:
    kind = scheduler.config.get("prediction_type")
    if kind != "sample":
        raise UserError(f"a motion prior needs a scheduler with prediction_type 'sample'; this one has {kind!r}")


def _seeds(count: int, seed: int | None, generator: Any, journal: Any, text: Any) -> list[int]:
    """The seed of each prompt of a batch. Raises UserError for what one run alone can have."""
    if journal is not None or text is not None:
        raise UserError("a list of prompts is several runs: a journal or text features belong to one of them")
    if isinstance(generator, (list, tuple)):
        if len(generator) != count:
            raise UserError(f"{count} prompts need as many generators; given {len(generator)}")
        return [seed_of(seed, one) for one in generator]
    first = seed_of(seed, generator)
    return [seed_of((first + number) % 2**64) for number in range(count)]


def _choice(kind: Any, value: Any, what: str) -> Any:
    if value not in list(kind):
        raise UserError(f"{what} must be one of {', '.join(kind)}; given {value!r}")
    return kind(value)
