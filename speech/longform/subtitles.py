"""Subtitles, word times and chapters of a take: SRT, WebVTT, JSON, FFMETADATA.

Times come from whole samples of the take, pauses and joins counted, so the last cue of an hour is as right as the
first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longtake.speech.longform.pieces import Word
from longtake.speech.text.script import written

LINE, LINES = 42, 2  # letters of a line, lines of a cue
MOST_S, LEAST_S, GAP_S = 6.0, 0.8, 0.5  # of a cue; a silence that ends one


@dataclass(frozen=True)
class Cue:
    """Some words that are shown together, in seconds."""

    start: float
    end: float
    text: str


def cues(words: Iterable[Word], rate: int) -> Iterator[Cue]:
    """Cues of words: a sentence at most, two lines, 6 s; a new one after half a second of silence."""
    held: list[Word] = []
    for word in words:
        if word.mark:
            continue
        if held:
            text = written(one.text for one in [*held, word])
            full = len(text) > LINE * LINES or (word.end - held[0].start) / rate > MOST_S
            if full or word.sentence != held[-1].sentence or (word.start - held[-1].end) / rate > GAP_S:
                yield _cue(held, rate)
                held = []
        held.append(word)
    if held:
        yield _cue(held, rate)


def _cue(words: Sequence[Word], rate: int) -> Cue:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word.text) > LINE and len(lines) < LINES:
            lines.append("")
        lines[-1] = written([lines[-1], word.text]).strip()
    return Cue(words[0].start / rate, words[-1].end / rate, "\n".join(lines))


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def srt(words: Iterable[Word], rate: int) -> str:
    """SubRip."""
    blocks = (
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(words, rate), 1)
    )
    return "\n".join(blocks)


def vtt(words: Iterable[Word], rate: int) -> str:
    """WebVTT."""
    blocks = []
    for cue in cues(words, rate):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n")
    return "WEBVTT\n\n" + "\n".join(blocks)


def words_json(words: Sequence[Word], rate: int, length: int, chapters: Sequence[tuple[str, int]], **more: Any) -> str:
    """Every word, mark and chapter with its time in seconds; the samples of the whole beside them."""
    rows = [
        {"word": word.text, "start": word.start / rate, "end": word.end / rate, "sentence": word.sentence}
        for word in words
        if not word.mark
    ]
    told = {
        "sample_rate": rate, "samples": length, "seconds": length / rate, **more,
        "words": rows,
        "marks": [{"name": word.text, "time": word.start / rate} for word in words if word.mark],
        "chapters": [{"title": title, "start": start / rate} for title, start in chapters],
    }  # fmt: skip
    return json.dumps(told, ensure_ascii=False, indent=1) + "\n"


def ffmetadata(chapters: Sequence[tuple[str, int]], rate: int, length: int, title: str | None = None) -> str:
    """Chapters as ffmpeg reads them for M4B: ``ffmpeg -i take.wav -i take.chapters -map_metadata 1 take.m4b``."""
    lines = [";FFMETADATA1", *([f"title={_escaped(title)}"] if title else [])]
    ends = [start for _, start in chapters[1:]] + [length]
    for (name, start), end in zip(chapters, ends, strict=True):
        lines += ["[CHAPTER]", f"TIMEBASE=1/{rate}", f"START={start}", f"END={end}", f"title={_escaped(name)}"]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "=;#\\\n" else letter for letter in text)
