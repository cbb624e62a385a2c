"""ProsodyFM and Matcha-TTS against numbers of the originals; padding; the parts after the paper."""

import pytest
import torch
from longtake import UserError
from longtake.speech.prosody_fm import convert, model
from longtake.speech.prosody_fm.breaks import last_words
from longtake.speech.prosody_fm.decoder import Decoder, Estimator, euler, flow_target
from longtake.speech.prosody_fm.intonation import Intonation, TextPitchAligner, align_attention, word_places
from longtake.speech.prosody_fm.model import Config, ProsodyFM, TextEncoder
from longtake.speech.text.symbols import COMPAT_BREAK
from speech_golden import Case


def estimator_of(case, strict):
    told = case.config["estimator"]
    speaker = case.config["spk_emb_dim"] if case.config["n_spks"] > 1 else 0
    made = Estimator(
        case.config["n_feats"],
        speaker,
        tuple(told["channels"]),
        told["num_heads"],
        told["attention_head_dim"],
        told["num_mid_blocks"],
        told["dropout"],
    )
    made.load_state_dict({key.removeprefix("decoder.estimator."): value for key, value in case.state().items()})
    made.strict = strict
    return made.eval()


def encoder_of(case):
    told = case.config["encoder"]
    gst = told.get("gst_params")
    config = Config(
        speakers=case.config["n_spks"],
        channels=told["n_channels"],
        inner=told["filter_channels"],
        inner_duration=told["filter_channels_dp"],
        layers=told["n_layers"],
        tokens=gst["token_num"] if gst else 0,
        token_width=gst["num_units"] // gst["num_heads"] if gst else 48,
        pitch_hidden=gst["hidden_size"] if gst else 128,
    )
    state = case.state()
    speakers = state.pop("spk_emb.weight", None)
    made = TextEncoder(config)
    made.load_state_dict({key.removeprefix("encoder."): value for key, value in state.items()})
    return made.eval(), speakers


@pytest.mark.parametrize("name", ["S1_encoder_full_multispeaker", "S1_encoder_tiny_single"])
def test_the_text_encoder_is_the_original_one(name):
    """ACCEPTANCE A8, golden S1."""
    case = Case(name)
    net, speakers = encoder_of(case)
    ids, counts = case.given("x"), case.given("n_last_words").tolist()
    pitch, lengths = case.given("pitch_seg"), case.given("pitch_lengths")
    vectors, _ = net.gst(pitch, lengths)
    case.check("intonation", vectors)
    words = max(counts)
    finals = torch.zeros(len(ids), words, 2, dtype=torch.int64)
    rows = torch.zeros(len(ids), words, vectors.shape[-1])
    for row, (count, part) in enumerate(zip(counts, vectors.split(counts), strict=True)):
        finals[row, :count] = torch.tensor(last_words(ids[row].tolist(), COMPAT_BREAK, blanks=True))
        rows[row, :count] = part
    added = torch.einsum("bwl,bwc->blc", word_places(finals, ids.shape[1], blanks=True), rows)
    speaker = speakers[case.given("speaker_ids")] if speakers is not None else None
    mu, logw, mask = net(ids, case.given("x_lengths"), speaker, added)
    case.check("mu", mu)
    case.check("logw", logw)
    case.check("x_mask", mask)


def test_the_text_encoder_of_matcha_is_the_original_one():
    """ACCEPTANCE A8, golden S6."""
    case = Case("S6_matcha_encoder_single")
    net, _ = encoder_of(case)
    mu, logw, _ = net(case.given("x"), case.given("x_lengths"))
    case.check("mu", mu)
    case.check("logw", logw)


FIELDS = ["S2_estimator_full_multispeaker", "S6_matcha_estimator_full_multispeaker"]
PADDED = ["S2_estimator_tiny_padded", "S6_matcha_estimator_tiny_padded"]


def velocity(case, net):
    time = torch.as_tensor(case.given("t"), dtype=torch.float32).reshape(-1)
    return net(case.given("x"), case.given("mask"), case.given("mu"), time, case.given("spk"))


