"""GPU backends: their calls against torch's own shape functions, stand-ins with the packages' signatures, the rules
given to flex, reasons on a machine without a GPU; and, marked `gpu`, numbers against the float64 reference."""

import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import attention_cases
import efficient_kernel
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
    Full,
    KeyPadding,
    Lambda,
    Or,
    SlidingWindow,
    TileKind,
    attention,
    attention_reference,
    explain,
    make_plan,
)
from longtake.kernels.backends.contract import Capabilities, Request
from longtake.kernels.backends.flash_attn import FlashPackage
from longtake.kernels.backends.flex import mask_rule, part_gradients, unsuited
from longtake.kernels.backends.partial import partial_attention
from longtake.kernels.backends.registry import ByKind, Registry, backends, choose_backend
from longtake.kernels.backends.torch_cuda import TorchCudnn, TorchEfficient, TorchFlash, aligned_bias, cuda_devices
from longtake.kernels.plan.tiles import Tile
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
N, LQ, LK = 61, 37, 29


def bits(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.4


RULES: list[Any] = [
    Full(), Causal(2), SlidingWindow(9, 2), SlidingWindow(None, 3), DualScope(5, (3, 40, 50)), Lambda(4, 9),
    DualScope(5, (3, 40), bias_local=-math.inf), BlockSparse(16, 8, bits(4, 8)), Documents((0, 20, 20, 50)),
    Documents((0, 20, 61), (0, 30, 55)), KeyPadding(40), And(Causal(), Documents((0, 20, 61))),
    Or(Causal(), SlidingWindow(0, 4)),
]  # fmt: skip


GPU_MASKS = {
    "full": Full(), "causal": Causal(), "window": SlidingWindow(90, 20), "dual": DualScope(50, (3, 140, 400)),
    "documents": Documents((0, 200, 260, 640)), "lambda": Lambda(8, 100),
}  # fmt: skip


HALF_BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the largest value


def rms(x: torch.Tensor, ref: torch.Tensor) -> float:
    """Root mean square of the error over that of the right values."""
    return float((x.double() - ref).square().mean().sqrt() / ref.square().mean().sqrt())


class Seen(TorchDispatchMode):
    """Writes down the operators that run, on fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.__name__, args))
        return func(*args, **(kwargs or {}))


def tile_of(kind: TileKind) -> Tile:
    bias = torch.where(bits(LQ, LK), 0.0, -math.inf) if kind is TileKind.DENSE else None
    keys = LQ if kind is TileKind.CAUSAL else LK
    return Tile((0, LQ), ((0, keys),), kind, 1, bias, bias is not None)


def wanted_operator(name: str) -> str:
    return f"_scaled_dot_product_{name}_attention"


@pytest.mark.parametrize("backend", [TorchFlash(), TorchEfficient(), TorchCudnn()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("kind", list(TileKind))
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (40, 24), (37, 61)])
def test_torch_kernels_are_called_as_their_schemas_and_shape_functions_want(
    backend: Any, kind: TileKind, dim: int, value_dim: int
) -> None:
    if kind not in backend.kinds:
        return
    tile = tile_of(kind)
    # fake tensors need no such device to be there
    device = "cuda"
    with FakeTensorMode(allow_non_fake_inputs=True), Seen() as seen:
        q = torch.empty(2, 6, LQ, dim, dtype=torch.bfloat16, device=device)
        k = torch.empty(2, 2, tile.n_keys, dim, dtype=torch.bfloat16, device=device)
        v = torch.empty(2, 2, tile.n_keys, value_dim, dtype=torch.bfloat16, device=device)
        out, lse = backend.forward(q, k, v, tile, 0.2)
        assert out.shape == (2, 6, LQ, value_dim) and out.dtype == torch.bfloat16
        assert lse.shape == (2, 6, LQ) and lse.dtype == torch.float32
        if backend.grad:
            grads = backend.backward(out.float(), q, k, v, out.float(), lse, tile, 0.2)
            assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]
        else:
            with pytest.raises(NotImplementedError, match="forward only"):
                backend.backward(out, q, k, v, out, lse, tile, 0.2)
    names = [name for name, _ in seen.calls]
    assert f"{wanted_operator(backend.name)}.default" in names
    assert (f"{wanted_operator(backend.name)}_backward.default" in names) == backend.grad
    args = dict(seen.calls)[f"{wanted_operator(backend.name)}.default"]
    widths = {x.shape[-1] for x in args[:3]}
    assert len(widths) == 1 and widths.pop() % 8 == 0
    if not backend.gqa:
        assert args[1].shape[1] == 6


def test_biases_of_efficient_attention_have_aligned_rows() -> None:
    q, k = torch.empty(2, 6, LQ, 8, dtype=torch.bfloat16), torch.empty(2, 6, LK, 8, dtype=torch.bfloat16)
    tile = tile_of(TileKind.DENSE)
    bias = aligned_bias(tile, q, k)
    assert bias is not None and bias.shape == (2, 6, LQ, LK) and bias.dtype == torch.bfloat16
    assert bias.stride(2) % 16 == 0 and bias.stride(3) == 1
    assert tile.bias is not None and torch.equal(bias[1, 3].float(), tile.bias)


@pytest.mark.parametrize("mask", list(GPU_MASKS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_backward_of_efficient_attention_is_given_o_as_its_kernel_reads_it(
    mask: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the dual scope's dQ erred by 0.446 (bf16) and 0.444 (fp16): the kernel takes the rows of O as lying H *
    Dv apart, and merged tiles did not. The stand-in reads memory the same way, and gave the same two numbers."""
    efficient_kernel.put_in(monkeypatch)
    monkeypatch.setattr("longtake.kernels.backends.torch_cuda.cuda_devices", lambda: frozenset({"cpu"}))
    q, k, v, d_out = attention_cases.whole_tensors(320, 320, 6, 6, 64, dtype)
    scope = DualScope(50, (3, 140, 300)) if mask == "dual" else GPU_MASKS[mask]
    expected = attention_cases.truth(q, k, v, d_out, scope)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, mask=scope, backend="efficient")
    found = [out.detach(), *torch.autograd.grad(out, leaves, d_out)]
    for ours, ref in zip(found, expected, strict=False):
        assert attention_cases.relmax(ours, ref) <= HALF_BOUNDS.get(dtype, 1e-5)


