"""Tiny priors of speech with random weights: what the doors are tried with; nobody would understand them."""

from pathlib import Path

import torch
from longtake.speech import vocoder as vocoders
from longtake.speech.backends.prosody import ProsodyVoice
from longtake.speech.prosody_fm.model import Config, ProsodyFM


def prosody(**change) -> ProsodyVoice:
    """A ProsodyFM whose symbols last four frames or so, and a small generator."""
    torch.manual_seed(0)
    sizes = {
        "channels": 32, "inner": 32, "layers": 2, "inner_duration": 32, "token_width": 8, "field": (32, 32),
        "field_width": 8, "speaker_width": 8, "speakers": 3, "voices": ("a", "b", "bf_c"), "aligner": 16,
        "aligner_reads": True, "blanks": False, "semitones": True, "tone": True, **change,
    }  # fmt: skip
    model = ProsodyFM(Config(**sizes))
    with torch.no_grad():
        model.encoder.proj_w.proj.bias.fill_(1.2)
        if model.config.tone:
            model.spk_tone.weight.normal_()
    return ProsodyVoice.of(model, generator())


def generator() -> vocoders.Vocoder:
    """A small vocoder, loud enough that speech is told from silence: random weights whisper."""
    vocoder = vocoders.Vocoder(vocoders.Config(channels=16))
    with torch.no_grad():
        vocoder.conv_post.bias.zero_()
        level = torch.atanh(vocoder(torch.randn(1, 80, 64) - 5)).std()
        vocoder.conv_post.weight.mul_(0.2 / level)
    return vocoder.eval()


def write(folder: Path) -> Path:
    """The prior as `longtake train speech` would leave it, its vocoder beside it."""
    prosody().save_pretrained(folder)
    return folder


def drawn(config: vocoders.Config, seed: int = 0) -> vocoders.Vocoder:
    """A vocoder of random weights whose sound is neither silence nor noise."""
    torch.manual_seed(seed)
    net = vocoders.Vocoder(config).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1.0 / (parameter.numel() / len(parameter)) ** 0.5)
    return net
