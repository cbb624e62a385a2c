"""VALL-E R's recipe: pairs of one voice, labels on merged frames, and a prior that speaks what it is given."""

import json

import pytest
import speech_codes
import speech_data
import torch
from longtake.errors import UserError
from longtake.speech.alignment import AlignmentTooShort
from longtake.speech.codec.mels import MelCodec
from longtake.speech.valle_r import nar as other_layers
from longtake.speech.valle_r import train
from longtake.speech.valle_r.aligner import Aligner
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.corpus import Coded, buckets, projected
from longtake.speech.valle_r.decode import Limits, Sampling, expected
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import Size
from longtake.speech.valle_r.prior import ValleR, joined, tail
from longtake.train import Dice

CODEC = {"latent": 16, "entries": 64, "width": 32, "depth": 1, "decoder_width": 32, "decoder_depth": 1}
SIZE = Size(32, 4, 2, 64)


@pytest.fixture(scope="module")
def model():
    """A prior of random weights with two voices."""
    torch.manual_seed(0)
    codec = MelCodec(**CODEC).eval()
    codec.books.normal_()
    flat = speech_codes.flat(6)
    coded = Coded.of(flat, codec)
    ar, nar = AR(SIZE, entries=64, around=1, place=True, dwell=8), NAR(SIZE, entries=64, tie="same", stage=8)
    return ValleR(codec, ar, nar, train.choose_voices(coded, ["ann", "bob"]), Aligner.fit(speech_codes.flat(40)))


def test_every_phoneme_has_a_merged_frame_and_most_frames_keep_theirs():
    owner = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 2, 3, 3], [0, 1, 1, 1, 1, 1, -1, -1, -1, -1]])
    labels = projected(owner, torch.tensor([4, 2]), torch.tensor([5, 3]), 2)
    assert labels[0].tolist() == [0, 1, 2, 2, 3] and labels[1, :3].tolist() == [0, 1, 1]


