"""Section H of the kernels' specification as one command, for a machine with a GPU: every backend against torch's own
attention, the choice of `backend="auto"` against the fastest, sparse masks against dense attention.

    python tests/benchmarks/gpu_attention.py --lengths 8192 16384 32768 65536 --dims 64 128 256 --rounds 7

Without a GPU it runs on the CPU in float32, which checks the command, not the kernels. Rounds are interleaved; times
are wall-clock medians between synchronisations; errors are the largest difference from the row "torch" over its largest
value. Prints what each backend refuses and why.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from longtake.kernels import CapabilityError, DualScope, Full, attention, explain
from longtake.kernels.backends.contract import accelerators
from longtake.kernels.backends.registry import backends

Row = Callable[[], torch.Tensor]


def wait(device: str) -> None:
    if device in accelerators():
        torch.accelerator.synchronize()


def interleaved(rows: dict[str, Row], rounds: int, device: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):  # the first warms up
        for name, row in rows.items():
            wait(device)
            begun = time.perf_counter()
            row()
            wait(device)
            if number:
                times[name].append(time.perf_counter() - begun)
    return times


def ours(tensors: list[torch.Tensor], backend: str, grad: bool, **settings: Any) -> Row:
    def forward() -> torch.Tensor:
        with torch.set_grad_enabled(grad):
            out: torch.Tensor = attention(*tensors, backend=backend, **settings)
            if grad:
                torch.autograd.grad(out, tensors, torch.ones_like(out))
            return out.detach()

    return forward


def stock(tensors: list[torch.Tensor], grad: bool, bias: torch.Tensor | None = None) -> Row:
    def forward() -> torch.Tensor:
        with torch.set_grad_enabled(grad):
            out = F.scaled_dot_product_attention(*tensors, attn_mask=bias)
            if grad:
                torch.autograd.grad(out, tensors, torch.ones_like(out))
            return out.detach()

    return forward


def table(title: str, rows: dict[str, Row], flops: float, rounds: int, device: str) -> None:
    """Rows that raise CapabilityError are told and left out."""
    expected, served = rows["torch"](), {}
    print(f"\n{title}\n{'row':<28} {'ms':>9} {'TFLOP/s':>9} {'/ torch':>8} {'error':>9}")
    for name, row in rows.items():
        try:
            error = float((row().float() - expected.float()).abs().max() / expected.float().abs().max())
            served[name] = error
        except CapabilityError as refusal:
            print(f"{name:<28} {str(refusal).split(': ', 1)[-1][:90]}")
    times = interleaved({name: rows[name] for name in served}, rounds, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times["torch"], strict=True))
        print(f"{name:<28} {seconds * 1e3:>9.3f} {flops / seconds / 1e12:>9.2f} {ratio:>8.2f} {served[name]:>9.1e}")
    others = [seconds for name, seconds in medians.items() if name not in ("auto", "torch")]
    if "auto" in medians and others:
        print(f"auto / fastest of ours: {medians['auto'] / min(others):.2f} (at most 1.05)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192])
    parser.add_argument("--dims", type=int, nargs="+", default=[64])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--globals", type=int, default=64)
    args = parser.parse_args()
    device = next(iter(accelerators()), "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    print(f"{device}, {dtype}, B=1 H={args.heads}, torch {torch.__version__}, load {os.getloadavg()[0]:.2f}")
    names = [backend.name for backend in backends() if backend.name != "math"]
    for dim in args.dims:
        for length in args.lengths:
            generator = torch.Generator().manual_seed(0)
            shape = (1, args.heads, length, dim)
            tensors = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
            flops = 4 * args.heads * dim * length**2
            print(f"\n{explain(*tensors)}")
            for grad in (False, True):
                rows: dict[str, Row] = {"torch": stock(tensors, grad)}
                rows |= {name: ours(tensors, name, grad, mask=Full()) for name in ("auto", *names)}
                title = f"dense, N={length} D={dim}, {'forward and backward' if grad else 'forward'}"
                table(title, rows, flops * (3.5 if grad else 1), args.rounds, device)
            scope = DualScope(args.window, tuple(range(0, length, max(length // args.globals, 1))))
            sparse = {name: ours(tensors, name, False, mask=scope) for name in ("auto", *names)}
            dense = interleaved(
                {"torch": stock(tensors, False), "auto": sparse["auto"]}, args.rounds, device
            )  # fmt: skip
            gain = statistics.median(a / b for a, b in zip(dense["torch"], dense["auto"], strict=True))
            print(f"\ndual scope {args.window} + {args.globals}: dense torch / auto {gain:.2f}")
            if length <= 16384:  # a mask tensor of the whole
                bias = torch.zeros(length, length, dtype=dtype, device=device)
                bias.masked_fill_(~scope.dense(range(length), range(length)).to(device), -torch.inf)
                area = int(scope.dense(range(length), range(length)).sum())
                sparse = {"torch": stock(tensors, False, bias), **sparse}
                table(f"dual scope, N={length} D={dim}", sparse, 4 * args.heads * dim * area, args.rounds, device)


if __name__ == "__main__":
    main()
