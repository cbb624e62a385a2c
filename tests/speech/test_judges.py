"""How speech is judged: words, error rates, rises, gaps, with judges that stand in for the installed ones."""

import numpy as np
import pytest
from longtake import UserError
from longtake.speech import evaluate, judges
from longtake.speech.data import load_zip
from longtake.speech.mel import RATE
from speech_data import write_zip


def test_words_are_compared_without_case_and_marks():
    assert judges.words("Mr. O'Neil said: “Twenty-one!”") == ["mister", "oneil", "said", "twenty", "one"]
    assert judges.word_error_rate([("the cat sat", "The cat sat."), ("a b", "a b c")]) == pytest.approx(1 / 6)
    assert np.isnan(judges.word_error_rate([]))


def test_errors_are_changes_additions_and_omissions():
    assert judges.errors("a b c".split(), "a x c".split()) == 1
    assert judges.errors("a c".split(), "a b c".split()) == 1
    assert judges.errors([], "a b".split()) == 2 and judges.errors("a b".split(), []) == 2
    assert judges.errors("b c d a".split(), "a b c d".split()) == 2


def test_a_judge_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install faster-whisper"):
        judges.Listener(tmp_path)
    with pytest.raises(UserError, match="pip install resemblyzer"):
        judges.Acquaintance()


def test_a_rise_at_the_end_is_heard():
    def tone(track):
        count = len(track) * 256
        hertz = np.interp(np.arange(count), np.arange(len(track)) * 256, track)
        phase = 2 * np.pi * np.cumsum(hertz) / RATE
        return (sum(np.sin(k * phase) / k for k in range(1, 6)) * 0.2).astype(np.float32)

    level, up = [150.0] * 80, [150.0] * 60 + [150.0 + 5 * step for step in range(20)]
    assert abs(evaluate.final_rise(tone(level))) < 0.5 and evaluate.final_rise(tone(up)) > 4
    assert evaluate.final_rise(np.zeros(9000, np.float32)) == 0.0


def test_the_gap_after_a_word_is_its_pause():
    row, frames = " ab, ¿ cd ¿", [3, 4, 4, 2, 1, 9, 1, 5, 5, 1, 7]
    assert evaluate._gap(row, frames, 0) == 11 and evaluate._gap(row, frames, 1) == 8


def test_a_row_judges_each_sentence(tmp_path):
    told = load_zip(write_zip(tmp_path / "aligned_val.zip"), "val")

    class Same:
        def vector(self, wave, rate):
            return np.array([1.0, 0.0])

        def alike(self, wave, rate, reference):
            return float(reference[0])

    judge = evaluate.Judges(lambda wave, rate: "one two", Same(), told)
    row = judge.row("copy", told[:2], lambda one: (one.wave(), 24_000))
    assert row.sentences == 2 and row.similarity == 1.0 and row.length == pytest.approx(1.0) and row.rtf >= 0
    assert evaluate.TABLE.markdown([row]).count("copy") == 1


def test_questions_and_breaks_are_counted(tmp_path):
    told = load_zip(write_zip(tmp_path / "aligned_val.zip"), "val")

    def speak(phones, voice, slope=0.0):
        rise = (60 if "?" in phones else -20) + 10 * slope
        track = 150 + np.concatenate([np.zeros(60), np.linspace(0, rise, 30)])
        phase = 2 * np.pi * np.cumsum(np.repeat(track, 256)) / RATE
        wave = sum(np.sin(k * phase) / k for k in range(1, 6)).astype(np.float32) * 0.2
        return wave, [12 if symbol == "¿" else 3 for symbol in phones]

    assert evaluate.contours(speak, told) == 1.0
    assert evaluate.breaks(speak, told) == 1.0 and evaluate.slopes(speak, told) == 1.0
    assert evaluate.breaks(lambda phones, voice: (None, [1] * len(phones)), told) == 0.0
