"""The two errors that the package raises on purpose, and the wording of disk errors.

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
