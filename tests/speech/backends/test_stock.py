"""Stock classes of transformers, tiny and with random weights, through the long-form engine."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from longtake import LongSpeechPipeline
from longtake.errors import UserError
from longtake.speech.backends.stock import STOCK, StockVoice, rate_of
from longtake.speech.backends.voice import Utterance
from longtake.speech.longform.engine import LongForm
from longtake.speech.text.script import Unit, Writer

TEXT = "Good evening, said the captain. He paid $3.50 for it and went home again."
UNITS = (Unit("Good", "ɡˈʊd", spoken="Good"), Unit("evening.", "ˈiːvnɪŋ", ".", spoken="evening"))


class Processor:
    """Stands in for a processor: letters are ids, codes are sound; keeps what it was asked."""

    def __init__(self, rate: int, ids: Callable[[str], Any], decode: Callable[..., Any]) -> None:
        self.feature_extractor = SimpleNamespace(sampling_rate=rate)
        self.ids, self.asked = ids, []
        self.decode = self.batch_decode = decode

    def apply_chat_template(self, turns: list[dict], **settings: Any) -> dict[str, Any]:
        assert settings["tokenize"] and settings["return_dict"]
        self.asked.append(turns)
        text = " ".join(part["text"] for turn in turns for part in turn["content"] if part["type"] == "text")
        return self.ids(text)

    def __call__(self, text: list[str], **settings: Any) -> dict[str, Any]:
        self.asked.append((text, settings))
        return self.ids(text[0])


def letters(text: str, most: int) -> list[int]:
    return [4 + ord(letter) % (most - 4) for letter in text]


def sound(codes: torch.Tensor) -> torch.Tensor:
    """Something to hear of codes or latents (T, ...)."""
    values = codes.reshape(len(codes), -1).float().mean(1)
    return torch.sin(values[:, None] + torch.arange(320)[None] / 9).reshape(-1) * 0.3


def pocket() -> tuple[Any, Processor, dict]:
    from transformers import PocketTTSConfig, PocketTTSForConditionalGeneration

    config = PocketTTSConfig(
        flow_head_config={"hidden_size": 16, "num_hidden_layers": 1, "latent_dim": 4, "condition_dim": 32,
                          "frequency_embedding_size": 16},
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, latent_dim=4,
        audio_prompt_token_id=96, audio_latent_token_id=97, audio_prompt_bos_token_id=98, audio_bos_token_id=99,
    )  # fmt: skip

    def ids(text: str) -> dict:
        row = torch.tensor([[*letters(text, 90), 99]])
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "frames_after_eos": torch.tensor([1])}

    decode = lambda latents, mask: [sound(row[keep.bool()]) for row, keep in zip(latents, mask, strict=True)]  # noqa: E731
    return PocketTTSForConditionalGeneration(config), Processor(24_000, ids, decode), {}


def vibe() -> tuple[Any, Processor, dict]:
    from transformers import VibeVoiceConfig, VibeVoiceForConditionalGeneration

    audio = {"hidden_size": 8, "num_filters": 2, "downsampling_ratios": [2, 4], "depths": [1, 1, 1], "ffn_expansion": 1}
    text = {"model_type": "qwen2", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}  # fmt: skip
    config = VibeVoiceConfig(
        audio_config=audio, semantic_model_config=dict(audio), text_config=text,
        diffusion_head_config={"hidden_size": 16, "latent_size": 8, "num_hidden_layers": 1, "intermediate_size": 16},
        pad_token_id=0, eos_token_id=1, audio_bos_token_id=97, audio_eos_token_id=98, audio_token_id=99,
    )  # fmt: skip

    def ids(text: str) -> dict:
        row = torch.tensor([[*letters(text, 90), 97]])
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    return (
        VibeVoiceForConditionalGeneration(config),
        Processor(24_000, ids, None),
        {
            "num_diffusion_steps": 2,
            "suppress_tokens": [1, 97, 98],
            "max_new_tokens": 12,
        },  # fmt: skip,
    )


def csm() -> tuple[Any, Processor, dict]:
    from transformers import CsmConfig, CsmForConditionalGeneration

    codec = {"model_type": "mimi", "num_filters": 16, "hidden_size": 16, "upsampling_ratios": [4, 2], "kernel_size": 3,
             "codebook_size": 16, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 4,
             "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
             "intermediate_size": 16, "upsample_groups": 16, "num_semantic_quantizers": 1}  # fmt: skip
    depth = {"num_codebooks": 4, "backbone_hidden_size": 16, "vocab_size": 16, "hidden_size": 16,
             "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "max_position_embeddings": 8}  # fmt: skip
    config = CsmConfig(
        num_codebooks=4, vocab_size=16, text_vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=1, codebook_pad_token_id=15,
        codebook_eos_token_id=0, audio_token_id=98, audio_eos_token_id=99, depth_decoder_config=depth,
        codec_config=codec,
    )  # fmt: skip

    def ids(text: str) -> dict:
        row = torch.tensor([letters(text, 90)])
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    model = CsmForConditionalGeneration(config)
    for module in model.codec_model.modules():
        if hasattr(module, "embed_sum"):  # the codebooks of a fresh model are all zero
            module.embed_sum.normal_()
    return model, Processor(24_000, ids, None), {}


def dia() -> tuple[Any, Processor, dict]:
    from transformers import DiaConfig, DiaForConditionalGeneration

    encoder = {"max_position_embeddings": 256, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
               "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16, "vocab_size": 256}  # fmt: skip
    decoder = {"max_position_embeddings": 512, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16,
               "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "cross_num_attention_heads": 2,
               "cross_head_dim": 8, "cross_num_key_value_heads": 2, "cross_hidden_size": 16, "vocab_size": 32,
               "num_channels": 3, "pad_token_id": 30, "eos_token_id": 29, "bos_token_id": 31}  # fmt: skip
    config = DiaConfig(
        encoder_config=encoder, decoder_config=decoder, pad_token_id=30, eos_token_id=29, bos_token_id=31,
        delay_pattern=[0, 1, 2],
    )  # fmt: skip

    def ids(text: str) -> dict:
        row = torch.tensor([list(text.encode())])
        first = torch.full((1, 1, 3), 31)
        mask = torch.ones(1, 1, dtype=torch.long)
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "decoder_input_ids": first,
                "decoder_attention_mask": mask}  # fmt: skip

    decode = lambda codes, audio_prompt_len=None: [sound(codes[0])]  # noqa: E731
    return DiaForConditionalGeneration(config), Processor(44_100, ids, decode), {"max_new_tokens": 60}


def higgs() -> tuple[Any, Processor, dict]:
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    config = HiggsAudioV2Config(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_codebooks=3,
        codebook_size=12, audio_token_id=97, audio_bos_token_id=98, audio_delay_token_id=99, audio_stream_bos_id=10,
        audio_stream_eos_id=11,
    )  # fmt: skip

    def ids(text: str) -> dict:
        row = torch.tensor([[*letters(text, 90), 98]])
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    decode = lambda codes: [sound(codes[0])]  # noqa: E731
    return HiggsAudioV2ForConditionalGeneration(config), Processor(24_000, ids, decode), {"max_new_tokens": 60}


MADE = {
    "PocketTTSForConditionalGeneration": pocket, "VibeVoiceForConditionalGeneration": vibe,
    "CsmForConditionalGeneration": csm, "DiaForConditionalGeneration": dia,
    "HiggsAudioV2ForConditionalGeneration": higgs,
}  # fmt: skip


@pytest.fixture(scope="module", params=STOCK)
def voice(request) -> StockVoice:
    torch.manual_seed(0)
    model, processor, settings = MADE[request.param]()
    return StockVoice(model, processor, **settings)


def test_a_class_speaks_and_its_seed_decides(voice: StockVoice) -> None:
    state = torch.get_rng_state()
    said = voice.say(Utterance(UNITS, seed=3))
    assert torch.equal(state, torch.get_rng_state()), "the caller's generator is left as it was"
    assert said.samples.dtype == np.float32 and len(said.samples) and np.isfinite(said.samples).all()
    assert len(said.words) == 2 and not said.exact
    torch.randn(5)
    assert np.array_equal(said.samples, voice.say(Utterance(UNITS, seed=3)).samples)
    others = [voice.say(Utterance(UNITS, seed=seed)).samples for seed in (4, 5, 6)]
    assert any(len(one) != len(said.samples) or not np.array_equal(one, said.samples) for one in others)


def test_a_long_text_goes_through_the_engine(voice: StockVoice) -> None:
    out = LongSpeechPipeline(voice)(TEXT, seed=1, phonemes="words")
    assert out.rate == voice.rate and [word.text for word in out.words] == TEXT.split()
    assert out.info["times"] == "shared out" and len(out.sentences()) == 2
    assert "three dollars" in str(voice.processor.asked[-1])


def test_what_a_class_cannot_is_refused_by_its_name(voice: StockVoice) -> None:
    name = voice.kind
    form = LongForm(voice, Writer("words"), name=name)
    for text in (
        "<speak><prosody rate='2'>a</prosody></speak>",
        "[[həlˈoʊ]] there",
        "<speak><voice name='no'>a</voice></speak>",
    ):
        with pytest.raises(UserError, match=name):
            list(form.stream(text, 1))
    with pytest.raises(UserError, match=name):
        LongForm(voice, Writer("words"), name=name, carry="tail")
    with pytest.raises(UserError, match=f"{name}.*steps"):
        voice.say(Utterance(UNITS, steps=4))
    if STOCK[name].needs_text:
        with pytest.raises(UserError, match=f"{name}.*reference_text"):
            voice.clone(torch.zeros(22_050), None)


def test_another_class_is_refused() -> None:
    with pytest.raises(UserError, match="Linear is no voice"):
        StockVoice(torch.nn.Linear(1, 1), Processor(24_000, None, None))
    with pytest.raises(UserError, match="sampling rate"):
        rate_of(object())


def test_a_folder_of_transformers_is_a_prior(tmp_path, monkeypatch) -> None:
    import transformers
    from longtake.speech.backends.load import load_voice, needs_vocoder

    model, processor, _ = pocket()
    model.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda folder, **_: processor)
    made = load_voice(tmp_path / "m")
    assert isinstance(made, StockVoice) and not needs_vocoder(tmp_path / "m")
    assert np.array_equal(
        made.say(Utterance(UNITS, seed=1)).samples, StockVoice(model, processor).say(Utterance(UNITS, seed=1)).samples
    )
    with pytest.raises(UserError, match="leave the vocoder out"):
        load_voice(tmp_path / "m", tmp_path)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_voice(tmp_path / "m")