def test_an_utterance_is_encoded_as_if_it_were_alone():
    torch.manual_seed(0)
    codec, flat = MelCodec(**CODEC).eval(), speech_codes.flat(5)
    codec.books.normal_()
    coded = Coded.of(flat, codec)
    for row, which in enumerate(coded.rows.tolist()):
        frames = int(flat.frames[which]) // 2 * 2
        mel = flat.cut(torch.tensor([which]), torch.tensor([0]), frames) * codec.deviation + codec.mean
        assert torch.equal(coded.codes[row, :, :frames].long(), codec.encode(mel.transpose(1, 2))[0])
        assert not coded.codes[row, :, frames:].any() and int(coded.frames[row]) == frames // 2
        labels = coded.labels[row, : frames // 2]
        assert labels[0] == 0 and labels[-1] == flat.counts[which] - 1 and set(labels.diff().tolist()) <= {0, 1}


def test_pairs_are_of_one_voice_and_of_two_utterances():
    coded = speech_codes.coded(8)
    twice = Coded(**{name: torch.cat([getattr(coded, name)] * 2) for name in Coded.__dataclass_fields__})
    pairs = twice.pairs(12, seed=0)
    assert (twice.voice[pairs[:, 0]] == twice.voice[pairs[:, 1]]).all()
    assert (twice.rows[pairs[:, 0]] != twice.rows[pairs[:, 1]]).all() and len(pairs) > 100


def test_a_joined_row_is_the_prompt_and_then_the_target():
    coded = speech_codes.coded(8)
    pairs = coded.pairs(1, seed=0)
    row = coded.join(pairs, 32, 63)
    for at, (one, two) in enumerate(pairs.tolist()):
        f, g, p, q = (int(n) for n in (coded.frames[one], coded.frames[two], coded.counts[one], coded.counts[two]))
        assert row.text[at].tolist() == [*coded.text[one, :p].tolist(), *coded.text[two, :q].tolist()] + [0] * (
            32 - p - q
        )
        assert torch.equal(row.codes[at, :, : 2 * f], coded.codes[one, :, : 2 * f].long())
        assert torch.equal(row.codes[at, :, 2 * f : 2 * (f + g)], coded.codes[two, :, : 2 * g].long())
        assert row.labels[at, f : f + g].tolist() == (coded.labels[two, :g].long() + p).tolist()
        assert int(row.lengths[at]) == f + g and int(row.prompt[at]) == f and int(row.text_lengths[at]) == p + q


def test_batches_have_few_shapes_that_hold_their_pairs():
    coded = speech_codes.coded(20)
    found = buckets(coded, coded.pairs(6, 0))
    assert len(found) == 3
    for bucket in found:
        assert int(coded.frames[bucket.pairs].sum(1).max()) <= bucket.frames and (bucket.frames + 1) % 16 == 0
        assert int(coded.counts[bucket.pairs].sum(1).max()) <= bucket.symbols and bucket.symbols % 16 == 0


def test_what_is_asked_for_is_mostly_the_code_and_sums_to_one():
    soft = train.neighbours(torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(soft.sum(-1), torch.ones(2, 30), atol=1e-5)
    assert (soft.diagonal(dim1=1, dim2=2) >= 1 - train.SPREAD).all() and (soft >= 0).all()


def test_misheard_codes_are_a_share_of_each_row():
    codes = torch.zeros(64, 200, dtype=torch.int64)
    heard = train.misheard(codes, 1024, 0.25, Dice(0, 0, torch.device("cpu")))
    shares = (heard != 0).float().mean(1)
    assert shares.max() < 0.4 and 0.08 < shares.mean() < 0.17 and shares.std() > 0.02


# ------------------------------------------------------------------------------------------------------------- prior


def test_the_recipe_leaves_a_prior_that_speaks_and_figures(tmp_path, monkeypatch):
    from longtake.speech import data

    folder = tmp_path / "data"
    folder.mkdir()
    speech_data.write_corpus(folder)
    monkeypatch.setattr(train, "AR_MODEL", {**train.AR_MODEL, "width": 32, "layers": 1, "feedforward": 64})
    monkeypatch.setattr(train, "NAR_MODEL", {**train.NAR_MODEL, "width": 32, "layers": 1, "feedforward": 64})
    told = {"precision": "no", "checkpoint_every": 50}
    amounts = train.Amounts(2, 200, 200)
    source = data.prepared(data.load_corpora(folder))
    path = train.train(source, tmp_path / "out", lambda share: dict(told), steps=(6, 4, 4), amounts=amounts)
    figures = json.loads((tmp_path / "out" / "valle_r.json").read_text())
    assert set(figures["codec_error_by_codebooks"]) == {str(n) for n in range(1, 5)}
    assert set(figures["nar_accuracy"]) == {str(n) for n in range(2, 5)}
    assert set(figures["error_by_detail"]) == {"first", "codes", "expected"}
    assert 0 <= figures["ar"]["code_accuracy"] <= 1 and figures["bytes"] < 24e6
    model = ValleR.load(path)
    assert {"ann", "bob"} <= set(model.voices)
    text = model.voice("ann").text
    made = model.synthesize(text, "bob", seed=3, limits=Limits(vowel=6, consonant=6))
    assert int(made.frames().sum()) == made.mel.shape[1] == made.codes.shape[1]
    again = model.synthesize(text, "bob", seed=3, limits=Limits(vowel=6, consonant=6))
    assert torch.equal(again.mel, made.mel)
    rerun = train.train(source, tmp_path / "out", lambda share: dict(told), steps=(6, 4, 4), amounts=amounts)
    assert rerun == path


def test_a_saved_prior_speaks_as_before_but_for_rounding(model, tmp_path):
    folder = model.save(tmp_path / "prior")
    once = ValleR.load(folder)
    twice = ValleR.load(once.save(tmp_path / "again"))
    text = once.voice("ann").text
    one, two = (each.synthesize(text, "bob", seed=1) for each in (once, twice))
    assert torch.equal(one.codes, two.codes) and torch.equal(one.mel, two.mel)


def test_a7_a_given_alignment_sets_the_length_of_each_phoneme(model):
    text = torch.tensor([60, 61, 62])
    lengths = torch.tensor([3, 1, 5])
    made = model.synthesize(text, "ann", alignment=torch.repeat_interleave(torch.arange(3), lengths))
    assert made.frames().tolist() == [6, 2, 10] and made.mel.shape == (80, 18)
    assert made.seconds().tolist() == pytest.approx([6 * 256 / 22050, 2 * 256 / 22050, 10 * 256 / 22050])


def test_other_seeds_and_chunks_draw_other_codes_and_packets_are_the_whole(model):
    text, short = model.voice("ann").text, Limits(vowel=5, consonant=5)
    made = model.synthesize(text, "ann", seed=1, limits=short)
    others = [model.synthesize(text, "ann", **told, limits=short) for told in ({"seed": 2}, {"seed": 1, "chunk": 1})]
    assert all(not torch.equal(made.codes, other.codes) for other in others)
    packets = [packet for packet, _ in model.stream(text, "ann", seed=1, limits=short)]
    assert torch.equal(torch.cat(packets, -1), made.mel)


def test_later_layers_are_decoded_as_their_codes_or_as_what_is_expected_of_them(model):
    text, short = model.voice("ann").text, Limits(vowel=5, consonant=5)
    usual, codes = (model.synthesize(text, "ann", detail=each, limits=short) for each in ("expected", "codes"))
    assert torch.equal(usual.codes, codes.codes) and not torch.equal(usual.mel, codes.mel)
    assert torch.equal(codes.mel, model.codec.decode(codes.codes[None])[0])
    sure = model.synthesize(text, "ann", limits=short, sampling=Sampling(temperature=0))
    known = model.voice("ann").codes.shape[1]
    whole = torch.cat([model.voice("ann").codes, sure.codes], 1)
    both, place = torch.cat([text, text]), torch.cat([model.voice("ann").pointer, sure.pointer + len(text)])
    _, latent = model.nar.expect(both, whole, place.repeat_interleave(2), known, model.codec.books)
    assert torch.allclose(sure.mel, model.codec.decode_latent(latent[None, known:])[0], atol=1e-5)
    with pytest.raises(UserError, match="expected or codes"):
        model.synthesize(text, "ann", detail="much")


def test_a_chunk_goes_on_from_an_anchor_and_the_end_of_the_last(model):
    text, short = model.voice("ann").text, Limits(vowel=5, consonant=5)
    first = model.synthesize(text, "ann", limits=short)
    end = tail(first.prompt(), 9)
    assert end is not None and len(end.pointer) <= 9 and end.pointer[0] == 0
    assert torch.equal(end.text, text[-len(end.text) :]) and torch.equal(
        end.codes, first.codes[:, -end.codes.shape[1] :]
    )
    both = joined([model.voice("ann"), end])
    assert torch.equal(both.text[both.pointer[-1]], text[-1]) and set(both.pointer.diff().tolist()) <= {0, 1}
    made = model.synthesize(text, [model.voice("ann"), end], limits=short)
    assert int(made.frames().min()) >= 2
    one = tail(model.synthesize(text[:1], "ann", limits=Limits(vowel=30, consonant=30, shortest=30)).prompt(), 9)
    assert one is None


def test_a_voice_is_cloned_from_mels_and_their_phonemes(model):
    flat = speech_codes.flat(6)
    count, frames = int(flat.counts[1]), int(flat.frames[1])
    text = flat.ids[flat.first_symbol[1] : flat.first_symbol[1] + count]
    mel = flat.mels[flat.first_frame[1] : flat.first_frame[1] + frames].float()
    told = flat.owner[flat.first_frame[1] : flat.first_frame[1] + frames].long()
    assert (model.aligner.owner(mel, text) == told).float().mean() > 0.7
    prompt = model.clone((mel * 2.1 - 5.5).T, text, name="new")
    assert prompt.codes.shape[1] == frames // 2 * 2 and "new" in model.voices
    assert model.synthesize(text, "new", limits=Limits(vowel=4, consonant=4)).mel.shape[0] == 80
    with pytest.raises(AlignmentTooShort):
        model.clone((mel[:6] * 2.1 - 5.5).T, text)


def test_a_folder_that_is_no_prior_or_a_damaged_one_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="lacks config.json"):
        ValleR.load(tmp_path)
    folder = model.save(tmp_path / "prior")
    whole = (folder / "ar.safetensors").read_bytes()
    (folder / "ar.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        ValleR.load(folder)
    with pytest.raises(UserError, match="allowed are ann, bob"):
        model.synthesize([60], "carl")
    for text, why in (([178], "0 to 177, got 178"), ([], "at least one phoneme"), ([60] * 4096, "4096 phonemes")):
        with pytest.raises(UserError, match=why):
            model.synthesize(text, "ann")


def test_what_is_expected_misses_nothing_where_codes_are_known_and_all_where_nothing_is():
    torch.manual_seed(0)
    books = torch.randn(2, 64, 16)
    books = books - books.mean(1, keepdim=True)
    target = torch.randint(64, (2, 9))
    target[1, 5:] = other_layers.IGNORED
    sure = 1e4 * torch.nn.functional.one_hot(target.clamp_min(0), 64).float()
    assert float(other_layers.missed(sure, target, books)) == pytest.approx(0, abs=1e-6)
    assert float(other_layers.missed(torch.zeros(2, 9, 64), target, books)) == pytest.approx(1, abs=1e-5)


def test_codes_that_sound_alike_begin_alike():
    torch.manual_seed(0)
    net = NAR(SIZE, entries=64, layers_of_codes=3, tie="same", stage=8)
    books = torch.randn(3, 64, 16) * torch.tensor([4.0, 2.0, 1.0])[:, None, None]
    other_layers.begin_from(net, books)
    for table, book in zip(net.tables(), books, strict=True):
        assert float(table.detach().std()) == pytest.approx(32**-0.5, rel=1e-4)
        near = torch.stack([torch.cdist(each, each).flatten() for each in (table.detach(), book)])
        assert float(torch.corrcoef(near)[0, 1]) > 0.8


def test_the_net_of_later_layers_says_more_of_them_than_nothing_after_some_steps(tmp_path):
    torch.manual_seed(0)
    codec = MelCodec(**CODEC, layers=3).eval()
    codec.books.copy_(torch.randn(3, 64, 16))
    coded = Coded.of(speech_codes.flat(12), codec)
    net = NAR(SIZE, entries=64, layers_of_codes=3, around=1, place=True, tie="same", stage=8, scale=5.0)
    before = train.missed_by(net, coded, codec.books)
    settings = train.Settings(60, 3e-3, warmup=10, ema=0.9, checkpoint_every=60)
    made = train.train_nar(coded, coded, tmp_path, settings, places=400, seed=0, model=net, books=codec.books)
    after = json.loads((tmp_path / "nar.jsonl").read_text().splitlines()[-1])["missed"]
    assert after < 0.9 * before and after == train.missed_by(made, coded, codec.books)


def test_the_expected_vector_is_the_codebook_weighted_by_the_chances():
    book = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    logits = torch.tensor([0.0, 0.0, -torch.inf, 9.0])  # the last is the end, which has no vector
    assert torch.allclose(expected(logits, 0, Sampling(temperature=0.5), book), torch.tensor([0.5, 0.5]))
    warm = expected(torch.tensor([1.0, 0.0, -torch.inf]), 0, Sampling(temperature=0.5), book)
    assert torch.allclose(warm, torch.tensor([2.0, 0.0]).softmax(0))
    assert torch.equal(expected(logits, 2, Sampling(temperature=0), book), book[2])


def test_blocks_of_convolutions_see_nothing_of_the_padding_and_something_of_their_neighbours():
    torch.manual_seed(0)
    net = NAR(SIZE, entries=64, layers_of_codes=3, around=1, place=True, tie="same", stage=8, local=2).eval()
    text, codes = torch.randint(1, 100, (2, 5)), torch.randint(64, (2, 3, 12))
    pointer = torch.arange(12).clamp_max(4).expand(2, -1)
    stage, prompt = torch.tensor([0, 1]), torch.tensor([2, 2])
    told = net(text, codes, pointer, stage, prompt, torch.tensor([5, 5]), torch.tensor([12, 9]))
    alone = net(text[1:], codes[1:, :, :9], pointer[1:, :9], stage[1:], prompt[1:])
    assert torch.allclose(told[1, :9], alone[0], atol=1e-5)
    before = net.rows(text, codes, pointer, stage, prompt)
    codes[0, 0, 6] = (codes[0, 0, 6] + 1) % 64
    changed = (net.rows(text, codes, pointer, stage, prompt) - before).abs().amax(2)[0] > 0
    assert changed[5 + 5 : 5 + 8].all() and not changed[:5].any()
