"""A mask cut into tiles: rectangles of one rank's queries and keys that a backend computes in one call.

Three kinds reach a backend: FULL (no mask), CAUSAL (square, query i sees keys 0..i) and DENSE (a bias is added to the
logits). Whatever the mask, nothing larger than a tile's bias is ever built:
    full, causal, shifted causal     cut into full rectangles and one causal square, no bias at all
    anything else                    queries in blocks of `block` rows; each meets the keys in its reach, split into
                                     those that all of its rows see (FULL) and the rest (DENSE)

Positions come as runs: a rank's rows are `range` objects laid end to end, so contiguous, zigzag, striped and custom
layouts are one case. Rows of queries and keys inside a tile are local (0 is the rank's first row).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from longtake.kernels.masks.basic import Bounds, FewKeys, Mask, TileKind, merge_ranges
from torch import Tensor

Runs = tuple[range, ...]
Span = tuple[int, int]

BLOCK_ROWS = 128  # queries in a block; measured best between half the window and the window at windows of 256
_WINDOW_ROWS = ((64, 32), (640, 64), (1 << 62, BLOCK_ROWS))  # (widest window, queries in a block), measured
_SPLIT_WIDTH = 16  # windows wider than so many blocks have their full keys apart
_BIAS_ENTRIES = 1 << 20  # of one tile of a few keys
_SPLIT_KEYS = 2  # full keys leave a block with other keys when they are this many times its rows


@dataclass(frozen=True)
class Tile:
    """One call of a backend.

    rows: local query rows [start, stop). keys: local key rows, spans laid side by side.
    kind: FULL, CAUSAL (as many rows as keys, top left aligned) or DENSE.
    bias: of a DENSE tile, float32 or float64, (rows, keys), (H, rows, keys) or (B, H or 1, rows, keys), -inf hides.
    area: visible pairs (of the mean head), what the work is proportional to.
    blocks: more than one: the rows are that many blocks of equal size; `keys` is one span, of the first block, and each
        next block has it `step` key rows further on, under the same kind and bias.
    mask: only for a backend that computes this kind of mask whole: the mask instead of a bias, with the global
        positions of the tile's queries and keys (q_runs, k_runs).
    """

    rows: Span
    keys: tuple[Span, ...]
    kind: TileKind
    area: int
    bias: Tensor | None = field(default=None, compare=False, repr=False)
    blind: bool = False  # whether some row of a DENSE tile sees none of its keys
    mask: Mask | None = None
    q_runs: Runs = ()
    k_runs: Runs = ()
    blocks: int = 1
    step: int = 0

    @property
    def n_rows(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def n_keys(self) -> int:
        """Keys of one block."""
        return sum(stop - start for start, stop in self.keys)


def whole_tile(mask: Mask, q_runs: Runs, k_runs: Runs) -> tuple[Tile, ...]:
    """One tile that leaves the mask to the backend."""
    rows, keys = length_of(q_runs), length_of(k_runs)
    if not rows or not keys:
        return ()
    return (Tile((0, rows), ((0, keys),), TileKind.DENSE, rows * keys, mask=mask, q_runs=q_runs, k_runs=k_runs),)


def run_bounds(run: range) -> Span:
    """The smallest [start, stop) that holds a run's positions."""
    return (min(run[0], run[-1]), max(run[0], run[-1]) + 1) if len(run) else (0, 0)


def as_runs(positions: Sequence[int]) -> Runs:
    """Positions as the fewest-found runs, in order: [0, 1, 2, 7, 9, 11] is (range(0, 3), range(7, 12, 2))."""
    if isinstance(positions, range):
        return (positions,) if len(positions) else ()
    runs: list[range] = []
    start = 0
    listed = list(positions)
    while start < len(listed):
        stop = start + 1
        step = listed[stop] - listed[start] if stop < len(listed) else 1
        if step > 0:
            while stop < len(listed) and listed[stop] - listed[stop - 1] == step:
                stop += 1
            if stop - start == 2 and step > 1:  # two positions are a pair of runs unless they touch
                stop, step = start + 1, 1
        else:
            step = 1
        runs.append(range(listed[start], listed[stop - 1] + 1, step))
        start = stop
    return tuple(runs)


