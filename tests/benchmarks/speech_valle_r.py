"""VALL-E R's autoregressive part: cached against uncached, merged against unmerged (D1).

    python tests/benchmarks/speech_valle_r.py --preset small      # from the root of the project
    python tests/benchmarks/speech_valle_r.py --preset paper      # 160 M parameters: minutes, and 1 GB of memory

For 10 s of sound: 750 frames of EnCodec, 375 merged ones, 100 phonemes. A step's time is measured at a few lengths,
the median of several tries, and summed over all lengths by straight lines between them. Uncached, a step is the whole
sequence anew. End to end adds the other seven layers, each one pass of the other network over all frames. The load of
the machine stands in the first line: above 2 the ratios scatter.
"""

import argparse
import os
import statistics
import time

import numpy as np
import torch
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import PRESETS, size_of

FRAMES, TEXT = 750, 100


def seconds(function, tries):
    function()
    found = []
    for _ in range(tries):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def summed(places, each, frames):
    """The sum over 0..frames-1 of what is ``each`` at ``places``."""
    return float(np.interp(np.arange(frames), places, each).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="small")
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--points", type=int, default=4, help="lengths at which a step is measured")
    args = parser.parse_args()
    size = size_of(args.preset)
    torch.manual_seed(0)
    ar, nar = AR(size).eval(), NAR(size).eval()
    text = torch.randint(1, 178, (1, TEXT))
    print(f"preset {args.preset}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")

    def cached(frames):
        places = np.linspace(0, frames - 1, args.points).astype(int)
        each = []
        for place in places:
            cache = ar.cache(TEXT + frames + 1)
            carried = torch.zeros(1, int(place) + 1, dtype=torch.int64)
            ar(text, carried, carried, cache=cache)
            filled = cache.longest

            def step(cache=cache, filled=filled, place=int(place)):
                cache.longest = filled
                code = torch.zeros(1, dtype=torch.int64)
                ar.step(cache, text, code, code, torch.tensor([place]))

            each.append(seconds(step, args.tries))
        return summed(places, each, frames)

    def uncached(frames):
        places = np.linspace(0, frames - 1, args.points).astype(int)
        each = []
        for place in places:
            rows = torch.zeros(1, int(place) + 1, dtype=torch.int64)
            each.append(seconds(lambda rows=rows: ar(text, rows, rows), max(1, args.tries // 2)))
        return summed(places, each, frames)

    def others():
        codes, pointer = torch.zeros(1, 8, FRAMES, dtype=torch.int64), torch.zeros(1, FRAMES, dtype=torch.int64)
        stage = torch.zeros(1, dtype=torch.int64)
        return 7 * seconds(lambda: nar(text, codes, pointer, stage, stage), max(1, args.tries // 2))

    with torch.inference_mode():
        merged, full = cached(FRAMES // 2), cached(FRAMES)
        merged_anew, full_anew = uncached(FRAMES // 2), uncached(FRAMES)
        rest = others()
    print(f"| 10 s of sound | merged, {FRAMES // 2} steps | unmerged, {FRAMES} steps | ratio |")
    print("|---|---|---|---|")
    rows = {
        "AR, cached, s": (merged, full),
        "AR, uncached, s": (merged_anew, full_anew),
        f"cached, with the other layers ({rest:.2f} s), s": (merged + rest, full + rest),
        "merged and cached, unmerged and uncached, s": (merged, full_anew),
    }
    for name, (one, two) in rows.items():
        print(f"| {name} | {one:.2f} | {two:.2f} | {two / one:.2f} |")
    print(f"| uncached over cached | {merged_anew / merged:.1f} | {full_anew / full:.1f} | |")


if __name__ == "__main__":
    main()
