"""Speaking by hand: breaks, slopes, contours, tokens, rate, frames."""

import pytest
import torch
from longtake import UserError
from longtake.speech.pitch import line
from longtake.speech.prosody_fm.model import PAUSE, Config, ProsodyFM, with_pauses
from longtake.speech.prosody_fm.speak import speak

PHONES = "ɪz ðæt tɹˈuː, ɔː nˈɒt?"
CONFIG = Config(
    speakers=2,
    channels=32,
    inner=32,
    layers=1,
    inner_duration=16,
    token_width=16,
    pitch_hidden=8,
    aligner=16,
    aligner_reads=True,
    field=(16, 16),
    field_width=8,
    blanks=False,
    tone=True,
    voices=("ann", "bob"),
)


def made(**other):
    torch.manual_seed(0)
    model = ProsodyFM(Config(**{**CONFIG.to_dict(), **other})).eval()
    torch.nn.init.normal_(model.encoder.prenet.proj.weight, 0, 0.1)
    if model.config.tone:
        torch.nn.init.normal_(model.spk_tone.weight)
    torch.nn.init.constant_(model.encoder.proj_w.proj.bias, 1.5)
    return model


@pytest.fixture(scope="module")
def model():
    return made()


def test_the_same_seed_speaks_the_same_and_another_does_not(model):
    one, two, other = (speak(model, PHONES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.mel, two.mel) and not torch.equal(one.mel, other.mel)
    assert one.mel.shape == (80, int(one.frames.sum())) and len(one.frames) == len(one.row)


def test_phrases_end_where_breaks_are(model):
    assert speak(model, PHONES).finals == (2, 4)
    by_hand = speak(model, PHONES, breaks={0, 2})
    assert by_hand.finals == (0, 2, 4) and by_hand.row.count("¿") == 3
    assert by_hand.weights.shape == (3, 2, 6)
    assert torch.allclose(by_hand.weights.sum(-1), torch.ones(3, 2), atol=1e-5)


def test_a_slope_is_the_contour_of_its_line_and_changes_its_word_alone(model):
    plain, slope = speak(model, PHONES), speak(model, PHONES, slopes={2: 4.0})
    contour = speak(model, PHONES, contours={2: line(4.0, 16).tolist()})
    assert torch.equal(slope.mel, contour.mel) and torch.equal(slope.weights[1], plain.weights[1])
    assert not torch.equal(slope.weights[0], plain.weights[0])


def test_token_weights_are_taken_as_given(model):
    told = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    said = speak(model, PHONES, tokens={4: told})
    assert torch.equal(said.weights[1], torch.tensor([told, told]))


def test_a_references_intonations_are_used(model):
    reference = torch.randn(3, 32)
    assert not torch.equal(speak(model, PHONES, reference=reference).mel, speak(model, PHONES).mel)


def test_a_language_models_states_make_the_intonation():
    from longtake.speech.prosody_fm.bert import word_states
    from transformers import BertConfig, BertModel

    class Pieces:
        cls_token_id, sep_token_id = 1, 2

        def tokenize(self, word):
            return [letter for letter in word if letter.isalpha()]

        def convert_tokens_to_ids(self, pieces):
            return [3 + ord(letter) % 50 for letter in pieces]

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 40}
    bert = BertModel(BertConfig(vocab_size=60, hidden_size=16, **sizes)).eval()
    words = "is that true or not".split()
    states = word_states(bert, Pieces(), words, [2, 4])
    numbers = torch.tensor([[1, *Pieces().convert_tokens_to_ids("isthattrueornot"), 2]])
    whole = bert(numbers).last_hidden_state[0]
    assert torch.allclose(states[0], whole[7:11].mean(0), atol=1e-5)
    reads = made(aligner_reads=False)
    one, other = (speak(reads, PHONES, states=given) for given in (states, -states))
    assert not torch.equal(one.weights, other.weights)
    with pytest.raises(UserError, match=r"reads states \(2, 16\) of a language model; given \(1, 16\)"):
        speak(reads, PHONES, states=states[:1])
    with pytest.raises(UserError, match="reads none of a language model"):
        speak(made(), PHONES, states=states)
    with pytest.raises(UserError, match="no word 5: the text has 5"):
        word_states(bert, Pieces(), words, [5])
    with pytest.raises(UserError, match="no token for '!'"):
        word_states(bert, Pieces(), ["!"], [0])
    with pytest.raises(UserError, match="reads 40 tokens; the text has 62"):
        word_states(bert, Pieces(), ["abcdef"] * 10, [0])


