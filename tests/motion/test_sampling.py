"""Schedules and plain sampling: the published tables, the published samples, and diffusers' own schedulers."""

import pytest
import torch
from longtake.motion.convert import build
from longtake.motion.sampling import Schedule, TextDenoiser, betas, sample
from motion_models import Golden, injected, kept, theirs, tiny_net


def test_a3_schedule_constants() -> None:
    for count, values in (
        (1000, {0: 0.9999587, 500: 0.4922852, 899: 0.02409, 999: 2.43e-9}),
        (50, {0: 0.9982525, 25: 0.4627069, 44: 0.02409, 49: 9.71e-7}),
    ):
        schedule = Schedule.make(count)
        level = dict(zip(schedule.timesteps, schedule.level.tolist(), strict=True))
        for t, value in values.items():
            assert level[t] == pytest.approx(value, rel=2e-3 if value < 0.1 else 1e-7)
        assert float(schedule.clean[-1]) == pytest.approx(1.0, abs=1e-12) and float(schedule.noisy[-1]) == 0.0
        identity = schedule.clean + schedule.noisy * schedule.level.sqrt() - schedule.previous.sqrt()
        assert float(identity.abs().max()) <= 1e-12
    # float64 table against an independent product
    table = betas(1000)
    product = 1.0
    for t, value in enumerate(table.tolist()):
        product *= 1 - value
        if t in (0, 500, 899, 999):
            assert float(Schedule.make(1000).level[999 - t]) == pytest.approx(product, rel=1e-9)


@pytest.mark.parametrize("case", ["M2_steps10", "M2_steps50"])
@torch.no_grad()
def test_m2_ancestral_sampling_equals_the_original(case: str) -> None:
    golden = Golden(case)
    steps = golden["schedule"]["steps"]
    schedule = Schedule.make(steps)
    golden.check("betas", betas(steps))
    golden.check("alphas_cumprod", schedule.level.flip(0))
    golden.check("posterior_mean_coef1", schedule.clean.flip(0))
    golden.check("posterior_mean_coef2", schedule.noisy.flip(0))
    golden.check("posterior_log_variance_clipped", schedule.log_variance().flip(0))
    denoise = TextDenoiser(build(golden.state()), golden.text(), golden["guidance"]["scale"])
    seen: dict[int, torch.Tensor] = {}
    rows = range(golden["batch"])
    out = sample(denoise, schedule, golden.noise(steps), rows=rows, on_step=kept(seen))
    golden.check("sample", theirs(out))
    golden.check("x_after_first", theirs(seen[0]))
    golden.check("x_mid", theirs(seen[(steps + 1) // 2 - 1]))


def test_a_step_equals_diffusers_schedulers() -> None:
    from diffusers import DDIMScheduler, DDPMScheduler

    settings = {
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    for kind, eta, steps in ((DDPMScheduler, 1.0, 100), (DDIMScheduler, 0.0, 10)):
        scheduler = kind(**settings)
        scheduler.set_timesteps(steps)
        assert Schedule.from_scheduler(scheduler).eta == eta
        schedule = Schedule.of_times(betas(100), [int(t) for t in scheduler.timesteps], eta)
        for step in (1, steps // 2, steps - 1):
            x, x0 = torch.randn(4, 6), torch.randn(4, 6)
            generator = torch.Generator().manual_seed(step)
            extra = {"generator": generator}
            theirs_next = scheduler.step(x0, scheduler.timesteps[step], x, **extra).prev_sample
            draw = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            assert torch.allclose(schedule.update(step, x0, x, draw), theirs_next, atol=2e-5)
    with pytest.raises(ValueError, match="predicts the sample"):
        Schedule.from_scheduler(DDPMScheduler())


@torch.no_grad()
def test_few_steps_end_on_the_clean_estimate_and_bad_settings_are_refused() -> None:
    net, text = tiny_net(), torch.randn(1, 8)
    for steps, eta in ((1, 0.0), (5, 0.0), (5, 0.5), (20, 1.0)):
        schedule = Schedule.make(20, steps, eta=eta)
        last: dict[int, torch.Tensor] = {}
        inner = TextDenoiser(net, text)

        def remember(x, t, rows, inner=inner, last=last):
            last[t] = inner(x, t, rows)
            return last[t]

        out = sample(remember, schedule, injected(1, (1, 16, 12)))
        assert torch.allclose(out, last[schedule.timesteps[-1]], atol=1e-6)
        assert len(schedule) == steps == len(last)
    with pytest.raises(ValueError, match="1 to 20"):
        Schedule.make(20, 21)
    with pytest.raises(ValueError, match="eta"):
        Schedule.make(20, eta=2.0)
    with pytest.raises(ValueError, match="needs a text"):
        TextDenoiser(net, None, 2.5)
