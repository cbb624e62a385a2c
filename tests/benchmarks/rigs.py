"""Every rig on real clips and made motions, written as .glb and .bvh and read by the parsers of others.

    python tests/benchmarks/rigs.py --data ../shared/data/motion --made made/*.npz

Prints a line a rig: the worst and the mean of all files. A file passes with joints within 1 cm, directions within 2
degrees and no flip.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from longtake.motion.data import load_motions  # noqa: E402
from longtake.motion.rigs.files import Layout, write_rig_bvh, write_rig_glb  # noqa: E402
from longtake.motion.rigs.proof import Proof, measure  # noqa: E402
from longtake.motion.rigs.retarget import retarget  # noqa: E402
from longtake.motion.rigs.tables import RIGS  # noqa: E402
from longtake.motion.rigs.takes import read_take  # noqa: E402
from second_readers import by_bvh, by_pygltflib  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--made", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    clips = load_motions(args.data, "val")
    real = [np.asarray(clips[round(place)].joints) for place in np.linspace(0, len(clips) - 1, args.clips)]
    made = [read_take(path).joints for path in args.made]
    print(f"{len(real)} of {len(clips)} held-out clips, {len(made)} made motions; each as .glb and .bvh")
    print("| rig | source | position, mean cm | largest cm | direction, mean deg | largest deg | flips | passed |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rig in RIGS.values():
            for kind, takes in (("real", real), ("made", made)):
                proofs: list[Proof] = []
                for joints in takes:
                    take = retarget(joints, 20.0, rig)
                    path = Path(folder) / "a.glb"
                    write_rig_glb(path, [take], Layout(), overwrite=True)
                    proofs.append(measure(by_pygltflib(path), take, path.name))
                    path = path.with_suffix(".bvh")
                    write_rig_bvh(path, [take], Layout(), overwrite=True)
                    proofs.append(measure(by_bvh(path), take, path.name, relative=True))
                if not proofs:
                    continue
                passed = [p.position_max <= 0.01 and p.angle_max <= 2.0 and not p.flips for p in proofs]
                off, angle = (np.mean([getattr(p, name) for p in proofs]) for name in ("position_mean", "angle_mean"))
                worst, wide = (max(getattr(p, name) for p in proofs) for name in ("position_max", "angle_max"))
                print(
                    f"| {rig.name} | {len(takes)} {kind} | {100 * off:.3f} | {100 * worst:.2f} | {angle:.3f} "
                    f"| {wide:.2f} | {sum(p.flips for p in proofs)} | {sum(passed)} of {len(passed)} |"
                )


if __name__ == "__main__":
    main()
