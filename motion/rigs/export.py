"""A result on a rig: the takes of its people, the file, and the proof, which goes into its ``info``.

    write_on_rig(output, Path("take.glb"))          # output.rig == "mixamo"
    output.info["rig"]["take.glb"]                  # figures of the first person's proof

`longtake motion` prints the proofs with the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.motion.rigs.fbx import write_fbx
from longtake.motion.rigs.files import Layout, write_rig_bvh, write_rig_glb, write_vrma
from longtake.motion.rigs.proof import Proof, measure, prove
from longtake.motion.rigs.retarget import RigTake, looks_off, retarget
from longtake.motion.rigs.tables import rig_of

if TYPE_CHECKING:
    from longtake.motion.outputs import MotionOutput

VRMA_RIG = "vrm"


def takes_of(output: MotionOutput, rig: str | None = None) -> list[RigTake]:
    """Each person on the output's rig, or on ``rig``. Raises UserError without a rig or the 22 joints."""
    name = rig or output.rig
    if name is None:
        raise UserError("this file needs a rig: --rig, or output.rig in Python")
    people = output.standard()
    own = [(output.pose, output.looks), (None, ())]
    return [
        retarget(joints, output.fps, rig_of(name), new_fps=output.rig_fps, given=pose, looks=looks)
        for joints, (pose, looks) in zip(people, own, strict=False)
    ]


def write_on_rig(output: MotionOutput, path: Path) -> list[Proof]:
    """Write .glb, .bvh, .vrma or .fbx and prove it; each person's proof. Raises UserError."""
    suffix, layout = path.suffix.lower(), Layout(output.unit, output.up)
    if suffix == ".vrma":
        if output.rig not in (None, VRMA_RIG):
            raise UserError(f"a .vrma file holds the rig {VRMA_RIG}; given {output.rig}")
        if layout != Layout():
            raise UserError(f"a .vrma file is in metres with y up; given {layout.unit} and {layout.up} up")
        takes = takes_of(output, VRMA_RIG)
        if len(takes) > 1:
            raise UserError("a .vrma file holds one person: write two people as .glb or .bvh")
        write_vrma(path, takes[0], captions=output.captions, overwrite=True)
    elif suffix == ".bvh":
        takes = takes_of(output)
        write_rig_bvh(path, takes, layout, overwrite=True)
    elif suffix == ".glb":
        takes = takes_of(output)
        write_rig_glb(path, takes, layout, captions=output.captions, overwrite=True)
    elif suffix == ".fbx":
        if layout != Layout():
            raise UserError(f"a .fbx file says metres and y up itself; given {layout.unit} and {layout.up} up")
        takes = takes_of(output)
        found = write_fbx(path, takes, captions=output.captions, overwrite=True)
    else:
        raise UserError(f"a rig is written as .glb, .bvh, .fbx or .vrma; given {path.name}")
    if suffix == ".fbx":
        proofs = [measure(found, take, path.name, person=number) for number, take in enumerate(takes)]
    else:
        proofs = [prove(path, take, layout, person=number) for number, take in enumerate(takes)]
    told = output.info.setdefault("told", [])
    note = takes[0].table.note
    for proof in proofs:
        told.append(proof.text())
    if note and note not in "".join(told):
        told.append(f"  {takes[0].table.name}: {note}")
    if takes[0].looks:
        off = [round(angle, 1) for angle in looks_off(takes[0])]
        output.info["looks_off_deg"] = off
        told.append(f"  the head looks past its places by {max(off):.1f} degrees at most")
    output.info.setdefault("rig", {})[path.name] = [proof.to_dict() for proof in proofs]
    return proofs
