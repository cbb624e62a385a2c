"""WatchPipeline: ask a film, get the moments.

pipe = WatchPipeline.from_prior()
answer = pipe("dog.mp4", "when does the dog appear?")
answer.moments[0].start                                      # seconds
answer.preview("moments.png")                                # likeness over time, pictures, where in them
pipe("dog.mp4", "what does it chase?", model="models/llava").words
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from longtake.cache import cache_folder
from longtake.errors import UserError
from longtake.video.watch.answer import Answer
from longtake.video.watch.decode import Film
from longtake.video.watch.moments import Line, find_moments, read_subtitles
from longtake.video.watch.picture import SHOWN, spread
from longtake.video.watch.question import caption_of, foreign_share
from longtake.video.watch.tower import Tower, tower_of

if TYPE_CHECKING:
    from longtake.video.watch.index import ClipIndex
    from longtake.video.watch.words import VisionLanguageModel
    from torch import Tensor

DEFAULT_PRIOR = "words-small"
RATE = 2.0  # pictures a second
CLOSE_RATE = 6.0  # pictures a second around the best of a moment
TOKENS, LEAST_TOKENS = 2000, 64  # of the pictures in a language model's prompt; two for each picture
UNSEEN = 0.15  # a best score below this is told as "hardly anything like it"
HEARD_FLOOR, HEARD_TOP = 0.25, 0.75  # likeness of a subtitle to a question: nothing of it, all of it


def index_folder(told: str | os.PathLike[str] | None = None) -> Path:
    """Where indices are kept: the folder that was told, else `watch` of the user's cache."""
    return cache_folder("watch") if told is None else Path(told)


def check_tokens(tokens: int | None, model: object) -> None:
    """Raises UserError for tokens without a model that would read them, and for too few."""
    if tokens is not None and model is None:
        raise UserError(f"tokens ({tokens}) are of a model's prompt: name the model's folder too, or leave them out")
    if tokens is not None and tokens < LEAST_TOKENS:
        raise UserError(f"tokens is at least {LEAST_TOKENS}, two for each picture; given {tokens}")


