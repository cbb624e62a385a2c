"""Loudness by EBU R128 (ITU-R BS.1770-4), measured while sound streams by.

    meter = Meter(24_000)
    for block in blocks: meter.add(block)
    meter.integrated()              # LUFS; -inf for silence

Mono. Memory: one number for each 100 ms.
"""

from __future__ import annotations

import math

import numpy as np

ABSOLUTE, RELATIVE = -70.0, -10.0  # gates: LUFS, LU under the mean
PEAK_DB = -1.0  # a louder sample is not made: the gain is lowered instead
TARGETS = {"podcast": -16.0, "audiobook": -19.0, "broadcast": -23.0}


def _weighting(rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two filters of K weighting at a sample rate: a high shelf and a high pass, (b, a) each.

    The analogue prototypes behind BS.1770's table for 48 kHz, by the bilinear transform; at 48 kHz they are the table.
    """
    gain, quality, corner = 3.999843853973347, 0.7071752369554196, 1681.974450955533
    k = math.tan(math.pi * corner / rate)
    high, middle = 10 ** (gain / 20), 10 ** (gain / 20 * 0.4996667741545416)
    below = 1 + k / quality + k * k
    shelf = (
        np.array([high + middle * k / quality + k * k, 2 * (k * k - high), high - middle * k / quality + k * k])
        / below,
        np.array([1.0, 2 * (k * k - 1) / below, (1 - k / quality + k * k) / below]),
    )
    quality, corner = 0.5003270373238773, 38.13547087602444
    k = math.tan(math.pi * corner / rate)
    below = 1 + k / quality + k * k
    passing = (
        np.array([1.0, -2.0, 1.0]),
        np.array([1.0, 2 * (k * k - 1) / below, (1 - k / quality + k * k) / below]),
    )
    return [shelf, passing]


class Meter:
    """Integrated loudness of a stream of mono samples, and its peak."""

    def __init__(self, rate: int) -> None:
        self._filters = _weighting(rate)
        self._states = [np.zeros(2), np.zeros(2)]
        self._step = max(1, round(rate / 10))
        self._rest = np.zeros(0)
        self._powers: list[float] = []  # of each 100 ms
        self.peak = 0.0

    def add(self, samples: np.ndarray) -> None:
        """More samples (n,)."""
        from scipy.signal import lfilter

        if not len(samples):
            return
        self.peak = max(self.peak, float(np.abs(samples).max()))
        x = np.asarray(samples, np.float64)
        for at, (b, a) in enumerate(self._filters):
            x, self._states[at] = lfilter(b, a, x, zi=self._states[at])
        x = np.concatenate([self._rest, np.square(x)])
        whole = len(x) // self._step
        self._powers += x[: whole * self._step].reshape(whole, self._step).mean(1).tolist()
        self._rest = x[whole * self._step :]

    def integrated(self) -> float:
        """LUFS of all so far; a take shorter than 400 ms counts as one block."""
        powers = np.array(self._powers)
        if len(powers) < 4:
            total = [*self._powers, *([float(self._rest.mean())] if len(self._rest) else [])]
            blocks = np.array([np.mean(total)]) if total else np.zeros(0)
        else:
            blocks = np.convolve(powers, np.full(4, 0.25), "valid")
        loud = blocks[_lufs(blocks) > ABSOLUTE]
        if not len(loud):
            return -math.inf
        loud = loud[_lufs(loud) > float(_lufs(np.array([loud.mean()]))[0]) + RELATIVE]
        return float(_lufs(np.array([loud.mean()]))[0])

    def gain(self, target: float) -> float:
        """The factor that brings the take to ``target`` LUFS, no further than a peak of -1 dB; 1 for silence."""
        loudness = self.integrated()
        if not math.isfinite(loudness) or self.peak == 0:
            return 1.0
        return float(min(10 ** ((target - loudness) / 20), 10 ** (PEAK_DB / 20) / self.peak))


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)
