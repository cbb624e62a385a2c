"""``longtake evaluate speech``: one table that sets made speech beside real recordings and their copy synthesis.

Held-out sentences of the corpora, whose voices were trained on: word error rate by Whisper, similarity to another
recording of the voice by resemblyzer, length against the real one. Then what can be set by hand and must be heard:
the same words as statement and question, whose pitch must end higher, and a break, which must add 80 ms in its place.

    longtake evaluate speech --data DATA --prior runs/train-speech/prosody/prior
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError
from longtake.evaluation import Table, figure, told_command, write_table

if TYPE_CHECKING:
    from longtake.speech.data import Utterance
    from longtake.speech.judges import Acquaintance, Listener

ADDED_S = 0.08  # that a break must add
REFERENCES = 4  # recordings of a voice that its similarity is measured against


@dataclass(frozen=True)
class Row:
    """A line of the table. wer: share of words wrong; similarity: cosine; length: of made over real; rtf: seconds of
    work a second of sound, NaN where nothing is made."""

    label: str
    sentences: int
    wer: float
    similarity: float
    length: float
    rtf: float


TABLE = Table(
    {
        "speech": lambda row: row.label,
        "sentences": lambda row: str(row.sentences),
        "WER %": lambda row: figure(100 * row.wer, 1),
        "similarity": lambda row: figure(row.similarity, 3),
        "length": lambda row: figure(row.length, 2),
        "RTF": lambda row: figure(row.rtf, 2),
    }
)


class Judges:
    """Both judges, and what they need to know of the real speech."""

    def __init__(self, listener: Listener, acquaintance: Acquaintance, known: Sequence[Utterance]) -> None:
        self.listener, self.acquaintance = listener, acquaintance
        self.known: dict[str, list[Utterance]] = {}
        for one in known:
            self.known.setdefault(one.voice, []).append(one)
        self.voices: dict[str, np.ndarray] = {}

    def voice(self, name: str) -> np.ndarray:
        """The vector of a voice, from some of its training recordings."""
        from longtake.speech.data import RATE

        if name not in self.voices:
            heard = [self.acquaintance.vector(one.wave(), RATE) for one in self.known[name]]
            mean = np.mean(heard, 0)
            self.voices[name] = mean / np.linalg.norm(mean)
        return self.voices[name]

    def row(self, label: str, told: Sequence[Utterance], make: Callable[[Utterance], tuple[np.ndarray, int]]) -> Row:
        """Judge what ``make`` gives, a wave and its rate, for each sentence."""
        from longtake.speech.data import RATE

        texts, alike, made_s, real_s, work = [], [], 0.0, 0.0, 0.0
        for one in told:
            start = time.perf_counter()
            wave, rate = make(one)
            work += time.perf_counter() - start
            made_s += len(wave) / rate
            real_s += one.ends[-1] / RATE
            texts.append((self.listener(wave, rate), one.text))
            alike.append(self.acquaintance.alike(wave, rate, self.voice(one.voice)))
        from longtake.speech.judges import word_error_rate

        rtf = math.nan if label == "real" else work / made_s
        return Row(label, len(told), word_error_rate(texts), float(np.mean(alike)), made_s / real_s, rtf)


def final_rise(wave: np.ndarray, seconds: float = 0.35) -> float:
    """Semitones by which the pitch of a wave (N,) at 22.05 kHz ends above its middle, over its last voiced part; 0
    without voice."""
    import torch
    from longtake.speech.mel import FRAMES_A_SECOND
    from longtake.speech.pitch import contour, track

    hertz = track(torch.from_numpy(wave))
    voiced = np.flatnonzero(hertz > 0)
    if len(voiced) < 10:
        return 0.0
    notes = 12 * np.log2(np.maximum(contour(hertz), 50))
    last = voiced[-1] + 1
    part = notes[max(0, last - round(seconds * FRAMES_A_SECOND)) : last]
    return float(part[-8:].mean() - np.median(notes[voiced]))


def contours(speak: Callable[[str, str], tuple[np.ndarray, list[int]]], told: Sequence[Utterance]) -> float:
    """Share of sentences whose question (`?` at the end) ends higher than their statement (`.`)."""
    right = []
    for one in told:
        body = re.sub(r"[.?!]* ?¿?$", "", one.phones.strip()).strip()
        asked, said = (final_rise(speak(body + mark, one.voice)[0]) for mark in "?.")
        right.append(asked > said)
    return float(np.mean(right))


def slopes(speak: Callable[..., tuple[np.ndarray, list[int]]], told: Sequence[Utterance]) -> float:
    """Share of sentences that end higher when their last word is told to rise than when it is told to fall."""
    right = [
        final_rise(speak(one.phones, one.voice, 4.0)[0]) > final_rise(speak(one.phones, one.voice, -4.0)[0])
        for one in told
    ]
    return float(np.mean(right))


def breaks(speak: Callable[[str, str], tuple[np.ndarray, list[int]]], told: Sequence[Utterance]) -> float:
    """Share of sentences in whose middle a break adds 80 ms or more between its two words."""
    from longtake.speech.mel import FRAMES_A_SECOND
    from longtake.speech.prosody_fm.breaks import marked, words_of

    right = []
    for one in told:
        parts = words_of(one.phones)
        middle = len(parts) // 2 - 1
        if middle < 0 or not parts[middle][-1].isalpha():
            continue
        plain = {place for place, word in enumerate(parts) if word[-1] in ",;:"}
        rows = [marked(" ".join(parts), chosen) for chosen in (plain, plain | {middle})]
        gaps = []
        for row in rows:
            frames = speak(row, one.voice)[1]
            gaps.append(_gap(row, frames, middle) / FRAMES_A_SECOND)
        right.append(gaps[1] - gaps[0] >= ADDED_S)
    return float(np.mean(right)) if right else math.nan


def _gap(row: str, frames: Sequence[int], word: int) -> int:
    """Frames between the end of a word and the start of the next."""
    count, inside, total = -1, False, 0
    for symbol, length in zip(row, frames, strict=True):
        if symbol in " ¿":
            inside = False
            total += length if count == word else 0
        elif not inside:
            count, inside = count + 1, True
    return total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate speech``."""
    parser.add_argument("--data", type=Path, required=True, help="folder with aligned_train.zip and aligned_val.zip")
    parser.add_argument("--prior", type=Path, nargs="*", default=[], help="folders of speech priors of ours")
    parser.add_argument("--vocoder", type=Path, nargs="*", default=[], help="generators (default: the one that ships)")
    parser.add_argument("--sentences", type=int, default=50, help="held-out sentences (default 50)")
    parser.add_argument("--steps", type=int, nargs="*", default=[4], help="of the flow (default 4)")
    parser.add_argument(
        "--temperature", type=float, nargs="*", default=[0.3], help="noise that the flow starts from (default 0.3)"
    )
    parser.add_argument("--controls", type=int, default=20, help="sentences for contours and breaks (0: none)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evaluate-speech"), help="the table, and the judges' cache"
    )


