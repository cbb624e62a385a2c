"""Planted faults turn the exactness check red (A10), and a rank that dies takes the others down (E2)."""

import math
import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import attention_cases
import pytest
import torch
import torch.distributed as dist
from longtake.kernels import Causal, DistTimeout, Full, Transport, attention, make_plan, merge
from longtake.kernels.ranks.transport import Pending
from longtake.kernels.strategies import engine, ring
from longtake.kernels.strategies.build import tiles
from ranks import run_ranks

HERE = Path(__file__).parent


def reverse_gradients(patch: pytest.MonkeyPatch) -> None:
    """Gradient sums travel against their keys."""
    plain = Transport.start_messages

    def turned(self: Transport, kind: str, sends: Any, receives: Any) -> Pending[None]:
        if kind == "ring_grad":
            sends = [((2 * self.rank - to) % self.world, buffer) for to, buffer in sends]
            receives = [((2 * self.rank - of) % self.world, buffer) for of, buffer in receives]
        return plain(self, kind, sends, receives)

    patch.setattr(Transport, "start_messages", turned)


def drop_the_way_home(patch: pytest.MonkeyPatch) -> None:
    """What other ranks computed for my keys never arrives."""
    patch.setattr(ring, "add_rows", lambda *arguments: None)


def lse_of_each_tile(patch: pytest.MonkeyPatch) -> None:
    """The backward takes each tile's own O and L, not those of all keys."""
    plain = engine.attend_backward

    def own(run: Any, tiles: Any, d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *sums: Any) -> None:
        for tile in tiles:
            into = engine.Merged(q, v.shape[3])
            engine.attend(run, [tile], q, k, v, into)
            plain(run, [tile], d_out, q, k, v, *into.result(), *sums)

    patch.setattr(ring, "attend_backward", own)


def autograd_through_the_merge(patch: pytest.MonkeyPatch) -> None:
    """Gradients of merged parts by autograd over torch's op, whose L carries none."""

    def naive(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: Any, lse: Any, d_out: Any) -> Any:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            half = k.shape[2] // 2
            parts = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    leaves[0], leaves[1][:, :, part], leaves[2][:, :, part], scale=ctx.scale
                )
                for part in (slice(0, half), slice(half, None))
            ]
            return torch.autograd.grad(merge(*parts[0], *parts[1])[0], leaves, d_out)

    def backward(self: ring.Ring, run: Any, d_out: Any, saved: Any) -> Any:
        return naive(run, *saved, d_out)

    patch.setattr(ring.Ring, "backward", backward)


FAULTS = [None, reverse_gradients, drop_the_way_home, lse_of_each_tile, autograd_through_the_merge]


def rank_fault(rank: int, world: int, number: int, mask: Any) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        fault = FAULTS[number]
        if fault is not None:
            fault(patch)
        case = {"mask": mask, "n": 24 * world, "heads": 2, "strategy": "ring", "block": 8}
        return attention_cases.case_error(rank, world, case)


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a10_each_planted_fault_is_seen(number: int) -> None:
    world = 1 if FAULTS[number] is autograd_through_the_merge else 3
    reports = run_ranks(rank_fault, world, number, Full())
    forward = max(report["O"] for report in reports)
    backward = max(report[name] for report in reports for name in ("dQ", "dK", "dV"))
    assert forward <= 1e-12
    if FAULTS[number] is None:
        assert backward <= 1e-12
    else:
        assert backward > 1e-3


@pytest.mark.distributed
def test_a10_two_ranks_hide_the_reversed_direction() -> None:
    """Why three ranks are always tested."""
    reports = run_ranks(rank_fault, 2, 1, Full())
    assert max(max(report.values()) for report in reports) <= 1e-12


def rank_killed(rank: int, world: int) -> tuple[str, float]:
    plan = make_plan(24, Causal(), world=world, strategy="ring")
    q = plan.queries.shard(torch.ones(1, 2, 24, 8), rank)
    transport = Transport(dist.new_group(timeout=timedelta(seconds=5)))
    attention(q, q, q, mesh=transport, plan=plan)
    dist.barrier()
    if rank == 1:  # falls silent while the others wait for its keys, then dies
        time.sleep(10)
        os._exit(9)
    begun = time.monotonic()
    try:
        for _ in range(3):
            attention(q, q, q, mesh=transport, plan=plan)
        return "nothing", 0.0
    except DistTimeout as error:
        message = (str(error), time.monotonic() - begun)
    Path(os.environ["LONGTAKE_TEST_FOLDER"], f"told{rank}").write_text(f"{message[1]} {message[0]}")
    return message


@pytest.mark.distributed
def test_e2_a_rank_that_falls_silent_and_dies_makes_the_others_raise(tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, TimeoutError), match="rank"):
        run_ranks(rank_killed_in, 3, str(tmp_path))
    told = [path.read_text() for path in tmp_path.glob("told*")]
    assert len(told) == 2
    for text in told:
        seconds, message = text.split(" ", 1)
        assert float(seconds) < 20 and "ring from ranks" in message


def rank_killed_in(rank: int, world: int, folder: str) -> tuple[str, float]:
    os.environ["LONGTAKE_TEST_FOLDER"] = folder
    return rank_killed(rank, world)


@pytest.mark.parametrize("seed", range(10))
def test_a12_merge_is_associative_and_commutative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(7):
        lse = torch.randn(1, 2, 5, generator=generator, dtype=torch.float64) * 30
        hidden = torch.rand(1, 2, 5, generator=generator) < 0.3
        out = torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64).masked_fill(hidden[..., None], 0)
        parts.append((out, lse.masked_fill(hidden, -math.inf)))
    chain = parts[0]
    for part in parts[1:]:
        chain = merge(*chain, *part)
    while len(parts) > 1:
        a, b = torch.randperm(len(parts), generator=generator)[:2].tolist()
        joined = merge(*parts[a], *parts[b])
        parts = [part for index, part in enumerate(parts) if index not in (a, b)] + [joined]
    seen = chain[1].isfinite()
    assert torch.equal(seen, parts[0][1].isfinite())
    assert (chain[0] - parts[0][0]).abs().max() <= 1e-12
    assert (chain[1] - parts[0][1])[seen].abs().max() <= 1e-12


def test_e3_tiles_without_rows_or_keys_never_reach_a_backend() -> None:
    plan = make_plan((0, 24), Causal(), strategy="ring", key_lengths=(24, 0))
    for rank in range(2):
        for tile in tiles(plan, rank):
            assert tile.n_rows and tile.n_keys
    assert replace(plan, block=3) != plan and hash(plan) == hash(replace(plan))
    x = torch.ones(1, 2, 0, 8)
    assert attention(x, x, x).shape == x.shape
    assert (attention(torch.ones(1, 2, 3, 8), x, x) == 0).all()
