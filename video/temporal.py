"""The temporal modules of UNet3DConditionModel, computed on a piece of the video as if it were the whole.

Group norm over time needs the moments of every frame: they are combined exactly over ranks, in float64. A temporal
convolution needs one neighbouring frame on each side: the raw edge frames travel in the same round as the moments and
are normalised on arrival; zeros stand only beyond the true ends of the video, after the activation.

Legend: B batch, T frames here, C channels, G groups, p pixels. The spatial layers keep NCHW; inside a temporal
conv layer frames are laid out as (B, T, p, C), where a (3, 1, 1) convolution is a 2-D one in channels-last order
(two to four times faster than Conv3d in oneDNN on a CPU).

    hidden = conv_layer(layer, piece, hidden)          # (B*T, C, h, w) -> (B*T, C, h, w)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from longtake.kernels.precision import accumulator_dtype
from longtake.kernels.ranks.transport import Pending
from longtake.video.piece import Exchange, Mode, Piece, UnsupportedModule
from torch import Tensor, nn

FAST_HALO = 4  # frames: four stages of reach 1


def row_moments(x_BnC: Tensor, groups: int) -> tuple[Tensor, Tensor, int]:
    """Moments of channels-last rows.

    x_BnC: (B, n, C). Returns float64 mean (B, G), sum of squared deviations (B, G), and the element count of a group.
    Two passes: the deviations are taken from the mean of the channel, so nothing cancels.
    """
    batch, rows, channels = x_BnC.shape
    if rows == 0:
        nothing = x_BnC.new_zeros((batch, groups), dtype=torch.float64)
        return nothing, nothing.clone(), 0
    if x_BnC.device.type == "cpu" and x_BnC.dtype in (torch.float32, torch.float64):
        ones = x_BnC.new_ones((1, rows))  # on a CPU a product with ones is the fastest sum over rows
        mean = (ones @ x_BnC) / rows
        deviation = x_BnC - mean
        spread = ones @ deviation.mul_(deviation)
    else:
        wide = x_BnC.float()
        mean = wide.mean(1, keepdim=True)
        spread = (wide - mean).square_().sum(1, keepdim=True)
    mean_G, spread_G = (part.double().view(batch, groups, -1) for part in (mean, spread))
    mean = mean_G.mean(-1)
    spread = (spread_G + rows * (mean_G - mean[..., None]).square()).sum(-1)
    return mean, spread, rows * channels // groups


def frame_moments(x_BTCp: Tensor, groups: int) -> tuple[Tensor, Tensor, int]:
    """The same for (B, T, C, p), where the elements of a frame's group lie together."""
    batch, frames, channels, pixels = x_BTCp.shape
    size = channels // groups * pixels
    if frames * pixels == 0:
        nothing = x_BTCp.new_zeros((batch, groups), dtype=torch.float64)
        return nothing, nothing.clone(), 0
    grouped = x_BTCp.reshape(batch * frames, groups, size).contiguous()
    if x_BTCp.device.type == "cpu" and x_BTCp.dtype in (torch.float32, torch.float64):
        tiny = 1e-30  # native_group_norm wants an epsilon; its kernel is ten times faster than var_mean
        _, mean, rstd = torch.native_group_norm(grouped, None, None, batch * frames, groups, size, groups, tiny)
        var = rstd.double().pow(-2)
    else:
        var, mean = torch.var_mean(grouped.float(), dim=-1, correction=0)
        var = var.double()
    mean_BTG, var_BTG = mean.double().view(batch, frames, groups), var.view(batch, frames, groups)
    mean_BG = mean_BTG.mean(1)
    spread = size * (var_BTG + (mean_BTG - mean_BG[:, None]).square()).sum(1)
    return mean_BG, spread, size * frames


