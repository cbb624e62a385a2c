"""The one job that runs on the device: a thread of its own, its progress, its files, and who may stop it.

    for note in bench.run("session", "motion", pipe, steps, frames, work, glimpse, folder):
        ...                                                         # Progress(...) as it goes, at last Finished(...)
    bench.stop("session")                                           # what is finished is kept
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.errors import UserError, explain_disk_errors

GLIMPSE_SECONDS = 1.0  # at most one preview in so long a time,
_MOST_WAITING = 1000  # sessions; one that left without a run is forgotten in the end
GLIMPSE_SHARE = 0.2  # and at most this share of the run's time goes into previews


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
    results, or None.
    """

    def __init__(self, keep: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="longtake-demo-"))
        self.keep = keep
        self._device = threading.Lock()
        self._guard = threading.Lock()
        self._pipes: dict[tuple[str, str], Any] = {}
        self._running: tuple[str, Any] | None = None
        self._waiting: dict[str, bool] = {}  # session: whether its queued job is still wanted
        self._pace: dict[str, float] = {}

    def pipeline(self, modality: str, prior: str, load: Callable[[], Any]) -> Any:
        """The pipeline of a prior, loaded once."""
        with self._guard:
            if (modality, prior) not in self._pipes:
                self._pipes[modality, prior] = load()
            return self._pipes[modality, prior]

    def expect(self, session: str) -> None:
        """A job of this session has joined the queue."""
        self._waiting[session] = True
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.pop(next(iter(self._waiting)), None)

    def begin(self, session: str) -> None:
        """A job of this session has come to its turn. Raises UserError when it was stopped while it waited."""
        if self._waiting.pop(session, True) is False:
            raise UserError("stopped before it began")

    def stop(self, session: str) -> str:
        """Ask this session's job to end after the step at work, or to give up its place in the queue; what happens, in
        words."""
        running = self._running
        if running is not None and running[0] == session:
            running[1].stop()
            return "Stopping after this step; what is done is kept."
        if session in self._waiting:
            self._waiting[session] = False
            return "Your run gives up its place in the queue."
        return "Nothing of yours is running."

    def pace(self, modality: str, default: float) -> tuple[float, bool]:
        """Seconds a frame and step: measured by the last run here (True), else the default (False)."""
        return self._pace.get(modality, default), modality in self._pace

    def new_folder(self) -> Path:
        """An empty folder of its own for a job's files."""
        return Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))

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

    def run(
        self,
        session: str,
        modality: str,
        pipe: Any,
        steps: int,
        frames: int,
        work: Callable[[Callable[..., dict[str, Any]]], Any],
        glimpse: Callable[[Any, Path], None],
        folder: Path,
    ) -> Iterator[Progress | Finished]:
        """Do ``work(callback)`` in a thread, where callback is a pipeline's ``callback_on_step_end``.

        glimpse(clean, path): writes a preview picture of the clean estimate. Whatever work raises is raised here. When
        this iterator is dropped the job is stopped.
        """
        notes: queue.Queue[Progress | Finished | BaseException] = queue.Queue()
        started = time.monotonic()
        last_glimpse, glimpse_cost = started, 0.0

        def callback(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal last_glimpse, glimpse_cost
            step = index + 1
            now, picture = time.monotonic(), None
            wait = max(GLIMPSE_SECONDS, glimpse_cost / GLIMPSE_SHARE)
            if step == 1 or (step < steps and now - last_glimpse >= wait):
                picture = folder / f"glimpse-{step}.png"
                glimpse(tensors["clean"], picture)
                last_glimpse = time.monotonic()
                glimpse_cost = last_glimpse - now
            spent = time.monotonic() - started
            notes.put(Progress(step, steps, spent / step * (steps - step), picture))
            return tensors

        def target() -> None:
            try:
                with self._device:
                    self._running = session, pipe
                    try:
                        result = work(callback)
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
                    self._pace[modality] = note.seconds / (frames * steps)
                yield note
                if isinstance(note, Finished):
                    return
        finally:
            if thread.is_alive():
                pipe.stop()
                thread.join()
