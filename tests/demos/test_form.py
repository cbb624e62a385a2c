"""A tab without a page: controls to a job line and back, wrong inputs, estimates, the same run in three languages."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.batch import parse_job
from longtake.cli import main
from longtake.demos import video_tab
from longtake.demos.bench import Bench
from longtake.demos.form import Form
from longtake.domain import domain_of
from longtake.errors import UserError

WALK = [
    "0s: walks | 1.5s: someone waves",
    3.0,
    7,
    2,
    2.5,
    20,
    1,
    None,
    False,
    None,
    None,
    False,
    "none",
    [".npz", ".html"],
    None,
    None,
]
RUNNER = ["person running", 1.5, 3, 1, 2.0, "blur", [".mp4"]]


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()
    assert not made.folder.exists()


@pytest.fixture
def motion(bench) -> Form:
    return Form(bench, domain_of("motion"))


@pytest.fixture
def video(bench) -> Form:
    return Form(bench, domain_of("video"))


def last(form: Form, values) -> list:
    *_, end = form.run("me", values, skip=None)
    return end


@pytest.mark.parametrize(("name", "values"), [("motion", WALK), ("video", RUNNER)])
def test_controls_make_a_job_line_and_come_back_from_it(bench, name, values) -> None:
    form = Form(bench, domain_of(name))
    job = json.loads(json.dumps(form.line_of(values)))
    assert parse_job(1, job).request.settings["frames"] == round(values[1] * form.fps)
    back = form.values_of(job)
    assert form.line_of(back) == job
    assert back[1:] == values[1:] and back[0] == job["timeline"]


@pytest.mark.parametrize("name", ["motion", "video"])
def test_every_example_can_be_made(bench, name) -> None:
    form = Form(bench, domain_of(name))
    for example in form.domain.EXAMPLES:
        job = {"timeline": example.prompt, "seed": example.seed}
        job["parameters"] = {"frames": round(example.seconds * form.fps), **example.parameters}
        values = form.values_of(job)
        assert values[:3] == [example.prompt, example.seconds, example.seed]


@pytest.mark.parametrize(
    ("place", "wrong", "word"),
    [
        (0, "", "prompt"), (0, "0s: a | 9s: b", "9 s"), (0, "0s: a | 1s:", "no prompt"), (1, 0, "length"),
        (0, 5, "text"), (0, ["a"], "text"), (1, 1e9, "length"), (1, "long", "number"), (1, True, "number"),
        (2, -1, "seed"), (2, 1.5, "seed"), (3, 0, "steps"), (3, 10**6, "steps"), (4, float("nan"), "guidance"),
        (5, float("nan"), "handshake"), (5, "x", "handshake"), (6, 3, "people"), (6, True, "people"),
        (7, "0,0 nan,1", "--path"), (8, "false", "lock_feet"), (13, [".exe"], "files"),
        (13, {"a": 1}, "files"), (13, 5, "files"), (9, "0s: a | 9s: b", "9 s"), (10, "2s elbow 0,1,0", "a key is"),
        (10, "9s head 0,1,0", "a key stands at 9 s"), (11, 1, "loop"), (12, "maya", "rig"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_one_line_and_the_estimate_says_it_first(bench, motion, place: int, wrong, word: str) -> None:
    values = list(WALK)
    values[place] = wrong
    with pytest.raises(UserError) as caught:
        last(motion, values)
    assert word in str(caught.value) and "\n" not in str(caught.value)
    assert motion.estimate(values).startswith("⚠")
    assert not [path for path in bench.folder.iterdir() if path.is_dir()]


def test_a_prompt_names_no_file_of_the_machine(motion, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"segments": [{"start": 0, "prompt": "password"}]}')
    job = parse_job(1, motion.line_of([str(secret), *WALK[1:]]))
    assert job.request.timeline.prompts == (str(secret),)


@pytest.mark.parametrize("wrong", [3, [], {"modality": "video"}, {"timeline": 4}, {"parameters": {"prior": "/etc"}}])
def test_settings_of_something_else_are_refused(motion, wrong) -> None:
    with pytest.raises(UserError):
        motion.values_of(wrong)


def test_settings_may_hold_a_timeline_as_json(motion) -> None:
    text = '{"segments": [{"start": 0, "prompt": "walks"}, {"start": 30, "prompt": "runs"}]}'
    values = motion.values_of({"timeline": text, "parameters": {"frames": 60}})
    assert values[0] == "0s: walks | 1.5s: runs"


def test_motion_settings_reproduce_the_result_bit_for_bit_here_in_python_and_on_the_command_line(
    bench, motion, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    bench.keep = kept
    for _ in range(2):
        _, viewer, report, files, settings, python, command = last(motion, WALK)
        WALK[:] = motion.values_of(json.loads(settings))
    assert "srcdoc" in viewer and "someone waves" in report and not any(Path(file).exists() for file in files)
    assert {path.name for path in kept.iterdir()} == {"motion-7-1", "motion-7-2"}
    one, two = (np.load(kept / folder / "motion-7.npz")["features"] for folder in ("motion-7-1", "motion-7-2"))
    assert np.array_equal(one, two) and len(one) == 60
    assert sorted(path.name for path in (kept / "motion-7-1").iterdir()) == [
        "motion-7.html", "motion-7.npz", "motion-7.png",
    ]  # fmt: skip
    assert main(shlex.split(command)[1:]) == 0
    assert np.array_equal(np.load("motion-7.npz")["features"], one)
    Path("motion-7.npz").unlink()
    Path("motion-7.html").unlink()
    exec(compile(python, "python of the page", "exec"), {})
    assert np.array_equal(np.load("motion-7.npz")["features"], one)


def test_video_settings_reproduce_the_film_here_in_python_and_on_the_command_line(
    bench, video, tmp_path: Path, monkeypatch
) -> None:
    from longtake.media import read_video
    from longtake.weights import load_state

    monkeypatch.chdir(tmp_path)
    bench.keep = tmp_path / "kept"
    states = list(video.run("me", RUNNER, skip=None))
    assert any("Step 1 of 1" in state[0] and "data:image/png" in state[0] for state in states)
    _, film, plots, files, _, python, command = states[-1]
    assert plots.count("<svg") == 2 and {Path(file).suffix for file in files} == {".mp4", ".png", ".safetensors"}
    first = read_video(bench.keep / "video-3-1" / "video-3.mp4")[0]
    assert first.shape == (18, 64, 64, 3)
    latents = load_state(bench.keep / "video-3-1" / "video-3.safetensors")["latents"]
    assert main(shlex.split(command)[1:]) == 0
    assert torch.equal(load_state(Path("video-3.mp4.run/latents.safetensors"))["latents"], latents)
    assert Path("video-3.mp4").read_bytes() == (bench.keep / "video-3-1" / "video-3.mp4").read_bytes()
    Path("video-3.mp4").unlink()
    exec(compile(python, "python of the page", "exec"), {})
    assert np.array_equal(read_video("video-3.mp4")[0], first)


def test_two_people_are_reproduced_too(bench, motion, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench.keep = tmp_path / "kept"
    parameters = {"frames": 60, "steps": 2, "guidance": 2.5, "people": 2, "lock_feet": True, "outputs": [".npz"]}
    two = motion.values_of({"timeline": "0s: two people wave to each other", "seed": 5, "parameters": parameters})
    *_, python, command = last(motion, two)
    first = np.load(bench.keep / "motion-5-1" / "motion-5.npz")["second"]
    assert main(shlex.split(command)[1:]) == 0
    assert np.array_equal(np.load("motion-5.npz")["second"], first)
    Path("motion-5.npz").unlink()
    exec(compile(python, "python of the page", "exec"), {})
    assert np.array_equal(np.load("motion-5.npz")["second"], first)


def test_the_estimate_learns_from_a_run(motion) -> None:
    before = motion.estimate(WALK)
    last(motion, WALK)
    after = motion.estimate(WALK)
    assert "laptop" in before and "last run" in after and "60 frames" in after and "GB" in after


@pytest.mark.filterwarnings("ignore")
def test_a_video_transformer_is_previewed_and_shown(tmp_path: Path) -> None:
    from dit_pipelines import wan

    wan().save_pretrained(tmp_path / "wan")
    size = {"height": 32, "width": 32, "length": 5, "fps": 16.0}
    bench = Bench(settings={"video": {"prior": str(tmp_path / "wan"), **size}})
    try:
        form = Form(bench, domain_of("video"))
        values = ["0s: a dog runs | 0.5s: a cat swims", 1.1, 3, 1, 2.0, "", [".mp4"]]
        states = list(form.run("me", values, skip=None))
        assert any("Step 1 of 1" in state[0] and "data:image/png" in state[0] for state in states)
        assert states[-1][2].count("<svg") == 2
    finally:
        bench.close()


def test_a_frame_of_a_film_finds_its_latents() -> None:
    assert video_tab.latents_of(6, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert video_tab.latents_of(9, 3).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert video_tab.latents_of(15, 5).tolist() == [0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 2], "a film that was cut"
    assert video_tab.latents_of(1, 1).tolist() == [0]


def test_likeness_falls_when_the_subject_is_lost() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 4, 8, 8))
    kept = np.stack([one + 0.1 * rng.normal(size=one.shape) for _ in range(40)])
    lost = np.concatenate([kept[:30], np.stack([other] * 10)])
    assert video_tab.likeness(kept, [0]).min() > 0.95
    assert video_tab.likeness(lost, [0])[30:].max() < 0.3
    assert video_tab.likeness(lost, [0, 30]).min() > 0.95, "a change of the prompt begins anew"


def test_settings_of_the_page_reach_every_run_and_its_controls() -> None:
    from longtake.demos.command import read_pairs

    bench = Bench(settings=read_pairs(["video.prior=kaykit-small", "video.fps=16", "video.steps=5"]))
    try:
        form = Form(bench, domain_of("video"))
        values = form.values_of({"timeline": "0s: a barbarian runs"})
        line = form.line_of(values)
        assert line["parameters"]["prior"] == "kaykit-small" and line["parameters"]["steps"] == 5
        assert form.request_of(line).settings["fps"] == 16.0
        assert line["parameters"]["frames"] == round(values[1] * 16)
        assert form.line_of(form.values_of(line)) == line
    finally:
        bench.close()


@pytest.mark.parametrize(
    "pair,told",
    [
        ("video", "--set is MODALITY.NAME=VALUE, as video.steps=50; got 'video'"),
        ("video.step=5", "video has no setting 'step'; it has frames, "),
        ("video.steps=many", "steps: invalid int value: 'many'"),
        ("poetry.steps=5", "poetry"),
    ],
)
def test_a_setting_of_the_page_that_there_is_not_is_one_line(pair, told) -> None:
    from longtake.demos.command import read_pairs

    with pytest.raises(UserError, match=re.escape(told)):
        read_pairs([pair])


def test_a_finished_motion_is_put_on_a_skeleton_from_the_page(bench, tmp_path) -> None:
    """Nothing is made: the length, the prior and the settings of making are the file's affair."""
    form = Form(bench, domain_of("motion"))
    bench.keep = tmp_path / "kept"
    last(form, WALK)
    take = shutil.copy(bench.keep / "motion-7-1" / "motion-7.npz", bench.folder / "take.npz")
    values = ["", *WALK[1:]]
    values[-4:] = ["mixamo", [".glb", ".npz"], str(take), None]
    line = form.line_of(values)
    assert "timeline" not in line and "frames" not in line["parameters"] and line["parameters"]["rig"] == "mixamo"
    _, _, _, files, settings, python, command = last(form, values)
    assert {".glb", ".npz"} <= {Path(file).suffix for file in files} and "--from" in command and "read_take" in python
    npz = bench.keep / "motion-7-2" / "motion-7.npz"
    with np.load(take) as before, np.load(npz) as exported:
        moved = exported["joints"] - before["joints"]  # onto the floor
        assert np.abs(moved - moved[0, 0]).max() < 1e-5 and np.abs(moved[0, 0]).max() < 0.05
