"""A soft cap of the logits: exact for every strategy, refused where it is not known."""

import pytest
import torch
from attention_cases import case_error, whole_tensors, worst_lse, worst_of
from longtake.kernels import (
    CapabilityError,
    Causal,
    DualScope,
    Full,
    PlanMismatch,
    SlidingWindow,
    Transport,
    attention,
    attention_reference,
    explain,
)
from ranks import run_ranks

CAP = 0.7  # about the spread of the logits, so that it bends them
CASES = [
    {"mask": mask, "n": 37, "strategy": strategy, "layout": layout, "softcap": CAP, "dtype": dtype}
    for mask, layout in (
        (Full(), "contiguous"), (Causal(), "zigzag"), (SlidingWindow(6, 3), "striped"),
        (DualScope(4, (0, 9, 30), bias_global=-0.5), "contiguous"),
    )
    for strategy in ("ring", "ulysses", "allgather_kv", "halo")
    for dtype in (torch.float64, torch.float32)
]  # fmt: skip


def every_case(rank: int, world: int) -> list[dict[str, float]]:
    transport = Transport()
    return [case_error(rank, world, case, transport) for case in CASES]


def different_caps(rank: int, world: int) -> str:
    q, k, v, _ = whole_tensors(8, 8, 2, 2, 4, torch.float32)
    try:
        attention(q, k, v, mesh=Transport(), softcap=1.0 + (rank == 1))
    except PlanMismatch as error:
        return str(error)
    return "no complaint"


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_softcap_equals_the_definition_forward_and_backward(world: int) -> None:
    reports = run_ranks(every_case, world)
    for number, case in enumerate(CASES):
        limit = 1e-12 if case["dtype"] == torch.float64 else 1e-5
        assert worst_of(reports, number) <= limit and worst_lse(reports, number) <= 1e-5, (case, world)


@pytest.mark.distributed
def test_ranks_with_different_caps_are_told() -> None:
    assert all("softcap differs" in told for told in run_ranks(different_caps, 3))


def test_the_cap_bends_the_logits_and_zero_is_none() -> None:
    q, k, v, _ = whole_tensors(12, 12, 2, 2, 8, torch.float64)
    capped, lse = attention(q, k, v, softcap=CAP, return_lse=True)
    by_hand = CAP * torch.tanh(q @ k.mT / 8**0.5 / CAP)
    assert float((lse - by_hand.logsumexp(-1)).abs().max()) <= 1e-12
    assert float((capped - by_hand.softmax(-1) @ v).abs().max()) <= 1e-12
    plain = attention(q, k, v)
    assert float((capped - plain).abs().max()) > 1e-2
    assert torch.equal(attention(q, k, v, softcap=0.0), plain)
    assert float((attention(q, k, v, softcap=1e6) - plain).abs().max()) <= 1e-9
    assert float((attention_reference(q, k, v, softcap=CAP)[0] - capped).abs().max()) <= 1e-12


def test_backends_without_it_are_passed_over_and_refuse_when_forced() -> None:
    q, k, v, _ = whole_tensors(12, 12, 2, 2, 8, torch.float32)
    told = str(explain(q, k, v, softcap=5.0))
    assert "backend math" in told and "aten_cpu: a soft cap of the logits" in told
    with pytest.raises(CapabilityError, match="aten_cpu.*soft cap"):
        attention(q, k, v, softcap=5.0, backend="aten_cpu")
    with pytest.raises(ValueError, match="softcap"):
        attention(q, k, v, softcap=-1.0)


def test_the_gradient_is_that_of_the_definition() -> None:
    q, k, v, _ = (x.requires_grad_() for x in whole_tensors(5, 7, 2, 1, 3, torch.float64, batch=1))
    assert torch.autograd.gradcheck(lambda *leaves: attention(*leaves, softcap=CAP), (q, k, v))
