"""Adapter for WanTransformer3DModel (Wan 2.1 and 2.2, and models of the same layout).

Latent frames meet only in the self-attention `attn1` of each block; patches never span frames. So two things change:
the rotary table is cut at this rank's absolute frame numbers, and attn1 exchanges rotated keys (final before they
travel) and values. Cross-attention to the text, timesteps per token and extra condition channels are per frame and
stay as they are.

Legend: B batch, F latent frames of the video, T frames here, n tokens of a frame, H heads, D width of a head.

    install(transformer, piece, patches)
"""

from __future__ import annotations

from typing import Any

import torch
from longtake.errors import UserError
from longtake.video.piece import Exchange, Patches, Piece, UnsupportedModule
from longtake.video.unet3d import argument, watch_calls
from torch import Tensor, nn


def rotate(x_BLHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring channel pairs; tables (1, L, 1, D) hold each value twice."""
    x1, x2 = x_BLHD.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([x1 * c - x2 * s, x1 * s + x2 * c], -1).flatten(-2).type_as(x_BLHD)


class WanTimeAttention:
    """Processor for attn1: stock projections, norms and rotation, then exchange and attention over the frames."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, piece: Piece):
        self.piece = piece

    @torch.no_grad()
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UnsupportedModule("attn1 of a Wan block was called with encoder states or a mask")
        piece = self.piece
        if getattr(attn, "fused_projections", False):
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if rotary_emb is not None:
            query = rotate(query.unflatten(2, (attn.heads, -1)), *rotary_emb).flatten(2)
            key = rotate(key.unflatten(2, (attn.heads, -1)), *rotary_emb).flatten(2)
        query, key, value = (x.unflatten(1, (piece.frames, -1)) for x in (query, key, value))
        if piece.empty:
            query, key, value = query[:, :0], key[:, :0], value[:, :0]
        out = piece.attend(query, key, value, attn.heads)
        if piece.empty:
            return torch.zeros_like(hidden_states)
        return attn.to_out[1](attn.to_out[0](out.flatten(1, 2)))


def _rope_forward(rope: Any, piece: Piece) -> Any:
    """The rotary table of this rank's frames: built for frames 0..stop, cut at the start."""

    def forward(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, _, height, width = hidden_states.shape
        first, last = (0, 1) if piece.empty else (piece.mine.start, piece.mine.stop)
        shape = hidden_states.new_empty((1,)).expand(batch, channels, last, height, width)
        cos, sin = type(rope).forward(rope, shape)
        skip = first * (cos.shape[1] // last)
        return cos[:, skip:], sin[:, skip:]

    return forward


def install(model: nn.Module, piece: Piece, patches: Patches) -> None:
    """Patch a WanTransformer3DModel; raises UnsupportedModule or UserError for what it cannot honour."""
    from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock

    if model.config.patch_size[0] != 1:  # type: ignore[union-attr,index]
        raise UnsupportedModule("patch_embedding spans several frames (patch_size[0] > 1)")
    rope: Any = model.rope
    if piece.total > rope.max_seq_len:
        raise UserError(
            f"the rotary table of this model ends at {rope.max_seq_len} latent frames; {piece.total} were asked for"
        )
    if piece.strategy == Exchange.TRANSPOSE:
        raise UserError("strategy=transpose does not apply: tokens of a frame attend to each other; use halo or gather")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            raise UnsupportedModule(f"{name} (Conv3d) convolves over frames and is not covered")
        if isinstance(module, WanAttention) and not name.endswith((".attn1", ".attn2")):
            raise UnsupportedModule(f"{name} (WanAttention) is not covered; covered is attn1 of each block")
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
        if type(block) is not WanTransformerBlock:
            raise UnsupportedModule(f"blocks.{index} ({type(block).__name__}) is not a WanTransformerBlock")
    watch_calls(model, piece, patches, "hidden_states", _prepare_call(model, piece))
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
        _use_frame_text(block, f"blocks.{index}.attn2", piece, patches)
    if piece.alone and piece.scope is None:
        return
    patches.forward(rope, _rope_forward(rope, piece))
    processor = WanTimeAttention(piece)
    for block in model.blocks:  # type: ignore[union-attr]
        patches.processor(block.attn1, processor)


def _prepare_call(model: Any, piece: Piece) -> Any:
    """Per-frame text through the model's text projection; a dummy frame's timesteps for a rank without frames."""
    _, patch_height, patch_width = model.config.patch_size

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if piece.text is not None:
            piece.text = model.condition_embedder.text_embedder(piece.text)
        timestep = argument(args, kwargs, 1, "timestep")
        if not (piece.empty and isinstance(timestep, Tensor) and timestep.ndim == 2):
            return args, kwargs
        sample = argument(args, kwargs, 0, "hidden_states")
        tokens = (sample.shape[-2] // patch_height) * (sample.shape[-1] // patch_width)
        timestep = timestep.new_zeros((sample.shape[0], tokens))
        return ((args[0], timestep, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "timestep": timestep})

    return prepare


def _use_frame_text(block: Any, name: str, piece: Piece, patches: Patches) -> None:
    """In attn2, let each frame read its own text: frames move to the batch for the call."""

    def before(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if piece.text is None:
            return None
        if attention.add_k_proj is not None:
            raise UserError(
                f"{name} mixes image states into the text: text that changes along the video is not available"
            )
        return (args[0].unflatten(1, (piece.frames, -1)).flatten(0, 1), piece.text, *args[2:]), kwargs

    def after(_attention: Any, _args: Any, output: Tensor) -> Tensor | None:
        return None if piece.text is None else output.unflatten(0, (piece.batch, -1)).flatten(1, 2)

    patches.pre_hook(block.attn2, before)
    patches.post_hook(block.attn2, after)
