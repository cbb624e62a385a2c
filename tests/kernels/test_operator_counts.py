"""What a GPU is asked to do, counted on fake CUDA tensors: no more than torch's own call, a window in few kernels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from longtake.kernels import (
    Causal,
    Documents,
    Full,
    SlidingWindow,
    TileKind,
    attention,
    attention_reference,
    explain,
    make_plan,
)
from longtake.kernels.backends.contract import Request
from longtake.kernels.backends.registry import backends, choose_backend, declines
from operator_counts import pretended_gpu
from torch.utils._python_dispatch import TorchDispatchMode

HALF = torch.bfloat16


class Operators(TorchDispatchMode):
    """The names of all operators, forward and backward, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mask", [Full(), Causal()], ids=str)
def test_h1_full_and_causal_on_one_rank_are_torchs_call_and_nothing_else_on_a_gpu(mask: Any) -> None:
    made = []
    for ours in (True, False):
        with pretended_gpu() as count:
            q, k, v = (torch.empty(1, 8, 16384, 64, dtype=HALF, device="cuda") for _ in range(3))
            count.restart()
            if ours:
                attention(q, k, v, mask=mask)
                assert torch.is_tensor(attention(q, k, v, mask=mask, plan=make_plan(16384, mask, world=1)))
            else:
                for _ in range(2):
                    F.scaled_dot_product_attention(q, k, v, is_causal=isinstance(mask, Causal))
        made.append((count.names, count.bytes))
    assert made[0] == made[1] and made[1][0] == {"scaled_dot_product_attention": 2}


@pytest.mark.parametrize("mask", [Full(), Causal()], ids=str)
def test_h1_full_and_causal_on_one_rank_are_torchs_operators_forward_and_backward(mask: Any) -> None:
    found = []
    for ours in (True, False):
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(2, 3, 33, 16, generator=generator).requires_grad_() for _ in range(3)]
        with Operators() as seen:
            if ours:
                out = attention(*leaves, mask=mask)
            else:
                out = F.scaled_dot_product_attention(*leaves, is_causal=isinstance(mask, Causal))
            grads = torch.autograd.grad(out.square().sum(), leaves)
        names = [name for name in seen.names if not name.startswith("_fused_sdp_choice")]
        found.append((names, [out.detach(), *grads]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(x, y) for x, y in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("mask", [Full(), Causal()], ids=str)
def test_l_comes_from_the_operator_that_torch_would_have_picked(mask: Any) -> None:
    q, k, v = (torch.randn(2, 3, 33, 16, dtype=torch.float64) for _ in range(3))
    with Operators() as seen:
        out, lse = attention(q, k, v, mask=mask, return_lse=True)
    wanted, wanted_lse = attention_reference(q, k, v, mask)
    assert (out - wanted).abs().max() <= 1e-12 and (lse - wanted_lse).abs().max() <= 1e-12
    assert [name for name in seen.names if "attention" in name] == [
        "_scaled_dot_product_flash_attention_for_cpu.default"
    ]
    assert torch.equal(out, attention(q, k, v, mask=mask))


@pytest.mark.parametrize(("number", "name"), [(1, "flash"), (2, "efficient"), (3, "cudnn")])
def test_on_a_gpu_too_l_comes_from_that_operator(number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, **__: number)
    with pretended_gpu() as count:
        q, k, v = (torch.empty(2, 8, 77, 64, dtype=HALF, device="cuda") for _ in range(3))
        count.restart()
        out, lse = attention(q, k, v, mask=Causal(), return_lse=True)
        assert out.shape == q.shape and out.dtype == HALF
        assert lse.shape == (2, 8, 77) and lse.dtype == torch.float32 and not lse.requires_grad
        told = explain(q, k, v, mask=Causal())
    assert count.names[f"_scaled_dot_product_{name}_attention"] == 1 and sum(count.names.values()) == 1
    assert told.backend == name and "its own function as it is" in str(told)


def test_what_torchs_function_cannot_be_asked_for_is_not_asked() -> None:
    q = torch.randn(1, 2, 6, 8)
    plain = {"mask": Full()}
    for settings in (
        {"mask": SlidingWindow(1, 1)}, {"mask": Causal(1)}, {**plain, "softcap": 2.0}, {**plain, "backend": "math"},
    ):  # fmt: skip
        assert not explain(q, q, q, **settings).how
    assert explain(q, q, q, **plain).how
    assert not explain(q, q[:, :, :5], q[:, :, :5], mask=Causal()).how


def test_flex_is_left_to_those_who_ask_for_it_and_explain_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.kernels.backends.flex.cuda_devices", lambda: frozenset({"cuda"}))
    request = Request(HALF, 64, 64, "cuda", frozenset({TileKind.FULL, TileKind.DENSE}), mask=Documents((0, 9, 64)))
    (flex,) = (backend for backend in backends() if backend.name == "flex")
    assert flex.refuses(request) is None and choose_backend(request, "flex") is flex
    assert "compiled anew" in str(declines(flex, request)) and "slower" in str(declines(flex, request))
    monkeypatch.undo()
    q = torch.randn(1, 2, 64, 16)
    told = explain(q, q, q, mask=Documents((0, 9, 64)))
    assert any("flex: serves only when asked for by name" in reason for reason in told.rejected_backends)
