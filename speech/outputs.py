"""SpeechOutput: sound, the time of every word, chapters; the suffix of a name chooses the kind of file.

    output.save("take.flac")
    output.save("take.srt")
    output.preview("take.png")

The sound of a long take stays on the disk and streams into each file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.journal import atomic_path
from longtake.media import check_output
from longtake.outputs import FileKind, Output
from longtake.reading import read_json_object, read_text
from longtake.speech.longform.loudness import Meter
from longtake.speech.longform.pieces import Piece, Word, joined
from longtake.speech.longform.subtitles import ffmetadata, srt, vtt, words_json
from longtake.speech.longform.writer import FORMATS, AudioWriter, check_sound
from longtake.speech.text.script import written

SHOWN_S = 20.0  # of the picture's mel and pitch


@dataclass
class SpeechOutput(Output):
    """A take.

    pieces: gives its pieces, as often as asked. rate: samples a second. length: samples. words: with marks, times in
    samples of the take. chapters: (title, first sample). loudness: LUFS to bring files to, None leaves it.
    again(sentence, times): the take with that sentence (from 1) made anew, otherwise for each number of times.
    """

    pieces: Callable[[], Iterator[Piece]]
    rate: int
    length: int
    words: list[Word]
    chapters: list[tuple[str, int]]
    meter: Meter
    loudness: float | None = None
    title: str | None = None
    again: Callable[[int, int], SpeechOutput] | None = field(default=None, repr=False)
    _samples: np.ndarray | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(
        cls,
        pieces: Callable[[], Iterator[Piece]],
        rate: int,
        *,
        loudness: float | None = None,
        title: str | None = None,
    ) -> SpeechOutput:
        """A take of pieces, which are gone through once for the times and the loudness. Raises UserError for none."""
        words: list[Word] = []
        chapters: list[tuple[str, int]] = []
        exact = True

        def place(piece: Piece, start: int) -> None:
            nonlocal exact
            exact = exact and piece.exact
            words.extend(Word(w.text, w.start + start, w.end + start, w.sentence, w.mark) for w in piece.words)
            if piece.title is not None:
                chapters.append((piece.title, max(0, start + piece.lead - round(0.2 * rate)) if chapters else 0))

        meter, length = Meter(rate), 0
        for block in joined(pieces(), rate, place):
            meter.add(block)
            length += len(block)
        if not length:
            raise UserError("there is no sound yet: the run was ended before its first sentence")
        info: dict[str, Any] = {"seconds": length / rate, "words": sum(not word.mark for word in words)}
        info["times"] = "made" if exact else "shared out"
        if math.isfinite(meter.integrated()):
            info["lufs"] = round(meter.integrated(), 2)
        return cls(pieces, rate, length, words, chapters, meter, loudness, title, info=info)

    @property
    def gain(self) -> float:
        """The factor that files are written with."""
        return 1.0 if self.loudness is None else self.meter.gain(self.loudness)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.length / self.rate

    @property
    def samples(self) -> np.ndarray:
        """The whole sound (N,) float32, at the loudness asked for, in memory."""
        if self._samples is None:
            self._samples = np.concatenate(list(self.blocks()))
        return self._samples

    def blocks(self) -> Iterator[np.ndarray]:
        """The sound in blocks float32, at the loudness asked for."""
        gain = np.float32(self.gain)
        for block in joined(self.pieces(), self.rate):
            yield block if gain == 1 else block * gain

    def sentences(self) -> list[tuple[int, str, float, float]]:
        """(number, text, start, end) of each sentence, in seconds."""
        found: dict[int, list[Word]] = {}
        for word in self.words:
            if not word.mark:
                found.setdefault(word.sentence, []).append(word)
        return [
            (number, written(word.text for word in words), words[0].start / self.rate, words[-1].end / self.rate)
            for number, words in found.items()
        ]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one file. Raises UserError.

        .wav, .flac, .ogg, .opus, .mp3: the sound. .srt, .vtt: subtitles. .json: words, marks and chapters with times.
        .chapters: chapters as ffmpeg reads them.
        """
        path = check_output(path, tuple(FILES), overwrite)
        kind_of(path).write(self, path)
        return path

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write .png: the waveform of the whole; mel and pitch of its first 20 s, with words and pauses."""
        from longtake.speech.picture import draw

        path = check_output(path, (".png",), overwrite)
        draw(self, path)
        return path

    def write_sound(self, path: Path) -> None:
        """Write a sound file, block by block."""
        with AudioWriter(path, self.rate, gain=self.gain, samples=self.length) as file:
            for block in joined(self.pieces(), self.rate):
                file.write(block)
        if file.clipped:
            told = self.info.setdefault("told", [])
            told.append(f"{path.name}: {file.clipped} samples were louder than a file can hold and were cut")

    def write_text(self, path: Path) -> None:
        """Write subtitles, times or chapters."""
        name = path.name.lower()
        if name.endswith(".srt"):
            text = srt(self.words, self.rate)
        elif name.endswith(".vtt"):
            text = vtt(self.words, self.rate)
        elif name.endswith(".json"):
            kept = {key: self.info[key] for key in ("seed", "prior", "voice", "lufs", "times") if key in self.info}
            text = words_json(self.words, self.rate, self.length, self.chapters, title=self.title, **kept)
        else:
            chapters = self.chapters or [(self.title or "Take", 0)]
            text = ffmetadata(chapters, self.rate, self.length, self.title)
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")


def _whole_subtitles(path: Path) -> None:
    text = read_text(path)
    if "-->" not in text or not text.endswith("\n"):
        raise UserError(f"{path} holds no subtitles, or is cut off")


def _whole_times(path: Path) -> None:
    if "words" not in read_json_object(path):
        raise UserError(f"{path} holds no times of words")


def _whole_chapters(path: Path) -> None:
    text = read_text(path)
    if not text.startswith(";FFMETADATA1") or not text.endswith("\n"):
        raise UserError(f"{path} holds no chapters, or is cut off")


_SOUND = FileKind(lambda output, path: output.write_sound(path), check_sound)


def _text(whole: Callable[[Path], None]) -> FileKind:
    return FileKind(lambda output, path: output.write_text(path), whole)


FILES: dict[str, FileKind] = {
    **{suffix: _SOUND for suffix in FORMATS},
    ".srt": _text(_whole_subtitles),
    ".vtt": _text(_whole_subtitles),
    ".json": _text(_whole_times),
    ".chapters": _text(_whole_chapters),
}


def kind_of(path: Path) -> FileKind:
    """The kind of file that a name stands for. Raises UserError."""
    name = path.name.lower()
    fits = [suffix for suffix in FILES if name.endswith(suffix) and name != suffix]
    if not fits:
        raise UserError(f"cannot write {path}: allowed are {', '.join(FILES)}")
    return FILES[max(fits, key=len)]


def index_of(output: SpeechOutput) -> str:
    """What `redo` reads of a finished take: its sentences, as JSON."""
    rows = [{"number": n, "text": text, "start": a, "end": b} for n, text, a, b in output.sentences()]
    return json.dumps({"sentences": rows}, ensure_ascii=False, indent=1) + "\n"
