"""The stop figures of a training: whether the fresh prior's clips move as the real ones do, and a sheet to look at.

Made on the device right after the training, all captions at once, under captions whose states are known: neither the
text encoder nor the pipeline is needed. Legend: R captions, F frames, c latent channels, h w latent grid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from longtake.video.corpus import Sources
    from longtake.video.data import Clip

FRAMES = 16
STEPS, GUIDANCE = 16, 3.0  # as the command's
AT_ONCE = 48  # captions


def sample(unet: Any, autoencoder: Any, states: torch.Tensor, silence: torch.Tensor, seed: int) -> np.ndarray:
    """Clips uint8 (R, F, H, W, 3) of text states (R, T, E), with ``silence`` (T, E) as the other side of guidance."""
    import torch
    from diffusers import DDIMScheduler
    from longtake.train import Dice
    from longtake.video.objective import SCHEDULE

    device = states.device
    scheduler = DDIMScheduler(**SCHEDULE)
    grid = unet.config.sample_size
    out = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
        for number, part in enumerate(states.split(AT_ONCE)):
            latent = Dice(seed, number, device).normal(len(part), unet.config.in_channels, FRAMES, grid, grid)
            text = torch.cat([silence.expand_as(part), part])
            scheduler.set_timesteps(STEPS, device=device)
            for time in scheduler.timesteps:
                without, told = unet(torch.cat([latent] * 2), time, encoder_hidden_states=text).sample.float().chunk(2)
                latent = scheduler.step(without + GUIDANCE * (told - without), time, latent).prev_sample
            for film in latent.transpose(1, 2):
                pixels = autoencoder.decode(film).sample.float().clamp(-1, 1)
                out.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.stack(out)


def one_each(clips: Sequence[Clip]) -> list[Clip]:
    """Of each subject the clip that its caption alone names."""
    chosen: dict[str, Clip] = {}
    for clip in clips:
        if clip.wordings[0] == clip.caption or clip.subject not in chosen:
            chosen[clip.subject] = clip
    return [chosen[name] for name in sorted(chosen)]


def figures(film: np.ndarray, clip: Clip) -> dict[str, float]:
    """Of a made clip beside the real one: arrow, stays, motion and sharpness as shares of real."""
    from longtake.video.likeness import POSE, RealFrames
    from longtake.video.metrics import motion, sharpness

    arrow, stays = RealFrames.of([clip], POSE).arrow_stays(film)
    return {
        "arrow": arrow,
        "stays": stays,
        "motion": motion(film) / motion(clip.frames),
        "sharpness": sharpness(film) / sharpness(clip.frames),
    }


def report(unet: Any, autoencoder: Any, sources: Sources, out: Path, *, seed: int) -> dict[str, Any]:
    """Sample every subject once, print the figures, write them to ``out``/stop.json and the clips to ``out``/sheet.png.

    unet and autoencoder stand on the device that samples.
    """
    from longtake.train import device_of
    from longtake.video.likeness import ARROW, STAYS
    from longtake.video.sheets import subject_sheet

    device = device_of(unet)
    clips = one_each(sources.seen)
    states = sources.texts.stack()
    place = sources.texts.place
    asked = states[[place[clip.wordings[0]] for clip in clips]].to(device)
    films = sample(unet, autoencoder, asked, states[place[""]].to(device), seed)
    rows = {clip.subject: figures(film, clip) for clip, film in zip(clips, films, strict=True)}
    telling = [row for row in rows.values() if np.isfinite(row["arrow"])]
    told: dict[str, Any] = {key: round(float(np.mean([row[key] for row in telling])), 3) for key in telling[0]}
    moving = [name for name, row in rows.items() if row["arrow"] > ARROW and row["stays"] < STAYS]
    told |= {"subjects": len(rows), "moving": len(moving)}
    subject_sheet([(clip.subject, film) for clip, film in zip(clips, films, strict=True)], out / "sheet.png")
    (out / "stop.json").write_text(json.dumps({**told, "each": rows}, indent=1) + "\n")
    print("stop figures: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    return told
