"""Sound files, loudness, subtitles."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from longtake.errors import UserError
from longtake.speech.longform.loudness import Meter
from longtake.speech.longform.pieces import Word
from longtake.speech.longform.subtitles import cues, ffmetadata, srt, vtt, words_json
from longtake.speech.longform.writer import FORMATS, AudioWriter, Resampler, check_sound

RATE = 22_050


def tone(seconds: float, rate: int = RATE, level: float = 0.3) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * 440 * time) * (1 + 0.5 * np.sin(2 * np.pi * 0.7 * time))).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_is_written_block_by_block_to_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    sound, files = tone(3.0), []
    for number, size in enumerate((7_001, 50_000)):
        path = tmp_path / f"{number}{suffix}"
        with AudioWriter(path, RATE) as file:
            for start in range(0, len(sound), size):
                file.write(sound[start : start + size])
        check_sound(path)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    read, rate = soundfile.read(tmp_path / f"0{suffix}")
    assert abs(len(read) / rate - 3.0) < 0.08
    assert rate == (24_000 if suffix == ".opus" else RATE)
    (tmp_path / f"torn{suffix}").write_bytes(files[0][: len(files[0]) // 2])
    if suffix != ".mp3":  # which does not say how long it is
        with pytest.raises(UserError, match="cut off|no whole"):
            check_sound(tmp_path / f"torn{suffix}")
    (tmp_path / f"none{suffix}").write_bytes(b"no sound")
    with pytest.raises(UserError, match="no whole sound"):
        check_sound(tmp_path / f"none{suffix}")


def test_a_failed_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AudioWriter(tmp_path / "a.wav", RATE) as file:
        file.write(tone(0.1))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=".wav, .flac"):
        AudioWriter(tmp_path / "a.aac", RATE)
    with pytest.raises(UserError, match="folder does not exist"), AudioWriter(tmp_path / "no" / "a.wav", RATE):
        pass


@pytest.mark.parametrize(("source", "target"), [(22_050, 24_000), (24_000, 22_050), (8_000, 24_000), (44_100, 16_000)])
def test_resampling_in_blocks_is_resampling_at_once(source: int, target: int) -> None:
    sound = tone(1.3, source)
    whole = Resampler(source, target).add(sound, last=True)
    by_block, blocks, at = Resampler(source, target), [], 0
    for size in (1, 997, 3, 5_000, 10_000, 1 << 20):
        blocks.append(by_block.add(sound[at : at + size]))
        at += size
    blocks.append(by_block.add(sound[:0], last=True))
    assert np.abs(np.concatenate(blocks) - whole).max() < 1e-6
    assert len(whole) == -(-len(sound) * target // source)
    middle = slice(target // 10, len(whole) - target // 10)
    assert np.abs(whole - tone(1.3, target)[: len(whole)])[middle].max() < 2e-3


def test_loudness_is_that_of_r128() -> None:
    rate = 48_000
    sound = np.concatenate(
        [tone(4, rate, 0.3), np.zeros(2 * rate, np.float32), tone(3, rate, 0.02), tone(3, rate, 0.1)]
    )
    meter = Meter(rate)
    for start in range(0, len(sound), 1234):
        meter.add(sound[start : start + 1234])
    import torchaudio

    known = float(torchaudio.functional.loudness(torch.from_numpy(sound)[None], rate))
    assert abs(meter.integrated() - known) < 0.15
    sine = (0.5 * np.sin(2 * np.pi * 997 * np.arange(rate * 5) / rate)).astype(np.float32)
    meter = Meter(rate)
    meter.add(sine)
    assert abs(meter.integrated() - (-3.01 + 20 * np.log10(0.5))) < 0.05  # BS.1770: 997 Hz at 0 dBFS is -3.01
    assert abs(20 * np.log10(meter.gain(-16)) - (-16 - meter.integrated())) < 1e-6
    assert meter.gain(0) == pytest.approx(10 ** (-1 / 20) / 0.5, rel=1e-3)
    silent = Meter(rate)
    silent.add(np.zeros(rate, np.float32))
    assert silent.gain(-16) == 1.0


def many(hours: float) -> list[Word]:
    words, at = [], 0
    while at < hours * 3600 * RATE:
        for n in range(9):
            words.append(Word(f"word{n}" + ("." if n == 8 else ""), at, at + 4_000, len(words) // 9))
            at += 5_001
        at += 9_261
    return words


def test_subtitles_are_right_to_the_millisecond_after_three_hours() -> None:
    words = many(3)
    text = srt(words, RATE)
    last = re.findall(r"(\d+):(\d+):(\d+),(\d+) --> ", text)[-1]
    hours, minutes, seconds, thousandths = map(int, last)
    start = [cue.start for cue in cues(words, RATE)][-1]
    assert abs(hours * 3600 + minutes * 60 + seconds + thousandths / 1000 - start) <= 0.0005
    assert words[-9].start / RATE == start
    assert all(cue.end - cue.start <= 6.5 and len(cue.text) <= 86 for cue in cues(words, RATE))
    assert vtt([Word("a<b", 0, 9)], RATE) == "WEBVTT\n\n00:00:00.000 --> 00:00:00.000\na&lt;b\n"
    starts = [cue.start for cue in cues(words, RATE)]
    assert starts == sorted(starts)


def test_word_times_and_chapters_are_told() -> None:
    words = [Word("a", 0, RATE), Word("here", RATE, RATE, mark=True), Word("b", RATE, 2 * RATE, 1)]
    told = json.loads(words_json(words, RATE, 3 * RATE, [("One", 0), ("Two", RATE)], title="T"))
    assert [row["word"] for row in told["words"]] == ["a", "b"] and told["marks"] == [{"name": "here", "time": 1.0}]
    assert told["seconds"] == 3.0 and told["chapters"][1] == {"title": "Two", "start": 1.0}
    assert "START=0\nEND=22050\ntitle=On\\=e" in ffmetadata([("On=e", 0), ("Two", RATE)], RATE, 3 * RATE)