def run(args: argparse.Namespace) -> int:
    """Judge the priors and write the table."""
    from longtake.speech import data, vocoder
    from longtake.speech.judges import Acquaintance, Listener

    if args.sentences < 1:
        raise UserError(f"--sentences must be 1 or more; given {args.sentences}")
    known = data.load_zip(args.data / "aligned_train.zip", "train", REFERENCES)
    voices = {one.voice for one in known}
    told = [one for one in data.load_zip(args.data / "aligned_val.zip", "val") if one.voice in voices]
    told = told[: args.sentences]
    judges = Judges(Listener(args.out), Acquaintance(), known)
    places = [vocoder.find(path) for path in args.vocoder] or [vocoder.find()]
    rows = [judges.row("real", told, lambda one: (one.wave(), data.RATE))]
    for place in places:
        rows.append(judges.row(f"copy synthesis, {place.name}", told, _copier(place)))
        print(TABLE.markdown(rows), flush=True)
    facts: dict[str, Any] = {}
    for prior in args.prior:
        for place in places:
            for steps, heat in product(args.steps, args.temperature):
                speak = _speaker(prior, place, steps, heat)
                label = f"{prior.parent.name}/{prior.name}, {place.name}, {steps} steps, temperature {heat:g}"
                rows.append(judges.row(label, told, _maker(speak)))
                print(TABLE.markdown(rows), flush=True)
        if args.controls:
            some = told[: args.controls]
            speak = _speaker(prior, places[0], args.steps[0], args.temperature[0])
            facts[str(prior)] = {
                "contour_right": contours(speak, some),
                "slope_right": slopes(speak, some),
                "break_heard": breaks(speak, some),
            }
            print(f"{prior}: {facts[str(prior)]}", flush=True)
    table = TABLE.markdown(rows)
    told_facts = {"command": told_command("speech"), "judge": judges.listener.name, "controls": facts}
    write_table(args.out, "speech", table, {**told_facts, "rows": TABLE.json(rows)})
    print(table)
    return 0


def _maker(speak: Callable[[str, str], tuple[np.ndarray, list[int]]]) -> Callable[[Utterance], tuple[np.ndarray, int]]:
    from longtake.speech.mel import RATE

    return lambda one: (speak(one.phones, one.voice)[0], RATE)


def _copier(place: Path) -> Callable[[Utterance], tuple[np.ndarray, int]]:
    """Recordings through mels and a vocoder."""
    import torch
    from longtake.speech import data, mel, vocoder

    net = vocoder.load(place).quicken()

    def make(one: Utterance) -> tuple[np.ndarray, int]:
        with torch.inference_mode():
            return net(data.mels_of([one], "cpu")[0].T[None])[0].numpy(), mel.RATE

    return make


def _speaker(prior: Path, place: Path, steps: int, heat: float) -> Callable[..., tuple[np.ndarray, list[int]]]:
    """(symbols, voice, slope of the last word or None) -> a wave at 22.05 kHz, and frames of each symbol, by a
    ProsodyFM prior."""
    import torch
    from longtake.speech import vocoder
    from longtake.speech.prosody_fm.breaks import words_of
    from longtake.speech.prosody_fm.convert import load
    from longtake.speech.prosody_fm.speak import speak

    model, net = load(prior), vocoder.load(place).quicken()

    def make(phones: str, voice: str, slope: float | None = None) -> tuple[np.ndarray, list[int]]:
        by_hand = None if slope is None else {len(words_of(phones)) - 1: slope}
        said = speak(model, phones, voice=voice, steps=steps, temperature=heat, slopes=by_hand)
        with torch.inference_mode():
            return net(said.mel[None])[0].numpy(), said.frames.tolist()

    return make
