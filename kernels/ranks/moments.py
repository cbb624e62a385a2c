"""Mean and spread of groups of channels on one rank, the local half of a group norm over a sequence that lies on many
ranks.

For group norms of volumes that lie on many ranks (SADM).

A sum of squares in float32 is useless once the mean is large. Here deviations from each channel's rounded mean are
summed in float32, and everything is combined in float64 (Chan, Golub, LeVeque 1983), at about the cost of the group
norm itself and without a copy of the input.

    mean, m2, count = group_moments(x, groups=32)
    mean, var = transport.start_moments(mean, m2, count=count, total=total).wait()
"""

import torch
from torch import Tensor

SLAB_ELEMENTS = 1 << 18  # worked on at a time: a megabyte in float32


def group_moments(x: Tensor, groups: int, channel_dim: int = 1) -> tuple[Tensor, Tensor, int]:
    """Moments of each group of channels over everything but the batch (dim 0), for `Transport.start_moments`.

    x: (B, C, ...) or channels elsewhere; C divisible by `groups`; any strides, never copied as a whole.
    Returns (mean, m2, count): float64 (B, G) mean and sum of squared deviations, and the number of elements in each
    group.
    """
    if x.dim() < 3:
        raise ValueError(f"x needs a batch, channels and at least one more dim, given {tuple(x.shape)}")
    channel_dim %= x.dim()
    if channel_dim == 0:
        raise ValueError("dim 0 is the batch, so it cannot be the channel dim")
    if x.shape[channel_dim] % groups:
        raise ValueError(f"{x.shape[channel_dim]} channels cannot be split into {groups} equal groups")
    x = x.detach()
    wide = torch.promote_types(x.dtype, torch.float32)
    reduced = [dim for dim in range(1, x.dim()) if dim != channel_dim]
    per_channel = x.numel() // max(x.shape[0] * x.shape[channel_dim], 1)
    sums = torch.zeros(x.shape[0], x.shape[channel_dim], dtype=torch.float64, device=x.device)
    squares = sums.clone()
    if per_channel == 0:
        return sums[:, :groups], squares[:, :groups], 0
    # Deviations from a rounded mean keep float32 sums accurate however large the mean is; slabs keep them in the cache.
    center = x.sum(dim=reduced, dtype=wide, keepdim=True) / per_channel
    slabs = -(-x.numel() // SLAB_ELEMENTS)
    cut = max(reduced, key=lambda dim: (min(x.shape[dim], slabs), x.stride(dim)))
    for slab in x.split(-(-x.shape[cut] // slabs), dim=cut):
        deviation = slab.to(wide) - center
        sums += deviation.sum(dim=reduced)
        squares += torch.linalg.vector_norm(deviation, dim=reduced).double().square()
    mean = center.flatten(1).double() + sums / per_channel
    spread = squares - sums.square() / per_channel
    mean, spread = mean.unflatten(1, (groups, -1)), spread.unflatten(1, (groups, -1))
    group_mean = mean.mean(-1)
    m2 = spread.sum(-1) + per_channel * (mean - group_mean[..., None]).square().sum(-1)
    return group_mean, m2.clamp_(min=0), per_channel * x.shape[channel_dim] // groups
