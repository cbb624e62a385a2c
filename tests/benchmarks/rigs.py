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
    """One motion on four rigs: at rest with each bone's axes, then a stride, every quarter of a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(4, 1, figsize=(10, 8.6), dpi=90)
    with tempfile.TemporaryDirectory() as folder:
        for axes, name in zip(rows, ("mixamo", "ue5", "vrm", "rigify"), strict=True):
            take = retarget(joints, 20.0, RIGS[name], new_fps=60)
            path = Path(folder) / "a.glb"
            write_rig_glb(path, [take], Layout("cm" if name == "ue5" else "m"), overwrite=True)
            still, moving = by_pygltflib(path, rest=True), by_pygltflib(path)
            axes.axhspan(-0.3, 0, color="#eef0f4")
            _body(axes, still, 0, -1.2, take.table, 0.0)
            _axes(axes, still, -1.2, take.table)
            for number in range(8):
                frame = 120 + 15 * number
                _body(axes, moving, frame, 0.5 + 0.8 * number, take.table, 1.0)
                label = f"{moving.times[frame]:.2f} s"
                axes.text(0.5 + 0.8 * number, -0.2, label, ha="center", fontsize=8, color="#556")
            bones = [bone.name for bone in take.table.bones]
            axes.text(-3.55, 1.62, f"{name}, {len(bones)} bones", fontsize=11, weight="bold")
            for line, joint in enumerate(("pelvis", "spine1", "left_collar", "left_elbow", "left_knee", "right_foot")):
                axes.text(-3.55, 1.38 - 0.19 * line, take.table.bone_of(joint), fontsize=8.5, color="#445")
            axes.text(-1.2, -0.2, "at rest", ha="center", fontsize=8, color="#556")
            axes.set_xlim(-3.6, 6.5), axes.set_ylim(-0.3, 1.85)
            axes.set_aspect("equal"), axes.axis("off")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.995, hspace=0.03)
    figure.savefig(picture)


# joint: half the thickness of what ends in it, metres
_THICK = {
    "knee": 0.075, "ankle": 0.05, "foot": 0.035, "elbow": 0.042, "wrist": 0.032, "shoulder": 0.05, "collar": 0.06,
    "hip": 0.08, "spine1": 0.1, "spine2": 0.1, "spine3": 0.1, "neck": 0.06, "head": 0.05,
}  # fmt: skip


def _look(angle: float) -> np.ndarray:
    """(3, 3): to the right, up, towards whoever looks from so many radians to the person's left."""
    return np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])


def _body(axes, read, frame: int, x: float, table, angle: float) -> None:
    """One pose: what is farther away is drawn first and paler."""
    from matplotlib.patches import Circle

    root = read.places[table.bone_of("pelvis")][frame] * [1, 0, 1]
    seen = {bone.name: _look(angle) @ (read.places[bone.name][frame] - root) for bone in table.bones}
    parts = []
    for bone in table.bones:
        if bone.parent and bone.parent != "root":
            a, b = seen[bone.parent], seen[bone.name]
            kind = bone.joint.split("_")[-1] if bone.joint else "spine1"
            parts.append((0.5 * (a[2] + b[2]), a, b, bone.joint, _THICK.get(kind, 0.05)))
    for depth, a, b, joint, thick in sorted(parts, key=lambda part: part[0]):
        side = (0.12, 0.37, 0.75) if joint.startswith("left") else (0.85, 0.39, 0.12)
        colour = np.array(side if joint.startswith(("left", "right")) else (0.3, 0.32, 0.36))
        colour = colour + (1 - colour) * float(np.clip(0.3 - 1.4 * depth, 0.0, 0.5))
        axes.plot(
            [a[0] + x, b[0] + x],
            [a[1], b[1]],
            color=colour,
            linewidth=2 * thick * 62,
            solid_capstyle="round",
            alpha=1.0,
        )
    top, neck = seen[table.bone_of("head")], seen[table.bone_of("neck")]
    up = (top - neck) / np.linalg.norm(top - neck)
    axes.add_patch(Circle((top[0] + x + 0.07 * up[0], top[1] + 0.07 * up[1]), 0.1, color="#4d525c", zorder=3))


def _axes(axes, read, x: float, table) -> None:
    """Each bone's own axes at rest: x red, y green, z blue."""
    root = read.places[table.bone_of("pelvis")][0] * [1, 0, 1]
    for bone in table.bones:
        if bone.share == 0 and bone.parent:
            at = read.places[bone.name][0] - root
            for axis, colour in enumerate(("#e00", "#0b0", "#22f")):
                tip = at + 0.09 * read.turns[bone.name][0][:, axis]
                axes.plot([at[0] + x, tip[0] + x], [at[1], tip[1]], color=colour, linewidth=1.1, zorder=4)


if __name__ == "__main__":
    main()
