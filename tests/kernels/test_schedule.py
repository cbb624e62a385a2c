"""The planner of jobs: bounds on 200 long-tailed batches, memory, alignment, agreement of the ranks."""

import random
from collections.abc import Iterator

import pytest
from longtake.kernels.errors import PlanMismatch
from longtake.kernels.ranks.transport import Transport
from longtake.kernels.schedule import BatchPlan, Cost, agree, all_groups, plan_batch, static_plan
from ranks import run_ranks

COST = Cost.of_transformer(32, 4096, flops_per_s=4e14, bytes_per_s=2e11, latency_s=1e-5)


def batches(seed: int = 0, count: int = 200) -> Iterator[tuple[list[int], int, int, int]]:
    """(lengths, world, capacity, largest): log-normal lengths cut at 256k, as video and text corpora have them."""
    picker = random.Random(seed)
    for _ in range(count):
        world = picker.choice([1, 2, 3, 4, 6, 8, 16])
        lengths = [int(min(max(picker.lognormvariate(8.3, 1.4), 32), 262144)) for _ in range(picker.randint(24, 160))]
        largest = picker.choice([world, max(1, 1 << (world.bit_length() - 1)), 2 if world > 1 else 1])
        need = -(-max(lengths) // largest)
        capacity = max(need, int(sum(lengths) / world * picker.choice([0.3, 0.7, 1.5, 4])))
        yield lengths, world, capacity, largest


def test_g_makespan_is_near_the_bound_and_never_above_static_plans() -> None:
    worst, gains = 0.0, []
    for lengths, world, capacity, largest in batches():
        plan = plan_batch(lengths, world, COST, capacity, largest)
        spread = max(size for size in (len(group) for group in all_groups(world, largest)))
        bound = max(sum(map(COST.work, lengths)) / world, COST.work(max(lengths)) / spread)
        worst = max(worst, plan.makespan / bound)
        assert sorted(index for wave in plan.waves for group in wave for index in group.sequences) == list(
            range(len(lengths))
        )
        assert plan.peak_tokens <= capacity
        for wave in plan.waves:
            used = [rank for group in wave for rank in group.ranks]
            assert len(used) == len(set(used)) and all(group.ranks in all_groups(world, largest) for group in wave)
        for size in {len(group) for group in all_groups(world, largest)}:
            static = static_plan(lengths, world, COST, capacity, size)
            if static is not None:
                assert plan.makespan <= static.makespan * (1 + 1e-12)
                if size == spread:
                    gains.append(static.makespan / plan.makespan)
        assert plan_batch(lengths, world, COST, capacity, largest).digest() == plan.digest()
    print(f"worst makespan / bound {worst:.3f}; mean gain over the widest static plan {sum(gains) / len(gains):.3f}")
    assert worst <= 1.15


def test_groups_are_aligned_and_few() -> None:
    assert [list(group) for group in all_groups(4)] == [[0], [1], [2], [3], [0, 1], [2, 3], [0, 1, 2, 3]]
    assert len(all_groups(64)) == 127 and [len(g) for g in all_groups(3)] == [1, 1, 1, 2, 3]
    assert max(len(group) for group in all_groups(8, 5)) == 4


def test_short_sequences_stay_alone_and_long_ones_spread() -> None:
    plan = plan_batch([64000, *[2000] * 40], 4, COST, 40000)
    sizes = {len(group.ranks) for wave in plan.waves for group in wave if 0 in group.sequences}
    assert sizes == {2} or sizes == {4}
    alone = plan_batch([1000] * 8, 4, COST, 4000)
    assert all(len(group.ranks) == 1 for wave in alone.waves for group in wave) and len(alone.waves) == 1
    assert [len(groups) for groups in (alone.of(rank) for rank in range(4))] == [1] * 4
    assert plan_batch([], 4, COST, 10).waves == () and plan_batch([], 4, COST, 10).makespan == 0
    assert plan_batch([5], 2, COST, 10).of(1) == [None]


def test_mistakes_raise() -> None:
    with pytest.raises(ValueError, match="needs 50 tokens on each of 2 ranks, the capacity is 49"):
        plan_batch([100], 4, COST, 49, largest=2)
    with pytest.raises(ValueError, match="at least 1 token"):
        plan_batch([0], 4, COST, 49)
    with pytest.raises(ValueError, match="at least 1, given 0"):
        plan_batch([1], 0, COST, 49)
    with pytest.raises(ValueError, match="costs"):
        Cost(-1.0, 1.0)


def rank_agree(rank: int, world: int) -> tuple[BatchPlan, int, dict[str, object], str]:
    mine = [[4000, 90, 90], [], [700] * 5][rank]
    transport = Transport()
    plan, first = agree(mine, transport, COST, 3000)
    counts = transport.counter.as_dict()
    try:
        agree(mine, transport, COST if rank else Cost(1.0, 2.0), 3000)
        complaint = ""
    except PlanMismatch as error:
        complaint = str(error)
    return plan, first, counts, complaint


@pytest.mark.distributed
def test_g_the_same_plan_on_every_rank() -> None:
    answers = run_ranks(rank_agree, 3)
    plans = [answer[0] for answer in answers]
    assert plans[0] == plans[1] == plans[2] and plans[0].lengths == (4000, 90, 90, *[700] * 5)
    assert [answer[1] for answer in answers] == [0, 3, 3]
    assert all("plans differ" in answer[3] for answer in answers)
    for (_, _, counts, _), own in zip(answers, (3, 0, 5), strict=True):
        assert counts["calls"] == {"gather": 3}
        assert counts["sent"] == {"gather": 8 * 2 * (1 + own + 1)}
        assert counts["received"] == {"gather": 8 * (2 + (8 - own) + 2)}