def test_a_backward_given_another_layout_of_o_would_be_wrong() -> None:
    """The stand-in is strict: what the test above rules out does err there."""
    q, k, v, d_out = attention_cases.whole_tensors(64, 64, 6, 6, 64, torch.bfloat16)
    right = attention_cases.truth(q, k, v, d_out, Full())
    out, lse, *_ = efficient_kernel.forward(q, k, v, None, True, 0.0, False)
    nothing = torch.zeros(())
    errors = []
    for laid in (out, out.contiguous()):
        grads = efficient_kernel.backward(
            d_out, q, k, v, None, laid, lse, nothing, nothing, 0.0, [True, True, True, False], False
        )
        errors.append(attention_cases.relmax(grads[0], right[1]))
    assert errors[0] <= 2e-2 and errors[1] > 0.1


def run_package(q: Any, k: Any, v: Any, scale: Any, causal: bool, softcap: float = 0.0) -> tuple[Any, Any]:
    """What flash-attn computes, by definition, in its layout (B, L, H, D); causal is bottom right there."""
    mask = Causal(k.shape[1] - q.shape[1]) if causal else Full()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out, lse = attention_reference(q, k, v, mask, scale=scale, softcap=softcap)
    return out.transpose(1, 2).to(q.dtype), lse.float()


def package_gradients(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, scale: Any, causal: bool) -> list[Any]:
    """From the O and L that are handed over, as the real ones."""
    assert lse.dtype == torch.float32 and lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    dout, q, k, v, out = (x.transpose(1, 2).double() for x in (dout, q, k, v, out))
    groups = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.repeat_interleave(groups, 1) for x in (k, v))
    logits = scale * q @ wide_k.mT
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -math.inf)
    p = (logits - lse[..., None].double()).exp()
    d_s = p * (dout @ wide_v.mT - (dout * out).sum(-1, keepdim=True))
    fold = [(scale * d_s.mT @ q).unflatten(1, (-1, groups)).sum(2), (p.mT @ dout).unflatten(1, (-1, groups)).sum(2)]
    return [x.transpose(1, 2) for x in (scale * d_s @ wide_k, *fold)]


