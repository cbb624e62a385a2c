"""Skewed relative bias and LM-Infinite's two rotary phases against their definitions, forward and backward."""

import math

import pytest
import torch
from longtake.kernels import (
    CapabilityError,
    Causal,
    Full,
    Lambda,
    PlanMismatch,
    Transport,
    attention,
    diagonal_scan,
    linear_attention,
    make_plan,
    prefix_scan,
)
from longtake.kernels.calls.lambda_rotary import lambda_attention, lambda_attention_reference, rotary
from longtake.kernels.calls.relative import relative_attention, relative_bias_tile, skew
from ranks import run_ranks


def made(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relmax(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x.double() - reference).detach().abs().max() / reference.detach().abs().max())


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, e: torch.Tensor, causal: bool, q_start: int = 0):
    """q_i . (k_j + e_{j-i}), every pair written out."""
    rows, keys = torch.arange(q_start, q_start + q.shape[2])[:, None], torch.arange(k.shape[2])[None]
    zero = e.shape[1] - 1 if causal else e.shape[1] // 2
    vectors = e[:, (keys - rows + zero).clamp(0, e.shape[1] - 1)]  # (H, n, N, D)
    logits = (q @ k.mT + torch.einsum("bhid,hijd->bhij", q, vectors.expand(q.shape[1], -1, -1, -1))) / math.sqrt(
        q.shape[-1]
    )
    return (logits.masked_fill(keys > rows, -math.inf) if causal else logits).softmax(-1) @ v


def test_skew_is_the_papers_procedure() -> None:
    q, e = made((1, 2, 7, 4), 1), made((2, 7, 4), 2)
    whole = skew(q @ e.mT).tril()
    assert relmax(relative_bias_tile(q, e, 0, 0, 7).tril(), whole) <= 1e-14
    assert relmax(relative_bias_tile(q[:, :, 3:6], e, 3, 1, 4).tril(2), whole[:, :, 3:6, 1:5].tril(2)) <= 1e-14
    assert float(whole[0, 1, 5, 2]) == pytest.approx(float(q[0, 1, 5] @ e[1, 6 - 3]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "tile"), [(37, 8), (64, 64), (1, 4)])
def test_relative_attention_is_exact_forward_and_backward(causal: bool, length: int, tile: int) -> None:
    for heads, dtype, bound in ((3, torch.float64, 1e-12), (1, torch.float64, 1e-12), (3, torch.float32, 5e-6)):
        distances = length + 2 if causal else 2 * length + 1
        inputs = [made((2, 3, length, 8), seed) for seed in (1, 2)] + [made((2, 3, length, 5), 3)]
        inputs = [x.requires_grad_() for x in (*inputs, made((heads, distances, 8), 4))]
        cotangent = made((2, 3, length, 5), 5)
        expected = dense(*inputs, causal)
        expected_grads = torch.autograd.grad(expected, inputs, cotangent)
        ours = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = relative_attention(*ours, causal=causal, tile=tile)
        grads = torch.autograd.grad(out, ours, cotangent.to(dtype))
        assert out.dtype == dtype and relmax(out, expected) <= bound
        for grad, reference in zip(grads, expected_grads, strict=True):
            if reference.abs().max() > 1e-12:
                assert relmax(grad, reference) <= bound


@pytest.mark.parametrize(
    ("n_global", "n_local", "limit"), [(3, 8, None), (10, 8, 12), (0, 5, None), (4, 64, 70), (4, 8, 7)]
)
def test_lambda_attention_clips_distances_exactly(n_global: int, n_local: int, limit: int | None) -> None:
    q, k, v = made((2, 4, 45, 8), 1), made((2, 2, 45, 8), 2), made((2, 2, 45, 6), 3)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    cotangent = made((2, 4, 45, 6), 4)
    expected = lambda_attention_reference(*inputs, n_global, n_local, n_local if limit is None else limit, theta=50.0)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        ours = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = lambda_attention(*ours, n_global=n_global, n_local=n_local, max_distance=limit, theta=50.0, tile=16)
        grads = torch.autograd.grad(out, ours, cotangent.to(dtype))
        assert relmax(out, expected) <= bound
        assert all(relmax(g, r) <= bound for g, r in zip(grads, expected_grads, strict=True))


def test_lambda_with_everything_local_is_causal_rotary_attention() -> None:
    q, k, v = (made((1, 2, 20, 8), seed) for seed in (1, 2, 3))
    places = torch.arange(20)
    logits = rotary(q, places) @ rotary(k, places).mT / math.sqrt(8)
    expected = logits.masked_fill(torch.ones(20, 20).triu(1).bool(), -math.inf).softmax(-1) @ v
    assert relmax(lambda_attention(q, k, v, n_global=2, n_local=20), expected) <= 1e-12


