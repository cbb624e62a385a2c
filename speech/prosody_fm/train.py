"""The recipe of the ProsodyFM prior: durations of the data, flow matching on crops, intonation from phrase ends.

Crops of a fixed number of frames with the texts of their whole sentences, in three lengths of text, so that a GPU
records three steps and replays them. The bank hears the pitch of phrase-final words in most sentences and what the
aligner reads off the text in the others, so that a text alone is spoken well.
Shape legend: B crops, T frames, n mels, L symbols, W phrase-final words, S values of a word's pitch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.speech.data import MEL_DEVIATION, MEL_MEAN, Batch, Corpus
from longtake.speech.pitch import semitones
from longtake.speech.prosody_fm.model import Config, ProsodyFM, whole_frames

if TYPE_CHECKING:
    from longtake.train import Dice, Settings

FRAMES = 256  # of a crop
LIMITS = (64, 96)  # symbols of the shorter texts; the rest has as many as the longest
HEARD = 0.7  # share of sentences whose pitch the bank hears
STRIDE = 4  # frames between the values of a word's pitch that the bank reads
LOSSES = ("duration", "prior", "flow", "aligner")
WEIGHTS = (1.0, 1.0, 1.0, 1.0)
SMALL: dict[str, Any] = {
    "channels": 128,
    "inner": 512,
    "layers": 5,
    "inner_duration": 256,
    "token_width": 32,
    "aligner": 96,
    "aligner_reads": True,
    "field": (192, 192),
    "field_width": 64,
    "spread": 0.6,
    "blanks": False,
    "semitones": True,
    "tone": True,
    "prenet_dropout": 0.1,
    "temperature": 0.3,
    "mean": MEL_MEAN,
    "deviation": MEL_DEVIATION,
}


def config_for(corpus: Corpus, **other: Any) -> Config:
    """The sizes of the shipped prior, for the voices of a corpus."""
    return Config(**{**SMALL, "speakers": len(corpus.voices), "voices": corpus.voices, **other})


def pitch_of(tones: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pitch (..., S) in Hz and its lengths (...) as the bank of the shipped prior reads them, every fourth value."""
    tones, lengths = tones[..., ::STRIDE], (lengths + STRIDE - 1) // STRIDE
    mask = torch.arange(tones.shape[-1], device=tones.device) < lengths[..., None]
    return semitones(tones, mask.float()), lengths


def inputs(batch: Batch, dice: Dice, heard: float) -> tuple[torch.Tensor, ...]:
    """The tensors of ``ProsodyFM.forward``, times one in each of B equal parts of 0..1."""
    rows, frames, mels = batch.mel.shape
    pitch, lengths = pitch_of(batch.tones, batch.tone_lengths)
    told = dice.uniform(rows) < heard
    noise = dice.normal(rows, mels, frames)
    return (
        batch.ids,
        batch.counts,
        batch.lengths,
        batch.mel,
        batch.frames,
        batch.owner,
        batch.voice,
        batch.height,
        batch.finals,
        pitch,
        lengths,
        told,
        noise,
        dice.strata(rows),
    )


