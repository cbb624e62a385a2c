"""A row of symbols to a mel by a ProsodyFM, with all that can be set by hand.

    said = speak(model, "ɪz ðæt tɹˈuː?", voice="af_heart", slopes={2: 4.0})
    said.mel, said.frames, said.weights

Shape legend: L symbols of the marked row, T frames, n bands, W phrase-final words, K intonation tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from longtake.errors import UserError
from longtake.noise import noise
from longtake.speech.mel import denormalise
from longtake.speech.pitch import line
from longtake.speech.prosody_fm.breaks import last_words, marked
from longtake.speech.prosody_fm.intonation import align_attention
from longtake.speech.prosody_fm.model import PAUSE, ProsodyFM, whole_frames, with_pauses
from longtake.speech.text.symbols import BREAK_MARK, ids, interspersed

CONTOUR = 16  # values of a contour that a slope makes


@dataclass(frozen=True)
class Spoken:
    """row: the symbols as they were spoken, breaks marked, L of them. mel (n, T): log mels. frames (L,) int64 of each
    symbol; T is their sum. finals: which words (0 is the first) are the last of their phrases. weights (W, H, K): how
    much of each intonation token each of them has; None for a model without a bank."""

    row: str
    mel: torch.Tensor
    frames: torch.Tensor
    finals: tuple[int, ...]
    weights: torch.Tensor | None


@torch.inference_mode()
def speak(
    model: ProsodyFM,
    phones: str,
    *,
    voice: str | int | None = None,
    breaks: set[int] | None = None,
    slopes: Mapping[int, float] | None = None,
    contours: Mapping[int, Sequence[float]] | None = None,
    tokens: Mapping[int, Sequence[float]] | None = None,
    reference: torch.Tensor | None = None,
    states: torch.Tensor | None = None,
    rate: float = 1.0,
    pitch: float = 0.0,
    frames: Sequence[int] | None = None,
    steps: int = 4,
    temperature: float = 0.667,
    seed: int = 0,
) -> Spoken:
    """Speak symbols (IPA, words with single spaces between).

    voice: name or number; None: the first. breaks: after which words the voice pauses; None: marks of the row, else
    its punctuation. slopes, contours, tokens: word -> intonation of a phrase-final word, as a straight line
    (``longtake.speech.pitch.line``), a row of pitches as the bank reads them, or weights of the tokens that sum to 1;
    a word may have one of the three. reference (R, C): intonations of another recording's phrase ends, among which the
    align attention picks. states (W, width): of a language model for the phrase-final words (``bert.word_states``), for
    a model whose aligner reads those. rate: 1 is the model's own pace. pitch: semitones against the speaker's own.
    frames: of each symbol of the marked row, instead of the model's. Raises UserError for what the model or the row
    does not have.
    """
    config, device = model.config, model.device
    row = marked(phones, breaks) if config.tokens else phones
    numbers = [config.mark if mark == BREAK_MARK else number for mark, number in zip(row, ids(row), strict=True)]
    if config.blanks:
        numbers = interspersed(numbers)
    text = torch.tensor([numbers], device=device)
    counts = torch.tensor([len(numbers)], device=device)
    _check(rate, pitch, config.tone)
    added, weights, finals = _intonation(
        model, text, counts, row, slopes or {}, contours or {}, tokens or {}, reference, states
    )
    tone = torch.full((1,), float(pitch), device=device)
    speaker = model.speaker(_who(model, voice), tone)
    mu, logw, _ = model.encoder(text, counts, speaker, added)
    lengths = whole_frames(logw[0, 0].float().exp() / rate) if frames is None else _given(model, row, frames)
    if frames is None and not config.blanks:
        lengths = with_pauses(lengths, row, round(PAUSE / rate))
    lengths = lengths.to(device)
    total = int(lengths.sum())
    start = noise(seed, 0, [0], 0, (config.mels, total)).to(device)
    wide = mu.float().repeat_interleave(lengths, dim=2)
    valid = torch.tensor([total], device=device)
    mel = model.mels(wide, valid, start, steps=steps, temperature=temperature, speaker=speaker)[0]
    mel = denormalise(mel, float(model.mel_mean), float(model.mel_std))
    return Spoken(row, mel, _whole(lengths.cpu(), config.blanks), finals, weights)


def _check(rate: float, pitch: float, tone: bool) -> None:
    if not rate > 0:
        raise UserError(f"the rate must be above 0; given {rate}")
    if pitch and not tone:
        raise UserError("this model has no control of pitch: leave it at 0")


def _whole(lengths: torch.Tensor, blanks: bool) -> torch.Tensor:
    """Frames of each symbol; those of a blank are its next symbol's, the last one's the last symbol's."""
    if not blanks:
        return lengths
    found = lengths[1::2] + lengths[:-1:2]
    found[-1] += lengths[-1]
    return found


