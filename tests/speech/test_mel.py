"""The mel front end against numbers of the original, and the resampler."""

import math

import pytest
import torch
from longtake import UserError
from longtake.speech import mel
from speech_golden import Case


def test_log_mels_and_their_bands_are_those_of_the_original():
    """ACCEPTANCE A13, golden S8."""
    golden = Case("S8_mel_front_end")
    golden.check("filter_bank", mel.filter_bank())
    golden.check("mel", mel.log_mel(golden.given("wave")))


@pytest.mark.parametrize("name", mel.NORMS)
def test_normalising_comes_back(name):
    """ACCEPTANCE A13."""
    there = torch.randn(80, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 - 5
    back = mel.denormalise(mel.normalise(there, *mel.NORMS[name]), *mel.NORMS[name])
    assert torch.allclose(back, there, atol=1e-12, rtol=0)


def test_a_batch_gives_each_wave_its_own_mel():
    waves = torch.randn(2, 3, 2000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mel.log_mel(waves)[1, 2], mel.log_mel(waves[1, 2]), atol=1e-5)


def test_a_sound_of_no_length_is_refused():
    with pytest.raises(UserError, match="more than 384 samples; given 384"):
        mel.log_mel(torch.zeros(384))


@pytest.mark.parametrize(("source", "target"), [(24000, 22050), (8000, 22050), (44100, 22050), (22050, 24000)])
def test_a_tone_stays_the_same_tone_at_another_rate(source, target):
    time = torch.arange(source, dtype=torch.float64) / source
    found = mel.resample(torch.sin(2 * math.pi * 1000 * time).float(), source, target)
    wanted = torch.sin(2 * math.pi * 1000 * torch.arange(target, dtype=torch.float64) / target)
    assert len(found) == target
    assert (found - wanted)[300:-300].abs().max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_taken_out():
    time = torch.arange(44100, dtype=torch.float64) / 44100
    assert mel.resample(torch.sin(2 * math.pi * 15000 * time).float(), 44100)[500:-500].abs().max() < 2e-3
