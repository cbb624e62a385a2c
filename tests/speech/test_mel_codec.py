"""The codec over mels: padding and pieces change nothing, its codebooks are used, merging costs little (A3)."""

import pytest
import speech_codes
import torch
from longtake.errors import UserError
from longtake.speech.codec.mels import MelCodec
from longtake.train import Dice

SMALL = {"latent": 16, "entries": 64, "width": 32, "depth": 2, "decoder_width": 32, "decoder_depth": 2}


def trained(steps=250, **more):
    """A small codec that has learned the toy mels, and the mels of others."""
    torch.manual_seed(0)
    codec, seen = MelCodec(**{**SMALL, **more}), speech_codes.flat(24)
    optimizer = torch.optim.AdamW(codec.parameters(), 3e-3)
    for step in range(steps):
        dice = Dice(0, step, torch.device("cpu"))
        mel = seen.crops(8, 32, dice)
        used = torch.where(dice.uniform(8) < 0.5, 1 + dice.integers(8, 8), 8)
        loss = codec(mel, used, dice.integers(codec.vectors(8, 32), 8, codec.entries))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return codec.eval()


@pytest.fixture(scope="module")
def codec():
    return trained()


def unseen():
    flat = speech_codes.flat(6, seed=3)
    mel = flat.cut(torch.arange(6), torch.zeros(6, dtype=torch.int64), 40)
    return (mel * 2.1 - 5.5).transpose(1, 2)


def test_more_codebooks_say_more_and_all_of_them_are_used(codec):
    mel = unseen()
    codes = codec.encode(mel)
    errors = [float((codec.decode(codes[:, :count]) - mel).abs().mean()) for count in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * float((mel - mel.mean()).abs().mean())
    assert all(len(codes[:, layer].unique()) > 8 for layer in range(8))
    assert torch.equal(codes[:, 0, ::2], codes[:, 0, 1::2])


def test_a3_merging_the_first_layer_costs_at_most_15_percent(codec):
    plain = trained(merge=(1,) * 8)
    mel = unseen()
    merged, full = (float((each.decode(each.encode(mel)) - mel).abs().mean()) for each in (codec, plain))
    print(f"error of log mels merged {merged:.4f}, unmerged {full:.4f}")
    assert merged <= 1.15 * full


def test_a_padded_row_has_the_codes_that_it_has_alone(codec):
    mel, lengths = unseen(), torch.tensor([40, 39, 31, 12, 7, 1])
    codes = codec.encode(mel, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(codes[row, :, :length], codec.encode(mel[row : row + 1, :, :length])[0])


@pytest.mark.parametrize("size", [1, 5, 24])
def test_mels_decoded_in_pieces_equal_the_whole(codec, size):
    codes = codec.encode(torch.cat(list(unseen()), 1)[None])
    stream = codec.stream()
    parts = [stream.push(part) for part in codes.split(size, -1)] + [stream.flush()]
    assert (torch.cat(parts, -1) - codec.decode(codes)).abs().max() <= 1e-5
    assert stream.window is not None and stream.window.shape[-1] <= codes.shape[-1] and len(parts) > 1


def test_entries_that_nothing_falls_to_are_set_on_vectors_of_the_batch():
    torch.manual_seed(0)
    codec = MelCodec(**SMALL)
    assert not codec.books.any()
    codec(torch.randn(2, 32, 80), torch.tensor([8, 8]), torch.randint(32, (8, 64)))
    assert (codec.books[0].abs().sum(1) > 0).all() and torch.isfinite(codec.books).all()


def test_a_mel_of_other_bands_is_refused(codec):
    with pytest.raises(UserError, match="80 bands, got 40"):
        codec.encode(torch.zeros(1, 40, 9))


@pytest.mark.parametrize("size", [1, 9, 40])
def test_sound_decoded_in_pieces_equals_the_whole(codec, size):
    from longtake.speech.codec.sound import MelSound
    from longtake.speech.vocoder import Config, Vocoder

    torch.manual_seed(0)
    sound = MelSound(codec, Vocoder(Config(channels=32)))
    wave = 0.1 * torch.randn(1, 1, 22050, generator=torch.Generator().manual_seed(0))
    codes = sound.encode(wave)
    assert codes.shape == (1, 8, 22050 // 256) and sound.frame_rate == pytest.approx(86.13, abs=0.01)
    whole, stream = sound.decode(codes), sound.stream()
    parts = [stream.push(part) for part in codes.split(size, -1)] + [stream.flush()]
    assert whole.shape[-1] == codes.shape[-1] * 256
    assert (torch.cat(parts, -1) - whole).abs().max() <= 1e-5
