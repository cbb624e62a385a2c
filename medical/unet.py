"""A small U-Net for slices and volumes by one code: convolutions within the slice, two taps to the neighbouring slices.

A single slice has no neighbours, so the taps cost it nothing; normalisation and attention stay within a slice, so that
a volume split along its slices needs one slice from each neighbour and nothing else. After Ronneberger et al. (arXiv
1505.04597), with FiLM (Perez et al., arXiv 1709.07871).

Without gradients a volume goes through each layer a few slices at a time, so that they stay in the cache and little is
held at once.

Legend: B rows, D slices, C channels, H rows, W columns; slices lie in the batch: (B * D, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 8
PIECE = {"cpu": 2**19}  # numbers of a layer's input that are looked at at once, where gradients are not needed
PIECE_ELSEWHERE = 2**26
Neighbours = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # (B, D, ...) -> slices before and after


def within(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each slice of (B, D, ...) the one before and the one after, zeros beyond the ends."""
    empty = torch.zeros_like(volume[:, :1])
    return torch.cat([empty, volume[:, :-1]], 1), torch.cat([volume[:, 1:], empty], 1)


class Taps(nn.Module):
    """Adds to each slice a linear function of its two neighbours."""

    NAMES = ("before", "after")

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(channels, channels, 1, bias=False)
        self.after = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.before.weight)
        nn.init.zeros_(self.after.weight)

    def forward(self, x: torch.Tensor, depth: int, neighbours: Neighbours | None) -> torch.Tensor:
        """(B * D, C, H, W) from the same. neighbours: where slices of other ranks come from; None: there are none."""
        if depth == 1 and neighbours is None:
            return x
        volume = x.unflatten(0, (-1, depth))
        if neighbours is None:
            low, high = self.before(x).unflatten(0, (-1, depth)), self.after(x).unflatten(0, (-1, depth))
            out = volume.clone()
            out[:, 1:] += low[:, :-1]
            out[:, :-1] += high[:, 1:]
            return out.flatten(0, 1)
        below, above = neighbours(volume)
        return x + self.before(below.flatten(0, 1)) + self.after(above.flatten(0, 1))

    def of(self, volume: torch.Tensor, part: slice, depth: int, below: torch.Tensor | None) -> torch.Tensor:
        """The same of a few slices of one row alone; volume: (B * D, C, H, W), channels last, of which slices before
        them may have been overwritten. below: (1, C, H, W), the one before them."""
        own = volume[part]
        out = own.clone()
        if depth == 1:
            return out
        if part.start % depth and below is not None:
            add_product(out[:1], below, self.before)
        if len(own) > 1:
            add_product(out[1:], own[:-1], self.before)
        above = volume[part.start + 1 : part.stop + (part.stop % depth > 0)]
        if len(above):
            add_product(out[: len(above)], above, self.after)
        return out


def add_product(out: torch.Tensor, x: torch.Tensor, layer: nn.Conv2d) -> None:
    """Add what a convolution of one pixel, without a bias, makes of ``x`` to ``out``, both channels last, in place."""
    rows = [part.permute(0, 2, 3, 1).view(-1, part.shape[1]) for part in (out, x)]
    rows[0].addmm_(rows[1], layer.weight.flatten(1).T)


