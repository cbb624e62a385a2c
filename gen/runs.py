"""What every domain's command does around a run: folder and journal, Ctrl-C that keeps what there is, quiet libraries.

    journal = open_run(folder, plan, ranks, resume=args.resume, overwrite=args.overwrite)
    with stop_on_interrupt(pipe):
        output = pipe(...)
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from longtake.errors import UserError, one_line

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.pipeline import LongTakePipeline

T = TypeVar("T")


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
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            trouble = kind + one_line(error)
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


def open_run(
    folder: Path,
    plan: dict[str, Any],
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
    result: str | None = None,
) -> Journal:
    """The journal of a run, opened by rank 0 and attached by the others; a folder that this call made is removed on
    failure. result: name of a finished run's file in the folder, removed when the run begins anew.

    Raises UserError when the folder holds an earlier run and neither resume nor overwrite is set, or another plan.
    """
    from longtake.journal import Journal, Policy

    journal = Journal(folder)
    if ranks.is_main:
        new = not folder.exists()
        if not new and not resume and not overwrite and (folder / "journal.json").exists():
            raise UserError(f"{folder} holds an earlier run: --resume goes on with it, --overwrite begins anew")
        try:
            journal.open(plan, Policy.OVERWRITE if overwrite else Policy.RESUME)
        except UserError:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if overwrite and result is not None:
            (folder / result).unlink(missing_ok=True)
    ranks.barrier()
    if not ranks.is_main:
        journal.attach(plan)
    return journal


def close_run(journal: Journal, folder: Path, info: dict[str, Any]) -> None:
    """Record that the run ended, and drop its checkpoints when it was completed."""
    journal.record({"done": info["completed"], **{key: info[key] for key in ("frames", "seconds", "steps")}})
    if info["completed"]:
        for piece in folder.glob("step*.safetensors"):
            piece.unlink()
    journal.close()


@contextmanager
def stop_on_interrupt(pipe: LongTakePipeline) -> Iterator[None]:
    """Inside the block, the first Ctrl-C finishes the step and keeps what there is; a second one ends at once."""
    with on_interrupt("stopping after this step", pipe.stop):
        yield


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
