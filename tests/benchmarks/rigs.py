"""Every rig on real clips and made motions, written as .glb and .bvh and read by the parsers of others.

    python tests/benchmarks/rigs.py --data ../shared/data/motion --made made/*.npz

Prints a line a rig: the worst and the mean of all files. A file passes with joints within 1 cm, directions within 2
degrees and no flip. --picture FILE.png draws the first made motion on four rigs instead, from files read back.
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
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.picture is not None:
        draw(read_take(args.made[0]).joints, args.picture)
        return
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


def draw(joints: np.ndarray, picture: Path) -> None:
    """One motion on four rigs: at rest with each bone's axes, then at five moments."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(4, 1, figsize=(9.6, 9.2), dpi=84)
    with tempfile.TemporaryDirectory() as folder:
        for axes, name in zip(rows, ("mixamo", "ue5", "vrm", "rigify"), strict=True):
            take = retarget(joints, 20.0, RIGS[name], new_fps=30)
            path = Path(folder) / "a.glb"
            write_rig_glb(path, [take], Layout("cm" if name == "ue5" else "m"), overwrite=True)
            still, moving = by_pygltflib(path, rest=True), by_pygltflib(path)
            _figure(axes, still, 0, -1.6, take.table, 0.35, triads=True)
            for number, frame in enumerate(np.linspace(0, len(moving.times) - 1, 6).round().astype(int)):
                _figure(axes, moving, frame, 0.15 + 1.15 * number, take.table, 0.85)
                label = f"{moving.times[frame]:.1f} s"
                axes.text(0.15 + 1.15 * number, -0.16, label, ha="center", fontsize=7, color="#667")
            bones = [bone.name for bone in take.table.bones]
            axes.text(-3.35, 1.62, f"{name}, {len(bones)} bones", fontsize=10, weight="bold")
            for line, joint in enumerate(("pelvis", "spine1", "left_collar", "left_elbow", "left_knee", "right_foot")):
                axes.text(-3.35, 1.38 - 0.21 * line, take.table.bone_of(joint), fontsize=8, color="#445")
            axes.text(-1.6, -0.16, "at rest", ha="center", fontsize=7, color="#667")
            axes.plot([-2.4, 6.4], [0, 0], color="#ccd", linewidth=1)
            axes.set_xlim(-3.4, 6.5), axes.set_ylim(-0.2, 1.85)
            axes.set_aspect("equal"), axes.axis("off")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, hspace=0.02)
    figure.savefig(picture)


def _figure(axes, read, frame: int, x: float, table, width: float, *, triads: bool = False) -> None:
    """One pose, seen from the front at rest, else from its left."""
    angle = 0.0 if triads else 0.7
    look = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0]])
    root = read.places[table.bone_of("pelvis")][frame] * [1, 0, 1]
    seen = {bone.name: look @ (read.places[bone.name][frame] - root) + [x, 0] for bone in table.bones}
    for bone in table.bones:
        if bone.parent and bone.parent != "root":
            side = (
                "#1f5fbf" if bone.joint.startswith("left") else "#d9641e" if bone.joint.startswith("right") else "#444"
            )
            a, b = seen[bone.parent], seen[bone.name]
            axes.plot([a[0], b[0]], [a[1], b[1]], color=side, linewidth=2.6 * width + 0.8, solid_capstyle="round")
        if triads and bone.share == 0:
            for axis, colour in enumerate(("#d00", "#0a0", "#00d")):
                tip = seen[bone.name] + look @ (0.07 * read.turns[bone.name][frame][:, axis])
                axes.plot(*zip(seen[bone.name], tip, strict=True), color=colour, linewidth=0.9)


if __name__ == "__main__":
    main()
