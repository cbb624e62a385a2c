"""Lines of the specification's ACCEPTANCE list that no other file of this folder is about."""

import math
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import attention_cases
import pytest
import torch
import torch.distributed as dist
from live_bytes import allowed_bytes, peak_bytes
from longtake.kernels import (
    And,
    Causal,
    Dense,
    Documents,
    DualScope,
    Full,
    KeyPadding,
    SlidingWindow,
    Transport,
    attention,
    make_plan,
)
from ranks import run_ranks

HERE = Path(__file__).parent
N = 41
BLIND: dict[str, Any] = {
    "documents that end early": Documents((0, 12, 30)),
    "no keys": KeyPadding(0),
    "no keys of one entry": KeyPadding((0, 20)),
    "keys before the queries": And(Causal(-5), SlidingWindow(8, None)),
    "a table with empty rows": Dense(torch.arange(N)[:, None] % 3 > torch.arange(N)[None] % 2),
}


def rank_blind(rank: int, world: int) -> dict[str, dict[str, float]]:
    errors, transport = {}, Transport()
    for name, mask in BLIND.items():
        for strategy, layout in (("ring", "zigzag"), ("ulysses", "contiguous"), ("allgather_kv", "striped"),
                                 ("halo", "contiguous")):  # fmt: skip
            for dtype in (torch.float32, torch.float64):
                case = {"mask": mask, "n": N, "heads": 4, "kv_heads": 2, "strategy": strategy, "layout": layout,
                        "dtype": dtype, "block": 16}  # fmt: skip
                found = attention_cases.case_error(rank, world, case, transport)
                errors[f"{name} {strategy} {dtype}"] = found
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a4_rows_without_a_key_are_zero_with_l_minus_infinity_and_l_is_right_elsewhere(world: int) -> None:
    """`case_error` compares which rows are blind, and asks for O = 0 and dQ = 0 there."""
    assert all(bool((mask.dense(range(N), range(N)).any(-1) == 0).any()) for mask in BLIND.values())
    for errors in run_ranks(rank_blind, world):
        for name, found in errors.items():
            assert found["L"] <= 1e-5 and all(math.isfinite(error) for error in found.values()), (name, found)
            assert max(found["O"], found["dQ"], found["dK"], found["dV"]) <= 5e-6, (name, found)


def test_a8_three_ranks_are_among_those_of_every_sweep() -> None:
    """Two ranks hide a reversed direction (test_faults.py shows it)."""
    sweeps = 0
    for file in HERE.glob("test_*.py"):
        for worlds in re.findall(r'parametrize\("world", \[([^\]]*)\]', file.read_text()):
            sweeps += 1
            assert "3" in worlds, (file.name, worlds)
    assert sweeps >= 10


def rank_memory(rank: int, world: int, strategy: str) -> tuple[int, int, list[int]]:
    """(peak, what is allowed, comparisons after each of three calls)."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, 4, 128 * world, 32, generator=generator) for _ in range(3)]
    plan, transport = make_plan(128 * world, world=world, strategy=strategy), Transport()
    local = [plan.queries.shard(x, rank) for x in whole]
    compared = []
    for _ in range(2):
        attention(*local, mesh=transport, plan=plan)
        compared.append(transport.counter.calls["check"])
    peak = peak_bytes(lambda: attention(*local, mesh=transport, plan=plan))
    compared.append(transport.counter.calls["check"])
    return peak, allowed_bytes(strategy, local, whole), compared


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("strategy", ["ring", "allgather_kv"])
def test_d7_d9_one_comparison_of_a_plan_and_no_more_memory_than_two_shards_or_all_keys(
    world: int, strategy: str
) -> None:
    for peak, allowed, compared in run_ranks(rank_memory, world, strategy):
        assert peak <= 1.02 * allowed, (peak, allowed)
        assert compared == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.distributed
def test_d1_to_d9_are_lines_of_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Small and once: that the command works and misses no line. Its figures are in kernels/README.md."""
    script = HERE.parent / "benchmarks" / "strategies.py"
    words = ["--world", "2", "--length", "384", "--rounds", "1", "--alone", "512"]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(script))["main"]()  # its ranks find the file again; a process of its own would load torch anew
    told = capsys.readouterr().out
    for line in ("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9"):
        assert re.search(rf"^{line} ", told, re.MULTILINE), (line, told)
    assert "failed:" not in told, told


