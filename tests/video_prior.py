"""A tiny video prior with deterministic random weights: the real classes at small size, for tests."""

import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, UNet3DConditionModel
from longtake.device import choose_device
from longtake.distributed import Ranks
from longtake.text import SentenceEncoder
from longtake.video.pipeline import LongVideoPipeline
from longtake.video.prior import FrameAutoencoder
from longtake.video.train import SCHEDULE
from video_models import TINY_UNET, fill_parameters


def tiny_pipe(scheduler=None):
    """LongVideoPipeline on 4-channel 8x8 latents, 64x64 frames."""
    unet = UNet3DConditionModel(**{**TINY_UNET, "cross_attention_dim": 384}).eval()
    fill_parameters(unet)
    vae = FrameAutoencoder(4, (8, 8, 8), (1, 1, 1), (1, 1, 1)).eval()
    fill_parameters(vae)
    pipe = LongVideoPipeline(vae, SentenceEncoder(), unet, scheduler or DDIMScheduler(**SCHEDULE))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ranks_here():
    """The Ranks of a process that `run_ranks` started."""
    if not dist.is_initialized():
        return Ranks.single()
    return Ranks(dist.get_rank(), dist.get_world_size(), 0, dist.group.WORLD, torch.device("cpu"), choose_device("cpu"))
