"""Where FreeNoise's windows lie, and whose noise a frame takes (arXiv 2310.15169, as diffusers computes it).

Temporal attention sees windows of `length` frames, `stride` apart, from frame 0 on; where the last of them ends before
the video does, one more ends with the video. A frame is the weighted mean of the windows that cover it.

    neighbourhood(range(8, 11), 22, 8, 4)    # range(4, 16): windows 4 to 11 and 8 to 15 cover frames 8 to 10
    latents = latents[:, :, shuffled_frames(22, 8, 4, generator)]
    switch(pipe.unet, (16, 4))
"""

from __future__ import annotations

from typing import Any

import torch
from longtake.errors import UserError


def check_windows(total: int, length: int, stride: int) -> None:
    """Refuse a video that is shorter than one window, and windows that do not move.

    Raises:
        UserError: total < length, length < 1 or stride < 1.
    """
    if length < 1 or stride < 1:
        raise UserError(
            f"FreeNoise needs a context_length and a context_stride of at least 1; given {length}, {stride}"
        )
    if total < length:
        raise UserError(
            f"FreeNoise needs at least one window of context_length={length} frames; the video has {total}: "
            "lower context_length or make the video longer"
        )


def neighbourhood(own: range, total: int, length: int, stride: int) -> range:
    """The frames from which diffusers' block computes the frames `own` as it does from the whole video.

    The span starts where a window starts, so the block lays the same windows over it, and it ends with a window; the
    odd last window of the video counts with the regular one before it.

    Raises:
        UserError: windows further apart than they are long leave frames that no window covers.
    """
    check_windows(total, length, stride)
    if stride > length:
        raise UserError(
            f"FreeNoise windows of context_length={length} frames cannot lie context_stride={stride} apart here: "
            "frames between them would be in no window; use strategy transpose, or a smaller context_stride"
        )
    if not len(own):
        return own
    regular = [range(start, start + length) for start in range(0, total - length + 1, stride)]
    over = [window for window in regular if window.start < own.stop and own.start < window.stop] or regular[-1:]
    return range(over[0].start, total if own.stop > regular[-1].stop else over[-1].stop)


def shuffled_frames(total: int, length: int, stride: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Which frame's noise each frame takes, int64 (total,): diffusers' noise type shuffle_context.

    Behind the first window, every `stride` frames take the noise of the frames one window earlier, in a random order.
    generator: on the CPU, as it stands after diffusers' pipeline drew the noise of all frames with it; a generator
        with the same seed on every rank gives every rank the same order. `pipeline.freenoise_index` follows the same
        rule from longtake's own seed, with other random numbers.
    """
    check_windows(total, length, stride)
    index = torch.arange(total)
    for start in range(length, total, stride):
        source = index[start - length : start - length + stride]
        order = torch.randperm(len(source), generator=generator)
        slot = index[start : start + stride]
        index[start : start + stride] = source[order][: len(slot)]
    return index


def repeated_frames(total: int, length: int) -> torch.Tensor:
    """The same for noise type repeat_context, int64 (total,): the noise of the first `length` frames, again and again.

    diffusers 0.42 gives independent noise for this type: it compares the window length with the type's name.
    """
    if total < 1 or length < 1:
        raise UserError(f"repeated noise needs at least 1 frame and a window of at least 1; given {total}, {length}")
    return torch.arange(total) % length


def switch(unet: Any, windows: tuple[int, int] | None) -> None:
    """FreeNoise on in a UNetMotionModel, in windows of (frames, frames apart) with pyramid weights, or off.

    The same as `enable_free_noise` of diffusers' AnimateDiffPipeline, for a model without that pipeline.
    Raises UserError for another model, and for windows longer than its positions.
    """
    from types import SimpleNamespace

    from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

    kind = type(unet).__name__
    if kind != "UNetMotionModel":
        raise UserError(f"FreeNoise's windows are for AnimateDiff (a UNetMotionModel); this model is a {kind}")
    positions = int(unet.config.motion_max_seq_length)
    if windows is not None and not (1 <= windows[1] <= windows[0] <= positions):
        raise UserError(
            f"FreeNoise's windows have at most {positions} frames, the positions of this model, and lie at most their "
            f"length apart; given {windows[0]} frames, {windows[1]} apart"
        )
    if windows == windows_of(unet):
        return
    mixin: Any = AnimateDiffFreeNoiseMixin()
    mixin.unet, mixin.device, mixin.dtype = unet, unet.device, unet.dtype
    mixin.motion_adapter = SimpleNamespace(config=SimpleNamespace(motion_max_seq_length=positions))
    if windows is None:
        mixin.disable_free_noise()
    else:
        mixin.enable_free_noise(*windows)
    unet.train(unet.training)  # blocks that are new are in the mode of the model


def windows_of(unet: Any) -> tuple[int, int] | None:
    """(frames of a window, frames apart) of a model with FreeNoise on; None for any other."""
    for module in unet.modules():
        if type(module).__name__ == "FreeNoiseTransformerBlock":
            return int(module.context_length), int(module.context_stride)
    return None
