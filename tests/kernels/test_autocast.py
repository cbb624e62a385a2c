"""Autocast changes nothing inside our operators; where torch's own attention would cast, so do we."""

from collections.abc import Callable

import pytest
import torch
from longtake.kernels import (
    CapabilityError,
    Causal,
    DualScope,
    ShapeError,
    attention,
    conv_s5,
    diagonal_scan,
    diagonal_ssm,
    joint_attention,
    lambda_attention,
    linear_attention,
    prompt_guided_pool3d,
    relative_attention,
    shard_transformer,
)
from torch import Tensor

N = 40


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


HEADS = (1, 4, N, 16)
OPERATORS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (lambda q, k, v: attention(q, k, v, mask=Causal()), [HEADS] * 3),
    "attention, math": (lambda q, k, v: attention(q, k, v, backend="math"), [HEADS] * 3),
    "attention, soft cap": (lambda q, k, v: attention(q, k, v, softcap=5.0), [HEADS] * 3),
    "attention, other value size": (lambda q, k, v: attention(q, k, v, mask=Causal()), [HEADS, HEADS, (1, 4, N, 24)]),
    "attention, row scale": (lambda q, k, v: attention(q, k, v, mask=DualScope(5, (0,), row_scale=9.0)), [HEADS] * 3),
    "relative": (lambda q, k, v, e: relative_attention(q, k, v, e), [HEADS] * 3 + [(4, N, 16)]),
    "lambda": (lambda q, k, v: lambda_attention(q, k, v, n_global=3, n_local=9), [HEADS] * 3),
    "linear": (lambda q, k, v: linear_attention(q, k, v), [HEADS] * 3),
    "linear, causal": (lambda q, k, v: linear_attention(q, k, v, causal=True, normalize=True), [HEADS] * 3),
    "scan": (lambda a, u: diagonal_scan(a.sigmoid(), u), [(1, 16), (2, N, 16)]),
    "ssm": (
        lambda u, b, c, d: diagonal_ssm(u, torch.full((4,), -0.5 + 1j), b.to(torch.cfloat), c.to(torch.cfloat), d),
        [(2, N, 3), (4, 3), (5, 4), (5, 3)],
    ),
    "conv s5": (
        lambda u, b, c: conv_s5(u, torch.full((4,), 0.5), b, c), [(1, 6, 2, 5, 5), (4, 2, 3, 3), (3, 4, 3, 3)],
    ),
    "pooling": (
        lambda x, scores: prompt_guided_pool3d(x, logits=scores, kernel=(2, 3, 3)), [(1, 6, 4, 6, 6), (1, 4, 6, 6)],
    ),
    "pooling, local": (
        lambda x, scores: prompt_guided_pool3d(x, logits=scores, kernel=2, weight_mode="local"),
        [(1, 6, 4, 6, 6), (1, 4, 6, 6)],
    ),
}  # fmt: skip
COMPOSED = ("ssm", "conv s5")


@pytest.mark.parametrize("name", OPERATORS)
def test_float32_operators_are_the_same_to_the_bit_under_autocast(name: str) -> None:
    """Forward and backward, also where only the backward runs under it. What is composed of torch's own operators has
    torch's backward, which is to be called outside (docs of torch.autocast)."""
    operator, shapes = OPERATORS[name]
    inputs = drawn(*shapes)
    out = operator(*inputs)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = operator(*inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=name not in COMPOSED):
        cast_grads = torch.autograd.grad(cast.square().sum(), inputs)
    plain = operator(*inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=name not in COMPOSED):
        late_grads = torch.autograd.grad(plain.square().sum(), inputs)
    assert cast.dtype == torch.float32 and torch.equal(cast, out)
    for grad, other, late in zip(grads, cast_grads, late_grads, strict=True):
        assert torch.equal(grad, other) and torch.equal(grad, late)


def test_dtypes_that_differ_meet_in_autocasts_as_in_torchs_attention() -> None:
    q, k, v = drawn(HEADS, HEADS, HEADS)
    half = v.detach().bfloat16()
    with pytest.raises(ShapeError, match="one dtype"):
        attention(q, k, half)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, half)
        assert torch.equal(attention(q, k, half), wanted) and wanted.dtype == torch.bfloat16
        video, text = joint_attention(q, k, half, q[:, :, :3], k[:, :, :3], half[:, :, :3])
        assert video.dtype == text.dtype == torch.bfloat16


def tiny_ltx() -> torch.nn.Module:
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=16,
    )  # fmt: skip


def ltx_inputs() -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 30, 4, generator=generator), "timestep": torch.tensor([3, 500]),
        "encoder_hidden_states": torch.randn(2, 7, 16, generator=generator), "num_frames": 5, "height": 3, "width": 2,
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }  # fmt: skip


def rank_ltx(rank: int, world: int) -> dict[str, float]:
    from longtake.kernels import Transport

    model = tiny_ltx()
    errors = {}
    with torch.no_grad():
        whole = model(**ltx_inputs()).sample
        for strategy in ("auto", "ring"):
            with shard_transformer(model, Transport(), strategy=strategy) as transport:
                errors[strategy] = float((model(**ltx_inputs()).sample - whole).abs().max())
            assert world == 1 or sum(transport.counter.sent.values()) > 0
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_a_model_whose_plan_cuts_text_for_cross_attention_gives_the_same_on_any_number_of_ranks(world: int) -> None:
    from ranks import run_ranks

    for errors in run_ranks(rank_ltx, world):
        assert max(errors.values()) <= 1e-5, errors


def test_ltx_is_served_under_autocast_as_stock_is() -> None:
    model = tiny_ltx()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = model(**ltx_inputs()).sample
        with shard_transformer(model):
            ours = model(**ltx_inputs()).sample
    assert ours.dtype == stock.dtype and float((ours - stock).abs().max()) <= 2e-2 * float(stock.abs().max())


def test_a_joint_model_is_served_under_autocast_as_stock_is() -> None:
    """Its queries and keys leave their norms in float32, its values are bfloat16."""
    from diffusers import QwenImageTransformer2DModel

    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    given = {
        "hidden_states": torch.randn(2, 30, 4), "encoder_hidden_states": torch.randn(2, 7, 16),
        "timestep": torch.tensor([0.3, 0.9]), "img_shapes": [[(1, 5, 6)], [(1, 5, 6)]],
        "encoder_hidden_states_mask": None,
    }  # fmt: skip
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = model(**given).sample
        with shard_transformer(model):
            ours = model(**given).sample
    assert ours.dtype == stock.dtype and float((ours - stock).abs().max()) <= 2e-2 * float(stock.abs().max())


def test_a_model_of_an_unknown_class_is_refused_by_name() -> None:
    class WithAudio(torch.nn.Module):
        _cp_plan = tiny_ltx()._cp_plan

        def forward(self, hidden_states: Tensor, audio_hidden_states: Tensor) -> None: ...

    with pytest.raises(CapabilityError, match="does not serve WithAudio"), shard_transformer(WithAudio()):
        pass
