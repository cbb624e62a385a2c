"""Words into IPA: the reader that pip alone brings, and espeak-ng where it is."""

import pytest
from longtake.errors import UserError
from longtake.speech.text import phonemes, spelling
from longtake.speech.text.phonemes import Sound, _shared_out, espeak, pronounced, read_lexicon, reader, words

# sentences of the aligned corpora with their phones: espeak-ng 1.51, American
CORPUS = {
    "A quiet farmer packed the small suitcase in the blue notebook":
        "ə kwˈaɪət fˈɑːɹmɚ pˈækt ðə smˈɔːl sˈuːtkeɪs ɪnðə blˈuː nˈoʊtbʊk",
    "The committee finished the report": "ðə kəmˈɪɾi fˈɪnɪʃt ðə ɹᵻpˈoːɹt",
    "Were you acquainted with the deceased": "wɜː juː əkwˈeɪntᵻd wɪððə dᵻsˈiːst",
    "What excuses stand in your way": "wˌʌt ɛkskjˈuːsᵻz stˈænd ɪn jʊɹ wˈeɪ",
}  # fmt: skip


def line(sounds: list[Sound]) -> str:
    return "".join(("" if not n or sound.glued else " ") + sound.phones for n, sound in enumerate(sounds))


@pytest.mark.parametrize("text", CORPUS)
def test_the_lexicon_says_what_the_corpora_say(text: str) -> None:
    assert line(reader("words").clause(text.split())) == CORPUS[text]


@pytest.mark.parametrize("text", CORPUS)
def test_espeak_says_what_the_corpora_say(text: str) -> None:
    if espeak() is None:  # an optional system library
        assert reader("auto").name == "words"
        return
    sounds = reader("espeak").clause(text.split())
    assert line(sounds) == CORPUS[text] and len(sounds) == len(text.split())


def test_groups_of_phones_are_shared_out_over_their_words() -> None:
    sounds = _shared_out(["wˈɔːk", "ɪnðə", "hˈaʊs"], ["wˈɔːk", "ˈɪn", "ðə", "hˈaʊs"])
    assert sounds == [Sound("wˈɔːk"), Sound("ɪn"), Sound("ðə", glued=True), Sound("hˈaʊs")]
    assert [sound.phones for sound in _shared_out(["a"], ["b", "c", "d", "e", "f", "g"])] == list("bcdefg")


def test_words_in_no_lexicon_are_read_by_their_letters() -> None:
    assert spelling.sounds("brillig").count("ˈ") == 1
    assert reader("words").clause(["longtakes"])[0].phones.startswith("lˈɔŋt")
    table = spelling.learned(["c}k a}ˈæ t}t", "c}s i}ˈɪ t}t", "c}k a}ˈæ p}p", "c}s i}ˈɪ p}p"])
    assert spelling.sounds("cit", table) == "sˈɪt" and spelling.sounds("cap", table) == "kˈæp"


def test_letters_that_are_spelled_out_are_letters() -> None:
    sounds = pronounced(reader("words"), ["U", "S", "A"], "", {})
    assert [sound.phones for sound in sounds] == ["jˈuː", "ˈɛs", "ˈeɪ"]
    assert pronounced(reader("words"), ["A", "dog"], "", {})[0].phones == "ə"


def test_a_lexicon_file_wins_and_its_mistakes_have_a_line(tmp_path) -> None:
    path = tmp_path / "mine.lex"
    path.write_text("# mine\nTomato\ttəmˈɑːtoʊ\nkokoro kˈoʊkəɹoʊ\n")
    lexicon = read_lexicon(path)
    assert pronounced(reader("words"), ["tomato"], "", lexicon) == [Sound("təmˈɑːtoʊ")]
    path.write_text("ok ˌoʊkˈeɪ\nbad 字\n")
    with pytest.raises(UserError, match="line 2 of .*mine.lex"):
        read_lexicon(path)


def test_without_any_reader_plain_text_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """E3: espeak-ng absent."""
    espeak.cache_clear()
    words.cache_clear()
    monkeypatch.setattr(phonemes.ctypes, "CDLL", _none)
    monkeypatch.setattr(phonemes, "find_spec", lambda name: None)
    try:
        with pytest.raises(UserError, match="pip install gruut-lang-en, or apt install espeak-ng"):
            reader("auto")
        with pytest.raises(UserError, match="apt install espeak-ng"):
            reader("espeak")
    finally:
        espeak.cache_clear()
        words.cache_clear()
    with pytest.raises(UserError, match="phonemes is one of"):
        reader("x")


def _none(name: str) -> None:
    raise OSError(name)
