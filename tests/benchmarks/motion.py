"""Motion sampling: the sampler against the released loop, and a ten-minute run's seconds and memory.

    python tests/benchmarks/motion.py                    # both takes on one net, interleaved, processor seconds
    python tests/benchmarks/motion.py --long             # 12,000 frames, 100 prompts: seconds, peak memory

The released loop is stated again in tests/motion_models.py: two calls of the net a step in both takes, every row padded
to the longest, the time first layout (no fast path), the text encoder called in every call of the net.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LENGTHS = (60, 150, 84, 70, 120, 64)  # frames: prompts of 3 to 7.5 s at 20 fps
HANDSHAKE, BLEND = 20, 10


class AsReleased(torch.nn.Module):
    """An MDM called as the released code calls its own: gradients' code path, texts encoded in every call."""

    def __init__(self, net: Any, encode: Callable[[int], torch.Tensor] | None) -> None:
        super().__init__()
        self.net, self.encode = net, encode
        for block in net.blocks:
            block.self_attn.batch_first = False  # what the fast path needs and the released net does not have

    def forward(self, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if self.encode is not None:
            self.encode(len(text))
        time = self.net.embed_time(times, len(x))
        tokens = self.net.embed(x, time, text).transpose(0, 1)
        for block in self.net.blocks:
            tokens = block(tokens)
        return self.net.read(tokens.transpose(0, 1))


def contest(width: int, layers: int, steps: int, rounds: int, with_text: bool) -> None:
    from longtake.motion.model import MDM
    from longtake.motion.reference import take_one_canvas, take_two
    from longtake.motion.row_plan import RowPlan
    from longtake.motion.sampling import Schedule, TextDenoiser
    from longtake.motion.second_take import sandwiches
    from motion_models import injected, released_both_takes

    net = MDM(width=width, layers=layers, feedforward=2 * width, padding="mask", text_width=384).eval()
    twin = MDM(width=width, layers=layers, feedforward=2 * width, text_width=384).eval()
    twin.load_state_dict(net.state_dict())
    encoder = None
    prompts = [f"a person does thing number {row}" for row in range(len(LENGTHS))]
    if with_text:
        from longtake.text import SentenceEncoder

        encoder = SentenceEncoder()
        encoder.encode(prompts)
    released_net = AsReleased(twin, None if encoder is None else lambda rows: encoder.encode(prompts[:rows]))
    plan, schedule = RowPlan.make(LENGTHS, HANDSHAKE), Schedule.make(steps)
    longest = max(LENGTHS)
    rows = injected(1, (plan.rows, longest, 263))
    field = injected(2, (plan.total, 263))
    second = injected(3, (plan.rows - 1, 2 * (longest - 2 * HANDSHAKE) + HANDSHAKE, 263))
    every = sandwiches(plan)

    def released() -> None:
        text = torch.zeros(plan.rows, 384)
        released_both_takes(released_net, text, 2.5, LENGTHS, HANDSHAKE, BLEND, steps, rows, second)

    def ours() -> None:
        text = torch.zeros(plan.rows, 384) if encoder is None else encoder.encode(prompts)[:, 0]
        denoise = TextDenoiser(net, text, 2.5, lengths=plan.lengths)
        first = take_one_canvas(plan, denoise, schedule, field, chunk_rows=2, mixed=True)

        def draw(count: int, pairs: Any) -> torch.Tensor:
            return second(count)[list(pairs), : max(every[pair].length for pair in pairs)]

        bare = denoise.unconditional([part.length for part in every])
        take_two(plan, first, bare, schedule, draw, blend=BLEND, chunk_rows=2, mixed=True)

    seconds: dict[str, list[float]] = {"released": [], "ours": []}
    with torch.no_grad():
        for _ in range(rounds):
            for name, way in (("released", released), ("ours", ours)):
                before = time.process_time()
                way()
                seconds[name].append(time.process_time() - before)
    low = {name: min(values) for name, values in seconds.items()}
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    texts = "texts encoded in every call" if with_text else "texts free on both sides"
    print(
        f"{width}/{layers}, {steps} steps, rows {LENGTHS}, both takes, {texts}: released {low['released']:.2f} s "
        f"(median {middle['released']:.2f}), ours {low['ours']:.2f} s (median {middle['ours']:.2f}), "
        f"{low['released'] / low['ours']:.2f} times"
    )


def long_run(frames: int, prompts: int, width: int, layers: int, steps: int) -> None:
    from diffusers import DDIMScheduler
    from longtake.motion.model import MDM
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.motion.space import MotionSpace
    from longtake.timeline import Timeline

    net = MDM(width=width, layers=layers, feedforward=2 * width, padding="mask", text_width=384).eval()
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    pipe = LongMotionPipeline(net, scheduler, MotionSpace())
    pipe.set_progress_bar_config(disable=True)
    for count in (prompts // 10, prompts):
        share = frames // prompts
        timeline = Timeline(tuple((share * i, f"action {i}") for i in range(count)))
        started, before = time.monotonic(), time.process_time()
        out = pipe(timeline, share * count, text=torch.randn(count, 384), num_inference_steps=steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{len(out.features)} frames, {count} prompts, {steps} steps, {width}/{layers}: "
            f"{time.monotonic() - started:.0f} s ({time.process_time() - before:.0f} s of processor), peak {peak:.0f} "
            "MB, "
            f"features {out.features.nbytes / 2**20:.0f} MB, joints {out.joints.nbytes / 2**20:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="12,000 frames instead of the contest")
    args = parser.parse_args()
    if args.long:
        long_run(12_000, 100, args.width, args.layers, args.steps)
        return
    for with_text in (False, True):
        contest(args.width, args.layers, args.steps, args.rounds, with_text)


if __name__ == "__main__":
    main()
