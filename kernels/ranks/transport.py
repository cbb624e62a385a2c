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
    counter: a shared Counter; a fresh one by default.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, counter: Counter | None = None):
        alive = dist.is_available() and dist.is_initialized()
        if group is not None and not alive:
            raise ValueError("a process group was given but torch.distributed is not initialised")
        self.group = group
        self.counter = counter if counter is not None else Counter()
        self.rank = dist.get_rank(group) if alive else 0
        self.world = dist.get_world_size(group) if alive else 1
        if self.rank < 0:
            raise ValueError("this process is not a member of the given group")
        self.verified: dict[Any, Any] = {}  # what all ranks were found to agree on -> what they told beside it
        self._in_round = False
        self._round_used = False
        self._connected = False

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

    def _connect(self, device: torch.device) -> None:
        """NCCL wants every rank in the first call of a group; a rank without messages would be missing from a batched
        send."""
        if not self._connected and dist.get_backend(self.group) == "nccl":
            dist.all_reduce(torch.zeros(1, device=device), group=self.group)
        self._connected = True

    def _post_messages(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> list[Any]:
        def peer(rank: int) -> int:
            return rank if self.group is None else dist.get_global_rank(self.group, rank)

        operations = [dist.P2POp(dist.isend, buffer, peer(rank), self.group) for rank, buffer in sends]
        operations += [dist.P2POp(dist.irecv, buffer, peer(rank), self.group) for rank, buffer in receives]
        return dist.batch_isend_irecv(operations) if operations else []

    def _post_all_to_all(
        self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int]
    ) -> list[Any]:
        return [dist.all_to_all_single(output, input, output_splits, input_splits, group=self.group, async_op=True)]

    def _post_sum(self, tensor: Tensor) -> list[Any]:
        return [dist.all_reduce(tensor, group=self.group, async_op=True)]

    def start_messages(
        self, kind: str, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]
    ) -> Pending[None]:
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
        works = self._post_messages(sends, receives)
        what = f"rank {self.rank}: {kind} from ranks {[rank for rank, _ in receives]}"
        return Pending(works, [buffer for _, buffer in [*sends, *receives]], lambda: None, what)

    def compare(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """Everybody's numbers, as many on each rank, in order of ranks. One small all-gather, counted as "check"."""
        if self.world == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        everybody = mine.new_empty(self.world * len(numbers))
        self._count("check", 8 * len(numbers) * (self.world - 1), 8 * len(numbers) * (self.world - 1))
        dist.all_gather_into_tensor(everybody, mine, group=self.group)
        return everybody.view(self.world, -1).tolist()

    def start_sum(self, kind: str, tensor: Tensor) -> Pending[Tensor]:
        """Add up a tensor over all ranks, in place. Counted once each way."""
        if self.world == 1 or not tensor.numel():
            return Pending([], [], lambda: tensor)
        self._count(kind, tensor.numel() * tensor.element_size(), tensor.numel() * tensor.element_size())
        return Pending(self._post_sum(tensor), [tensor], lambda: tensor)

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

        def wanted(rank: int) -> tuple[range, range]:
            start, stop = partition.pieces[rank]
            if start == stop:
                return range(start, start), range(stop, stop)
            return range(max(start - left, 0), start), range(stop, min(stop + right, partition.total))

        def common(a: range, b: range) -> range:
            return range(max(a.start, b.start), max(min(a.stop, b.stop), max(a.start, b.start)))

        mine = partition.range(self.rank)
        template = tensors[0]
        widths = [_frame_numel(tensor, dim) for tensor in tensors]

        sends: list[tuple[int, Tensor]] = []
        receives: list[tuple[int, Tensor]] = []
        sides: tuple[list[list[Tensor]], list[list[Tensor]]] = ([[] for _ in tensors], [[] for _ in tensors])
        for rank in range(self.world):
            if rank == self.rank:
                continue
            asked = [common(span, mine) for span in wanted(rank)]
            outgoing = [
                tensor.narrow(dim, span.start - mine.start, len(span)).reshape(-1)
                for span in asked
                if len(span)
                for tensor in tensors
            ]
            if sum(piece.numel() for piece in outgoing):
                sends.append((rank, torch.cat(outgoing)))
            theirs = partition.range(rank)
            spans = [common(span, theirs) for span in wanted(self.rank)]
            size = sum(len(span) * width for span in spans for width in widths)
            if size == 0:
                continue
            buffer = template.new_empty(size)
            receives.append((rank, buffer))
            offset = 0
            for side, span in zip(sides, spans, strict=True):
                if not len(span):
                    continue
                for parts, tensor, width in zip(side, tensors, widths, strict=True):
                    parts.append(buffer[offset : offset + len(span) * width].view(_with_frames(tensor, dim, len(span))))
                    offset += len(span) * width

        works: list[Any] = []
        if self.world > 1 and left + right > 0:
            size = template.element_size()
            self._count("halo", size * sum(b.numel() for _, b in sends), size * sum(b.numel() for _, b in receives))
            self._connect(template.device)
            works = self._post_messages(sends, receives)

        def finish() -> Parts:
            return [
                (_join(before, tensor, dim), _join(after, tensor, dim))
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
        for index in indices:
            if not 0 <= index < partition.total:
                raise ValueError(f"frame {index} is outside [0, {partition.total})")
        unique = sorted(set(indices))
        owned = [[index for index in unique if index in partition.range(rank)] for rank in range(self.world)]
        arrival = [index for frames in owned for index in frames]
        mine = partition.range(self.rank)
        template = tensors[0]
        own = [
            tensor.index_select(dim, _index([index - mine.start for index in owned[self.rank]], tensor))
            for tensor in tensors
        ]
        pieces: list[list[Tensor]] = [[] for _ in tensors]
        works: list[Any] = []
        keep: list[Tensor] = []
        if self.world == 1 or not unique:
            pieces = [[piece] for piece in own]
        else:
            packed = torch.cat([piece.reshape(-1) for piece in own])
            widths = [_frame_numel(tensor, dim) for tensor in tensors]
            output_splits = [0 if rank == self.rank else len(frames) * sum(widths) for rank, frames in enumerate(owned)]
            input_splits = [0 if rank == self.rank else packed.numel() for rank in range(self.world)]
            outgoing = packed.repeat(self.world - 1)
            incoming = template.new_empty(sum(output_splits))
            offset = 0
            for rank, frames in enumerate(owned):
                for parts, tensor, piece, width in zip(pieces, tensors, own, widths, strict=True):
                    if rank == self.rank:
                        parts.append(piece)
                        continue
                    parts.append(
                        incoming[offset : offset + len(frames) * width].view(_with_frames(tensor, dim, len(frames)))
                    )
                    offset += len(frames) * width
            size = template.element_size()
            self._count("gather", size * outgoing.numel(), size * incoming.numel())
            works = self._post_all_to_all(incoming, outgoing, output_splits, input_splits)
            keep = [outgoing, incoming]

        def finish() -> list[Tensor]:
            joined = [_join(parts, tensor, dim) for parts, tensor in zip(pieces, tensors, strict=True)]
            if arrival == list(indices):
                return joined
            place = {index: slot for slot, index in enumerate(arrival)}
            return [frames.index_select(dim, _index([place[index] for index in indices], frames)) for frames in joined]

        return Pending(works, keep, finish)

    def start_moments(
        self, mean: Tensor, m2: Tensor, *, count: int, total: int | None = None
    ) -> Pending[tuple[Tensor, Tensor]]:
        """Combine per-rank moments into those of all ranks together.

        mean: (B, G), the mean of my `count` elements of each group. m2: (B, G), their sum of squared deviations from
        it. Any float dtype; a
            rank with nothing gives count 0 and any finite values.
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
        works = self._post_sum(payload)

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
        outgoing = torch.cat([x.narrow(cut_dim, cut.pieces[rank][0], cut.sizes[rank]).reshape(-1) for rank in others])
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
        Pending(self._post_all_to_all(incoming, outgoing, output_splits, input_splits), [outgoing], lambda: None).wait()
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

    def __init__(self, rank: int, world: int, counter: Counter | None = None):
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} ranks")
        self.group = None
        self.counter = counter if counter is not None else Counter()
        self.rank, self.world = rank, world
        self.verified = {}
        self._in_round, self._round_used, self._connected = False, False, True

    def compare(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """Imagined ranks come with the same numbers; nothing is counted."""
        return [list(numbers)] * self.world

    def _post_messages(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> list[Any]:
        return []

    def _post_all_to_all(
        self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int]
    ) -> list[Any]:
        return []

    def _post_sum(self, tensor: Tensor) -> list[Any]:
        return []


def _frame_numel(tensor: Tensor, dim: int) -> int:
    """Elements of one frame, also when the tensor has no frames."""
    return _with_frames(tensor, dim, 1).numel()


def _with_frames(tensor: Tensor, dim: int, frames: int) -> torch.Size:
    shape = list(tensor.shape)
    shape[dim] = frames
    return torch.Size(shape)


def _join(parts: list[Tensor], template: Tensor, dim: int) -> Tensor:
    """Parts side by side along `dim`; a single part is not copied."""
    if not parts:
        return template.new_empty(_with_frames(template, dim, 0))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _index(positions: list[int], like: Tensor) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device=like.device)
