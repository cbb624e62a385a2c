"""What masks say of rectangles and reaches is what their dense form shows, whatever the mask (E5)."""

import random
from typing import Any

import pytest
import torch
from longtake.kernels import (
    And,
    BlockSparse,
    Causal,
    Dense,
    Documents,
    DualScope,
    Full,
    KeyMask,
    KeyPadding,
    Lambda,
    Layout,
    Or,
    Ranges,
    SliceKind,
    SlidingWindow,
    TileKind,
    attention_reference,
)
from longtake.kernels.backends.contract import Request
from longtake.kernels.backends.registry import choose_backend
from longtake.kernels.plan.tiles import as_runs, compile_tiles, length_of, positions_of
from longtake.kernels.ranks.transport import DryTransport
from longtake.kernels.strategies.engine import Call, Merged, attend

N = 44


def simple_mask(rng: random.Random) -> Any:
    bits = torch.Generator().manual_seed(rng.randrange(1 << 30))
    cuts = sorted(rng.randint(0, N) for _ in range(4))
    slices = tuple(
        (a, a + rng.randint(0, 12), c, c + rng.randint(0, 12), rng.choice(list(SliceKind)))
        for a, c in ((rng.randint(0, 20), rng.randint(0, 20)) for _ in range(2))
    )
    return rng.choice([
        Full(), Causal(rng.randint(-3, 5)), Lambda(rng.randint(0, 6), rng.randint(1, 9)), Documents((0, *cuts)),
        SlidingWindow(rng.choice([None, 0, 3, 7]), rng.choice([None, 0, 2, 5])), Ranges(slices),
        DualScope(rng.randint(0, 5), (3, 20, 33)), KeyPadding(rng.choice([5, 30, (3, 20)])),
        BlockSparse(rng.randint(4, 6), rng.randint(4, 6), torch.rand(11, 11, generator=bits) < 0.4),
        BlockSparse(4, 5, torch.rand(2, 11, 9, generator=bits) < 0.4),
        Dense(torch.rand(N, N, generator=bits) < 0.5), KeyMask(torch.rand(N, generator=bits) < 0.7),
        KeyMask(torch.rand(2, N, generator=bits).sort().values < 0.8),
    ])  # fmt: skip


def any_mask(rng: random.Random) -> Any:
    first, second = simple_mask(rng), simple_mask(rng)
    return rng.choice([first, And(first, second), Or(first, second)])


