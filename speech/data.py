"""The speech corpora: aligned utterances of many voices, their labels put right, and one file to train from anywhere.

A corpus is a zip of 24 kHz Ogg sound and ``index.jsonl`` with ``file``, ``voice``, ``text``, ``phones`` (one symbol an
entry, spaces and punctuation included) and ``frames`` (of 600 samples, one number a phone). Labels of ``aligned_*``
are moved 55 ms earlier, and the silence at their end is cut off the last phone by its energy. Silence is cut to 0.1 s
at the start and 0.2 s at the end. Pauses become breaks: where punctuation and spaces between two words last 125 ms or
more, and at the end, a symbol `¿` takes the pause (see prosody_fm/breaks.py); so "one, two." is " wˈʌn, ¿ tˈuː. ¿".

    utterances = load_corpora(folder)                          # of train and val
    save(path, utterances)                                     # --prepare: sound, ids, lengths, pitch; under 40 MB
    corpus = Corpus.of(load(path), "train", device)            # flat tensors on the device
    batch = corpus.crops(dice, 128, 192)                       # fixed shapes, made on the device
Shape legend: U utterances, P symbols, T frames of 256 samples at 22.05 kHz, W phrase-final words of an utterance.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError, one_line
from longtake.speech import mel as front
from longtake.speech.pitch import contour, track
from longtake.speech.prosody_fm.breaks import last_words
from longtake.speech.text.symbols import BREAK_MARK, PAUSES, ids

RECIPE = "speech"
RATE = 24_000  # of the corpora's sound
UNIT = 600  # samples of a label frame
LATE = 1320  # samples by which the labels of aligned_* run late
LEAD, TAIL = RATE // 10, RATE // 5  # samples of silence that stay
PAUSE = 5 * UNIT  # samples between words that make a break
QUIET = 10 ** (-50 / 20)  # of the loudest block: below it there is no speech
SPLITS = ("train", "val")
NAMES = ("aligned", "human")
MEL_MEAN, MEL_DEVIATION = -5.5, 2.1  # of log mels, as the models see them
FINALS = 8  # phrase-final words of an utterance that are kept


@dataclass(frozen=True)
class Utterance:
    """One sentence.

    phones: symbols; ends: sample (24 kHz) of ``sound``'s cut part at which each phone ends, int64 (P,), rising.
    sound: bytes of a sound file; begin, the first sample of the part that is used: it is ``ends[-1]`` samples long.
    """

    name: str
    voice: str
    split: str
    text: str
    phones: str
    ends: np.ndarray
    begin: int
    sound: bytes

    def wave(self) -> np.ndarray:
        """The part that is used, float32 at 24 kHz."""
        return decoded(self.sound, self.name)[self.begin : self.begin + int(self.ends[-1])]

    def frame_ends(self, frames: int) -> np.ndarray:
        """The mel frame (of 256 samples at 22.05 kHz) at which each phone ends, (P,) int64; each has one at least."""
        count = len(self.ends)
        if frames < count:
            raise UserError(f"{self.name}: {count} phones in {frames} frames")
        places = np.round(self.ends * (front.RATE / RATE / front.HOP)).astype(np.int64)
        places[-1] = frames
        steps = np.arange(count)
        places = np.maximum.accumulate(np.maximum(places, 1) - steps) + steps
        return np.minimum(places, frames - (count - 1 - steps))


def decoded(sound: bytes, name: str) -> np.ndarray:
    """Mono float32 samples of a 24 kHz sound file. Raises UserError for another rate or a damaged file."""
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{name} is no sound that can be read: {one_line(error)}") from error
    if rate != RATE:
        raise UserError(f"{name} has {rate} samples a second; the corpora have {RATE}")
    return wave.mean(1)


# ------------------------------------------------------------------------------------------------------ reading


def load_corpora(folder: Path, names: Sequence[str] = NAMES) -> list[Utterance]:
    """The utterances of ``<name>_train.zip`` and ``<name>_val.zip`` in a folder, those that are there.

    Raises UserError when there are none, and for a damaged zip or labels that do not fit.
    """
    paths = [(folder / f"{name}_{split}.zip", split) for name in names for split in SPLITS]
    there = [(path, split) for path, split in paths if path.is_file()]
    if not any(split == "train" for _, split in there):
        raise UserError(f"{folder} holds no speech corpus: it needs {' or '.join(f'{n}_train.zip' for n in names)}")
    return [one for path, split in there for one in load_zip(path, split)]


def load_zip(path: Path, split: str, each: int | None = None) -> list[Utterance]:
    """The utterances of one corpus, labels put right; each: only the first so many of every voice.

    Raises UserError as ``load_corpora`` does.
    """
    late = path.name.startswith("aligned")
    try:
        with zipfile.ZipFile(path) as archive:
            rows = [json.loads(line) for line in archive.read("index.jsonl").decode().splitlines() if line.strip()]
            rows = rows if each is None else _first(rows, each)
            sounds = [archive.read(row["file"]) for row in rows]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return list(pool.map(lambda row, sound: _utterance(row, sound, split, late), rows, sounds))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no speech corpus, or damaged: {one_line(error)[:200]}") from error


def _first(rows: list[dict[str, Any]], each: int) -> list[dict[str, Any]]:
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row["voice"]] = seen.get(row["voice"], 0) + 1
        kept += [row] if seen[row["voice"]] <= each else []
    return kept


def _utterance(row: dict[str, Any], sound: bytes, split: str, late: bool) -> Utterance:
    phones, ends = list(row["phones"]), np.cumsum(np.asarray(row["frames"], np.int64)) * UNIT
    wave = decoded(sound, row["file"])
    if len(phones) != len(ends) or not len(ends):
        raise UserError(f"{row['file']}: {len(phones)} phones for {len(ends)} lengths")
    total = min(len(wave), int(ends[-1]))
    if late:
        ends = np.maximum(ends - LATE, UNIT)
    first = next(place for place, phone in enumerate(phones) if phone != " ")
    last = max(place for place, phone in enumerate(phones) if phone != " " and phone not in PAUSES)
    spoken = ends[last]
    if late:
        spoken = min(_silent_from(wave, int(ends[last - 1])), total)
        ends[last] = max(spoken, ends[last - 1] + UNIT // 2)
    start = int(ends[first - 1]) if first else 0
    begin = max(0, start - LEAD)
    stop = min(total, int(ends[last]) + TAIL)
    phones, ends = _with_breaks(phones[first : last + 1], ends[first : last + 1], start, phones[last + 1 :], stop)
    ends = np.maximum.accumulate(ends - begin)
    ids(phones)  # every symbol is known
    return Utterance(row["file"], row["voice"], split, row["text"], "".join(phones), ends, begin, sound)


def _silent_from(wave: np.ndarray, after: int) -> int:
    """The sample after which nothing is heard, ``after`` or later; blocks of 10 ms."""
    block = RATE // 100
    count = len(wave) // block
    loud = np.sqrt(np.square(wave[: count * block]).reshape(count, block).mean(1))
    heard = np.flatnonzero(loud > QUIET * loud.max())
    return max(after, (int(heard[-1]) + 1) * block if len(heard) else after)


def _with_breaks(
    phones: list[str], ends: np.ndarray, start: int, tail: list[str], stop: int
) -> tuple[list[str], np.ndarray]:
    """Phones and their ends with a space before them, pauses as breaks, and a break for the silence at the end.

    phones: first to last sound, whose first begins at sample ``start``. tail: punctuation and spaces after them, until
    sample ``stop``.
    """
    out, times = [" "], [start]
    place = 0
    while place < len(phones):
        if phones[place] != " " and phones[place] not in PAUSES:
            out.append(phones[place])
            times.append(int(ends[place]))
            place += 1
            continue
        after = place
        while phones[after] == " " or phones[after] in PAUSES:
            after += 1
        _gap(out, times, phones[place:after], int(ends[after - 1]))
        place = after
    marks = [mark for mark in tail if mark != " "]
    room = max(stop - times[-1], len(marks) + 2)
    step = min(UNIT, room // (len(marks) + 2))
    for mark in [*marks, " "]:
        out.append(mark)
        times.append(times[-1] + step)
    return [*out, BREAK_MARK], np.array([*times, max(stop, times[-1] + 1)], np.int64)


def _gap(out: list[str], times: list[int], gap: list[str], end: int) -> None:
    """Write what stands between two words, until sample ``end``: one space, and a break in it where it is a pause."""
    marks = [mark for mark in gap if mark != " "]
    spaced = " " in gap
    room = end - times[-1]
    small = min(UNIT, room // (len(marks) + 1))
    for mark in marks:
        out.append(mark)
        times.append(times[-1] + small)
    if not spaced:  # a mark inside a word
        times[-1] = max(end, times[-1])
        return
    if room >= PAUSE:
        out += [" ", BREAK_MARK, " "]
        times += [times[-1] + small, end - small, end]
    else:
        out.append(" ")
        times.append(max(end, times[-1] + 1))


# ------------------------------------------------------------------------------------------------------ one file


def save(path: Path, utterances: Sequence[Utterance]) -> Path:
    """Write all that training needs: sound as it came, symbols, ends, and the pitch of every frame."""
    from longtake.prepared import save as write

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        tones = list(pool.map(_tone, utterances))
    arrays: dict[str, np.ndarray] = {
        "sound": np.frombuffer(b"".join(one.sound for one in utterances), np.uint8),
        "sound_lengths": np.array([len(one.sound) for one in utterances], np.int64),
        "ids": np.concatenate([np.array(ids(one.phones), np.uint8) for one in utterances]),
        "counts": np.array([len(one.phones) for one in utterances], np.int32),
        "lengths": np.concatenate([np.diff(one.ends, prepend=0) for one in utterances]).astype(np.int32),
        "begins": np.array([one.begin for one in utterances], np.int32),
        "tones": np.concatenate(tones).astype(np.float16),
        "tone_lengths": np.array([len(one) for one in tones], np.int32),
    }
    facts = [[one.name, one.voice, one.split, one.text, one.phones] for one in utterances]
    return write(path, RECIPE, arrays, {"utterances": facts})


def _tone(one: Utterance) -> np.ndarray:
    return contour(track(front.resample(torch.from_numpy(one.wave()), RATE)))


@dataclass(frozen=True)
class Prepared:
    """What a prepared file holds. tones: pitch in Hz of each utterance's frames, (T,) each, 0 where it has no voice."""

    utterances: list[Utterance]
    tones: list[np.ndarray]


