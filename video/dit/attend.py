"""Attention of video tokens within a scope of frames, text beside them, on a piece of the video.

The function is "a token of frame f sees all tokens of the frames that f sees, and all text", whatever the number of
ranks: keys and values of the frames that are needed travel (rotated already, so they are final), and a tile of query
frames meets its keys in one softmax. Text rows of joint models see every frame of the video: each rank attends over its
own frames and the parts are merged by their log-sum-exp. No tensor of tokens by tokens is made; the largest is a tile's
keys.

Legend: B batch, H heads, D head size, T frames here, F frames of the video, n tokens a frame, L text rows.

    view = View.of(piece, see(scope, moment))
    out, text_out = attend(view, q, k, v, rows=Rows.even(F, n), text=Joint(tq, tk, tv, bias))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from longtake.kernels.backends.partial import merge, partial_attention
from longtake.kernels.partition import Partition
from longtake.video.dit.scopes import Sight
from longtake.video.piece import Piece
from torch import Tensor

TILE_TOKENS = 256  # a tile has as many frames as fit, at least one: enough rows for the matrix product to pay
LOGITS = 32 << 20  # logits that are held at a time where they are made by hand (decay)
TEXT_FRAMES = 8  # frames of keys that text rows meet at a time


@dataclass(frozen=True)
class Rows:
    """Where the tokens of every frame of the video lie: tokens of frame f are rows offsets[f]..offsets[f + 1]."""

    offsets: tuple[int, ...]

    @classmethod
    def even(cls, frames: int, tokens: int) -> Rows:
        """So many tokens in every frame."""
        return cls(tuple(range(0, (frames + 1) * tokens, tokens)) if tokens else (0,) * (frames + 1))

    def count(self, frame: int) -> int:
        return self.offsets[frame + 1] - self.offsets[frame]

    def counts(self, frames: Sequence[int]) -> list[int]:
        return [self.count(frame) for frame in frames]

    def of(self, span: range) -> int:
        """Tokens of consecutive frames."""
        return self.offsets[span.stop] - self.offsets[span.start] if len(span) else 0


@dataclass(frozen=True, eq=False)
class Prompts:
    """Several prompts along the video. weights: (F, P) float64, rows add up to 1: how much frame f hears prompt p."""

    weights: Tensor

    @property
    def count(self) -> int:
        return int(self.weights.shape[1])


@dataclass
class Joint:
    """Text rows in the softmax of the video. q, k, v: (B, H, L, D). bias: (B or 1, 1, 1, L) over text keys, or None.

    prompts: L is P texts of equal length, one behind the other; a frame hears text p with its weight, and text p sees
    the frames that hear it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    prompts: Prompts | None = None