@pytest.mark.parametrize("seed", range(10))
def test_e5_classify_band_and_reach_agree_with_dense(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        mask = any_mask(rng)
        q0, k0 = rng.randint(0, 30), rng.randint(0, 30)
        q1, k1 = q0 + rng.randint(0, 12), k0 + rng.randint(0, 12)
        seen = mask.dense(range(q0, q1), range(k0, k1))
        kind = mask.classify(q0, q1, k0, k1)
        assert (kind is TileKind.EMPTY) == (not seen.any()), (mask, kind)
        if seen.any():
            assert (kind is TileKind.FULL) == bool(seen.all()), (mask, kind)
        if kind in (TileKind.CAUSAL, TileKind.BAND):
            lower, upper = mask.band(q0, q1, k0, k1)
            upper = None if kind is TileKind.CAUSAL else upper
            band = [
                [(lower is None or i - j >= lower) and (upper is None or i - j <= upper) for j in range(k0, k1)]
                for i in range(q0, q1)
            ]
            assert torch.equal(seen, torch.tensor(band).expand_as(seen)), mask  # alike for all heads and entries
        if q0 < q1:
            keys = mask.dense(range(q0, q1), range(N)).reshape(-1, N).any(0)
            reached = torch.zeros(N, dtype=torch.bool)
            spans = mask.reach(q0, q1)
            for start, stop in spans:
                reached[max(start, 0) : max(min(stop, N), 0)] = True
            assert bool((reached | ~keys).all()) and spans == sorted(spans), mask


def random_runs(rng: random.Random, n: int) -> Any:
    return rng.choice([(range(n),), (range(0, n // 3), range(2 * n // 3, n)), (range(1, n, 3),)])


@pytest.mark.parametrize("seed", range(6))
def test_tiles_together_compute_the_mask_on_any_rows(seed: int) -> None:
    rng = random.Random(seed)
    backend = choose_backend(Request(torch.float64, 8, 8, "cpu"))
    for _ in range(40):
        mask, block = any_mask(rng), rng.choice([4, 16, 128])
        q_runs, k_runs = random_runs(rng, N), random_runs(rng, N)
        rows, keys = length_of(q_runs), length_of(k_runs)
        q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (rows, keys, keys))
        expected, expected_lse = attention_reference(q, k, v, mask, positions_of(q_runs), positions_of(k_runs), total=N)
        into = Merged(q, 8)
        attend(Call(DryTransport(0, 1), backend, 8**-0.5), compile_tiles(mask, q_runs, k_runs, block), q, k, v, into)
        out, lse = into.result()
        assert (out - expected).abs().max() <= 1e-12, mask
        assert torch.equal(lse.isfinite(), expected_lse.isfinite()), mask


def test_the_areas_of_tiles_are_the_visible_pairs() -> None:
    for mask in (Full(), Causal(), SlidingWindow(3, 1), Documents((0, 9, N)), And(Causal(), Documents((0, 9, N)))):
        tiles = compile_tiles(mask, (range(N),), (range(N),), 8)
        seen = int(mask.dense(range(N), range(N)).sum())
        assert sum(tile.area for tile in tiles) == mask.flops(0, N, 0, N, 1) // 4 == seen


def test_masks_are_values() -> None:
    bits = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    assert BlockSparse(2, 2, bits) == BlockSparse(2, 2, bits.clone()) != BlockSparse(2, 2, ~bits)
    assert hash(Dense(bits)) == hash(Dense(bits.clone())) and Dense(bits).digest() != Dense(~bits).digest()
    assert BlockSparse(2, 2, tuple(map(tuple, bits.tolist()))) == BlockSparse(2, 2, bits)
    heads = BlockSparse(2, 2, torch.stack([bits, ~bits]))
    second = heads.slice_heads(1, 2).dense(range(8), range(8))[0]
    assert heads.heads == 2 and torch.equal(second, ~heads.dense(range(8), range(8))[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(-1, 0), "must be >= 0"),
        (lambda: Lambda(0, 0), "local >= 1"),
        (lambda: BlockSparse(0, 1, [[True]]), "at least 1"),
        (lambda: BlockSparse(1, 1, torch.zeros(2, 2)), "must be bool"),
        (lambda: Dense(torch.zeros(3)), "2, 3 or 4 dims"),
        (lambda: Dense(torch.full((2, 2), torch.nan)), "finite"),
        (lambda: Documents((1, 5)), "must be 0 followed"),
        (lambda: KeyPadding((-1,)), ">= 0"),
        (lambda: KeyMask(torch.ones(3)), "takes bool"),
        (lambda: Ranges(((0, 3, 2, 1, "full"),)), "k0 <= k1"),
        (lambda: Or(Full(), DualScope(1, bias_local=1.0)), "without biases"),
        (lambda: And(Full(), DualScope(1, edge="zero")), "zero edges"),
        (lambda: Layout.indices([[0, 1], [1, 2]]), "exactly once"),
    ],
)
def test_masks_and_layouts_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_layouts_shard_and_put_together() -> None:
    x = torch.arange(2 * 3 * 29.0).view(2, 3, 29, 1)
    order = torch.randperm(29, generator=torch.Generator().manual_seed(0)).tolist()
    for layout in (
        Layout.contiguous((5, 0, 24)), Layout.zigzag(29, 3), Layout.striped(29, 3),
        Layout.indices([order[:4], order[4:20], order[20:]]), Layout.balanced(Causal(), 29, 3, 4),
    ):  # fmt: skip
        assert torch.equal(layout.unshard([layout.shard(x, rank) for rank in range(3)]), x)
        assert layout.sizes == tuple(len(layout.positions(rank)) for rank in range(3))
    assert as_runs([0, 1, 2, 7, 9, 11]) == (range(0, 3), range(7, 12, 2))
