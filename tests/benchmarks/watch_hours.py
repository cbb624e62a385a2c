"""An hour of film through `longtake watch`: seconds of decoding and of looking, peak memory, a kill and a resume, and
the place of the asked moments, beside uniform sampling.

    python tests/benchmarks/watch_hours.py DATA --minutes 6 60 --kill --out hours.json

The film is three-second clips of DATA (shared/data/video), cut hard, none twice, scaled to --size, 12 frames a second;
`--needles` of them are asked for, the first by the command, the others of its index. With --kill
each film is run once more, killed when half its blocks stand, and run again. Seconds are processor seconds of one
thread, wall clock beside.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLIP_SECONDS, FPS = 3.0, 12
MOST_MOMENTS = 10

WATCH = """
import json, resource, sys, time, torch
torch.set_num_threads(1)
from longtake.cli import main
from longtake.video.watch import decode, tower
took = {"look": 0.0, "decode": 0.0, "segments": 0.0, "looked": 0}
def timed(owner, name, what):
    plain = getattr(owner, name)
    def call(self, *given):
        begun = time.process_time()
        found = plain(self, *given)
        took[what] += time.process_time() - begun
        if name == "look":
            took["looked"] += len(given[0])
        return found
    setattr(owner, name, call)
timed(tower.SmallTower, "look", "look")
timed(tower.SmallTower, "segment", "segments")
plain = decode.Film.frames
def frames(self, *given, **named):
    found = plain(self, *given, **named)
    while True:
        begun = time.process_time()
        one = next(found, None)
        took["decode"] += time.process_time() - begun
        if one is None:
            return
        yield one
decode.Film.frames = frames
begun = time.time()
code = main(sys.argv[1:])
took |= {"wall": time.time() - begun, "all": time.process_time(),
         "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
print("TOOK " + json.dumps(took))
sys.exit(code)
"""


def clips_of(data: Path, count: int, rng) -> list[tuple[str, str, np.ndarray]]:
    """(corpus, caption, frames) of `count` clips, a third of them held out as far as there are so many, shuffled."""
    from longtake.video.data import _index, _open, read_clip

    rows = []
    for path in sorted([*data.glob("*_val.zip"), *data.glob("*_train.zip")]):
        with _open(path) as archive:
            rows += [(path, row) for row in _index(archive) if "caption" in row]
    held = [one for one in rows if one[0].stem.endswith("_val")]
    rest = [one for one in rows if not one[0].stem.endswith("_val")]
    held = [held[place] for place in rng.permutation(len(held))][: count // 3]
    chosen = [*held, *(rest[place] for place in rng.permutation(len(rest)))][:count]
    found = []
    for path in sorted({path for path, _ in chosen}):
        with _open(path) as archive:
            for place, row in chosen:
                if place == path:
                    found.append((path.stem, row["caption"], read_clip(archive.read(row["file"]))))
    return [found[place] for place in rng.permutation(len(found))]


def write(path: Path, clips, size: tuple[int, int]) -> None:
    """The film, streamed: one clip after the other, in H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _, _, frames in clips:
            for slot in range(round(CLIP_SECONDS * FPS)):
                picture = frames[slot % len(frames)]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame.reformat(width=size[0], height=size[1], format="yuv420p")))
        container.mux(stream.encode(None))


def command(film: Path, question: str, out: Path, index: Path) -> list[str]:
    """A run of the command, timed."""
    words = ["watch", str(film), question, "--index", str(index), "--moments", str(MOST_MOMENTS), "--out", str(out)]
    return [sys.executable, "-c", WATCH, *words, "--overwrite"]


def ran(words: list[str]) -> dict:
    """What a run took."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TOOK ")]
    return json.loads(line[5:])


def killed(words: list[str], index: Path, blocks: int) -> int:
    """Run until so many blocks stand, then kill -9. The blocks that stand."""
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and len(list(index.glob("*/block*.npz"))) < blocks:
        time.sleep(0.2)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    return len(list(index.glob("*/block*.npz")))


def resumed(words: list[str], index: Path, whole: Path, minutes: float) -> dict:
    """A run that is killed half way and run again: what the second took, and whether its index is the whole one's."""
    stood = killed(words, index, round(minutes / 2))
    rest = ran(words)
    same = all(
        path.read_bytes() == next(whole.glob(f"*/{path.name}")).read_bytes() for path in index.glob("*/block*.npz")
    )
    return {"blocks": stood, "looked": rest["looked"], "all": round(rest["all"], 1), "same_index": same}


