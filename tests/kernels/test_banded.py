"""The window of a GPU, all windows gathered first: exact under every scope, split and memory order, in few kernels."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from longtake.kernels import DualScope, SlidingWindow, attention, dual_scope_attention, explain
from longtake.kernels.calls import banded, dual_scope, stock
from longtake.kernels.calls.request import Asked
from operator_counts import Counts, pretended_gpu
from torch import Tensor

SCOPES = [
    DualScope(2, (0, 9)), DualScope(8, (0, 3, 40, 46)), DualScope(3), DualScope(0, (5,)), DualScope(60, (1, 2)),
    DualScope(4, (0, 20), bias_local=0.3, bias_global=-1.25), DualScope(4, (0, 20), overlap="multiset"),
    DualScope(4, (0, 20), row_scale=16.0), DualScope(20, tuple(range(0, 46, 5))),
]  # fmt: skip


def made(heads: int, rows: int, frames_first: bool, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(3, rows, heads, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.transpose(1, 2) if frames_first else x.transpose(1, 2).contiguous()


def right(q: Tensor, k: Tensor, v: Tensor, scope: DualScope, q_pos: range, total: int, tokens: int) -> Tensor:
    """By definition, over all frames."""
    bias = scope.score(q_pos, range(total)).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    factors = scope.row_factors(q_pos, total)
    if factors is not None:
        q = q * factors.repeat_interleave(tokens)[:, None]
    return (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU in the place of a GPU."""
    monkeypatch.setattr(dual_scope, "_on_gpu", lambda _: True)
    monkeypatch.setattr(banded, "ROWS", 8)  # several blocks in a short sequence
    yield


@pytest.mark.parametrize("scope", SCOPES, ids=range(len(SCOPES)))
@pytest.mark.parametrize("frames_first", [True, False])
@pytest.mark.parametrize(("total", "tokens"), [(47, 1), (48, 1), (47, 3)])
@pytest.mark.usefixtures("gathered")
def test_gathered_windows_are_exact(scope: DualScope, frames_first: bool, total: int, tokens: int) -> None:
    q, k, v = (made(4, total * tokens, frames_first, seed) for seed in range(3))
    shared = torch.tensor(scope.global_indices or (0,))
    rows = (shared[:, None] * tokens + torch.arange(tokens)).flatten()
    wanted = right(q, k, v, scope, range(total), total, tokens)
    for span in (range(total), range(0, 19), range(14, 33), range(30, total)):
        low, high = max(span.start - scope.window, 0), min(span.stop + scope.window, total)
        mine, held = slice(span.start * tokens, span.stop * tokens), slice(low * tokens, high * tokens)
        for apart in (True, False):
            if (
                not apart
                and scope.global_indices
                and (low > scope.global_indices[0] or high <= scope.global_indices[-1])
            ):
                continue
            out = dual_scope_attention(
                q[:, :, mine], k[:, :, held], v[:, :, held], scope=scope, q_pos=span, k_pos=range(low, high),
                total=total, tokens_per_frame=tokens, k_global=k[:, :, rows] if apart and scope.global_open else None,
                v_global=v[:, :, rows] if apart and scope.global_open else None,
            )  # fmt: skip
            assert (out - wanted[:, :, mine]).abs().max() <= 1e-12, (span, apart)


@pytest.mark.usefixtures("gathered")
def test_gathered_windows_go_through_memory_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (made(4, 47, True, seed) for seed in range(3))
    settings = {"scope": SCOPES[1], "q_pos": range(47), "k_pos": range(47), "total": 47}
    whole = dual_scope_attention(q, k, v, **settings)
    monkeypatch.setattr(banded, "GATHERED", 1)
    assert torch.equal(dual_scope_attention(q, k, v, **settings), whole)
    monkeypatch.setattr(banded, "MOST_BATCH", 12)
    assert torch.equal(dual_scope_attention(q, k, v, **settings), whole)


@pytest.mark.usefixtures("gathered")
def test_half_precision_errs_as_torchs_own_does() -> None:
    q, k, v = (made(4, 47, True, seed, torch.bfloat16) for seed in range(3))
    out = dual_scope_attention(q, k, v, scope=SCOPES[0], q_pos=range(47), k_pos=range(47), total=47)
    wanted = right(q.double(), k.double(), v.double(), SCOPES[0], range(47), 47, 1)
    bias = SCOPES[0].score(range(47), range(47)).float()
    torchs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert out.dtype == torch.bfloat16
    assert (out - wanted).square().mean() <= 2 * (torchs - wanted).square().mean()


