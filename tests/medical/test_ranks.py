"""Several ranks give what one gives: samples, slices or visits dealt out."""

import numpy as np
import pytest
import torch
from longtake.device import choose_device
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.medical.ranks import Team
from longtake.medical.windows import starts
from medical_nets import growing, random_pipeline
from ranks import run_ranks

SETTINGS = {"samples": 4, "num_inference_steps": 2, "history": "all", "guidance_scale": 1.3}


def predicted(rank, world, split):
    import torch.distributed as dist

    group = dist.group.WORLD if world > 1 else None
    ranks = Ranks(rank, world, rank, group, torch.device("cpu"), choose_device("cpu"))
    found = random_pipeline().predict(growing((5, 24, 32)), [6.0, 9.0], ranks=ranks, split=split, **SETTINGS)
    return found.samples, found.lower, found.info["samples"]


@pytest.mark.distributed
@pytest.mark.parametrize("split", ["samples", "slices", "visits"])
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_gives_the_result_of_one(world, split):
    alone = predicted(0, 1, split)
    for samples, lower, count in run_ranks(predicted, world, split):
        assert count == 4
        assert np.abs(samples - alone[0]).max() <= 1e-5
        assert np.abs(lower - alone[1]).max() <= 1e-5


def test_more_ranks_than_slices_are_refused():
    from longtake.kernels import DryTransport

    with pytest.raises(UserError, match="split samples"):
        Team.over("slices", DryTransport(0, 3), 5, 1)


def test_windows_of_an_axis_reach_both_ends_and_overlap():
    for length, window in ((40, 16), (41, 16), (16, 16), (10, 16)):
        found = starts(length, window)
        assert found[0] == 0 and found[-1] == max(0, length - window)
        assert all(b - a <= window // 2 for a, b in zip(found, found[1:], strict=False))
