from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from longtake.errors import UserError
from longtake.media import read_video
from longtake.outputs import VideoOutput


def film(total: int) -> np.ndarray:
    return np.broadcast_to((np.arange(total) * 5).astype(np.uint8)[:, None, None, None], (total, 16, 16, 3)).copy()


def in_chunks(frames: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


def test_a_stream_and_an_array_save_the_same_film_and_preview(tmp_path: Path) -> None:
    frames = film(37)
    VideoOutput(frames, fps=12).save(tmp_path / "a.mp4", preview=tmp_path / "a.png")
    VideoOutput(in_chunks(frames, 8), fps=12, total_frames=37).save(tmp_path / "b.mp4", preview=tmp_path / "b.png")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    back, fps = read_video(tmp_path / "b.mp4")
    assert fps == 12 and np.abs(back.astype(int) - frames).max() <= 2


def test_a_stream_is_read_once_and_must_have_the_promised_length(tmp_path: Path) -> None:
    output = VideoOutput(in_chunks(film(8), 4), fps=12)
    with pytest.raises(UserError, match="give its total_frames"):
        output.preview(tmp_path / "early.png")
    output.save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="read already"):
        output.save(tmp_path / "b.gif")
    with pytest.raises(ValueError, match="8 frames, not 9"):
        VideoOutput(in_chunks(film(8), 4), fps=12, total_frames=9).save(tmp_path / "c.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_existing_files_are_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="already exists"):
        VideoOutput(film(4), fps=12).save(path)
    assert path.read_bytes() == b"old"
    VideoOutput(film(4), fps=12).save(path, overwrite=True)
    assert len(read_video(path)[0]) == 4


def test_a_bad_preview_name_is_refused_before_the_stream_is_read(tmp_path: Path) -> None:
    output = VideoOutput(in_chunks(film(8), 4), fps=12, total_frames=8)
    with pytest.raises(UserError, match="allowed are .png"):
        output.save(tmp_path / "a.mp4", preview=tmp_path / "a.jpg")
    output.save(tmp_path / "a.mp4", preview=tmp_path / "a.png")


@pytest.mark.parametrize("bad", [np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8), dtype=np.uint8)])
def test_frames_of_another_kind_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="to_uint8"):
        VideoOutput(bad, fps=12)


def test_without_a_suffix_the_frames_go_to_a_folder(tmp_path: Path) -> None:
    VideoOutput(film(3), fps=12).save(tmp_path / "frames")
    assert len(list((tmp_path / "frames").glob("*.png"))) == 3
