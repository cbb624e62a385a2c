"""Adapter for UNet3DConditionModel (VideoCrafter2, ZeroScope and our own prior).

Frames meet only in TransformerTemporalModel (group norm over time, two self-attentions) and TemporalConvLayer (four
group norms and convolutions over time); everything else treats frames as a batch and stays as it is. The text is
repeated for every frame inside the model, so text that changes along the video enters at each spatial
Transformer2DModel.

    install(unet, piece, patches)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from longtake.errors import UserError
from longtake.video import temporal
from longtake.video.piece import Exchange, Patches, Piece, UnsupportedModule
from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Prepare = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]

_SUSPECT = ("temporal", "motion", "spatiotemporal", "3d")


def temporal_modules(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """(temporal transformers, temporal conv layers) of the model by name.

    Raises:
        UnsupportedModule: something else mixes frames, or one of these is a variant that is not covered.
    """
    from diffusers.models.resnet import TemporalConvLayer
    from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
    from diffusers.models.unets.unet_3d_blocks import (
        CrossAttnDownBlock3D,
        CrossAttnUpBlock3D,
        DownBlock3D,
        UNetMidBlock3DCrossAttn,
        UpBlock3D,
    )

    containers = (CrossAttnDownBlock3D, CrossAttnUpBlock3D, DownBlock3D, UNetMidBlock3DCrossAttn, UpBlock3D)
    transformers: dict[str, nn.Module] = {}
    convolutions: dict[str, nn.Module] = {}
    covered: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (covered and name.startswith(covered)):
            continue
        if type(module) is TransformerTemporalModel:
            temporal.check_transformer(module, name)
            transformers[name] = module
            covered += (name + ".",)
        elif type(module) is TemporalConvLayer:
            temporal.conv_stages(module, name)
            convolutions[name] = module
            covered += (name + ".",)
        elif isinstance(module, nn.Conv3d) and module.kernel_size[0] == 1:
            continue
        elif type(module) not in containers and any(word in type(module).__name__.lower() for word in _SUSPECT):
            raise UnsupportedModule(
                f"{name} ({type(module).__name__}) mixes frames in a way that this adapter does not cover; covered are "
                "TransformerTemporalModel and TemporalConvLayer"
            )
    return transformers, convolutions


def uncovered_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Group norms outside the temporal modules; a 5-D input would tie frames together there."""
    transformers, convolutions = temporal_modules(model)
    inside = tuple(name + "." for name in (*transformers, *convolutions))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm) and not (inside and name.startswith(inside))
    }


def spatial_transformers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose cross-attention reads the text."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    return {name: module for name, module in model.named_modules() if isinstance(module, Transformer2DModel)}


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """One argument of a call, however it was passed."""
    return args[position] if len(args) > position else kwargs.get(name)


def begin_call(model: nn.Module, piece: Piece, sample: Any, timestep: Any) -> None:
    """Check a call and set the piece up for it: frames, batch, phase of the gate."""
    if not isinstance(sample, Tensor) or sample.ndim != 5:
        raise UserError("the model wants latents of shape (batch, channels, frames, height, width)")
    if model.training or (torch.is_grad_enabled() and sample.requires_grad):
        raise UserError("a parallelized model is for inference: call model.eval() and give latents without gradient")
    piece.check_frames(sample.shape[2])
    piece.begin(sample.shape[0], timestep)


