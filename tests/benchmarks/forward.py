"""A whole UNet forward on two ranks: ours beside the scheme that Video-Infinity released (A10).

    python tests/benchmarks/forward.py            # from the root of the project; about two minutes on two cores

The peer is a re-statement of the released exchange from its description, on the same model in the same processes: keys
and values padded and gathered by blocking all_gathers in the released order (pairs of neighbours, odd ranks left
first), the T x (T + 2P + K) matrix of logits materialised, wide-4 halos of the conv layers. Calls alternate; the
table shows medians. Exit status 1 when ours is slower.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("PYTHONSAFEPATH", "1")

from longtake.kernels.partition import Partition  # noqa: E402
from longtake.video.parallelize import parallelize  # noqa: E402
from longtake.video.scope import Scope  # noqa: E402
from ranks import run_ranks  # noqa: E402
from video_models import noise, tiny_unet  # noqa: E402

WORLD, WINDOW, COUNT, CONV_HALO = 2, 4, 8, 4


class Neighbours:
    """One group for each adjacent pair; every exchange is a blocking all_gather of an edge within the pair."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world
        self.groups = [dist.new_group([left, left + 1]) for left in range(world - 1)]

    def _meet(self, pair, edge):
        parts = [torch.empty_like(edge) for _ in range(2)]
        dist.all_gather(parts, edge, group=self.groups[pair])
        return parts[1] if self.rank == pair else parts[0]

    def pad(self, x, width):
        """x with `width` frames of both neighbours in dim 1; zeros beyond the ends of the video."""
        head, tail = x[:, :width].contiguous(), x[:, -width:].contiguous()
        left = right = torch.zeros_like(head)
        for side in ("left", "right") if self.rank % 2 else ("right", "left"):
            if side == "left" and self.rank > 0:
                left = self._meet(self.rank - 1, head)
            if side == "right" and self.rank < self.world - 1:
                right = self._meet(self.rank, tail)
        return torch.cat([left, x, right], 1)

    def share(self, x, frames):
        """Sampled frames of every rank, in order, cut to the first COUNT."""
        stride = max(frames // max(COUNT // self.world, 1), 1)
        mine = x[:, ::stride].contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, 1)[:, :COUNT]


class ReleasedAttention:
    """Temporal attention as released: everything materialised."""

    def __init__(self, neighbours, state):
        self.neighbours, self.state = neighbours, state

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        frames = query.shape[1]
        shared_k, shared_v = self.neighbours.share(key, frames), self.neighbours.share(value, frames)
        key = torch.cat([self.neighbours.pad(key, WINDOW), shared_k], 1)
        value = torch.cat([self.neighbours.pad(value, WINDOW), shared_v], 1)
        query, key, value = (attn.head_to_batch_dim(x) for x in (query, key, value))
        local = frames + 2 * WINDOW
        row, column = torch.arange(frames)[:, None], torch.arange(local)[None]
        mask = torch.ones(frames, key.shape[1])
        mask[:, :local].masked_fill_((column < row) | (column > row + 2 * WINDOW), -torch.inf)
        if self.state["t"] < 800:
            mask[:, :local] += 10
        else:
            mask[:, local:] += 10
        logits = torch.bmm(query, key.transpose(1, 2)) * attn.scale + mask
        out = attn.batch_to_head_dim(torch.bmm(logits.softmax(-1), value))
        return attn.to_out[1](attn.to_out[0](out))


def released(rank, world):
    """A tiny UNet with the released exchange."""
    model, neighbours, state = tiny_unet(), Neighbours(rank, world), {"t": 500}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Attention" and ("temp_" in name or "transformer_in" in name):
            module.set_processor(ReleasedAttention(neighbours, state))
        if kind == "TemporalConvLayer":

            def forward(hidden_states, num_frames=1, stock=module):
                x = hidden_states.unflatten(0, (-1, num_frames))
                wide = neighbours.pad(x, CONV_HALO).permute(0, 2, 1, 3, 4)
                for part in (stock.conv1, stock.conv2, stock.conv3, stock.conv4):
                    wide = part(wide)
                out = wide[:, :, CONV_HALO:-CONV_HALO].permute(0, 2, 1, 3, 4)
                return (x + out).flatten(0, 1)

            module.forward = forward
    return model, state


def measure(rank, world, shapes, repeats):
    """(median seconds of ours, of the peer, median of the ratios of neighbouring calls, load average) per shape."""
    torch.set_grad_enabled(False)
    peer, state = released(rank, world)
    rows = []
    for frames, timestep, gate in shapes:
        latents, text = noise("latents", 2, 4, frames, 8, 8), noise("text", 2, 8, 32)
        model = tiny_unet()
        scope = Scope(WINDOW, COUNT, gate=gate)
        state["t"] = timestep
        with parallelize(model, Partition.even(frames * world, world), scope):
            times = {"ours": [], "peer": []}
            for repeat in range(repeats + 1):
                pair = (("ours", model), ("peer", peer))
                for name, run in pair if repeat % 2 else pair[::-1]:
                    dist.barrier()
                    start = time.perf_counter()
                    run(latents, timestep, text)
                    dist.barrier()
                    if repeat:  # the first call warms up
                        times[name].append(time.perf_counter() - start)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times["ours"], times["peer"], strict=True))
        rows.append((*map(statistics.median, (times["ours"], times["peer"])), ratio, os.getloadavg()[0]))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    shapes = [(32, 500, "soft"), (64, 500, "soft"), (64, 500, "hard"), (64, 900, "hard")]
    rows = run_ranks(measure, WORLD, shapes, repeats, timeout=900)[0]
    print(f"W={WORLD}, P={WINDOW}, K={COUNT}, UNet 32/64 channels, batch 2, 8x8 latents, median of {repeats}")
    print("  ours s   peer s  ours/peer  frames/rank    t  gate  dtype    device  load")
    for (frames, timestep, gate), (ours, peer, ratio, load) in zip(shapes, rows, strict=True):
        shape = f"{frames:11d} {timestep:4d} {gate:>5}"
        print(f"{ours:8.3f} {peer:8.3f} {ratio:10.2f}  {shape}  float32  cpu     {load:.1f}")
    return int(any(ratio > 1 for _, _, ratio, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
