"""The table of a GPU as one command: torch's own row beside each of ours, times, kernels and bytes.

    python tests/benchmarks/gpu_table.py              # a GPU: under 100 s; --seconds 60 leaves out what does not fit
    python tests/benchmarks/gpu_table.py --tiny       # anywhere: that the command works, not how fast anything is

Attention, dense and under a window, a UNet of VideoCrafter2's size (1.4 B, random weights, 320x512), the shipped prior,
and how right they are. Rounds are interleaved and the first warms up; times are medians between synchronisations.
"kernels" and "bytes" are counted on fake tensors of the same shapes (tests/operator_counts.py), forward only; bytes are
over those of q, k, v and the output (of a UNet: tests/video/test_gpu_counts.py). A table that no longer fits the time
says so.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("PYTHONSAFEPATH", "1")

from longtake.device import choose_device  # noqa: E402
from longtake.kernels import (  # noqa: E402
    CapabilityError,
    Causal,
    DualScope,
    Full,
    attention,
    attention_reference,
    linear_attention,
)
from longtake.kernels.backends.registry import backends  # noqa: E402
from longtake.kernels.linear.lasp2 import linear_attention_reference  # noqa: E402
from longtake.kernels.partition import Partition  # noqa: E402
from longtake.video.parallelize import parallelize  # noqa: E402
from longtake.video.scope import Scope  # noqa: E402
from operator_counts import pretended_gpu  # noqa: E402

Row = Callable[[], Any]
VIDEOCRAFTER2 = {
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024, "attention_head_dim": 64,
    "layers_per_block": 2, "sample_size": None,
}  # fmt: skip
TINY = {
    "block_out_channels": (32, 64), "cross_attention_dim": 32, "attention_head_dim": 8, "layers_per_block": 1,
    "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}  # fmt: skip


@dataclass
class Run:
    """Where and how large. until: the clock at which no further table begins."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    rounds: int
    until: float

    def late(self, title: str) -> bool:
        if time.perf_counter() > self.until:
            print(f"\n{title}: left out, the time is up (--seconds)")
            return True
        return False

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def made(self, *shape: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)


