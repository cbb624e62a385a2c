"""Between the space in which a VAE encodes and the one in which its transformer works.

Public VAEs say in their configuration how: a mean and deviation by channel, a factor, or both.
"""

from __future__ import annotations

from typing import Any

import torch
from longtake.errors import UserError
from torch import Tensor


def awake(vae: Any) -> Tensor:
    """A weight of the VAE, brought to its device first where offload keeps it elsewhere until it is called."""
    hook = getattr(vae, "_hf_hook", None)  # accelerate's; diffusers' own `encode` and `decode` call it, parts do not
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)
    weight: Tensor = next(vae.parameters())
    return weight


def normalised(vae: Any, z: Tensor) -> Tensor:
    """Latents as the VAE encodes them (1, C, F, h, w) in the transformer's space."""
    mean, std, scale = _moments(vae, z)
    return (z - mean) / std * scale


def denormalised(vae: Any, z: Tensor, part: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The inverse, on the VAE's device and in its dtype.

    part: latents (F, c, h, w) and what a stock pipeline made of them (1, c, F, h, w), by which this is checked.
    Raises UserError for a VAE whose latents are scaled in another way.
    """
    weight = next(vae.parameters())
    name = type(vae).__name__

    def scaled(x: Tensor) -> Tensor:
        x = x.to(weight.device, torch.float32)
        mean, std, scale = _moments(vae, x)
        return (x / scale * std + mean).to(weight.dtype)

    if part is not None:
        mine, theirs = scaled(part[0].transpose(0, 1)[None]), part[1].to(weight)
        error = float((mine - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
        if error > 2e-2:  # a step of bfloat16 is 8e-3
            raise UserError(
                f"latents of {name} are scaled in a way that is not known here: this run cannot be extended"
            )
    return scaled(z)


def _moments(vae: Any, z: Tensor) -> tuple[Any, Any, float]:
    """Mean and deviation by channel, and scale, as far as the VAE's configuration has them."""
    config = vae.config
    scale = getattr(config, "scaling_factor", None)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    buffers = dict(vae.named_buffers(recurse=False))
    if "latents_mean" in buffers:  # LTX keeps them as buffers
        mean, std = buffers["latents_mean"], buffers["latents_std"]
    if mean is None or std is None:
        return 0.0, 1.0, 1.0 if scale is None else float(scale)
    mean, std = torch.as_tensor(mean).to(z.device, z.dtype), torch.as_tensor(std).to(z.device, z.dtype)
    if mean.numel() != z.shape[1]:
        raise UserError(
            f"the latents of {type(vae).__name__} are scaled frame by frame: a run cannot be extended, redone or held"
        )
    view = (1, -1, 1, 1, 1)
    return mean.view(view), std.view(view), 1.0 if scale is None else float(scale)
