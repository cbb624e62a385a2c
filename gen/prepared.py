"""All that a training needs in one file, made where the data and the text encoder are, read where neither is.

A prepared file is a zip of LZMA-compressed ``.npy`` members and ``facts.json``; numpy alone reads it.
Shape legend: n texts, T tokens (16), E text features (384), t tokens that a text has.

    save(path, "video", {"frames": frames, **texts.arrays()}, {"clips": [...]})
    arrays, facts = load(path, "video")
    texts = Texts.read(arrays)
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError, one_line
from longtake.journal import atomic_path
from longtake.text import TOKENS, WIDTH, SentenceEncoder

FACTS = "facts.json"
FORM = 1  # of the file


def save(path: str | Path, recipe: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    """Write what ``recipe`` trains on: named arrays, and facts that JSON can hold. The file appears whole or not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as partial,
        open(partial, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive,
    ):
        archive.writestr(FACTS, json.dumps({"recipe": recipe, "form": FORM, "facts": facts}))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return path


def load(path: str | Path, recipe: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts of a file that ``save`` wrote for ``recipe``. Raises UserError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no prepared data at {path}: longtake train {recipe} --data DIR --prepare FILE writes it")
    try:
        with zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read(FACTS))
            told, form, facts = head["recipe"], head["form"], head["facts"]
            if (told, form) == (recipe, FORM):
                arrays = {}
                for name in archive.namelist():
                    if name.endswith(".npy"):
                        with archive.open(name) as member:
                            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the readers do, it is the file's fault
        raise UserError(
            f"{path} is no file of longtake train --prepare, or damaged: {one_line(error)[:200]}"
        ) from error
    if told != recipe:
        raise UserError(f"{path} was prepared for longtake train {told}, not for {recipe}")
    if form != FORM:
        raise UserError(f"{path} has form {form} and this longtake reads form {FORM}: prepare it again")
    return arrays, facts


class Texts:
    """The states of known texts: sentence vectors in half precision, the words in eight bits a number.

    texts: n of them. sentences (n, E) float16: token 0. codes (sum of t, E) int8 and scales (sum of t,) float32: the
    states of the words after it are codes x scale. lengths (n,): how many words each text has; what lies beyond is
    zero, as ``SentenceEncoder`` has it. Training with prepared data and without sees these same numbers.
    """

    def __init__(
        self, texts: Sequence[str], sentences: np.ndarray, codes: np.ndarray, scales: np.ndarray, lengths: np.ndarray
    ) -> None:
        self.texts, self.sentences = tuple(texts), sentences
        self.codes, self.scales, self.lengths = codes, scales, lengths
        self.place = {text: row for row, text in enumerate(self.texts)}

    @classmethod
    def of(cls, texts: Iterable[str], encoder: SentenceEncoder) -> Texts:
        """Encode each text once."""
        known = tuple(dict.fromkeys(texts))
        sentences, codes, scales, lengths = [], [], [], []
        for text in known:
            states = encoder.encode([text])[0]
            words = states[1:][states[1:].abs().amax(1) > 0]
            scale = words.abs().amax(1) / 127
            sentences.append(states[0].half().numpy())
            codes.append((words / scale[:, None]).round().to(torch.int8).numpy())
            scales.append(scale.numpy())
            lengths.append(len(words))
        return cls(
            known, np.stack(sentences), np.concatenate(codes), np.concatenate(scales), np.array(lengths, np.uint8)
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """As members of a prepared file."""
        words = np.frombuffer("\n".join(self.texts).encode(), np.uint8)
        return {
            "text_words": words,
            "text_sentences": self.sentences,
            "text_codes": self.codes,
            "text_scales": self.scales,
            "text_lengths": self.lengths,
        }

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Texts:
        """From what ``arrays`` gave. Raises UserError when members are missing."""
        try:
            words = arrays["text_words"].tobytes().decode()
            rest = [arrays[f"text_{name}"] for name in ("sentences", "codes", "scales", "lengths")]
            return cls(words.split("\n"), *rest)
        except KeyError as error:
            raise UserError(f"the prepared data have no texts: {error} is missing") from error

    def stack(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """States of all texts, in their order, (n, T, E) float32 on a device."""
        out = torch.zeros(len(self.texts), TOKENS, WIDTH)
        out[:, 0] = torch.from_numpy(self.sentences).float()
        lengths = self.lengths.astype(np.int64)
        row = np.repeat(np.arange(len(self.texts)), lengths)
        token = 1 + np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        values = torch.from_numpy(self.codes).float() * torch.from_numpy(self.scales)[:, None]
        out[torch.from_numpy(row), torch.from_numpy(token)] = values
        return out.to(device)

    def states(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Text -> its states (T, E)."""
        return dict(zip(self.texts, self.stack(device), strict=True))

    def vectors(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Text -> its sentence vector (E,)."""
        return dict(zip(self.texts, self.stack(device)[:, 0].clone(), strict=True))


class KnownTexts(SentenceEncoder):
    """A text encoder that knows the texts it was given and no other: for sampling where MiniLM is not installed.

    Raises UserError for other texts.
    """

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.__dict__["_known"] = texts.states()

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """States (n, T, E) float32 on the CPU."""
        known = self.__dict__["_known"]
        missing = [prompt for prompt in prompts if prompt not in known]
        if missing:
            raise UserError(f"{missing[0]!r} is none of the {len(known)} texts that were prepared")
        return torch.stack([known[prompt] for prompt in prompts])
