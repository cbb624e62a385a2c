"""LongSpeechPipeline: text of any length into speech, the same from one process or many.

    pipe = LongSpeechPipeline.from_prior()
    pipe("Good evening. Was that a question?", seed=1).save("hello.wav")
    for packet in pipe.stream(words_of_a_chat()): play(packet.samples)

The way of a text: sentences with phones (text/) -> chunks -> a voice's samples and word times -> joins with exact
pauses (longform/) -> sound files, subtitles, times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from longtake.distributed import Ranks, current
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.pipeline import Callback, LongTakePipeline, seed_of
from longtake.speech import vocoder as vocoders
from longtake.speech.backends.load import load_voice
from longtake.speech.backends.own import kind_of
from longtake.speech.backends.valle import REFERENCE, ValleVoice
from longtake.speech.backends.voice import Utterance, Voice
from longtake.speech.longform.engine import LongForm, OnChunk, Packet, Text
from longtake.speech.longform.pieces import Memory, OnDisk, Over, Piece, Store
from longtake.speech.mel import log_mel
from longtake.speech.outputs import SpeechOutput
from longtake.speech.reference import read_reference
from longtake.speech.text.books import Book, read_book
from longtake.speech.text.phonemes import read_lexicon
from longtake.speech.text.script import Writer

DEFAULT_PRIOR = "prosody-small"
CLONING = "valle-small"  # ships too
OUTPUT_TYPES = ("np", "pt")


@dataclass(frozen=True)
class Reading:
    """What is to be said and how: all of a request that decides the result, its seed apart. See `__call__`."""

    text: Text
    voice: str | None = None
    rate: float = 1.0
    pitch: float = 0.0
    steps: int | None = None
    temperature: float | None = None
    carry: str = "none"
    pauses: float = 1.0
    phonemes: str = "auto"
    lexicon: Mapping[str, str] | None = None
    reference: Path | None = None
    reference_text: str | None = None
    redo: Mapping[int, int] | None = None


class LongSpeechPipeline(LongTakePipeline):
    """Text to long speech. voice: a `Voice` (ours, or one of ``backends.stock`` for a class of transformers)."""

    PRIORS = "longtake.speech"
    PARTS = ("longtake.speech.backends.prosody", "longtake.speech.backends.valle")

    def __init__(self, voice: Any) -> None:
        super().__init__()
        self.register_modules(voice=voice)

    @classmethod
    def from_prior(
        cls, name: str | Path | None = None, *, dtype: torch.dtype = torch.float32, vocoder: str | Path | None = None
    ) -> LongSpeechPipeline:
        """Load a shipped prior, a local folder or a Hub id. vocoder: another generator than the prior's. Raises
        UserError when it is missing, damaged or no speech prior."""
        from longtake.weights import resolve

        folder = resolve(str(name or DEFAULT_PRIOR), kind="speech prior", priors_package="longtake.speech")
        if (folder / "model_index.json").is_file():
            return cast(LongSpeechPipeline, cls.from_pretrained(folder, local_files_only=True))
        return cls(load_voice(folder, None if vocoder is None else vocoders.find(vocoder)))

    @classmethod
    def from_pretrained(cls, name: Any, **settings: Any) -> Any:
        """As diffusers', and by the name of a shipped prior or the folder of one."""
        from longtake.weights import shipped_priors

        found = Path(shipped_priors(cls.PRIORS).get(str(name), str(name)))
        if kind_of(found) is not None and not (found / "model_index.json").is_file():
            return cls(load_voice(found))
        return super().from_pretrained(found if found.exists() else name, **settings)

    # -------------------------------------------------------------------------------------------------------- making

    def form(self, reading: Reading) -> LongForm:
        """The engine for a reading. Raises UserError for what the voice cannot do."""
        voice: Voice = self.voice
        name = getattr(voice, "kind", "") or type(voice).__name__
        speaker, clone = reading.voice, reading.reference
        accent = voice.abilities.accents.get(speaker or (voice.abilities.speakers or ("",))[0], "en-us")
        writer = Writer(reading.phonemes, reading.lexicon, accent)
        if clone is not None:
            if speaker is not None:
                raise UserError("a voice and a reference both say who speaks: give one of them")
            self._clone(voice, name, clone, reading.reference_text, writer)
        elif isinstance(voice, ValleVoice):
            voice.recorded = None
        asked = Utterance(
            (), speaker=speaker, rate=reading.rate, pitch=reading.pitch, steps=reading.steps,
            temperature=reading.temperature,
        )  # fmt: skip
        return LongForm(
            voice, writer, carry=reading.carry, pauses=reading.pauses, asked=asked, redo=reading.redo or {}, name=name
        )

    @staticmethod
    def _clone(voice: Any, name: str, path: Path, text: str | None, writer: Writer) -> None:
        if not voice.abilities.clones:
            raise UserError(
                f"the voice {name} does not speak as a recording does: leave the reference out, or use a prior that "
                f"clones ({CLONING} does)"
            )
        wave = read_reference(path)
        if isinstance(voice, ValleVoice):
            if not text:
                raise UserError(f"the voice {name} needs what is said in the reference: give reference_text")
            phones = " ".join(sentence.phones for sentence in writer.sentences(text))
            if not phones:
                raise UserError("the reference text has no words")
            voice.clone(log_mel(wave), phones)
        else:
            voice.clone(wave, text)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Iterable[str] | None = None,
        *,
        book: str | Path | None = None,
        voice: str | None = None,
        seed: int | None = None,
        generator: Any = None,
        rate: float = 1.0,
        pitch: float = 0.0,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        carry: str = "none",
        pauses: float = 1.0,
        loudness: float | None = None,
        phonemes: str = "auto",
        lexicon: str | Path | Mapping[str, str] | None = None,
        reference: str | Path | None = None,
        reference_text: str | None = None,
        redo: Mapping[int, int] | None = None,
        kept: Store | None = None,
        ranks: Ranks | None = None,
        journal: Journal | None = None,
        callback_on_step_end: Callback | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> SpeechOutput | tuple[Any, ...]:
        """Say a text (plain, SSML, or pieces of text that are joined) or a book (.txt, .md, .epub, .ssml).

        voice: a speaker of the prior; seed or generator; rate: 1 is as trained; pitch: semitones; num_inference_steps,
        temperature: of the flow, or None. carry: "tail" goes on from the chunk before. pauses: scale of those nobody
        asked for. loudness: LUFS of what is saved. phonemes: "auto", "espeak" or "words". lexicon: a file, or words
        with IPA. reference, reference_text: a recording to speak as, and its words. redo: chunk -> how often anew;
        kept: pieces to go on from. A step is a chunk: callback(pipe, index, chunk, {}) may call ``stop()``.
        output_type: "np" or "pt" for ``return_dict=False``, which gives (samples, rate). Raises UserError.
        """
        self.begin()
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; given {output_type!r}")
        text, title, made_of = text_of(prompt, book)
        reading = Reading(
            text, voice, rate, pitch, num_inference_steps, temperature, carry, pauses, phonemes, _lexicon(lexicon),
            None if reference is None else Path(reference), reference_text, redo,
        )  # fmt: skip

        def on_chunk(done: int, total: int) -> bool:
            if callback_on_step_end is not None:
                callback_on_step_end(self, done - 1, done, {})
            return self.interrupt

        output = self.take(
            reading, seed_of(seed, generator), store=kept, ranks=ranks, journal=journal, on_chunk=on_chunk,
            loudness=loudness, title=title,
        )  # fmt: skip
        if made_of is not None:
            output.info.setdefault("told", []).extend(made_of.notes)
        if return_dict:
            return output
        return (torch.from_numpy(output.samples) if output_type == "pt" else output.samples, output.rate)

    def take(
        self,
        reading: Reading,
        seed: int,
        *,
        store: Store | None = None,
        ranks: Ranks | None = None,
        journal: Journal | None = None,
        on_chunk: OnChunk | None = None,
        loudness: float | None = None,
        title: str | None = None,
    ) -> SpeechOutput:
        """What `__call__` makes, of a reading. Raises UserError."""
        if loudness is not None and not -70 < loudness < 0:
            raise UserError(f"loudness is in LUFS, between -70 and 0 (-16, -19, -23); given {loudness}")
        ranks = ranks or current() or Ranks.single()
        form = self.form(reading)
        kept: Store = store or (Memory() if journal is None else OnDisk(journal))
        done, total = form.make(reading.text, seed, kept, ranks, on_chunk)

        def pieces() -> Iterator[Piece]:
            for index in range(done):
                piece = kept.get(index)
                if piece is None:
                    raise UserError(f"chunk {index + 1} of the take is gone or damaged: --resume makes it again")
                yield piece

        def again(sentence: int, times: int = 1) -> SpeechOutput:
            redone = dict.fromkeys(form.chunks_of(reading.text, sentence), times)
            return self.take(
                replace(reading, redo=redone), seed, store=Over(kept), loudness=loudness, title=title, ranks=ranks
            )

        output = SpeechOutput.of(pieces, form.voice.rate, loudness=loudness, title=title)
        output.again = again if done == total and ranks.world == 1 else None
        told = list(dict.fromkeys(form.writer.told))
        output.info |= {"seed": seed, "steps": done, "completed": done == total, "voice": reading.voice, "told": told}
        if reading.redo is None and reading.reference is not None:
            output.info["voice"] = REFERENCE
        return output

    @torch.no_grad()
    def stream(self, prompt: str | Iterable[str], *, seed: int = 0, **settings: Any) -> Iterator[Packet]:
        """Packets of samples as soon as they are there; the text may come in pieces, as a chat model gives it.

        settings: voice, rate, pitch, steps, temperature, carry, pauses, phonemes, lexicon, reference, reference_text.
        Together the packets are what a call makes of the same text and seed. Raises UserError.
        """
        form = self.form(replace(Reading(prompt), **settings))
        yield from form.stream(prompt, seed)


def text_of(prompt: str | Iterable[str] | None, book: str | Path | None) -> tuple[Text, str | None, Book | None]:
    """(what is said, its title, the book) of a prompt or a book. Raises UserError when it is neither or both."""
    if (not prompt) == (book is None):
        raise UserError("give a text or a book to read, one of them" if prompt else "there is nothing to say: no text")
    if book is not None:
        made = read_book(Path(book))
        return made.paragraphs, made.title, made
    assert prompt is not None
    return (prompt if isinstance(prompt, str) else "".join(prompt)), None, None


def _lexicon(given: str | Path | Mapping[str, str] | None) -> Mapping[str, str] | None:
    return read_lexicon(Path(given)) if isinstance(given, (str, Path)) else given
