"""Adapter for UNetMotionModel (AnimateDiff), plain or with diffusers' FreeNoise.

Frames meet only in the motion modules (AnimateDiffTransformer3D): a group norm over frames and pixels, then blocks with
two self-attentions over the frames of a pixel. A block adds sinusoidal positions, which count from the start of the
sequence and end after 32 frames or so; longer videos need FreeNoise, whose windows count from 0 each. The moments of
the norm are combined exactly over ranks, and the blocks, stock ones, run where the frames are:

    TRANSPOSE  all-to-all, so that a rank holds all frames of some pixels; the usual choice, nothing is computed twice
    HALO       the neighbouring frames that the FreeNoise windows over this rank's frames need, before each block; those
               are computed again here. A plain block needs all frames
    GATHER     all frames of all pixels; for tests

    pipe.enable_free_noise(context_length=16, context_stride=4)            # of a stock AnimateDiffPipeline
    with parallelize(pipe.unet, Partition.even(40, world), None) as handle:
        part = pipe.unet(local_latents, t, encoder_hidden_states=text).sample
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video import freenoise, temporal, unet3d
from longtake.video.piece import Exchange, Mode, Patches, Piece, UnsupportedModule
from torch import Tensor, nn

_SUSPECT = ("temporal", "motion", "spatiotemporal", "3d")
_CONTAINERS = (
    "DownBlockMotion",
    "CrossAttnDownBlockMotion",
    "UpBlockMotion",
    "CrossAttnUpBlockMotion",
    "UNetMidBlockCrossAttnMotion",
)
# arguments of UNetMotionModel.forward, by position
_TEXT = (2, "encoder_hidden_states")
_BY_FRAME = ((4, "attention_mask"), (7, "down_block_additional_residuals"), (8, "mid_block_additional_residual"))


def is_motion_unet(model: nn.Module) -> bool:
    """Whether the model is a UNetMotionModel or derived from it."""
    return any(base.__name__ == "UNetMotionModel" for base in type(model).__mro__)


def motion_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The motion modules by name.

    Raises:
        UnsupportedModule: something else mixes frames, or a motion module is a variant that is not covered.
    """
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    found: dict[str, nn.Module] = {}
    covered: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (covered and name.startswith(covered)):
            continue
        kind = type(module).__name__
        if type(module) is AnimateDiffTransformer3D:
            found[name] = module
            covered += (name + ".",)
            for index, block in enumerate(_blocks(module)):
                _check_block(block, f"{name}.transformer_blocks.{index}")
        elif isinstance(module, nn.Conv3d) and module.kernel_size[0] == 1:
            continue
        elif kind not in _CONTAINERS and any(word in kind.lower() for word in _SUSPECT):
            raise UnsupportedModule(
                f"{name} ({kind}) mixes frames in a way that this adapter does not cover; covered is "
                "AnimateDiffTransformer3D"
            )
    return found


def _stock(block: nn.Module) -> nn.Module:
    """The block itself where diffusers' split inference wraps it."""
    return block.module if type(block).__name__ == "SplitInferenceModule" else block  # type: ignore[return-value]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    return map(_stock, module.transformer_blocks)  # type: ignore[arg-type]


def _check_block(block: nn.Module, name: str) -> None:
    from diffusers.models.attention import BasicTransformerBlock, FreeNoiseTransformerBlock

    if type(block) not in (BasicTransformerBlock, FreeNoiseTransformerBlock):
        raise UnsupportedModule(
            f"{name} is a {type(block).__name__}; covered are BasicTransformerBlock and FreeNoiseTransformerBlock"
        )
    if block.norm_type != "layer_norm":
        raise UnsupportedModule(f"{name} uses norm_type={block.norm_type!r}; covered is 'layer_norm'")
    for part in ("attn1", "attn2"):
        attention = getattr(block, part, None)
        if attention is not None and attention.is_cross_attention:
            raise UnsupportedModule(f"{name}.{part} is not a self-attention over time")


def _windows(block: nn.Module) -> tuple[int, int] | None:
    """(context_length, context_stride) of a FreeNoise block; None for a plain one."""
    if type(block).__name__ != "FreeNoiseTransformerBlock":
        return None
    return int(block.context_length), int(block.context_stride)  # type: ignore[arg-type]


def check_length(model: nn.Module, total: int) -> None:
    """Refuse a video that the model's positions cannot count.

    Raises:
        UserError: a plain block has fewer positions than the video has frames, a FreeNoise block fewer than a window,
            or the video is shorter than a window.
    """
    for name, module in motion_modules(model).items():
        for index, block in enumerate(_blocks(module)):
            where = f"{name}.transformer_blocks.{index}"
            positions = None if block.pos_embed is None else int(block.pos_embed.pe.shape[1])  # type: ignore
            shape = _windows(block)
            if shape is not None:
                freenoise.check_windows(total, *shape)
                if positions is not None and shape[0] > positions:
                    raise UserError(
                        f"{where} has {positions} positions, but FreeNoise's context_length is {shape[0]}: "
                        f"enable_free_noise(context_length=...) takes up to {positions} frames"
                    )
            elif positions is not None and total > positions:
                raise UserError(
                    f"{where} has {positions} positions in time, but the video has {total} frames: switch FreeNoise on "
                    "(--free-noise 16:4, or pipeline.enable_free_noise(context_length=16, context_stride=4)), or make "
                    f"at most {positions} frames"
                )


