"""Text and video in one attention call: the operator against one process, and a stock diffusers Flux on many ranks."""

import math

import pytest
import torch
from longtake.kernels import CapabilityError, ShapeError, SlidingWindow, Transport, joint_attention, shard_transformer
from ranks import run_ranks

VIDEO, TEXT = 23, 7


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, VIDEO, 8), (2, 2, VIDEO, 8), (2, 2, VIDEO, 6), (2, 4, TEXT, 8), (2, 2, TEXT, 8), (2, 2, TEXT, 6)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def definition(q, k, v, text_q, text_k, text_v, lengths=None):
    """One softmax over all rows."""
    q, k, v = torch.cat([q, text_q], 2), torch.cat([k, text_k], 2), torch.cat([v, text_v], 2)
    logits = q @ k.repeat_interleave(2, 1).mT / 8**0.5
    if lengths is not None:
        padding = torch.arange(VIDEO + TEXT) >= VIDEO + torch.tensor(lengths)[:, None]
        logits = logits.masked_fill(padding[:, None, None], -math.inf)
    out = logits.softmax(-1) @ v.repeat_interleave(2, 1)
    return out[:, :, :VIDEO], out[:, :, VIDEO:]


def rank_joint(rank: int, world: int) -> dict[str, float]:
    errors, whole = {}, tensors()
    generator = torch.Generator().manual_seed(1)
    d_video, d_text = (torch.randn(2, 4, n, 6, generator=generator, dtype=torch.float64) for n in (VIDEO, TEXT))
    splits = {1: [[23]], 2: [[11, 12], [0, 23]], 3: [[1, 2, 20], [8, 8, 7]], 4: [[6, 6, 6, 5], [0, 22, 0, 1]]}[world]
    for sizes in splits:
        start, stop = sum(sizes[:rank]), sum(sizes[: rank + 1])
        for strategy in ("auto", "ring", "ulysses", "allgather_kv") if world > 1 else ("auto",):
            for lengths in (None, (5, 7)):
                leaves = [x.clone().requires_grad_() for x in whole]
                expected = definition(*leaves, lengths)
                wanted = torch.autograd.grad(expected, leaves, (d_video, d_text))
                local = [x[:, :, start:stop].clone().requires_grad_() for x in whole[:3]]
                local += [x.clone().requires_grad_() for x in whole[3:]]
                video, text = joint_attention(
                    *local, mesh=Transport(), strategy=strategy, text_lengths=lengths,
                    sizes=sizes if lengths is None else None,
                )  # fmt: skip
                # every rank follows its share of the text's gradient; their sum is the whole
                share = d_text / world
                found = list(torch.autograd.grad((video, text), local, (d_video[:, :, start:stop], share)))
                for index in range(3, 6):
                    torch.distributed.all_reduce(found[index])
                wanted = [w[:, :, start:stop] if index < 3 else w for index, w in enumerate(wanted)]
                pairs = [(video, expected[0][:, :, start:stop]), (text, expected[1]), *zip(found, wanted, strict=True)]
                worst = max([float((a - b).detach().abs().max()) for a, b in pairs if a.numel()])
                errors[f"{sizes} {strategy} {lengths}"] = worst
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_joint_attention_equals_one_process_forward_and_backward(world: int) -> None:
    for errors in run_ranks(rank_joint, world):
        assert max(errors.values()) <= 1e-12, errors


def test_joint_attention_refuses_what_does_not_fit() -> None:
    x = tensors()
    with pytest.raises(ShapeError, match="do not fit 7 text rows"):
        joint_attention(*x[:5], x[5][:, :, :3])
    with pytest.raises(ShapeError, match="text_lengths must be 2 numbers"):
        joint_attention(*x, text_lengths=(8, 1))
    with pytest.raises(ShapeError, match="do not say 23 rows"):
        joint_attention(*x, sizes=[22])


def tiny_flux():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(2, 30, 4, generator=generator),
        "encoder_hidden_states": torch.randn(2, TEXT, 16, generator=generator),
        "pooled_projections": torch.randn(2, 8, generator=generator),
        "timestep": torch.tensor([0.3, 0.9]),
        "img_ids": torch.randint(0, 5, (30, 3), generator=generator).float(),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return model, given


def tiny_qwen():
    from diffusers import QwenImageTransformer2DModel

    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(2, 30, 4, generator=generator),
        "encoder_hidden_states": torch.randn(2, TEXT, 16, generator=generator),
        "timestep": torch.tensor([0.3, 0.9]),
        "img_shapes": [[(1, 5, 6)], [(1, 5, 6)]],
        "encoder_hidden_states_mask": None,
    }
    return model, given


def padded_qwen():
    model, given = tiny_qwen()
    return model, {**given, "encoder_hidden_states_mask": torch.arange(TEXT) < torch.tensor([[4], [7]])}


def rank_models(rank: int, world: int) -> dict[str, float]:
    errors = {}
    for name, make in (("flux", tiny_flux), ("qwen", tiny_qwen), ("padded", padded_qwen)):
        model, given = make()
        whole = model(**given).sample
        whole.square().mean().backward()
        grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        for strategy in ("auto", "ring"):
            model.zero_grad()
            with shard_transformer(model, Transport(), strategy=strategy):
                out = model(**given).sample
                out.square().mean().backward()
            errors[f"{name} {strategy}"] = float((out - whole).detach().abs().max())
            worst = 0.0
            for key, parameter in model.named_parameters():
                if parameter.grad is None or "blocks." not in key or "norm1" in key or ".norm." in key:
                    continue  # modulation is computed from the time step by every rank, of the whole
                total = parameter.grad.clone()
                torch.distributed.all_reduce(total)
                worst = max(worst, float((total - grads[key]).abs().max() / grads[key].abs().max().clamp_min(1e-5)))
            errors[f"{name} {strategy} gradient"] = worst
        sizes = [30] if world == 1 else [1, 31 - world, *[1] * (world - 2)]
        with torch.no_grad(), shard_transformer(model, Transport(), sizes=sizes):
            errors[f"{name} uneven"] = float((model(**given).sample - whole).abs().max())
        with torch.no_grad():
            errors[f"{name} after"] = float((model(**given).sample - whole).abs().max())
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_stock_joint_transformers_give_the_same_on_any_number_of_ranks(world: int) -> None:
    for errors in run_ranks(rank_models, world):
        assert max(errors.values()) <= 2e-5, errors


def test_a_joint_model_takes_no_mask_over_positions() -> None:
    model, _ = tiny_flux()
    with (
        pytest.raises(CapabilityError, match="text and video in one call"),
        shard_transformer(model, mask=SlidingWindow(4, 4)),
    ):
        pass
