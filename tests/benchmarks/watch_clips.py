"""Captions asked of many clips at once, by one tower or by several: for each caption, whether its clip is first and
among the first three of all (a clip counts by its best segment), as the index of `longtake watch` sees them.

    python tests/benchmarks/watch_clips.py DATA --others 400 --prior words-small runs/words/prior

The clips are the held-out ones of DATA (shared/data/video) and so many others; pictures are looked at once, and of the
small tower's priors only the head and what is told beside it differ. A line for each prior.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

FPS, LENGTH = 12, 36  # pictures of a clip of three seconds
RATE, LONGEST = 2.0, 3.0  # as the command's


class Several:
    """Towers of one picture net as one: a segment's vector is all of theirs, one behind the other."""

    def __init__(self, towers) -> None:
        self.towers, self.size = towers, towers[0].size
        self.width = sum(tower.width for tower in towers)

    def look(self, frames):
        return self.towers[0].look(frames)

    def segment(self, features):
        return torch.cat([tower.segment(features) for tower in self.towers])


def clips_of(data: Path, others: int, rng) -> list[tuple[str, str, np.ndarray]]:
    """(zip, caption, pictures) of the held-out clips and of so many others."""
    from longtake.video.data import _open, read_clip
    from watch_hours import listed

    held, rest = listed(data)
    found = []
    for path, row in [*held, *(rest[place] for place in rng.permutation(len(rest))[:others])]:
        with _open(path) as archive:
            frames = read_clip(archive.read(row["file"]))
            found.append((path.stem, row["caption"], frames[np.arange(LENGTH) % len(frames)]))
    return found


def main() -> None:
    """Look, ask, and print a line a prior."""
    from longtake.video.watch.index import ClipIndex
    from longtake.video.watch.tower import tower_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--others", type=int, default=400)
    parser.add_argument("--prior", nargs="+", default=["words-small"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    clips = clips_of(args.data, args.others, np.random.default_rng(args.seed))
    tower = Several([tower_of(prior) for prior in args.prior])
    found = [ClipIndex.of_frames(frames, FPS, tower, rate=RATE, longest=LONGEST).vectors for _, _, frames in clips]
    said = [caption for _, caption, _ in clips]
    first = 0
    for prior, one in zip(args.prior, tower.towers, strict=True):
        row: dict[str, object] = {"prior": prior, "clips": len(clips)}
        own = [vectors[:, first : first + one.width] for vectors in found]
        first += one.width
        for corpus in sorted({corpus for corpus, _, _ in clips}):
            ranks = []
            for caption in sorted({caption for name, caption, _ in clips if name == corpus}):
                asked = one.ask(caption)
                scores = torch.stack([(vectors @ asked).amax() for vectors in own])
                mine = torch.tensor([text == caption for text in said])
                ranks.append(int((scores > scores[mine].amax()).sum()))
            told = {f"first {most}": round(sum(rank < most for rank in ranks) / len(ranks), 2) for most in (1, 3)}
            row[corpus] = {"captions": len(ranks), **told}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
