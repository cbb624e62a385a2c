"""No frame of a motion is jerkier than real people, and what was within the limit stays as it is."""

import time

import numpy as np
import pytest
import torch
from longtake.motion.pipeline import LongMotionPipeline
from longtake.motion.seams import seam_report
from longtake.motion.smoothing import MOST_JERK, ONE_JOINT, frame_jerk, limit_jerk
from motion_data import swaying


def one_joint(joints: torch.Tensor) -> float:
    return float((joints.double().diff(n=3, dim=0).norm(dim=-1) * 20.0**3).max())


def popped(frames: int = 200, size: float = 0.5) -> torch.Tensor:
    joints = swaying(0, frames, 0.0)
    joints[70, 10] += size  # a foot that jumps for a frame
    joints[120:, 20] += torch.tensor([0.0, size, 0.0])  # a hand that jumps and stays
    return joints


def test_u16_no_frame_exceeds_the_limit_and_few_frames_change() -> None:
    given = popped()
    assert float(frame_jerk(given, 20.0).max()) > 700
    fixed = limit_jerk(given, 20.0)
    assert float(frame_jerk(fixed, 20.0).max()) <= MOST_JERK and one_joint(fixed) <= ONE_JOINT * MOST_JERK
    changed = (fixed != given).any(-1).any(-1).nonzero().squeeze(1)
    assert len(changed) and set(changed.tolist()) <= set(range(60, 81)) | set(range(105, 136))
    assert float((fixed - given).norm(dim=-1).max()) < 0.5 * 3**0.5, "the pop itself is the most that is taken off"


def test_a_motion_within_the_limit_is_returned_as_it_is() -> None:
    given = swaying(0, 100, 0.0)
    assert limit_jerk(given, 20.0) is given and limit_jerk(given[:3], 20.0).shape == (3, 22, 3)


def test_noise_everywhere_is_bounded_too_and_long_motions_take_linear_time() -> None:
    generator = torch.Generator().manual_seed(0)
    given = swaying(0, 12_000, 0.0) + 0.05 * torch.randn(12_000, 22, 3, generator=generator)
    started = time.process_time()
    fixed = limit_jerk(given, 20.0)
    assert time.process_time() - started < 60
    assert float(frame_jerk(fixed, 20.0).max()) <= MOST_JERK and one_joint(fixed) <= ONE_JOINT * MOST_JERK


def test_u16_the_seam_report_tells_the_worst_frame() -> None:
    report = seam_report(popped(), [60, 150], 20.0)
    worst = frame_jerk(popped(), 20.0)
    assert report.worst_jerk == pytest.approx(float(worst.max()), rel=1e-5)
    assert report.worst_frame == int(worst.argmax()) and abs(report.seams[0].worst_frame - 68) <= 2
    assert report.seams[0].worst_jerk > MOST_JERK and f"{report.worst_jerk:.0f} m/s3" in report.text()
    assert report.text().splitlines()[4].endswith("!") or "!" in report.text()


def test_u16_made_motions_have_no_pops_and_say_so() -> None:
    pipe = LongMotionPipeline.from_prior("bandai-small")
    pipe.set_progress_bar_config(disable=True)
    worst = []
    for prompt, seed in (("0s: a person walks | 4s: waves with the right hand | 8s: a person runs", 0),
                         ("a person runs", 1)):  # fmt: skip
        free = pipe(prompt, seed=seed, most_jerk=None, take2="release" if "|" in prompt else None)
        held = pipe(prompt, seed=seed, take2="release" if "|" in prompt else None)
        worst.append(free.info["worst_jerk"])
        assert held.info["worst_jerk"] <= MOST_JERK and held.seams().worst_jerk <= MOST_JERK
        assert np.array_equal(free.features, held.features), "features stay as the net made them"
        assert float(np.abs(free.joints - held.joints).max()) < 0.3
    assert max(worst) > MOST_JERK, "without the limit this prior pops"
