"""The speech tab: a player that needs no other file, and a sentence made anew."""

import re

import gradio as gr
import numpy as np
import pytest
from longtake import LongSpeechPipeline
from longtake.demos import speech_tab
from speech_voice import Toy

TEXT = "Good evening, said the captain. Was that a question? It was not a question at all."


@pytest.fixture
def output():
    return LongSpeechPipeline(Toy())(TEXT, seed=1, phonemes="words")


def test_the_player_holds_the_sound_and_every_word(output) -> None:
    page = speech_tab.player(output)
    assert "data:audio/mpeg;base64," in page and not re.search(r"(src|href)=.https?:", page)
    assert all(f'"{word}"' in page for word in TEXT.split())
    frame, rows, name = speech_tab.show(output, [], None)
    assert frame.startswith("<iframe") and [row[1] for row in rows] == [
        "Good evening, said the captain.", "Was that a question?", "It was not a question at all.",
    ]  # fmt: skip
    assert name


def test_a_sentence_is_made_anew_again_and_again(output) -> None:
    _, _, name = speech_tab.show(output, [], None)
    seen = [output.samples]
    for _ in range(2):
        _, rows, name, path = speech_tab._again(name, 2)
        seen.append(speech_tab._takes[name].samples)
        assert len(rows) == 3 and path.endswith("again.wav")
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])
    with pytest.raises(gr.Error, match="1 to 3"):
        speech_tab._again(name, 9)
    with pytest.raises(gr.Error, match="generate a take first"):
        speech_tab._again("nobody", 1)


def test_words_that_look_like_html_stay_words() -> None:
    out = LongSpeechPipeline(Toy())("Good </script><b>evening</b> there.", phonemes="words")
    assert "</script><b>" not in speech_tab.player(out)
