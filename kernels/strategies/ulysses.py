"""Ulysses and USP: every rank of a group gets all of the group's tokens and a share of the heads.

DeepSpeed-Ulysses (arXiv 2309.14509): shards (B, H, n, D) are exchanged for (B, H/u, N_u, D), attention runs on whole
sequences, and the outputs go back. USP (arXiv 2405.07719) does that in groups of u ranks and runs a ring over the
groups: u = P is Ulysses, u = 1 is the ring. Rank r is place r mod u of group r // u.

Any number of heads: place p gets query heads [p H // u, (p + 1) H // u), some get none, and the key heads which those
use; a key head that several places use is sent to each, and its gradients are added up by its owner.

Bytes sent by a rank, even shards: 2 B (H + Hk) n D e (u - 1) / u each way, and the ring's for B, H/u, Hk/u, u n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from longtake.kernels.heads import head_range, key_head_range
from longtake.kernels.precision import accumulator_dtype
from longtake.kernels.strategies.engine import Call, Grads
from longtake.kernels.strategies.ring import Ring
from torch import Tensor


@dataclass(frozen=True)
class Ulysses:
    """One rank's part. ranks: of its group, in order of place; place: its own; lengths_q, lengths_k: their rows.

    ring: the mask and the runs of the groups (one node a group), with the mask for all heads.
    """

    ring: Ring
    ranks: tuple[int, ...]
    place: int
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    heads: int
    kv_heads: int

    @property
    def places(self) -> int:
        return len(self.ranks)

    @cached_property
    def inner(self) -> Ring:
        """The ring for this place's heads."""
        mask = self.ring.mask.slice_heads(*head_range(self.heads, self.places, self.place))
        return replace(self.ring, mask=mask)

    @cached_property
    def _key_head_of(self) -> list[int] | None:
        """The received key head of each query head of this place; None when equal groups share one each, which
        backends serve themselves.

        Six query heads and three key heads on two places: the cut goes through the group of key head 1.

            query head       0   1   2 | 3   4   5
            its key head     0   0   1 | 1   2   2      head // (6 / 3)
            received         0 and 1   | 1 and 2        key head 1 is sent to both, `first` is 0 and 1
            _key_head_of     0   0   1 | 0   1   1      groups of 2 and 1, of 1 and 2: `_spread` lays them out

        Four query heads and two key heads: two query heads and one key head a place, so None on both.
        """
        start, stop = head_range(self.heads, self.places, self.place)
        first, last = key_head_range(self.heads, self.kv_heads, self.places, self.place)
        shared = self.heads // self.kv_heads
        numbers = [head // shared - first for head in range(start, stop)]
        held = last - first
        even = held > 0 and len(numbers) % held == 0
        return None if even and numbers == [i * held // len(numbers) for i in range(len(numbers))] else numbers

    def _exchange(
        self, call: Call, outgoing: list[list[Tensor]], shapes: list[list[tuple[int, ...]]], name: str = "ulysses"
    ) -> list[list[Tensor]]:
        """outgoing[place]: what a place gets from me; shapes[place]: what I get from it. One round."""
        received: list[list[Tensor]] = []
        sends, receives = [], []
        for place, rank in enumerate(self.ranks):
            if place == self.place:
                received.append(outgoing[place])
                continue
            sends.append((rank, torch.cat([part.reshape(-1) for part in outgoing[place]])))
            sizes = [math.prod(shape) for shape in shapes[place]]
            buffer = outgoing[place][0].new_empty(sum(sizes))
            receives.append((rank, buffer))
            parts = buffer.split(sizes)
            received.append([part.view(shape) for part, shape in zip(parts, shapes[place], strict=True)])
        call.transport.start_messages(name, sends, receives).wait()
        return received

    def _to_heads(self, call: Call, tensors: Sequence[Tensor], kinds: Sequence[str]) -> list[Tensor]:
        """My rows of all heads -> all rows of my heads. kinds: "q" or "k" for each tensor."""
        outgoing = [
            [x[:, slice(*self._range(kind, place))] for x, kind in zip(tensors, kinds, strict=True)]
            for place in range(self.places)
        ]
        shapes = [
            [
                (x.shape[0], self._count(kind), self._length(kind, place), *x.shape[3:])
                for x, kind in zip(tensors, kinds, strict=True)
            ]
            for place in range(self.places)
        ]
        received = self._exchange(call, outgoing, shapes)
        return [torch.cat([parts[index] for parts in received], dim=2) for index in range(len(tensors))]

    def _to_rows(
        self, call: Call, tensors: Sequence[Tensor], kinds: Sequence[str], name: str = "ulysses"
    ) -> list[list[Tensor]]:
        """All rows of my heads -> my rows: for each place, what it says about its heads."""
        split = [
            x.split([self._length(kind, place) for place in range(self.places)], dim=2)
            for x, kind in zip(tensors, kinds, strict=True)
        ]
        outgoing = [[parts[place] for parts in split] for place in range(self.places)]
        shapes = []
        for place in range(self.places):
            counts = [slice(*self._range(kind, place)) for kind in kinds]
            shapes.append([
                (x.shape[0], count.stop - count.start, self._length(kind, self.place), *x.shape[3:])
                for x, kind, count in zip(tensors, kinds, counts, strict=True)
            ])  # fmt: skip
        return self._exchange(call, outgoing, shapes, name)

    def _range(self, kind: str, place: int) -> tuple[int, int]:
        if kind == "q":
            return head_range(self.heads, self.places, place)
        return key_head_range(self.heads, self.kv_heads, self.places, place)

    def _count(self, kind: str) -> int:
        start, stop = self._range(kind, self.place)
        return stop - start

    def _length(self, kind: str, place: int) -> int:
        return (self.lengths_q if kind == "q" else self.lengths_k)[place]

    def _spread(self, x: Tensor) -> Tensor:
        """Key heads as the backend wants them."""
        if self._key_head_of is None:
            return x
        return x.index_select(1, torch.tensor(self._key_head_of, dtype=torch.int64, device=x.device))

    def _gather_spread(self, grad: Tensor, heads: int) -> Tensor:
        if self._key_head_of is None:
            return grad
        summed = grad.new_zeros(grad.shape[0], heads, *grad.shape[2:])
        return summed.index_add_(1, torch.tensor(self._key_head_of, dtype=torch.int64, device=grad.device), grad)

    def forward(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        q_h, k_h, v_h = self._to_heads(call, (q, k, v), "qkk")
        out_h, lse_h, saved = self.inner.forward(call, q_h, self._spread(k_h), self._spread(v_h))
        out = torch.cat([parts[0] for parts in self._to_rows(call, (out_h,), "q")], dim=1)
        return out, lse_h, saved

    def gather_lse(self, call: Call, lse_h: Tensor) -> Tensor:
        """L of my rows from L of my heads; only asked for when the caller wants L."""
        parts = self._to_rows(call, (lse_h[..., None],), "q", "ulysses_lse")
        return torch.cat([part[0] for part in parts], dim=1)[..., 0]

    def backward(self, call: Call, d_out: Tensor, saved: Sequence[Tensor]) -> Grads:
        (d_out_h,) = self._to_heads(call, (d_out,), "q")
        d_q_h, d_k_h, d_v_h = self.inner.backward(call, d_out_h, saved)
        held = self._count("k")
        grads = (d_q_h, self._gather_spread(d_k_h, held), self._gather_spread(d_v_h, held))
        received = self._to_rows(call, grads, "qkk")
        d_q = torch.cat([parts[0] for parts in received], dim=1)
        sums = []
        for index, x in ((1, d_k_h), (2, d_v_h)):
            total = x.new_zeros(
                (x.shape[0], self.kv_heads, self.lengths_k[self.place], x.shape[3]), dtype=accumulator_dtype(x.dtype)
            )
            for place, parts in enumerate(received):
                total[:, slice(*self._range("k", place))] += parts[index]
            sums.append(total.to(x.dtype))
        return d_q, sums[0], sums[1]


def ring_of_groups(ring_of_ranks: Ring, degree: int, rank: int) -> Ring:
    """The ring over groups of `degree` ranks: a node's runs are those of its group's ranks, end to end."""
    groups = len(ring_of_ranks.queries) // degree

    def joined(runs: tuple[tuple[range, ...], ...], group: int) -> tuple[range, ...]:
        return tuple(run for member in runs[group * degree : (group + 1) * degree] for run in member)

    return Ring(
        ring_of_ranks.mask,
        tuple(joined(ring_of_ranks.queries, group) for group in range(groups)),
        tuple(joined(ring_of_ranks.keys, group) for group in range(groups)),
        ring_of_ranks.total,
        ring_of_ranks.block,
        tuple(group * degree + rank % degree for group in range(groups)),
        rank // degree,
        ring_of_ranks.whole,
    )
