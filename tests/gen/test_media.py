import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from longtake.errors import UserError
from longtake.media import (
    VideoWriter,
    check_film,
    check_fps,
    check_output,
    check_outputs,
    contact_sheet,
    read_video,
    to_uint8,
    write_gif,
    write_png_folder,
)

BITS = 10


def numbered_frame(number: int, height: int = 128, width: int = 160) -> np.ndarray:
    """A frame that shows its number as ten upright bars, light for 1 and dark for 0."""
    bars = [235 if number >> bit & 1 else 20 for bit in range(BITS)]
    row = np.repeat(np.array(bars, dtype=np.uint8), width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    height, width = frame.shape[:2]
    middles = [bit * (width // BITS) + width // BITS // 2 for bit in range(BITS)]
    return sum(int(frame[height // 2, x, 0] > 128) << bit for bit, x in enumerate(middles))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this user cannot mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a13_a_long_film_is_written_in_the_memory_of_one_chunk(tmp_path: Path) -> None:
    path, total, chunk = tmp_path / "film.mp4", 600, 16
    process = psutil.Process()
    with VideoWriter(tmp_path / "warm-up.mp4", fps=12) as writer:
        writer.write(np.stack([numbered_frame(i) for i in range(chunk)]))
    before = peak = process.memory_info().rss
    with VideoWriter(path, fps=12) as writer:
        for start in range(0, total, chunk):
            writer.write(np.stack([numbered_frame(i) for i in range(start, min(total, start + chunk))]))
            peak = max(peak, process.memory_info().rss)
    frames, fps = read_video(path)
    assert [number_of(frame) for frame in frames] == list(range(total))
    assert fps == 12
    assert peak - before < 0.1 * frames.nbytes


def test_the_file_plays_everywhere(tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mp4"
    with VideoWriter(path, fps=24000 / 1001) as writer:
        writer.write(np.stack([numbered_frame(i) for i in range(5)]))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index must come first"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate.numerator) == (5, 24000)


def test_odd_sizes_and_colours_come_back(tmp_path: Path) -> None:
    frames = np.zeros((6, 33, 47, 3), dtype=np.uint8)
    frames[...] = (200, 80, 30)
    with VideoWriter(tmp_path / "odd.mp4", fps=8) as writer:
        writer.write(frames)
    back, _ = read_video(tmp_path / "odd.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).max() <= 3


def test_a_full_disk_is_one_clear_error_and_leaves_no_file(tiny_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    with VideoWriter(tiny_disk / "fits.mp4", fps=12) as writer:
        writer.write(noise[:1])
    with pytest.raises(UserError, match="cannot write .*film.mp4: the disk is full"):
        with VideoWriter(tiny_disk / "film.mp4", fps=12) as writer:
            for _ in range(20):
                writer.write(noise)
    assert os.listdir(tiny_disk) == ["fits.mp4"]


def test_a_file_size_limit_is_one_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import resource, sys, numpy as np\n"
        "from longtake.media import VideoWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)\n"
        "with VideoWriter(sys.argv[1], fps=12) as writer:\n"
        "    for _ in range(20):\n"
        "        writer.write(noise)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, tmp_path / "film.mp4"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "UserError: cannot write" in result.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_leaves_the_old_file_and_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"):
        with VideoWriter(path, fps=12, overwrite=True) as writer:
            writer.write(np.stack([numbered_frame(0)]))
            raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="already exists"):
        VideoWriter(path, fps=12)


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("missing/film.mp4", 12.0, "the folder .*missing does not exist"),
        ("film.avi", 12.0, "allowed are .mp4"),
        ("film.mp4", 0.0, "fps is 0"),
        ("film.mp4", float("nan"), "fps is nan"),
    ],
)
def test_unusable_targets_are_refused_before_any_work(tmp_path: Path, name: str, fps: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VideoWriter(tmp_path / name, fps)


def test_a_film_without_frames_or_with_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frames"):
        with VideoWriter(tmp_path / "film.mp4", fps=12):
            pass
    with pytest.raises(ValueError, match="64x64, the film is 32x32"):
        with VideoWriter(tmp_path / "film.mp4", fps=12, size=(32, 32)) as writer:
            writer.write(np.zeros((1, 64, 64, 3), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"not a film" * 100)
    with pytest.raises(UserError, match="film.mp4 is not a readable video"):
        read_video(tmp_path / "film.mp4")
    with pytest.raises(UserError, match="does not exist"):
        read_video(tmp_path / "none.mp4")


def test_to_uint8_rounds_and_clips_and_refuses_nan() -> None:
    values = torch.tensor([-1.0, 0.0, 0.9 / 255, 127.6 / 255, 254.6 / 255, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 255, 255, 255]
    assert to_uint8(values.double().numpy()).tolist() == [0, 0, 1, 128, 255, 255, 255]
    assert to_uint8(values.bfloat16()).dtype == np.uint8
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="int64"):
        to_uint8(torch.tensor([3]).numpy())


def test_gif_and_png_folders_hold_every_frame(tmp_path: Path) -> None:
    from PIL import Image

    frames = [numbered_frame(i, 24, 40) for i in range(7)]
    write_gif(frames, tmp_path / "film.gif", fps=10)
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (7, 100, 0)  # type: ignore[attr-defined]
    folder = tmp_path / "frames"
    write_png_folder(frames, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert [number_of(np.asarray(Image.open(folder / name))) for name in names] == list(range(7))


def test_overwriting_a_folder_never_removes_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    write_png_folder([numbered_frame(i, 24, 40) for i in range(3)], folder)
    write_png_folder([numbered_frame(0, 24, 40)], folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["frame_000000.png"]
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other files, for example thesis.txt"):
        write_png_folder([numbered_frame(0, 24, 40)], folder, overwrite=True)
    assert (folder / "thesis.txt").exists()


def test_a_contact_sheet_shows_frames_in_reading_order(tmp_path: Path) -> None:
    from PIL import Image

    frames = [np.full((10, 12, 3), 10 * i, dtype=np.uint8) for i in range(5)]
    contact_sheet(frames, tmp_path / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 12, 3 * 14, 3)
    assert [int(sheet[6 + 12 * (i // 3), 7 + 14 * (i % 3), 0]) for i in range(5)] == [0, 10, 20, 30, 40]
    contact_sheet(frames, tmp_path / "captions.png", columns=3, captions=list("abcde"))
    with pytest.raises(ValueError, match="2 captions for 5 frames"):
        contact_sheet(frames, tmp_path / "bad.png", captions=["a", "b"])


@pytest.mark.parametrize("name", ["take:1.mp4", "http:film.mp4", "take 1%d.mp4", "-x.mp4", "a" * 250 + ".mp4"])
def test_a_film_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name, fps=12) as writer:
        writer.write(np.stack([numbered_frame(i) for i in range(3)]))
    check_film(name)
    assert read_video(name)[1] == 12 and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("fps", [0.1, 7, 12, 23.976, 24, 30, 48, 50])
def test_a_gif_lasts_as_long_as_its_rate_says(tmp_path: Path, fps: float) -> None:
    from PIL import Image

    write_gif([numbered_frame(i, 24, 40) for i in range(60)], tmp_path / "film.gif", fps)
    with Image.open(tmp_path / "film.gif") as gif:
        delays = []
        for index in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(index)
            delays.append(gif.info["duration"])
    assert len(delays) == 60 and min(delays) >= 20
    assert abs(sum(delays) / 1000 - 60 / fps) <= 0.0051


@pytest.mark.parametrize("fps", [0, -1, 0.0001, 1e-9, 1e9, 1e308, float("inf"), float("nan"), True, "12"])
def test_a_rate_that_no_film_can_have_is_refused(fps: float) -> None:
    for suffix in (".mp4", ".gif", ""):
        with pytest.raises(UserError, match="fps is .* 0.1 to "):
            check_fps(fps, suffix)
    with pytest.raises(UserError, match="0.1 to 50"):
        check_fps(60, ".gif")


@pytest.mark.parametrize(
    "name", ["", " ", ".", "/", "..", "a/..", ".mp4", "a\0.mp4", "a\udcff.mp4", "a" * 252 + ".mp4", "x/" * 3000 + "a"]
)
def test_what_names_no_file_is_refused_before_anything(name: str) -> None:
    with pytest.raises(UserError, match="cannot write"):
        check_output(name, (".mp4", ""), overwrite=True)


def test_what_stands_in_the_way_is_told_before_anything(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        check_output(tmp_path / "a.mp4", (".mp4",), overwrite=True)
    (tmp_path / "frames").write_text("x")
    with pytest.raises(UserError, match="already exists: .*--overwrite"):
        check_output(tmp_path / "frames", ("",))
    with pytest.raises(UserError, match="it is a file, not a folder"):
        check_output(tmp_path / "frames", ("",), overwrite=True)
    (tmp_path / "b.mp4").symlink_to("nowhere")
    with pytest.raises(UserError, match="already exists"):
        check_output(tmp_path / "b.mp4", (".mp4",))
    with pytest.raises(UserError, match="named twice"):
        check_outputs([tmp_path / "c.mp4", tmp_path / "a.mp4/../c.mp4"], (".mp4",))
