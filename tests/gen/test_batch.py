"""``longtake batch``: the same files for any number of ranks and after a kill; nothing finished is lost."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from longtake.batch import forecast, parse_job, read_manifest, spanning
from longtake.cli import main
from longtake.errors import UserError
from longtake.records import append, hold, read
from longtake.weights import load_state
from processes import run, start, torchrun
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
    return {row["id"]: row for row in read(folder / "results.jsonl")}


def whole_run(rank: int, world: int, path: str, out: str) -> int:
    return main(["batch", path, "--out", out])


def killed_run(rank: int, world: int, path: str, out: str) -> int:
    """Rank 1 is killed when it goes for its second job; rank 0 leaves it one."""
    from longtake import batch

    stock, made = batch.Worker.one, []

    def one(*args):
        if rank == 1 and made:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and made:
            time.sleep(1.0)
        made.append(1)
        return stock(*args)

    batch.Worker.one = one
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


def test_only_jobs_that_would_outlast_a_fair_share_span_the_ranks(tmp_path: Path) -> None:
    frames = {"night": 60_000, "hour": 30_000, **{f"s{n}": 400 for n in range(10)}}
    lines = [job(name, parameters={"frames": count, "steps": 20}) for name, count in frames.items()]
    jobs, _ = read_manifest(manifest(tmp_path, *lines))
    for ranks, names in ((1, []), (2, ["night", "hour"]), (4, ["night", "hour"])):
        together, apart = spanning(jobs, ranks)
        assert [found.id for found in together] == names and len(together) + len(apart) == 12
    few, _ = read_manifest(manifest(tmp_path, job("a"), job("b")))
    assert spanning(few, 2)[0] == [], "short jobs do not"
    assert "all" in forecast(jobs, [], 2) and "all" not in forecast(jobs, [], 2, span=False)


def spanned_run(rank: int, world: int, path: str, out: str, full_disk: bool) -> int:
    """Every job that outlasts a fair share spans the ranks, however short."""
    from longtake import batch

    batch.SPAN_SECONDS = 0.0
    if full_disk and rank == 0:
        from longtake.media import VideoWriter

        def refuse(*_):
            raise OSError(28, "No space left on device")

        VideoWriter.write = refuse  # type: ignore[method-assign]
    return main(["batch", path, "--out", out])


@pytest.fixture(scope="module")
def long_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs of which some can span ranks, and in `one` what one process makes of them."""
    folder = tmp_path_factory.mktemp("long")
    path = manifest(
        folder, job("short"), job("long", parameters={"frames": 900, "steps": 2, "chunk_rows": 2}),
        {**job("walk", parameters={"frames": 180, "steps": 2}), "prompt": "x"}
        | {"timeline": "0s: walks | 3s: runs | 6s: waves"},
        {"id": "film", "modality": "video", "prompt": "a dog", "seed": 1,
         "parameters": {"frames": 24, "steps": 1, "guidance": 1.0}},
    )  # fmt: skip
    path.write_text(path.read_text().replace('"prompt": "x", ', ""))
    assert main(["batch", str(path), "--out", str(folder / "one")]) == 0
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_a_long_job_is_made_by_all_ranks_together_with_the_same_result(
    long_jobs: Path, tmp_path: Path, world: int
) -> None:
    assert run_ranks(spanned_run, world, str(long_jobs / "jobs.jsonl"), str(tmp_path / "all"), False) == [0] * world
    rows = results(tmp_path / "all")
    assert {name for name, row in rows.items() if row.get("ranks") == world} == {"film", "long"}, "rows cannot be cut"
    assert rows["film"]["files"] == ["film.mp4", "film.safetensors"]
    one, every = long_jobs / "one", tmp_path / "all"
    for name in ("short", "long", "walk"):
        alone, shared = (np.load(folder / f"{name}.npz")["features"] for folder in (one, every))
        assert alone.shape == shared.shape and np.abs(alone - shared).max() < 1e-4
    alone, shared = (load_state(folder / "film.safetensors")["latents"] for folder in (one, every))
    assert float((alone - shared).abs().max()) < 1e-4


