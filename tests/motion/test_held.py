"""What is held beside a prompt: places are reached, loops close, arms follow a timeline of their own; on every door."""

import numpy as np
import pytest
import torch
from longtake import LongMotionPipeline, Timeline
from longtake.errors import UserError
from longtake.motion.control import mask_features
from longtake.motion.held import finish, make
from longtake.motion.keys import Keys
from longtake.motion.kinematics import HUMANML
from longtake.motion.loop import RAMP, close, tie
from longtake.motion.outputs import MotionOutput
from longtake.motion.rigs.retarget import joints_of, retarget
from longtake.motion.rigs.tables import rig_of
from longtake.motion.seams import seam_report
from longtake.request import Request
from motion_data import dance, swaying
from motion_models import make_pipe
from second_readers import by_pygltflib

FPS = 20.0


@pytest.fixture(scope="module")
def prior() -> LongMotionPipeline:
    pipe = LongMotionPipeline.from_prior("bandai-small")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def output_of(joints: torch.Tensor) -> MotionOutput:
    return MotionOutput(np.zeros((len(joints), 0)), joints.numpy(), ["a"] * len(joints), FPS, [], HUMANML.chains)


# ----------------------------------------------------------------------------------------------------------------- keys


def test_k1_made_motions_meet_their_keys_within_two_centimetres_and_without_pops(prior) -> None:
    """Hands, feet, head and pelvis, three seeds; the shipped prior."""
    hands = "1.5s left_hand 0.4,1.4,1.2 | 1.5s right_hand -0.4,1.3,1.2"
    keys = f"{hands} | 2.5s right_foot -0.2,0.4,2.2 | 3.5s pelvis 0.3,0.85,3"
    for seed in (1, 2, 3):
        out = make(prior, "0s: a person walks", 90, keys=keys, seed=seed, num_inference_steps=10)
        off = Keys.parse(keys, FPS).gaps(torch.from_numpy(out.joints)).norm(dim=-1)
        assert float(off.max()) <= 0.02, off
        assert out.info["keys_off_m"] == pytest.approx(off.tolist(), abs=1e-3)
        assert seam_report(out.joints, [], FPS).worst_jerk < 567, "no frame that no real person has"
        assert "keys: 4 of 4 met within 2 cm" in "\n".join(out.info["told"])
        take = retarget(out.joints, FPS, rig_of("mixamo"))
        shown = joints_of(take, take.world()[1])
        for frame, name, place in ((30, "left_wrist", (0.4, 1.4, 1.2)), (50, "right_foot", (-0.2, 0.4, 2.2))):
            gap = shown[name][frame] - torch.tensor(place, dtype=torch.float64)
            assert float(gap.norm()) <= 0.02, "a rig, whose bones are rigid, meets them too"


def test_k1_the_body_helps_while_it_is_made(prior) -> None:
    """Guidance alone comes nearer to a far place than the plain motion is."""
    keys = Keys.parse("1.5s right_hand -0.3,1.5,0.7", FPS)
    plain = prior("0s: a person walks", 60, seed=1, num_inference_steps=10)
    led = prior("0s: a person walks", 60, seed=1, num_inference_steps=10, hooks=[keys.guide(prior.space, 10)])
    gaps = [float(keys.gaps(torch.as_tensor(out.joints)).norm()) for out in (plain, led)]
    assert gaps[1] < 0.9 * gaps[0], gaps


def test_k1_limbs_bend_and_keep_their_lengths_and_other_moments_stay() -> None:
    joints = dance(80)
    output = output_of(joints)
    hand = joints[40, HUMANML.names.index("left_wrist")] + torch.tensor([0.05, 0.1, -0.05])
    finish(output, keys=f"2s left_hand {hand[0]:.4f},{hand[1]:.4f},{hand[2]:.4f}")
    moved = torch.from_numpy(output.joints).double()
    assert output.info["keys_off_m"][0] < 0.002
    before, after = (HUMANML.bones(points).norm(dim=-1) for points in (joints, moved))
    assert float((before - after).abs().max()) < 1e-4
    change = (moved - joints).norm(dim=-1)
    legs = [HUMANML.names.index(name) for name in ("left_foot", "right_foot", "head", "right_wrist")]
    assert float(change[:, legs].max()) < 1e-3 and float(change[[5, 75]].max()) < 1e-4