def spread(frames: int, number: int) -> tuple[int, ...]:
    return tuple(range(0, frames, max(frames // number, 1)))[:number]


def table(run: Run, title: str, rows: dict[str, Row], counted: dict[str, tuple[int, float]]) -> None:
    """The first row is torch's. A row that cannot be served, or does not fit the memory, says why."""
    print(f"\n{title}\n{'row':<26} {'ms':>10} {'/ first':>8} {'kernels':>8} {'bytes':>6} {'GiB':>6}")
    served, peaks = {}, {}
    for name, row in rows.items():
        if run.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats()
        try:
            row()
            run.wait()
        except (CapabilityError, torch.OutOfMemoryError) as refusal:
            print(f"{name:<26} {str(refusal).splitlines()[0][:90]}")
            continue
        served[name] = row
        peaks[name] = torch.accelerator.max_memory_allocated() / 2**30 if run.device.type != "cpu" else 0.0
    times: dict[str, list[float]] = {name: [] for name in served}
    for _ in range(run.rounds):
        for name, row in served.items():
            run.wait()
            begun = time.perf_counter()
            row()
            run.wait()
            times[name].append(time.perf_counter() - begun)
    first = next(iter(times.values()), [])
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        kernels, size = counted.get(name, (0, 0.0))
        counts = f"{kernels:>8} {size:>6.2f}" if kernels else f"{'':>8} {'':>6}"
        print(f"{name:<26} {statistics.median(seconds) * 1e3:>10.3f} {ratio:>8.2f} {counts} {peaks[name]:>6.1f}")


def calls(q: Any, k: Any, v: Any, grad: bool) -> Callable[..., Row]:
    """A call on q, k, v, with its backward where one is wanted."""

    def made(function: Callable[..., torch.Tensor], **settings: Any) -> Row:
        def row() -> torch.Tensor:
            with torch.set_grad_enabled(grad):
                out = function(q, k, v, **settings)
                if grad:
                    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
            return out.detach()

        return row

    return made


def counts_of(shape: tuple[int, ...], frames_first: bool, rows: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    """(kernels, bytes over those of q, k, v and O) of forward calls on a pretended GPU, once their tables are made."""
    clear_tables()
    found = {}
    with pretended_gpu() as count:
        q, k, v = (torch.empty(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        if frames_first:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        for name, function in rows.items():
            for _ in range(2):
                count.restart()
                function(q, k, v)
            found[name] = (count.kernels, count.bytes / (4 * q.numel() * 2))
    clear_tables()
    return found


def clear_tables() -> None:
    """Tables of fake tensors must not meet real ones."""
    from longtake.kernels.calls import banded

    for made in (banded.rows_of, banded.bias_of, banded.whole_bias):
        made.cache_clear()


def dense(run: Run) -> None:
    length = 256 if run.tiny else 16384
    for dim in (64, 128):
        for grad in (False, True):
            title = f"dense, N={length} H=8 D={dim}, {'forward and backward' if grad else 'forward'}"
            if run.late(title):
                continue
            q, k, v = (run.made(1, 8, length, dim, seed=seed).requires_grad_(grad) for seed in range(3))
            made = calls(q, k, v, grad)
            rows = {"torch": made(F.scaled_dot_product_attention), "auto": made(attention, mask=Full())}
            rows["torch, causal"] = made(F.scaled_dot_product_attention, is_causal=True)
            rows["auto, causal"] = made(attention, mask=Causal())
            for backend in backends():
                slow = backend.name in ("math", "flex") or "triton" in backend.name
                if not slow:
                    rows[backend.name] = made(attention, mask=Full(), backend=backend.name)
            counted = counts_of(
                (1, 8, length, dim), False, {"torch": F.scaled_dot_product_attention, "auto": attention}
            )  # fmt: skip
            table(run, title, rows, counted)


def windows(run: Run) -> None:
    shapes = ((1, 8, 16384, 1024, 64), (1600, 8, 240, 8, 16), (400, 8, 2300, 8, 16))
    if run.tiny:
        shapes = ((1, 2, 256, 32, 8), (4, 2, 48, 4, 4))
    for batch, heads, frames, window, shared in shapes:
        title = f"window {window} + {shared} shared, N={frames} B={batch} H={heads} D=64, forward"
        if run.late(title):
            continue
        scope = DualScope(window, spread(frames, shared))
        q, k, v = (run.made(batch, frames, heads, 64, seed=seed).transpose(1, 2) for seed in range(3))
        bias = scope.score(range(frames), range(frames)).to(run.device, run.dtype)
        made = calls(q, k, v, False)
        rows = {
            "torch, dense": made(F.scaled_dot_product_attention),
            "torch, mask tensor": made(F.scaled_dot_product_attention, attn_mask=bias),
            "auto": made(attention, mask=scope),
            "triton_dual_scope": made(attention, mask=scope, backend="triton_dual_scope"),
            "bytes alone (copies)": lambda q=q, k=k: (q.clone(), k.clone()),
        }
        if run.tiny:
            del rows["triton_dual_scope"]
        counted = counts_of(
            (batch, frames, heads, 64), True,
            {"torch, dense": F.scaled_dot_product_attention, "auto": partial(attention, mask=scope)},
        )  # fmt: skip
        table(run, title, rows, counted)
        del q, k, v, bias, rows
    if not run.tiny and not run.late("window, forward and backward"):
        scope = DualScope(1024, spread(16384, 64))
        q, k, v = (run.made(1, 8, 16384, 64, seed=seed).requires_grad_() for seed in range(3))
        made = calls(q, k, v, True)
        rows = {"torch, dense": made(F.scaled_dot_product_attention), "auto": made(attention, mask=scope)}
        table(run, "window 1024 + 64, N=16384, forward and backward", rows, {})


@torch.no_grad()
def unet(run: Run) -> None:
    title = f"UNet3D {'tiny' if run.tiny else 'of VideoCrafter2: 320x512'}, one forward, window 8 + 16"
    if run.late(title):
        return
    from diffusers import UNet3DConditionModel

    torch.manual_seed(0)
    with torch.device(run.device):
        model = UNet3DConditionModel(**(TINY if run.tiny else VIDEOCRAFTER2)).to(run.dtype).eval()
    memo = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twins = [copy.deepcopy(model, dict(memo)) for _ in range(2)]  # the same weights, each its own way to run
    height, width = (8, 8) if run.tiny else (40, 64)
    text = run.made(1, 5 if run.tiny else 77, model.config.cross_attention_dim)
    for frames in (8, 24) if run.tiny else (16, 64, 240, 480):
        if run.late(f"{title}, {frames} frames"):
            return
        latents = run.made(1, 4, frames, height, width)

        def forward(net: Any, x: torch.Tensor = latents) -> Row:
            return lambda: net(x, 500, encoder_hidden_states=text).sample

        scopes = (None, Scope(window=min(8, frames), global_frames=min(16, frames), gate="off"))
        names = ("ours, all frames", "ours, window")
        rows = {"stock": forward(model)} | {name: forward(twin) for name, twin in zip(names, twins, strict=True)}
        if frames > 64:  # dense attention over time needs what no card has
            del rows["stock"], rows["ours, all frames"]
        with ExitStack() as stack:
            for twin, scope in zip(twins, scopes, strict=True):
                stack.enter_context(parallelize(twin, Partition.even(frames, 1), scope))
            table(run, f"{title}, {frames} frames", rows, {})


def prior(run: Run) -> None:
    frames, steps = (24, 2) if run.tiny else (240, 16)
    title = f"shipped prior, {frames} frames, {steps} steps"
    if run.late(title):
        return
    from longtake.video.pipeline import LongVideoPipeline

    pipe = LongVideoPipeline.from_prior("kaykit-small", dtype=run.dtype).to(run.device)
    settings = {"num_inference_steps": steps, "output_type": "latent", "seed": 0}

    def row() -> Any:
        return pipe("a knight walks", num_frames=frames, **settings)

    run = Run(run.device, run.dtype, run.tiny, 1, run.until)
    table(run, title, {"ours": row}, {})


def right(run: Run) -> None:
    """Errors from float64, over the largest value."""
    print("\nerrors from float64, of the largest value")
    length = 640

    def error(x: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((x.detach().cpu().double() - wanted).abs().max() / wanted.abs().max())

    scope = DualScope(50, (3, 140, 400))
    leaves = [run.made(2, 6, length, 64, seed=seed).requires_grad_() for seed in range(3)]
    wide = [x.detach().cpu().double().requires_grad_() for x in leaves]
    seed = run.made(2, 6, length, 64, seed=9)
    wanted, _ = attention_reference(*wide, scope)
    truth = [wanted.detach(), *torch.autograd.grad(wanted, wide, seed.cpu().double())]
    for name in ("torch", "auto", *(backend.name for backend in backends())):
        try:
            if name == "torch":
                bias = scope.score(range(length), range(length)).to(run.device, run.dtype)
                out = F.scaled_dot_product_attention(*leaves, attn_mask=bias)
            else:
                out = attention(*leaves, mask=scope, backend=name)
        except CapabilityError as refusal:
            print(f"{name:<26} {str(refusal).split(': ', 1)[-1][:80]}")
            continue
        grads = torch.autograd.grad(out, leaves, seed)
        found = " ".join(f"{error(x, y):9.1e}" for x, y in zip((out, *grads), truth, strict=True))
        print(f"{name:<26} O, dQ, dK, dV {found}")
    q, k, v = (run.made(2, 3, 256, 32, seed=seed).float() for seed in range(3))
    expected = linear_attention_reference(q.cpu().double(), k.cpu().double(), v.cpu().double(), None, True)
    print(f"{'linear attention, float32':<26} O {error(linear_attention(q, k, v, causal=True), expected):9.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, for any machine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=90.0, help="no further table begins after so many")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    choice = choose_device()
    begun = time.perf_counter()
    run = Run(choice.device, choice.dtype, args.tiny, args.rounds, begun + args.seconds)
    name = torch.cuda.get_device_name() if choice.device.type == "cuda" else choice.device.type
    print(f"{name}, {choice.dtype}, torch {torch.__version__}, load {os.getloadavg()[0]:.2f}")
    for part in args.only:
        PARTS[part](run)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")


PARTS: dict[str, Callable[[Run], None]] = {
    "right": right, "dense": dense, "windows": windows, "unet": unet, "prior": prior,
}  # fmt: skip

if __name__ == "__main__":
    main()
