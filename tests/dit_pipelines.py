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


def unipc(shift=3.0):
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan(scheduler="unipc", **changes):
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    chosen = unipc() if scheduler == "unipc" else FlowMatchEulerDiscreteScheduler(shift=3.0)
    return WanPipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("wan", **changes), vae=wan_vae(),
        scheduler=chosen,
    )  # fmt: skip


def wan_two(boundary=0.8):
    """Wan 2.2 A14B: one transformer for the noisy steps, another (other weights) for the rest."""
    from diffusers import WanPipeline

    second = make("wan")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(0.7)
    return WanPipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("wan"), transformer_2=second, vae=wan_vae(),
        scheduler=unipc(), boundary_ratio=boundary,
    )  # fmt: skip


def clip_vision(width=8):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    size = {"height": 16, "width": 16}
    return CLIPVisionModel(config).eval(), CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)


def wan_i2v():
    """Wan 2.1 I2V: the picture by CLIP, and its latents with a mask beside the video's channels."""
    from diffusers import WanImageToVideoPipeline

    encoder, processor = clip_vision()
    return WanImageToVideoPipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("wan-i2v", in_channels=12), vae=wan_vae(),
        scheduler=unipc(), image_encoder=encoder, image_processor=processor,
    )  # fmt: skip


def wan_ti2v():
    """Wan 2.2 5B with a picture: a timestep for every token, 0 over the first frame, which the pipeline holds."""
    from diffusers import WanImageToVideoPipeline

    return WanImageToVideoPipeline(
        tokenizer=tokenizer(), text_encoder=t5("umt5"), transformer=make("wan-5b"), vae=wan_vae(), scheduler=unipc(),
        expand_timesteps=True,
    )  # fmt: skip


def _flow(**config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def ltx(kind="LTXPipeline"):
    import diffusers
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(1)
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=4,
        patch_size_t=1, encoder_causal=True, decoder_causal=False,
    ).eval()  # fmt: skip
    return getattr(diffusers, kind)(
        scheduler=_flow(
            base_image_seq_len=1024, base_shift=0.95, max_image_seq_len=4096, max_shift=2.05, shift_terminal=0.1,
            use_dynamic_shifting=True,
        ),
        vae=vae, text_encoder=t5(), tokenizer=tokenizer(), transformer=make("ltx"),
    )  # fmt: skip


def cogvideox(kind="cogvideox", pipeline="CogVideoXPipeline", **changes):
    import diffusers
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler

    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    ).eval()  # fmt: skip
    kind_of = getattr(diffusers, pipeline) if isinstance(pipeline, str) else pipeline
    return kind_of(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=make(kind, max_text_seq_length=8, **changes),
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


def cogvideox_i2v():
    return cogvideox(pipeline="CogVideoXImageToVideoPipeline", in_channels=8)


def consisid_i2v():
    # diffusers shows it only beside opencv, which it needs for key points of faces alone
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

    return cogvideox("consisid", ConsisIDPipeline, in_channels=8)


def hunyuan15():
    from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Pipeline
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=16,
        temporal_compression_ratio=4,
    ).eval()  # fmt: skip
    words = tokenizer(1200)
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    stock = HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(_qwen(Qwen2_5_VLTextConfig)).eval(), tokenizer=words, vae=vae,
        transformer=make("hunyuan15"), scheduler=_flow(shift=5.0), text_encoder_2=t5(width=8),
        tokenizer_2=tokenizer(256), guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )  # fmt: skip
    stock.prompt_template_encode_start_idx = 40  # words of the template: words here are no pieces of words
    stock.tokenizer_max_length, stock.vision_num_semantic_tokens = 120, 4
    return stock


def _qwen(cls):
    return cls(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
    )  # fmt: skip


def kandinsky():
    from diffusers import Kandinsky5T2VPipeline
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    base = hunyuan()
    return Kandinsky5T2VPipeline(
        transformer=make("kandinsky"), vae=base.vae,
        text_encoder=Qwen2_5_VLTextModel(_qwen(Qwen2_5_VLTextConfig)).eval(), tokenizer=tokenizer(1200),
        text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer_2, scheduler=_flow(shift=5.0),
    )  # fmt: skip


def ltx2(**changes):
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(1)
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        decoder_spatial_padding_mode="zeros", layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3, spatial_compression_ratio=32, temporal_compression_ratio=8,
    ).eval()  # fmt: skip
    sound = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1, 1, 1), num_res_blocks=1, in_channels=2, resolution=32,
        latent_channels=2, mel_bins=8, norm_type="pixel", causality_axis="height",
    ).eval()  # fmt: skip
    gemma = Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    heads = dict(num_attention_heads=2, attention_head_dim=8, num_layers=1, num_learnable_registers=8)
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=2,
        **{f"{stream}_connector_{name}": value for stream in ("video", "audio") for name, value in heads.items()},
    ).eval()  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[16, 15], upsample_factors=[16, 15],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=24000,
    ).eval()  # fmt: skip
    return LTX2Pipeline(
        scheduler=ltx().scheduler, vae=vae, audio_vae=sound, text_encoder=gemma, tokenizer=tokenizer(16),
        connectors=connectors, transformer=make("ltx2", **changes), vocoder=vocoder,
    )  # fmt: skip


class Safe:
    """In place of the guardrail, a model of its own from the Hub; counts the frames that it sees."""

    def __init__(self):
        self.seen = 0

    def to(self, *_args, **_kwargs):
        return self

    def check_text_safety(self, _prompt):
        return True

    def check_video_safety(self, video):
        self.seen += len(video)
        return video


