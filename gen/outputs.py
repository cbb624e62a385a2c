"""Typed results. Each modality's output has `.save(path)` and `.preview(path)`; it may be whole or a stream.

Legend: F frames, n frames of one chunk, H height, W width in pixels.

    output = VideoOutput(frames, fps=12)
    output.save("run.mp4", preview="run.png")
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError, explain_disk_errors
from longtake.media import VideoWriter, check_film, check_output, contact_sheet, write_gif, write_png_folder

if TYPE_CHECKING:
    import torch

PREVIEW_FRAMES = 16
_SUFFIXES = (".mp4", ".gif", "")


@dataclass(frozen=True)
class FileKind:
    """One kind of file of an output, for a table by suffix.

    write(output, path): writes it, whatever is there. whole(path): raises when the file is missing, damaged or cut off.
    """

    write: Callable[[Any, Path], None]
    whole: Callable[[Path], None]


@dataclass
class Output(ABC):
    """A result and what is known about it. info: JSON values about the run (seed, seconds, prior, ...)."""

    info: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @abstractmethod
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the result; the suffix chooses the kind of file. Returns the path. Raises UserError."""

    @abstractmethod
    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one picture that shows the result at a glance. Returns the path. Raises UserError."""

    def save_all(self, paths: Sequence[Path], *, overwrite: bool = False) -> None:
        """Write several files of one result. Raises UserError."""
        for path in paths:
            self.save(path, overwrite=overwrite)

    def drain(self) -> None:  # noqa: B027 - a result that is whole has nothing to drain
        """Read to its end what other ranks are still sending."""


@dataclass
class VideoOutput(Output):
    """A film.

    frames: uint8 (F, H, W, 3), or an iterable of chunks uint8 (n, H, W, 3), which can be read once.
    fps: frames per second. latents: what extend and redo start from, if kept; its layout is the domain's.
    total_frames: F, needed of a stream whose preview is wanted.
    """

    frames: np.ndarray | Iterable[np.ndarray]
    fps: float
    latents: torch.Tensor | None = None
    total_frames: int | None = None
    _samples: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _is_read: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.frames, np.ndarray):
            if self.frames.ndim != 4 or self.frames.shape[3] != 3 or self.frames.dtype != np.uint8:
                raise ValueError(
                    f"frames must be uint8 (F, H, W, 3), not {self.frames.dtype} {self.frames.shape}; see to_uint8"
                )
            self.total_frames = len(self.frames)

    def chunks(self) -> Iterator[np.ndarray]:
        """The film in chunks uint8 (n, H, W, 3). A stream can be read once; the preview's frames are kept."""
        if isinstance(self.frames, np.ndarray):
            yield self.frames
            return
        if self._is_read:
            raise ValueError("the frames of this output are a stream and were read already; save it once")
        self._is_read = True
        wanted = set(self._preview_indices())
        start = 0
        for chunk in self.frames:
            for index in wanted.intersection(range(start, start + len(chunk))):
                self._samples[index] = chunk[index - start].copy()
            start += len(chunk)
            yield chunk
        if self.total_frames is not None and start != self.total_frames:
            raise ValueError(f"the stream had {start} frames, not {self.total_frames}")

    def save_all(self, paths: Sequence[Path], *, overwrite: bool = False) -> None:
        """Write several files; a stream goes through a temporary file beside the first of them, not through memory."""
        if len(paths) < 2 or isinstance(self.frames, np.ndarray):
            super().save_all(paths, overwrite=overwrite)
            return
        with explain_disk_errors(paths[0]), tempfile.TemporaryFile(dir=paths[0].parent) as spool:
            shape: tuple[int, ...] = ()
            for chunk in self.chunks():
                shape = chunk.shape[1:]
                spool.write(np.ascontiguousarray(chunk).tobytes())
            for path in paths:
                replace(self, frames=_read_back(spool, shape)).save(path, overwrite=overwrite)

    def drain(self) -> None:
        """Read the rest of a stream."""
        if not isinstance(self.frames, np.ndarray):
            for _ in self.frames:
                pass

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        preview: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write .mp4, .gif, or (no suffix) a folder of png files; `preview` names a contact sheet to write too."""
        path = check_output(path, _SUFFIXES, overwrite)
        if preview is not None:
            check_output(preview, (".png",), overwrite)
        if path.suffix.lower() == ".mp4":
            with VideoWriter(path, self.fps, overwrite=overwrite) as writer:
                for chunk in self.chunks():
                    writer.write(chunk)
        else:
            each_frame = (frame for chunk in self.chunks() for frame in chunk)
            if path.suffix.lower() == ".gif":
                write_gif(each_frame, path, self.fps, overwrite)
            else:
                write_png_folder(each_frame, path, overwrite)
        if preview is not None:
            self.preview(preview, overwrite=overwrite)
        return path

    def preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a contact sheet (.png) of 16 frames at most, evenly spread and numbered. A stream: after `save`."""
        path = check_output(path, (".png",), overwrite)
        if isinstance(self.frames, np.ndarray):
            self._samples = {index: self.frames[index] for index in self._preview_indices()}
        if not self._samples:
            raise UserError(
                f"cannot write {path}: the frames are a stream; give its total_frames and save it before the preview"
            )
        indices = sorted(self._samples)
        sheet = [self._samples[index] for index in indices]
        contact_sheet(sheet, path, columns=8, captions=[str(index) for index in indices], overwrite=overwrite)
        return path

    def _preview_indices(self) -> list[int]:
        total = self.total_frames or 0
        count = min(PREVIEW_FRAMES, total)
        return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def _read_back(spool: IO[bytes], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Frames (1, H, W, 3) of a temporary file, from its start."""
    spool.seek(0)
    size = int(np.prod(shape))
    while data := spool.read(size):
        yield np.frombuffer(data, np.uint8).reshape(1, *shape)


def _write(output: Any, path: Path) -> None:
    output.save(path, overwrite=True)


def _whole_folder(path: Path) -> None:
    from longtake.media import check_picture

    pictures = sorted(path.glob("*.png"))
    if not pictures:
        raise UserError(f"{path} holds no pictures")
    for picture in (pictures[0], pictures[-1]):
        check_picture(picture)


# suffix -> kind; "" is a folder of png files
FILMS = {
    ".mp4": FileKind(_write, check_film),
    ".gif": FileKind(_write, check_film),
    "": FileKind(_write, _whole_folder),
}
