"""The training loop: a resumed run equals one never stopped, and a run that diverges keeps its last checkpoint."""

import argparse
import json

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.train import Average, Settings, add_arguments, batch_generator, fit, schedule
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


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    model, loss = parts()

    def breaks(network, step):
        if step == 39:
            network[0].weight.register_hook(lambda grad: grad * float("inf"))
        return loss(network, step)

    with pytest.raises(FloatingPointError, match="weights are not finite after step 39"):
        fit(model, breaks, settings(), tmp_path)
    state = torch.load(tmp_path / "model.state", weights_only=True)
    assert state["step"] == 20 and all(torch.isfinite(x).all() for x in state["model"].values())


def test_the_average_is_that_of_diffusers_bit_for_bit():
    from diffusers.training_utils import EMAModel

    model, _ = parts()
    mine = Average(model.parameters(), 0.9)
    theirs = EMAModel(model.parameters(), decay=0.9, use_ema_warmup=True, power=0.75)
    for step in range(40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        mine.step()
        theirs.step(model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(mine.shadow, theirs.shadow_params, strict=True))
    other = Average(model.parameters(), 0.9)
    other.load_state_dict(theirs.state_dict())
    assert other.steps == mine.steps and all(map(torch.equal, other.shadow, mine.shadow))


def test_the_cosine_ends_where_and_when_it_is_asked_to():
    assert settings(warmup=0).rate(60) == pytest.approx(1e-3)
    assert settings(warmup=0, ends_at=0).rate(60) == pytest.approx(0)
    timed = settings(warmup=0, ends_at=0, minutes=2.0)
    assert timed.rate(1, minutes=1.0) == pytest.approx(5e-3) and timed.rate(1, minutes=2.0) == pytest.approx(0)
    assert settings(warmup=0, minutes=2.0).rate(60, minutes=0.1) == pytest.approx(1e-3)


def test_checkpoints_come_by_the_clock_too(tmp_path):
    model, loss = parts()
    fit(model, loss, settings(steps=3, checkpoint_every=100, checkpoint_minutes=1e-9), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "model.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(tmp_path):
    model, loss = parts()
    fit(model, loss, settings(), tmp_path)
    with pytest.raises(UserError, match="model.state is damaged or of another model"):
        fit(nn.Sequential(nn.Linear(3, 4)), loss, settings(), tmp_path)
    (tmp_path / "model.state").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="model.state is damaged or of another model"):
        fit(model, loss, settings(), tmp_path)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"precision": "int4"}, {"minutes": float("nan")}, {"ends_at": 2}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError):
        settings(**bad)


def test_batches_are_a_function_of_seed_and_step():
    a, b, c = (batch_generator(1, step).standard_normal(4) for step in (7, 7, 8))
    assert (a == b).all() and (a != c).all()


@pytest.mark.parametrize(
    ("tiles", "wide", "usual"), [(False, False, "no"), (True, False, "bf16"), (False, True, "bf16")]
)
def test_a_cpu_trains_in_bfloat16_only_where_it_has_instructions_for_it(tiles, wide, usual, monkeypatch):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: wide)
    assert schedule(parser.parse_args([]))["precision"] == usual
    assert schedule(parser.parse_args(["--precision", "bf16"]))["precision"] == "bf16"
