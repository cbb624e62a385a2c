import math
import subprocess
import sys

import pytest
import torch
from longtake.kernels import Full, attention_reference, merge, partial_attention
from longtake.kernels.backends.partial import PartialBackend, partial_backend

BACKENDS = list(PartialBackend)


def random_qkv(
    lq: int, lk: int, dtype: torch.dtype = torch.float64, heads: int = 3, kv_heads: int = 3
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(lq * 1000 + lk)
    shapes = ((2, heads, lq, 8), (2, kv_heads, lk, 8), (2, kv_heads, lk, 8))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize(("lq", "lk"), [(1, 1), (7, 5), (33, 65), (3, 200)])
def test_output_and_log_sum_exp_equal_the_reference(
    backend: PartialBackend, dtype: torch.dtype, tolerance: float, lq: int, lk: int
) -> None:
    q, k, v = random_qkv(lq, lk, dtype)
    out, lse = partial_attention(q, k, v, backend=backend)
    expected, expected_lse = attention_reference(q, k, v, Full())
    assert out.dtype == dtype and lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (out - expected).abs().max() <= tolerance
    assert (lse - expected_lse).abs().max() <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (3, 7, 5), (2, 1, 7, 5), (1, 3, 1, 5), (5,)])
@pytest.mark.parametrize("boolean", [False, True])
def test_a_bias_of_any_broadcastable_shape_is_honoured(
    backend: PartialBackend, shape: tuple[int, ...], boolean: bool
) -> None:
    q, k, v = random_qkv(7, 5)
    bias = torch.randn(shape, dtype=torch.float64)
    visible = bias > -0.5
    visible[..., 0] = True
    given = visible if boolean else bias.masked_fill(~visible, -math.inf)
    additive = torch.zeros(shape, dtype=torch.float64).masked_fill(~visible, -math.inf) if boolean else given
    logits = q @ k.mT / math.sqrt(8) + additive
    out, lse = partial_attention(q, k, v, bias=given, backend=backend)
    assert (out - logits.softmax(-1) @ v).abs().max() <= 1e-12
    assert (lse - logits.logsumexp(-1)).abs().max() <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_visible_key_gives_zero_and_minus_infinity(backend: PartialBackend) -> None:
    q, k, v = random_qkv(4, 6)
    visible = torch.ones(4, 6, dtype=torch.bool)
    visible[2] = False
    out, lse = partial_attention(q, k, v, bias=visible, backend=backend)
    assert (lse[:, :, 2] == -math.inf).all() and (out[:, :, 2] == 0).all()
    assert torch.isfinite(lse[:, :, [0, 1, 3]]).all() and torch.isfinite(out).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lq", "lk"), [(0, 5), (4, 0), (0, 0)])
def test_no_queries_or_no_keys_give_the_identity_of_the_merge(backend: PartialBackend, lq: int, lk: int) -> None:
    """The aten kernel ends the process with SIGFPE on such shapes."""
    out, lse = partial_attention(*random_qkv(lq, lk), backend=backend)
    assert out.shape == (2, 3, lq, 8) and lse.shape == (2, 3, lq)
    assert (out == 0).all() and (lse == -math.inf).all()


def test_the_aten_kernel_has_the_traps_that_are_guarded_against() -> None:
    """When torch mends one of these, its guard can go."""
    q, k, v = random_qkv(4, 6)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    _, lse = kernel(q, k, v, attn_mask=torch.full((1, 1, 4, 6), -math.inf, dtype=q.dtype))
    assert (lse == 0).all()
    with pytest.raises(RuntimeError):
        kernel(q, k, v, attn_mask=torch.ones(1, 1, 4, 6, dtype=torch.bool))
    assert not kernel(q.requires_grad_(), k, v)[1].requires_grad
    program = (
        "import torch; x = torch.ones(1, 1, 2, 8);"
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x[:, :, :0], x[:, :, :0])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode != 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_heads_equal_repeated_heads(backend: PartialBackend) -> None:
    q, k, v = random_qkv(7, 9, heads=6, kv_heads=2)
    repeated = (k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    for mine, plain in zip(partial_attention(q, k, v, backend=backend), attention_reference(q, *repeated), strict=True):
        assert (mine - plain).abs().max() <= 1e-12


def test_different_value_size_goes_to_the_readable_backend_and_a_forced_one_refuses() -> None:
    q, k, v = random_qkv(4, 6)
    wide = torch.cat([v, v], dim=-1)
    assert partial_backend(q, k, v) is PartialBackend.ATEN_CPU and partial_backend(q, k, wide) is PartialBackend.MATH
    assert (partial_attention(q, k, wide)[0] - attention_reference(q, k, wide)[0]).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="aten_cpu needs CPU tensors with D = Dv"):
        partial_attention(q, k, wide, backend=PartialBackend.ATEN_CPU)


def test_a_needed_gradient_is_refused_not_lost() -> None:
    q, k, v = random_qkv(4, 6)
    with pytest.raises(NotImplementedError, match="no backward"):
        partial_attention(q.requires_grad_(), k, v)
    with torch.no_grad():
        partial_attention(q, k, v)


@pytest.mark.parametrize("seed", range(20))
def test_merging_parts_in_any_tree_equals_one_call(seed: int) -> None:
    """Parts over random disjoint key sets, empty ones and hidden rows included, merged in random order."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = random_qkv(5, 23)
    visible = torch.rand(5, 23, generator=generator) < 0.4
    visible[0] = False
    cuts = [0, *sorted(torch.randint(0, 24, (4,), generator=generator).tolist()), 23]
    parts = [
        partial_attention(q, k[:, :, a:b], v[:, :, a:b], bias=visible[:, a:b])
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    while len(parts) > 1:
        first, second = torch.randperm(len(parts), generator=generator)[:2].tolist()
        joined = merge(*parts[first], *parts[second])
        parts = [part for index, part in enumerate(parts) if index not in (first, second)] + [joined]
    out, lse = parts[0]
    whole, whole_lse = partial_attention(q, k, v, bias=visible)
    assert (out - whole).abs().max() <= 1e-12
    assert (lse[:, :, 0] == -math.inf).all() and (out[:, :, 0] == 0).all()
    seen = visible.any(-1)
    assert (lse - whole_lse)[:, :, seen].abs().max() <= 1e-12


def test_the_identity_leaves_a_part_unchanged_on_either_side() -> None:
    out, lse = partial_attention(*random_qkv(4, 6))
    nothing = torch.zeros_like(out), torch.full_like(lse, -math.inf)
    for merged in (merge(out, lse, *nothing), merge(*nothing, out, lse)):
        assert torch.equal(merged[0], out) and torch.equal(merged[1], lse)
    both = merge(*nothing, *nothing)
    assert (both[0] == 0).all() and (both[1] == -math.inf).all()


def test_large_logits_do_not_overflow_the_merge() -> None:
    q, k, v = random_qkv(4, 6, torch.float32)
    halves = [partial_attention(q * 300, k[:, :, part], v[:, :, part]) for part in (slice(0, 3), slice(3, 6))]
    out, lse = merge(*halves[0], *halves[1])
    expected, expected_lse = attention_reference(q * 300, k, v)
    assert (out - expected).abs().max() <= 1e-4 and ((lse - expected_lse) / expected_lse).abs().max() <= 1e-6