def prepared(utterances: Sequence[Utterance], *, pitch: bool = True) -> Prepared:
    """The same from utterances at hand. pitch: whether it is tracked, which takes most of the time; only ``prosody``
    needs it, and without it no frame has a voice."""
    if not pitch:
        return Prepared(list(utterances), [np.zeros(0, np.float16)] * len(utterances))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return Prepared(list(utterances), [one.astype(np.float16) for one in pool.map(_tone, utterances)])


def load(path: Path) -> Prepared:
    """What ``save`` wrote. Raises UserError for any other file."""
    from longtake.prepared import load as read

    arrays, facts = read(path, RECIPE)
    try:
        sounds = np.split(arrays["sound"], np.cumsum(arrays["sound_lengths"])[:-1])
        lengths = np.split(arrays["lengths"].astype(np.int64), np.cumsum(arrays["counts"])[:-1])
        tones = np.split(arrays["tones"], np.cumsum(arrays["tone_lengths"])[:-1])
        rows = zip(facts["utterances"], sounds, lengths, arrays["begins"], strict=True)
        found = [
            Utterance(name, voice, split, text, phones, np.cumsum(parts), int(begin), sound.tobytes())
            for (name, voice, split, text, phones), sound, parts, begin in rows
        ]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"the prepared speech lacks something or does not fit together: {one_line(error)}") from error
    return Prepared(found, tones)


