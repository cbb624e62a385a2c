"""Our models as voices, at tiny sizes with random weights: times, carry, controls, files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.speech.backends.load import load_voice
from longtake.speech.backends.own import places_of, row_of, times_of
from longtake.speech.backends.prosody import ProsodyVoice
from longtake.speech.backends.voice import Utterance, shared_times, sounding
from longtake.speech.longform.engine import LongForm
from longtake.speech.pitch import own_range
from longtake.speech.prosody_fm.breaks import marked
from longtake.speech.prosody_fm.speak import speak
from longtake.speech.text.script import Unit, Writer, symbols_of
from longtake.speech.text.segments import Style
from speech_prior import prosody as voice

UNITS = tuple(
    Unit(text, phones, after)
    for text, phones, after in (("The", "ðə", ""), ("old", "ˈoʊld", ""), ("one,", "wˈʌn", ","), ("well.", "wˈɛl", "."))
)


def test_units_are_found_in_a_row_of_symbols() -> None:
    row = marked(symbols_of(UNITS))
    found = [row[first:last] for first, last in places_of(UNITS, row, " ¿")]
    assert found == ["ðə", "ˈoʊld", "wˈʌn", "wˈɛl"]
    glued = (Unit("of", "ʌv"), Unit("the", "ðə", glued=True))
    row = marked(symbols_of(glued))
    assert [row[first:last] for first, last in places_of(glued, row, " ¿")] == ["ʌv", "ðə"]
    assert times_of([(1, 3)], [2, 3, 1]) == [(512, 1536)]


@pytest.mark.parametrize("change", [{}, {"blanks": True}, {"tokens": 0, "tone": False, "speakers": 1, "voices": ()}])
def test_a_chunk_is_said_with_times_of_its_words(change: dict) -> None:
    made = voice(**change)
    said = made.say(Utterance(UNITS, seed=3))
    assert said.samples.dtype == np.float32 and len(said.samples) % 256 == 0
    assert len(said.words) == 4 and all(a < b for a, b in said.words) and said.words[-1][1] <= len(said.samples)
    again = made.say(Utterance(UNITS, seed=3))
    assert np.array_equal(said.samples, again.samples)
    assert not np.array_equal(said.samples, made.say(Utterance(UNITS, seed=4)).samples)


@pytest.mark.parametrize("change", [{}, {"blanks": True}, {"aligner": 0, "aligner_reads": False}])
def test_the_voice_says_what_the_model_says(change: dict) -> None:
    made = voice(**change)
    said = made.say(Utterance(UNITS, seed=5, speaker="b", rate=1.25))
    alone = speak(made.model, symbols_of(UNITS), voice="b", seed=5, rate=1.25)
    assert np.allclose(said.samples, made.sound(alone.mel), atol=1e-5)


def test_breaks_stand_at_punctuation_and_inside_long_runs() -> None:
    assert row_of(UNITS) == marked(symbols_of(UNITS)) == " ðə ˈoʊld wˈʌn, ¿ wˈɛl. ¿"
    text = "the old road by the river in the green valley is closed when it rains for days and the people of the town"
    words = f"{text} stay at home".split()
    units = tuple(Unit(word, "a") for word in words)
    assert row_of(units).count("¿") > 1
    glued = (Unit("of", "ʌv", ","), Unit("the", "ðə", glued=True), Unit("old", "ˈoʊld tˈuː"), Unit("one", "wˈʌn"))
    assert row_of(glued).count("¿") == 1


@pytest.mark.parametrize("blanks", [False, True])
def test_rate_changes_the_words_that_it_is_said_of(blanks: bool) -> None:
    made = voice(blanks=blanks)
    slow = (UNITS[0], replace(UNITS[1], style=Style(rate=0.5)), *UNITS[2:])
    plain, slowed = (made.say(Utterance(units, seed=1)).words for units in (UNITS, slow))
    ratio = [(b - a) / (d - c) for (a, b), (c, d) in zip(slowed, plain, strict=True)]
    assert ratio[1] == pytest.approx(2, abs=0.3) and ratio[0] == pytest.approx(1, abs=0.3)
    whole = made.say(Utterance(UNITS, seed=1, rate=0.5))
    assert whole.words[-1][1] == pytest.approx(2 * plain[-1][1], rel=0.15)


def hum(mel: torch.Tensor) -> np.ndarray:
    """A level voice of 150 Hz as long as a mel, since random weights have no pitch that could be moved."""
    steps = np.arange(mel.shape[-1] * 256) / 22050
    return sum(0.1 / k * np.cos(2 * np.pi * 150 * k * steps) for k in range(1, 12)).astype(np.float32)


def test_pitch_of_one_word_changes_it_and_leaves_the_rest() -> None:
    made = voice()
    made.sound = hum
    long = tuple(replace(unit, phones=unit.phones * 6) for unit in UNITS)
    high = (*long[:3], replace(long[3], style=Style(pitch=4.0)))
    plain, changed = (made.say(Utterance(units, seed=1)) for units in (long, high))
    assert plain.words == changed.words and len(plain.samples) == len(changed.samples)
    hertz = own_range(torch.from_numpy(changed.samples))
    start, end = (round(place / 256) for place in plain.words[3])
    assert np.allclose(hertz[4 : start - 6], 150, rtol=0.01)
    assert np.allclose(hertz[start + 6 : end - 4], 150 * 2 ** (4 / 12), rtol=0.02)


def test_a_question_rises_at_its_end_and_a_statement_does_not() -> None:
    made = voice()
    made.sound = hum
    said = [made.say(Utterance((*UNITS[:3], replace(UNITS[3], after=mark)), seed=1)) for mark in ".?"]
    level, risen = (own_range(torch.from_numpy(one.samples)) for one in said)
    assert np.allclose(level[4:-4], 150, rtol=0.01)
    end = round(said[1].words[-1][1] / 256)
    assert risen[end - 10 : end].max() > 150 * 2 ** (4 / 12)


def test_a_chunk_goes_on_from_the_one_before() -> None:
    made = voice()
    first = made.say(Utterance(UNITS, seed=1))
    assert first.state is not None and first.state["mel"].shape[1] == first.state["frames"].sum() <= 64
    assert len(first.state["ids"]) == len(first.state["frames"])
    alone, carried = made.say(Utterance(UNITS, seed=2)), made.say(Utterance(UNITS, seed=2), first.state)
    assert carried.words and not np.array_equal(alone.samples[:5000], carried.samples[:5000])


def test_a_long_take_is_made_with_and_without_carry() -> None:
    for carry in ("none", "tail"):
        form = LongForm(voice(), Writer("words"), carry=carry)
        packets = list(form.stream("The old captain waited. And then the captain went home again. So it was.", 1))
        words = [word.text for packet in packets for word in packet.words]
        assert words == "The old captain waited. And then the captain went home again. So it was.".split()


def test_public_models_with_blanks_carry_nothing_and_say_so() -> None:
    with pytest.raises(UserError, match="carry must be none"):
        LongForm(voice(blanks=True), Writer("words"), carry="tail")


def test_a_voice_is_saved_and_loaded(tmp_path: Path) -> None:
    made = voice()
    made.save_pretrained(tmp_path / "v")
    back = load_voice(tmp_path / "v")
    again = ProsodyVoice.from_pretrained(tmp_path / "v")
    asked = Utterance(UNITS, seed=1, speaker="b")
    assert np.array_equal(back.say(asked).samples, again.say(asked).samples) and back.mark == again.mark
    assert back.abilities.speakers == ("a", "b", "bf_c") and back.abilities.accents["bf_c"] == "en-gb"
    with pytest.raises(UserError, match="no speech prior"):
        load_voice(tmp_path)


def test_times_are_shared_out_where_a_voice_tells_none() -> None:
    samples = np.concatenate([np.zeros(1000), np.sin(np.arange(8000)), np.zeros(3000)]).astype(np.float32)
    assert sounding(samples, 8000) == (960, 9040)
    times = shared_times(samples, 8000, UNITS)
    assert times[0][0] == 960 and times[-1][1] == 9040
    assert all(a[1] == b[0] for a, b in zip(times, times[1:], strict=False))
