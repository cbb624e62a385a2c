"""Records that survive a kill: a JSON object a line, whole or not at all, in a folder that one run holds.

with hold(out, resume=False, overwrite=False):     # no other batch works here
    append(out / RESULTS, {"id": "walk-1", "status": "done"})
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.errors import UserError, explain_disk_errors

RESULTS = "results.jsonl"


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line, whole and on the disk before this returns; safe among ranks, and after a torn line."""
    data = (json.dumps(row) + "\n").encode()
    with explain_disk_errors(path), open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a record, in order; a line that a kill tore is passed over."""
    if not path.is_file():  # a pipe in its place would make the reader wait for ever
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


@contextmanager
def hold(folder: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the folder of results ready, and keep other batches out of it inside the block. Raises UserError."""
    results = folder / RESULTS
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    try:
        with explain_disk_errors(folder):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another batch works in {folder}: wait for it, or give another --out") from None
            if results.exists() and not resume and not overwrite:
                raise UserError(f"{folder} holds results: --resume does the rest, --overwrite makes all anew")
            if overwrite:
                results.unlink(missing_ok=True)
            with open(results, "ab"):
                pass
        yield
    finally:
        os.close(held)
