"""Films as they come: variable rates, turned phones, damage, one picture, sound alone."""

from fractions import Fraction

import av
import numpy as np
import pytest
from longtake.errors import UserError
from longtake.video.watch.decode import Film
from longtake.video.watch.pipeline import WatchPipeline


def write(path, times, *, rate=30, turn=None, colours=None) -> None:
    """A film with pictures at these seconds; the left half of each is white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.time_base = Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            picture = np.zeros((32, 64, 3), np.uint8)
            picture[:, :32] = 255 if colours is None else colours[number]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_variable_rate_keeps_the_films_own_times(tmp_path) -> None:
    times = [0.0, 0.1, 0.2, 1.7, 1.8, 3.0, 3.04]
    write(tmp_path / "film.mp4", times)
    found = [time for time, _ in Film(tmp_path / "film.mp4").frames(2.0)]
    assert np.allclose(found, [0.0, 1.7, 3.0], atol=0.002)


def test_a_part_of_a_film_begins_and_ends_where_it_is_asked_to(tmp_path) -> None:
    write(tmp_path / "film.mp4", [n / 10 for n in range(100)])
    found = [time for time, _ in Film(tmp_path / "film.mp4").frames(5.0, start=4.0, end=6.0)]
    assert np.allclose(found, np.arange(4.0, 6.0, 0.2), atol=0.002)


def test_a_film_of_one_picture_is_found_in(tmp_path, tower) -> None:
    write(tmp_path / "film.mp4", [0.0], colours=[(220, 30, 30)])
    answer = WatchPipeline(tower)(tmp_path / "film.mp4", "when is it red?", index=tmp_path / "index")
    assert len(answer.moments) == 1 and answer.moments[0].start == 0 and answer.seconds > 0


def test_a_film_that_is_cut_off_is_read_as_far_as_it_goes_and_says_so(tmp_path, tower, film) -> None:
    path = film([("red", 20.0), ("blue", 20.0)], size=64)
    fragments = tmp_path / "film.mkv"  # a container that can be read to where it ends
    with av.open(str(path)) as source, av.open(str(fragments), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = fragments.read_bytes()
    fragments.write_bytes(data[: len(data) * 6 // 10])
    answer = WatchPipeline(tower)(fragments, "when is it red?", index=tmp_path / "index")
    assert answer.moments[0].start == 0 and answer.seconds < 39
    assert any("ends at" in line or "damaged" in line for line in answer.info["told"])


def test_sound_alone_is_refused_in_one_line(tmp_path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
    with pytest.raises(UserError, match="no pictures"):
        Film(tmp_path / "sound.wav")


def test_a_film_that_a_phone_holds_upright_is_turned(tmp_path) -> None:
    """The display matrix of an mp4 is written into its header: a rotation by 90 degrees."""
    write(tmp_path / "film.mp4", [n / 10 for n in range(10)])
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    track = data.index(b"tkhd") + 4 + 4 + 20 + 16  # the matrix of the track: nine numbers of 32 bits
    turned = [0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30]
    for place, number in enumerate(turned):
        data[track + 4 * place : track + 4 * place + 4] = number.to_bytes(4, "big")
    (tmp_path / "turned.mp4").write_bytes(bytes(data))
    (_, plain), *_ = Film(tmp_path / "film.mp4").frames(1.0)
    (_, found), *_ = Film(tmp_path / "turned.mp4").frames(1.0)
    assert found.shape == (64, 32, 3) and plain.shape == (32, 64, 3)
    assert found[:32].mean() > 200 > 50 > found[32:].mean(), "what is left becomes what is above: turned clockwise"


def test_ten_hours_are_asked_in_the_memory_of_minutes(tmp_path, tower) -> None:
    """A picture every half minute, as a surveillance camera keeps them; the one that is asked for lasts a minute."""
    times = [30.0 * n for n in range(1200)]
    colours = [(30, 200, 40) if 24_000 <= time < 24_060 else (220, 30, 30) for time in times]
    write(tmp_path / "film.mp4", times, colours=colours)
    pipe = WatchPipeline(tower)
    answer = pipe(tmp_path / "film.mp4", "when is it green?", index=tmp_path / "index")
    assert answer.moments[0].start == pytest.approx(24_000, abs=1) and answer.moments[0].score > 0.5
    assert answer.info["steps"] == 600 and answer.seconds == pytest.approx(36_000, abs=60)
    assert tower.looked < 1300, "no more than the pictures there are"


def test_noise_in_the_middle_of_a_film_is_told_and_what_is_around_it_found(tmp_path, tower, film) -> None:
    path = film([("red", 20.0), ("blue", 10.0), ("green", 20.0)], size=128)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    middle, length = begin + (len(data) - begin) // 2, (len(data) - begin) // 20
    data[middle : middle + length] = np.random.default_rng(0).integers(0, 256, length, np.uint8).tobytes()
    path.write_bytes(bytes(data))
    answer = WatchPipeline(tower)(path, "when is it green?", index=tmp_path / "index")
    assert 28 <= answer.moments[0].start < 50 and answer.seconds == pytest.approx(50, abs=2)
    assert any("damaged" in line or "ends at" in line for line in answer.info["told"])