def install(model: nn.Module, piece: Piece, patches: Patches, chunk_frames: int | None) -> str:
    """Patch a UNetMotionModel so that a call with this rank's frames computes its part of the whole video.

    Text: `encoder_hidden_states` has a row for each frame, (B*F, n, D) as AnimateDiffPipeline gives it, for this rank's
    frames (B*T, n, D), or one for each video, (B, n, D). One process needs no patch: the stock forward runs.

    Returns why the strategy was chosen.

    Raises:
        UnsupportedModule, UserError: see `motion_modules` and `check_length`, and settings that mean nothing here.
    """
    if piece.mode != Mode.EXACT:
        raise UserError(f"UNetMotionModel takes mode exact; given {piece.mode}")
    if piece.scope is not None:
        raise UserError(
            "UNetMotionModel takes scope None: what a frame attends to is the whole video, or FreeNoise's windows "
            "(pipeline.enable_free_noise)"
        )
    if chunk_frames is not None:
        raise UserError(
            "chunk_frames is for UNet3DConditionModel; UNetMotionModel has enable_free_noise_split_inference"
        )
    check_length(model, piece.total)
    reason = _choose(model, piece)
    unet3d.watch_calls(model, piece, patches, "sample", partial(_prepare, model, piece))
    if not piece.alone:
        for module in motion_modules(model).values():
            patches.forward(module, _forward(module, piece))
    return reason


def _choose(model: nn.Module, piece: Piece) -> str:
    asked = piece.strategy
    if asked == Exchange.AUTO:
        piece.strategy = Exchange.TRANSPOSE
    if piece.alone:
        return "one process, nothing to exchange"
    if piece.strategy == Exchange.HALO:
        for module in motion_modules(model).values():
            for block in _blocks(module):
                _reach(block, piece.partition, Exchange.HALO)  # refuses windows with gaps
    why = "no frame is computed twice" if asked == Exchange.AUTO else "as asked"
    return f"{why}; elements received per call, batch entry and latent pixel: " + ", ".join(
        f"{name} {elements:.4g}" for name, elements in traffic(model, piece).items()
    )


# ---- one call -------------------------------------------------------------------------------------------------------


def _prepare(model: nn.Module, piece: Piece, args: tuple[Any, ...], kwargs: dict[str, Any]) -> unet3d.Arguments:
    """The arguments of a model call: text by frame, and nothing by frame for the dummy frame of an empty piece."""
    check_length(model, piece.total)  # again: FreeNoise can be set anew between calls
    text = piece.text if piece.text is not None else _text_by_frame(piece, unet3d.argument(args, kwargs, *_TEXT))
    args, kwargs = _replace(args, kwargs, *_TEXT, text)
    if piece.empty:
        for position, name in _BY_FRAME:
            if unet3d.argument(args, kwargs, position, name) is not None:
                args, kwargs = _replace(args, kwargs, position, name, None)
    return args, kwargs