def counted(batch: int, frames: int, heads: int, scope: DualScope, held: bool = True) -> tuple[Counts, int]:
    """Kernels and bytes of a call whose tables are made already, and the bytes of q, k, v and the output."""
    for table in (banded.rows_of, banded.bias_of, banded.whole_bias):
        table.cache_clear()
    with pretended_gpu() as count:
        q, k, v = (
            torch.empty(batch, frames, heads, 64, dtype=torch.bfloat16, device="cuda").transpose(1, 2) for _ in range(3)
        )
        shared = None if held else q[:, :, : len(scope.global_indices)]
        for _ in range(2):
            count.restart()
            out = dual_scope_attention(
                q, k, v, scope=scope, q_pos=range(frames), k_pos=range(frames), total=frames, k_global=shared,
                v_global=shared,
            )  # fmt: skip
        assert out.transpose(1, 2).is_contiguous()  # as the model has it: nobody lays it anew
    for table in (banded.rows_of, banded.bias_of, banded.whole_bias):
        table.cache_clear()
    return count, 4 * q.numel() * 2


def spread(frames: int, number: int) -> tuple[int, ...]:
    return tuple(range(0, frames, frames // number))[:number]


@pytest.mark.parametrize(
    ("batch", "frames", "heads", "window", "shared", "kernels", "times"),
    [
        (1600, 240, 8, 8, 16, 4, 3.0), (400, 2300, 8, 8, 16, 4, 3.2), (1, 16384, 8, 1024, 64, 3, 8.0),
        (1600, 64, 8, 8, 16, 4, 3.0), (1600, 16, 8, 8, 16, 1, 1.2), (1600, 24, 8, 30, 4, 1, 1.0),
    ],
)  # fmt: skip
def test_h2_a_temporal_layer_under_its_window_is_few_kernels_and_little_more_than_its_bytes(
    batch: int, frames: int, heads: int, window: int, shared: int, kernels: int, times: float
) -> None:
    """At most 12 were asked; at video sizes at most three times the bytes of q, k, v and the output."""
    scope = DualScope(window, spread(frames, shared))
    count, floor = counted(batch, frames, heads, scope)
    assert count.kernels <= kernels and count.bytes <= times * floor, (count.names, count.bytes / floor)
    apart, _ = counted(batch, frames, heads, scope, held=False)
    assert apart.kernels <= kernels + 2


@pytest.mark.parametrize("mask", [*SCOPES, SlidingWindow(5, 5)], ids=range(len(SCOPES) + 1))
@pytest.mark.parametrize("frames_first", [True, False])
def test_gathered_windows_have_exact_gradients(
    mask: DualScope | SlidingWindow, frames_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banded, "ROWS", 8)
    leaves = [made(4, 47, frames_first, seed).requires_grad_() for seed in range(3)]
    seed = made(4, 47, frames_first, 7)
    asked = Asked(*leaves, mask)
    scope = mask if isinstance(mask, DualScope) else DualScope(5)
    out, wanted = stock.window_attention(asked), right(*leaves, scope, range(47), 47, 1)
    grads, right_grads = (torch.autograd.grad(x, leaves, seed) for x in (out, wanted))
    assert (out - wanted).abs().max() <= 1e-12
    for ours, theirs in zip(grads, right_grads, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12


def test_gradients_of_keys_that_many_blocks_share_are_summed_in_float32() -> None:
    """In bfloat16 a sum of 512 ones stops at 256."""
    x = torch.ones(1, 2, 1, 8, dtype=torch.bfloat16, requires_grad=True)
    rows = banded._gathered(x, torch.zeros(512, dtype=torch.int64))
    (grad,) = torch.autograd.grad(rows.sum(), x)
    assert grad[0, 0, 0, 0] == 512 and not grad[0, 1].any()


def test_a_window_on_a_gpu_is_gathered_whatever_door_it_comes_through() -> None:
    scope = DualScope(8, spread(240, 16))
    for table in (banded.rows_of, banded.bias_of):
        table.cache_clear()
    with pretended_gpu() as count:
        x = torch.empty(16, 240, 8, 64, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
        attention(x, x, x, mask=scope)
        count.restart()
        attention(x, x, x, mask=scope)
        told = str(explain(x, x, x, mask=scope))
    for table in (banded.rows_of, banded.bias_of):
        table.cache_clear()
    assert count.kernels <= 4 and count.names["scaled_dot_product_attention"] == 1
    assert "backend torch's own function on gathered windows" in told
