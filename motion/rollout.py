"""Prefix rollout: a long motion from a net that continues a short past, window after window (DiP, in the MDM code).

DiP (Tevet et al., CLoSD, arXiv 2410.03441, section 4): the decoder form of MDM sees ``prefix_frames`` clean frames and
makes the next ``window`` frames in a few steps; its last frames are the next window's prefix, so prompts may change at
each window and memory is that of one. The public checkpoint: 20 frames of past, 40 to make, 10 steps, guidance 7.5.

    for piece in rollout(model, schedule, past, texts, frames=240, window=40, seed=1):
        ...                                                  # (n, J), in order

Legend: P prefix frames, W window frames, K words, E text features, J features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from longtake.motion.model import MDM
from longtake.motion.sampling import Schedule, TextDenoiser, sample
from longtake.noise import noise

GUIDANCE, WINDOW = 7.5, 40
Texts = Callable[[int], torch.Tensor | None]


@torch.no_grad()
def rollout(
    model: MDM,
    schedule: Schedule,
    past: torch.Tensor,
    text: torch.Tensor | Texts | None,
    *,
    frames: int,
    window: int = WINDOW,
    guidance: float = GUIDANCE,
    seed: int = 0,
    item: int = 0,
) -> Iterator[torch.Tensor]:
    """Pieces (W, J) of normalised features, the last one cut to ``frames`` in all; the past is not among them.

    past: (P, J) normalised, P = the net's prefix_frames. text: features (E,) or (K, E) for the whole, or a function of
    a window's first frame that gives them; None without text (the guidance is then 0).
    Noise is named by the frame it belongs to, so a longer rollout begins with the same bits as a shorter one.
    Raises ValueError when the net has no prefix, the past does not fit it, or the window is shorter than the prefix.
    """
    width, prefix = int(model.config.features), int(model.config.prefix_frames)
    if prefix < 1:
        raise ValueError("a rollout needs a net that continues a prefix: decoder form with prefix_frames of 1 or more")
    if past.shape != (prefix, width):
        raise ValueError(f"this net continues a past of ({prefix}, {width}); given {tuple(past.shape)}")
    if window < prefix or frames < 1:
        raise ValueError(f"a window is at least the prefix of {prefix} frames long; given {window} for {frames} frames")
    past = past.to(model.device, torch.float32)
    for start in range(0, frames, window):
        words = text(start) if callable(text) else text
        known = past.unsqueeze(0)

        def net(
            x: torch.Tensor, timestep: torch.Tensor, words: torch.Tensor | None, known: torch.Tensor = known
        ) -> torch.Tensor:
            return model(x, timestep, words, prefix=known.expand(len(x), -1, -1))

        def draw(count: int, start: int = start) -> torch.Tensor:
            numbers = range(start, start + window)
            return noise(seed, item, numbers, count, (width,)).unsqueeze(0).to(model.device)

        given = None if words is None else words.unsqueeze(0).to(model.device)
        denoise = TextDenoiser(net, given, 0.0 if given is None else guidance)
        made = sample(denoise, schedule, draw)[0]
        past = made[-prefix:]
        yield made[: frames - start]
