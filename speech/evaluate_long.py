"""A long take judged by minute: words, voice, and whether the times of the words still fit at its end.

The text is the held-out sentences again and again, shuffled anew each time, so that every few minutes hold the same
words and a slope is the voice's, not the text's. It is made by the long-form engine as a user's book is, streamed, and
each minute is judged when it is there; the table is written after each, so a run may be stopped at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.evaluation import finite
from longtake.journal import atomic_path

if TYPE_CHECKING:
    from longtake.speech.backends.own import OwnVoice
    from longtake.speech.evaluate import Judges

ONSET_DB = 30.0  # under a minute's loud parts: a word has begun
REACH_S = 0.25  # around the time of a word, where its sound may begin
BLOCK_S = 0.005


@dataclass(frozen=True)
class Minute:
    """minute: from 1. words: told. wer: share of them wrong; similarity: to recordings of the voice; offset, worst:
    median and largest absolute distance, in seconds, of the sentences' beginnings in the subtitles from those in the
    sound; work: seconds that it took to make, of which there are ``seconds`` of sound."""

    minute: int
    words: int
    wer: float
    similarity: float
    offset: float
    worst: float
    work: float
    seconds: float


def text_of(sentences: Sequence[str], seed: int = 0) -> Iterator[str]:
    """The sentences in passes without end, each in an order of its own."""
    rng = np.random.default_rng(seed)
    while True:
        for place in rng.permutation(len(sentences)):
            yield sentences[place] + " "


def onset_gaps(wave: np.ndarray, rate: int, starts: Sequence[int]) -> list[float]:
    """Seconds from where each sentence should begin, in samples of a wave, to where the sound does; those whose
    surroundings are never quiet are left out."""
    block = round(BLOCK_S * rate)
    count = len(wave) // block
    level = 10 * np.log10(np.square(wave[: count * block].reshape(count, block), dtype=np.float64).mean(1) + 1e-12)
    loud = level > np.percentile(level, 90) - ONSET_DB
    reach, found = round(REACH_S / BLOCK_S), []
    for start in starts:
        place = start // block
        around = np.arange(max(1, place - reach), min(count, place + reach))
        begins = around[loud[around] & ~loud[around - 1]]
        if len(begins):
            nearest = begins[np.abs(begins - place).argmin()]
            found.append(float(nearest * block - start) / rate)
    return found


def slope(values: Sequence[float]) -> float:
    """How much a line through values by minute rises from the first to the last; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), values, 1)[0] * (len(values) - 1))


def judged(
    voice: OwnVoice,
    judges: Judges,
    speaker: str,
    minutes: float,
    sentences: Sequence[str],
    out: Path,
    *,
    seconds: float = 60.0,
) -> dict[str, Any]:
    """Make and judge a take of so many minutes; ``out``/long.json has a row a minute. seconds: that a minute has.
    Raises UserError as voices do."""
    from longtake.speech.longform.pieces import Joiner
    from longtake.speech.pipeline import LongSpeechPipeline, Reading

    form = LongSpeechPipeline(voice).form(Reading("", voice=speaker))
    rows: list[Minute] = []
    sounds: list[np.ndarray] = []
    placed: list[tuple[int, int]] = []  # (sentence, first sample) of this minute's
    rate, begun, started = voice.rate, 0, time.perf_counter()
    texts: dict[int, list[str]] = {}

    def place(piece: Any, start: int) -> None:
        for word in piece.words:
            if word.mark:
                continue
            if word.sentence not in texts:
                placed.append((word.sentence, word.start + start))
            texts.setdefault(word.sentence, []).append(word.text)

    joiner = Joiner(rate, place)
    for piece in form.pieces(text_of(sentences), 0):
        sounds.append(joiner.add(piece))
        if joiner.length - begun < seconds * rate:
            continue
        wave = np.concatenate(sounds)
        work = time.perf_counter() - started
        told = " ".join(" ".join(texts[number]) for number, _ in placed)
        # the sound of the last piece's pause comes with the next one: a sentence may begin beyond this minute's samples
        gaps = np.abs(onset_gaps(wave, rate, [start - begun for _, start in placed if start - begun < len(wave)]))
        from longtake.speech.judges import word_error_rate
        from longtake.speech.judges import words as compared

        rows.append(
            Minute(
                len(rows) + 1,
                len(compared(told)),
                word_error_rate([(judges.listener(wave, rate), told)]),
                judges.acquaintance.alike(wave, rate, judges.voice(speaker)),
                float(np.median(gaps)),
                float(gaps.max()),
                work,
                len(wave) / rate,
            )
        )
        print("; ".join(f"{key} {value:.4g}" for key, value in asdict(rows[-1]).items()), flush=True)
        write(rows, out)
        sounds, placed, begun, started = [], [], joiner.length, time.perf_counter()
        if len(rows) >= minutes:
            break
    return summary(rows)


def summary(rows: Sequence[Minute]) -> dict[str, Any]:
    """The take in a few figures: means, slopes over the whole of it, and the offset of subtitles at both ends."""
    if not rows:
        return {"minutes": 0}
    count = np.array([row.words for row in rows])
    wers = [row.wer for row in rows]
    return {
        "minutes": len(rows),
        "wer": float(np.average(wers, weights=count)),
        "wer_slope": slope(wers),
        "similarity": float(np.mean([row.similarity for row in rows])),
        "similarity_slope": slope([row.similarity for row in rows]),
        "offset_first": rows[0].offset,
        "offset_last": rows[-1].offset,
        "worst_last": rows[-1].worst,
        "rtf": sum(row.work for row in rows) / sum(row.seconds for row in rows),
    }


def write(rows: Sequence[Minute], out: Path) -> Path:
    """``out``/long.json."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "long.json"
    facts = {"summary": summary(rows), "minutes": [asdict(row) for row in rows]}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps({key: finite(value) for key, value in facts.items()}, indent=1) + "\n")
    return path