def fill(into: list[Any], values: list[Any]) -> None:
    for place, value in zip(into, values, strict=True):
        place.copy_(value)


# The signatures of flash-attn 2.8.3, of FlashAttention 3's interface, and of flash-attn-4 4.0.0b36 as far as they
# matter: which arguments have no default, and how they are called.
def forward_2(
    q,
    k,
    v,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    return_softmax,
):  # type: ignore[no-untyped-def]  # noqa: E501, ANN001, ANN201
    assert (window_size_left, window_size_right, dropout_p, alibi_slopes, return_softmax) == (-1, -1, 0.0, None, False)
    return *run_package(q, k, v, softmax_scale, causal, softcap), None, None


def backward_2(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
):  # type: ignore[no-untyped-def]  # noqa: E501, ANN001, ANN201
    assert (window_size_left, window_size_right, dropout_p, rng_state) == (-1, -1, 0.0, None)
    fill([dq, dk, dv], package_gradients(dout, q, k, v, out, softmax_lse, softmax_scale, causal))


def forward_3(
    q,
    k,
    v,
    k_new,
    v_new,
    qv,
    out_,
    cu_seqlens_q,
    cu_seqlens_k,
    cu_seqlens_k_new,
    seqused_q,
    seqused_k,
    max_seqlen_q,
    max_seqlen_k,
    page_table,
    kv_batch_idx,
    leftpad_k,
    rotary_cos,
    rotary_sin,
    seqlens_rotary,
    q_descale,
    k_descale,
    v_descale,
    softmax_scale,
    causal,
    window_size=(-1, -1),
    softcap=0.0,
    num_splits=1,
):  # type: ignore[no-untyped-def]  # noqa: E501, ANN001, ANN201
    assert k_new is None and page_table is None and window_size == (-1, -1) and num_splits == 1
    return *run_package(q, k, v, softmax_scale, causal, softcap), None


def backward_3(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    cu_seqlens_q,
    cu_seqlens_k,
    sequed_q,
    sequed_k,
    max_seqlen_q,
    max_seqlen_k,
    dq,
    dk,
    dv,
    softmax_scale,
    causal,
    window_size=(-1, -1),
    softcap=0.0,
    deterministic=False,
):  # type: ignore[no-untyped-def]  # noqa: E501, ANN001, ANN201
    assert cu_seqlens_q is None and max_seqlen_k is None
    fill([dq, dk, dv], package_gradients(dout, q, k, v, out, softmax_lse, softmax_scale, causal))


def forward_4(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    softcap=None,
    window_size_left=None,
    window_size_right=None,
    num_splits=1,
    return_lse=False,
):  # type: ignore[no-untyped-def]  # noqa: E501, ANN001, ANN201
    assert return_lse and window_size_left is None and window_size_right is None
    return *run_package(q, k, v, softmax_scale, causal, softcap or 0.0), None, None, None


def backward_4(
    q,
    k,
    v,
    out,
    dout,
    lse,
    softmax_scale=None,
    causal=False,
    softcap=0.0,
    window_size_left=None,
    window_size_right=None,
    deterministic=False,
    dq=None,
    dk=None,
    dv=None,
):  # type: ignore[no-untyped-def]  # noqa: E501, ANN001, ANN201
    fill([dq, dk, dv], package_gradients(dout, q, k, v, out, lse, softmax_scale, causal))
    return dq, dk, dv


STAND_INS = {
    "flash_attn_2": (-1, {"_flash_attn_forward": forward_2, "_flash_attn_backward": backward_2}),
    "flash_attn_3": (-1, {"_flash_attn_forward": forward_3, "_flash_attn_backward": backward_3}),
    "flash_attn_4": (None, {"_flash_attn_fwd": forward_4, "_flash_attn_bwd": backward_4}),
}


