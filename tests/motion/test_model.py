"""The nets: public checkpoints give the published numbers; padding, guidance and layouts do what they say."""

import pytest
import torch
from longtake.errors import UserError
from longtake.motion.convert import build, configuration_of, from_public, layout_of, load_motion_model, to_public
from longtake.motion.model import MDM
from longtake.motion.sampling import TextDenoiser
from motion_models import Golden, theirs, tiny_net


def golden_flags(golden: Golden) -> torch.Tensor | None:
    from motion_models import fill

    entry = golden.meta.get("transition_flags")
    return None if entry is None else torch.from_numpy(fill.noise(entry["tag"], tuple(entry["shape"])) > 0)


@pytest.mark.parametrize("case", ["M1_tiny", "M1_babel", "M1_full"])
@torch.no_grad()
def test_a1_forward_equals_the_original(case: str) -> None:
    golden = Golden(case)
    net = build(golden.state())
    x, text, times, flags = golden.given("x"), golden.text(), torch.tensor(golden["timesteps"]), golden_flags(golden)
    conditional, bare = net(x, times, text, transition=flags), net(x, times, None, transition=flags)
    golden.check("cond", theirs(conditional))
    golden.check("uncond", theirs(bare))
    golden.check("cfg", theirs(bare + golden["guidance"]["scale"] * (conditional - bare)))
    for row, length in enumerate(golden["lengths"]):
        if length < golden["frames"]:
            masked = build(golden.state(), padding="mask")
            out = masked(x, times, text, transition=flags, lengths=torch.tensor(golden["lengths"]))
            golden.check(f"cond_cropped_{row}", theirs(out[row : row + 1, :length]))
            attending = net(x, times, text, transition=flags, lengths=torch.tensor(golden["lengths"]))
            assert torch.equal(attending, conditional), "padding 'attend' sees all frames"


def test_a2_public_layouts_are_recognised_and_survive_a_round_trip(tmp_path) -> None:
    golden = Golden("M1_full")
    state = golden.state()
    net = build(state)
    assert sum(p.numel() for p in net.parameters()) == 17_880_327
    back = to_public(net.state_dict())
    assert set(back) == set(golden["checkpoint_keys"])
    assert all(torch.equal(back[key], state[key]) for key in state)

    babel = Golden("M1_babel").state()
    assert configuration_of(babel)["transition_embedding"] and configuration_of(babel)["features"] == 135
    for case, split, layers in (("M5_forward_mid_comm2", 1, 2), ("M5_forward_end_comm1", 2, 1)):
        pair = Golden(case).state()
        assert layout_of(pair) == "ComMDM"
        found = configuration_of(pair)
        assert (found["split"], found["comm_layers"], found["layers"]) == (split, layers, 2)
        again = to_public(build(pair).state_dict(), split=split)
        assert set(again) == set(pair) and all(torch.equal(again[key], pair[key]) for key in pair)

    extras = {
        "clip_model.positional_embedding": torch.zeros(3),
        "sequence_pos_encoder.pe": torch.zeros(7, 1, 32),
        "t_pos_encoder.pe": torch.zeros(1),
    }
    tiny = Golden("M1_tiny").state()
    averaged = {key: value + 1 for key, value in tiny.items()}
    torch.save({"model": {**tiny, **extras}, "model_avg": averaged}, tmp_path / "ema.pt")
    mean = load_motion_model(tmp_path / "ema.pt")
    raw = load_motion_model(tmp_path / "ema.pt", average=False)
    assert torch.equal(mean.state_dict()["head.bias"], averaged["output_process.poseFinal.bias"])
    assert torch.equal(raw.state_dict()["head.bias"], tiny["output_process.poseFinal.bias"])


