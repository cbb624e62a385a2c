"""Needles of natural pictures: photographs that scikit-image ships (public domain and CC0), panned for three seconds
each, among themselves and among drawn clips.

    pip download scikit-image --no-deps -d photographs
    python tests/benchmarks/watch_natural.py photographs/scikit_image-*.whl --data DATA --drawn 200

Nothing of them is kept. Each is asked for by name; told are the rank of its moment and how often it is first.
"""

import argparse
import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ASKED = {
    "astronaut.png": "an astronaut", "brick.png": "a brick wall", "camera.png": "a man with a camera",
    "chelsea.png": "a cat", "clock_motion.png": "a clock", "coffee.png": "a cup of coffee", "coins.png": "coins",
    "grass.png": "grass", "gravel.png": "gravel", "horse.png": "a horse", "hubble_deep_field.jpg": "galaxies in space",
    "moon.png": "the moon", "motorcycle_left.png": "a motorcycle", "page.png": "a page of text",
    "retina.jpg": "an eye's retina", "rocket.jpg": "a rocket",
}  # fmt: skip
SECONDS, FPS, SIDE = 3.0, 12, 256


def panned(picture: Image.Image) -> np.ndarray:
    """Three seconds in which the view goes from one side to the other and comes nearer, uint8 (36, 256, 256, 3)."""
    picture = picture.convert("RGB")
    side, count = min(picture.size), round(SECONDS * FPS)
    frames = []
    for place in np.linspace(0, 1, count):
        edge = side * (1 - 0.2 * place)
        left, top = (picture.width - edge) * place, (picture.height - edge) / 2
        box = (left, top, left + edge, top + edge)
        frames.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)))
    return np.stack(frames)


def main() -> None:
    """Write the film, ask for every picture, print the ranks."""
    from longtake.media import VideoWriter
    from longtake.video.watch.pipeline import WatchPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--data", type=Path, help="shared/data/video, for the drawn clips")
    parser.add_argument("--drawn", type=int, default=0, help="drawn clips among them")
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        clips = [(name, panned(Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}"))))) for name in ASKED]
    rng = np.random.default_rng(0)
    if args.drawn:
        from watch_hours import clips_of

        for _, caption, frames in clips_of(args.data, args.drawn, rng):
            wide = frames[np.arange(round(SECONDS * FPS)) % len(frames)].repeat(4, 1).repeat(4, 2)
            clips.append((caption, wide))
    order = rng.permutation(len(clips))
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        with VideoWriter(film, FPS) as writer:
            for place in order:
                writer.write(clips[place][1])
        pipe, ranks = WatchPipeline.from_prior(), {}
        for number, place in enumerate(order):
            name = clips[place][0]
            if name in ASKED:
                moments = pipe(film, f"when is there {ASKED[name]}?", moments=100, index=Path(folder) / "index").moments
                good = [
                    rank for rank, one in enumerate(moments, 1) if number * SECONDS <= one.best < (number + 1) * SECONDS
                ]
                ranks[ASKED[name]] = min(good, default=None)
    first = sum(rank == 1 for rank in ranks.values())
    three = sum(rank is not None and rank <= 3 for rank in ranks.values())
    print(json.dumps({"clips": len(clips), "asked": len(ranks), "first": first, "first three": three, "ranks": ranks}))


if __name__ == "__main__":
    main()
