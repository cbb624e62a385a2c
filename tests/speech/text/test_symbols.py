"""The symbol table of the public models."""

import pytest
from longtake.errors import UserError
from longtake.speech.text.symbols import BREAK, COMPAT_BREAK, ID, SPACE, SYMBOLS, ids, interspersed, symbols

CORPUS = " !,.:;?abdefhijklmnopstuvwzæðŋɑɒɔəɚɛɜɡɪɹɾʃʊʌʒʔˈˌːθᵻ"  # the 51 symbols of the aligned corpora


def test_the_table_has_178_symbols_in_the_public_order() -> None:
    assert len(SYMBOLS) == 178
    assert SYMBOLS[0] == "_" and SPACE == 16 and COMPAT_BREAK == 6 and BREAK == 8
    assert ID["A"] == 17 and ID["a"] == 43 and ID["ɑ"] == 69 and ID["ˈ"] == 156 and ID["ᵻ"] == 177


def test_every_phone_of_the_corpora_is_in_the_table() -> None:
    assert symbols(ids(CORPUS)) == CORPUS


def test_blanks_stand_before_between_and_after() -> None:
    assert interspersed([5, 6]) == [0, 5, 0, 6, 0] and interspersed([]) == [0]


def test_a_strange_symbol_is_named() -> None:
    with pytest.raises(UserError, match="字"):
        ids("a字")
    with pytest.raises(UserError, match="178"):
        symbols([178])
