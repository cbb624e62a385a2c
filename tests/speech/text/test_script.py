"""Sentences, inline marks, and SSML (C8, C9)."""

import time

import pytest
from longtake.errors import UserError
from longtake.speech.text.script import Sentence, Writer
from longtake.speech.text.segments import Style


def read(text, **settings) -> list[Sentence]:
    return list(Writer("words", **settings).sentences(text))


def test_sentences_and_paragraphs_are_told_apart() -> None:
    found = read("Good evening. Was that a question?\n\nDr. J. Smith left at 9 p.m. He said “no”... and so on! ok")
    assert [(sentence.text, sentence.end) for sentence in found] == [
        ("Good evening.", "sentence"),
        ("Was that a question?", "paragraph"),
        ("Dr. J. Smith left at 9 p.m.", "sentence"),
        ("He said no… and so on! ok", "paragraph"),
    ]
    assert found[1].phones.endswith("?")


def test_lines_of_a_list_are_sentences() -> None:
    found = [sentence.text for sentence in read("1. First item\n2. Second item\n- third")]
    assert found == ["1.", "First item", "2.", "Second item", "third"]


def test_a_text_in_pieces_gives_its_first_sentence_before_it_ends() -> None:
    """C4: the input may be a generator."""
    given = []

    def pieces():
        for piece in ("Hel", "lo there. How a", "re you? I", " am fine."):
            given.append(piece)
            yield piece

    sentences = Writer("words").sentences(pieces())
    assert next(sentences).text == "Hello there." and len(given) < 4
    assert [sentence.text for sentence in sentences] == ["How are you?", "I am fine."]


def test_ipa_needs_no_reader_and_is_said_as_it_stands() -> None:
    """E3: IPA works without espeak-ng."""

    class Broken:
        name = "broken"

        def clause(self, *_):
            raise AssertionError("asked")

    (sentence,) = Writer(Broken()).sentences("[[həlˈoʊ]] [[wˈɜːld]].")
    assert sentence.phones == "həlˈoʊ wˈɜːld."
    with pytest.raises(UserError, match="字"):
        read("[[字]]")


def test_pauses_are_read_and_bounded() -> None:
    (sentence,) = read("Wait [pause:1s] now [pause:250ms].")
    assert [unit.pause for unit in sentence.units] == [1.0, 0.25]
    for wrong in ("[pause:soon]", "[pause:1h]", "[pause:999s]"):
        with pytest.raises(UserError, match="60 s at most"):
            read(f"Wait {wrong} now")


def one(inside: str) -> Sentence:
    return read(f"<speak>{inside}</speak>")[0]


def test_each_tag_has_its_effect() -> None:
    """C8."""
    assert one('a <break time="500ms"/> b').units[0].pause == 0.5
    assert one('a <break strength="strong"/> b').units[0].pause == 0.6
    assert one('<phoneme alphabet="ipa" ph="təmˈɑːtoʊ">tomato</phoneme>.').phones == "təmˈɑːtoʊ."
    alias = one('<sub alias="World Wide Web">WWW</sub> is')
    assert alias.units[0].text == "WWW" and alias.phones.startswith("wˈɜːld wˈaɪd wˈɛb")
    assert one('<say-as interpret-as="characters">AB1</say-as>').phones == "ˈeɪ bˈiː wˈʌn"
    assert one('<say-as interpret-as="ordinal">3</say-as>').phones == "θˈɜːd"
    assert one('<say-as interpret-as="cardinal">1905</say-as>').phones.startswith("wˈʌn θˈaʊzənd")
    slow = one('a <prosody rate="slow" pitch="+2st">b <prosody rate="50%">c</prosody></prosody>')
    assert [unit.style for unit in slow.units] == [Style(), Style(0.8, 2.0), Style(0.4, 2.0)]
    assert one("<emphasis level='strong'>no</emphasis>").units[0].style == Style(0.85, 2.0)
    assert one('<voice name="lj">hi</voice> ho').units[0].style.voice == "lj"
    assert one('a <mark name="here"/>b').units[1].marks == ("here",)
    assert [sentence.text for sentence in read("<speak><p>a</p><p><s>b</s><s>c</s></p></speak>")] == ["a", "b", "c"]


def test_an_unknown_tag_keeps_its_text_and_is_told_once() -> None:
    writer = Writer("words")
    (sentence,) = writer.sentences('<speak><foo>bar</foo> <foo x="1">baz</foo></speak>')
    assert sentence.text == "bar baz" and len(writer.told) == 1 and "<foo>" in writer.told[0]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("<speak>a<b></speak>", "mismatched tag at line 1, column"),
        ("<speak>\na & b</speak>", "line 2"),
        ('<speak><break time="x"/></speak>', "line 1, column 8: <break time>"),
        ('<speak><prosody rate="0.1">a</prosody></speak>', "rate of 0.1"),
        ('<speak><prosody pitch="+99st">a</prosody></speak>', "24 either way"),
        ("<speak><voice>a</voice></speak>", "<voice> needs name"),
        ('<speak><phoneme ph="字">a</phoneme></speak>', "column"),
        ('<speak><say-as interpret-as="ordinal">x</say-as></speak>', "whole number"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><speak>&a;</speak>', "DOCTYPE"),
        ("<speak>a", "no element found|unclosed"),
    ],
)  # fmt: skip
def test_malformed_ssml_is_one_line_with_its_place(text: str, where: str) -> None:
    """C8."""
    with pytest.raises(UserError, match=where) as told:
        read(text if not text.startswith("<!DOCTYPE") else "<?xml version='1.0'?>" + text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "😀", "مرحبا", "<speak/>", "[pause:1s]", "\n\n\n"])
def test_text_without_a_word_gives_no_sentence(text: str) -> None:
    """C9."""
    assert read(text) == []


def test_odd_text_is_read_whole() -> None:
    """C9: a long run without punctuation, one letter, mixed scripts, emoji."""
    long = "word " * 1000
    assert len(read(long)[0].units) == 1000
    assert read("I")[0].phones == "aɪ"
    assert read("Hello 😀 мир world")[0].text == "Hello world"
    assert read("x" * 5000)[0].phones


def test_thirty_thousand_words_are_read_in_seconds() -> None:
    """C2, its half of the reading: every word once and in order."""
    words = [f"word{'abcdefghij'[n % 10]}" for n in range(30_000)]
    text = " ".join(word + (". Then" if n % 12 == 11 else "," if n % 5 == 4 else "") for n, word in enumerate(words))
    start = time.process_time()
    units = [unit.text.strip(".,") for sentence in read(text) for unit in sentence.units]
    assert [unit for unit in units if unit != "Then"] == words
    assert time.process_time() - start < 20
