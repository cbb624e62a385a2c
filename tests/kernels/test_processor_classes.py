"""Every class `shard_transformer` serves, at tiny size with padded text: the same for any number of ranks (D13)."""

import pytest
import torch
from dit_models import call_of, make
from longtake.kernels import CapabilityError, Transport, shard_transformer
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
            sizes = uneven
            if name == "times" and world == 3:
                with pytest.raises(CapabilityError, match="token on every rank"), shard_transformer(model, sizes=sizes):
                    outputs(model, given)
                sizes = [1, total - 2, 1]
            for strategy, sizes in (("ring", None), ("auto", sizes)):
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
