"""The public VALL-E layout is read and written without a loss, and what does not fit is named (A14)."""

import pytest
import torch
from longtake.errors import UserError
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.convert import from_public, load, public_state
from longtake.speech.valle_r.decode import decode_plain
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import Size

SIZE = Size(32, 4, 2, 64)


def models(begins=True):
    torch.manual_seed(0)
    ar = AR(SIZE, symbols=30, entries=40, pointer="none", lead=0, begins=begins)
    return ar.eval(), NAR(SIZE, symbols=30, entries=40, first=41, phonemes=False).eval()


@pytest.mark.parametrize("begins", [True, False])
def test_a14_written_and_read_again_both_networks_are_the_same(begins):
    ar, nar = models(begins)
    state = public_state(ar, nar)
    again = from_public(state, heads=4)
    for old, new in zip((ar, nar), again, strict=True):
        assert old.config == {**new.config, "dropout": old.config["dropout"]}
        for key, value in old.state_dict().items():
            assert torch.equal(value, new.state_dict()[key]), key
    assert set(public_state(*again)) == set(state)
    text, given = torch.tensor([3, 4, 5]), torch.tensor([1, 2])
    codes = [decode_plain(each, text, given, generator=torch.Generator().manual_seed(0)) for each in (ar, again[0])]
    assert torch.equal(*codes)


def test_a14_the_keys_are_those_of_the_public_code():
    state = public_state(*models())
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["ar_audio_embedding.word_embeddings.weight"] == (42, 32)
    assert shapes["ar_decoder.layers.1.self_attn.in_proj_weight"] == (96, 32)
    assert shapes["ar_decoder.layers.0.norm1.weight"] == (32,) and shapes["ar_decoder.norm.bias"] == (32,)
    assert shapes["nar_decoder.layers.1.norm2.project_layer.weight"] == (64, 32)
    assert shapes["nar_decoder.norm.norm.weight"] == (32,)
    assert shapes["nar_audio_embeddings.0.word_embeddings.weight"] == (41, 32)
    assert shapes["nar_audio_embeddings.7.word_embeddings.weight"] == (40, 32)
    assert shapes["nar_stage_embeddings.6.word_embeddings.weight"] == (1, 32)
    assert torch.equal(state["nar_predict_layers.5.weight"], state["nar_audio_embeddings.7.word_embeddings.weight"])
    assert "nar_predict_layers.6.weight" in shapes and "nar_predict_layers.7.weight" not in shapes


def test_a14_an_adaptive_norm_scales_by_the_first_half_and_shifts_by_the_second():
    _, nar = models()
    norm = nar.transformer.norm
    x, stage = torch.randn(2, 5, 32), torch.randn(2, 32)
    told = torch.nn.functional.linear(stage, norm.project_layer.weight, norm.project_layer.bias)
    want = told[:, None, :32] * norm.norm(x) + told[:, None, 32:]
    assert torch.equal(norm(x, stage), want)


def test_a14_a_layer_is_that_of_torch_with_the_norm_first():
    ar, _ = models()
    stock = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True).eval()
    state = public_state(ar, models()[1])
    stock.load_state_dict(
        {k.removeprefix("ar_decoder.layers.0."): v for k, v in state.items() if ".layers.0." in k and k[0] == "a"}
    )
    x = torch.randn(2, 7, 32)
    attend = lambda _, q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v)  # noqa: E731
    with torch.no_grad():
        assert (ar.transformer.layers[0](x, 0, attend, None) - stock(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("ar_predict_layer.weight"), "ar_predict_layer.weight"),
        (lambda s: s.pop("nar_decoder.layers.1.norm1.norm.bias"), "nar_decoder.layers.1.norm1.norm.bias"),
        (lambda s: s.update({"ar_decoder.layers.1.linear2.bias": torch.zeros(3)}), "linear2.bias must have shape"),
        (lambda s: s.update({"ar_text_prenet.0.weight": torch.zeros(3)}), "unknown key ar_text_prenet.0.weight"),
        (
            lambda s: s.update({"nar_predict_layers.2.weight": torch.zeros(40, 32)}),
            "nar_predict_layers.2.weight differs",
        ),
    ],
)
def test_a14_a_key_that_does_not_fit_is_named(change, named):
    state = public_state(*models())
    change(state)
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        from_public(state, heads=4)


def test_files_are_read_without_unpickling(tmp_path):
    from safetensors.torch import save_file

    state = public_state(*models())
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model": state}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        assert torch.equal(load(tmp_path / name, 4)[0].predict.weight, models()[0].predict.weight)
    (tmp_path / "c.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load(tmp_path / "c.pt")
    with pytest.raises(UserError, match="no pointer"):
        public_state(AR(SIZE), NAR(SIZE))
