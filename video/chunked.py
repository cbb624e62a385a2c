"""UNet3DConditionModel in pieces that fit: the exact result with memory that hardly depends on the number of frames.

Layers that treat frames as a batch (spatial ones) are computed a few frames at a time; layers along time a few pixels
at a time; group norms over time get exact moments from a first pass. One full-length hidden state is in memory, changed
in place, a second one inside a temporal conv layer; skip connections wait in a `Parking`. Works with any scope, with
text that changes along the video, and with several ranks (each chunks its own frames; pixels are cut alike everywhere,
so exchanges meet).

Legend: B batch, T frames here, C channels, p = h*w pixels, t frames of a chunk, q pixels of a chunk.

    handle = parallelize(unet, Partition.even(2300, 1), scope, chunk_frames=16)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from longtake.device import free_memory_bytes, most_that_fit
from longtake.errors import UserError
from longtake.video import temporal, unet3d
from longtake.video.parking import Parking, Ticket
from longtake.video.piece import Mode, Patches, Piece
from torch import Tensor, nn

PARK_BYTES = 64 << 20  # skip connections beyond this wait in a temporary file
CACHE_LINE_PIXELS = 16  # float32 pixels of a cache line: pixels are loaded at least so many at a time

# Hidden states of the widest level that a frame needs at the peak of a call: 13 GiB more for 240 frames more, bfloat16,
# VideoCrafter2 at 320x512 on one H200 (skip connections, a layer's inputs and outputs, queries, keys and values).
STATES_OF_A_FRAME = 34
STATES_OF_ALL = 2  # full-length ones in chunked mode: the hidden state, and a second one in a temporal conv layer

Moments = tuple[Tensor, Tensor, int]


def chunk_that_fits(
    model: nn.Module, frames: int, height: int, width: int, batch: int, device: torch.device
) -> int | None:
    """Frames of a chunk for `parallelize(chunk_frames=)` on a GPU: None where all fit into the memory that is free now,
    else the most that do.

    frames: of this rank. height, width: of the latents. batch: entries of a call (2 where both guidance passes are
    one). Raises UserError when not even one frame fits.
    """
    channels: int = model.config.block_out_channels[0]  # type: ignore[union-attr,index,assignment]
    state = batch * channels * height * width * next(model.parameters()).element_size()
    most = most_that_fit(device, STATES_OF_A_FRAME * state)
    if most is None or most >= frames:
        return None
    chunk = most_that_fit(device, STATES_OF_A_FRAME * state, STATES_OF_ALL * state * frames) or 0
    if chunk < 1:
        need = (STATES_OF_A_FRAME + STATES_OF_ALL * frames) * state
        raise UserError(
            f"{frames} frames of {height}x{width} latents need {need / 2**30:.1f} GiB free on {device} at least; "
            f"{(free_memory_bytes(device) or 0) * 0.8 / 2**30:.1f} GiB can be used: take fewer frames or more ranks"
        )
    return min(chunk, frames)


def combine(parts: list[Moments]) -> Moments:
    """Moments of parts taken together: (mean, sum of squared deviations, count), float64."""
    count = sum(part[2] for part in parts)
    if count == 0:
        return parts[0]
    mean = torch.stack([part[0] * part[2] for part in parts]).sum(0) / count
    spread = torch.stack([part[1] + part[2] * (part[0] - mean).square() for part in parts]).sum(0)
    return mean, spread, count


class ChunkedUNet:
    """The forward of a UNet3DConditionModel, chunk by chunk."""

    def __init__(self, model: nn.Module, piece: Piece, chunk_frames: int):
        self.model: Any = model
        self.piece = piece
        self.chunk_frames = chunk_frames
        self.parking = Parking(PARK_BYTES)
        self._text: Tensor | None = None
        self._temb: Tensor | None = None
        self._kwargs: dict[str, Any] | None = None

    # ---- the walk through the model, in the order of UNet3DConditionModel.forward ---------------------------------

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: Any = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the stock forward; sample (B, C, T, h, w)."""
        from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput

        if down_block_additional_residuals is not None or mid_block_additional_residual is not None:
            raise UserError("additional residuals are not available with chunk_frames")
        try:
            out = self._forward(sample, timestep, encoder_hidden_states, timestep_cond, cross_attention_kwargs)
        finally:
            self.parking.close()
            self._text = self._temb = None
        return UNet3DConditionOutput(sample=out) if return_dict else (out,)

    def _forward(
        self, sample: Tensor, timestep: Any, text: Tensor, timestep_cond: Tensor | None, kwargs: dict[str, Any] | None
    ) -> Tensor:
        model = self.model
        self._text, self._kwargs = text, kwargs
        self._temb = self._time_embedding(sample, timestep, timestep_cond)
        factor = 2**model.num_upsamplers
        odd = any(side % factor for side in sample.shape[-2:])

        x = sample.transpose(1, 2)  # (B, T, C, h, w)
        x = self._spatial(x, model.conv_in, in_place=False)  # the caller's latents stay as they are
        self._transformer(model.transformer_in, x)
        skips = [self.parking.put(x)]
        for block in model.down_blocks:
            x = self._down(block, x, skips)
        if model.mid_block is not None:
            x = self._layers(model.mid_block, x)
        upsample: Callable[[Tensor], Tensor] | None = None
        for block in model.up_blocks:
            if getattr(block, "s1", None) and getattr(block, "b1", None):
                raise UserError("FreeU is not available with chunk_frames")
            x = self._up(block, x, skips, upsample)
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if odd and skips else None
            upsample = _upsampler(block, size)
        return self._spatial(x, self._finish).transpose(1, 2)

    def _time_embedding(self, sample: Tensor, timestep: Any, timestep_cond: Tensor | None) -> Tensor:
        if not torch.is_tensor(timestep):
            kind = torch.float64 if isinstance(timestep, float) else torch.int64
            timestep = torch.tensor([timestep], dtype=kind, device=sample.device)
        elif timestep.ndim == 0:
            timestep = timestep[None].to(sample.device)
        projected = self.model.time_proj(timestep.expand(sample.shape[0])).to(dtype=self.model.dtype)
        return self.model.time_embedding(projected, timestep_cond)

    def _down(self, block: Any, x: Tensor, skips: list[Ticket]) -> Tensor:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        over_time = getattr(block, "temp_attentions", [None] * len(block.resnets))
        for resnet, convolution, attention, transformer in zip(
            block.resnets, block.temp_convs, attentions, over_time, strict=True
        ):
            x = self._layer(x, resnet, convolution, attention, transformer)
            skips.append(self.parking.put(x))
        if block.downsamplers is not None:
            for downsampler in block.downsamplers:
                x = self._spatial(x, downsampler)
            skips.append(self.parking.put(x))
        return x

    def _layers(self, block: Any, x: Tensor) -> Tensor:
        """The middle block: one residual layer, then attention before each further one."""
        x = self._layer(x, block.resnets[0], block.temp_convs[0], None, None)
        for attention, transformer, resnet, convolution in zip(
            block.attentions, block.temp_attentions, block.resnets[1:], block.temp_convs[1:], strict=True
        ):
            x = self._layer(x, None, None, attention, transformer)
            x = self._layer(x, resnet, convolution, None, None)
        return x

    def _up(self, block: Any, x: Tensor, skips: list[Ticket], upsample: Callable[[Tensor], Tensor] | None) -> Tensor:
        """An up block. The upsampling of the block before is done inside its first residual layer, chunk by chunk, so
        the large tensor between them never exists."""
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        over_time = getattr(block, "temp_attentions", [None] * len(block.resnets))
        for resnet, convolution, attention, transformer in zip(
            block.resnets, block.temp_convs, attentions, over_time, strict=True
        ):
            skip = skips.pop()
            x = self._layer(x, resnet, convolution, attention, transformer, skip, upsample)
            self.parking.free(skip)
            upsample = None
        return x

    def _layer(
        self,
        x: Tensor,
        resnet: Any,
        convolution: Any,
        attention: Any,
        transformer: Any,
        skip: Ticket | None = None,
        upsample: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if resnet is not None:
            x = self._spatial(x, lambda part, span: self._resnet(resnet, part, span, skip, upsample))
        if convolution is not None:
            self._convolution(convolution, x)
        if attention is not None:
            x = self._spatial(x, lambda part, span: self._attention(attention, part, span))
        if transformer is not None:
            self._transformer(transformer, x)
        return x

    # ---- spatial layers, some frames at a time ----------------------------------------------------------------------

    def _spatial(self, x: Tensor, run: Callable[..., Tensor], in_place: bool = True) -> Tensor:
        """run on (B*t, C, h, w) for chunks of frames; in place where the shape stays. x: (B, T, C, h, w)."""
        batch, frames = x.shape[:2]
        plain = isinstance(run, nn.Module)
        out: Tensor | None = None
        for start in range(0, frames, self.chunk_frames):
            span = range(start, min(start + self.chunk_frames, frames))
            part = x[:, span.start : span.stop].flatten(0, 1)
            part = run(part) if plain else run(part, span)
            part = part.unflatten(0, (batch, -1))
            if out is None:
                same = part.shape[2:] == x.shape[2:]
                out = x if in_place and same else part.new_empty((batch, frames, *part.shape[2:]))
            out[:, span.start : span.stop] = part
        assert out is not None
        return out

    def _resnet(
        self, resnet: Any, part: Tensor, span: range, skip: Ticket | None, upsample: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        if upsample is not None:
            part = upsample(part)
        if skip is not None:
            part = torch.cat([part, self.parking.frames(skip, span.start, span.stop).flatten(0, 1)], 1)
        assert self._temb is not None
        return resnet(part, self._temb.repeat_interleave(len(span), 0))

    def _attention(self, attention: Any, part: Tensor, span: range) -> Tensor:
        piece = self.piece
        if piece.text_provider is not None:
            first = 0 if piece.empty else piece.mine.start
            piece.load_text(range(first + span.start, first + span.stop))
            text = piece.text
        else:
            assert self._text is not None
            text = self._text.repeat_interleave(len(span), 0)
        return attention(part, encoder_hidden_states=text, cross_attention_kwargs=self._kwargs, return_dict=False)[0]

    def _finish(self, part: Tensor, _span: range) -> Tensor:
        model = self.model
        if model.conv_norm_out is not None:
            part = model.conv_act(model.conv_norm_out(part))
        return model.conv_out(part)

    # ---- layers along time, some pixels at a time -------------------------------------------------------------------

    def _pixel_chunk(self, pixels: int) -> int:
        """Pixels whose whole history is as large as a chunk of frames; the same on every rank."""
        return max(1, self.chunk_frames * pixels // max(self.piece.partition.sizes))

    def _moments(self, x_BTCp: Tensor, groups: int) -> Moments:
        frames = x_BTCp.shape[1]
        starts = range(0, frames, self.chunk_frames) if frames else [0]
        return combine([temporal.frame_moments(x_BTCp[:, s : s + self.chunk_frames], groups) for s in starts])

    def _owned(self, x: Tensor) -> Tensor:
        """(B, T, C, h, w) as (B, T, C, p); without frames on a rank whose piece is empty."""
        x = x.flatten(3)
        return x[:, :0] if self.piece.empty else x

    def _transformer(self, module: Any, hidden: Tensor) -> None:
        """A TransformerTemporalModel, in place on (B, T, C, h, w)."""
        x, norm = self._owned(hidden), module.norm
        pixels = x.shape[3]
        per_frame = pixels * norm.num_channels // norm.num_groups
        statistics = temporal.start_statistics(self.piece, *self._moments(x, norm.num_groups), per_frame).wait()
        scale, shift = temporal.affine(norm, *statistics, x.dtype)
        step = self._pixel_chunk(pixels)
        for group in _spans(pixels, max(step, CACHE_LINE_PIXELS)):
            part = x[..., group.start : group.stop]
            tokens = temporal.normalised_tokens(part, scale, shift)
            for span in _spans(len(group), step):
                run = temporal.blocks(module, tokens[:, span.start : span.stop], self._kwargs)
                tokens[:, span.start : span.stop] = run.permute(0, 3, 1, 2)
            part += tokens.permute(0, 2, 3, 1)

    def _convolution(self, layer: nn.Module, hidden: Tensor) -> None:
        """A TemporalConvLayer, in place on (B, T, C, h, w), with one more hidden state of the same size beside it."""
        x = self._owned(hidden)
        pixels = x.shape[3]
        work = x.new_empty((x.shape[0], x.shape[1], pixels, x.shape[2]))  # (B, T, p, C)
        spans = list(_spans(pixels, max(self._pixel_chunk(pixels), CACHE_LINE_PIXELS // 2)))
        source = x.transpose(2, 3)
        groups = temporal.conv_stages(layer)[0][0].num_groups
        moments = self._moments(x, groups)
        for norm, conv in temporal.conv_stages(layer):
            left, right, statistics = self._exchange(source, moments, pixels, norm)
            scale, shift = temporal.affine(norm, *statistics, x.dtype)
            parts: list[Moments] = []
            for span in spans:
                part = source[:, :, span.start : span.stop]
                before = None if left is None else left[:, :, span.start : span.stop]
                after = None if right is None else right[:, :, span.start : span.stop]
                out = temporal.stage(part, conv, scale, shift, before, after) if x.shape[1] else part
                work[:, :, span.start : span.stop] = out
                parts.append(temporal.row_moments(out.flatten(1, 2), groups))
            source, moments = work, combine(parts)
        for span in spans:
            x[..., span.start : span.stop] += work[:, :, span.start : span.stop].transpose(2, 3)

    def _exchange(
        self, source: Tensor, moments: Moments, pixels: int, norm: nn.GroupNorm
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor]]:
        piece = self.piece
        per_frame = pixels * norm.num_channels // norm.num_groups
        if piece.alone:
            return None, None, temporal.start_statistics(piece, *moments, per_frame).wait()
        with piece.transport.round():
            statistics = temporal.start_statistics(piece, *moments, per_frame)
            halo = piece.transport.start_halo([source], 1, piece.partition, 1, 1)
        ((left, right),) = halo.wait()
        return left, right, statistics.wait()


def _spans(total: int, step: int) -> Iterator[range]:
    for start in range(0, total, step):
        yield range(start, min(start + step, total))


def _upsampler(block: Any, size: tuple[int, int] | None) -> Callable[[Tensor], Tensor] | None:
    """The upsampling at the end of a block, to be done by the block that follows."""
    if block.upsamplers is None:
        return None

    def upsample(part: Tensor) -> Tensor:
        for upsampler in block.upsamplers:
            part = upsampler(part, size)
        return part

    return upsample


def install(model: nn.Module, piece: Piece, patches: Patches, chunk_frames: int) -> None:
    """Replace the forward of a UNet3DConditionModel by the chunked one."""
    if piece.mode != Mode.EXACT:
        raise UserError("chunk_frames computes mode=exact only")
    transformers, _ = unet3d.temporal_modules(model)
    unet3d.refuse_volume_norms(model, patches)
    unet3d.watch_calls(model, piece, patches, "sample", text_by_call=False)
    processor = temporal.TimeAttention(piece)
    for module in transformers.values():
        unet3d.use_time_attention(module, patches, processor)
    patches.forward(model, ChunkedUNet(model, piece, chunk_frames).forward)