@pytest.fixture
def stand_in(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlashPackage]:
    window, functions = STAND_INS[request.param]
    module = types.ModuleType("stand_in_flash")
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "stand_in_flash", module)
    return FlashPackage(request.param, "stand_in_flash", window, 8)


@pytest.mark.parametrize("stand_in", list(STAND_INS), indirect=True)
@pytest.mark.parametrize("kind", [TileKind.FULL, TileKind.CAUSAL])
def test_the_adapters_of_flash_attn_lay_out_pad_and_hand_over_the_global_l(stand_in: Any, kind: TileKind) -> None:
    tile = tile_of(kind)
    generator = torch.Generator().manual_seed(3)
    q, k, v, d_out = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 6, LQ, 20), (2, 2, tile.n_keys, 20), (2, 2, tile.n_keys, 13), (2, 6, LQ, 13))
    )
    causal = kind is TileKind.CAUSAL
    out, lse = stand_in.forward(q, k, v, tile, 0.3)
    expected = partial_attention(q, k, v, causal=causal, scale=0.3)
    assert (out - expected[0]).abs().max() <= 1e-12 and (lse - expected[1]).abs().max() <= 1e-6
    # as in a call with more tiles: the O and L of all keys, not of these
    more_out, more_lse = torch.randn(out.shape, generator=generator, dtype=out.dtype), lse + 0.7
    found = stand_in.backward(d_out, q, k, v, more_out, more_lse, tile, 0.3)
    math_tile = choose_backend(Request(torch.float64, 20, 13, "cpu"), "math")
    wanted = math_tile.backward(d_out, q, k, v, more_out, more_lse.double(), tile, 0.3)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("stand_in", list(STAND_INS), indirect=True)
def test_the_adapters_hand_over_a_soft_cap(stand_in: Any) -> None:
    q, k, v = (torch.randn(1, 2, 9, 8, dtype=torch.float64) for _ in range(3))
    out, _ = stand_in.capped(1.5).forward(q, k, v, Tile((0, 9), ((0, 9),), TileKind.FULL, 81), 0.3)
    assert (out - attention_reference(q, k, v, scale=0.3, softcap=1.5)[0]).abs().max() <= 1e-12


