"""MiniMax-H3: text, sound and video in one packed row of tokens, with maps that say which row is what.

The rows of the video are cut by frames over ranks; the rows of text and sound are few, stand on every rank, see all
frames and are seen by all, as the text of joint models is. Each rank packs those rows first and its frames behind them,
and every map of the call is written anew for that order.

Legend: B batch, S packed rows, F latent frames, n tokens of a frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.rows import gather_rows
from longtake.video.dit.positions import Policy
from torch import Tensor

if TYPE_CHECKING:
    from longtake.video.dit.adapter import Call

Given = dict[str, Any]


def prepared(call: Call, given: Given) -> Given:
    """The arguments of a whole call for the frames here. Raises UserError for rows that are no whole frames."""
    piece, positions = call.piece, call.time.positions
    if not call.whole and not piece.alone:
        raise UserError("MiniMax-H3 takes whole inputs on every rank, because its rows are mapped: whole=True")
    if positions.policy not in (Policy.ABSOLUTE, Policy.INTERPOLATE):
        raise UserError(f"positions={positions.policy} is not written for MiniMax-H3: use absolute or interpolate")
    video, places = given["video_indices"], given["position_ids"]
    tokens = _tokens(video, places, piece.total)
    call.begin(given["hidden_states"].shape[0], tokens, given.get("timestep"))
    if positions.policy is Policy.INTERPOLATE:
        last = float(positions.frames(range(piece.total), piece.total, call.record.length)[-1])
        start = places[video[0], 0]
        places = places.to(torch.float32).clone()
        places[video, 0] = start + (places[video, 0] - start) * (last / max(piece.total - 1, 1))
    span = call.time.span
    mine = slice(span.start * tokens, span.stop * tokens)
    others = torch.ones(places.shape[0], dtype=torch.bool, device=video.device)
    others[video] = False
    shared = others.nonzero().flatten()
    order = torch.cat([shared, video[mine]])  # what stands at each new row
    place = torch.full((places.shape[0],), -1, dtype=video.dtype, device=video.device)
    place[order] = torch.arange(len(order), dtype=video.dtype, device=video.device)
    made = {**given, "position_ids": places[order], "hidden_states": given["hidden_states"][:, mine]}
    for name in ("token_tags", "timestep_indices"):
        made[name] = given[name][order]
    for name in ("audio_indices", "text_indices"):
        made[name] = place[given[name]]
    made["video_indices"] = place[video[mine]]
    return made


def _tokens(video: Tensor, places: Tensor, frames: int) -> int:
    """Tokens of a frame: video rows come frame after frame, each as long as the others."""
    tokens, rest = divmod(len(video), frames)
    times = places[video, 0]
    whole = rest == 0 and tokens > 0
    if whole:
        by_frame = times.view(frames, tokens)
        whole = bool((by_frame == by_frame[:, :1]).all()) and bool((by_frame[1:, 0] > by_frame[:-1, 0]).all())
    if not whole:
        raise UserError(
            f"{len(video)} video rows are not {frames} frames one after the other: conditioning rows (pictures, films) "
            "are not covered"
        )
    return tokens


def finished(call: Call, out: Any) -> Any:
    """The video rows of all ranks; sound is the same on each."""
    piece = call.piece
    plain = isinstance(out, tuple)
    video = out[0] if plain else out.sample
    if piece.empty:
        video = video[:, :0]
    if not piece.alone:
        cut = Partition.from_sizes([size * piece.tokens for size in piece.partition.sizes])
        video = gather_rows(video.contiguous(), piece.transport, cut, 1)
    if plain:
        return (video, *out[1:])
    out.sample = video
    return out
