"""Stock text-to-speech classes of transformers as voices: PocketTTS, VibeVoice, CSM, Dia, HiggsAudioV2.

    voice = StockVoice(model, processor)                     # as their from_pretrained gave them
    LongSpeechPipeline(voice)("Hours of text", seed=1)

They read words and tell no times: words' times are shared out over the sound. They draw from torch's global generator,
which is seeded for each chunk and put back behind it. What a class cannot do is refused by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError, one_line
from longtake.speech.backends.voice import Abilities, Said, State, Utterance, shared_times
from longtake.speech.mel import RATE as REFERENCE_RATE
from longtake.speech.mel import resample

WORDS_A_SECOND = 1.6  # the slowest that a chunk may be read, which bounds its length
SPARE_S = 3.0


@dataclass(frozen=True)
class Recording:
    """A reference: samples (N,) at ``rate``, and what is said in it."""

    wave: torch.Tensor
    rate: int
    text: str | None


@dataclass(frozen=True)
class Stock:
    """How a class is called. inputs(processor, text, speaker, recording) -> the model's inputs; wave(model, processor,
    inputs, settings) -> samples. speakers: names that it knows. clones, needs_text: whether a recording may be given,
    with what is said in it. frames: of its codes a second. tempered: whether it draws its tokens at a temperature."""

    inputs: Callable[[Any, str, str | None, Recording | None], Any]
    wave: Callable[[Any, Any, Any, dict[str, Any]], torch.Tensor]
    speakers: tuple[str, ...] = ()
    clones: bool = True
    needs_text: bool = False
    frames: float = 12.5
    tempered: bool = True


def _chat(processor: Any, turns: list[dict[str, Any]], **settings: Any) -> Any:
    return processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt", **settings)


def _said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _heard(recording: Recording) -> dict[str, Any]:
    return {"type": "audio", "audio": recording.wave.numpy()}


def _pocket_inputs(processor: Any, text: str, _: str | None, recording: Recording | None) -> Any:
    content = [*([_heard(recording)] if recording else []), _said(text)]
    return _chat(processor, [{"role": "user", "content": content}])


def _pocket_wave(model: Any, processor: Any, inputs: Any, settings: dict[str, Any]) -> torch.Tensor:
    made = model.generate(**inputs, return_dict_in_generate=True, **settings)
    return processor.decode(made.audio_latents, made.audio_latents_mask)[0]


def _vibe_inputs(processor: Any, text: str, speaker: str | None, recording: Recording | None) -> Any:
    content = [_said(text), *([_heard(recording)] if recording else [])]
    return _chat(processor, [{"role": speaker or "0", "content": content}])


def _vibe_wave(model: Any, processor: Any, inputs: Any, settings: dict[str, Any]) -> torch.Tensor:
    made = model.generate(**inputs, return_dict_in_generate=True, **settings).audio[0]
    if made is None:
        raise UserError("VibeVoice made no sound of a chunk: give another seed")
    return made.reshape(-1)


def _csm_inputs(processor: Any, text: str, speaker: str | None, recording: Recording | None) -> Any:
    who = speaker or "0"
    before = [{"role": who, "content": [_said(recording.text or ""), _heard(recording)]}] if recording else []
    return _chat(processor, [*before, {"role": who, "content": [_said(text)]}])


def _csm_wave(model: Any, processor: Any, inputs: Any, settings: dict[str, Any]) -> torch.Tensor:
    return model.generate(**inputs, output_audio=True, **settings)[0].reshape(-1)


def _dia_inputs(processor: Any, text: str, speaker: str | None, recording: Recording | None) -> Any:
    who = f"[{speaker or 'S1'}]"
    said = f"{who} {text}" if recording is None else f"{who} {recording.text} {text}"
    given = {} if recording is None else {"audio": recording.wave.numpy()}
    return processor(text=[said], padding=True, return_tensors="pt", **given)


def _dia_wave(model: Any, processor: Any, inputs: Any, settings: dict[str, Any]) -> torch.Tensor:
    prompt = processor.get_audio_prompt_len(inputs["decoder_attention_mask"]) if inputs.get("recorded") else None
    codes = model.generate(**{key: value for key, value in inputs.items() if key != "recorded"}, **settings)
    return processor.batch_decode(codes, audio_prompt_len=prompt)[0].reshape(-1)


def _higgs_inputs(processor: Any, text: str, _: str | None, recording: Recording | None) -> Any:
    before = []
    if recording is not None:
        before = [
            {"role": "user", "content": [_said(recording.text or "")]},
            {"role": "assistant", "content": [_heard(recording)]},
        ]
    turns = [*before, {"role": "user", "content": [_said(text)]}]
    return _chat(processor, turns, add_generation_prompt=True, sampling_rate=24_000)


def _higgs_wave(model: Any, processor: Any, inputs: Any, settings: dict[str, Any]) -> torch.Tensor:
    codes = model.generate(**inputs, **settings)
    return processor.batch_decode(getattr(codes, "sequences", codes))[0].reshape(-1)


STOCK: dict[str, Stock] = {
    "PocketTTSForConditionalGeneration": Stock(_pocket_inputs, _pocket_wave),
    "VibeVoiceForConditionalGeneration": Stock(
        _vibe_inputs, _vibe_wave, ("0", "1", "2", "3"), frames=7.5, tempered=False
    ),
    "CsmForConditionalGeneration": Stock(_csm_inputs, _csm_wave, tuple("0123456789"), needs_text=True),
    "DiaForConditionalGeneration": Stock(_dia_inputs, _dia_wave, ("S1", "S2"), needs_text=True, frames=86.0),
    "HiggsAudioV2ForConditionalGeneration": Stock(_higgs_inputs, _higgs_wave, needs_text=True, frames=25.0),
}


class StockVoice:
    """A voice of a model and its processor. settings: for ``generate``, beside the length and the temperature. Raises
    UserError for a class that is none of `STOCK`."""

    symbol_seconds = 0.075

    def __init__(self, model: Any, processor: Any, **settings: Any) -> None:
        self.kind = type(model).__name__
        if self.kind not in STOCK:
            raise UserError(f"{self.kind} is no voice that is known here; known are {', '.join(STOCK)}")
        self._stock = STOCK[self.kind]
        self.model, self.processor, self.settings = model.eval(), processor, settings
        self.rate = rate_of(processor)
        self.recording: Recording | None = None
        self._mark: str | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(self._stock.speakers, clones=self._stock.clones, phones=False)

    @property
    def mark(self) -> str:
        """Hash of the weights and the settings."""
        if self._mark is None:
            hashed = hashlib.sha256(f"{self.kind} {sorted(self.settings.items())}".encode())
            for name, value in sorted(self.model.state_dict().items()):
                hashed.update(name.encode())
                hashed.update(value.detach().cpu().reshape(-1)[:64].float().numpy().tobytes())
            self._mark = hashed.hexdigest()[:32]
        return self._mark

    def clone(self, wave: torch.Tensor, text: str | None) -> None:
        """Speak as a recording (N,) at 22.05 kHz does. Raises UserError where what is said in it is needed too."""
        if self._stock.needs_text and not text:
            raise UserError(f"the voice {self.kind} needs what is said in the reference: give reference_text")
        self.recording = Recording(resample(wave, REFERENCE_RATE, self.rate), self.rate, text)

    def say(self, asked: Utterance, state: State | None = None) -> Said:
        if asked.steps is not None:
            raise UserError(f"the voice {self.kind} takes no steps: leave them out")
        text = " ".join(unit.spoken + unit.after for unit in asked.units)
        words = text.count(" ") + 1
        settings: dict[str, Any] = {**({"do_sample": True} if self._stock.tempered else {}), **self.settings}
        settings.setdefault("max_new_tokens", round((words / WORDS_A_SECOND + SPARE_S) * self._stock.frames))
        if asked.temperature is not None:
            if not self._stock.tempered:
                raise UserError(f"the voice {self.kind} takes no temperature: leave it out")
            settings |= {"temperature": asked.temperature} if asked.temperature else {"do_sample": False}
        device = next(self.model.parameters()).device
        devices = [device] if device.type != "cpu" else []
        with torch.random.fork_rng(devices, enabled=True, device_type=device.type if devices else "cpu"):
            torch.manual_seed(asked.seed % 2**63)
            inputs = self._stock.inputs(self.processor, text, asked.speaker, self.recording)
            inputs = {key: value.to(device) if hasattr(value, "to") else value for key, value in inputs.items()}
            if self.recording is not None:
                inputs |= {"recorded": True} if self.kind.startswith("Dia") else {}
            with torch.no_grad():
                try:
                    made = self._stock.wave(self.model, self.processor, inputs, settings)
                except (ValueError, IndexError, RuntimeError) as error:
                    if isinstance(error, UserError):
                        raise
                    raise UserError(f"{self.kind} could not say {text[:60]!r}: {one_line(error)[:200]}") from error
        samples = made.detach().float().cpu().reshape(-1).numpy().astype(np.float32)
        if not len(samples):
            raise UserError(f"{self.kind} made no sound of {text[:60]!r}: give another seed")
        return Said(samples, shared_times(samples, self.rate, asked.units), None, exact=False)


def rate_of(processor: Any) -> int:
    """Samples a second of what a processor decodes. Raises UserError for one that does not say."""
    rate = getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", None)
    if not isinstance(rate, int) or rate < 1:
        raise UserError(f"the processor {type(processor).__name__} does not say its sampling rate")
    return rate
