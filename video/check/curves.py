"""A film as curves: one pass over the file, each frame shrunk when it is decoded, a few numbers kept of it.

Legend: F frames, S samples of sharpness (about eight a second), T = 64 tiles (8 x 8) of the shrunk picture. Pixels and
their differences are in grey levels 0..255, times in seconds.

    curves = read_curves("film.mp4")
    curves.step[17], curves.times[18]        # how much changes from frame 17 to 18, and when 18 is shown

Of a frame about 0.7 KB stay, so an hour at 24 frames a second holds 60 MB, whatever its size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError, one_line
from longtake.video.watch.decode import MOST_BROKEN, Film, _array

SIDE = 64  # of the square that a frame is shrunk to, by area; every film is judged at this size
TILES = 8  # tiles on each side
SHARP_RATE = 8.0  # samples of sharpness a second
SHARP_WIDTH = 1280  # most pixels across in which sharpness is measured
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of BT.601
DARK, BRIGHT = 2.0, 253.5  # a tile beyond these is clipped: its tone says nothing

OnFrame = Callable[[int, int], None]  # (frames read, frames in all or 0 where the file does not say)


@dataclass
class Curves:
    """What is kept of a film.

    times: (F,) seconds at which each frame is shown, the first at 0. step: (F - 1,) mean absolute change to the next
    frame; busiest: (F - 1,) the same in the tile that changes most. tiles: (F, 64, 3) float16, mean RGB of each tile;
    spread: (F, 64) float16, standard deviation of the luma in it; contrast: (F,) the same of the whole picture. tone:
    (F - 1, 3) change of RGB that most tiles have in common. likeness: (F - 1,)
    correlation of two neighbours' luma, -1..1; palette: (F - 1,) share of the pixels, 0..1, whose colour the other
    frame has not. sharp_at: (S,) frame numbers; sharp: (S, 64) root mean
    square of the Laplacian in each tile, at up to 1280 pixels across.
    size: width and height as shown. notes: what the reader met on the way.
    """

    times: np.ndarray
    step: np.ndarray
    busiest: np.ndarray
    tiles: np.ndarray
    spread: np.ndarray
    contrast: np.ndarray
    tone: np.ndarray
    likeness: np.ndarray
    palette: np.ndarray
    sharp_at: np.ndarray
    sharp: np.ndarray
    size: tuple[int, int]
    notes: list[str]

    @property
    def frames(self) -> int:
        """How many frames were read."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Frames a second, from the median distance of two; 25 for a film of one frame."""
        gaps = np.diff(self.times)
        gaps = gaps[gaps > 0]
        return float(1.0 / np.median(gaps)) if len(gaps) else 25.0

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last one."""
        return float(self.times[-1] + 1.0 / self.fps)


class Pictures(Film):
    """A film file of which every frame is read, with its time; see `Film` for what is refused."""

    def length(self) -> int:
        """Frames that the file says it has, else an estimate from its seconds; 0 where it says neither."""
        with self._open() as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            return int(stream.frames or round((self.seconds or 0) * rate))

    def every(self) -> Iterator[tuple[float, Any]]:
        """(seconds, frame of PyAV), in the order shown. A damaged part is left out and `notes` says so. Raises
        UserError when not one frame can be decoded."""
        import av

        with self._open() as container:
            stream = container.streams.video[0]
            usual = 1.0 / float(stream.average_rate or 25)
            first: float | None = None
            last, broken = -usual, 0
            packets = container.demux(stream)
            while broken <= MOST_BROKEN:
                try:
                    decoded = next(packets).decode()
                    broken = 0
                except StopIteration:
                    break
                except (av.FFmpegError, OSError) as error:
                    broken += 1
                    self._note(f"{self.path.name} is damaged near {max(last, 0):.0f} s: {one_line(error)}")
                    continue
                for frame in decoded:
                    shown = None if frame.time is None else float(frame.time)
                    if first is None and shown is not None:
                        first = shown
                    time = last + usual if shown is None or first is None else shown - first
                    last = max(time, last)  # a film whose clock runs back keeps its order
                    yield last, frame
            if first is None and last < 0:
                raise UserError(f"{self.path} is no film that can be read: not one picture could be decoded")


def read_curves(path: str | Path, on_frame: OnFrame | None = None) -> Curves:
    """Decode a film once and measure it. Raises UserError when it is missing, no film, or has no pictures."""
    film = Pictures(path)
    curves = measure(film.every(), film.length(), on_frame)
    curves.notes += film.notes
    return curves


def pictures_of(frames: Iterable[np.ndarray], fps: float) -> Iterator[tuple[float, Any]]:
    """Frames uint8 (H, W, 3) as (seconds, frame of PyAV)."""
    import av

    for number, frame in enumerate(frames):
        yield number / fps, av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")


def measure(pictures: Iterable[tuple[float, Any]], total: int = 0, on_frame: OnFrame | None = None) -> Curves:
    """Curves of (seconds, frame of PyAV) in the order shown; total: how many, if that is known."""
    kept: dict[str, list[Any]] = {name: [] for name in ("times", "step", "busiest", "tiles", "spread", "contrast")}
    kept |= {name: [] for name in ("tone", "likeness", "palette", "sharp_at", "sharp")}
    before: _Shrunk | None = None
    size = (0, 0)
    for number, (time, frame) in enumerate(pictures):
        small = _array(frame, SIDE)
        now = _Shrunk(small)
        if number == 0:
            turned = round(getattr(frame, "rotation", 0) / 90) % 2
            size = (frame.height, frame.width) if turned else (frame.width, frame.height)
        kept["times"].append(time)
        kept["tiles"].append(now.rgb.reshape(-1, 3).astype(np.float16))
        kept["spread"].append(now.spread.reshape(-1).astype(np.float16))
        kept["contrast"].append(float(now.luma.std()))
        if before is not None:
            for name, value in now.change(before).items():
                kept[name].append(value)
        before = now
        if not kept["sharp_at"] or time >= len(kept["sharp_at"]) / SHARP_RATE - 1e-6:
            kept["sharp_at"].append(number)
            kept["sharp"].append(_laplacian(frame).reshape(-1))
        if on_frame is not None:
            on_frame(number + 1, max(total, number + 1) if total else 0)
    arrays = {name: np.array(values) for name, values in kept.items()}
    arrays["tone"] = arrays["tone"].reshape(-1, 3)
    arrays["sharp_at"] = arrays["sharp_at"].astype(np.int64)
    return Curves(**arrays, size=size, notes=[])


class _Shrunk:
    """A frame of SIDE x SIDE pixels and what its tiles are like. rgb: (8, 8, 3) means; spread: (8, 8) of the luma."""

    def __init__(self, pixels: np.ndarray) -> None:
        cell = SIDE // TILES
        self.pixels = pixels.astype(np.int16)
        self.luma = pixels @ LUMA
        self.rgb = pixels.reshape(TILES, cell, TILES, cell, 3).mean((1, 3), dtype=np.float32)
        bins = (pixels >> 5).astype(np.int64) @ np.array([64, 8, 1])
        self.palette = np.bincount(bins.reshape(-1), minlength=512)
        self.spread = self.luma.reshape(TILES, cell, TILES, cell).std((1, 3))

    def change(self, before: _Shrunk) -> dict[str, Any]:
        """From the frame before to this one."""
        cell = SIDE // TILES
        moved = np.abs(self.pixels - before.pixels)
        per_tile = moved.reshape(TILES, cell, TILES, cell, 3).mean((1, 3, 4), dtype=np.float32)
        open_tiles = (np.minimum(self.rgb, before.rgb).min(2) > DARK) & (
            np.maximum(self.rgb, before.rgb).max(2) < BRIGHT
        )
        chosen = open_tiles if open_tiles.mean() >= 0.75 else np.ones_like(open_tiles)  # a white ground can turn, too
        one, two = self.luma - self.luma.mean(), before.luma - before.luma.mean()
        scale = float(np.sqrt((one * one).mean() * (two * two).mean()))
        return {
            "step": float(per_tile.mean()),
            "busiest": float(per_tile.max()),
            "tone": _shared((self.rgb - before.rgb)[chosen]),
            "likeness": float((one * two).mean()) / scale if scale > 1e-3 else 1.0,
            "palette": 1.0 - float(np.minimum(self.palette, before.palette).sum()) / SIDE**2,
        }


def _shared(change: np.ndarray) -> np.ndarray:
    """The change, (3,), that at least 65 % of the tiles (n, 3) go along with: in each channel the quantile 0.35 or
    0.65, whichever is nearer to 0, and 0 where they differ in sign."""
    low, high = np.quantile(change, (0.35, 0.65), axis=0)
    return np.where(low > 0, low, np.where(high < 0, high, 0.0))


def _laplacian(frame: Any) -> np.ndarray:
    """Root mean square of the Laplacian of the luma in each of 8 x 8 tiles, (8, 8); a tiny film is one tile."""
    width = min(frame.width, SHARP_WIDTH)
    height = max(1, round(frame.height * width / frame.width))
    grey = frame.reformat(width=width, height=height, format="gray").to_ndarray().astype(np.int16)
    if min(grey.shape) < 3:
        return np.zeros((TILES, TILES), np.float32)
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    square = np.square(inner, dtype=np.float32)
    if min(square.shape) < TILES:
        return np.full((TILES, TILES), np.sqrt(square.mean()), np.float32)
    rows = np.linspace(0, square.shape[0], TILES + 1).astype(int)
    columns = np.linspace(0, square.shape[1], TILES + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(square, rows[:-1], 0), columns[:-1], 1)
    return np.asarray(np.sqrt(sums / np.outer(np.diff(rows), np.diff(columns))), np.float32)
