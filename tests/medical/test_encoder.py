"""What the encoder sees, and what it must not see."""

import pytest
import torch
from longtake.medical.modalities import scale_of
from longtake.medical.series import convert
from medical_nets import random_net, visits

KIND = torch.tensor([0, 1])


def outlook(net, history, delta, observed, **more):
    with torch.inference_mode():
        return net.outlook(history, delta, observed, KIND[: len(history)], **more)


def difference(one, other):
    return max(float((getattr(one, n) - getattr(other, n)).abs().max()) for n in ("mean", "scale", "told", "condition"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_s5_what_a_missing_visit_holds_changes_nothing(bad):
    net = random_net()
    history, delta, observed = visits()
    spoiled = torch.where(observed[:, :, None, None, None], history, bad)
    later = torch.where(observed, delta, 77.0)
    assert difference(outlook(net, history, delta, observed), outlook(net, spoiled, later, observed)) == 0.0


def test_s5_leaving_missing_visits_out_changes_nothing():
    net = random_net()
    history, delta, observed = visits(batch=1)
    kept = observed[0]
    assert int(kept.sum()) < len(kept)
    short = outlook(net, history[:, kept], delta[:, kept], observed[:, kept])
    assert difference(outlook(net, history, delta, observed), short) <= 2e-6


def test_s5_the_order_of_visits_does_not_matter():
    net = random_net()
    history, delta, observed = visits()
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = outlook(net, history[:, order], delta[:, order], observed[:, order])
    assert difference(outlook(net, history, delta, observed), moved) <= 2e-6


def test_s5_without_any_visit_the_outlook_is_finite_and_the_same():
    net = random_net()
    history, delta, observed = visits()
    none = torch.zeros_like(observed)
    found, other = outlook(net, history, delta, none), outlook(net, history * float("nan"), delta + 1, none)
    assert all(torch.isfinite(getattr(found, name)).all() for name in ("mean", "scale", "told", "condition"))
    assert difference(found, other) == 0.0


def test_s5_no_gradient_reaches_a_missing_visit():
    net = random_net()
    history, delta, observed = visits()
    history.requires_grad_()
    found = net.outlook(history, delta, observed, KIND)
    net(torch.randn_like(found.mean), torch.tensor([0.3, 0.7]), found).square().sum().backward()
    missing = ~observed[:, :, None, None, None].expand_as(history)
    assert float(history.grad[missing].abs().max()) == 0.0
    assert float(history.grad[~missing].abs().max()) > 0.0


def test_s6_only_times_relative_to_the_target_count():
    net = random_net()
    history, delta, observed = visits()
    times = delta.double() + 40
    found = outlook(net, history, (times - 40).float(), observed)
    shifted = outlook(net, history, ((times + 1000) - 1040).float(), observed)
    assert difference(found, shifted) <= 1e-5
    assert difference(found, outlook(net, history, delta - 0.5, observed)) > 1e-3


def test_s6_a_denoised_step_depends_on_the_time_asked_for():
    net = random_net()
    history, delta, observed = visits()
    x = torch.randn(2, 1, 2, 16, 24)
    level = torch.tensor([0.4, 0.4])
    with torch.inference_mode():
        here = net(x, level, net.outlook(history, delta, observed, KIND))
        there = net(x, level, net.outlook(history, delta - 1, observed, KIND))
    assert float((here - there).abs().max()) > 1e-4


def test_s6_units_agree_when_the_scale_is_in_the_unit():
    net = random_net()
    history, _, observed = visits()
    years = torch.tensor([-3.0, -2.5, -2.0, -1.0, -0.25], dtype=torch.float64)
    found = []
    for unit in ("years", "days"):
        times = convert(years.numpy(), "years", unit)
        delta = torch.from_numpy(times / scale_of("simulated", unit, list(times))).float()
        found.append(outlook(net, history, delta.expand(2, -1), observed))
    assert difference(*found) <= 1e-5


def test_s10_any_size_goes_in_and_comes_out():
    net = random_net()
    history, delta, observed = visits(shape=(7, 19, 23))
    found = outlook(net, history, delta, observed)
    assert found.size == (19, 23) and found.mean.shape == (2, 1, 7, 24, 24)


def test_voxels_without_data_are_not_taken_from_a_visit():
    net = random_net()
    history, delta, observed = visits()
    valid = torch.ones_like(history, dtype=torch.bool)
    valid[:, 2, :, :8] = False
    spoiled = torch.where(valid, history, 1e6)
    assert (
        difference(
            outlook(net, history, delta, observed, valid=valid), outlook(net, spoiled, delta, observed, valid=valid)
        )
        == 0.0
    )


def test_s7_a_row_that_must_not_know_its_visits_does_not():
    net = random_net()
    history, delta, observed = visits()
    keep = torch.tensor([False, True])
    x, level = torch.randn(2, 1, 2, 16, 24), torch.tensor([0.2, 0.2])
    with torch.inference_mode():
        first = net(x, level, net.outlook(history, delta, observed, KIND), keep=keep)
        other = net(x, level, net.outlook(torch.randn_like(history), delta, observed, KIND), keep=keep)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])
