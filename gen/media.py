"""Frames to files and back: streamed mp4, gif, png folders, contact sheets.

Legend: F frames, n frames of one chunk, H height, W width in pixels. Frames are uint8 RGB, (n, H, W, 3).

    with VideoWriter("out.mp4", fps=12) as writer:
        for chunk in chunks:
            writer.write(to_uint8(chunk))        # memory holds one chunk, however long the film

Every file is written under a temporary name and moved into place when it is complete; an error, a full disk included,
leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError, explain_disk_errors, one_line
from longtake.journal import atomic_path, partial_path

if TYPE_CHECKING:
    import torch
    from PIL import Image

_CRF = 18  # x264's constant rate factor; 18 is visually lossless, 23 is x264's default
_BT709 = 1  # H.273 code for the colour primaries, transfer and matrix of HD video
_LIMITED_RANGE = 1  # luma 16..235, what players expect of yuv420p
_CAPTION_HEIGHT = 14  # pixels; PIL's default font is 11 high
LEAST_FPS, MOST_FPS, MOST_GIF_FPS = 0.1, 240.0, 50.0  # browsers slow a gif down that shows frames for 10 ms
FOLDER_RECORD = "longtake.json"  # in a folder of several files: by it the folder is known as written here
_FRAME_NAME = re.compile(r"frame_\d{6,}\.png")


def to_uint8(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    """Frames in 0..1 (any float type, any device) as uint8 in 0..255, clipped and rounded to nearest.

    uint8 input passes unchanged. Raises ValueError for NaN or infinity, which have no colour.
    """
    values = np.asarray(frames) if isinstance(frames, np.ndarray) else frames.detach().float().cpu().numpy()
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"frames must be uint8 or float in 0..1, not {values.dtype}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the frames hold NaN or infinity")
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def check_fps(fps: float, suffix: str = "") -> float:
    """Before long work: frames per second that a file of this kind can hold. Raises UserError for any other number."""
    most = MOST_GIF_FPS if suffix.lower() == ".gif" else MOST_FPS
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if not number or not LEAST_FPS <= fps <= most:
        raise UserError(f"fps is {fps}; {suffix or 'a film'} can have {LEAST_FPS:g} to {most:g} frames per second")
    return fps


def check_output(path: str | os.PathLike[str], suffixes: Sequence[str], overwrite: bool = False) -> Path:
    """Before long work: the path if a file may be written there, else UserError that says why not.

    suffixes: what is allowed, with dots; "" stands for a folder.
    """
    text = os.fspath(path)
    path = Path(path)
    if not text.strip() or path.name in ("", "..") or "\0" in text:
        raise UserError(f"cannot write {text!r}: it names no file")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"cannot write {text!r}: a part of its name is no UTF-8 text") from None
    if path.name.lower() in suffixes:
        raise UserError(f"cannot write {path}: a name before {path.name} is missing")
    double = tuple(suffix for suffix in suffixes if suffix.count(".") > 1)  # .nii.gz
    if path.suffix.lower() not in suffixes and not path.name.lower().endswith(double):
        allowed = ", ".join(suffix or "a folder" for suffix in suffixes)
        raise UserError(f"cannot write {path}: unknown kind of file; allowed are {allowed}")
    if len(path.name.encode()) > 255 or len(text.encode()) > 4000:
        raise UserError(f"cannot write {path.name[:40]}...: the name is too long")
    if not os.path.isdir(path.parent):
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: the folder {path.parent} is not writable")
    if path.is_dir() and path.suffix:
        raise UserError(f"cannot write {path}: it is a folder")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} already exists: choose another name, or replace it with --overwrite (overwrite=True)")
    if not path.suffix and os.path.lexists(path):
        _check_frame_folder(path)
    return path


def check_outputs(
    paths: Sequence[str | os.PathLike[str]], suffixes: Sequence[str], overwrite: bool = False
) -> list[Path]:
    """`check_output` of each, and UserError when two of them are the same file."""
    checked = [check_output(path, suffixes, overwrite) for path in paths]
    seen: set[str] = set()
    for path in checked:
        place = os.path.join(os.path.realpath(path.parent), path.name)
        if place in seen:
            raise UserError(f"{path} is named twice as an output; name each file once")
        seen.add(place)
    return checked


def _check_frame_folder(folder: Path) -> None:
    """Raise UserError unless `folder` is one of numbered frames and nothing else, or has a record of ours."""
    if not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is a file, not a folder")
    if (folder / FOLDER_RECORD).is_file():
        return
    others = [path.name for path in folder.iterdir() if not _FRAME_NAME.fullmatch(path.name)]
    if others:
        raise UserError(f"cannot overwrite {folder}: it holds other files, for example {others[0]}")


def _url(path: str | os.PathLike[str]) -> str:
    """A file's name for libav, which would take "take:1.mp4" for an address of the protocol "take"."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name!r} cannot be read: a part of its name is no UTF-8 text") from None
    return f"file:{name}"


