"""A public checkpoint with its statistics and a CLIP text encoder (a tiny one: the real weights cannot be had here)."""

import os
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.motion.pipeline import LongMotionPipeline
from longtake.weights import resolve
from motion_models import Golden


def small_clip(folder) -> str:
    """CLIP's own text model and tokenizer, one thin layer and single letters."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    letters = list(string.ascii_lowercase)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *[f"{letter}</w>" for letter in letters]]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, projection_dim=512, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> LongMotionPipeline:
    folder = tmp_path_factory.mktemp("public")
    torch.save(Golden("M1_tiny").state(), folder / "model000200000.pt")
    np.save(folder / "Mean.npy", np.zeros(263, np.float32))
    np.save(folder / "Std.npy", np.ones(263, np.float32))
    pipe = LongMotionPipeline.from_public(
        folder / "model000200000.pt", mean=folder / "Mean.npy", std=folder / "Std.npy",
        clip=small_clip(folder / "clip"), train_steps=50,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_texts_are_cut_at_22_tokens_and_padded_with_zeros_as_the_public_nets_were_trained(made) -> None:
    found = made.encode_prompts(["abc def", "abc def"])
    assert found.shape == (2, 512) and torch.equal(found[0], found[1])
    # start, a b c</w> d e f</w>, end, then zeros to 77
    ids = torch.tensor([[0, 2, 3, 28 + 2, 5, 6, 28 + 5, 1, *[0] * 69]])
    assert made.tokenizer(["abc def"]).input_ids[0] == ids[0, :8].tolist()
    by_hand = made.text_encoder(input_ids=ids).text_embeds
    assert torch.allclose(found[:1], by_hand, atol=1e-6)
    long = "abcdefghij klmnopqrst"  # 20 letters fill the 22
    same = made.encode_prompts([long, long + "uvw", "z" + long])
    other = float((same[0] - same[2]).abs().max())
    assert other > 1e-4 and made.encode_prompts([long + " uvw"]).shape == (1, 512)
    assert float((made.encode_prompts([long + " uvw"]) - made.encode_prompts([long + " xyz"])).abs().max()) == 0.0


def test_a_public_checkpoint_makes_motion_of_prompts(made) -> None:
    one = made("0s: walk | 2s: wave", 80, seed=1, num_inference_steps=3)
    same = made("0s: walk | 2s: wave", 80, seed=1, num_inference_steps=3)
    other = made("0s: walk | 2s: run", 80, seed=1, num_inference_steps=3)
    assert one.joints.shape == (80, 22, 3) and np.isfinite(one.joints).all()
    assert np.array_equal(one.features, same.features) and not np.array_equal(one.features, other.features)


def test_without_clip_texts_are_features(made, tmp_path) -> None:
    torch.save(Golden("M1_tiny").state(), tmp_path / "m.pt")
    for name in ("Mean", "Std"):
        np.save(tmp_path / f"{name}.npy", np.ones(263, np.float32))
    pipe = LongMotionPipeline.from_public(
        tmp_path / "m.pt", mean=tmp_path / "Mean.npy", std=tmp_path / "Std.npy", clip=None, train_steps=50
    )
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(UserError, match="features"):
        pipe("walk", 40, num_inference_steps=2)
    assert len(pipe("walk", 40, num_inference_steps=2, text=torch.ones(1, 512)).features) == 40


PARTS = ["model_index.json", "scheduler/scheduler_config.json", "space/config.json", "model/config.json"]
STRANGE = [b"null", b"[]", b"5", b'"x"', b"{", b"", b"[" * 50_000, b'{"features": [5]}', b"\xff\xfe"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("content", STRANGE, ids=[repr(content[:6]) for content in STRANGE])
def test_f7_a_prior_with_a_strange_file_is_one_line(part: str, content: bytes, tmp_path: Path) -> None:
    source = resolve("bandai-small", kind="motion prior", priors_package="longtake.motion")
    folder = tmp_path / "prior"
    shutil.copytree(source, folder, copy_function=os.symlink)
    (folder / part).unlink()
    (folder / part).write_bytes(content)
    with pytest.raises(UserError) as told:
        LongMotionPipeline.from_prior(folder)
    assert "\n" not in str(told.value)
