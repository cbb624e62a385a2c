"""Skewed relative bias and LM-Infinite's two rotary phases against their definitions, forward and backward."""

import math

import pytest
import torch
from longtake.kernels.lambda_rotary import lambda_attention, lambda_attention_reference, rotary
from longtake.kernels.relative import relative_attention, relative_bias_tile, skew


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


def test_relative_queries_of_several_ranks_add_up() -> None:
    inputs = [x.requires_grad_() for x in (*(made((1, 2, 23, 8), seed) for seed in (1, 2, 3)), made((2, 23, 8), 4))]
    cotangent = made((1, 2, 23, 8), 5)
    expected = torch.autograd.grad(dense(*inputs, True), inputs, cotangent)
    total = [torch.zeros_like(x) for x in inputs]
    for start, stop in ((0, 9), (9, 9), (9, 23)):
        part = relative_attention(inputs[0][:, :, start:stop], *inputs[1:], q_start=start, tile=4)
        for sum_, grad in zip(total, torch.autograd.grad(part, inputs, cotangent[:, :, start:stop]), strict=True):
            sum_ += grad
    assert all(relmax(ours, reference) <= 1e-12 for ours, reference in zip(total, expected, strict=True))


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
        out = lambda_attention(
            *ours, n_global=n_global, n_local=n_local, max_distance=limit, theta=50.0, tile=16
        )
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
    with pytest.raises(ValueError, match="do not fit 9 keys"):
        relative_attention(x, x, x, e, q_start=3)
    with pytest.raises(ValueError, match="max_distance >= n_local - 1"):
        lambda_attention(x, x, x, n_local=8, max_distance=5)
    with pytest.raises(ValueError, match="even head size"):
        lambda_attention(x[..., :7], x[..., :7], x)
