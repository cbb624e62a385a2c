"""Tiny video models with deterministic random weights, and the goldens, for the tests of longtake.video.

Imported as a plain module (`tests` is on the path), also by the processes that `ranks.run_ranks` starts.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import torch

# The fork server of run_ranks starts as `python -c` in the root of the project; without this, the folder `kernels` is
# on its path and transformers takes it for the Hugging Face package of that name.
os.environ.setdefault("PYTHONSAFEPATH", "1")

GOLDEN = Path(__file__).parent / "golden"

TINY_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}

TINY_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 64,
}


def _fill():
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill_parameters(model):
    """Every parameter from its name, so nothing is zero or one by construction (conv4, norms)."""
    fill = _fill()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(fill.values(name, tuple(parameter.shape))))
    return model.eval()


def tiny_unet(**changes):
    from diffusers import UNet3DConditionModel

    return fill_parameters(UNet3DConditionModel(**{**TINY_UNET, **changes}))


def tiny_wan(**changes):
    from diffusers import WanTransformer3DModel

    return fill_parameters(WanTransformer3DModel(**{**TINY_WAN, **changes}))


def noise(tag, *shape):
    return torch.from_numpy(_fill().noise(tag, shape))


def golden(case):
    """(json, outputs as tensors, inputs as tensors, model) of a video golden."""
    import diffusers

    about = json.loads((GOLDEN / "video" / f"{case}.json").read_text())
    with np.load(GOLDEN / "video" / f"{case}.npz") as file:
        outputs = {name: torch.from_numpy(file[name]) for name in file.files}
    inputs = {name: noise(i["noise"], *i["shape"]) * i["factor"] for name, i in about["inputs"].items()}
    config = {key: tuple(v) if isinstance(v, list) else v for key, v in about["config"].items()}
    model = fill_parameters(getattr(diffusers, about["model"])(**config))
    return about, outputs, inputs, model


class MaskedTime:
    """Stock attention with a boolean keep-mask over frames (or tokens): the oracle for dual scope."""

    def __init__(self, keep):
        self.keep = keep

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        def split(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q, k, v = (split(f(hidden_states)) for f in (attn.to_q, attn.to_k, attn.to_v))
        mask = self.keep if self.keep.dtype == torch.bool else self.keep.to(q.dtype)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def mask_time(unet, keep):
    """Give every temporal self-attention of a stock UNet the keep-mask (bool) or additive mask (float), (F, F)."""
    for name, module in unet.named_modules():
        if type(module).__name__ == "Attention" and ("temp_" in name or "transformer_in" in name):
            module.set_processor(MaskedTime(keep))
    return unet


def keep_mask(total, window, indices):
    """|i - j| <= window or j in indices, bool (F, F)."""
    position = torch.arange(total)
    near = (position[:, None] - position).abs() <= window
    return near | torch.isin(position, torch.tensor(list(indices), dtype=torch.long))
