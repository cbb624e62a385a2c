"""Attention on fetched keys: each rank brings the keys it needs in one round, then computes alone.

`Fetch` with every row of every rank is all-gather-KV (Llama 3, arXiv 2407.21783, section 3.3.2); with the rows in
the mask's reach it is the halo exchange of clip-parallel models. Buffers lie rows first, (N, B, Hk, D + Dv),
so that a rank's rows arrive in their place and K and V are views. The backward sends each owner the float32 gradients
of its rows and adds up what comes home.

Bytes sent by a rank, everything fetched, even shards: forward 2 B Hk n D e (P - 1), backward 2 B Hk n D e_acc (P - 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from longtake.kernels.masks.basic import Mask
from longtake.kernels.plan.tiles import (
    Runs,
    Span,
    Tile,
    compile_tiles,
    length_of,
    needed_rows,
    sub_runs,
    take,
    whole_tile,
)
from longtake.kernels.strategies.engine import Call, Grads, Merged, attend, attend_backward, zero_lse_of, zeros_for
from torch import Tensor


@dataclass(frozen=True)
class Fetch:
    """One rank's part. queries, keys: the runs of every rank; everything: fetch all rows, not only those in reach."""

    mask: Mask
    queries: tuple[Runs, ...]
    keys: tuple[Runs, ...]
    total: int
    block: int
    rank: int
    everything: bool
    whole: bool = False  # leave the mask to the backend, in one tile

    def wanted(self, rank: int, source: int) -> tuple[Span, ...]:
        """Local rows of `source` that `rank` fetches; of itself it keeps all that it needs."""
        rows = length_of(self.keys[source])
        if not length_of(self.queries[rank]) or not rows:
            return ()
        if self.everything:
            return ((0, rows),)
        return tuple(needed_rows(self.mask, self.queries[rank], self.keys[source], self.block))

    @cached_property
    def arrivals(self) -> tuple[tuple[Span, ...], ...]:
        """What I fetch from each rank."""
        return tuple(self.wanted(self.rank, source) for source in range(len(self.keys)))

    @cached_property
    def departures(self) -> tuple[tuple[Span, ...], ...]:
        """What each rank fetches from me."""
        return tuple(self.wanted(rank, self.rank) for rank in range(len(self.keys)))

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        runs = tuple(
            run for source, spans in enumerate(self.arrivals) for run in sub_runs(self.keys[source], spans)
        )  # fmt: skip
        if self.whole:
            return whole_tile(self.mask, self.queries[self.rank], runs)
        return compile_tiles(self.mask, self.queries[self.rank], runs, self.block)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First fetched row of each rank, and the number of all."""
        ends = [0]
        for spans in self.arrivals:
            ends.append(ends[-1] + sum(stop - start for start, stop in spans))
        return tuple(ends)

    def _fetch(self, call: Call, k: Tensor, v: Tensor) -> Tensor:
        """(rows, B, Hk, D + Dv) in order of ranks."""
        width = k.shape[3] + v.shape[3]
        fetched = k.new_empty(self.offsets[-1], k.shape[0], k.shape[1], width)
        sends, receives = [], []
        packed: dict[tuple[Span, ...], Tensor] = {}
        for rank, spans in enumerate(self.departures):
            if rank == self.rank or not spans:
                continue
            if spans not in packed:
                packed[spans] = self._rows_first(take(k, spans), take(v, spans), k.new_empty(0))
            sends.append((rank, packed[spans]))
        for source, spans in enumerate(self.arrivals):
            place = fetched[self.offsets[source] : self.offsets[source + 1]]
            if source != self.rank:
                receives.append((source, place))
            elif spans:
                self._rows_first(take(k, spans), take(v, spans), place)
        call.transport.start_messages(self.kind, sends, receives).wait()
        return fetched

    @property
    def kind(self) -> str:
        """The name of these messages in the counter."""
        return "gather_kv" if self.everything else "halo_kv"

    @staticmethod
    def _rows_first(k: Tensor, v: Tensor, into: Tensor) -> Tensor:
        if not into.numel():
            into = k.new_empty(k.shape[2], k.shape[0], k.shape[1], k.shape[3] + v.shape[3])
        into[..., : k.shape[3]] = k.permute(2, 0, 1, 3)
        into[..., k.shape[3] :] = v.permute(2, 0, 1, 3)
        return into

    @staticmethod
    def _views(fetched: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
        rows_last = fetched.permute(1, 2, 0, 3)
        return rows_last[..., :head_dim], rows_last[..., head_dim:]

    def forward(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        fetched = self._fetch(call, k, v)
        into = Merged(q, v.shape[3], zero_lse_of(self.mask, self.queries[self.rank], self.total))
        attend(call, self.tiles, q, *self._views(fetched, k.shape[3]), into)
        out, lse = into.result()
        return out, lse, (q, fetched, out, lse, k[:, :, :0], v[:, :, :0])

    def backward(self, call: Call, d_out: Tensor, saved: Sequence[Tensor]) -> Grads:
        q, fetched, out, lse, no_k, no_v = saved
        head_dim = no_k.shape[3]
        d_q, grads = zeros_for(q), zeros_for(fetched)
        keys, values = self._views(fetched, head_dim)
        d_keys, d_values = self._views(grads, head_dim)
        attend_backward(call, self.tiles, d_out, q, keys, values, out, lse, d_q, d_keys, d_values)
        sends, receives = [], []
        for source in range(len(self.keys)):
            if source != self.rank:
                sends.append((source, grads[self.offsets[source] : self.offsets[source + 1]]))
        for rank, spans in enumerate(self.departures):
            if rank != self.rank and spans:
                rows = sum(stop - start for start, stop in spans)
                receives.append((rank, grads.new_empty(rows, *grads.shape[1:])))
        pending = call.transport.start_messages(f"{self.kind}_grad", sends, receives)
        total = grads.new_zeros(length_of(self.keys[self.rank]), *grads.shape[1:])
        own = grads[self.offsets[self.rank] : self.offsets[self.rank + 1]]
        self._add(total, own, self.arrivals[self.rank])
        pending.wait()
        for rank, buffer in receives:
            self._add(total, buffer, self.departures[rank])
        d_k, d_v = self._views(total, head_dim)
        return d_q.to(q.dtype), d_k.to(no_k.dtype).contiguous(), d_v.to(no_v.dtype).contiguous()

    @staticmethod
    def _add(total: Tensor, part: Tensor, spans: Sequence[Span]) -> None:
        first = 0
        for start, stop in spans:
            total[start:stop] += part[first : first + stop - start]
            first += stop - start


@dataclass(frozen=True)
class Context:
    """Keys that every rank holds in full (text): nothing is sent forward; the backward adds up dK and dV over ranks,
    so that every rank gets the whole gradient of its copy."""

    mask: Mask
    queries: tuple[Runs, ...]
    keys: Runs
    total: int
    block: int
    rank: int
    whole: bool = False

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        if self.whole:
            return whole_tile(self.mask, self.queries[self.rank], self.keys)
        return compile_tiles(self.mask, self.queries[self.rank], self.keys, self.block)

    def forward(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        into = Merged(q, v.shape[3], zero_lse_of(self.mask, self.queries[self.rank], self.total))
        attend(call, self.tiles, q, k, v, into)
        out, lse = into.result()
        return out, lse, (q, k, v, out, lse)

    def backward(self, call: Call, d_out: Tensor, saved: Sequence[Tensor]) -> Grads:
        q, k, v, out, lse = saved
        d_q, d_k, d_v = zeros_for(q), zeros_for(k), zeros_for(v)
        attend_backward(call, self.tiles, d_out, q, k, v, out, lse, d_q, d_k, d_v)
        sums = d_k.new_empty(d_k.numel() + d_v.numel())
        sums[: d_k.numel()], sums[d_k.numel() :] = d_k.reshape(-1), d_v.reshape(-1)
        call.transport.start_sum("context_grad", sums).wait()
        d_k, d_v = sums[: d_k.numel()].view(d_k.shape), sums[d_k.numel() :].view(d_v.shape)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)
