"""Distributed attention strategies beside each other and beside the peers that run on CPU, in interleaved rounds.

    python tests/benchmarks/strategies.py --world 2 --length 4096 --rounds 7

Every row runs in the same loop on the same ranks, one thread each, float32, wall-clock time with a barrier before each
call. Ratios are medians of per-round ratios, the least ratio beside them, then the lines D1 to D9 of the specification.
The floor is each rank's own torch attention of its queries over all keys, with no communication. Peers that are not
installed are reported as absent; they come with `pip install --no-deps ring-attention-pytorch yunchang` and their own
imports (einops, beartype, jaxtyping, einx).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from live_bytes import allowed_bytes, peak_bytes
from longtake.kernels import (
    And,
    Causal,
    Documents,
    DualScope,
    Lambda,
    SlidingWindow,
    Transport,
    attention,
    make_plan,
)
from ranks import run_ranks

Row = Callable[[], Any]
OURS = ("ours ring", "ours ulysses", "ours allgather_kv")


def peers(rank: int, world: int, local: list[torch.Tensor]) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows of peers that run here, and why others do not."""
    rows: dict[str, Row] = {}
    absent: dict[str, str] = {}
    q, k, v = local
    swapped = [x.transpose(1, 2).contiguous() for x in local]
    try:
        from torch.distributed.tensor.experimental._context_parallel import _attention

        def op(q: Any, k: Any, v: Any, is_causal: bool = False, **_: Any) -> Any:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)

        _attention._cp_options.enable_load_balance = False

        def torch_ring() -> Any:
            with torch.no_grad():
                return _attention._templated_ring_attention(dist.group.WORLD, 2, op, q, k, v)[0]

        rows["torch templated ring (CPU op put in)"] = torch_ring
    except (ImportError, AttributeError) as error:
        absent["torch templated ring"] = str(error)
    try:
        from diffusers import ContextParallelConfig
        from diffusers.models._modeling_parallel import ParallelConfig
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        mesh = dist.device_mesh.init_device_mesh("cpu", (1, world), mesh_dim_names=("ring", "ulysses"))
        config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=world))
        config.setup(rank, world, torch.device("cpu"), mesh=mesh)

        def diffusers_ulysses() -> Any:
            with torch.no_grad():
                return dispatch_attention_fn(*swapped, backend="native", parallel_config=config).transpose(1, 2)

        rows["diffusers Ulysses"] = diffusers_ulysses
    except (ImportError, AttributeError, TypeError) as error:
        absent["diffusers Ulysses"] = str(error)
    try:
        from ring_attention_pytorch.ring_flash_attention import ring_flash_attn

        def lucidrains() -> Any:
            with torch.no_grad():
                return ring_flash_attn(*swapped, None, False, 1024, True, False, None, world).transpose(1, 2)

        rows["ring-attention-pytorch"] = lucidrains
    except ImportError as error:
        absent["ring-attention-pytorch"] = str(error)
    try:
        import yunchang.kernels.attention as yunchang_ops
        from yunchang.ring import ring_pytorch_attn_func

        def cpu_op(q: Any, k: Any, v: Any, dropout_p: float = 0.0, is_causal: bool = False, **rest: Any) -> Any:
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, dropout_p, is_causal, scale=rest.get("scale")
            )
            return found[0], found[1]

        def patched(q: Any, k: Any, v: Any, *args: Any, **rest: Any) -> Any:
            return cpu_op(q, k, v, scale=rest.get("scale"))

        yunchang_ops._scaled_dot_product_flash_attention = patched

        def yunchang_ring() -> Any:
            with torch.no_grad():
                found = ring_pytorch_attn_func(*swapped, group=dist.group.WORLD)
                return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

        rows["yunchang ring (CPU op put in)"] = yunchang_ring
    except (ImportError, AttributeError) as error:
        absent["yunchang"] = str(error)
    return rows, absent