def test_k1_a_place_out_of_reach_moves_the_body_and_keys_that_fight_are_told() -> None:
    output = output_of(dance(80))
    finish(output, keys="2s left_hand 6,1.2,0.6")
    assert output.info["keys_off_m"][0] < 0.02
    finish(output, keys="2s left_hand 6,1.2,0.6 | 2s right_hand -6,1.2,0.6")
    assert max(output.info["keys_off_m"]) > 1 and "0 of 2 met" in output.info["told"][-1]


@pytest.mark.parametrize("rig", ["mixamo", "ue5"])
def test_k1_a_rig_looks_where_a_key_says_and_nothing_else_moves(tmp_path, rig: str) -> None:
    joints = dance(80)
    joints = joints - joints[:, :1] + joints[40:41, :1]
    head, ahead = joints[40, HUMANML.names.index("head")], HUMANML.forward_direction(joints)[40]
    side = torch.stack([ahead[2], ahead[1], -ahead[0]])
    place = head + 3 * ahead + 1.5 * side + torch.tensor([0.0, 0.8, 0.0], dtype=torch.float64)
    files = {}
    for name, keys in (("plain", None), ("look", "2s look " + ",".join(f"{number:.4f}" for number in place))):
        output = output_of(joints)
        finish(output, keys=keys)
        output.rig = rig
        output.save(tmp_path / f"{name}.glb")
        files[name] = by_pygltflib(tmp_path / f"{name}.glb")
        assert output.info["rig"][f"{name}.glb"][0]["flips"] == 0
    assert max(output.info["looks_off_deg"]) < 1.0
    bone = rig_of(rig).bone_of("head")
    front = rig_of(rig).bones[[one.name for one in rig_of(rig).bones].index(bone)].axes.T @ np.array([0.0, 0.0, 1.0])
    seen = files["look"].turns[bone][40] @ front
    wanted = (place - head).numpy()
    assert np.degrees(np.arccos(seen @ wanted / np.linalg.norm(wanted))) < 3, "as another parser reads it"
    for name in files["plain"].turns:
        if name != bone:
            assert np.allclose(files["plain"].turns[name], files["look"].turns[name], atol=1e-5), name
    assert np.allclose(files["plain"].turns[bone][[0, 79]], files["look"].turns[bone][[0, 79]], atol=1e-3)


@pytest.mark.parametrize(
    "text,said",
    [
        ("2s elbow 0,1,0", "with one of left_hand, right_hand, left_foot, right_foot, head, pelvis, look"),
        ("left_hand 0,1,0", 'a key is "2s left_hand'),
        ("2s left_hand 0,one,0", "three numbers"),
        ("2s left_hand 0,nan,0", "within 1 km"),
        ("2s head 0,1,0 | 2.0s head 1,1,0", "the same joint at the same moment"),
    ],
)
def test_k1_wrong_keys_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Keys.parse(text, FPS)


def test_k1_keys_behind_the_end_are_refused_before_anything_is_computed() -> None:
    with pytest.raises(UserError, match="a key stands at 9 s, the motion ends after"):
        make(make_pipe(), "0: walks", 60, keys="9s head 0,1,0", text=torch.zeros(1, 8), num_inference_steps=3)


# ---------------------------------------------------------------------------------------------------------------- loops


def test_k2_a_made_loop_closes_and_its_seam_is_as_calm_as_people_are(prior) -> None:
    out = make(prior, "0s: a person walks", 80, loop=True, seed=1, num_inference_steps=10)
    joints = torch.from_numpy(out.joints).double()
    at = joints - joints[:, :1] * torch.tensor([1.0, 0.0, 1.0])
    ahead = torch.nn.functional.normalize(HUMANML.forward_direction(joints), dim=-1)
    across = torch.stack([ahead[:, 2], torch.zeros(len(ahead)), -ahead[:, 0]], -1)
    seen = torch.stack([(at * side[:, None]).sum(-1) for side in (across, ahead)] + [at[..., 1]], -1)
    assert float((seen[0] - seen[-1]).norm(dim=-1).max()) < 1e-4
    assert out.info["loop"]["gap_m"] < 1e-4 and out.info["loop"]["seam_jerk"] < 567
    way = float((joints[-1, 0] - joints[0, 0]).norm())
    assert way > 1.0, "a walk that loops still walks"
    step = (seen[-1] - seen[-2]) - (seen[1] - seen[0])
    assert float(step.norm(dim=-1).max()) < 0.03, "the pose goes on as it begins, metres a frame"


