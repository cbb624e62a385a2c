"""Pairs made from single clips, the recipe of the two-person block, and two people made with it, every way there is."""

import json
import math
import re
import struct

import numpy as np
import pytest
import torch
from longtake.cli import main
from longtake.errors import UserError
from longtake.motion.data import Clip
from longtake.motion.pair.data import KINDS, Pairs, Windows
from longtake.motion.pair.evaluate import facing, figures, mean
from longtake.motion.pair.model import CANON, decode_canon, first_token, place_pair
from longtake.motion.pair.pipeline import load_block
from longtake.motion.pipeline import LongMotionPipeline
from longtake.motion.space import MotionSpace
from longtake.train import Dice
from motion_data import swaying, write_motions


class Words:
    """Stands for the text encoder: a vector of its own for each text."""

    def encode(self, texts):
        return torch.stack([torch.full((1, 8), float(len(text))) for text in texts])


def turned(joints: torch.Tensor, angle: float) -> torch.Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return joints @ turn.T


CPU = torch.device("cpu")


def pairs(speeds=(1.0, 1.0, 1.0, 1.0)) -> tuple[Pairs, MotionSpace]:
    clips = []
    for number, speed in enumerate(speeds):
        joints = swaying(0, 70, 0.3 * number)
        joints[..., 2] *= speed
        clips.append(Clip(f"walk{number}", "walk", "normal", turned(joints, 0.8 * number)))
    clips += [Clip(f"wave{n}", "wave-left-hand", "normal", turned(swaying(1, 70, 0.2 * n), n)) for n in range(3)]
    space = MotionSpace(features=263, fps=20.0)
    space.fit([clip.features() for clip in clips])
    return Pairs.of(clips, space, Words(), mirror=False), space


def test_the_way_of_a_window_is_where_its_features_alone_lead() -> None:
    made, space = pairs()
    for clip in range(4):
        joints = space.joints(made.clip(clip)[7:47])
        step = joints[-1, 0] - joints[0, 0]
        way = made.way(Windows(torch.tensor(clip), torch.tensor(7)), 40)
        assert float((way[:2] - step[[0, 2]]).abs().max()) < 1e-3
        assert abs(float(way[2])) < 0.2


def test_d2_a_made_pair_stands_as_its_kind_says() -> None:
    made, space = pairs()
    seen = set()
    for step in range(6):
        batch = made.batch(40, 4, Dice(0, step, CPU), drop_text=0.0)
        assert batch.motion.shape == (4, 2, 40, 263) and batch.text.shape == (4, 8)
        for motion, canon, kind in zip(batch.motion, batch.canon, batch.names, strict=True):
            a, b = (space.joints(motion[person]) for person in (0, 1))
            found = figures(kind, *(x.numpy() for x in place_pair(a, b, first_token()[:CANON], canon[:CANON])))
            assert found["place"] < 5 * max(KINDS[kind].spread) and found["facing"] < 45
            seen.add(kind)
    assert seen == {"side by side", "behind", "waving"}, "kinds without two clips are left out"
    assert set(made.texts) >= set(KINDS["waving"].captions)


def test_people_who_move_together_are_chosen_by_their_pace() -> None:
    made, _ = pairs((1.0, 1.0, 3.0, 3.0))
    kinds = torch.full((20,), made.fit(40).names.index("side by side"))
    people = made.people(kinds, 40, Dice(1, 0, CPU))
    chosen = zip(*(one.clip.tolist() for one in people), strict=True)
    alike = [(first < 2) == (second < 2) for first, second in chosen]
    assert sum(alike) >= 18, "by chance it would be a third, for the same clip is not taken twice"


def test_heading_and_figures_see_a_wrong_place() -> None:
    body = swaying(0, 30, 0.0).numpy()
    assert abs(facing(body[0])) < 1e-6
    for angle in (-2.0, 0.5, 3.0):
        assert facing(turned(torch.from_numpy(body), angle).numpy()[0]) == pytest.approx(angle, abs=1e-5)
    place = np.array([0.9, 0, 0], np.float32)
    right = figures("side by side", body, body + place)
    assert right["place"] < 1e-6 and right["facing"] < 1e-4 and right["drift"] < 1e-6
    away = body + place + np.linspace(0, 1, 30, dtype=np.float32)[:, None, None] * place
    assert figures("side by side", body, away)["drift"] == pytest.approx(0.9, abs=1e-5)
    assert figures("side by side", body, body - place)["place"] == pytest.approx(1.8, abs=1e-5)
    back = turned(torch.from_numpy(body), math.pi).numpy() + np.array([0, 0, 1.8], np.float32)
    assert figures("waving", body, back)["facing"] < 1e-3


