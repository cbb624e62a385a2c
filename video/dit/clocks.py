"""The time of each class's rotary embedding, for the frames of one rank and under any policy of positions.

Every class tells time in its own way (see `Clock`); here each is made to tell it for the frames that a rank holds. With
absolute positions the stock table is built and cut, so it is the stock table bit for bit; under another policy only the
columns of time are made anew.

Legend: F frames of the video, T frames here, n tokens of a frame, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from longtake.errors import UserError
from longtake.video.dit.attend import Turn
from longtake.video.dit.positions import Policy, Positions, angular_rates
from longtake.video.dit.records import Clock, Record
from longtake.video.piece import Patches, Piece
from torch import Tensor

Given = dict[str, Any]


@dataclass
class Time:
    """What a clock reads: the piece, the policy, and rates of the call at hand for clipped distances."""

    piece: Piece
    record: Record
    positions: Positions
    turn: Turn | None = field(default=None)

    @property
    def span(self) -> range:
        """The frames here; frame 0 stands in for a rank without any."""
        return range(0, 1) if self.piece.empty else self.piece.mine

    @property
    def stock(self) -> bool:
        """Whether tables are cut out of the stock ones. Clipped positions are frame numbers, but may pass a table."""
        return self.positions.policy is Policy.ABSOLUTE

    def frames(self) -> Tensor:
        return self.positions.frames(self.span, self.piece.total, self.record.length)

    def rates(self, rates: Tensor) -> Tensor:
        return self.positions.rates(rates, self.piece.total, self.record.length)


def install_clock(model: Any, time: Time, patches: Patches) -> Callable[[Given], Given]:
    """Make the model tell the time of this rank's frames; returns what the arguments of a call must become."""
    clock = time.record.clock
    _check_end(model, time)
    if clock is Clock.TABLE:
        patches.forward(model.rope, _table_forward(model, time))
        learned = getattr(model, "learnable_pos_embed", None)
        if learned is not None:
            patches.forward(learned, _learned_forward(learned, time))
        return lambda given: given
    if clock is Clock.LEARNED:
        patches.forward(model.rope, _mochi_forward(model.rope, time))
        return lambda given: given
    if clock is Clock.GRID:
        if not time.stock:
            patches.forward(model.visual_rope_embeddings, _grid_forward(model.visual_rope_embeddings, time))
        time.turn = Turn(
            _padded(angular_rates(model.visual_rope_embeddings.axes_dims[0], _period(model)), _head(model))
        )
        return lambda given: _cut_grid(given, time)
    if clock is Clock.ARGUMENT:
        patches.forward(model.patch_embed, _sincos_forward(model.patch_embed, time))
        return lambda given: _cut_argument(given, time)
    if time.positions.policy is Policy.RIFLEX:
        raise UserError(f"riflex does not fit {time.record.name}, whose time is seconds: use clip or interpolate")
    patches.forward(model.rope, _seconds_forward(model, time))
    return lambda given: given


def _check_end(model: Any, time: Time) -> None:
    """Refuse a video past a hard end of the position table, unless its positions are mapped into it."""
    longest = time.record.longest
    if isinstance(longest, str):
        owner, name = longest.split(".")
        longest = getattr(getattr(model, owner), name)
        longest = longest[0] if isinstance(longest, (list, tuple)) else longest
    if longest is None or time.piece.total <= longest:
        return
    policy = time.positions.policy
    learned = getattr(model, "learnable_pos_embed", None) is not None
    if policy is Policy.INTERPOLATE or (not learned and policy in (Policy.CLIP, Policy.RIFLEX)):
        return
    raise UserError(
        f"the position table of this model ends at {longest} latent frames; {time.piece.total} were asked for: "
        f"positions={'interpolate' if learned else 'clip, riflex or interpolate'} goes further"
    )


# ---- tables of cosines and sines ------------------------------------------------------------------------------------


