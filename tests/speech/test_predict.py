"""Phrase breaks by rules and by a model that writes them."""

import pytest
from longtake import UserError
from longtake.speech.prosody_fm.predict import PunctuationBreaks, RuleBreaks, WrittenBreaks, agreement

LONG = (
    "the committee that had met on the first floor of the old town hall decided to close the road because the river "
    "had risen in the night"
).split()


def test_punctuation_breaks_and_the_last_word_does_not():
    words = 'He said "stop," and left; nobody moved.'.split()
    assert PunctuationBreaks().predict(words) == {2, 4} == RuleBreaks().predict(words)
    assert RuleBreaks().predict([]) == RuleBreaks().predict(["one"]) == set()


def test_a_comma_after_one_or_two_words_is_no_break():
    assert RuleBreaks().predict("Well, then, the old road is closed, they say.".split()) == {6}
    assert RuleBreaks().predict("Stop; go.".split()) == {0}


def test_long_runs_are_cut_at_joints():
    found = RuleBreaks().predict(LONG)
    assert LONG.index("road") in found
    ends = [-1, *sorted(found), len(LONG) - 1]
    assert all(b - a >= 4 for a, b in zip(ends, ends[1:], strict=False))
    assert PunctuationBreaks().predict(LONG) == set()


def test_a_run_without_a_joint_stays_whole():
    assert RuleBreaks().predict(["word"] * 40) == set()
    with pytest.raises(UserError, match="8 words or more; given 3"):
        RuleBreaks(3)


def test_rules_are_no_worse_than_punctuation_where_long_runs_pause():
    """ACCEPTANCE B6."""
    heard = [({LONG.index("road")}, LONG), ({3}, "Oh, when it rains, they stay".split())]
    rules, plain = (
        agreement([(kind.predict(words), told) for told, words in heard])
        for kind in (RuleBreaks(), PunctuationBreaks())
    )
    assert rules[2] >= plain[2]


def test_agreement_counts():
    assert agreement([({1, 2}, {2, 3})]) == (0.5, 0.5, 0.5)
    assert agreement([(set(), {1})]) == (0.0, 0.0, 0.0)


def test_written_breaks_are_read_and_other_words_are_not():
    from transformers import T5Config, T5ForConditionalGeneration

    class Letters:
        def __call__(self, text, return_tensors):
            import torch

            return {"input_ids": torch.tensor([[min(99, ord(letter)) for letter in text]])}

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids.tolist()))

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    tiny = T5ForConditionalGeneration(T5Config(vocab_size=100, decoder_start_token_id=0, eos_token_id=1, **sizes))
    reader = WrittenBreaks(tiny, Letters())
    assert reader.predict("one two; three".split()) == {1}  # a random model writes other words: rules
    assert reader.predict([]) == set()
    assert reader.read("One, @ two@ three @", "one, two three".split()) == {0, 1}
    assert reader.read("one two", "one, two three".split()) is None
    with pytest.raises(UserError, match="mark of a break"):
        WrittenBreaks(tiny, Letters(), " ")
    with pytest.raises(UserError, match="no seq2seq model of breaks at /nowhere"):
        WrittenBreaks.from_pretrained("/nowhere")
