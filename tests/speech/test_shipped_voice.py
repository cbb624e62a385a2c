"""The voice that ships does what it is told, by ear: questions rise, commas pause, pitch moves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from longtake.speech import heard
from longtake.speech import mel as front
from longtake.speech.backends.load import load_voice
from longtake.speech.backends.own import OwnVoice
from longtake.speech.backends.valle import ValleVoice
from longtake.speech.backends.voice import Utterance
from longtake.speech.pitch import own_range
from longtake.speech.reference import read_reference
from longtake.weights import shipped_priors

CASES = (
    ("aɪ had fˈaʊnd ən ˈɛɹə.", "I had found an error.", "bf_emma"),
    ("ðeɪ bɪlˈɔŋ tə ðə sˈeɪm jˈuːniən.", "They belong to the same union.", "am_fenrir"),
    ("hˈoʊm ˈɔːlsoʊ aɪ kænˈɑːt ɡˈoʊ.", "Home also I cannot go.", "af_nova"),
)


@pytest.fixture(scope="module")
def voice() -> OwnVoice:
    made = load_voice(shipped_priors("longtake.speech")["prosody-small"])
    assert isinstance(made, OwnVoice)
    return made


@pytest.fixture(scope="module")
def cases() -> list[heard.Case]:
    return [(heard.units_of(phones, text), speaker) for phones, text, speaker in CASES]


@pytest.mark.slow
def test_b5_questions_end_higher_than_statements_and_commas_pause(voice: OwnVoice, cases: list[heard.Case]) -> None:
    assert heard.questions(voice.say, cases) == 1.0
    _, timed = heard.breaks(voice.say, cases)
    assert timed == 1.0


def test_pitch_is_heard_in_the_shipped_voice(voice: OwnVoice, cases: list[heard.Case]) -> None:
    units, speaker = cases[0]
    pitch = []
    for semitones in (0.0, 4.0):
        style = replace(units[0].style, pitch=semitones)
        said = voice.say(Utterance(tuple(replace(unit, style=style) for unit in units), seed=1, speaker=speaker))
        hertz = own_range(torch.from_numpy(said.samples))
        pitch.append(float(np.median(hertz[hertz > 0])))
    assert 12 * np.log2(pitch[1] / pitch[0]) == pytest.approx(4, abs=0.7)


SPOKEN = ("ðə ˈoʊld kˈæptən wˈeɪɾᵻd baɪ ðə ɹˈɪvɚ.", "The old captain waited by the river.")


@pytest.mark.slow
def test_the_voice_that_clones_speaks_as_its_prompts_and_as_a_recording(tmp_path: Path) -> None:
    """Low and high voices stay what they are, named or heard; every word has its time; a seed is a take."""
    made = load_voice(shipped_priors("longtake.speech")["valle-small"])
    assert isinstance(made, ValleVoice) and made.abilities.clones and len(made.abilities.speakers) == 53
    units = heard.units_of(*SPOKEN)

    def pitch(samples: np.ndarray) -> float:
        hertz = own_range(torch.from_numpy(samples))
        return float(np.median(hertz[hertz > 0]))

    low, high = (made.say(Utterance(units, seed=2, speaker=name)) for name in ("am_fenrir", "af_nova"))
    assert pitch(high.samples) > 1.3 * pitch(low.samples)
    for said in (low, high):
        assert len(said.words) == 7 and all(a < b for a, b in said.words) and said.words[-1][1] <= len(said.samples)
        assert 1.2 < len(said.samples) / made.rate < 4.5
    assert np.array_equal(low.samples, made.say(Utterance(units, seed=2, speaker="am_fenrir")).samples)

    recording = tmp_path / "low.wav"
    soundfile.write(recording, low.samples, made.rate)
    made.clone(front.log_mel(read_reference(recording)), SPOKEN[0])
    again = made.say(Utterance(heard.units_of(*CASES[0][:2]), seed=3))
    assert pitch(again.samples) == pytest.approx(pitch(low.samples), rel=0.2)
