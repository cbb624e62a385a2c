"""One call of a Wan transformer, stock and under a scope, as the video grows: seconds and memory, interleaved.

    python tests/benchmarks/video_transformers.py [--frames 21 42 84] [--repeats 3]

A Wan of 6 layers and 6 heads of 64 on 16 x 26 latents (104 tokens a frame): small enough for a CPU, with the shape that
matters, attention over frames of many tokens. The scope is the pipeline's own: window 3, first frame, rotating
keyframes, as many frames as the model was trained on (21).
"""

import argparse
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from diffusers import WanTransformer3DModel
from live_bytes import peak_bytes
from longtake.kernels.partition import Partition
from longtake.video.dit.scopes import RotatingAnchors
from longtake.video.parallelize import parallelize

HEIGHT, WIDTH = 16, 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[21, 42, 84])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=64, text_dim=64, freq_dim=64, ffn_dim=1024, num_layers=6
    ).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, float32")
    print("frames  tokens   stock s    ours s  ratio  stock MB   ours MB  ratio")
    for frames in args.frames:
        given = {
            "hidden_states": torch.randn(1, 16, frames, HEIGHT, WIDTH), "timestep": torch.tensor([500]),
            "encoder_hidden_states": torch.randn(1, 32, 64),
        }  # fmt: skip
        took: dict[str, list[float]] = {"stock": [], "ours": []}
        memory: dict[str, float] = {}
        for _ in range(args.repeats + 1):
            for name in took:
                with ExitStack() as stack, torch.no_grad():
                    if name == "ours":
                        scope = RotatingAnchors(21)
                        handle = stack.enter_context(
                            parallelize(model, Partition.even(frames, 1), scope, whole=True)
                        )  # fmt: skip
                        handle.set_step(0)
                    if name not in memory:
                        memory[name] = peak_bytes(partial(model, **given))
                    started = time.perf_counter()
                    model(**given)
                    took[name].append(time.perf_counter() - started)
        stock, ours = (min(took[name][1:]) for name in took)
        tokens = frames * (HEIGHT // 2) * (WIDTH // 2)
        mega = {name: value / 2**20 for name, value in memory.items()}
        print(
            f"{frames:>6} {tokens:>7} {stock:>9.3f} {ours:>9.3f} {ours / stock:>6.2f} {mega['stock']:>9.1f} "
            f"{mega['ours']:>9.1f} {mega['ours'] / mega['stock']:>6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
