"""Captioned pictures for `longtake train watch --pictures`, from packages of npm: zips as those of shared/data/video,
each film of which is two views of one drawing (shifted, turned, nearer or farther, on some ground).

    npm pack @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 openmoji@17.0.0
    pip install resvg-py==0.5.0
    python tests/benchmarks/watch_pictures.py DATA *.tgz --out pictures

DATA (shared/data/video) says which subjects are held out: of the set that its films are of (Fluent) they are left out
here too, and with --unseen of every set, by code point and by name. Nothing of the pictures is kept in the repository.
"""

import argparse
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SKIN = re.compile(r"-1f3f[b-f]")
TONED = 0.3  # share of the drawings with one skin tone that are taken
ITS_SET = "fluent"  # the films of DATA are of this set
VIEWS, SIDE, SMALL, SHARP = 2, 224, 64, 160
SMALL_SHARE, WHITE_SHARE = 0.7, 0.6
OTHER_WORDS = {
    "1f320": "falling star", "1f475": "old lady|grandm\\w+", "1f47c": "cherub", "1f479": "oni", "1f596": "spock",
    "1f612": "unamused", "1f629": "weary", "1f939-200d-2642": "jugg\\w+", "1f9d0": "monocle",
    "1f9d8": "lotus position|meditat\\w+", "1fab5": "log|lumber|timber", "231b": "hourglass", "26a1": "lightning",
    "26f9": "bouncing ball",
}  # fmt: skip


def code(point: str) -> str:
    """A code point as the held-out films have it: small letters, no variation selector."""
    return point.lower().replace("-fe0f", "")


def slug(name: str) -> str:
    """A name as the icon sets write it."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['’]", "", name.lower())).strip("-")


def member(path: Path, name: str):
    """A JSON file of an npm package."""
    with tarfile.open(path) as archive:
        file = archive.extractfile(f"package/{name}")
        assert file is not None
        return json.load(file)


def icons(path: Path, known: dict[str, dict], rng) -> Iterator[tuple[str, dict, str]]:
    """(code point of the subject, row of the index, SVG) of each drawing of an icon set that has a caption."""
    drawn, chars = member(path, "icons.json"), member(path, "chars.json")
    by = {code(point): name for point, name in reversed(chars.items())}
    slugs = {slug(row["annotation"]): point for point, row in known.items()}
    for name in drawn["icons"]:
        if name in slugs:
            by.setdefault(slugs[name], name)
    for point, name in sorted(by.items()):
        subject = SKIN.sub("", point)
        tones = len(SKIN.findall(point))
        if point not in known or name not in drawn["icons"] or tones > 1 or (tones and rng.random() >= TONED):
            continue
        icon, caption = drawn["icons"][name], known[point]["annotation"]
        wide, high = icon.get("width", drawn.get("width", 16)), icon.get("height", drawn.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {wide} {high}"
        links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg {links} width="{wide}" height="{high}" viewBox="{box}">{icon["body"]}</svg>'
        tags = known[subject]["tags"] if subject in known else ""
        yield subject, told(point, caption, [tag.strip() for tag in tags.split(",")]), svg


def told(name: str, caption: str, tags: list[str]) -> dict:
    """A row of the index; half of the wordings are the caption, half have up to three tags behind it."""
    more = [tag for tag in tags if tag and tag.lower() not in caption.lower()][:3]
    return {"file": f"{name}.webp", "caption": caption, "wordings": [caption, ", ".join([caption, *more])]}


def views(svg: str, rng) -> list[Image.Image]:
    """Two views of a drawing on one ground."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256)))).convert("RGBA")
    ground = (255, 255, 255) if rng.random() < WHITE_SHARE else tuple(int(part) for part in rng.integers(0, 256, 3))
    side = SMALL if rng.random() < SMALL_SHARE else SHARP
    found = []
    for _ in range(VIEWS):
        long, turn = SIDE * rng.uniform(0.75, 1.05), rng.uniform(-8, 8)
        size = [max(1, round(length / max(drawn.size) * long)) for length in drawn.size]
        one = drawn.resize((size[0], size[1]), Image.Resampling.LANCZOS).rotate(turn, Image.Resampling.BICUBIC)
        left, top = ((SIDE - length) // 2 + round(rng.uniform(-0.06, 0.06) * SIDE) for length in size)
        view = Image.new("RGB", (SIDE, SIDE), ground)
        view.paste(one, (left, top), one)
        found.append(view.resize((side, side), Image.Resampling.LANCZOS))
    return found


def write(path: Path, drawings: Iterator[tuple[str, dict, str]], rng, shut: re.Pattern[str] | None, held: set[str]):
    """A zip of what can be drawn, less the subjects ``held`` and the captions and tags that ``shut`` finds."""
    rows, lost = [], 0
    with zipfile.ZipFile(path, "w") as archive:
        for subject, row, svg in drawings:
            if subject in held or (shut is not None and shut.search(", ".join(row["wordings"]))):
                continue
            try:
                first, *others = views(svg, rng)
            except (ValueError, OSError) as error:
                lost += 1
                print(f"{path.stem}: {row['file']} cannot be drawn: {str(error)[:80]}")
                continue
            file = io.BytesIO()
            first.save(file, "WEBP", quality=90, save_all=True, append_images=others, duration=500)
            archive.writestr(row["file"], file.getvalue())
            rows.append(row)
        archive.writestr("index.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(json.dumps({"set": path.stem, "drawings": len(rows), "not drawn": lost}), flush=True)


def main() -> None:
    """Write a zip for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of emoji_val.zip")
    parser.add_argument("packages", type=Path, nargs="+", metavar="TGZ", help="openmoji and the icon sets")
    parser.add_argument("--unseen", action="store_true", help="held-out subjects are left out of every set")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    (names,) = [path for path in args.packages if path.name.startswith("openmoji-")]
    known = {code(row["hexcode"]): row for row in member(names, "data/openmoji.json")}
    known = {point: row for point, row in known.items() if row["group"] not in ("flags", "extras-openmoji")}
    known = {point: row for point, row in known.items() if "keycap" not in row["annotation"]}
    with zipfile.ZipFile(args.data / "emoji_val.zip") as archive:
        rows = [json.loads(line) for line in archive.read("index.jsonl").decode().splitlines()]
    held = {row["base"] for row in rows}
    words = [re.escape(row["caption"].partition(":")[0]) for row in rows] + [OTHER_WORDS[one] for one in OTHER_WORDS]
    shut = re.compile(rf"\b(?:{'|'.join(sorted(set(words)))})s?\b", re.IGNORECASE) if args.unseen else None
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.packages:
        if path != names:
            name = re.sub(r"^iconify-json-|-[\d.]+\.tgz$", "", path.name)
            rng = np.random.default_rng(list(name.encode()))
            out = held if args.unseen or name.startswith(ITS_SET) else set()
            write(args.out / f"{name}_train.zip", icons(path, known, rng), rng, shut, out)


if __name__ == "__main__":
    main()
