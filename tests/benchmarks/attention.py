"""Dual-scope attention against the released scheme: a T x (T + 2P + K) matrix of logits, a mask, a softmax
(Video-Infinity, code acfcd17).

    python tests/benchmarks/attention.py --frames 64 256 512 --rounds 9

Both compute multiset and zero-edge semantics with soft gates, so their outputs agree. Rounds are interleaved; times
are medians of process CPU time; the ratio is the median of the per-round ratios. Keys come padded with P frames on
each side and with the K global frames, as after the exchange.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable

import torch
from longtake.kernels import DualScope, Edge, Overlap, dual_scope_attention
from torch import Tensor


def released_scheme(
    q: Tensor,
    k_pad: Tensor,
    v_pad: Tensor,
    k_global: Tensor,
    v_global: Tensor,
    window: int,
    bias_local: float,
    bias_global: float,
) -> Tensor:
    """The released attention of one clip: q (N, T, D); k_pad, v_pad (N, T + 2P, D), zeros beyond the video; k_global,
    v_global (N, K, D)."""
    keys, values = torch.cat([k_pad, k_global], dim=1), torch.cat([v_pad, v_global], dim=1)
    frames, padded = q.shape[1], k_pad.shape[1]
    mask = torch.full((frames, keys.shape[1]), 1.0, dtype=q.dtype)
    column, row = torch.arange(padded), torch.arange(frames)[:, None]
    local = mask[:, :padded]
    local.masked_fill_((column < row) | (column > row + 2 * window), -math.inf)
    local += bias_local
    mask[:, padded:] += bias_global
    logits = torch.baddbmm(mask.expand(q.shape[0], -1, -1), q, keys.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
    return torch.bmm(logits.softmax(dim=-1), values)


def interleaved(ours: Callable[[], Tensor], peer: Callable[[], Tensor], rounds: int) -> tuple[float, float, float]:
    """Medians in seconds of ours and peer, and the median of peer / ours; process CPU time."""
    times: list[tuple[float, float]] = []
    ours(), peer()
    for _ in range(rounds):
        marks = [time.process_time()]
        for function in (ours, peer):
            function()
            marks.append(time.process_time())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    ratio = statistics.median(theirs / mine for mine, theirs in times)
    return statistics.median(mine for mine, _ in times), statistics.median(theirs for _, theirs in times), ratio


def case(
    frames: int, batch: int, head_dim: int, window: int, shared: int, rounds: int, device: str, gate: str
) -> dict[str, float]:
    """One row of the table: seconds of ours and peer, their ratio, and the largest difference of the outputs."""
    generator = torch.Generator().manual_seed(frames)
    q, k, v = (torch.randn(batch, frames, head_dim, generator=generator).to(device) for _ in range(3))
    indices = tuple(sorted({round(i * (frames - 1) / max(shared - 1, 1)) for i in range(shared)}))
    bias_local, bias_global = (10.0, 0.0) if gate == "soft" else (10.0, -math.inf)
    scope = DualScope(window, indices, Overlap.MULTISET, Edge.ZERO, bias_local, bias_global)
    edge = q.new_zeros(batch, window, head_dim)
    k_pad, v_pad = torch.cat([edge, k, edge], dim=1), torch.cat([edge, v, edge], dim=1)
    k_global, v_global = k[:, list(indices)], v[:, list(indices)]
    positions = range(frames)

    def ours() -> Tensor:
        answer = dual_scope_attention(
            q[:, None], k[:, None], v[:, None], scope=scope, q_pos=positions, k_pos=positions,
            k_global=k_global[:, None], v_global=v_global[:, None], total=frames,
        )  # fmt: skip
        return answer[:, 0]

    def peer() -> Tensor:
        return released_scheme(q, k_pad, v_pad, k_global, v_global, window, 10.0, 0.0)

    with torch.inference_mode():
        difference = float((ours() - peer()).abs().max())
        mine, theirs, ratio = interleaved(ours, peer, rounds)
    return {"ours": mine, "peer": theirs, "ratio": ratio, "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--batch", type=int, default=32, help="pixels times heads (default 32)")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--shared", type=int, default=16, help="global frames")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gate", choices=("soft", "hard"), default="soft", help="hard: ours skips the global scope")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"P={args.window} |S|={args.shared} D={args.head_dim} N={args.batch} float32 cpu, {args.threads} thread(s), "
        f"gate {args.gate}, "
        f"torch {torch.__version__}, load average {os.getloadavg()[0]:.2f}"
    )
    print(f"{'T':>6} {'ours ms':>9} {'peer ms':>9} {'peer/ours':>9} {'max diff':>9}")
    for frames in args.frames:
        row = case(frames, args.batch, args.head_dim, args.window, args.shared, args.rounds, "cpu", args.gate)
        print(
            f"{frames:>6} {row['ours'] * 1e3:>9.2f} {row['peer'] * 1e3:>9.2f} {row['ratio']:>9.2f} "
            f"{row['difference']:>9.1e}"
        )


if __name__ == "__main__":
    main()
