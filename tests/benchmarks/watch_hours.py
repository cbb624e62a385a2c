"""An hour of film through `longtake watch`: seconds of decoding and of looking, peak memory, a kill and a resume, and
the place of the asked moments, beside uniform sampling.

    python tests/benchmarks/watch_hours.py DATA --minutes 6 60 --kill --out hours.json

The film is three-second clips of DATA (shared/data/video), cut hard, scaled to --size, --fps frames a second;
`--needles` of them stand once and are asked for, the first by the command, the others of its index. With --kill
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
from fractions import Fraction
from pathlib import Path

import numpy as np

CLIP_SECONDS, FPS = 3.0, 12  # FPS: of the clips themselves
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


def listed(data: Path) -> tuple[list[tuple[Path, dict]], list[tuple[Path, dict]]]:
    """(zip, row of its index) of the clips with a caption that are held out, and of the others."""
    from longtake.video.data import _index, _open

    rows = []
    for path in sorted([*data.glob("*_val.zip"), *data.glob("*_train.zip")]):
        with _open(path) as archive:
            rows += [(path, row) for row in _index(archive) if "caption" in row]
    held = [one for one in rows if one[0].stem.endswith("_val")]
    rest = [one for one in rows if not one[0].stem.endswith("_val")]
    return held, rest


def clips_of(data: Path, count: int, rng) -> list[tuple[str, str, np.ndarray]]:
    """(corpus, caption, frames) of `count` clips, a third of them held out as far as there are so many, shuffled."""
    from longtake.video.data import _open, read_clip

    held, rest = listed(data)
    held = [held[place] for place in rng.permutation(len(held))][: count // 3]
    chosen = [*held, *(rest[place] for place in rng.permutation(len(rest)))][:count]
    found = []
    for path in sorted({path for path, _ in chosen}):
        with _open(path) as archive:
            for place, row in chosen:
                if place == path:
                    found.append((path.stem, row["caption"], read_clip(archive.read(row["file"]))))
    return [found[place] for place in rng.permutation(len(found))]


def write(path: Path, clips, order, size: tuple[int, int], fps: int) -> None:
    """The film in H.264: each clip is encoded once, and its packets stand where `order` (places of `clips`) says."""
    import av

    count, step = round(CLIP_SECONDS * fps), Fraction(1, fps)
    for place in sorted(set(order)):
        with av.open(str(path.with_suffix(f".{place}.mp4")), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt, stream.max_b_frames = *size, "yuv420p", 0
            for slot in range(count):
                picture = np.ascontiguousarray(clips[place][2][slot * FPS // fps % len(clips[place][2])])
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame.reformat(width=size[0], height=size[1], format="yuv420p")))
            container.mux(stream.encode(None))
    with av.open(str(path), "w") as container:
        target = None
        for number, place in enumerate(order):
            with av.open(str(path.with_suffix(f".{place}.mp4"))) as source:
                target = target or container.add_stream_from_template(source.streams.video[0])
                packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
                for slot, packet in enumerate(packets):
                    packet.stream, packet.time_base = target, step
                    packet.pts = packet.dts = number * count + slot
                    packet.duration = 1
                    container.mux(packet)
    for place in set(order):
        path.with_suffix(f".{place}.mp4").unlink()


def command(film: Path, question: str, out: Path, index: Path, rate: float) -> list[str]:
    """A run of the command, timed."""
    words = ["watch", str(film), question, "--index", str(index), "--moments", str(MOST_MOMENTS), "--out", str(out)]
    return [sys.executable, "-c", WATCH, *words, "--rate", str(rate), "--overwrite"]


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


def ranks(film: Path, questions: list[tuple[str, float]], index: Path, rate: float) -> list[int | None]:
    """For each question the rank of the first moment whose best segment lies in the asked clip; None past the last."""
    from longtake.video.watch.decode import Film
    from longtake.video.watch.index import ClipIndex
    from longtake.video.watch.moments import find_moments
    from longtake.video.watch.pipeline import WatchPipeline

    pipe = WatchPipeline.from_prior()
    known = ClipIndex.of(Film(film), pipe.tower, index, rate=rate)
    found = []
    for question, start in questions:
        scores = pipe.tower.calibrated(known.scores(pipe.tower.ask(pipe.asked(question))))
        moments = find_moments(known, scores, MOST_MOMENTS)
        good = [rank for rank, one in enumerate(moments, 1) if start <= one.best < start + CLIP_SECONDS]
        found.append(min(good, default=None))
    return found


def uniform(film: Path, questions: list[tuple[str, float]], seconds: float) -> list[bool]:
    """For each question whether the best of as many pictures as a reader of 32 sees, taken evenly, lies in the clip."""
    from longtake.video.watch.decode import Film
    from longtake.video.watch.evaluate import UNIFORM_PICTURES
    from longtake.video.watch.pipeline import WatchPipeline

    pipe = WatchPipeline.from_prior()
    wanted = (np.arange(UNIFORM_PICTURES) + 0.5) * seconds / UNIFORM_PICTURES
    taken = [next(Film(film).frames(FPS, pipe.tower.size, start=float(one), end=float(one) + 1)) for one in wanted]
    times, frames = zip(*taken, strict=True)
    features = pipe.tower.look(np.stack(frames))
    found = []
    for question, start in questions:
        asked = pipe.tower.ask(pipe.asked(question))
        best = int(np.argmax([float(pipe.tower.segment(one[None]) @ asked) for one in features]))
        found.append(start <= times[best] < start + CLIP_SECONDS)
    return found


def measure(args: argparse.Namespace, minutes: float) -> dict:
    """One film of so many minutes."""
    rng = np.random.default_rng([args.seed, round(minutes * 60)])
    count = round(minutes * 60 / CLIP_SECONDS)
    clips = clips_of(args.data, min(count, args.distinct), rng)
    said = [caption for _, caption, _ in clips]
    needles: dict[str, list[int]] = {"seen": [], "unseen": []}
    for place, (corpus, caption, _) in enumerate(clips):
        kind = "unseen" if corpus.endswith("_val") else "seen"
        if said.count(caption) == 1 and len(needles[kind]) < args.needles // 2:
            needles[kind].append(place)
    once = [place for places in needles.values() for place in places]
    others = [place for place in range(len(clips)) if place not in once]
    order = [*once, *(others[number % len(others)] for number in range(count - len(once)))]
    order = [order[place] for place in rng.permutation(count)]
    asked = {
        kind: [(f"when does {clips[place][1]} appear?", order.index(place) * CLIP_SECONDS) for place in places]
        for kind, places in needles.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        film, index, out = Path(folder) / "film.mp4", Path(folder) / "index", Path(folder) / "answer.json"
        write(film, clips, order, args.size, args.fps)
        first = asked["seen"][0][0]
        whole = ran(command(film, first, out, index, args.rate))
        row = {
            "minutes": minutes, "size": args.size, "fps": args.fps, "clips": len(clips), "rate": args.rate,
            "film_mb": round(film.stat().st_size / 2**20, 1), "looked": whole["looked"],
            "seconds": {key: round(whole[key], 1) for key in ("decode", "look", "segments", "all", "wall")},
            "peak_mb": round(whole["peak_mb"]),
        }  # fmt: skip
        if args.kill:
            again = Path(folder) / "again"
            row["kill"] = resumed(command(film, first, out, again, args.rate), again, index, minutes)
        every = [one for questions in asked.values() for one in questions]
        found, evenly = ranks(film, every, index, args.rate), uniform(film, every, minutes * 60)
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
    parser.add_argument("--distinct", type=int, default=2000, help="clips that differ; a longer film repeats them")
    parser.add_argument("--rate", type=float, default=2.0, help="of the command")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 360])
    parser.add_argument("--fps", type=int, default=FPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="run each film once more, with a kill half way")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    for minutes in args.minutes:
        rows.append(measure(args, minutes))
        print(json.dumps(rows[-1]), flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
