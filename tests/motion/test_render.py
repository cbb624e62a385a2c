"""Pictures show the person: both sides in their colours, the ground, the path, the words; films keep their length."""

import time

import numpy as np
import pytest
from longtake.errors import UserError
from longtake.media import read_video
from longtake.motion.export.film import Scene, _font, _lines, draw, render_film, render_sheet
from longtake.motion.kinematics import HUMANML
from longtake.motion.outputs import MotionOutput
from motion_models import Golden
from PIL import Image

SMALL = (120, 160)


def walk(frames: int = 24) -> np.ndarray:
    return Golden("M7_synth_a").arrays["joints"][:frames].astype(np.float32)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).sum(-1) < 30


def test_left_is_blue_and_right_is_orange_and_everybody_is_in_the_picture() -> None:
    joints = walk()
    for people in ([joints], [joints, joints + [1.5, 0.0, 0.0]], [joints * [1, 1, 1] + [50.0, 0.0, -70.0]]):
        picture = draw(Scene(people, HUMANML, ["walks"] * 24, (240, 320)), 12)
        for colour in ((38, 110, 214), (232, 110, 22), (92, 99, 110)):
            seen = near(picture, colour)
            assert seen.sum() > 100
            rows, columns = np.nonzero(seen)
            assert rows.min() > 5 and rows.max() < 230, "nobody is cut off"
            assert columns.min() > 2 and columns.max() < 318


def test_the_path_is_solid_where_the_person_has_been() -> None:
    joints = walk()
    joints[:, :, 0] += np.linspace(0, 2, 24)[:, None]
    scene = Scene([joints], HUMANML, (), SMALL)
    been = [near(draw(scene, frame, bar=False), (88, 116, 180)).sum() for frame in (0, 23)]
    assert been[1] > 3 * been[0] + 10


def test_captions_are_written_in_any_script_and_never_leave_the_picture() -> None:
    plain = draw(Scene([walk()], HUMANML, (), SMALL), 0)
    for text in ("walks", "идёт вперёд", "a very long caption that goes on and on " * 4, "w" * 300, ""):
        picture = draw(Scene([walk()], HUMANML, [text] * 24, SMALL), 0)
        assert (picture != plain).any() == bool(text)
        assert (picture[:, :3] == plain[:, :3]).all() and (picture[:, -3:] == plain[:, -3:]).all()


def test_films_keep_every_frame_and_rate(tmp_path) -> None:
    render_film(tmp_path / "a.mp4", [walk()], HUMANML, 20, captions=["walks"] * 24, size=SMALL)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == (24, *SMALL, 3) and fps == pytest.approx(20)
    assert np.abs(frames[0].astype(int) - draw(Scene([walk()], HUMANML, ["walks"] * 24, SMALL), 0)).mean() < 6
    render_film(tmp_path / "a.gif", [walk()], HUMANML, 20, size=SMALL)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 24 and film.info["duration"] == 50


def test_a_sheet_has_sixteen_moments_at_most(tmp_path) -> None:
    render_sheet(tmp_path / "a.png", [walk()], HUMANML, captions=["walks"] * 24)
    render_sheet(tmp_path / "b.png", [walk(1)], HUMANML)
    render_sheet(tmp_path / "c.png", [walk()], HUMANML, frames=[3, 9])
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in "abc"]
    assert sizes == [(8 * 262, 604), (262, 302), (2 * 262, 302)]


def output(**more) -> MotionOutput:
    joints = walk()
    return MotionOutput(
        features=np.zeros((24, 263), dtype=np.float32), joints=joints, captions=["walks"] * 12 + ["waves"] * 12,
        fps=20.0, boundaries=[12], chains=HUMANML.chains, **more,
    )  # fmt: skip


def test_an_output_writes_every_kind_of_file_for_one_and_two_people(tmp_path) -> None:
    from longtake.motion.export.bvh import read_bvh
    from longtake.motion.export.viewer import unpack

    for people, made in ((1, output()), (2, output(second=walk() + np.float32(1.0), unit="cm"))):
        folder = tmp_path / str(people)
        folder.mkdir()
        for name in ("a.npz", "a.bvh", "a.glb", "a.csv", "a.html", "a.amass.npz"):
            assert made.save(folder / name) == folder / name and (folder / name).stat().st_size > 500
        made.preview(folder / "a.png")
        assert len(made.people) == people
        assert len(read_bvh(folder / "a.bvh").names) == 22 * people
        height = float(read_bvh(folder / "a.bvh").joints()[..., 1].max())
        assert (height > 100) == (people == 2), "the second is in centimetres"
        assert len(unpack((folder / "a.html").read_text())["people"]) == people
        with np.load(folder / "a.npz") as file:
            assert ("second" in file.files) == (people == 2) and file["joints"].shape == (24, 22, 3)
        with np.load(folder / "a.amass.npz") as file:
            assert file["poses"].shape == (24, 66)
        assert len((folder / "a.csv").read_text().splitlines()) == 25
        with pytest.raises(UserError, match="exists"):
            made.save(folder / "a.bvh")
        made.save(folder / "a.bvh", overwrite=True)


def test_what_an_output_cannot_write_is_refused(tmp_path) -> None:
    made = output()
    with pytest.raises(UserError, match="unknown kind"):
        made.save(tmp_path / "a.abc")
    with pytest.raises(UserError, match="needs a rig"):
        made.save(tmp_path / "a.fbx")
    made.joints = np.zeros((24, 0, 3), dtype=np.float32)
    with pytest.raises(UserError, match="rest offsets"):
        made.save(tmp_path / "a.bvh")
    from longtake.motion.kinematics import KIT

    made.joints, made.chains = walk()[:, :21] * 1000, KIT.chains
    with pytest.raises(UserError, match="22 joints"):
        made.save(tmp_path / "a.glb")
    made.save(tmp_path / "a.csv")
    made.preview(tmp_path / "a.png")
    with pytest.raises(UserError, match="NaN"):
        render_sheet(tmp_path / "b.png", [walk() * np.nan], HUMANML)


def test_f4_a_caption_of_any_length_is_fitted_in_no_time_and_keeps_its_beginning() -> None:
    font = _font(12)
    for text in ("[" * 10_000, "word " * 2_000, "a" * 300 + " b" * 5_000, "\u0301" * 10_000, "[" * 100_000):
        started = time.process_time()
        lines = _lines(text, font, 300.0)
        assert time.process_time() - started < 0.2, text[:10]
        assert 1 <= len(lines) <= 2 and lines[-1].endswith("…")
        assert all(font.getlength(line) <= 300 for line in lines)
    assert _lines("a person walks", font, 300.0) == ["a person walks"] and _lines("", font, 300.0) == [""]
    two = _lines("a person walks and then turns to the left and goes on walking", font, 300.0)
    assert len(two) == 2 and " ".join(two) == "a person walks and then turns to the left and goes on walking"
