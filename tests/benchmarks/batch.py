"""`longtake batch` against direct calls on short motion jobs, one thread on both sides; two ranks against one.

    python tests/benchmarks/batch.py --jobs 50 --rounds 5

Rounds are interleaved and the model is loaded in both; times are wall seconds, the overhead is the median of the
per-round ratios. The load of the machine is printed, for a busy one says little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from longtake.cli import main
from longtake.make import quiet_libraries
from longtake.motion.pipeline import STEPS, LongMotionPipeline


def direct(count: int, frames: int, steps: int, folder: Path) -> float:
    started = time.perf_counter()
    pipe = LongMotionPipeline.from_prior("bandai-small")
    pipe.set_progress_bar_config(disable=True)
    for seed in range(count):
        output = pipe("a person walks", frames, seed=seed, num_inference_steps=steps)
        output.save(folder / f"direct{seed}.npz", overwrite=True)
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


def overhead(jobs_count: int, frames: int, steps: int, rounds: int) -> list[float]:
    """Seconds of a batch over seconds of direct calls, a ratio a round, interleaved."""
    quiet_libraries()
    torch.set_num_threads(1)  # as a rank of a batch has
    with tempfile.TemporaryDirectory() as place:
        direct(1, frames, steps, Path(place))  # imports
        ratios = []
        for _ in range(rounds):
            alone = direct(jobs_count, frames, steps, Path(place))
            ratios.append(batch(jobs_count, frames, steps, Path(place)) / alone)
            print(f"direct {alone:.2f} s, batch {alone * ratios[-1]:.2f} s", flush=True)
    return ratios


def ranks_speedup(world: int, scale: float) -> tuple[float, float]:
    """Seconds of one rank and of ``world`` ranks on mixed lengths, from start to end, one thread each."""
    motion = [2400, 1600, 1200, 800, 600, 400, 300, 240, 200, 160, 120, 80, 80, 60]
    lines = [
        {"id": f"m{n}", "modality": "motion", "prompt": "walks", "seed": n, "parameters": {"frames": round(f * scale)}}
        for n, f in enumerate(motion)
    ] + [
        {"id": f"v{n}", "modality": "video", "prompt": "a dog", "seed": n, "parameters": {"frames": round(f * scale)}}
        for n, f in enumerate([64, 48, 32, 24, 16, 16])
    ]
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        manifest = Path(place, "jobs.jsonl")
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for ranks in (1, world):
            launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "-m", "longtake.batch"]
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, *launch, str(manifest), "--out", str(Path(place, f"out{ranks}")), "--span", "never"],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
            )  # fmt: skip
            seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2, help="measure so many ranks beside one; 0: not")
    args = parser.parse_args()
    print(f"load {os.getloadavg()}, cores {len(os.sched_getaffinity(0))}")
    found = overhead(args.jobs, args.frames, args.steps, args.rounds)
    print(f"overhead of batch on {args.jobs} jobs: {100 * (statistics.median(found) - 1):+.1f} %")
    if args.ranks:
        one, many = ranks_speedup(args.ranks, 1.0)
        print(f"20 jobs of mixed lengths: 1 rank {one:.1f} s, {args.ranks} ranks {many:.1f} s, {one / many:.2f} times")
