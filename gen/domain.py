"""Domain: what a modality brings, so that the command line, the batch and the page can serve it without knowing it.

A package that has one names it in its metadata, ours as anybody's:

    [project.entry-points."longtake.domains"]
    motion = "longtake.motion.domain:DOMAIN"

Its module must import nothing heavy at its top: `longtake --help` reads every domain's name and sentence.

    domain_of("motion").forecast(request).seconds
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, in_brief
from longtake.knob import Knob

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.outputs import FileKind, Output
    from longtake.request import Request

GROUP = "longtake.domains"
COMMANDS = "longtake.commands"  # modules with ABOUT, add_arguments and run, light at their top: commands beside domains

# (steps done, steps in all, clean estimate or None) -> whether to end after this step
OnStep = Callable[[int, int, Any], bool]


@dataclass(frozen=True)
class Forecast:
    """What a request will cost. seconds: on a core of the reference machine; memory_gb: peak of one process; amount: in
    words ("240 frames"); steps: of progress, 1 where there are none."""

    seconds: float
    memory_gb: float
    amount: str
    steps: int = 1


@dataclass(frozen=True)
class InputFile:
    """A file or folder that a request may start from (--extend RUN; a job's "inputs": {"extend": "dog.mp4"}).

    positional: it stands first on the command line, without an option, and every request must have it. page: label of
    its upload on the page, None for none there; kinds: suffixes that the upload takes; many: several files may be given
    there, which become a folder.
    """

    name: str
    help: str
    metavar: str = "FILE"
    positional: bool = False
    page: str | None = None
    kinds: tuple[str, ...] = ()
    many: bool = False

    @property
    def option(self) -> str:
        """As the command line spells it."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class SideFile:
    """A further file beside the result: --preview FILE.png, a job's "preview": true.

    write(output, path), whole(path): as in a `FileKind`. usual: whether a job gets it unasked.
    """

    name: str
    suffix: str
    help: str
    write: Callable[[Any, Path], Any]
    whole: Callable[[Path], None]
    usual: bool = False

    @property
    def option(self) -> str:
        """As the command line spells it."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Example:
    """A request that shows the modality well: a button of the page, a line of the README. inputs: files that ship."""

    title: str
    prompt: str
    seconds: float | None = None
    seed: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)


@dataclass
class PythonCall:
    """The same request in Python: ``out = call(prompt, **arguments)``, with lines before and after. pipe: False where
    no pipeline is made: neither prompt nor seed is given to the call then."""

    call: str
    arguments: dict[str, Any]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    pipe: bool = True


class Domain:
    """A modality. Subclasses set the names in capitals and write `forecast`, `generate` and `file_kinds`, at least.

    NAME, ABOUT: as `longtake --help` lists it. PROMPT: help of the prompt, None for a modality without one; TIMELINE:
    whether a prompt may say when (`Timeline`), FPS: frames a second of such times where no setting "fps" says another.
    PROMPT_INPUT: name of an input that may stand in the prompt's place, None where a prompt is always needed.
    KNOBS: settings, "prior" among them where there are priors. INPUTS, SIDES: files in, files beside the result.
    OUT: name of the result where none is asked for; USUAL: suffixes that a job writes unless it says.
    PIPELINE: its class in Python.
    EXAMPLES, SUMMARY, MOST_SECONDS: buttons, text and longest run of the page.
    """

    NAME: str = ""
    ABOUT: str = ""
    PROMPT: str | None = 'text, a Timeline "0s: ... | 4s: ...", or a .json or .csv file of one'
    PROMPT_INPUT: str | None = None
    TIMELINE: bool = True
    FPS: float | None = None
    KNOBS: tuple[Knob, ...] = ()
    INPUTS: tuple[InputFile, ...] = ()
    SIDES: tuple[SideFile, ...] = ()
    OUT: str = ""
    USUAL: tuple[str, ...] = ()
    PIPELINE: str = ""
    EXAMPLES: tuple[Example, ...] = ()
    SUMMARY: str = ""
    MOST_SECONDS: float = 600.0

    # ----------------------------------------------------------------------------------------- before a model is there

    def file_kinds(self) -> Mapping[str, FileKind]:
        """Suffix -> how such a file is written, and how one finds out that it is whole."""
        raise NotImplementedError

    def usual(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> Mapping[str, Any]:
        """What settings are worth that nobody named and whose default is None, where the prior at hand says it."""
        return {}

    def fps_of(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> float | None:
        """Frames a second of a Timeline in seconds."""
        return settings.get("fps") or self.usual(settings, inputs).get("fps") or self.FPS

    def settle(self, request: Request) -> dict[str, Any]:
        """The request's settings with every open one decided, as far as that needs no model. Raises UserError for
        settings that do not go together."""
        return dict(request.settings)

    def forecast(self, request: Request) -> Forecast:
        """What the request costs. Raises UserError for what cannot be made."""
        raise NotImplementedError

    def weights(self, request: Request) -> list[Path]:
        """Files and folders of weights that decide the result. Raises UserError when one is missing."""
        from longtake.weights import resolve

        if "prior" not in request.settings:
            return []
        return [resolve(request.settings["prior"], kind=f"{self.NAME} prior", priors_package=self.package)]

    def input_path(self, name: str, path: Path) -> Path:
        """The file that is read for an input; a domain may take another one's name for it."""
        return path

    def input_mark(self, name: str, path: Path) -> str:
        """Hash of an input file's content, for the fingerprint. Raises UserError."""
        from longtake.weights import file_hash

        if not path.exists():
            raise UserError(f"the {name} file {path} does not exist")
        return file_hash(path)

    # ----------------------------------------------------------------------------------------------------- with a model

    def load(self, request: Request, ranks: Ranks) -> Any:
        """The pipeline that makes such a request, on the rank's device."""
        raise NotImplementedError

    def check(self, pipe: Any, request: Request, ranks: Ranks) -> None:
        """Raise UserError for what this pipeline cannot make, before anything is written."""

    def warn(self, pipe: Any, request: Request) -> list[str]:
        """What the user should know and may ignore, a line each: prompts far from every text that the prior knows."""
        if request.timeline is None:
            return []
        from longtake.priors import strange_prompts

        return strange_prompts(request.timeline.prompts, self.weights(request), getattr(pipe, "text_encoder", None))

    def beside(self, pipe: Any, outputs: Sequence[Path]) -> list[Path]:
        """Files that saving a result writes besides those that were named."""
        return []

    def most_ranks(self, pipe: Any, request: Request) -> int:
        """How many ranks can share the request."""
        return 1

    def generate(
        self, pipe: Any, request: Request, ranks: Ranks, journal: Journal | None, on_step: OnStep | None
    ) -> Output:
        """Make it; ``info`` of the output holds at least "completed" and "steps". A journal that holds steps is gone on
        from."""
        raise NotImplementedError

    def keep(self, output: Output, request: Request, folder: Path) -> None:
        """Write into the run's folder what later requests may start from."""

    def kept(self, pipe: Any, request: Request, folder: Path) -> Output | None:
        """The output of a finished run from what `keep` wrote, or None: it is then made again."""
        return None

    def python(self, request: Request) -> PythonCall:
        """The call in Python; settings that are as usual are left out."""
        usual = self.usual(request.settings, request.inputs)
        arguments = {
            knob.argument: request.settings[knob.name]
            for knob in self.KNOBS
            if knob.argument and request.settings[knob.name] not in (knob.default, usual.get(knob.name, knob.default))
        }
        return PythonCall("pipe", arguments)

    # ----------------------------------------------------------------------------------------------------------- common

    @property
    def package(self) -> str:
        """The package that it stands in; its priors, recipe and evaluation are there."""
        return type(self).__module__.rpartition(".")[0]

    def knob(self, name: str) -> Knob | None:
        """The setting of that name."""
        return next((knob for knob in self.KNOBS if knob.name == name), None)

    def side(self, name: str) -> SideFile:
        """The side file of that name."""
        return next(side for side in self.SIDES if side.name == name)

    def suffix_of(self, path: Path) -> str | None:
        """The longest suffix of the table that a file's name ends with; None when there is none."""
        name = path.name.lower()
        fits = [suffix for suffix in self.file_kinds() if suffix and name.endswith(suffix) and name != suffix]
        if fits:
            return max(fits, key=len)
        return "" if "" in self.file_kinds() and not path.suffix else None


@cache
def _found() -> dict[str, Any]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def installed() -> list[str]:
    """Names of the domains that are installed, ours first and in the order of the house."""
    ours = ["video", "motion", "speech", "medical", "watch"]
    return sorted(_found(), key=lambda name: (ours.index(name) if name in ours else len(ours), name))


def domain_of(name: Any) -> Domain:
    """The domain of that name. Raises UserError."""
    if not isinstance(name, str) or name not in _found():
        raise UserError(f"modality must be one of {', '.join(installed())}; given {in_brief(name)}")
    found: Domain = _found()[name].load()
    return found


@cache
def _commands() -> dict[str, Any]:
    return {point.name: point for point in sorted(entry_points(group=COMMANDS), key=lambda point: point.name)}


def further_commands() -> list[str]:
    """Names of the commands that packages bring beside their domains, none of which hides a domain."""
    return [name for name in _commands() if name not in _found()]


def command_of(name: str) -> Any:
    """The module of such a command: ABOUT, add_arguments(parser), run(args) -> exit code."""
    return _commands()[name].load()


def step_callback(on_step: OnStep | None, steps: int) -> Callable[..., dict[str, Any]] | None:
    """A pipeline's ``callback_on_step_end`` that tells `on_step`, and stops the pipeline when that says so."""
    if on_step is None:
        return None

    def told(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step(step + 1, steps, tensors.get("clean")):
            pipe.stop()
        return {}

    return told


def digest(*parts: str) -> str:
    """64 hex digits of several texts in order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
