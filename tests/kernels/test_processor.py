"""A stock diffusers transformer on our attention: the same output for any number of ranks, masks, gradients."""

import pytest
import torch
from longtake.kernels import CapabilityError, SlidingWindow, Transport, shard_transformer
from ranks import run_ranks

FRAMES, HEIGHT, WIDTH = 5, 6, 4  # 5 x 3 x 2 = 30 tokens, which 4 ranks cannot share evenly


def tiny():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def inputs():
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, 4, FRAMES, HEIGHT, WIDTH, generator=generator)
    text = torch.randn(2, 7, 16, generator=generator)
    return {"hidden_states": video, "timestep": torch.tensor([3, 500]), "encoder_hidden_states": text}


def masked_reference(model, mask):
    """The stock model with a dense mask put under its self-attention."""
    from unittest.mock import patch

    stock = torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, **rest):
        if key.shape[-2] == query.shape[-2]:
            rows = range(key.shape[-2])
            attn_mask = mask.dense(rows, rows)
        return stock(query, key, value, attn_mask=attn_mask, **rest)

    with patch("torch.nn.functional.scaled_dot_product_attention", attend):
        return model(**inputs()).sample


def both(rank: int, world: int) -> dict[str, float]:
    model = tiny()
    errors: dict[str, float] = {}
    whole = model(**inputs()).sample
    whole.square().mean().backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    stock = [layer.processor for layer in model.modules() if hasattr(layer, "processor")]
    model.zero_grad()
    for strategy in ("auto", "ring"):
        model.zero_grad()
        with shard_transformer(model, Transport(), strategy=strategy) as transport:
            out = model(**inputs()).sample
            out.square().mean().backward()
        errors[strategy] = float((out - whole).detach().abs().max())
        assert world == 1 or sum(transport.counter.sent.values()) > 0
        worst = 0.0
        for name, parameter in model.named_parameters():
            # after the tokens are together again every rank computes the whole
            if parameter.grad is None or not name.startswith("blocks."):
                continue
            total = parameter.grad.clone()
            torch.distributed.all_reduce(total)
            worst = max(worst, float((total - grads[name]).abs().max() / grads[name].abs().max().clamp_min(1e-6)))
        errors[f"{strategy} gradient"] = worst
    sizes = [30] if world == 1 else [1, 31 - world, *[1] * (world - 2)]
    with torch.no_grad(), shard_transformer(model, Transport(), sizes=sizes):
        errors["uneven"] = float((model(**inputs()).sample - whole).abs().max())
    mask = SlidingWindow(4, 2)
    with torch.no_grad():
        wanted = masked_reference(model, mask)
        with shard_transformer(model, Transport(), mask=mask):
            errors["masked"] = float((model(**inputs()).sample - wanted).abs().max())
        assert float((wanted - whole).abs().max()) > 1e-3
        errors["after"] = float((model(**inputs()).sample - whole).abs().max())
    assert [layer.processor for layer in model.modules() if hasattr(layer, "processor")] == stock
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_stock_dit_gives_the_same_on_any_number_of_ranks(world: int) -> None:
    for errors in run_ranks(both, world):
        assert max(errors.values()) <= 1e-5, errors


def test_what_it_cannot_serve_is_refused() -> None:
    model = tiny()
    with pytest.raises(CapabilityError, match="does not serve Linear"), shard_transformer(torch.nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="sizes"), shard_transformer(model, sizes=[7]), torch.no_grad():
        model(**inputs())
    with shard_transformer(model), torch.no_grad():
        layer = model.blocks[0].attn1
        tokens = torch.randn(2, 30, 36)
        with pytest.raises(CapabilityError, match="mask tensor"):
            layer(tokens, None, torch.zeros(30, 30), None)
        joined = layer.processor.inner

        def joint(attn, hidden_states, encoder_hidden_states):
            both = torch.cat([hidden_states, encoder_hidden_states], 1).unflatten(2, (3, 12)).transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(both, both, both)

        layer.processor.inner = joint
        with pytest.raises(CapabilityError, match="joint"):
            layer.processor(layer, tokens, torch.randn(2, 7, 36))
        layer.processor.inner = joined
