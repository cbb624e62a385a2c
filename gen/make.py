"""Maker: the one way to make a request, for the command, the batch and the page.

    maker = Maker(ranks)
    made = maker.make(request, Targets.of_stem(request, Path("runs/walk-1")), resume=True)

Load once, check, open the run's record, generate, write every file, close the record. The record (`Journal`) stands in
a folder beside the result: checkpoints while it works, and at the end what later requests may start from. A run that
was stopped is not complete: its files are named NAME.unfinished.SUFFIX, and ``resume`` goes on with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from longtake.domain import Domain, OnStep, digest
from longtake.errors import UserError, told
from longtake.request import Request, names_of

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.outputs import Output

T = TypeVar("T")
UNFINISHED = ".unfinished"
CHECKPOINT_SECONDS = 5.0  # of a request that no one watches: the most that a kill takes, about


@dataclass(frozen=True)
class Targets:
    """Where the files of a request go. outputs: in the order of ``request.outputs``; sides: by name. run: folder of the
    record, None keeps none; keep: whether the record stays when the run is complete. beside: what is written
    besides."""

    outputs: tuple[Path, ...]
    sides: Mapping[str, Path] = field(default_factory=dict)
    run: Path | None = None
    keep: bool = True
    beside: tuple[Path, ...] = ()

    @classmethod
    def of_stem(cls, request: Request, stem: Path, *, run: bool = True) -> Targets:
        """Files named by a stem; with ``run`` a record that goes when the run is complete."""
        outputs, sides = names_of(request, stem)
        return cls(outputs, sides, stem.with_name(stem.name + ".run") if run else None, keep=False)

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [*self.outputs, *self.sides.values(), *self.beside]

    def unfinished(self, domain: Domain) -> Targets:
        """The names of what a stopped run leaves: walk.unfinished.bvh."""
        sides = {name: _marked(path, domain.side(name).suffix) for name, path in self.sides.items()}
        outputs = tuple(_marked(path, domain.suffix_of(path) or "") for path in self.outputs)
        return Targets(outputs, sides, beside=tuple(_marked(path, path.suffix) for path in self.beside))


@dataclass
class Made:
    """How a request ended. files: what was written, the result first. output: None when everything was there already.
    complete: False for a run that was stopped."""

    files: list[Path]
    output: Output | None
    complete: bool
    seconds: float
    warnings: list[str]


class Maker:
    """Makes requests, one after the other; a model is loaded once. ranks: all those that share each request."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._pipes: dict[tuple[str, ...], Any] = {}
        self._marks: dict[tuple[str, ...], str] = {}
        self._guard = threading.Lock()

    def shared(self, ranks: Ranks) -> Maker:
        """A maker for other ranks with the models of this one."""
        other = Maker(ranks)
        other._pipes, other._marks, other._guard = self._pipes, self._marks, self._guard
        return other

    def pipe(self, request: Request) -> Any:
        """The pipeline that makes a request. Raises UserError when its weights are missing or damaged."""
        key = (request.modality, *map(str, request.domain.weights(request)))
        with self._guard:
            if key not in self._pipes:
                quiet_libraries()
                pipe = request.domain.load(request, self.ranks)
                if hasattr(pipe, "set_progress_bar_config"):
                    pipe.set_progress_bar_config(disable=True)
                self._pipes[key] = pipe
            return self._pipes[key]

    @property
    def dtype(self) -> str:
        """The arithmetic of this maker's ranks, e.g. "bfloat16"."""
        return str(self.ranks.choice.dtype).removeprefix("torch.")

    def weights(self, request: Request) -> str:
        """Hash of all weights that decide the result. Raises UserError when some are missing."""
        from longtake.weights import WEIGHT_SUFFIXES, file_hash

        paths = request.domain.weights(request)
        key = (request.modality, *map(str, paths))
        if key not in self._marks:
            self._marks[key] = digest(*(file_hash(path, WEIGHT_SUFFIXES) for path in paths))
        return self._marks[key]

    def plan(self, request: Request) -> dict[str, Any]:
        """What decides the result, with the weights' and inputs' hashes; taken on rank 0, for every rank. Raises
        UserError."""

        def take() -> dict[str, Any]:
            marks = {name: request.domain.input_mark(name, path) for name, path in request.inputs.items()}
            return request.plan(self.weights(request), marks, self.dtype)

        return on_main(self.ranks, take)

    # ---------------------------------------------------------------------------------------------------- the making

    def make(
        self,
        request: Request,
        targets: Targets,
        *,
        resume: bool | str = False,
        overwrite: bool = False,
        on_step: OnStep | None = None,
        say: Callable[[str], Any] | None = None,
    ) -> Made:
        """Make a request and write its files.

        resume: go on with the run that the record holds, whatever number of ranks began it; refused when that is
        another one, or begun anew with "same". overwrite: begin anew. say: told each warning before the work begins.
        on_step(done, of, clean): see `OnStep`. Every mistake is found before anything is written. Raises UserError on
        every rank.
        """
        started = time.monotonic()
        domain, ranks = request.domain, self.ranks
        pipe = self.pipe(request)
        domain.check(pipe, request, ranks)
        warnings = domain.warn(pipe, request) if ranks.is_main else []
        if say is not None:
            for warning in warnings:
                say(warning)
        targets = self._with_beside(domain, pipe, targets, resume or overwrite)
        if targets.run is None:
            output = domain.generate(pipe, request, ranks, None, on_step)
            files = self._write(domain, output, request, targets)
            return Made(files, output, _is_complete(output), time.monotonic() - started, warnings)
        for name, path in request.inputs.items():
            if domain.input_path(name, path).absolute().is_relative_to(targets.run.absolute()):
                raise UserError(f"{path} is what this run starts from: give --out another name")
        plan = self.plan(request)
        record = Record(targets.run, plan, ranks)
        if not targets.keep:
            cost = domain.forecast(request)
            record.journal.every_steps = max(1, round(cost.steps * CHECKPOINT_SECONDS / max(cost.seconds, 0.001)))
        if on_main(ranks, lambda: record.begin(domain, targets, resume=resume, overwrite=overwrite)):
            return Made(targets.files, None, True, time.monotonic() - started, warnings)
        try:
            journal = record.attach()
            kept = domain.kept(pipe, request, targets.run) if record.is_done else None
            output = domain.generate(pipe, request, ranks, journal, on_step) if kept is None else kept
            files = self._write(domain, output, request, targets)
            on_main(ranks, lambda: record.end(domain, output, files, targets))
        except BaseException:
            record.leave()
            raise
        return Made(files, output, _is_complete(output), time.monotonic() - started, warnings)

    def beside(self, request: Request, outputs: Sequence[Path]) -> list[Path]:
        """Files that saving the result of a request writes besides those named."""
        return request.domain.beside(self.pipe(request), outputs)

    def _with_beside(self, domain: Domain, pipe: Any, targets: Targets, may_stand: bool | str) -> Targets:
        """With what saving writes besides the files that were named. Raises UserError for such a file that stands."""
        beside = tuple(path for path in domain.beside(pipe, targets.outputs) if path not in targets.files)

        def check() -> None:
            for path in () if may_stand else beside:
                if os.path.lexists(path):
                    raise UserError(f"{path} exists, and the result writes it too: choose another name, or --overwrite")

        on_main(self.ranks, check)
        return replace(targets, beside=beside)

    def _write(self, domain: Domain, output: Output, request: Request, targets: Targets) -> list[Path]:
        """Every file, on rank 0; the other ranks give it what they hold of a stream."""
        complete = _is_complete(output)

        def write() -> list[Path]:
            try:
                if complete and targets.run is not None and targets.keep:
                    domain.keep(output, request, targets.run)
                named = targets if complete else targets.unfinished(domain)
                output.save_all(named.outputs, overwrite=True)
                for name, path in named.sides.items():
                    domain.side(name).write(output, path)
                return named.files
            except BaseException:
                output.drain()  # the other ranks send what they decode: it must be taken
                raise

        if not self.ranks.is_main:
            output.drain()
        return on_main(self.ranks, write)


