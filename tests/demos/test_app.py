"""The running page, asked through gradio_client and plain HTTP."""

import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from longtake.cli import main
from longtake.demos.app import launch
from longtake.demos.bench import Bench
from longtake.demos.form import Form
from longtake.domain import domain_of, installed
from longtake.errors import UserError

MOTION = {
    "timeline": "0s: walks | 1.5s: someone waves", "seconds": 3, "seed": 7, "steps": 2, "guidance": 2.5,
    "handshake": 20, "people": 1, "path": "", "lock_feet": False, "upper": "", "keys": "", "loop": False,
    "rig": "none", "files": [".npz", ".bvh", ".glb", ".html", ".csv"], "from_": None, "pose": None,
}  # fmt: skip
VIDEO = {
    "timeline": "0s: person running", "seconds": 1.5, "seed": 3, "steps": 2, "guidance": 2.0, "negative": "",
    "files": [".mp4", ".gif"],
}  # fmt: skip
KERNELS = {
    "mask": "causal", "length": 64, "ranks": 3, "layout": "zigzag", "strategy": "auto", "window": 8, "others": 4,
    "heads": 4, "kv_heads": 4, "head_dim": 16, "dtype": "float32",
}  # fmt: skip


def names(files: list) -> set[str]:
    return {Path(file).name for file in files}


def test_a_motion_by_the_api_has_every_file_and_its_settings(page) -> None:
    client = page.client()
    _, viewer, seams, files, settings, python, command = client.predict(api_name="/motion", **MOTION)
    assert names(files) == {f"motion-7{kind}" for kind in (".npz", ".bvh", ".glb", ".html", ".csv", ".png")}
    assert all(Path(file).stat().st_size > 500 for file in files)
    assert "srcdoc" in viewer and "someone waves" in seams
    assert "from_prior" in python and command.startswith("longtake motion")
    loaded = client.predict(api_name="/motion_load", settings=settings)
    *_, again, _, _, _ = client.predict(*loaded, api_name="/motion")
    first, second = (
        np.load(next(file for file in found if file.endswith(".npz")))["features"] for found in (files, again)
    )
    assert len(first) == 60 and np.array_equal(first, second)


def test_a_video_by_the_api(page) -> None:
    progress, film, plots, files, settings, _, command = page.client().predict(api_name="/video", **VIDEO)
    assert "18 frames" in progress and plots.count("<svg") == 2
    assert names(files) == {"video-3.mp4", "video-3.gif", "video-3.png", "video-3.safetensors"}
    film = film["value"] if isinstance(film, dict) and "value" in film else film
    path = film["video"] if isinstance(film, dict) else film
    assert Path(path).stat().st_size > 1000 and json.loads(settings)["seed"] == 3 and "--frames 18" in command


def test_every_event_has_a_name_and_the_small_ones_answer(page) -> None:
    client = page.client()
    named = client.view_api(return_format="dict")["named_endpoints"]
    for modality in ("motion", "video"):
        for event in ("", "_join", "_stop", "_dice", "_load", "_estimate", "_example_1", "_example_3"):
            assert f"/{modality}{event}" in named, (modality, event)
    assert "/kernels" in named and not any(name.startswith(("/lambda", "/fn")) for name in named)
    assert [parameter["parameter_name"] for parameter in named["/motion"]["parameters"]] == list(MOTION)
    picture, table, summary, python = client.predict(api_name="/kernels", **KERNELS)
    assert Path(picture if isinstance(picture, str) else picture["path"]).stat().st_size > 200
    assert len(table["data"]) == 3 and "kB" in summary and "make_plan" in python
    assert 0 <= client.predict(api_name="/motion_dice") < 2**31
    assert "60 frames" in client.predict(api_name="/motion_estimate", **MOTION)
    assert client.predict(api_name="/video_example_3")[0] == "0s: a knight walks"
    client.predict(api_name="/motion_stop")


