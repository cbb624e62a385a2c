"""Recorded steps: what is copied in, what is written, and that a GPU's replay learns what plain steps learn."""

from contextlib import nullcontext

import pytest
import torch
from longtake.graphs import Graphs, Split
from longtake.train import Dice, Settings, fit, training_device


class Tape:
    """Stands for CUDA: a replay computes anew from the same inputs into the same tensors, wherever gradients went."""

    def __init__(self, parameters):
        self.parameters, self.recordings = list(parameters), 0

    def __call__(self, run, forget):
        self.recordings += 1
        value = run()
        own = [parameter.grad for parameter in self.parameters]

        def replay():
            forget()
            value.copy_(run())
            for place, parameter in zip(own, self.parameters, strict=True):
                if place is not None:
                    place.copy_(parameter.grad)
            forget()

        return value, replay


def wanted(model, value, *tensors):
    model.zero_grad(set_to_none=True)
    loss = value(model, *tensors)
    loss.backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_each_set_of_shapes_is_recorded_once_and_gives_its_own_gradients():
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(5, 1)])  # the second is never used

    def value(net, x, scale):
        return (net[0](x).square() * scale).mean()

    tape = Tape(model.parameters())
    graphs = Graphs(value, model, nullcontext, tape)
    kept = []
    for step in range(6):
        x, scale = torch.randn(4 + step % 2, 3), torch.randn(1)
        loss, gradients = wanted(model, value, x, scale)
        model.zero_grad(set_to_none=True)
        got = graphs([x, scale])
        kept.append((got, loss))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(parameter.grad, gradient)
        with torch.no_grad():  # an optimizer's step: the next replay sees the new weights
            for parameter in model.parameters():
                parameter += 0.1
    assert tape.recordings == 2
    assert all(torch.equal(got, loss) for got, loss in kept)  # a loss of its own, that no replay overwrites


def test_what_a_forward_keeps_is_kept_once_a_step():
    """Statistics of a norm: recording runs the forward more often than it counts."""
    from copy import deepcopy

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    plain = deepcopy(model)

    def value(net, x):
        return net(x).square().mean()

    graphs = Graphs(value, model, nullcontext, Tape(model.parameters()))
    for _ in range(3):
        x = torch.randn(8, 3)
        wanted(plain, value, x)
        graphs([x])
    assert int(model[1].num_batches_tracked) == 3
    assert torch.equal(model[1].running_var, plain[1].running_var)


def test_a_loss_in_two_parts_is_a_loss():
    model = torch.nn.Linear(2, 1)
    loss = Split(lambda step: (torch.full((1, 2), float(step)),), lambda net, x: net(x).sum())
    assert torch.equal(loss(model, 3), model(torch.full((1, 2), 3.0)).sum())


@pytest.mark.gpu
def test_recorded_steps_learn_what_plain_steps_learn(tmp_path):
    device = training_device()

    def trained(graphs):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))

        def draw(step):
            dice = Dice(0, step, device)
            return (dice.normal(16 if step % 3 else 32, 8),)

        def value(net, x):
            return (net(x) - x.flip(1)).square().mean()

        settings = Settings(40, 1e-2, warmup=1, precision="bf16", graphs=graphs)
        fit(model, Split(draw, value), settings, tmp_path / str(graphs))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain, recorded = trained(False), trained(True)
    assert torch.allclose(plain, recorded, atol=2e-3)
    assert float((plain - recorded).abs().mean()) < 1e-4
