"""Toy utterances of VALL-E R's recipe: tensors of random sound with labels that fit it."""

import torch
from longtake.speech.valle_r.corpus import Coded, Flat


def flat(utterances: int = 6, seed: int = 0, symbols: int = 9) -> Flat:
    """Utterances of 40 to 60 frames and 6 to ``symbols`` phonemes, two voices by turns; 20 phonemes have a mel each."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(40, 61, (utterances,), generator=generator)
    counts = torch.randint(6, symbols + 1, (utterances,), generator=generator)
    owners = [torch.arange(f) * c // f for f, c in zip(frames.tolist(), counts.tolist(), strict=True)]
    ids = torch.randint(60, 80, (int(counts.sum()),), generator=generator)
    owner = torch.cat(owners)
    first_symbol, first_frame = counts.cumsum(0) - counts, frames.cumsum(0) - frames
    fixed = torch.Generator().manual_seed(7)
    sounds = torch.randn(178, 6, generator=fixed) @ torch.randn(6, 80, generator=fixed) / 2.5
    which = ids[owner + torch.repeat_interleave(first_symbol, frames)]
    mels = sounds[which] + 0.1 * torch.randn(len(owner), 80, generator=generator)
    voice = torch.arange(utterances) % 2
    return Flat(mels.half(), owner.to(torch.int16), ids, first_frame, frames, first_symbol, counts, voice)


def coded(utterances: int = 8, seed: int = 0, layers: int = 8) -> Coded:
    """Utterances of 20 to 30 merged frames as random codes."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(20, 31, (utterances,), generator=generator)
    counts = torch.randint(6, 10, (utterances,), generator=generator)
    place = torch.arange(30)
    labels = torch.where(place < frames[:, None], place * counts[:, None] // frames[:, None], 0)
    codes = torch.randint(1024, (utterances, layers, 60), generator=generator)
    codes = torch.where(torch.arange(60) < 2 * frames[:, None, None], codes, 0)
    codes[:, 0, 1::2] = codes[:, 0, ::2]
    text = torch.randint(1, 178, (utterances, 9), generator=generator)
    text = torch.where(torch.arange(9) < counts[:, None], text, 0)
    small = torch.int16
    rows = torch.arange(utterances)
    return Coded(codes.to(small), text.to(small), labels.to(small), frames, counts, rows % 2, rows)
