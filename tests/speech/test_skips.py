"""Phonemes that are left out or said twice are found by what a recogniser wrote down, small mishearings are not."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from longtake.cli import main
from longtake.speech import evaluate, judges, skips
from speech_data import write_corpus

LINE = " ðɪ ˈoʊld kˈæptɪn fˈaʊnd ðə mˈɪsɪŋ kˈiː, bɪkˈɒz ðə tɹˈeɪn wɒz lˈeɪt. ¿"


def test_marks_lengths_and_the_kind_of_vowel_do_not_count():
    assert skips.sounds(" mˈaɪ kˈʌp?") == list("mVkVp") == skips.sounds("mɪ kɐːp")
    assert skips.sounds("tʃˈɜːtʃ") == skips.sounds("t͡ʃɝt͡ʃ") == ["Č", "V", "Č"]
    assert skips.sounds("fˈɑːɹmɚ") == skips.sounds("fˈɑːmə") == list("fVmV")
    assert skips.sounds("vˈɛɹi tɹˈeɪn") == list("vVɹVtɹVn")
    assert skips.sounds("ɡˈɛt") == skips.sounds("gˈɛt") and skips.sounds(" ¿, ") == []


def test_what_was_said_as_asked_has_no_fault():
    told = skips.sounds(LINE)
    assert skips.compare(told, told) == skips.Faults(len(told), 0, 0, (), ())
    assert skips.compare([], []) == skips.Faults(0, 0, 0, (), ())


@pytest.mark.parametrize("gone", [3, 8])
@pytest.mark.parametrize("place", [0, 10, None])
def test_phonemes_left_out_are_a_skip_wherever_they_stand(place, gone):
    told = skips.sounds(LINE)
    start = len(told) - gone if place is None else place
    found = skips.compare(told, told[:start] + told[start + gone :])
    assert (found.lost, found.added, sum(found.skips), found.repeats) == (gone, 0, gone, ())


@pytest.mark.parametrize("place", [0, 10, 20])
def test_phonemes_said_twice_are_a_repeat(place):
    told = skips.sounds(LINE)
    found = skips.compare(told, told[: place + 6] + told[place:])
    assert (found.lost, found.added, found.skips) == (0, 6, ()) and max(found.repeats) >= 5, "one may stand apart"


def test_phonemes_misheard_lost_or_added_one_by_one_are_neither():
    told = skips.sounds(LINE)
    heard = ["d" if one == "ð" else one for one in told]  # alike
    del heard[7]
    heard[20:20] = ["s", "h"]
    found = skips.compare(told, heard)
    assert (found.lost, found.added, found.skips, found.repeats) == (1, 2, (), ())
    assert skips.compare(told, []).skips == (len(told),) and skips.compare([], told).repeats == (len(told),)


def test_a_row_counts_sentences_and_shows_those_with_faults():
    lines = ["kˈæptɪn", LINE, LINE]
    heard = iter([lines[0], LINE[:20], LINE + LINE])
    shown = []
    asked = ((line, lambda: (np.zeros(10, np.float32), 8000)) for line in lines)
    row = skips.judged("some", asked, lambda wave, rate: skips.sounds(next(heard)), shown.append)
    assert (row.sentences, row.skipped, row.repeated) == (3, 1, 1) and len(shown) == 2 and "sentence 2" in shown[0]
    assert row.told == 2 * len(skips.sounds(LINE)) + 6 and row.added == len(skips.sounds(LINE))


def test_voices_take_turns_within_their_accent():
    voices = ["af_a", "af_b", "am_c", "bf_d", "bm_e"]
    assert [evaluate._next(one, voices) for one in voices] == ["af_b", "am_c", "af_a", "bm_e", "bf_d"]
    assert evaluate._next("zz", voices) == "af_a" and evaluate._next("af_a", ["af_a"]) == "af_a"


def test_the_command_judges_recordings_and_a_missing_recogniser_is_named(tmp_path, monkeypatch, capsys):
    """The recogniser stands in: of each sound it hears as many phonemes as there are tenths of a second."""
    write_corpus(tmp_path)
    told = ["evaluate", "speech", "--data", str(tmp_path), "--sentences", "0", "--controls", "0", "--phonemes", "2"]
    told += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    assert main(told) == 2 and "pip install hama" in capsys.readouterr().err
    made = ModuleType("hama.asr")
    made.ASRModel = lambda: lambda sound, rate: SimpleNamespace(phonemes=["p"] * (10 * len(sound) // rate))
    monkeypatch.setattr(judges, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    monkeypatch.setitem(sys.modules, "hama", ModuleType("hama"))
    monkeypatch.setitem(sys.modules, "hama.asr", made)
    assert main(told) == 0
    assert "| real " in capsys.readouterr().out and '"lost"' in (tmp_path / "out" / "speech.json").read_text()
