"""ProsodyFM (and Matcha-TTS, which is ProsodyFM without its bank) as a voice.

Rate: durations of each word's symbols. Pitch, contours and questions: moved in the samples (``speech/shaping.py``),
since the shipped prior does not heed its own conditions for them. Carry: the end of the chunk before, its symbols,
durations and mel, is set at the beginning and held at every step of the flow, then dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from longtake.errors import UserError
from longtake.noise import noise
from longtake.speech.backends.own import OwnVoice, places_of, row_of, times_of
from longtake.speech.backends.voice import Abilities, Said, State, Utterance
from longtake.speech.mel import denormalise
from longtake.speech.prosody_fm import convert
from longtake.speech.prosody_fm.breaks import last_words
from longtake.speech.prosody_fm.model import PAUSE, ProsodyFM, whole_frames, with_pauses
from longtake.speech.prosody_fm.predict import BreakPredictor
from longtake.speech.prosody_fm.speak import CONTOUR
from longtake.speech.text.script import symbols_of
from longtake.speech.text.symbols import BREAK_MARK, ids, interspersed

KIND = convert.KIND
STEPS = 4
TAIL_SYMBOLS, TAIL_FRAMES = 40, 64  # of the chunk before, at most


class ProsodyVoice(OwnVoice, ModelMixin):  # diffusers looks for the name ModelMixin in the module of a component
    """See the module's docstring. model: ProsodyFM in eval mode."""

    kind = KIND

    def __init__(self, kind: str = KIND) -> None:
        super().__init__(kind=kind)
        self.model: ProsodyFM
        self.predictor: BreakPredictor | None = None  # rules

    @classmethod
    def of(cls, model: ProsodyFM, vocoder: Any) -> ProsodyVoice:
        """A voice of a model and a generator that are there."""
        made = cls()
        made.model, made.vocoder = model.eval(), vocoder.eval()
        return made

    @classmethod
    def of_folder(cls, folder: Path) -> ProsodyVoice:
        """Of a prior's folder, without a vocoder yet. Raises UserError."""
        made = cls()
        made.model = convert.load(folder)
        made.source = folder
        return made

    def write(self, folder: Path) -> None:
        convert.save(self.model, folder)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names; numbers for a model that names none."""
        config = self.model.config
        if not config.speaking or config.dvector:
            return ()
        return config.voices or tuple(map(str, range(config.speakers)))

    @property
    def abilities(self) -> Abilities:
        names = self.speakers
        accents = {name: "en-gb" if name[:3] in ("bf_", "bm_") else "en-us" for name in names}
        config = self.model.config
        carries = not config.blanks  # what is carried are rows as the shipped models read them
        return Abilities(
            names, rate=True, pitch=True, within=True, times=True, carries=carries, contour=True, accents=accents
        )

    def say(self, asked: Utterance, state: State | None = None) -> Said:
        with torch.inference_mode():
            return self._say(asked, state)

    def _say(self, asked: Utterance, state: State | None) -> Said:
        model, config, device = self.model, self.model.config, self.model.device
        if config.dvector:
            raise UserError("this ProsodyFM speaks as a speaker's vector says; a name or a recording is not enough")
        row = row_of(asked.units, self.predictor) if config.tokens else symbols_of(asked.units)
        places = places_of(asked.units, row, " " + BREAK_MARK)
        numbers = self._ids(row)
        scale = torch.ones(len(row))
        for (first, last), rate in zip(places, asked.rates(), strict=True):
            scale[first:last] = 1 / rate
        scale = _spread(scale, places, 1 / asked.rate)
        before = self._before(state)
        ahead = 0 if before is None else len(before["ids"])
        text = torch.tensor([[*(before["ids"].tolist() if before else []), *self._woven(numbers)]], device=device)
        counts = torch.tensor([text.shape[1]], device=device)
        who = self._who(asked.speaker)
        added = self._intonation(text, counts, row, ahead)
        speaker = model.speaker(who)
        mu, logw, _ = model.encoder(text, counts, speaker, added)
        weight = (torch.ones(ahead), self._woven_scale(scale))
        lengths = logw[0, 0].float().exp().cpu() * torch.cat(weight)
        frames = whole_frames(lengths[ahead:])
        if not config.blanks:
            frames = with_pauses(frames, row, round(PAUSE / asked.rate))
        if before is not None:
            frames = torch.cat([torch.from_numpy(before["frames"]), frames])
        known = None if before is None else torch.from_numpy(before["mel"])[None].to(device)
        total = int(frames.sum())
        start = noise(asked.seed, 0, [0], 0, (config.mels, total)).to(device)
        valid = torch.tensor([total], device=device)
        steps = STEPS if asked.steps is None else asked.steps
        heat = model.config.temperature if asked.temperature is None else asked.temperature

        wide = mu.float().repeat_interleave(frames.to(device), dim=2)
        mel = model.mels(wide, valid, start, steps=steps, temperature=heat, speaker=speaker, known=known)[0]
        mel = mel[:, int(frames[:ahead].sum()) :]
        own = self._symbol_frames(frames[ahead:])
        samples = self.sound(denormalise(mel, float(model.mel_mean), float(model.mel_std)))
        samples = self.shaped(samples, asked, places, own.tolist())
        return Said(samples, times_of(places, own.tolist()), self._after(row, own, mel))

    # ------------------------------------------------------------------------------------------------- what goes in

    def _ids(self, row: str) -> list[int]:
        mark = self.model.config.mark
        return [mark if symbol == BREAK_MARK else number for symbol, number in zip(row, ids(row), strict=True)]

    def _woven(self, numbers: list[int]) -> list[int]:
        return interspersed(numbers) if self.model.config.blanks else numbers

    def _woven_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """The scale of each place of a row that may have blanks: a blank goes with the symbol behind it."""
        if not self.model.config.blanks:
            return scale
        return torch.cat([scale.repeat_interleave(2), scale[-1:]])

    def _symbol_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames of each symbol (L,): the blank before it counted to it, the last blank to the last symbol."""
        if not self.model.config.blanks:
            return frames
        pairs = frames[:-1].reshape(-1, 2).sum(1)
        pairs[-1] += frames[-1]
        return pairs

    def _who(self, name: str | None) -> torch.Tensor | None:
        if not self.model.config.speaking:
            return None
        at = 0 if name is None else self.speakers.index(name)
        return torch.tensor([at], device=self.model.device)

    def _intonation(self, text: torch.Tensor, counts: torch.Tensor, row: str, ahead: int) -> torch.Tensor | None:
        """What the bank adds to the symbols (1, L, C), its queries read off the text; None without a bank."""
        model, config = self.model, self.model.config
        if not config.tokens:
            return None
        numbers = text[0].tolist()
        finals = torch.tensor([last_words(numbers, config.mark, blanks=config.blanks)], device=text.device)
        if config.aligner and config.aligner_reads:
            vectors = model.encoder.gst.stl(model.text_query(text, counts, finals))[0]
        else:  # nothing reads the text: phrases end level
            count = finals.shape[1]
            level = torch.zeros(count, CONTOUR, device=text.device), torch.full((count,), CONTOUR, device=text.device)
            vectors = model.encoder.gst.stl(model.encoder.gst.query(*level)[None])[0]
        return model.spread(vectors, finals, text.shape[1])

    # -------------------------------------------------------------------------------------------------- what is carried

    def _before(self, state: State | None) -> dict[str, np.ndarray] | None:
        if state is None or not len(state["ids"]):
            return None
        return dict(state)

    def _after(self, row: str, frames: torch.Tensor, mel: torch.Tensor) -> State:
        """The end of this chunk from a word's beginning on: symbols, their frames, normalised mel (n, T)."""
        start = len(row)
        for at in range(len(row) - 1, 0, -1):
            many = int(frames[at:].sum())
            if len(row) - at > TAIL_SYMBOLS or many > TAIL_FRAMES:
                break
            if row[at] == " " and row[at + 1 : at + 2] not in ("", BREAK_MARK):
                start = at
        tail = int(frames[start:].sum())
        return {
            "ids": np.array(self._ids(row[start:]), dtype=np.int64),
            "frames": frames[start:].numpy().astype(np.int64),
            "mel": mel[:, mel.shape[1] - tail :].float().cpu().numpy(),
        }


def _spread(scale: torch.Tensor, places: list[tuple[int, int]], usual: float) -> torch.Tensor:
    """The scale of words on the spaces and punctuation behind them; before the first word the take's own."""
    made = scale.clone()
    made[: places[0][0]] = usual
    for number, (_, last) in enumerate(places):
        stop = places[number + 1][0] if number + 1 < len(places) else len(scale)
        made[last:stop] = scale[last - 1]
    return made
