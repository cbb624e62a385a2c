"""Index providers against slow loops, and how much of dense attention they keep where attention has structure."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from longtake.kernels.masks.basic import Causal, Full
from longtake.kernels.masks.tables import BlockSparse
from longtake.kernels.ranks.transport import Transport
from longtake.kernels.sparse.clusters import routing_select, routing_update, squeeze, squeezed_select
from longtake.kernels.sparse.selection import HiPStage, attention_recall, hip_select, infllm_select
from ranks import run_ranks


def topical(length: int, heads: int, topics: int, run: int, strength: float, seed: int = 0) -> tuple[Any, ...]:
    """Queries and keys of a text with topics: runs of `run` tokens point in the direction of one of `topics`."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(topics, 32, generator=generator), dim=-1)
    topic = torch.randint(topics, (-(-length // run),), generator=generator).repeat_interleave(run)[:length]
    q, k = (
        strength * directions[topic] + torch.randn(1, heads, length, 32, generator=generator) * 0.5 for _ in range(2)
    )
    return q, k, topic


def slow_hip(q: Any, k: Any, stages: Any, second: int, block: int, sink: int, window: int) -> torch.Tensor:
    heads, length = q.shape[1:3]
    last = stages[-1].chunk_size
    bitmap = torch.zeros(heads, -(-length // block), -(-length // last), dtype=torch.bool)
    for h in range(heads):
        keys = k[0, h * k.shape[1] // heads]
        for row in range(bitmap.shape[1]):
            rows = q[0, h, row * block : (row + 1) * block]
            begin, end = row * block, row * block + len(rows)
            edge = max(begin - window, 0)
            for j in range(end):
                if j < sink or j >= edge:
                    bitmap[h, row, j // last] = True
            first = sink // last * last

            def score(j: int, rows: Any = rows, keys: Any = keys, edge: int = edge) -> float:
                return float((rows @ keys[j]).max()) if j < edge else -math.inf

            starts = list(range(first, edge, stages[0].chunk_size))
            for number, stage in enumerate(stages):
                if number:
                    starts = [s + d for s in starts for d in range(0, stages[number - 1].chunk_size, stage.chunk_size)]
                judged = []
                for s in starts:
                    left, half = s, stage.chunk_size // 2
                    while half:
                        if score(left + half + half // 2) > score(left + half // 2):
                            left += half
                        half //= 2
                    judged.append((score(left) if s < edge else -math.inf, -s))
                following = stages[number + 1].stage_k if number + 1 < len(stages) else second
                keep = -(-following // stage.chunk_size)
                starts = [-s for _, s in sorted(judged, reverse=True)[:keep]]
            for s in starts:
                bitmap[h, row, min(s, edge - 1) // last] = True
    return bitmap


@pytest.mark.parametrize("length", [256, 203])
def test_hip_equals_the_slow_loops(length: int) -> None:
    q, k, _ = topical(length, 4, 6, 8, 3.0)
    k = k[:, :2]
    stages = (HiPStage(16), HiPStage(8, 64), HiPStage(4, 32))
    settings = {"stages": stages, "second_stage_k": 16, "block_size_q": 16, "sink_token_size": 5}
    mask = hip_select(q, k, **settings, sliding_window_size=20)
    expected = slow_hip(q, k, stages, 16, 16, 5, 20)
    assert (mask.block_q, mask.block_k) == (16, 4)
    starts = torch.arange(mask.index.shape[2]) * 4
    real = (starts < length)[None, None]
    assert torch.equal(mask.index & real, expected & real)


def test_hip_keeps_what_dense_attention_looks_at() -> None:
    q, k, _ = topical(2048, 2, 24, 16, 6.0)
    stages = (HiPStage(64), HiPStage(32, 1024), HiPStage(8, 512))
    mask = hip_select(
        q, k, stages=stages, second_stage_k=256, block_size_q=16, sink_token_size=16, sliding_window_size=64
    )
    kept = (mask.dense(range(2048), range(2048)) & Causal().dense(range(2048), range(2048))).float().mean() * 2
    recall = attention_recall(q, k, mask, Causal())
    print(f"HiP: recall {recall.min():.3f} with {kept:.3f} of the keys")
    assert recall.min() >= 0.90 and kept <= 0.40
    blind = hip_select(q, k.roll(777, 2), stages=stages, second_stage_k=256, block_size_q=16, sink_token_size=16,
                       sliding_window_size=64)  # fmt: skip
    assert attention_recall(q, k, blind, Causal()).max() < recall.min() - 0.2  # the choice matters, not the count


def slow_infllm(q: Any, k: Any, block: int, reprs: int, top: int, init: int, local: int, group: int) -> torch.Tensor:
    heads, length = q.shape[1:3]
    bitmap = torch.zeros(heads, -(-length // group), -(-length // block), dtype=torch.bool)
    for h in range(heads):
        keys = k[0, h * k.shape[1] // heads].double()
        queries = q[0, h].double()
        for row in range(bitmap.shape[1]):
            begin, end = row * group, min((row + 1) * group, length)
            edge = max(begin - local, 0)
            for j in range(end):
                if j < init or j >= edge:
                    bitmap[h, row, j // block] = True
            relevance = []
            for b in range(-(-init // block), edge // block):
                places = range(b * block, (b + 1) * block)
                wanted = [float((queries[m + 1 : m + 1 + local] @ keys[m]).mean()) for m in places]
                assert places[-1] + local < begin + 1  # nothing later than the group has a say
                best = sorted(range(block), key=lambda i, wanted=wanted: -wanted[i])[:reprs]
                relevance.append((float((queries[begin:end] @ keys[[places[i] for i in best]].mT).sum()), b))
            for _, b in sorted(relevance, reverse=True)[:top]:
                bitmap[h, row, b] = True
    return bitmap


@pytest.mark.parametrize("length", [256, 203])
def test_infllm_equals_the_slow_loops(length: int) -> None:
    q, k, _ = topical(length, 4, 6, 8, 3.0)
    k = k[:, :2]
    mask = infllm_select(q, k, block_size=8, repr_topk=2, topk=3, n_init=10, n_local=24, exc_block_size=16)
    assert torch.equal(mask.index, slow_infllm(q, k, 8, 2, 3, 10, 24, 16))
    short = infllm_select(q[:, :, :5], k[:, :, :5], block_size=8, n_local=4, exc_block_size=4)
    assert short.index.all()


def test_infllm_keeps_what_dense_attention_looks_at() -> None:
    q, k, _ = topical(2048, 2, 24, 16, 6.0)
    mask = infllm_select(q, k, block_size=16, repr_topk=4, topk=16, n_init=16, n_local=64, exc_block_size=16)
    kept = (mask.dense(range(2048), range(2048)) & Causal().dense(range(2048), range(2048))).float().mean() * 2
    recall = attention_recall(q, k, mask, Causal())
    print(f"InfLLM: recall {recall.min():.3f} with {kept:.3f} of the keys")
    assert recall.min() >= 0.90 and kept <= 0.40
    blind = infllm_select(q.roll(777, 2), k, block_size=16, topk=16, n_init=16, n_local=64, exc_block_size=16)
    assert attention_recall(q, k, blind, Causal()).max() < recall.min() - 0.2


def test_squeezed_shares_are_the_formula_and_zero_keeps_all() -> None:
    q, k, _ = topical(96, 4, 5, 4, 3.0)
    k = k[:, :2]
    context = squeeze(k, 9)
    assert context.counts.sum(1).tolist() == [96, 96]
    for h in range(2):
        for c in range(9):
            mine = context.labels[h] == c
            if mine.any():
                assert torch.allclose(context.centroids[h, c], k[0, h, mine].mean(0), atol=1e-5)
    mask = squeezed_select(q, context, threshold=0.01)
    for h, i in ((0, 0), (1, 50), (3, 95)):
        logits = (context.centroids[h // 2] @ q[0, h, i]) / math.sqrt(32)
        shares = logits.exp() / (context.counts[h // 2] * logits.exp()).sum()
        assert torch.equal(mask.index[h, i], (shares > 0.01)[context.labels[h // 2]])
    assert squeezed_select(q, context, threshold=0).index.all()
    two = squeeze(k, 9, coarse_clusters=3)
    assert two.coarse_counts is not None and two.coarse_counts.sum(1).tolist() == [96, 96]
    both = squeezed_select(q, two, threshold=0.01, coarse_threshold=0.01)
    assert 0 < both.index.sum() < both.index.numel()


def test_squeezed_keeps_what_dense_attention_looks_at() -> None:
    q, k, _ = topical(2048, 2, 24, 16, 7.0)
    mask = squeezed_select(q[:, :, :64], squeeze(k, 102, iterations=20), threshold=2e-3)
    recall = attention_recall(q[:, :, :64], k, mask, Full())
    kept = mask.index.float().mean()
    print(f"Squeezed: recall {recall.min():.3f} with {kept:.3f} of the keys, 102 centroids (5 %)")
    assert recall.min() >= 0.90 and kept <= 0.15
    two = squeezed_select(
        q[:, :, :64], squeeze(k, 102, coarse_clusters=20, iterations=20), threshold=2e-3, coarse_threshold=2e-4
    )
    assert attention_recall(q[:, :, :64], k, two, Full()).min() >= 0.85 and two.index.float().mean() <= 0.15


def test_routing_clusters_by_hand_and_recall() -> None:
    x, _, topic = topical(512, 2, 8, 4, 5.0)
    centroids = torch.stack([F.layer_norm(x[0, h], (32,))[[int((topic == t).nonzero()[0]) for t in range(8)]]
                             for h in range(2)])  # fmt: skip
    for _ in range(8):
        centroids = routing_update(x, centroids, decay=0.5)
    mask, tokens = routing_select(x, centroids, window=96)
    assert isinstance(mask, BlockSparse) and tokens.shape == (2, 8, 96)
    expected = torch.zeros(2, 512, 512, dtype=torch.bool)
    for h in range(2):
        normed = F.layer_norm(x[0, h], (32,))
        for c in range(8):
            near = sorted(range(512), key=lambda i, h=h, c=c, normed=normed: -float(normed[i] @ centroids[h, c]))[:96]
            for i in near:
                expected[h, i, near] = True
    assert torch.equal(mask.index, expected)
    shared = F.layer_norm(x, (32,))
    recall, kept = attention_recall(shared, shared, mask, Full()), mask.index.float().mean()
    print(f"Routing: recall {recall.min():.3f} with {kept:.3f} of the pairs")
    assert recall.min() >= 0.90 and kept <= 0.30
    still = torch.full_like(centroids, -100.0)
    still[:, 0] = centroids[:, 0]
    moved = routing_update(x, torch.cat([centroids[:, :1], centroids[:, :1]], 1))
    assert torch.equal(moved[:, 1], centroids[:, 0])  # argmax gives ties to the first: the second has no token


def rank_routing(rank: int, world: int) -> tuple[torch.Tensor, dict[str, Any]]:
    x, _, _ = topical(60, 2, 4, 4, 5.0)
    pieces = [slice(0, 20), slice(20, 20), slice(20, 60)]
    transport = Transport()
    return routing_update(x[:, :, pieces[rank]], x[0, :, :4], 0.9, transport), transport.counter.as_dict()


@pytest.mark.distributed
def test_routing_centroids_move_alike_on_every_rank() -> None:
    x, _, _ = topical(60, 2, 4, 4, 5.0)
    expected = routing_update(x, x[0, :, :4], 0.9)
    for centroids, counts in run_ranks(rank_routing, 3):
        assert (centroids - expected).abs().max() <= 1e-6
        assert counts["sent"] == {"gather": 2 * 2 * 4 * 33 * 4} and counts["calls"] == {"gather": 1}


def test_mistakes_raise() -> None:
    x = torch.zeros(1, 2, 64, 8)
    for call, message in (
        (lambda: hip_select(x.expand(2, -1, -1, -1), x), "one batch entry"),
        (lambda: hip_select(x, x[:, :, :32]), "as many queries as keys"),
        (lambda: hip_select(x, x, stages=(HiPStage(8), HiPStage(16, 64))), "divide"),
        (lambda: HiPStage(12), "power of two"),
        (lambda: HiPStage(16, 8), "does not hold"),
        (lambda: hip_select(x, x, second_stage_k=4), "second_stage_k"),
        (lambda: infllm_select(x, x, repr_topk=200), "repr_topk"),
        (lambda: infllm_select(x, x[:, :, :, :4]), "do not fit"),
        (lambda: squeeze(x, 65), "clusters must be"),
        (lambda: squeezed_select(x, squeeze(x, 4), threshold=1.0), "softmax weights"),
        (lambda: squeezed_select(x, squeeze(x, 4), threshold=0.1, coarse_threshold=0.1), "coarse_clusters"),
        (lambda: routing_select(x, torch.zeros(2, 3, 8), 65), "window"),
        (lambda: routing_select(x, torch.zeros(3, 3, 8), 5), "centroids"),
        (lambda: routing_update(x, torch.zeros(2, 3, 8), 1.5), "decay"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
