"""The HiFi-GAN generator against the original's numbers; streaming; eight bits; the denoiser."""

import os
import subprocess
import sys

import pytest
import torch
from longtake import UserError
from longtake.speech import vocoder
from speech_golden import Case
from speech_prior import drawn

TINY = vocoder.Config(channels=32)


def made(config=TINY, seed=0):
    return drawn(config, seed)


@pytest.mark.parametrize("name", ["S7_hifigan_tiny", "S7_hifigan_v1"])
def test_the_generator_is_the_original_one(name):
    """ACCEPTANCE A11, golden S7."""
    case = Case(name)
    net = vocoder.from_state(case.state())
    assert net.config.channels == case.config["upsample_initial_channel"] and net.hop == case.config["hop_size"]
    case.check("wav", net(case.given("mel"))[:, None])


def test_transformers_generator_takes_the_renamed_weights():
    """ACCEPTANCE A11."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    case = Case("S7_hifigan_tiny")
    told = SpeechT5HifiGanConfig(
        model_in_dim=80,
        sampling_rate=22050,
        upsample_initial_channel=32,
        upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4],
        normalize_before=False,
    )
    theirs = SpeechT5HifiGan(told).eval()
    loaded = theirs.load_state_dict(vocoder.to_transformers(case.state()), strict=False)
    assert sorted(loaded.missing_keys) == ["mean", "scale"] and not loaded.unexpected_keys
    mel = case.given("mel")
    ours = vocoder.from_state(case.state())(mel)
    assert (theirs(mel.transpose(1, 2)) - ours).abs().max() <= 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_packets_is_the_whole(seed):
    """ACCEPTANCE A12."""
    net, dice = made(), torch.Generator().manual_seed(seed)
    mel = torch.randn(80, 150, generator=dice) * 1.5 - 4
    sizes, left = [], 150
    while left:
        sizes.append(min(left, int(torch.randint(1, 40, (1,), generator=dice))))
        left -= sizes[-1]
    packets = list(vocoder.stream(net, iter(mel.split(sizes, 1))))
    whole = net(mel[None])[0]
    assert whole.std() > 0.01
    assert (torch.cat(packets) - whole).abs().max() <= 1e-5


def test_a_stream_speaks_before_its_mels_end():
    net, taken = made(), []

    def mels():
        for number in range(10):
            taken.append(number)
            yield torch.zeros(80, 20)

    first = next(iter(vocoder.stream(net, mels())))
    assert len(taken) == 1 and len(first) == 4 * 256


def test_the_quick_way_on_a_cpu_is_the_plain_one(monkeypatch):
    net = made(vocoder.Config(channels=64))
    mel = torch.randn(2, 80, 30, generator=torch.Generator().manual_seed(0)) - 4
    plain = net(mel)
    monkeypatch.setattr(vocoder, "product_format", lambda device: None)
    assert net.quicken() is net and (net(mel) - plain).abs().max() < 1e-5
    assert sorted(net.state_dict()) == sorted(made(vocoder.Config(channels=64)).state_dict())
    monkeypatch.setattr(vocoder, "product_format", lambda device: torch.bfloat16)
    rounded = net.quicken()(mel)
    assert rounded.dtype == torch.float32 and (rounded - plain).square().mean() < 0.01 * plain.square().mean()


def test_an_empty_stream_is_empty():
    assert list(vocoder.stream(made(), iter(()))) == []


def test_eight_bits_a_weight_are_near_and_small(tmp_path):
    net = made(vocoder.Config(channels=64))
    folder = vocoder.save(net, tmp_path / "voc")
    again = vocoder.load(folder)
    mel = torch.randn(1, 80, 20, generator=torch.Generator().manual_seed(0)) - 4
    assert again.config == net.config
    assert (again(mel) - net(mel)).abs().mean() < 0.05 * net(mel).abs().mean()
    count = sum(one.numel() for one in net.parameters())
    assert (folder / "model.safetensors").stat().st_size < 1.3 * count + 40_000


def test_public_files_load_and_others_are_refused(tmp_path):
    case = Case("S7_hifigan_tiny")
    torch.save({"generator": case.state()}, tmp_path / "g_02500000")
    assert vocoder.load(tmp_path / "g_02500000").config.channels == 32
    torch.save({"generator": "x"}, tmp_path / "bad")
    with pytest.raises(UserError, match="holds no generator"):
        vocoder.load(tmp_path / "bad")
    (tmp_path / "torn").write_bytes((tmp_path / "g_02500000").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or holds more than tensors"):
        vocoder.load(tmp_path / "torn")
    short = {key: value for key, value in case.state().items() if key != "ups.1.bias"}
    with pytest.raises(UserError, match="lacks ups.1.bias"):
        vocoder.from_state(short)
    with pytest.raises(UserError, match="no HiFi-GAN generator"):
        vocoder.from_state({"x": torch.zeros(1)})
    with pytest.raises(
        UserError, match="the vocoder nowhere does not exist: .*ships .hifigan-quick, hifigan-universal"
    ):
        vocoder.find("nowhere")


def test_the_denoiser_takes_the_hum_and_leaves_the_rest():
    net = made()
    denoise = vocoder.Denoiser(net)
    wave = net(torch.randn(1, 80, 30, generator=torch.Generator().manual_seed(1)) - 2)
    assert (denoise(wave, 0.0) - wave).abs().max() < 1e-5
    hum = net(torch.zeros(1, 80, 88))
    assert denoise(hum, 1.0).square().mean() < 0.8 * hum.square().mean()
    assert denoise(wave).shape == wave.shape


def test_ready_made_products_of_old_lengths_are_not_kept_for_ever():
    """oneDNN keeps 1,024 products, one for each shape; a book has ever new lengths."""
    told = "import os, longtake.speech.vocoder; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    for given, kept in ((None, "128"), ("7", "7")):
        env = {key: value for key, value in os.environ.items() if key != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
        env |= {} if given is None else {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": given}
        said = subprocess.run([sys.executable, "-c", told], env=env, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == kept