def affine(norm: nn.GroupNorm, mean: Tensor, var: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Group norm as x * scale + shift: (B, C) each, float32 (float64 for float64 input)."""
    rstd = (var + norm.eps).rsqrt()
    batch, groups = mean.shape
    per_group = norm.num_channels // groups
    if norm.weight is None:
        scale = rstd.repeat_interleave(per_group, 1)
        shift = (-mean * rstd).repeat_interleave(per_group, 1)
    else:
        weight, bias = norm.weight.double().view(1, groups, -1), norm.bias.double().view(1, groups, -1)
        scale = weight * rstd[..., None]
        shift = bias - mean[..., None] * scale
    wide = accumulator_dtype(dtype)
    return scale.reshape(batch, -1).to(wide), shift.reshape(batch, -1).to(wide)


def start_statistics(
    piece: Piece, mean: Tensor, spread: Tensor, count: int, per_frame: int
) -> Pending[tuple[Tensor, Tensor]]:
    """Post the exact combination over ranks; `per_frame` elements of a group in one frame give the total count."""
    return piece.transport.start_moments(mean, spread, count=count, total=per_frame * piece.total)


def rows_view(x: Tensor, batch: int) -> Tensor:
    """(B*T, C, h, w) as (B, T, C, p)."""
    return x.reshape(batch, -1, x.shape[1], x.shape[2] * x.shape[3])


def as_pixels_last(x_BTCp: Tensor) -> Tensor:
    """(B, T, C, p) -> (B, T, p, C), contiguous."""
    return x_BTCp.transpose(2, 3).contiguous()


# ---- TemporalConvLayer ----------------------------------------------------------------------------------------------


def conv_stages(layer: nn.Module, name: str = "TemporalConvLayer") -> list[tuple[nn.GroupNorm, nn.Conv3d]]:
    """The four (norm, conv) pairs of a TemporalConvLayer, checked to be what is expected."""
    stages = []
    for part in ("conv1", "conv2", "conv3", "conv4"):
        steps = list(getattr(layer, part))
        norm, act, conv = steps[0], steps[1], steps[-1]
        if not (
            isinstance(norm, nn.GroupNorm)
            and isinstance(act, nn.SiLU)
            and isinstance(conv, nn.Conv3d)
            and conv.kernel_size == (3, 1, 1)
            and conv.padding == (1, 0, 0)
            and conv.groups == 1
        ):
            raise UnsupportedModule(f"{name}.{part} is not group norm, SiLU and a (3, 1, 1) convolution")
        stages.append((norm, conv))
    return stages


def stage(
    x_BTpC: Tensor,
    conv: nn.Conv3d,
    scale: Tensor,
    shift: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    pad: tuple[int, int] = (1, 1),
) -> Tensor:
    """silu(x * scale + shift), then the convolution over time.

    left, right: raw frames (B, 1, p, C) just outside x, or None for a true end of the video, where zeros stand.
    pad: frames wanted on each side; 0 lets the convolution shrink that side. Returns (B, T', p, C).
    """
    batch, frames, pixels, channels = x_BTpC.shape
    scale, shift = scale.view(batch, 1, 1, -1), shift.view(batch, 1, 1, -1)
    act = x_BTpC.new_empty((batch, frames + sum(pad), pixels, channels))
    torch.addcmul(shift, x_BTpC, scale, out=act[:, pad[0] : pad[0] + frames])
    for edge, slot, width in ((left, slice(0, 1), pad[0]), (right, slice(act.shape[1] - 1, None), pad[1])):
        if not width:
            continue
        if edge is None or edge.shape[1] == 0:
            act[:, slot] = 0
        else:
            torch.addcmul(shift, edge, scale, out=act[:, slot])
    nnf.silu(act, inplace=True)
    out = nnf.conv2d(act.permute(0, 3, 1, 2), conv.weight[..., 0], conv.bias)
    return out.permute(0, 2, 3, 1).contiguous()


def _exact_stages(stages: list[tuple[nn.GroupNorm, nn.Conv3d]], x: Tensor, piece: Piece) -> Tensor:
    for norm, conv in stages:
        mean, spread, count = row_moments(x.flatten(1, 2), norm.num_groups)
        per_frame = x.shape[2] * norm.num_channels // norm.num_groups
        left = right = None
        if piece.alone:
            statistics = start_statistics(piece, mean, spread, count, per_frame)
        else:
            with piece.transport.round():
                statistics = start_statistics(piece, mean, spread, count, per_frame)
                edges = piece.transport.start_halo([x], 1, piece.partition, 1, 1)
            ((left, right),) = edges.wait()
        if x.shape[1] == 0:
            statistics.wait()
            x = x.new_empty((*x.shape[:3], conv.out_channels))
            continue
        x = stage(x, conv, *affine(norm, *statistics.wait(), x.dtype), left, right)
    return x


def _fast_stages(stages: list[tuple[nn.GroupNorm, nn.Conv3d]], x: Tensor, piece: Piece) -> Tensor:
    """One wide halo for the layer. Approximate: stages 2-4 are normalised by this rank's own frames only."""
    norm = stages[0][0]
    mean, spread, count = row_moments(x.flatten(1, 2), norm.num_groups)
    own = x.shape[1]
    with piece.transport.round():
        statistics = start_statistics(piece, mean, spread, count, x.shape[2] * norm.num_channels // norm.num_groups)
        halo = piece.transport.start_halo([x], 1, piece.partition, FAST_HALO, FAST_HALO)
    ((left, right),) = halo.wait()
    moments = statistics.wait()
    if own == 0:
        return x
    before, after = left.shape[1], right.shape[1]
    first, last = piece.mine.start - before == 0, piece.mine.stop + after == piece.total
    x = torch.cat([left, x, right], 1)
    for index, (norm, conv) in enumerate(stages):
        if index:
            mean, spread, count = row_moments(x[:, before : before + own].flatten(1, 2), norm.num_groups)
            moments = (mean, spread / count)
        x = stage(x, conv, *affine(norm, *moments, x.dtype), None, None, pad=(int(first), int(last)))
        before -= not first
    return x[:, before : before + own]


def conv_layer(layer: nn.Module, piece: Piece, hidden: Tensor) -> Tensor:
    """A TemporalConvLayer over this rank's frames. hidden: (B*T, C, h, w); returns the same shape."""
    x_BTCp = rows_view(hidden, piece.batch)
    x = as_pixels_last(x_BTCp[:, :0] if piece.empty else x_BTCp)
    run = _fast_stages if piece.mode == Mode.FAST and not piece.alone else _exact_stages
    y = run(conv_stages(layer), x, piece)
    if piece.empty:
        return hidden
    return (x_BTCp + y.transpose(2, 3)).view(hidden.shape)


# ---- TransformerTemporalModel ---------------------------------------------------------------------------------------


def check_transformer(module: nn.Module, name: str) -> None:
    """Refuse variants of TransformerTemporalModel whose blocks do more than two self-attentions and a feed-forward."""
    for index, block in enumerate(module.transformer_blocks):  # type: ignore[arg-type,union-attr]
        if getattr(block, "pos_embed", None) is not None:
            raise UnsupportedModule(f"{name}.transformer_blocks.{index} has a positional embedding over time")
        if block.norm_type != "layer_norm":
            raise UnsupportedModule(f"{name}.transformer_blocks.{index} uses norm_type={block.norm_type!r}")
        for part in ("attn1", "attn2"):
            attention = getattr(block, part)
            if attention is not None and (attention.is_cross_attention or attention.norm_cross is not None):
                raise UnsupportedModule(f"{name}.transformer_blocks.{index}.{part} is not a self-attention over time")


def normalised_tokens(x_BTCp: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift, laid out as tokens (B, p, T, C)."""
    batch, frames, channels, pixels = x_BTCp.shape
    tokens = x_BTCp.new_empty((batch, pixels, frames, channels))
    scale, shift = scale.view(batch, 1, 1, -1), shift.view(batch, 1, 1, -1)
    return torch.addcmul(shift, x_BTCp.permute(0, 3, 1, 2), scale, out=tokens)


def blocks(module: nn.Module, tokens_BpTC: Tensor, kwargs: dict[str, Any] | None) -> Tensor:
    """Project in, run the transformer blocks, project out. Returns (B, T, C, p), without the residual."""
    hidden = module.proj_in(tokens_BpTC.flatten(0, 1))  # type: ignore[operator]
    for block in module.transformer_blocks:  # type: ignore[union-attr]
        hidden = block(hidden, cross_attention_kwargs=kwargs)
    hidden = module.proj_out(hidden)  # type: ignore[operator]
    return hidden.view(tokens_BpTC.shape).permute(0, 2, 3, 1)


def transformer(module: nn.Module, piece: Piece, hidden: Tensor, kwargs: dict[str, Any] | None = None) -> Tensor:
    """A TransformerTemporalModel over this rank's frames. hidden: (B*T, C, h, w); returns the same shape."""
    norm: nn.GroupNorm = module.norm  # type: ignore[assignment]
    x = rows_view(hidden, piece.batch)
    if piece.empty:
        x = x[:, :0]
    pixels = x.shape[3]
    per_frame = pixels * norm.num_channels // norm.num_groups
    moments = frame_moments(x, norm.num_groups)
    if piece.strategy == Exchange.TRANSPOSE and not piece.alone:
        with piece.transport.round():
            statistics = start_statistics(piece, *moments, per_frame)
            shared = piece.transport.time_to_space(x, piece.partition, 1, 3)
        scale, shift = affine(norm, *statistics.wait(), x.dtype)
        with piece.holding(range(piece.total)):
            out = blocks(module, normalised_tokens(shared, scale, shift), kwargs) if shared.shape[3] else shared
        out = piece.transport.space_to_time(out, piece.partition, 1, 3, space_total=pixels)
    else:
        scale, shift = affine(norm, *start_statistics(piece, *moments, per_frame).wait(), x.dtype)
        out = blocks(module, normalised_tokens(x, scale, shift), kwargs)
    if piece.empty:
        return hidden
    return (x + out).view(hidden.shape)


class TimeAttention:
    """Processor for the self-attentions of a temporal transformer: stock projections, `piece.attend` in the middle."""

    def __init__(self, piece: Piece, logit_scale: float = 1.0):
        self.piece = piece
        self.logit_scale = logit_scale

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UnsupportedModule("temporal attention was called with encoder states or a mask")
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        scale = self.logit_scale * (query.shape[-1] // attn.heads) ** -0.5
        out = self.piece.attend(query, key, value, attn.heads, scale)
        return attn.to_out[1](attn.to_out[0](out))
