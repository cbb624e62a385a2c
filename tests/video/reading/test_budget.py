"""Budgets: what is written, the windows that keep one, its split over clips, and bytes of keys and values."""

import random

import pytest
from longtake.errors import UserError
from longtake.video.reading.budget import Budget, cache_bytes, kernel_for, parse_budget, split_budget, tokens_of


def test_budgets_are_tokens_or_seconds():
    assert parse_budget(2000) == parse_budget("2000") == parse_budget(" 2000 Tokens ") == Budget(tokens=2000)
    assert parse_budget("1.5 seconds") == parse_budget("1.5s") == Budget(seconds=1.5)
    for wrong in ("", "2000 words", 0, -5, 1.5, "1.5 tokens", "0 seconds", True, None, float("nan")):
        with pytest.raises(UserError, match="a budget is"):
            parse_budget(wrong)


def test_windows_keep_the_budget_and_use_it():
    assert kernel_for((32, 24, 24), 1024) == (2, 3, 3) and kernel_for((32, 27, 27), 1296) == (2, 3, 3)
    assert kernel_for((32, 24, 24), 10**6) == (1, 1, 1)
    picker = random.Random(0)
    for _ in range(40):
        size = tuple(picker.randint(1, 40) for _ in range(3))
        tokens = picker.randint(1, 2000)
        kernel = kernel_for(size, tokens)
        assert tokens_of(size, kernel) <= tokens and all(k <= length for k, length in zip(kernel, size, strict=True))
    assert kernel_for((10, 4, 4), 40, most_frames=1)[0] == 1
    with pytest.raises(UserError, match="at least 10 tokens"):
        kernel_for((10, 4, 4), 9, most_frames=1)
    with pytest.raises(UserError, match="at least 1 tokens"):
        kernel_for((10, 4, 4), 0)


def test_g2_the_split_keeps_the_budget_and_follows_scores():
    picker = random.Random(1)
    for _ in range(300):
        count = picker.randint(1, 12)
        least = picker.randint(1, 64)
        budget = picker.randint(count * least, 4000 + count * least)
        scores = [picker.choice([picker.uniform(-1, 1), 0.25]) for _ in range(count)]
        most = [picker.randint(least, 3000)] * count
        for limit in (None, most):
            given = split_budget(scores, budget, least, limit)
            assert sum(given) <= budget and min(given) >= least
            for a, first in zip(scores, given, strict=True):
                for b, second in zip(scores, given, strict=True):
                    assert not (a > b and first < second) and not (a == b and first != second)
    assert split_budget([1.0], 100) == [100] and split_budget([], 100) == []
    assert split_budget([0.5, 0.5], 101) == [50, 50]
    with pytest.raises(UserError, match="at least 30 tokens"):
        split_budget([1.0, 2.0, 3.0], 29, 10)
    with pytest.raises(UserError, match="finite"):
        split_budget([1.0, float("nan")], 29)


def test_p10_bytes_of_keys_and_values():
    class Config:
        num_hidden_layers, num_attention_heads, num_key_value_heads, hidden_size = 32, 32, 8, 4096

    assert cache_bytes(Config, 1024, 2) == 2 * 32 * 8 * 128 * 2 * 1024
