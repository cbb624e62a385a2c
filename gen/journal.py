"""Journal: the crash-safe record of a run, in a folder.

    journal = Journal(folder)
    journal.open(plan, Policy.RESUME)                        # rank 0; the others call attach(plan) after a barrier
    journal.write_tensors(piece_name("step", 3, rank, world), {"latents": x})
    step, files = journal.latest("step")                     # the newest step of which every rank's piece is there

Files:
    journal.json                        format, fingerprint and the plan itself
    events.jsonl                        one event a line, in order
    step000003.rank0of2.safetensors     piece of rank 0 of 2; a piece of a single process has no ".rankRofW"
    .NAME.longtake.partial              being written when the run was killed; never read, removed by the next `open`

Each file is written under another name, flushed to the disk and moved into place, so after a kill at any instant every
file that is there is whole. A plan holds what decides the result (prompts, seed, steps, weights' hash), not what may
change between a run and its continuation (number of ranks, device, output path).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from longtake.errors import UserError, explain_disk_errors, shorten
from longtake.reading import read_json
from longtake.records import append, read

if TYPE_CHECKING:
    import torch

PARTIAL = ".longtake.partial"  # how the names of our temporary files end
_FORMAT = 1
_HEAD = "journal.json"
_EVENTS = "events.jsonl"
_LOCK = "journal.lock"
_PIECE = re.compile(r"(?P<prefix>.*?)(?P<step>\d+)(?:\.rank(?P<rank>\d+)of(?P<world>\d+))?\.(?:safetensors|json)")


class Policy(StrEnum):
    """What `Journal.open` does when the folder already holds a run."""

    NEW = "new"  # refuse it
    RESUME = "resume"  # continue it when its plan is the same, refuse another plan
    OVERWRITE = "overwrite"  # remove the record of whatever run is there


def fingerprint(plan: dict[str, Any]) -> str:
    """Stable hash (64 hex digits) of a plan made of JSON values; the order of keys does not matter."""
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def piece_name(prefix: str, step: int, rank: int = 0, world: int = 1, suffix: str = ".safetensors") -> str:
    """Name of one rank's file of a step: step000003.rank0of2.safetensors, or step000003.safetensors for world 1."""
    part = f".rank{rank}of{world}" if world > 1 else ""
    return f"{prefix}{step:06d}{part}{suffix}"


def partial_path(path: Path) -> Path:
    """The temporary name that `path` is written under: hidden, beside it, recognisably ours, short enough to exist."""
    name = f".{path.name}{PARTIAL}"
    if len(os.fsencode(name)) > 255:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{PARTIAL}"
    return path.with_name(name)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it is flushed to the disk and replaces `path`, else it is removed.

    Raises UserError when the disk is full, read-only, or the folder is missing.
    """
    partial = partial_path(path)
    with explain_disk_errors(path):
        partial.unlink(missing_ok=True)  # what a kill left; or a pipe or a link, which must not be written through
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors (any device) to a safetensors file, atomically. Raises UserError when the disk is full."""
    from safetensors.torch import save

    own = {name: _own_memory(tensor) for name, tensor in tensors.items()}
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(save(own, metadata=metadata))