def test_k2_closing_changes_only_the_last_frames_and_a_tie_only_the_ends() -> None:
    joints = swaying(0, 70, 0.4).double()
    output = output_of(joints)
    report = close(output)
    assert report.gap_before > 0.05 and report.gap < 1e-5
    assert np.array_equal(output.joints[:-RAMP], joints.float().numpy()[:-RAMP])
    clean = torch.randn(60, 263, generator=torch.Generator().manual_seed(1))
    tied = tie(clean)
    assert torch.allclose(tied[0], tied[-1], atol=1e-5) and torch.equal(tied[RAMP:-RAMP], clean[RAMP:-RAMP])
    with pytest.raises(UserError, match="at least 40 frames; given 30"):
        close(output_of(joints[:30]))


# ----------------------------------------------------------------------------------------------------------- body parts


def test_k3_legs_do_the_prompt_while_arms_do_their_own_timeline(prior) -> None:
    call = {"seed": 2, "num_inference_steps": 10}
    legs = prior("0s: a person walks", 60, output_type="latent", **call).features
    both = make(prior, "0s: a person walks", 60, upper="0s: waves with the right hand", **call)
    held = mask_features("lower_body")
    features = prior.space.normalize(torch.as_tensor(both.features))
    assert torch.allclose(features[:, held], legs[:, held], atol=1e-3), "the lower body is the walk's"
    hand, elbow = (HUMANML.names.index(name) for name in ("right_wrist", "right_shoulder"))
    raised = both.joints[:, hand, 1] > both.joints[:, elbow, 1]
    assert raised.mean() > 0.8, "the hand waves above the shoulder"
    plain = prior("0s: a person walks", 60, **call).joints
    assert (plain[:, hand, 1] > plain[:, elbow, 1]).mean() < 0.2
    assert np.linalg.norm(both.joints[-1, 0] - both.joints[0, 0]) > 0.7
    assert both.captions[10] == "a person walks, waves with the right hand"


def test_k3_captions_and_boundaries_are_of_both_timelines() -> None:
    pipe = make_pipe()
    pipe.text_encoder = type("Texts", (), {"encode": lambda self, texts: torch.zeros(len(texts), 1, 8)})()
    out = make(pipe, Timeline.parse("0: walks | 60: runs"), 120, upper="0: waves | 80: bows", num_inference_steps=3)
    assert out.boundaries == [60, 80]
    assert [out.captions[frame] for frame in (0, 70, 100)] == ["walks, waves", "runs, waves", "runs, bows"]


# ---------------------------------------------------------------------------------------------------------------- doors


def test_k4_every_door_says_and_refuses_them_alike() -> None:
    line = {
        "modality": "motion",
        "prompt": "0s: walks",
        "parameters": {"keys": "1s head 0,1.6,0.5", "loop": True, "upper": "0s: waves", "seconds": 4.0},
    }
    request = Request.read(line)
    command = request.as_command("a")
    for words in ("--keys '1s head 0,1.6,0.5'", "--loop", "--upper '0s: waves'"):
        assert words in command
    text = request.as_python("a")
    assert "out = partial(make, pipe)(" in text and "keys='1s head 0,1.6,0.5'" in text and "upper='0s: waves'" in text
    compile(text, "said", "exec")
    shown = {knob.name for knob in request.domain.KNOBS if knob.page is not None}
    assert {"keys", "loop", "upper", "rig"} <= shown
    for more, said in (
        ({"people": 2}, "is of one person"),
        ({"keys": "1s look 0,1,4"}, "needs --rig"),
        ({"take2": "paper"}, "do not go together"),
        ({"path": "0,0 1,1"}, "both say where the body is"),
    ):
        with pytest.raises(UserError, match=said):
            Request.read({**line, "parameters": {**line["parameters"], **more, "seconds": None}})


def test_k4_the_command_meets_keys_of_a_finished_motion(tmp_path) -> None:
    from longtake.distributed import Ranks
    from longtake.make import Maker, Targets

    joints = dance(60).numpy()
    np.savez(tmp_path / "take.npz", joints=joints, fps=np.array(20))
    request = Request.read(
        {
            "modality": "motion",
            "inputs": {"from": str(tmp_path / "take.npz")},
            "parameters": {"keys": "1s left_hand 1.2,1.3,0.6", "loop": True, "rig": "mixamo", "outputs": [".glb"]},
        }
    )
    made = Maker(Ranks.single(torch.device("cpu"), torch.float32)).make(
        request, Targets.of_stem(request, tmp_path / "a")
    )
    told = "\n".join(made.output.info["told"])
    assert "keys: 1 of 1 met" in told and "loop: the last pose is the first one" in told and "a.glb: mixamo" in told
