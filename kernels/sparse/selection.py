"""Which blocks of keys a block of queries should look at, found without training: HiP and InfLLM as index providers.

For long-video understanding (PPLLaVA): prefill over tens of thousands of video tokens will call it.

A provider reads q and k and returns a `BlockSparse` mask; combine it with `Causal()` and hand it to the attention call
(`And(hip_select(q, k), Causal())`). What is chosen is an index, so no gradient flows through the choice.

    hip_select      HiP (arXiv 2406.09827) and InfiniteHiP (arXiv 2502.08910): chunks of keys, each judged by one
                    representative found by halving, kept or dropped in stages of finer and finer chunks
    infllm_select   InfLLM (arXiv 2402.04617): blocks of keys, each judged by a few representative keys

Providers that cluster keys are in clusters.py. `attention_recall` says how much of dense attention a mask keeps.

Shapes: H query heads, Hk key heads, N tokens, D head size. One batch entry: q (1, H, N, D), k (1, Hk, N, D).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from longtake.kernels.masks.basic import Mask
from longtake.kernels.masks.tables import BlockSparse
from longtake.kernels.precision import exact
from torch import Tensor


@dataclass(frozen=True)
class HiPStage:
    """One stage of the scan: chunks of `chunk_size` keys (a power of two), of which `stage_k` keys' worth survive the
    stage BEFORE (None: all of them, for the first stage)."""

    chunk_size: int
    stage_k: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_size < 1 or self.chunk_size & (self.chunk_size - 1):
            raise ValueError(f"chunk_size must be a power of two, given {self.chunk_size}")
        if self.stage_k is not None and self.stage_k < self.chunk_size:
            raise ValueError(f"stage_k {self.stage_k} does not hold one chunk of {self.chunk_size} keys")


HIP_STAGES = (HiPStage(256), HiPStage(32, 32768), HiPStage(8, 8192))  # the defaults of hip-attention 1.2


@exact
def hip_select(
    q: Tensor,
    k: Tensor,
    *,
    stages: Sequence[HiPStage] = HIP_STAGES,
    second_stage_k: int = 2048,
    block_size_q: int = 64,
    sink_token_size: int = 256,
    sliding_window_size: int = 512,
) -> BlockSparse:
    """Hierarchical selection for causal attention: `second_stage_k` keys for each block of queries, in chunks of the
    last stage's size, besides the first `sink_token_size` keys and the `sliding_window_size` before the block.

    A chunk's representative: from the whole chunk, take the half whose middle key has the larger score, log2(chunk)
    times; the score of a key is its largest product with a query of the block. Between the sink and the window, stage
    by stage, the chunks with the best representatives stay and are cut finer.
    Time O(N^2 / (block_size_q chunk_size)) products for the first stage, less after it.
    Raises ValueError for shapes and settings that do not fit. Returns blocks of block_size_q x last chunk_size, per
    head.
    """
    heads, length, key_heads = _check(q, k)
    if q.shape[2] != length:
        raise ValueError(f"causal selection needs as many queries as keys, given {q.shape[2]} and {length}")
    if not stages or any(a.chunk_size % b.chunk_size for a, b in zip(stages, stages[1:], strict=False)):
        raise ValueError("chunk sizes must divide one another from stage to stage, at least one stage")
    last = stages[-1].chunk_size
    if block_size_q < 1 or second_stage_k < last or sink_token_size < 0 or sliding_window_size < 0:
        raise ValueError(
            f"block_size_q must be at least 1, second_stage_k at least {last}, sink and window at least 0; given "
            f"{block_size_q}, {second_stage_k}, {sink_token_size}, {sliding_window_size}"
        )
    queries, keys = q[0].detach(), k[0].detach().repeat_interleave(heads // key_heads, dim=0)
    rows, columns = -(-length // block_size_q), -(-length // last)
    bitmap = torch.zeros(heads, rows, columns, dtype=torch.bool)
    first = sink_token_size // last * last  # the scan begins where the sink's whole chunks end
    for row in range(rows):
        start, stop = row * block_size_q, min((row + 1) * block_size_q, length)
        edge = max(start - sliding_window_size, 0)
        bitmap[:, row, : -(-min(sink_token_size, stop) // last)] = True
        bitmap[:, row, edge // last : -(-stop // last)] = True
        if edge <= first:
            continue
        block = queries[:, start:stop]
        chunk = stages[0].chunk_size
        starts = torch.arange(first, edge, chunk, device=k.device).expand(heads, -1)
        for number, stage in enumerate(stages):
            if number:
                starts = (starts[..., None] + torch.arange(0, chunk, stage.chunk_size, device=k.device)).flatten(1)
            chunk = stage.chunk_size
            following = stages[number + 1].stage_k if number + 1 < len(stages) else second_stage_k
            keep = min(-(-(following or length) // chunk), starts.shape[1])
            scores = _representative_scores(block, keys, starts, chunk, edge)
            starts = starts.gather(1, scores.topk(keep, dim=1).indices)
        chosen = torch.zeros(heads, columns, dtype=torch.bool)
        chosen.scatter_(1, (starts.clamp(max=edge - 1) // last).cpu(), True)
        bitmap[:, row] |= chosen
    return BlockSparse(block_size_q, last, bitmap)


def _representative_scores(block: Tensor, keys: Tensor, starts: Tensor, chunk: int, edge: int) -> Tensor:
    """Score of each chunk's representative; -inf for chunks that begin at or behind `edge`: (H, chunks)."""

    def score(positions: Tensor) -> Tensor:
        picked = keys.gather(1, positions.clamp(max=edge - 1)[..., None].expand(-1, -1, keys.shape[-1]))
        return (block @ picked.mT).amax(1).masked_fill(positions >= edge, -math.inf)

    left, half = starts, chunk // 2
    while half:
        right = left + half
        better = score(right + half // 2) > score(left + half // 2)
        left = torch.where(better, right, left)
        half //= 2
    return score(left).masked_fill(starts >= edge, -math.inf)


@exact
def infllm_select(
    q: Tensor,
    k: Tensor,
    *,
    block_size: int = 128,
    repr_topk: int = 4,
    topk: int = 16,
    n_init: int = 128,
    n_local: int = 4096,
    exc_block_size: int = 512,
) -> BlockSparse:
    """Block memory for causal attention; settings as in the paper's code (its symbols in brackets).

    block_size [l_bs] keys a block; repr_topk [r_k] representatives a block; topk [k_m] blocks looked up for each
    exc_block_size queries that are worked on together; n_init [l_I] first keys, always seen; n_local [l_L] keys of the
    local window. A key m is representative for what the window's queries behind it wanted: r_m = mean of
    q_{m+j} . k_m, j = 1..n_local. A block's relevance to a group of queries: the sum of all products of its queries
    with the block's representatives. Only blocks that have left the window of the group's first query take part, so
    nothing later than the group has a say.
    Raises ValueError for shapes and settings that do not fit. Returns blocks of exc_block_size x block_size, per head.
    """
    heads, length, key_heads = _check(q, k)
    if q.shape[2] != length:
        raise ValueError(f"causal selection needs as many queries as keys, given {q.shape[2]} and {length}")
    if min(block_size, repr_topk, topk, exc_block_size, n_local) < 1 or n_init < 0 or repr_topk > block_size:
        raise ValueError("block_size, repr_topk <= block_size, topk, exc_block_size, n_local must be >= 1, n_init >= 0")
    queries, keys = q[0].detach(), k[0].detach().repeat_interleave(heads // key_heads, dim=0)
    accumulate = torch.promote_types(q.dtype, torch.float32)
    sums = torch.cat([queries.new_zeros(heads, 1, q.shape[3], dtype=accumulate), queries.to(accumulate).cumsum(1)], 1)
    place = torch.arange(length, device=q.device)
    ends = (place + 1 + n_local).clamp(max=length)
    wanted = (sums[:, ends] - sums[:, place + 1]) / (ends - place - 1).clamp(min=1)[:, None]
    local_score = (wanted * keys).sum(-1)
    whole = length // block_size  # a last, shorter block never leaves the window
    rows, columns = -(-length // exc_block_size), -(-length // block_size)
    bitmap = torch.zeros(heads, rows, columns, dtype=torch.bool)
    if whole:
        best = local_score[:, : whole * block_size].unflatten(1, (whole, block_size)).topk(repr_topk, dim=-1).indices
        tokens = (best + torch.arange(whole, device=q.device)[:, None] * block_size).flatten(1)
        summed = keys.gather(1, tokens[..., None].expand(-1, -1, k.shape[3])).unflatten(1, (whole, repr_topk)).sum(2)
    for row in range(rows):
        start, stop = row * exc_block_size, min((row + 1) * exc_block_size, length)
        edge = max(start - n_local, 0)
        bitmap[:, row, : -(-min(n_init, stop) // block_size)] = True
        bitmap[:, row, edge // block_size : -(-stop // block_size)] = True
        first, left = -(-n_init // block_size), edge // block_size
        if left > first:
            group = sums[:, stop] - sums[:, start]
            relevance = torch.einsum("hd,hbd->hb", group.to(summed.dtype), summed[:, first:left])
            chosen = relevance.topk(min(topk, left - first), dim=1).indices + first
            bitmap[:, row] |= torch.zeros(heads, columns, dtype=torch.bool).scatter_(1, chosen.cpu(), True)
    return BlockSparse(exc_block_size, block_size, bitmap)


@exact
def attention_recall(q: Tensor, k: Tensor, mask: Mask, dense_mask: Mask, scale: float | None = None) -> Tensor:
    """Share of dense attention's weight that falls on what `mask` sees, mean over queries: (H,), float64.

    dense_mask: what dense attention sees, e.g. Causal(). 1 means that nothing is lost. Holds N x N numbers: a measuring
    instrument, not a part of a model.
    """
    heads, length, key_heads = _check(q, k)
    keys = k.double().repeat_interleave(heads // key_heads, dim=1)
    logits = q.double() @ keys.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    places = range(q.shape[2]), range(length)
    weights = (logits + dense_mask.score(*places).to(q.device)).softmax(-1)
    return (weights * mask.dense(*places).to(q.device)).sum(-1).mean(-1)[0]


def _check(q: Tensor, k: Tensor) -> tuple[int, int, int]:
    """(H, N, Hk) of one batch entry."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != 1 or k.shape[0] != 1:
        raise ValueError(
            f"selection looks at one batch entry, q (1, H, N, D) and k (1, Hk, N, D); given {tuple(q.shape)} and "
            f"{tuple(k.shape)}"
        )
    if q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}")
    return q.shape[1], k.shape[2], k.shape[1]
