"""Watching as a modality: a film and a question in, moments out.

longtake watch film.mp4 "when does the dog appear?" --out answer.json --preview moments.png
longtake watch talk.mp4 "when is the budget explained?" --subtitles talk.srt --out chapters.vtt
longtake watch film.mp4 "what does the dog chase?" --model models/Qwen3-VL-2B-Instruct
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Domain, Example, Forecast, InputFile, OnStep, PythonCall, SideFile
from longtake.knob import Knob

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.outputs import FileKind
    from longtake.request import Request
    from longtake.video.watch.answer import Answer
    from longtake.video.watch.pipeline import WatchPipeline

COST = 0.026  # seconds of work for a picture that is looked at, on one core
DECODE = 0.01  # and for a second of film
PER_WEIGHT = 4e-11  # seconds for a weight of a language model and a token that it reads or says
UNKNOWN_SECONDS = 600.0  # of a film that does not say how long it is
SAMPLE = Path(__file__).parent / "samples" / "sample.mp4"

KNOBS = (
    Knob(
        name="moments", default=5, kind=int, least=1, most=100, argument="moments", help="how many at most",
        page="Moments at most", page_most=20,
    ),
    Knob(
        name="rate", default=2.0, least=0.1, most=60, argument="rate", help="pictures a second that are looked at",
        page="Pictures a second that are looked at", page_most=10,
    ),
    Knob(
        name="model", default=None, kind=str, argument="model", metavar="FOLDER",
        help="a vision-language model of transformers that answers in words from the moments: LLaVA, LLaVA-NeXT-Video, "
        "OneVision, Qwen2.5-VL, Qwen3-VL, InternVL, SmolVLM",
    ),
    Knob(
        name="tokens", default=None, kind=int, least=64, most=1_000_000, argument="tokens",
        help="of the moments' pictures in the prompt of --model (default 2000)",
    ),
    Knob(
        name="index", default=None, kind=str, argument="index", decides=False, metavar="FOLDER",
        help="where films' indices are kept (default: longtake/watch in the user's cache)",
    ),
    Knob(
        name="prior", default="words-small", kind=str, decides=False,
        help="the picture tower: a shipped one, or a local folder of a CLIP or SigLIP",
    ),
)  # fmt: skip


class WatchDomain(Domain):
    """See the module's docstring."""

    NAME = "watch"
    ABOUT = "find in a film, of seconds or hours, the moments that a question asks for"
    PROMPT = 'what to find: "when does the dog appear?", or just "a dog"'
    TIMELINE = False
    KNOBS = KNOBS
    INPUTS = (
        InputFile(
            "film", "a film that FFmpeg reads", positional=True, page="Film",
            kinds=(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".ts"),
        ),
        InputFile(
            "subtitles", "an .srt or .vtt file, whose lines are found too", page="Subtitles", kinds=(".srt", ".vtt"),
        ),
    )  # fmt: skip
    SIDES = (
        SideFile(
            "preview", ".png", "likeness over time, the moments' pictures and where in them it was seen, a png file",
            lambda output, path: output.preview(path, overwrite=True), lambda path: _check_picture(path),
        ),
    )  # fmt: skip
    OUT = "answer.json"
    USUAL = (".json",)
    PIPELINE = "WatchPipeline"
    EXAMPLES = (
        Example("A runner", "when does a barbarian run?", inputs={"film": SAMPLE}),
        Example("A mage", "where is the mage?", inputs={"film": SAMPLE}),
        Example("A fall", "when does somebody fall over?", inputs={"film": SAMPLE}),
    )
    SUMMARY = (
        "Drop a film and ask it something: the timeline lights up where it is seen, and each moment can be played. "
        "The tower that ships is small and reads English; with a CLIP or SigLIP folder (--set watch.prior=FOLDER) it "
        "knows more, and a vision-language model of transformers (--set watch.model=FOLDER) answers in words."
    )

    # ----------------------------------------------------------------------------------------- before a model is there

    def file_kinds(self) -> Mapping[str, FileKind]:
        from longtake.video.watch.answer import FILES

        return FILES

    def settle(self, request: Request) -> dict[str, Any]:
        from longtake.video.watch.pipeline import check_tokens
        from longtake.video.watch.question import caption_of

        caption_of(request.prompt or "")
        check_tokens(request.settings["tokens"], request.settings["model"])
        return dict(request.settings)

    def forecast(self, request: Request) -> Forecast:
        from longtake.video.watch.decode import Film
        from longtake.video.watch.index import BLOCK_SECONDS

        film = Film(request.inputs["film"])
        seconds = film.seconds or UNKNOWN_SECONDS
        amount = f"{seconds:.0f} s of film" if seconds < 120 else f"{seconds / 60:.0f} min of film"
        work, memory = 1.0 + seconds * (DECODE + COST * request.settings["rate"]), 1.0
        if request.settings["model"] is not None:
            from longtake.video.watch.pipeline import TOKENS
            from longtake.video.watch.words import ANSWER_TOKENS, model_bytes

            size = model_bytes(request.settings["model"])  # two bytes a weight, held in four on a CPU
            work += PER_WEIGHT * size / 2 * ((request.settings["tokens"] or TOKENS) + ANSWER_TOKENS)
            memory += 2 * size / 2**30
        return Forecast(work, round(memory, 1), amount, max(1, round(seconds / BLOCK_SECONDS)))

    def input_mark(self, name: str, path: Path) -> str:
        from longtake.video.watch.index import film_mark

        return film_mark(path) if name == "film" else super().input_mark(name, path)

    def weights(self, request: Request) -> list[Path]:
        found = super().weights(request)
        if request.settings["model"] is not None:
            from longtake.video.watch.words import model_folder

            found.append(model_folder(request.settings["model"]))
        return found

    # ----------------------------------------------------------------------------------------------------- with a model

    def load(self, request: Request, ranks: Ranks) -> WatchPipeline:
        from longtake.video.watch.pipeline import WatchPipeline

        pipe = WatchPipeline.from_prior(request.settings["prior"]).to(ranks.device)
        if request.settings["model"] is not None:
            pipe.read_model(request.settings["model"], ranks.choice.dtype)
        return pipe

    def check(self, pipe: WatchPipeline, request: Request, ranks: Ranks) -> None:
        """A question that the tower cannot read, and subtitles that are none, are found now."""
        from longtake.video.watch.moments import read_subtitles

        pipe.asked(request.prompt or "")
        if "subtitles" in request.inputs:
            read_subtitles(request.inputs["subtitles"])

    def warn(self, pipe: WatchPipeline, request: Request) -> list[str]:
        return pipe.warnings(request.prompt or "")

    def generate(
        self,
        pipe: WatchPipeline,
        request: Request,
        ranks: Ranks,
        journal: Journal | None,
        on_step: OnStep | None,
    ) -> Answer:
        """The film's index is kept by content, not in the journal: a killed run goes on after its last block."""
        given = request.settings
        return pipe(
            request.inputs["film"],
            request.prompt or "",
            moments=given["moments"],
            rate=given["rate"],
            subtitles=request.inputs.get("subtitles"),
            index=given["index"],
            model=given["model"],
            tokens=given["tokens"],
            seed=request.seed,
            on_block=None if on_step is None else lambda done, of: on_step(done, of, None),
        )

    def python(self, request: Request) -> PythonCall:
        said = super().python(request)
        if "subtitles" in request.inputs:
            said.arguments["subtitles"] = str(request.inputs["subtitles"])
        return said


def _check_picture(path: Path) -> None:
    from longtake.media import check_picture

    check_picture(path)


DOMAIN = WatchDomain()
