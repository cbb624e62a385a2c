"""Several gloo processes; each function `rank_*` runs on every rank. W = 3 is always there: two ranks hide direction
bugs."""

from typing import Any

import pytest
import torch
from longtake.kernels import (
    Counter,
    DryTransport,
    DualScope,
    Partition,
    Transport,
    attention_reference,
    dual_scope_attention,
    group_moments,
)
from ranks import run_ranks

distributed = pytest.mark.distributed
SIZES = [(7,), (4, 3), (5, 6, 3), (2, 0, 5), (0, 0, 4), (1, 1, 0, 6), (3, 4, 2, 5)]


def frames(partition: Partition, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(2, total, 3, 5), every element different and exact in every dtype used."""
    count = 2 * partition.total * 15
    return (torch.arange(count) % 251).to(dtype).view(2, partition.total, 3, 5)


def rank_halo(rank: int, world: int, sizes: tuple[int, ...], left: int, right: int) -> None:
    partition = Partition.from_sizes(sizes)
    start, stop = partition.pieces[rank]
    size = 2 * 15
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        whole = frames(partition, dtype)
        own = whole[:, start:stop]
        strided = own.transpose(1, 3)  # frames in dim 3, not contiguous
        transport = Transport()
        answer = transport.start_halo([own, own + 1], 1, partition, left, right).wait()
        across = transport.start_halo([strided], 3, partition, left, right).wait()
        low, high = (max(start - left, 0), min(stop + right, partition.total)) if start < stop else (start, stop)
        for offset, (before, after) in enumerate(answer):
            assert torch.equal(before, whole[:, low:start] + offset) and torch.equal(
                after, whole[:, stop:high] + offset
            )
        assert torch.equal(across[0][0], whole[:, low:start].transpose(1, 3))
        assert torch.equal(across[0][1], whole[:, stop:high].transpose(1, 3))
        arrived = (start - low) + (high - stop)
        if world > 1 and left + right:
            assert transport.counter.received["halo"] == 3 * arrived * size * whole.element_size()
            assert transport.counter.calls == {"halo": 2} and transport.counter.rounds == 2
        else:
            assert transport.counter.as_dict() == {"sent": {}, "received": {}, "calls": {}, "rounds": 0}


def rank_halos(rank: int, world: int, sizes: tuple[int, ...]) -> None:
    for left, right in ((1, 1), (2, 0), (0, 3), (5, 9), (0, 0)):
        rank_halo(rank, world, sizes, left, right)


@distributed
@pytest.mark.parametrize("sizes", SIZES)
def test_a_halo_is_the_frames_around_the_piece_whoever_owns_them(sizes: tuple[int, ...]) -> None:
    run_ranks(rank_halos, len(sizes), sizes)


def rank_gather(rank: int, world: int, sizes: tuple[int, ...], indices: list[int]) -> tuple[int, int]:
    partition = Partition.from_sizes(sizes)
    start, stop = partition.pieces[rank]
    whole = frames(partition)
    transport = Transport()
    plain, double = transport.start_gather(
        [whole[:, start:stop], 2 * whole[:, start:stop]], 1, partition, indices
    ).wait()
    assert torch.equal(plain, whole[:, indices]) and torch.equal(double, 2 * whole[:, indices])
    across = transport.start_gather([whole[:, start:stop].transpose(1, 2)], 2, partition, indices).wait()
    assert torch.equal(across[0], whole[:, indices].transpose(1, 2))
    return transport.counter.sent["gather"], transport.counter.received["gather"]


def rank_gathers(rank: int, world: int, sizes: tuple[int, ...], choices: list[list[int]]) -> list[tuple[int, int]]:
    return [rank_gather(rank, world, sizes, choice) for choice in choices]


@distributed
@pytest.mark.parametrize("sizes", SIZES)
def test_a9_gathered_frames_arrive_in_order_and_each_travels_once(sizes: tuple[int, ...]) -> None:
    total = sum(sizes)
    spread, unordered = sorted({0, total // 2, total - 1}), [total - 1, 0, total // 3]
    choices = [spread, unordered, [1, 0, 1, 1], [], list(range(total))]
    partition = Partition.from_sizes(sizes)
    frame_bytes = 3 * 2 * 15 * 4  # two tensors packed and one more
    for rank, answers in enumerate(run_ranks(rank_gathers, len(sizes), sizes, choices)):
        for choice, (sent, received) in zip(choices, answers, strict=True):
            own = len(set(choice) & set(partition.range(rank)))
            assert received == ((len(set(choice)) - own) * frame_bytes if len(sizes) > 1 else 0)
            assert sent == own * frame_bytes * (len(sizes) - 1)


def rank_transpose(rank: int, world: int, sizes: tuple[int, ...], pixels: int) -> None:
    partition, space = Partition.from_sizes(sizes), Partition.even(pixels, world)
    whole = torch.arange(2 * partition.total * pixels * 3).double().view(2, partition.total, pixels, 3)
    own = whole[:, slice(*partition.pieces[rank])]
    mine = whole[:, :, slice(*space.pieces[rank])]
    transport = Transport()
    assert torch.equal(transport.time_to_space(own, partition, 1, 2), mine)
    assert torch.equal(transport.space_to_time(mine, partition, 1, 2, space_total=pixels), own)
    assert torch.equal(transport.time_to_space(own.transpose(1, 3), partition, 3, 2), mine.transpose(1, 3))
    own_block = own.shape[1] * mine.shape[2]
    there = (own.shape[1] * pixels - own_block) * 6 * 8
    back = (partition.total * mine.shape[2] - own_block) * 6 * 8
    if world > 1:
        assert transport.counter.sent["transpose"] == 2 * there + back
        assert transport.counter.received["transpose"] == 2 * back + there
        assert transport.counter.rounds == transport.counter.calls["transpose"] == 3


def rank_transposes(rank: int, world: int, sizes: tuple[int, ...]) -> None:
    for pixels in (1, 2, 7):
        rank_transpose(rank, world, sizes, pixels)


@distributed
@pytest.mark.parametrize("sizes", SIZES)
def test_time_and_space_change_places_and_back(sizes: tuple[int, ...]) -> None:
    run_ranks(rank_transposes, len(sizes), sizes)


def rank_moments(rank: int, world: int, sizes: tuple[int, ...], offset: float, known: bool) -> dict[str, Any]:
    partition = Partition.from_sizes(sizes)
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(2, 6, partition.total, 8, 8, generator=generator) + offset
    transport = Transport()
    mean, m2, count = group_moments(whole[:, :, slice(*partition.pieces[rank])], 3)
    total = 2 * 64 * partition.total
    mean, var = transport.start_moments(mean, m2, count=count, total=total if known else None).wait()
    truth = whole.double().unflatten(1, (3, 2)).flatten(2)
    assert mean.dtype == var.dtype == torch.float64
    assert (mean - truth.mean(-1)).abs().max() <= 1e-7
    assert (var / truth.var(-1, correction=0) - 1).abs().max() <= 2e-6
    return transport.counter.as_dict()


def rank_all_moments(rank: int, world: int, sizes: tuple[int, ...]) -> list[tuple[bool, int]]:
    cases = [(offset, known) for offset in (0.0, 2000.0) for known in (True, False)]
    return [
        (known, rank_moments(rank, world, sizes, offset, known)["received"].get("moments", 0))
        for offset, known in cases
    ]


@distributed
@pytest.mark.parametrize("sizes", SIZES)
def test_moments_are_exact_over_uneven_pieces_and_large_means(sizes: tuple[int, ...]) -> None:
    for answers in run_ranks(rank_all_moments, len(sizes), sizes):
        for known, received in answers:
            expected = 16 * 2 * 3 + (0 if known else 8)  # the formula: 16 bytes for each item and group
            assert received == (expected if len(sizes) > 1 else 0)


def rank_attention(
    rank: int, world: int, sizes: tuple[int, ...], window: int, shared: tuple[int, ...]
) -> dict[str, Any]:
    partition = Partition.from_sizes(sizes)
    start, stop = partition.pieces[rank]
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(2, 2, partition.total, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    scope = DualScope(window, shared, bias_local=0.7)
    own_k, own_v = k[:, :, start:stop], v[:, :, start:stop]
    transport = Transport()
    with transport.round():
        halo = transport.start_halo([own_k, own_v], 2, partition, window, window)
        gathered = transport.start_gather([own_k, own_v], 2, partition, shared)
    (k_left, k_right), (v_left, v_right) = halo.wait()
    k_global, v_global = gathered.wait()
    out = dual_scope_attention(
        q[:, :, start:stop], torch.cat([k_left, own_k, k_right], 2), torch.cat([v_left, own_v, v_right], 2),
        scope=scope, q_pos=range(start, stop), k_pos=range(start - k_left.shape[2], stop + k_right.shape[2]),
        k_global=k_global, v_global=v_global, total=partition.total,
    )  # fmt: skip
    expected, _ = attention_reference(q, k, v, scope)
    assert out.shape[2] == stop - start
    assert out.numel() == 0 or (out - expected[:, :, start:stop]).abs().max() <= 1e-12
    return transport.counter.as_dict()


def rank_attentions(rank: int, world: int, sizes: tuple[int, ...], shared: tuple[int, ...]) -> list[int]:
    return [rank_attention(rank, world, sizes, window, shared)["rounds"] for window in (0, 2, 6)]


@distributed
@pytest.mark.parametrize("sizes", SIZES)
def test_attention_over_ranks_equals_the_single_process_reference_in_one_round(sizes: tuple[int, ...]) -> None:
    shared = (0, sum(sizes) // 2, sum(sizes) - 1)
    for rounds in run_ranks(rank_attentions, len(sizes), sizes, shared):
        assert rounds == [1 if len(sizes) > 1 else 0] * 3


def rank_dry(rank: int, world: int, sizes: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    partition = Partition.from_sizes(sizes)
    counters = []
    for transport in (Transport(), DryTransport(rank, world)):
        own = torch.zeros(2, partition.sizes[rank], 3, 5)
        with transport.round():
            halo = transport.start_halo([own, own], 1, partition, 3, 4)
            gathered = transport.start_gather([own], 1, partition, [0, partition.total - 1])
            moments = transport.start_moments(own.new_zeros(2, 3), own.new_zeros(2, 3), count=4, total=16)
        shapes = [part.shape for pair in halo.wait() for part in pair]
        shapes += [gathered.wait()[0].shape, moments.wait()[0].shape]
        mine = transport.time_to_space(own, partition, 1, 3)
        shapes += [mine.shape, transport.space_to_time(mine, partition, 1, 3, space_total=5).shape]
        counters.append({"shapes": shapes} | transport.counter.as_dict())
    return counters[0], counters[1]


@distributed
@pytest.mark.parametrize("sizes", [(4, 3), (5, 6, 3), (1, 1, 0, 6)])
def test_a_dry_run_forecasts_the_traffic_exactly(sizes: tuple[int, ...]) -> None:
    for real, dry in run_ranks(rank_dry, len(sizes), sizes):
        assert real == dry


def rank_subgroup(rank: int, world: int) -> list[int]:
    import torch.distributed as dist

    group = dist.new_group([1, 2])
    if rank == 0:
        return []
    partition = Partition.even(5, 2)
    counter = Counter()
    transport = Transport(group, counter)
    own = torch.arange(5.0)[slice(*partition.pieces[transport.rank])]
    ((before, after),) = transport.start_halo([own], 0, partition, 2, 2).wait()
    (everything,) = transport.start_gather([own], 0, partition, range(5)).wait()
    mean, _ = transport.start_moments(
        own.mean().view(1, 1), own.var(correction=0).view(1, 1) * len(own), count=len(own)
    ).wait()
    assert everything.tolist() == [0, 1, 2, 3, 4] and mean.item() == 2 and counter is transport.counter
    return [*before.int().tolist(), *after.int().tolist()]


@distributed
def test_a_subgroup_talks_in_its_own_ranks() -> None:
    assert run_ranks(rank_subgroup, 3) == [[], [3, 4], [1, 2]]


def rank_mistakes(rank: int, world: int) -> None:
    """Each mistake raises on every rank before anything is posted, so the exchange at the end still works."""
    partition, x = Partition.even(6, world), torch.zeros(1, 2, 3)
    transport = Transport()
    with pytest.raises(ValueError, match="2 pieces, the group has 3 ranks"):
        transport.start_halo([x], 1, Partition.even(6, 2), 1, 1)
    with pytest.raises(ValueError, match="has 3 frames in dim 2, its piece of the partition has 2"):
        transport.start_halo([x], 2, partition, 1, 1)
    with pytest.raises(ValueError, match="share positions"):
        transport.start_gather([x], 1, Partition(((0, 2), (1, 4), (4, 6)), 6), [0])
    with pytest.raises(ValueError, match="one dtype"):
        transport.start_halo([x, x.double()], 1, partition, 1, 1)
    with pytest.raises(ValueError, match="widths must be >= 0"):
        transport.start_halo([x], 1, partition, -1, 1)
    with pytest.raises(ValueError, match="frame 6 is outside"):
        transport.start_gather([x], 1, partition, [6])
    with pytest.raises(ValueError, match="space_total"):
        transport.space_to_time(torch.zeros(1, 6, 1), partition, 1, 2)
    with pytest.raises(ValueError, match="6 frames in dim|has 5 frames"):
        transport.space_to_time(torch.zeros(1, 5, 1), partition, 1, 2, space_total=3)
    with pytest.raises(NotImplementedError, match="gradients do not travel"):
        transport.start_halo([x.clone().requires_grad_()], 1, partition, 1, 1)
    with pytest.raises(RuntimeError, match="rounds do not nest"), transport.round(), transport.round():
        pass
    assert transport.counter.as_dict() == {"sent": {}, "received": {}, "calls": {}, "rounds": 0}
    transport.start_halo([x], 1, partition, 1, 1).wait()


@distributed
def test_mistakes_raise_on_every_rank_before_any_message() -> None:
    run_ranks(rank_mistakes, 3)


def test_halo_bytes_do_not_depend_on_the_length() -> None:
    received = []
    for total in (64, 128):
        partition = Partition.even(total, 4)
        transport = DryTransport(1, 4)
        transport.start_halo([torch.empty(2, total // 4, 7, device="meta")] * 2, 1, partition, 8, 8)
        received.append(transport.counter.received["halo"])
    assert received == [2 * 16 * 2 * 7 * 4] * 2


def test_alone_nothing_needs_torch_distributed() -> None:
    import torch.distributed as dist

    assert not dist.is_initialized()
    transport, partition, x = Transport(), Partition.even(4, 1), torch.arange(8.0).view(1, 4, 2)
    assert (transport.rank, transport.world) == (0, 1)
    ((before, after),) = transport.start_halo([x], 1, partition, 3, 3).wait()
    assert before.shape == after.shape == (1, 0, 2)
    pending = transport.start_gather([x], 1, partition, [3, 0])
    assert torch.equal(pending.wait()[0], x[:, [3, 0]]) and pending.wait() is pending.wait()
    mean, var = transport.start_moments(torch.full((1, 1), 2.0), torch.full((1, 1), 8.0), count=4).wait()
    assert mean.item() == 2 and var.item() == 2
    assert transport.time_to_space(x, partition, 1, 2) is x and transport.space_to_time(x, partition, 1, 2) is x
    with pytest.raises(ValueError, match="holds 4 elements .* total is said to be 5"):
        transport.start_moments(torch.zeros(1, 1), torch.zeros(1, 1), count=4, total=5)
    assert transport.counter.rounds == 0
    transport.counter.sent["halo"] = 3
    transport.counter.reset()
    assert transport.counter.as_dict() == Counter().as_dict()
