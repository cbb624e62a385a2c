"""The released diffusion ("DDPM"): linear betas, guided ancestral sampling, and a state dict with its tables in it.

model = DDPM(ViViT(), ContextUnet(), (1e-4, 0.02), 400)
load(model, "checkpoint.pth")                              # a user's own run of the release; strict
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from longtake.errors import UserError
from torch import nn
from torch.nn import functional as F

Noise = Callable[[str, Sequence[int]], torch.Tensor]


def ddpm_schedules(beta1: float, beta2: float, steps: int) -> dict[str, torch.Tensor]:
    """Tables (steps + 1,) float32 by the release's names. Raises UserError for betas that do not rise within (0, 1)."""
    if not 0 < beta1 < beta2 < 1:
        raise UserError(f"betas must rise within 0 and 1, got {beta1:g} and {beta2:g}")
    beta = (beta2 - beta1) * torch.arange(0, steps + 1, dtype=torch.float32) / steps + beta1
    alpha = 1 - beta
    bar = torch.cumsum(torch.log(alpha), 0).exp()
    rest = torch.sqrt(1 - bar)
    return {
        "alpha_t": alpha,
        "oneover_sqrta": 1 / torch.sqrt(alpha),
        "sqrt_beta_t": torch.sqrt(beta),
        "alphabar_t": bar,
        "sqrtab": torch.sqrt(bar),
        "sqrtmab": rest,
        "mab_over_sqrtmab": (1 - alpha) / rest,
    }


class DDPM(nn.Module):
    """vivit_model: frames to context; nn_model: the denoiser. betas, n_T: of the schedule. drop_prob: of the
    context."""

    def __init__(
        self,
        vivit_model: nn.Module,
        nn_model: nn.Module,
        betas: Sequence[float] = (1e-4, 0.02),
        n_T: int = 400,
        drop_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.vivit_model, self.nn_model = vivit_model, nn_model
        for name, table in ddpm_schedules(betas[0], betas[1], n_T).items():
            self.register_buffer(name, table)
        self.n_T, self.drop_prob = n_T, drop_prob

    def table(self, name: str) -> torch.Tensor:
        """One of the schedule's tables."""
        return self.get_buffer(name)

    def noised(self, x: torch.Tensor, time: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x at steps ``time`` (B,) with the noise."""
        first, second = (self.table(name)[time].view(-1, 1, 1, 1, 1) for name in ("sqrtab", "sqrtmab"))
        return first * x + second * noise

    def loss(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        time: torch.Tensor,
        noise: torch.Tensor,
        context_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The training loss, with every draw given: steps ``time`` (B,) int64 in 1..n_T - 1."""
        found = self.nn_model(self.noised(x, time, noise), context, time / self.n_T, context_mask)
        return F.mse_loss(noise, found)

    @torch.inference_mode()
    def sample(self, context: torch.Tensor, noise: Noise, guide_w: float = 0.2) -> torch.Tensor:
        """A guided sample (B, 1, D, H, W): (1 + w) times the noise found with the context less w times that without.

        noise: (name, shape) -> standard normal numbers; the names are "xT" and, for steps i = n_T..2, "z<i>".
        """
        x = noise("xT", context.shape).to(context)
        for i in range(self.n_T, 0, -1):
            z = noise(f"z{i}", context.shape).to(context) if i > 1 else torch.zeros_like(x)
            x = self.guided_step(x, context, i, z, guide_w)
        return x

    def guided_step(
        self, x: torch.Tensor, context: torch.Tensor, i: int, z: torch.Tensor, guide_w: float
    ) -> torch.Tensor:
        """One ancestral step, both ways of the denoiser in one batch."""
        count = len(x)
        twice = torch.cat([x, x])
        time = torch.full((2 * count,), i / self.n_T, device=x.device, dtype=x.dtype)
        mask = torch.cat([torch.zeros(count), torch.ones(count)]).to(x)
        with_context, without = self.nn_model(twice, torch.cat([context, context]), time, mask).chunk(2)
        found = (1 + guide_w) * with_context - guide_w * without
        root, step, spread = (self.table(name)[i] for name in ("oneover_sqrta", "mab_over_sqrtmab", "sqrt_beta_t"))
        return root * (x - found * step) + spread * z


def load(model: DDPM, path: str | os.PathLike[str]) -> DDPM:
    """A checkpoint of the release into the model, all of its keys and no other. Raises UserError otherwise."""
    from longtake.weights import load_state

    state = load_state(path)
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise UserError(
            f"{path} is no checkpoint of the released model in this size: {wrong[0]} and {len(wrong) - 1} more"
        )
    model.load_state_dict(state)
    return model
