"""The released Video-Infinity code (acfcd17), kept as a mode so that its numbers can be had again.

What differs from the sound version, and why it is not the default:
    - the global frames depend on the number of clips, and some clips may contribute none;
    - a frame may count twice, as a local and as a global key;
    - beyond the ends of the video stand zero keys that take part in the softmax;
    - group norms see one clip, in temporal conv layers a clip with four halo frames on each side (zeros at the ends).
A run therefore depends on the number of clips; one clip per rank as released, or several clips on a rank
(`LegacyConfig.clips`), which emulates many ranks in one process.

    handle = parallelize(unet, Partition.even(18, 1), None, mode="legacy", legacy=LegacyConfig(clips=3))

Legend: B batch, n clips here, T frames of a clip, C channels, p pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from longtake.errors import UserError
from longtake.kernels.masks.basic import DualScope, Edge, Overlap
from longtake.kernels.partition import Partition
from longtake.video import temporal, unet3d
from longtake.video.piece import Patches, Piece
from torch import Tensor, nn

CONV_HALO = 4  # frames on each side of a clip in a temporal conv layer
TRAINED_KEYS = 16.0  # the 16 in log(n) / log(16) of token_num_scale


@dataclass(frozen=True)
class Phase:
    """One phase of the bias schedule: from timestep `t` on (global) or below it (local), logits get these biases."""

    t: float = 800.0
    local_bias: float = 0.0
    global_bias: float = 0.0


@dataclass(frozen=True)
class LegacyConfig:
    """`plugin_configs.attn` of the released configuration files, with their defaults.

    Args:
        padding: local window on each side, in frames; at most the length of a clip.
        top_k: most global frames.
        attn_scale: factor on the logits.
        token_num_scale: multiply the logits of a query with n keys by log(n) / log(16).
        dynamic_scale: whether the two phases are used at all.
        local_phase, global_phase: biases for t < local_phase.t and for t >= global_phase.t (both tests are made).
        clips: clips of the whole video; None is one per rank. Every rank holds whole clips of equal length.
    """

    padding: int = 8
    top_k: int = 16
    attn_scale: float = 1.0
    token_num_scale: bool = False
    dynamic_scale: bool = True
    local_phase: Phase = field(default_factory=lambda: Phase(800.0, 10.0, 0.0))
    global_phase: Phase = field(default_factory=lambda: Phase(800.0, 0.0, 10.0))
    clips: int | None = None

    def clip_frames(self, partition: Partition) -> int:
        """T, frames of a clip. UserError when the video cannot be cut as the released code requires."""
        clips = self.clips or partition.parts
        frames, rest = divmod(partition.total, clips)
        if rest or frames == 0 or any(size == 0 or size % frames for size in partition.sizes):
            raise UserError(
                f"legacy mode needs clips of equal length on every rank; {partition.total} frames in {clips} clips "
                f"over pieces of {', '.join(map(str, partition.sizes))} frames do not give that"
            )
        if clips > 1 and frames < max(self.padding, CONV_HALO):
            raise UserError(
                f"legacy mode takes its halo from the adjacent clip only: a clip of {frames} frames is shorter than "
                f"padding {self.padding} or the conv halo {CONV_HALO}"
            )
        return frames

    def global_indices(self, clips: int, frames: int) -> tuple[int, ...]:
        """Frame numbers of the global keys in key order: the same frames of each clip, cut to the first top_k."""
        share = self.top_k // clips
        stride = max(frames // share, 1) if share else frames
        every = [clip * frames + local for clip in range(clips) for local in range(0, frames, stride)]
        return tuple(every[: self.top_k])


class LegacySchedule:
    """The released mask and biases as a `DualScope` per step."""

    def __init__(self, config: LegacyConfig, partition: Partition):
        self.config = config
        frames = config.clip_frames(partition)
        self.shared = config.global_indices(partition.total // frames, frames)

    @property
    def needs_timestep(self) -> bool:
        return self.config.dynamic_scale

    def at(self, timestep: float | None, total: int) -> DualScope:
        config = self.config
        local = shared = 0.0
        if config.dynamic_scale:
            if timestep is None:
                raise UserError("dynamic_scale needs the timestep of the step; pass it to the model or set_timestep")
            phases = []
            if timestep < config.local_phase.t:
                phases.append(config.local_phase)
            if timestep >= config.global_phase.t:
                phases.append(config.global_phase)
            local, shared = sum(p.local_bias for p in phases), sum(p.global_bias for p in phases)
        return DualScope(
            window=config.padding,
            global_indices=self.shared,
            overlap=Overlap.MULTISET,
            edge=Edge.ZERO,
            bias_local=local,
            bias_global=shared,
            row_scale=TRAINED_KEYS if config.token_num_scale else None,
        )


def conv_layer(layer: nn.Module, piece: Piece, frames: int, hidden: Tensor) -> Tensor:
    """A TemporalConvLayer on every clip with four frames of halo: the stock stages on T + 8 frames, then a crop."""
    x = hidden.unflatten(0, (piece.batch, -1))
    ((left, right),) = piece.transport.start_halo([x], 1, piece.partition, CONV_HALO, CONV_HALO).wait()

    def filled(edge: Tensor, at_start: bool) -> Tensor:
        missing = CONV_HALO - edge.shape[1]
        if not missing:
            return edge
        zeros = x.new_zeros((x.shape[0], missing, *x.shape[2:]))
        return torch.cat([zeros, edge] if at_start else [edge, zeros], 1)

    wide = torch.cat([filled(left, True), x, filled(right, False)], 1)
    padded = wide.unfold(1, frames + 2 * CONV_HALO, frames)  # (B, n, C, h, w, T + 8)
    out = padded.flatten(0, 1).permute(0, 1, 4, 2, 3)
    for part in ("conv1", "conv2", "conv3", "conv4"):
        out = getattr(layer, part)(out)
    out = out[:, :, CONV_HALO:-CONV_HALO].permute(0, 2, 1, 3, 4)
    return hidden + out.reshape(hidden.shape)


def transformer(module: nn.Module, piece: Piece, frames: int, hidden: Tensor, kwargs: dict[str, Any] | None) -> Tensor:
    """A TransformerTemporalModel whose group norm sees one clip at a time."""
    norm: nn.GroupNorm = module.norm  # type: ignore[assignment]
    x = temporal.rows_view(hidden, piece.batch)
    batch, _, channels, pixels = x.shape
    clips = x.reshape(-1, frames, channels, pixels).transpose(1, 2)
    normed = nnf.group_norm(clips, norm.num_groups, norm.weight, norm.bias, norm.eps)  # (B*n, C, T, p)
    tokens = normed.unflatten(0, (batch, -1)).permute(0, 4, 1, 3, 2).reshape(batch, pixels, -1, channels)
    return (x + temporal.blocks(module, tokens, kwargs)).view(hidden.shape)


def install(model: nn.Module, piece: Piece, patches: Patches, config: LegacyConfig) -> None:
    """Patch a UNet3DConditionModel to compute what the released code computes on this rank's clips."""
    transformers, convolutions = unet3d.temporal_modules(model)
    frames = config.clip_frames(piece.partition)
    unet3d.refuse_volume_norms(model, patches)
    unet3d.watch_calls(model, piece, patches, "sample")
    unet3d.use_frame_text(model, piece, patches)
    processor = temporal.TimeAttention(piece, logit_scale=config.attn_scale)
    for module in convolutions.values():
        patches.forward(module, unet3d.conv_forward(partial(conv_layer, module, piece, frames)))
    for module in transformers.values():
        patches.forward(module, unet3d.transformer_forward(partial(transformer, module, piece, frames)))
        unet3d.use_time_attention(module, patches, processor)