@pytest.mark.parametrize("name", FIELDS + PADDED)
def test_the_vector_field_is_the_original_one_in_compat(name):
    """ACCEPTANCE A8, A9, goldens S2 and S6."""
    case = Case(name)
    case.check("v", velocity(case, estimator_of(case, strict=False)))


@pytest.mark.parametrize("name", FIELDS)
def test_the_strict_field_is_the_original_one_where_nothing_is_padded(name):
    """ACCEPTANCE A9."""
    case = Case(name)
    case.check("v", velocity(case, estimator_of(case, strict=True)))


def test_the_public_leak_is_there_in_compat_and_gone_in_strict():
    """ACCEPTANCE A9."""
    case = Case(PADDED[0])
    leak = velocity(case, estimator_of(case, strict=False))
    strict = velocity(case, estimator_of(case, strict=True))
    assert (leak[1] - strict[1]).abs().max() > 0.05
    assert (leak[0] - strict[0]).abs().max() < 5e-5  # the longest row has no padding


@pytest.mark.parametrize("extra", [0, 4, 16, 64])
@pytest.mark.parametrize("frames", [13, 20])
def test_padding_and_company_leave_strict_frames_alone(extra, frames):
    """ACCEPTANCE A9."""
    case = Case(PADDED[0])
    net = estimator_of(case, strict=True)
    dice = torch.Generator().manual_seed(0)
    x, mu = (torch.randn(1, 20, frames, generator=dice) for _ in range(2))
    speaker, time = torch.randn(1, 8, generator=dice), torch.tensor([0.3])

    def run(total, rows):
        steps = torch.arange(total)
        mask = torch.stack([(steps < frames).float()[None], torch.ones(1, total)])[:rows]
        wide = [torch.nn.functional.pad(one, (0, total - frames)).expand(rows, -1, -1) for one in (x, mu)]
        return net(wide[0], mask, wide[1], time.expand(rows), speaker.expand(rows, -1))[:1, :, :frames]

    alone = run(frames + -frames % 4, 1)
    assert (run(frames + -frames % 4 + extra, 1) - alone).abs().max() < 5e-5
    assert (run(frames + -frames % 4 + extra, 2) - alone).abs().max() < 5e-5


@pytest.mark.parametrize(
    "name",
    [
        "S3_euler10_full_multispeaker",
        "S3_euler10_tiny_padded",
        "S6_matcha_euler10_full_multispeaker",
        "S6_matcha_euler10_tiny_padded",
    ],
)
def test_ten_euler_steps_are_the_original_ones(name):
    """ACCEPTANCE A8, goldens S3 and S6."""
    case = Case(name)
    decoder = Decoder(estimator_of(case, strict=False))
    start = case.given("temperature") * case.given("z")
    case.check("mel", decoder(case.given("mu"), case.given("mask"), start, case.given("n_steps"), case.given("spk")))


def test_the_bank_is_the_original_one_and_its_weights_sum_to_one():
    """ACCEPTANCE A8, golden S4."""
    case = Case("S4_bank_full")
    bank = Intonation(192, 128, 6, 48)
    bank.load_state_dict({key.removeprefix("encoder.gst."): value for key, value in case.state().items()})
    lengths = torch.tensor(case.given("lengths"))
    for end, pitch in (("", case.given("pitch")), ("_hz", case.given("pitch_hz"))):
        query = bank.query(pitch, lengths)
        out, weights = bank.stl(query)
        case.check("query" + end, query)
        case.check("weights" + end, weights)
        case.check("out" + end, out)
        assert torch.allclose(weights.sum(-1), torch.ones(5, 4), atol=1e-6)


def test_the_lstm_step_by_step_is_the_lstm():
    net = Intonation(48, 16, 6, 24).ref_encoder
    pitch = torch.randn(4, 9, 1)
    assert (net._states(pitch) - net.lstm(pitch)[0]).abs().max() < 1e-6


def test_durations_and_their_path_are_the_original_ones():
    """Golden S5."""
    case = Case("S5_duration_path")
    mask = model.lengths_mask(torch.tensor(case.config["text_lengths"]), 9)
    found, frames = model.durations(case.given("logw"), mask, case.config["length_scale"])
    case.check("w_ceil", found)
    case.check("y_lengths", frames)
    path = model.expansion(found, int(frames.max())) * mask.transpose(1, 2)
    case.check("path", path)


