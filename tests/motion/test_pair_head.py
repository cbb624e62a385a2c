"""Two people on the loop that one person has: the same bits as a plain loop, any ranks, after any kill, on a path."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from longtake.distributed import Ranks, setup
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.motion.control import Control, mask_features
from longtake.motion.first_take import CANON, SECOND
from longtake.motion.model import MDM
from longtake.motion.pair.model import ComMDM, PairDenoiser, decode_canon, first_token
from longtake.motion.path import FloorPath
from longtake.motion.pipeline import LongMotionPipeline
from longtake.motion.row_plan import Mode
from longtake.motion.space import MotionSpace
from longtake.noise import noise
from motion_models import sample_long_pair, tiny_net
from ranks import run_ranks

TIMELINE = "0: two people walk | 50: wave | 110: run | 150: bow"
FRAMES = 200
POINTS = ((1.0, 2.0), (1.0, 4.0), (3.0, 6.0))


def make_pipe(kind: str = "DDPMScheduler") -> LongMotionPipeline:
    import diffusers

    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=6,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    torch.manual_seed(5)
    space = MotionSpace(shortest_row=10).set_statistics(0.1 * torch.randn(263), torch.rand(263) * 0.2 + 0.05)
    pipe = LongMotionPipeline(tiny_net(features=263, padding="mask"), scheduler, space)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def block(net: MDM) -> ComMDM:
    torch.manual_seed(8)
    return ComMDM.around(net, comm_layers=1).eval()


def settings(pipe: LongMotionPipeline, **more: Any) -> dict[str, Any]:
    text = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    given = {"seed": 7, "num_inference_steps": 6, "chunk_rows": 1, "handshake": 10, "most_jerk": None}
    return {**given, "text": text, "block": block(pipe.model), **more}


def same(one: Any, two: Any) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("features", "joints", "second"))


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@torch.no_grad()
def test_a_pair_has_the_bits_of_a_plain_loop(kind: str) -> None:
    pipe = make_pipe(kind)
    given = settings(pipe)
    out = pipe.pair(TIMELINE, FRAMES, **given)
    model = given.pop("block")
    given.pop("most_jerk")
    run, _ = pipe.prepare(TIMELINE, FRAMES, **given)
    net = PairDenoiser(model, run.denoise.text, run.denoise.scale, run.plan.lengths)  # type: ignore[attr-defined]

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        people = [noise(7, 0, range(first, first + FRAMES), count, (263,)) for first in (0, SECOND)]
        tokens = noise(7, 0, range(CANON, CANON + 2 * run.plan.rows), count, (263,))
        return torch.stack(people, 1), tokens.unflatten(0, (run.plan.rows, 2))

    whole, canon = sample_long_pair(run.plan, net, pipe.schedule(6), draw, first_canon=first_token())
    assert np.array_equal(pipe.space.denormalize(whole[:, 0]).numpy(), out.features)
    _, place = decode_canon(canon[0, 1])
    assert out.info["second_stands_at"] == [round(float(place[axis]), 3) for axis in (0, 2)]


def on_ranks(rank: int, world: int) -> dict[str, Any]:
    ranks = setup() if world > 1 else Ranks.single("cpu")
    found = {}
    for name, more in (("free", {}), ("on a path", {"path": POINTS}), ("held", {"control": held()})):
        pipe = make_pipe()
        out = pipe.pair(TIMELINE, FRAMES, ranks=ranks, **settings(pipe, **more))
        found[name] = (out.features, out.joints, out.second)
    if world > 1:
        pipe = make_pipe()
        try:
            pipe.pair("0: a", 60, ranks=ranks, **settings(pipe, text=torch.zeros(1, 8)))
        except UserError as error:
            found["refused"] = str(error)
    return found


def held() -> Control:
    return Control(mask_features("root"), torch.ones(FRAMES, 263))


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_a_pair_is_the_same_on_any_number_of_ranks() -> None:
    alone = on_ranks(0, 1)
    for world in (2, 3):
        for rank, found in enumerate(run_ranks(on_ranks, world)):
            assert "cannot be shared" in found.pop("refused")
            for name, arrays in alone.items():
                for one, two in zip(arrays, found[name], strict=True):
                    assert np.array_equal(one, two), (world, rank, name)


class Killed(Exception):
    pass


def until(rank: int, world: int, folder: str, step: int | None) -> Any:
    """A journaled run that dies in its callback after so many steps; None: to the end."""
    ranks = setup() if world > 1 else Ranks.single("cpu")
    journal = Journal(folder)
    if ranks.is_main:
        journal.open({"what": "pair"})
    ranks.barrier()
    pipe, seen = make_pipe(), []

    def kill(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> None:
        seen.append(index)
        if index == step:
            raise Killed

    try:
        given = settings(pipe, callback_on_step_end=kill)
        out = pipe.pair(TIMELINE, FRAMES, ranks=ranks, journal=journal, **given)
    except Killed:
        return None
    finally:
        journal.close()
    return out.features, out.joints, out.second, seen


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_pair_killed_after_a_step_goes_on_to_the_same_bits(step: int, tmp_path: Path) -> None:
    whole = until(0, 1, str(tmp_path / "whole"), None)
    assert until(0, 1, str(tmp_path / "run"), step) is None
    rest = until(0, 1, str(tmp_path / "run"), None)
    assert all(np.array_equal(one, two) for one, two in zip(whole[:3], rest[:3], strict=True))
    assert rest[3] == list(range(step, 6)), "no step is done twice"


@pytest.mark.distributed
def test_a_pair_killed_on_three_ranks_goes_on_with_two_and_with_one(tmp_path: Path) -> None:
    whole = until(0, 1, str(tmp_path / "whole"), None)
    for world in (2, 1):
        folder = str(tmp_path / f"run{world}")
        assert run_ranks(until, 3, folder, 3) == [None] * 3
        rest = run_ranks(until, 2, folder, None)[1] if world == 2 else until(0, 1, folder, None)
        assert all(np.array_equal(one, two) for one, two in zip(whole[:3], rest[:3], strict=True)), world


@pytest.mark.filterwarnings("ignore")
def test_a_pair_follows_a_path_and_keeps_its_formation() -> None:
    pipe = make_pipe()
    out = pipe.pair(TIMELINE, FRAMES, path=POINTS, **settings(pipe))
    assert out.info["path_deviation_m"]["largest"] < 0.05
    first, second = (people[:, 0, [0, 2]].astype(np.float64) for people in out.people)
    assert np.linalg.norm(first[0] - POINTS[0]) < 1e-3 and np.linalg.norm(first[-1] - POINTS[-1]) < 1e-2
    apart = np.linalg.norm(second - first, axis=1)
    assert np.abs(apart - apart[0]).max() < 0.02 and apart[0] > 0.05, "beside each other all the way"
    place, angle = FloorPath(POINTS).places(FRAMES)
    way = out.joints[:, 0, [0, 2]]
    assert np.abs(np.linalg.norm(way[:, None] - place[None].numpy(), axis=-1).min(1)).max() < 0.05


def test_b9_a_stop_while_texts_are_encoded_ends_a_pair_after_its_first_step() -> None:
    pipe = LongMotionPipeline.from_prior("bandai-small")
    pipe.set_progress_bar_config(disable=True)
    encode = pipe.text_encoder.encode

    def stops(texts: list[str]) -> torch.Tensor:
        pipe.stop()
        return encode(texts)

    pipe.text_encoder.encode = stops
    for people in (1, 2):
        out = pipe("two people walk side by side", 60, num_inference_steps=5, people=people)
        assert out.info["steps"] == 1 and not out.info["completed"] and np.isfinite(out.joints).all()


def test_what_two_people_cannot_have_is_refused_by_name() -> None:
    pipe = make_pipe()
    for more, message in (
        ({"take2": "release"}, "take2"),
        ({"mode": Mode.ROWS}, "canvas"),
        ({"hooks": [lambda clean, step: clean]}, "hooks"),
        ({"people": 3}, "people is 1 or 2"),
    ):
        with pytest.raises(UserError, match=message):
            pipe(TIMELINE, FRAMES, **{"people": 2, **settings(pipe), **more})
    with pytest.raises(UserError, match="block"):
        pipe(TIMELINE, FRAMES, **settings(pipe))
