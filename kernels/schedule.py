"""Jobs of different length onto groups of ranks: short ones side by side on single ranks, long ones spread over many.

For training on clips and speech of very different lengths (VALL-E R, SADM); batches of jobs are dealt out by
longtake.batch.

FlexSP (arXiv 2412.01523) and ByteScale (arXiv 2502.21231): in each wave (micro-batch) the ranks are cut into disjoint
groups of 1, 2, 4, ... neighbours, and every sequence goes to one group. A group starts as soon as all of its ranks are
done with their earlier waves: nothing else holds it back. FlexSP solves an integer program; here every way of cutting
the ranks is tried with the longest-first rule and local improvement, which for the few ways there are (36 for 16
ranks) takes milliseconds. The batch is planned whole, and in two or three phases of similar lengths with a cut each;
a group's sequences that do not fit into its memory together become several waves.

A plan is a pure function of its arguments, so every rank finds the same one; `agree` gathers the lengths and compares
the plans' digests before anybody starts. Groups are aligned (`all_groups`, at most 2P of them), so that process groups
are made once, at the start, and never in a step.

Time of a sequence of s tokens on p ranks: (quadratic s^2 + linear s) / p, and communication s / p + latency if p > 1.

    plan = plan_batch([512, 512, 8192], world=4, cost=Cost(1e-9, 1e-6), capacity=4096)
    for wave in plan.waves: ...
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from longtake.kernels.errors import PlanMismatch
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import Transport


@dataclass(frozen=True)
class Cost:
    """Seconds: quadratic a token pair, linear and communication a token, latency a sequence that is spread out."""

    quadratic: float
    linear: float
    communication: float = 0.0
    latency: float = 0.0

    def __post_init__(self) -> None:
        if min(self.quadratic, self.linear, self.communication, self.latency) < 0 or not self.quadratic + self.linear:
            raise ValueError(f"costs must be >= 0 and not all zero, given {self}")

    @classmethod
    def of_transformer(
        cls,
        layers: int,
        width: int,
        *,
        flops_per_s: float,
        bytes_per_s: float,
        latency_s: float = 0.0,
        bytes_per_number: int = 2,
    ) -> "Cost":
        """A forward and backward of a plain transformer with Ulysses: 12 s^2 width for attention and 72 s width^2 for
        the rest a layer; four all-to-alls of s width numbers each way, of which a rank sends its share."""
        return cls(
            quadratic=12 * layers * width / flops_per_s,
            linear=72 * layers * width**2 / flops_per_s,
            communication=8 * layers * width * bytes_per_number / bytes_per_s,
            latency=8 * layers * latency_s,
        )

    def work(self, tokens: int) -> float:
        """Rank-seconds of computation."""
        return self.quadratic * tokens * tokens + self.linear * tokens

    def time(self, tokens: int, ranks: int) -> float:
        """Seconds on a group of so many ranks."""
        spread = 0.0 if ranks == 1 else self.communication * tokens / ranks + self.latency
        return self.work(tokens) / ranks + spread


@dataclass(frozen=True)
class Group:
    """Neighbouring ranks `[start, stop)` and the sequences (numbers in the batch) that they share, one by one."""

    start: int
    stop: int
    sequences: tuple[int, ...]

    @property
    def ranks(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True)
class BatchPlan:
    """Waves one after the other; the groups of a wave are disjoint and work at the same time."""

    lengths: tuple[int, ...]
    world: int
    capacity: int
    cost: Cost
    waves: tuple[tuple[Group, ...], ...]

    def group_time(self, group: Group) -> float:
        return sum(self.cost.time(self.lengths[index], len(group.ranks)) for index in group.sequences)

    @property
    def makespan(self) -> float:
        """Predicted seconds until the last rank is done; a group waits for its own ranks and for nobody else."""
        done = [0.0] * self.world
        for wave in self.waves:
            for group in wave:
                finish = max(done[group.start : group.stop]) + self.group_time(group)
                done[group.start : group.stop] = [finish] * len(group.ranks)
        return max(done)

    @property
    def peak_tokens(self) -> int:
        """Most tokens that any rank holds in a wave; never above `capacity`."""
        groups = [group for wave in self.waves for group in wave]
        held = [_tokens([self.lengths[index] for index in group.sequences], len(group.ranks)) for group in groups]
        return max(held, default=0)

    def of(self, rank: int) -> list[Group | None]:
        """The group of a rank in each wave; None where it has nothing to do."""
        return [next((group for group in wave if rank in group.ranks), None) for wave in self.waves]

    def digest(self) -> str:
        """A hash, the same in every process that holds the same plan: 16 hex digits."""
        text = repr((self.lengths, self.world, self.capacity, self.cost, self.waves))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def all_groups(world: int, largest: int | None = None) -> list[range]:
    """Every group that a plan may use: aligned runs of 1, 2, 4, ... ranks, and the whole world."""
    largest = world if largest is None else largest
    return [range(start, start + size) for size in _sizes(world, largest) for start in range(0, world - size + 1, size)]


def plan_batch(lengths: Sequence[int], world: int, cost: Cost, capacity: int, largest: int | None = None) -> BatchPlan:
    """Place sequences of `lengths` tokens on `world` ranks so that the predicted makespan is short.

    capacity: tokens that one rank can hold at a time; a sequence on p ranks takes ceil(s / p) on each of them, and the
        sequences of a group in one wave are counted together.
    largest: the most ranks a sequence may be spread over (the number of heads, for Ulysses); the world by default.
    Never worse than the best static plan (equal groups, `static_plan`). Raises ValueError for lengths below 1 and for a
    sequence that does not fit on `largest` ranks.
    """
    lengths = tuple(int(length) for length in lengths)
    largest = world if largest is None else largest
    if world < 1 or capacity < 1 or largest < 1:
        raise ValueError(f"world, capacity and largest must be at least 1, given {world}, {capacity}, {largest}")
    if any(length < 1 for length in lengths):
        raise ValueError("every sequence needs at least 1 token")
    sizes = _sizes(world, largest)
    most = max(sizes)
    for index, length in enumerate(lengths):
        if _tokens([length], most) > capacity:
            raise ValueError(
                f"sequence {index} of {length} tokens needs {_tokens([length], most)} tokens on each of {most} ranks, "
                f"the capacity is {capacity}; allow larger groups or give more memory"
            )
    if not lengths:
        return BatchPlan(lengths, world, capacity, cost, ())
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    prices = _priced(lengths, cost, capacity, sizes)
    candidates = [static_plan(lengths, world, cost, capacity, size) for size in sizes]
    for phases in (1, 2, 3):
        waves: list[tuple[Group, ...]] = []
        for batch in _phases(order, lengths, phases, cost):
            waves += _best_waves(batch, lengths, world, prices, capacity, largest)
        candidates.append(BatchPlan(lengths, world, capacity, cost, tuple(waves)))
    return min((plan for plan in candidates if plan is not None), key=lambda plan: plan.makespan)


def static_plan(lengths: Sequence[int], world: int, cost: Cost, capacity: int, size: int) -> BatchPlan | None:
    """The usual plan: groups of one size in every wave, longest first; None where a sequence does not fit."""
    lengths = tuple(lengths)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    prices = _priced(lengths, cost, capacity, [size])
    bins = _filled(order, lengths, prices, capacity, (size,) * (world // size))
    return None if bins is None else BatchPlan(lengths, world, capacity, cost, tuple(bins.waves()))


def agree(
    lengths: Sequence[int], transport: Transport, cost: Cost, capacity: int, largest: int | None = None
) -> tuple[BatchPlan, int]:
    """Plan over the sequences that all ranks bring, each rank its own `lengths` (maybe none).

    Three small gathers: counts, lengths, digests. Returns the plan, in which sequences are numbered by rank, and the
    number of my first one. Raises PlanMismatch on every rank when any rank came to another plan.
    """
    world, rank = transport.world, transport.rank
    ones = Partition.even(world, world)
    (counts,) = transport.start_gather([torch.tensor([len(lengths)])], 0, ones, range(world)).wait()
    partition = Partition.from_sizes(counts.tolist())
    mine = torch.tensor(list(lengths), dtype=torch.int64)
    (everything,) = transport.start_gather([mine], 0, partition, range(partition.total)).wait()
    plan = plan_batch(everything.tolist(), world, cost, capacity, largest)
    number = torch.tensor([int(plan.digest()[:15], 16)])
    (digests,) = transport.start_gather([number], 0, ones, range(world)).wait()
    if len(set(digests.tolist())) > 1:
        raise PlanMismatch(
            f"rank {rank}: the ranks' plans differ ({[f'{d:x}' for d in digests.tolist()]}): cost, capacity and "
            "largest must be the same on every rank"
        )
    return plan, partition.pieces[rank][0]


def _tokens(lengths: Sequence[int], ranks: int) -> int:
    """Tokens on each rank of a group."""
    return sum(-(-length // ranks) for length in lengths)


def _sizes(world: int, largest: int) -> list[int]:
    """Group sizes: powers of two, and the world itself, up to `largest`."""
    sizes = {1 << power for power in range(world.bit_length()) if 1 << power <= min(world, largest)}
    return sorted(sizes | ({world} if world <= largest else set()))


@lru_cache(maxsize=64)
def _cuts(world: int, largest: int, limit: int = 400) -> tuple[tuple[int, ...], ...]:
    """Ways to cut the ranks into groups, sizes descending, so that each group is aligned. Above `limit` ways, those
    with at most two different sizes."""
    sizes = sorted(_sizes(world, largest), reverse=True)

    def ways(rest: int, allowed: list[int], kinds: int) -> list[tuple[int, ...]]:
        if rest == 0:
            return [()]
        if not allowed or kinds == 0:
            return []
        size, *smaller = allowed
        found: list[tuple[int, ...]] = []
        for count in range(rest // size, -1, -1):
            tails = ways(rest - count * size, smaller, kinds - (count > 0))
            found += [(size,) * count + tail for tail in tails]
        return found

    everything = ways(world, sizes, len(sizes)) if world <= 32 else []
    return tuple(everything if everything and len(everything) <= limit else ways(world, sizes, 2))


class _Bins:
    """Groups being filled; `members` longest first, `prices` as ``_priced`` has them."""

    def __init__(self, cut: tuple[int, ...], lengths: Sequence[int], prices: Mapping[int, list[float]], capacity: int):
        self.cut, self.lengths, self.capacity = cut, lengths, capacity
        self.prices = [prices[size] for size in cut]
        self.members: list[list[int]] = [[] for _ in cut]
        self.times = [0.0] * len(cut)

    def place(self, index: int) -> bool:
        """Into the group that would then be done first; False when it fits into none."""
        soonest, place = math.inf, -1
        for bin, (time, price) in enumerate(zip(self.times, self.prices, strict=True)):
            if time + price[index] < soonest:
                soonest, place = time + price[index], bin
        if place < 0:
            return False
        self.times[place] = soonest
        self.members[place].append(index)
        return True

    def improve(self) -> None:
        """Move one sequence away from the slowest group, as long as that shortens the plan."""
        for _ in range(2 * len(self.lengths)):
            slow = max(range(len(self.cut)), key=lambda bin: (self.times[bin], -bin))
            span = self.times[slow]
            best = (span * (1 - 1e-9), -1, -1)
            for index in self.members[slow]:
                left = span - self.prices[slow][index]
                for bin, price in enumerate(self.prices):
                    if bin != slow:
                        then = max(left, self.times[bin] + price[index])
                        if then <= best[0]:
                            best = min(best, (then, index, bin))
            _, index, bin = best
            if bin < 0:
                return
            self.members[slow].remove(index)
            self.members[bin].append(index)
            for changed in (slow, bin):
                self.members[changed].sort(key=lambda member: (-self.lengths[member], member))
                self.times[changed] = sum(self.prices[changed][member] for member in self.members[changed])

    def waves(self) -> list[tuple[Group, ...]]:
        """Each group's sequences cut into runs that fit into its memory; the i-th runs of all groups are wave i."""
        waves: list[list[Group]] = []
        start = 0
        for size, members in zip(self.cut, self.members, strict=True):
            runs: list[list[int]] = []
            room = 0
            for index in members:
                tokens = _tokens([self.lengths[index]], size)
                if not runs or tokens > room:
                    runs.append([])
                    room = self.capacity
                runs[-1].append(index)
                room -= tokens
            for number, run in enumerate(runs):
                waves += [[]] if number == len(waves) else []
                waves[number].append(Group(start, start + size, tuple(run)))
            start += size
        return [tuple(wave) for wave in waves]


