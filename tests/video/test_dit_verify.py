"""`longtake verify`: what a checkpoint of a video transformer is worth on this machine (D12)."""

import json
import os

import pytest
from dit_pipelines import wan
from longtake.cli import main
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
    from longtake.video.dit import verify

    monkeypatch.setattr(verify, "check_local", lambda *_: {0: (1,)})
    assert main(["verify", str(folder), "--height", "32", "--width", "32", "--device", "cpu"]) == 1
    assert "FAIL locality               frames leak: {0: (1,)}" in capsys.readouterr().out


def test_d12_what_cannot_be_verified_is_one_line(folder, capsys):
    assert main(["verify", "kaykit-small", "--device", "cpu"]) == 2
    assert "kaykit-small is a UNet: verify is for video transformers" in capsys.readouterr().err
    assert main(["verify", str(folder), "--device", "cpu"]) == 2
    assert "say the height and width in pixels" in capsys.readouterr().err
