"""A lighter denoiser of a prior that is there: narrower where the grid is fine, and both ways of guidance in one pass.

The encoder and the mean stay to the bit. Of the old denoiser's channels on the two finest grids three quarters are
kept, those that are read most in each group of a norm (magnitude pruning, Li et al., arXiv 1608.08710), and its last
layer gets a second output: what knowing the visits adds to v. So a guided step is one pass (guidance distillation, Meng
et al., arXiv 2210.03142, but linear in the scale, so that one net serves any). Then it learns what the old one says
with and without the visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from longtake.medical.diffusion import noisy
from longtake.medical.lesson import Drawn, residual, rest_of
from longtake.medical.unet import GROUPS, Block, Taps, UNet

if TYPE_CHECKING:
    from longtake.medical.net import LongitudinalNet

KEPT = (0.75, 0.75)  # of the channels of the finest grids, rounded up to whole groups
BLIND = 0.5  # the weight of v without the visits beside v with them
LOOKS = 2  # noises of each row that is learned from: knowing the visits costs as much as one of them


def narrower(channels: Sequence[int]) -> tuple[int, ...]:
    """The channels of a lighter denoiser: (32, 64, 96, 128) become (24, 48, 96, 128). The coarsest grid keeps its."""
    found = list(channels)
    for level, share in enumerate(KEPT[: len(found) - 1]):
        found[level] = min(found[level], -(-int(found[level] * share) // GROUPS) * GROUPS)
    return tuple(found)


def lighter(teacher: LongitudinalNet) -> LongitudinalNet:
    """A net with the teacher's encoder and mean, which do not learn, and its denoiser made lighter."""
    from longtake.medical.net import LongitudinalNet

    same = {name: value for name, value in teacher.config.items() if not name.startswith("_")}
    net = LongitudinalNet(**{**same, "channels": narrower(same["channels"]), "ways": 2})
    old = {name: value for name, value in teacher.state_dict().items() if not name.startswith("denoiser.")}
    net.load_state_dict({**net.state_dict(), **old})
    prune(teacher.denoiser, net.denoiser)
    for part in (net.encoder, net.kinds, net.expect, net.nothing):
        part.requires_grad_(False)
    return net


@torch.no_grad()
def prune(old: UNet, new: UNet) -> None:
    """Copy what the channels of ``new`` need from ``old``, a U-Net as wide or wider; outputs it lacks are 0."""
    old_down, old_up, old_middle = (cast("list[Block]", list(part)) for part in (old.down, old.up, old.middle))
    new_down, new_up, new_middle = (cast("list[Block]", list(part)) for part in (new.down, new.up, new.middle))
    narrow, widen = (cast("list[torch.nn.Conv2d]", list(part)) for part in (old.narrow, old.widen))
    deepest = torch.arange(old_middle[0].first.in_channels)
    skipped = []
    for level, block in enumerate(old_down):
        read = reads(block.first) + reads(narrow[level]) + reads(old_up[level].first)[block.first.in_channels :]
        skipped.append(kept(read, new_down[level].first.in_channels))
    skipped.append(deepest)
    _copy(old.enter, new.enter, skipped[0], None)
    for level, block in enumerate(old_down):
        _copy_block(block, new_down[level], skipped[level], skipped[level])
        _copy(narrow[level], new.narrow[level], skipped[level + 1], skipped[level])
    for before, after in zip(old_middle, new_middle, strict=True):
        _copy_block(before, after, deepest, deepest)
    new.attention.load_state_dict(old.attention.state_dict())
    below = deepest
    for level in reversed(range(len(old_up))):
        block, wide, size = old_up[level], widen[level].out_channels, new_up[level].second.out_channels
        widened = kept(reads(block.first)[:wide], size, GROUPS // 2)
        _copy(widen[level], new.widen[level], widened, below)
        below = kept(reads(widen[level - 1] if level else old.leave), size)
        _copy_block(block, new_up[level], torch.cat([widened, wide + skipped[level]]), below)
    _copy_norm(old.norm, new.norm, below)
    rest = len(new.leave.weight) - len(old.leave.weight)
    empty = torch.zeros(rest, *new.leave.weight.shape[1:])
    new.leave.weight.copy_(torch.cat([old.leave.weight[:, below], empty]))
    cast("torch.Tensor", new.leave.bias).copy_(torch.cat([cast("torch.Tensor", old.leave.bias), torch.zeros(rest)]))


def reads(layer: Any) -> torch.Tensor:
    """How much a convolution reads of each of its input channels."""
    found: torch.Tensor = layer.weight.square().sum((0, 2, 3))
    return found


def kept(read: torch.Tensor, count: int, groups: int = GROUPS) -> torch.Tensor:
    """The numbers of the ``count`` channels that are read most, as many in each group."""
    parts = read.view(groups, -1)
    chosen = parts.topk(count // groups, 1).indices.sort(1).values
    return (chosen + torch.arange(groups)[:, None] * parts.shape[1]).flatten()


def _copy(old: Any, new: Any, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
    weight = old.weight if rows is None else old.weight[rows]
    new.weight.copy_(weight if columns is None else weight[:, columns])
    if new.bias is not None:
        new.bias.copy_(old.bias if rows is None else old.bias[rows])


def _copy_norm(old: Any, new: Any, which: torch.Tensor) -> None:
    new.weight.copy_(old.weight[which])
    new.bias.copy_(old.bias[which])


def _copy_block(old: Block, new: Block, inside: torch.Tensor, outside: torch.Tensor) -> None:
    hidden = kept(reads(old.second), new.second.in_channels)
    _copy_norm(old.first_norm, new.first_norm, inside)
    _copy(old.first, new.first, hidden, inside)
    for name in Taps.NAMES:
        _copy(getattr(old.taps, name), getattr(new.taps, name), hidden, hidden)
    _copy(old.film, new.film, torch.cat([hidden, old.second.in_channels + hidden]), None)
    _copy_norm(old.second_norm, new.second_norm, hidden)
    _copy(old.second, new.second, outside, hidden)
    if isinstance(old.beside, torch.nn.Conv2d):
        _copy(old.beside, new.beside, outside, inside)


def followed(model: Any, teacher: LongitudinalNet, levels: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """How far the denoiser's v, with and without the visits, is from the teacher's, mean square (distillation, Hinton
    et al., arXiv 1503.02531): the teacher's v is what the data's, of one truth and one noise each, scatter around.
    model: a ``Wrapped`` net whose encoder and mean are the teacher's."""
    batch = drawn.batch
    with torch.no_grad():
        sight = teacher.sight(batch.visits, batch.delta, batch.observed, batch.kind, batch.valid)
        error, _, counted = residual(teacher, sight.mean, batch)
        rest = rest_of(error, sight.scale, counted)
    looks, depth = len(drawn.noise) // len(batch.target), batch.target.shape[1]
    level = levels[drawn.time]
    rest, counted = (part.repeat_interleave(looks, 0) for part in (rest, counted))
    seen = noisy(rest, drawn.noise, level[:, None, None, None, None])

    def look(owner: LongitudinalNet) -> Any:
        found = owner.entered(sight)
        told = found.told.unflatten(0, (-1, depth)).repeat_interleave(looks, 0).flatten(0, 1)
        return replace(found, told=told, condition=found.condition.repeat_interleave(looks, 0))

    with torch.no_grad():
        known = look(teacher)
        wanted = teacher(seen, level, known, guidance=None)
    away = ((model(seen, level, look(model.net), guidance=None) - wanted).square() * counted).sum((0, 2, 3, 4))
    return (away[0] + BLIND * away[1]) / counted.sum().clamp_min(1.0)
