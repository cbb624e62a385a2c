"""Keys found through clusters: Squeezed Attention and Routing as index providers on `BlockSparse` with 1 x 1 blocks.

For long-video understanding (PPLLaVA): many questions about one film share a context that is clustered once.

    squeeze, squeezed_select   Squeezed Attention (arXiv 2411.09688): a fixed context's keys are clustered once, by
                               cosine; a query compares itself with the centroids and keeps the clusters that can hold
                               more than a threshold of its softmax
    routing_select, routing_update   Routing Transformer (arXiv 2003.05997): queries and keys are one and the same,
                               each centroid takes the w tokens nearest to it, tokens of one centroid see each other

Shapes: H query heads, Hk key heads, N keys, Nq queries, c centroids, D head size; one batch entry.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from longtake.kernels.masks.tables import BlockSparse
from longtake.kernels.precision import exact
from longtake.kernels.ranks.mesh import alone
from longtake.kernels.ranks.summaries import gather_summaries
from longtake.kernels.ranks.transport import Transport
from torch import Tensor


@dataclass(frozen=True)
class SqueezedContext:
    """A clustered context: centroids (Hk, c, D), labels (Hk, N), counts (Hk, c); with two levels also the coarse
    centroids (Hk, c2, D), the coarse cluster of each centroid (Hk, c), and the keys in each coarse cluster (Hk, c2)."""

    centroids: Tensor
    labels: Tensor
    counts: Tensor
    coarse_centroids: Tensor | None = None
    coarse_labels: Tensor | None = None
    coarse_counts: Tensor | None = None


@exact
def squeeze(
    k: Tensor, clusters: int, coarse_clusters: int | None = None, iterations: int = 10, seed: int = 0
) -> SqueezedContext:
    """Cluster the keys of a fixed context, k (1, Hk, N, D): k-means of the normalised keys; a centroid is the mean of
    its keys as they are. coarse_clusters: a second level, clusters of centroids. The paper takes 5 % of N, then 1 %."""
    if k.dim() != 4 or k.shape[0] != 1:
        raise ValueError(f"one batch entry is clustered at a time, k (1, Hk, N, D); given {tuple(k.shape)}")
    keys = k[0].detach().to(torch.promote_types(k.dtype, torch.float32))
    ones = keys.new_ones(keys.shape[:2])
    centroids, labels, counts = _k_means(keys, ones, clusters, iterations, seed)
    if coarse_clusters is None:
        return SqueezedContext(centroids, labels, counts)
    coarse, coarse_labels, coarse_counts = _k_means(centroids, counts, coarse_clusters, iterations, seed)
    return SqueezedContext(centroids, labels, counts, coarse, coarse_labels, coarse_counts)


def _k_means(
    points: Tensor, weights: Tensor, clusters: int, iterations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Spherical k-means of weighted points (Hk, N, D), from points drawn with `seed`; an empty cluster stays where it
    was, with count 0. Centroids (Hk, c, D), labels (Hk, N), summed weights (Hk, c)."""
    heads, length, width = points.shape
    if not 1 <= clusters <= length:
        raise ValueError(f"clusters must be in 1..{length}, given {clusters}")
    drawn = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:clusters].to(points.device)
    centroids = points[:, drawn]
    directions = F.normalize(points, dim=-1)
    weighted = points * weights[..., None]
    for step in range(max(iterations, 1)):
        labels = (directions @ F.normalize(centroids, dim=-1).mT).argmax(-1)
        counts = weights.new_zeros(heads, clusters).scatter_add_(1, labels, weights)
        source = weighted if step == max(iterations, 1) - 1 else directions * weights[..., None]
        sums = torch.zeros_like(centroids).scatter_add_(1, labels[..., None].expand(-1, -1, width), source)
        centroids = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1e-9)[..., None], centroids)
    return centroids, labels, counts


