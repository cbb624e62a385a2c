"""Between the space in which a VAE encodes and the one in which its transformer works.

Public VAEs say in their configuration how: a mean and deviation by channel (Cosmos 1: by channel and frame of a clip),
a factor, or both; the schedulers of Cosmos add a factor of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from torch import Tensor

if TYPE_CHECKING:
    from longtake.video.run import Context

_EXPLODING = ("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline", "Cosmos2VideoToWorldPipeline")


def awake(vae: Any) -> Tensor:
    """A weight of the VAE, brought to its device first where offload keeps it elsewhere until it is called."""
    hook = getattr(vae, "_hf_hook", None)  # accelerate's; diffusers' own `encode` and `decode` call it, parts do not
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)
    weight: Tensor = next(vae.parameters())
    return weight


def normalised(stock: Any, z: Tensor, start: int = 0) -> Tensor:
    """Latents as the VAE of a stock pipeline encodes them (1, C, F, h, w) in the transformer's space.

    start: number in the film of the first of them.
    """
    mean, std, scale = _moments(stock, z, start)
    return (z - mean) / std * scale


def denormalised(stock: Any, z: Tensor, part: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
    """The inverse, on the VAE's device and in its dtype.

    part: latents (F, c, h, w) and what the stock pipeline made of them (1, c, F, h, w), by which this is checked.
    Raises UserError for a VAE whose latents are scaled in another way.
    """
    weight = next(stock.vae.parameters())

    def scaled(x: Tensor, start: int) -> Tensor:
        x = x.to(weight.device, torch.float32)
        mean, std, scale = _moments(stock, x, start)
        return (x / scale * std + mean).to(weight.dtype)

    if part is not None:
        mine, theirs = scaled(part[0].transpose(0, 1)[None], 0), part[1].to(weight)
        error = float((mine - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
        if error > 2e-2:  # a step of bfloat16 is 8e-3
            raise UserError(
                f"latents of {type(stock.vae).__name__} are scaled in a way that is not known here: this run cannot be "
                "extended"
            )
    return scaled(z, start)


def check_channels(stock: Any, context: Context) -> None:
    """Raises UserError for an earlier run whose latents have other channels than the VAE of a stock pipeline."""
    config = stock.vae.config
    wanted = getattr(config, "z_dim", None) or getattr(config, "latent_channels", None)
    if context.latents is not None and wanted and context.latents.shape[1] != int(wanted):
        raise UserError(
            f"the earlier run has latents of {context.latents.shape[1]} channels, {type(stock).__name__} of {wanted}: "
            "another model made it"
        )


def variance_explodes(stock: Any) -> bool:
    """Whether a pipeline adds noise, up to sigma_max, to clean latents that stay as they are (Cosmos 1 and 2)."""
    return type(stock).__name__ in _EXPLODING


@contextmanager
def moments_of(stock: Any, frames: int) -> Iterator[None]:
    """Inside, a VAE whose latents are scaled frame by frame (Cosmos 1) has moments for so many frames: those of the
    last frame that it knows stand for all behind it."""
    config = stock.vae.config
    channels, count = int(getattr(config, "latent_channels", 0) or 0), len(getattr(config, "latents_mean", None) or ())
    known, rest = divmod(count, channels) if channels else (0, 0)
    if known <= 1 or known >= frames or rest:
        yield
        return
    had = {name: config[name] for name in ("latents_mean", "latents_std")}

    def longer(values: Any) -> list[float]:
        table = torch.tensor(values, dtype=torch.float64).view(channels, known)
        whole: list[float] = torch.cat([table, table[:, -1:].expand(-1, frames - known)], 1).flatten().tolist()
        return whole

    stock.vae.register_to_config(**{name: longer(values) for name, values in had.items()})
    try:
        yield
    finally:
        stock.vae.register_to_config(**had)


def _moments(stock: Any, z: Tensor, start: int) -> tuple[Any, Any, float]:
    """Mean and deviation by channel, or by channel and frame, and scale, as far as configurations have them."""
    vae = stock.vae
    config = vae.config
    scale = float(getattr(config, "scaling_factor", None) or 1.0)
    if variance_explodes(stock):
        scale *= float(stock.scheduler.config.sigma_data)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    buffers = dict(vae.named_buffers(recurse=False))
    if "latents_mean" in buffers:  # LTX keeps them as buffers
        mean, std = buffers["latents_mean"], buffers["latents_std"]
    if mean is None or std is None:
        return 0.0, 1.0, scale
    mean, std = torch.as_tensor(mean).to(z.device, z.dtype), torch.as_tensor(std).to(z.device, z.dtype)
    if mean.numel() % z.shape[1]:
        raise UserError(f"{type(vae).__name__} has {mean.numel()} moments for latents of {z.shape[1]} channels")
    view = (1, z.shape[1], -1, 1, 1)
    mean, std = mean.view(view), std.view(view)
    if mean.shape[2] > 1:
        frames = torch.arange(start, start + z.shape[2], device=z.device).clamp_max(mean.shape[2] - 1)
        mean, std = mean[:, :, frames], std[:, :, frames]
    return mean, std, scale
