"""Sampling arithmetic of MDM: the noise schedule in float64, one linear step, and classifier-free guidance.

Every sampler here is  x <- a x0 + b x + s noise  with numbers a, b, s a step (Ho et al. 2020, eq. 7; Song et al. 2021,
eq. 12 and 16). eta = 1 over all steps is the ancestral sampler of the public code ("fixed small" variance, no
clipping); eta = 0 is DDIM; any subset of the steps may be taken.

    schedule = Schedule.make(1000, steps=50, eta=0.0)
    for step in range(len(schedule)):
        x = schedule.update(step, denoise(x, schedule.timesteps[step], rows), x, noise(step + 1))

Legend: R rows, T frames, J features, E text features, S steps taken out of N steps of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from longtake.denoising import OnStep, Step

GUIDANCE = 2.5  # the public code's default scale for HumanML3D
MAX_BETA = 0.999


class Denoise(Protocol):
    """What the samplers know of a net: the clean motion (R, T, J) it sees in ``x`` (R, T, J) at ``timestep``.

    rows: the numbers of the R rows in the run, which name their texts, lengths and flags.
    """

    def __call__(self, x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor: ...


def betas(count: int, kind: str = "cosine") -> torch.Tensor:
    """(count,) float64 betas: "cosine" (Nichol and Dhariwal 2021, eq. 17) or "linear" (scaled to the count)."""
    if kind == "cosine":

        def level(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        values = [min(1 - level((i + 1) / count) / level(i / count), MAX_BETA) for i in range(count)]
        return torch.tensor(values, dtype=torch.float64)
    if kind == "linear":
        return torch.linspace(1e-4 * 1000 / count, 0.02 * 1000 / count, count, dtype=torch.float64)
    raise ValueError(f"schedule kind must be cosine or linear; given {kind!r}")


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, first to last. All tables are float64 of length S.

    timesteps: what the net is told, falling to 0. level: abar at the step. previous: abar after the step (1 at the
    last). clean, noisy: factors a and b. sigma: factor s. train_steps: N.
    """

    train_steps: int
    timesteps: tuple[int, ...]
    level: torch.Tensor
    previous: torch.Tensor
    clean: torch.Tensor
    noisy: torch.Tensor
    sigma: torch.Tensor
    eta: float

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def make(
        cls, train_steps: int = 1000, steps: int | None = None, *, kind: str = "cosine", eta: float = 1.0
    ) -> Schedule:
        """``steps`` of the ``train_steps`` (default all), evenly spread from the noisiest down to 0 (the "trailing"
        spacing and the last). Raises ValueError for more steps than there are, or eta outside 0..1."""
        steps = train_steps if steps is None else steps
        if not 1 <= steps <= train_steps:
            raise ValueError(f"steps must be 1 to {train_steps}, the steps of training; given {steps}")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be between 0 (DDIM) and 1 (ancestral); given {eta}")
        if steps == 1:
            times = [train_steps - 1]
        else:
            times = [round((train_steps - 1) * (1 - i / (steps - 1))) for i in range(steps)]
        return cls.of_times(betas(train_steps, kind), times, eta)

    @classmethod
    def of_times(cls, beta: torch.Tensor, times: Sequence[int], eta: float = 1.0) -> Schedule:
        """The schedule that visits ``times`` (falling) of float64 betas (N,)."""
        table = (1 - beta).cumprod(0)
        one = torch.ones(1, dtype=torch.float64)
        index = torch.tensor(list(times))
        level = table[index]
        previous = torch.cat([table[index[1:]], one])
        if times[-1] != 0:
            previous[-1] = 1.0
        before = torch.tensor([*times[1:], -1])
        step_beta = torch.where(before == index - 1, beta[index], 1 - level / previous)
        variance = eta**2 * step_beta * (1 - previous) / (1 - level)
        if eta == 1.0:
            noisy = (1 - previous) * (1 - step_beta).sqrt() / (1 - level)
            clean = step_beta * previous.sqrt() / (1 - level)
        else:
            noisy = ((1 - previous - variance).clamp_min(0) / (1 - level)).sqrt()
            clean = previous.sqrt() - noisy * level.sqrt()
        return cls(len(beta), tuple(int(t) for t in times), level, previous, clean, noisy, variance.sqrt(), eta)

    @classmethod
    def from_scheduler(cls, scheduler: Any, steps: int | None = None, eta: float | None = None) -> Schedule:
        """The schedule that a diffusers DDPMScheduler or DDIMScheduler of a motion prior describes.

        It must predict the sample and not clip. eta: default 1 for DDPM, 0 for DDIM. Raises ValueError otherwise.
        """
        config, name = scheduler.config, type(scheduler).__name__
        kinds = {"squaredcos_cap_v2": "cosine", "linear": "linear"}
        if config.prediction_type != "sample" or config.get("clip_sample", False) or config.beta_schedule not in kinds:
            raise ValueError(
                f"a motion prior predicts the sample, unclipped, on a {' or '.join(kinds)} schedule; this {name} has "
                f"{config.prediction_type}, clip_sample={config.get('clip_sample', False)}, {config.beta_schedule}"
            )
        defaults = {"DDPMScheduler": 1.0, "DDIMScheduler": 0.0}
        if eta is None and name not in defaults:
            raise ValueError(f"{name} has no linear step; use one of {', '.join(defaults)} or give eta")
        kind = kinds[config.beta_schedule]
        count = int(config.num_train_timesteps)
        return cls.make(count, steps, kind=kind, eta=defaults[name] if eta is None else eta)

    def update(self, step: int, x0: torch.Tensor, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """x after ``step``: a x0 + b x + s noise, in the dtype of x. noise is not read where s is 0."""
        moved = float(self.clean[step]) * x0 + float(self.noisy[step]) * x
        sigma = float(self.sigma[step])
        if sigma == 0.0:
            return moved
        if noise is None:
            raise ValueError(f"step {step} of {len(self)} draws noise, none was given")
        return moved + sigma * noise

    def add_noise(self, step: int, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x0 at the noise level before ``step``: sqrt(abar) x0 + sqrt(1 - abar) noise."""
        level = self.level[step]
        return float(level.sqrt()) * x0 + float((1 - level).sqrt()) * noise

    def first_at(self, timestep: int) -> int:
        """The first step whose timestep is at most ``timestep``; where a run that starts there begins."""
        for step, time in enumerate(self.timesteps):
            if time <= timestep:
                return step
        raise ValueError(f"no step of this schedule is at or below timestep {timestep}")

    def log_variance(self) -> torch.Tensor:
        """(S,) logarithm of sigma^2, the last (which is -inf) replaced by the one before, as the public code keeps."""
        variance = self.sigma.square()
        if len(variance) > 1:
            variance = torch.cat([variance[:-1], variance[-2:-1]])
        return variance.log()


class LinearSteps:
    """A schedule with the head of a diffusers scheduler, for ``longtake.denoising.denoise``: the net's answer is the
    clean motion, and a step is ``Schedule.update`` with the frames' own noise."""

    init_noise_sigma = 1.0

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.timesteps = torch.tensor(schedule.timesteps)
        self.draws_noise = bool(schedule.sigma.any())

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        """The steps are the schedule's. Raises ValueError for another number of them."""
        if steps != len(self.schedule):
            raise ValueError(f"this schedule has {len(self.schedule)} steps, not {steps}")

    def scale_model_input(self, sample: torch.Tensor, t: Any) -> torch.Tensor:
        return sample

    def step(self, prediction: torch.Tensor, t: Any, sample: torch.Tensor, generator: Any = None) -> Any:
        """prev_sample and pred_original_sample (n, *). generator: one a frame, read where the step draws noise."""
        count = self.schedule.timesteps.index(int(t))
        draw = None
        if float(self.schedule.sigma[count]):
            shape = tuple(sample.shape[1:])
            draw = torch.stack([torch.randn(shape, generator=one) for one in generator]).to(sample.device)
        moved = self.schedule.update(count, prediction, sample, draw)
        return SimpleNamespace(prev_sample=moved, pred_original_sample=prediction)


class TextDenoiser:
    """A net with its texts: guidance in one batch, text features computed once.

    model: MDM. text: (B, E) or (B, K, E) features of the run's B rows, None for unconditional runs. scale: 0 is the
    unconditional branch, 1 the conditional one, else u + scale (c - u). lengths: valid frames of each row.
    transition: (B, M) flags, for nets with the embedding. Calls count net evaluations in ``rows_evaluated``.
    """

    def __init__(
        self,
        model: Callable[..., torch.Tensor],
        text: torch.Tensor | None,
        scale: float = GUIDANCE,
        *,
        lengths: Sequence[int] | None = None,
        transition: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> None:
        if text is None and scale != 0.0:
            raise ValueError(f"guidance of {scale} needs a text; without one the scale is 0")
        self.model, self.text, self.scale = model, text, float(scale)
        self.lengths = None if lengths is None else torch.tensor(list(lengths))
        self.transition, self.text_mask = transition, text_mask
        self.rows_evaluated = 0

    def __call__(self, x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(list(rows), device=x.device)
        inputs: dict[str, Any] = {}
        if self.lengths is not None and int(self.lengths[list(rows)].min()) < x.shape[1]:
            inputs["lengths"] = self.lengths.to(x.device)[index].clamp(max=x.shape[1])
        if self.transition is not None:
            inputs["transition"] = self.transition.to(x.device)[index][:, : x.shape[1]]
        if self.text_mask is not None:
            inputs["text_mask"] = self.text_mask.to(x.device)[index]
        text = None if self.text is None or self.scale == 0.0 else self.text.to(x.device)[index]
        guided = text is not None and self.scale != 1.0
        if text is not None and guided:
            text = torch.cat([text, torch.zeros_like(text)])
            x = torch.cat([x, x])
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        self.rows_evaluated += len(x)
        out = self.model(x, torch.full((len(x),), timestep, device=x.device), text, **inputs)
        if not guided:
            return out
        conditional, unconditional = out.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def unconditional(self, lengths: Sequence[int] | None = None) -> TextDenoiser:
        """The same net without text, one evaluation a row; lengths of the new rows."""
        return TextDenoiser(self.model, None, 0.0, lengths=lengths)


def sample(
    denoise: Denoise,
    schedule: Schedule,
    noise: Callable[[int], torch.Tensor],
    *,
    rows: Sequence[int] = (0,),
    start: torch.Tensor | None = None,
    first: int = 0,
    adjust: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    quiet: torch.Tensor | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Plain sampling of rows (R, T, J).

    noise(0) is x_T (or what ``start``, a clean motion, is noised with); noise(k) that of the k-th step of the schedule.
    first: step to begin with. adjust(x0, step): the clean estimate as it is to be used (inpainting, guidance).
    quiet: bool, broadcasting to (R, T, J): entries that take no noise, at the start and in every step. on_step: sees
    every step; True ends the run with its clean estimate.
    """

    def draw(count: int) -> torch.Tensor:
        values = noise(count)
        return values if quiet is None else values.masked_fill(quiet, 0.0)

    x = draw(0) if start is None else schedule.add_noise(first, start, draw(0))
    for step in range(first, len(schedule)):
        x0 = denoise(x, schedule.timesteps[step], rows)
        if adjust is not None:
            x0 = adjust(x0, step)
        x = schedule.update(step, x0, x, draw(step + 1) if float(schedule.sigma[step]) else None)
        if on_step is not None:
            now = Step(step + 1, len(schedule), schedule.timesteps[step], x, x0)
            if on_step(now):
                return x0
            x = now.latents
    return x
