"""The random numbers of a step: a function of (seed, step, rank), drawn on the device."""

import pytest
import torch
from longtake.train import Dice

CPU = torch.device("cpu")


def draw(seed, step):
    dice = Dice(seed, step, CPU)
    return torch.cat([dice.uniform(5), dice.normal(5), dice.integers(100, 5).float(), dice.times(5).float()])


def test_equal_seed_step_and_rank_draw_equal_numbers(monkeypatch):
    assert torch.equal(draw(3, 7), draw(3, 7))
    others = [draw(3, 8), draw(4, 7), draw(7, 3)]
    monkeypatch.setenv("RANK", "1")
    assert all(not torch.equal(draw(3, 7), other) for other in others) and not torch.equal(draw(3, 7), others[0])


@pytest.mark.parametrize(("late", "least", "most"), [(0.0, 180, 220), (0.5, 580, 620), (1.0, 1000, 1000)])
def test_late_times_are_the_share_that_was_asked(late, least, most):
    time = Dice(0, 0, CPU).times(1000, late=late)
    assert least <= int((time >= 800).sum()) <= most
    assert int(time.min()) >= (800 if late == 1 else 0) and int(time.max()) <= 999


def test_every_stratum_of_the_times_has_one_draw():
    assert (Dice(1, 2, CPU).times(100) // 10).sort().values.tolist() == list(range(100))


def test_below_stays_below_and_reaches_every_number():
    high = torch.tensor([1, 2, 5]).repeat(2000)
    found = Dice(0, 1, CPU).below(high)
    assert bool((found < high).all()) and bool((found >= 0).all())
    assert set(found[2::3].tolist()) == set(range(5))


def test_pick_follows_the_odds():
    found = Dice(0, 2, CPU).pick(torch.tensor([1.0, 0.0, 3.0]), 4000)
    share = torch.bincount(found, minlength=3) / 4000
    assert share[1] == 0 and abs(float(share[2]) - 0.75) < 0.03
