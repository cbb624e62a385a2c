"""``longtake video`` as a user meets it: files, one-line errors, kills, resume, several ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from longtake.cli import main
from longtake.media import read_video
from longtake.video.latents import read_run
from processes import run, start
from ranks import free_port
from video_prior import tiny_pipe


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    tiny_pipe().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def video(prior, tmp_path, monkeypatch, capsys):
    """video("a dog", "--frames", "9") in an empty folder: (exit code, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = main(["video", *args, "--prior", prior, "--steps", "2"])
        return code, capsys.readouterr().err

    return call


def test_a_video_its_preview_and_its_latents(video):
    code, _ = video(
        "a dog", "--frames", "21", "--out", "a.mp4", "--preview", "a.png", "--save-latents", "a.safetensors"
    )
    assert code == 0
    frames, fps = read_video("a.mp4")
    assert frames.shape == (21, 64, 64, 3) and fps == 12
    assert Path("a.png").stat().st_size > 1000
    latents, note = read_run(Path("a.safetensors"))
    assert latents.shape == (21, 4, 8, 8) and note["prompt"] == "a dog"
    assert torch.equal(latents, read_run(Path("a.mp4"))[0])
    assert not list(Path("a.mp4.run").glob("step*"))


def test_extend_and_redo_by_the_name_of_the_mp4(video):
    assert video("a dog", "--frames", "20", "--out", "a.mp4")[0] == 0
    assert video("a cat", "--frames", "7", "--extend", "a.mp4", "--out", "b.mp4")[0] == 0
    assert video("a cat", "--redo", "3:6", "--seed", "4", "--extend", "b.mp4", "--out", "c.mp4")[0] == 0
    a, b, c = (read_run(Path(f"{name}.mp4"))[0] for name in "abc")
    assert len(b) == len(c) == 27 and torch.equal(b[:20], a)
    assert torch.equal(c[:3], b[:3]) and torch.equal(c[6:], b[6:]) and not torch.equal(c[3:6], b[3:6])
    assert len(read_video("c.mp4")[0]) == 27


def test_the_prompt_that_a_film_ends_with_is_noted_and_decides_what_joins_it(video):
    from longtake.video.latents import last_prompt, latents_mark, read_note, save_latents

    assert video("0: a dog | 8: a cat", "--frames", "20", "--out", "a.mp4")[0] == 0
    assert video("a rocket", "--frames", "9", "--extend", "a.mp4", "--out", "b.mp4")[0] == 0
    assert video("a tree", "--redo", "3:6", "--extend", "b.mp4", "--out", "c.mp4")[0] == 0
    assert video("a tree", "--redo", "25:29", "--extend", "b.mp4", "--out", "d.mp4")[0] == 0
    notes = [read_note(Path(f"{name}.mp4.run/latents.safetensors")) for name in "abcd"]
    assert [last_prompt(note) for note in notes] == ["a cat", "a rocket", "a rocket", "a tree"]
    latents, note = read_run(Path("a.mp4"))
    for name, prompt in (("cat", "a cat"), ("dog", "a dog"), ("none", None)):
        save_latents(Path(f"{name}.safetensors"), latents, {**note, "last_prompt": prompt})
        assert video("a rocket", "--frames", "9", "--extend", f"{name}.safetensors", "--out", f"{name}.mp4")[0] == 0
    made = [read_run(Path(f"{name}.mp4"))[0] for name in ("b", "cat", "dog", "none")]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[1], made[2]) and not torch.equal(made[1], made[3])
    assert len({latents_mark(Path(f"{name}.safetensors")) for name in ("cat", "dog", "none")}) == 3


def test_nothing_is_overwritten_without_being_told(video):
    assert video("a dog", "--frames", "9", "--out", "a.mp4")[0] == 0
    before = Path("a.mp4").read_bytes()
    code, error = video("a cat", "--frames", "9", "--out", "a.mp4")
    assert code == 2 and "already exists" in error and Path("a.mp4").read_bytes() == before
    Path("a.mp4").unlink()
    code, error = video("a cat", "--frames", "9", "--out", "a.mp4")
    assert code == 2 and "--resume" in error and "--overwrite" in error
    assert video("a cat", "--frames", "9", "--out", "a.mp4", "--overwrite")[0] == 0


