"""The public call: what it refuses, explains and counts, how plans are balanced, and what torch.compile sees."""

import time
from pathlib import Path
from typing import Any

import attention_cases
import pytest
import torch
from longtake.kernels import (
    And,
    CapabilityError,
    Causal,
    Documents,
    DualScope,
    Full,
    KeyPadding,
    Layout,
    PlanMismatch,
    ShapeError,
    SlidingWindow,
    Transport,
    attention,
    attention_reference,
    balance,
    explain,
    forecast,
    make_plan,
)
from longtake.kernels.backends.contract import Capabilities, Request, lacks
from longtake.kernels.backends.registry import Registry, choose_backend
from ranks import run_ranks

HERE = Path(__file__).parent
SIZES: dict[str, Any] = {"batch": 2, "heads": 6, "kv_heads": 2, "head_dim": 8}


def tensors(n: int = 24, heads: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return attention_cases.whole_tensors(n, n, heads, heads, 8, dtype)[:3]


def rank_traffic(rank: int, world: int, cases: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What was counted, and what the plan had forecast."""
    answers = []
    for case in cases:
        transport = Transport()
        attention_cases.case_error(rank, world, case, transport)
        plan = make_plan(
            case.get("lengths", case["n"]), case["mask"], world=world, strategy=case["strategy"],
            layout=case.get("layout", "contiguous"), degree=case.get("degree"), heads=case["heads"],
            kv_heads=case["kv_heads"],
            block=case.get("block", 32),
        )  # fmt: skip
        foreseen = forecast(
            plan, rank, batch=2, heads=case["heads"], kv_heads=case["kv_heads"], head_dim=8, dtype=case["dtype"]
        )
        counted = transport.counter.as_dict()
        for kind in ("check", "ulysses_lse"):  # the comparison of plans, and L, which the cases ask for
            counted["rounds"] -= counted["calls"].get(kind, 0)
            for part in ("sent", "received", "calls"):
                counted[part].pop(kind, None)
        answers.append((counted, foreseen.as_dict()))
    return answers


def formula(strategy: str, n: int, world: int, e: int, e_acc: int, heads: int, kv_heads: int) -> dict[str, int]:
    """Bytes that a rank sends, forward and backward, full mask, even shards (B = 2, D = 8)."""
    kv = 2 * 2 * kv_heads * n * 8 * (world - 1)
    if strategy == "ring":
        return {"ring": 2 * kv * e, "ring_grad": kv * e_acc}
    if strategy == "allgather_kv":
        return {"gather_kv": kv * e, "gather_kv_grad": kv * e_acc}
    return {"ulysses": 2 * 2 * 2 * (heads + kv_heads) * n * 8 * e * (world - 1) // world}


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3, 4])
def test_b_bytes_equal_the_formulas_and_the_forecast(world: int) -> None:
    cases: list[dict[str, Any]] = [
        {"mask": Full(), "n": 24, "heads": 12, "kv_heads": 12, "strategy": strategy, "dtype": dtype}
        for strategy in ("ring", "ulysses", "allgather_kv")
        for dtype in (torch.float64, torch.bfloat16)
    ]
    even = len(cases)
    cases += [
        {
            "mask": mask, "n": 25, "heads": 6, "kv_heads": 2, "strategy": strategy, "dtype": torch.float32,
            "layout": layout, "block": 8, "degree": 2 if strategy == "usp" and world % 2 == 0 else None,
        }
        for mask in (Full(), Causal(), SlidingWindow(4, 0), DualScope(2, (5, 12)))
        for strategy, layout in (
            ("ring", "zigzag"), ("ring", "contiguous"), ("allgather_kv", "contiguous"), ("halo", "contiguous"),
            ("ulysses", "contiguous"), ("usp", "contiguous"),
        )
    ]  # fmt: skip
    reports = run_ranks(rank_traffic, world, cases)
    for number, case in enumerate(cases):
        for rank in range(world):
            counted, forecast = reports[rank][number]
            assert counted == forecast, (case, rank)
            if number < even:
                e = 8 if case["dtype"] == torch.float64 else 2
                expected = formula(case["strategy"], 24 // world, world, e, 8 if e == 8 else 4, 12, 12)
                assert forecast["sent"] == expected, (case, rank)
                hops = {"ring": (world - 1) * 2, "allgather_kv": 1, "ulysses": 4}[case["strategy"]]
                kind = {"ring": "ring", "allgather_kv": "gather_kv", "ulysses": "ulysses"}[case["strategy"]]
                assert forecast["calls"][kind] == hops


def sent(n: int, world: int, mask: Any, strategy: str, backward: bool = False, rank: int = 1) -> int:
    plan = make_plan(n, mask, world=world, strategy=strategy, heads=12)
    counter = forecast(plan, rank, batch=1, heads=12, kv_heads=12, head_dim=8, backward=backward)
    return sum(counter.sent.values())


def test_b_how_bytes_scale() -> None:
    scope = DualScope(3, (8, 24))
    longer = DualScope(3, (16, 48))
    assert sent(64, 2, scope, "halo") == sent(128, 2, longer, "halo") > 0
    assert sent(48, 4, Full(), "ulysses") == 0.75 * sent(48, 2, Full(), "ulysses")
    assert sent(48, 4, Full(), "ring") == 1.5 * sent(48, 2, Full(), "ring")
    # one interior rank: 2 w rows of K and V to its neighbours, its one global row to all three others
    spread = DualScope(3, (8, 24, 40, 56))
    assert sent(64, 4, spread, "halo") == 4 * (12 * 3 * 8 * 4) + 2 * (12 * 1 * 8 * 4) * 3


@pytest.mark.parametrize("window", [0, 3, 11, 12, 13, 30, 100])
def test_b_a_windowed_ring_sends_no_keys_beyond_the_reach(window: int) -> None:
    n, world = 48, 4
    for rank in range(world):
        bytes_sent = sent(n, world, SlidingWindow(window, 0), "ring", rank=rank)
        assert bytes_sent <= 2 * 12 * min(window + n // world, n - n // world) * 8 * 4
    assert sent(n, world, SlidingWindow(0, 0), "ring") == 0
    assert sent(n, world, SlidingWindow(3, 0), "ring") == 2 * 12 * 3 * 8 * 4  # three rows, one hop


def test_c_zigzag_balances_causal_work_and_contiguous_does_not() -> None:
    for world in (2, 3, 4):
        n = 32 * world
        assert balance(make_plan(n, Causal(), world=world, layout="zigzag", strategy="ring")) <= 1.02
        plain = balance(make_plan(n, Causal(), world=world, strategy="ring"))
        assert plain == pytest.approx((2 * world - 1) / world, rel=0.03)
    # without the diagonal's half keys the formula of the contiguous layout is (2P - 1) / P


def test_c_documents_are_balanced_by_dealing_out_chunks() -> None:
    mask = And(Causal(), Documents((0, 700, 780, 1200, 1210, 2048)))
    layout = Layout.balanced(mask, 2048, 4, chunk=32)
    assert balance(make_plan(layout, mask, strategy="allgather_kv")) <= 1.10
    assert balance(make_plan(2048, mask, world=4, strategy="allgather_kv")) > 1.3
    assert max(layout.sizes) - min(layout.sizes) <= 32


def rank_mismatch(rank: int, world: int) -> list[tuple[str, float]]:
    answers = []
    odd = rank == world - 1
    plan = make_plan(24, Causal(), world=world, strategy="ring")
    other = make_plan(24, Full(), world=world, strategy="ring")
    q, k, v = (plan.queries.shard(x, rank) for x in tensors())
    attempts: list[Any] = [
        lambda: attention(q, k, v, mesh=Transport(), plan=other if odd else plan),
        lambda: attention(q[:, :, 1:] if odd else q, k, v, mesh=Transport(), plan=plan),
        lambda: attention(q.float() if odd else q, k.float() if odd else k, v.float() if odd else v, mesh=Transport()),
        lambda: attention(q, k, v, mask=Causal(1) if odd else Causal(), mesh=Transport()),
        lambda: attention(q, k, v, mesh=Transport(), strategy="ring" if odd else "ulysses"),
        lambda: attention(q, k[:, :3] if odd else k, v, mesh=Transport()),
        lambda: attention(q.requires_grad_(odd), k, v, mesh=Transport(), plan=plan),
    ]
    for attempt in attempts:
        begun = time.process_time()
        try:
            attempt()
            answers.append(("nothing", 0.0))
        except PlanMismatch as error:
            answers.append((str(error), time.process_time() - begun))
    return answers


@pytest.mark.distributed
def test_e1_ranks_that_disagree_all_raise_at_once() -> None:
    """A rank that waited in vain would raise DistTimeout; the seconds are the processor's."""
    for report in run_ranks(rank_mismatch, 3):
        assert len(report) == 7
        for message, seconds in report:
            assert message.startswith("rank ") and seconds < 5, (message, seconds)


def rank_without_plan(rank: int, world: int) -> tuple[float, int]:
    """Uneven lengths that nobody announced; the same transport, two masks interleaved."""
    sizes = (5, 12, 7)
    q, k, v = tensors()
    layout = Layout.contiguous(sizes)
    local = [layout.shard(x, rank) for x in (q, k, v)]
    worst = 0.0
    transport, second = Transport(), Transport()
    for _ in range(2):
        for mask, mesh in ((Causal(), transport), (SlidingWindow(2, 2), second), (KeyPadding(20), transport)):
            out = attention(*local, mask=mask, mesh=mesh)
            expected = layout.shard(attention_reference(q, k, v, mask)[0], rank)
            worst = max(worst, float((out - expected).abs().max()))
    plan = make_plan(sizes, Causal(), strategy="ring")
    before = transport.counter.calls["check"]
    for _ in range(3):
        attention(*local, mesh=transport, plan=plan)
    return worst, transport.counter.calls["check"] - before


@pytest.mark.distributed
def test_e8_lengths_need_no_plan_and_a_plan_is_compared_once() -> None:
    for worst, checks in run_ranks(rank_without_plan, 3):
        assert worst <= 1e-12 and checks == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"softcap": -1.0}, ShapeError, "softcap"),
        ({"softcap": 30.0, "backend": "aten_cpu"}, CapabilityError, "soft cap"),
        ({"dropout_p": 0.1}, CapabilityError, "dropout"),
        ({"backend": "flash9"}, CapabilityError, "not available here; there are .*aten_cpu, math"),
        ({"layout": "sbhd"}, ValueError, "layout must be"),
        ({"mask": KeyPadding((3, 4, 5))}, ShapeError, "3 batch entries"),
        ({"mask": DualScope(1, (99,))}, ValueError, "outside"),
        ({"strategy": "rings"}, ValueError, "rings"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        attention(*tensors(), **arguments)


def test_e4_nan_is_refused_in_debug_mode() -> None:
    q, k, v = tensors()
    q[0, 0, 0, 0] = torch.nan
    with pytest.raises(ShapeError, match="q holds NaN"):
        attention(q, k, v, debug=True)


def test_e6_a_forced_backend_that_cannot_serve_says_why() -> None:
    q, k, v = tensors()
    with pytest.raises(CapabilityError, match="aten_cpu.* cannot serve: value size 5"):
        attention(q, k, v[..., :5], backend="aten_cpu")
    request = Request(torch.float32, 8, 8, "tpu")
    assert "device tpu" in (lacks(Capabilities(devices=frozenset({"cpu"})), request) or "")
    assert "no backward" in (lacks(Capabilities(grad=False), Request(torch.float32, 8, 8, "cpu", grad=True)) or "")
    assert choose_backend(request).name == "math"  # the definition serves any device
    with pytest.raises(ValueError, match="registered already"):
        registry = Registry()
        registry.register(choose_backend(request))
        registry.register(choose_backend(request))


def test_e7_explain_says_what_and_why() -> None:
    text = str(explain(*tensors(), mask=Causal()))
    assert "strategy none" in text and "one rank" in text and "backend aten_cpu" in text
    q, k, v = tensors()
    text = str(explain(q, k, v[..., :5]))
    assert "backend math" in text and "not aten_cpu: value size 5 beside head size 8" in text


def test_layouts_of_tensors_and_grouped_heads() -> None:
    q, k, v = tensors()
    out, lse = attention(q, k, v, mask=Causal(), return_lse=True)
    swapped = attention(*(x.transpose(1, 2) for x in (q, k, v)), mask=Causal(), layout="bshd")
    assert torch.equal(out, swapped.transpose(1, 2))
    assert (lse - attention_reference(q, k, v, Causal())[1]).abs().max() <= 1e-12 and not lse.requires_grad
    with pytest.raises(ShapeError, match="enable_gqa is False"):
        attention(q, k[:, :2], v[:, :2], enable_gqa=False)


def test_second_derivatives_are_refused_not_wrong() -> None:
    q, k, v = (x.requires_grad_() for x in tensors(6))
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(attention(q, k, v, mask=DualScope(1, (0,))).sum(), q, create_graph=True)
    (grad,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)  # torch's own function
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(grad.sum(), q)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = DualScope(3, (0, 9), row_scale=7.0)
        self.qkv = torch.nn.Linear(16, 48, bias=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).unbind(2)
        return attention(q, k, v, mask=self.mask, layout="bshd").flatten(2) + x


def test_e9_torch_compile_sees_one_node_and_agrees() -> None:
    torch.manual_seed(0)
    block = Block()
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    expected = block(x)
    expected_grads = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    grads = torch.autograd.grad(out.square().sum(), list(block.parameters()))
    assert (out - expected).abs().max() <= 1e-12 and (grads[0] - expected_grads[0]).abs().max() <= 1e-10
    torch.library.opcheck(
        torch.ops.longtake.attention.default,
        (*(t.requires_grad_() for t in tensors(6)), _named(Causal()), "auto", 0.3),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def _named(mask: Any) -> str:
    from longtake.kernels.calls import compiled

    return compiled._name_mask(mask)


def test_checkpointing_repeats_the_call() -> None:
    from torch.utils.checkpoint import checkpoint

    q, k, v = (x.requires_grad_() for x in tensors(9))
    plain = torch.autograd.grad(attention(q, k, v, mask=Causal()).square().sum(), (q, k, v))
    again = checkpoint(lambda a, b, c: attention(a, b, c, mask=Causal()), q, k, v, use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(again.square().sum(), (q, k, v)), strict=True):
        assert torch.equal(a, b)


def rank_compiled(rank: int, world: int) -> float:
    """A compiled block with a mesh inside: graphs around the call, the call as it is."""
    transport = Transport()
    plan = make_plan(24, Causal(), world=world, strategy="ring")
    whole = tensors()
    weight = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mesh: Any, plan: Any) -> torch.Tensor:
        return attention(q @ weight, k, v, mask=Causal(), mesh=mesh, plan=plan).sin()

    local = [plan.queries.shard(x, rank) for x in whole]
    out = torch.compile(block, backend="aot_eager")(*local, transport, plan)
    out.sum().backward()
    assert weight.grad is not None
    found = weight.grad.clone()
    torch.distributed.all_reduce(found)
    weight.grad = None
    alone = block(*whole, None, None)
    alone.sum().backward()
    errors = [(out - plan.queries.shard(alone, rank)).abs().max(), (found - weight.grad).abs().max()]
    return float(max(errors))


@pytest.mark.distributed
def test_a_mesh_inside_torch_compile_breaks_the_graph_and_stays_exact() -> None:
    assert max(run_ranks(rank_compiled, 3)) <= 1e-12