def test_whole_frames_keep_the_sum_and_give_each_symbol_one():
    lengths = torch.tensor([0.2, 3.6, 0.1, 0.1, 4.4, 2.0])
    found = model.whole_frames(lengths)
    assert found.min() >= 1 and abs(int(found.sum()) - float(lengths.sum())) <= 1
    many = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 5 + 1
    assert (model.whole_frames(many).cumsum(0) - many.cumsum(0)).abs().max() <= 1.0


def test_the_flows_loss_is_zero_at_the_true_field_and_a_constant_field_arrives():
    """ACCEPTANCE A15."""
    dice = torch.Generator().manual_seed(0)
    noise, clean = torch.randn(2, 4, 8, generator=dice), torch.randn(2, 4, 8, generator=dice)
    point, velocity_ = flow_target(noise, clean, torch.tensor([0.0, 1.0]))
    assert torch.equal(point[0], noise[0]) and torch.allclose(point[1], clean[1] + 1e-4 * noise[1])
    assert ((clean - (1 - 1e-4) * noise) - velocity_).abs().max() == 0
    there = euler(lambda x, t: clean - noise, noise, 10)
    assert (there - clean).abs().max() < 1e-6


def test_known_frames_are_kept_and_lead_the_flow():
    noise, known = torch.zeros(1, 2, 6), torch.ones(1, 2, 3)
    found = euler(lambda x, t: x.mean(-1, keepdim=True).expand_as(x), noise, 4, known=known, noise=noise[..., :3])
    assert torch.equal(found[..., :3], known) and bool((found[..., 3:] > 0).all())


# ------------------------------------------------------------------------------------------------------ whole models

SMALL = Config(speakers=3, channels=48, inner=64, layers=2, inner_duration=32, token_width=24, field=(32, 32))


def filled(config):
    torch.manual_seed(0)
    made = ProsodyFM(config).eval()
    torch.nn.init.normal_(made.encoder.prenet.proj.weight, 0, 0.1)
    return made


@pytest.mark.parametrize("tokens", [6, 0], ids=["prosodyfm", "matcha"])
@pytest.mark.parametrize("speakers", [3, 1])
def test_a_public_layout_comes_back_the_same(tokens, speakers):
    """ACCEPTANCE A14."""
    made = filled(Config(**{**SMALL.to_dict(), "speakers": speakers, "tokens": tokens}))
    state = convert.to_public(made)
    again = convert.from_public(state)
    back = convert.to_public(again)
    assert list(back) == list(state) and all(torch.equal(back[key], state[key]) for key in state)
    assert again.config.tokens == tokens and again.config.speakers == speakers


def test_the_public_sizes_have_the_public_numbers_of_parameters():
    made = ProsodyFM(Config())
    count = sum(one.numel() for one in made.parameters())
    assert count == 21_018_881
    assert sum(one.numel() for one in made.encoder.parameters()) == 9_858_097
    assert sum(one.numel() for one in made.encoder.gst.parameters()) == 147_424
    assert sum(one.numel() for one in made.encoder.proj_w.parameters()) == 395_009
    assert sum(one.numel() for one in made.decoder.parameters()) == 11_139_920
    single = ProsodyFM(Config(speakers=1, tokens=0))
    assert single.encoder.proj_m.weight.shape == (80, 192, 1)
    assert single.decoder.estimator.time_mlp.linear_1.weight.shape == (1024, 160)


def test_a_wrong_checkpoint_is_refused_by_the_name_of_its_key():
    """ACCEPTANCE A14."""
    state = convert.to_public(filled(SMALL))
    with pytest.raises(UserError, match="no encoder.emb.weight"):
        convert.from_public({})
    short = {key: value for key, value in state.items() if key != "encoder.proj_w.proj.bias"}
    with pytest.raises(UserError, match="lacks encoder.proj_w.proj.bias"):
        convert.from_public(short)
    with pytest.raises(UserError, match="unknown encoder.more"):
        convert.from_public({**state, "encoder.more": torch.zeros(1)})
    with pytest.raises(UserError, match=r"encoder.encoder.attn_layers.1.conv_q.bias must have the shape \[112\]"):
        convert.from_public({**state, "encoder.encoder.attn_layers.1.conv_q.bias": torch.zeros(3)})


