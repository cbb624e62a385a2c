"""`pool` on tiny models of every family: nothing changes at windows of one token, and prompts follow the films."""

import pytest
import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.video.reading.families import FAMILIES
from longtake.video.reading.guide import PromptGuide
from longtake.video.reading.pool import pool
from reading_models import tiny_clip
from reading_vlms import END, FAMILY_NAMES, FRAMES, IMAGE, START, VIDEO, prompt, single, vlm

LABELLED = ["internvl", "smolvlm"]
ANSWER = {"max_new_tokens": 5, "do_sample": False}


class Letters:
    """A tokenizer: one id for a letter, from 3 on; 192 and 193 are what stands around a frame."""

    all_special_ids = (0, 1, 2, START, END, VIDEO)
    letters = "0123456789.<> abcdefghijklmnopqrstuvwxyz?"

    def encode(self, text, add_special_tokens=True):
        parts = text.replace("{", "\n{").replace("}", "\n").split("\n")
        return [i for p in parts for i in ([int(p[1:])] if p[:1] == "{" else [3 + self.letters.index(c) for c in p])]

    def decode(self, ids):
        return "".join(self.letters[i - 3] if 3 <= i < 3 + len(self.letters) else f"{{{i}}}" for i in ids)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_p8_windows_of_one_token_are_the_stock_model_to_the_bit(name):
    assert set(FAMILY_NAMES) == set(FAMILIES)
    model, inputs = vlm(name), prompt(name, 2)
    stock = logits(model, inputs)
    answers = [model.generate(**inputs, **ANSWER, num_beams=beams) for beams in (1, 2)]
    for settings in (
        {"kernel": 1},
        {"budget": 500},
        {"kernel": 1, "mode": "ppllava"},
        {"kernel": 1, "mode": "uniform"},
    ):
        with pool(model, **settings) as pooling:
            assert torch.equal(logits(model, inputs), stock)
        assert pooling.before == pooling.after > 0
    with pool(model, kernel=1):
        for beams, answer in zip((1, 2), answers, strict=True):
            assert torch.equal(model.generate(**inputs, **ANSWER, num_beams=beams), answer)
    torch.manual_seed(1)
    model = model.to(torch.bfloat16)
    half = {k: v.to(torch.bfloat16) if v.is_floating_point() and "second" not in k else v for k, v in inputs.items()}
    stock = logits(model, half)
    with pool(model, kernel=1):
        assert torch.equal(logits(model, half), stock)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_p8_a_batch_of_different_prompts_answers_as_singles_do(name):
    model, inputs = vlm(name), prompt(name, 2)
    stock = logits(model, inputs)
    for beams in (1, 2):
        with pool(model, budget=20) as pooling:
            both = model.generate(**inputs, **ANSWER, num_beams=beams)
            ones = [model.generate(**single(inputs, row), **ANSWER, num_beams=beams) for row in range(2)]
        assert [row[-5:].tolist() for row in both] == [one[0, -5:].tolist() for one in ones]
        assert torch.equal(both[:, :-5], inputs["input_ids"])
        assert pooling.after <= 20 + 1 and pooling.before >= 64
    with pool(model, budget=20):
        assert logits(model, inputs).shape[1] < stock.shape[1]


@pytest.mark.parametrize("name", ["llava", "llava_next_video", "llava_onevision", *LABELLED])
@pytest.mark.parametrize("mode", ["local", "ppllava", "uniform"])
def test_p8_pooled_features_are_what_the_language_model_reads(name, mode):
    model, inputs = vlm(name), prompt(name, 2)
    with pool(model, kernel=(2, 2, 2) if name not in LABELLED else (2, 2, 1), mode=mode) as pooling:
        found = logits(model, inputs)
        with torch.no_grad():
            made = pooling.prepare(dict(inputs))
    family = FAMILIES[name]
    output = made["mm_encoder_outputs"][family.modality].pooler_output
    tokens = torch.cat([one.reshape(-1, 32) for one in output])
    embeds = model.get_input_embeddings()(made["input_ids"])
    where = made["input_ids"] == getattr(model.config, family.token)
    embeds = embeds.masked_scatter(where[..., None], tokens)
    with torch.no_grad():
        route = model(inputs_embeds=embeds, attention_mask=made["attention_mask"]).logits
    assert torch.equal(route, found)
    if mode == "uniform":
        with torch.no_grad():
            encoded = family.encode(model.base_model, inputs)
        grid = encoded.flat[: 16 * FRAMES].view(1, FRAMES, 4, 4, 32).movedim(-1, 1)
        mean = F.avg_pool3d(grid, (2, 2, 1) if name in LABELLED else 2).flatten(2)[0].T
        assert (tokens[: len(mean)] - mean).abs().max() <= 1e-5


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_p8_a_wrong_number_of_placeholders_raises(name):
    model, inputs = vlm(name), prompt(name)
    token = getattr(model.config, FAMILIES[name].token)
    place = int((inputs["input_ids"][0] == token).nonzero()[3])
    wrong = inputs | {"input_ids": inputs["input_ids"].clone()}
    wrong["input_ids"][0, place] = 5
    with pool(model, budget=20), pytest.raises(UserError, match="placeholders"):
        model.generate(**wrong, **ANSWER)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_p8_the_model_is_what_it_was_afterwards(name):
    model, inputs = vlm(name), prompt(name)
    stock = logits(model, inputs)
    before = {key: id(value) for key, value in vars(model).items()}
    deltas = getattr(model.base_model, "rope_deltas", None)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in between"), pool(model, budget=20):
        model.generate(**inputs, **ANSWER)
        raise RuntimeError("in between")
    assert {key: id(value) for key, value in vars(model).items()} == before
    assert getattr(model.base_model, "rope_deltas", None) is deltas
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert torch.equal(logits(model, inputs), stock)
    with pool(model, budget=20):
        with pytest.raises(UserError, match="one pool at a time"), pool(model, budget=20):
            pass
        model.generate(**inputs, **ANSWER)
    with pool(model, budget=20):
        pass
    hooked = model.forward
    model.forward = lambda **given: hooked(**given)  # as accelerate's hooks do
    mine = vars(model)["forward"]
    with pool(model, budget=20):
        pass
    assert vars(model)["forward"] is mine


