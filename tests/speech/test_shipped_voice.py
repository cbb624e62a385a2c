"""The voice that ships does what it is told, by ear: questions rise, commas pause, pitch moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from longtake.speech import heard
from longtake.speech.backends.load import load_voice
from longtake.speech.backends.own import OwnVoice
from longtake.speech.backends.voice import Utterance
from longtake.speech.pitch import own_range
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
