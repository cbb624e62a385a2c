"""Sentences into chunks."""

import time

import pytest
from longtake.errors import UserError
from longtake.speech.longform.planner import Chunk, Planner
from longtake.speech.text.script import Writer


def plan(text: str, **settings) -> list[Chunk]:
    return list(Planner(**settings).chunks(Writer("words").sentences(text)))


def long_text(words: int, every: int = 12) -> str:
    names = ["river", "stone", "quiet", "morning", "window", "seven", "garden", "letter"]
    said = [names[n % 8] for n in range(words)]
    return " ".join(
        word + ("." if n % every == every - 1 else "") + ("\n\n" if n % 90 == 89 else "") for n, word in enumerate(said)
    )


def test_a_chunk_is_a_sentence() -> None:
    text = (
        "The old captain opened the window. Did he answer the telephone? He certainly did not.\n\nThe end came quietly."
    )
    chunks = plan(text)
    assert [chunk.end for chunk in chunks] == ["sentence", "sentence", "paragraph", "paragraph"]
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]


def test_a_sentence_of_a_word_goes_with_its_neighbour() -> None:
    chunks = plan("The old captain opened the window. No. The committee finished the long report.")
    assert [chunk.sentences for chunk in chunks] == [(0, 0), (1, 2)]
    assert plan("No.")[0].symbols == "nˈoʊ."
    assert len(plan("Good evening. Was that a question?")) == 2, "each can be redone by itself"


def test_long_sentences_are_cut_at_punctuation_and_else_at_a_space() -> None:
    """C9: 5,000 letters without punctuation."""
    clauses = ", ".join(["the quiet farmer painted the northern wall of the garden"] * 12)
    planner = Planner(first=12.0)
    parts = list(planner.chunks(Writer("words").sentences(clauses)))
    assert len(parts) > 1 and all(chunk.end == "phrase" for chunk in parts[:-1]) and parts[-1].end == "paragraph"
    run = plan("word " * 1000)
    assert {chunk.end for chunk in run[:-1]} == {"word"}
    assert max(planner.seconds(chunk.units) for chunk in [*parts, *run]) <= 18
    assert sum(len(chunk.units) for chunk in run) == 1000
    with pytest.raises(UserError, match="least <= first"):
        Planner(target=1.0)


def test_the_first_chunk_is_short_where_punctuation_allows() -> None:
    chunks = plan(
        "When the sun went down over the hills, the musician opened the window of the small house by the lake."
    )
    assert chunks[0].end == "phrase" and Planner().seconds(chunks[0].units) <= 3.0
    assert len(chunks) == 2


def test_pauses_and_speakers_end_a_chunk() -> None:
    chunks = plan("The old captain waited [pause:700ms] and answered the telephone.")
    assert [(chunk.pause, chunk.end) for chunk in chunks] == [(0.7, "phrase"), (None, "paragraph")]
    chunks = plan('<speak>The old captain <voice name="lj">answered the telephone</voice> today.</speak>')
    assert [chunk.speaker for chunk in chunks] == [None, "lj", None]
    assert plan("[pause:2s] Hello there.")[0].lead == 2.0


def test_nothing_is_lost_or_said_twice_in_thirty_thousand_words() -> None:
    """C2."""
    text = long_text(30_000)
    start = time.process_time()
    sentences = list(Writer("words").sentences(text))
    chunks = list(Planner().chunks(sentences))
    assert time.process_time() - start < 20
    units = [unit.phones for sentence in sentences for unit in sentence.units]
    assert [unit.phones for chunk in chunks for unit in chunk.units] == units and len(units) == 30_000
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))


def test_the_planner_alone_takes_fifty_thousand_words_a_second() -> None:
    """D3, its half of the planner (best of three: the machine is shared)."""
    sentences = list(Writer("words").sentences(long_text(10_000)))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        list(Planner().chunks(sentences))
        seconds.append(time.process_time() - start)
    assert 10_000 / min(seconds) > 50_000
