import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.kernels import DualScope, Edge, Full, Overlap, TileKind

BIASES = st.sampled_from([(0.0, 0.0), (10.0, 0.0), (-math.inf, 0.0), (0.0, -math.inf), (0.5, -1.5)])


@st.composite
def scopes(draw: st.DrawFn) -> DualScope:
    window = draw(st.integers(0, 7))
    indices = tuple(sorted(draw(st.sets(st.integers(0, 30), max_size=6))))
    bias_local, bias_global = draw(BIASES)
    if bias_local == -math.inf and not indices:
        bias_local = 0.0
    return DualScope(window, indices, draw(st.sampled_from(Overlap)), Edge.DROP, bias_local, bias_global)


def sees(scope: DualScope, i: int, j: int) -> bool:
    """The definition, one pair at a time."""
    near = scope.bias_local != -math.inf and abs(i - j) <= scope.window
    return near or (scope.bias_global != -math.inf and j in scope.global_indices)


rectangle = st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 30), st.integers(0, 12))


@settings(max_examples=1000, deadline=None)
@given(scopes(), rectangle)
def test_classify_agrees_with_dense_on_any_rectangle(scope: DualScope, area: tuple[int, int, int, int]) -> None:
    q0, q1, k0, k1 = area[0], area[0] + area[1], area[2], area[2] + area[3]
    dense = scope.dense(range(q0, q1), range(k0, k1))
    assert dense.tolist() == [[sees(scope, i, j) for j in range(k0, k1)] for i in range(q0, q1)]
    kind = scope.classify(q0, q1, k0, k1)
    assert (kind is TileKind.EMPTY) == (not dense.any())
    if dense.any():
        assert (kind is TileKind.FULL) == bool(dense.all())
    if kind is TileKind.BAND:
        band = [[abs(i - j) <= scope.window for j in range(k0, k1)] for i in range(q0, q1)]
        assert dense.tolist() == band
    assert scope.flops(q0, q1, k0, k1, 16) == 64 * int(dense.sum())


@settings(max_examples=300, deadline=None)
@given(scopes(), st.integers(0, 25), st.integers(0, 6))
def test_reach_holds_exactly_the_keys_that_some_query_sees(scope: DualScope, q0: int, count: int) -> None:
    ranges = scope.reach(q0, q0 + count)
    reached = {key for start, stop in ranges for key in range(start, stop)}
    seen = {j for j in range(-10, 50) if any(sees(scope, i, j) for i in range(q0, q0 + count))}
    assert reached == seen
    assert all(a[1] < b[0] for a, b in zip(ranges, ranges[1:], strict=False))


@settings(max_examples=200, deadline=None)
@given(scopes(), st.sampled_from(Edge), st.integers(31, 40))
def test_visible_counts_count_keys_with_multiplicity(scope: DualScope, edge: Edge, total: int) -> None:
    scope = DualScope(scope.window, scope.global_indices, scope.overlap, edge, scope.bias_local, scope.bias_global)
    for i, count in enumerate(scope.visible_counts(range(total), total).tolist()):
        near = [j for j in range(i - scope.window, i + scope.window + 1) if edge is Edge.ZERO or 0 <= j < total]
        near = near if scope.local_open else []
        shared = list(scope.global_indices) if scope.global_open else []
        if scope.overlap is Overlap.UNION:
            shared = [j for j in shared if j not in near]
        assert count == len(near) + len(shared)


def test_full_sees_everything() -> None:
    assert Full().dense(range(2), range(3)).all() and Full().classify(0, 2, 0, 3) is TileKind.FULL
    assert Full().classify(0, 0, 0, 3) is TileKind.EMPTY and Full().flops(0, 2, 0, 3, 8) == 192


def test_a_key_counted_twice_adds_its_weights() -> None:
    scope = DualScope(1, (3,), Overlap.MULTISET, bias_local=0.5, bias_global=-1.0)
    score = scope.score([3], [2, 3, 9])
    assert torch.allclose(score.exp(), torch.tensor([[math.exp(0.5), math.exp(0.5) + math.exp(-1.0), 0.0]]).double())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"window": -1}, "window must be >= 0"),
        ({"window": 1, "global_indices": (3, 3)}, "strictly increasing"),
        ({"window": 1, "global_indices": (-1, 3)}, "strictly increasing"),
        ({"window": 1, "bias_local": -math.inf}, "no key is visible: .*empty"),
        (
            {"window": 1, "global_indices": (1,), "bias_local": -math.inf, "bias_global": -math.inf},
            "bias_global is -inf",
        ),
        ({"window": 1, "bias_local": math.nan}, "bias_local"),
        ({"window": 1, "bias_global": math.inf}, "bias_global"),
        ({"window": 1, "row_scale": 1.0}, "row_scale"),
        ({"window": 1, "overlap": "both"}, "both"),
    ],
)
def test_scopes_that_mean_nothing_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualScope(**settings_)
