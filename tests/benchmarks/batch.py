"""`longtake batch` against direct calls of the pipeline on short motion jobs.

    python tests/benchmarks/batch.py --jobs 50 --rounds 5

Rounds are interleaved and the model is loaded in both; times are wall seconds, the overhead is the median of the
per-round ratios. The load of the machine is printed, for a busy one says little.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from longtake.cli import main
from longtake.distributed import Ranks
from longtake.motion import jobs
from longtake.runs import quiet_libraries
from longtake.timeline import Timeline


def direct(count: int, frames: int, steps: int, folder: Path) -> float:
    started = time.perf_counter()
    ranks = Ranks.single()
    pipe = jobs.load(jobs.DEFAULT_PRIOR, ranks)
    pipe.set_progress_bar_config(disable=True)
    parameters = {**jobs.DEFAULTS, "frames": frames, "steps": steps}
    for seed in range(count):
        timeline = Timeline.parse("a person walks", fps=jobs.FPS)
        jobs.make(pipe, timeline, seed, parameters, ranks, folder / f"direct{seed}")
    return time.perf_counter() - started


def batch(count: int, frames: int, steps: int, folder: Path) -> float:
    parameters = {"frames": frames, "steps": steps}
    lines = [
        {"id": f"j{n}", "modality": "motion", "prompt": "a person walks", "seed": n, "parameters": parameters}
        for n in range(count)
    ]
    manifest = folder / "jobs.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = time.perf_counter()
    if main(["batch", str(manifest), "--out", str(folder / "out"), "--overwrite"]) != 0:
        sys.exit("the batch failed")
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--steps", type=int, default=jobs.STEPS)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    quiet_libraries()
    print(f"load {os.getloadavg()}, cores {len(os.sched_getaffinity(0))}")
    with tempfile.TemporaryDirectory() as place:
        direct(1, args.frames, args.steps, Path(place))  # imports
        pairs = []
        for _ in range(args.rounds):
            sizes = args.jobs, args.frames, args.steps, Path(place)
            pairs.append((direct(*sizes), batch(*sizes)))
            print(f"direct {pairs[-1][0]:.2f} s, batch {pairs[-1][1]:.2f} s")
    overhead = statistics.median(b / a for a, b in pairs) - 1
    print(f"overhead of batch on {args.jobs} jobs: {100 * overhead:+.1f} %")