def test_p8_grids_of_qwen2_5_keep_places_and_times():
    model, inputs = vlm("qwen2_5_vl"), prompt("qwen2_5_vl", 2)
    inputs["second_per_grid_ts"] = torch.tensor([0.5, 1.5])
    names = ["input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask"]

    def places(given):
        return model.model.get_rope_index(**{name: given[name] for name in names})[0]

    with pool(model, kernel=(2, 2, 2)) as pooling, torch.no_grad():
        made = pooling.prepare(dict(inputs))
    assert made["video_grid_thw"].tolist() == [[2, 4, 4]] * 2 and made["second_per_grid_ts"].tolist() == [1.0, 3.0]
    stock, found = places(inputs), places(made)
    for row in range(2):
        before = stock[:, row, inputs["input_ids"][row] == VIDEO].view(3, FRAMES, 4, 4)
        after = found[:, row, made["input_ids"][row] == VIDEO].view(3, 2, 2, 2)
        assert torch.equal(after[0], before[0, ::2, ::2, ::2])  # a window's time is that of its first frame
        assert torch.equal(after[1:], before[1:, ::2, :2, :2])
        text = (made["input_ids"][row] != VIDEO) & made["attention_mask"][row].bool()
        assert (found[0, row, text].diff() > 0).all()
    no_times = {k: v for k, v in inputs.items() if k != "second_per_grid_ts"}
    with pool(model, kernel=(2, 1, 1)) as pooling, torch.no_grad():
        assert pooling.prepare(dict(no_times))["second_per_grid_ts"].tolist() == [2.0, 2.0]


def test_p8_qwen3_time_stamps_name_the_middle_of_a_window_and_deep_features_are_cut_alike():
    letters = Letters()
    stamps = [letters.encode(f"<{seconds} seconds>") for seconds in (0.3, 1.3, 2.4, 13.4)]
    model, inputs = vlm("qwen3_vl"), prompt("qwen3_vl", 2, stamps=stamps)
    with pool(model, letters, kernel=(2, 2, 2), mode="uniform") as pooling, torch.no_grad():
        made = pooling.prepare(dict(inputs))
        found = model(**inputs).logits
        answer = model.generate(**inputs, **ANSWER)
    assert found.shape[1] == made["input_ids"].shape[1] and torch.equal(answer[:, :-5], inputs["input_ids"])
    assert made["video_grid_thw"].tolist() == [[2, 4, 4]] * 2
    texts = [letters.decode(row.tolist()) for row in made["input_ids"]]
    film = "<0.8 seconds>{192}{191}{191}{191}{191}{193}<7.9 seconds>{192}{191}{191}{191}{191}{193}"
    assert all(film in text and text.count("seconds") == 2 for text in texts)
    assert torch.equal(made["mm_token_type_ids"] == 2, made["input_ids"] == VIDEO)
    places, _ = model.model.get_rope_index(**{k: v for k, v in made.items() if k != "mm_encoder_outputs"})
    grid = places[:, 1, made["input_ids"][1] == VIDEO].view(3, 2, 2, 2)
    assert (grid[0, 0] == grid[0, 0, 0, 0]).all() and (grid[0, 1] > grid[0, 0]).all()
    assert (grid[1, :, 1] - grid[1, :, 0] == 1).all() and (grid[2, :, :, 1] - grid[2, :, :, 0] == 1).all()
    output = made["mm_encoder_outputs"]["video"]
    with torch.no_grad():
        stock = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    assert len(output.deepstack_features) == 2
    for mine, theirs in zip(
        [output.pooler_output, *output.deepstack_features],
        [stock.pooler_output, *stock.deepstack_features],
        strict=True,
    ):
        for one, whole in zip(mine, theirs, strict=True):
            mean = F.avg_pool3d(whole.view(1, FRAMES, 4, 4, 32).movedim(-1, 1), 2).flatten(2)[0].T
            assert (one - mean).abs().max() <= 1e-5
    deepest = output.deepstack_features[1]
    with torch.no_grad():
        output.deepstack_features[1] = [feature + 1 for feature in deepest]
        assert not torch.allclose(model(**made).logits, found)


