"""What ranks tell each other, with every byte, call and round counted.

Five kinds of traffic, all over a `Partition` or a plan that every rank knows, so that no sizes ever travel:
    halo       frames just outside a rank's piece, asked from whoever owns them (many ranks away if pieces are short)
    gather     a few named frames, on every rank (the global set of DualScope)
    moments    mean and variance over all ranks (group norm over time)
    transpose  all frames of some pixels for all pixels of some frames, and back
    messages   packed buffers to and from named ranks: what ring, Ulysses, gather and halo attention are made of

`start_*` posts the messages and returns a `Pending`; `wait()` gives the result. What is posted inside `with
transport.round():` is one round of latency. Works on gloo and NCCL; with one rank it never touches torch.distributed.
Inference only: tensors that require grad are refused.

A received frame is counted once, by its payload; a rank's own frames are not counted. Moments count the reduced
payload once each way. gloo cannot do list all_gather or list all_to_all with unequal sizes, so uneven traffic goes
through all_to_all_single with split sizes, or through batched isend/irecv.

    pending = transport.start_halo([k, v], 2, partition, 8, 8)
    (k_left, k_right), (v_left, v_right) = pending.wait()
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from longtake.kernels.errors import DistTimeout
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.routes import frames_of, gather_route, halo_route, index_of, join, pack, unpack, with_frames
from longtake.kernels.ranks.wire import DryWire, GroupWire, Message, Wire
from torch import Tensor

Result = TypeVar("Result")
Parts = list[tuple[Tensor, Tensor]]


@dataclass
class Counter:
    """Traffic of one rank. Bytes handed to and taken from the transport by kind, posted calls by kind, and rounds of
    latency."""

    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    received: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rounds: int = 0

    def reset(self) -> None:
        """Back to zero."""
        self.sent.clear()
        self.received.clear()
        self.calls.clear()
        self.rounds = 0

    def as_dict(self) -> dict[str, Any]:
        """A plain copy, ready for JSON."""
        return {
            "sent": dict(self.sent),
            "received": dict(self.received),
            "calls": dict(self.calls),
            "rounds": self.rounds,
        }


class Pending(Generic[Result]):
    """Messages under way. `wait()` returns the result, and the same result when asked again."""

    def __init__(self, works: list[Any], keep: list[Tensor], finish: Callable[[], Result], what: str = ""):
        self._works = works
        self._what = what  # named when the messages do not arrive
        self._keep = keep  # buffers that must live until the messages are through
        self._finish: Callable[[], Result] | None = finish
        self._result: Result | None = None

    def wait(self) -> Result:
        if self._finish is not None:
            try:
                for work in self._works:
                    work.wait()
            except RuntimeError as error:
                if not self._what:
                    raise
                raise DistTimeout(f"{self._what} did not arrive: {error}") from error
            self._result = self._finish()
            self._works, self._keep, self._finish = [], [], None
        return self._result  # type: ignore[return-value]


class Transport:
    """The messages of one rank inside one process group.

    group: None is the default group, or a world of one when torch.distributed is not initialised.
    counter: a shared Counter; a fresh one by default. wire: what carries the messages, instead of a group.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, counter: Counter | None = None, wire: Wire | None = None
    ) -> None:
        self.wire: Wire = GroupWire(group) if wire is None else wire
        self.counter = counter if counter is not None else Counter()
        self.rank, self.world = self.wire.rank, self.wire.world
        self.verified: dict[Any, Any] = {}  # what all ranks were found to agree on -> what they told beside it
        self._in_round = False
        self._round_used = False

    @contextmanager
    def round(self) -> Iterator[None]:
        """Everything started inside is posted together and counts as one round of latency; do not wait inside."""
        if self._in_round:
            raise RuntimeError("rounds do not nest")
        self._in_round, self._round_used = True, False
        try:
            yield
        finally:
            self._in_round = False
            self.counter.rounds += self._round_used

    def _count(self, kind: str, sent: int, received: int) -> None:
        self.counter.calls[kind] += 1
        self.counter.sent[kind] += sent
        self.counter.received[kind] += received
        if self._in_round:
            self._round_used = True
        else:
            self.counter.rounds += 1

    def start_messages(self, kind: str, sends: Sequence[Message], receives: Sequence[Message]) -> Pending[None]:
        """Post contiguous buffers to ranks and from ranks; empty ones are left out. `kind` names them in the counter.

        Every rank's messages to another must be posted in the order in which the other posts their receipt.
        """
        sends = [(rank, buffer) for rank, buffer in sends if buffer.numel()]
        receives = [(rank, buffer) for rank, buffer in receives if buffer.numel()]
        if not sends and not receives:
            return Pending([], [], lambda: None)
        self._count(
            kind,
            sum(buffer.numel() * buffer.element_size() for _, buffer in sends),
            sum(buffer.numel() * buffer.element_size() for _, buffer in receives),
        )
        works = self.wire.messages(sends, receives)
        what = f"rank {self.rank}: {kind} from ranks {[rank for rank, _ in receives]}"
        return Pending(works, [buffer for _, buffer in [*sends, *receives]], lambda: None, what)

    def compare(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """Everybody's numbers, as many on each rank, in order of ranks. One small all-gather, counted as "check";
        imagined ranks come with the same numbers, and nothing is counted."""
        if self.world > 1 and not self.wire.imagined:
            self._count("check", 8 * len(numbers) * (self.world - 1), 8 * len(numbers) * (self.world - 1))
        return self.wire.compare(numbers, device)

    def start_sum(self, kind: str, tensor: Tensor) -> Pending[Tensor]:
        """Add up a tensor over all ranks, in place. Counted once each way."""
        if self.world == 1 or not tensor.numel():
            return Pending([], [], lambda: tensor)
        self._count(kind, tensor.numel() * tensor.element_size(), tensor.numel() * tensor.element_size())
        return Pending(self.wire.add_up(tensor), [tensor], lambda: tensor)

    def _check(self, tensors: Sequence[Tensor], dim: int, partition: Partition) -> None:
        if not tensors:
            raise ValueError("no tensor was given")
        if partition.parts != self.world:
            raise ValueError(
                f"the partition has {partition.parts} pieces, the group has {self.world} ranks: one piece for each "
                "rank is needed"
            )
        partition.validate_disjoint()
        own = partition.sizes[self.rank]
        for index, tensor in enumerate(tensors):
            if tensor.shape[dim] != own:
                raise ValueError(
                    f"rank {self.rank}: tensor {index} has {tensor.shape[dim]} frames in dim {dim}, its piece of the "
                    f"partition has {own}"
                )
            if tensor.dtype != tensors[0].dtype or tensor.device != tensors[0].device:
                raise ValueError("tensors that travel together need one dtype and one device")
            if tensor.requires_grad and torch.is_grad_enabled():
                raise NotImplementedError(
                    "gradients do not travel between ranks: call the model under torch.no_grad() or inference_mode()"
                )

    def start_halo(
        self, tensors: Sequence[Tensor], dim: int, partition: Partition, left: int, right: int
    ) -> Pending[Parts]:
        """Ask for the `left` frames before and the `right` frames after my piece.

        tensors: each with my frames in `dim`; one dtype. They travel packed, one message per peer.
        Result: for each tensor (before, after), with fewer frames at the ends of the sequence. A rank with an empty
        piece gets zero frames.
        """
        self._check(tensors, dim, partition)
        if left < 0 or right < 0:
            raise ValueError(f"halo widths must be >= 0, given left {left}, right {right}")

        first, template = partition.pieces[self.rank][0], tensors[0]
        sends: list[Message] = []
        receives: list[Message] = []
        sides: tuple[list[list[Tensor]], list[list[Tensor]]] = ([[] for _ in tensors], [[] for _ in tensors])
        for rank, swap in enumerate(halo_route(partition, self.rank, left, right)):
            if rank == self.rank:
                continue
            outgoing = [frames_of(tensor, dim, span, first) for span in swap.give if len(span) for tensor in tensors]
            if any(piece.numel() for piece in outgoing):
                sends.append((rank, pack(outgoing)))
            coming = [
                (parts, with_frames(tensor, dim, len(span)))
                for side, span in zip(sides, swap.take, strict=True)
                if len(span)
                for parts, tensor in zip(side, tensors, strict=True)
            ]
            shapes = [shape for _, shape in coming]
            buffer = template.new_empty(sum(shape.numel() for shape in shapes))
            if not buffer.numel():
                continue
            receives.append((rank, buffer))
            for (parts, _), piece in zip(coming, unpack(buffer, shapes), strict=True):
                parts.append(piece)

        works: list[Any] = []
        if self.world > 1 and left + right > 0:
            size = template.element_size()
            self._count("halo", size * sum(b.numel() for _, b in sends), size * sum(b.numel() for _, b in receives))
            self.wire.connect(template.device)
            works = self.wire.messages(sends, receives)

        def finish() -> Parts:
            return [
                (join(before, tensor, dim), join(after, tensor, dim))
                for before, after, tensor in zip(*sides, tensors, strict=True)
            ]

        return Pending(works, [buffer for _, buffer in sends + receives], finish)

    def start_gather(
        self, tensors: Sequence[Tensor], dim: int, partition: Partition, indices: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """Bring the frames at the global positions `indices` to every rank, in that order (repeats allowed; a repeat
        travels once).

        tensors: each with my frames in `dim`; one dtype. Result: for each tensor, its frames, len(indices) of them in
        `dim`.
        """
        self._check(tensors, dim, partition)
        owned = gather_route(partition, indices)
        arrival = [index for frames in owned for index in frames]
        first, template = partition.pieces[self.rank][0], tensors[0]
        own = [frames_of(tensor, dim, owned[self.rank], first) for tensor in tensors]
        pieces: list[list[Tensor]] = [[piece] for piece in own]  # for each tensor, those of all ranks in order
        works: list[Any] = []
        keep: list[Tensor] = []
        if self.world > 1 and arrival:
            shapes = [[with_frames(tensor, dim, len(frames)) for tensor in tensors] for frames in owned]
            sizes = [sum(shape.numel() for shape in asked) for asked in shapes]
            output_splits = [0 if rank == self.rank else size for rank, size in enumerate(sizes)]
            input_splits = [0 if rank == self.rank else sizes[self.rank] for rank in range(self.world)]
            outgoing = pack(own).repeat(self.world - 1)
            incoming = template.new_empty(sum(output_splits))
            buffers = incoming.split(output_splits)
            everyone = [own if rank == self.rank else unpack(buffers[rank], asked) for rank, asked in enumerate(shapes)]
            pieces = [list(parts) for parts in zip(*everyone, strict=True)]
            self._count("gather", outgoing.element_size() * outgoing.numel(), incoming.nbytes)
            works = self.wire.all_to_all(incoming, outgoing, output_splits, input_splits)
            keep = [outgoing, incoming]

        def finish() -> list[Tensor]:
            joined = [join(parts, tensor, dim) for parts, tensor in zip(pieces, tensors, strict=True)]
            if arrival == list(indices):
                return joined
            place = {index: slot for slot, index in enumerate(arrival)}
            order = index_of([place[index] for index in indices], template)
            return [frames.index_select(dim, order) for frames in joined]

        return Pending(works, keep, finish)

    def start_moments(
        self, mean: Tensor, m2: Tensor, *, count: int, total: int | None = None
    ) -> Pending[tuple[Tensor, Tensor]]:
        """Combine per-rank moments into those of all ranks together.

        mean: (B, G), the mean of my `count` elements of each group. m2: (B, G), their sum of squared deviations from
        it. Any float dtype; a rank with nothing gives count 0 and any finite values.
        total: elements of all ranks together when the caller knows it (it follows from the partition); None sends the
        counts along, 8 bytes.
        Result: (mean, var), float64 (B, G), var biased. Sums are taken in float64: 16 bytes per group.
        """
        mean64, m264 = mean.detach().double(), m2.detach().double()
        if count == 0:
            mean64, m264 = torch.zeros_like(mean64), torch.zeros_like(m264)
        if self.world == 1:
            if total is not None and total != count:
                raise ValueError(f"one rank holds {count} elements of each group, but the total is said to be {total}")
            alone = (mean64, m264 / max(count, 1))
            return Pending([], [], lambda: alone)
        parts = [(mean64 * count).reshape(-1), (m264 + mean64.square() * count).reshape(-1)]
        if total is None:
            parts.append(mean64.new_full((1,), count))
        payload = torch.cat(parts)
        groups = mean.numel()
        self._count("moments", 8 * payload.numel(), 8 * payload.numel())
        works = self.wire.add_up(payload)

        def finish() -> tuple[Tensor, Tensor]:
            everything = payload[2 * groups :] if total is None else total
            average = payload[:groups] / everything
            variance = (payload[groups : 2 * groups] / everything - average.square()).clamp_(min=0)
            return average.view(mean.shape), variance.view(mean.shape)

        return Pending(works, [payload], finish)

    def time_to_space(self, x: Tensor, partition: Partition, time_dim: int, space_dim: int) -> Tensor:
        """My frames of all pixels -> all frames of my pixels. Pixels (`space_dim`) are cut by `Partition.even`; some
        ranks may get none."""
        self._check([x], time_dim, partition)
        return self._transpose(x, Partition.even(x.shape[space_dim], self.world), space_dim, partition, time_dim)

    def space_to_time(
        self, x: Tensor, partition: Partition, time_dim: int, space_dim: int, space_total: int | None = None
    ) -> Tensor:
        """The inverse: all frames of my pixels -> my frames of all pixels.

        space_total: number of pixels of all ranks together; needed with more than one rank (it cannot be read off one
        rank's share).
        """
        if self.world > 1 and space_total is None:
            raise ValueError(
                "space_total, the number of pixels of all ranks together, is needed with more than one rank"
            )
        space = Partition.even(x.shape[space_dim] if space_total is None else space_total, self.world)
        self._check([x], space_dim, space)
        partition.validate_disjoint()
        if x.shape[time_dim] != partition.total:
            raise ValueError(f"dim {time_dim} has {x.shape[time_dim]} frames, the partition has {partition.total}")
        return self._transpose(x, partition, time_dim, space, space_dim)

    def _transpose(self, x: Tensor, cut: Partition, cut_dim: int, join: Partition, join_dim: int) -> Tensor:
        """Cut `cut_dim` by `cut`, give piece r to rank r, and lay what arrives side by side along `join_dim`."""
        if self.world == 1:
            return x
        cut_dim, join_dim = cut_dim % x.dim(), join_dim % x.dim()
        others = [rank for rank in range(self.world) if rank != self.rank]
        outgoing = pack([frames_of(x, cut_dim, cut.range(rank), 0) for rank in others])
        shapes = []
        for rank in range(self.world):
            shape = list(x.shape)
            shape[cut_dim], shape[join_dim] = cut.sizes[self.rank], join.sizes[rank]
            shapes.append(torch.Size(shape))
        frame = x.numel() // max(x.shape[cut_dim], 1)
        input_splits = [0 if rank == self.rank else frame * cut.sizes[rank] for rank in range(self.world)]
        output_splits = [0 if rank == self.rank else shape.numel() for rank, shape in enumerate(shapes)]
        incoming = x.new_empty(sum(output_splits))
        self._count("transpose", x.element_size() * outgoing.numel(), x.element_size() * incoming.numel())
        works = self.wire.all_to_all(incoming, outgoing, output_splits, input_splits)
        Pending(works, [outgoing], lambda: None).wait()
        chunks = list(incoming.split(output_splits))
        own = x.narrow(cut_dim, cut.pieces[self.rank][0], cut.sizes[self.rank])
        return torch.cat(
            [own if rank == self.rank else chunks[rank].view(shape) for rank, shape in enumerate(shapes)], dim=join_dim
        )


class DryTransport(Transport):
    """A rank of an imagined group: counts what would travel, sends nothing, returns uninitialised frames of the right
    shapes.

    With meta tensors it forecasts the traffic of a full-size model in a moment.
    """

    def __init__(self, rank: int, world: int, counter: Counter | None = None) -> None:
        super().__init__(counter=counter, wire=DryWire(rank, world))