def test_d1_the_recipe_trains_the_block_alone_and_resumes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("longtake.motion.pair.train.FRAMES_A_STEP", 160)  # two rows or four
    write_motions(tmp_path / "data" if (tmp_path / "data").mkdir() is None else tmp_path)
    command = ["train", "motion", "--pairs", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*command, "--steps", "1", "--precision", "no"]) == 0
    assert main([*command, "--steps", "2", "--precision", "no"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "comm.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and rows[-1]["held_out_canon"] > 0
    pipe = LongMotionPipeline.from_prior("bandai-small")
    block = load_block(pipe, tmp_path / "out" / "pair")
    before = pipe.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in block.prior.state_dict().items())
    state = torch.load(tmp_path / "out" / "comm.state", weights_only=True)
    assert all(key.startswith("comm.") for key in state["model"])
    (tmp_path / "out" / "pair" / "pair.json").write_text('{"comm_layers": 2, "split": 6}')
    for folder in (tmp_path / "out" / "pair", tmp_path / "data"):
        with pytest.raises(UserError, match="holds no two-person block|two-person block .* without a model"):
            load_block(pipe, folder)


@pytest.fixture(scope="module")
def pipe() -> LongMotionPipeline:
    made = LongMotionPipeline.from_prior("bandai-small")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [("waving", "two people wave to each other"), ("side by side", "two people walk side by side")],
)
def test_the_block_that_ships_puts_two_people_where_the_prompt_says(pipe, kind: str, prompt: str) -> None:
    made = [pipe.pair(prompt, 80, seed=seed, num_inference_steps=10) for seed in range(4)]
    found = mean([figures(kind, out.joints, out.second) for out in made])
    assert found["place"] < 0.8 and found["facing"] < 20, "an untrained block: 1.4 m, 80 degrees"


def test_two_people_over_several_prompts_by_seed_and_stop(pipe) -> None:
    text = "0s: two people walk side by side | 4s: two people run side by side"
    one, two = (pipe.pair(text, 150, seed=3, num_inference_steps=3) for _ in range(2))
    assert one.joints.shape == one.second.shape == (150, 22, 3) and one.boundaries == [80]
    assert np.array_equal(one.joints, two.joints) and np.array_equal(one.second, two.second)
    assert not np.array_equal(one.second, pipe.pair(text, 150, seed=4, num_inference_steps=3).second)
    assert np.abs(one.second - one.joints)[0, 0].max() > 0.1 and one.info["people"] == 2

    def stop(pipeline, step, timestep, tensors):
        assert tensors["clean"].shape == (150, 263)
        if step == 1:
            pipeline.stop()
        return tensors

    ended = pipe.pair(text, 150, seed=3, num_inference_steps=5, callback_on_step_end=stop)
    assert ended.info["steps"] == 2 and not ended.info["completed"] and np.isfinite(ended.second).all()
    with pytest.raises(UserError, match="control"):
        pipe.pair("walks", 60, hooks=[lambda clean, step: clean])


def test_d2_the_command_writes_both_people_into_every_file(tmp_path, capsys) -> None:
    kinds = (".bvh", ".glb", ".npz", ".csv", ".html", ".mp4")
    outs = [part for kind in kinds for part in ("--out", str(tmp_path / f"pair{kind}"))]
    command = ["motion", "two people wave to each other", "--people", "2", "--frames", "40", "--steps", "2", *outs]
    assert main([*command, "--preview", str(tmp_path / "pair.png")]) == 0
    assert len(re.findall(r"^ROOT ", (tmp_path / "pair.bvh").read_text(), re.MULTILINE)) == 2
    data = (tmp_path / "pair.glb").read_bytes()
    assert len(json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])["skins"]) == 2
    with np.load(tmp_path / "pair.npz") as arrays:
        assert arrays["second"].shape == (40, 22, 3)
    assert "person2_" in (tmp_path / "pair.csv").read_text().splitlines()[0]
    assert all((tmp_path / f"pair{kind}").stat().st_size > 1000 for kind in (*kinds, ".png"))
    capsys.readouterr()
    assert main([*command[:-2], "--out", str(tmp_path / "x.npz"), "--take2", "paper"]) == 2
    assert "--people 2 knows no" in capsys.readouterr().err
    assert main(["motion", "walks", "--pair-block", "x", "--out", str(tmp_path / "x.npz")]) == 2


def test_a_batch_job_may_have_two_people(tmp_path) -> None:
    parameters = {"frames": 40, "steps": 1, "people": 2}
    line = {"id": "two", "modality": "motion", "prompt": "two people bow to each other", "parameters": parameters}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "id": "x", "parameters": {
        **parameters, "people": 3}}) + "\n")  # fmt: skip
    assert main(["batch", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "out")]) == 1
    with np.load(tmp_path / "out" / "two.npz") as arrays:
        assert arrays["second"].shape == (40, 22, 3)


def test_the_block_is_read_from_disk_once_for_a_pipeline(pipe, monkeypatch) -> None:
    from longtake.motion.pair import pipeline as pair_pipeline

    read = []
    load = pair_pipeline.load_block
    monkeypatch.setattr(pair_pipeline, "load_block", lambda *given: read.append(given) or load(*given))
    monkeypatch.setattr(pipe, "_pair_blocks", {}, raising=False)
    outs = [
        pipe.pair("two people walk side by side", 60, seed=1, num_inference_steps=2).joints for _ in range(2)
    ]  # fmt: skip
    assert len(read) == 1 and (outs[0] == outs[1]).all()


def test_canon_tokens_of_made_pairs_decode_to_their_place() -> None:
    batch = pairs()[0].batch(40, 6, Dice(2, 0, CPU))
    turn, place = decode_canon(batch.canon)
    assert float((turn @ turn.transpose(1, 2) - torch.eye(3)).abs().max()) < 1e-5
    assert float(place.abs().max()) < 3 and not place[:, 1].any()
