"""``longtake evaluate speech``: one table that sets made speech beside real recordings and their copy synthesis.

Held-out sentences of the corpora, whose voices were trained on: word error rate by Whisper, similarity to another
recording of the voice by resemblyzer, length against the real one. The same for sentences of a file, from their
spelling on, by each of the known voices in turn; there is no real one. Then what can be set by hand and must be heard
(``heard.py``): questions, contours, breaks; and whether phonemes are left out or said twice (``skips.py``). Priors of
both kinds, ProsodyFM and VALL-E R, have rows; one that clones is also judged by speakers whom no training had, each
sentence after another recording of its speaker, beside the same sentences in a voice of the prior's own.

    longtake evaluate speech --data DATA --prior runs/train-speech/prosody/prior
    longtake evaluate speech --data DATA --prior speech/priors/prosody-small --sentences 0 --controls 50
    longtake evaluate speech --data DATA --prior speech/priors/prosody-small --sentences 0 --long 30
    longtake evaluate speech --data DATA --prior speech/priors/prosody-small --sentences 0 --controls 0 --texts FILE
    longtake evaluate speech --data DATA --prior speech/priors/prosody-small --sentences 0 --controls 0 --phonemes 1000
    longtake evaluate speech --data DATA --prior speech/priors/valle-small --sentences 0 --controls 0 --clones 54
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError, one_line
from longtake.evaluation import Table, figure, told_command, write_table

if TYPE_CHECKING:
    import torch
    from longtake.speech.backends.own import OwnVoice
    from longtake.speech.backends.voice import Utterance as Asked
    from longtake.speech.data import Utterance
    from longtake.speech.judges import Acquaintance, Listener
    from longtake.speech.pipeline import LongSpeechPipeline

REFERENCES = 4  # recordings of a voice that its similarity is measured against
PROMPT_S = 4.0  # of the recordings that speakers are cloned from the one nearest to it is taken


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

        asked = ((one.text, one.voice, partial(make, one)) for one in told)
        wer, similarity, made_s, work = self._heard(asked)
        length = made_s / sum(one.ends[-1] / RATE for one in told)
        return Row(label, len(told), wer, similarity, length, math.nan if label == "real" else work / made_s)

    def written(
        self, label: str, told: Sequence[str], pipe: LongSpeechPipeline, voices: Sequence[str], steps: int | None
    ) -> Row:
        """Judge how a pipeline reads written sentences, each of ``voices`` in turn."""

        def say(text: str, voice: str, seed: int) -> tuple[np.ndarray, int]:
            said: Any = pipe(text, voice=voice, seed=seed, num_inference_steps=steps)
            return said.samples, said.rate

        turns = zip(told, cycle(voices), range(len(told)), strict=False)
        asked = ((text, voice, partial(say, text, voice, seed)) for text, voice, seed in turns)
        wer, similarity, made_s, work = self._heard(asked)
        return Row(label, len(told), wer, similarity, math.nan, work / made_s)

    def _heard(
        self, asked: Iterable[tuple[str, str, Callable[[], tuple[np.ndarray, int]]]]
    ) -> tuple[float, float, float, float]:
        """Word error rate, mean similarity, seconds of sound and of work, of texts, who says them and what makes it."""
        from longtake.speech.judges import word_error_rate

        texts, alike, made_s, work = [], [], 0.0, 0.0
        for text, voice, make in asked:
            start = time.perf_counter()
            wave, rate = make()
            work += time.perf_counter() - start
            made_s += len(wave) / rate
            texts.append((self.listener(wave, rate), text))
            alike.append(self.acquaintance.alike(wave, rate, self.voice(voice)))
        return word_error_rate(texts), float(np.mean(alike)), made_s, work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate speech``."""
    parser.add_argument("--data", type=Path, required=True, help="folder with aligned_train.zip and aligned_val.zip")
    parser.add_argument("--prior", type=Path, nargs="*", default=[], help="folders of speech priors of ours")
    parser.add_argument("--vocoder", type=Path, nargs="*", default=[], help="generators (default: the one that ships)")
    parser.add_argument("--sentences", type=int, default=50, help="held-out sentences (default 50, 0: none)")
    parser.add_argument("--steps", type=int, nargs="*", default=[4], help="of the flow (default 4)")
    parser.add_argument(
        "--temperature", type=float, nargs="*", default=[], help="noise of the voice (default: as the voice has it)"
    )
    parser.add_argument("--controls", type=int, default=20, help="sentences for contours and breaks (0: none)")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="judge sentences of a file too, one a line")
    parser.add_argument(
        "--phonemes", type=int, default=0, metavar="N", help="sentences in which each phoneme is looked for (default 0)"
    )
    parser.add_argument("--clones", type=int, default=0, metavar="N", help="sentences of human_val.zip, voices cloned")
    parser.add_argument("--long", type=float, default=0, metavar="MINUTES", help="judge a text of so many, by minute")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evaluate-speech"), help="the table, and the judges' cache"
    )