class Journal:
    """The record of one run in `folder`. See the module's docstring.

    every_steps: how many steps lie between two checkpoints; for whoever writes them.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.every_steps = 1
        self._lock: IO[str] | None = None

    # --------------------------------------------------------------------------------------------- life cycle

    def open(self, plan: dict[str, Any], policy: Policy | str = Policy.RESUME) -> bool:
        """Start or continue a run; for rank 0 only. True when it continues an earlier run of the same plan.

        Raises UserError when the folder holds a run that `policy` does not allow, when another process is at work in
        it, or when it cannot be written.
        """
        policy = Policy(policy)
        mark = fingerprint(plan)
        with explain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            try:
                head = self._head()
            except UserError:
                if policy is not Policy.OVERWRITE:
                    raise
                head = None
            if head is not None and policy is Policy.NEW:
                raise UserError(f"{self.folder} already holds a run: resume it, overwrite it, or choose another folder")
            if head is not None and policy is Policy.RESUME and head["fingerprint"] != mark:
                raise UserError(
                    f"{self.folder} holds another run ({_difference(head['plan'], plan)}): "
                    "overwrite it or choose another folder"
                )
            self._remove_leftovers(everything=head is None or policy is Policy.OVERWRITE)
            if head is not None and policy is Policy.RESUME:
                return True
            self.write_json(_HEAD, {"format": _FORMAT, "fingerprint": mark, "plan": plan})
            return False
        except BaseException:
            self.close()
            raise

    def attach(self, plan: dict[str, Any]) -> None:
        """For ranks other than 0, after rank 0's `open`: check that the folder holds the run of this plan."""
        head = self._head()
        if head is None:
            raise UserError(f"{self.folder} holds no run; is the folder on a disk that all machines share?")
        if head["fingerprint"] != fingerprint(plan):
            raise UserError(f"{self.folder} holds another run ({_difference(head['plan'], plan)})")

    def close(self) -> None:
        """Let other processes use the folder. (The kernel does it too when this process dies.)"""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def plan(self) -> dict[str, Any] | None:
        """The plan of the run in the folder; None when there is no run."""
        head = self._head()
        return None if head is None else head["plan"]

    # ------------------------------------------------------------------------------------------------ writing

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file, atomically; returns its path."""
        path = self.folder / name
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return path

    def write_tensors(
        self, name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
    ) -> Path:
        """Write a safetensors file, atomically; returns its path. `name` ends in .safetensors."""
        if not name.endswith(".safetensors"):
            raise ValueError(f"{name!r} must end in .safetensors")
        write_tensors(self.folder / name, tensors, metadata)
        return self.folder / name

    def record(self, event: dict[str, Any]) -> None:
        """Append one event to events.jsonl and flush it to the disk; for one rank only."""
        append(self.folder / _EVENTS, event)

    def prune(self, prefix: str, keep: int = 1) -> None:
        """Remove the pieces of all steps older than the newest `keep` complete ones."""
        complete = self.complete_sets(prefix)
        if keep < 1 or len(complete) <= keep:
            return
        oldest_kept = sorted(complete)[-keep]
        for path, step, _, _ in self._pieces(prefix):
            if step < oldest_kept:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the pieces of all steps."""
        for path in self._all_pieces():
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ reading

    def holds(self, plan: dict[str, Any]) -> bool:
        """Whether the folder holds the run of this plan, as far as that can be read."""
        try:
            head = self._head()
        except UserError:
            return False
        return head is not None and head["fingerprint"] == fingerprint(plan)

    def has_pieces(self) -> bool:
        """Whether a step of any rank is there."""
        return bool(self._all_pieces())

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the journal. Raises UserError when it is missing or damaged."""
        path = self.folder / name
        return read_json(path, f"{path} is damaged or missing: it")

    def read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read a safetensors file of the journal, on the CPU. Raises UserError when it is missing or damaged."""
        from longtake.weights import load_state

        return load_state(self.folder / name)

    def events(self) -> list[dict[str, Any]]:
        """All events in order; a line that a kill left torn is skipped."""
        return list(read(self.folder / _EVENTS))

    def complete_sets(self, prefix: str) -> dict[int, list[Path]]:
        """Step -> files in order of rank, for the steps of which every rank's piece is there and whole.

        A step that was written by several numbers of ranks counts once, with the smallest complete number.
        """
        by_step: dict[int, dict[int, dict[int, Path]]] = {}
        for path, step, rank, world in self._pieces(prefix):
            if _is_whole(path):
                by_step.setdefault(step, {}).setdefault(world, {})[rank] = path
        complete: dict[int, list[Path]] = {}
        for step in sorted(by_step):
            for world, pieces in sorted(by_step[step].items()):
                if len(pieces) == world and max(pieces) == world - 1:
                    complete[step] = [pieces[rank] for rank in range(world)]
                    break
        return complete

    def latest(self, prefix: str) -> tuple[int, list[Path]] | None:
        """The newest complete step and its files in order of rank; None when there is none."""
        complete = self.complete_sets(prefix)
        if not complete:
            return None
        step = max(complete)
        return step, complete[step]

    # ----------------------------------------------------------------------------------------------- internal

    def _head(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.folder / _HEAD):
            return None
        head = self.read_json(_HEAD)
        good = isinstance(head, dict) and head.get("format") == _FORMAT
        if not good or not isinstance(head.get("fingerprint"), str) or not isinstance(head.get("plan"), dict):
            raise UserError(
                f"{self.folder / _HEAD} is not a journal of format {_FORMAT}; use another longtake or folder"
            )
        return head

    def _pieces(self, prefix: str) -> Iterator[tuple[Path, int, int, int]]:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            match = _PIECE.fullmatch(path.name)
            if match and match["prefix"] == prefix:
                yield path, int(match["step"]), int(match["rank"] or 0), int(match["world"] or 1)

    def _all_pieces(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in sorted(self.folder.iterdir()) if _PIECE.fullmatch(path.name)]

    def _remove_leftovers(self, everything: bool) -> None:
        """Remove our temporaries; with `everything` also the files of an earlier run (and nothing that is not ours)."""
        with explain_disk_errors(self.folder):
            # The head goes first: a kill in the middle then leaves no run rather than a damaged one.
            if everything:
                (self.folder / _HEAD).unlink(missing_ok=True)
            for path in list(self.folder.iterdir()):
                temporary = path.name.startswith(".") and path.name.endswith(PARTIAL)
                temporary = temporary or (path.name.endswith(".partial") and _is_ours(path.name[: -len(".partial")]))
                if not path.is_dir() and (temporary or (everything and _is_ours(path.name))):
                    path.unlink(missing_ok=True)

    def _acquire(self) -> None:
        path = self.folder / _LOCK
        with explain_disk_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = open(os.open(path, flags, 0o644), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(
                f"another process is at work in {self.folder}; wait for it or choose another folder"
            ) from None
        self._lock = lock


def _is_ours(name: str) -> bool:
    """Whether a file of a run's folder is part of the record."""
    return name in (_HEAD, _EVENTS) or _PIECE.fullmatch(name) is not None


def _own_memory(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _is_whole(path: Path) -> bool:
    """Whether a file has the size that its safetensors header promises; a file of another kind is whole."""
    if not path.is_file():
        return False
    if path.suffix != ".safetensors":
        return True
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                return False
            (header_bytes,) = struct.unpack("<Q", start)
            if header_bytes > size - 8:
                return False
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(size == 8 + header_bytes + max(ends, default=0))
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return False  # no header, or one of another shape


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which settings of two plans differ, in a few words."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if not keys:
        return "its plan differs"
    key = keys[0]
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    if key == "weights":  # a hash says nothing to a reader
        return f"it was made with the weights of another prior: name that one with --prior{more}"
    if key == "dtype":
        was, now = (plan.get(key, "float32") for plan in (old, new))
        return f"it was made in {was}, this is {now}: say --dtype {was}{more}"
    return f"{key} was {_brief(old.get(key))}, is {_brief(new.get(key))}{more}"


def _brief(value: Any, limit: int = 60) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), limit)


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
