"""How speech is judged: words, error rates, rises, gaps, with judges that stand in for the installed ones."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from longtake import UserError
from longtake.speech import evaluate, evaluate_long, heard, judges
from longtake.speech.backends.voice import Said
from longtake.speech.data import load_zip
from longtake.speech.mel import RATE
from speech_data import write_zip
from speech_prior import prosody


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


def voiced(track, pause=None):
    """A voice of a pitch (T,) in Hz by frame; pause: frames (first, stop) of silence."""
    phase = 2 * np.pi * np.cumsum(np.repeat(np.asarray(track, float), 256)) / RATE
    wave = (sum(np.sin(k * phase) / k for k in range(1, 6)) * 0.2).astype(np.float32)
    if pause is not None:
        wave[pause[0] * 256 : pause[1] * 256] = 0
    return wave


def test_a_rise_at_the_end_is_heard():
    level, up = [150.0] * 80, [150.0] * 60 + [150.0 + 5 * step for step in range(20)]
    assert abs(heard.final_rise(voiced(level))) < 0.5 and heard.final_rise(voiced(up)) > 4
    assert heard.final_rise(np.zeros(9000, np.float32)) == 0.0


def test_a_pause_is_the_longest_silence_between_two_places():
    wave = voiced([150.0] * 100, (40, 60))
    assert heard.pause(wave, 20 * 256, 80 * 256) == pytest.approx(20 * 256 / RATE, abs=0.02)
    assert heard.pause(wave, 0, 30 * 256) == 0.0


def test_units_of_a_row_carry_its_marks_and_its_words():
    units = heard.units_of(" ðə ˈoʊld wˈʌn, ¿ wˈɛl. ¿", "The old one, well.")
    assert [(unit.text, unit.phones, unit.after) for unit in units] == [
        ("The", "ðə", ""),
        ("old", "ˈoʊld", ""),
        ("one,", "wˈʌn", ","),
        ("well.", "wˈɛl", "."),
    ]
    assert [unit.text for unit in heard.units_of("ðəwˈʌn wˈɛl.", "The one, well.")] == ["ðəwˈʌn", "wˈɛl."]


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


def test_written_sentences_are_read_by_each_voice_in_turn(tmp_path):
    known = load_zip(write_zip(tmp_path / "aligned_val.zip"), "val")
    asked = []

    class Same:
        def vector(self, wave, rate):
            return np.array([1.0, 0.0])

        def alike(self, wave, rate, reference):
            return float(reference[0])

    def pipe(text, *, voice, seed, num_inference_steps):
        asked.append((text, voice, num_inference_steps))
        return SimpleNamespace(samples=np.zeros(22_050, np.float32), rate=22_050)

    (tmp_path / "told.txt").write_text("one two\n\n  one five\none two\n")
    told = evaluate.sentences_of(tmp_path / "told.txt")
    judge = evaluate.Judges(lambda wave, rate: "one two", Same(), known)
    voices = sorted({one.voice for one in known})
    row = judge.written("read", told, pipe, voices, 4)
    assert asked == [(text, voices[n % len(voices)], 4) for n, text in enumerate(["one two", "one five", "one two"])]
    assert row.wer == pytest.approx(1 / 6) and row.similarity == 1.0 and np.isnan(row.length) and row.sentences == 3


def test_a_file_of_sentences_that_is_none_is_refused(tmp_path):
    assert evaluate.sentences_of(None) == []
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no sentence"):
        evaluate.sentences_of(tmp_path / "empty.txt")
    (tmp_path / "sound.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for name in ("sound.txt", "nowhere.txt"):
        with pytest.raises(UserError, match="cannot be read as text"):
            evaluate.sentences_of(tmp_path / name)


class Actor:
    """Stands in for a voice: does, or leaves out, what it is told."""

    def __init__(self, obeys):
        self.obeys, self.asked = obeys, []

    def say(self, asked):
        self.asked.append(asked)
        frames, words = 0, []
        for unit in asked.units:
            words.append((frames * 256, (frames + 30) * 256))
            frames += 50 if self.obeys and unit.after == "," else 30
        last = asked.units[-1]
        contour = last.style.contour
        rises = "?" in last.after or (contour and contour[-1][1] > 0)
        track = np.full(frames, 150.0)
        track[-25:] += np.linspace(0, 60 if self.obeys and rises else -20, 25)
        gaps = [(words[n][1] // 256, words[n + 1][0] // 256) for n in range(len(words) - 1)]
        pause = next((gap for gap in gaps if gap[1] > gap[0]), None)
        return Said(voiced(track, pause), words)


@pytest.mark.parametrize("obeys", [True, False])
def test_questions_contours_and_breaks_are_counted_where_they_are_heard(obeys):
    told = [("ðə ˈoʊld wˈʌn wˈɛl.", "The old one well."), ("wˌaɪ dˈuː ðə wˈʌn?", "Why do the one?")]
    cases = heard.cases(told, ["a", "b", "c"], 3)
    assert [speaker for _, speaker in cases] == ["a", "b", "c"]
    assert {units[0].text for units, _ in cases} == {"The"}  # who, what, why are no questions of yes or no
    actor = Actor(obeys)
    share = 1.0 if obeys else 0.0
    assert heard.questions(actor.say, cases) == share and heard.contours(actor.say, cases) == share
    assert heard.breaks(actor.say, cases) == (share, share)
    assert {asked.speaker for asked in actor.asked} == {"a", "b", "c"}


def test_where_a_sentence_begins_is_found_in_the_sound():
    wave = voiced([150.0] * 200, (0, 30))
    wave[90 * 256 : 110 * 256] = 0
    late = round(0.04 * RATE)
    gaps = evaluate_long.onset_gaps(wave, RATE, [30 * 256 - late, 110 * 256 + late])
    assert gaps == pytest.approx([0.04, -0.04], abs=0.008)
    assert evaluate_long.onset_gaps(wave, RATE, [60 * 256]) == []


def test_a_long_take_is_judged_by_minute_and_its_slopes_are_told(tmp_path, capsys):
    class Same:
        def alike(self, wave, rate, reference):
            return 0.5

    class Judges:
        acquaintance = Same()

        def listener(self, wave, rate):
            return " ".join(["the old captain waited by the river"] * 500)[: len(self.told)]

        def voice(self, name):
            return None

    judge = Judges()
    judge.told = "nothing like it"
    voice = prosody()
    found = evaluate_long.judged(voice, judge, "b", 2, ["The old captain waited by the river."], tmp_path, seconds=4)
    rows = json.loads((tmp_path / "long.json").read_text())["minutes"]
    assert [row["minute"] for row in rows] == [1, 2] and all(4 <= row["seconds"] < 15 for row in rows)
    assert found["minutes"] == 2 and found["similarity"] == 0.5 and found["wer"] > 0.5
    assert capsys.readouterr().out.count("minute") == 2
    assert evaluate_long.slope([0.1, 0.2, 0.3]) == pytest.approx(0.2) and evaluate_long.slope([1.0]) == 0.0
    assert evaluate_long.summary([]) == {"minutes": 0}
