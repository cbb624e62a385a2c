"""The pitch tracker on tones of known pitch, and contours without gaps."""

import math

import numpy as np
import pytest
import torch
from longtake.speech import pitch
from longtake.speech.mel import HOP, RATE


def hum(hertz, seconds=1.0):
    """A tone with harmonics whose pitch may be a row of Hz."""
    count = round(seconds * RATE)
    known = np.atleast_1d(hertz)
    track = torch.from_numpy(np.interp(np.arange(count), np.linspace(0, count, len(known)), known))
    phase = 2 * math.pi * torch.cumsum(track, 0) / RATE
    return sum(torch.sin(k * phase) / k for k in range(1, 8)).float() * 0.2, track.numpy()


@pytest.mark.parametrize("hertz", [82.0, 120.0, 210.0, 330.0, 500.0])
def test_a_steady_tone_has_its_pitch(hertz):
    found = pitch.track(hum(hertz)[0])
    inner = found[5:-5]
    assert (inner > 0).all() and np.abs(inner / hertz - 1).max() < 0.01


def test_a_glide_is_followed():
    wave, truth = hum([120.0, 240.0])
    found = pitch.track(wave)[5:-5]
    places = (np.arange(5, 5 + len(found)) * HOP + HOP // 2).clip(0, len(truth) - 1)
    assert np.abs(found / truth[places] - 1).max() < 0.03


def test_silence_and_noise_have_no_pitch():
    assert not pitch.track(torch.zeros(8000)).any()
    noise = torch.randn(22050, generator=torch.Generator().manual_seed(0)) * 0.1
    assert (pitch.track(noise) > 0).mean() < 0.1


def test_a_contour_has_no_gaps_and_keeps_a_line():
    hertz = np.linspace(100, 150, 80)
    hertz[30:40] = 0
    found = pitch.contour(hertz)
    assert (found > 0).all() and np.abs(found[8:-8] / np.linspace(100, 150, 80)[8:-8] - 1).max() < 0.02
    assert not pitch.contour(np.zeros(20)).any()


def test_semitones_are_around_the_mean_and_know_no_voice():
    low, high = torch.linspace(100, 200, 16), torch.linspace(200, 400, 16)
    mask = torch.ones(16)
    one, two = pitch.semitones(low, mask), pitch.semitones(high, mask)
    assert torch.allclose(one, two, atol=1e-5) and abs(float(one.mean())) < 1e-6
    assert float(one[-1] - one[0]) == pytest.approx(3.0, abs=1e-4)  # an octave is 12 semitones, a quarter each
    assert not pitch.semitones(low, torch.zeros(16)).any()


def test_a_line_rises_by_its_slope():
    assert pitch.line(4.0, 5).tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert pitch.line(-2.0, 3).tolist() == [1.0, 0.0, -1.0] and pitch.line(3.0, 1).tolist() == [0.0]