def pieces(rows: int, depth: int, numbers: int, most: int) -> list[slice]:
    """Slices of B * D, none across two rows; numbers: of one slice."""
    size = max(1, min(depth, most // numbers))
    return [
        slice(row * depth + at, row * depth + min(at + size, depth))
        for row in range(rows)
        for at in range(0, depth, size)
    ]


def filled(parts: Sequence[slice], made: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """(B * D, ...) from what is made piece by piece."""
    first = made(parts[0])
    like = torch.channels_last if first.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    out = torch.empty((parts[-1].stop, *first.shape[1:]), dtype=first.dtype, device=first.device, memory_format=like)
    out[parts[0]] = first
    for part in parts[1:]:
        out[part] = made(part)
    return out


def through(layer: nn.Module, flat: torch.Tensor, parts: Sequence[slice]) -> torch.Tensor:
    """What a layer that stays within a slice makes of (B * D, ...)."""
    return filled(parts, lambda part: layer(flat[part]))


class Block(nn.Module):
    """Norm, condition, two convolutions, the neighbours' taps, and the input beside it."""

    def __init__(self, inside: int, outside: int, condition: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(GROUPS, inside)
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.taps = Taps(outside)
        self.film = nn.Linear(condition, 2 * outside)
        self.second_norm = nn.GroupNorm(GROUPS, outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.beside = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        for layer in (self.film, self.second):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, depth: int, neighbours: Neighbours | None
    ) -> torch.Tensor:
        """(B * D, outside, H, W); condition: (B, E)."""
        middle = self.taps(self.begin(x), depth, neighbours)
        return self.end(x, middle, self.film(condition).repeat_interleave(depth, 0))

    def begin(self, x: torch.Tensor) -> torch.Tensor:
        """Up to the first convolution."""
        found: torch.Tensor = self.first(F.silu(self.first_norm(x), inplace=True))
        return found

    def end(self, x: torch.Tensor, middle: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """From the taps on; told: (1 or as many as slices, 2 * outside). Of one row the norm scales and shifts."""
        scale, shift = told.chunk(2, 1)
        norm = self.second_norm
        if len(told) == 1:
            weight, bias = norm.weight * (1 + scale[0]), norm.bias * (1 + scale[0]) + shift[0]
            middle = F.group_norm(middle, norm.num_groups, weight, bias, norm.eps)
        else:
            middle = norm(middle) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        found: torch.Tensor = self.second(F.silu(middle, inplace=True))
        return found.add_(self.beside(x))

    def by_pieces(
        self, x: Callable[[slice], torch.Tensor], condition: torch.Tensor, depth: int, parts: Sequence[slice]
    ) -> torch.Tensor:
        """``forward`` of what ``x`` gives of each piece."""
        found = filled(parts, lambda part: self.begin(x(part)))
        told = self.film(condition)
        below = None
        for part in parts:
            row = part.start // depth
            middle = self.taps.of(found, part, depth, below)
            below = found[part.stop - 1 : part.stop].clone()
            found[part] = self.end(x(part), middle, told[row : row + 1])
        return found


class SliceAttention(nn.Module):
    """Self-attention among the places of a slice."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.queries, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        parts = self.queries(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2]).transpose(1, 2).flatten(2)
        return x + self.out(seen).transpose(1, 2).view_as(x)


class UNet(nn.Module):
    """(B, inside, D, H, W) and a condition (B, E) -> (B, outside, D, H, W); H and W multiples of ``stride``.

    The last of the ``inside`` channels may have entered before (``entered``), where they are the same at every step.

    stem: side of the square of pixels that the first layer takes at once. channels: of each level, in-plane size
    halved from one to the next. The last layer starts at zero.
    """

    def __init__(self, inside: int, outside: int, channels: Sequence[int], condition: int, stem: int = 2) -> None:
        super().__init__()
        self.stem = stem
        self.stride = stem * 2 ** (len(channels) - 1)
        self.enter = nn.Conv2d(inside * stem * stem, channels[0], 3, padding=1)
        self.down = nn.ModuleList([Block(size, size, condition) for size in channels[:-1]])
        self.narrow = nn.ModuleList(
            [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:], strict=False)]
        )
        deepest = channels[-1]
        self.middle = nn.ModuleList([Block(deepest, deepest, condition) for _ in range(2)])
        self.attention = SliceAttention(deepest)
        above = [b for _, b in zip(channels, channels[1:], strict=False)]
        self.widen = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in zip(channels, above, strict=False)])
        self.up = nn.ModuleList([Block(2 * size, size, condition) for size in channels[:-1]])
        self.norm = nn.GroupNorm(GROUPS, channels[0])
        self.leave = nn.Conv2d(channels[0], outside * stem * stem, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def entered(self, rest: torch.Tensor) -> torch.Tensor:
        """What the first layer makes of the last channels (B, C, D, H, W): (B * D, channels[0], h, w), to be added."""
        weight = self._weight(slice(-rest.shape[1] * self.stem**2, None))
        flat = rest.transpose(1, 2).flatten(0, 1)

        def made(part: slice) -> torch.Tensor:
            return F.conv2d(self._squares(flat[part]), weight, padding=1)

        if torch.is_grad_enabled():
            return made(slice(0, len(flat)))
        return filled(self._parts(len(rest), rest.shape[2], flat), made)

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor,
        neighbours: Neighbours | None = None,
        entered: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x: (B, C, D, H, W), all channels, or the first ones: of the others then ``entered`` says what they add, of
        each row or of one for all; None: they are zero."""
        rows, depth = len(x), x.shape[2]
        flat = x.transpose(1, 2).flatten(0, 1)
        if neighbours is None and not torch.is_grad_enabled():
            made = self._by_pieces(flat, condition, rows, depth, entered)
            return made.unflatten(0, (-1, depth)).transpose(1, 2)
        flat = self._begun(flat, entered, slice(0, len(flat)))
        kept = []
        for block, narrow in zip(self.down, self.narrow, strict=True):
            flat = block(flat, condition, depth, neighbours)
            kept.append(flat)
            flat = narrow(flat)
        flat = self.attention(self.middle[0](flat, condition, depth, neighbours))
        flat = self.middle[1](flat, condition, depth, neighbours)
        for block, widen in zip(reversed(self.up), reversed(self.widen), strict=True):
            beside = kept.pop()
            flat = F.interpolate(widen(flat), scale_factor=2.0, mode="nearest")
            flat = block(torch.cat([flat, beside], 1), condition, depth, neighbours)
        return self._left(flat).unflatten(0, (-1, depth)).transpose(1, 2)

    def _by_pieces(
        self, x: torch.Tensor, condition: torch.Tensor, rows: int, depth: int, entered: torch.Tensor | None
    ) -> torch.Tensor:
        parts = self._parts(rows, depth, x)
        flat = filled(parts, lambda part: self._begun(x[part], entered, part))
        kept = []
        down, middle, up = (cast("list[Block]", list(blocks)) for blocks in (self.down, self.middle, reversed(self.up)))
        for block, narrow in zip(down, self.narrow, strict=True):
            parts = self._parts(rows, depth, flat)
            flat = block.by_pieces(flat.__getitem__, condition, depth, parts)
            kept.append(flat)
            flat = through(narrow, flat, parts)
        parts = self._parts(rows, depth, flat)
        flat = middle[0].by_pieces(flat.__getitem__, condition, depth, parts)
        flat = through(self.attention, flat, parts)
        flat = middle[1].by_pieces(flat.__getitem__, condition, depth, parts)
        for block, widen in zip(up, reversed(self.widen), strict=True):
            beside = kept.pop()
            low = through(widen, flat, parts)
            parts = self._parts(rows, depth, beside)

            def joined(part: slice, low: torch.Tensor = low, beside: torch.Tensor = beside) -> torch.Tensor:
                return torch.cat([F.interpolate(low[part], scale_factor=2.0, mode="nearest"), beside[part]], 1)

            flat = block.by_pieces(joined, condition, depth, parts)
        return filled(parts, lambda part: self._left(flat[part]))

    def _parts(self, rows: int, depth: int, flat: torch.Tensor) -> list[slice]:
        return pieces(rows, depth, flat[0].numel(), PIECE.get(flat.device.type, PIECE_ELSEWHERE))

    def _weight(self, channels: slice) -> torch.Tensor:
        """The first layer's weights for some channels, laid out as the others: strided ones go the slow way."""
        return self.enter.weight[:, channels].contiguous(memory_format=torch.channels_last)

    def _squares(self, flat: torch.Tensor) -> torch.Tensor:
        """Each square of ``stem`` by ``stem`` pixels as channels."""
        found: torch.Tensor = F.pixel_unshuffle(flat.contiguous(), self.stem)
        return found.contiguous(memory_format=torch.channels_last)

    def _begun(self, flat: torch.Tensor, entered: torch.Tensor | None, part: slice) -> torch.Tensor:
        weight = self._weight(slice(0, flat.shape[1] * self.stem**2))
        found = F.conv2d(self._squares(flat), weight, self.enter.bias, padding=1)
        if entered is None:
            return found
        length = len(entered)  # of one row, for all, or of each
        if len(flat) > length:
            return found.add_(entered.repeat(len(flat) // length, 1, 1, 1))
        return found.add_(entered[part.start % length : (part.stop - 1) % length + 1])

    def _left(self, flat: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = F.pixel_shuffle(self.leave(F.silu(self.norm(flat), inplace=True)), self.stem)
        return found
