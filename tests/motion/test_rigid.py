"""What leaves the sampler is a rigid body's motion, near to what the net made; whole poses are taken when due."""

import numpy as np
import pytest
import torch
from longtake import LongMotionPipeline
from longtake.errors import UserError
from longtake.motion.export.rig import measure
from longtake.motion.held import finish, make, meet_again
from longtake.motion.keys import Keys
from longtake.motion.kinematics import HUMANML, axis_angle_to_matrix, forward_tree, quat_to_matrix
from longtake.motion.loop import close
from longtake.motion.metrics import bone_variation, foot_skate
from longtake.motion.outputs import MotionOutput
from longtake.motion.rigid import is_rigid, nearest, settled
from longtake.motion.rigs.files import Layout, write_rig_glb
from longtake.motion.rigs.proof import measure as proof_of
from longtake.motion.rigs.retarget import retarget
from longtake.motion.rigs.tables import RIGS, rig_of
from longtake.motion.smoothing import MOST_JERK, worst
from longtake.request import Request
from motion_data import dance
from second_readers import by_pygltflib

FPS = 20.0


@pytest.fixture(scope="module")
def prior() -> LongMotionPipeline:
    pipe = LongMotionPipeline.from_prior("bandai-small")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shaken(frames: int = 40, size: float = 0.02) -> torch.Tensor:
    """A rigid dancer whose joints are thrown about by a few centimetres, each on its own."""
    joints = dance(frames)
    noise = torch.randn(joints.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise[:, 0] = 0.0
    return joints + size * noise


def output_of(joints: torch.Tensor) -> MotionOutput:
    return MotionOutput(np.zeros((len(joints), 0)), joints.numpy(), ["a"] * len(joints), FPS, [], HUMANML.chains)


def fans(joints: torch.Tensor) -> torch.Tensor:
    """Distances (F, 6) within pelvis and chest, which bones alone do not fix."""
    pairs = ((1, 2), (1, 3), (2, 3), (12, 13), (12, 14), (13, 14))
    return torch.stack([(joints[:, a] - joints[:, b]).norm(dim=-1) for a, b in pairs], 1)


# -------------------------------------------------------------------------------------------------------- rigid bodies


@pytest.mark.parametrize("prompt,seed", [("0s: a person runs | 2s: a person bows", 1), ("0s: a person kicks", 4)])
def test_r6_made_motions_lie_on_every_rig_within_a_centimetre_and_two_degrees(tmp_path, prior, prompt, seed) -> None:
    free = prior(prompt, 80, seed=seed, num_inference_steps=10, most_jerk=None)
    made = prior(prompt, 80, seed=seed, num_inference_steps=10)
    before, after = torch.from_numpy(free.joints), torch.from_numpy(made.joints)
    stretched = retarget(free.joints, FPS, rig_of("mixamo"))
    assert float((stretched.pose.joints() - before).norm(dim=-1).max()) > 0.01, "as the net made it, no rig can follow"
    for name in RIGS:
        take = retarget(made.joints, FPS, rig_of(name))
        write_rig_glb(tmp_path / "a.glb", [take], Layout(), overwrite=True)
        proof = proof_of(by_pygltflib(tmp_path / "a.glb"), take, "a.glb")
        assert proof.position_max <= 0.01 and proof.angle_max <= 2.0 and proof.carried_angle_max <= 2.0, proof
        assert proof.flips == 0
    # and what it cost
    assert float(bone_variation(before)) > 0.005 and float(bone_variation(after)) < 1e-6
    distance = (after - before).norm(dim=-1)
    assert float(distance.mean()) < 0.02 and made.info["moved_m"]["mean"] == pytest.approx(
        float(distance.mean()), abs=1e-4
    )
    assert made.info["moved_m"]["largest"] == pytest.approx(float(distance.max()), abs=1e-4)
    assert worst(after, FPS) <= MOST_JERK and made.info["worst_jerk"] <= MOST_JERK
    assert float(foot_skate(after, FPS)) <= 1.1 * float(foot_skate(before, FPS)) + 0.01
    feet = list(HUMANML.feet)
    assert abs(float(after[:, feet, 1].min() - before[:, feet, 1].min())) < 0.015, "feet stay on the floor"
    assert np.array_equal(free.features, made.features), "features stay as the net made them"


def test_r6_the_nearest_pose_is_that_of_a_plain_optimiser() -> None:
    """L-BFGS over all 22 rotations of the kinematic tree, which knows nothing of bones that turn on their own."""
    given = shaken(4, 0.01)
    person = measure(dance(40))
    found = nearest(given, person)
    vectors = torch.zeros(4, 22, 3, dtype=torch.float64, requires_grad=True)
    from longtake.motion.export.rig import solve

    start = quat_to_matrix(solve(given, person).local)

    def joints() -> torch.Tensor:
        return forward_tree(HUMANML.parents, start @ axis_angle_to_matrix(vectors), given[:, 0], person.offsets)

    optimiser = torch.optim.LBFGS([vectors], max_iter=400, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimiser.zero_grad()
        value = (joints() - given).square().sum()
        value.backward()
        return value

    optimiser.step(cost)
    plain = (joints().detach() - given).square().sum((1, 2))
    ours = (found - given).square().sum((1, 2))
    assert bool((ours <= 1.001 * plain).all()) and float(plain.min()) > 1e-3
    assert float((found - joints().detach()).norm(dim=-1).max()) < 1e-3


def test_r6_bones_and_the_shapes_of_pelvis_and_chest_are_kept_and_the_pelvis_stays() -> None:
    given = shaken()
    found = nearest(given, measure(dance(40)))
    lengths = HUMANML.bones(found).norm(dim=-1)
    assert (
        float((lengths - lengths[:1]).abs().max()) < 1e-9 and float((fans(found) - fans(found)[:1]).abs().max()) < 1e-9
    )
    assert torch.equal(found[:, 0], given[:, 0])
    assert float((HUMANML.bones(given).norm(dim=-1).std(0)[1:]).min()) > 0.005


def test_r6_what_is_rigid_stays_bit_for_bit_and_frames_do_not_depend_on_each_other() -> None:
    rigid = dance(60).float()
    kept, moved = settled(rigid, FPS)
    assert torch.equal(kept, rigid) and float(moved.max()) == 0.0
    given, person = shaken(20), measure(dance(40))
    whole = nearest(given, person)
    assert torch.allclose(whole[7:8], nearest(given[7:8], person), atol=1e-9)
    assert torch.equal(whole, nearest(given.clone(), person))
    mixed = torch.cat([dance(20)[:10], given[10:]])
    assert torch.equal(nearest(mixed, person)[:10], mixed[:10])


def test_r6_pops_are_gone_and_bones_are_rigid_at_once() -> None:
    given = dance(80)
    given[40, HUMANML.names.index("left_wrist")] += 0.5
    fixed, moved = settled(given, FPS)
    assert worst(given, FPS) > MOST_JERK and worst(fixed, FPS) <= MOST_JERK and is_rigid(fixed)
    assert float(moved[:20].max()) == 0.0 and 0.2 < float(moved.max()) < 0.6


def test_r6_locked_feet_and_closed_loops_keep_bones_rigid() -> None:
    for change in (lambda output: output.lock_feet(), close):
        output = output_of(dance(80).float())
        change(output)
        changed = torch.from_numpy(output.joints)
        assert not torch.equal(changed, dance(80).float()) and is_rigid(changed)


# ---------------------------------------------------------------------------------------------------------- whole poses


@pytest.fixture
def poses(tmp_path):
    """A file of a smaller person who dances, and z up; in no place in particular."""
    joints = 0.8 * dance(60, seed=5) + torch.tensor([3.0, 0.0, -2.0], dtype=torch.float64)
    np.savez(
        tmp_path / "poses.npz",
        joints=torch.stack([joints[..., 0], -joints[..., 2], joints[..., 1]], -1).numpy(),
        fps=20,
    )
    return tmp_path / "poses.npz"


def angles(joints: torch.Tensor) -> torch.Tensor:
    """Degrees between neighbouring bones of limbs and spine of a pose (22, 3), which no place, turn or size changes."""
    bones = torch.nn.functional.normalize(HUMANML.bones(joints), dim=-1)
    pairs = ((7, 4), (10, 7), (8, 5), (11, 8), (9, 6), (18, 16), (20, 18), (19, 17), (21, 19))
    return torch.rad2deg(torch.stack([torch.acos((bones[a] @ bones[b]).clamp(-1, 1)) for a, b in pairs]))


def test_k5_made_motions_take_poses_within_two_centimetres_and_without_pops(prior, poses) -> None:
    shape = dance(60, seed=5)[30]
    for seed, keys in (
        (1, "2s pose 1.5"),
        (2, "2s pose 1.5 | 2s pelvis 0.1,0.95,1.8"),
        (3, "2s pose 1.5 | 3.2s left_hand 0.4,1.3,2"),
    ):
        out = make(prior, "0s: a person walks", 80, keys=keys, pose=poses, seed=seed, num_inference_steps=10)
        joints = torch.from_numpy(out.joints).double()
        off = Keys.parse(keys, FPS, poses)
        assert max(out.info["keys_off_m"]) <= 0.02 and len(out.info["keys_off_m"]) == keys.count("|") + 1
        assert float(off.poses.gaps(joints, measure(joints), off._pelvis()).norm(dim=-1).max()) <= 0.02
        assert float((angles(joints[40]) - angles(shape)).abs().max()) < 1.0
        assert is_rigid(joints) and worst(joints, FPS) <= MOST_JERK
        assert f"keys: {keys.count('|') + 1} of" in "\n".join(out.info["told"]) and "s pose: " in out.info["told"][-1]
        if "pelvis" in keys:
            assert float((joints[40, 0] - torch.tensor([0.1, 0.95, 1.8])).norm()) <= 0.02
        before = prior("0s: a person walks", 80, seed=seed, num_inference_steps=10).joints
        plain = angles(torch.from_numpy(before[40]).double())
        assert float((plain - angles(shape)).abs().max()) > 20, "the walk was not in that pose"


def test_k5_a_finished_motion_takes_a_pose_other_moments_stay_and_a_lock_of_feet_leaves_it_met(poses) -> None:
    given = dance(120).float()
    output = output_of(given.clone())
    finish(output, keys="3s pose 0", pose=poses)
    moved = (torch.from_numpy(output.joints) - given).norm(dim=-1).amax(1)
    assert float(moved[60]) > 0.1 and float(moved[[0, 20, 100, 119]].max()) < 1e-3
    output.lock_feet()
    meet_again(output, "3s pose 0", poses)
    joints = torch.from_numpy(output.joints).double()
    keys = Keys.parse("3s pose 0", FPS, poses)
    assert float(keys.poses.gaps(joints, measure(joints)).norm(dim=-1).max()) <= 0.02
    assert [line.startswith("keys: 1 of 1 met") for line in output.info["told"]] == [True]


@pytest.mark.parametrize(
    "keys,file,said",
    [
        ("2s pose", True, 'or "3s pose 1.5" with a second of the file of --pose'),
        ("2s pose 1,2,3", True, 'or "3s pose 1.5" with a second'),
        ("2s pose 1", False, "give --pose FILE.npz"),
        ("2s head 0,1,0", True, "--pose is the file of poses that keys name"),
        ("2s pose 9", True, "poses.npz ends after 2.95 s; a key takes its pose of second 9"),
        ("2s pose 1 | 2.0s pose 2", True, "two poses are at the same moment"),
        ("2s pose 1 | 2s left_hand 0,1,0", True, "only pelvis may be at its moment"),
        ("9s pose 1", True, "a key stands at 9 s"),
    ],
)
def test_k5_wrong_poses_are_refused_by_name_before_a_model_is_there(poses, keys: str, file: bool, said: str) -> None:
    line = {"modality": "motion", "prompt": "0s: walks", "parameters": {"keys": keys, "seconds": 4.0}}
    with pytest.raises(UserError, match=said):
        Request.read({**line, "inputs": {"pose": str(poses)}} if file else line)


def test_k5_a_file_that_is_no_motion_and_poses_without_keys_are_one_line(tmp_path, poses) -> None:
    (tmp_path / "torn.npz").write_bytes(b"torn")
    line = {"modality": "motion", "prompt": "0s: walks", "inputs": {"pose": str(tmp_path / "torn.npz")}}
    with pytest.raises(UserError, match="no whole npz"):
        Request.read({**line, "parameters": {"keys": "1s pose 0"}})
    with pytest.raises(UserError, match='give --keys "3s pose 1.5"'):
        Request.read({**line, "inputs": {"pose": str(poses)}})


def test_k5_every_door_says_poses_alike(poses) -> None:
    line = {
        "modality": "motion",
        "prompt": "0s: walks",
        "inputs": {"pose": str(poses)},
        "parameters": {"keys": "1s pose 0.5", "seconds": 4.0, "lock_feet": True},
    }
    request = Request.read(line)
    command = request.as_command("a")
    assert f"--pose {poses}" in command and "--keys '1s pose 0.5'" in command
    text = request.as_python("a")
    assert f"pose={str(poses)!r}" in text and f"meet_again(out, '1s pose 0.5', {str(poses)!r})" in text
    compile(text, "said", "exec")
    assert [item.page is not None for item in request.domain.INPUTS if item.name == "pose"] == [True]
    np.savez(poses.parent / "take.npz", joints=dance(60).numpy(), fps=20)
    given = {"from": str(poses.parent / "take.npz"), "pose": str(poses)}
    finished = Request.read({**line, "prompt": None, "inputs": given, "parameters": {"keys": "1s pose 0.5"}})
    output = request.domain.generate(None, finished, None, None, None)
    assert output.info["keys_off_m"][0] <= 0.02
    compile(finished.as_python("a"), "said", "exec")
