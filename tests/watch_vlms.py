"""Folders of vision-language models as a user has them, with random weights: model, tokenizer, processors.

The tokenizer reads letter by letter, so that every prompt can be read back from its ids.
"""

from pathlib import Path
from typing import Any

from reading_vlms import END, IMAGE, PAD, START, VIDEO, vlm

LETTERS = "0123456789.,:;<>?!'-/[]() \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
MARKS = {"<image>": IMAGE, "<video>": VIDEO, "<start>": START, "<end>": END, "<edge>": 194, "<whole>": 195}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<{{ part['type'] }}>{% endif %}{% endfor %}{% endfor %}"
)
SIDE = 32  # of a film's picture for most families


def letters() -> Any:
    """A tokenizer with an id for a letter, and the marks of all families."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "<s>": 1, "</s>": 2, "<unk>": 189}
    vocabulary |= {letter: 3 + place for place, letter in enumerate(LETTERS)}
    vocabulary |= {f"<{place}>": place for place in range(3 + len(LETTERS), 189)} | MARKS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    marks = {
        "image_token": "<image>", "video_token": "<video>",
        "vision_start_token": "<start>", "vision_end_token": "<end>",
        "start_image_token": "<start>", "end_image_token": "<end>", "context_image_token": "<image>",
        "fake_image_token": "<edge>", "global_image_token": "<whole>",
    }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=marks, model_max_length=100_000,
    )  # fmt: skip


def processor(name: str) -> Any:
    """The family's own processor, for the sizes of the tiny models."""
    import transformers as t

    square = {"height": SIDE, "width": SIDE}
    pixels = {"shortest_edge": 16 * 16, "longest_edge": 32 * SIDE * SIDE}
    qwen = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": pixels}
    words = letters()
    if name == "llava":
        images = t.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        return t.LlavaProcessor(
            images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=TEMPLATE,
        )  # fmt: skip
    if name == "llava_next_video":
        films = t.LlavaNextVideoVideoProcessor(size={"shortest_edge": SIDE}, crop_size=square)
        images = t.LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
        return t.LlavaNextVideoProcessor(
            films, images, words, patch_size=4, vision_feature_select_strategy="default", chat_template=TEMPLATE
        )
    if name == "llava_onevision":
        return t.LlavaOnevisionProcessor(
            t.LlavaOnevisionImageProcessor(size=square), words, t.LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=64, vision_feature_select_strategy="full", chat_template=TEMPLATE,
        )  # fmt: skip
    if name == "qwen2_5_vl":
        films = t.Qwen2VLVideoProcessor(**qwen)
        return t.Qwen2_5_VLProcessor(t.Qwen2VLImageProcessor(**qwen), words, films, chat_template=TEMPLATE)
    if name == "qwen3_vl":
        films = t.Qwen3VLVideoProcessor(**qwen)
        return t.Qwen3VLProcessor(t.Qwen2VLImageProcessor(**qwen), words, films, chat_template=TEMPLATE)
    if name == "internvl":
        return t.InternVLProcessor(
            t.GotOcr2ImageProcessor(size=square), words, t.InternVLVideoProcessor(size=square), image_seq_length=16,
            chat_template=TEMPLATE,
        )  # fmt: skip
    films = t.SmolVLMVideoProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_sample_frames=False
    )
    images = t.SmolVLMImageProcessor(size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE})
    return t.SmolVLMProcessor(images, words, films, image_seq_len=16)


def write_vlm(folder: Path, name: str) -> Path:
    """The folder of a tiny model of the family, written."""
    model = vlm(name)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder
