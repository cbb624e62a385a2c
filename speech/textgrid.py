"""Alignments by other tools: a folder of sound files with TextGrids, as the Montreal Forced Aligner writes them.

    CORPUS/<voice>/<name>.wav (.flac, .ogg) and CORPUS/<voice>/<name>.TextGrid
    longtake train speech --data CORPUS

Praat's TextGrid, the long and the short text form, UTF-8 or UTF-16. Two interval tiers are read: the words, and the
phones in ARPAbet (MFA's english_us_arpa, stress as a digit) or in IPA of the 178 symbols. A silence of 125 ms or more
between two words becomes a break; TextGrids have no punctuation, so every text ends in a full stop.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from longtake.errors import UserError, one_line, shorten
from longtake.speech.data import LEAD, PAUSE, RATE, TAIL, UNIT, Utterance
from longtake.speech.text.symbols import BREAK_MARK, ID

SOUNDS = (".wav", ".flac", ".ogg")
SILENT = frozenset({"", "sil", "sp", "spn", "<eps>", "silence", "pau"})
EVERY = 20  # one utterance in so many of a voice is held out
ARPABET = {
    "AA": "ɑː", "AE": "æ", "AH": "ʌ", "AO": "ɔː", "AW": "aʊ", "AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð",
    "EH": "ɛ", "ER": "ɜː", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "iː", "JH": "dʒ", "K": "k",
    "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t",
    "TH": "θ", "UH": "ʊ", "UW": "uː", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
WEAK = {"AH": "ə", "ER": "ɚ", "IY": "i"}  # without stress
STRESS = {"0": "", "1": "ˈ", "2": "ˌ"}


@dataclass(frozen=True)
class Interval:
    """A stretch of a tier: seconds, and what stands in it."""

    start: float
    end: float
    text: str


def read_textgrid(path: Path) -> dict[str, list[Interval]]:
    """The interval tiers of a file by name. Raises UserError for what is no TextGrid, or a damaged one."""
    raw = path.read_bytes()
    coding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(coding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no TextGrid: {one_line(error)}") from error
    if "ooTextFile" not in text[:200] or '"TextGrid"' not in text[:400]:
        raise UserError(f"{path} is no TextGrid: it must begin with ooTextFile and TextGrid")
    # both forms hold the same values in the same order: strings in quotes, numbers, flags; the long one names them
    body = text[text.index('"TextGrid"') + 10 :]
    found = re.findall(r'"((?:[^"]|"")*)"|(?<![\w\[<.-])(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)(?![\w\]>])', body)
    values = iter([one if not number else float(number) for one, number in found])
    try:
        next(values), next(values)
        tiers: dict[str, list[Interval]] = {}
        for _ in range(int(_number(next(values)))):
            kind, name = str(next(values)), str(next(values))
            next(values), next(values)
            rows = []
            for _ in range(int(_number(next(values)))):
                start = _number(next(values))
                end = start if kind == "TextTier" else _number(next(values))
                rows.append(Interval(start, end, str(next(values)).replace('""', '"').strip()))
            if kind == "IntervalTier":
                tiers[name.strip().lower()] = rows
    except (StopIteration, ValueError) as error:
        raise UserError(f"{path} is a damaged TextGrid: it ends, or holds something else, in the middle") from error
    return tiers


def _number(value: float | str) -> float:
    if isinstance(value, str):
        raise ValueError(value)
    return value


def symbols_of(phone: str, where: str = "") -> str:
    """Symbols of a phone in ARPAbet or IPA, its stress before it. Raises UserError for a phone that is neither."""
    body = phone.rstrip("012")
    if body in ARPABET:
        stress = phone[len(body) :]
        sound = WEAK.get(body, ARPABET[body]) if stress == "0" else ARPABET[body]
        return STRESS.get(stress, "") + sound
    if phone and all(symbol in ID for symbol in phone) and not phone.isupper():
        return phone
    raise UserError(f"{where}the phone {shorten(repr(phone))} is neither ARPAbet nor IPA of the 178 symbols")


def _tier(tiers: dict[str, list[Interval]], name: str, path: Path) -> list[Interval]:
    for key, rows in tiers.items():
        if key == name or key.endswith(f" - {name}"):
            return rows
    raise UserError(f"{path} has no tier {name!r}; its interval tiers are {', '.join(tiers) or 'none'}")


def labels(path: Path, seconds: float) -> tuple[str, np.ndarray, int, str]:
    """(symbols with breaks, sample at 24 kHz at which each ends, the first sample used, text) of a TextGrid of a sound
    so long: symbols as the corpora have them. Raises UserError for one without words, or longer than its sound."""
    tiers = read_textgrid(path)
    words = [one for one in _tier(tiers, "words", path) if one.text.lower() not in SILENT]
    phones = [one for one in _tier(tiers, "phones", path) if one.text.lower() not in SILENT]
    if not words or not phones:
        raise UserError(f"{path} has no words, or no phones")
    if words[-1].end > seconds + 0.05:
        raise UserError(f"{path} goes on to {words[-1].end:.2f} s; its sound has {seconds:.2f} s")
    begin = max(0, round(words[0].start * RATE) - LEAD)
    row, ends = " ", [round(words[0].start * RATE) - begin]
    for number, word in enumerate(words):
        inside = [one for one in phones if word.start - 1e-4 <= (one.start + one.end) / 2 < word.end + 1e-4]
        if not inside:
            raise UserError(f"{path}: the word {word.text!r} at {word.start:.2f} s has no phones")
        for phone in inside:
            signs = symbols_of(phone.text, f"{path}: ")
            start, stop = max(round(phone.start * RATE) - begin, ends[-1]), round(phone.end * RATE) - begin
            row += signs
            ends += [start + (stop - start) * (part + 1) // len(signs) for part in range(len(signs))]
        if number + 1 == len(words):
            break
        after = round(words[number + 1].start * RATE) - begin
        if after - ends[-1] >= PAUSE:
            row += f" {BREAK_MARK} "
            ends += [ends[-1] + UNIT, after - UNIT, after]
        else:
            row += " "
            ends.append(max(after, ends[-1] + 1))
    stop = max(min(round(seconds * RATE) - begin, ends[-1] + TAIL), ends[-1] + 3)
    step = min(UNIT, (stop - ends[-1]) // 3)
    row += f". {BREAK_MARK}"
    ends += [ends[-1] + step, ends[-1] + 2 * step, stop]
    return row, np.maximum.accumulate(np.array(ends, np.int64)), begin, " ".join(word.text for word in words) + "."


def load_folder(folder: Path) -> list[Utterance]:
    """The utterances of a folder of voices, one in twenty of each voice held out (the twentieth, fortieth, ...).

    Raises UserError for a TextGrid without a sound beside it, and as ``labels`` does.
    """
    found = []
    for voice in sorted(path for path in folder.iterdir() if path.is_dir()):
        for number, path in enumerate(sorted(voice.glob("*.TextGrid")), 1):
            found.append(_utterance(path, voice.name, "val" if number % EVERY == 0 else "train"))
    return found


def _utterance(path: Path, voice: str, split: str) -> Utterance:
    import soundfile
    import torch
    from longtake.speech.mel import resample

    sounds = [path.with_suffix(suffix) for suffix in SOUNDS if path.with_suffix(suffix).is_file()]
    if not sounds:
        raise UserError(f"{path} has no sound beside it: {path.stem} with one of {', '.join(SOUNDS)}")
    try:
        wave, rate = soundfile.read(sounds[0], dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{sounds[0]} is no sound that can be read: {one_line(error)}") from error
    mono = torch.from_numpy(np.ascontiguousarray(wave.mean(1)))
    mono = mono if rate == RATE else resample(mono, rate, RATE)
    row, ends, begin, text = labels(path, len(mono) / RATE)
    ends[-1] = min(int(ends[-1]), len(mono) - begin)
    file = io.BytesIO()
    soundfile.write(file, mono.numpy(), RATE, format="FLAC")
    return Utterance(f"{voice}/{path.stem}", voice, split, text, row, ends, begin, file.getvalue())


def has_textgrids(folder: Path) -> bool:
    """Whether a folder is one that ``load_folder`` reads."""
    return folder.is_dir() and next(folder.glob("*/*.TextGrid"), None) is not None