def test_a_release_that_wants_something_unknown_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("stand_in_flash")

    def forward(q, k, v, softmax_scale, causal, tea_strength):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        raise AssertionError

    module._flash_attn_forward = forward  # type: ignore[attr-defined]
    module._flash_attn_backward = backward_2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_flash", module)
    monkeypatch.setattr("longtake.kernels.backends.flash_attn.cuda_devices", lambda: frozenset({"gpu"}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    request = Request(torch.bfloat16, 64, 64, "gpu", grad=True)
    assert "tea_strength" in str(FlashPackage("flash_attn_2", "stand_in_flash", -1, 8).refuses(request))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "needs 8.0" in str(FlashPackage("flash_attn_2", "stand_in_flash", -1, 8).refuses(request))


@pytest.mark.parametrize("mask", RULES, ids=str)
def test_flex_is_given_the_mask_as_it_is(mask: Any) -> None:
    places = torch.arange(N)
    rule = mask_rule(mask, places, places)
    assert torch.equal(rule(places[:, None], places[None, :]), mask.dense(range(N), range(N)))
    some = torch.tensor([5, 60, 3, 17, 44])
    rule = mask_rule(mask, some, places)
    assert torch.equal(rule(torch.arange(5)[:, None], places[None, :]), mask.dense(some, range(N)))


@pytest.mark.parametrize("mask", RULES, ids=str)
def test_flex_on_a_cpu_is_an_oracle_of_the_forward(mask: Any) -> None:
    q, k, v = attention_cases.whole_tensors(N, N, 4, 2, 16, torch.float64)[:3]
    out, lse = attention(q, k, v, mask=mask, backend="flex", return_lse=True)
    expected, expected_lse = attention_reference(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask)
    assert (out - expected).abs().max() <= 1e-12
    assert torch.allclose(lse, expected_lse, atol=1e-6)


def test_flex_says_what_it_does_not_serve() -> None:
    assert unsuited(DualScope(2, (1,), bias_local=0.5)) == "masks with biases"
    assert unsuited(Dense(bits(4, 4))) == "masks of class Dense"
    assert unsuited(Or(Full(), BlockSparse(2, 2, bits(3, 2, 2)))) == "masks that differ between heads or batch entries"
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    with pytest.raises(CapabilityError, match="no backward"):
        attention(q, q, q, mask=Causal(), backend="flex")
    with torch.no_grad():  # parameters may need a gradient all the same
        assert attention(q, q, q, mask=Causal(), backend="flex").shape == q.shape


def test_gradients_of_a_part_follow_from_its_own_o_and_l() -> None:
    q, k, v, d_out = attention_cases.whole_tensors(20, 30, 2, 2, 8, torch.float64)
    parts = [(k[:, :, :11], v[:, :, :11]), (k[:, :, 11:], v[:, :, 11:])]
    hidden = torch.zeros(20, 11, dtype=torch.float64)
    hidden[3] = -math.inf  # a row that the first part shows nothing

    def dense(bias: Any) -> Any:
        def run(q: Any, k: Any, v: Any) -> Any:
            logits = q @ k.mT * 8**-0.5 + bias
            blind = (logits == -math.inf).all(-1)
            lse = logits.masked_fill(blind[..., None], 0).logsumexp(-1).masked_fill(blind, -math.inf)
            return (logits - lse.masked_fill(lse == -math.inf, 0)[..., None]).exp() @ v, lse

        return run

    bias = torch.cat([hidden, torch.zeros(20, 19, dtype=torch.float64)], 1)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = dense(bias)(*leaves)
    expected = torch.autograd.grad(out, leaves, d_out)
    found = [
        part_gradients(dense(b), d_out, q, *part, out.detach(), lse.detach())
        for b, part in zip((hidden, 0.0), parts, strict=True)
    ]
    together = [
        found[0][0] + found[1][0],
        *(torch.cat([a, b], 2) for a, b in zip(found[0][1:], found[1][1:], strict=True)),
    ]
    for ours, theirs in zip(together, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_e6_a_gpu_backend_forced_on_a_cpu_says_why_not(name: str) -> None:
    q = torch.randn(1, 2, 8, 16)
    with pytest.raises(CapabilityError, match=f"'{name}' cannot serve: no accelerator"):
        attention(q, q, q, backend=name)
    reasons = explain(q, q, q, mask=Causal()).rejected_backends
    assert any(reason.startswith(f"{name}: no accelerator") for reason in reasons)


class Claims:
    """A backend that claims to serve some kinds."""

    def __init__(self, name: str, *kinds: TileKind) -> None:
        self.name, self._kinds = name, frozenset(kinds)

    def capabilities(self) -> Capabilities:
        return Capabilities(kinds=self._kinds)

    def refuses(self, request: Request) -> str | None:
        return None if request.kinds <= self._kinds else "kinds"

    def forward(self, *args: Any) -> Any:
        return self.name


def test_tiles_with_and_without_a_bias_may_go_to_two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.register(Claims("fast", TileKind.FULL, TileKind.CAUSAL))  # type: ignore[arg-type]
    registry.register(Claims("general", TileKind.FULL, TileKind.CAUSAL, TileKind.DENSE))  # type: ignore[arg-type]
    monkeypatch.setattr("longtake.kernels.backends.registry._REGISTRY", registry)
    everything = frozenset({TileKind.FULL, TileKind.CAUSAL, TileKind.DENSE})
    both = choose_backend(Request(torch.float32, 8, 8, "cpu", everything))
    assert isinstance(both, ByKind) and both.name == "fast+general"
    answers = [both.forward(*[torch.empty(0)] * 3, tile_of(kind), 1.0) for kind in TileKind if kind in everything]
    assert sorted(answers) == ["fast", "fast", "general"]
    assert choose_backend(Request(torch.float32, 8, 8, "cpu")).name == "fast"
    assert choose_backend(Request(torch.float32, 8, 8, "cpu", everything), "general").name == "general"


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("mask", list(GPU_MASKS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_h_every_backend_of_a_gpu_errs_at_most_twice_as_much_as_torch(mask: str, dtype: torch.dtype) -> None:
    """In the root mean square. What is computed in one kernel ends with one rounding to half precision; of a call in
    tiles each part's O and gradients end so, and the whole once more. Up to three parts meet in nearly every row and
    key here, so four roundings of the size of torch's one, at random: twice. The largest of 491,520 errors says less:
    it moves by a tenth between two kernels of torch's own. For it only the bound by definition stands."""
    (device,) = cuda_devices()
    q, k, v, d_out = (x.to(device) for x in attention_cases.whole_tensors(640, 640, 6, 6, 64, dtype))
    expected = attention_cases.truth(*(x.cpu() for x in (q, k, v, d_out)), GPU_MASKS[mask])
    bias = GPU_MASKS[mask].score(range(640), range(640)).to(device, dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    alone = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=bias)
    base = [alone.detach(), *torch.autograd.grad(alone, leaves, d_out)]
    served = []
    for backend in backends():
        grad = backend.capabilities().grad
        try:
            for leaf in leaves:
                leaf.requires_grad_(grad)
            out, lse = attention(*leaves, mask=GPU_MASKS[mask], backend=backend.name, return_lse=True)
        except CapabilityError:
            continue
        served.append(backend.name)
        found = [out.detach(), *(torch.autograd.grad(out, leaves, d_out) if grad else ())]
        assert lse.shape == q.shape[:3] and (lse.cpu() - expected[4]).abs().max() <= 2e-2
        for ours, theirs, ref in zip(found, base, expected, strict=False):
            assert attention_cases.relmax(ours.cpu(), ref) <= HALF_BOUNDS[dtype], backend.name
            assert rms(ours.cpu(), ref) <= 2 * rms(theirs.cpu(), ref), backend.name
    assert {"math", "efficient"} <= set(served)


@pytest.mark.parametrize("mask", list(GPU_MASKS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["aten_cpu", "efficient"])
def test_tiles_in_half_precision_err_at_most_twice_as_much_as_one_kernel(
    mask: str, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar of the test above, where there is no GPU: torch's CPU kernel, and the stand-in of efficient attention."""
    efficient_kernel.put_in(monkeypatch)
    monkeypatch.setattr("longtake.kernels.backends.torch_cuda.cuda_devices", lambda: frozenset({"cpu"}))
    q, k, v, d_out = attention_cases.whole_tensors(640, 640, 6, 6, 64, dtype, batch=1)
    expected = attention_cases.truth(q, k, v, d_out, GPU_MASKS[mask])
    bias = GPU_MASKS[mask].score(range(640), range(640)).to(torch.float32)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    found = []
    for call in (
        lambda: torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=bias),
        lambda: attention(*leaves, mask=GPU_MASKS[mask], backend=backend),
    ):
        out = call()
        found.append([out.detach(), *torch.autograd.grad(out, leaves, d_out)])
    for theirs, ours, ref in zip(*found, expected, strict=False):
        assert rms(ours, ref) <= 2 * rms(theirs, ref)


@pytest.mark.gpu
@ON_GPU
def test_h_low_log_sum_exps_give_finite_gradients() -> None:
    """pytorch 196678: a mask, L % 128 == 64 and rows with L below -88.7."""
    (device,) = cuda_devices()
    q, k, v, d_out = (x.to(device) for x in attention_cases.whole_tensors(192, 192, 2, 2, 64, torch.bfloat16))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, mask=Dense(torch.full((192, 192), -120.0).triu(-20)))
    for grad in torch.autograd.grad(out, leaves, d_out):
        assert bool(grad.isfinite().all())


@pytest.mark.gpu
@ON_GPU
def test_h_a_plan_of_one_rank_over_nccl_is_the_local_call(tmp_path: Any) -> None:
    import torch.distributed as dist

    (device,) = cuda_devices()
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        from longtake.kernels import Transport

        q, k, v, _ = (x.to(device) for x in attention_cases.whole_tensors(128, 128, 2, 2, 64, torch.bfloat16))
        plan = make_plan(128, Causal(), world=1)
        assert torch.equal(attention(q, k, v, mesh=Transport(), plan=plan), attention(q, k, v, mask=Causal()))
    finally:
        dist.destroy_process_group()