def test_mistakes_raise() -> None:
    x, e = torch.zeros(1, 2, 9, 8), torch.zeros(2, 9, 8)
    with pytest.raises(ValueError, match="distances up to 8 occur, e holds them up to 4"):
        relative_attention(x, x, x, e[:, :5])
    with pytest.raises(ValueError, match="must be odd"):
        relative_attention(x, x, x, torch.zeros(2, 18, 8), causal=False)
    with pytest.raises(ValueError, match="e must be"):
        relative_attention(x, x, x, torch.zeros(3, 9, 8))
    with pytest.raises(ValueError, match="max_distance must be >= local - 1"):
        lambda_attention(x, x, x, n_local=8, max_distance=5)
    with pytest.raises(ValueError, match="even head size"):
        lambda_attention(x[..., :7], x[..., :7], x)


PLANS = [("ring", "contiguous"), ("ring", "striped"), ("ring", "zigzag"), ("ulysses", "contiguous"),
         ("allgather_kv", "zigzag"), ("halo", "contiguous")]  # fmt: skip


def rank_operators(rank: int, world: int) -> dict[str, float]:
    """Relative and lambda attention over ranks against one process: outputs and gradients, errors by case."""
    length, transport, errors = 37, Transport(), {}
    q, k, v = made((2, 4, length, 8), 1), made((2, 4, length, 8), 2), made((2, 4, length, 6), 3)
    few_k, few_v, cotangent = made((2, 2, length, 8), 6), made((2, 2, length, 6), 7), made((2, 4, length, 6), 5)

    def compare(name: str, plan, tensors, call) -> None:
        leaves = [x.clone().requires_grad_() for x in tensors]
        alone = call(*leaves)
        wanted = torch.autograd.grad(alone, leaves, cotangent)
        local = [plan.queries.shard(x, rank) if x.dim() == 4 else x for x in tensors]
        leaves = [x.clone().requires_grad_() for x in local]
        out = call(*leaves, mesh=transport, plan=plan)
        found = torch.autograd.grad(out, leaves, plan.queries.shard(cotangent, rank))
        pairs = [(out, plan.queries.shard(alone, rank))]
        pairs += [(g, plan.queries.shard(w, rank) if w.dim() == 4 else w) for g, w in zip(found, wanted, strict=True)]
        errors[name] = max(float((ours - ref).detach().abs().max()) for ours, ref in pairs)

    for strategy, layout in PLANS:
        for causal in (True, False):
            e = made((4 if causal else 1, length if causal else 2 * length - 1, 8), 4)
            plan = make_plan(
                length, Causal() if causal else Full(), world=world, layout=layout, strategy=strategy, heads=4
            )  # fmt: skip
            compare(
                f"relative {strategy} {layout} {causal}", plan, (q, k, v, e),
                lambda *x, causal=causal, **more: relative_attention(*x, causal=causal, tile=8, **more),
            )  # fmt: skip
        mask = Lambda(3, 9, 12)
        plan = make_plan(length, mask, world=world, layout=layout, strategy=strategy, heads=4, kv_heads=2)
        compare(
            f"lambda {strategy} {layout}", plan, (q, few_k, few_v),
            lambda *x, mask=mask, **more: lambda_attention(*x, mask=mask, theta=50.0, tile=8, **more),
        )  # fmt: skip
    contiguous = make_plan(length, Causal(), world=world).queries
    shard = [contiguous.shard(x, rank) for x in (q, k, v)]
    e = made((4, length, 8), 4)
    out = relative_attention(*shard, e, mesh=transport)  # lengths are told
    errors["no plan"] = float((out - contiguous.shard(relative_attention(q, k, v, e), rank)).abs().max())
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_relative_and_lambda_attention_are_the_same_on_any_number_of_ranks(world: int) -> None:
    for errors in run_ranks(rank_operators, world):
        assert max(errors.values()) <= 1e-12, errors


def rank_disagree(rank: int, world: int) -> list[str]:
    """Ranks that come with different numbers: everybody hears it."""
    said = []
    x = made((2, 2, 5, 8 if rank else 6), 1)
    transport = Transport()
    for call in (
        lambda: relative_attention(x, x, x, made((1, 99, x.shape[3]), 2), mesh=transport),
        lambda: linear_attention(x, x, x, transport=transport),
        lambda: diagonal_scan(x[..., 0:1, :], x, dim=1, transport=transport),
        lambda: prefix_scan((x,), lambda a, b: (a[0] + b[0],), identity=(torch.zeros_like(x),), transport=transport),
    ):
        try:
            call()
            said.append("nothing")
        except PlanMismatch as error:
            said.append(str(error))
    return said


@pytest.mark.distributed
def test_e1_operators_compare_shapes_before_they_send() -> None:
    for rank, said in enumerate(run_ranks(rank_disagree, 3)):
        assert all(f"rank {rank}: " in line and "differs between ranks" in line for line in said), said


def test_a_ceiling_on_rotary_distances_is_refused_where_it_would_be_ignored() -> None:
    x = made((1, 2, 9, 8), 1)
    with pytest.raises(CapabilityError, match="lambda_attention"):
        attention(x, x, x, mask=Lambda(1, 3, 5))
    with pytest.raises(ValueError, match="local - 1"):
        Lambda(1, 8, 3)