def test_a2_broken_files_are_refused_by_name(tmp_path) -> None:
    state = Golden("M1_tiny").state()
    with pytest.raises(UserError, match="surprise"):
        build({**state, "surprise.weight": torch.zeros(2)})
    with pytest.raises(UserError, match="missing"):
        build({key: value for key, value in state.items() if "linear2" not in key})
    with pytest.raises(UserError, match="259 numbers|writes 263"):
        build({**state, "input_process.poseEmbedding.weight": torch.zeros(32, 259)})
    with pytest.raises(UserError, match="closest is 'MDM encoder'"):
        build({key: value for key, value in state.items() if "poseFinal" not in key})
    torch.save(state, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut.pt"):
        load_motion_model(tmp_path / "cut.pt")
    assert from_public("multi_person.model.layers.1.linear1.bias") == "comm.blocks.1.linear1.bias"


@torch.no_grad()
def test_a4_guidance_in_one_batch_equals_two_passes() -> None:
    net = tiny_net(features=30)
    x, text = torch.randn(3, 20, 30), torch.randn(3, 8)
    times, rows = torch.full((3,), 5), range(3)
    conditional, bare = net(x, times, text), net(x, times, torch.zeros(3, 8))
    guided = TextDenoiser(net, text, 2.5)(x, 5, rows)
    both = bare + 2.5 * (conditional - bare)
    assert float((guided - both).abs().max()) <= 1e-6 * float(both.abs().max())
    assert torch.equal(TextDenoiser(net, text, 1.0)(x, 5, rows), conditional)
    assert torch.equal(TextDenoiser(net, text, 0.0)(x, 5, rows), bare)
    assert torch.equal(TextDenoiser(net, None, 0.0)(x, 5, rows), bare)
    before = net(x, times, None)
    net.embed_text.bias.data += 1.0
    assert not torch.allclose(net(x, times, None), before), "without text the text layer's bias still counts"


@torch.no_grad()
def test_a5_masked_padding_changes_nothing() -> None:
    x, text = torch.randn(2, 30, 12), torch.randn(2, 8)
    times, lengths = torch.tensor([3, 7]), torch.tensor([30, 18])
    other = x.clone()
    other[1, 18:] = 100 * torch.randn(12, 12)
    masked = tiny_net(padding="mask")
    one, two = (masked(values, times, text, lengths=lengths) for values in (x, other))
    assert torch.equal(one[1, :18], two[1, :18])
    alone = masked(x[1:, :18], times[1:], text[1:])
    assert float((masked(x, times, text, lengths=lengths)[1:, :18] - alone).abs().max()) <= 1e-6
    attending = tiny_net(padding="attend")
    gap = attending(x, times, text, lengths=lengths) - attending(other, times, text, lengths=lengths)
    assert float(gap[1, :18].abs().max()) > 1e-3, "padding 'attend' is the original's: padding frames do change others"


@torch.no_grad()
def test_the_decoder_form_continues_a_prefix_and_reads_words() -> None:
    net = tiny_net(form="decoder", prefix_frames=4, text_policy="concat", time_token=True)
    x, words, prefix = torch.randn(2, 10, 12), torch.randn(2, 5, 8), torch.randn(2, 4, 12)
    out = net(x, torch.tensor([1, 2]), words, prefix=prefix)
    assert out.shape == x.shape
    assert not torch.allclose(out, net(x, torch.tensor([1, 2]), words, prefix=prefix + 1))
    ignored = torch.zeros(2, 5, dtype=torch.bool)
    ignored[:, 3:] = True
    cut = net(x, torch.tensor([1, 2]), words[:, :3], prefix=prefix)
    masked = net(x, torch.tensor([1, 2]), words, prefix=prefix, text_mask=ignored)
    assert float((cut - masked).abs().max()) <= 1e-5
    with pytest.raises(ValueError, match="prefix of 4 frames"):
        net(x, torch.tensor([1, 2]), words)
    with pytest.raises(ValueError, match="encoder form"):
        net(x, torch.tensor([1, 2]), words, prefix=prefix, transition=torch.zeros(2, 10))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    public = to_public(state, form="decoder")
    assert layout_of(public) == "MDM decoder" and "seqTransDecoder.layers.1.multihead_attn.in_proj_weight" in public
    again = build(public, heads=4, prefix_frames=4, text_policy="concat", time_token=True, positions=400)
    assert torch.equal(again(x, torch.tensor([1, 2]), words, prefix=prefix), out)


def test_the_text_vector_may_have_any_width_and_too_many_frames_are_refused() -> None:
    net = tiny_net(text_width=384, positions=40)
    assert net(torch.randn(1, 20, 12), 3, torch.randn(1, 384)).shape == (1, 20, 12)
    with pytest.raises(ValueError, match="positions"):
        net(torch.randn(1, 60, 12), 3, torch.randn(1, 384))
    with pytest.raises(ValueError, match="form"):
        MDM(form="decoder", transition_embedding=True)


NEW = {"positions": 1000, "modulated": True, "condition_tokens": 2, "padding": "mask"}


def awake(net: MDM) -> MDM:
    """The net with layers that do something: AdaLN-zero begins with layers that pass their input on."""
    torch.manual_seed(5)
    for layer in net.blocks:
        torch.nn.init.normal_(layer.modulate.weight, std=0.1)
        torch.nn.init.normal_(layer.modulate.bias, std=0.5)
    return net


@torch.no_grad()
def test_a_modulated_net_hears_time_and_text_and_hides_padding() -> None:
    net = awake(tiny_net(**NEW))
    x, text = torch.randn(3, 20, 12), torch.randn(3, 8)
    lengths = torch.tensor([20, 13, 7])
    out = net(x, torch.tensor([900, 400, 30]), text, lengths=lengths)
    assert out.shape == x.shape
    for row, (time, length) in enumerate(zip((900, 400, 30), lengths.tolist(), strict=True)):
        alone = net(x[row : row + 1, :length], time, text[row : row + 1])
        assert torch.allclose(out[row, :length], alone[0], atol=1e-5), "what lies beyond a row's end is not seen"
    assert not torch.allclose(out, net(x, torch.tensor([901, 400, 30]), text, lengths=lengths), atol=1e-4)
    bare = net(x, 500, None)
    assert torch.allclose(bare, net(x, 500, torch.zeros(3, 8))) and not torch.allclose(bare, net(x, 500, text))
    half = awake(tiny_net(**NEW)).half().float()
    assert torch.allclose(half(x, 500, text), net(x, 500, text), atol=2e-2)


@torch.no_grad()
def test_a_modulated_net_begins_as_a_linear_one_and_then_learns_in_every_layer() -> None:
    net = tiny_net(**NEW)
    x, text = torch.randn(2, 9, 12), torch.randn(2, 8)
    tokens = net.embed(x, net.embed_time(7, 2), text)
    assert tokens.shape[1] == 2 + 9
    assert torch.equal(net(x, 7, text), net.read(tokens))
    with torch.enable_grad():
        (net(x, 7, text) - x).square().mean().backward()
    assert all(bool(layer.modulate.weight.grad.any()) for layer in net.blocks)


def test_a_modulated_net_is_kept_and_walked_in_pieces_and_refuses_what_it_cannot_do(tmp_path) -> None:
    net = awake(tiny_net(**NEW))
    net.save_pretrained(tmp_path)
    again = MDM.from_pretrained(tmp_path).eval()
    x, text = torch.randn(2, 9, 12), torch.randn(2, 8)
    assert torch.equal(again(x, 7, text), net(x, 7, text))
    time = net.embed_time(7, 2)
    tokens, condition = net.embed(x, time, text), net.condition(time, text)
    middle = net.run(tokens, 0, 1, None, condition)
    assert torch.equal(net.read(net.run(middle, 1, 2, None, condition)), net(x, 7, text))
    with pytest.raises(ValueError, match="need what condition"):
        net.run(tokens, 0, 2, None)
    for wrong in ({"form": "decoder"}, {"condition_tokens": 3}):
        with pytest.raises(ValueError, match="condition_tokens"):
            tiny_net(**{**NEW, "padding": "attend", **wrong})
    plain = tiny_net()
    assert plain.condition(time, text) is None and not any("norm.weight" == key for key in plain.state_dict())
