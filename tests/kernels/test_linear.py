"""LASP-2 and prefix scans over ranks against the recurrences, written out; bytes and calls by formula."""

from typing import Any

import pytest
import torch
from longtake.kernels.linear.lasp2 import linear_attention, linear_attention_reference, not_fused
from longtake.kernels.linear.scan import (
    conv_s5,
    diagonal_scan,
    diagonal_scan_reference,
    diagonal_ssm,
    prefix_scan,
)
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport, Transport
from ranks import run_ranks

SIZES = {
    1: [(13,)],
    2: [(9, 9), (3, 14)],
    3: [(8, 8, 8), (5, 0, 12), (0, 1, 9), (7, 2, 0)],
    4: [(4, 4, 4, 4), (0, 6, 1, 9)],
}
MODES = ["full", "causal", "head", "token", "channel"]
B, H, DK, DV = 2, 3, 4, 5


def made(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relmax(x: torch.Tensor, reference: torch.Tensor, piece: slice | None = None) -> float:
    """Largest error of x against the piece (of dim -2) of the reference that it stands for, over the largest value."""
    part = reference if piece is None else reference[..., piece, :]
    assert x.shape == part.shape
    return float((x - part).detach().abs().max() / reference.detach().abs().max()) if part.numel() else 0.0


def log_decay(mode: str, total: int) -> torch.Tensor | None:
    shapes = {"head": (H,), "token": (B, H, total), "channel": (B, H, total, DK)}
    return None if mode not in shapes else -made(shapes[mode], 9).abs()


def linear_case(
    rank: int, world: int, sizes: tuple[int, ...], mode: str, normalize: bool, dtype: torch.dtype, transport: Transport
) -> dict[str, float]:
    """Relative errors of output and gradients of my shard against the reference over the whole sequence."""
    partition = Partition.from_sizes(sizes)
    mine = slice(*partition.pieces[rank])
    total = partition.total
    q, k = made((B, H, total, DK), 1).abs(), made((B, H, total, DK), 2).abs()
    v, decay, cotangent = made((B, H, total, DV), 3), log_decay(mode, total), made((B, H, total, DV), 4)
    whole = [x.clone().requires_grad_() for x in (q, k, v, decay) if x is not None]
    expected = linear_attention_reference(*whole, causal=mode != "full", normalize=normalize)
    expected_grads = torch.autograd.grad(expected, whole, cotangent)
    sharded = [decay is None or decay.dim() > 1 or i < 3 for i in range(len(whole))]
    local = [
        (x.detach()[:, :, mine] if cut else x.detach()).to(dtype).requires_grad_()
        for x, cut in zip(whole, sharded, strict=True)
    ]
    out = linear_attention(
        *local[:3], decay=local[3] if decay is not None else None, causal=mode != "full", normalize=normalize,
        transport=transport, chunk=4,
    )  # fmt: skip
    grads = torch.autograd.grad(out, local, cotangent[:, :, mine].to(dtype))
    errors = {"o": relmax(out.double(), expected, mine)}
    for name, grad, reference, cut in zip("qkvg", grads, expected_grads, sharded, strict=False):
        if cut and reference.dim() == 3:  # one decay for each token
            errors[name] = relmax(grad.double()[..., None], reference[..., None], mine)
        elif cut:
            errors[name] = relmax(grad.double(), reference, mine)
        else:  # one decay for all tokens: the shards' gradients add up
            total_grad = grad.double().clone()
            if world > 1:
                torch.distributed.all_reduce(total_grad)
            errors[name] = relmax(total_grad, reference)
    return errors


def rank_linear(rank: int, world: int) -> list[tuple[Any, ...]]:
    answers: list[tuple[Any, ...]] = []
    for sizes in SIZES[world]:
        for mode in MODES:
            for normalize in (False, True):
                for dtype in (torch.float64, torch.float32):
                    transport = Transport()
                    errors = linear_case(rank, world, sizes, mode, normalize, dtype, transport)
                    counts = transport.counter.as_dict()
                    answers.append((sizes, mode, normalize, str(dtype), max(errors.values()), errors, counts))
    return answers


def check_linear(world: int, answers: list[list[tuple[Any, ...]]]) -> None:
    for rank in answers:
        assert len(rank) == len(SIZES[world]) * len(MODES) * 4
        for sizes, mode, normalize, dtype, worst, errors, counts in rank:
            assert worst <= (1e-12 if dtype == "torch.float64" else 2e-5), (sizes, mode, normalize, dtype, errors)
            state = B * H * DK * (DV + normalize)
            factor = {"head": B * H, "token": B * H, "channel": B * H * DK}.get(mode, 0)
            size = 8 if dtype == "torch.float64" else 4
            expected = size * (world - 1) * (2 * state + factor)  # forward and backward
            assert counts["sent"].get("gather", 0) == counts["received"].get("gather", 0) == expected
            assert counts["calls"].get("gather", 0) == (2 if world > 1 else 0)  # one collective each way
            assert set(counts["sent"]) <= {"gather", "check"}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.distributed
def test_a11_lasp2_over_ranks_is_exact_in_one_collective_each_way(world: int) -> None:
    check_linear(world, [rank_linear(0, 1)] if world == 1 else run_ranks(rank_linear, world))


def test_b_lasp2_bytes_do_not_depend_on_the_length() -> None:
    sent = []
    for tokens in (8, 64):
        transport = DryTransport(1, 4)
        x = torch.zeros(B, H, tokens, DK)
        linear_attention(x, x, torch.zeros(B, H, tokens, DV), causal=True, transport=transport)
        sent.append(transport.counter.sent["gather"])
    assert sent == [B * H * DK * DV * 4 * 3] * 2


def test_strong_decay_does_not_overflow() -> None:
    q, k, v = (made((1, 1, 200, DK), seed).float() for seed in (1, 2, 3))
    for shape in ((1,), (1, 1, 200), (1, 1, 200, DK)):
        decay = torch.full(shape, -30.0)
        out = linear_attention(q, k, v, decay=decay, causal=True)
        assert relmax(out.double(), linear_attention_reference(q, k, v, decay, causal=True)) <= 1e-5


def test_half_precision_sums_in_float32() -> None:
    q, k, v = (made((1, 2, 100, 8), seed).abs() for seed in (1, 2, 3))
    for dtype, bound in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        out = linear_attention(q.to(dtype), k.to(dtype), v.to(dtype), causal=True, normalize=True)
        assert out.dtype == dtype
        assert relmax(out.double(), linear_attention_reference(q, k, v, causal=True, normalize=True)) <= bound


def test_what_does_not_fit_raises() -> None:
    x = torch.zeros(1, 2, 5, 4)
    with pytest.raises(ValueError, match="causal=True"):
        linear_attention(x, x, x, decay=torch.zeros(2))
    with pytest.raises(ValueError, match="decay must be"):
        linear_attention(x, x, x, decay=torch.zeros(3), causal=True)
    with pytest.raises(ValueError, match="one dtype"):
        linear_attention(x, x, x.double())
    with pytest.raises(ValueError, match="shapes do not fit"):
        linear_attention(x, x[:, :1], x)
    with pytest.raises(ValueError, match="chunk"):
        linear_attention(x, x, x, chunk=0)
    with pytest.raises(ValueError, match="must have the dtype"):
        diagonal_scan(x[:, :, 0], x.double(), dim=2)
    with pytest.raises(ValueError, match="as many steps in dim 2"):
        diagonal_scan(x[:, :, :3], x, dim=2)
    with pytest.raises(ValueError, match="constant a over several ranks"):
        diagonal_scan(x[:, :, 0], x, dim=2, transport=DryTransport(0, 2))
    assert linear_attention(x[:, :, :0], x[:, :, :0], x[:, :, :0], causal=True).shape == (1, 2, 0, 4)


# --- scans ---


def affine(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Matrices that do not commute, so that the order of ranks shows."""
    return second[0] @ first[0], second[0] @ first[1] + second[1]


def rank_scans(rank: int, world: int) -> dict[str, Any]:
    errors: dict[str, float] = {}
    counts: dict[str, Any] = {}
    # prefix_scan of a non-commutative monoid, forward and reverse, with gradients
    for reverse in (False, True):
        inputs = [(made((3, 3), 10 + r).requires_grad_(), made((3, 2), 20 + r).requires_grad_()) for r in range(world)]
        identity = (torch.eye(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
        loss = torch.zeros((), dtype=torch.float64)
        mine = None
        for r in range(world):
            total = identity
            for s in range(r + 1, world) if reverse else range(r):
                total = affine(total, inputs[s])
            loss = loss + (total[0] * made((3, 3), 30 + r)).sum() + (total[1] * made((3, 2), 40 + r)).sum()
            mine = total if r == rank else mine
        expected = torch.autograd.grad(loss, inputs[rank], allow_unused=True) if world > 1 else (None, None)
        local = tuple(x.detach().requires_grad_() for x in inputs[rank])
        transport = Transport()
        out = prefix_scan(local, affine, identity=identity, transport=transport, reverse=reverse)
        seeds = (made((3, 3), 30 + rank), made((3, 2), 40 + rank))
        grads = torch.autograd.grad(out, local, seeds)
        assert mine is not None
        for name, x, y in zip(("A", "b", "dA", "db"), (*out, *grads), (*mine, *expected), strict=True):
            reference = torch.zeros_like(x) if y is None else y
            errors[f"prefix {reverse} {name}"] = float((x - reference).detach().abs().max() / 10)
        counts[f"prefix {reverse}"] = transport.counter.as_dict()

    for sizes in SIZES[world]:
        partition = Partition.from_sizes(sizes)
        piece = slice(*partition.pieces[rank])
        total = partition.total
        for dtype in (torch.complex128, torch.float64):
            for steady in (True, False):
                shape = (1, 4) if steady else (2, total, 4)
                radius = 0.5 + 0.5 * torch.sigmoid(made(shape, 1))
                a = radius.to(dtype) * (torch.exp(1j * made(shape, 2)) if dtype.is_complex else 1)
                u = made((2, total, 4), 3) + (1j * made((2, total, 4), 4) if dtype.is_complex else 0)
                seed = made((2, total, 4), 5) + (1j * made((2, total, 4), 6) if dtype.is_complex else 0)
                a, u = a.requires_grad_(), u.requires_grad_()
                expected_x = diagonal_scan_reference(a, u)
                grad_a, grad_u = torch.autograd.grad(expected_x, (a, u), seed)
                mine_a = (a.detach() if steady else a.detach()[:, piece]).requires_grad_()
                mine_u = u.detach()[:, piece].requires_grad_()
                transport = Transport()
                x = diagonal_scan(mine_a, mine_u, transport=transport, partition=partition)
                got_a, got_u = torch.autograd.grad(x, (mine_a, mine_u), seed[:, piece])
                if steady and world > 1:
                    got_a = torch.view_as_real(got_a).contiguous() if dtype.is_complex else got_a
                    torch.distributed.all_reduce(got_a)
                    got_a = torch.view_as_complex(got_a) if dtype.is_complex else got_a
                label = f"{sizes} {dtype} {'steady' if steady else 'varying'}"
                errors[f"{label} x"] = relmax(x, expected_x, piece)
                errors[f"{label} du"] = relmax(got_u, grad_u, piece)
                errors[f"{label} da"] = relmax(got_a, grad_a, None if steady else piece)
                size = 16 if dtype.is_complex else 8
                formula = (world - 1) * size * (2 * 2 * 4 + (0 if steady else 2 * 4))
                sent = transport.counter.sent.get("gather", 0)
                assert sent == formula and transport.counter.calls.get("gather", 0) == (2 if world > 1 else 0), label

        u, width = made((2, total, 3), 7), 4
        parameters = [-0.1 - made((width,), 1).abs() + 1j * made((width,), 2)]
        parameters += [made(shape, 3) + 1j * made(shape, 4) for shape in ((width, 3), (2, width))]
        for rule in ("zoh", "bilinear"):
            options = {"d": made((2, 3), 5), "step": 0.1 + made((width,), 6).abs(), "discretization": rule}
            expected = diagonal_ssm(u, *parameters, **options)
            transport = Transport()
            y = diagonal_ssm(u[:, piece], *parameters, **options, transport=transport, partition=partition)
            errors[f"{sizes} s5 {rule}"] = relmax(y, expected, piece)
            assert transport.counter.sent.get("gather", 0) == (world - 1) * 16 * 2 * width
        images = made((1, total, 2, 5, 4), 8)
        kernels = (made((3, 2, 3, 3), 9), made((2, 3, 1, 3), 10), made((2, 2, 1, 1), 11))
        gate = torch.sigmoid(made((3,), 12))
        expected = conv_s5(images, gate, *kernels)
        y = conv_s5(images[:, piece], gate, *kernels, transport=Transport(), partition=partition)
        errors[f"{sizes} convs5"] = relmax(y.flatten(2), expected.flatten(2), piece)
    return {"errors": errors, "counts": counts}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.distributed
def test_a11_scans_over_ranks_are_exact_in_one_collective_each_way(world: int) -> None:
    for answer in [rank_scans(0, 1)] if world == 1 else run_ranks(rank_scans, world):
        assert max(answer["errors"].values()) <= 1e-12, {k: v for k, v in answer["errors"].items() if v > 1e-12}
        for counts in answer["counts"].values():
            assert counts["calls"].get("gather", 0) == (2 if world > 1 else 0)
            assert counts["sent"].get("gather", 0) == (world - 1) * 2 * 8 * (9 + 6)


def test_s4d_as_a_convolution_equals_the_scan() -> None:
    """The other exact way: y = FFT convolution with K_m = 2 Re(C A^m B)."""
    steps, width = 50, 6
    a = -0.5 + 1j * torch.pi * torch.arange(width).double()  # S4D-Lin
    b, c = torch.ones(width, 1, dtype=torch.complex128), made((1, width), 1) + 1j * made((1, width), 2)
    u, dt = made((2, steps, 1), 3), 0.03
    y = diagonal_ssm(u, a, b, c, step=dt)
    powers = (a * dt).exp()[:, None] ** torch.arange(steps)
    kernel = 2 * ((c * (((a * dt).exp() - 1) / a)) @ powers).real[0]
    spectrum = torch.fft.rfft(u[..., 0], 2 * steps) * torch.fft.rfft(kernel, 2 * steps)
    assert relmax(y[..., 0], torch.fft.irfft(spectrum, 2 * steps)[:, :steps]) <= 1e-12


def test_conv_s5_equals_its_recurrence() -> None:
    import torch.nn.functional as F

    images, gate = made((1, 6, 2, 5, 4), 1), torch.sigmoid(made((3,), 2))
    b, c, d = made((3, 2, 3, 3), 3), made((2, 3, 3, 1), 4), made((2, 2, 1, 1), 5)
    state, frames = torch.zeros(1, 3, 5, 4, dtype=torch.float64), []
    for t in range(6):
        state = gate.view(1, 3, 1, 1) * state + F.conv2d(images[:, t], b, padding=(1, 1))
        frames.append(F.conv2d(state, c, padding=(1, 0)) + F.conv2d(images[:, t], d))
    assert relmax(conv_s5(images, gate, b, c, d), torch.stack(frames, 1)) <= 1e-12
    with pytest.raises(ValueError, match="odd"):
        conv_s5(images, gate, b[..., :2], c)


class OnDevice(torch.Tensor):
    """A tensor that says it lies on a CUDA device."""

    is_cuda = True


def test_the_fused_kernel_takes_what_it_serves_within_its_bounds_and_nothing_else() -> None:
    pytest.importorskip("triton")
    q, alone = torch.zeros(1, 2, 8, 4), DryTransport(0, 1)
    assert "not on a CUDA device" in str(not_fused(q, q, None, False, alone, None))
    q, head, wide = q.as_subclass(OnDevice), torch.zeros(2), torch.zeros(1, 2, 8, 4)
    assert not_fused(q, q, None, False, alone, None) is None and not_fused(q, q, head, False, alone, 32) is None
    learned = head.clone().requires_grad_()
    with torch.no_grad():
        assert not_fused(q, q, learned, False, alone, None) is None
    for reason, case in {
        "wants a gradient": (q, q, learned, False, alone, None), "width Dk": (q, q, wide, False, alone, None),
        "normalised": (q, q, None, True, alone, None), "chunks of 24": (q, q, None, False, alone, 24),
        "several ranks": (q, q, None, False, DryTransport(0, 2), None),
        "float64": (q.double(), q, None, False, alone, None),
    }.items():  # fmt: skip
        assert reason in str(not_fused(*case)), reason
