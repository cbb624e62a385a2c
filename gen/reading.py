"""Reading small files that others wrote: text and JSON, bounded, and every surprise a UserError of one line.

    config = read_json_object(folder / "config.json")        # a dict, or UserError that names the file

A file is read only when it is a regular one: a pipe would make the reader wait for ever. JSON that is nested too deep,
has numbers of thousands of digits, or is of another type than asked for is refused like JSON that is none.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from longtake.errors import UserError

MAX_BYTES = 64 * 2**20  # the shard index of a model of a trillion weights is smaller


def local_path(text: str | os.PathLike[str]) -> Path:
    """A path with a leading ~ resolved. Raises UserError for a home folder that nobody has and for a NUL character."""
    name = os.fspath(text)
    if "\0" in name:
        raise UserError(f"the path {name!r} holds a NUL character, which no file name can")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"the path {name} cannot be resolved: there is no such user here") from None


def read_bytes(path: str | os.PathLike[str], what: str | None = None, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    what: how messages call it; None: its path. Raises UserError when it is missing, unreadable, larger, or not a file.
    """
    name = what or os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(descriptor).st_mode
            data = _read(descriptor, limit + 1) if stat.S_ISREG(kind) else None
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL character, or half a letter
        raise UserError(f"{name} cannot be read: no file can have this name") from None
    if data is None:
        raise UserError(f"{name} is {'a folder' if stat.S_ISDIR(kind) else 'a pipe or a device'}, not a file")
    if len(data) > limit:
        raise UserError(f"{name} is larger than {limit / 2**20:.0f} MiB, the most that is read of such a file")
    return data


def _read(descriptor: int, limit: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(limit)


def read_text(path: str | os.PathLike[str], what: str | None = None, limit: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, a byte order mark left out. Raises UserError like `read_bytes`, and for other bytes."""
    try:
        return read_bytes(path, what, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what or os.fspath(path)} is not a UTF-8 text file") from None


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text, called `what` in messages. Raises UserError for text that is none or is too deep."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is not valid JSON: {error.msg} at line {error.lineno}") from None
    except RecursionError:
        raise UserError(f"{what} is not valid JSON: it is nested too deep") from None
    except ValueError:  # a number of more digits than Python converts, or bytes that are no UTF-8
        raise UserError(f"{what} is not valid JSON: it holds a number or a letter that cannot be read") from None


def read_json(path: str | os.PathLike[str], what: str | None = None) -> Any:
    """The value in a JSON file. Raises UserError when it is missing, unreadable or damaged."""
    return parse_json(read_text(path, what), what or os.fspath(path))


def read_json_object(path: str | os.PathLike[str], what: str | None = None) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError like `read_json`, and for a value that is no object."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(type(value), "a number")
        raise UserError(f"{what or os.fspath(path)} must hold a JSON object {{...}}, not {kind}")
    return value
