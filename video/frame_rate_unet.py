"""VideoCrafter2's UNet: a UNet3DConditionModel with one more embedding, the frame rate, as sinusoidal features through
a two-layer network, added to the time embedding (Video-Infinity, arXiv 2406.16260)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps


class FrameRateUNet(UNet3DConditionModel):
    """UNet3DConditionModel with VideoCrafter2's frame-rate embedding; ``fps`` is set before a run.

    fps: frames per second of the wanted motion, a plain attribute (default 24, as in the released examples).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock3D",
            "CrossAttnDownBlock3D",
            "CrossAttnDownBlock3D",
            "DownBlock3D",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlock3D",
            "CrossAttnUpBlock3D",
            "CrossAttnUpBlock3D",
            "CrossAttnUpBlock3D",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | tuple[int, ...] = 64,
        num_attention_heads: int | tuple[int, ...] | None = None,
        time_cond_proj_dim: int | None = None,
        fps_cond: bool = True,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            downsample_padding=downsample_padding,
            mid_block_scale_factor=mid_block_scale_factor,
            act_fn=act_fn,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            time_cond_proj_dim=time_cond_proj_dim,
        )
        self.fps = 24.0
        if fps_cond:
            width = block_out_channels[0]
            self.fps_proj = Timesteps(width, True, 0)
            self.fps_embedding = TimestepEmbedding(width, 4 * width, act_fn=act_fn)
            self.time_embedding.register_forward_hook(self._add_frame_rate)

    def _add_frame_rate(self, module: Any, args: Any, embedding: torch.Tensor) -> torch.Tensor:
        features = self.fps_proj(torch.tensor([self.fps], device=embedding.device)).to(embedding.dtype)
        return embedding + self.fps_embedding(features)
