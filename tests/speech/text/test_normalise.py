"""Written text into spoken words."""

import pytest
from longtake.speech.text.normalise import LeftOut, tokens


def said(text: str) -> str:
    return " ".join(token.spoken + token.after for token in tokens(text))


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Dr. Lee met Mr. Smith", "doctor Lee met mister Smith"),
        ("$3.50, $1, $0.99 and £2.5bn", "three dollars and fifty cents, one dollar, ninety nine cents and "
         "two point five billion pounds"),
        ("1,234.5 km", "one thousand two hundred and thirty four point five kilometres"),
        ("-3 °C, 5kg and 1 m", "minus three degrees Celsius, five kilograms and one metre"),
        ("42nd and 101st", "forty second and one hundred and first"),
        ("in 1905, 2000, 2024 and the 1920s", "in nineteen oh five, two thousand, twenty twenty four and the "
         "nineteen twenties"),
        ("3.5% or 1/2 or 3/4", "three point five percent or one half or three quarters"),
        ("10:05 pm, 9:00, 14:00", "ten oh five P M, nine o'clock, fourteen hundred"),
        ("2026-11-27; May 3rd, 1999; 27 Nov", "November twenty seventh twenty twenty six; May third nineteen ninety "
         "nine; November twenty seventh"),
        ("10-20 kids, 555-1234", "ten to twenty kids, five five five one two three four"),
        ("Henry VIII, Chapter IV", "Henry the eighth, Chapter four"),
        ("IBM, U.S., NASA", "I B M, U S, NASA"),
        ("see http://a.com/x.", "see a dot com slash x."),
        ("007 and 12345678901234567890", "zero zero seven and one two three four five six seven eight nine zero one "
         "two three four five six seven eight nine zero"),
        ("e.g. (old) “quote” don't — wait...", "for example, old, quote don't, wait."),
        ("No. 7 & 8", "number seven and eight"),
        ("$5-10 million, the '90s, 24/7, and/or", "five to ten million dollars, the nineties, twenty four seven, "
         "and or"),
        ("St. Paul St. has a Ph.D. in C#", "saint Paul street has a P H D in C sharp"),
    ],
)  # fmt: skip
def test_text_is_spoken_so(written: str, spoken: str) -> None:
    assert said(written) == spoken


def test_a_token_keeps_what_it_stood_for() -> None:
    assert [token.written for token in tokens("He paid $3.50, twice.")] == ["He", "paid", "$3.50,", "twice."]
    assert [(token.written, token.joined) for token in tokens("well-known")] == [("well-", False), ("known", True)]


def test_emoji_and_foreign_letters_are_left_out_and_counted() -> None:
    lost = LeftOut()
    assert [token.spoken for token in tokens("Hello 😀 مرحبا naïve", lost)] == ["Hello", "naïve"]
    assert lost.emoji == 1 and lost.letters == 1 and len(lost.told()) == 2