def positions_of(runs: Runs) -> Tensor:
    """All positions, int64, in local order."""
    return torch.cat([torch.arange(run.start, run.stop, run.step) for run in runs] or [torch.empty(0)]).long()


def length_of(runs: Runs) -> int:
    return sum(len(run) for run in runs)


def rows_within(runs: Runs, ranges: Iterable[Span]) -> list[Span]:
    """Local spans of the rows whose positions lie in sorted, disjoint ranges."""
    spans: list[Span] = []
    offset = 0
    wanted = list(ranges)
    for run in runs:
        for low, high in wanted:
            first = max(-(-(low - run.start) // run.step), 0)
            last = min(-(-(high - run.start) // run.step), len(run))
            if first < last:
                spans.append((offset + first, offset + last))
        offset += len(run)
    return merge_ranges(spans)


def needed_rows(mask: Mask, q_runs: Runs, k_runs: Runs, block: int) -> list[Span]:
    """Local rows of the keys that queries need, by the mask's reach; strided queries are asked block by block."""
    ranges: list[Span] = []
    for run in q_runs:
        step = len(run) if run.step == 1 else block
        for start in range(0, len(run), step):
            ranges += mask.reach(*run_bounds(run[start : start + step]))
    return rows_within(k_runs, merge_ranges(ranges))


def sub_runs(runs: Runs, spans: Sequence[Span]) -> Runs:
    """The runs of some rows."""
    parts = []
    offset = 0
    for run in runs:
        for start, stop in spans:
            piece = run[max(start - offset, 0) : max(stop - offset, 0)]
            if len(piece):
                parts.append(piece)
        offset += len(run)
    return tuple(parts)


def take(x: Tensor, spans: Sequence[Span], dim: int = 2) -> Tensor:
    """The rows of `spans` side by side; a single span is a view."""
    parts = [x.narrow(dim, start, stop - start) for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim) if parts else x.narrow(dim, 0, 0)


def compile_tiles(mask: Mask, q_runs: Runs, k_runs: Runs, block: int = BLOCK_ROWS) -> tuple[Tile, ...]:
    """The tiles of one rank's queries against some keys: part by part of the mask, in order of rows.

    block: most queries in a block of a mixed mask. Windows take fewer when they are narrow, and their blocks are laid
    together; a few keys that all queries see take as many queries as a small bias allows.
    """
    tiles: list[Tile] = []
    for part in mask.parts():
        tiles += _part_tiles(part, q_runs, k_runs, block)
    return tuple(tiles)


def _part_tiles(mask: Mask, q_runs: Runs, k_runs: Runs, block: int) -> list[Tile]:
    tiles: list[Tile] = []
    biases: dict[tuple[object, ...], Tensor] = {}
    row = 0
    for q_run in q_runs:
        simple = _without_bias(mask, q_run, row, k_runs) if mask.plain else None
        if simple is not None:
            tiles += simple
        else:
            rows, split = _block_rows(mask, q_run, k_runs, block)
            blocks: list[Tile] = []
            for start in range(0, len(q_run), rows):
                blocks += _block_tiles(mask, q_run[start : start + rows], row + start, k_runs, biases, split)
            tiles += _laid_together(blocks)
        row += len(q_run)
    return tiles


def _block_rows(mask: Mask, q_run: range, k_runs: Runs, block: int) -> tuple[int, bool]:
    """Queries in a block, and whether keys that all of them see become a tile of their own."""
    if isinstance(mask, FewKeys):
        keys = sum(stop - start for start, stop in mask.spans)
        return max(block, _BIAS_ENTRIES // max(keys, 1)), True
    bounds = [run_bounds(run) for run in k_runs if len(run)]
    if not bounds or not len(q_run):
        return block, True
    everything = (*run_bounds(q_run), min(low for low, _ in bounds), max(high for _, high in bounds))
    if mask.classify(*everything) is not TileKind.BAND:
        return block, True
    lower, upper = mask.band(*everything)
    if lower is None or upper is None or upper - lower >= _SPLIT_WIDTH * block:
        return block, True
    width = (upper - lower) // q_run.step + 1
    return min(block, next(rows for widest, rows in _WINDOW_ROWS if width <= widest)), False


def _laid_together(tiles: list[Tile]) -> list[Tile]:
    """Neighbouring blocks with the same bias, whose keys move on evenly, as one tile.

    SlidingWindow(1, 1) over ten positions in blocks of two rows:

            key 0 1 2 3 4 5 6 7 8 9
        row 0   x x .                       keys 0..2, a bias of its own
            1   x x x
            2     x x x .              -+   keys 1..4
            3     . x x x               |
            4         x x x .           |   keys 3..6: the same bias, two keys further on
            5         . x x x           |
            6             x x x .       |   keys 5..8, two more
            7             . x x x      -+   one tile: rows (2, 8), keys ((1, 5),), blocks 3, step 2
            8                 x x x         keys 7..9, a bias of its own
            9                 . x x
    """
    merged: list[Tile] = []
    for tile in tiles:
        last = merged[-1] if merged else None
        if last is not None and (step := _goes_on(last, tile)) is not None:
            rows = (last.rows[0], tile.rows[1])
            merged[-1] = replace(last, rows=rows, area=last.area + tile.area, blocks=last.blocks + 1, step=step)
        else:
            merged.append(tile)
    return merged


def _goes_on(last: Tile, tile: Tile) -> int | None:
    """The step from the last block of `last` to `tile`, in key rows: drawn in `_laid_together`. None when it is another
    tile: another bias or size, not the next rows, keys in several spans, a step back or another step than before."""
    if tile.kind is not last.kind or tile.kind is TileKind.CAUSAL or tile.bias is not last.bias:
        return None
    if len(tile.keys) != 1 or len(last.keys) != 1 or tile.n_keys != last.n_keys or tile.rows[0] != last.rows[1]:
        return None
    if tile.n_rows * last.blocks != last.n_rows or (tile.bias is not None and tile.bias.dim() != 2):
        return None
    step = tile.keys[0][0] - last.keys[0][0] - (last.blocks - 1) * last.step
    return step if step >= 0 and (last.blocks == 1 or step == last.step) else None


def local_band(bounds: Bounds, q_run: range, k_run: range) -> Bounds | None:
    """Bounds of i - j on positions as bounds on row numbers inside two runs of one step; None for different steps."""
    step = q_run.step if len(q_run) > 1 else k_run.step
    if step != (k_run.step if len(k_run) > 1 else step):
        return None
    shift = q_run.start - k_run.start
    lower = None if bounds[0] is None else -(-(bounds[0] - shift) // step)
    upper = None if bounds[1] is None else (bounds[1] - shift) // step
    return lower, upper


def _without_bias(mask: Mask, q_run: range, row: int, k_runs: Runs) -> list[Tile] | None:
    """Tiles of a run of queries that sees every run of keys fully, not at all, or causally; None when it does not."""
    rows = len(q_run)
    full: list[Span] = []
    causal: list[Tile] = []
    column = 0
    for k_run in k_runs:
        columns = len(k_run)
        rectangle = (*run_bounds(q_run), *run_bounds(k_run))
        kind = mask.classify(*rectangle) if rows and columns else TileKind.EMPTY
        if kind is TileKind.FULL:
            full.append((column, column + columns))
        elif kind is TileKind.CAUSAL:
            bounds = local_band((mask.band(*rectangle)[0], None), q_run, k_run)
            if bounds is None or bounds[0] is None:
                return None
            causal += _cut_causal(bounds[0], rows, columns, row, column)
        elif kind is not TileKind.EMPTY:
            return None
        column += columns
    spans = tuple(merge_ranges(full))
    if spans:
        keys = sum(stop - start for start, stop in spans)
        causal.insert(0, Tile((row, row + rows), spans, TileKind.FULL, rows * keys))
    return causal


def _cut_causal(lower: int, rows: int, columns: int, row: int, column: int) -> list[Tile]:
    """Row i sees columns j <= i - lower: a full strip on the left, a causal square, full rows below it."""
    first = max(lower, 0)  # earlier rows see nothing
    strip = min(max(-lower, 0), columns)  # columns that every row sees
    side = max(min(rows - first, columns - strip), 0)
    tiles = []

    def add(r0: int, r1: int, c0: int, c1: int, kind: TileKind) -> None:
        if r0 < r1 and c0 < c1:
            area = (r1 - r0) * (c1 - c0) if kind is TileKind.FULL else (r1 - r0) * (r1 - r0 + 1) // 2
            tiles.append(Tile((row + r0, row + r1), ((column + c0, column + c1),), kind, area))

    add(first, first + side, 0, strip, TileKind.FULL)
    add(first, first + side, strip, strip + side, TileKind.CAUSAL)
    add(first + side, rows, 0, columns, TileKind.FULL)
    return tiles


def _block_tiles(
    mask: Mask, q_run: range, row: int, k_runs: Runs, biases: dict[tuple[object, ...], Tensor], split: bool
) -> list[Tile]:
    """Tiles of one block of queries: one FULL, one DENSE, or a DENSE one that holds both (always, without `split`)."""
    rows = len(q_run)
    q0, q1 = run_bounds(q_run)
    full: list[Span] = []
    mixed: list[Span] = []
    column = 0
    reach = mask.reach(q0, q1)
    for k_run in k_runs:
        for start, stop in rows_within((k_run,), reach):
            _sort_keys(mask, q0, q1, k_run[start:stop], column + start, rows, full, mixed)
        column += len(k_run)
    full, mixed = merge_ranges(full), merge_ranges(mixed)
    tiles = []
    fulls = sum(stop - start for start, stop in full)
    if mixed and (not split or fulls < _SPLIT_KEYS * rows):
        full, mixed = [], merge_ranges(full + mixed)
    if full:
        area = rows * sum(stop - start for start, stop in full)
        tiles.append(Tile((row, row + rows), tuple(full), TileKind.FULL, area))
    if mixed:
        keys = take(positions_of(k_runs), mixed, dim=0)
        score = mask.score(q_run, keys)
        seen = score != -math.inf
        heads = seen.reshape(-1, *seen.shape[-2:])
        columns_seen = heads.any(0).any(0)
        if not columns_seen.all():  # keys inside a reach that no row of this block sees
            numbers = torch.cat([torch.arange(a, b) for a, b in mixed])[columns_seen].tolist()
            mixed = merge_ranges([(number, number + 1) for number in numbers])
            score, seen, heads = score[..., columns_seen], seen[..., columns_seen], heads[..., columns_seen]
        if mixed and not score.any():  # all visible, no bias
            tiles.append(Tile((row, row + rows), tuple(mixed), TileKind.FULL, rows * int(columns_seen.sum())))
        elif mixed:
            bias = score if (score.float().double() != score).any() else score.float()
            key = (tuple(bias.shape), bias.dtype, bytes(bias.contiguous().view(-1).view(torch.uint8).numpy().data))
            area = int(seen.sum()) // max(heads.shape[0], 1)
            blind = not bool(heads.any(-1).all())
            bias = biases.setdefault(key, bias)  # interior blocks of a window share one
            tiles.append(Tile((row, row + rows), tuple(mixed), TileKind.DENSE, area, bias, blind))
    return tiles


def _sort_keys(
    mask: Mask, q0: int, q1: int, k_run: range, column: int, leaf: int, full: list[Span], mixed: list[Span]
) -> None:
    """Halve a run of keys until its parts are seen fully, not at all, or are short."""
    kind = mask.classify(q0, q1, *run_bounds(k_run)) if mask.plain else TileKind.DENSE
    if kind is TileKind.EMPTY or not len(k_run):
        return
    if kind is TileKind.FULL:
        full.append((column, column + len(k_run)))
    elif len(k_run) <= leaf or not mask.plain:
        mixed.append((column, column + len(k_run)))
    else:
        half = len(k_run) // 2
        _sort_keys(mask, q0, q1, k_run[:half], column, leaf, full, mixed)
        _sort_keys(mask, q0, q1, k_run[half:], column + half, leaf, full, mixed)
