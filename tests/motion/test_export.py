"""Files that other programs open hold the motion: rotations, hierarchy, skins, numbers, both people."""

import csv
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.motion.export.bvh import USUAL_ORDER, euler, read_bvh, write_bvh
from longtake.motion.export.glb import write_glb
from longtake.motion.export.rig import solve
from longtake.motion.export.tables import write_amass, write_csv
from longtake.motion.kinematics import (
    HUMANML,
    axis_angle_to_matrix,
    forward_tree,
    quat_inverse,
    quat_multiply,
    quat_to_matrix,
)
from longtake.motion.outputs import FILES, MotionOutput, kind_of
from motion_data import dance, swaying

FPS = 20.0


def turn_of(local: torch.Tensor) -> torch.Tensor:
    """Degrees (F-1, J) between rotations that follow each other."""
    step = quat_multiply(quat_inverse(local[:-1]), local[1:])
    return torch.rad2deg(2 * torch.atan2(step[..., 1:].norm(dim=-1), step[..., 0].abs()))


@pytest.mark.parametrize("unit,scale", [("m", 1.0), ("cm", 100.0)])
def test_e1_bvh_comes_back_within_a_millimetre(tmp_path, unit: str, scale: float) -> None:
    joints = dance()
    pose = write_bvh(tmp_path / "a.bvh", [joints], FPS, unit=unit)[0]
    read = read_bvh(tmp_path / "a.bvh")
    assert set(read.names) == set(HUMANML.names) and read.frame_time == pytest.approx(1 / FPS)
    back = read.person(0, pose.rig) / scale
    assert float((back - pose.joints()).norm(dim=-1).max()) <= 1e-4
    assert float((back - joints).norm(dim=-1).max()) <= 1e-3
    parents = {name: read.names[parent] for name, parent in zip(read.names, read.parents, strict=True) if parent >= 0}
    assert parents["left_knee"] == "left_hip" and parents["right_collar"] == "spine3" and parents["head"] == "neck"


