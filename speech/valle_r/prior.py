"""A small VALL-E R as it ships: codec over mels, both networks, voices to speak with, and an aligner for new ones.

    model = ValleR.load(folder)
    speech = model.synthesize(ids(" hɛloʊ wɜːld. ¿"), "af_heart", seed=7)
    speech.mel                                   # (80, F) log mels, for a vocoder
    speech.seconds()                             # of each phoneme
Shape legend: L phonemes, T merged frames, F = m T frames, D layers, C = 80 bands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from longtake.errors import UserError, one_line, shorten
from longtake.journal import atomic_path
from longtake.noise import frame_generator
from longtake.speech.alignment import durations
from longtake.speech.codec.mels import MelCodec
from longtake.speech.mel import FRAMES_A_SECOND
from longtake.speech.valle_r.aligner import Aligner
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.corpus import projected
from longtake.speech.valle_r.decode import Limits, Prompt, Sampling, decode
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import PLACES
from longtake.weights import eight_bits, whole

KIND = "valle_r"
CONFIG = "config.json"
PARTS = ("codec", "ar", "nar", "voices")
TRAINED_ONLY = ("sizes", "sums")  # of a codec: only its training needs them
DETAILS = ("expected", "codes")
USUAL = Sampling(top_p=0.9, temperature=0.4, median_pointer=True)
PACKET = 32  # frames of a streamed packet


@dataclass(frozen=True)
class Speech:
    """text: (L,). codes: (D, F). pointer: (T,), the phoneme of each merged frame. mel: (C, F) log mels."""

    text: torch.Tensor
    codes: torch.Tensor
    pointer: torch.Tensor
    mel: torch.Tensor

    def frames(self) -> torch.Tensor:
        """How many frames (L,) int64 of ``mel`` each phoneme has."""
        return durations(self.pointer, len(self.text)) * (self.codes.shape[-1] // len(self.pointer))

    def seconds(self) -> torch.Tensor:
        """How long (L,) float64 each phoneme is."""
        return self.frames().double() / FRAMES_A_SECOND

    def prompt(self) -> Prompt:
        """To go on from."""
        return Prompt(self.text, self.codes, self.pointer)


class ValleR:
    """See the module. All parts live on one device; ``synthesize`` returns tensors of the CPU."""

    def __init__(
        self, codec: MelCodec, ar: AR, nar: NAR, voices: dict[str, Prompt], aligner: Aligner | None = None
    ) -> None:
        self.codec, self.ar, self.nar = codec.eval(), ar.eval(), nar.eval()
        self.voices, self.aligner = dict(voices), aligner
        self.limits = Limits.at(FRAMES_A_SECOND / codec.merge[0])
        self._cache: Any = None

    # ------------------------------------------------------------------------------------------------------ files

    def save(self, folder: Path) -> Path:
        """Write config.json and safetensors: eight bits a weight, float16 what is none (codebooks, biases, voices)."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        voices: dict[str, torch.Tensor] = {}
        for name, voice in self.voices.items():
            for part in ("text", "codes", "pointer"):
                voices[f"{name}/{part}"] = getattr(voice, part).to(torch.int16)
        if self.aligner is not None:
            voices |= {"/mean": self.aligner.mean.half(), "/deviation": self.aligner.deviation.half()}
        states: dict[str, dict[str, torch.Tensor]] = {"voices": voices}
        for name in ("codec", "ar", "nar"):
            state = getattr(self, name).state_dict()
            small = eight_bits({key: value for key, value in state.items() if key not in TRAINED_ONLY})
            plain = {key: value.half() for key, value in small.items() if value.is_floating_point() and key in state}
            states[name] = small | plain
        for name, state in states.items():
            with atomic_path(folder / f"{name}.safetensors") as partial:
                save_file({key: value.cpu().contiguous() for key, value in state.items()}, partial)
        config = {"kind": KIND, **{name: getattr(self, name).config for name in ("codec", "ar", "nar")}}
        with atomic_path(folder / CONFIG) as partial:
            partial.write_text(json.dumps(config, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ValleR:
        """Of a folder that ``save`` wrote. Raises UserError for a folder that is none, or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        missing = [
            name for name in (CONFIG, *(f"{part}.safetensors" for part in PARTS)) if not (folder / name).is_file()
        ]
        if missing:
            raise UserError(f"{folder} is no VALL-E R prior: it lacks {', '.join(missing)}")
        try:
            config = json.loads((folder / CONFIG).read_text())
            if config.get("kind") != KIND:
                raise UserError(
                    f"{folder / CONFIG} is of another model: its kind is {shorten(str(config.get('kind')))}"
                )
            states = {part: load_file(folder / f"{part}.safetensors") for part in PARTS}
            codec, ar, nar = MelCodec(**config["codec"]), AR.of(config["ar"]), NAR.of(config["nar"])
            for name, model in (("codec", codec), ("ar", ar), ("nar", nar)):
                state = whole(states[name])
                if model is codec:
                    state |= {key: getattr(codec, key) for key in TRAINED_ONLY}
                model.load_state_dict(state)
                model.to(device, dtype)
            voices, aligner = _voices(states["voices"])
        except UserError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"the prior in {folder} is damaged: {one_line(error)[:200]}") from error
        return cls(codec, ar, nar, voices, aligner)

    # ----------------------------------------------------------------------------------------------------- voices

    def voice(self, name: str) -> Prompt:
        """A voice that ships. UserError for another name."""
        if name not in self.voices:
            raise UserError(f"unknown voice {shorten(name)!r}; allowed are {', '.join(sorted(self.voices))}")
        return self.voices[name]

    def clone(self, mel: torch.Tensor, text: Sequence[int] | torch.Tensor, name: str | None = None) -> Prompt:
        """A voice of a recording: log mels (C, F) and its phonemes (L,), best 3 to 6 seconds. name: also kept as.

        Raises UserError where the prior has no aligner, AlignmentTooShort for fewer merged frames than phonemes.
        """
        if self.aligner is None:
            raise UserError("this prior has no aligner: give a prompt with its alignment")
        text = torch.as_tensor(text, dtype=torch.int64)
        merge = self.codec.merge[0]
        frames = mel.shape[-1] // merge * merge
        mel = mel[..., :frames]
        owner = self.aligner.owner((mel.T - self.codec.mean) / self.codec.deviation, text)
        pointer = projected(owner[None], torch.tensor([len(text)]), torch.tensor([frames // merge]), merge)[0]
        codes = self.codec.encode(mel[None].to(self._device))[0].cpu()
        prompt = Prompt(text, codes, pointer)
        if name is not None:
            self.voices[name] = prompt
        return prompt

    # -------------------------------------------------------------------------------------------------- synthesis

    @torch.no_grad()
    def synthesize(
        self,
        text: Sequence[int] | torch.Tensor,
        voice: str | Prompt | Sequence[Prompt],
        *,
        seed: int = 0,
        chunk: int = 0,
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        alignment: torch.Tensor | None = None,
        detail: str = "expected",
        mesh: Any = None,
    ) -> Speech:
        """Speak phonemes (ids of ``longtake.speech.text.symbols``) in a voice.

        voice: the name of one that ships, a prompt, or several prompts, spoken one after the other before this (an
        anchor and the end of the last chunk). seed, chunk: decide all that is drawn. alignment: (T,), see ``decode``.
        detail: "expected" decodes what is to be expected of a frame's first layer, given the codes before it, and of
        the later ones (``NAR.expect``); "codes" decodes the codes.
        mesh: a ``Transport`` whose ranks share the layers that come at once; all call this with the same arguments.
        Raises UserError for an empty or too long text, an id that is no phoneme's, and an unknown voice.
        """
        if detail not in DETAILS:
            raise UserError(f"detail must be {' or '.join(DETAILS)}, got {shorten(detail)!r}")
        prompt = self._prompt(voice)
        text = torch.as_tensor(text, dtype=torch.int64)
        wrong = text[(text < 0) | (text >= self.ar.symbols)]
        if len(wrong):
            raise UserError(f"a phoneme's id is 0 to {self.ar.symbols - 1}, got {int(wrong[0])}")
        many = len(text) + len(prompt.text)
        if many > PLACES:
            raise UserError(f"prompt and text may have {PLACES} phonemes together, got {many}: make shorter chunks")
        device = self._device
        merge = self.codec.merge[0]
        limits = limits or self.limits
        there = Prompt(*(getattr(prompt, part).to(device) for part in ("text", "codes", "pointer")))
        frames = len(alignment) if alignment is not None else limits.budget * len(text)
        spoken = decode(
            self.ar,
            text.to(device),
            there,
            generator=frame_generator(seed, chunk, 0, 0),
            sampling=sampling or USUAL,
            limits=limits,
            alignment=alignment,
            book=self.codec.books[0] if detail == "expected" else None,
            cache=self._room(len(text) + len(prompt.text) + len(prompt.pointer) + 1 + frames),
        )
        many = merge * len(spoken.codes)
        codes = torch.zeros(self.codec.layers, many, dtype=torch.int64, device=device)
        codes[0] = spoken.codes.to(device).repeat_interleave(merge)
        pointer = torch.cat([there.pointer, spoken.pointer.to(device) + len(prompt.text)]).repeat_interleave(merge)
        whole = torch.cat([there.codes, codes], 1)
        known = there.codes.shape[1]
        both = torch.cat([there.text, text.to(device)])
        if detail == "codes":
            made = self.nar.complete(both, whole, pointer, known, mesh)[:, known:]
            mel = self.codec.decode(made[None])
        else:
            made, latent = self.nar.expect(both, whole, pointer, known, self.codec.books, mesh)
            made, latent = made[:, known:], latent[known:]
            if spoken.expected is not None:
                drawn = self.codec.books[0][made[0]]
                latent = latent - drawn + spoken.expected.to(latent.dtype).repeat_interleave(merge, 0)
            mel = self.codec.decode_latent(latent[None])
        return Speech(text, made.cpu(), spoken.pointer, mel[0].float().cpu())

    def stream(
        self, text: Sequence[int] | torch.Tensor, voice: str | Prompt | Sequence[Prompt], **told: Any
    ) -> Iterator[tuple[torch.Tensor, Speech]]:
        """``synthesize``'s log mels in packets (C, n): the packets are the whole, cut. Keywords as there."""
        speech = self.synthesize(text, voice, **told)
        for packet in speech.mel.split(PACKET, -1):
            yield packet, speech

    @property
    def _device(self) -> torch.device:
        return self.ar.predict.weight.device

    def _prompt(self, voice: str | Prompt | Sequence[Prompt]) -> Prompt:
        if isinstance(voice, str):
            return self.voice(voice)
        return voice if isinstance(voice, Prompt) else joined(voice)

    def _room(self, rows: int) -> Any:
        """The cache of the last chunk, if it is large enough, else a larger one."""
        there = self._cache is not None and self._cache.memory.device == self._device
        if not there or self._cache.capacity < rows:
            self._cache = self.ar.cache(max(rows, 2048))
        return self._cache


def joined(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts one after the other as one. UserError for none."""
    if not prompts:
        raise UserError("a voice needs at least one prompt")
    shifts, total = [], 0
    for prompt in prompts:
        shifts.append(prompt.pointer + total)
        total += len(prompt.text)
    text = torch.cat([prompt.text for prompt in prompts])
    return Prompt(text, torch.cat([prompt.codes for prompt in prompts], 1), torch.cat(shifts))


def tail(prompt: Prompt, frames: int) -> Prompt | None:
    """The end of a prompt, at most ``frames`` merged frames of whole phonemes; None where the last is longer."""
    pointer = prompt.pointer
    start = max(0, len(pointer) - frames)
    while start and start < len(pointer) and pointer[start] == pointer[start - 1]:
        start += 1
    if start == len(pointer):
        return None
    first = int(pointer[start])
    return Prompt(prompt.text[first:], prompt.codes[:, start * prompt.merge :], pointer[start:] - first)


def _voices(state: dict[str, torch.Tensor]) -> tuple[dict[str, Prompt], Aligner | None]:
    names = sorted({name.rpartition("/")[0] for name in state} - {""})
    voices = {
        name: Prompt(*(state[f"{name}/{part}"].long() for part in ("text", "codes", "pointer"))) for name in names
    }
    if "/mean" not in state:
        return voices, None
    return voices, Aligner(state["/mean"].float(), state["/deviation"].float())
