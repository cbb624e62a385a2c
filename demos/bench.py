"""The one job that runs on the device: a thread of its own, its progress, its files, and who may stop it.

for note in bench.run("session", "motion", 20.0, work, glimpse, folder):
    ...                                                         # Progress(...) as it goes, at last Finished(...)
bench.stop("session")                                           # what is finished is kept
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, explain_disk_errors

if TYPE_CHECKING:
    from longtake.domain import OnStep
    from longtake.make import Maker

GLIMPSE_SECONDS = 1.0  # at most one preview in so long a time,
GLIMPSE_SHARE = 0.2  # and at most this share of the run's time goes into previews
_MOST_WAITING = 1000  # sessions; one that left without a run is forgotten in the end
_PREFIX, _LOCK = "longtake-demo-", "lock"


@dataclass(frozen=True)
class Progress:
    """After a step. left: seconds, estimated. glimpse: a preview picture's path, when there is a new one."""

    step: int
    steps: int
    left: float
    glimpse: Path | None


@dataclass(frozen=True)
class Finished:
    """The end of a run. result: what the work returned."""

    result: Any
    seconds: float


class Bench:
    """Runs one job at a time; others wait for their turn.

    folder: where the jobs' files are while the page fetches them, a temporary one. keep: a folder for copies of the
    results, or None. settings: by modality, settings for all runs of the page: a control begins with them, what has no
    control has them always.
    """

    def __init__(self, keep: Path | None = None, settings: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.settings = dict(settings or {})
        _remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        self.keep = keep
        self._device = threading.Lock()
        self._guard = threading.Lock()
        self._maker: Maker | None = None
        self._running: tuple[str, threading.Event] | None = None
        self._waiting: dict[str, bool] = {}  # session: whether its queued job is still wanted
        self._pace: dict[str, float] = {}

    @property
    def maker(self) -> Maker:
        """Makes the requests of the page; every model is loaded once."""
        with self._guard:
            if self._maker is None:
                from longtake.distributed import Ranks
                from longtake.make import Maker

                self._maker = Maker(Ranks.single())
            return self._maker

    def expect(self, session: str) -> None:
        """A job of this session has joined the queue."""
        self._waiting[session] = True
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.pop(next(iter(self._waiting)), None)

    def begin(self, session: str) -> None:
        """Its turn has come. Raises UserError when the session gave it up meanwhile."""
        if not self._waiting.pop(session, True):
            raise UserError("stopped before it began")

    def stop(self, session: str) -> str:
        """End the job of this session, at work (what is done is kept) or waiting in the queue; says what happens, in
        words."""
        running = self._running
        if running is not None and running[0] == session:
            running[1].set()
            return "Stopping after this step; what is done is kept."
        if session in self._waiting:
            self._waiting[session] = False
            return "Your run gives up its place in the queue."
        return "Nothing of yours is running."

    def pace(self, modality: str) -> tuple[float, bool]:
        """Seconds that a forecast second takes here: measured by the last run (True), or 1."""
        return self._pace.get(modality, 1.0), modality in self._pace

    def new_folder(self) -> Path:
        """An empty folder of its own for a job's files."""
        return Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))

    def given(self, upload: Any, kinds: Sequence[str]) -> Path:
        """The file that was uploaded; several become a folder that holds them under their own names.

        upload: a path or a list of them, inside the page's folder. kinds: suffixes that are taken, () for any. Raises
        UserError.
        """
        paths = [Path(str(path)) for path in (upload if isinstance(upload, list) else [upload])]
        for path in paths:
            inside = path.resolve().is_relative_to(self.folder.resolve())
            if not inside or not path.is_file():
                raise UserError(f"{path.name[:80]} is no uploaded file: give it anew")
            if kinds and not path.name.lower().endswith(tuple(kinds)):
                raise UserError(f"{path.name[:80]}: the page takes {', '.join(kinds)} here")
        if len(paths) == 1:
            return paths[0]
        names = [path.name for path in paths]
        if len(set(names)) < len(names):
            raise UserError(f"two of the uploaded files are named {max(names, key=names.count)[:80]}")
        marks = sorted(f"{path.resolve()} {path.stat().st_mtime_ns}" for path in paths)
        folder = self.folder / "given" / hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
        if not folder.exists():
            new = Path(tempfile.mkdtemp(prefix="given-", dir=self.folder))
            for path in paths:
                (new / path.name).symlink_to(path.resolve())
            folder.parent.mkdir(exist_ok=True)
            with suppress(OSError):  # another visitor's thread was sooner
                new.rename(folder)
        return folder

    def sample(self, path: Any) -> Any:
        """A copy, where the page may serve it, of a file that ships; of a folder, of each file in it; None of None."""
        if path is None:
            return None
        source, target = Path(path), self.folder / "page" / "samples" / Path(path).name
        if source.is_dir():
            return [self.sample(one) for one in sorted(source.rglob("*")) if one.is_file()]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return str(target)

    def copy(self, files: Sequence[Path]) -> None:
        """Copies for the folder of results, if there is one; an older one of that name gets out of no one's way."""
        if self.keep is None or not files:
            return
        number = 1
        while (target := self.keep / f"{files[0].stem}-{number}").exists():
            number += 1
        with explain_disk_errors(target):
            target.mkdir(parents=True)
            for path in files:
                shutil.copy2(path, target / path.name)

    def close(self) -> None:
        """Remove every file that is left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._held)

    def run(
        self,
        session: str,
        modality: str,
        forecast: float,
        work: Callable[[OnStep], Any],
        glimpse: Callable[[Any, Path], None] | None,
        folder: Path,
    ) -> Iterator[Progress | Finished]:
        """Do ``work(on_step)`` in a thread.

        forecast: seconds it was expected to take. glimpse(clean, path): writes a preview picture of the clean estimate;
        one that fails is logged, and the run goes on without previews. Whatever work raises is raised here.
        When this iterator is dropped the job is stopped.
        """
        notes: queue.Queue[Progress | Finished | BaseException] = queue.Queue()
        ended = threading.Event()
        started = time.monotonic()
        last_glimpse, glimpse_cost, draws = started, 0.0, glimpse is not None

        def on_step(step: int, steps: int, clean: Any) -> bool:
            nonlocal last_glimpse, glimpse_cost, draws
            now, picture = time.monotonic(), None
            wait = max(GLIMPSE_SECONDS, glimpse_cost / GLIMPSE_SHARE)
            wanted = step == 1 or (step < steps and now - last_glimpse >= wait)
            if glimpse is not None and draws and clean is not None and wanted:
                picture = folder / f"glimpse-{step}.png"
                try:
                    glimpse(clean, picture)
                except Exception:  # a picture that cannot be drawn is not worth the run
                    logging.getLogger(__name__).exception("no preview of %s: the run goes on without", modality)
                    picture, draws = None, False
                last_glimpse = time.monotonic()
                glimpse_cost = last_glimpse - now
            spent = time.monotonic() - started
            notes.put(Progress(step, steps, spent / step * (steps - step), picture))
            return ended.is_set()

        def target() -> None:
            try:
                with self._device:
                    self._running = session, ended
                    try:
                        result = work(on_step)
                    finally:
                        self._running = None
                notes.put(Finished(result, time.monotonic() - started))
            except BaseException as error:  # the thread that reads the notes raises it
                notes.put(error)

        thread = threading.Thread(target=target, name=f"longtake-{modality}", daemon=True)
        thread.start()
        try:
            while True:
                note = notes.get()
                if isinstance(note, BaseException):
                    raise note
                if isinstance(note, Finished):
                    self._pace[modality] = note.seconds / max(forecast, 1e-6)
                yield note
                if isinstance(note, Finished):
                    return
        finally:
            if thread.is_alive():
                ended.set()
                thread.join()


def _remove_abandoned() -> None:
    """Remove the temporary folders of pages that were killed: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            held = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)