def test_e1_bones_of_uneven_length_come_back_on_the_median_skeleton(tmp_path) -> None:
    raw = dance()
    raw = raw + 0.002 * torch.randn(raw.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pose = write_bvh(tmp_path / "a.bvh", [raw], FPS)[0]
    back = read_bvh(tmp_path / "a.bvh").person(0, pose.rig)
    assert float((back - pose.joints()).norm(dim=-1).max()) <= 1e-3
    assert float((back - raw).norm(dim=-1).max()) <= 0.02, "errors do not add up towards hands and feet"
    lengths = HUMANML.bones(back).norm(dim=-1)
    assert float((lengths - lengths[:1]).abs().max()) <= 1e-5
    median = HUMANML.bones(raw).norm(dim=-1).median(0).values
    assert float((lengths[0] - median).abs().max()) <= 1e-3


def test_e1_rotations_are_continuous() -> None:
    for seed in range(4):
        joints = dance(160, seed, reach=2.0)
        pose = solve(joints)
        assert float((pose.joints() - joints).norm(dim=-1).max()) <= 1e-6
        assert float(turn_of(pose.local).max()) <= 40.0
        assert float((pose.local[1:] * pose.local[:-1]).sum(-1).min()) > 0, "no change of sign"
        assert float((pose.local.norm(dim=-1) - 1).abs().max()) <= 1e-12


def test_a_straight_arm_that_passes_behind_the_back_does_not_spin() -> None:
    """Opposite to the T-pose the shortest turn of a bone has no axis; the twist must not jump there."""
    joints = dance(1).expand(120, 22, 3).clone()
    angle = torch.linspace(0, 2 * torch.pi, 120, dtype=torch.float64)
    way = torch.stack([angle.cos(), 0.02 * torch.sin(2 * angle), angle.sin()], -1)
    for place, name in enumerate(("left_elbow", "left_wrist"), 1):
        joints[:, HUMANML.names.index(name)] = joints[:, HUMANML.names.index("left_shoulder")] + 0.25 * place * way
    assert float(turn_of(solve(joints).local).max()) <= 45.0


def test_euler_angles_continue_and_avoid_the_pole() -> None:
    angle = np.linspace(0, 4 * np.pi, 200)
    half = angle / 2
    near_x = np.stack([np.cos(half), 0.9998 * np.sin(half), 0.0141 * np.sin(half), 0.0141 * np.sin(half)], 1)
    assert np.abs(np.diff(euler(near_x, USUAL_ORDER)[0], axis=0)).max() > 30, "it passes close by the pole"
    angles, order = euler(near_x)
    assert np.abs(np.diff(angles, axis=0)).max() <= 30 and order != USUAL_ORDER
    angles, order = euler(near_x[:20])
    assert order == USUAL_ORDER
    about_y = np.stack([np.cos(half), 0 * half, np.sin(half), 0 * half], 1)
    angles, order = euler(about_y)
    assert order == USUAL_ORDER and angles[-1, 2] == pytest.approx(720, abs=1e-6)


def test_two_people_share_a_bvh_file(tmp_path) -> None:
    a, b = dance(), dance(seed=1) + torch.tensor([1.0, 0.0, 0.0])
    poses = write_bvh(tmp_path / "two.bvh", [a, b], FPS)
    read = read_bvh(tmp_path / "two.bvh")
    for number, joints in enumerate((a, b)):
        assert float((read.person(number, poses[number].rig) - joints).norm(dim=-1).max()) <= 1e-3
    assert len(set(read.names)) == 44 and read.parents.count(-1) == 2


def read_glb(path) -> tuple[dict, list[np.ndarray]]:
    """The document and its accessors' values, checked against the container's rules."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary_size % 4 == 0 and 28 + size + binary_size == len(data)
    binary = data[28 + size :]
    assert document["buffers"] == [{"byteLength": len(binary)}]
    kinds = {5126: np.float32, 5123: np.uint16, 5121: np.uint8}
    widths = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}
    values = []
    for accessor in document["accessors"]:
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)
        count, kind = accessor["count"] * widths[accessor["type"]], kinds[accessor["componentType"]]
        part = np.frombuffer(binary, kind, count, view["byteOffset"]).reshape(accessor["count"], -1)
        assert part.nbytes == view["byteLength"]
        if "min" in accessor:
            assert part.min(0).tolist() == accessor["min"] and part.max(0).tolist() == accessor["max"]
        values.append(part)
    return document, values


def test_e1_glb_is_sound_and_its_skins_follow_both_people(tmp_path) -> None:
    people = [dance(60), dance(60, seed=1)]
    write_glb(tmp_path / "two.glb", people, FPS, captions=["walks"] * 30 + ["wäves"] * 30)
    document, values = read_glb(tmp_path / "two.glb")
    (animation,) = document["animations"]
    runs = [{"second": 0.0, "text": "walks"}, {"second": 1.5, "text": "wäves"}]
    assert animation["extras"]["captions"] == runs
    tracks = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        times, track = values[sampler["input"]][:, 0], values[sampler["output"]]
        assert (np.diff(times) > 0).all() and times[0] == 0 and np.allclose(times, np.arange(60) / FPS, atol=1e-6)
        assert "min" in document["accessors"][sampler["input"]] and len(track) == 60
        if channel["target"]["path"] == "rotation":
            assert np.abs(np.linalg.norm(track, axis=1) - 1).max() < 1e-6
            assert (track[1:] * track[:-1]).sum(1).min() > 0
        tracks[channel["target"]["node"], channel["target"]["path"]] = track
    assert len(document["skins"]) == len(document["meshes"]) == 2
    for number, (skin, joints) in enumerate(zip(document["skins"], people, strict=True)):
        nodes = skin["joints"]
        assert [document["nodes"][node]["name"].removeprefix("person2_") for node in nodes] == list(HUMANML.names)
        offsets = torch.tensor([document["nodes"][node]["translation"] for node in nodes]).double()
        local = torch.from_numpy(np.stack([tracks[node, "rotation"] for node in nodes], 1)[..., [3, 0, 1, 2]].copy())
        root = torch.from_numpy(tracks[nodes[0], "translation"].copy()).double()
        parents = {kid: nodes.index(node) for node in nodes for kid in document["nodes"][node].get("children", [])}
        assert tuple(parents.get(node, -1) for node in nodes) == HUMANML.parents
        matrix = quat_to_matrix(local.double())
        moved = forward_tree(HUMANML.parents, matrix, root, offsets)
        assert float((moved - joints).norm(dim=-1).max()) <= 1e-3
        # what a viewer does to the mesh: joint matrix times inverse bind matrix
        inverse_bind = values[skin["inverseBindMatrices"]].reshape(-1, 4, 4).transpose(0, 2, 1)
        rest = forward_tree(HUMANML.parents, torch.eye(3, dtype=torch.float64).expand(22, 3, 3), root[0] * 0, offsets)
        assert np.allclose(inverse_bind[:, :3, 3], -rest.numpy(), atol=1e-6)
        assert np.allclose(inverse_bind[:, :3, :3], np.eye(3)) and (inverse_bind[:, 3] == [0, 0, 0, 1]).all()
        for primitive in document["meshes"][number]["primitives"]:
            points, owner, weights, normals = (
                values[primitive["attributes"][name]] for name in ("POSITION", "JOINTS_0", "WEIGHTS_0", "NORMAL")
            )
            indices = values[primitive["indices"]][:, 0]
            assert indices.max() < len(points) and len(indices) % 3 == 0 and owner.max() < 22
            assert np.abs(weights.sum(1) - 1).max() < 1e-6 and np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-5
            corner = points[indices].reshape(-1, 3, 3)
            facing = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
            outward = (facing * normals[indices].reshape(-1, 3, 3).mean(1)).sum(1)
            assert (outward > 0).mean() == 1.0, "every triangle has an area and faces outwards"


def test_amass_holds_the_motion_with_z_up(tmp_path) -> None:
    joints = dance(40)
    write_amass(tmp_path / "a.amass.npz", [joints, dance(40, seed=1)], FPS)
    with np.load(tmp_path / "a.amass.npz", allow_pickle=False) as file:
        assert file["poses"].shape == file["poses_2"].shape == (40, 66) and float(file["mocap_framerate"]) == FPS
        assert "No SMPL body was fitted" in str(file["note"])
        matrix = axis_angle_to_matrix(torch.from_numpy(file["poses"]).double().unflatten(1, (22, 3)))
        trans, offsets = torch.from_numpy(file["trans"]).double(), torch.from_numpy(file["rest_offsets"]).double()
    moved = forward_tree(HUMANML.parents, matrix, trans, offsets)
    assert float((torch.stack([moved[..., 0], moved[..., 2], -moved[..., 1]], -1) - joints).norm(dim=-1).max()) <= 1e-3


def test_csv_has_a_row_a_frame(tmp_path) -> None:
    joints = dance(5).numpy()
    write_csv(tmp_path / "a.csv", [joints], FPS, HUMANML.names, captions=['says "hi", waves'] * 5)
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert len(rows) == 5 and rows[2]["second"] == "0.1000" and rows[0]["caption"] == 'says "hi", waves'
    assert float(rows[3]["left_wrist_y"]) == pytest.approx(joints[3, 20, 1], abs=1e-6)


def test_what_cannot_be_exported_is_refused(tmp_path) -> None:
    joints = dance(4)
    with pytest.raises(UserError, match="22"):
        write_bvh(tmp_path / "a.bvh", [joints[:, :21]], FPS)
    with pytest.raises(UserError, match="NaN"):
        write_glb(tmp_path / "a.glb", [joints * torch.nan], FPS)
    with pytest.raises(UserError, match="unit"):
        write_bvh(tmp_path / "a.bvh", [joints], FPS, unit="inch")
    with pytest.raises(UserError, match="frames"):
        write_bvh(tmp_path / "a.bvh", [joints, joints[:2]], FPS)
    (tmp_path / "bad.bvh").write_text("HIERARCHY ROOT a { OFFSET 0 0 0 CHANNELS 3 Xrotation Yrotation")
    with pytest.raises(UserError, match="not a readable BVH"):
        read_bvh(tmp_path / "bad.bvh")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.bvh"]


# ------------------------------------------------------------------------------------------------------ kinds of files


def some_output(frames: int = 12) -> MotionOutput:
    joints = swaying(0, frames, 0.0).numpy().astype(np.float32)
    features = np.zeros((frames, 263), np.float32)
    return MotionOutput(features, joints, ["walks"] * frames, 20.0, [], HUMANML.chains)


@pytest.mark.parametrize("suffix", [suffix for suffix in FILES if suffix != ".fbx"])  # needs bpy: test_rigs.py
def test_every_kind_of_file_is_whole_as_written_and_not_when_it_is_cut(suffix: str, tmp_path: Path) -> None:
    path = some_output().save(tmp_path / f"take{suffix}")
    kind = kind_of(path)
    kind.whole(path)
    data = path.read_bytes()
    for damaged in (b"", b"garbage", data[: len(data) // 2], data[: len(data) - 20]):
        path.write_bytes(damaged)
        with pytest.raises((UserError, OSError)):
            kind.whole(path)
    path.unlink()
    with pytest.raises((UserError, OSError)):
        kind.whole(path)
    assert kind_of(Path("A.AMASS.NPZ")) is FILES[".amass.npz"] and kind_of(Path("a.npz")) is FILES[".npz"]
    with pytest.raises(UserError, match="no file of motion"):
        kind_of(Path("a.txt"))


# ------------------------------------------------------------------------------------------------------ locked angles


def turns(order: str, degrees: np.ndarray) -> np.ndarray:
    """(F, 4) quaternions of Tait-Bryan angles (F, 3)."""
    quats = torch.zeros(len(degrees), 4, dtype=torch.float64)
    quats[:, 0] = 1.0
    for axis, angle in zip(order, torch.deg2rad(torch.from_numpy(degrees)).unbind(1), strict=True):
        turn = torch.zeros_like(quats)
        turn[:, 0], turn[:, 1 + "XYZ".index(axis)] = (angle / 2).cos(), (angle / 2).sin()
        quats = quat_multiply(quats, turn)
    return quats.numpy()


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """Largest angle between rotations, degrees; linear in small ones."""
    gap = quat_to_matrix(torch.from_numpy(one)) - quat_to_matrix(torch.from_numpy(two))
    return float(torch.rad2deg(gap.abs().max()))


@pytest.mark.parametrize("order", ["ZXY", "ZYX", "XYZ", "XZY", "YXZ", "YZX"])
@pytest.mark.parametrize("quarter", [90.0, -90.0])
def test_b6_angles_at_exactly_a_quarter_turn_are_the_rotation(order: str, quarter: float) -> None:
    middle = np.array([0.9 * quarter] + [quarter] * 5 + [quarter + 1e-7, quarter - 1e-9, quarter])
    frames = np.stack([np.linspace(40.0, 60.0, 9), middle, np.linspace(25.0, -25.0, 9)], 1)
    given = turns(order, frames)
    angles, _ = euler(given, order)
    assert apart(given, turns(order, angles)) < 1e-3
    assert np.abs(np.diff(angles, axis=0)).max() < 10, "no flip from frame to frame"


def test_b6_a_joint_that_comes_to_a_quarter_turn_and_stays_does_not_flip() -> None:
    middle = np.concatenate([np.linspace(70.0, 90.0, 11), np.full(10, 90.0), np.linspace(90.0, 70.0, 11)])
    frames = np.stack([np.full(32, 40.0), middle, np.full(32, 25.0)], 1)
    angles, order = euler(turns("ZXY", frames))
    assert order == "ZXY" and np.abs(angles - frames).max() < 1e-4


def test_b6_a_seated_person_with_shins_splayed_keeps_his_feet_in_the_file(tmp_path: Path) -> None:
    pose = swaying(1, 2, 0.0)[:1].double().clone()
    index = {name: place for place, name in enumerate(HUMANML.names)}
    for side, out in (("left", 1.0), ("right", -1.0)):
        hip, knee, ankle, foot = (pose[0, index[f"{side}_{part}"]].clone() for part in ("hip", "knee", "ankle", "foot"))
        thigh, shin = (knee - hip).norm(), (ankle - knee).norm()
        knee = hip + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) * thigh
        down = torch.tensor([out * 0.6, -0.8, 0.0], dtype=torch.float64)
        pose[0, index[f"{side}_knee"]], pose[0, index[f"{side}_ankle"]] = knee, knee + shin * down
        pose[0, index[f"{side}_foot"]] = knee + shin * down + torch.tensor([0.0, 0.0, (foot - ankle).norm()])
    seated = pose.expand(8, -1, -1).clone()
    (solved,) = write_bvh(tmp_path / "seated.bvh", [seated], 20.0)
    read = read_bvh(tmp_path / "seated.bvh").person(0, solved.rig)
    assert float((read - solved.joints()).abs().max()) < 1e-4
