"""The audio front end of HiFi-GAN, Matcha-TTS and ProsodyFM: log mels of 22.05 kHz sound, and a resampler.

Frames of 1,024 samples every 256, Hann window, 80 bands of Slaney's mel scale and area (0 to 8,000 Hz), the sound
reflected by 384 samples at both ends, so that n samples give n // 256 frames. All of it runs on the sound's device.
Shape legend: N samples, T = N // 256 frames, C = 80 bands.

    mel = log_mel(wave)                       # (..., N) -> (..., 80, T)
    wave = resample(wave, 24_000, RATE)
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from longtake.errors import UserError

RATE = 22_050  # samples a second
HOP = 256  # samples a frame
WINDOW = 1024
BANDS = 80
LOWEST, HIGHEST = 0.0, 8000.0  # Hz
FLOOR = 1e-5  # of a magnitude, before the logarithm
FRAMES_A_SECOND = RATE / HOP
PAD = (WINDOW - HOP) // 2
ZEROS = 16  # zero crossings of the resampler's kernel, a side

# mean and deviation of log mels that public models were normalised with
NORMS = {"ljspeech": (-5.536622, 2.116101), "vctk": (-6.630575, 2.482914), "libritts": (-5.503524, 2.112483)}


def _mel_of(hertz: torch.Tensor) -> torch.Tensor:
    """Slaney's mel: linear up to 1,000 Hz, then logarithmic."""
    linear = hertz * 3 / 200
    return torch.where(hertz < 1000, linear, 15 + torch.log(hertz.clamp_min(1) / 1000) * 27 / math.log(6.4))


def _hertz_of(mel: torch.Tensor) -> torch.Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


def filter_bank() -> torch.Tensor:
    """Weights (80, 513) float32 of the bands over the frequencies of a frame, each triangle of area 2 / width in Hz."""
    ends = _mel_of(torch.tensor([LOWEST, HIGHEST], dtype=torch.float64))
    points = _hertz_of(torch.linspace(float(ends[0]), float(ends[1]), BANDS + 2, dtype=torch.float64))
    places = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    slopes = places - points[:, None]
    up = slopes[:-2] / (points[1:-1] - points[:-2])[:, None]
    down = -slopes[2:] / (points[2:] - points[1:-1])[:, None]
    weights = torch.minimum(up, down).clamp_min(0)
    return (weights * (2 / (points[2:] - points[:-2]))[:, None]).float()


def spectrum(wave: torch.Tensor) -> torch.Tensor:
    """Magnitudes (..., 513, T) of a wave (..., N), sqrt(re^2 + im^2 + 1e-9), frames as those of ``log_mel``."""
    if wave.shape[-1] <= PAD:
        raise UserError(f"a mel needs more than {PAD} samples; given {wave.shape[-1]}: give a longer sound")
    window = torch.hann_window(WINDOW, device=wave.device, dtype=wave.dtype)
    rows = wave.reshape(-1, 1, wave.shape[-1])
    padded = F.pad(rows, (PAD, PAD), mode="reflect")[:, 0]
    found = torch.stft(padded, WINDOW, HOP, WINDOW, window, center=False, return_complex=True)
    magnitude = torch.sqrt(found.real.square() + found.imag.square() + 1e-9)
    return magnitude.reshape(*wave.shape[:-1], *magnitude.shape[1:])


def log_mel(wave: torch.Tensor, bank: torch.Tensor | None = None) -> torch.Tensor:
    """Log mels (..., 80, N // 256) of a wave (..., N) in -1..1 at 22.05 kHz, float.

    bank: ``filter_bank()`` on the wave's device, for who calls often. Raises UserError for a wave of 384 samples or
    fewer.
    """
    bank = filter_bank().to(wave.device, wave.dtype) if bank is None else bank
    return torch.log((bank @ spectrum(wave)).clamp_min(FLOOR))


def normalise(mel: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    """Log mels as a model sees them: mean 0, deviation 1."""
    return (mel - mean) / deviation


def denormalise(mel: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    """The inverse of ``normalise``."""
    return mel * deviation + mean


@lru_cache(maxsize=8)
def _kernel(source: int, target: int) -> tuple[torch.Tensor, int]:
    """Kernel (target, 1, width) that makes ``target`` samples of every ``source``, and its reach a side."""
    cut = 0.985 * min(source, target)
    reach = math.ceil(ZEROS * source / cut)
    place = torch.arange(-reach, reach + source, dtype=torch.float64)[None] / source
    time = (place - torch.arange(target, dtype=torch.float64)[:, None] / target) * cut
    time = time.clamp(-ZEROS, ZEROS)
    window = torch.cos(time * math.pi / ZEROS / 2) ** 2
    kernel = torch.sinc(time) * window * cut / source
    return kernel[:, None].float(), reach


def resample(wave: torch.Tensor, source: int, target: int = RATE) -> torch.Tensor:
    """A wave (..., N) float32 at ``source`` Hz as (..., ceil(N * target / source)) at ``target`` Hz.

    A windowed sinc (Hann, 16 zero crossings a side) at 0.985 of the lower of the two Nyquist frequencies.
    Raises UserError for rates that are no positive numbers.
    """
    if source < 1 or target < 1:
        raise UserError(f"rates must be 1 Hz or more; given {source} and {target}")
    if source == target:
        return wave
    shared = math.gcd(source, target)
    source, target = source // shared, target // shared
    kernel, reach = _kernel(source, target)
    rows = wave.reshape(-1, 1, wave.shape[-1]).float()
    padded = F.pad(rows, (reach, reach + source))
    found = F.conv1d(padded, kernel.to(wave.device), stride=source)  # (rows, target, blocks)
    length = -(-wave.shape[-1] * target // source)
    return found.transpose(1, 2).reshape(len(rows), -1)[:, :length].reshape(*wave.shape[:-1], length)
