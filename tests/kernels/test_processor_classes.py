"""Every class `shard_transformer` serves, at tiny size with padded text: the same for any number of ranks (D13)."""

import pytest
import torch
from dit_models import call_of, make
from longtake.kernels import CapabilityError, SlidingWindow, Transport, shard_transformer
from ranks import run_ranks

FRAMES = 7  # 28 tokens, 112 in classes without spatial patches
KINDS = ("ltx", "ltx2", "ltx2.3", "mochi", "cogvideox", "cogvideox-2b", "cogvideox-1.5", "hunyuan", "hunyuan-i2v",
         "hunyuan15", "wan-5b")  # fmt: skip


def outputs(model, given):
    with torch.no_grad():
        return [part.clone() for part in model(**given, return_dict=False)]


def tokens_of(kind):
    return FRAMES * (16 if kind.startswith(("ltx", "hunyuan15")) else 4)


def extra_calls(kind):
    """What else a class may be given: a time step for every token (video from an image)."""
    given = call_of(kind, FRAMES)
    yield "call", given
    if kind in ("ltx", "ltx2"):
        times = torch.linspace(0, 900, tokens_of(kind)).round()[None].expand(2, -1)
        sound = {"audio_timestep": torch.tensor([300, 600])} if kind == "ltx2" else {}
        yield "times", {**given, "timestep": times, **sound}


def rank_classes(rank, world):
    errors = {}
    for kind in KINDS:
        model = make(kind)
        state = [layer.processor for layer in model.modules() if hasattr(layer, "processor")]
        total = tokens_of(kind)
        uneven = {1: [total], 2: [total - 3, 3], 3: [1, total - 1, 0]}[world]
        for name, given in extra_calls(kind):
            whole = outputs(model, given)
            pieces = [1, total - 2, 1] if world == 3 else uneven
            if world == 3 and (name == "times" or kind.startswith(("ltx2", "cog", "hunyuan"))):
                with (
                    pytest.raises(CapabilityError, match="token on every rank|row of video on every rank"),
                    shard_transformer(model, Transport(), sizes=uneven),
                ):
                    outputs(model, given)
            for strategy, sizes in (("ring", None), ("auto", pieces)):
                with shard_transformer(model, Transport(), sizes=sizes, strategy=strategy) as transport:
                    found = outputs(model, given)
                assert world == 1 or sum(transport.counter.sent.values()) > 0, kind
                worst = max(float((a - b).abs().max()) for a, b in zip(found, whole, strict=True))
                errors[f"{kind} {name} {strategy} {sizes}"] = worst
            after = outputs(model, given)
            assert all(torch.equal(a, b) for a, b in zip(after, whole, strict=True)), kind
        assert [layer.processor for layer in model.modules() if hasattr(layer, "processor")] == state
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3])
def test_d13_every_class_gives_the_same_on_any_number_of_ranks(world):
    for errors in run_ranks(rank_classes, world, timeout=240):
        assert len(errors) > 2 * len(KINDS) and max(errors.values()) <= 2e-5, errors


@pytest.mark.parametrize("kind", ["consisid", "kandinsky", "cosmos", "vace", "skyreels"])
def test_d13_a_class_that_is_not_served_is_refused_by_name_and_left_as_it_was(kind):
    model = make(kind)
    before = [layer.processor for layer in model.modules() if hasattr(layer, "processor")]
    with (
        pytest.raises(CapabilityError, match=f"does not serve {type(model).__name__}.*served are Wan.*HunyuanVideo15"),
        shard_transformer(model),
    ):
        pass
    assert before == [layer.processor for layer in model.modules() if hasattr(layer, "processor")]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_d13_a_subclass_is_served_as_long_as_it_keeps_the_forward():
    from diffusers import LTXVideoTransformer3DModel

    class Named(LTXVideoTransformer3DModel):
        pass

    class Changed(LTXVideoTransformer3DModel):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = make("ltx")
    whole = outputs(model, call_of("ltx", 2))
    model.__class__ = Named
    with shard_transformer(model):
        assert torch.allclose(outputs(model, call_of("ltx", 2))[0], whole[0], atol=1e-5)
    model.__class__ = Changed
    with pytest.raises(CapabilityError, match="does not serve Changed"), shard_transformer(model):
        pass


def test_d13_other_processors_backends_and_masks_are_refused_before_anything_is_changed():
    def refused(kind, said, prepare=lambda model: None, call=None, **given):
        model = make(kind)
        prepare(model)
        with pytest.raises(CapabilityError, match=said), shard_transformer(model, **given):
            assert call is not None, "it was not refused at once"
            outputs(model, call)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())

    def other_processor(model):
        model.transformer_blocks[1].attn1.processor = object()

    def other_backend(model):
        for layer in model.modules():
            if hasattr(layer, "processor"):
                layer.processor._attention_backend = "flex"

    refused("mochi", "transformer_blocks.1.attn1 of Mochi.* must have a MochiAttnProcessor2_0", other_processor)
    refused("ltx", "backend 'flex': required is 'native'", other_backend)
    refused("ltx2", "sound and video", mask=SlidingWindow(4, 4))
    refused("cogvideox", "text and video in one call", mask=SlidingWindow(4, 4))
    model = make("ltx")
    with shard_transformer(model), pytest.raises(CapabilityError, match="already"), shard_transformer(model):
        pass
    given = call_of("mochi", 2)
    given["encoder_attention_mask"] = given["encoder_attention_mask"].flip(1)
    refused("mochi", "padded at the end", call=given)
    tokens = 2 * 16
    given = {**call_of("ltx2", 2), "video_self_attention_mask": torch.ones(2, tokens, tokens)}
    refused("ltx2", "mask tensor", call=given)


def test_d13_hunyuan_video_15_hands_on_a_mask_over_keys(monkeypatch):
    """Its stock processor makes one of tokens by tokens, (B, 1, N, N)."""
    from longtake.kernels.calls import cut_plans

    shapes = []

    def attend(*args, attn_mask):
        shapes.append(tuple(attn_mask.shape))
        return torch.nn.functional.scaled_dot_product_attention(*args, attn_mask=attn_mask)

    model, given = make("hunyuan15"), call_of("hunyuan15", 3)
    whole = outputs(model, given)[0]
    monkeypatch.setattr(cut_plans, "SDPA", attend)
    with shard_transformer(model):
        assert float((outputs(model, given)[0] - whole).abs().max()) <= 2e-5
    assert shapes == [(2, 1, 1, 3 * 16 + 5 + 3 + 2)] * 2
