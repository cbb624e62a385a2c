"""TimeSuite's token shuffle and TAPE: the original's numbers, start values, and lengths that it refuses."""

import pytest
import torch
from longtake.video.reading.tape import TemporalAdapter, TokenShuffle, grouped, ungrouped
from reading_models import Golden
from torch import nn


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_t1_shuffle_is_the_originals():
    case = Golden("T1_token_shuffle")
    state, config = case.state(), case.config
    projector = nn.Linear(config["dim"], config["out"])
    projector.load_state_dict({name: state[f"mistral_proj.{name}"] for name in ("weight", "bias")})
    shuffle = TokenShuffle.from_projector(projector, config["merge_len"])
    case.check("merge_weight", shuffle.merge_proj.weight)
    case.check("tokens", shuffle(case.given("x")))
    case.check("image_tokens", shuffle.repeat(case.given("image")))


@pytest.mark.parametrize("merge", [1, 2, 3, 4, 7])
def test_t1_shuffle_begins_as_the_mean_projected(merge):
    projector = nn.Linear(6, 5)
    tokens = random(2, 84, 6)
    shuffle = TokenShuffle.from_projector(projector, merge)
    mean = tokens.unflatten(1, (-1, merge)).mean(2)
    assert (shuffle(tokens) - projector(mean)).abs().max() <= 2e-6
    assert torch.equal(ungrouped(grouped(tokens, merge)), tokens)


def test_t1_padding_is_ignored():
    tokens, projector = random(2, 10, 6), nn.Linear(6, 5)
    shuffle = TokenShuffle.from_projector(projector, 4)
    with torch.no_grad():
        shuffle.merge_proj.weight.add_(random(*shuffle.merge_proj.weight.shape, seed=2))
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 7:] = False
    hidden = tokens.clone()
    hidden[1, 7:] = float("nan")
    assert shuffle(tokens).shape == (2, 3, 5)
    assert torch.equal(shuffle(hidden, mask)[1], shuffle(tokens, mask)[1]) and shuffle(hidden, mask).isfinite().all()
    begin = TokenShuffle.from_projector(projector, 4)
    assert (begin(tokens)[:, 2] - projector(tokens[:, 8:].mean(1))).abs().max() <= 2e-6
    assert (begin(hidden, mask)[1, 1] - projector(tokens[1, 4:7].mean(0))).abs().max() <= 2e-6
    assert torch.equal(ungrouped(grouped(tokens, 4), 10), tokens)


@pytest.mark.parametrize("length", ["256", "128"])
def test_t2_tape_is_the_originals(length):
    case = Golden("T2_tape")
    config = case.config
    sizes = config["input_dim"], config["mid_dim"], config["output_dim"], config["merge_len"], config["clip_num"]
    tape = TemporalAdapter(*sizes)
    tape.load_state_dict({key.removeprefix("temp_adap."): value for key, value in case.state().items()})
    case.check(f"out_{length}", tape(case.given(f"x_{length}")))


def test_t2_tape_begins_at_nothing_and_then_tells_where_a_token_stands():
    tape = TemporalAdapter(768, 192, 4096)
    assert sum(p.numel() for p in tape.parameters()) == 1_721_344
    tokens = random(1, 1, 768).expand(1, 384, 768)
    assert tape(tokens).abs().max() == 0
    with torch.no_grad():
        tape.linear_output.weight.normal_(generator=torch.Generator().manual_seed(3))
        signal = tape(tokens)[0]
    assert signal.shape == (96, 4096)
    middle, scale = signal[48], signal.std()
    assert (signal[0] - middle).abs().mean() > 0.05 * scale and (signal[-1] - middle).abs().mean() > 0.05 * scale
    small = TemporalAdapter(8, 16, 4)
    with torch.no_grad():
        small.linear_output.weight.normal_(generator=torch.Generator().manual_seed(3))
        for pooled in (1, 6, 18, 24, 48, 192, 288, 384):
            found = small(random(2, 4 * pooled, 8))
            assert found.shape == (2, pooled, 4) and found.isfinite().all()
        assert small(random(1, 23, 8)).shape == (1, 6, 4)
