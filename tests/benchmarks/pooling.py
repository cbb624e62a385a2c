"""Prompt-guided pooling of a full video: ours against windows unfolded and contracted by one einsum.

The peer is written here after the released code's idea (unfold, then weigh); it is not the released code.

    python tests/benchmarks/pooling.py --frames 32 --side 24 --channels 4096 --rounds 5

Rounds are interleaved; times are process CPU seconds, the ratio is the median of the per-round ratios. Outputs are
compared. Also printed: tokens before and after, and the bytes of keys and values they take in a language model.
"""

import argparse
import statistics
import time

import torch
from longtake.kernels.pooling.guided import global_weights, prompt_guided_pool3d
from longtake.kernels.pooling.windows import Windows, resolve_windows
from torch import Tensor


def unfolded(x: Tensor, logits: Tensor, windows: Windows, temperature: float = 0.01) -> Tensor:
    """All windows laid out: x (B, T, H, W, C), logits (B, T, H, W)."""
    g = global_weights(logits)
    for axis in range(3):
        g = g.unfold(axis + 1, windows.kernel[axis], windows.stride[axis])
        x = x.unfold(axis + 1, windows.kernel[axis], windows.stride[axis])
    weights = (g.flatten(4) / temperature).softmax(4)
    return torch.einsum("bthwck,bthwk->bthwc", x.flatten(5), weights)


def prefill_seconds(tokens: int) -> float | None:
    """Time that a tiny language model (2 layers, width 128, random weights: only its speed is looked at) takes to read
    so many tokens; None without transformers."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1 << 15,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    embeds = torch.randn(1, tokens, 128)
    with torch.inference_mode():
        model(inputs_embeds=embeds[:, :64], logits_to_keep=1)
        begun = time.perf_counter()
        model(inputs_embeds=embeds, logits_to_keep=1)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--side", type=int, default=24)
    parser.add_argument("--channels", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=32, help="of the language model")
    parser.add_argument("--prefill", action="store_true", help="also time a tiny language model on both token counts")
    options = parser.parse_args()
    size = (options.frames, options.side, options.side)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *size, options.channels, generator=generator)
    logits = 3 * torch.randn(1, *size, generator=generator)
    windows = resolve_windows(size, (2, 3, 3))
    times: list[tuple[float, float]] = []
    difference = 0.0
    for _ in range(options.rounds + 1):
        marks = [time.process_time()]
        ours = prompt_guided_pool3d(x, logits=logits, kernel=(2, 3, 3), layout="bthwc")
        marks.append(time.process_time())
        theirs = unfolded(x, logits, windows)
        marks.append(time.process_time())
        difference = float((ours - theirs).abs().max())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    times = times[1:]
    before = options.frames * options.side**2
    cache = 2 * options.layers * options.channels * 2
    print(f"tokens {before} -> {windows.tokens} ({before / windows.tokens:.0f} times fewer)")
    held = before * cache >> 20, windows.tokens * cache >> 20
    print(f"keys and values, bf16, {options.layers} layers: {held[0]} -> {held[1]} MiB")
    ours_s, theirs_s = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"ours {ours_s:.3f} s, unfolded {theirs_s:.3f} s")
    print(f"unfolded / ours {statistics.median(b / a for a, b in times):.1f}, largest difference {difference:.1e}")
    if options.prefill:
        seconds = [prefill_seconds(count) for count in (before, windows.tokens)]
        if seconds[0] is None or seconds[1] is None:
            print("prefill: transformers is not installed")
        else:
            times_faster = seconds[0] / seconds[1]
            told = f"{seconds[0]:.2f} s and {seconds[1]:.3f} s, {times_faster:.0f} times"
            print(f"prefill of a tiny language model: {told}")


if __name__ == "__main__":
    main()
