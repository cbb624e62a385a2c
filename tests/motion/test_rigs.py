"""A motion lands on the skeletons of other programs: names, rest poses, axes, rotations, files that others read."""

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.motion.kinematics import (
    HUMANML,
    axis_angle_to_matrix,
    forward_tree,
    matrix_to_axis_angle,
    quat_inverse,
    quat_multiply,
    quat_rotate,
    quat_to_matrix,
)
from longtake.motion.outputs import MotionOutput
from longtake.motion.rigs.fbx import check_fbx
from longtake.motion.rigs.files import Layout, write_rig_bvh, write_rig_glb, write_vrma
from longtake.motion.rigs.proof import measure, prove
from longtake.motion.rigs.read import read_rig
from longtake.motion.rigs.retarget import resampled, rest_pose, retarget
from longtake.motion.rigs.tables import RIGS, rig_of
from longtake.motion.rigs.takes import _SMPL_OFFSETS, read_take
from longtake.request import Request
from motion_data import STANDING, dance, swaying
from motion_models import Golden
from second_readers import by_bvh, by_pygltflib

FPS = 20.0


def turned(quats: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Degrees between rotations (*, 4)."""
    step = quat_multiply(quat_inverse(quats), to)
    return torch.rad2deg(2 * torch.atan2(step[..., 1:].norm(dim=-1), step[..., 0].abs()))


def standing(rig: str, frames: int = 8) -> torch.Tensor:
    """A person of the golden clip's lengths who stands in a rig's rest pose."""
    from longtake.motion.export.rig import measure as lengths_of

    person = lengths_of(torch.from_numpy(Golden("M7_synth_a").arrays["joints"]).double())
    return rest_pose(person, rig_of(rig), "straight").expand(frames, 22, 3)


# ------------------------------------------------------------------------------------------ tables and rest poses


@pytest.mark.parametrize("name", RIGS)
def test_r1_every_rig_has_each_joint_once_and_axes_that_are_right_handed(name: str) -> None:
    rig = rig_of(name)
    assert len({bone.name for bone in rig.bones}) == len(rig.bones)
    assert sorted(bone.joint for bone in rig.bones if bone.joint and bone.share == 0) == sorted(HUMANML.names)
    for bone, parent in zip(rig.bones, rig.parents, strict=True):
        assert np.allclose(bone.axes.T @ bone.axes, np.eye(3), atol=1e-4) and np.linalg.det(bone.axes) > 0.99, bone
        assert parent < rig.bones.index(bone), "parents stand before children"


def test_r1_names_are_those_of_the_programs() -> None:
    said = {
        "mixamo": ("mixamorig:Hips", "mixamorig:LeftForeArm", "mixamorig:RightToeBase"),
        "ue5": ("root", "lowerarm_l", "ball_r"),
        "unity": ("Hips", "LeftLowerArm", "RightToes"),
        "vrm": ("hips", "leftLowerArm", "rightToes"),
        "smpl": ("Pelvis", "L_Elbow", "R_Foot"),
        "rigify": ("DEF-spine", "DEF-forearm.L", "DEF-toe.R"),
    }
    for name, (first, arm, toe) in said.items():
        rig = rig_of(name)
        assert (rig.bones[0].name, rig.bone_of("left_elbow"), rig.bone_of("right_foot")) == (first, arm, toe)
    with pytest.raises(UserError, match="mixamo, ue5, unity, vrm, smpl, rigify; given 'maya'"):
        rig_of("maya")


def test_r1_ue5_rests_in_an_a_pose_with_x_along_its_bones_and_mixamo_with_y() -> None:
    bones = {bone.name: bone for bone in rig_of("ue5").bones}
    arm, leg = bones["upperarm_l"].axes, bones["thigh_l"].axes
    assert 35 < np.degrees(np.arctan2(-arm[1, 0], arm[0, 0])) < 50, "the arm hangs by 35 to 50 degrees"
    assert leg[1, 0] > 0.98 and bones["thigh_r"].axes[1, 0] < -0.98, "-x runs down the left leg, +x down the right one"
    assert bones["upperarm_r"].axes[0, 0] > 0.6, "-x runs along the right arm"
    assert np.allclose(bones["head"].axes[:, 0], (0, 1, 0), atol=0.02), "the head stands upright"
    bones = {bone.name: bone for bone in rig_of("mixamo").bones}
    assert np.allclose(bones["mixamorig:LeftArm"].axes[:, 1], (1, 0, 0))
    assert np.allclose(bones["mixamorig:RightLeg"].axes[:, 1], (0, -1, 0), atol=0.07)


@pytest.mark.parametrize("name", RIGS)
def test_r2_a_person_in_the_rest_pose_leaves_every_bone_at_rest(name: str) -> None:
    take = retarget(standing(name), FPS, rig_of(name))
    off = turned(take.rest_local().expand_as(take.local), take.local)
    assert float(off.max()) < 0.01
    world, places = take.world()
    assert torch.allclose(places[0], take.rest + (places[0, 0] - take.rest[0]), atol=1e-6)
    assert float(turned(world[0], take.axes).max()) < 0.01


def test_r2_arms_that_hang_in_a_t_pose_rig_are_nearer_to_rest_in_an_a_pose_rig() -> None:
    joints = torch.tensor(STANDING).double().expand(8, 22, 3)
    off = {}
    for name in ("mixamo", "ue5"):
        take = retarget(joints, FPS, rig_of(name))
        angle = turned(take.rest_local().expand_as(take.local), take.local)[0]
        off[name] = float(angle[[bone.joint for bone in take.table.bones].index("left_shoulder")])
    assert off["ue5"] < off["mixamo"] - 30, off


@pytest.mark.parametrize("name", RIGS)
def test_r2_a_twist_of_the_forearm_and_a_turn_of_the_body_arrive(name: str) -> None:
    joints = dance(40)
    take = retarget(joints, FPS, rig_of(name))
    solved = take.pose
    world = take.world()[0]
    parents = solved.rig.parents
    turns: list[torch.Tensor] = []
    for joint, parent in enumerate(parents):
        turns.append(solved.local[:, joint] if parent < 0 else quat_multiply(turns[parent], solved.local[:, joint]))
    for number, bone in enumerate(take.table.bones):
        if bone.joint:
            own = turns[HUMANML.names.index(bone.joint)]
            # what the bone carries turns from frame to frame as the joint does, about its own length too
            steps = quat_multiply(own, quat_inverse(own[:1]).expand_as(own))
            theirs = quat_multiply(world[:, number], quat_inverse(world[:1, number]).expand_as(own))
            assert float(turned(steps, theirs).max()) < 1e-4, bone.name


# ------------------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("name", RIGS)
@pytest.mark.parametrize("unit,up", [("m", "y"), ("cm", "z")])
def test_r3_other_parsers_find_the_joints_within_a_centimetre_and_two_degrees(
    tmp_path, name: str, unit: str, up: str
) -> None:
    for joints in (dance(40), dance(40, seed=3)):
        take = retarget(joints, FPS, rig_of(name))
        glb, bvh = tmp_path / "a.glb", tmp_path / "a.bvh"
        write_rig_glb(glb, [take], Layout(unit, up), overwrite=True)
        write_rig_bvh(bvh, [take], Layout(unit, up), overwrite=True)
        theirs = [
            measure(by_pygltflib(glb), take, "a.glb"),
            measure(by_bvh(bvh, scale=0.01 if unit == "cm" else 1.0, up=up), take, "a.bvh", relative=True),
        ]
        ours = [prove(glb, take), prove(bvh, take, Layout(unit, up))]
        for second, own in zip(theirs, ours, strict=True):
            assert second.position_max == pytest.approx(own.position_max, abs=1e-5), "our reader reads what theirs does"
            assert second.turn_max < 0.05 and second.flips == 0
            assert second.position_max <= 0.01 and second.angle_max <= 2.0, second.text()


def test_r3_a_bvh_has_no_euler_jump_where_a_body_spins_and_arms_pass_the_poles(tmp_path) -> None:
    take = retarget(dance(90, reach=3.0), FPS, rig_of("ue5"))
    write_rig_bvh(tmp_path / "a.bvh", [take], Layout("cm"))
    proof = prove(tmp_path / "a.bvh", take, Layout("cm"))
    assert proof.flips == 0 and proof.euler_jump is not None and proof.euler_jump < 90
    assert proof.largest_step < proof.source_step + 15, "no bone turns faster than the motion asks for"


def test_r3_a_damaged_file_makes_the_proof_fail(tmp_path) -> None:
    """The proof reads the file and not what was meant."""
    take = retarget(dance(30), FPS, rig_of("mixamo"))
    path = tmp_path / "a.glb"
    write_rig_glb(path, [take], Layout())
    good = prove(path, take)
    data = bytearray(path.read_bytes())
    start = len(data) - 30 * 16  # inside a track of rotations or the mesh behind it
    head = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    arm = next(i for i, node in enumerate(head["nodes"]) if node["name"] == "mixamorig:LeftArm")
    channel = next(c for c in head["animations"][0]["channels"] if c["target"]["node"] == arm)
    view = head["accessors"][head["animations"][0]["samplers"][channel["sampler"]]["output"]]["bufferView"]
    start = 28 + struct.unpack_from("<I", data, 12)[0] + head["bufferViews"][view]["byteOffset"]
    struct.pack_into("<4f", data, start + 16 * 7, 0.0, 0.0, 0.0, 1.0)
    path.write_bytes(data)
    bad = prove(path, take)
    assert good.position_max < 0.001 and bad.position_max > 0.1 and bad.turn_max > 20
    with pytest.raises(UserError, match="lacks the bones"):
        measure(by_pygltflib(path), retarget(dance(30), FPS, rig_of("unity")), path.name)


def test_r3_a_vrm_animation_names_its_humanoid_bones_and_moves_only_the_hips(tmp_path) -> None:
    take = retarget(dance(30), FPS, rig_of("vrm"))
    write_vrma(tmp_path / "a.vrma", take)
    from pygltflib import GLTF2

    gltf = GLTF2.load_binary(str(tmp_path / "a.vrma"))
    assert gltf.extensionsUsed == ["VRMC_vrm_animation"]
    said = gltf.extensions["VRMC_vrm_animation"]
    assert said["specVersion"] == "1.0"
    bones = said["humanoid"]["humanBones"]
    required = "hips spine head leftUpperLeg leftLowerLeg leftFoot leftUpperArm leftLowerArm leftHand".split()
    assert set(required) <= set(bones) and len(bones) == 22
    assert all(gltf.nodes[entry["node"]].name == name for name, entry in bones.items())
    moved = {c.target.node for c in gltf.animations[0].channels if c.target.path == "translation"}
    assert moved == {bones["hips"]["node"]}
    proof = measure(by_pygltflib(tmp_path / "a.vrma"), take, "a.vrma")
    assert proof.position_max < 0.001
    with pytest.raises(UserError, match="holds the rig vrm; given smpl"):
        write_vrma(tmp_path / "b.vrma", retarget(dance(30), FPS, rig_of("smpl")))


def test_r3_the_skinned_body_stands_at_rest_where_it_is_bound(tmp_path) -> None:
    """Each inverse bind matrix undoes its bone's place at rest, under the armature's scale and turn too."""
    take = retarget(dance(10), FPS, rig_of("ue5"))
    write_rig_glb(tmp_path / "a.glb", [take], Layout("cm", "z"))
    from pygltflib import GLTF2

    gltf = GLTF2.load_binary(str(tmp_path / "a.glb"))
    gltf.animations[0].channels = gltf.animations[0].channels[:0]
    skin = gltf.skins[0]
    accessor = gltf.accessors[skin.inverseBindMatrices]
    view = gltf.bufferViews[accessor.bufferView]
    flat = np.frombuffer(gltf.binary_blob(), np.float32, accessor.count * 16, view.byteOffset)
    inverse = flat.reshape(-1, 4, 4).transpose(0, 2, 1)
    above = {kid: number for number, node in enumerate(gltf.nodes) for kid in node.children or []}

    def matrix(number: int) -> np.ndarray:
        node = gltf.nodes[number]
        own = np.eye(4)
        x, y, z, w = node.rotation or (0, 0, 0, 1)
        own[:3, :3] = quat_to_matrix(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
        own[:3, :3] *= (node.scale or [1.0])[0]
        own[:3, 3] = node.translation or 0
        return matrix(above[number]) @ own if number in above else own

    for place, joint in enumerate(skin.joints):
        assert np.allclose(matrix(joint) @ inverse[place], np.eye(4), atol=2e-4), gltf.nodes[joint].name


def test_r3_two_people_are_in_one_file(tmp_path) -> None:
    other = dance(20, seed=3) + torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    output = MotionOutput(np.zeros((20, 0)), dance(20).numpy(), ["a"] * 20, FPS, [], HUMANML.chains)
    output.second, output.rig, output.rig_fps = other.numpy(), "mixamo", 30
    for name in ("two.glb", "two.bvh"):
        output.save(tmp_path / name)
        assert [proof["position_max"] < 0.002 for proof in output.info["rig"][name]] == [True, True]
    with pytest.raises(UserError, match=r"\.vrma file holds the rig vrm"):
        output.save(tmp_path / "two.vrma")
    output.rig = None
    with pytest.raises(UserError, match="holds one person"):
        output.save(tmp_path / "two.vrma")


def test_r3_fbx_without_blender_is_refused_by_name_before_anything_is_made(monkeypatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "bpy" else real(name, *more))
    line = {"modality": "motion", "prompt": "walks", "parameters": {"rig": "mixamo", "outputs": [".fbx"]}}
    with pytest.raises(UserError, match="Blender's module bpy, which is not installed"):
        Request.read(line)
    for more, said in (({"rig": "none"}, "needs --rig"), ({"unit": "cm"}, "says metres and y up itself")):
        with pytest.raises(UserError, match=said):
            Request.read({**line, "parameters": {**line["parameters"], **more}})


@pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="needs Blender's module bpy")
@pytest.mark.parametrize("name,fps", [("ue5", 24.0), ("mixamo", None)])
def test_r3_blender_reads_an_fbx_back_as_it_was_meant(tmp_path, name: str, fps: float | None) -> None:
    output = MotionOutput(np.zeros((20, 0)), dance(20).numpy(), ["a"] * 20, FPS, [], HUMANML.chains)
    output.second = (dance(20, seed=3) + torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)).numpy()
    output.rig, output.rig_fps = name, fps
    output.save(tmp_path / "two.fbx")
    for proof in output.info["rig"]["two.fbx"]:
        assert proof["position_max"] < 0.002 and proof["turn_max"] < 0.05 and proof["compared"] >= 4, proof
    check_fbx(tmp_path / "two.fbx")
    (tmp_path / "torn.fbx").write_bytes((tmp_path / "two.fbx").read_bytes()[:-100])
    with pytest.raises(UserError, match="no whole FBX"):
        check_fbx(tmp_path / "torn.fbx")


# ------------------------------------------------------------------------------------------- rates, roots, feet


@pytest.mark.parametrize("new", [24.0, 30.0, 60.0])
def test_r4_another_rate_is_slerp_and_keeps_the_shared_moments(tmp_path, new: float) -> None:
    joints = dance(41)
    take, slow = retarget(joints, FPS, rig_of("mixamo"), new_fps=new), retarget(joints, FPS, rig_of("mixamo"))
    assert len(take.local) == int(40 / FPS * new) + 1
    write_rig_glb(tmp_path / "a.glb", [take], Layout())
    read = by_pygltflib(tmp_path / "a.glb")
    assert np.allclose(np.diff(read.times), 1 / new, atol=1e-6)
    proof = measure(read, take, "a.glb")
    assert proof.compared >= 9 and proof.position_max < 0.001
    # half way between two frames a bone has made half of its turn
    half = resampled(slow.local, FPS, 2 * FPS)[1::2]
    one, two = slow.local[:-1], slow.local[1:]
    assert torch.allclose(turned(one, half), turned(half, two), atol=1e-4)
    assert torch.allclose(2 * turned(one, half), turned(one, two), atol=1e-4)


@pytest.mark.parametrize("name", RIGS)
def test_r4_the_way_over_the_ground_is_kept(tmp_path, name: str) -> None:
    joints = dance(60)
    take = retarget(joints, FPS, rig_of(name))
    write_rig_glb(tmp_path / "a.glb", [take], Layout("cm", "y"))
    hips = by_pygltflib(tmp_path / "a.glb").places[take.table.bone_of("pelvis")]
    assert np.abs(hips - joints[:, 0].numpy()).max() < 1e-4
    if name == "ue5":
        root = by_pygltflib(tmp_path / "a.glb")
        assert np.abs(root.places["root"][:, 1]).max() < 1e-6, "the root stays on the floor"
        assert np.abs(root.places["root"][:, [0, 2]] - hips[:, [0, 2]]).max() < 1e-4
        ahead = root.turns["root"] @ np.array([0.0, -1.0, 0.0])  # its front, z up
        facing = HUMANML.forward_direction(joints).numpy()
        cosine = (ahead * facing / np.linalg.norm(facing, axis=1, keepdims=True)).sum(1)
        assert cosine[10:-10].min() > 0.9, "the root turns with the body"


def test_r4_feet_stay_where_the_source_has_them(tmp_path) -> None:
    joints = dance(60)
    joints[..., 1] -= joints[:, [7, 8, 10, 11], 1].min()
    take = retarget(joints, FPS, rig_of("rigify"), new_fps=60)
    write_rig_bvh(tmp_path / "a.bvh", [take], Layout())
    proof = prove(tmp_path / "a.bvh", take)
    assert proof.lowest_foot == pytest.approx(proof.source_lowest, abs=0.002)
    assert proof.skate == pytest.approx(proof.source_skate, abs=0.02)


# -------------------------------------------------------------------------------------- finished motions of others


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "take.npz", **arrays)
    return folder / "take.npz"


def test_r5_joints_of_any_unit_axis_and_family_are_the_same_take(tmp_path) -> None:
    joints = dance(30).numpy()
    grounded = joints - [0, np.quantile(joints[:, [7, 8, 10, 11], 1].min(1), 0.02), 0]
    more = np.concatenate([joints, joints[:, 20:22]], 1)  # 24 joints: SMPL's hands follow
    z_up = 1000 * np.stack([more[..., 0], -more[..., 2], more[..., 1]], -1)
    cases = {
        "plain": {"joints": joints, "fps": np.array(20)},
        "millimetres, z up, 24": {"positions": z_up, "mocap_framerate": np.array(20.0)},
        "flat": {"joints": joints.reshape(30, -1), "fps": np.array(20)},
        "MDM": {"motion": joints.transpose(1, 2, 0)[None], "fps": np.array(20)},
        "alone": {"whatever": joints.astype(np.float32), "fps": np.array(20)},
    }
    for name, arrays in cases.items():
        output = read_take(saved(tmp_path, **arrays))
        assert np.abs(output.joints - grounded).max() < 2e-5, name
        assert output.fps == 20 and output.skeleton() is HUMANML
    assert "  millimetres became metres" in read_take(saved(tmp_path, **cases["millimetres, z up, 24"])).info["told"]


def test_r5_smpl_parameters_and_humanml_features_are_read() -> None:
    import tempfile

    generator = torch.Generator().manual_seed(2)
    vectors = 0.3 * torch.randn(20, 22, 3, generator=generator, dtype=torch.float64)
    vectors[:, 0] = 0
    way = torch.tensor([[0.0, 1.0, 0.1]], dtype=torch.float64) * torch.arange(20, dtype=torch.float64)[:, None] / 20
    offsets = torch.tensor(_SMPL_OFFSETS, dtype=torch.float64)
    want = forward_tree(HUMANML.parents, axis_angle_to_matrix(vectors), way, offsets)
    folder = Path(tempfile.mkdtemp())
    full = np.concatenate([vectors.flatten(1).numpy(), np.zeros((20, 6))], 1)  # 72 numbers
    output = read_take(saved(folder, poses=full, trans=way.numpy()), fps=30)
    shift = torch.from_numpy(output.joints).double() - want
    assert float(shift[..., [0, 2]].abs().max()) < 1e-5 and float((shift[..., 1] - shift[0, 0, 1]).abs().max()) < 1e-5
    split = read_take(
        saved(folder, global_orient=full[:, :3], body_pose=full[:, 3:66], transl=way.numpy(), fps=np.array(30))
    )
    assert np.abs(split.joints - output.joints).max() < 1e-6
    golden = Golden("M7_synth_a").arrays
    features = next(v for v in golden.values() if v.ndim == 2 and v.shape[1] == 263)
    read = read_take(saved(folder, features=features.astype(np.float32)))
    assert read.fps == 20 and read.joints.shape == (len(features), 22, 3)


@pytest.mark.parametrize("z_up", [False, True])
def test_r5_smpl_rotations_come_back_on_the_rig_smpl_with_their_twists(tmp_path, z_up: bool) -> None:
    """SMPL parameters in, the same out: the rig's zero pose is SMPL's."""
    generator = torch.Generator().manual_seed(4)
    start = 0.5 * torch.randn(1, 22, 3, generator=generator, dtype=torch.float64)
    vectors = start * torch.linspace(0.5, 1.0, 12, dtype=torch.float64)[:, None, None]
    vectors[:, 0] = 0
    turns = axis_angle_to_matrix(vectors)
    written = vectors.clone()
    if z_up:
        written[:, 0] = torch.tensor([torch.pi / 2, 0, 0], dtype=torch.float64)
    path = saved(tmp_path, poses=written.flatten(1).numpy(), trans=np.zeros((12, 3)), fps=np.array(20))
    output = read_take(path)
    assert torch.allclose(output.pose.joints().float(), torch.from_numpy(output.joints), atol=1e-5)
    take = retarget(output.joints, FPS, rig_of("smpl"), given=output.pose)
    numbers = [[bone.joint for bone in take.table.bones].index(name) for name in HUMANML.names]
    off = quat_to_matrix(take.local[:, numbers]).transpose(-1, -2) @ turns
    angle = torch.rad2deg(matrix_to_axis_angle(off).norm(dim=-1))
    assert float(angle.max()) < 0.2, "also heads and hands, whose twist no joint tells"
    write_rig_glb(tmp_path / "a.glb", [take], Layout())
    assert measure(by_pygltflib(tmp_path / "a.glb"), take, "a.glb").position_max < 1e-4


def test_r5_locked_feet_leave_the_rest_of_given_rotations_alone(tmp_path) -> None:
    vectors = torch.zeros(40, 22, 3, dtype=torch.float64)
    vectors[:, 15, 1] = 0.7  # the head looks aside
    vectors[:, [1, 2], 0], vectors[:, [4, 5], 0] = -0.4, 0.8
    way = torch.linspace(0, 0.3, 40, dtype=torch.float64)[:, None] * torch.tensor(
        [[0.0, 0.0, 1.0]], dtype=torch.float64
    )
    output = read_take(saved(tmp_path, poses=vectors.flatten(1).numpy(), trans=way.numpy(), fps=np.array(20)))
    output.lock_feet()
    take = retarget(output.joints, FPS, rig_of("unity"), given=output.pose)
    joints = [bone.joint for bone in take.table.bones]
    head = quat_to_matrix(take.local[:, joints.index("head")])
    assert float(torch.rad2deg(matrix_to_axis_angle(head).norm(dim=-1) - 0.7).abs().max()) < 0.5
    write_rig_glb(tmp_path / "a.glb", [take], Layout())
    assert measure(by_pygltflib(tmp_path / "a.glb"), take, "a.glb").position_max < 0.005


@pytest.mark.parametrize(
    "arrays,said",
    [
        ({"joints": np.zeros((5, 22, 3)), "fps": np.array(20)}, "shins are 0 long"),
        ({"joints": np.full((5, 22, 3), np.nan), "fps": np.array(20)}, "NaN or infinity"),
        ({"joints": np.zeros((2, 22, 3)), "fps": np.array(20)}, "2 frames; a take has 4"),
        ({"joints": np.ones((5, 17, 3))}, "is no motion that can be read"),
        ({"poses": np.zeros((5, 30)), "trans": np.zeros((5, 3))}, "66 or more"),
        ({"poses": np.zeros((5, 66))}, r"trans is \(5, 3\); given None"),
        ({"joints": np.array(STANDING)[None].repeat(5, 0)}, "does not say its frames a second: give --source-fps"),
        ({"joints": np.array(STANDING)[None].repeat(5, 0), "fps": np.array(0.1)}, "1 to 1000"),
        ({"joints": np.array(STANDING)[None].repeat(5, 0)[..., [1, 0, 2]], "fps": np.array(20)}, "heads are above"),
    ],
)
def test_r5_what_is_no_motion_is_refused_by_name(tmp_path, arrays, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_take(saved(tmp_path, **arrays))


def test_r5_pickles_and_torn_files_are_refused(tmp_path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(UserError, match="no whole npz"):
        read_take(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="no whole npz or npy"):
        read_take(tmp_path / "b.npy")
    with pytest.raises(UserError, match="cannot read"):
        read_take(tmp_path / "none.npz")


def test_r5_the_command_exports_locks_and_reports_a_finished_motion(tmp_path, run_cli) -> None:
    joints = swaying(0, 80, 0.0).numpy()
    path = saved(tmp_path, joints=joints, fps=np.array(20))
    done = run_cli(
        "motion", "0s: walks | 2s: walks on", "--from", path, "--rig", "ue5", "--lock-feet", "--fps", "30",
        "--out", tmp_path / "a.glb", "--out", tmp_path / "a.bvh",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("foot lock over 80 frames", "1 boundaries", "a.glb: ue5, 119 frames at 30 fps", "0 flips", "a.bvh"):
        assert words in done.stdout, done.stdout
    read = by_pygltflib(tmp_path / "a.glb")
    assert len(read.times) == 119 and "spine_05" in read.places


def test_r5_settings_of_a_motion_to_be_made_are_refused_for_a_finished_one(tmp_path) -> None:
    path = saved(tmp_path, joints=swaying(0, 20, 0.0).numpy(), fps=np.array(20))
    for parameters, said in (
        ({"fps": 30}, "needs --rig"),
        ({"up": "z"}, "needs --rig"),
        ({"seconds": 3.0}, "seconds is of one to be made"),
        ({"path": "0,0 1,1"}, "path is of one to be made"),
        ({"people": 2}, "stands in the file"),
        ({"rig": "ue5", "outputs": [".vrma"]}, "holds the rig vrm; given ue5"),
        ({"unit": "cm", "outputs": [".vrma"]}, "in metres with y up"),
        ({"rig": "maya"}, "rig must be one of none, mixamo"),
    ):
        with pytest.raises(UserError, match=said):
            Request.read({"modality": "motion", "inputs": {"from": str(path)}, "parameters": parameters})
    with pytest.raises(UserError, match="needs --from"):
        Request.read({"modality": "motion", "prompt": "walks", "parameters": {"source_fps": 30.0}})


def test_r5_a_finished_motion_is_said_in_python_too(tmp_path) -> None:
    path = saved(tmp_path, joints=swaying(0, 20, 0.0).numpy(), fps=np.array(20))
    request = Request.read(
        {"modality": "motion", "inputs": {"from": str(path)}, "parameters": {"rig": "unity", "outputs": [".glb"]}}
    )
    text = request.as_python(str(tmp_path / "out"))
    assert "from_prior" not in text
    exec(compile(text, "said", "exec"), {})
    assert read_rig(tmp_path / "out.glb").places["LeftHand"].shape == (20, 3)


def test_turning_a_vector_by_the_layouts_agrees_with_hand_written_axes() -> None:
    point = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert torch.allclose(Layout("cm", "z").points(point), torch.tensor([[100.0, -300.0, 200.0]], dtype=torch.float64))
    assert torch.allclose(quat_rotate(Layout(up="z").turn, Layout(up="z").points(point)), point)
