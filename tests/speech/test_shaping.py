"""Pitch that is set by hand is heard: moved sound has the pitch asked for, its times and its formants."""

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.speech.backends.voice import Abilities, Utterance, check
from longtake.speech.mel import HOP, RATE
from longtake.speech.pitch import own_range
from longtake.speech.shaping import RISE, asks, moved, moves, nucleus, rising
from longtake.speech.text.script import Unit
from longtake.speech.text.segments import Style
from longtake.speech.text.ssml import parse


def vowel(hertz: np.ndarray) -> np.ndarray:
    """A voice of a pitch (N,) in Hz by sample, with formants at 700 and 1,500 Hz."""
    phase = np.cumsum(hertz) / RATE
    wave = np.zeros(len(hertz))
    for k in range(1, 40):
        here = k * hertz
        gain = np.exp(-(((here - 700) / 250) ** 2)) + 0.5 * np.exp(-(((here - 1500) / 250) ** 2)) + 0.02
        wave += gain * np.cos(2 * np.pi * k * phase) * (here < RATE / 2)
    return (0.1 * wave).astype(np.float32)


def gliding(seconds: float = 1.0, middle: float = 140.0) -> np.ndarray:
    steps = np.arange(round(seconds * RATE)) / RATE
    return vowel(middle + 15 * np.sin(2 * np.pi * 2 * steps))


@pytest.mark.parametrize("semitones", [-8.0, -3.0, 3.0, 6.0, 12.0])
def test_sound_is_moved_by_the_semitones_asked_for_and_keeps_level_and_formants(semitones: float) -> None:
    wave = gliding()
    hertz = own_range(torch.from_numpy(wave))
    made = moved(wave, np.full(len(hertz), semitones), hertz)
    again = own_range(torch.from_numpy(made))
    both = (hertz > 0) & (again > 0)
    assert both.mean() > 0.95 and len(made) == len(wave)
    found = 12 * np.log2(again[both] / hertz[both])
    assert np.abs(np.median(found) - semitones) < 0.1 and np.abs(found - semitones).max() < 0.7
    assert made.std() == pytest.approx(wave.std(), rel=0.15)

    def peak(one: np.ndarray) -> float:  # of the first formant: the power's centre between 400 and 1,050 Hz
        power = np.abs(np.fft.rfft(one[4000:-4000])) ** 2
        places = np.fft.rfftfreq(len(one) - 8000, 1 / RATE)
        inside = (places > 400) & (places < 1050)
        return float((power * places)[inside].sum() / power[inside].sum())

    assert peak(made) == pytest.approx(peak(wave), rel=0.12)


def test_what_is_not_moved_stays_to_the_bit() -> None:
    quiet = np.random.default_rng(0).normal(0, 0.01, RATE // 2).astype(np.float32)
    wave = np.concatenate([quiet, gliding(0.6), quiet])
    hertz = own_range(torch.from_numpy(wave))
    assert np.array_equal(moved(wave, np.zeros(len(hertz)), hertz), wave)
    made = moved(wave, np.full(len(hertz), 5.0), hertz)
    voiced = np.flatnonzero(hertz > 0)
    first, last = voiced[0] * HOP, (voiced[-1] + 1) * HOP
    assert np.array_equal(made[:first], wave[:first]) and np.array_equal(made[last:], wave[last:])
    assert not np.allclose(made[first:last], wave[first:last], atol=1e-3)


def units(text: str) -> tuple[Unit, ...]:
    parts = text.split()
    return tuple(
        Unit(part, "wˈʌn", part.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'’")) for part in parts
    )


@pytest.mark.parametrize(
    ("text", "rises"),
    [
        ("Was that a question?", True),
        ("The pilot found the key?", True),
        ("The pilot found the key.", False),
        ("Why do seagulls live near the sea?", False),
        ("And what's that?", False),
        ("If you are for yourself, then what are you?", False),
        ("You know what he said?", True),
        ("In which town?", False),
        ("Really?!", True),
    ],
)
def test_questions_for_yes_or_no_rise_and_those_for_a_thing_do_not(text: str, rises: bool) -> None:
    made = units(text)
    assert rising(made, len(made) - 1) is rises
    assert asks(made, [0.0] * len(made)) is rises
    assert not any(rising(made, number) for number in range(len(made) - 1))


def test_a_word_rises_from_its_last_stress_on() -> None:
    assert nucleus("ɪntˈɛɹəstɪd") == 3 and nucleus("ˌɪntəvjˈuː") == 7 and nucleus("ðə") == 0 and nucleus("ˌʌs") == 0


def test_a_question_is_moved_at_its_end_alone_to_six_semitones_above_its_middle() -> None:
    hertz = np.full(100, 120.0)
    hertz[80:] = np.linspace(120, 90, 20)
    words, nuclei = [(0, 50 * HOP), (60 * HOP, 100 * HOP)], [0, 70 * HOP]
    asked = moves(units("come home?"), [0.0, 0.0], words, nuclei, hertz)
    assert not asked[:70].any()
    heard = 12 * np.log2(hertz / 120) + asked
    assert heard[-1] == pytest.approx(RISE) and np.all(np.diff(heard[70:]) > 0)
    assert not moves(units("come home."), [0.0, 0.0], words, nuclei, hertz).any()


def test_where_the_last_word_has_no_voice_the_last_voice_before_it_rises() -> None:
    hertz = np.full(100, 120.0)
    hertz[70:] = 0
    words, nuclei = [(0, 60 * HOP), (60 * HOP, 100 * HOP)], [0, 75 * HOP]
    asked = moves(units("come home?"), [0.0, 0.0], words, nuclei, hertz)
    assert asked[69] == pytest.approx(RISE) and not asked[:46].any() and not asked[70:].any()
    assert not moves(units("come home?"), [0.0, 0.0], words, nuclei, np.zeros(100)).any()


def test_a_contour_runs_over_the_words_that_share_it_and_pitch_is_added() -> None:
    hertz = np.full(90, 120.0)
    points = ((0.0, -2.0), (1.0, 4.0))
    drawn = [Unit("a", "a"), Unit("b", "b", style=Style(contour=points)), Unit("c", "c", style=Style(contour=points))]
    words = [(0, 30 * HOP), (30 * HOP, 60 * HOP), (60 * HOP, 90 * HOP)]
    asked = moves(drawn, [0.0] * 3, words, [0, 0, 0], hertz)
    assert not asked[:30].any()
    assert np.allclose(asked[30:], np.linspace(-2, 4, 60))
    assert moves(drawn, [1.0] * 3, words, [0, 0, 0], hertz)[-1] == pytest.approx(5)


def test_ssml_draws_a_contour_and_refuses_what_is_none() -> None:
    found, notes = parse('<speak>a <prosody contour="(0%,-2st) (50%, +1.5st)(100%,6st)">b</prosody></speak>')
    assert [one.style.contour for one in found[0].segments] == [(), ((0.0, -2.0), (0.5, 1.5), (1.0, 6.0))]
    assert not notes
    for wrong in ("", "(0%,+2Hz)", "(50%,1st) (10%,2st)", "(0%,1st) nonsense", "(120%,1st)", "(0%,+13st)"):
        with pytest.raises(UserError, match="contour"):
            parse(f'<speak><prosody contour="{wrong}">b</prosody></speak>')


def test_a_voice_without_contours_refuses_them() -> None:
    class Plain:
        abilities = Abilities(pitch=True, within=True)

    with pytest.raises(UserError, match="knows no contours"):
        check(Plain(), [Style(contour=((0.0, 1.0),))], Utterance(()))  # type: ignore[arg-type]
