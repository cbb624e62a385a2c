"""VALL-E R: what is cached equals the whole, the pointer goes through the text, and a given alignment is kept."""

import itertools

import pytest
import torch
from longtake.errors import UserError
from longtake.noise import frame_generator
from longtake.speech.text.symbols import ids
from longtake.speech.valle_r.ar import AR, dwelt, lesson
from longtake.speech.valle_r.decode import (
    Limits,
    Pointer,
    Prompt,
    Sampling,
    advance,
    chosen,
    decode,
    decode_plain,
    draw,
)
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import Size

TINY = Size(32, 4, 2, 64)
KINDS = [("identity", 0), ("identity", 1), ("stay_go", 0), ("stay_go", 1)]


def ar(pointer="stay_go", lead=1, **more):
    torch.manual_seed(0)
    if pointer != "none" and lead:
        more = {"around": 1, "place": True, "dwell": 8, **more}
    model = AR(TINY, entries=40, pointer=pointer, lead=lead, **more).eval()
    with torch.no_grad():  # so that rows matter to each other
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(1.5)
    return model


def text_of(*shape, seed=0):
    return torch.randint(1, 178, shape, generator=torch.Generator().manual_seed(seed))


def rows_of(batch, frames, symbols, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(40, (batch, frames), generator=generator)
    pointer = torch.randint(symbols, (batch, frames), generator=generator).sort(1).values
    return codes, pointer


# ------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("prefix", [0, 1, 100])
@pytest.mark.parametrize("pointer", ["none", "identity", "stay_go"])
def test_a4_cached_logits_equal_the_whole(pointer, prefix):
    model = ar(pointer, lead=0 if pointer == "none" else 1)
    text, frames = text_of(1, 17), prefix + 12
    codes, where = rows_of(1, frames, 17)
    where = None if pointer == "none" else where
    with torch.inference_mode():
        whole = model(text, codes, where)
        cache = model.cache(17 + frames)
        model(text, codes[:, :prefix], None if where is None else where[:, :prefix], cache=cache)
        spent = None if where is None else dwelt(where)
        for t in range(prefix, frames):
            row = model.step(
                cache,
                text,
                codes[:, t],
                None if where is None else where[:, t],
                torch.tensor([t]),
                None if spent is None else spent[:, t],
            )
            for got, want in zip(row, whole, strict=True):
                assert got is None or (got - want[:, t]).abs().max() <= 1e-4


@pytest.mark.parametrize("pointer", ["identity", "stay_go"])
def test_a4_a_ragged_batch_of_three_equals_each_alone(pointer):
    model = ar(pointer)
    texts, prefixes, more = [9, 17, 4], [0, 30, 1], 6
    rows = [(text_of(1, n, seed=n), *rows_of(1, p + more, n, seed=n)) for n, p in zip(texts, prefixes, strict=True)]
    text, codes, where = torch.zeros(3, 17, dtype=torch.int64), *torch.zeros(2, 3, 31, dtype=torch.int64)
    for at, (one, code, place) in enumerate(rows):
        text[at, : texts[at]] = one
        keep = prefixes[at] + 1
        codes[at, :keep], where[at, :keep] = code[0, :keep], place[0, :keep]
    lengths = torch.tensor([p + 1 for p in prefixes])
    with torch.inference_mode():
        cache = model.cache(17 + 31 + more, rows=3)
        batch = model(text, codes, where, torch.tensor(texts), lengths, cache)
        alone = [model(one, code, place) for one, code, place in rows]
        for at in range(3):
            for got, want in zip(batch, alone[at], strict=True):
                assert (got[at, prefixes[at]] - want[0, prefixes[at]]).abs().max() <= 1e-4
        for step in range(1, more):
            at = torch.tensor([p + step for p in prefixes])
            code = torch.stack([code[0, a] for (_, code, _), a in zip(rows, at, strict=True)])
            place = torch.stack([where[0, a] for (_, _, where), a in zip(rows, at, strict=True)])
            spent = torch.stack([dwelt(where)[0, a] for (_, _, where), a in zip(rows, at, strict=True)])
            row = model.step(cache, text, code, place, at, spent)
            for one in range(3):
                for got, want in zip(row, alone[one], strict=True):
                    assert (got[one] - want[0, at[one]]).abs().max() <= 1e-4


def test_text_does_not_see_sound_and_sound_does_not_see_what_comes_later():
    model = ar()
    text = text_of(1, 9)
    codes, where = rows_of(1, 20, 9)
    with torch.inference_mode():
        before = model(text, codes, where)[0]
        changed = codes.clone()
        changed[:, 12:] = 39 - changed[:, 12:]
        after = model(text, changed, where)[0]
        other = text.clone()
        other[:, -1] = 178 - other[:, -1]
        moved = model(other, codes, where)[0]
    assert (before - after)[:, :12].abs().max() == 0 and (before - after)[:, 12:].abs().max() > 1e-3
    assert (before - moved).abs().amax(2).min() > 1e-6


def test_the_cache_is_used_again_without_new_memory_and_refuses_what_it_cannot_hold():
    model = ar()
    text = text_of(9)
    cache = model.cache(60)
    taken, first = cache.bytes, None
    for _ in range(2):
        again = decode(
            model, text, generator=frame_generator(1, 0, 0, 0), limits=Limits(vowel=4, consonant=4), cache=cache
        )
        assert cache.bytes == taken
        assert first is None or torch.equal(first, again.codes)
        first = again.codes
    with pytest.raises(UserError, match="holds 12 rows"):
        decode(model, text, limits=Limits(vowel=9, consonant=9, shortest=9), cache=model.cache(12))


# ----------------------------------------------------------------------------------------------------------- pointer


class Babble:
    """Stands for a network: logits drawn at random, the end likely, so that the rules alone keep the text whole."""

    entries, end, begin, begins = 6, 6, 7, True

    def __init__(self, pointer, lead, seed):
        self.pointer, self.lead = pointer, lead
        self.dice = torch.Generator().manual_seed(seed)
        self.columns = 178 if pointer == "identity" else 2

    def rows(self):
        said = torch.randn(1, 7, generator=self.dice)
        said[:, -1] += 1.0
        return said, 2 * torch.randn(1, self.columns, generator=self.dice)

    def cache(self, capacity):
        return None

    def __call__(self, text, codes, pointer, *, cache):
        return tuple(row[:, None] for row in self.rows())

    def step(self, *_):
        return self.rows()


def assert_whole(spoken, text, limits):
    steps = (spoken.pointer[1:] - spoken.pointer[:-1]).tolist()
    assert set(steps) <= {0, 1} and spoken.pointer[0] == 0 and spoken.pointer[-1] == len(text) - 1
    lasts = torch.bincount(spoken.pointer, minlength=len(text)).tolist()
    assert min(lasts) >= 1 and sum(lasts) == len(spoken.codes) <= limits.budget * len(text)
    for phoneme, frames in zip(text.tolist(), lasts, strict=True):
        assert limits.shortest <= frames <= limits.longest(phoneme)
    assert int(spoken.codes.max()) < 6  # the end is no code


TEXTS = {
    "repeats": ids("aabbb  ss"),
    "one": ids("s"),
    "plain": ids("wˈʌn tuː"),
}


@pytest.mark.parametrize("moves", ["sampled", "greedy", "median"])
@pytest.mark.parametrize(("pointer", "lead"), KINDS)
def test_a5_every_phoneme_is_spoken_once_and_in_order(pointer, lead, moves):
    limits = Limits(vowel=7, consonant=5)
    for seed in range(200):
        top_p = (0.1, 0.5, 1.0)[seed % 3]
        text = torch.tensor(list(TEXTS.values())[seed % len(TEXTS)])
        told = {} if moves == "sampled" else {f"{moves}_pointer": True}
        sampling = Sampling(top_p=top_p, temperature=0 if moves == "greedy" else 1, repeats=0.1, **told)
        babble, dice = Babble(pointer, lead, seed), torch.Generator().manual_seed(seed)
        assert_whole(decode(babble, text, generator=dice, sampling=sampling, limits=limits), text, limits)


@pytest.mark.parametrize(("pointer", "lead"), KINDS)
def test_a5_a_text_of_300_phonemes_is_spoken_whole(pointer, lead):
    text = text_of(300)
    for seed, limits in enumerate((Limits(), Limits(budget=1), Limits(budget=2, vowel=3, consonant=3))):
        babble, dice = Babble(pointer, lead, seed), torch.Generator().manual_seed(seed)
        spoken = decode(babble, text, generator=dice, limits=limits)
        assert_whole(spoken, text, limits)


@pytest.mark.parametrize(("pointer", "lead"), KINDS)
def test_a5_holds_with_a_network_and_a_prompt(pointer, lead):
    model, text = ar(pointer, lead), torch.tensor(TEXTS["repeats"])
    limits = Limits(vowel=7, consonant=5, budget=6)
    codes = torch.randint(40, (8, 12), generator=torch.Generator().manual_seed(0))
    prompt = Prompt(torch.tensor([5, 9, 9]), codes, torch.tensor([0, 0, 1, 1, 2, 2]))
    for seed in range(10):
        spoken = decode(model, text, prompt, generator=frame_generator(seed, 0, 0, 0), limits=limits)
        lasts = torch.bincount(spoken.pointer, minlength=len(text))
        assert set(spoken.pointer.diff().tolist()) <= {0, 1} and int(lasts.min()) >= 1
        assert spoken.pointer[0] == 0 and spoken.pointer[-1] == len(text) - 1
        again = decode(model, text, prompt, generator=frame_generator(seed, 0, 0, 0), limits=limits)
        assert torch.equal(again.codes, spoken.codes) and torch.equal(again.pointer, spoken.pointer)


def test_a6_the_probability_of_advancing_is_the_softmax_of_the_two_choices():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        logits = 3 * torch.randn(178, generator=generator)
        here, following = torch.randint(178, (2,), generator=generator).tolist()
        pair = torch.stack([logits[here], logits[following]]).double().softmax(0)
        assert advance(logits, "identity", here, following) == pytest.approx(float(pair[1]), abs=1e-6)
        assert advance(logits[:2], "stay_go", 0, 0) == pytest.approx(float(logits[:2].double().softmax(0)[1]), abs=1e-6)
    assert advance(torch.randn(178), "identity", 4, 4) == 0.5


def test_a6_advances_come_as_often_as_they_are_likely():
    logits, generator, moved, draws = torch.tensor([0.3, -0.4]), torch.Generator().manual_seed(0), 0, 20000
    for _ in range(draws):
        place = Pointer([70, 71], Limits())
        place.speak()
        place.move(logits, "stay_go", Sampling(), generator)
        moved += place.here
    share = advance(logits, "stay_go", 70, 71)
    assert abs(moved / draws - share) <= 3 * (share * (1 - share) / draws) ** 0.5


def test_the_pointer_of_the_median_leaves_where_half_of_the_drawn_ones_would_have_left():
    """Of each frame 30 % leave: after the second more than half have, where the likelier of the two stays for ever."""
    logits = torch.tensor([0.7, 0.3]).log()
    stays = {}
    for name in ("median_pointer", "greedy_pointer"):
        place = Pointer([70, 71, 72], Limits(vowel=9, consonant=9))
        stays[name] = [0, 0]
        while place.here < 2:
            place.speak()
            stays[name][place.here] += 1
            place.move(logits, "stay_go", Sampling(**{name: True}), None)
    assert stays == {"median_pointer": [2, 2], "greedy_pointer": [9, 9]}
    with pytest.raises(UserError, match="one of them"):
        Sampling(greedy_pointer=True, median_pointer=True)


@pytest.mark.parametrize(("pointer", "lead"), KINDS)
def test_a7_a_given_alignment_is_the_pointer_of_the_sound(pointer, lead):
    model, text = ar(pointer, lead), torch.tensor(TEXTS["repeats"])
    alignment = torch.repeat_interleave(torch.arange(len(text)), torch.tensor([3, 1, 1, 40, 2, 1, 5, 1, 2]))
    spoken = decode(model, text, generator=frame_generator(0, 0, 0, 0), alignment=alignment)
    assert torch.equal(spoken.pointer, alignment) and len(spoken.codes) == len(alignment)
    for wrong in (alignment[1:-2], alignment.flip(0), torch.tensor([0, 2])):
        with pytest.raises(UserError, match="alignment"):
            decode(model, text, alignment=wrong)


def test_a2_one_step_a_merged_frame_and_one_for_the_end():
    model, text = ar(), torch.tensor(TEXTS["plain"])
    calls = []
    step = model.step
    model.step = lambda *args: calls.append(1) or step(*args)
    alignment = torch.repeat_interleave(torch.arange(len(text)), 4)
    decode(model, text, alignment=alignment)
    full_rate = 2 * len(alignment) - 1  # an odd sound
    assert 1 + len(calls) == -(-full_rate // 2)  # the end of a given alignment needs no step of its own


# ---------------------------------------------------------------------------------------------------------- sampling


def test_sampling_keeps_to_what_it_is_told():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert {draw(logits, Sampling(top_p=0.4), generator) for _ in range(50)} == {0}
    assert {draw(logits, Sampling(top_p=0.6), generator) for _ in range(200)} == {0, 1}
    assert {draw(logits, Sampling(top_p=1.0, top_k=3), generator) for _ in range(300)} == {0, 1, 2}
    assert {draw(logits, Sampling(top_p=1.0), generator) for _ in range(400)} == {0, 1, 2, 3}
    assert draw(logits, Sampling(temperature=0), generator) == 0


def test_a_code_that_repeats_too_much_is_drawn_anew_unless_it_is_silence():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    sampling = Sampling(top_p=0.4, repeats=0.1)
    generator = torch.Generator().manual_seed(0)
    found = {chosen(logits, sampling, generator, [0] * 10, False) for _ in range(100)}
    assert found == {0, 1, 2}
    assert {chosen(logits, sampling, generator, [0] * 10, True) for _ in range(50)} == {0}
    assert {chosen(logits, sampling, generator, [1] * 10, False) for _ in range(50)} == {0}


def test_numbers_that_cannot_be_are_refused():
    for wrong in ({"top_p": 0}, {"temperature": -1}, {"repeats": 2}, {"window": 0}):
        with pytest.raises(UserError):
            Sampling(**wrong)
    with pytest.raises(UserError):
        Limits(shortest=9, vowel=4)
    with pytest.raises(UserError, match="allowed are none, identity, stay_go"):
        AR(TINY, pointer="back")
    with pytest.raises(UserError, match="at least one phoneme"):
        decode(ar(), torch.empty(0, dtype=torch.int64))
    with pytest.raises(UserError, match="pointer must be into"):
        Prompt(torch.tensor([1, 2]), torch.zeros(8, 4), torch.tensor([0, 2]))


def test_plain_decoding_is_that_of_vall_e():
    model = ar("none", 0, begins=False)
    text = text_of(6)
    codes = decode_plain(model, text, torch.tensor([3, 4]), generator=frame_generator(0, 0, 0, 0))
    assert 0 <= len(codes) <= 16 * 6 and (len(codes) == 0 or int(codes.max()) < 40)
    with pytest.raises(UserError, match="no begin"):
        decode_plain(model, text, torch.empty(0, dtype=torch.int64))


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("lead", [0, 1])
def test_a_lesson_asks_for_the_code_of_its_frame_the_end_and_the_next_move(lead):
    model = ar("stay_go", lead)
    text = torch.tensor([[7, 8, 0]])
    told = lesson(
        model, text, torch.tensor([2]), torch.tensor([[5, 6, 9, 1]]), torch.tensor([[0, 0, 1, 1]]), torch.tensor([3])
    )
    assert told["codes"].tolist() == [[model.begin, 5, 6, 9, 0]]
    assert told["code_target"].tolist() == [[5, 6, 9, model.end, -100]]
    if lead:
        assert told["pointer"].tolist() == [[0, 0, 1, 1, 1]]
        assert told["move_target"].tolist() == [[0, 1, -100, -100, -100]]
    else:
        assert told["pointer"].tolist() == [[0, 0, 0, 1, 1]]
        assert told["move_target"].tolist() == [[0, 0, 1, -100, -100]]


def test_padding_changes_no_logits():
    model = ar()
    codes, where = rows_of(2, 10, 5)
    text = text_of(2, 5)
    with torch.inference_mode():
        alone = model(text[:1], codes[:1, :6], where[:1, :6])
        wide = torch.cat([text, torch.zeros(2, 3, dtype=torch.int64)], 1)
        padded = model(wide, codes, where, torch.tensor([5, 5]), torch.tensor([6, 10]))
    for got, want in zip(padded, alone, strict=True):
        assert (got[:1, :6] - want).abs().max() <= 1e-5


# --------------------------------------------------------------------------------------------------------------- NAR


def nar(**more):
    torch.manual_seed(0)
    return NAR(TINY, entries=40, **more).eval()


@pytest.mark.parametrize("tie", ["next", "same"])
def test_a_stage_sees_the_layers_before_it_and_all_of_the_prompt(tie):
    model = nar(tie=tie, around=1, place=True)
    text, prompt = text_of(1, 5), torch.tensor([4])
    codes = torch.randint(40, (1, 8, 10), generator=torch.Generator().manual_seed(0))
    where = torch.arange(10)[None] // 2
    with torch.inference_mode():
        for stage in range(7):
            asked = torch.tensor([stage])
            before = model(text, codes, where, asked, prompt)
            assert before.shape == (1, 10, 40)
            for layer, frame in itertools.product(range(8), (1, 6)):
                other = codes.clone()
                other[0, layer, frame] = 39 - other[0, layer, frame]
                changes = (model(text, other, where, asked, prompt) - before).abs().max() > 1e-6
                assert bool(changes) == (frame < 4 or layer <= stage)


def test_heads_share_the_embeddings_that_they_are_tied_to():
    public, ours = nar(), nar(tie="same")
    tables = [table.weight for table in public.code_embs]
    assert all(torch.equal(public.heads()[j], tables[j + 2]) for j in range(6))
    assert all(torch.equal(ours.heads()[j], ours.code_embs[j + 1].weight) for j in range(7))


def test_completion_keeps_the_prompt_and_the_first_layer_and_fills_the_rest_layer_by_layer():
    model = nar()
    text, where = text_of(5), torch.arange(10) // 2
    codes = torch.randint(40, (8, 10), generator=torch.Generator().manual_seed(0))
    made = model.complete(text, codes, where, prompt=4)
    assert torch.equal(made[:, :4], codes[:, :4]) and torch.equal(made[0], codes[0])
    for stage in range(7):
        said = model(text[None], made[None], where[None], torch.tensor([stage]), torch.tensor([4]))
        assert torch.equal(said[0, 4:].argmax(-1), made[stage + 1, 4:])


def test_padding_changes_no_logits_of_the_other_layers():
    model = nar(around=1, place=True)
    codes = torch.randint(40, (2, 8, 10), generator=torch.Generator().manual_seed(0))
    where, text = torch.arange(10).expand(2, 10) // 2, text_of(2, 5)
    stage, prompt = torch.tensor([2, 5]), torch.tensor([2, 3])
    with torch.inference_mode():
        alone = model(text[:1], codes[:1, :, :6], where[:1, :6], stage[:1], prompt[:1])
        wide = torch.cat([text, torch.zeros(2, 3, dtype=torch.int64)], 1)
        padded = model(wide, codes, where, stage, prompt, torch.tensor([5, 5]), torch.tensor([6, 10]))
    assert (padded[:1, :6] - alone).abs().max() <= 1e-5


def test_what_is_expected_is_the_mean_of_each_codebook_under_its_probabilities():
    model = nar(tie="same")
    text, where = text_of(5), torch.arange(10) // 2
    generator = torch.Generator().manual_seed(0)
    codes, books = torch.randint(40, (8, 10), generator=generator), torch.randn(8, 40, 6, generator=generator)
    made, latent = model.expect(text, codes, where, 4, books)
    assert torch.equal(made, model.complete(text, codes, where, 4))
    want = books[0][codes[0]]
    for stage in range(7):
        known = torch.where(torch.arange(8)[:, None] <= stage, made, 0)
        known[:, :4] = codes[:, :4]
        said = model(text[None], known[None], where[None], torch.tensor([stage]), torch.tensor([4]))
        want = want + said[0].softmax(-1) @ books[stage + 1]
    assert (latent - want).abs().max() <= 1e-5