def _priced(lengths: Sequence[int], cost: Cost, capacity: int, sizes: Sequence[int]) -> dict[int, list[float]]:
    """By the ranks of a group, the seconds that each sequence takes there; infinite where it does not fit."""
    return {
        size: [cost.time(length, size) if _tokens([length], size) <= capacity else math.inf for length in lengths]
        for size in sizes
    }


def _filled(
    batch: Sequence[int],
    lengths: Sequence[int],
    prices: Mapping[int, list[float]],
    capacity: int,
    cut: tuple[int, ...],
) -> _Bins | None:
    """The batch, longest first, in the groups of one cut; None when a sequence fits into none of them."""
    bins = _Bins(cut, lengths, prices, capacity)
    return bins if all(bins.place(index) for index in batch) else None


def _best_waves(
    batch: Sequence[int],
    lengths: tuple[int, ...],
    world: int,
    prices: Mapping[int, list[float]],
    capacity: int,
    largest: int,
) -> list[tuple[Group, ...]]:
    """The batch with the cut that is done first."""
    best: _Bins | None = None
    for cut in _cuts(world, largest):
        bins = _filled(batch, lengths, prices, capacity, cut)
        if bins is not None:
            bins.improve()
            best = bins if best is None or max(bins.times) < max(best.times) else best
    assert best is not None, "every sequence was checked to fit on the largest group"
    return best.waves()


def _phases(order: Sequence[int], lengths: Sequence[int], count: int, cost: Cost) -> list[list[int]]:
    """Sequences of similar length together (FlexSP section 5): runs of the sorted order with about equal work."""
    share = math.fsum(cost.work(lengths[index]) for index in order) / count
    phases: list[list[int]] = [[] for _ in range(count)]
    seen = 0.0
    for index in order:
        phases[min(int(seen / share), count - 1)].append(index)
        seen += cost.work(lengths[index])
    return [phase for phase in phases if phase]
