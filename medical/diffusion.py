"""The noise schedule, the three ways to say what a net found, and the stock samplers of diffusers.

Continuous u in [0, 1] with a cosine: the share of the clean signal's variance is cos^2(pi u / 2), 1 at u = 0 and 0 at
u = 1, so that sampling starts where training ends (Lin et al., arXiv 2305.08891). A stock scheduler has 1000 of these
levels: step t is u = (t + 1) / 1000.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from longtake.errors import UserError

LEVELS = 1000
SCHEDULERS = ("ddim", "ddpm", "dpm")


def share(u: torch.Tensor) -> torch.Tensor:
    """The clean signal's share of the variance at u, float64."""
    return torch.cos(u.double() * (math.pi / 2)).square()


def levels() -> torch.Tensor:
    """(LEVELS,) float64 shares of the discrete steps."""
    table = share(torch.arange(1, LEVELS + 1) / LEVELS)
    table[-1] = 0.0
    return table


def betas() -> list[float]:
    """What stock schedulers take: the variance that each step adds."""
    table = levels()
    before = torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
    return [float(value) for value in (1 - table / before).clamp(0, 1)]


def noisy(clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The clean signal with noise; level: its share of the variance, to be broadcast."""
    return level.sqrt() * clean + (1 - level).sqrt() * noise


def velocity(clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """v of a clean signal and its noise."""
    return level.sqrt() * noise - (1 - level).sqrt() * clean


def clean_of(x: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The clean signal that v means for the noisy x."""
    return level.sqrt() * x - (1 - level).sqrt() * v


def noise_of(x: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The noise that v means for the noisy x."""
    return level.sqrt() * v + (1 - level).sqrt() * x


def scheduler(name: str = "ddim") -> Any:
    """A stock scheduler of diffusers on this schedule: "ddim", "ddpm" (draws noise in each step) or "dpm"
    (DPM-Solver++ of second order). Raises UserError for another name."""
    import diffusers

    same = {
        "num_train_timesteps": LEVELS,
        "trained_betas": betas(),
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    if name == "ddim":
        return diffusers.DDIMScheduler(**same, clip_sample=False, set_alpha_to_one=True)
    if name == "ddpm":
        return diffusers.DDPMScheduler(**same, clip_sample=False, variance_type="fixed_small")
    if name == "dpm":
        return diffusers.DPMSolverMultistepScheduler(
            **same, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
        )
    raise UserError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}")


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """u + s (c - u): s = 1 is the conditional, s = 0 the unconditional, exactly."""
    if scale == 1:
        return conditional
    if scale == 0:
        return unconditional
    return unconditional + scale * (conditional - unconditional)