def run(args: argparse.Namespace) -> int:
    """Judge the priors and write the table."""
    from longtake.speech import data, heard, vocoder
    from longtake.speech.judges import Acquaintance, Listener

    for name in ("sentences", "controls", "phonemes", "clones", "long"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must be 0 or more; given {getattr(args, name):g}")
    known = data.load_zip(args.data / "aligned_train.zip", "train", REFERENCES)
    voices = sorted({one.voice for one in known})
    told = [one for one in data.load_zip(args.data / "aligned_val.zip", "val") if one.voice in voices]
    places = [vocoder.find(path) for path in args.vocoder] or [vocoder.find()]
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    texts = sentences_of(args.texts)
    strangers = data.load_zip(args.data / "human_val.zip", "val") if args.clones else []
    listened = args.sentences or args.long or texts or strangers
    judges = Judges(Listener(args.out), Acquaintance(), [*known, *strangers]) if listened else None
    some = told[: args.sentences]
    if judges is not None and some:
        rows.append(judges.row("real", some, _recorded))
        for place in places:
            rows.append(judges.row(f"copy synthesis, {place.name}", some, _copier(place)))
            print(TABLE.markdown(rows), flush=True)
    for prior in args.prior:
        for place in places:
            voice = _voice(prior, place)
            settings = product(_steps(voice, args.steps), args.temperature or [None])
            for steps, heat in settings if some else ():
                assert judges is not None
                heated = "" if heat is None else f", temperature {heat:g}"
                label = f"{prior.parent.name}/{prior.name}, {place.name}{_told(steps)}{heated}"
                rows.append(judges.row(label, some, _maker(voice, steps, heat)))
                print(TABLE.markdown(rows), flush=True)
        for place in places if texts else ():
            from longtake.speech.pipeline import LongSpeechPipeline

            assert judges is not None
            pipe = LongSpeechPipeline.from_prior(prior, vocoder=place)
            read = _voice(prior, place)
            for steps in _steps(read, args.steps):
                label = f"{args.texts.name}: {prior.parent.name}/{prior.name}, {place.name}{_told(steps)}"
                speakers = _both(read, voices)
                rows.append(judges.written(label, texts, pipe, speakers, steps))
                print(TABLE.markdown(rows), flush=True)
        voice = _voice(prior, places[0])
        if strangers and voice.abilities.clones:
            assert judges is not None
            rows += _clones(judges, f"{prior.parent.name}/{prior.name}", voice, strangers, args.clones)
            print(TABLE.markdown(rows), flush=True)
        if args.controls:
            voice.sound = _remembering(voice.sound)  # type: ignore[method-assign, assignment]
            chosen = heard.cases([(one.phones, one.text) for one in told], _both(voice, voices), args.controls)
            found: dict[str, Any] = {**heard.controls(voice.say, chosen), "sentences": len(chosen)}
            facts[str(prior)] = found
            print(f"{prior}: {found}", flush=True)
        if args.long and judges is not None:
            from longtake.speech.evaluate_long import judged

            found = judged(voice, judges, _both(voice, voices)[0], args.long, [one.text for one in told], args.out)
            facts[f"{prior}, long"] = found
    if args.phonemes:
        facts["phonemes"] = _phonemes(args, places[0], voices)
    table = TABLE.markdown(rows) if rows else ""
    heard_by = None if judges is None else judges.listener.name
    told_facts = {"command": told_command("speech"), "judge": heard_by, "controls": facts}
    write_table(args.out, "speech", table, {**told_facts, "rows": TABLE.json(rows)})
    print(table)
    return 0


def _clones(judges: Judges, label: str, voice: OwnVoice, strangers: Sequence[Utterance], count: int) -> Iterator[Row]:
    """Sentences of speakers whom no training had: recorded, in a voice of the prior's own, and cloned from another
    recording."""
    from longtake.speech import data
    from longtake.speech.backends.valle import ValleVoice

    assert isinstance(voice, ValleVoice)
    told = strangers[:: max(1, len(strangers) // count)][:count]
    own = voice.abilities.speakers[0]
    say = _maker(voice, None, None)

    def cloned(one: Utterance) -> tuple[np.ndarray, int]:
        prompt = _prompt(one, strangers)
        voice.clone(data.mels_of([prompt], "cpu")[0].T, prompt.phones)
        return voice.say(_asked(one, None)).samples, voice.rate

    yield judges.row("real", told, _recorded)
    yield judges.row(f"{label}, as {own}", told, lambda one: say(replace(one, voice=own)))
    yield judges.row(f"{label}, cloned", told, cloned)


def _prompt(one: Utterance, strangers: Sequence[Utterance]) -> Utterance:
    """The other recording of a sentence's speaker that is nearest to ``PROMPT_S``. Raises UserError for none."""
    from longtake.speech.data import RATE

    others = [other for other in strangers if other.voice == one.voice and other is not one]
    if not others:
        raise UserError(f"the speaker {one.voice} has one recording: none is left to clone the voice from")
    return min(others, key=lambda other: abs(other.ends[-1] / RATE - PROMPT_S))


def _phonemes(args: argparse.Namespace, place: Path, voices: Sequence[str]) -> list[dict[str, Any]]:
    """Are all phonemes said once? Sentences of the corpora: the recordings, and each prior's, by the voice that comes
    after the recorded one among those of its accent, so that it never read them."""
    from longtake.speech import data, skips

    listen = skips.Phonetician()
    names = ("aligned_val.zip", "aligned_train.zip")
    told = [one for name in names for one in data.load_zip(args.data / name, name) if one.voice in voices]
    told = told[: args.phonemes]
    table = [skips.judged("real", ((one.phones, partial(_recorded, one)) for one in told), listen)]
    for prior in args.prior:
        voice = _voice(prior, place)
        able = _both(voice, voices)
        for steps in _steps(voice, args.steps):
            make = _maker(voice, steps, None)
            asked = ((one.phones, partial(make, replace(one, voice=_next(one.voice, able)))) for one in told)
            label = f"{prior.parent.name}/{prior.name}, {place.name}{_told(steps)}"
            table.append(skips.judged(label, asked, listen))
    print(skips.TABLE.markdown(table), flush=True)
    return skips.TABLE.json(table)


def _steps(voice: OwnVoice, asked: Sequence[int]) -> Sequence[int | None]:
    """The steps that a voice is judged with: VALL-E R takes none."""
    return asked if voice.kind == "ProsodyFM" else [None]


def _told(steps: int | None) -> str:
    """Of a row's label."""
    return "" if steps is None else f", {steps} steps"


def _next(name: str, voices: Sequence[str]) -> str:
    """The voice after ``name`` among those that begin with its letter, the mark of an accent, the first after the
    last."""
    alike = [one for one in voices if one[:1] == name[:1]] or list(voices)
    return min((one for one in alike if one > name), default=alike[0])


def _recorded(one: Utterance) -> tuple[np.ndarray, int]:
    from longtake.speech.data import RATE

    return one.wave(), RATE


def sentences_of(path: Path | None) -> list[str]:
    """The lines of a file that are not empty; none of no file. Raises UserError where there are none."""
    if path is None:
        return []
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {one_line(error)}") from error
    if not found:
        raise UserError(f"{path} has no sentence: one a line")
    return found


def _voice(prior: Path, place: Path) -> OwnVoice:
    from longtake.speech.backends.load import load_voice
    from longtake.speech.backends.own import OwnVoice

    voice = load_voice(prior, place)
    if not isinstance(voice, OwnVoice):
        raise UserError(f"{prior} is a stock voice: the evaluation judges priors of ours")
    return voice


def _remembering(sound: Callable[[torch.Tensor], np.ndarray], most: int = 8) -> Callable[[torch.Tensor], np.ndarray]:
    """A voice's ``sound`` that remembers the last mels: the same sentence with another contour is the same mel."""
    kept: dict[bytes, np.ndarray] = {}

    def made(mel: torch.Tensor) -> np.ndarray:
        key = hashlib.sha256(mel.float().cpu().numpy().tobytes()).digest()
        if key not in kept:
            if len(kept) >= most:
                kept.pop(next(iter(kept)))
            kept[key] = sound(mel)
        return kept[key].copy()

    return made


def _both(voice: OwnVoice, known: Sequence[str]) -> list[str]:
    """The speakers that a voice and the recordings have. Raises UserError where there is none."""
    found = [name for name in known if name in voice.abilities.speakers]
    if not found:
        raise UserError("the prior has none of the voices of the data: it cannot be judged by them")
    return found


def _maker(voice: OwnVoice, steps: int | None, heat: float | None) -> Callable[[Utterance], tuple[np.ndarray, int]]:
    """A sentence of the corpora as a voice says it: its phones, with breaks where the command would put them."""

    def make(one: Utterance) -> tuple[np.ndarray, int]:
        return voice.say(_asked(one, one.voice, steps=steps, temperature=heat)).samples, voice.rate

    return make


def _asked(one: Utterance, speaker: str | None, **told: Any) -> Asked:
    """What a voice is told of a sentence."""
    from longtake.speech.backends.voice import Utterance as Asked
    from longtake.speech.heard import units_of

    return Asked(units_of(one.phones, one.text), speaker=speaker, **told)


def _copier(place: Path) -> Callable[[Utterance], tuple[np.ndarray, int]]:
    """Recordings through mels and a vocoder."""
    import torch
    from longtake.speech import data, mel, vocoder

    net = vocoder.load(place).quicken()

    def make(one: Utterance) -> tuple[np.ndarray, int]:
        with torch.inference_mode():
            return net(data.mels_of([one], "cpu")[0].T[None])[0].numpy(), mel.RATE

    return make