def train_model(
    corpus: Corpus,
    held_out: Corpus,
    folder: Path,
    settings: Settings,
    *,
    batch: int,
    seed: int,
    frames: int = FRAMES,
    limits: Sequence[int] = LIMITS,
    config: Config | None = None,
) -> ProsodyFM:
    """Train (or resume) the model, ``batch`` crops a step; the record has the losses on held-out sentences, with the
    pitch heard and with the aligner's reading."""
    from longtake.graphs import Split
    from longtake.train import Dice, batch_generator, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    model = ProsodyFM(config or config_for(corpus)).to(device)
    longest = 8 * -(-max(corpus.longest, held_out.longest) // 8)
    lengths = sorted({*(limit for limit in limits if limit < corpus.longest), longest})
    buckets, shares = corpus.buckets(lengths)
    weights = torch.ones(len(LOSSES), device=device)
    for place, weight in enumerate(WEIGHTS):
        weights[place] = weight

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        bucket = int(batch_generator(seed + 1, step).choice(len(lengths), p=shares))
        torch.manual_seed(step)  # of dropout, so that a resumed training drops the same
        dice = Dice(seed + 1, step, device)
        drawn = corpus.crops(dice, batch, frames, odds=buckets[bucket], symbols=lengths[bucket])
        return inputs(drawn, dice, HEARD)

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        return (network(*tensors) * weights).sum()

    def judge(network: Any, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        mixed = device.type != "cpu"
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            for end, heard in (("", 1.1), ("_read", -0.1)):
                total = torch.zeros(len(LOSSES), device=device)
                for number in range(4):
                    dice = Dice(seed + 2, number, device)
                    drawn = held_out.crops(dice, 32, frames, symbols=longest)
                    total += network(*inputs(drawn, dice, heard)).float() / 4
                found |= {f"{name}{end}": round(one, 4) for name, one in zip(LOSSES, total.tolist(), strict=True)}
        return found

    return fit(model, Split(draw, value), settings, folder, name="prosody", on_checkpoint=judge)  # type: ignore[return-value]


@torch.no_grad()
def calibrate(model: ProsodyFM, corpus: Corpus, sentences: int = 256) -> float:
    """Make the durations of a corpus's first sentences sum to the real ones; the factor by which they grow.

    A mean of logarithms, which training gives, is below the logarithm of the mean.
    """
    picked = torch.arange(min(sentences, len(corpus.counts)), device=model.device)
    told, real = 0.0, 0.0
    for part in picked.split(32):
        batch = corpus.cut(part, torch.zeros_like(part), 4, corpus.longest)
        pitch, lengths = pitch_of(batch.tones, batch.tone_lengths)
        vectors = model.encoder.gst.stl(model.encoder.gst.query(pitch, lengths))[0]
        added = model.spread(vectors, batch.finals, corpus.longest)
        speaker = model.speaker(batch.voice, batch.height)
        _, logw, mask = model.encoder(batch.ids, batch.counts, speaker, added)
        told += float((logw.float().exp() * mask).sum())
        real += float(batch.lengths.sum())
    bias = model.encoder.proj_w.proj.bias
    assert bias is not None
    bias += float(np.log(real / told))
    return real / told


def spoken(model: ProsodyFM, corpus: Corpus, row: int, *, steps: int, seed: int, told: bool) -> torch.Tensor:
    """A sentence of a corpus as a normalised mel (T, n). told: with the data's durations and intonation, else with
    the model's own."""
    from longtake.train import Dice

    device = model.device
    picked = torch.full((1,), row, dtype=torch.int64, device=device)
    counts = int(corpus.counts[row])
    batch = corpus.cut(picked, torch.zeros_like(picked), int(corpus.frames[row]), counts)
    pitch, lengths = pitch_of(batch.tones, batch.tone_lengths)
    query = model.encoder.gst.query(pitch, lengths)
    if not told:
        query = model.text_query(batch.ids, batch.counts, batch.finals)
    added = model.spread(model.encoder.gst.stl(query)[0], batch.finals, counts)
    speaker = model.speaker(batch.voice, torch.zeros(1, device=device))
    mu, logw, _ = model.encoder(batch.ids, batch.counts, speaker, added)
    frames = batch.lengths[0] if told else whole_frames(logw[0, 0].float().exp())
    wide = mu.float().repeat_interleave(frames, dim=2)
    noise = Dice(seed, row, device).normal(1, wide.shape[1], wide.shape[2])
    total = torch.full((1,), wide.shape[2], dtype=torch.int64, device=device)
    return model.mels(wide, total, noise, steps=steps, speaker=speaker)[0].T


def report(model: ProsodyFM, corpus: Corpus, out: Path, *, seed: int, sentences: int = 4) -> dict[str, float]:
    """Print and write the stop figures, to ``out``/prosody.json, and the mels of some held-out sentences, real above
    made ones, to ``out``/prosody.png."""
    from PIL import Image

    rows = [int(row) for row in np.linspace(0, len(corpus.counts) - 1, sentences)]
    pictures, gaps, ratios = [], [], []
    with torch.inference_mode():
        for row in rows:
            first, count = int(corpus.first_frame[row]), int(corpus.frames[row])
            real = corpus.mels[first : first + count].float()
            same = spoken(model, corpus, row, steps=10, seed=seed, told=True)
            free = spoken(model, corpus, row, steps=10, seed=seed, told=False)
            gaps.append(float((same - real).abs().mean()))
            ratios.append(len(free) / count)
            pictures += [real, same, free]
    width = max(len(one) for one in pictures)
    sheet = np.full((len(pictures) * 82, width), 255, np.uint8)
    for place, one in enumerate(pictures):
        shade = ((one.T.flip(0).cpu().numpy() + 3) / 6 * 255).clip(0, 255)
        sheet[place * 82 : place * 82 + 80, : len(one)] = shade.astype(np.uint8)
    Image.fromarray(sheet).save(out / "prosody.png")
    told = {
        "mel_gap": round(float(np.mean(gaps)), 4),
        "length_ratio": round(float(np.mean(ratios)), 4),
        "sharpness": round(
            float(np.mean([float(made.diff(dim=1).abs().mean()) for made in pictures[1::3]]))
            / float(np.mean([float(real.diff(dim=1).abs().mean()) for real in pictures[::3]])),
            4,
        ),
    }
    (out / "prosody.json").write_text(json.dumps(told) + "\n")
    print("stop figures of prosody: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    return told
