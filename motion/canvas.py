"""The canvas over ranks: each rank denoises a run of rows and keeps the frames from its first row to the next rank's.

A rank needs its neighbours twice a step, for one handshake each time: before the net it borrows the first frames of the
next rank (its last row ends there), after it hands the next rank its share of the clean estimate on them. Rows are put
into calls of the net by the plan alone, so the numbers do not depend on how many ranks there are.

    canvas = Canvas(plan, denoise, ranks, chunk_rows=4, mixed=True)
    clean = canvas.estimate(sample, timestep)             # (n, J) of this rank's frames

      rank 0  |=========row 0=========|
                          |=======row 1=======|
      rank 1                         [h]=======row 2=======|
                                     |<- borrowed by rank 0 before the net, its share of them spilled back after it

Legend: n frames of this rank, J features, h handshake, P people (a canvas of two people has (n, P, J) all through).
"""

from __future__ import annotations

import torch
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.motion.row_plan import RowPlan, denoise_rows
from longtake.motion.sampling import Denoise


class Canvas:
    """The crossfaded clean estimate of this rank's frames.

    rows: this rank's rows. chunk_rows, mixed: see ``RowPlan.chunks``; ranks share whole chunks. Raises UserError when
    there are fewer chunks than ranks.
    """

    def __init__(self, plan: RowPlan, denoise: Denoise, ranks: Ranks, *, chunk_rows: int, mixed: bool) -> None:
        every = plan.chunks(chunk_rows, mixed=mixed)
        if len(every) < ranks.world:
            raise UserError(
                f"{plan.rows} rows in {len(every)} chunks of at most {chunk_rows} cannot be shared by {ranks.world} "
                f"ranks: use at most {len(every)} ranks, or a smaller chunk_rows"
            )
        self.plan, self.denoise, self.ranks = plan, denoise, ranks
        shares = Partition.even(len(every), ranks.world)
        first_rows = [every[shares.range(rank).start].start for rank in range(ranks.world)]
        self.bounds = [*(plan.starts[row] for row in first_rows), plan.total]
        self.rows = range(first_rows[ranks.rank], [*first_rows, plan.rows][ranks.rank + 1])
        self.chunks = [every[index] for index in shares.range(ranks.rank)]
        self._joints = [plan.before(row) for row in first_rows]  # handshake of each rank with the one before

    @property
    def frames(self) -> range:
        """This rank's frames in the whole."""
        return range(self.bounds[self.ranks.rank], self.bounds[self.ranks.rank + 1])

    def estimate(self, sample: torch.Tensor, timestep: int) -> torch.Tensor:
        """Clean estimate (n, *) of this rank's frames ``sample`` (n, *)."""
        rank, world = self.ranks.rank, self.ranks.world
        borrowed = self._joints[rank + 1] if rank + 1 < world else 0
        heads = self._everyone(sample[: self._joints[rank]])
        window = torch.cat([sample, heads[rank + 1][:borrowed]]) if borrowed else sample
        clean = torch.zeros_like(window)
        offset = self.frames.start
        for rows in self.chunks:
            for row, found in zip(
                rows, denoise_rows(self.plan, window, timestep, self.denoise, rows, offset), strict=True
            ):
                start = self.plan.starts[row] - offset
                share = self.plan.weights(row).to(found)
                clean[start : start + len(found)] += share.view(-1, *(1,) * (found.ndim - 1)) * found
        spills = self._everyone(clean[len(sample) :])
        clean = clean[: len(sample)]
        if rank > 0 and self._joints[rank]:
            clean[: self._joints[rank]] += spills[rank - 1][: self._joints[rank]]
        return clean

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        """The whole (N, *) on every rank from the ranks' own frames (n, *)."""
        if self.ranks.world == 1:
            return mine
        sizes = [stop - start for start, stop in zip(self.bounds, self.bounds[1:], strict=False)]
        parts = _all_gather(mine, max(sizes), self.ranks)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def _everyone(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's few frames, padded to the longest handshake between ranks."""
        most = max(self._joints)
        return _all_gather(mine, most, self.ranks) if most and self.ranks.world > 1 else []


def _all_gather(mine: torch.Tensor, frames: int, ranks: Ranks) -> list[torch.Tensor]:
    import torch.distributed as dist

    box = mine.new_zeros(frames, *mine.shape[1:])
    box[: len(mine)] = mine
    everyone = [torch.empty_like(box) for _ in range(ranks.world)]
    dist.all_gather(everyone, box, group=ranks.group)
    return everyone
