"""Schedule, forms of the target, stock samplers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.medical.diffusion import (
    LEVELS,
    SCHEDULERS,
    clean_of,
    guided,
    levels,
    noise_of,
    noisy,
    scheduler,
    share,
    velocity,
)
from longtake.medical.sampling import Recipe, draw_rest, start_noise
from longtake.medical.unet import UNet


class Known:
    """A view whose net is a formula of (x, share of the clean signal)."""

    def __init__(self, shape, formula):
        self.outlook = SimpleNamespace(mean=torch.zeros(1, 1, *shape))
        self.formula = formula

    def velocity(self, x, level, guidance):
        return self.formula(x, torch.tensor(level, dtype=torch.float64)).float()


def starts(count, shape, seed=3):
    return torch.stack([start_noise(seed, n, 0, range(shape[0]), shape[1:]) for n in range(count)])


def test_s2_cosine_starts_at_one_ends_at_zero_and_falls():
    u = torch.linspace(0, 1, 101)
    found = share(u)
    assert found[0] == 1 and abs(float(found[-1])) < 1e-12
    assert bool((found[1:] < found[:-1]).all())
    for name in SCHEDULERS:
        table = scheduler(name).alphas_cumprod
        assert len(table) == LEVELS
        assert torch.allclose(table[:-1].double(), levels()[:-1], atol=1e-5)
        assert float(table[-1]) < 1e-6


def test_s2_the_three_forms_of_the_target_turn_into_each_other():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 64), torch.randn(2, 64)
    for value in (0.01, 0.5, 0.99):
        level = torch.tensor(value)
        x, v = noisy(clean, noise, level), velocity(clean, noise, level)
        assert torch.allclose(clean_of(x, v, level), clean, atol=1e-5)
        assert torch.allclose(noise_of(x, v, level), noise, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_s3_ddim_with_an_oracle_returns_what_the_oracle_knows(steps):
    torch.manual_seed(1)
    truth = torch.randn(1, 1, 3, 4, 5).double()

    def oracle(x, level):
        noise = (x.double() - level.sqrt() * truth) / (1 - level).sqrt()
        return level.sqrt() * noise - (1 - level).sqrt() * truth

    found = draw_rest(Known((3, 4, 5), oracle), Recipe(steps=steps), starts(2, (3, 4, 5)), range(2))
    assert float((found - truth).abs().max()) <= 1e-4


def test_s3_one_ddim_step_is_the_formula_between_its_two_levels():
    torch.manual_seed(2)
    stock = scheduler("ddim")
    stock.set_timesteps(10)
    x, v = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    now, then = int(stock.timesteps[3]), int(stock.timesteps[4])
    assert now - then == LEVELS // 10
    here, there = stock.alphas_cumprod[now], stock.alphas_cumprod[then]
    wanted = there.sqrt() * clean_of(x, v, here) + (1 - there).sqrt() * noise_of(x, v, here)
    assert torch.allclose(stock.step(v, now, x, return_dict=False)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_s4_gaussian_data_come_out_with_their_mean_and_deviation(name):
    mean, deviation, shape = 0.7, 0.4, (1, 32, 64)

    def oracle(x, level):
        variance = level * deviation**2 + (1 - level)
        clean = mean + level.sqrt() * deviation**2 * (x.double() - level.sqrt() * mean) / variance
        noise = (x.double() - level.sqrt() * clean) / (1 - level).sqrt()
        return level.sqrt() * noise - (1 - level).sqrt() * clean

    numbers = [0, 2]  # of two pairs: samples of one pair are mirror images, not independent
    noise = torch.stack([start_noise(4, n, 0, range(1), shape[1:]) for n in numbers])
    recipe = Recipe(steps=250 if name == "ddpm" else 50, scheduler=name)  # first order in its noise
    found = draw_rest(Known(shape, oracle), recipe, noise, numbers).double().flatten()
    assert len(found) == 4096
    error = deviation / math.sqrt(len(found))
    assert abs(float(found.mean()) - mean) < 3 * error
    assert abs(float(found.std()) / deviation - 1) < max(0.05, 3 / math.sqrt(2 * len(found)))


def test_pairs_of_samples_start_from_mirrored_noise():
    noise = starts(4, (2, 3, 5))
    assert torch.equal(noise[0], -noise[1]) and torch.equal(noise[2], -noise[3])
    assert not torch.equal(noise[0].abs(), noise[2].abs())


def test_s7_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional():
    without, given = torch.randn(3), torch.randn(3)
    assert torch.equal(guided(without, given, 1.0), given)
    assert torch.equal(guided(without, given, 0.0), without)
    assert torch.allclose(guided(without, given, 1.2), without + 1.2 * (given - without))


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(UserError, match="ddim, ddpm, dpm"):
        scheduler("euler")


def test_taps_join_neighbouring_slices_and_no_others():
    torch.manual_seed(0)
    net = UNet(1, 1, (8,), 4, stem=1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, told = torch.randn(1, 1, 9, 8, 8), torch.randn(1, 4)
    changed = x.clone()
    changed[:, :, 4] += 1
    moved = (net(changed, told) - net(x, told)).detach().abs().amax((0, 1, 3, 4))
    assert float(moved[4]) > 0 and float(moved[3]) > 0 and float(moved[5]) > 0
    assert np.count_nonzero(moved.numpy()) <= 2 * 2 + 1  # two blocks, one slice to each side in each
    alone = torch.cat([net(x[:, :, d : d + 1], told) for d in range(9)], 2)
    assert not torch.allclose(alone, net(x, told))
