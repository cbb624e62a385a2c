"""Every door behaves: a mistake is one line before anything is written, a stopped run is not complete, and what is
asked for is made or refused, never dropped."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.cli import main
from longtake.media import read_video
from longtake.records import read
from processes import run

VIDEO = ["video", "a dog", "--frames", "10", "--steps", "1", "--guidance", "1", "--height", "32", "--width", "32"]
MOTION = ["motion", "a person walks", "--frames", "40", "--steps", "1", "--guidance", "1"]
LONG = "9" * 20
WRONG = {
    "fps inf": [*VIDEO, "--fps", "inf"],
    "fps too large": [*VIDEO, "--fps", "1e308"],
    "fps too small": [*VIDEO, "--fps", "1e-9"],
    "fps that a gif cannot have": [*VIDEO, "--fps", "999", "--out", "a.gif"],
    "guidance nan": [*VIDEO, "--guidance", "nan"],
    "guidance inf": [*MOTION, "--guidance", "inf"],
    "guidance 1e308": [*VIDEO, "--guidance", "1e308"],
    "guidance 1e30": [*MOTION, "--guidance", "1e30"],
    "seed of 20 digits": [*VIDEO, "--seed", LONG],
    "seed of 20 digits in motion": [*MOTION, "--seed", LONG],
    "negative seed": [*MOTION, "--seed", "-1"],
    "steps of 20 digits": [*VIDEO, "--steps", LONG],
    "steps of 20 digits in motion": [*MOTION, "--steps", LONG],
    "chunk rows 0": [*MOTION, "--chunk-rows", "0"],
    "chunk rows -1": [*MOTION, "--chunk-rows", "-1"],
    "path nan": [*MOTION, "--path", "0,0 nan,1"],
    "path inf": [*MOTION, "--path", "0,0 inf,1"],
    "path far": [*MOTION, "--path", "0,0 1e308,1"],
    "path of one point": [*MOTION, "--path", "0,0"],
    "seconds inf": [*MOTION[:2], "--seconds", "inf"],
    "seconds 1e308": [*MOTION[:2], "--seconds", "1e308"],
    "seconds of 20 digits": [*MOTION[:2], "--seconds", LONG],
    "frames of 20 digits": [*MOTION[:2], "--frames", LONG],
    "frames and seconds": [*MOTION, "--seconds", "3"],
    "global frames of 20 digits": [*VIDEO, "--global-frames", LONG],
    "the same file twice": [*MOTION, "--out", "b.npz", "--out", "b.npz"],
    "the folder itself": [*VIDEO, "--out", ".", "--overwrite"],
    "the root": [*VIDEO, "--out", "/", "--overwrite"],
    "the parent": [*VIDEO, "--out", "..", "--overwrite"],
    "no name": [*VIDEO, "--out", "", "--overwrite"],
    "extend the folder": [*VIDEO, "--extend", "."],
    "extend a name of 300 letters": [*VIDEO, "--extend", "a" * 300],
    "extend nothing": [*VIDEO, "--extend", ""],
    "a name of 260 letters": [*VIDEO, "--out", "a" * 256 + ".mp4"],
    "a name of 254 letters": [*MOTION, "--out", "a" * 250 + ".npz"],
    "superscripts to redo": [*VIDEO, "--extend", "x.mp4", "--redo", "²:³"],
    "an option without a value": [*VIDEO, "--frames=--"],
    "height without a value": [*VIDEO, "--height=--"],
    "height 0": [*VIDEO, "--height", "0"],
    "a preview that is a film": [*VIDEO, "--preview", "a.mp4"],
    "a report of video": [*VIDEO, "--report", "a.json"],
    "an unknown device": [*VIDEO, "--device", "toaster"],
    "an unknown format": [*VIDEO, "--dtype", "float7"],
    "people 3": [*MOTION, "--people", "3"],
    "half a surrogate": ["motion", "walks \udcff", *MOTION[2:]],
    "a prompt file of nobody": ["video", "~nosuchuser/t.json", *VIDEO[2:]],
    "a prior with a long name": [*VIDEO, "--prior", "a" * 300],
    "a prior of nobody": [*VIDEO, "--prior", "~nosuchuser/x"],
    "the root as a prior": [*MOTION, "--prior", "/"],
    "proc as a prior": [*MOTION, "--prior", "/proc"],
    "resume and overwrite": [*VIDEO, "--resume", "--overwrite"],
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch, capsys, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(WRONG[case]) == 2
    said = capsys.readouterr().err
    assert said.startswith("longtake: error: ") and said.count("\n") == 1 and len(said) < 1500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kinds"), [(VIDEO, [".mp4", ".gif", ""]), (MOTION, [".npz", ".bvh", ".glb", ".html", ".csv"])]
)
def test_every_file_asked_for_is_written_in_one_run(tmp_path: Path, monkeypatch, words, kinds) -> None:
    monkeypatch.chdir(tmp_path)
    outs = [part for kind in kinds for part in ("--out", f"two{kind}")]
    assert main([*words, *outs, "--preview", "two.png"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"two{kind}" for kind in (*kinds, ".png")} | {
        f"two{kinds[0]}.run"
    }
    if ".mp4" in kinds:
        assert len(read_video("two.mp4")[0]) == len(read_video("two.gif")[0]) == len(list(Path("two").iterdir())) == 10


def test_a_gif_and_a_film_of_one_name_do_not_meet_in_one_record(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*VIDEO, "--out", "fps.gif"]) == 0
    assert main([*VIDEO, "--seed", "2", "--out", "fps.mp4"]) == 0


def test_the_error_that_a_file_exists_names_overwrite(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.npz").write_bytes(b"mine")
    assert main([*MOTION, "--out", "a.npz"]) == 2
    assert "--overwrite" in capsys.readouterr().err and Path("a.npz").read_bytes() == b"mine"


# ------------------------------------------------------------------------------------------------------------ resume

OUT = {"video": "o.mp4", "motion": "o.npz"}
RUN = {"video": VIDEO, "motion": MOTION}


def stopped(words: list[str], after: int) -> int:
    """Run a command that is asked to stop after so many steps; its exit code."""
    code = (
        "import signal, sys; from longtake import progress\n"
        "stock = progress.Progress.at\n"
        f"def at(self, done, of):\n    stock(self, done, of)\n"
        f"    if done == {after}: signal.raise_signal(signal.SIGINT)\n"
        "progress.Progress.at = at\n"
        "from longtake.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run("-c", code, *words, env=env).returncode


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are rounded otherwise with another number of threads: here and in `stopped` it is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def content(name: str) -> object:
    return Path(name).read_bytes() if name.endswith(".mp4") else np.load(name)["features"].tobytes()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("modality", ["video", "motion"])
def test_a_stopped_run_is_not_complete_and_goes_on_to_the_same_end(tmp_path, monkeypatch, modality, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    out = OUT[modality]
    words = [*RUN[modality], "--steps", "5", "--out"]
    assert main([*words, f"whole-{out}"]) == 0
    assert stopped([*words, out, "--preview", "o.png"], 2) == 130
    left = {path.name for path in tmp_path.iterdir()}
    assert out not in left and f"o.unfinished{Path(out).suffix}" in left and "o.unfinished.png" in left
    capsys.readouterr()
    for other in (["--seed", "9"], ["--guidance", "2"], ["--steps", "6"]):
        assert main([*words, out, *other, "--resume"]) == 2
        assert other[0].lstrip("-") in capsys.readouterr().err, "it names what differs"
    assert main([*words, out, "--preview", "o.png"]) == 2, "and it is not begun anew unasked"
    assert main([*words, out, "--preview", "o.png", "--resume"]) == 0
    assert content(out) == content(f"whole-{out}")
    assert "making: step 1 of" not in capsys.readouterr().err
    assert not list(tmp_path.glob("*unfinished*")) and Path("o.png").exists()


@pytest.mark.parametrize("modality", ["video", "motion"])
def test_resume_asks_the_record_and_every_file(tmp_path: Path, monkeypatch, capsys, modality) -> None:
    monkeypatch.chdir(tmp_path)
    out = OUT[modality]
    words = [*RUN[modality], "--out", out]
    assert main(words) == 0
    first = content(out)
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0 and "nothing to resume" in capsys.readouterr().out
    assert main([*words, "--seed", "9", "--resume"]) == 2 and "seed was 0, is 9" in capsys.readouterr().err
    for damage in (b"garbage", b"", Path(out).read_bytes()[:-40]):
        Path(out).write_bytes(damage)
        assert main([*words, "--resume"]) == 0
        assert content(out) == first
    more = ["--preview", "o.png", *(["--save-latents", "s.safetensors"] if modality == "video" else [])]
    assert main([*words, *more, "--resume"]) == 0
    assert Path("o.png").exists() and (modality == "motion" or Path("s.safetensors").exists())
    Path("theirs.npz" if modality == "motion" else "theirs.mp4").write_bytes(b"mine")
    theirs = "theirs.npz" if modality == "motion" else "theirs.mp4"
    assert main([*RUN[modality], "--out", theirs, "--resume"]) == 2
    assert "--overwrite" in capsys.readouterr().err and Path(theirs).read_bytes() == b"mine"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("modality", ["video", "motion"])
def test_an_overwriting_run_that_was_stopped_never_passes_the_old_film_for_its_own(
    tmp_path: Path, monkeypatch, modality
) -> None:
    monkeypatch.chdir(tmp_path)
    out, words = OUT[modality], [*RUN[modality], "--steps", "4"]
    assert main([*words, "--seed", "5", "--out", f"b-{out}"]) == 0
    assert main([*words, "--out", out]) == 0
    old = content(out)
    assert stopped([*words, "--seed", "5", "--out", out, "--overwrite"], 2) == 130
    assert main([*words, "--seed", "5", "--out", out, "--resume"]) == 0
    assert content(out) == content(f"b-{out}") != old


# ------------------------------------------------------------------------------------------------------- the batch


def manifest(folder: Path, *lines: dict) -> str:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def walk(name: str, **parameters: object) -> dict:
    given = {"frames": 40, "steps": 1, "guidance": 1, **parameters}
    return {"id": name, "modality": "motion", "prompt": "a person walks", "parameters": given}


def test_a_strange_prior_of_one_line_is_that_lines_mistake(tmp_path: Path) -> None:
    priors = ["a" * 300, "~nosuchuser/x", "/", "/proc", "", "\0", 5, ["x"]]
    lines = [walk(f"bad-{number}", prior=prior) for number, prior in enumerate(priors)]
    lines.append(walk("none", prior=None))  # none is named: the default
    assert main(["batch", manifest(tmp_path, walk("good"), *lines), "--out", str(tmp_path / "out")]) == 1
    rows = {row["id"]: row["status"] for row in read(tmp_path / "out/results.jsonl")}
    assert rows.pop("good") == "done" and rows.pop("none") == "done"
    assert set(rows.values()) == {"failed"} and len(rows) == len(priors)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": True}, {"steps": True}, {"steps": 1.5}, {"steps": "many"}, {"guidance": "high"}, {"people": True},
        {"lock_feet": "false"}, {"handshake": 1.5}, {"chunk_rows": 1.5}, {"frames": []}, {"guidance": 1e20},
        {"outputs": []}, {"outputs": ".npz"}, {"outputs": [5]}, {"preview": "yes"}, {"path": "0,0"}, {"unit": "inch"},
    ],
)  # fmt: skip
def test_nonsense_in_a_line_is_refused_at_the_check(tmp_path: Path, change: dict) -> None:
    jobs = manifest(tmp_path, walk("a", **change))
    assert main(["batch", jobs, "--out", str(tmp_path / "out"), "--dry-run"]) == 1


@pytest.mark.parametrize("prompt", [None, 5, [], {}, "", "a\0b", "\ud800"])
def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path, prompt: object) -> None:
    jobs = manifest(tmp_path, {**walk("a"), "prompt": prompt})
    assert main(["batch", jobs, "--out", str(tmp_path / "out"), "--dry-run"]) == 1


def test_a_batch_removes_no_file_that_is_not_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "x.partial").mkdir(parents=True)
    for name in ("thesis.partial", "my.partial.notes.txt"):
        (out / name).write_text("mine")
    jobs = manifest(tmp_path, walk("x.partial-1"), walk("b"))
    for again in ([], ["--resume"], ["--overwrite"]):
        assert main(["batch", jobs, "--out", str(out), *again]) == 0
    assert (out / "thesis.partial").read_text() == (out / "my.partial.notes.txt").read_text() == "mine"
    rows = [row["id"] for row in read(out / "results.jsonl")]
    assert sorted(rows) == ["b", "x.partial-1"], "and what is complete is not made again"


def test_a_long_job_that_was_killed_goes_on_from_its_steps(tmp_path: Path, monkeypatch) -> None:
    """A job gets checkpoints when it is long; here every one is."""
    jobs = manifest(tmp_path, walk("a", frames=200, steps=8))
    assert main(["batch", jobs, "--out", str(tmp_path / "whole")]) == 0
    code = (
        "import os, signal, sys; from longtake import batch, make\n"
        "batch.RECORD_SECONDS = make.CHECKPOINT_SECONDS = 0.0\n"
        "from longtake.journal import Journal; stock = Journal.write_tensors\n"
        "def write(self, name, *rest):\n    stock(self, name, *rest)\n"
        "    if '000003' in name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.write_tensors = write\n"
        f"from longtake.cli import main; sys.exit(main(['batch', {jobs!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = run("-c", code)
    assert done.returncode == -9 and list((tmp_path / "out/a.run").glob("step000003*"))
    monkeypatch.setattr("longtake.batch.RECORD_SECONDS", 0.0)
    seen = []
    from longtake.denoising import load_step

    monkeypatch.setattr("longtake.denoising.load_step", lambda *given: seen.append(given[1]) or load_step(*given))
    assert main(["batch", jobs, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert seen == [3] and sorted(os.listdir(tmp_path / "out")) == ["a.npz", "results.jsonl"]
    one, other = (np.load(tmp_path / kind / "a.npz")["features"] for kind in ("whole", "out"))
    assert np.array_equal(one, other)


def test_a_film_to_extend_is_an_input_of_a_job_and_part_of_what_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*VIDEO, "--out", "dog.mp4"]) == 0
    line = {"id": "b", "modality": "video", "prompt": "a cat", "inputs": {"extend": "dog.mp4"}}
    line["parameters"] = {"frames": 6, "steps": 1, "guidance": 1, "height": 32, "width": 32}
    jobs = manifest(tmp_path, line)
    assert main(["batch", jobs, "--out", "out"]) == 0
    assert len(read_video("out/b.mp4")[0]) == 16
    assert main(["batch", jobs, "--out", "out", "--resume"]) == 0
    assert len(list(read(Path("out/results.jsonl")))) == 1
    assert main([*VIDEO, "--seed", "4", "--out", "dog.mp4", "--overwrite"]) == 0
    assert main(["batch", jobs, "--out", "out", "--resume"]) == 0
    assert len(list(read(Path("out/results.jsonl")))) == 2, "another film to extend is another job"


# --------------------------------------------------------------------------------------- what a prior does not know


def test_a_prompt_outside_what_the_prior_knows_is_told_on_every_door_and_made(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    strange, words = "a castle on a hill", "outside what this prior knows; nearest: "
    for modality, known in (("video", "a dog walks"), ("motion", "a person walks")):
        for prompt, told in ((strange, True), (known, False)):
            assert main([modality, prompt, *RUN[modality][2:], "--out", OUT[modality], "--overwrite"]) == 0
            assert (words in capsys.readouterr().err) is told
            assert Path(OUT[modality]).exists()
    jobs = manifest(tmp_path, {**walk("far"), "prompt": strange}, walk("near"))
    assert main(["batch", jobs, "--out", "out"]) == 0
    rows = {row["id"]: row for row in read(Path("out/results.jsonl"))}
    assert words in rows["far"]["warnings"][0] and "warnings" not in rows["near"] and rows["far"]["status"] == "done"


def test_the_page_tells_it_too(tmp_path: Path) -> None:
    from longtake.demos.bench import Bench
    from longtake.demos.form import Form
    from longtake.domain import domain_of

    bench = Bench()
    try:
        form = Form(bench, domain_of("motion"))
        values = form.values_of(
            {
                "timeline": "0s: a castle on a hill",
                "seed": 1,
                "parameters": {"frames": 40, "steps": 1, "guidance": 1.0, "handshake": 20, "outputs": [".npz"]},
            }
        )
        *_, end = form.run("me", values, skip=None)
        assert "outside what this prior knows" in end[0] and "40 frames" in end[0]
    finally:
        bench.close()


def test_the_error_about_a_timeline_speaks_in_the_unit_that_was_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["motion", "0s: walks | 9s: runs", "--seconds", "4"]) == 2
    told = capsys.readouterr().err
    assert "9s" in told.replace("9 s", "9s") and "180" not in told


def test_progress_in_a_log_is_plain_lines(tmp_path: Path) -> None:
    done = run("-m", "longtake", *MOTION, "--steps", "3", "--out", str(tmp_path / "a.npz"))
    assert done.returncode == 0 and "\r" not in done.stderr and "step 3 of 3" in done.stderr


def test_the_line_of_an_error_during_the_steps_stands_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from longtake import denoising; from longtake.errors import UserError\n"
        "stock = denoising.save_step\n"
        "def save(journal, state, *rest):\n"
        "    if state.step == 2: raise UserError('cannot write: the disk is full')\n"
        "    stock(journal, state, *rest)\n"
        "denoising.save_step = save\n"
        "from longtake.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [*MOTION, "--steps", "4", "--out", str(tmp_path / "a.npz")]
    done = run("-c", code, *words)
    assert done.returncode == 2 and done.stderr.endswith("longtake: error: cannot write: the disk is full\n")
    assert done.stderr.splitlines()[-1] == "longtake: error: cannot write: the disk is full"


def test_completions_name_every_command_and_its_options(capsys) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(word in script for word in ("motion", "--lock-feet", "--save-latents", "--threads", "train"))


# ------------------------------------------------------------------------------------- what belongs to somebody else


@pytest.mark.parametrize("source", ["a.mp4", "a.mp4.run/latents.safetensors", "a.mp4.run"])
def test_a_run_never_extends_itself_into_nothing(tmp_path: Path, monkeypatch, capsys, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*VIDEO, "--out", "a.mp4"]) == 0
    kept = Path("a.mp4.run/latents.safetensors").read_bytes()
    assert main([*VIDEO, "--extend", source, "--out", "a.mp4", "--overwrite"]) == 2
    assert "what this run starts from" in capsys.readouterr().err
    assert Path("a.mp4.run/latents.safetensors").read_bytes() == kept and len(read_video("a.mp4")[0]) == 10


def test_resume_takes_no_other_runs_file_for_its_own_and_replaces_none(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*MOTION, "--out", "a.npz"]) == 0
    assert main([*MOTION, "--seed", "9", "--out", "b.npz", "--out", "b.bvh", "--preview", "p.png"]) == 0
    theirs = Path("b.bvh").read_bytes()
    Path("thesis.csv").write_text("my,own,data\n")
    for more in (["--out", "b.bvh"], ["--out", "thesis.csv"], ["--preview", "p.png"]):
        assert main([*MOTION, "--out", "a.npz", *more, "--resume"]) == 2
        assert "tells of no run that made it" in capsys.readouterr().err
        Path("a.npz").unlink(missing_ok=True)  # also where there is something left to make
        assert main([*MOTION, "--out", "a.npz", *more, "--resume"]) == 2
        assert main([*MOTION, "--out", "a.npz", "--resume"]) == 0
    assert Path("b.bvh").read_bytes() == theirs and Path("thesis.csv").read_text() == "my,own,data\n"


def test_another_runs_file_under_our_name_is_made_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*MOTION, "--out", "a.npz"]) == 0
    first = content("a.npz")
    assert main([*MOTION, "--seed", "9", "--out", "b.npz"]) == 0
    os.replace("b.npz", "a.npz")
    assert main([*MOTION, "--out", "a.npz", "--resume"]) == 0
    assert content("a.npz") == first


def test_a_run_that_was_killed_while_it_tidied_up_is_tidied_at_the_next_resume(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*MOTION, "--out", "a.npz"]) == 0
    Path("a.npz.run/step000001.safetensors").write_bytes(b"left")
    assert main([*MOTION, "--out", "a.npz", "--resume"]) == 0
    assert not list(Path("a.npz.run").glob("step*"))


def test_a_users_file_of_an_unfinished_name_stays(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.unfinished.npz").write_bytes(b"mine")
    assert main([*MOTION, "--out", "a.npz"]) == 0 and main([*MOTION, "--out", "a.npz", "--overwrite"]) == 0
    assert Path("a.unfinished.npz").read_bytes() == b"mine"


def test_a_new_batch_replaces_no_file_and_no_id_is_another_jobs_ending(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "w.npz").write_bytes(b"thesis")
    jobs = manifest(tmp_path, walk("w"), walk("v"), walk("v.unfinished"), walk("v.run"))
    assert main(["batch", jobs, "--out", str(out)]) == 1
    rows = {row["id"]: row for row in read(out / "results.jsonl")}
    assert (out / "w.npz").read_bytes() == b"thesis" and "--overwrite" in rows["w"]["error"]
    assert [rows[name]["status"] for name in ("v", "v.unfinished", "v.run")] == ["done", "failed", "failed"]


def test_a_prompt_file_of_a_job_is_looked_for_beside_the_manifest(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "night"
    place.mkdir()
    (place / "story.csv").write_text("0,walks\n20,runs\n")
    jobs = manifest(place, {**walk("a"), "prompt": "story.csv"})
    monkeypatch.chdir(tmp_path)
    assert main(["batch", jobs, "--out", "out"]) == 0


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": '{"segments": [{"start": 0, "prompt": "a"}, {"start": 40, "prompt": "b"}], "blend": 30}'},
        {"prompt": '{"segments": [{"start": 0, "prompt": "a | 3s: b"}]}'},
        {"prompt": "a", "inputs": {"extend": "x.mp4"}}, {"prompt": "a", "timeline": "b"}, {"prompt": "a", "what": 1},
    ],
)  # fmt: skip
def test_settings_that_the_page_cannot_show_are_refused_not_changed(line: dict) -> None:
    from longtake.demos.bench import Bench
    from longtake.demos.form import Form
    from longtake.domain import domain_of
    from longtake.errors import UserError

    bench = Bench()
    try:
        with pytest.raises(UserError):
            Form(bench, domain_of("motion")).values_of({**line, "parameters": {"frames": 80}})
    finally:
        bench.close()


def test_a_request_as_python_and_as_a_command_is_what_it_was() -> None:
    import shlex

    from longtake.request import Request

    for settings in ({"window": 3}, {"gate": "soft"}, {"global_frames": 4, "gate": "hard"}, {"negative": 'it\'s "x"'}):
        request = Request.read({"modality": "video", "prompt": "-a 'b'\nc", "parameters": settings})
        compile(request.as_python("x"), "python", "exec")
        words = shlex.split(request.as_command("-stem"))
        assert "--out=-stem.mp4" in words and words[-1] == "-a 'b'\nc"


def test_a_whole_number_of_400_digits_is_a_sentence() -> None:
    from longtake.domain import domain_of
    from longtake.errors import UserError

    for name in ("steps", "handshake", "frames", "guidance"):
        knob = domain_of("motion").knob(name)
        with pytest.raises(UserError):
            knob.read(10**400)