class VideoWriter:
    """Stream frames to an H.264 mp4 (yuv420p, index at the front so that browsers play it at once).

    path: ends in .mp4. fps: frames per second. size: (H, W); None: that of the first frames. crf: x264's quality,
    lower is better and larger. overwrite: replace an existing file.
    yuv420p needs even sides, so an odd side is padded by repeating the edge pixels; the true size is noted in the
    file's comment, and `read_video` crops to it.
    Raises UserError for an unusable path or a full disk, ValueError for frames of another shape.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        size: tuple[int, int] | None = None,
        *,
        crf: int = _CRF,
        overwrite: bool = False,
    ) -> None:
        check_fps(fps, ".mp4")
        self.path = check_output(path, (".mp4",), overwrite)
        self.fps = fps
        self.size = size
        self.crf = crf
        self.count = 0  # frames written so far
        self._partial = partial_path(self.path)
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def write(self, frames: np.ndarray) -> None:
        """Append frames: uint8 (n, H, W, 3), in order. On an error nothing of the file remains."""
        import av

        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 (n, H, W, 3), not {frames.dtype} {frames.shape}")
        if self.size is None:
            self.size = (frames.shape[1], frames.shape[2])
        if frames.shape[1:3] != self.size:
            raise ValueError(
                f"frames are {frames.shape[1]}x{frames.shape[2]}, the film is {self.size[0]}x{self.size[1]}"
            )
        try:
            with explain_disk_errors(self.path):
                if self._container is None:
                    self._open()
                for image in frames:
                    image = np.pad(image, ((0, self.size[0] % 2), (0, self.size[1] % 2), (0, 0)), mode="edge")
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                    frame.pts = self.count
                    for packet in self._stream.encode(frame):
                        self._container.mux(packet)
                    self.count += 1
        except BaseException:
            self.abort()
            raise

    def close(self) -> None:
        """Finish the file and move it into place. Raises UserError when no frame was written or the disk is full."""
        if self._container is None:
            raise UserError(f"cannot write {self.path}: there are no frames")
        try:
            with explain_disk_errors(self.path):
                for packet in self._stream.encode(None):
                    self._container.mux(packet)
                container, self._container = self._container, None
                container.close()
                self._check_complete()
                with open(self._partial, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(self._partial, self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Give up: close and remove what was written. Safe to call at any time."""
        container, self._container = self._container, None
        if container is not None:
            try:
                container.close()
            except OSError:  # the index does not fit either; the file goes away in any case
                pass
        self._partial.unlink(missing_ok=True)

    def _open(self) -> None:
        import av

        assert self.size is not None
        height, width = self.size
        self._partial.unlink(missing_ok=True)  # what a kill left; or a pipe or a link
        self._container = av.open(_url(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata["comment"] = json.dumps({"longtake": {"height": height, "width": width}})
        rate = Fraction(self.fps).limit_denominator(1001)
        # A short look-ahead and one thread bound what the encoder holds back, so memory does not follow the length.
        # Macroblock-tree rate control gave different files of the same frames from run to run: none.
        options = {"crf": str(self.crf), "preset": "medium", "rc-lookahead": "10", "bf": "2", "threads": "1"}
        options["x264-params"] = "mbtree=0"
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.height = height + height % 2
        self._stream.width = width + width % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = 1 / rate
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def _check_complete(self) -> None:
        """libav reports some write errors only in its log; a file that lacks frames must not be moved into place."""
        import av

        try:
            with av.open(_url(self._partial)) as container:
                found = container.streams.video[0].frames
        except (av.FFmpegError, IndexError):
            found = 0
        if found != self.count:
            raise UserError(
                f"cannot write {self.path}: only {found} of {self.count} frames reached the disk; is it full?"
            )


def read_video(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """All frames of a video file, uint8 (F, H, W, 3), and its frames per second. Raises UserError when unreadable."""
    frames = list(iterate_video(path))
    if not frames:
        raise UserError(f"{path} holds no video frames")
    return np.stack(frames), video_fps(path)


def video_fps(path: str | os.PathLike[str]) -> float:
    """Average frames per second of a video file."""
    import av

    if not Path(path).is_file():
        raise UserError(f"the video {path} does not exist")
    try:
        with av.open(_url(path)) as container:
            return float(container.streams.video[0].average_rate or 0)
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a readable video: {error}") from error


def iterate_video(path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """The frames of a video file one by one, uint8 (H, W, 3), cropped to the size that VideoWriter noted."""
    import av

    if not Path(path).is_file():
        raise UserError(f"the video {path} does not exist")
    try:
        with av.open(_url(path)) as container:
            height, width = _noted_size(container.metadata.get("comment", ""))
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")[:height, :width]
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a readable video: {error}") from error


def _noted_size(comment: str) -> tuple[int | None, int | None]:
    try:
        noted = json.loads(comment)["longtake"]
        return int(noted["height"]), int(noted["width"])
    except (ValueError, KeyError, TypeError):
        return None, None  # a file of another program: nothing to crop


def check_film(path: str | os.PathLike[str]) -> None:
    """Read a film whole. Raises UserError when it is missing, damaged, or shorter than it says."""
    import av

    found = sum(1 for _ in iterate_video(path))
    if Path(path).suffix.lower() == ".gif":
        whole = Path(path).read_bytes().endswith(b";")  # the trailer
    else:
        with av.open(_url(path)) as container:
            whole = found == container.streams.video[0].frames
    if not found or not whole:
        raise UserError(f"{path} is not a whole film: {found} frames can be read")


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """A picture in RGB; transparent parts are black, of several pictures the first. Raises UserError when it is missing
    or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            picture: Image.Image = opened
            if picture.mode.startswith("I;16"):  # Pillow cuts 16 bits off, where grey is meant
                picture = picture.point(lambda value: value / 257).convert("L")
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a readable picture: {one_line(error)}") from error


def check_picture(path: str | os.PathLike[str]) -> None:
    """Read a picture whole. Raises UserError when it is missing or damaged."""
    read_picture(path)


class _Delays(list[int]):
    """How long frame i of a gif is shown, in ms. Gif counts in hundredths of a second, so the delays alternate: after
    every frame the time that has passed is the right one to the nearest hundredth."""

    def __init__(self, fps: float) -> None:
        super().__init__()
        self.fps = fps

    def __getitem__(self, index: Any) -> Any:
        return 10 * (round(100 * (index + 1) / self.fps) - round(100 * index / self.fps))


def write_gif(frames: Iterable[np.ndarray], path: str | os.PathLike[str], fps: float, overwrite: bool = False) -> None:
    """Write an endlessly looping gif. frames: uint8 (H, W, 3) one by one. Memory grows with the length."""
    from PIL import Image

    path = check_output(path, (".gif",), overwrite)
    check_fps(fps, ".gif")
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images, None)
    if first is None:
        raise UserError(f"cannot write {path}: there are no frames")
    with atomic_path(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=images, duration=_Delays(fps), loop=0)


def write_png_folder(frames: Iterable[np.ndarray], folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write frame_000000.png, frame_000001.png, ... into a folder. frames: uint8 (H, W, 3) one by one.

    overwrite: replace an existing folder that holds such frames only; one with other files is refused.
    """
    from PIL import Image

    folder = check_output(folder, ("",), overwrite)
    partial = partial_path(folder)
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)
    count = 0
    try:
        with explain_disk_errors(folder):
            partial.mkdir()
            for count, frame in enumerate(frames, 1):
                Image.fromarray(frame).save(partial / f"frame_{count - 1:06d}.png")
            if count == 0:
                raise UserError(f"cannot write {folder}: there are no frames")
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray,
    path: str | os.PathLike[str],
    columns: int = 8,
    captions: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a png of frames in reading order. frames: uint8 (H, W, 3) each; captions: one short text per frame."""
    from PIL import Image, ImageDraw

    path = check_output(path, (".png",), overwrite)
    if len(frames) == 0:
        raise UserError(f"cannot write {path}: there are no frames")
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    if captions is not None and len(captions) != len(frames):
        raise ValueError(f"{len(captions)} captions for {len(frames)} frames")
    height, width = frames[0].shape[:2]
    columns = min(columns, len(frames))
    cell_height = height + 2 + (_CAPTION_HEIGHT if captions else 0)
    rows = math.ceil(len(frames) / columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, frame in enumerate(frames):
        left, top = (index % columns) * (width + 2), (index // columns) * cell_height
        sheet.paste(Image.fromarray(frame), (left + 1, top + 1))
        if captions:
            draw.text((left + 2, top + height + 2), captions[index], fill="black")
    with atomic_path(path) as partial:
        sheet.save(partial, format="PNG")
