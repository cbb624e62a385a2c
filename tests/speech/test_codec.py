"""Codes are EnCodec's own, merging changes only what it must, and sound decoded in pieces equals the whole."""

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.speech.codec import quantiser
from longtake.speech.codec.encodec import Encodec
from speech_goldens import Golden, fill

PLAIN = (1,) * 8


@pytest.fixture(scope="module")
def encodec():
    """A small EnCodec of random weights with filled codebooks, 8 layers at 6 kbps."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16)).eval()
    with torch.no_grad():
        spread = model.encoder(torch.randn(1, 1, 24000)).std()
        for number, layer in enumerate(model.quantizer.layers):
            layer.codebook.embed.normal_().mul_(0.4 * 0.8**number * spread)
    return model


def golden_codebooks():
    entry = Golden("S9_rvq_1024x128x8").meta["inputs"]["codebooks"]
    shape = tuple(entry["shape"])
    return [
        torch.from_numpy(fill.noise(f"shared/S9_rvq_1024x128x8/codebook{i}", shape) * np.float32(scale))
        for i, scale in enumerate(entry["scale"])
    ]


@pytest.mark.parametrize(("merge", "suffix"), [(PLAIN, ""), (quantiser.MERGE, "_merged")])
def test_s9_codes_are_those_of_the_released_quantiser(merge, suffix):
    golden, tables = Golden("S9_rvq_1024x128x8"), golden_codebooks()
    codes = quantiser.encode(golden.given("z"), tables, merge)
    assert np.array_equal(codes.numpy(), golden.arrays[f"codes{suffix}"])
    gap = np.abs(quantiser.decode(codes, tables).numpy() - golden.arrays[f"decoded{suffix}"]).max()
    assert gap <= golden.meta["outputs"][f"decoded{suffix}"]["tolerance"]
    if suffix:
        assert np.array_equal(quantiser.store(codes[0], 2).numpy(), golden.arrays["first_stream_merged"])


def test_a1_without_merging_codes_equal_those_of_transformers(encodec):
    wave = 0.3 * torch.randn(2, 1, 4 * 24000 + 77, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = encodec.encode(wave, bandwidth=6.0).audio_codes[0]
    codec = Encodec(encodec, merge=PLAIN)
    assert torch.equal(codec.encode(wave), theirs)
    with torch.inference_mode():
        assert torch.equal(codec.decode(theirs), encodec.decode(theirs[None], [None])[0])


@pytest.mark.parametrize("frames", [1, 2, 7, 40, 41])
def test_a2_merged_frames_share_their_code_and_half_of_them_is_kept(frames):
    tables = [torch.randn(64, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    latent = torch.randn(2, 8, frames, generator=torch.Generator().manual_seed(9))
    first = quantiser.encode(latent, tables, (2, 1, 1))[0]
    pairs = frames // 2
    assert torch.equal(first[:, : 2 * pairs : 2], first[:, 1 : 2 * pairs : 2])
    kept = quantiser.store(first, 2)
    assert kept.shape == (2, -(-frames // 2))
    assert torch.equal(quantiser.restore(kept, 2, frames), first)


def test_every_layer_may_be_merged_and_the_rest_is_quantised_as_it_is_left():
    tables = [torch.randn(32, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    latent = torch.randn(1, 4, 11, generator=torch.Generator().manual_seed(5))
    codes = quantiser.encode(latent, tables, (3, 2))
    rest = latent[0].T.clone()
    for layer, rate in enumerate((3, 2)):
        for start in range(0, 11, rate):
            group = rest[[min(t, 10) for t in range(start, start + rate)]].mean(0)
            best = int(((tables[layer] - group) ** 2).sum(1).argmin())
            assert codes[layer, 0, start : start + rate].tolist() == [best] * min(rate, 11 - start)
        rest = rest - tables[layer][codes[layer, 0]]


@pytest.mark.parametrize("size", [1, 7, 75])
def test_a12_encodec_decoded_in_pieces_equals_the_whole(encodec, size):
    codec = Encodec(encodec)
    codes = torch.randint(1024, (1, 8, 150), generator=torch.Generator().manual_seed(size))
    whole = codec.decode(codes)
    stream = codec.stream()
    parts = [stream.push(part) for part in codes.split(size, -1)] + [stream.flush()]
    assert (torch.cat(parts, -1) - whole).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("frames", [0, 1, 6, 7])
def test_a_sequence_shorter_than_the_first_packet_comes_at_the_end(encodec, frames):
    codec = Encodec(encodec)
    codes = torch.randint(1024, (1, 8, frames), generator=torch.Generator().manual_seed(frames))
    stream = codec.stream()
    made = torch.cat([stream.push(codes), stream.flush()], -1)
    assert made.shape[-1] == frames * codec.hop
    if frames:
        assert (made - codec.decode(codes)).abs().max() <= 1e-5


def test_what_cannot_be_is_refused_in_one_line(encodec):
    from transformers import EncodecConfig, EncodecModel

    with pytest.raises(UserError, match="empty codebooks"):
        Encodec(EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16)))
    with pytest.raises(UserError, match="33 were asked"):
        Encodec(encodec, layers=33)
    with pytest.raises(UserError, match="each of 8 layers"):
        Encodec(encodec, merge=(2, 1))
    with pytest.raises(UserError, match="need 3 codes, got 2"):
        quantiser.restore(torch.zeros(1, 2), 2, 5)
    with pytest.raises(UserError, match="24 kHz mono"):
        Encodec(EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, normalize=True)))