def _replace(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


def _text_by_frame(piece: Piece, text: Any) -> Any:
    """(B*T, n, D) for the frames computed here, from one row for each of them, for each frame of the video, or for each
    video."""
    if not isinstance(text, Tensor):
        raise UserError(
            "UNetMotionModel wants encoder_hidden_states (batch * frames, tokens, width); given "
            f"{type(text).__name__}: image prompts go into added_cond_kwargs"
        )
    rows, own = text.shape[0], len(piece.mine)
    if rows == piece.batch * own:
        return text if own else text.new_zeros((piece.batch, *text.shape[1:]))
    if rows == piece.batch:
        return text.repeat_interleave(piece.frames, 0)
    if rows == piece.batch * piece.total:
        start = piece.mine.start if own else 0
        return text.unflatten(0, (piece.batch, piece.total))[:, start : start + piece.frames].flatten(0, 1)
    raise UserError(
        f"encoder_hidden_states has {rows} rows; UNetMotionModel wants one for each of {piece.batch} videos, for each "
        f"of this rank's frames ({piece.batch * own}), or for each frame of the video ({piece.batch * piece.total})"
    )


def _forward(module: nn.Module, piece: Piece) -> Callable[..., Tensor]:
    """A forward with the signature of AnimateDiffTransformer3D."""

    @torch.no_grad()
    def forward(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        if any(given is not None for given in (encoder_hidden_states, timestep, class_labels)):
            raise UnsupportedModule("a motion module was called with encoder states, a timestep or class labels")
        return motion_module(module, piece, hidden_states, cross_attention_kwargs)

    return forward


def motion_module(module: nn.Module, piece: Piece, hidden: Tensor, kwargs: dict[str, Any] | None = None) -> Tensor:
    """An AnimateDiffTransformer3D over this rank's frames. hidden: (B*T, C, h, w); returns the same shape."""
    norm: nn.GroupNorm = module.norm  # type: ignore[assignment]
    x = temporal.rows_view(hidden, piece.batch)
    if piece.empty:
        x = x[:, :0]
    pixels = x.shape[3]
    per_frame = pixels * norm.num_channels // norm.num_groups
    moments = temporal.frame_moments(x, norm.num_groups)
    if piece.strategy == Exchange.TRANSPOSE:
        with piece.transport.round():
            statistics = temporal.start_statistics(piece, *moments, per_frame)
            shared = piece.transport.time_to_space(x, piece.partition, 1, 3)
        out = shared
        if shared.shape[3]:
            tokens = temporal.normalised_tokens(shared, *temporal.affine(norm, *statistics.wait(), x.dtype))
            out = _run(module, tokens, lambda block, rows: block(hidden_states=rows, cross_attention_kwargs=kwargs))
        else:
            statistics.wait()
        out = piece.transport.space_to_time(out, piece.partition, 1, 3, space_total=pixels)
    else:
        statistics = temporal.start_statistics(piece, *moments, per_frame)
        tokens = temporal.normalised_tokens(x, *temporal.affine(norm, *statistics.wait(), x.dtype))
        out = _run(module, tokens, partial(_among_neighbours, piece, kwargs))
    if piece.empty:
        return hidden
    return (x + out).view(hidden.shape)


def _run(module: nn.Module, tokens_BpTC: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """Project in, run the blocks, project out. Returns (B, T, C, p), without the residual."""
    rows = module.proj_in(input=tokens_BpTC.flatten(0, 1))  # type: ignore[operator]
    for block in module.transformer_blocks:  # type: ignore[union-attr]
        rows = run(block, rows)
    rows = module.proj_out(input=rows)  # type: ignore[operator]
    return rows.view(tokens_BpTC.shape).permute(0, 2, 3, 1)


# ---- halo and gather ------------------------------------------------------------------------------------------------


def _needed(block: nn.Module, partition: Partition, rank: int, strategy: Exchange) -> range:
    """The frames that `rank` needs to run a block for its own."""
    own, shape = partition.range(rank), _windows(block)
    if not len(own):
        return own
    if shape is None or strategy == Exchange.GATHER:
        return range(partition.total)
    return freenoise.neighbourhood(own, partition.total, *shape)


def _reach(block: nn.Module, partition: Partition, strategy: Exchange) -> tuple[int, int]:
    """Frames before and after a piece that the neediest rank asks for; all ranks know it."""
    left = right = 0
    for rank in range(partition.parts):
        own, needed = partition.range(rank), _needed(block, partition, rank, strategy)
        left, right = max(left, own.start - needed.start), max(right, needed.stop - own.stop)
    return left, right


def _among_neighbours(piece: Piece, kwargs: dict[str, Any] | None, block: nn.Module, rows: Tensor) -> Tensor:
    """A block over this rank's frames and the others that they need. rows: (N, T, C); returns the same shape."""
    partition, own = piece.partition, piece.mine
    left, right = _reach(_stock(block), partition, piece.strategy)
    ((before, after),) = piece.transport.start_halo([rows], 1, partition, left, right).wait()
    if piece.empty:
        return rows
    needed = _needed(_stock(block), partition, piece.transport.rank, piece.strategy)
    first = own.start - before.shape[1]
    held = torch.cat([before, rows, after], 1)[:, needed.start - first : needed.stop - first]
    out = block(hidden_states=held, cross_attention_kwargs=kwargs)
    return out[:, own.start - needed.start : own.stop - needed.start]  # type: ignore[no-any-return]


def _outside(block: nn.Module, partition: Partition, strategy: Exchange) -> int:
    """Frames that the busiest rank receives for a block."""
    left, right = _reach(block, partition, strategy)
    pieces = [partition.range(rank) for rank in range(partition.parts)]
    return max(min(left, own.start) + min(right, partition.total - own.stop) for own in pieces if len(own))


def traffic(model: nn.Module, piece: Piece) -> dict[Exchange, float]:
    """Elements that the busiest rank receives in one call for the motion modules, per batch entry and latent pixel.

    HALO and GATHER are (frames from others) * C for each block, TRANSPOSE is 2 T (W-1)/W C for each motion module.
    HALO is left out where FreeNoise's windows have gaps, which it does not take.
    """
    partition, world = piece.partition, piece.partition.parts
    levels = len(model.down_blocks)  # type: ignore[arg-type]
    costs = {Exchange.HALO: 0.0, Exchange.TRANSPOSE: 0.0, Exchange.GATHER: 0.0}
    for name, module in motion_modules(model).items():
        channels: float = module.norm.num_channels * 0.25 ** unet3d._level(name, levels)  # type: ignore
        costs[Exchange.TRANSPOSE] += 2.0 * max(partition.sizes) * (world - 1) / world * channels
        for block in _blocks(module):
            shape = _windows(block)
            if shape is not None and shape[1] > shape[0]:
                costs.pop(Exchange.HALO, None)
            for strategy in (Exchange.HALO, Exchange.GATHER):
                if strategy in costs:
                    costs[strategy] += channels * _outside(block, partition, strategy)
    return costs
