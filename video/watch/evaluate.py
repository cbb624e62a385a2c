"""``longtake evaluate watch``: planted needles, the moment that is asked for in films that are made here.

A film is a row of clips of three seconds, cut hard, none with the needle's caption but the needle. Beside the tower
stands what a reader of so many tokens sees that takes its pictures evenly over the film (uniform sampling).

    python -m longtake evaluate watch --data DATA --minutes 1 10 --films 40
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError

CLIP_SECONDS = 3.0
FPS = 12.0
SIDE = 64
UNIFORM_PICTURES = 32  # of the reader beside it, which has as many tokens as the moments' pictures would


@dataclass(frozen=True)
class Needle:
    """A film with one clip that is asked for: the question, and where it is in seconds."""

    film: Path
    question: str
    start: float
    end: float


def clips_of(data: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """(caption, frames uint8 (F, 64, 64, 3)) of each captioned clip, by the name of its zip. Raises UserError."""
    from longtake.video.data import _index, _open, read_clip

    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for path in sorted([*data.glob("*_train.zip"), *data.glob("*_val.zip")]):
        with _open(path) as archive:
            rows = [row for row in _index(archive) if "caption" in row]
            found[path.stem] = [(row["caption"], read_clip(archive.read(row["file"]))) for row in rows]
    if not found:
        raise UserError(f"{data} holds no clips with captions")
    return found


def plant(
    pool: list[tuple[str, np.ndarray]], needle: tuple[str, np.ndarray], minutes: float, seed: int, path: Path
) -> Needle:
    """Write a film of ``minutes`` of clips from ``pool`` with the needle at a random place."""
    from longtake.media import VideoWriter

    dice = np.random.default_rng(seed)
    count = max(2, round(minutes * 60 / CLIP_SECONDS))
    others = [clip for clip in pool if clip[0] != needle[0]]
    place = int(dice.integers(count))
    length = round(CLIP_SECONDS * FPS)
    with VideoWriter(path, FPS) as writer:
        for number in range(count):
            _, frames = needle if number == place else others[int(dice.integers(len(others)))]
            writer.write(frames[np.arange(length) % len(frames)])
    caption = needle[0]
    return Needle(path, f"when does {caption} appear?", place * CLIP_SECONDS, (place + 1) * CLIP_SECONDS)


def hit(moments: list[Any], needle: Needle, among: int) -> bool:
    """Whether the middle of one of the first ``among`` moments' best segments lies in the needle."""
    return any(needle.start <= one.best < needle.end for one in moments[:among])


def by_uniform(needle: Needle, pipe: Any, seconds: float) -> bool:
    """Whether the best of so many pictures taken evenly lies in the needle."""
    from longtake.video.watch.decode import Film

    rate = UNIFORM_PICTURES / seconds
    times, frames = zip(*Film(needle.film).frames(rate, pipe.tower.size), strict=True)
    features = pipe.tower.look(np.stack(frames))
    asked = pipe.tower.ask(pipe.asked(needle.question))
    scores = [float(pipe.tower.segment(one[None]) @ asked) for one in features]
    return needle.start <= times[int(np.argmax(scores))] < needle.end


def measure(data: Path, minutes: list[float], films: int, prior: str, seed: int) -> list[dict[str, Any]]:
    """A row for each length and each kind of needle: found first, found among three, by uniform pictures, seconds."""
    from longtake.video.watch.pipeline import WatchPipeline

    pipe = WatchPipeline.from_prior(prior)
    corpora = clips_of(data)
    pool = [clip for clips in corpora.values() for clip in clips]
    rows = []
    for length in minutes:
        for kind, clips in corpora.items():
            tops = np.zeros(3)
            taken = 0.0
            with tempfile.TemporaryDirectory() as folder:
                for number in range(films):
                    dice = np.random.default_rng([seed, number, len(clips)])
                    chosen = clips[int(dice.integers(len(clips)))]
                    path = Path(folder) / f"{number}.mp4"
                    needle = plant(pool, chosen, length, int(dice.integers(2**31)), path)
                    begun = time.monotonic()
                    answer = pipe(path, needle.question, moments=3, index=Path(folder) / "index")
                    taken += time.monotonic() - begun
                    tops += (
                        hit(answer.moments, needle, 1),
                        hit(answer.moments, needle, 3),
                        by_uniform(needle, pipe, answer.seconds),
                    )
                    path.unlink()
            first, three, even = (tops / films).round(3).tolist()
            row = {
                "minutes": length, "needles": kind, "films": films, "first": first, "first three": three,
                "uniform first": even, "seconds a film": round(taken / films, 1),
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate watch``."""
    parser.add_argument("--data", type=Path, required=True, help="folder with kaykit_train.zip and the like")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0], help="lengths of the films")
    parser.add_argument("--films", type=int, default=20, help="of each length and kind of needle (default 20)")
    parser.add_argument("--prior", default="words-small", help="the picture tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("needles.json"), help="the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, and write the table."""
    from longtake.journal import atomic_path

    if args.films < 1 or any(not 0.1 <= one <= 600 for one in args.minutes):
        raise UserError("--films is 1 at least, --minutes 0.1 to 600")
    rows = measure(args.data, args.minutes, args.films, args.prior, args.seed)
    with atomic_path(args.out) as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"wrote {args.out}")
    return 0
