"""Tiny video transformers of every record, and calls for them."""

import torch
from video_models import fill_parameters, noise

WAN = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
    freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
)  # fmt: skip
COG = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=16,
    num_layers=2, sample_width=4, sample_height=4, patch_size=2, max_text_seq_length=5,
)  # fmt: skip


def _cog_rope(frames, rows, columns, head, slices=False):
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    extra = {"grid_type": "slice", "max_size": (rows, columns)} if slices else {}
    return get_3d_rotary_pos_embed(
        head, None if slices else ((0, 0), (rows, columns)), (rows, columns), frames, **extra
    )


def _mask(batch, length, padded):
    mask = torch.ones(batch, length, dtype=torch.int64)
    if padded:
        mask[-1, length - 2 :] = 0
    return mask


def make(kind, **changes):
    """A tiny model by kind: a class name, or a variant of one."""
    import diffusers as d

    def build(cls, **config):
        return fill_parameters(cls(**{**config, **changes}))

    if kind == "wan":
        return build(d.WanTransformer3DModel, **WAN)
    if kind == "wan-i2v":
        return build(d.WanTransformer3DModel, **WAN, image_dim=8, added_kv_proj_dim=24)
    if kind == "wan-5b":  # a timestep for every token
        return build(d.WanTransformer3DModel, **WAN)
    if kind == "vace":
        return build(d.WanVACETransformer3DModel, **WAN, vace_layers=[0], vace_in_channels=4)
    if kind in ("skyreels", "skyreels-causal"):
        blocks = {"num_frame_per_block": 3} if kind.endswith("causal") else {}
        return build(d.SkyReelsV2Transformer3DModel, **WAN, **blocks)
    if kind in ("hunyuan", "hunyuan-i2v"):
        i2v = {"image_condition_type": "token_replace"} if kind.endswith("i2v") else {}
        return build(
            d.HunyuanVideoTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=12, num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=2,
            text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4), **i2v,
        )  # fmt: skip
    if kind == "hunyuan15":
        return build(
            d.HunyuanVideo15Transformer3DModel, in_channels=9, out_channels=4, num_attention_heads=2,
            attention_head_dim=12, num_layers=2, num_refiner_layers=1, patch_size=1, text_embed_dim=16,
            text_embed_2_dim=8, image_embed_dim=8, rope_axes_dim=(4, 4, 4),
        )  # fmt: skip
    if kind == "ltx":
        return build(
            d.LTXVideoTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
            cross_attention_dim=32, num_layers=2, caption_channels=16,
        )  # fmt: skip
    if kind == "cogvideox":
        return build(d.CogVideoXTransformer3DModel, **COG, use_rotary_positional_embeddings=True)
    if kind == "cogvideox-2b":  # positions are added, not rotated
        return build(d.CogVideoXTransformer3DModel, **COG)
    if kind == "cogvideox-1.5":  # a token is two latent frames
        return build(d.CogVideoXTransformer3DModel, **COG, use_rotary_positional_embeddings=True, patch_size_t=2)
    if kind == "consisid":
        return build(d.ConsisIDTransformer3DModel, **COG, use_rotary_positional_embeddings=True)
    if kind == "mochi":
        return build(
            d.MochiTransformer3DModel, patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=2,
            pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=16, max_sequence_length=8,
        )  # fmt: skip
    if kind == "kandinsky":
        return build(
            d.Kandinsky5Transformer3DModel, in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16,
            out_visual_dim=4, patch_size=(1, 2, 2), model_dim=24, ff_dim=32, num_text_blocks=1, num_visual_blocks=2,
            axes_dims=(4, 4, 4),
        )  # fmt: skip
    if kind == "cosmos":
        return build(
            d.CosmosTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
            num_layers=2, text_embed_dim=16, adaln_lora_dim=4, max_size=(128, 16, 16),
        )  # fmt: skip
    if kind in ("ltx2", "ltx2.3"):
        newer = dict(
            rope_type="split", gated_attn=True, cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True,
            perturbed_attn=True,
        ) if kind.endswith("3") else {}  # fmt: skip
        return build(
            d.LTX2VideoTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=24,
            cross_attention_dim=48, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
            audio_attention_head_dim=16, audio_cross_attention_dim=32, num_layers=2, caption_channels=16, **newer,
        )  # fmt: skip
    if kind == "minimax":
        return build(
            d.MiniMaxH3Transformer3DModel, num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=2,
            num_refiner_layers=1, ffn_dim=32, in_channels=2, audio_in_channels=4, text_dim=16, freq_dim=16,
            time_embed_hidden_dim=16, time_embed_dim=16, rope_freq_dim=2,
        )  # fmt: skip
    raise KeyError(kind)


KINDS = (
    "wan", "wan-i2v", "wan-5b", "vace", "skyreels", "skyreels-causal", "hunyuan", "hunyuan-i2v", "hunyuan15", "ltx",
    "cogvideox", "cogvideox-2b", "cogvideox-1.5", "consisid", "mochi", "kandinsky", "cosmos",
)  # fmt: skip


