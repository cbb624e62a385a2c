"""A film as a stream of sampled frames, with the times at which they are shown; memory holds a few frames.

    film = Film("dog.mp4")
    for time, frame in film.frames(rate=4.0, size=224):      # seconds, uint8 (224, 224, 3)
        ...

Times are those of the file (variable frame rates included), less the first one; a film that a phone holds upright is
turned as its player would. A frame is sampled when the film has passed the next of the times 0, 1 / rate, 2 / rate, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError, one_line
from longtake.media import _url

MOST_BROKEN = 200  # packets in a row that cannot be decoded before a film counts as ended


class Film:
    """A film file. Raises UserError when it is missing, no film, or has no pictures.

    seconds: how long it says it is, None when it does not say. notes: what a reader found on the way, for people.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        if not self.path.is_file():
            raise UserError(f"the film {path} {'is no file' if self.path.exists() else 'does not exist'}")
        with self._open() as container:
            stream = container.streams.video[0]
            length = None if stream.duration is None else float(stream.duration * stream.time_base)
            if length is None and container.duration is not None:
                length = container.duration / 1e6
            self.seconds = length if length is not None and length > 0 else None

    def _open(self) -> Any:
        import av

        try:
            container = av.open(_url(self.path))
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.path} is no film that can be read: {one_line(error)}") from error
        if not container.streams.video:
            container.close()
            raise UserError(f"{self.path} has no pictures in it (no video stream)")
        container.streams.video[0].thread_type = "AUTO"
        return container

    def frames(
        self, rate: float, size: int | None = None, start: float = 0.0, end: float | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, uint8 (H, W, 3)), ``rate`` a second from ``start`` to before ``end``.

        size: side of the square that each is scaled to, None leaves it as it is. A film that ends too soon, or cannot
        be decoded in the middle, is read as far as it goes, and `notes` says so. Raises UserError when nothing of it
        can be read.
        """
        import av

        with self._open() as container:
            stream = container.streams.video[0]
            origin = float((stream.start_time or 0) * stream.time_base) if stream.time_base is not None else 0.0
            if start > 0:
                container.seek(int(max(0.0, start - 1.0 + origin) / stream.time_base), stream=stream)
            number, last, found, broken = int(np.ceil(start * rate - 1e-6)), -1.0, False, 0
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                    decoded = packet.decode()
                    broken = 0
                except StopIteration:
                    break
                except (av.FFmpegError, OSError) as error:
                    broken += 1
                    if broken == 1:
                        self._note(f"{self.path.name} is damaged near {max(last, 0):.0f} s: {one_line(error)}")
                    if broken > MOST_BROKEN:
                        break
                    continue
                for frame in decoded:
                    time = last + 1 / 25 if frame.time is None else frame.time - origin
                    if not found and start == 0 and time > 0:
                        origin, time = origin + time, 0.0  # a stream whose first picture comes late
                    found, last = True, max(last, time)
                    if end is not None and time >= end:
                        return
                    if time + 1e-6 >= number / rate:
                        number = int(np.floor(time * rate + 1e-6)) + 1
                        yield time, _array(frame, size)
            if not found and start == 0:
                raise UserError(f"{self.path} is no film that can be read: not one picture could be decoded")
            if end is None and self.seconds is not None and last < self.seconds - max(2.0, 0.02 * self.seconds):
                self._note(f"{self.path.name} ends at {last:.0f} s, not at {self.seconds:.0f} s as it says")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _array(frame: Any, size: int | None) -> np.ndarray:
    """A frame's pixels, turned as its display matrix says."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    pixels = frame.to_ndarray(format="rgb24") if size is None else _scaled(frame, size)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _scaled(frame: Any, size: int) -> np.ndarray:
    pixels: np.ndarray = frame.reformat(width=size, height=size, format="rgb24", interpolation="BILINEAR").to_ndarray()
    return pixels
