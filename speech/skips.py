"""Is every phoneme said, and said once? A recogniser of phonemes writes down a sound; what it wrote is aligned with
what was to be said.

The recogniser is the CTC model of the package ``hama`` (Apache-2.0, weights included). It mishears, so single phonemes
prove nothing: a *skip* is a run of at least ``RUN`` neighbouring phonemes that nothing heard stands for, a *repeat* a
run of as many that nothing asked for explains. Vowels count as one kind and neighbouring ones as one, an r after a
vowel as part of it, and consonants of one place cost less to mistake than to lose. Real recordings, judged alike, stand
beside: what is left there is the recogniser's own.

    heard = Phonetician()(wave, rate)
    faults = compare(sounds("maɪ kˈʌp"), heard)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from longtake.evaluation import Table, figure
from longtake.speech import mel as front
from longtake.speech.judges import HEARING, package

RUN = 3
VOWEL = "V"
VOWELS = frozenset("aeiouyæɐɑɒɔəɘɚɛɜɝɞɤɪɨɯʊʉʌøœɵᵻᵿ")
RHOTIC = frozenset("ɚɝ")
TIES = str.maketrans("", "", "͜͡")
KINDS = ("pb", "tdɾʔ", "kgɡ", "fvθðtd", "szθ", "ʃʒČǰsz", "ČǰtdT", "mnŋ", "lɫɹr", "wvhʍ", "jɹ", "h", "ɹr")
ALIKE, OTHER = 0.4, 1.2  # cost of a consonant for another of its kind, and for one of another; a loss costs 1


def sounds(phones: str) -> list[str]:
    """A line of IPA as it is compared: consonants, "V" for each run of vowels; marks, stops and spaces left out."""
    plain = phones.translate(TIES).replace("tʃ", "Č").replace("dʒ", "ǰ").replace("g", "ɡ")
    found: list[str] = []
    for place, letter in enumerate(plain):
        if letter in VOWELS:
            found += [VOWEL] if found[-1:] != [VOWEL] else []
            continue
        if letter in "ɹr":
            after = next((one for one in plain[place + 1 :] if one.isalpha() and one not in "ˈˌː"), "")
            if found[-1:] == [VOWEL] and after not in VOWELS:
                continue  # of a vowel before it, said or not
        if letter.isalpha() and letter not in "ˈˌːˑʰʲʷ¿":
            found.append(letter)
    return found


def _cost(one: str, two: str) -> float:
    if one == two:
        return 0.0
    if VOWEL in (one, two):
        return 2.0
    return ALIKE if any(one in kind and two in kind for kind in KINDS) else OTHER


@dataclass(frozen=True)
class Faults:
    """Of one sentence. told: phonemes asked for. lost, added: those without a counterpart. skips, repeats: lengths of
    the runs of at least ``RUN`` of them."""

    told: int
    lost: int
    added: int
    skips: tuple[int, ...]
    repeats: tuple[int, ...]


def compare(told: Sequence[str], heard: Sequence[str]) -> Faults:
    """Align two rows of sounds at the least cost, and say what of one has no counterpart in the other."""
    table = np.zeros((len(told) + 1, len(heard) + 1))
    table[:, 0], table[0] = np.arange(len(told) + 1), np.arange(len(heard) + 1)
    for row, one in enumerate(told, 1):
        for column, two in enumerate(heard, 1):
            table[row, column] = min(
                table[row - 1, column - 1] + _cost(one, two), table[row - 1, column] + 1, table[row, column - 1] + 1
            )
    row, column, moves = len(told), len(heard), ""
    while row or column:
        ways = {}
        if row and column:
            ways["="] = table[row - 1, column - 1] + _cost(told[row - 1], heard[column - 1])
        if column:
            ways["+"] = table[row, column - 1] + 1
        if row:
            ways["-"] = table[row - 1, column] + 1
        able = [way for way, cost in ways.items() if math.isclose(cost, table[row, column], abs_tol=1e-9)]
        moves += moves[-1] if moves and moves[-1] in able else able[0]  # of equal ways, one of few and long runs
        row, column = row - (moves[-1] != "+"), column - (moves[-1] != "-")
    lost, added = ([len(run) for run in moves.split("=") for run in [run.count(kind) * kind] if run] for kind in "-+")
    return Faults(
        len(told), sum(lost), sum(added), tuple(n for n in lost if n >= RUN), tuple(n for n in added if n >= RUN)
    )


class Phonetician:
    """The recogniser of the package hama: phonemes, on the CPU. Raises UserError where it is not installed."""

    def __init__(self) -> None:
        package("hama", "hama")
        self.model: Any = import_module("hama.asr").ASRModel()

    def __call__(self, wave: np.ndarray, rate: int) -> list[str]:
        """``sounds`` of a wave (N,) float32."""
        import torch

        sound = front.resample(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)), rate, HEARING).numpy()
        return sounds("".join(self.model(sound, HEARING).phonemes))


@dataclass(frozen=True)
class Row:
    """A line of the table, of all sentences together. skipped, repeated: sentences with at least one such run."""

    label: str
    sentences: int
    told: int
    lost: int
    added: int
    skipped: int
    repeated: int


TABLE = Table(
    {
        "phonemes": lambda row: row.label,
        "sentences": lambda row: str(row.sentences),
        "lost %": lambda row: figure(100 * row.lost / max(row.told, 1), 1),
        "added %": lambda row: figure(100 * row.added / max(row.told, 1), 1),
        f"sentences with {RUN} skipped in a row": lambda row: str(row.skipped),
        f"with {RUN} added in a row": lambda row: str(row.repeated),
    }
)


def judged(
    label: str,
    asked: Iterable[tuple[str, Callable[[], tuple[np.ndarray, int]]]],
    listen: Callable[[np.ndarray, int], list[str]],
    show: Callable[[str], None] = print,
) -> Row:
    """The row of sentences, each its phones and what makes its wave; every sentence with a skip or repeat is shown."""
    found = []
    for phones, make in asked:
        wave, rate = make()
        found.append(compare(sounds(phones), listen(wave, rate)))
        if found[-1].skips or found[-1].repeats:
            show(f"{label}, sentence {len(found)}: skipped {found[-1].skips}, repeated {found[-1].repeats}: {phones}")
    return Row(
        label,
        len(found),
        sum(one.told for one in found),
        sum(one.lost for one in found),
        sum(one.added for one in found),
        sum(bool(one.skips) for one in found),
        sum(bool(one.repeats) for one in found),
    )
