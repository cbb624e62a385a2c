"""A .glb file of a rig as .fbx, by Blender's Python module; and what Blender finds in the .fbx when it reads it back.

    python -m longtake.motion.rigs.blender take.glb take.fbx 30 found.npz

Runs in a process of its own: bpy holds one scene for a whole process. found.npz: names (B,), matrices (F, B, 4, 4) of
the bones in Blender's world (metres, z up, a person facing -y). Legend: F frames, B bones.
"""

from __future__ import annotations

import sys

import numpy as np


def main(source: str, target: str, fps: float, found: str) -> None:
    """Convert, read back, save what was read."""
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps = max(1, round(fps))
    scene.render.fps_base = scene.render.fps / fps
    # the bones keep the file's axes, so that the rest pose stays the rig's
    bpy.ops.import_scene.gltf(filepath=source, bone_heuristic="BLENDER")
    last = max(action.frame_range[1] for action in bpy.data.actions)
    scene.frame_start, scene.frame_end = 0, round(last)
    bpy.ops.export_scene.fbx(
        filepath=target,
        object_types={"ARMATURE", "MESH"},
        add_leaf_bones=False,
        bake_anim_use_all_actions=False,
        bake_anim_use_nla_strips=False,
        bake_anim_simplify_factor=0.0,
        apply_scale_options="FBX_SCALE_ALL",
        primary_bone_axis="Y",
        secondary_bone_axis="X",
    )
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = max(1, round(fps)), max(1, round(fps)) / fps
    bpy.ops.import_scene.fbx(filepath=target)
    first = min(action.frame_range[0] for action in bpy.data.actions)
    stop = max(action.frame_range[1] for action in bpy.data.actions)
    armatures = [thing for thing in bpy.data.objects if thing.type == "ARMATURE"]
    names = [bone.name for armature in armatures for bone in armature.pose.bones]
    frames = []
    for frame in range(round(first), round(stop) + 1):
        scene.frame_set(frame)
        frames.append([armature.matrix_world @ bone.matrix for armature in armatures for bone in armature.pose.bones])
    np.savez(found, names=np.array(names), matrices=np.array(frames, dtype=np.float64))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
