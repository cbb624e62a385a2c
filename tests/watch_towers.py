"""A CLIP or SigLIP folder with random weights, as a user has one: model, tokenizer, image processor."""

from pathlib import Path

from reading_models import tiny_clip, tiny_siglip


def write_pair(folder: Path, kind: str) -> Path:
    """The folder, written. kind: "clip" or "siglip"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

    model = tiny_clip() if kind == "clip" else tiny_siglip()
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<unk>": 1, "a": 3, "dog": 4, "<end>": 99}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    longest = model.config.text_config.max_position_embeddings
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=longest
    ).save_pretrained(folder)
    (CLIPImageProcessor if kind == "clip" else SiglipImageProcessor)().save_pretrained(folder)
    return folder
