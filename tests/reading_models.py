"""Tiny CLIP and SigLIP models with random weights, and goldens of pooling, for the tests of reading."""

import numpy as np
import torch
from golden.fill import values
from speech_golden import Case


class Golden(Case):
    """A golden of pooling; its state may hold single numbers."""

    def __init__(self, name):
        super().__init__(f"../pooling/{name}")

    def state(self):
        keys = self.facts["parameters"]["keys"]
        return {key: torch.from_numpy(np.asarray(values(key, tuple(shape)))) for key, shape in keys.items()}


def tiny_clip(positions=77, seed=0):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": positions, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 99,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 24, "patch_size": 4,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def tiny_siglip(seed=0):
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(seed)
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": 64, "projection_size": 48,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 24, "patch_size": 4,
    }  # fmt: skip
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():  # the head's own start values leave the attention flat
        model.logit_scale.fill_(2.0)
    return model


def questions(lengths, seed=0, width=77):
    """Token ids (B, width): begin, words, end, padding with the end token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), width), 99)
    for row, length in enumerate(lengths):
        ids[row, 0] = 98
        ids[row, 1 : length - 1] = torch.randint(1, 97, (length - 2,), generator=generator)
    return ids
