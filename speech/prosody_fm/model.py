"""ProsodyFM (arXiv 2412.11795): symbols and the intonation of phrase ends -> durations -> mels by flow matching.

One class for ProsodyFM and Matcha-TTS (``tokens=0``), the public sizes and ours. What the public code lacks, and is
built after the paper: text-pitch aligner, align attention, a speaker's vector in place of a number (``dvector``). Ours
beside them: a speaker's average pitch as a control (``tone``), and rows of symbols without blanks.
Shape legend: B sentences, L symbols, T frames, n mels, W phrase-final words, C text channels, S speaker channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from longtake.errors import UserError
from longtake.speech.mel import FRAMES_A_SECOND, NORMS
from longtake.speech.prosody_fm.decoder import MULTIPLE, Decoder, Estimator, flow_target
from longtake.speech.prosody_fm.intonation import Intonation, TextPitchAligner, word_places
from longtake.speech.prosody_fm.layers import DurationPredictor, Encoder, Prenet, lengths_mask
from longtake.speech.text.symbols import BREAK, BREAK_MARK, SYMBOLS
from torch import nn

PAUSE = round(0.15 * FRAMES_A_SECOND)  # frames of a break between words, at least


@dataclass(frozen=True)
class Config:
    """Sizes of a model; the defaults are those of the public ProsodyFM for 326 speakers.

    symbols, mels: of text and sound. speakers: 1 means no speaker at all; speaker_width: channels of one.
    dvector: numbers of a speaker's vector that replaces the table of speakers (0: a table).
    channels, inner, heads, layers: of the text encoder (speaker's channels not counted); inner_duration: of the
    duration predictor. tokens: of the intonation bank (0: none, as Matcha-TTS); token_width, pitch_hidden: of each,
    of the LSTM. aligner: width of the states from which text makes intonation queries (0: none); aligner_reads: whether
    it has a reader of symbols of its own, else the states are a language model's.
    field: channels of the estimator; field_heads, field_width, field_middle: its heads, their channels, middle blocks.
    spread: see ``Decoder``.
    blanks: whether a blank stands between symbols. mark: id of a break. semitones: whether the bank reads semitones
    around a word's mean instead of Hz. tone: whether the speaker's average pitch can be set.
    dropout, prenet_dropout, field_dropout: in training. mean, deviation: of the log mels. voices: names of speakers.
    temperature: deviation of the noise that speech starts from, where none is asked for.
    """

    symbols: int = len(SYMBOLS)
    mels: int = 80
    speakers: int = 326
    speaker_width: int = 64
    dvector: int = 0
    channels: int = 192
    inner: int = 768
    heads: int = 2
    layers: int = 6
    inner_duration: int = 256
    tokens: int = 6
    token_width: int = 48
    pitch_hidden: int = 128
    aligner: int = 0
    aligner_reads: bool = False
    field: tuple[int, int] = (256, 256)
    field_heads: int = 2
    field_width: int = 64
    field_middle: int = 2
    spread: float = 0.0
    blanks: bool = True
    mark: int = BREAK
    semitones: bool = False
    tone: bool = False
    dropout: float = 0.1
    prenet_dropout: float = 0.5
    field_dropout: float = 0.05
    mean: float = NORMS["libritts"][0]
    deviation: float = NORMS["libritts"][1]
    voices: tuple[str, ...] = ()
    temperature: float = 0.667

    @property
    def speaking(self) -> bool:
        """Whether the model has more than one speaker."""
        return self.speakers > 1 or self.dvector > 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Config:
        """From ``to_dict``. Raises UserError for settings that are unknown or of a wrong kind."""
        kinds = {one.name: type(one.default) for one in fields(cls)}
        unknown = sorted(set(told) - set(kinds))
        if unknown:
            raise UserError(f"a ProsodyFM has no setting {unknown[0]!r}")
        made: dict[str, Any] = {}
        for name, value in told.items():
            kind = kinds[name]
            value = tuple(value) if kind is tuple and isinstance(value, list) else value
            if not isinstance(value, (int, float) if kind is float else kind):
                raise UserError(f"the setting {name} of a ProsodyFM must be {kind.__name__}; given {value!r}")
            made[name] = value
        return cls(**made)


class TextEncoder(nn.Module):
    """Symbols -> mean mel of each, and the logarithm of its duration."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config
        width = c.channels + (c.speaker_width if c.speaking else 0)
        self.emb = nn.Embedding(c.symbols, c.channels)
        nn.init.normal_(self.emb.weight, 0, c.channels**-0.5)
        if c.tokens:
            self.gst = Intonation(c.channels, c.pitch_hidden, c.tokens, c.token_width)
        self.prenet = Prenet(c.channels, c.prenet_dropout)
        self.encoder = Encoder(width, c.inner, c.heads, c.layers, 3, c.dropout)
        self.proj_m = nn.Conv1d(width, c.mels, 1)
        self.proj_w = DurationPredictor(width, c.inner_duration, 3, c.dropout)

    def forward(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        speaker: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """mu (B, n, L), log durations (B, 1, L) and mask (B, 1, L) of symbols (B, L).

        speaker (B, S); added (B, L, C): intonation, where symbols belong to phrase-final words.
        """
        mask = lengths_mask(lengths, ids.shape[1])
        x = self.emb(ids) * math.sqrt(self.emb.embedding_dim)
        if added is not None:
            x = x + added
        x = self.prenet(x.transpose(1, 2), mask)
        if speaker is not None:
            x = torch.cat([x, speaker[..., None].expand(-1, -1, x.shape[-1]).to(x.dtype)], 1)
        x = self.encoder(x, mask)
        return self.proj_m(x) * mask, self.proj_w(x, mask), mask


class ProsodyFM(nn.Module):
    """The whole model. strict: see ``decoder``; the public code is ``strict = False``."""

    mel_mean: torch.Tensor
    mel_std: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        if c.dvector:
            self.spk_net = nn.Sequential(
                nn.Linear(c.dvector, 2 * c.speaker_width), nn.ReLU(), nn.Linear(2 * c.speaker_width, c.speaker_width)
            )
        elif c.speaking:
            self.spk_emb = nn.Embedding(c.speakers, c.speaker_width)
        if c.tone:
            self.spk_tone = nn.Linear(1, c.speaker_width, bias=False)
            nn.init.zeros_(self.spk_tone.weight)
        self.encoder = TextEncoder(c)
        speaker = c.speaker_width if c.speaking else 0
        self.decoder = Decoder(
            Estimator(c.mels, speaker, c.field, c.field_heads, c.field_width, c.field_middle, c.field_dropout),
            c.spread,
        )
        if c.tokens and c.aligner:
            symbols = c.symbols if c.aligner_reads else 0
            self.aligner = TextPitchAligner(c.channels, c.aligner, symbols)
        self.register_buffer("mel_mean", torch.tensor(c.mean))
        self.register_buffer("mel_std", torch.tensor(c.deviation))

    @property
    def strict(self) -> bool:
        return self.decoder.estimator.strict

    @strict.setter
    def strict(self, value: bool) -> None:
        self.decoder.estimator.strict = value

    @property
    def device(self) -> torch.device:
        return self.mel_mean.device

    # ------------------------------------------------------------------------------------------ conditions

    def speaker(self, who: torch.Tensor | None, tone: torch.Tensor | None = None) -> torch.Tensor | None:
        """Speakers (B, S) from numbers (B,) int64 or, with ``dvector``, vectors (B, d); None for a model of one voice.

        tone (B,): average pitch against the speaker's own, in semitones.
        """
        if not self.config.speaking:
            return None
        if who is None:
            raise UserError("this model has several speakers: name one")
        made = self.spk_net(who) if self.config.dvector else self.spk_emb(who)
        if tone is not None and self.config.tone:
            made = made + self.spk_tone(tone[:, None] / 4)
        return made

    def spread(self, vectors: torch.Tensor, finals: torch.Tensor, length: int) -> torch.Tensor:
        """Intonations (B, W, C) of words (B, W, 2) on their symbols, (B, length, C)."""
        places = word_places(finals, length, blanks=self.config.blanks)
        return torch.einsum("bwl,bwc->blc", places.to(vectors.dtype), vectors)

    def text_query(self, ids: torch.Tensor, lengths: torch.Tensor, finals: torch.Tensor) -> torch.Tensor:
        """The aligner's queries (B, W, C) for the words at ``finals`` (B, W, 2)."""
        places = word_places(finals, ids.shape[1], blanks=self.config.blanks)
        return self.aligner(self.aligner.states(ids, lengths), places)

    # ------------------------------------------------------------------------------------------ training

    def forward(
        self,
        ids: torch.Tensor,
        counts: torch.Tensor,
        lengths: torch.Tensor,
        mel: torch.Tensor,
        frames: torch.Tensor,
        owner: torch.Tensor,
        speaker: torch.Tensor,
        tone: torch.Tensor,
        finals: torch.Tensor,
        pitch: torch.Tensor,
        pitch_lengths: torch.Tensor,
        heard: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
    ) -> torch.Tensor:
        """The losses (4,) of durations, mean mel, flow and aligner, of crops whose alignment is known.

        ids (B, L), counts (B,): symbols of whole sentences; lengths (B, L): their frames. mel (B, T, n), normalised,
        with ``frames`` (B,) valid ones, and ``owner`` (B, T), the symbol of each: the crops. speaker (B,) or (B, d);
        tone (B,), see ``speaker``. finals (B, W, 2), pitch (B, W, S) as the bank reads it and pitch_lengths (B, W):
        phrase-final words. heard (B,) bool: whether the bank hears their pitch, else what the aligner reads off the
        text. noise (B, n, T), time (B,): of the flow. Durations, mean and flow: spec 2.5.
        """
        added, aligned = self._intonation(ids, counts, finals, pitch, pitch_lengths, heard)
        voice = self.speaker(speaker, tone)
        mu, logw, known = self.encoder(ids, counts, voice, added)
        logw, known = logw[:, 0].float(), known[:, 0]
        told = torch.log(lengths.float().clamp_min(1))
        duration = ((logw - told).square() * known).sum() / known.sum()
        mask = lengths_mask(frames, mel.shape[1])
        here = mask.sum() * self.config.mels
        mean = mu.float().gather(2, owner[:, None].expand(-1, mu.shape[1], -1)) * mask
        clean = mel.transpose(1, 2)
        prior = (0.5 * ((clean - mean).square() + math.log(2 * math.pi)) * mask).sum() / here
        point, velocity = flow_target(noise, clean, time)
        found = self.decoder.velocity(point * mask, mask, mean, time, voice)
        flow = ((found.float() - velocity).square() * mask).sum() / here
        return torch.stack([duration, prior, flow, aligned])

    def _intonation(
        self,
        ids: torch.Tensor,
        counts: torch.Tensor,
        finals: torch.Tensor,
        pitch: torch.Tensor,
        pitch_lengths: torch.Tensor,
        heard: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What intonation adds to the symbols, and the aligner's loss."""
        nothing = pitch.new_zeros(())
        if not self.config.tokens:
            return None, nothing
        query = self.encoder.gst.query(pitch, pitch_lengths)
        sounding = (pitch_lengths > 0).float()
        if self.config.aligner:
            read = self.text_query(ids, counts, finals)
            away = (read.float() - query.detach().float()).square().mean(-1)
            nothing = (away * sounding).sum() / sounding.sum().clamp_min(1)
            listens = heard[:, None] & (pitch_lengths > 0)
            query = torch.where(listens[..., None], query, read.detach().to(query.dtype))
        return self.spread(self.encoder.gst.stl(query)[0], finals, ids.shape[1]), nothing

    # ------------------------------------------------------------------------------------------ sampling

    def mels(
        self,
        mu: torch.Tensor,
        frames: torch.Tensor,
        noise: torch.Tensor,
        *,
        steps: int = 10,
        temperature: float = 0.667,
        speaker: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Normalised mels (B, n, T) of mu and noise (B, n, T), ``frames`` (B,) of them valid.

        known (B, n, k): the first k frames as they are to be. T is padded to a multiple of 4 inside: with
        ``strict`` that changes nothing. Raises UserError for fewer than one step.
        """
        if steps < 1:
            raise UserError(f"the flow needs 1 step or more; given {steps}")
        length = mu.shape[-1]
        extra = -length % MULTIPLE
        mu, noise = (torch.nn.functional.pad(x, (0, extra)) for x in (mu, noise))
        mask = lengths_mask(frames, length + extra)
        return self.decoder(mu, mask, noise * temperature, steps, speaker, known)[..., :length]


def durations(logw: torch.Tensor, mask: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The public rule: durations ceil(exp(logw)) * scale, (B, L) float, and frames (B,) int64, at least 1, of log
    durations and mask (B, 1, L)."""
    found = (torch.ceil(logw.exp() * mask) * scale)[:, 0]
    return found, found.sum(1).long().clamp_min(1)


def expansion(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """Which symbol each frame is of, as a path (B, L, frames) float32 of 0 and 1, from durations (B, L), which may be
    fractions: symbol i has the frames t with sum before i <= t < sum up to i."""
    ends = lengths.cumsum(1)[..., None]
    steps = torch.arange(frames, device=lengths.device)
    before = (steps < ends).float()
    return before - torch.nn.functional.pad(before, (0, 0, 1, 0))[:, :-1]


def with_pauses(lengths: torch.Tensor, row: str, least: int) -> torch.Tensor:
    """Frames (L,) int64 of a row of symbols in which each break between words pauses at least so many frames, the
    spaces beside it counted: the corpora have a mark only where speech pauses for 125 ms or more, and a mean of many
    pauses falls below it where the words leave it open."""
    made = lengths.clone()
    for place, mark in enumerate(row[:-1]):
        if mark == BREAK_MARK and place:
            made[place] += max(0, least - int(made[place - 1 : place + 2].sum()))
    return made


def whole_frames(lengths: torch.Tensor) -> torch.Tensor:
    """Durations (L,) of one sentence as whole frames, one or more each, whose running sums stay near those given."""
    ends = lengths.double().cumsum(0).round().long()
    steps = torch.arange(len(ends), device=ends.device)
    ends = torch.cummax(torch.maximum(ends, torch.ones_like(ends)) - steps, 0).values + steps
    return torch.diff(ends, prepend=ends.new_zeros(1))