def cosmos(kind="CosmosTextToWorldPipeline"):
    import diffusers
    from diffusers import AutoencoderKLCosmos, EDMEulerScheduler

    torch.manual_seed(1)
    vae = AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1, patch_size=4, spatial_compression_ratio=4,
        temporal_compression_ratio=4, latents_mean=torch.linspace(-0.5, 0.5, 16).tolist(),
        latents_std=torch.linspace(0.7, 1.4, 16).tolist(),
    ).eval()  # fmt: skip
    channels = {"in_channels": 4 if kind.startswith("CosmosText") else 5}
    return getattr(diffusers, kind)(
        text_encoder=t5(), tokenizer=tokenizer(512), transformer=make("cosmos", max_size=(128, 64, 64), **channels),
        vae=vae, safety_checker=Safe(),
        scheduler=EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras"),
    )  # fmt: skip


def cosmos2():
    from diffusers import Cosmos2VideoToWorldPipeline

    return Cosmos2VideoToWorldPipeline(
        **cosmos("CosmosVideoToWorldPipeline").components
        | {"vae": wan_vae(), "scheduler": _flow(use_karras_sigmas=True)}
    )


def minimax():
    """MiniMax-H3 comes as blocks alone."""
    from diffusers.modular_pipelines.minimax_h3 import MiniMaxH3Blocks

    stock = MiniMaxH3Blocks().init_pipeline()
    stock.update_components(transformer=make("minimax"))
    return stock


def ltx2_i2v():
    from diffusers import LTX2ImageToVideoPipeline

    return LTX2ImageToVideoPipeline(**ltx2().components)


def skyreels_i2v():
    from diffusers import SkyReelsV2ImageToVideoPipeline
    from transformers import CLIPVisionModelWithProjection

    encoder, processor = clip_vision()
    model = make("skyreels", in_channels=12, image_dim=8, added_kv_proj_dim=24)
    parts = skyreels().components | {"transformer": model, "image_processor": processor}
    encoder = CLIPVisionModelWithProjection(encoder.config).eval()
    return SkyReelsV2ImageToVideoPipeline(**parts, image_encoder=encoder)


def skyreels_forcing():
    from diffusers import SkyReelsV2DiffusionForcingPipeline

    model = make("skyreels", inject_sample_info=True)
    return SkyReelsV2DiffusionForcingPipeline(**skyreels().components | {"transformer": model})


def kandinsky_i2v():
    from diffusers import Kandinsky5I2VPipeline

    model = make("kandinsky", in_visual_dim=4, visual_cond=True)
    return Kandinsky5I2VPipeline(**kandinsky().components | {"transformer": model})


def hunyuan_i2v(condition="token_replace"):
    """The text encoder reads the picture too (4 tokens of it here)."""
    from diffusers import HunyuanVideoImageToVideoPipeline
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    _, processor = clip_vision()
    words = tokenizer(300)
    words.add_special_tokens({"additional_special_tokens": ["<image>", "<|end_header_id|>"]})
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2)
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
            text_config=LlamaConfig(**small, vocab_size=40, pad_token_id=0),
            image_token_index=words.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        )
    ).eval()  # fmt: skip
    llava.config.pad_token_id = 0
    changes = {} if condition == "token_replace" else {"in_channels": 9}
    model = make("hunyuan", image_condition_type=condition, **changes)
    stock = HunyuanVideoImageToVideoPipeline(
        **hunyuan().components | {"transformer": model, "text_encoder": llava, "tokenizer": words},
        image_processor=processor,
    )  # fmt: skip
    return stock


HUNYUAN_TEMPLATE = {
    "template": "a <|end_header_id|> a <image> red <|end_header_id|> {} over the <|end_header_id|>", "crop_start": 5,
    "image_emb_start": 3, "image_emb_end": 7, "image_emb_len": 4, "double_return_token_id": 10,
}  # fmt: skip


def hunyuan15_i2v():
    from diffusers import HunyuanVideo15ImageToVideoPipeline
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
        )
    ).eval()
    stock = hunyuan15()
    made = HunyuanVideo15ImageToVideoPipeline(
        **stock.components, image_encoder=encoder,
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )  # fmt: skip
    made.prompt_template_encode_start_idx, made.tokenizer_max_length = 40, 120
    made.vision_num_semantic_tokens, made.target_size = 4, 32
    return made


PIPELINES = {
    "wan": wan, "ltx": ltx, "cogvideox": cogvideox, "mochi": mochi, "hunyuan": hunyuan, "skyreels": skyreels,
    "vace": vace,
}  # fmt: skip
# pipelines of `test_dit_stocks.py`
STOCKS = {
    "cosmos": cosmos,
    "wan-two": wan_two, "wan-i2v": wan_i2v, "wan-ti2v": wan_ti2v, "cogvideox-i2v": cogvideox_i2v,
    "consisid-i2v": consisid_i2v,
    "ltx-i2v": lambda: ltx("LTXImageToVideoPipeline"),
    "hunyuan15": hunyuan15, "kandinsky": kandinsky, "ltx2": ltx2,
    "ltx2-i2v": ltx2_i2v, "skyreels-i2v": skyreels_i2v,
    "skyreels-forcing": skyreels_forcing, "kandinsky-i2v": kandinsky_i2v, "hunyuan-i2v": hunyuan_i2v,
    "hunyuan15-i2v": hunyuan15_i2v,
    "cosmos-i2v": lambda: cosmos("CosmosVideoToWorldPipeline"), "cosmos2-i2v": cosmos2,
}  # fmt: skip
SIZES = {"ltx": 64, "ltx-i2v": 64, "ltx2": 64, "ltx2-i2v": 64}