def watch_calls(
    model: nn.Module,
    piece: Piece,
    patches: Patches,
    sample_name: str,
    prepare: Prepare | None = None,
    text_by_call: bool = True,
) -> None:
    """Hooks around the whole model: set the piece up, and give a rank without frames one dummy frame to compute.

    prepare: may change the arguments further, once the piece is set up.
    text_by_call: ask the text provider once for all frames (chunked mode asks chunk by chunk).
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sample = argument(args, kwargs, 0, sample_name)
        begin_call(module, piece, sample, argument(args, kwargs, 1, "timestep"))
        if text_by_call:
            piece.load_text()
        if prepare is not None:
            args, kwargs = prepare(args, kwargs)
        if not piece.empty:
            return args, kwargs
        shape = list(sample.shape)
        shape[2] = 1
        dummy = sample.new_zeros(shape)
        return ((dummy, *args[1:]), kwargs) if args else (args, {**kwargs, sample_name: dummy})

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        piece.text = None
        if not piece.empty:
            return None
        if isinstance(output, tuple):
            return (output[0][:, :, :0], *output[1:])
        output.sample = output.sample[:, :, :0]
        return output

    patches.pre_hook(model, before)
    patches.post_hook(model, after)


def use_frame_text(model: nn.Module, piece: Piece, patches: Patches) -> None:
    """Let the text of `set_text` reach every spatial cross-attention."""

    def replace(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if piece.text is None:
            return None
        return args[:1], {**kwargs, "encoder_hidden_states": piece.text}

    for module in spatial_transformers(model).values():
        patches.pre_hook(module, replace)


def refuse_volume_norms(model: nn.Module, patches: Patches) -> None:
    """Raise when a group norm that nobody covers is given frames as a dimension."""

    def guard(name: str) -> Any:
        def check(_module: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
            if args[0].ndim > 4:
                raise UnsupportedModule(f"{name} (GroupNorm) is computed over frames (a 5-D input) and is not covered")

        return check

    for name, module in uncovered_norms(model).items():
        patches.pre_hook(module, guard(name))


def install(model: nn.Module, piece: Piece, patches: Patches) -> None:
    """Patch a UNet3DConditionModel so that a call with this rank's frames computes its part of the whole video.

    One process with full attention needs no patch: the stock forward runs, bit for bit.
    """
    transformers, convolutions = temporal_modules(model)
    refuse_volume_norms(model, patches)
    watch_calls(model, piece, patches, "sample")
    use_frame_text(model, piece, patches)
    if piece.alone and piece.scope is None:
        return
    processor = temporal.TimeAttention(piece)
    for module in convolutions.values():
        run = conv_forward(partial(temporal.conv_layer, module, piece))
        patches.forward(module, stock_on_gpu(module.forward, run) if piece.alone else run)
    for module in transformers.values():
        run = transformer_forward(partial(temporal.transformer, module, piece))
        patches.forward(module, stock_on_gpu(module.forward, run) if piece.alone else run)
        use_time_attention(module, patches, processor)


def use_time_attention(module: nn.Module, patches: Patches, processor: temporal.TimeAttention) -> None:
    """Give both self-attentions of every block of a temporal transformer the processor."""
    for block in module.transformer_blocks:  # type: ignore[union-attr]
        for attention in (block.attn1, block.attn2):
            if attention is not None:
                patches.processor(attention, processor)


def stock_on_gpu(stock: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """The module's own forward where one rank holds all frames on a GPU: its norms and convolutions over time are one
    kernel each there, ours are many. On a CPU ours are the faster ones (temporal.py)."""

    @torch.no_grad()
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = ours if hidden_states.device.type == "cpu" else stock
        return run(hidden_states, *args, **kwargs)

    return forward


def conv_forward(run: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A forward with the signature of TemporalConvLayer."""

    @torch.no_grad()
    def forward(hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        return run(hidden_states)

    return forward


def transformer_forward(run: Callable[[Tensor, dict[str, Any] | None], Tensor]) -> Callable[..., Any]:
    """A forward with the signature of TransformerTemporalModel."""
    from diffusers.models.transformers.transformer_temporal import TransformerTemporalModelOutput

    @torch.no_grad()
    def forward(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        out = run(hidden_states, cross_attention_kwargs)
        return TransformerTemporalModelOutput(sample=out) if return_dict else (out,)

    return forward


# ---- traffic --------------------------------------------------------------------------------------------------------


def _level(name: str, levels: int) -> int:
    """How often a module's input has been halved in height and width."""
    parts = name.split(".")
    if parts[0] == "down_blocks":
        return int(parts[1])
    if parts[0] == "up_blocks":
        return levels - 1 - int(parts[1])
    return levels - 1 if parts[0] == "mid_block" else 0


def traffic(model: nn.Module, piece: Piece) -> dict[Exchange, float]:
    """Elements that the busiest rank receives in one call for temporal attention, per batch entry and latent pixel.

    HALO is (halo frames + global frames of others) * 2 * D for each attention; TRANSPOSE is
    2 T (W-1)/W C for each temporal transformer; GATHER is 2 (F - T) D. A hard gate counts each scope for the share of
    timesteps in which it is open.
    """
    from longtake.video.scope import TIMESTEPS, Gate, Scope

    partition, world = piece.partition, piece.partition.parts
    levels = len(model.down_blocks)  # type: ignore[arg-type]
    attention = projection = 0.0
    for name, module in temporal_modules(model)[0].items():
        pixels = 0.25 ** _level(name, levels)
        channels: int = module.norm.num_channels  # type: ignore[union-attr,assignment]
        projection += channels * pixels
        for block in module.transformer_blocks:  # type: ignore[union-attr]
            attention += pixels * sum(a.inner_dim for a in (block.attn1, block.attn2) if a is not None)
    longest = max(partition.sizes)
    everything = 2.0 * (partition.total - min(size for size in partition.sizes)) * attention
    if not isinstance(piece.scope, Scope):
        halo = everything
    else:
        local = far = 1.0
        if piece.scope.gate == Gate.HARD:
            local = min(max(piece.scope.switch / TIMESTEPS, 0.0), 1.0)
            far = 1.0 - local
        shared = piece.scope.global_indices(partition.total)
        window = piece.scope.window
        frames = []
        for rank in range(world):
            own = partition.range(rank)
            near = min(window, own.start) + min(window, partition.total - own.stop) if len(own) else 0
            frames.append(local * near + far * sum(index not in own for index in shared))
        halo = 2.0 * max(frames) * attention
    return {
        Exchange.HALO: halo,
        Exchange.TRANSPOSE: 2.0 * longest * (world - 1) / world * projection,
        Exchange.GATHER: everything,
    }
