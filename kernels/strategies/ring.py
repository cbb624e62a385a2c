"""Ring attention: queries stay, keys and values travel from rank to rank (RingAttention, arXiv 2310.01889).

At step i node r holds the keys of node (r - i) mod R. A node's keys travel only as far as somebody needs them and only
the rows that somebody needs: `Mask.reach` decides, so a windowed mask sends a window. While one buffer is computed
with, the next one is on its way (two buffers). In the backward the keys make the same journey again; the sums of their
gradients follow one step behind, in float32, and the last holder sends them home. The owner adds its own share there,
so gradients make as many hops as keys and one way home: R - 1 messages in all.

Bytes sent by a rank, full mask, even shards: forward 2 B Hk n D e (R - 1), backward the same plus 2 B Hk n D e_acc
(R - 1).

    Ring(mask, query_runs, key_runs, total, block, ranks=(0, 1, 2), node=1)   # one node's part of a ring of three
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from longtake.kernels.masks.basic import Mask, merge_ranges
from longtake.kernels.plan.tiles import Runs, Span, Tile, compile_tiles, needed_rows, sub_runs, take, whole_tile
from longtake.kernels.ranks.transport import Pending
from longtake.kernels.strategies.engine import (
    Call,
    Grads,
    Merged,
    attend,
    attend_backward,
    pack,
    unpack,
    zero_lse_of,
    zeros_for,
)
from torch import Tensor


@dataclass(frozen=True)
class Ring:
    """One node of a ring. queries, keys: the runs of every node; ranks: the nodes' ranks in the transport's group.

    One node alone is plain local attention and sends nothing.
    """

    mask: Mask
    queries: tuple[Runs, ...]
    keys: tuple[Runs, ...]
    total: int
    block: int
    ranks: tuple[int, ...]
    node: int
    whole: bool = False  # leave the mask to the backend, in one tile

    @property
    def nodes(self) -> int:
        return len(self.ranks)

    @cached_property
    def travel(self) -> tuple[tuple[int, tuple[Span, ...]], ...]:
        """For each node: how many hops its keys make, and which of its rows travel."""
        journeys = []
        for source in range(self.nodes):
            hops, rows = 0, list[Span]()
            for distance in range(1, self.nodes):
                node = (source + distance) % self.nodes
                needed = needed_rows(self.mask, self.queries[node], self.keys[source], self.block)
                if needed:
                    hops, rows = distance, merge_ranges(rows + needed)
            journeys.append((hops, tuple(rows)))
        return tuple(journeys)

    @cached_property
    def tiles(self) -> tuple[tuple[Tile, ...], ...]:
        """The tiles of each step at this node."""
        steps: list[tuple[Tile, ...]] = []
        for step in range(self.nodes):
            source = (self.node - step) % self.nodes
            hops, rows = self.travel[source]
            runs = self.keys[source] if step == 0 else sub_runs(self.keys[source], rows)
            if step > hops:
                steps.append(())
            elif self.whole:
                steps.append(whole_tile(self.mask, self.queries[self.node], runs))
            else:
                steps.append(compile_tiles(self.mask, self.queries[self.node], runs, self.block))
        return tuple(steps)

    def _rows(self, source: int) -> int:
        return sum(stop - start for start, stop in self.travel[source][1])

    @property
    def steps(self) -> int:
        """Steps until nobody's keys travel any more; the same on every node."""
        return 1 + max(hops for hops, _ in self.travel)

    def _hop(
        self, call: Call, step: int, kind: str, held: Tensor | None, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Pending]:
        """Pass on what is held at `step`, receive what is held at `step + 1`."""
        source = (self.node - step) % self.nodes
        coming = (self.node - step - 1) % self.nodes
        sends, receives = [], []
        arriving = k.new_empty(0)
        if held is not None and self.travel[source][0] > step:
            sends.append((self.ranks[(self.node + 1) % self.nodes], held))
        if self.travel[coming][0] > step:
            rows = self._rows(coming)
            size = rows * k.shape[0] * k.shape[1] * (k.shape[3] + v.shape[3])
            arriving = (k if held is None else held).new_empty(size)
            receives.append((self.ranks[(self.node - 1) % self.nodes], arriving))
        return arriving, call.transport.start_messages(kind, sends, receives)

    def forward(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        into = Merged(q, v.shape[3], zero_lse_of(self.mask, self.queries[self.node], self.total))
        rows = self.travel[self.node][1]
        held = pack(take(k, rows), take(v, rows)) if rows else k.new_empty(0)
        keys, values = k, v
        for step in range(self.steps):
            if step + 1 < self.steps:
                arriving, pending = self._hop(call, step, "ring", held, k, v)
            attend(call, self.tiles[step], q, keys, values, into)
            if step + 1 < self.steps:
                pending.wait()
                held = arriving
                if held.numel():
                    keys, values = unpack(held, k, v, self._rows((self.node - step - 1) % self.nodes))
        out, lse = into.result()
        return out, lse, (q, k, v, out, lse)

    def backward(self, call: Call, d_out: Tensor, saved: Sequence[Tensor]) -> Grads:
        q, k, v, out, lse = saved
        d_q, d_k, d_v = zeros_for(q), zeros_for(k), zeros_for(v)
        own_hops, rows = self.travel[self.node]
        held = pack(take(k, rows), take(v, rows)) if rows else k.new_empty(0)
        keys, values = k, v
        sums = d_k.new_empty(0)  # of the gradients of the keys held, so far
        home = d_k.new_empty(self._rows(self.node) * k.shape[0] * k.shape[1] * (k.shape[3] + v.shape[3]))
        for step in range(self.steps):
            source = (self.node - step) % self.nodes
            if step + 1 < self.steps:
                arriving, pending = self._hop(call, step, "ring", held, k, v)
            if step == 0:
                attend_backward(call, self.tiles[0], d_out, q, k, v, out, lse, d_q, d_k, d_v)
            elif self.travel[source][0] >= step:
                if step == 1:  # the owner's share waits at home
                    sums = d_k.new_zeros(held.numel())
                grad_k, grad_v = unpack(sums, k, v, self._rows(source))
                attend_backward(call, self.tiles[step], d_out, q, keys, values, out, lse, d_q, grad_k, grad_v)
            if step + 1 < self.steps:
                pending.wait()
                held = arriving
                if held.numel():
                    keys, values = unpack(held, k, v, self._rows((self.node - step - 1) % self.nodes))
            if step:
                sums = self._pass_gradients(call, step, sums, home, k, v)
        if own_hops:
            add_rows(d_k, d_v, home, rows, k, v)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)

    def _pass_gradients(self, call: Call, step: int, sums: Tensor, home: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """After `step`: sums go on with their keys, or home from the last node that needed them."""
        source, coming = (self.node - step) % self.nodes, (self.node - step - 1) % self.nodes
        after, before = self.ranks[(self.node + 1) % self.nodes], self.ranks[(self.node - 1) % self.nodes]
        sends, receives = [], []
        arriving = sums.new_empty(0)
        if self.travel[source][0] > step:
            sends.append((after, sums))
        elif self.travel[source][0] == step:
            sends.append((self.ranks[source], sums))
        if self.travel[coming][0] > step:
            arriving = sums.new_empty(self._rows(coming) * k.shape[0] * k.shape[1] * (k.shape[3] + v.shape[3]))
            receives.append((before, arriving))
        if self.travel[self.node][0] == step:
            receives.append((self.ranks[(self.node + step) % self.nodes], home))
        call.transport.start_messages("ring_grad", sends, receives).wait()
        return arriving


def add_rows(d_k: Tensor, d_v: Tensor, buffer: Tensor, rows: Sequence[Span], k: Tensor, v: Tensor) -> None:
    """Add packed gradients of some rows to those of all rows."""
    total = sum(stop - start for start, stop in rows)
    grad_k, grad_v = unpack(buffer, k, v, total)
    first = 0
    for start, stop in rows:
        d_k[:, :, start:stop] += grad_k[:, :, first : first + stop - start]
        d_v[:, :, start:stop] += grad_v[:, :, first : first + stop - start]
        first += stop - start


def local(mask: Mask, q_runs: Runs, k_runs: Runs, total: int, block: int, whole: bool = False) -> Ring:
    """One rank by itself."""
    return Ring(mask, (q_runs,), (k_runs,), total, block, (0,), 0, whole)
