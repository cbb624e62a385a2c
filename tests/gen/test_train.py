"""The training loop: a resumed run equals one never stopped, and a run that diverges keeps its last checkpoint."""

import json

import numpy as np
import pytest
import torch
from longtake.train import Settings, batch_generator, fit
from torch import nn


def parts(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(network, step):
        x = torch.from_numpy(batch_generator(1, step).standard_normal((16, 3), dtype=np.float32))
        return ((network(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return model, loss


def settings(**changes):
    return Settings(**{"steps": 60, "learning_rate": 1e-2, "warmup": 5, "checkpoint_every": 20, "ema": 0.9, **changes})


def test_training_lowers_the_loss_and_records_it(tmp_path):
    model, loss = parts()
    before = float(loss(model, 1000).detach())
    fit(model, loss, settings(), tmp_path, on_checkpoint=lambda network, step: {"probe": float(step)})
    rows = [json.loads(line) for line in (tmp_path / "model.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40, 60] and rows[-1]["probe"] == 60
    assert float(loss(model, 1000).detach()) < 0.3 * before and rows[-1]["loss"] < rows[0]["loss"]


def test_a_stopped_run_ends_with_the_same_weights(tmp_path):
    whole, loss = parts()
    fit(whole, loss, settings(), tmp_path / "whole")
    broken, _ = parts()

    def fails(network, step):
        if step == 47:
            raise KeyboardInterrupt
        return loss(network, step)

    with pytest.raises(KeyboardInterrupt):
        fit(broken, fails, settings(), tmp_path / "broken")
    resumed, _ = parts(seed=9)
    fit(resumed, loss, settings(), tmp_path / "broken")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    model, loss = parts()
    with pytest.raises(FloatingPointError, match="step 30"):
        fit(model, lambda n, step: loss(n, step) * (float("nan") if step == 30 else 1.0), settings(), tmp_path)
    assert torch.load(tmp_path / "model.state", weights_only=True)["step"] == 20


@pytest.mark.parametrize("bad", [{"steps": 0}, {"precision": "int4"}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError):
        settings(**bad)


def test_batches_are_a_function_of_seed_and_step():
    a, b, c = (batch_generator(1, step).standard_normal(4) for step in (7, 7, 8))
    assert (a == b).all() and (a != c).all()