# ------------------------------------------------------------------------------------------------------- the record


class Record:
    """The folder of one run, and whether what is in it may be gone on with, is complete, or is another's."""

    def __init__(self, folder: Path, plan: dict[str, Any], ranks: Ranks) -> None:
        from longtake.journal import Journal

        self.folder, self.plan, self.ranks = folder, plan, ranks
        self.journal = Journal(folder)
        self.is_new = False
        self.is_done = False
        self._known: set[str] = set()  # files that earlier runs under this record named as theirs

    def begin(self, domain: Domain, targets: Targets, *, resume: bool | str, overwrite: bool) -> bool:
        """For rank 0: open the record; True when the run is complete and every file asked for is there and whole.

        Raises UserError when the folder holds an earlier run and neither ``resume`` nor ``overwrite`` is set, or
        another run, or when files are there that no record tells of.
        """
        from longtake.journal import Policy

        if resume == "same":
            resume, overwrite = True, not self.journal.holds(self.plan)
        held = (self.folder / "journal.json").exists()
        self.is_new = not self.folder.exists()
        if held and not resume and not overwrite:
            raise UserError(f"{self.folder} holds an earlier run: --resume goes on with it, --overwrite begins anew")
        before = self.journal.events() if self.folder.is_dir() else []
        self._known = {name for event in before for key in ("targets", "files") for name in event.get(key, ())}
        for path in targets.files if resume and not overwrite else ():
            if os.path.lexists(path) and self._name(path) not in self._known:
                raise UserError(
                    f"{path} exists and {self.folder} tells of no run that made it: choose another name, or --overwrite"
                )
        try:
            self.journal.open(self.plan, Policy.OVERWRITE if overwrite else Policy.RESUME)
        except UserError:
            self.leave()
            raise
        if overwrite:
            for path in self.folder.glob("*.safetensors"):
                path.unlink()
            self._remove_unfinished(domain, targets)
        self.is_done = not overwrite and any(event.get("done") is True for event in before)
        stamps = {name: stamp for event in before for name, stamp in _mapping(event.get("files")).items()}
        if self.is_done and all(
            stamps.get(self._name(path)) == _stamp(path) and _is_whole(domain, targets, path) for path in targets.files
        ):
            self._tidy(domain, targets)
            return True
        self.journal.record({"targets": [self._name(path) for path in targets.files]})
        return False

    def _name(self, path: Path) -> str:
        """A file as the record names it: from the folder that the record stands in."""
        return os.path.relpath(path.absolute(), self.folder.absolute().parent)

    def _remove_unfinished(self, domain: Domain, targets: Targets) -> None:
        """Remove what this run left when it was stopped, and nobody else's file of such a name."""
        for path in targets.unfinished(domain).files:
            if self._name(path) in self._known:
                _remove(path)

    def _tidy(self, domain: Domain, targets: Targets) -> None:
        """After a complete run: no checkpoints, nothing unfinished, and no record where none is to stay."""
        self.journal.clear()
        self._remove_unfinished(domain, targets)
        self.journal.close()
        if not targets.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def attach(self) -> Journal:
        """The journal, on every rank."""
        self.is_done = self.ranks.broadcast_object(self.is_done)
        if not self.ranks.is_main:
            self.journal.attach(self.plan)
        self.ranks.barrier()
        return self.journal

    def end(self, domain: Domain, output: Output, files: list[Path], targets: Targets) -> None:
        """For rank 0: note how the run ended; a complete one needs no checkpoints any more."""
        complete = _is_complete(output)
        facts: dict[str, Any] = {key: output.info[key] for key in ("frames", "seconds", "steps") if key in output.info}
        written = {self._name(path): _stamp(path) for path in files}
        self.journal.record({"done": complete, **facts, "files": written})
        if complete:
            self._tidy(domain, targets)
        else:
            self.journal.close()

    def leave(self) -> None:
        """After a failure: close the record, and remove it when it holds no work."""
        self.journal.close()
        if self.ranks.is_main and self.is_new and not self.journal.has_pieces():
            shutil.rmtree(self.folder, ignore_errors=True)