@pytest.mark.parametrize(
    ("event", "change", "word"),
    [
        ("/motion", {"timeline": "0s: walks | 9s: runs"}, "9 s"), ("/motion", {"steps": 0}, "minimum"),
        ("/motion", {"files": [".exe"]}, "exe"), ("/video", {"timeline": " "}, "prompt"),
        ("/kernels", {"ranks": 16, "length": 16, "heads": 3, "kv_heads": 2}, "multiple"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_to_who_made_it(page, event: str, change: dict, word: str) -> None:
    from gradio_client.exceptions import AppError

    good = {"/motion": MOTION, "/video": VIDEO, "/kernels": KERNELS}[event]
    with pytest.raises((AppError, ValueError)) as caught:
        page.client().predict(api_name=event, **{**good, **change})
    assert word in str(caught.value) and "Traceback" not in str(caught.value)


def test_the_page_takes_files_for_its_inputs_alone_and_fetches_none(page, tmp_path: Path) -> None:
    """Settings files are read in the browser; a name of another machine or a path of this one is never looked up."""
    from gradio_client import handle_file

    client = page.client()
    named = client.view_api(return_format="dict")["named_endpoints"]
    taken = {
        item["parameter_name"]
        for event in named.values()
        for item in event["parameters"]
        if item["component"] in ("File", "UploadButton", "Image", "Video", "Audio")
    }
    named = {item.name for name in installed() for item in domain_of(name).INPUTS if item.page is not None}
    assert taken == {"from_" if name == "from" else name for name in named}
    assert client.predict(json.dumps({"timeline": "0s: runs", "seed": 5}), api_name="/motion_load")[2] == 5
    with pytest.raises(Exception, match="characters"):
        client.predict(" " * 200_000, api_name="/motion_load")
    book = tmp_path / "book.txt"
    book.write_text("Good evening. " * 200)
    asked = client.predict(text=handle_file(book), timeline="", api_name="/speech_estimate")
    assert "min of speech" in asked or "s of speech" in asked
    wrong = tmp_path / "book.exe"
    wrong.write_text("x")
    assert ".epub" in client.predict(text=handle_file(wrong), timeline="", api_name="/speech_estimate")
    form = Form(page.bench, domain_of("speech"))
    values = dict(zip(form.names, form.values_of({"timeline": "Hello."}), strict=True))
    for path in ("/etc/hostname", "http://127.0.0.1:9/x.txt", "https://example.org/x.txt"):
        given = {**values, "text": {"path": path, "meta": {"_type": "gradio.FileData"}}}
        sent = json.dumps({"data": list(given.values())}).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{page.url.rstrip('/')}/gradio_api/run/speech_estimate", sent, headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked)
        assert caught.value.code == 500 and b"Traceback" not in caught.value.read()


def test_a_page_that_holds_too_many_files_takes_no_more(page, monkeypatch) -> None:
    from longtake.demos import app

    monkeypatch.setattr(app, "MOST_UPLOADS", -1)
    asked = urllib.request.Request(page.url.rstrip("/") + "/gradio_api/upload", data=b"x" * 100, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked)
    assert caught.value.code == 507


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_page_that_rebinds_its_name_to_this_machine_is_refused(page, host: str) -> None:
    for path, data in (("", None), ("config", None), ("gradio_api/run/motion_dice", b'{"data": []}')):
        headers = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
        asked = urllib.request.Request(page.url.rstrip("/") + "/" + path, data=data, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked)
        assert caught.value.code == 421 and caught.value.read() == b"this page has another name"


def test_two_users_at_once_both_get_theirs(page) -> None:
    found: dict[int, set[str]] = {}

    def user(seed: int) -> None:
        found[seed] = names(page.client().predict(api_name="/motion", **{**MOTION, "seed": seed, "files": [".npz"]})[3])

    threads = [threading.Thread(target=user, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: {f"motion-{seed}.npz", f"motion-{seed}.png"} for seed in (1, 2, 3)}


def test_stop_by_the_api_keeps_what_is_done(page) -> None:
    client = page.client()
    long = {**MOTION, "seconds": 300, "steps": 60, "files": [".npz"], "timeline": "0s: walks"}
    job = client.submit(api_name="/motion", **long)
    for update in job:
        if "Step" in update[0]:
            client.predict(api_name="/motion_stop")
            break
    progress, *_, files, settings, _, _ = job.result()
    assert "stopped after step" in progress and len(files) == 2 and json.loads(settings)["parameters"]["steps"] == 60


def test_twenty_queued_requests_lose_nothing(page) -> None:
    client = page.client()
    jobs = [client.submit(api_name="/kernels", **{**KERNELS, "length": 64 + n}) for n in range(20)]
    for number, job in enumerate(jobs):
        picture, table, *_ = job.result(timeout=600)
        assert Path(picture if isinstance(picture, str) else picture["path"]).stat().st_size > 200
        assert sum(row[1] for row in table["data"]) == 64 + number


def test_the_server_gives_no_other_files_and_lets_nothing_out(page) -> None:
    def status(path: str) -> int:
        try:
            return int(urllib.request.urlopen(page.url + path).status)
        except urllib.error.HTTPError as error:
            return error.code

    for path in ("/etc/passwd", str(Path(__file__).resolve()), str(page.bench.folder)):
        assert status(f"gradio_api/file={path}") in (403, 404), path
    with urllib.request.urlopen(page.url) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "fonts.googleapis" not in answer.read().decode()
    assert not list(page.bench.folder.glob("job-*")), "the jobs' own folders are gone"


def test_a_login_is_asked_for_and_other_hosts_need_one(capsys, monkeypatch) -> None:
    assert main(["demo", "--host", "0.0.0.0"]) == 2
    assert main(["demo", "--host", "example.org", "--auth", "nobody"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 2 and "--auth" in told[0] and "USER:PASSWORD" in told[1]
    bench = Bench()
    demo, url = launch(bench, "127.0.0.1", 0, ("ann", "secret"))
    try:
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url + "config")
        from gradio_client import Client

        with pytest.raises(Exception, match="(?i)auth|login|credential"):
            Client(url, verbose=False)
        client = Client(url, auth=("ann", "secret"), verbose=False)
        assert 0 <= client.predict(api_name="/motion_dice") < 2**31
    finally:
        demo.close()
        bench.close()


def test_a_taken_port_is_one_line() -> None:
    bench = Bench()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(UserError, match="cannot serve"):
            launch(bench, "127.0.0.1", holder.getsockname()[1])
    bench.close()