class WatchPipeline:
    """Finds in a film what a question asks for, with a picture tower (`longtake.video.watch.tower`)."""

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self._models: dict[str, VisionLanguageModel] = {}

    @classmethod
    def from_prior(cls, prior: str | os.PathLike[str] = DEFAULT_PRIOR) -> WatchPipeline:
        """With a shipped tower, or a CLIP or SigLIP of transformers in a local folder. Raises UserError."""
        return cls(tower_of(str(prior)))

    def to(self, device: torch.device | str) -> WatchPipeline:
        """Move the tower, and the language models that were read."""
        self.tower.to(device)
        for model in self._models.values():
            model.to(device)
        return self

    def read_model(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> VisionLanguageModel:
        """The vision-language model of a folder, read once, on the tower's device. Raises UserError."""
        from longtake.video.watch.words import VisionLanguageModel

        key = os.fspath(folder)
        if key not in self._models:
            self._models[key] = VisionLanguageModel.from_folder(key, dtype).to(self.tower.device)
        return self._models[key]

    def __call__(
        self,
        film: str | os.PathLike[str],
        question: str,
        *,
        moments: int = 5,
        rate: float = RATE,
        subtitles: str | os.PathLike[str] | None = None,
        index: str | os.PathLike[str] | None = None,
        model: str | os.PathLike[str] | None = None,
        tokens: int | None = None,
        seed: int = 0,
        on_block: Callable[[int, int], bool] | None = None,
    ) -> Answer:
        """The moments of a film that a question asks for, best first.

        film: a file that FFmpeg reads. moments: how many at most. rate: pictures a second that are looked at.
        subtitles: an .srt or .vtt file, whose lines are found too. index: folder in which the film's index is kept, so
        that the next question is answered at once (default: the user's cache). model: folder of a vision-language model
        of transformers that answers in words from the moments, with ``tokens`` (2000) of their pictures in its prompt.
        seed: taken as every pipeline takes it, and without effect: nothing here is drawn. on_block(done, of): told as
        the film is read; when it asks to stop, what was read is answered from. Raises UserError for a film, a question
        or a model that cannot be used.
        """
        from longtake.video.watch.index import ClipIndex

        check_tokens(tokens, model)
        reader = None if model is None else self.read_model(model)
        if moments < 1:
            raise UserError(f"moments is how many are wanted, 1 at least; given {moments}")
        asked = self.asked(question)
        lines = [] if subtitles is None else read_subtitles(Path(subtitles))
        whole = Film(Path(film))
        found = ClipIndex.of(whole, self.tower, index_folder(index), rate=rate, on_block=on_block)
        told = [*found.notes, *self.warnings(question)]
        scores = self.tower.calibrated(found.scores(self.tower.ask(asked)))
        heard: list[str | None] = [None] * len(found)
        if lines:
            scores, heard = self._with_subtitles(found, scores, lines, asked)
        best = find_moments(found, scores, moments, heard)
        if best and best[0].score < UNSEEN:
            told.append(
                f"hardly anything in the film is like {asked!r}: the best match has a score of {best[0].score:.2f}"
            )
        answer = Answer(
            whole.path.name, question, asked, best, found.seconds, found.spans.mean(1), scores.double().numpy(),
            notes=told, info={"completed": found.complete, "steps": found.blocks, "segments": len(found)},
        )  # fmt: skip
        self._look_closely(whole, answer)
        if reader is None:
            told.append("no language model reads the film here: the answer is the moments and their scores")
        elif not found.complete:
            told.append(f"the film was not read to its end: {reader.name} was not asked")
        else:
            words = reader.answer(whole, question, best, seconds=found.seconds, tokens=tokens or TOKENS)
            told.append(words.read)
            answer.words, answer.model = words.text, reader.name
        answer.info["told"] = [*told, *([] if answer.words is None else [f"answer: {answer.words}"])]
        return answer

    def asked(self, question: str) -> str:
        """What the question asks for, as a caption. Raises UserError for one that the tower cannot read."""
        asked = caption_of(question)
        if self.tower.english and foreign_share(asked) > 0.5:
            raise UserError("this tower reads English: ask in English, or name a multilingual CLIP folder with --prior")
        return asked

    def warnings(self, question: str) -> list[str]:
        """What the user should know of a question, a line each."""
        if self.tower.english and foreign_share(question) > 0:
            return ["the letters of the question that are not Latin are not read"]
        words = len(question.split())
        return [f"the question has {words} words: only about the first 60 are read"] if words > 60 else []

    def _with_subtitles(
        self, index: ClipIndex, scores: Tensor, lines: list[Line], asked: str
    ) -> tuple[Tensor, list[str | None]]:
        """Scores (n,) of the better of what is seen and what is heard in each segment, and what is heard there."""
        from longtake.text import SentenceEncoder

        encoder = SentenceEncoder()
        likeness = encoder.similarity([asked], [line.text for line in lines])[0]
        value = ((likeness - HEARD_FLOOR) / (HEARD_TOP - HEARD_FLOOR)).clamp(0, 1)
        scores = scores.clone()
        heard: list[str | None] = [None] * len(index)
        for line, one in zip(lines, value.tolist(), strict=True):
            meets = np.flatnonzero((index.spans[:, 0] < line.end) & (index.spans[:, 1] > line.start))
            for place in meets:
                if one > scores[place]:
                    scores[place], heard[place] = one, line.text
        return scores, heard

    def _look_closely(self, film: Film, answer: Answer) -> None:
        """The best picture of each of the first moments, and the map of it."""
        maps: list[np.ndarray] = []
        for one in answer.moments[:SHOWN]:
            around = list(film.frames(CLOSE_RATE, start=max(0.0, one.best - 0.5), end=one.best + 0.5))
            if not around:
                break
            place = int(np.argmin([abs(time - one.best) for time, _ in around]))
            answer.pictures.append(around[place][1])
            small = np.stack([_square(frame, self.tower.size) for _, frame in around])
            maps.append(self.tower.map(small, answer.asked)[place].numpy())
        if maps:
            answer.maps = list(spread(np.stack(maps)))


def _square(frame: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