@exact
def squeezed_select(
    q: Tensor,
    context: SqueezedContext,
    *,
    threshold: float,
    coarse_threshold: float = 0.0,
    scale: float | None = None,
) -> BlockSparse:
    """Keys of the context that each query keeps: those whose cluster i has S_i > threshold, with
    S_i = exp(q . C_i) / sum_j N_j exp(q . C_j), the softmax weight that one key at the centroid would get.

    q: (1, H, Nq, D). threshold [T]: 0 keeps all. coarse_threshold: the same on the coarse level, whose kept clusters
    alone are compared on the fine one. scale: of the logits, 1/sqrt(D) by default.
    Returns BlockSparse(1, 1) of (H, Nq, N). The context is before all queries: no causal cut is needed.
    """
    if q.dim() != 4 or q.shape[0] != 1 or q.shape[1] % context.centroids.shape[0]:
        raise ValueError(
            f"q must be (1, H, Nq, D) with H a multiple of {context.centroids.shape[0]}, given {tuple(q.shape)}"
        )
    if not (0 <= threshold < 1 and 0 <= coarse_threshold < 1):
        raise ValueError(f"thresholds are softmax weights in [0, 1), given {threshold}, {coarse_threshold}")
    if coarse_threshold and context.coarse_centroids is None:
        raise ValueError("coarse_threshold needs a context squeezed with coarse_clusters")
    repeat = q.shape[1] // context.centroids.shape[0]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries = q[0].detach().to(context.centroids.dtype) * scale

    def each(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(repeat, dim=0)

    def shares(centroids: Tensor, counts: Tensor, allowed: Tensor | None) -> Tensor:
        logits = queries @ each(centroids).mT
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        total = (logits + each(counts).log()[:, None]).logsumexp(-1, keepdim=True)
        return (logits - total).exp()

    allowed = None
    if context.coarse_centroids is not None and context.coarse_counts is not None and context.coarse_labels is not None:
        kept = shares(context.coarse_centroids, context.coarse_counts, None) > coarse_threshold
        allowed = kept.gather(2, each(context.coarse_labels)[:, None].expand(-1, kept.shape[1], -1))
    kept = shares(context.centroids, context.counts, allowed) > threshold
    return BlockSparse(1, 1, kept.gather(2, each(context.labels)[:, None].expand(-1, kept.shape[1], -1)))


@exact
def routing_select(qk: Tensor, centroids: Tensor, window: int) -> tuple[BlockSparse, Tensor]:
    """Tokens of each cluster: the `window` [w] tokens nearest to each centroid, by product. The paper takes about
    sqrt(N) centroids and w = N / c.

    qk: (1, H, N, D), the shared queries and keys. They are layer-normalised here, without scale and shift, and so lie
    on a sphere. centroids: (H, c, D).
    Returns the mask, BlockSparse(1, 1) of (H, N, N): token i sees j when they share a cluster; and the tokens (H, c,
    w), ascending. A token in several clusters sees the union of them in one softmax (the paper's code averages over the
    clusters); a token in none sees nothing and gets 0.
    """
    tokens = _routed(qk)
    if centroids.shape[0] != tokens.shape[0] or centroids.shape[2] != tokens.shape[2]:
        raise ValueError(f"centroids {tuple(centroids.shape)} do not fit qk {tuple(qk.shape)}")
    if not 1 <= window <= tokens.shape[1]:
        raise ValueError(f"window must be in 1..{tokens.shape[1]} tokens, given {window}")
    chosen = (centroids.to(tokens.dtype) @ tokens.mT).topk(window, dim=-1).indices.sort(-1).values
    member = torch.zeros(*chosen.shape[:2], tokens.shape[1], dtype=torch.bool, device=qk.device)
    member.scatter_(2, chosen, True)
    return BlockSparse(1, 1, (member.float().mT @ member.float()) > 0), chosen


@exact
def routing_update(qk: Tensor, centroids: Tensor, decay: float = 0.999, transport: Transport | None = None) -> Tensor:
    """Centroids moved towards the tokens nearest to them: mu <- decay mu + (1 - decay) mean of its tokens.

    qk: (1, H, n, D), my tokens; transport: the ranks that hold the others, whose sums and counts are gathered in one
    call, H c (D + 1) numbers a rank, so that every rank moves its centroids alike. A centroid without tokens stays.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], given {decay}")
    tokens = _routed(qk)
    centroids = centroids.detach().to(tokens.dtype)
    labels = (tokens @ centroids.mT).argmax(-1)
    padded = torch.cat([tokens, tokens.new_ones(*tokens.shape[:2], 1)], dim=-1)
    sums = tokens.new_zeros(*centroids.shape[:2], padded.shape[2])
    sums.scatter_add_(1, labels[..., None].expand(-1, -1, padded.shape[2]), padded)
    parts = gather_summaries(alone() if transport is None else transport, (sums,))
    total = torch.stack([part[0] for part in parts]).sum(0)
    counts = total[..., -1:]
    return torch.where(counts > 0, decay * centroids + (1 - decay) * total[..., :-1] / counts.clamp(min=1), centroids)


def _routed(qk: Tensor) -> Tensor:
    if qk.dim() != 4 or qk.shape[0] != 1:
        raise ValueError(f"routing looks at one batch entry, qk (1, H, N, D); given {tuple(qk.shape)}")
    tokens = qk[0].detach()
    return F.layer_norm(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), tokens.shape[-1:])
