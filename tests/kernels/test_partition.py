import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longtake.kernels import Partition


@given(st.integers(0, 60), st.integers(1, 9))
def test_even_pieces_are_contiguous_and_differ_by_at_most_one(total: int, parts: int) -> None:
    partition = Partition.even(total, parts)
    assert partition.parts == parts
    assert [frame for part in range(parts) for frame in partition.range(part)] == list(range(total))
    assert max(partition.sizes) - min(partition.sizes) <= 1
    assert list(partition.sizes) == sorted(partition.sizes, reverse=True)
    partition.validate_disjoint()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_every_position_has_the_owner_whose_range_holds_it(sizes: list[int]) -> None:
    partition = Partition.from_sizes(sizes)
    assert partition.sizes == tuple(sizes)
    for position in range(partition.total):
        assert position in partition.range(partition.owner(position))
    with pytest.raises(IndexError):
        partition.owner(partition.total)


def test_overlapping_pieces_are_a_partition_but_not_for_attention() -> None:
    rows = Partition(((0, 6), (4, 10)), 10)
    with pytest.raises(ValueError, match="piece 0 .* and piece 1 .* share positions 4..5"):
        rows.validate_disjoint()


@pytest.mark.parametrize(
    ("pieces", "total", "message"),
    [
        (((0, 3), (4, 8)), 8, "positions 3..3 belong to no piece"),
        (((0, 3),), 5, "positions 3..4 belong to no piece"),
        (((0, 9),), 8, "not inside"),
        (((5, 3),), 8, "not inside"),
        ((), 0, "at least one piece"),
    ],
)
def test_gaps_and_pieces_outside_are_refused(pieces: tuple[tuple[int, int], ...], total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition(pieces, total)


def test_the_digest_is_the_same_in_another_process() -> None:
    program = "from longtake.kernels import Partition; print(Partition.from_sizes([3, 0, 5]).digest())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    partition = Partition.from_sizes([3, 0, 5])
    assert run.stdout.strip() == partition.digest()
    assert partition == Partition(((0, 3), (3, 3), (3, 8)), 8) and hash(partition) == hash(
        Partition(partition.pieces, 8)
    )
    assert partition.digest() != Partition.from_sizes([0, 3, 5]).digest()