def _given(model: ProsodyFM, row: str, frames: Sequence[int]) -> torch.Tensor:
    if model.config.blanks:
        raise UserError("frames can be given to models without blanks only")
    if len(frames) != len(row) or min(frames) < 1:
        raise UserError(f"frames must be {len(row)} numbers of 1 or more, one a symbol; given {len(frames)}")
    return torch.tensor(list(frames))


def _who(model: ProsodyFM, voice: str | int | None) -> torch.Tensor | None:
    config = model.config
    if not config.speaking:
        if voice is not None:
            raise UserError(f"this model has one voice and no names; given {voice!r}")
        return None
    if config.dvector:
        raise UserError("this model speaks as a speaker's vector says: no voice can be named")
    names = config.voices or tuple(map(str, range(config.speakers)))
    wanted = names[0] if voice is None else str(voice)
    if wanted not in names:
        raise UserError(f"unknown voice {wanted!r}: it must be one of {', '.join(names[:60])}")
    return torch.tensor([names.index(wanted)], device=model.device)


def _intonation(
    model: ProsodyFM,
    text: torch.Tensor,
    counts: torch.Tensor,
    row: str,
    slopes: Mapping[int, float],
    contours: Mapping[int, Sequence[float]],
    tokens: Mapping[int, Sequence[float]],
    reference: torch.Tensor | None,
    states: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, tuple[int, ...]]:
    config, device = model.config, model.device
    by_hand = [*slopes, *contours, *tokens]
    if not config.tokens:
        if by_hand or reference is not None:
            raise UserError("this model has no intonation bank: leave out slopes, contours, tokens and reference")
        return None, None, ()
    spans = last_words(text[0].tolist(), config.mark, blanks=config.blanks)
    plain = last_words(
        [config.mark if mark == BREAK_MARK else number for mark, number in zip(row, ids(row), strict=True)], config.mark
    )
    finals = tuple(_number(row, start) for start, _ in plain)
    wrong = sorted(word for word in by_hand if word not in finals)
    if wrong:
        raise UserError(f"word {wrong[0]} ends no phrase: those that do are {', '.join(map(str, finals))}")
    if len(set(by_hand)) < len(by_hand):
        raise UserError("a word has one of a slope, a contour and token weights, not several")
    places = torch.tensor([spans], device=device)
    bank = model.encoder.gst
    if states is not None:
        wanted = (len(spans), config.aligner)
        if not config.aligner or config.aligner_reads or tuple(states.shape) != wanted:
            reads = f"states {wanted}" if config.aligner and not config.aligner_reads else "none"
            raise UserError(f"this model reads {reads} of a language model; given {tuple(states.shape)}")
        query = model.aligner.fc(states.to(device))
    elif config.aligner and config.aligner_reads:
        query = model.text_query(text, counts, places)[0]
    else:  # the level line: what is neither read nor heard is level
        query = bank.query(torch.zeros(len(spans), CONTOUR, device=device), torch.full((len(spans),), CONTOUR))
    vectors, weights = bank.stl(query)
    if reference is not None:
        vectors = align_attention(query, reference.to(vectors))
    drawn = {**{word: line(slope, CONTOUR) for word, slope in slopes.items()}}
    drawn |= {word: torch.tensor(list(values), dtype=torch.float32) for word, values in contours.items()}
    for word, values in drawn.items():
        place = finals.index(word)
        if not len(values):
            raise UserError(f"the contour of word {word} has no values")
        made, share = bank(values[None].to(device), torch.tensor([len(values)], device=device))
        vectors[place], weights[place] = made[0], share[0]
    for word, share_told in tokens.items():
        place = finals.index(word)
        told = torch.tensor(list(share_told), dtype=torch.float32, device=device)
        vectors[place], weights[place] = bank.by_hand(told), told
    return model.spread(vectors[None], places, text.shape[1]), weights.cpu(), finals


def _number(row: str, start: int) -> int:
    """Which word of a row begins at a symbol."""
    return len([part for part in row[:start].replace(BREAK_MARK, " ").split(" ") if part])