def test_rate_and_frames_and_pitch(model):
    plain, fast = speak(model, PHONES), speak(model, PHONES, rate=2.0)
    assert int(fast.frames.sum()) < 0.7 * int(plain.frames.sum())
    frames = [2] * len(plain.row)
    assert speak(model, PHONES, frames=frames).frames.tolist() == frames
    frames = plain.frames.tolist()
    assert torch.equal(speak(model, PHONES, frames=frames).mel, plain.mel)
    assert not torch.equal(speak(model, PHONES, frames=frames, pitch=3.0).mel, plain.mel)


def test_a_public_layout_speaks_with_blanks():
    said = speak(made(blanks=True, aligner=0, aligner_reads=False, tone=False), PHONES, voice="bob")
    assert len(said.frames) == len(said.row) and said.mel.shape[1] == int(said.frames.sum())
    matcha = speak(made(blanks=True, tokens=0, aligner=0, aligner_reads=False, tone=False), PHONES)
    assert matcha.row == PHONES and matcha.weights is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"voice": "cleo"}, "unknown voice 'cleo': it must be one of ann, bob"),
        ({"slopes": {1: 2.0}}, "word 1 ends no phrase: those that do are 2, 4"),
        ({"slopes": {2: 2.0}, "tokens": {2: [1, 0, 0, 0, 0, 0]}}, "one of a slope, a contour and token weights"),
        ({"tokens": {2: [1.0]}}, "6 intonation tokens; given weights for 1"),
        ({"contours": {2: []}}, "has no values"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"frames": [1, 2]}, "frames must be 27 numbers"),
        ({"steps": 0}, "1 step or more; given 0"),
        ({"breaks": {9}}, "after word 0 to 4; given 9"),
    ],
)
def test_what_cannot_be_is_refused(model, words, message):
    with pytest.raises(UserError, match=message):
        speak(model, PHONES, **words)


def test_a_model_refuses_the_controls_that_it_lacks():
    matcha = made(tokens=0, aligner=0, aligner_reads=False, tone=False)
    with pytest.raises(UserError, match="no intonation bank"):
        speak(matcha, PHONES, slopes={2: 1.0})
    with pytest.raises(UserError, match="no control of pitch"):
        speak(matcha, PHONES, pitch=1.0)
    with pytest.raises(UserError, match="one voice and no names"):
        speak(made(speakers=1, tone=False, voices=()), PHONES, voice="ann")


def test_the_voice_that_ships_says_a_sentence_and_pauses_where_it_is_told_to():
    from longtake import LongSpeechPipeline

    pipe = LongSpeechPipeline.from_prior()
    assert len(pipe.voice.model.config.voices) == 53
    said = pipe("You are coming with us tomorrow.", seed=1, phonemes="words")
    again = pipe("You are coming [pause:500ms] with us tomorrow.", seed=1, phonemes="words")
    assert 1.2 < said.seconds < 4 and 0.05 < float(abs(said.samples).max()) <= 1
    assert [word.text for word in said.words if not word.mark] == "You are coming with us tomorrow.".split()
    assert again.seconds > said.seconds + 0.3


def test_a_break_between_words_pauses_for_150_ms_and_more_and_its_words_keep_their_frames(model):
    plain = speak(model, "wˈʌn tˈuː θɹˈiː.", breaks=set())
    broken = speak(model, "wˈʌn tˈuː θɹˈiː.", breaks={0}, rate=1.0)
    place = broken.row.index("¿")
    assert int(broken.frames[place - 1 : place + 2].sum()) >= PAUSE == 13
    assert "¿" not in plain.row[:-1]
    slow = speak(model, "wˈʌn tˈuː θɹˈiː.", breaks={0}, rate=0.5)
    assert int(slow.frames[place - 1 : place + 2].sum()) >= 2 * PAUSE
    row, lengths = " a ¿ b ¿", torch.tensor([1, 2, 1, 20, 1, 2, 1, 5])
    assert torch.equal(with_pauses(lengths, row, PAUSE), lengths)  # long enough; the last break is the text's end
