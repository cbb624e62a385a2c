"""Tiny vision-language models with random weights, one of each family that is pooled, and prompts with films for them.

A prompt is words, a film, words. Frames are 4 x 4 tokens (or 2 x 2, where a family halves them), films have 4 frames.
"""

import torch

IMAGE, VIDEO, START, END, PAD = 190, 191, 192, 193, 0
FRAMES = 4
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 200, "max_position_embeddings": 2048, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 16, "patch_size": 4, "projection_dim": 16,
}  # fmt: skip
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
FAMILY_NAMES = ["llava", "llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"]


def vlm(name, seed=0):
    torch.manual_seed(seed)
    model = MAKERS[name]().eval()
    model.generation_config.eos_token_id = None  # all answers have the length that was asked for
    model.generation_config.pad_token_id = PAD
    with torch.no_grad():
        for parameter in model.parameters():  # the start values are so small that no answer depends on the film
            if parameter.dim() > 1:
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
        table = model.get_input_embeddings().weight
        table.normal_()
    return model


def _llama(**more):
    return TEXT | {"model_type": "llama"} | more


def _llava():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIP, text_config=_llama(), image_token_id=IMAGE, vision_feature_layer=-2)
    )


def _next_video():
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=CLIP | {"image_size": 32}, text_config=_llama(), image_token_id=IMAGE, video_token_id=VIDEO
        )
    )


def _onevision():
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    text = TEXT | {"model_type": "qwen2"}
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SIGLIP | {"image_size": 32}, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO
        )
    )


def _qwen2_5():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "out_hidden_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=TEXT | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )  # fmt: skip
    )


def _qwen3():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "out_hidden_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 64,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=TEXT | {"rope_parameters": rope, "head_dim": 8},
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )  # fmt: skip
    )


def _internvl():
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": [32, 32], "patch_size": [4, 4],
    }  # fmt: skip
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=TEXT | {"model_type": "qwen2"}, image_token_id=IMAGE)
    )


def _smolvlm():
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    vision = {k: v for k, v in CLIP.items() if k != "model_type"} | {"image_size": 32}
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(vision_config=vision, text_config=_llama(), image_token_id=IMAGE, scale_factor=2)
    )


MAKERS = {
    "llava": _llava, "llava_next_video": _next_video, "llava_onevision": _onevision, "qwen2_5_vl": _qwen2_5,
    "qwen3_vl": _qwen3, "internvl": _internvl, "smolvlm": _smolvlm,
}  # fmt: skip


def prompt(name, prompts=1, seed=0, frames=FRAMES, stamps=None):
    """Inputs of a batch, as the family's processor would make them: left padding, prompts of different words."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(prompts):
        words = torch.randint(3, 150, (4 + 2 * row,), generator=generator).tolist()
        rows.append(words[:3] + _film(name, frames, stamps) + words[3:])
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    return inputs | _pixels(name, prompts, frames, generator, ids)


def _film(name, frames, stamps):
    if name == "llava":
        return [IMAGE] * (16 * frames)
    if name in ("llava_next_video", "llava_onevision"):
        return [VIDEO] * (16 * frames + (name == "llava_onevision"))
    if name == "qwen2_5_vl":
        return [START] + [VIDEO] * (16 * frames) + [END]
    if name == "qwen3_vl":
        stamps = stamps or [[151 + frame] for frame in range(frames)]
        return [i for stamp in stamps for i in [*stamp, START, *[VIDEO] * 16, END]]
    return [i for frame in range(frames) for i in [160, 161 + frame, START, *[IMAGE] * 16, END]]  # a label a frame


def _pixels(name, prompts, frames, generator, ids):
    def random(*shape):
        return torch.randn(shape, generator=generator)

    if name == "llava":
        return {"pixel_values": random(prompts * frames, 3, 16, 16)}
    if name in ("llava_next_video", "llava_onevision"):
        return {"pixel_values_videos": random(prompts, frames, 3, 32, 32)}
    if name in ("qwen2_5_vl", "qwen3_vl"):
        kinds = torch.where(ids == VIDEO, 2, 0).int()
        return {
            "pixel_values_videos": random(prompts * frames * 64, 3 * 2 * 4 * 4),
            "video_grid_thw": torch.tensor([[frames, 8, 8]] * prompts),
            "mm_token_type_ids": kinds,
        } | ({"second_per_grid_ts": torch.tensor([0.5] * prompts)} if name == "qwen2_5_vl" else {})
    if name == "internvl":
        return {"pixel_values": random(prompts * frames, 3, 32, 32)}
    return {"pixel_values": random(prompts, frames, 3, 32, 32)}


def single(inputs, row):
    """One prompt of a batch as a batch of its own, without its padding."""
    count = len(inputs["input_ids"])
    real = inputs["attention_mask"][row].bool()
    made = {}
    for key, value in inputs.items():
        if value.shape[:2] == inputs["input_ids"].shape and value.dim() == 2:
            made[key] = value[row : row + 1, real]
        else:
            size = len(value) // count
            made[key] = value[row * size : (row + 1) * size]
    return made
