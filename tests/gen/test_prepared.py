"""One file with all that a training needs."""

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.prepared import KnownTexts, Texts, load, save
from longtake.text import SentenceEncoder

WORDS = ["", "a knight walks", "an armoured knight walks slowly, seen from the front", "a knight walks"]


@pytest.fixture(scope="module")
def texts():
    return Texts.of(WORDS, SentenceEncoder())


def test_arrays_and_facts_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.integers(-9, 9, (3, 5)).astype(np.int16), "b": rng.random(4).astype(np.float32)}
    path = save(tmp_path / "deep" / "video.prepared", "video", arrays, {"clips": ["x", {"y": 1}]})
    back, facts = load(path, "video")
    assert facts == {"clips": ["x", {"y": 1}]} and list(back) == ["a", "b"]
    for name in arrays:
        assert back[name].dtype == arrays[name].dtype and np.array_equal(back[name], arrays[name])
    assert [p.name for p in path.parent.iterdir()] == ["video.prepared"]


@pytest.mark.parametrize("damage", ["gone", "other recipe", "text", "cut", "empty"])
def test_any_other_file_is_one_line(tmp_path, damage):
    path = save(tmp_path / "p", "motion" if damage == "other recipe" else "video", {"a": np.arange(9)}, {})
    if damage == "gone":
        path.unlink()
    elif damage in ("text", "empty"):
        path.write_text("hello" if damage == "text" else "")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError) as caught:
        load(path, "video")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_texts_keep_their_sentence_vectors_and_their_words_to_three_hundredths(texts):
    encoder = SentenceEncoder()
    assert texts.texts == tuple(dict.fromkeys(WORDS))
    back = Texts.read(texts.arrays()).states()
    for text in WORDS:
        exact = encoder.encode([text])[0]
        assert float((back[text] - exact).norm() / exact.norm()) < 0.03
        assert float((back[text][0] - exact[0]).norm() / exact[0].norm()) < 0.0005
        assert torch.equal(back[text].abs().amax(1) > 0, exact.abs().amax(1) > 0)
        assert torch.equal(texts.vectors()[text], back[text][0])


def test_known_texts_encode_as_prepared_and_refuse_others(texts):
    encoder = KnownTexts(texts)
    assert torch.equal(encoder.encode(WORDS[1:3]), torch.stack([texts.states()[word] for word in WORDS[1:3]]))
    with pytest.raises(UserError, match="none of the 3 texts"):
        encoder.encode(["a dragon"])


def test_texts_of_a_file_without_them_are_one_line():
    with pytest.raises(UserError, match="text_words"):
        Texts.read({"a": np.arange(3)})
