"""The two errors that the package raises on purpose, and the wording of errors for people.

`UserError` is a mistake that a user can mend: the command line prints it as one line and exits with code 2.
`RankFailure` says that another process of a distributed run is gone.

    with explain_disk_errors(path):
        path.write_bytes(data)          # a full disk becomes a UserError that names the file
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "the folder does not exist",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "something else of that name is in the way",
    errno.ELOOP: "it is a symbolic link that leads round in circles, or may not be followed",
    errno.ENXIO: "it is a pipe or a device, not a file",
    errno.EIO: "the disk reports an error",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


class UserError(ValueError):
    """A request that cannot be honoured as given. The message is one line: what was required, given, allowed, to do."""


class RankFailure(RuntimeError):
    """Another rank of this run failed, was lost, or could not be reached."""


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, for a terminal and for other ranks."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def told(error: BaseException) -> str:
    """One line for a reader who sees no traceback: a UserError's message alone, another error with its type first."""
    return one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def shorten(text: str, limit: int = 60) -> str:
    """`text` on one line, cut to `limit` letters."""
    text = " ".join(text[: 4 * limit].split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def in_brief(value: object, limit: int = 60) -> str:
    """A value that somebody gave, as Python writes it, in ASCII and cut to `limit` letters."""
    try:
        return shorten(ascii(value), limit)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return f"a {type(value).__name__} that is too large to show"


@contextmanager
def explain_disk_errors(path: str | PathLike[str]) -> Iterator[None]:
    """Turn an OSError about the disk (full, read-only, missing folder, ...) into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        raise UserError(f"cannot write {path}: {reason}") from error