def test_p8_without_a_tokenizer_no_stamped_frames_are_merged():
    model, inputs = vlm("qwen3_vl"), prompt("qwen3_vl")
    with pool(model, kernel=(2, 2, 2)), pytest.raises(UserError, match="give pool the processor"):
        model.generate(**inputs, **ANSWER)
    with pool(model, budget=4) as pooling:
        model.generate(**inputs, **ANSWER)
    assert pooling.windows[0].kernel == (1, 4, 4)
    with pool(model, budget=3), pytest.raises(UserError, match="budget of at least 4"):
        model.generate(**inputs, **ANSWER)
    with pool(model, Letters(), kernel=(2, 2, 2)), pytest.raises(UserError, match="no time stamp"):
        model.generate(**inputs, **ANSWER)


@pytest.mark.parametrize("name", LABELLED)
def test_p8_a_window_keeps_the_label_of_its_first_frame(name):
    model, inputs = vlm(name), prompt(name, 2, frames=5)
    with pool(model, kernel=(2, 2, 2)) as pooling, torch.no_grad():
        made = pooling.prepare(dict(inputs))
        model.generate(**inputs, **ANSWER)
    picture = [START, *[IMAGE] * 4, END]
    film = [i for label in (161, 163, 165) for i in [160, label, *picture]]
    words = [int(i) for i in inputs["input_ids"][1] if 3 <= i < 150]
    assert made["input_ids"][1].tolist() == words[:3] + film + words[3:]
    assert made["attention_mask"][0].tolist() == [0, 0] + [1] * (made["input_ids"].shape[1] - 2)


def test_p8_pictures_with_words_between_are_not_one_film():
    model, inputs = vlm("llava"), prompt("llava", frames=2)
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(IMAGE)
    ids = torch.tensor([ids[: first + 16] + [7, 8, 9] + ids[first + 16 :]])
    given = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pool(model, kernel=(2, 2, 2)), pytest.raises(UserError, match="text of its own"):
        model.generate(**given, **ANSWER)
    three = prompt("llava", frames=3)
    ids = three["input_ids"][0].tolist()
    ids = torch.tensor([ids[: first + 16] + [7] + ids[first + 16 : first + 32] + [8] + ids[first + 32 :]])
    given = three | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pool(model, budget=6) as pooling:
        model.generate(**given, **ANSWER)
    assert pooling.windows[0].kernel[0] == 1
    with pool(model, kernel=(3, 2, 2)), pytest.raises(UserError, match="text of its own"):
        model.generate(**given, **ANSWER)


def test_p8_the_question_decides_and_known_scores_too():
    model, inputs = vlm("llava"), prompt("llava")
    scores = torch.zeros(FRAMES, 4, 4)
    scores[2, 1, 3] = 50.0
    with torch.no_grad():
        encoded = FAMILIES["llava"].encode(model.base_model, inputs)
        features = encoded.flat.view(FRAMES, 4, 4, 32)
    for mode in ("local", "ppllava"):
        with pool(model, kernel=(2, 2, 2), scores=[scores], mode=mode) as pooling, torch.no_grad():
            made = pooling.prepare(dict(inputs))["mm_encoder_outputs"]["image"].pooler_output[0]
        tokens = made.view(2, 2, 2, 32)
        assert (tokens[1, 0, 1] - features[2, 1, 3]).abs().max() <= 1e-5
        assert (tokens[0, 0, 0] - features[:2, :2, :2].mean((0, 1, 2))).abs().max() <= 1e-5
        assert "tokens of films 64 -> 8 (8.0 times fewer)" in pooling.explain() and mode in pooling.explain()
    found = []
    for question in ("dog?", "a bus at night"):
        with pool(model, Letters(), kernel=(2, 2, 2), question=question):
            found.append(logits(model, inputs))
    assert not torch.equal(*found)
    with pool(model, kernel=2, question="dog?"), pytest.raises(UserError, match="needs the processor"):
        logits(model, inputs)
    coarse = lambda film, size: torch.arange(8.0).view(2, 2, 2)  # noqa: E731
    with pool(model, kernel=2, guide=coarse) as pooling:
        logits(model, inputs)
    assert pooling.effects[0].g.shape == (1, 4, 4, 4)


