"""Speech as a modality: its settings, files, cost, and how a request becomes a call of the pipeline.

longtake speech "Good evening. Was that a question?" --out hello.wav --out hello.srt --preview hello.png
longtake speech --text novel.epub --loudness -19 --out novel.flac --out novel.chapters
longtake speech "Good evening. Was that a question?" --redo hello.wav.run --sentence 2 --seed 5 --out again.wav
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Domain, Example, Forecast, InputFile, OnStep, PythonCall, SideFile
from longtake.errors import UserError
from longtake.knob import Knob

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.outputs import FileKind, Output
    from longtake.request import Request
    from longtake.speech.outputs import SpeechOutput
    from longtake.speech.pipeline import LongSpeechPipeline, Reading

PRIOR = "prosody-small"
SECONDS_A_LETTER = 0.065  # of sound
COST = 0.8  # seconds of work for one of sound: mostly the vocoder, on one core
MEMORY_GB = 1.0
LETTERS_A_CHUNK = 70

KNOBS = (
    Knob(
        name="voice", default=None, kind=str, argument="voice", metavar="NAME",
        help="who speaks: a speaker of the prior (default: its first)", page="Voice (empty: the first one)",
    ),
    Knob(
        name="rate", default=1.0, least=0.25, most=4, argument="rate", help="pace, 1 is as the voice was trained",
        page="Pace", page_most=2,
    ),
    Knob(
        name="pitch", default=0.0, least=-12, most=12, argument="pitch", help="semitones higher or lower",
        page="Pitch in semitones", page_most=12,
    ),
    Knob(
        name="pauses", default=1.0, least=0, most=10, argument="pauses",
        help="scale of the pauses between sentences and paragraphs", page="Pauses", page_most=3,
    ),
    Knob(
        name="steps", default=None, kind=int, least=1, most=1000, argument="num_inference_steps",
        help="steps of the flow (default: as the voice has it)",
    ),
    Knob(
        name="temperature", default=None, least=0, most=10, argument="temperature",
        help="noise of the voice, 0 is always the likeliest (default: as the voice has it)",
    ),
    Knob(
        name="carry", default="none", kind=("none", "tail"), argument="carry",
        help="tail: each chunk goes on from the one before, in order and on one rank",
    ),
    Knob(
        name="loudness", default=None, least=-69, most=-5, argument="loudness", metavar="LUFS",
        help="bring files to this loudness (EBU R128): -16 podcast, -19 audiobook (default: as it is)",
    ),
    Knob(
        name="phonemes", default="auto", kind=("auto", "espeak", "words"), argument="phonemes",
        help="who pronounces: espeak-ng, the word list that pip brings, or the first of them that is there",
    ),
    Knob(
        name="reference_text", default=None, kind=str, argument="reference_text", metavar="TEXT",
        help="what is said in the reference",
    ),
    Knob(
        name="sentence", default=None, kind=int, least=1, most=10_000_000, metavar="N",
        help="with --redo: number of the sentence that is made anew",
    ),
    Knob(
        name="prior", default=PRIOR, kind=str, decides=False, help="a shipped prior, a local folder or a Hub id"
    ),
    Knob(
        name="vocoder", default=None, kind=str, decides=False, metavar="NAME",
        help="another HiFi-GAN generator: a shipped one, a file or a folder",
    ),
)  # fmt: skip


class SpeechDomain(Domain):
    """See the module's docstring."""

    NAME = "speech"
    ABOUT = "say a text or a book, from a sentence to hours"
    PROMPT = 'text, plain or SSML (<speak>...); "[[hɛlˈoʊ]]" is IPA, "[pause:1s]" a pause'
    PROMPT_INPUT = "text"
    TIMELINE = False
    KNOBS = KNOBS
    INPUTS = (
        InputFile(
            "text",
            "a text to say instead: .txt, .md, .epub, .ssml",
            page="A text or a book instead",
            kinds=(".txt", ".md", ".epub", ".ssml"),
        ),
        InputFile(
            "lexicon",
            'words and how they are said, a line "word IPA"',
            page="Words and how they are said",
            kinds=(".txt", ".tsv"),
        ),
        InputFile(
            "reference",
            "a recording to speak as, 1 to 30 s, with a prior that clones (valle-small)",
            "FILE.wav",
            page="A recording to speak as",
            kinds=(".wav", ".flac", ".mp3", ".ogg"),
        ),
        InputFile("redo", "a finished run, one of whose sentences is made anew (--sentence)", "RUN"),
    )
    SIDES = (
        SideFile(
            "preview", ".png", "waveform, mel and pitch with the words, a png file",
            lambda output, path: output.preview(path, overwrite=True), lambda path: _check_picture(path),
        ),
    )  # fmt: skip
    OUT = "speech.wav"
    USUAL = (".wav",)
    PIPELINE = "LongSpeechPipeline"
    EXAMPLES = (
        Example("A statement and a question", "Good evening. Was that a question?"),
        Example("Numbers", "On 27 November 2026 at 9:30 am, Dr. Lee paid $3.50 for 2.5 kg of apples."),
        Example(
            "SSML",
            '<speak>Wait <break time="700ms"/> a moment. <prosody rate="slow">This is slow</prosody>, '
            '<emphasis level="strong">this</emphasis> is not.</speak>',
        ),
    )
    SUMMARY = (
        "Speech from text, a sentence or a book. Paste plain text or SSML; [[IPA]] says how a word sounds and "
        "[pause:1s] is silent for a second. Every word's time is known, so subtitles fit to the end."
    )
    MOST_SECONDS = 900.0
    _seen: tuple[Request, LongSpeechPipeline, tuple[int, list[str]]] | None = None

    # ----------------------------------------------------------------------------------------- before a model is there

    def file_kinds(self) -> Mapping[str, FileKind]:
        from longtake.speech.outputs import FILES

        return FILES

    def settle(self, request: Request) -> dict[str, Any]:
        settings = dict(request.settings)
        if request.prompt and "text" in request.inputs:
            raise UserError("a prompt and --text both say what is said: give one of them")
        if not (request.prompt or "").strip() and "text" not in request.inputs:
            raise UserError("there is nothing to say: give a text, or a file of one with --text")
        if ("redo" in request.inputs) != (settings["sentence"] is not None):
            raise UserError("--redo RUN and --sentence N go together: a finished run, and its sentence to make anew")
        if settings["reference_text"] is not None and "reference" not in request.inputs:
            raise UserError("--reference-text says what is said in the --reference: give that too")
        if settings["voice"] is not None and "reference" in request.inputs:
            raise UserError("--voice and --reference both say who speaks: give one of them")
        return settings

    def forecast(self, request: Request) -> Forecast:
        letters = len(request.prompt or "")
        if "text" in request.inputs:
            path = request.inputs["text"]
            if not path.is_file():
                raise UserError(f"the text file {path} does not exist")
            letters = path.stat().st_size
        seconds = letters * SECONDS_A_LETTER / request.settings["rate"]
        steps = max(1, letters // LETTERS_A_CHUNK)
        amount = f"about {seconds:.0f} s of speech" if seconds < 120 else f"about {seconds / 60:.0f} min of speech"
        return Forecast(0.5 + COST * seconds, MEMORY_GB, amount, steps)

    def weights(self, request: Request) -> list[Path]:
        """The prior and the vocoder. Raises UserError that says what to do when one is missing."""
        from longtake.speech import vocoder as vocoders
        from longtake.speech.backends.load import needs_vocoder
        from longtake.speech.backends.own import vocoder_path
        from longtake.weights import shipped_priors

        prior, vocoder = request.settings["prior"], request.settings["vocoder"]
        if prior == PRIOR and prior not in shipped_priors(self.package) and not Path(prior).exists():
            raise UserError(
                f"the speech prior {PRIOR} is not in this copy: train one (longtake train speech --data PATH), or name "
                "another with --prior FOLDER"
            )
        (folder,) = super().weights(request)
        if vocoder is not None:
            return [folder, vocoders.find(vocoder)]
        return [folder, vocoder_path(folder)] if needs_vocoder(folder) else [folder]

    def input_mark(self, name: str, path: Path) -> str:
        """Hash of an input; of a run to redo, of its kept sentences."""
        from longtake.weights import file_hash

        if name != "redo":
            return super().input_mark(name, path)
        if not list(path.glob("take*.piece")):
            raise UserError(f"{path} is no finished run of speech: it is the folder NAME.run beside a result")
        return file_hash(path, (".piece",))

    # ----------------------------------------------------------------------------------------------------- with a model

    def load(self, request: Request, ranks: Ranks) -> LongSpeechPipeline:
        import torch
        from longtake.speech.backends.stock import StockVoice
        from longtake.speech.pipeline import LongSpeechPipeline

        given = request.settings
        if ranks.device.type == "cpu" and ranks.choice.dtype != torch.float32:
            raise UserError("speech is computed in float32: leave --dtype out, or give --dtype float32")
        pipe = LongSpeechPipeline.from_prior(given["prior"], vocoder=given["vocoder"])
        pipe.to(ranks.device)
        if isinstance(pipe.voice, StockVoice):  # no module that the pipeline would move
            pipe.voice.model.to(ranks.device)
        return pipe

    def reading(self, pipe: LongSpeechPipeline, request: Request) -> Reading:
        """The request as the pipeline takes it. Raises UserError."""
        from longtake.speech.pipeline import Reading, text_of
        from longtake.speech.text.phonemes import read_lexicon

        given, files = request.settings, request.inputs
        text, _, _ = text_of(request.prompt or None, files.get("text"))
        reading = Reading(
            text, given["voice"], given["rate"], given["pitch"], given["steps"], given["temperature"], given["carry"],
            given["pauses"], given["phonemes"], read_lexicon(files["lexicon"]) if "lexicon" in files else None,
            files.get("reference"), given["reference_text"],
        )  # fmt: skip
        if "redo" in files:
            chunks = pipe.form(reading).chunks_of(text, given["sentence"])
            reading = replace(reading, redo=dict.fromkeys(chunks, 1))
        return reading

    def _look(self, pipe: LongSpeechPipeline, request: Request) -> tuple[int, list[str]]:
        """(chunks, what is left out) of the whole text, looked at once for a request. Raises UserError."""
        seen = self._seen
        if seen is not None and seen[0] is request and seen[1] is pipe:
            return seen[2]
        reading = self.reading(pipe, request)
        form = pipe.form(reading)
        found = form.count(reading.text), list(form.writer.told)
        self._seen = (request, pipe, found)
        return found

    def check(self, pipe: LongSpeechPipeline, request: Request, ranks: Ranks) -> None:
        """What the voice cannot do, and SSML that is none, is found now."""
        if ranks.world > 1 and request.settings["carry"] != "none":
            raise UserError(f"carry {request.settings['carry']} is made in order, on one rank: use carry none")
        self._seen = None
        self._look(pipe, request)

    def warn(self, pipe: LongSpeechPipeline, request: Request) -> list[str]:
        return self._look(pipe, request)[1]

    def most_ranks(self, pipe: LongSpeechPipeline, request: Request) -> int:
        """A chunk a rank, where each is made alone."""
        return 1 if request.settings["carry"] != "none" else self._look(pipe, request)[0]

    def generate(
        self,
        pipe: LongSpeechPipeline,
        request: Request,
        ranks: Ranks,
        journal: Journal | None,
        on_step: OnStep | None,
    ) -> SpeechOutput:
        from longtake.speech.longform.pieces import Kept, Memory, OnDisk, Store
        from longtake.speech.pipeline import text_of

        reading = self.reading(pipe, request)
        store: Store = Memory() if journal is None else OnDisk(journal)
        if "redo" in request.inputs:
            store = Kept(request.inputs["redo"], store)
        _, title, book = text_of(request.prompt or None, request.inputs.get("text"))
        output = pipe.take(
            reading, request.seed, store=store, ranks=ranks,
            on_chunk=None if on_step is None else lambda done, total: on_step(done, total, None),
            loudness=request.settings["loudness"], title=title,
        )  # fmt: skip
        output.info["prior"] = request.settings["prior"]
        output.info["told"] = [] if book is None else book.notes
        return output

    def keep(self, output: Output, request: Request, folder: Path) -> None:
        """Its sentences, for --redo."""
        from longtake.speech.longform.pieces import keep_pieces
        from longtake.speech.outputs import SpeechOutput

        assert isinstance(output, SpeechOutput)
        keep_pieces(output.pieces(), folder)

    def kept(self, pipe: LongSpeechPipeline, request: Request, folder: Path) -> SpeechOutput | None:
        from longtake.speech.longform.pieces import Kept
        from longtake.speech.outputs import SpeechOutput

        count = len(list(folder.glob("take*.piece")))
        if not count or any(Kept(folder).get(index) is None for index in range(count)):
            return None

        def again() -> Any:
            return (Kept(folder).get(index) for index in range(count))

        output = SpeechOutput.of(again, pipe.voice.rate, loudness=request.settings["loudness"])
        output.info |= {"steps": count, "completed": True, "seed": request.seed}
        return output

    def python(self, request: Request) -> PythonCall:
        said = super().python(request)
        files = request.inputs
        for name, argument in (("text", "book"), ("lexicon", "lexicon"), ("reference", "reference")):
            if name in files:
                said.arguments[argument] = str(files[name])
        return said


def _check_picture(path: Path) -> None:
    from longtake.media import check_picture

    check_picture(path)


DOMAIN = SpeechDomain()