@dataclass(frozen=True, eq=False)
class Tile:
    """Query frames of one softmax. rows: places among the frames here. keys: frames of the video. bias: (rows, keys)
    float64, None when all zero."""

    rows: range
    keys: tuple[int, ...]
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class View:
    """A sight cut for one rank: whose frames are needed by whom, and the tiles of this rank."""

    piece: Piece
    sight: Sight
    wanted: tuple[tuple[int, ...], ...]  # by rank: frames that it needs from others
    clip: int | None = None
    _tiles: dict[Rows, list[Tile]] = field(default_factory=dict)

    @classmethod
    def of(cls, piece: Piece, sight: Sight, clip: int | None = None) -> View:
        """clip: farthest distance in frames at which a key may seem to be (positions of keys farther away change)."""
        wanted = []
        for rank in range(piece.partition.parts):
            span = piece.partition.range(rank)
            seen = (sight.score[span.start : span.stop] > -math.inf).any(0).nonzero().flatten().tolist()
            wanted.append(tuple(frame for frame in seen if frame not in span))
        return cls(piece, sight, tuple(wanted), clip)

    @property
    def stock(self) -> bool:
        """Whether the stock call computes this very function."""
        return self.piece.alone and self.sight.plain and self.clip is None

    @property
    def mine(self) -> range:
        return self.piece.mine

    def tiles(self, rows: Rows) -> list[Tile]:
        """This rank's tiles of queries; a clipped or decaying sight takes frame by frame. Made once for all layers."""
        if rows not in self._tiles:
            self._tiles[rows] = self._cut(rows)
        return self._tiles[rows]

    def _cut(self, rows: Rows) -> list[Tile]:
        single = self.clip is not None or self.sight.decay is not None
        tokens = rows.of(self.mine) / max(len(self.mine), 1)
        count = 1 if single else max(1, int(TILE_TOKENS // max(tokens, 1)))
        score = self.sight.score[self.mine.start : self.mine.stop]
        visible = score > -math.inf
        tiles = []
        start = 0
        while start < len(self.mine):
            stop = start + 1  # frames that see the same ones belong together, however many they are
            while not single and stop < len(self.mine) and torch.equal(score[start], score[stop]):
                stop += 1
            stop = min(len(self.mine), max(stop, start + count))
            keys = visible[start:stop].any(0).nonzero().flatten()
            bias = score[start:stop][:, keys]
            if stop - start > 1 and torch.equal(bias, bias[:1].expand_as(bias)):
                bias = bias[:1]
            tiles.append(Tile(range(start, stop), tuple(keys.tolist()), bias if bool(bias.any()) else None))
            start = stop
        return tiles


@dataclass(frozen=True, eq=False)
class Turn:
    """How a key is moved in time after its rotary embedding: rates (H or 1, D/2) radians a frame, float64.

    halves: a plane is component i and i + D/2; otherwise 2i and 2i + 1.
    """

    rates: Tensor
    halves: bool = False

    def __call__(self, x: Tensor, frames: Tensor) -> Tensor:
        """x: (B, H, rows, D); frames: (rows,) float64, how far each row moves."""
        angles = frames.to(x.device)[None, :, None] * self.rates.to(x.device)[:, None, :]
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        if self.halves:
            one, other = x.to(dtype).chunk(2, -1)
            return torch.cat([one * cos - other * sin, one * sin + other * cos], -1).to(x.dtype)
        one, other = x.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(-2).to(x.dtype)


@torch.no_grad()
def attend(
    view: View, q: Tensor, k: Tensor, v: Tensor, *, rows: Rows, keys: Rows | None = None, scale: float | None = None,
    turn: Turn | None = None, text: Joint | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of this rank's rows, and of all text rows. Returns (B, H, own rows, D) and (B, H, L, D) or None.

    q: (B, H, own rows, D), frames in order, rotated; rows: where the queries' tokens lie. k, v: (B, H, own keys, D);
    keys: where theirs lie, as the queries' by default. scale: of the logits, 1/sqrt(D) by default. turn: needed by a
    view that clips distances. A query whose frames hold no key gets zeros. Every rank of the piece's transport calls
    this together.
    """
    keys = rows if keys is None else keys
    mine = view.mine
    held, (k_all, v_all) = _fetch(view, [k, v], keys)
    out = torch.zeros_like(q)
    starts = dict(zip(held, _cumulative(keys.counts(held)), strict=False))
    factors = view.sight.factors
    for tile in view.tiles(rows) if q.shape[2] else ():
        frames = range(mine.start + tile.rows.start, mine.start + tile.rows.stop)
        span = slice(
            rows.offsets[frames.start] - rows.offsets[mine.start], rows.offsets[frames.stop] - rows.offsets[mine.start]
        )
        counts, sizes = rows.counts(frames), keys.counts(tile.keys)
        if span.stop == span.start or not (sum(sizes) or text is not None):
            continue
        q_tile = q[:, :, span]
        k_tile, v_tile = _pick(k_all, tile.keys, starts, keys), _pick(v_all, tile.keys, starts, keys)
        if view.clip is not None:
            k_tile = _clipped(view, frames.start, tile, k_tile, sizes, turn)
        if factors is not None:
            own = factors[frames.start : frames.stop].repeat_interleave(torch.tensor(counts))
            q_tile = (q_tile * own.to(q.device, q.dtype)[:, None]).to(q.dtype)
        bias = _spread(tile.bias, counts, sizes, q)
        if text is not None:
            k_tile, v_tile = torch.cat([k_tile, text.k], 2), torch.cat([v_tile, text.v], 2)
            bias = _with_text(bias, sum(sizes), frames, counts, text, q)
        if view.sight.decay is None:
            result = nnf.scaled_dot_product_attention(q_tile, k_tile, v_tile, attn_mask=bias, scale=scale)
        else:
            far = _far(view.sight.decay[0], frames.start, tile, sizes, k_tile.shape[2]).to(q.device)
            result = _decayed(q_tile, k_tile, v_tile, bias, far, view.sight.decay[1], scale)
        out[:, :, span] = result
    if text is None:
        return out, None
    return out, _text_rows(view, k, v, keys, text, scale)


def _cumulative(counts: list[int]) -> list[int]:
    made = [0]
    for count in counts:
        made.append(made[-1] + count)
    return made


def _fetch(view: View, tensors: list[Tensor], rows: Rows) -> tuple[list[int], list[Tensor]]:
    """The frames held and needed, in order, and for each tensor their rows (B, H, rows, D).

    One message to every rank that needs something, keys and values together.
    """
    piece, mine = view.piece, view.mine
    rank = piece.transport.rank
    if piece.alone or not any(view.wanted):
        return list(mine), tensors
    partition, own = piece.partition, tensors[0]
    base = rows.offsets[mine.start] if len(mine) else 0
    sends, receives, coming = [], [], []
    for other in range(partition.parts):
        if other == rank:
            continue
        give = [frame for frame in view.wanted[other] if frame in mine]
        if sum(rows.counts(give)):
            index = torch.cat([torch.arange(rows.offsets[f], rows.offsets[f + 1]) for f in give]).to(own.device) - base
            sends.append((other, torch.stack([x.index_select(2, index) for x in tensors])))
        take = [frame for frame in view.wanted[rank] if frame in partition.range(other)]
        if sum(rows.counts(take)):
            buffer = own.new_empty((len(tensors), *own.shape[:2], sum(rows.counts(take)), own.shape[3]))
            receives.append((other, buffer))
            coming.append((take, buffer))
    piece.transport.wire.connect(own.device)
    piece.transport.start_messages("frames", sends, receives).wait()
    held = sorted([*mine, *view.wanted[rank]])
    order = [*mine, *[frame for take, _ in coming for frame in take]]
    laid = [torch.cat([x, *[buffer[number] for _, buffer in coming]], 2) for number, x in enumerate(tensors)]
    if order != held:
        starts = dict(zip(order, _cumulative(rows.counts(order)), strict=False))
        parts = [torch.arange(starts[f], starts[f] + rows.count(f)) for f in held if f in starts]
        index = torch.cat(parts).to(own.device) if parts else torch.zeros(0, dtype=torch.long, device=own.device)
        laid = [x.index_select(2, index) for x in laid]
    return held, laid


def _pick(x: Tensor, frames: Sequence[int], starts: dict[int, int], rows: Rows) -> Tensor:
    """The rows of some frames: a view when they lie together, else a copy."""
    runs: list[list[int]] = []
    for frame in frames:
        at, size = starts[frame], rows.count(frame)
        if runs and runs[-1][1] == at:
            runs[-1][1] = at + size
        else:
            runs.append([at, at + size])
    parts = [x[:, :, a:b] for a, b in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _spread(bias: Tensor | None, counts: list[int], sizes: list[int], like: Tensor) -> Tensor | None:
    """A bias of frames for tokens: (1, 1, queries or 1, keys)."""
    if bias is None:
        return None
    wide = bias.repeat_interleave(torch.tensor(sizes), 1)
    if bias.shape[0] > 1:
        wide = wide.repeat_interleave(torch.tensor(counts), 0)
    return wide.to(like.device, like.dtype)[None, None]


def _with_text(
    bias: Tensor | None, keys: int, frames: range, counts: list[int], text: Joint, like: Tensor
) -> Tensor | None:
    """The bias of video keys followed by that of text keys."""
    parts = text.bias
    if text.prompts is not None:
        weights = text.prompts.weights[frames.start : frames.stop].log()
        if bool((weights == weights[:1]).all()):
            weights = weights[:1]
        each = weights.repeat_interleave(text.k.shape[2] // text.prompts.count, 1)
        if each.shape[0] > 1:
            each = each.repeat_interleave(torch.tensor(counts), 0)
        heard = each.to(like.device, like.dtype)[None, None]
        parts = heard if parts is None else parts + heard
    if bias is None and parts is None:
        return None
    length = text.k.shape[2]
    left = like.new_zeros((1, 1, 1, keys)) if bias is None else bias
    right = like.new_zeros((1, 1, 1, length)) if parts is None else parts.to(like.dtype)
    batch, rows = max(left.shape[0], right.shape[0]), max(left.shape[2], right.shape[2])
    return torch.cat([left.expand(batch, 1, rows, keys), right.expand(batch, 1, rows, length)], 3)


def _clipped(view: View, query: int, tile: Tile, k_tile: Tensor, sizes: list[int], turn: Turn | None) -> Tensor:
    """Keys farther away than the clip, turned as if they were that far away (after LM-Infinite, arXiv 2308.16137)."""
    assert view.clip is not None
    away = torch.tensor(tile.keys, dtype=torch.float64) - query
    moved = away.clamp(-view.clip, view.clip) - away
    if not bool(moved.any()):
        return k_tile
    if turn is None:
        raise ValueError("a view that clips distances needs the rates of the rotary embedding")
    starts = _cumulative(sizes)
    far = moved.nonzero().flatten().tolist()
    first, last = far[0], far[-1] + 1
    span = slice(starts[first], starts[last])
    turned = turn(k_tile[:, :, span], moved[first:last].repeat_interleave(torch.tensor(sizes[first:last])))
    return torch.cat([k_tile[:, :, : span.start], turned, k_tile[:, :, span.stop :]], 2)


def _far(distance: int, query: int, tile: Tile, sizes: list[int], keys: int) -> Tensor:
    """Which keys of a tile of one frame are farther away than the decay's distance: bool (keys,), text is near."""
    away = ((torch.tensor(tile.keys) - query).abs() > distance).repeat_interleave(torch.tensor(sizes))
    far = torch.zeros(keys, dtype=torch.bool)
    far[: len(away)] = away
    return far


def _decayed(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, far: Tensor, factor: float, scale: float | None
) -> Tensor:
    """Softmax attention whose positive far logits are multiplied; logits of a few rows at a time."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    step = max(1, LOGITS // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = []
    for start in range(0, q.shape[2], step):
        logits = (q[:, :, start : start + step].to(dtype) @ k.to(dtype).mT) * scale
        logits = torch.where(far & (logits > 0), logits * factor, logits)
        if bias is not None:
            logits = logits + (bias if bias.shape[2] == 1 else bias[:, :, start : start + step])
        parts.append((logits.softmax(-1) @ v.to(dtype)).to(q.dtype))
    return torch.cat(parts, 2)


def _text_rows(view: View, k: Tensor, v: Tensor, keys: Rows, text: Joint, scale: float | None) -> Tensor:
    """Text over all video and all text: partial attention over the frames here, merged over ranks."""
    count = 1 if text.prompts is None else text.prompts.count
    length = text.q.shape[2] // count
    made = []
    for number in range(count):
        span = slice(number * length, (number + 1) * length)
        q = text.q[:, :, span]
        out, lse = _merged(view.piece, *_text_part(view, q, k, v, keys, text.prompts, number, scale))
        bias = None if text.bias is None else text.bias[..., span].to(q.dtype)
        own = partial_attention(q, text.k[:, :, span], text.v[:, :, span], bias=bias, scale=scale)
        made.append(merge(out, lse, *own)[0].to(q.dtype))
    return made[0] if count == 1 else torch.cat(made, 2)


def _text_part(
    view: View, q: Tensor, k: Tensor, v: Tensor, keys: Rows, prompts: Prompts | None, number: int,
    scale: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Text rows over this rank's frames: O (B, H, L, D) and L (B, H, L), in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=wide)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=wide)
    for start in range(view.mine.start, view.mine.stop, TEXT_FRAMES):
        frames = range(start, min(view.mine.stop, start + TEXT_FRAMES))
        bias = None
        if prompts is not None:
            weights = prompts.weights[frames.start : frames.stop, number].log()
            if bool((weights == -math.inf).all()):
                continue
            bias = weights.repeat_interleave(torch.tensor(keys.counts(frames))).to(q.device, q.dtype)[None, None, None]
        a, b = (keys.offsets[frame] - keys.offsets[view.mine.start] for frame in (frames.start, frames.stop))
        out, lse = merge(out, lse, *partial_attention(q, k[:, :, a:b], v[:, :, a:b], bias=bias, scale=scale))
    return out, lse


def _merged(piece: Piece, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Every rank's part as one, in order of ranks."""
    if piece.alone:
        return out, lse
    world = piece.transport.world
    packed = torch.cat([out, lse[..., None]], -1)[None].contiguous()
    everyone = piece.transport.start_gather([packed], 0, Partition.even(world, world), range(world)).wait()[0]
    whole, total = everyone[0][..., :-1], everyone[0][..., -1]
    for part in everyone[1:]:
        whole, total = merge(whole, total, part[..., :-1], part[..., -1])
    return whole, total
