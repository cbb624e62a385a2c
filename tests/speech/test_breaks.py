"""Break marks: where they stand, which words they end, and pauses told by sound."""

import pytest
from longtake import UserError
from longtake.speech.prosody_fm import breaks
from longtake.speech.text.symbols import COMPAT_BREAK, ids
from speech_golden import Case


@pytest.mark.parametrize("case", ["S1_encoder_full_multispeaker", "S1_encoder_tiny_single"])
def test_the_words_before_breaks_are_those_that_the_original_finds(case):
    """Golden S1."""
    golden = Case(case)
    found = [breaks.last_words(row, COMPAT_BREAK, blanks=True) for row in golden.given("x").tolist()]
    assert [[list(span) for span in row] for row in found] == golden.facts["last_word_spans"]


def test_a_text_is_marked_as_the_models_were_trained():
    assert breaks.marked("wˈʌn, tˈuː.") == " wˈʌn, ¿ tˈuː. ¿"
    assert breaks.marked("wˈʌn tˈuː") == " wˈʌn tˈuː ¿"
    assert breaks.marked("wˈʌn ¿ tˈuː, θɹˈiː") == " wˈʌn ¿ tˈuː, θɹˈiː ¿"
    assert breaks.marked("a b c", {0}) == " a ¿ b c ¿"
    assert breaks.marked("a, b", set()) == " a, b ¿"


def test_what_cannot_be_marked_is_refused():
    with pytest.raises(UserError, match="no words"):
        breaks.marked(" ¿ ")
    with pytest.raises(UserError, match="after word 0 to 1; given 2"):
        breaks.marked("a b", {2})
    with pytest.raises(UserError, match="no space before it"):
        breaks.last_words(ids("a¿"))
    with pytest.raises(UserError, match="no word before it"):
        breaks.last_words(ids(" a  ¿"))


def test_a_pause_is_told_by_its_length():
    phones = " wˈʌn, tˈuː θɹˈiː."
    seconds = [0.1] + [0.05] * 4 + [0.1, 0.03] + [0.05] * 4 + [0.05] + [0.05] * 5 + [0.3]
    assert breaks.pauses(phones, seconds) == {0}
    assert breaks.pauses(phones, seconds, 0.04) == {0, 1}