BAD = {
    "zero frames": (["a dog", "--frames", "0"], "at least 1"),
    "negative frames": (["a dog", "--frames", "-5"], "at least 1"),
    "frames that are no number": (["a dog", "--frames", "many"], "invalid int"),
    "zero steps": (["a dog", "--steps", "0"], "at least 1"),
    "no frame rate": (["a dog", "--fps", "0"], "fps"),
    "window larger than the video": (["a dog", "--frames", "6", "--window", "7"], "larger than the video"),
    "unknown prior": (["a dog", "--prior", "nonesuch"], "nonesuch"),
    "prior that is not on this machine": (["a dog", "--prior", "cerspense/zeroscope_v2_576w"], "hf download"),
    "timeline out of order": (["4s: a dog | 0s: a cat"], "0"),
    "timeline beyond the end": (["0: a dog | 99: a cat", "--frames", "20"], "99"),
    "timeline file that is missing": (["script.json"], "script.json"),
    "output folder missing": (["a dog", "--out", "nowhere/a.mp4"], "does not exist"),
    "unknown kind of output": (["a dog", "--out", "a.avi"], "a.avi"),
    "redo without a run": (["a dog", "--redo", "1:2"], "--extend"),
    "extend what is not there": (["a dog", "--extend", "gone.mp4"], "gone"),
    "odd size": (["a dog", "--height", "60"], "multiples"),
    "unknown option": (["a dog", "--colour", "red"], "--colour"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_code_2_and_leaves_nothing(prior, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    args, words = BAD[case]
    if "--prior" not in args:
        args = [*args, "--prior", prior]
    assert main(["video", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("longtake: error: ") and error.count("\n") == 1 and words in error
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_timeline_file_is_named(prior, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_text('{"segments": [')
    assert main(["video", "t.json", "--prior", prior]) == 2
    assert "t.json" in capsys.readouterr().err and os.listdir() == ["t.json"]


def test_corrupted_weights_are_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    tiny_pipe().save_pretrained(tmp_path / "tiny")
    file = next((tmp_path / "tiny" / "unet").glob("*.safetensors"))
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["video", "a dog", "--prior", str(tmp_path / "tiny"), "--frames", "9"]) == 2
    error = capsys.readouterr().err
    assert "cannot be loaded" in error and error.count("\n") == 1 and os.listdir() == []


def test_a_full_disk_gives_one_line_and_no_half_film(prior, tmp_path):
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    script += "from longtake.cli import main; sys.exit(main(sys.argv[1:]))"
    args = ["video", "a dog", "--frames", "30", "--steps", "1", "--prior", prior, "--out", "a.mp4"]
    done = run("-c", script, *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.mp4")) and not list(tmp_path.rglob("*.partial"))


# --------------------------------------------------------------------------------------------------- several ranks


def start_ranks(world, folder, *args):
    """`longtake video` on several ranks, as a launcher starts it."""
    port = str(free_port())
    processes = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        processes.append(start("-m", "longtake", "video", *args, cwd=folder, env=env))
    return processes


def finish(processes, timeout):
    """Exit codes and standard errors; whatever is left at the end is killed."""
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
        return [process.returncode for process in processes], errors
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_make_the_same_video(prior, tmp_path, world):
    args = ("0: a dog | 12: a cat", "--frames", "25", "--steps", "3", "--prior", prior)
    assert main(["video", *args, "--out", str(tmp_path / "one.mp4")]) == 0
    codes, errors = finish(start_ranks(world, tmp_path, *args, "--out", "many.mp4"), 300)
    assert codes == [0] * world, errors
    one, many = (read_run(tmp_path / f"{name}.mp4")[0] for name in ("one", "many"))
    assert (one - many).abs().max() <= 1e-4 * one.abs().max()
    shown = [read_video(tmp_path / f"{name}.mp4")[0] for name in ("one", "many")]
    assert shown[0].shape == shown[1].shape == (25, 64, 64, 3)


@pytest.mark.distributed
def test_a_mistake_is_told_once_by_rank_0_and_all_exit_2(prior, tmp_path):
    codes, errors = finish(start_ranks(3, tmp_path, "a dog", "--frames", "2", "--prior", prior), 300)
    assert codes == [2, 2, 2]
    assert "cannot be shared by 3 ranks" in errors[0] and "Traceback" not in "".join(errors)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole(prior, tmp_path_factory):
    """The words of a run, and the latents of it where nobody disturbs it."""
    args = ("a dog", "--frames", "24", "--steps", "9", "--prior", prior, "--seed", "3")
    out = tmp_path_factory.mktemp("whole") / "whole.mp4"
    assert main(["video", *args, "--out", str(out)]) == 0
    return args, read_run(out)[0]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("victim, others", [(1, 2), (0, 1), (2, 4)])
def test_a11_sigkill_ends_the_others_and_a_rerun_on_other_ranks_ends_the_same(
    whole, tmp_path, capsys, victim, others
):  # fmt: skip
    args, undisturbed = whole
    processes = start_ranks(3, tmp_path, *args, "--out", "run.mp4")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run.mp4.run").glob("step*3.rank*")) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes, _ = finish(processes, 30)
    assert time.monotonic() - killed < 30
    assert codes[victim] == -signal.SIGKILL and all(code != 0 for code in codes)
    assert not (tmp_path / "run.mp4").exists()

    assert main(["video", *args, "--out", str(tmp_path / "run.mp4")]) == 2
    assert "--resume" in capsys.readouterr().err
    codes, errors = finish(start_ranks(others, tmp_path, *args, "--out", "run.mp4", "--resume"), 300)
    assert codes == [0] * others, errors
    resumed = read_run(tmp_path / "run.mp4")[0]
    assert (undisturbed - resumed).abs().max() <= 1e-4 * undisturbed.abs().max()
    assert len(read_video(tmp_path / "run.mp4")[0]) == 24


def test_interrupt_keeps_what_there_is(prior, tmp_path):
    args = ["a dog", "--frames", "60", "--steps", "60", "--prior", prior, "--out", "a.mp4"]
    process = start_ranks(1, tmp_path, *args)[0]
    deadline = time.monotonic() + 300
    while not list((tmp_path / "a.mp4.run").glob("step*2.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    codes, errors = finish([process], 300)
    assert codes == [130], errors
    assert len(read_video(tmp_path / "a.unfinished.mp4")[0]) == 60 and not (tmp_path / "a.mp4").exists()
    assert list((tmp_path / "a.mp4.run").glob("step*")), "a stopped run can be taken up again"


@pytest.mark.parametrize("asked", [["video", "a dog", "--prior"], ["verify"]])
def test_a_folder_that_is_not_there_is_said_before_torch_is_imported(asked) -> None:
    code = (
        "import sys; from longtake.cli import main\n"
        f"assert main([*{asked}, 'models/wam']) == 2 and not {{'torch', 'diffusers'}} & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0 and "there is no folder models/wam here" in told.stderr, told.stderr
