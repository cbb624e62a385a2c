"""Stock pipelines of diffusers with tiny random parts, made offline: a real scheduler, VAE, text encoder, tokenizer."""

import torch
from dit_models import make


def tokenizer(length=8):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = "<pad> </s> <unk> a dog cat runs swims jumps sleeps red blue over the hill sea".split()
    whole = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    whole.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def t5(kind="t5", width=16):
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = dict(vocab_size=32, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = UMT5EncoderModel(UMT5Config(**config)) if kind == "umt5" else T5EncoderModel(T5Config(**config))
    return model.eval()


def wan_vae(z=4):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4, z_dim=z, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0][:z], latents_std=[1.5, 0.8, 1.1, 0.9][:z],
    ).eval()  # fmt: skip


def wan(scheduler="unipc", **changes):
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline

    chosen = (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        if scheduler == "unipc"
        else FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    return WanPipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("wan", **changes), vae=wan_vae(),
        scheduler=chosen,
    )  # fmt: skip


def _flow(**config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def ltx():
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline

    torch.manual_seed(1)
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=4,
        patch_size_t=1, encoder_causal=True, decoder_causal=False,
    ).eval()  # fmt: skip
    return LTXPipeline(
        scheduler=_flow(
            base_image_seq_len=1024, base_shift=0.95, max_image_seq_len=4096, max_shift=2.05, shift_terminal=0.1,
            use_dynamic_shifting=True,
        ),
        vae=vae, text_encoder=t5(), tokenizer=tokenizer(), transformer=make("ltx"),
    )  # fmt: skip


def cogvideox(kind="cogvideox"):
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline

    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    ).eval()  # fmt: skip
    return CogVideoXPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=make(kind, max_text_seq_length=8),
        scheduler=CogVideoXDDIMScheduler(
            rescale_betas_zero_snr=True, snr_shift_scale=1.0, prediction_type="v_prediction"
        ),
    )  # fmt: skip


def mochi():
    from diffusers import AutoencoderKLMochi, MochiPipeline

    torch.manual_seed(1)
    vae = AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1), latents_mean=[0.0] * 12,
        latents_std=[1.0] * 12,
    ).eval()  # fmt: skip
    return MochiPipeline(
        scheduler=_flow(), vae=vae, text_encoder=t5(), tokenizer=tokenizer(256),
        transformer=make("mochi", in_channels=12),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip


def hunyuan():
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
    ).eval()  # fmt: skip
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            pad_token_id=0,
        )
    ).eval()  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=77, pad_token_id=0, bos_token_id=1, eos_token_id=2, projection_dim=8,
        )
    ).eval()  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=llama, tokenizer=tokenizer(300), transformer=make("hunyuan"), vae=vae,
        scheduler=_flow(shift=7.0), text_encoder_2=clip, tokenizer_2=tokenizer(77),
    )  # fmt: skip


def skyreels():
    from diffusers import SkyReelsV2Pipeline, UniPCMultistepScheduler

    return SkyReelsV2Pipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("skyreels"), vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
    )  # fmt: skip


def vace():
    from diffusers import WanVACEPipeline

    return WanVACEPipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("vace", vace_in_channels=72), vae=wan_vae(),
        scheduler=wan().scheduler,
    )  # fmt: skip


def cosmos():
    from diffusers import EDMEulerScheduler
    from diffusers.pipelines.cosmos.pipeline_cosmos_text2world import CosmosTextToWorldPipeline

    class Safe:  # the guardrail is a model of its own, from the Hub
        def to(self, *_args, **_kwargs):
            return self

        def check_text_safety(self, _prompt):
            return True

        def check_video_safety(self, video):
            return video

    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(1)
    vae = AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1, patch_size=4, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()  # fmt: skip
    return CosmosTextToWorldPipeline(
        text_encoder=t5(), tokenizer=tokenizer(512), transformer=make("cosmos", max_size=(128, 64, 64)), vae=vae,
        scheduler=EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras"),
        safety_checker=Safe(),
    )  # fmt: skip


PIPELINES = {
    "wan": wan, "ltx": ltx, "cogvideox": cogvideox, "mochi": mochi, "hunyuan": hunyuan, "skyreels": skyreels,
    "vace": vace, "cosmos": cosmos,
}  # fmt: skip
SIZES = {"ltx": 64, "hunyuan": 32, "cosmos": 32}
