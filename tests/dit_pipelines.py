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
