"""The pipeline: a timeline in, a motion out; any number of ranks, after any stop, in rows or rolling."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from longtake.distributed import Ranks, setup
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.motion.control import Control, mask_features
from longtake.motion.model import MDM
from longtake.motion.pipeline import LongMotionPipeline
from longtake.motion.reference import take_one_canvas, take_two
from longtake.motion.row_plan import Mode, RowPlan
from longtake.motion.rows import plan_of
from longtake.motion.sampling import Schedule, TextDenoiser
from longtake.motion.second_take import sandwiches
from longtake.motion.stream import deviation, light_cone, pieces, roll
from longtake.timeline import Timeline
from motion_models import injected, make_pipe, released_both_takes, released_take_one, tiny_net
from ranks import run_ranks

TIMELINE = "0: a person walks | 50: waves | 110: runs | 150: bows"
FRAMES = 200


def texts(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------------------------ timelines


def test_captions_follow_the_timeline_exactly() -> None:
    for handshake, longest in itertools.product((0, 1, 9, 20), (60, 196)):
        timeline = Timeline.parse(TIMELINE)
        plan, prompts = plan_of(timeline, FRAMES, handshake=handshake, longest=longest)
        assert plan.total == FRAMES and max(plan.lengths) <= longest
        captions = [prompts[row] for row in plan.row_of_frames()]
        want = [next(p for start, stop, p in timeline.segments(FRAMES) if start <= f < stop) for f in range(FRAMES)]
        assert captions == want, (handshake, longest)
    short, _ = plan_of(Timeline.parse("0: a | 40: b | 44: c"), 100, handshake=20)
    assert short.handshakes == (4, 4), "next to a short prompt the handshake shrinks"
    single, _ = plan_of(Timeline.parse("0: a"), 30)
    assert single.lengths == (30,) and single.handshakes == ()
    with pytest.raises(UserError, match="handshake"):
        plan_of(Timeline.parse("0: a"), 30, handshake=100)


def test_a_call_gives_features_joints_and_captions(tmp_path: Path) -> None:
    pipe = make_pipe()
    settings = {"text": texts(), "num_inference_steps": 6}
    out = pipe(TIMELINE, FRAMES, seed=1, take2="release", blend=4, **settings)
    assert out.features.shape == (FRAMES, 263) and out.joints.shape == (FRAMES, 22, 3)
    assert out.boundaries == [50, 110, 150] and out.captions[49:51] == ["a person walks", "waves"]
    assert out.info["completed"] and np.isfinite(out.joints).all()
    with np.load(out.save(tmp_path / "take.npz")) as saved:
        assert np.array_equal(saved["joints"], out.joints) and saved["captions"][60] == "waves"
    assert out.preview(tmp_path / "take.png").stat().st_size > 5000
    pipe.save_pretrained(tmp_path / "prior")
    again = LongMotionPipeline.from_prior(tmp_path / "prior")
    again.set_progress_bar_config(disable=True)
    same = again(TIMELINE, FRAMES, seed=1, take2="release", blend=4, **settings)
    assert np.array_equal(same.features, out.features)
    assert not np.array_equal(again(TIMELINE, FRAMES, seed=2, **settings).features, out.features)
    import longtake

    assert longtake.LongMotionPipeline is LongMotionPipeline and longtake.MDM is MDM


def test_settings_that_do_not_go_together_are_refused() -> None:
    pipe, text = make_pipe(), texts()
    control = Control(mask_features("root"), torch.zeros(FRAMES, 263))
    for settings, message in (
        ({"mode": "columns"}, "canvas, rows"),
        ({"take2": "third"}, "release, paper"),
        ({"mode": "rows", "control": control}, "knows no control"),
        ({"text": text[:2]}, "4 different prompts"),
        ({"control": Control(mask_features("root"), torch.zeros(7, 263))}, "control for this run"),
        ({"take2": "release", "blend": 90}, "blend of 90"),
        ({"text": None}, "no text encoder"),
    ):
        with pytest.raises(UserError, match=message):
            pipe(TIMELINE, FRAMES, **{"text": text, "num_inference_steps": 6, **settings})
    with pytest.warns(UserWarning, match="shorter than the 10"):
        pipe("0: a | 4: b", 60, text=texts(2), num_inference_steps=1)


def test_a_first_take_keeps_what_a_control_holds_and_hooks_see_every_step() -> None:
    pipe = make_pipe()
    control = Control(mask_features("root_horizontal,left_wrist"), injected(4, (FRAMES, 263))(0))
    steps: list[int] = []

    def hook(clean: torch.Tensor, step: int) -> torch.Tensor:
        steps.append(step)
        return clean

    run, _ = pipe.prepare(TIMELINE, FRAMES, text=texts(), control=control, hooks=[hook], num_inference_steps=6)
    whole, _ = pipe.solve(run, Ranks.single("cpu"))
    assert torch.equal(whole[:, control.mask], control.given[:, control.mask])
    assert steps == list(range(6))
    free, _ = pipe.solve(pipe.prepare(TIMELINE, FRAMES, text=texts(), num_inference_steps=6)[0], Ranks.single("cpu"))
    assert not torch.allclose(whole[:, ~control.mask], free[:, ~control.mask], atol=1e-3), "the rest answers to it"


def test_rows_mode_is_the_released_sampler() -> None:
    pipe = make_pipe(padding="attend")
    settings = {"handshake": 10, "num_inference_steps": 6, "guidance_scale": 2.5}
    run, _ = pipe.prepare(TIMELINE, FRAMES, text=texts(), seed=7, **settings)
    with torch.no_grad():
        got, _ = pipe.solve(run, Ranks.single("cpu"), mode=Mode.ROWS)
    from longtake.motion.first_take import ROWS, numbers
    from longtake.noise import noise

    def draw(count: int) -> torch.Tensor:
        frames = run.plan.longest
        return torch.stack([noise(7, 0, numbers(ROWS, row, frames), count, (263,)) for row in range(4)])

    with torch.no_grad():
        want = released_take_one(pipe.model, texts(), 2.5, run.plan.lengths, 10, 6, draw)
    assert float((got - run.plan.unfold(want)).abs().max()) <= 1e-5


# ------------------------------------------------------------------------------------------------------ ranks, journal


def every_way(rank: int, world: int) -> dict[str, np.ndarray]:
    import warnings

    warnings.simplefilter("ignore")
    ranks = setup() if world > 1 else Ranks.single("cpu")
    found = {}
    for name, kind, config, settings in (
        ("canvas", "DDPMScheduler", {}, {}),
        ("second take", "DDPMScheduler", {}, {"take2": "release", "blend": 4}),
        ("few steps", "DDIMScheduler", {}, {"num_inference_steps": 3, "handshake": 9}),
        ("attend", "DDPMScheduler", {"padding": "attend"}, {"handshake": 0, "take2": None}),
        ("held", "DDPMScheduler", {}, {"control": Control(mask_features("root"), torch.ones(FRAMES, 263))}),
    ):
        pipe = make_pipe(kind, **config)
        given = {"text": texts(), "num_inference_steps": 6, "chunk_rows": 1, **settings}
        out = pipe(TIMELINE, FRAMES, seed=1, ranks=ranks, **given)
        found[name], found[f"{name}, joints"] = out.features, out.joints
    if world > 1:
        try:
            make_pipe()("0: a", 40, text=texts(1), num_inference_steps=6, ranks=ranks)
            found["refused"] = np.zeros(1)
        except UserError as error:
            found["refused"] = np.ones(1) if "cannot be shared" in str(error) else np.zeros(1)
    return found


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_any_number_of_ranks_gives_the_same_motion() -> None:
    alone = every_way(0, 1)
    for world in (2, 3):
        for rank, found in enumerate(run_ranks(every_way, world)):
            assert found.pop("refused") == 1
            for name, value in alone.items():
                assert np.array_equal(found[name], value), (world, rank, name, np.abs(found[name] - value).max())


def go_on(rank: int, world: int, folder: str) -> np.ndarray:
    ranks = setup()
    plan = {"what": "test"}
    journal = Journal(folder)
    if ranks.is_main:
        journal.open(plan)
    ranks.barrier()
    if not ranks.is_main:
        journal.attach(plan)
    given = {"text": texts(), "num_inference_steps": 6, "chunk_rows": 1}
    out = make_pipe()(TIMELINE, FRAMES, seed=1, ranks=ranks, journal=journal, **given)
    journal.close()
    return out.features


@pytest.mark.distributed
def test_a_stopped_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    pipe = make_pipe()
    whole = pipe(TIMELINE, FRAMES, seed=1, text=texts(), num_inference_steps=6, chunk_rows=1).features

    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> None:
        assert tensors["clean"].shape == (FRAMES, 263)
        if step == 2:
            pipe.stop()  # steps count from 0: the run ends after this one, its third

    with Journal(tmp_path / "run") as journal:
        journal.open({"what": "test"})
        settings = {"seed": 1, "text": texts(), "num_inference_steps": 6, "chunk_rows": 1, "take2": "release"}
        early = pipe(TIMELINE, FRAMES, journal=journal, callback_on_step_end=stop, blend=4, **settings)
    assert not early.info["completed"] and early.info["steps"] == 3
    for features in run_ranks(go_on, 3, str(tmp_path / "run")):
        assert np.array_equal(features, whole)


# ------------------------------------------------------------------------------------------------------ long, rolling


def test_rolling_is_exact_within_the_light_cone_and_close_outside() -> None:
    pipe = make_pipe(steps=3)
    timeline = Timeline(tuple((40 * i, f"action {i}") for i in range(8)))
    text = texts(8)
    settings = {"seed": 2, "handshake": 10, "chunk_rows": 1, "num_inference_steps": 3}
    run, _ = pipe.prepare(timeline, 320, text=text, **settings)
    with torch.no_grad():
        full, _ = pipe.solve(run, Ranks.single("cpu"))
    reach = light_cone(3, run.plan.rows)

    def off(**how: Any) -> list[float]:
        parts = list(roll(pipe, timeline, 320, text=text, **settings, **how))
        assert [len(part) for part in parts] == [len(part) for part in pieces(run.plan)]
        return deviation(run.plan, torch.cat(parts), full)

    assert max(off(lookahead=reach, past=reach, hold=False)) <= 1e-5
    near, far = off(lookahead=0, past=0, hold=False), off(lookahead=2, past=2, hold=False)
    assert max(near) > 5 * max(far), (near, far)
    held = off(lookahead=1)
    assert 0 < max(held) < 2
    with pytest.raises(UserError, match="no control"):
        next(roll(pipe, timeline, 320, text=text, control=Control(mask_features("root"), torch.zeros(320, 263))))


def test_memory_of_a_long_run_does_not_grow_with_its_rows() -> None:
    """The net never sees more than a chunk, and the sampler's other tensors are a few times the features."""
    seen: list[int] = []
    pipe = make_pipe("DDIMScheduler", steps=2)
    pipe.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    for rows in (3, 30):
        seen.clear()
        timeline = Timeline(tuple((60 * i, f"action {i}") for i in range(rows)))
        out = pipe(timeline, 60 * rows, text=texts(rows), seed=1, num_inference_steps=2, chunk_rows=4)
        assert len(out.features) == 60 * rows
        assert max(seen) == 2 * min(rows, 4) * 80 * 263


