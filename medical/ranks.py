"""Several ranks for one scan: its slices dealt out, or the visits of its history. The result is that of one rank.

Slices: all layers but the taps stay within a slice, so that a rank needs one slice from each neighbour in each block,
and the mean of the encoder's findings over all slices. Visits: each rank reads its own; attention over time is merged
from the ranks' parts by their log-sum-exps, which is exact for any number of ranks.

Legend: B rows, K visits, D slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.summaries import gather_summaries
from longtake.kernels.ranks.transport import Transport

SPLITS = ("samples", "slices", "visits")


@dataclass(frozen=True)
class Team:
    """transport: to the other ranks. slices: how the slices are dealt out, or None. visits: the same of the visits."""

    transport: Transport
    slices: Partition | None = None
    visits: Partition | None = None

    @classmethod
    def over(cls, split: str, transport: Transport, visits: int, slices: int) -> Team:
        """A team for one scan. Raises UserError for more ranks than there are slices or visits."""
        total = slices if split == "slices" else visits
        if transport.world > total:
            raise UserError(f"{transport.world} ranks cannot share {total} {split}: at most {total}, or split samples")
        cut = Partition.even(total, transport.world)
        return cls(transport, slices=cut) if split == "slices" else cls(transport, visits=cut)

    @property
    def own_slices(self) -> slice | None:
        """This rank's slices; None for all."""
        return None if self.slices is None else slice(*self.slices.pieces[self.transport.rank])

    @property
    def own_visits(self) -> slice:
        """This rank's visits."""
        return slice(None) if self.visits is None else slice(*self.visits.pieces[self.transport.rank])

    def neighbours(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each of my slices (B, D, ...) the one before and the one after, zeros beyond the volume's ends."""
        assert self.slices is not None
        ((before, after),) = self.transport.start_halo([volume.contiguous()], 1, self.slices, 1, 1).wait()
        none = torch.zeros_like(volume[:, :1])
        below = torch.cat([before if before.shape[1] else none, volume[:, :-1]], 1)
        above = torch.cat([volume[:, 1:], after if after.shape[1] else none], 1)
        return below, above

    def mean_over_slices(self, found: torch.Tensor) -> torch.Tensor:
        """(B, C) mean of (B, D, P, C) over all ranks' slices and places."""
        if self.slices is None:
            return found.mean((1, 2))
        total = self.transport.start_sum("summary", found.double().sum((1, 2))).wait()
        return (total / (self.slices.total * found.shape[2])).to(found.dtype)

    def merged(self, size: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """One attention from the ranks' parts. size: (...) log-sum-exps, -inf where a rank has nothing to look at.
        found: (..., C) what each found."""
        if self.visits is None:
            return found
        parts = gather_summaries(self.transport, (size.float(), found.float()))
        sizes = torch.stack([part[0] for part in parts])
        top = sizes.amax(0).clamp_min(-1e30)
        shares = (sizes - top).exp()
        total = sum(share[..., None] * part[1] for share, part in zip(shares, parts, strict=True))
        merged: torch.Tensor = total / shares.sum(0)[..., None].clamp_min(1e-30)
        return merged.to(found.dtype)

    def gathered(self, own: torch.Tensor) -> torch.Tensor:
        """(B, K, ...) of all visits from each rank's own."""
        if self.visits is None:
            return own
        everything = range(self.visits.total)
        (whole,) = self.transport.start_gather([own.contiguous()], 1, self.visits, everything).wait()
        return whole
