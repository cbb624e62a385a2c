"""Public layouts load: a bare VideoCrafter2 UNet with its frame-rate embedding, and a whole zeroscope-like folder."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from longtake.errors import UserError
from longtake.video.convert import is_bare_unet, load_bare_unet
from longtake.video.frame_rate_unet import FrameRateUNet
from longtake.video.pipeline import LongVideoPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from video_models import TINY_UNET, fill_parameters

UNET = {**TINY_UNET, "attention_head_dim": 8}


@pytest.fixture(scope="module")
def zeroscope(tmp_path_factory):
    """A tiny pipeline folder as diffusers saves text-to-video pipelines: CLIP, AutoencoderKL, UNet3D, DPM-Solver."""
    folder = tmp_path_factory.mktemp("zeroscope")
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=12)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=len(words),
            max_position_embeddings=12,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    unet = UNet3DConditionModel(**UNET)
    fill_parameters(unet)
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    TextToVideoSDPipeline(vae, text, tokenizer, unet, scheduler).save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture(scope="module")
def videocrafter(tmp_path_factory):
    """A bare UNet in the layout of adamdad/videocrafterv2_diffusers."""
    folder = tmp_path_factory.mktemp("videocrafter")
    model = FrameRateUNet(**UNET)
    fill_parameters(model)
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    config = {**UNET, "_class_name": "UNetVideoCrafter", "_diffusers_version": "0.29.0", "fps_cond": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_zeroscope_folder_makes_a_long_video(zeroscope):
    pipe = LongVideoPipeline.from_prior(zeroscope)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a dog", 20, num_inference_steps=2)
    assert out.frames.shape == (20, 64, 64, 3) and torch.isfinite(out.latents).all()
    states = pipe.encode_prompts(["a dog", "a cat"])
    assert states.shape == (2, 12, 32) and not torch.equal(states[0], states[1])


def test_videocrafter_keys_load_and_the_frame_rate_is_added_to_the_time_embedding(videocrafter):
    assert is_bare_unet(videocrafter)
    model = load_bare_unet(videocrafter)
    state = load_file(videocrafter / "diffusion_pytorch_model.safetensors")
    assert isinstance(model, FrameRateUNet) and set(model.state_dict()) == set(state)
    model.fps = 8.0
    features = model.time_proj(torch.tensor([500]))
    plain = model.time_embedding.linear_2(model.time_embedding.act(model.time_embedding.linear_1(features)))
    # sinusoidal features of the frame rate, cosines first, through the two layers of fps_embedding
    half = UNET["block_out_channels"][0] // 2
    angles = 8.0 * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half) / half)
    hidden = torch.cat([angles.cos(), angles.sin()]) @ state["fps_embedding.linear_1.weight"].T
    hidden = torch.nn.functional.silu(hidden + state["fps_embedding.linear_1.bias"])
    expected = hidden @ state["fps_embedding.linear_2.weight"].T + state["fps_embedding.linear_2.bias"]
    assert torch.allclose(model.time_embedding(features), plain + expected, atol=1e-5)


def test_videocrafter_borrows_the_rest_and_its_frame_rate_matters(videocrafter, zeroscope):
    pipe = LongVideoPipeline.from_prior(videocrafter, base=str(zeroscope))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet, FrameRateUNet)
    slow = pipe("a dog", 18, num_inference_steps=2, output_type="latent").latents
    pipe.unet.fps = 8.0
    fast = pipe("a dog", 18, num_inference_steps=2, output_type="latent").latents
    assert (slow - fast).abs().max() > 1e-3


def test_without_a_network_the_error_says_what_to_put_where(videocrafter):
    with pytest.raises(UserError, match="bare UNet.*zeroscope_v2_576w.*hf download"):
        LongVideoPipeline.from_prior(videocrafter)
    with pytest.raises(UserError, match="hf download adamdad/videocrafterv2_diffusers"):
        LongVideoPipeline.from_prior("adamdad/videocrafterv2_diffusers")


def test_a_missing_key_is_named(videocrafter, tmp_path):
    state = load_file(videocrafter / "diffusion_pytorch_model.safetensors")
    state.pop("conv_in.weight")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((videocrafter / "config.json").read_text())
    with pytest.raises(UserError, match="conv_in.weight"):
        load_bare_unet(tmp_path)
