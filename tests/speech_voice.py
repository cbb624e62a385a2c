"""A voice for tests: each symbol a short tone of its own, spaces and punctuation silent, every time known."""

from collections.abc import Mapping

import numpy as np
from longtake.speech.backends.voice import Abilities, Said, State, Utterance
from longtake.speech.text.symbols import ID

RATE = 8000
SYMBOL, EDGE, STOP = 240, 640, 400  # samples of a symbol, of the silence at the ends, of punctuation


class Toy:
    """Its level drifts: by chance from chunk to chunk, or, carried, onwards from where it was."""

    rate = RATE
    symbol_seconds = SYMBOL / RATE
    mark = "toy"

    def __init__(self, speakers: tuple[str, ...] = ("low", "high"), **can: bool) -> None:
        able = {"rate": True, "pitch": True, "within": True, "times": True, "carries": True, "clones": False, **can}
        self.abilities = Abilities(speakers, accents={}, **able)
        self.said: list[str] = []
        self.calls = 0

    def say(self, asked: Utterance, state: State | None = None) -> Said:
        self.calls += 1
        draw = np.random.default_rng(asked.seed)
        level = 0.3 + 0.2 * draw.random() if state is None else float(state["level"][0]) + 0.02 * draw.random() - 0.01
        base = 400.0 if asked.speaker == "high" else 200.0
        parts, words, at = [np.zeros(EDGE)], [], EDGE
        for unit, rate, pitch in zip(asked.units, asked.rates(), asked.pitches(), strict=True):
            self.said.append(unit.phones)
            tones = [self._tone(symbol, base * 2 ** (pitch / 12), round(SYMBOL / rate)) for symbol in unit.phones]
            sound = np.concatenate(tones) * level
            words.append((at, at + len(sound)))
            gap = np.zeros(round((STOP if unit.after else SYMBOL // 2) / rate))
            parts += [sound, gap]
            at += len(sound) + len(gap)
        parts.append(1e-4 * draw.standard_normal(EDGE))
        made: Mapping[str, np.ndarray] = {"level": np.array([level])}
        return Said(np.concatenate(parts).astype(np.float32), words, made)

    @staticmethod
    def _tone(symbol: str, base: float, length: int) -> np.ndarray:
        if symbol == " ":
            return np.zeros(length)
        time = np.arange(length) / RATE
        return np.sin(2 * np.pi * base * (1 + ID[symbol] / 100) * time) * np.hanning(length)
