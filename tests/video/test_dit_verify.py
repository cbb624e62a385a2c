"""`longtake verify`: what a checkpoint of a video transformer is worth on this machine (D12)."""

import json
import os

import pytest
from dit_pipelines import PIPELINES, SIZES, STOCKS, wan
from longtake import LongVideoPipeline
from longtake.cli import main
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.video.dit.verify import verify
from processes import start
from ranks import free_port

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "wan"
    wan().save_pretrained(place)
    return place


def test_d12_every_finding_is_told_and_written(folder, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["verify", str(folder), "--height", "32", "--width", "32", "--device", "cpu", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    lines = {line["what"]: line for line in json.loads(out.read_text())}
    assert list(lines) == [
        "class", "preset", "call", "locality", "stock call", "all frames in scope", "window and anchors", "ranks",
    ]  # fmt: skip
    assert lines["class"]["found"].startswith("WanTransformer3DModel") and all(what in told for what in lines)
    assert lines["locality"]["good"] is True and lines["all frames in scope"]["good"] is True


@pytest.mark.distributed
def test_d12_over_ranks(folder, tmp_path):
    asked = [folder, "--height", "32", "--width", "32", "--device", "cpu", "--out", tmp_path / "found.json"]
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        start("-m", "longtake", "verify", *asked, env={**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)})
        for n in range(3)
    ]
    try:
        told = [rank.communicate(timeout=600)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0, 0], told
    lines = {line["what"]: line for line in json.loads((tmp_path / "found.json").read_text())}
    assert lines["over 3 ranks"]["good"] is True and lines["window over 3 ranks"]["good"] is True


def test_d12_a_model_whose_frames_meet_elsewhere_fails(folder, monkeypatch, capsys):
    from longtake.video.dit import verify as module

    monkeypatch.setattr(module, "check_local", lambda *_: {0: (1,)})
    assert main(["verify", str(folder), "--height", "32", "--width", "32", "--device", "cpu"]) == 1
    assert "FAIL locality               frames leak: {0: (1,)}" in capsys.readouterr().out


def test_d12_what_cannot_be_verified_is_one_line(folder, capsys):
    assert main(["verify", "kaykit-small", "--device", "cpu"]) == 2
    assert "kaykit-small is a UNet: verify is for video transformers" in capsys.readouterr().err
    assert main(["verify", str(folder), "--device", "cpu", "--out", "found.mp4"]) == 2
    assert "--out must end in .json, got found.mp4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wan-i2v", "ltx2-i2v", "hunyuan15-i2v", "cosmos-i2v", "skyreels-forcing"])
def test_d12_a_pipeline_that_begins_from_a_picture_or_forces_its_frames_is_asked_too(name):
    pipe = LongVideoPipeline.from_pipeline(STOCKS[name](), length=5)
    side = SIZES.get(name, 32)
    lines = list(verify(pipe, Ranks.single(), frames=5, height=side, width=side))
    assert [line.good for line in lines if line.good is not None] == [True, True], lines


@pytest.mark.parametrize(
    ("name", "size"),
    {
        "wan": (480, 832), "ltx": (512, 704), "mochi": (480, 848), "hunyuan15": (480, 848), "cogvideox": (32, 32),
    }.items(),
)  # fmt: skip
def test_d12_without_a_preset_the_size_is_the_stock_pipelines_usual_one(name, size):
    """Its own default, which the tiny CogVideoX has by the size that it says it was trained on."""
    pipe = LongVideoPipeline.from_pipeline({**PIPELINES, **STOCKS}[name](), length=5)
    call = pipe.first_call("a dog runs", 2 if name == "ltx" else 3)
    rows, columns = (side // pipe._spatial() for side in size)
    shape = call[pipe.record.sample[0]].shape
    assert shape[1] == 2 * rows * columns if name == "ltx" else tuple(shape[-2:]) == (rows, columns)


def test_d12_a_stock_pipeline_without_a_usual_size_asks_for_one():
    from diffusers import WanPipeline

    class Unsized(WanPipeline):
        def __call__(self, prompt=None, negative_prompt=None, *, height, width, num_frames=81, **more):
            return super().__call__(prompt, negative_prompt, height, width, num_frames, **more)

    pipe = LongVideoPipeline.from_pipeline(Unsized(**wan().components))
    with pytest.raises(UserError, match="say the height and width in pixels: there is no preset for this model, and U"):
        pipe.first_call("a dog runs", 3)
    assert pipe.first_call("a dog runs", 3, height=32, width=48)["hidden_states"].shape[-2:] == (4, 6)
