"""VALL-E R as a voice: named speakers that ship with the prior, or the speaker of a recording.

Carry: after the speaker's prompt come the last two seconds of the chunk before, from a phoneme's beginning on, with
their pointer, so that the new chunk goes on from them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from longtake.errors import UserError
from longtake.speech.backends.own import OwnVoice, places_of, row_of, times_of
from longtake.speech.backends.voice import Abilities, Said, State, Utterance
from longtake.speech.prosody_fm.breaks import marked
from longtake.speech.text.symbols import BREAK_MARK, ids
from longtake.speech.valle_r import prior
from longtake.speech.valle_r.decode import Prompt

KIND = prior.KIND
TAIL_S = 2.0
REFERENCE = "reference"  # name of the speaker of a recording


class ValleVoice(OwnVoice, ModelMixin):
    """See the module's docstring. model: ValleR."""

    kind = KIND

    def __init__(self, kind: str = KIND) -> None:
        super().__init__(kind=kind)
        self.model: prior.ValleR
        self.recorded: Prompt | None = None

    @classmethod
    def of(cls, model: prior.ValleR, vocoder: Any) -> ValleVoice:
        """A voice of a model and a generator that are there."""
        made = cls()
        made.model, made.vocoder = model, vocoder.eval()
        return made

    @classmethod
    def of_folder(cls, folder: Path) -> ValleVoice:
        """Of a prior's folder, without a vocoder yet. Raises UserError."""
        made = cls()
        made.model = prior.ValleR.load(folder)
        made.source = folder
        return made

    def write(self, folder: Path) -> None:
        self.model.save(folder)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As a module's; the parts of the model are moved too."""
        made = super().to(*args, **kwargs)
        device = self.place.device
        for part in (self.model.codec, self.model.ar, self.model.nar):
            part.to(device)
        return made

    def tensors(self) -> dict[str, torch.Tensor]:
        found = super().tensors()
        for name in ("codec", "ar", "nar"):
            found |= {f"{name}.{key}": value for key, value in getattr(self.model, name).state_dict().items()}
        return found

    @property
    def abilities(self) -> Abilities:
        names = tuple(sorted(self.model.voices))
        accents = {name: "en-gb" if name[:3] in ("bf_", "bm_") else "en-us" for name in names}
        clones = self.model.aligner is not None
        return Abilities(
            names, pitch=True, within=True, times=True, carries=True, clones=clones, contour=True, accents=accents
        )

    def clone(self, mel: torch.Tensor, phones: str) -> None:
        """Speak as a recording does: log mels (80, T) and the symbols of what is said in it. Raises UserError."""
        self.recorded = self.model.clone(mel, ids(marked(phones)))

    def say(self, asked: Utterance, state: State | None = None) -> Said:
        row = row_of(asked.units)
        prompts = [self._speaker(asked.speaker)]
        if state is not None:
            prompts.append(Prompt(*(torch.from_numpy(state[part]) for part in ("text", "codes", "pointer"))))
        sampling = prior.USUAL if asked.temperature is None else replace(prior.USUAL, temperature=asked.temperature)
        if asked.steps is not None:
            raise UserError("VALL-E R takes no steps: leave them out")
        with torch.inference_mode():
            speech = self.model.synthesize(ids(row), prompts, seed=asked.seed, sampling=sampling)
        places = places_of(asked.units, row, " " + BREAK_MARK)
        frames = speech.frames().tolist()
        samples = self.shaped(self.sound(speech.mel), asked, places, frames)
        return Said(samples, times_of(places, frames), self._after(speech))

    def _speaker(self, name: str | None) -> Prompt:
        if name is None and self.recorded is not None:
            return self.recorded
        names = sorted(self.model.voices)
        if not names:
            raise UserError("this prior has no speaker of its own: give a recording (--reference, --reference-text)")
        return self.model.voice(names[0] if name is None else name)

    def _after(self, speech: prior.Speech) -> State | None:
        frames = round(TAIL_S * self.rate / 256 / self.model.codec.merge[0])
        tail = prior.tail(speech.prompt(), frames)
        if tail is None:
            return None
        return {part: np.asarray(getattr(tail, part)) for part in ("text", "codes", "pointer")}