def test_a_prior_comes_back_in_half_precision(tmp_path):
    config = Config(
        **{**SMALL.to_dict(), "aligner": 16, "aligner_reads": True, "tone": True, "blanks": False, "voices": ("ä", "b")}
    )
    made = filled(config)
    again = convert.load(convert.save(made, tmp_path / "prior", bits=16))
    assert again.config == config
    for key, value in made.state_dict().items():
        assert torch.allclose(again.state_dict()[key], value, atol=2e-3), key
    with pytest.raises(UserError, match="8 or 16 bits a weight, got 4"):
        convert.save(made, tmp_path / "prior", bits=4)


def test_a_prior_comes_back_with_eight_bits_a_weight(tmp_path):
    made = filled(SMALL)
    folder = convert.save(made, tmp_path / "prior")
    again, half = convert.load(folder), convert.save(made, tmp_path / "half", bits=16)
    for key, value in made.state_dict().items():
        gap = (again.state_dict()[key] - value).abs()
        if key.endswith("weight") and value.ndim > 1:  # half a step of the row's largest over 127
            assert (gap.flatten(1).amax(1) <= 0.51 / 127 * value.flatten(1).abs().amax(1)).all(), key
        else:
            assert torch.equal(again.state_dict()[key], value), key
    one, two = ((path / "model.safetensors").stat().st_size for path in (folder, half))
    assert one < 0.75 * two


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="no setting 'width'"):
        Config.from_dict({"width": 3})
    with pytest.raises(UserError, match="channels of a ProsodyFM must be int; given 'x'"):
        Config.from_dict({"channels": "x"})


def test_the_aligner_reads_the_words_states_and_no_others():
    net = TextPitchAligner(8, 5)
    states = torch.randn(1, 6, 5)
    places = word_places(torch.tensor([[[1, 3], [0, 0]]]), 6, blanks=False)
    found = net(states, places)
    assert torch.allclose(found[0, 0], net.fc(states[0, 1:3].mean(0)), atol=1e-6)
    with pytest.raises(UserError, match="states of a language model"):
        net.states(torch.zeros(1, 6, dtype=torch.int64), torch.tensor([6]))


def test_align_attention_picks_among_the_references_words():
    reference = torch.eye(4) * 100
    assert torch.allclose(align_attention(torch.eye(4)[:2] * 100, reference), reference[:2], atol=1e-4)


def test_token_weights_by_hand_are_those_of_the_bank():
    bank = Intonation(48, 8, 6, 24)
    query = torch.randn(3, 48)
    out, weights = bank.stl(query)
    assert torch.allclose(bank.by_hand(weights), out, atol=1e-6)
    assert torch.allclose(bank.by_hand(torch.eye(6)[2]), bank.by_hand(torch.eye(6)[2].expand(2, 6)), atol=1e-6)
    with pytest.raises(UserError, match="6 intonation tokens; given weights for 5"):
        bank.by_hand(torch.ones(5) / 5)
    with pytest.raises(UserError, match="sum to 1"):
        bank.by_hand(torch.ones(6))


def test_a_preconditioned_field_begins_at_the_best_linear_guess():
    """For mels normal around mu, the guess leaves no more than what x and mu do not tell."""
    dice, spread = torch.Generator().manual_seed(0), 0.5
    mu, noise, rest = (torch.randn(64, 4, 400, generator=dice) for _ in range(3))
    time = torch.linspace(0, 1, 64)
    point, velocity_ = flow_target(noise, mu + spread * rest, time)
    net = Decoder(Estimator(4, 0, (8, 8), 1, 8, 1, 0.0), spread)
    with torch.no_grad():
        found = net.velocity(point, torch.ones(64, 1, 400), mu, time)
    left = (found - velocity_).square().mean((1, 2))
    wanted = spread**2 / ((1 - time) ** 2 + time**2 * spread**2)
    assert (left / wanted - 1).abs().mean() < 0.04
