"""Alignments by other tools: TextGrids of both forms become utterances that can be trained from."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import soundfile
from longtake.errors import UserError
from longtake.speech import data, train
from longtake.speech.textgrid import has_textgrids, labels, load_folder, read_textgrid, symbols_of

WORDS = [(0.0, 0.3, ""), (0.3, 0.7, "hello"), (0.7, 1.0, ""), (1.0, 1.5, "day"), (1.5, 2.0, "")]
PHONES = [
    (0.0, 0.3, "sil"), (0.3, 0.35, "HH"), (0.35, 0.45, "AH0"), (0.45, 0.55, "L"), (0.55, 0.7, "OW1"), (0.7, 1.0, "sp"),
    (1.0, 1.1, "D"), (1.1, 1.5, "EY1"), (1.5, 2.0, ""),
]  # fmt: skip


def long_form(tiers: dict[str, list[tuple[float, float, str]]]) -> str:
    out = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 2\ntiers? <exists>\n'
    out += f"size = {len(tiers)}\nitem []:\n"
    for place, (name, rows) in enumerate(tiers.items(), 1):
        out += f'    item [{place}]:\n        class = "IntervalTier"\n        name = "{name}"\n        xmin = 0\n'
        out += f"        xmax = 2\n        intervals: size = {len(rows)}\n"
        for number, (start, end, text) in enumerate(rows, 1):
            out += f"        intervals [{number}]:\n            xmin = {start}\n            xmax = {end}\n"
            out += f'            text = "{text}"\n'
    return out


def short_form(tiers: dict[str, list[tuple[float, float, str]]]) -> str:
    out = f'File type = "ooTextFile"\n"TextGrid"\n\n0\n2\n<exists>\n{len(tiers)}\n'
    for name, rows in tiers.items():
        out += f'"IntervalTier"\n"{name}"\n0\n2\n{len(rows)}\n'
        out += "".join(f'{start}\n{end}\n"{text}"\n' for start, end, text in rows)
    return out


def corpus(folder: Path, count: int = 1, rate: int = 16_000) -> Path:
    rng = np.random.default_rng(0)
    (folder / "ann").mkdir(parents=True)
    for number in range(count):
        soundfile.write(folder / "ann" / f"{number:03}.wav", 0.1 * rng.standard_normal(2 * rate), rate)
        (folder / "ann" / f"{number:03}.TextGrid").write_text(long_form({"words": WORDS, "phones": PHONES}))
    return folder


@pytest.mark.parametrize("form", [long_form, short_form])
@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_both_forms_are_read(tmp_path: Path, form, coding: str) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(form({"ann - words": WORDS, "ann - phones": [*PHONES[:-1], (1.5, 2.0, 'a "b" ɹ')]}).replace(
        'a "b" ɹ', 'a ""b"" ɹ'), encoding=coding)  # fmt: skip
    tiers = read_textgrid(path)
    assert list(tiers) == ["ann - words", "ann - phones"]
    assert [(one.start, one.end, one.text) for one in tiers["ann - words"]] == WORDS
    assert tiers["ann - phones"][-1].text == 'a "b" ɹ'


def test_labels_have_stress_breaks_and_times_to_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(long_form({"words": WORDS, "phones": PHONES}))
    row, ends, begin, text = labels(path, 2.0)
    assert row == " həlˈoʊ ¿ dˈeɪ. ¿" and text == "hello day."
    assert begin == round(0.2 * 24000) and len(ends) == len(row) and np.all(np.diff(ends) > 0)
    at = {number: (ends[number] + begin) / 24000 for number in range(len(row))}
    assert at[0] == pytest.approx(0.3) and at[1] == pytest.approx(0.35)  # the space before it, and h
    assert at[row.index("ʊ")] == pytest.approx(0.7) and at[row.index("d") - 1] == pytest.approx(1.0)
    assert at[row.index("ɪ")] == pytest.approx(1.5) and at[len(row) - 1] == pytest.approx(1.7)


def test_phones_are_arpabet_or_ipa() -> None:
    assert (
        symbols_of("AY1") == "ˈaɪ" and symbols_of("ER0") == "ɚ" and symbols_of("NG") == "ŋ" and symbols_of("tʃ") == "tʃ"
    )
    for wrong in ("XX", "ʘ̃", "5"):
        with pytest.raises(UserError, match="neither ARPAbet nor IPA"):
            symbols_of(wrong)


def test_a_folder_of_voices_is_prepared_for_training(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus", count=20)
    assert has_textgrids(folder) and not has_textgrids(tmp_path / "nothing")
    found = load_folder(folder)
    assert [one.split for one in found].count("val") == 1 and {one.voice for one in found} == {"ann"}
    one = found[0]
    assert len(one.wave()) == one.ends[-1] and one.frame_ends(len(data.mels_of([one], "cpu")[0]))[-1] > 0
    args = argparse.Namespace(prepare=tmp_path / "speech.prepared", data=folder, prepared=None)
    assert train.run(args) == 0
    again = data.load(tmp_path / "speech.prepared")
    assert [one.phones for one in again.utterances] == [one.phones for one in found]
    batch = data.Corpus.of(again, "train", "cpu")
    assert batch.voices == ("ann",) and int(batch.frames.sum()) == len(batch.mels)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus")
    path = folder / "ann" / "000.TextGrid"
    with pytest.raises(UserError, match="goes on to 1.50 s; its sound has 1.00 s"):
        labels(path, 1.0)
    whole = path.read_text()
    for text, told in (
        ("no grid", "no TextGrid"),
        (whole[:500], "damaged TextGrid"),
        (whole.replace('"phones"', '"sounds"'), "no tier 'phones'"),
        (whole.replace('"AH0"', '"QQ0"'), "QQ0"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            labels(path, 2.0)
    path.write_text(whole)
    (folder / "ann" / "000.wav").unlink()
    with pytest.raises(UserError, match="no sound beside it"):
        load_folder(folder)