def _retime(
    table: tuple[Tensor, Tensor], axis: int, tokens: int, time: Time, rates: Tensor, columns: list[slice]
) -> Any:
    """A table of one frame as that of the frames here, the columns of time made anew.

    table: rows in `axis`, D last. columns: where cos of the rates stands; one slice holds each value twice in a row,
    two slices hold each once.
    """
    angles = time.frames()[:, None] * time.rates(rates)
    made = []
    for one, wave in zip(table, (angles.cos(), angles.sin()), strict=True):
        rows = one.narrow(axis, 0, tokens)
        shape = [1] * (rows.ndim + 1)
        shape[axis] = len(angles)
        whole = rows.unsqueeze(axis).repeat(shape)  # (.., T, n, .., D)
        wave = wave.repeat_interleave(2, 1) if len(columns) == 1 else wave
        view = [1] * whole.ndim
        view[axis], view[-1] = wave.shape
        for part in columns:
            whole[..., part] = wave.to(whole.device, whole.dtype).view(view)
        made.append(whole.flatten(axis, axis + 1))
    return tuple(made)


def _table_of(model: Any, record: Record) -> tuple[int, Tensor, list[slice], bool]:
    """(axis of rows, rates of time, their columns, halves) of a class with a table module."""
    rope = model.rope
    if hasattr(rope, "t_dim"):  # Wan and its kin
        return 1, angular_rates(rope.t_dim, 10000.0), [slice(0, rope.t_dim)], False
    if hasattr(rope, "rope_dim"):  # HunyuanVideo
        return 0, angular_rates(rope.rope_dim[0], rope.theta), [slice(0, rope.rope_dim[0])], False
    half = rope.dim_t // 2  # Cosmos
    whole = rope.dim_t + rope.dim_h + rope.dim_w
    rates = angular_rates(rope.dim_t, 10000.0 * rope.t_ntk_factor)
    return 0, rates, [slice(0, half), slice(whole // 2, whole // 2 + half)], True


def _padded(rates: Tensor, head: int) -> Tensor:
    """Rates of all planes of a head, (1, D/2): zero where a plane is not of time."""
    whole = torch.zeros(1, head // 2, dtype=torch.float64)
    whole[0, : rates.shape[-1]] = rates
    return whole


def _table_forward(model: Any, time: Time) -> Any:
    axis, rates, columns, halves = _table_of(model, time.record)
    rope = model.rope

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        fps = kwargs.get("fps", args[0] if args else None)
        here = rates if not halves or fps is None else rates * (rope.base_fps / fps)
        batch, channels, _, height, width = hidden_states.shape
        last = time.span.stop if time.stock else 1
        patch = time.record.patch(model)
        shape = hidden_states.new_empty((1,)).expand(batch, channels, last * patch[0], height, width)
        cos, sin = type(rope).forward(rope, shape, *args, **kwargs)
        tokens = cos.shape[axis] // last
        time.turn = Turn(_padded(time.rates(here), cos.shape[-1]), halves)
        if not time.stock:
            return _retime((cos, sin), axis, tokens, time, here, columns)
        skip, rows = time.span.start * tokens, len(time.span) * tokens
        return cos.narrow(axis, skip, rows), sin.narrow(axis, skip, rows)

    return forward


def _learned_forward(learned: Any, time: Time) -> Any:
    """Cosmos: the learned table beside the rotary one; between its rows it is interpolated linearly."""

    def forward(hidden_states: Tensor) -> Tensor:
        batch, channels, _, height, width = hidden_states.shape
        table = learned.pos_emb_t
        places = time.frames()
        if bool((places == places.round()).all()) and int(places.max()) < len(table):
            rows = table[places.long()]
        else:
            low = places.floor().long()
            share = (places - low).to(table.device, table.dtype)[:, None]
            rows = torch.lerp(table[low], table[(low + 1).clamp_max(len(table) - 1)], share)
        shape = hidden_states.new_empty((1,)).expand(batch, channels, len(rows), height, width)
        stock = learned.pos_emb_t
        try:
            learned.__dict__["pos_emb_t"] = rows  # found before the parameter, for this call
            return type(learned).forward(learned, shape)
        finally:
            del learned.__dict__["pos_emb_t"]
            assert learned.pos_emb_t is stock

    return forward


def _mochi_forward(rope: Any, time: Time) -> Any:
    def forward(
        pos_frequencies: Tensor, num_frames: int, height: int, width: int, device: Any = None, dtype: Any = None
    ) -> Any:
        places = time.frames()
        pos = rope._get_positions(1, height, width, device, dtype)
        pos = pos.repeat(len(places), 1)
        pos[:, 0] = places.to(pos.device, pos.dtype).repeat_interleave(height * width)
        rates = pos_frequencies[0].double()
        changed = time.rates(rates)
        if changed is not rates:
            pos_frequencies = torch.cat([changed[None].to(pos_frequencies), pos_frequencies[1:]])
        time.turn = Turn(changed)
        return rope._create_rope(pos_frequencies, pos)

    return forward


# ---- arguments of the call ------------------------------------------------------------------------------------------


def _period(model: Any) -> float:
    return float(model.visual_rope_embeddings.max_period)


def _head(model: Any) -> int:
    return int(sum(model.visual_rope_embeddings.axes_dims))


def _cut_grid(given: Given, time: Time) -> Given:
    """Kandinsky: `visual_rope_pos`, frame numbers first; of the whole video, or of the frames here."""
    numbers, rows, columns = given["visual_rope_pos"]
    if given.get("sparse_params") is not None:
        raise UserError(
            "sparse_params (NABLA attention) choose tokens across frames: use a dense checkpoint, or a scope"
        )
    if len(numbers) == time.piece.total:
        numbers = numbers[time.span.start : time.span.stop]
    elif len(numbers) != len(time.span):
        raise UserError(f"visual_rope_pos has {len(numbers)} frames; the video has {time.piece.total}")
    else:
        numbers = torch.arange(time.span.start, time.span.stop, device=rows.device)
    return {**given, "visual_rope_pos": [numbers, rows, columns]}


def _grid_forward(rope: Any, time: Time) -> Any:
    """Kandinsky's table from frame numbers that need not be whole."""

    def forward(shape: Any, pos: Any, scale_factor: Any = (1.0, 1.0, 1.0)) -> Tensor:
        rates = time.rates(angular_rates(rope.axes_dims[0], float(rope.max_period)))
        angles = (time.frames()[:, None] * rates).to(rope.args_0.device, rope.args_0.dtype)
        stock = rope.args_0
        try:
            rope.__dict__["args_0"] = angles
            numbers = torch.arange(len(angles), device=angles.device)
            return type(rope).forward(rope, shape, [numbers, pos[1], pos[2]], scale_factor)
        finally:
            del rope.__dict__["args_0"]
            assert rope.args_0 is stock

    return forward


def _cut_argument(given: Given, time: Time) -> Given:
    """CogVideoX: the table that the pipeline made, for the whole video or for the frames here."""
    table = given.get("image_rotary_emb")
    if table is None:
        time.turn = None
        return given
    cos, sin = table
    whole = cos.shape[0] == time.piece.total * time.piece.tokens
    if not whole and cos.shape[0] != len(time.span) * time.piece.tokens:
        raise UserError(
            f"image_rotary_emb has {cos.shape[0]} rows; the video has {time.piece.total} frames of "
            f"{time.piece.tokens} tokens"
        )
    rates = angular_rates(cos.shape[-1] // 4, 10000.0)
    time.turn = Turn(_padded(time.rates(rates), cos.shape[-1]))
    if whole and time.stock:
        rows = slice(time.span.start * time.piece.tokens, time.span.stop * time.piece.tokens)
        return {**given, "image_rotary_emb": (cos[rows], sin[rows])}
    if not whole and time.stock and time.piece.alone:
        return given
    made = _retime((cos, sin), 0, time.piece.tokens, time, rates, [slice(0, cos.shape[-1] // 4)])
    return {**given, "image_rotary_emb": made}


def _sincos_forward(embed: Any, time: Time) -> Any:
    """CogVideoX-2B: positions are added to the patches; they are those of the whole video, cut."""

    def forward(text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        added, learned = embed.use_positional_embeddings, embed.use_learned_positional_embeddings
        if not (added or learned):
            return type(embed).forward(embed, text_embeds, image_embeds)
        if not time.stock:
            raise UserError(f"positions={time.positions.policy} does not fit a model whose positions are added")
        try:
            embed.use_positional_embeddings = embed.use_learned_positional_embeddings = False
            out = type(embed).forward(embed, text_embeds, image_embeds)
        finally:
            embed.use_positional_embeddings, embed.use_learned_positional_embeddings = added, learned
        height, width = image_embeds.shape[-2:]
        total = time.piece.total * (embed.patch_size_t or 1)
        frames = (total - 1) * embed.temporal_compression_ratio + 1
        as_made = (height, width, frames) == (embed.sample_height, embed.sample_width, embed.sample_frames)
        if learned and not as_made:
            raise UserError(
                f"learned positions exist for {embed.sample_frames} frames of {embed.sample_height} x "
                f"{embed.sample_width} latents only; given {frames} of {height} x {width}"
            )
        table = embed.pos_embedding if as_made else embed._get_positional_embeddings(height, width, frames, out.device)
        text = table.shape[1] - time.piece.total * time.piece.tokens
        rows = slice(text + time.span.start * time.piece.tokens, text + time.span.stop * time.piece.tokens)
        out[:, text_embeds.shape[1] :] += table[:, rows].to(out)
        return out

    return forward


def _seconds_forward(model: Any, time: Time) -> Any:
    """LTX: time in seconds over 20, from `video_coords` or from a grid made here."""
    rope = model.rope

    def forward(
        hidden_states: Tensor, num_frames: Any = None, height: Any = None, width: Any = None,
        rope_interpolation_scale: Any = None, video_coords: Tensor | None = None,
    ) -> Any:  # fmt: skip
        total, tokens = time.piece.total, time.piece.tokens
        if video_coords is None:
            grid = rope._prepare_video_coords(
                hidden_states.shape[0], total, height, width, rope_interpolation_scale, hidden_states.device
            )
            base = torch.tensor([rope.base_num_frames, rope.base_height, rope.base_width], device=grid.device)
            coords = (grid * base).transpose(1, 2)
        else:
            coords = video_coords
        if coords.shape[2] == total * tokens:
            when = coords[:, 0].unflatten(1, (total, tokens))
            if not time.stock and time.positions.policy is Policy.INTERPOLATE:
                when = when * (
                    float(time.positions.frames(range(total), total, time.record.length)[-1]) / max(total - 1, 1)
                )
            coords = torch.stack([when.flatten(1), coords[:, 1], coords[:, 2]], 1)
            if time.positions.policy is Policy.CLIP:
                time.turn = _seconds_turn(rope, model, coords, tokens)
            coords = coords[:, :, time.span.start * tokens : time.span.stop * tokens]
        elif coords.shape[2] != len(time.span) * tokens:
            raise UserError(f"video_coords has {coords.shape[2]} tokens; the video has {total} frames of {tokens}")
        if video_coords is None and time.stock:  # the stock way, whose rounding differs by the detour over pixels
            cut = grid[:, time.span.start * tokens : time.span.stop * tokens]
            return _ltx_table(rope, cut)
        return type(rope).forward(rope, hidden_states, video_coords=coords)

    return forward


def _ltx_table(rope: Any, grid: Tensor) -> Any:
    """The rotary table of a grid of fractions (B, rows, 3), as LTXVideoRotaryPosEmbed makes it."""
    stock = rope._prepare_video_coords
    try:
        rope.__dict__["_prepare_video_coords"] = lambda *args, **kwargs: grid
        return type(rope).forward(rope, grid, 1, 1, 1)
    finally:
        del rope.__dict__["_prepare_video_coords"]
        assert rope._prepare_video_coords == stock


def _seconds_turn(rope: Any, model: Any, coords: Tensor, tokens: int) -> Turn | None:
    """Rates in radians a latent frame; coords of the whole video. The fastest plane turns 500 radians a frame, so the
    pace is taken over as many frames as there are; the first may stand apart (causal VAEs)."""
    when = coords[0, 0, ::tokens].double()
    if len(when) < 2:
        return None
    first = 1 if len(when) > 2 else 0
    pace = float(when[-1] - when[first]) / (len(when) - 1 - first) / rope.base_num_frames
    count = rope.dim // 6
    rates = torch.zeros(rope.dim // 2, dtype=torch.float64)
    freqs = rope.theta ** torch.linspace(0, 1, count, dtype=torch.float64) * torch.pi / 2
    rates[(rope.dim % 6) // 2 :: 3][:count] = freqs * 2 * pace
    return Turn(rates.view(model.config.num_attention_heads, -1))
