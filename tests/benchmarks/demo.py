"""Demo and batch in one table: first page after start, queued requests, a short run beside the direct call, overhead
of a batch over direct calls, two ranks beside one.

    python tests/benchmarks/demo.py [--requests 200]

Every server is a process of its own, as a user starts it. "start" is the moment before `longtake demo` is executed, so
Python's own start and the import of gradio count.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from batch import overhead, ranks_speedup
from longtake.motion.domain import STEPS

KERNELS = ("causal", 64, 3, "zigzag", "auto", 8, 4, 4, 4, 16, "float32")
MOTION = ("0s: walks", 4, 1, 5, 2.5, 20, 1, "", False, "", "", False, "none", [".npz"], None)


def start() -> tuple[subprocess.Popen, str, float, float]:
    """(server, address, seconds to the announced address, seconds to the first page)."""
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "longtake", "demo", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    announced = time.monotonic() - began
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    with urllib.request.urlopen(found[0]) as page:
        assert b"longtake" in page.read()
    return server, found[0], announced, time.monotonic() - began


def queued(url: str, count: int) -> tuple[float, int, int]:
    """(seconds, answers without an error, files that are there) of so many requests at once."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    client.predict(*KERNELS, api_name="/kernels")
    began = time.monotonic()
    jobs = [client.submit(*KERNELS, api_name="/kernels") for _ in range(count)]
    good = files = 0
    for job in jobs:
        try:
            picture, *_ = job.result(timeout=600)
        except Exception as error:
            print(f"  a request failed: {error}", file=sys.stderr)
            continue
        good += 1
        path = Path(picture if isinstance(picture, str) else picture["path"])
        files += path.is_file() and path.stat().st_size > 200
    return time.monotonic() - began, good, files


def short_run(url: str, rounds: int) -> tuple[float, float]:
    """Median seconds of a short motion through the page and by a direct call, in turns."""
    from gradio_client import Client
    from longtake.make import quiet_libraries
    from longtake.motion.pipeline import LongMotionPipeline

    quiet_libraries()
    client = Client(url, verbose=False)
    pipe = LongMotionPipeline.from_prior("bandai-small")
    pipe.set_progress_bar_config(disable=True)
    folder = Path("/tmp") if os.path.isdir("/tmp") else Path.cwd()
    seconds: dict[str, list[float]] = {"page": [], "direct": []}
    for number in range(rounds + 1):
        began = time.monotonic()
        client.predict(*MOTION, api_name="/motion")
        middle = time.monotonic()
        output = pipe("walks", 80, seed=1, num_inference_steps=MOTION[3])
        for kind in (".npz", ".html"):
            output.save(folder / f"longtake-bench-{os.getpid()}{kind}", overwrite=True)
        output.preview(folder / f"longtake-bench-{os.getpid()}.png", overwrite=True)
        if number:
            seconds["page"].append(middle - began)
            seconds["direct"].append(time.monotonic() - middle)
    for path in folder.glob(f"longtake-bench-{os.getpid()}*"):
        path.unlink()
    return statistics.median(seconds["page"]), statistics.median(seconds["direct"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pages, announced = [], []
    for _ in range(args.rounds):
        server, url, told, page = start()
        pages.append(page)
        announced.append(told)
        server.terminate()
        server.wait()
    server, url, *_ = start()
    try:
        seconds, good, files = queued(url, args.requests)
        page, direct = short_run(url, args.rounds)
    finally:
        server.terminate()
        server.wait()
    ratios = overhead(50, 80, STEPS, args.rounds)
    one, two = ranks_speedup(2, 1.0)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, {platform.python_version()}")
    rows = [
        ("first page after start", f"{min(pages):.2f} s (median {statistics.median(pages):.2f})", "under 3 s"),
        ("address told after start", f"{min(announced):.2f} s (median {statistics.median(announced):.2f})", ""),
        (f"{args.requests} queued requests", f"{good} answered, {files} files, {seconds:.1f} s", "none lost"),
        ("80 frames of motion, 5 steps", f"page {page:.2f} s, direct {direct:.2f} s, ratio {page / direct:.2f}", ""),
        ("batch of 50 short jobs", f"{statistics.median(ratios):.3f} of direct calls", "at most 1.05"),
        ("2 ranks, 20 mixed jobs", f"{one:.1f} s on one, {two:.1f} s on two: {one / two:.2f} times", "at least 1.6"),
    ]
    for name, found, asked in rows:
        print(f"{name:<32} {found:<44} {asked}")


if __name__ == "__main__":
    main()
