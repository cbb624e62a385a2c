"""The main job, as a user starts it: seconds, peak memory, speed-up by ranks, bytes by length.

    python tests/benchmarks/video.py                     # 240 frames: two threads, one thread, two ranks, interleaved
    python tests/benchmarks/video.py --long              # also 2,300 frames in one go: peak memory against 240 frames

Each row is a process of its own, timed from its start to its end, imports included. Peak memory is the
largest resident set of any of the row's processes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a barbarian runs"


def run(folder: Path, name: str, frames: int, ranks: int, threads: int, extra: list[str]) -> tuple[float, float, float]:
    """(seconds from start to end, seconds that the command counts, peak memory in MB) of one video."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--nproc_per_node", str(ranks), "-m"]
    out = str(folder / f"{name}.mp4")
    command += ["longtake", "video", PROMPT, "--frames", str(frames), "--out", out, "--overwrite"]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    timed = ["/usr/bin/env", "python3", "-c", _MEASURE, *command, *extra]
    done = subprocess.run(timed, env=env, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    made = re.search(r"made in (\d+) s", done.stdout)
    peak = re.search(r"peak_kb (\d+)", done.stdout)
    assert made and peak
    return seconds, float(made[1]), int(peak[1]) / 1024


# resource counts the largest resident set among the children that were waited for, a launcher's workers included
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("peak_kb", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long", action="store_true", help="also 2,300 frames")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (default: the command's own)")
    args = parser.parse_args()
    extra = [] if args.steps is None else ["--steps", str(args.steps)]
    cases = [("one process, 2 threads", 1, 2), ("one process, 1 thread", 1, 1), ("2 ranks, 1 thread each", 2, 1)]
    results: dict[str, list[tuple[float, float, float]]] = {case[0]: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for number, (label, ranks, threads) in enumerate(cases):
                results[label].append(run(Path(folder), f"case{number}", args.frames, ranks, threads, extra))
        print(f"{PROMPT!r}, {args.frames} frames, float32, cpu, load {os.getloadavg()[0]:.1f}, {args.rounds} round(s)")
        print(f"{'':26} {'seconds':>8} {'computing':>10} {'peak MB':>8} {'vs 1 thread':>12}")
        base = statistics.median(row[0] for row in results["one process, 1 thread"])
        for label, rows in results.items():
            whole, made, peak = (statistics.median(row[i] for row in rows) for i in range(3))
            print(f"{label:26} {whole:8.1f} {made:10.1f} {peak:8.0f} {base / whole:11.2f}x")
        if args.long:
            peak_240 = statistics.median(row[2] for row in results["one process, 2 threads"])
            whole, made, peak = run(Path(folder), "long", 2300, 1, 2, extra)
            ratio = f"{peak / peak_240:.2f}x the memory"
            print(f"{'2300 frames, 2 threads':26} {whole:8.1f} {made:10.1f} {peak:8.0f}   {ratio}")


if __name__ == "__main__":
    main()
