"""The sentence encoder: free wording, offline, each prompt on its own."""

import pytest
import torch
from longtake.motion.captions import ACTIONS
from longtake.text import TOKENS, WIDTH, SentenceEncoder, nearest, outside
from longtake.video.subjects import SUBJECTS


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


def test_shape_padding_and_scale(encoder):
    states = encoder.encode(["a dog", "a very long sentence about " + "many things " * 20, ""])
    assert states.shape == (3, TOKENS, WIDTH) and states.dtype == torch.float32
    assert (states[0, 3:] == 0).all() and (states[1] != 0).any(1).all() and (states[2, 1:] == 0).all()
    assert torch.allclose(states[:, 0].norm(dim=-1), torch.full((3,), WIDTH**0.5), rtol=1e-5)


def test_other_words_for_the_same_thing_are_near(encoder):
    score = encoder.similarity(["someone is jogging"], ["person running", "person swimming", "a rocket"])[0]
    assert score[0] > score[1] > score[2]


def test_a_prompt_does_not_depend_on_the_others_in_the_list(encoder):
    together = encoder.encode(["a dog", "a person walks along the beach at night"])
    assert torch.equal(together[0], encoder.encode(["a dog"])[0])


def test_only_the_configuration_is_saved(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(["a dog"]), encoder.encode(["a dog"]))
    (tmp_path / "config.json").write_text('{"package": "another", "tokens": 16}')
    with pytest.raises(ValueError, match="another"):
        SentenceEncoder.from_pretrained(tmp_path)


KNOWN = {
    "video": [text for subject in SUBJECTS.values() for text in (*subject.captions, *subject.wordings)],
    "motion": [text for action in ACTIONS.values() for text in action.wordings],
}
HELD_OUT = {
    "video": [text for subject in SUBJECTS.values() for text in subject.held_out],
    "motion": [text for action in ACTIONS.values() for text in action.held_out],
}
FAR = ("a castle on a hill", "ein Hund", "a backflip", "asdf qwer", "a bowl of soup")


@pytest.mark.parametrize("kind", ["video", "motion"])
def test_a_prompt_far_from_what_a_prior_knows_is_told(encoder, kind):
    known = KNOWN[kind]
    vectors = encoder.encode(known)[:, 0]
    near = [outside(text, known, encoder, vectors) is None for text in [*known, *HELD_OUT[kind]]]
    assert sum(near) >= 0.95 * len(near)
    for text in FAR:
        told = outside(text, known, encoder, vectors)
        assert told is not None and "\n" not in told and "is outside what this prior knows; nearest: " in told
    assert nearest(known[0], known, encoder, vectors)[0][0] == known[0]


def test_loading_the_encoder_says_nothing(capfd):
    SentenceEncoder().encode(["a dog"])
    assert capfd.readouterr() == ("", "")


def test_vectors_asked_for_again_are_read_and_a_damaged_file_is_made_anew(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LONGTAKE_CACHE", str(tmp_path))
    encoder, texts = SentenceEncoder(), ["a dog runs", "someone bows"]
    first = encoder.vectors(texts)
    assert torch.equal(first, encoder.encode(texts)[:, 0])
    with monkeypatch.context() as quiet:
        quiet.setattr(SentenceEncoder, "encode", lambda *_: pytest.fail("encoded again"))
        assert torch.equal(SentenceEncoder().vectors(texts), first)
    (file,) = (tmp_path / "texts").iterdir()
    file.write_bytes(b"x")
    assert torch.equal(encoder.vectors(texts), first) and not torch.equal(encoder.vectors(texts[::-1]), first)
    monkeypatch.setenv("LONGTAKE_CACHE", str(file))  # a file where a folder should be
    assert torch.equal(encoder.vectors(texts), first)