def rank_rounds(rank: int, world: int, length: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, 8, length, 64, generator=generator) for _ in range(3)]
    transport = Transport()
    plans = {
        "ours ring": make_plan(length, world=world, strategy="ring"),
        "ours ulysses": make_plan(length, world=world, strategy="ulysses", heads=8),
        "ours allgather_kv": make_plan(length, world=world, strategy="allgather_kv"),
        "ours ring zigzag causal": make_plan(length, Causal(), world=world, strategy="ring", layout="zigzag"),
        "ours halo, window 256 + 64 global": make_plan(
            length, DualScope(256, tuple(range(0, length, length // 64))), world=world, strategy="halo"
        ),
    }

    def call(plan: Any, grad: bool = False) -> Row:
        local = [plan.queries.shard(x, rank) for x in whole]
        if not grad:
            return lambda: attention(*local, mesh=transport, plan=plan)
        leaves = [x.requires_grad_() for x in local]
        ones = torch.ones_like(local[0])
        return lambda: torch.autograd.grad(attention(*leaves, mesh=transport, plan=plan), leaves, ones)

    plain = plans["ours ring"].queries
    mine = [plain.shard(x, rank) for x in whole]
    rows: dict[str, Row] = {"floor": lambda: F.scaled_dot_product_attention(mine[0], whole[1], whole[2])}
    rows |= {name: call(plan) for name, plan in plans.items()}
    rows["ours ring, forward and backward"] = call(plans["ours ring"], grad=True)
    documents = Documents(tuple(range(0, length + 1, length // 8)))
    sparse = {
        "ours ring, sliding window 256": ("ring", SlidingWindow(256, 256)),
        "ours ring zigzag, causal documents": ("ring", And(Causal(), documents)),
        "ours halo, Lambda 64 + 512": ("halo", Lambda(64, 512)),
    }
    for name, (strategy, mask) in sparse.items():
        layout = "zigzag" if "zigzag" in name else "contiguous"
        rows[name] = call(make_plan(length, mask, world=world, strategy=strategy, layout=layout))
    others, absent = peers(rank, world, mine)
    expected = rows["floor"]()
    checks = {}
    for name, row in others.items():
        try:
            checks[name] = float((row() - expected).abs().max())
            rows[name] = row
        except Exception as error:  # a peer's failure is a line of the table, not ours
            absent[name] = f"failed: {type(error).__name__}: {str(error)[:80]}"
    checks |= {name: float((rows[name]() - expected).abs().max()) for name in list(plans)[:3]}
    for row in rows.values():
        row()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            dist.barrier()
            begun = time.perf_counter()
            row()
            dist.barrier()
            times[name].append(time.perf_counter() - begun)
    return {
        "times": times, "absent": absent, "checks": checks, "overhead": overhead(plans["ours ring"], mine, transport),
        "memory": {name: memory(plans[name], whole, rank, transport) for name in ("ours ring", "ours allgather_kv")},
    }  # fmt: skip


def overhead(plan: Any, local: list[torch.Tensor], transport: Any) -> float:
    """Seconds that one call spends on checks, the cached plan and the cached comparison (D7)."""
    from longtake.kernels.calls.request import Asked, settle

    settle(Asked(*local, plan=plan), transport)
    begun = time.perf_counter()
    for _ in range(100):
        settle(Asked(*local, plan=plan), transport)
    return (time.perf_counter() - begun) / 100


def memory(plan: Any, whole: list[torch.Tensor], rank: int, transport: Any) -> tuple[float, float]:
    """Peak of the tensors made by one forward call, in bytes, and what D9 allows."""
    local = [plan.queries.shard(x, rank) for x in whole]
    return peak_bytes(lambda: attention(*local, mesh=transport, plan=plan)), allowed_bytes(plan.strategy, local, whole)


def alone(length: int, rounds: int) -> list[tuple[str, float, float]]:
    """Dual scope in one process against dense attention and dense attention with a mask."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, length, 64, generator=generator) for _ in range(3))
    scope = DualScope(256, tuple(range(0, length, length // 64)))
    bias = torch.zeros(length, length).masked_fill_(~scope.dense(range(length), range(length)), -torch.inf)
    rows: dict[str, Row] = {
        "ours": lambda: attention(q, k, v, mask=scope),
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "dense with mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    rows["ours"]()
    for _ in range(rounds):
        for name, row in rows.items():
            begun = time.perf_counter()
            row()
            times[name].append(time.perf_counter() - begun)
    return [
        (name, *summary([a / b for a, b in zip(times["ours"], times[name], strict=True)])) for name in list(rows)[1:]
    ]


def summary(ratios: list[float]) -> tuple[float, float]:
    return statistics.median(ratios), min(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone", type=int, default=8192, help="length of the dual-scope comparison; 0 leaves it out")
    args = parser.parse_args()
    if args.length % args.world:
        parser.error(f"--length {args.length} over {args.world} ranks: the peers need equal shards (ours do not)")
    torch.set_num_threads(1)
    reports = run_ranks(rank_rounds, args.world, args.length, args.rounds, timeout=600)
    print(f"P={args.world} N={args.length} H=8 D=64 float32, torch {torch.__version__}, load {os.getloadavg()[0]:.2f}")
    times = reports[0]["times"]
    print(f"{'row':<40} {'ms':>8} {'/ floor':>8} {'least':>6} {'error':>9}")
    for name, seconds in times.items():
        ratio, least = summary([a / b for a, b in zip(seconds, times["floor"], strict=True)])
        error = max((report["checks"].get(name, 0.0) for report in reports), default=0.0)
        told = f"{error:9.1e}" if name in reports[0]["checks"] else " " * 9
        print(f"{name:<40} {statistics.median(seconds) * 1e3:>8.1f} {ratio:>8.2f} {least:>6.2f} {told}")
    for name, why in reports[0]["absent"].items():
        print(f"{name:<40} absent: {why}")

    def ratio(a: str, b: str) -> str:
        if a not in times or b not in times:
            return "not measured"
        return "{:.2f} (least {:.2f})".format(*summary([x / y for x, y in zip(times[a], times[b], strict=True)]))

    best = min(OURS, key=lambda name: statistics.median(times[name]))
    both, ring = times["ours ring, forward and backward"], times["ours ring"]
    backward = summary([(x - y) / y for x, y in zip(both, ring, strict=True)])
    print(f"D1 ring, ulysses, allgather_kv / floor <= 1.25: {', '.join(ratio(name, 'floor') for name in OURS)}")
    print(f"D2 {best} / torch templated ring <= 1.10: {ratio(best, 'torch templated ring (CPU op put in)')}")
    print(f"D3 ours ulysses / diffusers Ulysses <= 1.10: {ratio('ours ulysses', 'diffusers Ulysses')}")
    print(f"D4 ring-attention-pytorch / ours ring >= 1.8: {ratio('ring-attention-pytorch', 'ours ring')}")
    print(f"   yunchang ring / ours ring: {ratio('yunchang ring (CPU op put in)', 'ours ring')}")
    print(f"D6 zigzag causal / full ring <= 0.75: {ratio('ours ring zigzag causal', 'ours ring')}")
    print(f"D7 checks and cached plan / ring call <= 0.02: {reports[0]['overhead'] / statistics.median(ring):.4f}")
    print(f"D8 backward / forward <= 3.5: {backward[0]:.2f} (least {backward[1]:.2f})")
    for name, (peak, allowed) in reports[0]["memory"].items():
        print(f"D9 {name}: peak {peak / 1e6:.1f} MB, allowed {allowed / 1e6:.1f} MB, {peak / allowed:.2f}")
    if args.alone:
        for name, ratio, least in alone(args.alone, max(args.rounds // 2, 1)):
            print(f"D5 one process, N={args.alone}, H=4: ours / {name:<21} {ratio:.3f} (least {least:.3f})")


if __name__ == "__main__":
    main()