def test_the_sampler_evaluates_the_net_half_as_often_as_the_released_loop() -> None:
    """Both takes on one net: guidance is one call and texts are ready, the second take evaluates each row once, and
    rows are padded to their chunk's length, not to the run's. Seconds: tests/benchmarks/motion.py."""
    net = tiny_net(features=30, padding="mask")
    plan, steps = RowPlan.make([60, 150, 70, 64, 110, 62], 20), 10
    schedule, text = Schedule.make(steps), texts(6)
    calls: list[tuple[int, int]] = []
    net.register_forward_pre_hook(lambda module, args: calls.append((1, args[0].shape[0] * args[0].shape[1])))
    with torch.no_grad():
        fields = injected(2, (6, 150, 30)), injected(3, (5, 240, 30))
        released_both_takes(net, text, 2.5, plan.lengths, 20, 10, steps, *fields)
        released = [sum(column) for column in zip(*calls, strict=True)]
        calls.clear()
        denoise = TextDenoiser(net, text, 2.5, lengths=plan.lengths)
        first = take_one_canvas(plan, denoise, schedule, injected(1, (plan.total, 30)), chunk_rows=2, mixed=True)
        bare = denoise.unconditional([part.length for part in sandwiches(plan)])
        second = injected(3, (5, 240, 30))

        def draw(count: int, pairs: Any) -> torch.Tensor:
            frames = max(sandwiches(plan)[pair].length for pair in pairs)
            return second(count)[list(pairs), :frames]

        take_two(plan, first, bare, schedule, draw, blend=10, chunk_rows=2, mixed=True)
        ours = [sum(column) for column in zip(*calls, strict=True)]
    assert released[1] >= 2 * ours[1], (released, ours)
    assert released[0] == 2 * (10 + 9), "two calls a step in both takes"
