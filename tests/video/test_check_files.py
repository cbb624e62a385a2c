"""`longtake check` on films as they come, and at the command line: exit codes, files, one line for an error."""

import json
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from faulty_films import frozen, straight, swinging, write
from longtake.errors import UserError
from longtake.video.check import Kind, check_film
from longtake.video.check.curves import read_curves
from PIL import Image


def encode(path, film, *, times=None, codec="libx264", pixels="yuv420p", rate=24):
    """Frames with any codec, format of pixels and times in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt = pixels
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(film):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_d11_odd_sizes_are_judged_like_even_ones(tmp_path) -> None:
    film = straight(80, seed=41, height=75, width=101)
    encode(tmp_path / "odd.mkv", np.concatenate([film[:40], film[45:]]), codec="ffv1", pixels="bgr0")
    report = check_film(tmp_path / "odd.mkv")
    assert report.size == (101, 75) and [(one.kind, one.start) for one in report.findings] == [(Kind.SEAM, 40)]


def test_d11_a_variable_rate_gives_true_times_and_a_dropped_picture_is_no_seam(tmp_path) -> None:
    film = straight(100, seed=42)
    kept = [n for n in range(100) if n % 7 != 3]  # what an encoder dropped; its neighbours stand longer
    encode(tmp_path / "film.mp4", film[kept], times=[n / 25 for n in kept])
    report = check_film(tmp_path / "film.mp4")
    assert report.clean and report.fps == pytest.approx(25, rel=0.01) and report.seconds == pytest.approx(4, abs=0.05)


def test_d11_a_picture_that_the_file_shows_for_long_is_a_freeze(tmp_path) -> None:
    times = [n / 25 for n in range(40)] + [n / 25 for n in range(50, 90)]
    encode(tmp_path / "film.mp4", swinging(80, seed=43), times=times)
    (freeze,) = check_film(tmp_path / "film.mp4").of("freeze")
    assert freeze.start == 39 and freeze.start_s == pytest.approx(39 / 25, abs=0.01)


@pytest.mark.parametrize("pixels", ["gray", "yuv420p10le", "yuv444p"])
def test_d11_grey_films_and_ten_bits_are_judged(tmp_path, pixels) -> None:
    film = frozen(swinging(80, seed=44), 40, 6)
    path = encode(tmp_path / "film.mkv", film, codec="ffv1", pixels=pixels)
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == pixels
    assert [one.kind for one in check_film(path).findings] == [Kind.FREEZE]


def test_d11_a_film_in_hdr_is_judged(tmp_path) -> None:
    film = straight(60, seed=45)
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p10le"
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, 16  # BT.2020 and PQ, H.273
        stream.codec_context.colorspace = 9
        for picture in film:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p10le")
            frame.color_primaries, frame.color_trc, frame.colorspace = 9, 16, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = check_film(path)
    assert report.frames == 60 and report.clean


def test_d11_a_turned_film_is_told_as_it_is_shown(tmp_path) -> None:
    encode(tmp_path / "film.mp4", straight(30, seed=46))
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    track = data.index(b"tkhd") + 4 + 4 + 20 + 16  # the matrix of the track: nine numbers of 32 bits
    for place, number in enumerate([0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30]):
        data[track + 4 * place : track + 4 * place + 4] = number.to_bytes(4, "big")
    (tmp_path / "turned.mp4").write_bytes(bytes(data))
    plain, turned = read_curves(tmp_path / "film.mp4"), read_curves(tmp_path / "turned.mp4")
    assert plain.size == (128, 96) and turned.size == (96, 128)
    upright = plain.tiles.reshape(-1, 8, 8, 3).astype(float)
    assert np.allclose(np.rot90(upright, -1, (1, 2)), turned.tiles.reshape(-1, 8, 8, 3), atol=2.0)


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_d11_a_film_of_a_few_frames_is_not_judged_where_it_is_too_short(tmp_path, run_cli, frames) -> None:
    write(tmp_path / "film.mp4", straight(frames, seed=47))
    report = check_film(tmp_path / "film.mp4")
    assert report.frames == frames and report.clean
    loop = next(one for one in report.verdicts if one.kind is Kind.LOOP)
    assert loop.number is None and loop.word == "not judged" and f"needs {loop.least_frames} frames" in report.table()
    if frames == 1:
        done = run_cli("check", str(tmp_path / "film.mp4"), "--picture", str(tmp_path / "c.png"))
        assert done.returncode == 0, done.stderr


def test_d11_sound_alone_text_and_nothing_are_one_line_and_exit_code_2(tmp_path, run_cli) -> None:
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("no film")
    for name, told in (("sound.m4a", "no pictures"), ("text.mp4", "no film"), ("nothing.mp4", "does not exist")):
        with pytest.raises(UserError, match=told):
            check_film(tmp_path / name)
    done = run_cli("check", str(tmp_path / "sound.m4a"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no pictures" in done.stderr


def test_d11_the_command_ends_with_0_for_a_clean_film_and_1_for_findings_and_says_so(tmp_path, run_cli) -> None:
    film = straight(80, seed=48)
    write(tmp_path / "clean.mp4", film)
    write(tmp_path / "broken.mp4", np.concatenate([film[:40], film[46:]]))
    assert "0 nothing found, 1 something found, 2 an error" in " ".join(run_cli("check", "--help").stdout.split())
    clean = run_cli("check", str(tmp_path / "clean.mp4"))
    assert clean.returncode == 0 and clean.stdout.rstrip().endswith("clean")
    report, picture = tmp_path / "report.json", tmp_path / "check.png"
    asked = ("check", str(tmp_path / "broken.mp4"), "--out", str(report), "--picture", str(picture))
    broken = run_cli(*asked)
    assert broken.returncode == 1 and "1.67" in broken.stdout and "40" in broken.stdout, broken.stdout
    assert "reading: frame 74 of 74" in broken.stderr
    told = json.loads(report.read_text())
    assert not told["clean"] and [(one["kind"], one["start"]) for one in told["findings"]] == [("seam", 40)]
    with Image.open(picture) as drawn:
        assert drawn.width == 1200
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    red = (np.abs(pixels - [0xC0, 0x39, 0x2B]).sum(2) < 40).sum()
    assert red > 100, "the seam is marked"
    again = run_cli(*asked)
    assert again.returncode == 2 and "already exists" in again.stderr
    assert run_cli("check", str(tmp_path / "broken.mp4"), "--allow", "seam").returncode == 0
    assert run_cli("check", str(tmp_path / "broken.mp4"), "--allow", "seems").returncode == 2


def test_a_package_may_bring_a_command_beside_its_domains_and_help_reads_only_its_line(run_cli) -> None:
    from longtake.domain import command_of, further_commands, installed

    assert "check" in further_commands() and not set(further_commands()) & set(installed())
    assert command_of("check").ABOUT in run_cli("--help").stdout
    code = (
        "import sys; from longtake.cli import commands; about, _, _ = commands()['check']\n"
        "assert 'seams' in about and not {'numpy', 'torch', 'av', 'matplotlib'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_d11_memory_does_not_grow_with_the_size_of_the_picture_and_little_with_the_length(tmp_path) -> None:
    """Of a frame, the arrays of `Curves` are all that stays."""
    curves = read_curves(write(tmp_path / "film.mp4", straight(60, seed=49)))
    held = sum(value.nbytes for value in vars(curves).values() if isinstance(value, np.ndarray))
    assert held / curves.frames < 800


def test_d11_a_damaged_film_is_judged_as_far_as_it_can_be_read(tmp_path) -> None:
    encode(tmp_path / "film.mkv", swinging(120, seed=50))
    data = bytearray((tmp_path / "film.mkv").read_bytes())
    (tmp_path / "cut.mkv").write_bytes(bytes(data[: len(data) * 6 // 10]))
    assert 20 < check_film(tmp_path / "cut.mkv").frames < 110