WITHOUT = """
import sys

for name in ("triton", "flash_attn", "flash_attn_interface", "diffusers"):
    sys.modules[name] = None  # as if it were not installed
import torch
import longtake.kernels as kernels
for name in kernels.__all__:
    getattr(kernels, name)
from longtake.kernels.backends.registry import backends
names = [backend.name for backend in backends()]
assert not any("triton" in name or "flash_attn" in name for name in names), names
q = torch.randn(1, 2, 30, 8, requires_grad=True)
for mask in (kernels.Full(), kernels.Causal(), kernels.DualScope(3, (1, 9)), kernels.Lambda(2, 5)):
    kernels.attention(q, q, q, mask=mask).sum().backward()
print(",".join(names))
"""


def test_e7_without_triton_and_flash_attn_everything_imports_and_runs() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=600, cwd=HERE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("aten_cpu,math")


def rank_meshes(rank: int, world: int) -> float:
    """Two groups of this process and two configurations, call by call in turn."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own = pairs[rank // 2]
    settings = [
        (Transport(), world, rank, Causal(), "ring", "zigzag", "auto", torch.float64),
        (Transport(own), 2, rank % 2, DualScope(4, (3, 20)), "halo", "contiguous", "math", torch.float32),
        (Transport(own), 2, rank % 2, Full(), "ulysses", "contiguous", "auto", torch.float64),
    ]
    worst, outs = 0.0, []
    for turn in range(3):
        pending = []
        for number, (transport, size, place, mask, strategy, layout, backend, dtype) in enumerate(settings):
            n = 24 + 2 * turn + number
            q, k, v, d_out = attention_cases.whole_tensors(n, n, 4, 2, 8, dtype)
            plan = make_plan(n, mask, world=size, strategy=strategy, layout=layout, heads=4, kv_heads=2)
            leaves = [plan.queries.shard(x, place).requires_grad_() for x in (q, k, v)]
            out = attention(*leaves, mesh=transport, plan=plan, backend=backend)
            pending.append((out, leaves, plan, place, d_out, attention_cases.truth(q, k, v, d_out, mask), dtype))
        for out, leaves, plan, place, d_out, expected, dtype in pending:  # backwards after all forwards
            grads = torch.autograd.grad(out, leaves, plan.queries.shard(d_out, place))
            for ours, ref in zip((out.detach(), *grads), expected, strict=False):
                error = float((ours.double() - plan.queries.shard(ref, place)).abs().max())
                worst = max(worst, error if dtype == torch.float64 else error * 1e-7)
            outs.append(out)
    return worst


@pytest.mark.distributed
def test_e8_two_meshes_and_configurations_in_one_process_do_not_disturb_each_other() -> None:
    assert max(run_ranks(rank_meshes, 4)) <= 1e-12


def rank_conditions(rank: int, world: int) -> tuple[int, int, str, str]:
    store = dist.distributed_c10d._get_default_store()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return os.getpid(), torch.get_num_threads(), type(store).__name__, os.environ.get("MASTER_PORT", "no port")


@pytest.mark.distributed
def test_i_ranks_have_one_thread_a_file_store_and_are_gone_afterwards() -> None:
    for pid, threads, store, port in run_ranks(rank_conditions, 3):
        assert (threads, store, port) == (1, "FileStore", "no port")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not [child for child in multiprocessing.active_children() if "rank" in child.name]