def _stamp(path: Path) -> list[int] | None:
    """Size and time of a file, by which it is known again; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _marked(path: Path, suffix: str) -> Path:
    stem = len(path.name) - len(suffix)
    return path.with_name(path.name[:stem] + UNFINISHED + path.name[stem:])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_complete(output: Output) -> bool:
    return bool(output.info.get("completed", True))


def _is_whole(domain: Domain, targets: Targets, path: Path) -> bool:
    try:
        if path in targets.outputs:
            domain.file_kinds()[domain.suffix_of(path) or ""].whole(path)
        elif path in targets.beside:
            return path.is_file()  # whole with the file that it stands beside
        else:
            name = next(name for name, side in targets.sides.items() if side == path)
            domain.side(name).whole(path)
    except Exception:  # whatever a damaged file makes its reader raise: it is made again
        return False
    return True


# ----------------------------------------------------------------------------------------------- around every run


def on_main(ranks: Ranks, act: Callable[[], T]) -> T:
    """What ``act`` returns on rank 0, on every rank; the others do not call it. What it raises there is raised
    everywhere, as a UserError."""
    result, trouble = None, None
    if ranks.is_main:
        try:
            result = act()
        except Exception as error:
            if ranks.world == 1:
                raise
            trouble = told(error)
    result, trouble = ranks.broadcast_object((result, trouble))
    if trouble is not None:
        raise UserError(trouble)
    return cast(T, result)


def quiet_libraries() -> None:
    """Only our own bar: the libraries' loading bars and reports are for their developers."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")


@contextmanager
def on_interrupt(words: str, act: Callable[[], Any]) -> Iterator[None]:
    """Inside the block, the first Ctrl-C says ``words`` and calls ``act``; a second one ends at once."""

    def interrupt(*_: Any) -> None:
        print(f"{words}; press Ctrl-C again to end at once")
        act()
        signal.signal(signal.SIGINT, previous)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
