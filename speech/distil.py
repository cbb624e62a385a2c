"""A quicker vocoder: a HiFi-GAN generator without its widest kernels, that learns to sound as the whole one does.

The student begins with the teacher's weights, the residual blocks of 11 samples left out, which is half of the work. It
is trained on mels alone: the teacher's sound of the same mel is what its own is compared with, sample by sample, in
three resolutions of the spectrum, and as a mel. No discriminator is needed, for the phases are the teacher's.
Shape legend: B crops, T frames, N = T * 256 samples.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from longtake.speech import mel as front
from longtake.speech.vocoder import Config, Vocoder, from_state

if TYPE_CHECKING:
    from longtake.speech.data import Corpus
    from longtake.train import Settings

KERNELS = (3, 7)  # of the residual blocks that stay
FRAMES = 40  # of a crop
EDGE = 8  # frames at both ends of a crop that are not compared: they lack their surroundings
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))  # window and step, samples


def pruned(teacher: Vocoder, kernels: tuple[int, ...] = KERNELS) -> Vocoder:
    """The teacher with the residual blocks of these kernels alone, its weights kept."""
    old: Config = teacher.config
    kept = [place for place, kernel in enumerate(old.blocks) if kernel in kernels]
    config = replace(old, blocks=tuple(old.blocks[place] for place in kept))
    state = {key: value.clone() for key, value in teacher.state_dict().items() if not key.startswith("resblocks.")}
    for stage in range(len(old.rates)):
        for new, place in enumerate(kept):
            start = f"resblocks.{stage * len(old.blocks) + place}."
            for key, value in teacher.state_dict().items():
                if key.startswith(start):
                    number = stage * len(kept) + new
                    state[f"resblocks.{number}.{key.removeprefix(start)}"] = value.clone()
    return from_state(state, config).train().requires_grad_(True)


def gap(wave: torch.Tensor, target: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """How far sounds (B, N) are from their targets: samples, spectra and log mels (of ``bank``), a scalar."""
    with torch.autocast(wave.device.type, enabled=False):
        wave, target = wave.float(), target.float()
        level = target.square().mean(-1, keepdim=True).sqrt() + 0.01
        total = ((wave - target).abs() / level).mean()
        for size, step in RESOLUTIONS:
            window = torch.hann_window(size, device=wave.device)
            one, two = (torch.stft(x, size, step, size, window, return_complex=True) for x in (wave, target))
            a, b = ((x.real.square() + x.imag.square() + 1e-7).sqrt() for x in (one, two))
            total = (
                total + (a.log() - b.log()).abs().mean() / 3 + ((a - b).square().sum() / b.square().sum()).sqrt() / 3
            )
        return total + 2 * (front.log_mel(wave, bank) - front.log_mel(target, bank)).abs().mean()


def train_vocoder(
    corpus: Corpus, held_out: Corpus, teacher: Vocoder, folder: Path, settings: Settings, *, batch: int, seed: int
) -> Vocoder:
    """Train (or resume) the student on ``batch`` crops a step; the record has its distance on held-out mels."""
    from longtake.graphs import Split
    from longtake.speech.data import MEL_DEVIATION, MEL_MEAN
    from longtake.train import Dice, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    model = pruned(teacher.cpu()).to(device)
    teacher, bank = teacher.to(device), front.filter_bank().to(device)
    inner = slice(EDGE * teacher.hop, (FRAMES - EDGE) * teacher.hop)

    def crops(source: Corpus, step: int, rows: int) -> torch.Tensor:
        drawn = source.crops(Dice(seed, step, device), rows, FRAMES)
        return front.denormalise(drawn.mel, MEL_MEAN, MEL_DEVIATION).transpose(1, 2)

    def value(network: Any, mel: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(mel)[:, inner]
        return gap(network(mel)[:, inner], wanted, bank)

    def judge(network: Any, step: int) -> dict[str, float]:
        mel = crops(held_out, 1_000_000, 16)
        return {"gap_held_out": round(float(gap(network(mel)[:, inner], teacher(mel)[:, inner], bank)), 4)}

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        return (crops(corpus, step, batch),)

    return fit(model, Split(draw, value), settings, folder, name="vocoder", on_checkpoint=judge)  # type: ignore[return-value]


def report(model: Vocoder, teacher: Vocoder, corpus: Corpus, out: Path, sentences: int = 8) -> dict[str, float]:
    """Print and write to ``out``/vocoder.json how far the mels of student and teacher are from those they were made
    of, in log mels, on held-out sentences."""
    from longtake.speech.data import MEL_DEVIATION, MEL_MEAN

    found: dict[str, list[float]] = {"student": [], "teacher": [], "apart": []}
    with torch.inference_mode():
        for row in range(0, len(corpus.frames), max(1, len(corpus.frames) // sentences)):
            first, count = int(corpus.first_frame[row]), int(corpus.frames[row])
            real = front.denormalise(corpus.mels[first : first + count].float(), MEL_MEAN, MEL_DEVIATION).T
            one, two = (front.log_mel(net(real[None]))[0] for net in (model.eval(), teacher))
            found["student"].append(float((one - real).abs().mean()))
            found["teacher"].append(float((two - real).abs().mean()))
            found["apart"].append(float((one - two).abs().mean()))
    told = {name: round(sum(values) / len(values), 4) for name, values in found.items()}
    (out / "vocoder.json").write_text(json.dumps(told) + "\n")
    print("stop figures of the vocoder: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    return told
