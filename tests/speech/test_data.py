"""Speech corpora: labels put right, breaks, one prepared file, crops on a device."""

import zipfile

import numpy as np
import pytest
import torch
from longtake import UserError
from longtake.speech import data
from longtake.speech.prosody_fm.breaks import last_words
from longtake.speech.text.symbols import BREAK, ids
from longtake.train import Dice
from speech_data import write_corpus, write_zip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def utterances(folder):
    return data.load_corpora(folder)


@pytest.fixture(scope="module")
def source(utterances):
    return data.prepared(utterances)


def test_labels_that_run_late_come_to_where_the_sound_changes(utterances):
    late = next(one for one in utterances if one.name == "00000.opus" and one.split == "train" and one.voice == "ann")
    wave = np.abs(late.wave())
    for place, phone in enumerate(late.phones):
        begin, end = (int(late.ends[place - 1]) if place else 0), int(late.ends[place])
        inner = wave[begin + 240 : end - 240]
        if len(inner) > 100 and phone not in ", .¿":
            assert inner.max() > 0.1, (place, phone)
        if phone == "¿" and len(inner) > 100:
            assert inner[200:].mean() < 0.02, place


def test_pauses_become_breaks_and_every_text_ends_in_one(utterances):
    phones = {one.text: one.phones for one in utterances}
    assert phones["wˈʌn, tˈuː."] == " wˈʌn, ¿ tˈuː. ¿"
    assert phones["nˈəʊ, ænd jˈɛs, ænd nˈəʊ."].count("¿") == 3
    assert all(one.phones.endswith(" ¿") and one.phones.startswith(" ") for one in utterances)


def test_lengths_are_positive_and_end_with_the_sound(utterances):
    for one in utterances:
        assert (np.diff(one.ends, prepend=0) > 0).all() and len(one.ends) == len(one.phones)
        assert len(one.wave()) == one.ends[-1]
        assert one.ends[0] <= data.LEAD + 1


def test_silence_at_the_ends_is_cut(utterances):
    for one in utterances:
        assert one.ends[-1] - one.ends[-4] <= data.TAIL + data.UNIT


def test_every_phone_has_a_frame_and_they_fill_the_mel(source):
    for one, mel in zip(source.utterances, data.mels_of(source.utterances, CPU), strict=True):
        ends = one.frame_ends(len(mel))
        assert ends[-1] == len(mel) and (np.diff(ends, prepend=0) >= 1).all()
    with pytest.raises(UserError, match="phones in 2 frames"):
        source.utterances[0].frame_ends(2)


def test_a_prepared_file_gives_back_what_the_zips_hold(utterances, source, tmp_path):
    back = data.load(data.save(tmp_path / "speech.prepared", utterances))
    assert len(back.utterances) == len(utterances)
    for one, other in zip(utterances, back.utterances, strict=True):
        assert (one.name, one.voice, one.split, one.text, one.phones) == (
            other.name,
            other.voice,
            other.split,
            other.text,
            other.phones,
        )
        assert (one.ends == other.ends).all() and one.begin == other.begin and one.sound == other.sound
    assert all((one == other).all() for one, other in zip(source.tones, back.tones, strict=True))


def test_a_crop_is_the_part_of_the_sentence_that_it_says(source):
    corpus = data.Corpus.of(source, "train", CPU)
    batch = corpus.crops(Dice(0, 0, CPU), 6, 40)
    assert batch.mel.shape == (6, 40, 80) and batch.ids.shape == (6, corpus.longest)
    for row in range(6):
        utterance, begin, count = int(batch.rows[row]), int(batch.begin[row]), int(batch.frames[row])
        first = int(corpus.first_frame[utterance]) + begin
        assert torch.equal(batch.mel[row, :count], corpus.mels[first : first + count].float())
        assert not batch.mel[row, count:].any()
        ends = batch.lengths[row].cumsum(0)
        for frame in (0, count - 1):
            owner = int(batch.owner[row, frame])
            assert (int(ends[owner - 1]) if owner else 0) <= begin + frame < int(ends[owner])
        assert int(batch.lengths[row].sum()) == int(corpus.frames[utterance])


def test_the_same_step_draws_the_same_crops(source):
    corpus = data.Corpus.of(source, "train", CPU)
    one, other = (corpus.crops(Dice(3, 7, CPU), 4, 40) for _ in range(2))
    assert torch.equal(one.mel, other.mel) and torch.equal(one.rows, other.rows)


def test_buckets_hold_each_utterance_once(source):
    corpus = data.Corpus.of(source, "train", CPU)
    odds, shares = corpus.buckets((16, 24, corpus.longest))
    assert torch.equal(sum(odds), corpus.frames.float())
    assert np.allclose(shares, [float(one.sum() / corpus.frames.sum()) for one in odds])
    assert all(int(corpus.counts[one > 0].max()) <= limit for one, limit in zip(odds, (16, 24, 99), strict=True))


def test_the_last_words_of_phrases_have_their_pitch(source):
    corpus = data.Corpus.of(source, "train", CPU)
    for row in range(len(corpus.counts)):
        first, count = int(corpus.first_symbol[row]), int(corpus.counts[row])
        spans = last_words(corpus.ids[first : first + count].tolist())
        assert corpus.finals[row, : len(spans)].tolist() == [list(span) for span in spans]
        assert int(corpus.ids[first + spans[-1][1] + 1]) == BREAK
    voice = corpus.voices.index("ann")
    heard = corpus.tones[corpus.voice == voice]
    assert 100 < float(heard[heard > 0].median()) < 140


def test_held_out_speech_of_a_known_voice_has_its_number(source):
    train = data.Corpus.of(source, "train", CPU)
    held_out = data.Corpus.of(source, "val", CPU, voices=train.voices)
    assert train.voices == ("ann", "bob", "cleo") and set(held_out.voice.tolist()) == {0, 1}


def test_a_few_of_each_voice_can_be_read(folder):
    few = data.load_zip(folder / "aligned_train.zip", "train", 3)
    assert [one.voice for one in few].count("ann") == 3 and len(few) == 6


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="aligned_train.zip or human_train.zip"):
        data.load_corpora(tmp_path)
    (tmp_path / "aligned_train.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="no speech corpus, or damaged"):
        data.load_corpora(tmp_path)
    with zipfile.ZipFile(write_zip(tmp_path / "good.zip")) as archive:
        index, sound = archive.read("index.jsonl"), archive.read("00000.opus")
    with zipfile.ZipFile(tmp_path / "aligned_train.zip", "w") as archive:
        archive.writestr("index.jsonl", index.splitlines()[0].replace(b'"frames": [6, ', b'"frames": ['))
        archive.writestr("00000.opus", sound)
    with pytest.raises(UserError, match="phones for"):
        data.load_corpora(tmp_path)
    with pytest.raises(UserError, match="no sound that can be read"):
        data.decoded(b"noise", "x.opus")


def test_every_symbol_of_the_corpora_has_an_id():
    letters = " !,.:;?abdefhijklmnopstuvwzæðŋɑɒɔəɚɛɜɡɪɹɾʃʊʌʒʔˈˌːθᵻ"
    assert len(ids(letters)) == 51
