"""``longtake batch``: the same files for any number of ranks and after a kill; nothing finished is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from longtake.batch import append_result, forecast, read_manifest, read_results
from longtake.cli import main
from ranks import run_ranks

FRAMES = (60, 40, 44, 48, 52)


def job(name: str, **change: object) -> dict:
    parameters = {"frames": 40, "steps": 1, **change.pop("parameters", {})}  # type: ignore[dict-item]
    return {"id": name, "modality": "motion", "prompt": "walk", "seed": 1, "parameters": parameters, **change}


def manifest(folder: Path, *lines: object) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def five(folder: Path) -> Path:
    return manifest(folder, *[job(f"j{n}", seed=n, parameters={"frames": n}) for n in FRAMES])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def results(folder: Path) -> dict:
    return {row["id"]: row for row in read_results(folder / "results.jsonl")}


def whole_run(rank: int, world: int, path: str, out: str) -> int:
    return main(["batch", path, "--out", out])


def killed_run(rank: int, world: int, path: str, out: str) -> int:
    """Rank 1 is killed when it goes for its second job."""
    from longtake import batch

    stock, made = batch._one, []

    def one(*args):
        if rank == 1 and made:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(1)
        return stock(*args)

    batch._one = one
    return main(["batch", path, "--out", out])


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    assert main(["batch", str(five(folder)), "--out", str(folder / "out")]) == 0
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_gives_the_same_files(single: Path, tmp_path: Path, world: int) -> None:
    out = tmp_path / "out"
    assert run_ranks(whole_run, world, str(single / "jobs.jsonl"), str(out)) == [0] * world
    assert len(files(out)) == 5 and files(out) == files(single / "out")
    assert {row["status"] for row in results(out).values()} == {"done"}


@pytest.mark.distributed
def test_a_killed_rank_loses_nothing_finished(single: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        run_ranks(killed_run, 2, str(single / "jobs.jsonl"), str(out))
    before = results(out)
    assert 1 <= len(before) < 5
    assert main(["batch", str(single / "jobs.jsonl"), "--out", str(out), "--resume"]) == 0
    after = results(out)
    assert len(after) == 5 and all(after[name] == row for name, row in before.items())  # not made twice
    assert files(out) == files(single / "out")


def test_bad_lines_and_failing_jobs_are_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch) -> None:
    path = manifest(
        tmp_path, job("good"), "{torn", job("good", seed=2), job("../up"), job("odd", parameters={"colour": 1}),
        job("nan", parameters={"guidance": float("nan")}), job("lost", parameters={"prior": "none-such"}),
        job("last"),
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    out = tmp_path / "out"
    assert main(["batch", str(path), "--out", str(out)]) == 1
    rows = list(read_results(out / "results.jsonl"))
    assert sorted(row["line"] for row in rows if row["status"] == "failed") == [2, 3, 4, 5, 6, 7, 9]
    assert sorted(row["id"] for row in rows if row["status"] == "done") == ["good", "last"]
    assert set(files(out)) == {"good.npz", "last.npz"}
    # Twice: the refused twin of "good" does not make it anew.
    for _ in range(2):
        assert main(["batch", str(path), "--out", str(out), "--resume"]) == 1
    again = list(read_results(out / "results.jsonl"))
    assert sum(row["status"] == "done" for row in again) == 2


def test_resume_makes_only_what_is_not_proven(single: Path, tmp_path: Path, capsys) -> None:
    lines = [job("a"), job("b"), job("c")]
    out, path = tmp_path / "out", manifest(tmp_path, *lines)
    assert main(["batch", str(path), "--out", str(out)]) == 0
    first = files(out)
    assert main(["batch", str(path), "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    (out / "a.npz").write_bytes(first["a.npz"][:100])
    manifest(tmp_path, lines[0], job("b", seed=5), lines[2])
    assert main(["batch", str(path), "--out", str(out), "--resume"]) == 0
    made = [row["id"] for row in read_results(out / "results.jsonl")][3:]
    assert sorted(made) == ["a", "b"]
    assert files(out)["a.npz"] == first["a.npz"] and files(out)["b.npz"] != first["b.npz"]


def test_dry_run_makes_nothing(tmp_path: Path, capsys) -> None:
    path = manifest(tmp_path, job("short"), job("long", parameters={"frames": 400}), "{")
    assert main(["batch", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    text = capsys.readouterr().out
    assert text.index("long ") < text.index("short ") and "GB" in text and not (tmp_path / "out").exists()
    jobs, mistakes = read_manifest(path)
    assert "2 jobs on 2 ranks" in forecast(jobs, mistakes, 2)


def test_what_cannot_be_begun_is_one_line(tmp_path: Path, capsys) -> None:
    path = manifest(tmp_path, job("a"))
    for args in ([str(tmp_path / "none")], [str(path), "--out", str(path)], [str(path), "--out", str(path / "x")]):
        assert main(["batch", *args]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_full_disk_is_one_line_and_keeps_the_record(tmp_path: Path) -> None:
    path = manifest(tmp_path, job("a"), job("b", parameters={"frames": 4000}))
    code = (
        "import resource, signal, sys; from longtake.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"sys.exit(main(['batch', {str(path)!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    rows = results(tmp_path / "out")
    assert rows["a"]["status"] == "done" and rows["b"]["status"] == "failed" and "cannot write" in rows["b"]["error"]


def test_a_torn_line_of_the_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"id": "a"}\n{"id": "to')
    append_result(path, {"id": "b"})
    assert [row["id"] for row in read_results(path)] == ["a", "b"]


@pytest.mark.distributed
def test_a_video_job_on_one_of_three_ranks_talks_to_no_other(tmp_path: Path) -> None:
    """The pipeline used the default group although its run was of one process, and refused."""
    parameters = {"frames": 16, "steps": 1, "guidance": 1.0}
    line = {"id": "film", "modality": "video", "prompt": "a dog walks", "parameters": parameters}
    jobs = tmp_path / "film.jsonl"
    jobs.write_text("".join(json.dumps({**line, "id": f"film{n}", "seed": n}) + "\n" for n in range(2)))
    assert main(["batch", str(jobs), "--out", str(tmp_path / "one")]) == 0
    assert run_ranks(whole_run, 3, str(jobs), str(tmp_path / "three"), timeout=120) == [0, 0, 0]
    for name in ("film0.safetensors", "film1.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_a_video_job_gives_a_film_and_latents_to_go_on_from(tmp_path: Path) -> None:
    line = {"id": "film", "modality": "video", "prompt": "a dog walks", "parameters": {"frames": 16, "steps": 1}}
    line["parameters"] |= {"guidance": 1.0, "preview": True}
    jobs, out = tmp_path / "film.jsonl", tmp_path / "out"
    jobs.write_text(json.dumps(line) + "\n")
    assert main(["batch", str(jobs), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["film.mp4", "film.png", "film.safetensors", "results.jsonl"]
    assert main(["batch", str(jobs), "--out", str(out), "--resume"]) == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 1
    command = ["video", "a dog walks", "--extend", str(out / "film.safetensors"), "--frames", "8", "--steps", "1"]
    assert main([*command, "--out", str(tmp_path / "more.mp4")]) == 0
