"""Every strategy, layout and mask against the float64 truth, forward and backward (A1 to A9)."""

import itertools
from pathlib import Path
from typing import Any

import attention_cases
import pytest
import torch
from longtake.kernels import (
    And,
    BlockSparse,
    CapabilityError,
    Causal,
    Dense,
    Documents,
    DualScope,
    Edge,
    Full,
    KeyMask,
    KeyPadding,
    Lambda,
    Layout,
    Overlap,
    Ranges,
    SlidingWindow,
    Transport,
    make_plan,
)
from ranks import run_ranks

HERE = Path(__file__).parent


cases_module = attention_cases
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


def random_bits(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.4


MASKS: dict[str, Any] = {
    "full": Full(),
    "causal": Causal(),
    "window": SlidingWindow(9, 2),
    "causal_window": SlidingWindow(9, 0),
    "dual_union": DualScope(5, (3, 40, 50)),
    "dual_biased": DualScope(5, (3, 40, 50), bias_local=0.5, bias_global=-0.7),
    "dual_multiset": DualScope(5, (3, 40, 50), Overlap.MULTISET),
    "dual_zero_edge": DualScope(5, (3, 40, 50), Overlap.MULTISET, Edge.ZERO, 0.5, -0.3, 9.0),
    "lambda": Lambda(4, 9),
    "block_sparse": BlockSparse(16, 8, random_bits(4, 8)),
    "block_sparse_heads": BlockSparse(16, 8, random_bits(6, 4, 8)),
    "documents": Documents((0, 20, 20, 50, 61)),
    "causal_documents": And(Causal(), Documents((0, 20, 20, 50, 61))),
    "key_padding": KeyPadding(40),
    "key_padding_batch": KeyPadding((50, 20)),
    "key_mask_batch": KeyMask(random_bits(2, 61)),
    "ranges": Ranges(((0, 30, 0, 20, "causal"), (30, 61, 10, 61, "full"))),
    "dense": Dense(random_bits(61, 61)),
    "dense_bias": Dense(torch.randn(61, 61, generator=torch.Generator().manual_seed(1))),
}
# strategy, layout -> what happens: exact for every mask in MASKS, or the words of the refusal.
TABLE: dict[tuple[str, str], str] = {
    ("none", "contiguous"): "exact on one rank, refused on more: strategy none serves one rank",
    ("ulysses", "contiguous"): "exact",
    ("ring", "contiguous"): "exact",
    ("ring", "zigzag"): "exact",
    ("ring", "striped"): "exact",
    ("usp", "contiguous"): "exact",
    ("usp", "zigzag"): "exact",
    ("allgather_kv", "contiguous"): "exact",
    ("allgather_kv", "zigzag"): "exact",
    ("halo", "contiguous"): "exact",
    ("halo", "striped"): "exact",
}


def matrix_cases(world: int) -> list[dict[str, Any]]:
    cases = []
    for (strategy, layout), fate in TABLE.items():
        if fate != "exact" and world > 1:
            continue
        for number, mask in enumerate(MASKS.values()):
            # Both head layouts meet every strategy; per-head masks need their six heads.
            kv_heads = (6, 2)[number % 2]
            degree = 2 if world % 2 == 0 else None
            cases.append({
                "mask": mask, "n": 61, "heads": 6, "kv_heads": kv_heads, "strategy": strategy, "layout": layout,
                "degree": degree if strategy == "usp" else None, "block": 16,
            })  # fmt: skip
    return cases


def rank_errors(
    rank: int, world: int, cases: list[dict[str, Any]], answers: list[attention_cases.Known]
) -> list[dict[str, float]]:
    transport = Transport()
    return [
        attention_cases.case_error(rank, world, case, transport, answer)
        for case, answer in zip(cases, answers, strict=True)
    ]


def check(world: int, cases: list[dict[str, Any]], tolerance: float | None = None) -> None:
    # Worked out here, once for all ranks and worlds: most of the time of a case goes to its truth.
    reports = run_ranks(rank_errors, world, cases, [attention_cases.known(case) for case in cases])
    bad = []
    for number, case in enumerate(cases):
        dtype = case.get("dtype", torch.float64)
        error = cases_module.worst_of(reports, number)
        lse = cases_module.worst_lse(reports, number)
        if not error <= (TOLERANCE[dtype] if tolerance is None else tolerance) or not lse <= 1e-5:
            bad.append((case, error, lse))
    assert not bad, bad[:3]


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a1_a5_every_strategy_is_exact_under_every_mask(world: int) -> None:
    check(world, matrix_cases(world))


def test_a5_the_table_names_every_strategy_and_the_refusals_are_real() -> None:
    assert {strategy for strategy, _ in TABLE} == {"none", "ulysses", "ring", "usp", "allgather_kv", "halo"}
    with pytest.raises(CapabilityError, match="strategy none serves one rank"):
        make_plan(61, world=2, strategy="none")
    with pytest.raises(CapabilityError, match="context"):
        make_plan(61, key_lengths=Layout.replicated_on(8, 2), strategy="ring")


STRATEGIES = [("ring", "contiguous"), ("ring", "zigzag"), ("ulysses", "contiguous"), ("allgather_kv", "contiguous")]


def shape_cases(world: int) -> list[dict[str, Any]]:
    """Every length with every strategy; heads, their sizes, dtypes and masks take turns, so that each meets each."""
    cases = []
    for index, n in enumerate((192, 203, 7, 65)):
        for number, (strategy, layout) in enumerate(TABLE):
            if (strategy == "none") != (world == 1 and (strategy, layout) == ("none", "contiguous")):
                continue
            heads, kv_heads = ((6, 6), (6, 2), (5, 1))[(index + number + world) % 3]
            cases.append({
                "mask": (Full(), Causal())[(index // 2 + number) % 2], "n": n, "heads": heads, "kv_heads": kv_heads,
                "dim": (32, 40, 80)[(index + number // 3 + world) % 3], "strategy": strategy, "layout": layout,
                "dtype": (torch.float64, torch.float32)[(index + number) % 2], "batch": 1 + (n < 100), "block": 128,
                "degree": 2 if strategy == "usp" and world % 2 == 0 else None,
            })  # fmt: skip
    return cases


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a1_a2_in_the_sweep_each_value_meets_each_other(world: int) -> None:
    keys = ("n", "heads", "dim", "strategy", "layout", "dtype", "mask")
    rows = [
        tuple((case[key], case["kv_heads"]) if key == "heads" else case[key] for key in keys)
        for case in shape_cases(world)
    ]
    met = {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}
    values = [dict.fromkeys(column) for column in zip(*rows, strict=True)]
    assert [len(values[place]) for place in (0, 1, 2, 5, 6)] == [4, 3, 3, 2, 2]
    for (a, ones), (b, others) in itertools.combinations(enumerate(values), 2):
        if (a, b) != (3, 4):  # what strategies have which layouts is TABLE's
            assert all(((a, one), (b, other)) in met for one in ones for other in others), (keys[a], keys[b])


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a1_a2_lengths_heads_and_sizes(world: int) -> None:
    check(world, shape_cases(world))


def alone(case: dict[str, Any], answer: attention_cases.Known) -> dict[str, float]:
    """Errors of one process with torch's own attention in the case's dtype."""
    (*tensors, d_out), expected = answer
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=isinstance(case["mask"], Causal))
    grads = torch.autograd.grad(out, leaves, d_out)
    return {
        name: attention_cases.relmax(x.detach(), ref)
        for name, x, ref in zip(("O", "dQ", "dK", "dV"), (out, *grads), expected, strict=False)
    }


@pytest.mark.distributed
def test_a3_half_precision_errs_at_most_twice_as_much_as_one_process() -> None:
    cases, answers, bounds = [], [], []
    for dtype, mask in itertools.product((torch.bfloat16, torch.float16), (Full(), Causal())):
        case: dict[str, Any] = {"mask": mask, "n": 203, "heads": 6, "dim": 32, "dtype": dtype}
        answer = attention_cases.known(case)
        bound = alone(case, answer)
        for strategy, layout in STRATEGIES:
            cases.append({**case, "strategy": strategy, "layout": layout})
            answers.append(answer)
            bounds.append(bound)
    reports = run_ranks(rank_errors, 3, cases, answers)
    for number, (case, bound) in enumerate(zip(cases, bounds, strict=True)):
        limit = 2e-2 if case["dtype"] == torch.bfloat16 else 4e-3
        for name in ("O", "dQ", "dK", "dV"):
            error = max(report[number][name] for report in reports)
            assert error <= limit and error <= 2 * bound[name], (case, name, error)


@pytest.mark.distributed
@pytest.mark.parametrize("world", [3, 4])
def test_a6_uneven_shards_with_empty_ranks_and_more_ranks_than_rows(world: int) -> None:
    sizes = [(0, 40, 21), (61, 0, 0), (1, 59, 1)] if world == 3 else [(0, 40, 21, 0), (1, 1, 58, 1)]
    cases = [
        {"mask": mask, "n": 61, "heads": 6, "kv_heads": 2, "lengths": lengths, "strategy": strategy, "block": 16}
        for lengths in sizes
        for strategy in ("ring", "ulysses", "allgather_kv", "halo")
        for mask in (Full(), Causal(), MASKS["dual_union"], MASKS["documents"])
    ]
    cases += [
        {"mask": Causal(), "n": 2, "heads": 3, "strategy": strategy, "layout": layout}
        for strategy, layout in TABLE
        if strategy not in ("none", "usp")
    ]
    check(world, cases)


@pytest.mark.distributed
def test_a7_cross_attention_with_both_sharded_and_with_a_context_on_every_rank() -> None:
    padding = KeyPadding(11)
    cases = [
        {"mask": mask, "nq": 37, "nk": 18, "heads": 4, "kv_heads": 2, "strategy": strategy, "layout": layout}
        for strategy, layout in TABLE
        if strategy not in ("none", "usp")
        for mask in (Full(), Causal(2), padding, Documents((0, 10, 37), (0, 7, 18)))
    ]
    cases += [
        {"mask": mask, "nq": 37, "nk": 18, "heads": 4, "strategy": "context", "key_lengths": "replicated"}
        for mask in (Full(), padding)
    ]
    check(3, cases)


@pytest.mark.distributed
def test_value_size_may_differ_from_head_size() -> None:
    cases = [
        {"mask": Causal(), "n": 31, "heads": 4, "kv_heads": 2, "dim": 8, "value_dim": 5, "strategy": strategy}
        for strategy in ("ring", "ulysses", "allgather_kv", "halo")
    ]
    check(3, cases)


def rank_released(rank: int, world: int) -> float:
    """Video-Infinity's release, built anew: zero frames beyond the ends, duplicates kept, one bias for each scope."""
    frames, window, indices, bias_local, bias_global = 24, 5, (1, 9, 17), 0.8, -0.4
    module = attention_cases
    q, k, v, _ = module.whole_tensors(frames, frames, 2, 2, 8, torch.float64)
    edge = q.new_zeros(*q.shape[:2], window, q.shape[3])
    keys = torch.cat([edge, k, edge, k[:, :, list(indices)]], dim=2)
    values = torch.cat([edge, v, edge, v[:, :, list(indices)]], dim=2)
    bias = q.new_full((frames, keys.shape[2]), -torch.inf)
    for row in range(frames):
        bias[row, row : row + 2 * window + 1] = bias_local
    bias[:, frames + 2 * window :] = bias_global
    expected = (q @ keys.mT / 8**0.5 + bias).softmax(-1) @ values
    worst = 0.0
    scope = DualScope(window, indices, Overlap.MULTISET, Edge.ZERO, bias_local, bias_global)
    for strategy in ("ring", "ulysses", "allgather_kv", "halo"):
        plan = make_plan(frames, scope, world=world, strategy=strategy, heads=2)
        from longtake.kernels import attention

        out = attention(*(plan.queries.shard(x, rank) for x in (q, k, v)), mesh=Transport(), plan=plan)
        worst = max(worst, float((out - plan.queries.shard(expected, rank)).abs().max()))
    return worst


@pytest.mark.distributed
def test_a9_dual_scope_equals_the_rules_of_the_release() -> None:
    assert max(run_ranks(rank_released, 3)) <= 1e-12
