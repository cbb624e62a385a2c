"""Pitch of speech, and the shapes of it that ProsodyFM's intonation bank reads.

The tracker is Boersma's (1993): autocorrelation of Hann-windowed frames divided by that of the window, several
candidates a frame, and the cheapest path through them, with the costs of the paper's Praat script (spec 2.4). A
contour is the track without its gaps: interpolated between voiced frames and smoothed by 15 Hz before and after.
Shape legend: N samples at 22.05 kHz, T = N // 256 frames, K candidates a frame.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from longtake.speech.mel import FRAMES_A_SECOND, HOP, RATE

LOWEST, HIGHEST = 75.0, 600.0  # Hz
SPAN = 1024  # samples of a frame: three periods of the lowest pitch and a little
CANDIDATES = 8
SILENCE, VOICING = 0.09, 0.5
OCTAVE, JUMP, CHANGE = 0.055, 0.35, 0.14  # costs
SMOOTH = 15.0  # Hz
BELOW, ABOVE = 0.6, 1.9  # of the quartiles of a speaker's pitch: his range
ENOUGH = 10  # voiced frames that tell a range


def _strengths(wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation (T, L) over lags 0..L-1 of each frame, 1 at lag 0, and loudness (T,) relative to the wave's."""
    frames = max(1, len(wave) // HOP)
    left = (SPAN - HOP) // 2
    padded = F.pad(wave, (left, left + SPAN))
    cut = padded.unfold(0, SPAN, HOP)[:frames]
    cut = cut - cut.mean(1, keepdim=True)
    window = torch.hann_window(SPAN, dtype=wave.dtype)

    def correlated(x: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(x, 2 * SPAN).abs().square()
        return torch.fft.irfft(power, 2 * SPAN)[..., : SPAN // 2]

    own = correlated(cut * window)
    shape = correlated(window)
    found = own / own[:, :1].clamp_min(1e-12) / (shape / shape[0]).clamp_min(1e-3)
    loud = cut.abs().amax(1) / wave.abs().max().clamp_min(1e-6)
    return found, loud


def track(wave: torch.Tensor, lowest: float = LOWEST, highest: float = HIGHEST) -> np.ndarray:
    """Pitch (T,) float32 in Hz of a wave (N,), 0 where there is no voice; one value a mel frame. lowest, highest: Hz,
    within 75 to 600."""
    found, loud = _strengths(wave.detach().float().cpu())
    low, high = int(RATE / highest), math.ceil(RATE / lowest)
    middle, before, after = found[:, low : high + 1], found[:, low - 1 : high], found[:, low + 1 : high + 2]
    peak = (middle > before) & (middle >= after)
    strength, place = torch.where(peak, middle, torch.full_like(middle, -1.0)).topk(CANDIDATES, dim=1)
    m, b, a = (side.gather(1, place) for side in (middle, before, after))
    bend = (b - 2 * m + a).clamp_max(-1e-9)
    lag = place + low + (0.5 * (b - a) / bend).clamp(-0.5, 0.5)
    hertz = (RATE / lag).double().numpy()
    score = strength.double().numpy() - OCTAVE * np.log2(LOWEST * lag.double().numpy() / RATE)
    usable = (strength.numpy() > 0) & (hertz >= lowest) & (hertz <= highest)
    score = np.where(usable, score, -1e3)
    quiet = VOICING + np.maximum(0, 2 - loud.double().numpy() / (SILENCE / (1 + VOICING)))
    return _cheapest(np.log2(np.where(usable, hertz, 100.0)), score, quiet).astype(np.float32)


def own_range(wave: torch.Tensor) -> np.ndarray:
    """Like ``track``, in two passes: the second within the speaker's own range, 0.6 of the first quartile to 1.9 of the
    third, which leaves few slips of an octave (De Looze and Hirst 2008: 0.75 and 1.5; wider here, for final falls and
    for questions)."""
    first = track(wave)
    voiced = first[first > 0]
    if len(voiced) < ENOUGH:
        return first
    low, high = np.percentile(voiced, [25, 75])
    return track(wave, max(LOWEST, BELOW * low), min(HIGHEST, ABOVE * high))


def _cheapest(octaves: np.ndarray, score: np.ndarray, quiet: np.ndarray) -> np.ndarray:
    """Hz of the best path over candidates (T, K) and the voiceless state, 0 for that."""
    frames, kinds = score.shape
    gain = np.concatenate([score, quiet[:, None]], 1)
    scale = 0.01 * FRAMES_A_SECOND  # costs are of frames 10 ms apart
    total, back = gain[0].copy(), np.zeros((frames, kinds + 1), np.int64)
    cost = np.zeros((kinds + 1, kinds + 1))
    cost[-1, :-1] = cost[:-1, -1] = CHANGE * scale
    for t in range(1, frames):
        cost[:-1, :-1] = JUMP * scale * np.abs(octaves[t - 1][:, None] - octaves[t][None])
        ways = total[:, None] - cost
        back[t] = ways.argmax(0)
        total = ways.max(0) + gain[t]
    out = np.zeros(frames)
    state = int(total.argmax())
    for t in range(frames - 1, -1, -1):
        out[t] = 2 ** octaves[t, state] if state < kinds else 0.0
        state = int(back[t, state])
    return out


def contour(hertz: np.ndarray) -> np.ndarray:
    """A track (T,) without gaps: smoothed, interpolated over voiceless frames, smoothed again; all 0 without voice."""
    voiced = hertz > 0
    if not voiced.any():
        return np.zeros_like(hertz)
    weights = _smooth(voiced.astype(np.float64))
    first = np.where(voiced, _smooth(np.where(voiced, hertz, 0.0)) / np.maximum(weights, 1e-9), 0.0)
    places = np.arange(len(hertz))
    return _smooth(np.interp(places, places[voiced], first[voiced])).astype(np.float32)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Values (T,) through a Gaussian whose response falls to 1/e at 15 Hz; ends are repeated."""
    deviation = FRAMES_A_SECOND / (math.pi * SMOOTH) / math.sqrt(2)
    reach = math.ceil(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def semitones(hertz: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Contours (..., S) in Hz as semitones around their own mean, divided by 4, zero where ``mask`` (..., S) is."""
    notes = 12 * torch.log2(hertz.clamp_min(LOWEST))
    mean = (notes * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    return (notes - mean) * mask / 4


def line(slope: float, length: int) -> torch.Tensor:
    """A contour (length,) as the bank reads it, a straight line that rises by ``slope`` from its first to its last
    value around 0: 4 is fast (16 semitones over the word), 0 level, -4 a fast fall."""
    return torch.linspace(-slope / 2, slope / 2, length) if length > 1 else torch.zeros(length)
