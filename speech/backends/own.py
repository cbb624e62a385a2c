"""Our priors as voices: what ProsodyFM and VALL-E R with a vocoder share.

    voice = ProsodyVoice.from_pretrained(folder)
    voice.say(Utterance(units))

A voice is a component of a pipeline in diffusers' sense: ``save_pretrained`` writes the prior and its vocoder,
``from_pretrained`` reads them.
Shape legend: L symbols of a row, T mel frames, n bands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from longtake.reading import read_json_object
from longtake.speech import shaping
from longtake.speech import vocoder as vocoders
from longtake.speech.backends.voice import Said, State, Utterance
from longtake.speech.mel import HOP, RATE
from longtake.speech.pitch import own_range
from longtake.speech.prosody_fm.breaks import RULED, marked
from longtake.speech.prosody_fm.predict import BreakPredictor, RuleBreaks
from longtake.speech.text.script import Unit, symbols_of

VOCODER = "vocoder"  # a folder beside a prior's weights
SOUND = 2  # counts the ways in which a sentence became sound: with 2, breaks last and pitch is shaped in the samples


class OwnVoice(ModelMixin, ConfigMixin):
    """What both have in common. symbol_seconds: measured on the aligned corpora."""

    config_name = "voice.json"
    rate = RATE
    symbol_seconds = 0.072
    kind = ""

    @register_to_config
    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1), persistent=False)  # diffusers asks it for a device and a dtype
        self._mark: str | None = None
        self.source: Path | None = None
        self.vocoder: vocoders.Vocoder

    @property
    def mark(self) -> str:
        """Hash of every weight, and of what is done to the sound: pieces of an older way are not gone on from."""
        if self._mark is None:
            hashed = hashlib.sha256(f"{self.kind} {SOUND}".encode())
            for name, value in sorted(self.tensors().items()):
                hashed.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
            self._mark = hashed.hexdigest()[:32]
        return self._mark

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight by name."""
        return dict(self.state_dict())

    def sound(self, mel: torch.Tensor) -> np.ndarray:
        """Samples (256 T,) float32 of log mels (n, T)."""
        device = next(self.vocoder.parameters()).device
        with torch.inference_mode():
            found = self.vocoder(mel[None].to(device, torch.float32))[0]
        return found.float().cpu().numpy()

    def shaped(
        self, samples: np.ndarray, asked: Utterance, places: Sequence[tuple[int, int]], frames: Sequence[int]
    ) -> np.ndarray:
        """Samples with the pitch that the text asks for: of words, of contours, of questions.

        places: (first, last + 1) symbols of each unit; frames: of each symbol.
        """
        units, pitches = asked.units, asked.pitches()
        if not shaping.asks(units, pitches):
            return samples
        starts = np.concatenate([[0], np.cumsum(np.asarray(frames, dtype=np.int64))]) * HOP
        nuclei = [
            int(starts[first + shaping.nucleus(unit.phones.replace(" ", ""))])
            for (first, _), unit in zip(places, units, strict=True)
        ]
        hertz = own_range(torch.from_numpy(samples))
        asked_for = shaping.moves(units, pitches, times_of(places, frames), nuclei, hertz)
        return shaping.moved(samples, asked_for, hertz)

    def say(self, asked: Utterance, state: State | None = None) -> Said:
        """As ``Voice`` says."""
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write the prior's files."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the prior and its vocoder."""
        folder = Path(save_directory)
        self.write(folder)
        vocoders.save(self.vocoder, folder / VOCODER)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> OwnVoice:
        """Read what `save_pretrained` wrote, or a prior of this kind. Raises UserError."""
        return cls.of_folder(Path(pretrained_model_name_or_path)).with_vocoder(None)

    @classmethod
    def of_folder(cls, folder: Path) -> OwnVoice:
        """Of a prior's folder, without a vocoder yet. Raises UserError."""
        raise NotImplementedError

    def with_vocoder(self, path: Path | None) -> OwnVoice:
        """With the generator in a file or folder; None: the one beside the prior, else the one that ships."""
        assert path is not None or self.source is not None
        self.vocoder = vocoders.load(path or vocoder_path(self.source or Path())).quicken()
        return self


def kind_of(folder: Path) -> str | None:
    """What a prior's folder says it is; None for a folder that is none of ours."""
    if not (folder / "config.json").is_file():
        return None
    kind = read_json_object(folder / "config.json").get("kind")
    return kind if isinstance(kind, str) else None


def vocoder_path(folder: Path) -> Path:
    """The vocoder of a prior: in its folder, else the one that ships. Raises UserError when there is none."""
    beside = folder / VOCODER
    return beside if beside.is_dir() else vocoders.find()


def row_of(units: Sequence[Unit], predictor: BreakPredictor | None = None) -> str:
    """The row of symbols that the shipped models read: units with a mark at each break.

    predictor: tells breaks from the written words; beside its own, punctuation is one.
    """
    told = (predictor or RuleBreaks()).predict([unit.text for unit in units])
    breaks, words = set(), 0
    for number, unit in enumerate(units):
        words += len(unit.phones.split(" ")) - unit.glued
        following = units[number + 1] if number + 1 < len(units) else None
        paused = number in told or (unit.after and unit.after in RULED)
        if following is not None and not following.glued and paused:
            breaks.add(words - 1)
    return marked(symbols_of(units), breaks)


def places_of(units: Sequence[Unit], row: str, skipped: str) -> list[tuple[int, int]]:
    """(first, last + 1) symbols of each unit in a row that holds the units' symbols in order, and others besides, which
    are all in ``skipped``. A unit's punctuation is not counted to it."""
    found, at = [], 0
    for unit in units:
        first, last = -1, 0
        for number, symbol in enumerate(unit.phones.replace(" ", "") + unit.after):
            while row[at] in skipped and row[at] != symbol:
                at += 1
            assert row[at] == symbol, (row, unit)
            if number < len(unit.phones.replace(" ", "")):
                first, last = (at if first < 0 else first), at + 1
            at += 1
        found.append((first, last))
    return found


def times_of(places: Sequence[tuple[int, int]], frames: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) in samples of stretches of symbols that last so many frames each."""
    ends = np.concatenate([[0], np.cumsum(np.asarray(frames, dtype=np.int64))]) * HOP
    return [(int(ends[first]), int(ends[last])) for first, last in places]