# ------------------------------------------------------------------------------------------------------ on a device


def mels_of(utterances: Sequence[Utterance], device: torch.device | str) -> list[torch.Tensor]:
    """Log mels (T, 80) float32 on a device of the utterances' used parts.

    They are made on the CPU, a thread an utterance: a GPU would round the resampler's products to ten bits.
    """
    bank = front.filter_bank()

    def made(one: Utterance) -> torch.Tensor:
        return front.log_mel(front.resample(torch.from_numpy(one.wave()), RATE), bank).T.contiguous()

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return [mel.to(device) for mel in pool.map(made, utterances)]
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Batch:
    """Crops of fixed shape, on the device. R rows, F frames of a crop, L symbols (padded to a fixed number).

    ids (R, L) int64, 0 beyond a text's end; counts (R,) symbols. mel (R, F, 80) float32, normalised, 0 beyond the
    end; frames (R,) valid ones; owner (R, F) int64: the symbol that each frame is of. lengths (R, L) int64: frames of
    each symbol of the whole sentence. voice (R,) int64. height (R,) float32: the sentence's average pitch against its
    voice's, in semitones. finals (R, W, 2) int64: first and end symbol of each
    phrase-final word, 0 and 0 for none. tones (R, W, S) float32: its pitch in Hz; tone_lengths (R, W).
    rows (R,) int64: which utterance. begin (R,): the crop's first frame.
    """

    ids: torch.Tensor
    counts: torch.Tensor
    mel: torch.Tensor
    frames: torch.Tensor
    owner: torch.Tensor
    lengths: torch.Tensor
    voice: torch.Tensor
    height: torch.Tensor
    finals: torch.Tensor
    tones: torch.Tensor
    tone_lengths: torch.Tensor
    rows: torch.Tensor
    begin: torch.Tensor


