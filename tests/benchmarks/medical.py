"""A guided step of ours against the released model's at equal volume, in one interleaved run: time and memory.

    python tests/benchmarks/medical.py --rounds 3

Each side runs in processes of its own, one after the other, so that the peak memory is its own (``ru_maxrss`` above
that of the loaded weights). Seconds are of the CPU, with OMP_NUM_THREADS=1 on a machine that others use. "step": one
guided denoising step; "know": what is done once per target, the released conditioner or our encoder and mean.
"ours": a net of the recipe; "ours-light": with the denoiser of ``--lighter``, as the prior that ships. Weights are
random: time and memory do not depend on them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial

SHAPE = (32, 128, 128)
VISITS = 11


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(know: bool, steps: int, half: bool = False, light: bool = False) -> dict[str, float]:
    import torch
    from longtake.medical.lighter import lighter
    from longtake.medical.net import LongitudinalNet, Outlook
    from longtake.medical.sampling import View, look

    torch.manual_seed(0)
    net = LongitudinalNet()
    net = (lighter(net) if light else net).eval()
    kind_of = torch.bfloat16 if half else torch.float32
    net = torch.nn.Module.to(net, dtype=kind_of)
    if know:
        visits, delta = (torch.rand(1, VISITS, *SHAPE) * 2 - 1).to(kind_of), -torch.arange(VISITS, 0, -1.0)[None]
        observed, kind = torch.ones(1, VISITS, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
        before, begun = peak(), time.process_time()
        look(net, None, visits, delta, observed, kind, None)
        return {"know_s": time.process_time() - begun, "mb": peak() - before}
    # what is known of a target, of the size and kind that ``look`` would give: the released step gets its context so
    stem, channels = net.denoiser.stem, net.denoiser.enter.out_channels
    told = torch.randn(SHAPE[0], channels, SHAPE[1] // stem, SHAPE[2] // stem, dtype=kind_of)
    told = told.contiguous(memory_format=torch.channels_last)
    field, condition = torch.rand(1, 1, *SHAPE), torch.randn(1, net.nothing.shape[0], dtype=kind_of)
    view = View(net, Outlook(field, field + 0.1, told, condition, SHAPE[1:]))
    x = torch.randn(1, 1, *SHAPE)
    before, times = peak(), []
    for _ in range(steps):
        begun = time.process_time()
        view.velocity(x, 0.5, 1.2)
        times.append(time.process_time() - begun)
    return {"step_s": min(times), "mb": peak() - before}


def released(know: bool, steps: int) -> dict[str, float]:
    import torch
    from longtake.medical.legacy.ddpm import DDPM
    from longtake.medical.legacy.unet import ContextUnet
    from longtake.medical.legacy.vivit import ViViT
    from torch import nn

    torch.manual_seed(0)
    with torch.inference_mode():
        if know:
            model, frames = ViViT(num_frames=VISITS).eval(), torch.rand(1, VISITS, 1, *SHAPE)
            before, begun = peak(), time.process_time()
            model(frames)
            return {"know_s": time.process_time() - begun, "mb": peak() - before}
        model = DDPM(nn.Identity(), ContextUnet()).eval()
        x, context = torch.randn(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
        before, times = peak(), []
        for _ in range(steps):
            begun = time.process_time()
            model.guided_step(x, context, 200, x, 0.2)
            times.append(time.process_time() - begun)
        return {"step_s": min(times), "mb": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        side = {
            "ours": ours,
            "ours-light": partial(ours, light=True),
            "ours-bf16": partial(ours, half=True),
            "released": released,
        }[args.one[0]]
        print(json.dumps(side(args.one[1] == "know", args.steps)))
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for what in ("step", "know"):
            for side in ("ours", "ours-light", "ours-bf16", "released"):
                command = [sys.executable, __file__, "--steps", str(args.steps), "--one", side, what]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.setdefault((side, what), []).append(json.loads(out.splitlines()[-1]))
    middle = {
        key: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for key, rows in found.items()
    }
    for key, row in middle.items():
        print(*key, *(f"{name} {value:.2f}" for name, value in row.items()))
    for side in ("ours", "ours-light", "ours-bf16"):
        for what in ("step", "know"):
            fast = middle["released", what][f"{what}_s"] / middle[side, what][f"{what}_s"]
            small = middle["released", what]["mb"] / max(middle[side, what]["mb"], 1e-9)
            print(f"{what}: {side} {fast:.1f} times faster, at {small:.1f} times less memory")
        times, peaks = (
            {s: combine(middle[s, w][n.format(w=w)] for w in ("step", "know")) for s in (side, "released")}
            for combine, n in ((sum, "{w}_s"), (max, "mb"))
        )
        print(
            f"know and one step: {side} {times['released'] / times[side]:.1f} times faster, at "
            f"{peaks['released'] / peaks[side]:.1f} times less memory"
        )


if __name__ == "__main__":
    main()
