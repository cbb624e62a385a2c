"""Reducers of a film's tokens: one signature, equal budgets, and what each keeps."""

import pytest
import torch
from longtake.errors import UserError
from longtake.video.reading.reducers import NEED_SCORES, REDUCERS, places_of, reduce

SIZES = [(16, 16, 16), (5, 7, 3), (1, 9, 9), (40, 2, 2)]


def film(size=(8, 8, 8), width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, width, generator=generator), 3 * torch.randn(size, generator=generator)


@pytest.mark.parametrize("name", REDUCERS)
@pytest.mark.parametrize("size", SIZES)
def test_every_reducer_keeps_the_budget_and_says_where_its_tokens_are(name, size):
    features, scores = film(size)
    total = features[..., 0].numel()
    for budget in (1, 7, total // 4, total // 2, total, 2 * total):
        tokens, places = reduce(name, features, scores, budget)
        assert 1 <= len(tokens) <= budget and places.shape == (len(tokens), 3) and tokens.shape[1] == 12
        assert tokens.dtype == features.dtype and tokens.isfinite().all()
        assert places.min() >= 0 and (places - torch.tensor(size) + 1).max() <= 1e-4
    tokens, places = reduce(name, features, scores, total)
    assert torch.equal(tokens, features.flatten(0, 2)) and torch.equal(places, places_of(size).flatten(0, 2))


@pytest.mark.parametrize("name", ["average", "merge", "tree", "local", "ppllava"])
def test_a_film_that_does_not_change_is_itself_whatever_is_left(name):
    features = torch.ones(8, 8, 8, 3) * torch.tensor([1.0, -2.0, 0.5])
    tokens, _ = reduce(name, features, torch.zeros(8, 8, 8), 40)
    assert (tokens - features[0, 0, 0]).abs().max() <= 1e-6


def test_places_are_those_of_the_tokens():
    size = (8, 8, 8)
    features = places_of(size)  # each token is its own place, so whatever is left must say so
    _, scores = film(size)
    for name in REDUCERS:
        for budget in (64, 128, 300):
            tokens, places = reduce(name, features, scores, budget)
            assert (tokens - places).abs().max() <= 1e-4, name


def test_merge_joins_along_time_where_nothing_changes():
    features, scores = film((6, 4, 4))
    features[:, :2] = features[:1, :2]  # the upper half stands still
    tokens, places = reduce("merge", features, scores, 8 + 6 * 8)
    assert len(tokens) == 56
    still = places[:, 1] < 2
    assert int(still.sum()) == 8 and (places[still, 0] == 2.5).all()
    assert (tokens[still].view(2, 4, -1) - features[0, :2]).abs().max() <= 1e-6


def test_tree_spends_its_tokens_where_the_film_changes():
    features = torch.ones(6, 8, 8, 4)
    features[2:4, :4, :4] = film((2, 4, 4), 4)[0]
    tokens, places = reduce("tree", features, None, 60)
    busy = (places[:, 0] >= 2) & (places[:, 0] <= 3) & (places[:, 1] < 4) & (places[:, 2] < 4)
    assert 30 <= int(busy.sum()) <= len(tokens) <= 60
    assert int((~busy).sum()) <= 20


def test_scores_decide_where_they_should():
    features, scores = film()
    scores[3, 5, 6] = 40.0
    for name in NEED_SCORES:
        tokens, _ = reduce(name, features, scores, 64)
        assert (tokens - features[3, 5, 6]).abs().amax(1).min() <= 1e-4
        with pytest.raises(UserError, match="needs scores"):
            reduce(name, features, None, 64)
    spike = features.clone()
    spike[1, 1, 1] = 50.0
    for name in ("norm", "attention"):
        assert (reduce(name, spike, scores, 8)[0] == 50.0).all(1).any()
    assert set(reduce("uniform", features, scores, 128)[1][:, 0].tolist()) == {2.0, 6.0}


def test_what_does_not_fit_is_refused():
    features, scores = film()
    for name, given, budget in (("best", scores, 8), ("local", scores[1:], 8), ("average", scores, 0)):
        with pytest.raises(UserError):
            reduce(name, features, given, budget)
    with pytest.raises(UserError, match="features are"):
        reduce("average", features[0], None, 8)