def ranks(film: Path, questions: list[tuple[str, float]], index: Path) -> list[int | None]:
    """For each question the rank of the first moment whose best segment lies in the asked clip; None past the last."""
    from longtake.video.watch.pipeline import WatchPipeline

    pipe = WatchPipeline.from_prior()
    found = []
    for question, start in questions:
        moments = pipe(film, question, moments=MOST_MOMENTS, index=index).moments
        good = [rank for rank, one in enumerate(moments, 1) if start <= one.best < start + CLIP_SECONDS]
        found.append(min(good, default=None))
    return found


def uniform(film: Path, questions: list[tuple[str, float]], seconds: float) -> list[bool]:
    """For each question whether the best of as many pictures as a reader of 32 sees, taken evenly, lies in the clip."""
    from longtake.video.watch.decode import Film
    from longtake.video.watch.evaluate import UNIFORM_PICTURES
    from longtake.video.watch.pipeline import WatchPipeline

    pipe = WatchPipeline.from_prior()
    times, frames = zip(*Film(film).frames(UNIFORM_PICTURES / seconds, pipe.tower.size), strict=True)
    features = pipe.tower.look(np.stack(frames))
    found = []
    for question, start in questions:
        asked = pipe.tower.ask(pipe.asked(question))
        best = int(np.argmax([float(pipe.tower.segment(one[None]) @ asked) for one in features]))
        found.append(start <= times[best] < start + CLIP_SECONDS)
    return found


def measure(data: Path, minutes: float, needles: int, size: tuple[int, int], seed: int, *, kill: bool) -> dict:
    """One film of so many minutes."""
    rng = np.random.default_rng([seed, round(minutes * 60)])
    clips = clips_of(data, round(minutes * 60 / CLIP_SECONDS), rng)
    said = [caption for _, caption, _ in clips]
    asked = {"seen": [], "unseen": []}
    for number, (corpus, caption, _) in enumerate(clips):
        kind = "unseen" if corpus.endswith("_val") else "seen"
        if said.count(caption) == 1 and len(asked[kind]) < needles // 2:
            asked[kind].append((f"when does {caption} appear?", number * CLIP_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        film, index, out = Path(folder) / "film.mp4", Path(folder) / "index", Path(folder) / "answer.json"
        write(film, clips, size)
        del clips
        first = asked["seen"][0][0]
        whole = ran(command(film, first, out, index))
        row = {
            "minutes": minutes, "size": size, "film_mb": round(film.stat().st_size / 2**20, 1),
            "seconds": {key: round(whole[key], 1) for key in ("decode", "look", "segments", "all", "wall")},
            "looked": whole["looked"], "peak_mb": round(whole["peak_mb"]),
        }  # fmt: skip
        if kill:
            row["kill"] = resumed(
                command(film, first, out, Path(folder) / "again"), Path(folder) / "again", index, minutes
            )
        every = [one for questions in asked.values() for one in questions]
        found, evenly = ranks(film, every, index), uniform(film, every, minutes * 60)
        for kind, questions in asked.items():
            mine = [place for place, one in enumerate(every) if one in questions]
            row[kind] = {
                "ranks": [found[place] for place in mine],
                "uniform_first": sum(evenly[place] for place in mine),
            }
    return row


def main() -> None:
    """Measure, print a line a film, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[6, 60])
    parser.add_argument("--needles", type=int, default=10, help="half of them of held-out clips")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 360])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="run each film once more, with a kill half way")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    for minutes in args.minutes:
        rows.append(measure(args.data, minutes, args.needles, tuple(args.size), args.seed, kill=args.kill))
        print(json.dumps(rows[-1]), flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
