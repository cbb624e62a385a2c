"""Our attention by name in diffusers' dispatcher and in transformers' functions: the same as stock (D13)."""

import pytest
import torch
from dit_models import call_of, make
from longtake.dispatchers import register_attention
from longtake.kernels import CapabilityError

calls = []


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Registered, and every call of ours counted."""
    from longtake import dispatchers

    calls.clear()
    stock = dispatchers.attention

    def attention(*args, **rest):
        calls.append(rest["mask"])
        return stock(*args, **rest)

    monkeypatch.setattr(dispatchers, "attention", attention)
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    # a model's backend becomes that of all models which have none
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    assert register_attention() == ("diffusers", "transformers")


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("kind", "layers"), [("wan", 4), ("ltx", 4), ("hunyuan", 2)])
def test_d13_a_diffusers_model_takes_longtake_as_its_attention_backend(kind, layers):
    model, given = make(kind), call_of(kind, 5)
    with torch.no_grad():
        stock = model(**given).sample
        model.set_attention_backend("longtake")
        ours = model(**given).sample
        assert len(calls) == layers
        model.set_attention_backend("native")
        number = len(calls)
        assert torch.equal(model(**given).sample, stock) and len(calls) == number
    assert apart(ours, stock) <= 1e-5


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_d13_a_language_model_takes_longtake_as_its_attention():
    """Causal, grouped keys, gradients, padding on the left, and decoding with a cache."""
    model = llama()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    padding = torch.ones_like(ids)
    padding[1, :4] = 0
    results = {}
    for name in ("sdpa", "longtake"):
        model.set_attn_implementation(name)
        model.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        grad = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
        with torch.no_grad():
            plain = model(ids).logits
            padded = model(ids, attention_mask=padding).logits[padding.bool()]
            chunks = model(ids[:, :7], use_cache=True)
            later = model(ids[:, 7:], past_key_values=chunks.past_key_values).logits
            written = model.generate(ids, attention_mask=padding, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert apart(later, plain[:, 7:]) <= 1e-5
        results[name] = (plain, padded, later, grad, written)
    assert len(calls) >= 2 * (2 + 1 + 2 + 6)
    for ours, stock in zip(results["longtake"][:4], results["sdpa"][:4], strict=True):
        assert apart(ours, stock) <= 1e-5
    assert torch.equal(results["longtake"][4], results["sdpa"][4])
    assert apart(results["sdpa"][1], results["sdpa"][0][padding.bool()]) > 1e-3  # the padding does change something


def test_d13_softcap_is_served_as_eager_attention_does():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_logit_softcapping=0.05, sliding_window=5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.set_attn_implementation("eager")
        stock = model(ids).logits
        model.set_attn_implementation("longtake")
        assert apart(model(ids).logits, stock) <= 1e-5 and len(calls) == 2


def test_d13_what_a_dispatcher_cannot_be_given_is_refused_by_name():
    for name, said in (("native", "diffusers has an attention backend 'native'"), ("sdpa", "transformers has"),
                       ("eager", "transformers has"), ("Long Take", "lower case")):  # fmt: skip
        with pytest.raises(CapabilityError, match=said):
            register_attention(name)
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    assert "sdpa" not in {member.value for member in AttentionBackendName}  # nothing was changed by halves
    q = torch.randn(1, 3, 2, 8)
    for given, said in (
        ({"dropout_p": 0.1}, "[Dd]ropout"),
        ({"attn_mask": torch.ones(3, 3, dtype=torch.bool)}, "a mask must be"),
        ({"attn_mask": torch.ones(1, 1, 3, 3, dtype=torch.bool), "is_causal": True}, "together"),
        ({"parallel_config": object()}, "shard_transformer"),
    ):
        with pytest.raises(CapabilityError, match=said):
            dispatch_attention_fn(q, q, q, backend="longtake", **given)
    model = llama()
    model.set_attn_implementation("longtake")
    with pytest.raises(CapabilityError, match="output_attentions"):
        model(torch.zeros(1, 3, dtype=torch.long), output_attentions=True)
    with pytest.raises(CapabilityError, match="[Dd]ropout"):
        llama(attention_dropout=0.5, attn_implementation="longtake").train()(torch.zeros(1, 3, dtype=torch.long))
