"""What `longtake check` says of films that are thought to be clean: a line for each that is accused, and how near each
kind comes to its limit over all of them.

    python tests/benchmarks/check_films.py FOLDER_OR_FILM ...

Folders are searched for film files; of a zip of animated WebP clips (shared/data/video), each is made a film first.
"""

import io
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from longtake.errors import UserError
from longtake.media import VideoWriter
from longtake.video.check import check_film
from longtake.video.check.breaks import LIMITS, step_ratios
from PIL import Image, ImageSequence

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")


def films(place, folder):
    """Film files of a place."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".webp"):
                    yield unpacked(archive.read(name), folder / f"{place.stem}_{Path(name).stem}.mp4")
    elif place.is_dir():
        yield from sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
    else:
        yield place


def unpacked(data, path):
    """An animated WebP on white as an mp4 of 12 frames a second."""
    with Image.open(io.BytesIO(data)) as clip, VideoWriter(path, 12) as writer:
        for frame in ImageSequence.Iterator(clip):
            shown = frame.convert("RGBA")
            ground = Image.new("RGBA", shown.size, "white")
            writer.write(np.asarray(Image.alpha_composite(ground, shown).convert("RGB"))[None])
    return path


def main(places):
    seen, accused = 0, 0
    nearest = {}

    def near(name, number, film):
        if number is not None:
            nearest.setdefault(name, []).append((number, film))

    with tempfile.TemporaryDirectory() as folder:
        for path in (film for place in places for film in films(Path(place), Path(folder))):
            try:
                report = check_film(path)
            except UserError as error:
                print(f"not read: {error}")
                continue
            seen += 1
            if not report.clean:
                accused += 1
                told = "; ".join(f"{one.kind} {one.what} at {one.start}" for one in report.findings)
                print(f"{path.name}: {told}")
            else:
                for one in report.verdicts:
                    if str(one.kind) not in ("cut", "seam"):
                        near(f"{one.what} {one.kind}".strip(), one.number, path.name)
                for name, ratio in step_ratios(report.curves).items():
                    near(f"seam by {name}", float(ratio.max(initial=0.0)), path.name)
    print(f"\n{seen} films, {accused} accused; of the others, nearest to the limit:")
    for name, found in nearest.items():
        ranked = sorted(found, reverse=name != "loop")[:3]
        print(f"  {name:<18} " + ", ".join(f"{number:.3g} ({film[:34]})" for number, film in ranked))
    print("  limits of seams:   " + ", ".join(f"{name} {limit[0]}" for name, limit in LIMITS.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
