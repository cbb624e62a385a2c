"""The small reader, its puzzles, its recipe and the comparison of reducers, on toy clips."""

import json

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.train import Dice, Settings
from longtake.video.data import Clip
from longtake.video.reading.budget import kernel_for
from longtake.video.reading.compare import compare, winners
from longtake.video.reading.puzzles import ACTIONS, ANSWERS, KINDS, SPANS, Cast, words_of
from longtake.video.reading.reader import SIZE, Reader, chosen
from longtake.video.reading.reducers import REDUCERS
from longtake.video.reading.train import KERNELS, guide_loss, train, value

CPU = torch.device("cpu")
NAMES = ("barbarian", "hooded rogue", "knight", "mage", "rogue")


def toy_clips():
    clips = []
    for number, name in enumerate(NAMES):
        for action in ACTIONS:
            frames = np.full((10, 64, 64, 3), 255, np.uint8)
            frames[:, 20:44, 20:44] = (40 * number, 90, 200 - 40 * number)
            clips.append(Clip(f"{name} {action}", name, "", "", False, frames, True, character=name, action=action))
    emoji = [Clip("cat", "cat", "cat", "", False, np.full((8, 64, 64, 3), 120, np.uint8), True)]
    return clips, emoji


@pytest.fixture(scope="module")
def cast():
    return Cast(*toy_clips(), CPU)


def test_puzzles_are_what_they_say(cast):
    batch = cast.batch(64, Dice(0, 0, CPU))
    again = cast.batch(64, Dice(0, 0, CPU))
    assert torch.equal(batch.films, again.films) and batch.films.shape == (64, 16, 3, 64, 64)
    for row in range(64):
        kind = KINDS[int(batch.kind[row, 0])]
        span = SPANS[kind]
        assert span.start <= int(batch.answer[row, 0]) < span.stop
        where = batch.asked[row, 0].nonzero()
        scene, top, left = where[:, 0] // 4, where[:, 1] // 32, where[:, 2] // 32
        assert len(scene.unique()) == len(top.unique()) == len(left.unique()) == 1
        if kind == "when":
            assert int(scene[0]) == int(batch.answer[row, 0])
        if kind == "where":
            assert 4 + 2 * int(top[0]) + int(left[0]) == int(batch.answer[row, 0])
        pixel = batch.films[row, where[0, 0], :, where[len(where) // 2, 1], where[len(where) // 2, 2]]
        number = round(float((pixel[0] + 1) * 127.5) / 40)
        assert [w for w in batch.words[row, 0].tolist() if w > 8] == words_of(NAMES[number])
    assert len(set(batch.answer.flatten().tolist())) > 10


def test_questions_are_read_in_the_words_that_are_known():
    assert words_of("When does the hooded rogue appear?") == [1, 4, 8, 9, 13, 7]
    for wrong in ("when does the dragon appear", "", "où est le chevalier"):
        with pytest.raises(UserError, match="knows only the words"):
            words_of(wrong)
    with pytest.raises(UserError, match="puzzles need 4 characters"):
        Cast([], toy_clips()[1], CPU)


def test_all_reducers_at_full_budget_read_the_same_and_guided_windows_have_gradients(cast):
    torch.manual_seed(0)
    reader, batch = Reader(), cast.batch(3, Dice(0, 1, CPU))
    with torch.no_grad():
        every = 16 * 16 * 16
        found = reader.reduced(batch.films, batch.words, list(REDUCERS), [every])
        first = reader.pooled(batch.films, batch.words, (1, 1, 1), "local")[0]
        assert all((logits - first[:, 0]).abs().max() <= 1e-5 for logits in found.values())
        small = reader.reduced(batch.films, batch.words, ["local", "average", "ppllava"], [1024])
        for name, mode in (("local", "local"), ("average", "uniform"), ("ppllava", "ppllava")):
            # the recipe trains on what the comparison measures: the same windows, the same weights
            trained = reader.pooled(batch.films, batch.words, kernel_for(SIZE, 1024), mode)[0][:, 0]
            assert kernel_for(SIZE, 1024) in KERNELS and (small[name, 1024] - trained).abs().max() <= 1e-5
    several = cast.batch(2, Dice(0, 3, CPU), 4)
    with torch.no_grad():
        for kernel, mode in (((1, 1, 1), "local"), ((2, 2, 2), "local"), ((2, 2, 2), "uniform")):
            together = reader.pooled(several.films, several.words, kernel, mode)[0]
            alone = [reader.pooled(several.films, several.words[:, q : q + 1], kernel, mode)[0] for q in range(4)]
            assert (together - torch.cat(alone, 1)).abs().max() <= 1e-5
    for step in (1, 2, 3):
        reader.zero_grad()
        value(reader.pooled, batch, step).backward()
        assert reader.token_side.weight.grad.abs().max() > 0
    right = guide_loss(torch.nn.functional.max_pool2d(100 * batch.asked[:, 0].float(), 4)[:, None], batch.asked)
    assert right < guide_loss(torch.zeros(3, 1, *SIZE), batch.asked)
    assert chosen(
        torch.zeros(2, len(ANSWERS)).index_fill(1, torch.tensor([0]), 9.0), torch.tensor([0, 2])
    ).tolist() == [0, 8]


def test_the_recipe_trains_saves_and_the_comparison_reads_it(cast, tmp_path):
    reader = train(cast, cast, tmp_path, Settings(steps=3, checkpoint_every=3, warmup=1), batch=2)
    reader.save(tmp_path / "reader.safetensors")
    again = Reader.load(tmp_path / "reader.safetensors")
    batch = cast.batch(2, Dice(0, 5, CPU))
    with torch.no_grad():
        assert torch.equal(*[r.pooled(batch.films, batch.words, (2, 2, 2), "local")[0] for r in (reader, again)])
    assert "right" in json.loads((tmp_path / "reader.jsonl").read_text().splitlines()[-1])
    rows = compare(again, cast, list(REDUCERS), [512, 64], films=5)
    assert [(row.reducer, row.tokens) for row in rows][0] == ("all tokens", 4096) and len(rows) == 1 + 2 * len(REDUCERS)
    assert all(0 <= row.right <= 100 for row in rows)
    told = winners(rows, [512, 64])
    assert len(told) == 8 and all("average" in line for line in told)
    torch.save({}, tmp_path / "other.safetensors")
    with pytest.raises(UserError):
        Reader.load(tmp_path / "other.safetensors")