@pytest.mark.distributed
def test_what_rank_0_cannot_write_of_a_spanning_job_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    parameters = {"frames": 48, "steps": 1, "guidance": 1.0, "height": 32, "width": 32}
    film = {"id": "film", "modality": "video", "prompt": "a dog", "seed": 1, "parameters": parameters}
    path = manifest(tmp_path, film, job("short"))
    assert run_ranks(spanned_run, 3, str(path), str(tmp_path / "out"), True) == [1, 1, 1]
    rows = results(tmp_path / "out")
    assert "No space left" in rows["film"]["error"] and rows["film"]["ranks"] == 3 and rows["short"]["status"] == "done"


def test_a_second_batch_in_the_same_folder_is_refused(tmp_path: Path, capsys) -> None:
    path, out = manifest(tmp_path, job("a")), tmp_path / "out"
    with hold(out, resume=False, overwrite=False):
        assert main(["batch", str(path), "--out", str(out), "--resume"]) == 2
        assert "another batch" in capsys.readouterr().err
    assert main(["batch", str(path), "--out", str(out), "--resume"]) == 0


@pytest.mark.parametrize("world", [1, 2])
def test_an_interrupted_batch_ends_after_the_jobs_at_work_and_goes_on_later(tmp_path: Path, world: int) -> None:
    lines = [job(f"j{n}", seed=n, parameters={"frames": 100, "steps": 5}) for n in range(200)]
    path, out = manifest(tmp_path, *lines), tmp_path / "out"
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, runpy\n"
        f"open({str(tmp_path)!r} + '/pid' + os.environ.get('RANK', ''), 'w').write(str(os.getpid()))\n"
        "runpy.run_module('longtake.batch', run_name='__main__')\n"
    )
    launch = torchrun("--standalone", "--nproc_per_node", "2") if world == 2 else []
    running = start(*launch, script, path, "--out", out)
    deadline = time.monotonic() + 300
    while not list(out.glob("j*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if world == 1:
        running.send_signal(signal.SIGINT)
    else:  # one rank is told, the other one ends too
        os.kill(int((tmp_path / "pid1").read_text()), signal.SIGINT)
    told, _ = running.communicate(timeout=600)
    assert running.returncode == (130 if world == 1 else 1)  # torchrun's own code
    assert world == 2 or "stopping after the jobs at work" in told
    done = results(out)
    assert 1 <= len(done) < 200 and {row["status"] for row in done.values()} == {"done"}
    assert sorted(files(out)) == sorted(f"{name}.npz" for name in done), "the jobs at work were finished"
    few = manifest(tmp_path, *[line for line in lines if line["id"] in list(done)[:2]])
    assert main(["batch", str(few), "--out", str(out), "--resume"]) == 0
    assert len(results(out)) == len(done), "none is made twice"


@pytest.mark.parametrize("kind", [".npz", ".bvh", ".glb", ".html", ".csv", ".gif", ".mp4", ".png"])
def test_a_damaged_file_of_any_kind_is_made_again(tmp_path: Path, kind: str) -> None:
    outputs = [kind if kind != ".png" else ".csv"]
    line = job("a", parameters={"outputs": outputs, "preview": kind == ".png"})
    path, out = manifest(tmp_path, line), tmp_path / "out"
    assert main(["batch", str(path), "--out", str(out)]) == 0
    whole = (out / f"a{kind}").read_bytes()
    assert main(["batch", str(path), "--out", str(out), "--resume"]) == 0
    assert len(list(read(out / "results.jsonl"))) == 1, "a whole one is not"
    (out / f"a{kind}").write_bytes(whole[: len(whole) // 2])
    assert main(["batch", str(path), "--out", str(out), "--resume"]) == 0
    assert len(list(read(out / "results.jsonl"))) == 2
    assert len((out / f"a{kind}").read_bytes()) > 0.9 * len(whole)


def test_accelerate_launches_it(tmp_path: Path) -> None:
    path = manifest(tmp_path, job("a"))
    done = run(
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "longtake.batch", path, "--out", tmp_path / "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["a"]["status"] == "done"


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
    rows = list(read(out / "results.jsonl"))
    assert sorted(row["line"] for row in rows if row["status"] == "failed") == [2, 3, 4, 5, 6, 7, 9]
    assert sorted(row["id"] for row in rows if row["status"] == "done") == ["good", "last"]
    assert set(files(out)) == {"good.npz", "last.npz"}
    # Twice: the refused twin of "good" does not make it anew.
    for _ in range(2):
        assert main(["batch", str(path), "--out", str(out), "--resume"]) == 1
    again = list(read(out / "results.jsonl"))
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
    made = [row["id"] for row in read(out / "results.jsonl")][3:]
    assert sorted(made) == ["a", "b"]
    assert files(out)["a.npz"] == first["a.npz"] and files(out)["b.npz"] != first["b.npz"]


def test_a_file_to_start_from_that_stands_among_the_parameters_is_told_its_place() -> None:
    line = {"id": "a", "modality": "video", "prompt": "a dog", "parameters": {"first": "dog.png"}}
    with pytest.raises(UserError, match=r"knows no parameter 'first': .* given as \"inputs\": \{\"first\": FILE\}"):
        parse_job(1, line)


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
    path = manifest(tmp_path, job("a"), job("b", parameters={"frames": 600}))
    code = (
        "import resource, signal, sys; from longtake.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"sys.exit(main(['batch', {str(path)!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = run("-c", code)
    assert done.returncode == 1, done.stderr
    rows = results(tmp_path / "out")
    assert rows["a"]["status"] == "done" and rows["b"]["status"] == "failed" and "cannot write" in rows["b"]["error"]


def test_a_torn_line_of_the_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"id": "a"}\n{"id": "to')
    append(path, {"id": "b"})
    assert [row["id"] for row in read(path)] == ["a", "b"]


@pytest.mark.distributed
def test_a_video_job_on_one_of_three_ranks_talks_to_no_other(tmp_path: Path) -> None:
    """The pipeline used the default group although its run was of one process, and refused."""
    parameters = {"frames": 16, "steps": 1, "guidance": 1.0, "height": 32, "width": 32}
    line = {"id": "film", "modality": "video", "prompt": "a dog walks", "parameters": parameters}
    jobs = tmp_path / "film.jsonl"
    jobs.write_text("".join(json.dumps({**line, "id": f"film{n}", "seed": n}) + "\n" for n in range(2)))
    assert main(["batch", str(jobs), "--out", str(tmp_path / "one")]) == 0
    assert run_ranks(whole_run, 3, str(jobs), str(tmp_path / "three")) == [0, 0, 0]
    for name in ("film0.safetensors", "film1.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_a_video_job_gives_a_film_and_latents_to_go_on_from(tmp_path: Path) -> None:
    line = {"id": "film", "modality": "video", "prompt": "a dog walks", "parameters": {"frames": 16, "steps": 1}}
    line["parameters"] |= {"guidance": 1.0, "preview": True, "height": 32, "width": 32}
    jobs, out = tmp_path / "film.jsonl", tmp_path / "out"
    jobs.write_text(json.dumps(line) + "\n")
    assert main(["batch", str(jobs), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["film.mp4", "film.png", "film.safetensors", "results.jsonl"]
    assert main(["batch", str(jobs), "--out", str(out), "--resume"]) == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 1
    command = ["video", "a dog walks", "--extend", str(out / "film.safetensors"), "--frames", "8", "--steps", "1"]
    assert main([*command, "--height", "32", "--width", "32", "--out", str(tmp_path / "more.mp4")]) == 0
