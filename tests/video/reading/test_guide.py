"""PromptGuide, the effect report, PPLLaVA's projector and the names of its checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.kernels.pooling.guided import global_weights, pool_reference
from longtake.video.reading.guide import ClipHead, PromptGuide, explain
from longtake.video.reading.projector import IMAGE_KERNEL, PPLLaVAProjector, convert_checkpoint, sort_checkpoint
from reading_models import Golden, questions, tiny_clip, tiny_siglip


def frames(films=2, count=2, seed=0):
    return torch.randn(films, count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def ids_for(model):
    return questions([9, 30]) if model.config.model_type == "clip" else torch.randint(1, 99, (2, 64))


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_p6_what_moves_the_guide_and_what_does_not(make):
    model = make()
    guide, ids = PromptGuide(model), ids_for(model)
    with torch.no_grad():
        hidden, text = guide.see(frames()), guide.text(ids)
        scores = guide.scores(hidden, text)
        assert scores.shape == (2, 2, 6, 6) and scores.std() > 0
        order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
        moved = hidden.flatten(2, 3)[:, :, order].unflatten(2, (6, 6))
        assert (guide.scores(moved, text).flatten(2) - scores.flatten(2)[:, :, order]).abs().max() <= 1e-5
        g = global_weights(scores)
        assert (global_weights(guide.scores(hidden, 7.5 * text)) - g).abs().max() <= 1e-6
        singles = torch.cat([guide(frames()[i : i + 1], ids[i : i + 1]) for i in range(2)])
        assert (singles - scores).abs().max() <= 1e-5 and (global_weights(singles) - g).abs().max() <= 1e-6
        if make is tiny_siglip:
            model.logit_bias.fill_(100.0)
            assert torch.equal(PromptGuide(model)(frames(), ids), scores)
            sharp = PromptGuide(model, sharpen=True).scores(hidden, text)
            share = PromptGuide(model).head.attention_share(hidden)
            assert (share.sum((2, 3)) - 1).abs().max() <= 1e-5
            released = PromptGuide(model, sharpen=True).head.weights(hidden, text)
            assert (released - 1000 * g * share).abs().max() <= 1e-6
            assert torch.equal(PromptGuide(model).head.weights(hidden, text), g)
            assert (global_weights(sharp) - g * share / (g * share).sum((1, 2, 3), keepdim=True)).abs().max() <= 1e-6
        else:
            cut = ids.clone()
            cut[:, 40:] = 5  # behind the end token
            assert torch.equal(guide.text(cut), guide.text(ids))


def test_p6_siglips_patch_feature_is_its_heads_with_all_attention_on_that_patch():
    model = tiny_siglip()
    head = model.vision_model.head
    guide = PromptGuide(model)
    with torch.no_grad():  # without the output projection the pooling head on one patch alone is the patch's feature
        head.attention.out_proj.weight.copy_(torch.eye(48))
        head.attention.out_proj.bias.zero_()
        hidden = guide.see(frames(1, 1))
        alone = head(guide.head.visual_ln(hidden).reshape(36, 1, 48))
        assert (guide.head.patches(hidden).reshape(36, 48) - alone).abs().max() <= 1e-5


def test_p6_a_guide_reads_text_through_its_tokenizer_and_refuses_other_models():
    class Words:
        def __call__(self, texts, max_length, **_):
            rows = [[98, *[1 + len(word) for word in text.split()], 99] for text in texts]
            return {"input_ids": torch.tensor([(row + [99] * max_length)[:max_length] for row in rows])}

    guide = PromptGuide(tiny_clip(), Words())
    assert guide(frames(), ["where is the dog", "what"]).shape == (2, 2, 6, 6)
    with pytest.raises(UserError, match="no tokenizer"):
        PromptGuide(tiny_clip())(frames(), ["dog"])
    with pytest.raises(UserError, match="CLIP or SigLIP"):
        PromptGuide(tiny_clip().text_model)


def projector_of(case, scale):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = case.config
    head = ClipHead(CLIPTextModel(CLIPTextConfig(**config["clip_text"])), config["vision_hidden"], 32, 64)
    state = case.state()
    state["multi_modal_projector.logit_scale"] = torch.tensor(scale)
    projector = PPLLaVAProjector(head, config["vision_hidden"], config["llm_hidden"]).eval()
    projector.load_state_dict(convert_checkpoint(state).projector)
    return projector


def test_p7_the_projector_is_the_originals():
    case = Golden("P2_projector")
    patches = case.given("features").view(2, 4, 6, 6, 48)
    ids = case.given("clip_ids")
    with torch.no_grad():
        soft, sharp = projector_of(case, 2.0), projector_of(case, 4.605170)
        case.check("tokens", soft(patches, ids))
        case.check("tokens_scale100", sharp(patches, ids))
        case.check("tokens_image", soft(patches, ids, IMAGE_KERNEL))
        case.check("cosine", soft.guide.cosine(patches, soft.guide.text(ids)))
        blunt = soft(patches, ids, mode="uniform")
    assert (blunt - torch.from_numpy(case.stored["tokens"])).abs().max() > 1e-4


def test_p7_parity_by_formula_and_where_gradients_flow():
    model = tiny_clip()
    guide = PromptGuide(model)
    projector = PPLLaVAProjector(guide.head, 48, 40)
    hidden, ids = guide.see(frames(2, 4)).detach(), questions([9, 30])
    found = projector(hidden, ids)
    seen = F.normalize(model.visual_projection(model.vision_model.post_layernorm(hidden)), dim=-1)
    said = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    g = (model.logit_scale.exp() * torch.einsum("bthwp,bp->bthw", seen, said)).flatten(1).softmax(1).view(2, 4, 6, 6)
    mixed = projector.linear_2(F.gelu(projector.linear_1(hidden))).movedim(-1, 1)
    expected = pool_reference(mixed, g, (2, 3, 3), (2, 3, 3), (2, 2, 2)).flatten(2).transpose(1, 2)
    assert (found - expected).abs().max() <= 1e-6
    found.square().sum().backward()
    assert model.visual_projection.weight.grad.abs().max() > 0 and projector.linear_1.weight.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in model.text_model.parameters())
    assert not guide.head.logit_scale.requires_grad and guide.head.logit_scale.grad is None


def planted(cosine, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cosines = 0.2 + 0.02 * torch.randn(1, 32, 24, 24, generator=generator)
    cosines = cosines.clamp(max=0.26)
    cosines[0, 15, 12, 12] = cosine
    return 100 * cosines


def test_p9_effect_of_a_planted_patch_in_both_modes():
    where = (0, 7, 4, 4)
    for cosine, bounds in ((0.275, (0.0, 0.3)), (0.325, (0.99, 1.0)), (0.425, (0.99, 1.0))):
        scores = planted(cosine)
        released = explain(scores, (2, 3, 3))
        honest = explain(scores, (2, 3, 3), mode="local")
        assert bounds[0] <= float(released.weights[where].amax()) <= bounds[1]
        assert float(honest.weights[where].amax()) > (0.9 if cosine == 0.275 else 0.99)
        assert abs(float(released.g.sum()) - 1) <= 1e-5 and released.weights.shape == (1, 16, 8, 8, 2, 3, 3)
        assert released.mean_entropy > 0.99 > 0.9 > honest.mean_entropy
    text = str(released)
    assert "relative entropy" in text and "ppllava" in text and sum(released.histogram()) == 1024
    average = explain(scores, (2, 3, 3), mode="uniform")
    assert average.mean_entropy == pytest.approx(1.0, abs=1e-5) and average.sharp == 0
    short = explain(scores[:, :3, :4, :4], (2, 3, 3), mode="uniform")
    assert short.mean_entropy == pytest.approx(1.0, abs=1e-5)


def original_checkpoint(stretched):
    case = Golden("P2_projector")
    state = {k: torch.ones(shape) for k, shape in case.facts["parameters"]["keys"].items()}
    base = "multi_modal_projector.clip_text_model.embeddings.position_embedding"
    if stretched:
        del state[f"{base}.weight"]
        state[base], state[f"{base}_res"] = torch.zeros(248, 32), torch.ones(248, 32)
    return state | {
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2),
        "language_model.model.layers.0.mlp.up_proj.weight": torch.ones(2, 2),
        "language_model.lm_head.weight": torch.ones(2, 2),
        "image_newline": torch.ones(2),
    }


def test_p12_keys_have_a_place_or_are_named():
    from transformers import CLIPTextConfig, CLIPTextModel

    case = Golden("P2_projector")
    state = original_checkpoint(stretched=True)
    found = convert_checkpoint(state)
    names = {
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight", "model.language_model.layers.0.mlp.up_proj.weight",
        "lm_head.weight", "model.image_newline", "model.multi_modal_projector.linear_1.weight",
    }  # fmt: skip
    assert names <= set(found.vlm) and not found.unknown and not found.adapter
    table = found.projector["guide.text_model.embeddings.position_embedding.weight"]
    assert table.shape == (248, 32) and table[:20].sum() == 0 and table[20:].min() == 1
    text = CLIPTextConfig(**case.config["clip_text"] | {"max_position_embeddings": 248})
    projector = PPLLaVAProjector(ClipHead(CLIPTextModel(text), 48, 32, 64), 48, 40)
    projector.load_state_dict(found.projector, strict=True)
    adapter = "vision_tower.vision_model.btadapter_T_layers.0.norm1.weight"
    with pytest.raises(UserError, match="btadapter_T_layers"):
        convert_checkpoint(state | {adapter: torch.ones(1)})
    assert sort_checkpoint(state | {adapter: torch.ones(1)}).adapter == [adapter]
    assert convert_checkpoint(state | {adapter: torch.ones(1)}, without_adapter=True).adapter == [adapter]
    with pytest.raises(UserError, match="multi_modal_projector.surprise"):
        convert_checkpoint(state | {"multi_modal_projector.surprise": torch.ones(1)})
    half = {k: v for k, v in state.items() if not k.endswith("_res")}
    with pytest.raises(UserError, match="position_embedding"):
        convert_checkpoint(half)
    total = len(found.vlm) + len(found.projector)
    shared = sum("multi_modal_projector.linear" in key for key in state)
    assert total == len(state) + shared - 1


def test_p12_siglips_keys_too():
    head = [
        "probe", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight", "layernorm.weight",
        "mlp.fc1.weight", "mlp.fc2.bias",
    ]  # fmt: skip
    state = {f"multi_modal_projector.clip_visual_head.{name}": torch.ones(1) for name in head}
    state |= {"multi_modal_projector.logit_bias": torch.ones(1), "multi_modal_projector.logit_scale": torch.ones(1)}
    found = convert_checkpoint(state)
    assert set(found.projector) == {f"guide.visual_head.{name}" for name in head} | {
        "guide.logit_bias", "guide.logit_scale",
    }  # fmt: skip
    guide = PromptGuide(tiny_siglip())
    assert {key.removeprefix("guide.") for key in found.projector} <= set(guide.head.state_dict())