@dataclass(frozen=True)
class Corpus:
    """A split as flat tensors on one device.

    mels (sum of T, 80) float16, normalised by MEL_MEAN and MEL_DEVIATION; owner (sum of T,) int16: symbol of each
    frame within its utterance; ids, lengths (sum of P,): symbols, and frames of each; first_frame, frames,
    first_symbol, counts, voice (U,) int64; height (U,). finals (U, W, 2), tones (U, W, S), tone_lengths
    (U, W): see ``Batch``.
    voices: names of the voice ids. sizes (U, 2): symbols and frames once more, where they can be looked at.
    """

    mels: torch.Tensor
    owner: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    first_frame: torch.Tensor
    frames: torch.Tensor
    first_symbol: torch.Tensor
    counts: torch.Tensor
    voice: torch.Tensor
    height: torch.Tensor
    finals: torch.Tensor
    tones: torch.Tensor
    tone_lengths: torch.Tensor
    voices: tuple[str, ...]
    sizes: np.ndarray

    @classmethod
    def of(
        cls, source: Prepared, split: str, device: torch.device | str, *, voices: Sequence[str] = (), tone: int = 64
    ) -> Corpus:
        """The utterances of a split. voices: names in the order of their ids; none: those of the train split, sorted.

        Utterances of other voices are left out. tone: frames of a word's pitch that are kept, its last ones.
        Raises UserError when nothing is left.
        """
        names = tuple(voices) or tuple(sorted({one.voice for one in source.utterances if one.split == "train"}))
        pairs = [
            (one, np.asarray(hertz, np.float32))
            for one, hertz in zip(source.utterances, source.tones, strict=True)
            if one.split == split and one.voice in names
        ]
        if not pairs:
            raise UserError(f"there is no speech of the split {split!r} in the data")
        mels = mels_of([one for one, _ in pairs], device)
        ends = [one.frame_ends(len(mel)) for (one, _), mel in zip(pairs, mels, strict=True)]
        lengths = [np.diff(one, prepend=0) for one in ends]
        owners = [np.repeat(np.arange(len(one)), one) for one in lengths]
        numbers = [ids(one.phones) for one, _ in pairs]
        words = [_finals(n, e, hertz, tone) for n, e, (_, hertz) in zip(numbers, ends, pairs, strict=True)]
        frames = np.array([len(mel) for mel in mels])
        counts = np.array([len(one) for one in numbers])

        def put(array: Any, kind: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.as_tensor(np.asarray(array)).to(kind).to(device)

        flat = front.normalise(torch.cat(mels), MEL_MEAN, MEL_DEVIATION).half()
        return cls(
            mels=flat,
            owner=put(np.concatenate(owners), torch.int16),
            ids=put(np.concatenate(numbers)),
            lengths=put(np.concatenate(lengths)),
            first_frame=put(np.cumsum(frames) - frames),
            frames=put(frames),
            first_symbol=put(np.cumsum(counts) - counts),
            counts=put(counts),
            voice=put([names.index(one.voice) for one, _ in pairs]),
            height=put(_heights([hertz for _, hertz in pairs], [one.voice for one, _ in pairs]), torch.float32),
            finals=put(np.stack([one[0] for one in words])),
            tones=put(np.stack([one[1] for one in words]), torch.float32),
            tone_lengths=put(np.stack([one[2] for one in words])),
            voices=names,
            sizes=np.stack([counts, frames], 1),
        )

    @property
    def longest(self) -> int:
        """Symbols of the longest text."""
        return int(self.sizes[:, 0].max())

    def buckets(self, limits: Iterable[int]) -> tuple[list[torch.Tensor], np.ndarray]:
        """The utterances by the length of their text: for each limit the odds (U,) float32 of those that fit it and no
        smaller one, as likely as they have frames, and each bucket's share of all frames. The last limit must hold all.
        """
        odds, shares, low = [], [], 0
        for high in limits:
            inside = (self.counts > low) & (self.counts <= high)
            odds.append(torch.where(inside, self.frames, 0).float())
            shares.append(self.sizes[(self.sizes[:, 0] > low) & (self.sizes[:, 0] <= high), 1].sum())
            low = high
        return odds, np.array(shares) / np.sum(shares)

    def crops(
        self, dice: Any, rows: int, frames: int, *, odds: torch.Tensor | None = None, symbols: int | None = None
    ) -> Batch:
        """``rows`` crops of ``frames`` frames, drawn by ``dice`` (``longtake.train.Dice``), with their whole texts.

        odds (U,): how likely each utterance is; None: as it has frames. symbols: L of the batch; None: ``longest``.
        """
        odds = self.frames.float() if odds is None else odds
        picked = dice.pick(odds, rows)
        begin = dice.below((self.frames[picked] - frames).clamp_min(0) + 1)
        return self.cut(picked, begin, frames, symbols or self.longest)

    def cut(self, picked: torch.Tensor, begin: torch.Tensor, frames: int, symbols: int) -> Batch:
        """The crops of ``frames`` frames of utterances (R,) from their frames ``begin`` (R,) on."""
        steps = torch.arange(frames, device=picked.device)
        here = (begin[:, None] + steps) < self.frames[picked][:, None]
        place = (self.first_frame[picked] + begin)[:, None] + steps
        place = torch.where(here, place, 0)
        steps = torch.arange(symbols, device=picked.device)
        told = steps < self.counts[picked][:, None]
        letter = torch.where(told, self.first_symbol[picked][:, None] + steps, 0)
        return Batch(
            ids=torch.where(told, self.ids[letter], 0),
            counts=self.counts[picked],
            mel=torch.where(here[..., None], self.mels[place], 0).float(),
            frames=(self.frames[picked] - begin).clamp_max(frames),
            owner=torch.where(here, self.owner[place].long(), 0),
            lengths=torch.where(told, self.lengths[letter], 0),
            voice=self.voice[picked],
            height=self.height[picked],
            finals=self.finals[picked],
            tones=self.tones[picked],
            tone_lengths=self.tone_lengths[picked],
            rows=picked,
            begin=begin,
        )


def _heights(tones: Sequence[np.ndarray], voices: Sequence[str]) -> np.ndarray:
    """Average pitch (U,) of sentences in semitones against the mean of their voice's, 0 where there is no pitch."""
    notes = [12 * float(np.log2(one[one > 0]).mean()) if (one > 0).any() else np.nan for one in tones]
    table: dict[str, list[float]] = {}
    for note, voice in zip(notes, voices, strict=True):
        table.setdefault(voice, []).append(note)
    means = {voice: float(np.nanmean(found)) if np.isfinite(found).any() else 0.0 for voice, found in table.items()}
    return np.array([np.nan_to_num(note - means[voice]) for note, voice in zip(notes, voices, strict=True)])


def _finals(
    numbers: list[int], ends: np.ndarray, hertz: np.ndarray, tone: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans (W, 2) of the phrase-final words of a row of ids, their pitch (W, tone) and its lengths (W,)."""
    spans, tones, lengths = np.zeros((FINALS, 2), np.int64), np.zeros((FINALS, tone)), np.zeros(FINALS, np.int64)
    for place, (start, stop) in enumerate(last_words(numbers)[-FINALS:]):
        spans[place] = start, stop
        part = hertz[ends[start - 1] if start else 0 : ends[stop - 1]][-tone:]
        tones[place, : len(part)] = part
        lengths[place] = len(part)
    return spans, tones, lengths
