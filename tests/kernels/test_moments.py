import pytest
import torch
from longtake.kernels import Transport, group_moments


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 4, 1, 2, 3)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float32_moments_are_accurate_for_any_layout_and_mean(order: tuple[int, ...], offset: float) -> None:
    """Channels contiguous, frames first, channels last; the same values each time."""
    values = torch.randn(2, 12, 9, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5 + offset
    inverse = sorted(range(5), key=lambda dim: order[dim])
    x = values.permute(order).contiguous().permute(inverse)
    mean, m2, count = group_moments(x, 4)
    truth = values.double().unflatten(1, (4, 3)).flatten(2)
    assert count == truth.shape[-1] == 3 * 9 * 256
    assert (mean - truth.mean(-1)).abs().max() <= 5e-8  # float32 rounds a mean of 1000 to 3e-5
    assert (m2 / count / truth.var(-1, correction=0) - 1).abs().max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channel_dim", [1, 2, -1])
def test_any_dtype_and_channel_dim(dtype: torch.dtype, channel_dim: int) -> None:
    x = torch.randn(2, 6, 6, 6).to(dtype)
    mean, m2, count = group_moments(x, 3, channel_dim)
    truth = x.double().movedim(channel_dim, 1).unflatten(1, (3, 2)).flatten(2)
    assert mean.dtype == m2.dtype == torch.float64 and count == 72
    assert (mean - truth.mean(-1)).abs().max() <= 1e-6
    assert (m2 / count - truth.var(-1, correction=0)).abs().max() <= 1e-5


def test_no_frames_give_zero_moments() -> None:
    mean, m2, count = group_moments(torch.zeros(2, 6, 0, 4, 4), 3)
    assert count == 0 and mean.shape == m2.shape == (2, 3) and not mean.any() and not m2.any()


def test_alone_the_combination_is_group_norm() -> None:
    x = torch.randn(2, 6, 5, 4, 4, dtype=torch.float64)
    mean, m2, count = group_moments(x, 3)
    mean, var = Transport().start_moments(mean, m2, count=count, total=count).wait()
    normalised = (x.unflatten(1, (3, 2)) - mean.view(2, 3, 1, 1, 1, 1)) / (var.view(2, 3, 1, 1, 1, 1) + 1e-5).sqrt()
    assert (normalised.flatten(1, 2) - torch.nn.functional.group_norm(x, 3)).abs().max() <= 1e-12


def test_channels_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValueError, match="7 channels cannot be split into 3"):
        group_moments(torch.zeros(2, 7, 4), 3)
    with pytest.raises(ValueError, match="at least one more dim"):
        group_moments(torch.zeros(2, 6), 3)
    with pytest.raises(ValueError, match="batch"):
        group_moments(torch.zeros(2, 6, 4), 3, 0)
