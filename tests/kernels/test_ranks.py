"""The helper that all multi-process tests stand on."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks


def rank_add(rank: int, world: int, number: int) -> tuple[int, int]:
    total = torch.tensor(number * (rank + 1))
    dist.all_reduce(total)
    return int(total), torch.get_num_threads()


@pytest.mark.distributed
def test_results_come_back_in_rank_order_from_single_threaded_processes() -> None:
    assert run_ranks(rank_add, 3, 5) == [(30, 1)] * 3


def rank_fails(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("the second rank is unwell")
    dist.barrier()


@pytest.mark.distributed
def test_the_failing_rank_is_named_with_its_traceback_and_the_others_do_not_hang() -> None:
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="(?s)rank 1 of 3 failed first.*the second rank is unwell"):
        run_ranks(rank_fails, 3)
    assert time.monotonic() - begun < 240


def rank_dies(rank: int, world: int) -> None:
    if rank == 0:
        os._exit(9)
    time.sleep(60)


@pytest.mark.distributed
def test_a_rank_that_dies_without_a_word_is_reported() -> None:
    with pytest.raises(RuntimeError, match="rank 0 of 2 died with exit code 9"):
        run_ranks(rank_dies, 2)


def rank_sleeps(rank: int, world: int) -> None:
    time.sleep(60 * rank)


@pytest.mark.distributed
def test_a_rank_that_is_late_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[.*1\] of 2 were still busy after 3 s"):
        run_ranks(rank_sleeps, 2, timeout=3)
