"""``longtake train watch`` with stills beside films: what is looked at, what a step takes, what is judged."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.cli import main
from longtake.train import Settings
from longtake.video.watch import train
from PIL import Image


def _zip(path: Path, films: dict[str, int]) -> None:
    """A zip of films: captions, and how many pictures of noise each has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(len(films))
    with zipfile.ZipFile(path, "w") as archive:
        rows = []
        for number, (caption, count) in enumerate(films.items()):
            first, *others = (Image.fromarray(dice.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(count))
            file = io.BytesIO()
            first.save(file, "WEBP", lossless=True, save_all=True, append_images=others, duration=80)
            archive.writestr(f"{number}.webp", file.getvalue())
            rows.append({"file": f"{number}.webp", "caption": caption, "wordings": [caption, f"{caption}, drawn"]})
        archive.writestr("index.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> train.Films:
    folder = tmp_path_factory.mktemp("data")
    _zip(folder / "data" / "emoji_train.zip", {"a cat": 9, "a dog": 8})
    _zip(folder / "data" / "emoji_val.zip", {"a snail": 10})
    _zip(folder / "pictures" / "some-set_train.zip", {"a cat": 2, "a snail": 1, "a bus": 2})
    return train.load_films(folder / "data", folder / "pictures")


def test_stills_are_looked_at_once_a_view_and_stand_beside_the_films(films: train.Films) -> None:
    assert films.corpora == ["emoji"] * 3 + ["some-set"] * 3
    assert films.still.tolist() == [False, False, False, True, True, True]
    assert films.held_out.tolist() == [False, False, True, False, False, False]
    assert films.captions[0] == films.captions[3] and films.captions[2] == films.captions[4]
    features = films.features.astype(np.float32)
    two, one = features[3], features[4]
    assert (two[:4] == two[0]).all() and (two[4:] == two[6]).all() and (two[0] != two[6]).any()
    assert (one == one[0]).all(), "one picture, seven times"


def test_of_a_step_three_in_seven_are_stills_half_of_them_with_a_films_deviation(films, tmp_path, monkeypatch) -> None:
    steps = []

    class Looking(train._Learner):
        def forward(self, x, said, captions):
            steps.append((x.detach().clone(), captions))
            return super().forward(x, said, captions)

    monkeypatch.setattr(train, "_Learner", Looking)
    monkeypatch.setattr(train, "JITTER", 0.0)
    train.train_head(films, tmp_path, Settings(1, graphs=False), seed=0, batch=70)
    x, captions = steps[0]
    moving = {int(one) for one in films.captions[:2]}
    assert {int(one) for one in captions[:40]} <= moving
    assert {int(one) for one in captions[40:]} == {int(one) for one in films.captions[3:]}
    spread = torch.from_numpy(films.features[:2]).float().std(1)
    lent = (x[40:, None, train.WIDTH :] - spread[None]).abs().amax(2).amin(1) < 1e-3
    assert 7 <= int(lent.sum()) <= 23


def test_pictures_want_data(tmp_path, capsys) -> None:
    assert main(["train", "watch", "--prepared", "words.zip", "--pictures", str(tmp_path)]) == 2
    assert "--pictures are looked at with --data" in capsys.readouterr().err
    assert main(["train", "watch", "--data", str(tmp_path), "--pictures", str(tmp_path)]) == 2
    assert "no *_train.zip of films with captions" in capsys.readouterr().err