def call_of(kind, frames, batch=2, rows=4, columns=4, texts=1):
    """Keyword arguments of a whole call: `frames` token frames, guidance batch, padded text where the class has it."""
    text = noise("text", batch, 5 * texts, 16)
    video = noise("latents", batch, 4, frames, rows, columns)
    time = torch.tensor([500] * batch)
    given = {"hidden_states": video, "timestep": time, "encoder_hidden_states": text}
    if kind == "wan-i2v":
        given["encoder_hidden_states"] = noise("text", batch, 512 * texts, 16)
        given["encoder_hidden_states_image"] = noise("image", batch, 3, 8)
    elif kind == "wan-5b":
        tokens = (rows // 2) * (columns // 2)
        given["timestep"] = torch.linspace(0, 900, frames).repeat_interleave(tokens)[None].expand(batch, -1)
    elif kind == "vace":
        given["control_hidden_states"] = noise("control", batch, 4, frames, rows, columns)
    elif kind == "skyreels":
        given["timestep"] = torch.linspace(100, 900, frames).long()[None].expand(batch, -1)
        given["enable_diffusion_forcing"] = True
    elif kind.startswith("hunyuan15"):
        given["hidden_states"] = noise("latents", batch, 9, frames, rows, columns)
        given |= {
            "timestep": time.float(), "encoder_attention_mask": _mask(batch, 5 * texts, True),
            "encoder_hidden_states_2": noise("text2", batch, 3, 8), "encoder_attention_mask_2": _mask(batch, 3, True),
            "image_embeds": noise("image", batch, 2, 8),
        }  # fmt: skip
    elif kind.startswith("hunyuan"):
        given |= {
            "encoder_attention_mask": _mask(batch, 5 * texts, True), "pooled_projections": noise("pooled", batch, 8),
            "guidance": torch.tensor([6000.0] * batch),
        }  # fmt: skip
    elif kind == "ltx":
        given["hidden_states"] = video.flatten(2).transpose(1, 2)
        given |= {
            "num_frames": frames, "height": rows, "width": columns, "rope_interpolation_scale": (8 / 24, 32, 32),
            "encoder_attention_mask": _mask(batch, 5 * texts, True),
        }  # fmt: skip
    elif kind == "minimax":  # 5 rows of text, the first 4 of sound, video, the rest of the sound
        tokens = (rows // 2) * (columns // 2)
        sound, film = frames + 4, frames * tokens
        tags = torch.tensor([1] * 5 + [2] * 4 + [0] * film + [2] * (sound - 4))
        places = torch.zeros(len(tags), 3)
        places[:, 0] = torch.arange(len(tags)) * 0.1
        grid = torch.meshgrid(torch.arange(frames), torch.arange(rows // 2), torch.arange(columns // 2), indexing="ij")
        places[9 : 9 + film] = torch.stack([axis.flatten() for axis in grid], 1) + torch.tensor([20.0, 0, 0])
        given = {
            "hidden_states": noise("latents", batch, film, 8), "audio_hidden_states": noise("audio", batch, sound, 4),
            "encoder_hidden_states": text[:, :5], "timestep": torch.tensor([0.0, 0.5]),
            "timestep_indices": (tags != 1).long(), "token_tags": tags, "position_ids": places,
            "video_indices": (tags == 0).nonzero().flatten(), "audio_indices": (tags == 2).nonzero().flatten(),
            "text_indices": (tags == 1).nonzero().flatten(),
        }  # fmt: skip
    elif kind.startswith("ltx2"):
        audio = 3 + round(frames * 8 / 24 * 25)  # a little longer than the video
        given = {
            "hidden_states": video.flatten(2).transpose(1, 2), "audio_hidden_states": noise("audio", batch, audio, 4),
            "encoder_hidden_states": text, "audio_encoder_hidden_states": noise("text2", batch, 5 * texts, 16),
            "timestep": time, "sigma": time, "encoder_attention_mask": _mask(batch, 5 * texts, True),
            "audio_encoder_attention_mask": _mask(batch, 5 * texts, True), "num_frames": frames, "height": rows,
            "width": columns, "fps": 24.0, "audio_num_frames": audio,
        }  # fmt: skip
    elif kind.startswith(("cogvideox", "consisid")):
        patch = 2 if kind.endswith("1.5") else 1
        given["hidden_states"] = noise("latents", batch, frames * patch, 4, rows, columns)
        if kind != "cogvideox-2b":
            given["image_rotary_emb"] = _cog_rope(frames, rows // 2, columns // 2, 16, kind.endswith("1.5"))
    elif kind == "mochi":
        given["encoder_attention_mask"] = _mask(batch, 5 * texts, True).bool()
    elif kind == "kandinsky":
        given["hidden_states"] = noise("latents", batch, frames, rows, columns, 4)
        given |= {
            "pooled_projections": noise("pooled", batch, 8), "text_rope_pos": torch.arange(5 * texts),
            "visual_rope_pos": [torch.arange(frames), torch.arange(rows // 2), torch.arange(columns // 2)],
        }  # fmt: skip
    elif kind == "cosmos":
        given |= {"fps": 16, "padding_mask": torch.zeros(1, 1, rows, columns)}
    return given


FRAME_AXIS = {"ltx": 1, "cogvideox": 1, "cogvideox-2b": 1, "cogvideox-1.5": 1, "consisid": 1, "kandinsky": 1}


def run(model, given):
    with torch.no_grad():
        out = model(**given)
    return out[0] if isinstance(out, tuple) else out.sample
