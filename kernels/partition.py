"""How a sequence is cut into pieces: one immutable, hashable value shared by clips on ranks, rows of takes, chunks of
speech.

A piece is a half-open range `[start, stop)` of positions (frames) and belongs to the rank of the same index. Pieces
may be uneven or empty, and may overlap where a method wants that (attention does not: see `validate_disjoint`). A
partition is a function of the total length and the parallel layout, known to every rank before anything is sent, so
no sizes ever travel.

    Partition.even(19, 3).pieces  # ((0, 7), (7, 13), (13, 19))
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Partition:
    """Pieces `[start, stop)` that together cover `0..total`, one per rank.

    Raises ValueError when a piece leaves `0..total` or a position belongs to no piece.
    """

    pieces: tuple[tuple[int, int], ...]
    total: int

    def __post_init__(self) -> None:
        if self.total < 0 or not self.pieces:
            raise ValueError(
                f"a partition needs at least one piece and a total >= 0; given {len(self.pieces)} pieces, total "
                f"{self.total}"
            )
        pieces = tuple((int(start), int(stop)) for start, stop in self.pieces)
        for index, (start, stop) in enumerate(pieces):
            if not 0 <= start <= stop <= self.total:
                raise ValueError(f"piece {index} is [{start}, {stop}), which is not inside [0, {self.total})")
        reached = 0
        for start, stop in sorted(piece for piece in pieces if piece[0] < piece[1]):
            if start > reached:
                raise ValueError(f"positions {reached}..{start - 1} belong to no piece of {pieces}")
            reached = max(reached, stop)
        if reached < self.total:
            raise ValueError(f"positions {reached}..{self.total - 1} belong to no piece of {pieces}")
        object.__setattr__(self, "pieces", pieces)

    @classmethod
    def even(cls, total: int, parts: int) -> "Partition":
        """Contiguous pieces whose sizes differ by at most one, the larger first; some are empty when `parts >
        total`."""
        if parts < 1:
            raise ValueError(f"parts must be at least 1, given {parts}")
        base, extra = divmod(total, parts)
        return cls.from_sizes([base + (part < extra) for part in range(parts)])

    @classmethod
    def from_sizes(cls, sizes: Iterable[int]) -> "Partition":
        """Contiguous pieces of the given sizes, in order; zeros are allowed."""
        pieces = []
        start = 0
        for size in sizes:
            if size < 0:
                raise ValueError(f"a piece cannot have the negative size {size}")
            pieces.append((start, start + size))
            start += size
        return cls(tuple(pieces), start)

    @property
    def parts(self) -> int:
        """Number of pieces, which is the number of ranks."""
        return len(self.pieces)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Positions in each piece."""
        return tuple(stop - start for start, stop in self.pieces)

    def range(self, part: int) -> range:
        """The positions of one piece."""
        return range(*self.pieces[part])

    def owner(self, position: int) -> int:
        """The first piece that holds `position`; IndexError outside `0..total`."""
        for part, (start, stop) in enumerate(self.pieces):
            if start <= position < stop:
                return part
        raise IndexError(f"position {position} is outside [0, {self.total})")

    def digest(self) -> str:
        """A hash that is the same in every process and release: 16 hex digits, for comparing plans between ranks and
        runs."""
        text = f"{self.total}:" + ",".join(f"{start}-{stop}" for start, stop in self.pieces)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def validate_disjoint(self) -> None:
        """Raise ValueError unless every position belongs to exactly one piece."""
        filled = sorted((piece, part) for part, piece in enumerate(self.pieces) if piece[0] < piece[1])
        for ((start, stop), part), ((next_start, next_stop), next_part) in zip(filled, filled[1:], strict=False):
            if next_start < stop:
                raise ValueError(
                    f"attention needs disjoint pieces, but piece {part} [{start}, {stop}) and piece {next_part} "
                    f"[{next_start}, {next_stop}) share positions {next_start}..{min(stop, next_stop) - 1}"
                )
