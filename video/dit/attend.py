"""Attention of video tokens within a scope of frames, text beside them, on a piece of the video.

The function is "a token of frame f sees all tokens of the frames that f sees, and all text", whatever the number of
ranks: keys and values of the frames that are needed travel (rotated already, so they are final), and a tile of query
frames meets its keys in one softmax. Text rows of joint models see every frame of the video: each rank attends over its
own frames and the parts are merged by their log-sum-exp. No tensor of tokens by tokens is made; the largest is a tile's
keys.

Legend: B batch, H heads, D head size, T frames here, F frames of the video, n tokens a frame, L text rows.

    view = View.of(piece, see(scope, moment))
    out, text_out = attend(view, q, k, v, text=Joint(tq, tk, tv, bias), scale=None)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    def tiles(self, tokens: int) -> list[Tile]:
        """This rank's tiles for frames of so many tokens; a clipped or decaying sight takes frame by frame."""
        single = self.clip is not None or self.sight.decay is not None
        count = 1 if single else max(1, TILE_TOKENS // tokens)
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
    view: View, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, turn: Turn | None = None,
    text: Joint | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of this rank's video rows, and of all text rows. Returns (B, H, T * n, D) and (B, H, L, D) or None.

    q, k, v: (B, H, T * n, D), frames in order, rotated; T may be 0. scale: of the logits, 1/sqrt(D) by default.
    turn: needed by a view that clips distances. Every rank of the piece's transport calls this together.
    """
    piece = view.piece
    frames = len(view.mine)
    tokens = q.shape[2] // frames if frames else 0
    held, (k_all, v_all) = _fetch(view, [k, v], frames)
    out = torch.empty_like(q) if frames else q
    if frames:
        place = {frame: index for index, frame in enumerate(held)}
        factors = view.sight.factors
        for tile in view.tiles(tokens):
            rows = slice(tile.rows.start * tokens, tile.rows.stop * tokens)
            q_tile, k_tile, v_tile = q[:, :, rows], _pick(k_all, tile.keys, place, tokens), None
            v_tile = _pick(v_all, tile.keys, place, tokens)
            if view.clip is not None:
                k_tile = _clipped(view, tile, k_tile, tokens, turn)
            if factors is not None:
                own = factors[view.mine.start + tile.rows.start : view.mine.start + tile.rows.stop]
                q_tile = (q_tile * own.to(q.device, q.dtype).repeat_interleave(tokens)[:, None]).to(q.dtype)
            bias = _spread(tile.bias, tile.rows, tokens, q)
            if text is not None:
                k_tile, v_tile = torch.cat([k_tile, text.k], 2), torch.cat([v_tile, text.v], 2)
                bias = _with_text(bias, len(tile.keys) * tokens, tile, tokens, view, text, q)
            if view.sight.decay is None:
                result = nnf.scaled_dot_product_attention(q_tile, k_tile, v_tile, attn_mask=bias, scale=scale)
            else:
                far = _far(view, tile, tokens, k_tile.shape[2]).to(q.device)
                result = _decayed(q_tile, k_tile, v_tile, bias, far, view.sight.decay[1], scale)
            out[:, :, rows] = result
    if text is None:
        return out, None
    return out, _text_rows(piece, view, k, v, frames, tokens, text, scale)


def _fetch(view: View, tensors: list[Tensor], frames: int) -> tuple[list[int], list[Tensor]]:
    """The frames held and needed, in order, and for each tensor its rows (B, H, frames * n, D).

    One message to every rank that needs something, keys and values together.
    """
    piece = view.piece
    mine, rank = view.mine, piece.transport.rank
    if piece.alone or not any(view.wanted):
        return list(mine), tensors
    partition = piece.partition
    shape = list(tensors[0].shape)
    tokens = _tokens(piece, shape[2], frames)
    five = [x.reshape(*shape[:2], frames, tokens, shape[3]) for x in tensors]
    sends, receives, coming = [], [], []
    for other in range(partition.parts):
        if other == rank:
            continue
        give = [frame - mine.start for frame in view.wanted[other] if frame in mine]
        if give:
            index = torch.tensor(give, device=tensors[0].device)
            sends.append((other, torch.stack([x.index_select(2, index) for x in five])))
        take = [frame for frame in view.wanted[rank] if frame in partition.range(other)]
        if take:
            buffer = tensors[0].new_empty((len(tensors), *shape[:2], len(take), tokens, shape[3]))
            receives.append((other, buffer))
            coming.append((take, buffer))
    piece.transport.wire.connect(tensors[0].device)
    piece.transport.start_messages("frames", sends, receives).wait()
    held = sorted([*mine, *view.wanted[rank]])
    if not frames:
        return held, tensors
    spans: list[tuple[int, list[Tensor]]] = [(mine.start, five)] + [(take[0], list(buffer)) for take, buffer in coming]
    order = [*mine, *[frame for take, _ in coming for frame in take]]
    laid = [torch.cat([part[number] for _, part in spans], 2) for number in range(len(tensors))]
    if order != held:
        index = torch.tensor([order.index(frame) for frame in held], device=tensors[0].device)
        laid = [x.index_select(2, index) for x in laid]
    return held, [x.flatten(2, 3) for x in laid]


def _tokens(piece: Piece, rows: int, frames: int) -> int:
    """Tokens of a frame; a rank without frames has them from its dummy frame."""
    return rows // frames if frames else piece.tokens


def _pick(x: Tensor, keys: Sequence[int], place: dict[int, int], tokens: int) -> Tensor:
    """The rows of some frames: a view when they lie together, else a copy."""
    runs: list[list[int]] = []
    for frame in keys:
        at = place[frame]
        if runs and runs[-1][1] == at:
            runs[-1][1] = at + 1
        else:
            runs.append([at, at + 1])
    parts = [x[:, :, a * tokens : b * tokens] for a, b in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _spread(bias: Tensor | None, rows: range, tokens: int, like: Tensor) -> Tensor | None:
    """A bias of frames for tokens: (1, 1, queries or 1, keys)."""
    if bias is None:
        return None
    wide = bias.repeat_interleave(tokens, 1)
    if bias.shape[0] > 1:
        wide = wide.repeat_interleave(tokens, 0)
    return wide.to(like.device, like.dtype)[None, None]


def _with_text(
    bias: Tensor | None, keys: int, tile: Tile, tokens: int, view: View, text: Joint, like: Tensor
) -> Tensor | None:
    """The bias of video keys followed by that of text keys."""
    parts = text.bias
    if text.prompts is not None:
        first = view.mine.start
        weights = text.prompts.weights[first + tile.rows.start : first + tile.rows.stop].log()
        if bool((weights == weights[:1]).all()):
            weights = weights[:1]
        each = weights.repeat_interleave(text.k.shape[2] // text.prompts.count, 1)
        if each.shape[0] > 1:
            each = each.repeat_interleave(tokens, 0)
        heard = each.to(like.device, like.dtype)[None, None]
        parts = heard if parts is None else parts + heard
    if bias is None and parts is None:
        return None
    length = text.k.shape[2]
    left = like.new_zeros((1, 1, 1, keys)) if bias is None else bias
    right = like.new_zeros((1, 1, 1, length)) if parts is None else parts.to(like.dtype)
    batch, rows = max(left.shape[0], right.shape[0]), max(left.shape[2], right.shape[2])
    return torch.cat([left.expand(batch, 1, rows, keys), right.expand(batch, 1, rows, length)], 3)


def _clipped(view: View, tile: Tile, k_tile: Tensor, tokens: int, turn: Turn | None) -> Tensor:
    """Keys farther away than the clip, turned as if they were that far away (after LM-Infinite, arXiv 2308.16137)."""
    if turn is None:
        raise ValueError("a view that clips distances needs the rates of the rotary embedding")
    assert view.clip is not None
    query = view.mine.start + tile.rows.start
    away = torch.tensor(tile.keys, dtype=torch.float64) - query
    moved = away.clamp(-view.clip, view.clip) - away
    if not bool(moved.any()):
        return k_tile
    rows = moved.nonzero().flatten()
    first, last = int(rows[0]), int(rows[-1]) + 1
    span = slice(first * tokens, last * tokens)
    turned = turn(k_tile[:, :, span], moved[first:last].repeat_interleave(tokens))
    return torch.cat([k_tile[:, :, : span.start], turned, k_tile[:, :, span.stop :]], 2)


def _far(view: View, tile: Tile, tokens: int, keys: int) -> Tensor:
    """Which keys of a tile of one frame are farther away than the decay's distance: bool (keys,), text is near."""
    assert view.sight.decay is not None
    query = view.mine.start + tile.rows.start
    away = (torch.tensor(tile.keys) - query).abs() > view.sight.decay[0]
    far = torch.zeros(keys, dtype=torch.bool)
    far[: len(tile.keys) * tokens] = away.repeat_interleave(tokens)
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


def _text_rows(
    piece: Piece, view: View, k: Tensor, v: Tensor, frames: int, tokens: int, text: Joint, scale: float | None
) -> Tensor:
    """Text over all video and all text: partial attention over the frames here, merged over ranks."""
    count = 1 if text.prompts is None else text.prompts.count
    length = text.q.shape[2] // count
    kinds: list[Any] = []
    for number in range(count):
        span = slice(number * length, (number + 1) * length)
        part = _text_part(view, text.q[:, :, span], k, v, frames, tokens, text.prompts, number, scale)
        kinds.append((span, *_merged(piece, *part)))
    made = []
    for span, out, lse in kinds:
        bias = None if text.bias is None else text.bias[..., span].to(text.q.dtype)
        own = partial_attention(text.q[:, :, span], text.k[:, :, span], text.v[:, :, span], bias=bias, scale=scale)
        made.append(merge(out, lse, *own)[0].to(text.q.dtype))
    return made[0] if count == 1 else torch.cat(made, 2)


def _text_part(
    view: View, q: Tensor, k: Tensor, v: Tensor, frames: int, tokens: int, prompts: Prompts | None, number: int,
    scale: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Text rows over this rank's frames: O (B, H, L, D) and L (B, H, L), in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=wide)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=wide)
    for start in range(0, frames, TEXT_FRAMES):
        stop = min(frames, start + TEXT_FRAMES)
        bias = None
        if prompts is not None:
            first = view.mine.start
            weights = prompts.weights[first + start : first + stop, number].log()
            if bool((weights == -math.inf).all()):
                continue
            bias = weights.repeat_interleave(tokens).to(q.device, q.dtype)[None, None, None]
        rows = slice(start * tokens, stop * tokens)
        out, lse = merge(out, lse, *partial_attention(q, k[:, :, rows], v[:, :, rows], bias=bias, scale=scale))
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