def test_p8_a_guide_of_its_own_looks_at_its_own_frames():
    class Words:
        def __call__(self, texts, max_length, **_):
            return {
                "input_ids": torch.tensor(
                    [([98, *map(len, t.split()), 99] + [99] * max_length)[:max_length] for t in texts]
                )
            }

    model, inputs = vlm("llava_onevision"), prompt("llava_onevision")
    frames = torch.randn(FRAMES, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    guide = PromptGuide(tiny_clip(), Words())
    with pool(model, kernel=2, guide=guide, frames=[frames], question="where is it") as pooling:
        logits(model, inputs)
    assert pooling.effects[0].g.shape == (1, 4, 4, 4) and pooling.effects[0].mean_entropy < 1
    with pool(model, kernel=2, guide=guide), pytest.raises(UserError, match="frames="):
        logits(model, inputs)


def test_p8_lengths_labels_and_sequences_are_those_of_the_prompt_as_given():
    model, inputs = vlm("llava"), prompt("llava", 2)
    length = inputs["input_ids"].shape[1]
    with pool(model, budget=20):
        assert model.generate(**inputs, max_length=length + 3, do_sample=False).shape == (2, length + 3)
        found = model.generate(**inputs, **ANSWER, return_dict_in_generate=True, num_beams=2, num_return_sequences=2)
        assert torch.equal(found.sequences[:, :length], inputs["input_ids"].repeat_interleave(2, 0))
        assert (
            model.generate(inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}, **ANSWER)
            is not None
        )
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
        assert model(**inputs, labels=labels).loss.isfinite()
        words = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        words = {key: value[:, :4] for key, value in words.items()}
        plain = model.generate(**words, **ANSWER)
    assert torch.equal(plain, model.generate(**words, **ANSWER))
    with pool(model, budget=20):
        for more, told in (
            ({"position_ids": torch.zeros(2, length)}, "position_ids"),
            ({"attention_mask": torch.ones(2, 1, length, length)}, "attention_mask"),
            ({"mm_encoder_outputs": {"image": 1}}, "mm_encoder_outputs"),
        ):
            with pytest.raises(UserError, match=told):
                model(**inputs | more)
        with pytest.raises(UserError, match="input_ids"):
            model(pixel_values=inputs["pixel_values"], inputs_embeds=torch.zeros(2, 4, 32))


def test_p8_pictures_beside_a_film_stay_whole():
    model, inputs = vlm("qwen2_5_vl"), prompt("qwen2_5_vl")
    picture = torch.tensor([[START] + [IMAGE] * 4 + [END]])
    given = dict(inputs)
    given["input_ids"] = torch.cat([picture, inputs["input_ids"]], 1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    kinds = (given["input_ids"] == IMAGE).int() + 2 * (given["input_ids"] == VIDEO).int()
    given |= {
        "mm_token_type_ids": kinds,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "pixel_values": torch.randn(16, 96),
    }
    stock = logits(model, given)
    with pool(model, kernel=1):
        assert torch.equal(logits(model, given), stock)
    with pool(model, kernel=2) as pooling:
        assert logits(model, given).shape[1] == stock.shape[1] - 56
    assert (pooling.before, pooling.after) == (64, 8)


def test_p10_tokens_and_bytes_are_told_before_and_after():
    model, inputs = vlm("llava"), prompt("llava", 2)
    with pool(model, budget="20 tokens") as pooling:
        assert "no film has been read yet" in pooling.explain()
        assert "tokens of films 128 -> 40" in pooling.explain(inputs)
        model.generate(**inputs, **ANSWER)
        assert "tokens of films 128 -> 32 (4.0 times fewer), keys and values" in pooling.explain()
    with pool(model, budget="5 seconds") as pooling:
        assert pooling.most_tokens() > 64
        model.generate(**inputs, **ANSWER)
    assert pooling.after == 128
    with pool(model, budget="0.000001 seconds") as pooling:
        model.generate(**inputs, **ANSWER)
    assert pooling.after == 2


def test_p8_other_families_are_refused_by_name():
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    with torch.device("meta"):
        other = VideoLlavaForConditionalGeneration(VideoLlavaConfig())
    with pytest.raises(UserError, match="video_llava are not pooled; families that are: llava,"), pool(other):
        pass
    for settings in ({"budget": "many"}, {"budget": 0}, {"budget": True}, {"kernel": (0, 2, 2)}, {"budget": "0 s"}):
        with pytest.raises(UserError), pool(vlm("llava"), **settings):
            pass
