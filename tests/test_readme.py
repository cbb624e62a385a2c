"""What the README tells a user to type works, as it is written (with one denoising step, small films, and the shipped
prior)."""

import os
import re
import shlex
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from longtake.cli import main
from processes import run, start, torchrun

ROOT = Path(__file__).parents[1]
LINES = re.findall(r"^    (longtake .+|torchrun .+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
MODELS = re.findall(r"^((?:longtake|torchrun) .*models/wan.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
SMALL = ["--height", "32", "--width", "32"]
VIDEO = [line for line in LINES if line.startswith("longtake video")]
MOTION = [line for line in LINES if line.startswith("longtake motion")]


def test_readme_has_the_two_set_up_lines_near_its_top():
    lines = (ROOT / "README.md").read_text().splitlines()[:15]
    commands = [line.strip() for line in lines if line.strip().startswith("pip install -e")]
    assert len(commands) == 2
    assert commands[0].endswith('longtake video "a barbarian runs" --frames 240 --out running.mp4')
    assert commands[1].endswith("&& pytest")


@pytest.mark.slow
def test_video_commands_of_the_readme_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(VIDEO) >= 4
    for line in VIDEO:
        args = shlex.split(line.split("#")[0])[1:]
        assert main([*args, "--steps", "1", *SMALL]) == 0, line
        assert Path(args[args.index("--out") + 1]).stat().st_size > 1000


@pytest.mark.slow
def test_commands_for_a_video_transformer_run_in_their_order(tmp_path, monkeypatch, capsys):
    """As they are written, but for a tiny Wan in the place of the checkpoint, its size, two steps and less of the
    time."""
    from dit_pipelines import wan

    monkeypatch.chdir(tmp_path)
    wan().save_pretrained("models/wan")
    assert len(MODELS) == 5
    for line in MODELS[:4]:
        for long, short in (("--seconds 16", "--seconds 1"), ("8s:", "0.5s:"), ("80", "8"), ("40:60", "4:9")):
            line = line.replace(long, short)
        args = shlex.split(line.split("#")[0])[1:]
        less = [*SMALL]
        if args[0] == "video":
            less += ["--steps", "2", "--length", "5"]
        assert main([*args, *less]) == 0, line
    told = capsys.readouterr()
    assert "frames meet in attention only" in told.out and (tmp_path / "again.mp4").stat().st_size > 1000
    assert "nproc_per_node" in MODELS[4]


@pytest.mark.slow
def test_motion_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(MOTION) >= 2
    for line in MOTION:
        args = shlex.split(line)[1:]
        assert main([*args, "--steps", "2"]) == 0, line
        for place, word in enumerate(args):
            if word in ("--out", "--preview"):
                assert Path(args[place + 1]).stat().st_size > 1000


@pytest.mark.distributed
def test_torchrun_command_of_the_readme_runs(tmp_path):
    [line] = [line for line in LINES if line.startswith("torchrun") and "-m longtake video" in line]
    words = shlex.split(line)[1:]
    place = words.index("-m")
    script = tmp_path / "module.py"  # the agent forks its ranks; processes of their own are test_cli.py's
    script.write_text(f"import runpy; runpy.run_module({words[place + 1]!r}, run_name='__main__', alter_sys=True)\n")
    launch = torchrun("--standalone", *words[:place])
    done = run(*launch, script, *words[place + 2 :], "--steps", "1", "--frames", "24", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "long.mp4").stat().st_size > 1000


def test_the_other_commands_of_the_readme_exist(capsys):
    for task in ("train", "evaluate"):
        for domain in ("video", "motion"):
            assert any(line.startswith(f"longtake {task} {domain} --data") for line in LINES)
            assert main([task, domain, "--help"]) == 0
            assert "--data" in capsys.readouterr().out


@pytest.mark.slow
def test_batch_commands_of_the_readme_run_on_its_manifest(tmp_path, monkeypatch, capsys):
    """The torchrun line is the second one with --resume: with everything complete it makes nothing."""
    monkeypatch.chdir(tmp_path)
    jobs = re.findall(r'^    (\{"id".+)$', (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(jobs) == 2
    (tmp_path / "jobs.jsonl").write_text("".join(job[:-2] + ', "steps": 1}}\n' for job in jobs))
    batch = [shlex.split(line) for line in LINES if " batch" in line or ".batch " in line]
    assert len(batch) == 3
    assert main(batch[0][1:]) == 0 and not (tmp_path / "runs").exists()
    assert main(batch[1][1:]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "results.jsonl",
        "run-1.mp4",
        "run-1.safetensors",
        "walk-1.glb",
        "walk-1.npz",
    ]
    told = batch[2][batch[2].index("longtake.batch") + 1 :]
    assert main(["batch", *told]) == 0
    assert "2 of 2 jobs are complete" in capsys.readouterr().out


def test_demo_commands_of_the_readme_serve_a_page(tmp_path):
    """With another port, for the usual one may be taken; the python below them is what the API test of demos does."""
    demos = [shlex.split(line)[1:] for line in LINES if line.startswith("longtake demo")]
    assert len(demos) == 2
    place = tmp_path / "temporary"
    place.mkdir()
    env = {**os.environ, "TMPDIR": str(place)}
    servers = [start("-m", "longtake", *args, "--port", "0", cwd=tmp_path, env=env) for args in demos]
    try:
        for args, server in zip(demos, servers, strict=True):
            deadline = time.monotonic() + 300
            while not (found := re.search(r"http://(\S+?):(\d+)", server.out.read_text())):
                assert server.poll() is None and time.monotonic() < deadline, (args, server.err.read_text())
                time.sleep(0.2)
            with urllib.request.urlopen(f"http://127.0.0.1:{found[2]}/") as page:
                assert b"longtake" in page.read()
        assert (tmp_path / "results").is_dir()
    finally:
        for server, kind in zip(servers, (signal.SIGINT, signal.SIGTERM), strict=True):
            server.send_signal(kind)
        codes = [server.wait(timeout=300) for server in servers]
    assert codes == [0, 0] and not list(place.glob("longtake-demo-*")), "temporary files are gone"
