"""Sound beside the video (LTX-2): two streams of tokens, cut over ranks by the same seconds.

An audio token belongs to the video frame in whose time its middle lies, so a rank holds the sound of its frames, and a
scope of frames is a scope of both streams: video sees video and sound, sound sees sound and video, of the frames that
the frame at hand sees. With all frames in scope that is the stock model.

    sound = Sound.of(call)            # in place of one stream of tokens
    given = sound.prepared(model, given)

Legend: B batch, F latent frames, n video tokens a frame, A audio tokens (25 a second).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.rows import gather_rows
from longtake.video.dit.attend import Rows, Turn
from longtake.video.dit.positions import Policy
from torch import Tensor

if TYPE_CHECKING:
    from longtake.video.dit.adapter import Call

Given = dict[str, Any]

# layer of a block -> (stream of the queries, stream of the keys, rotary module of the keys)
STREAMS = {
    "attn1": ("video", "video", "rope"),
    "audio_attn1": ("audio", "audio", "audio_rope"),
    "audio_to_video_attn": ("video", "audio", "cross_attn_audio_rope"),
    "video_to_audio_attn": ("audio", "video", "cross_attn_rope"),
}


@dataclass
class Sound:
    """The audio stream of one rank. rows: of the whole video's frames, by stream."""

    call: Call
    rows: dict[str, Rows] = field(default_factory=dict)
    turns: dict[str, Turn] = field(default_factory=dict)
    _known: tuple[Any, ...] = ()

    @property
    def held(self) -> int:
        """Audio tokens here; a rank without any computes one of zeros."""
        return self.rows["audio"].of(self.call.piece.mine)

    def prepared(self, model: Any, given: Given) -> Given:
        """The arguments of a call, both streams cut to the frames here. Raises UserError for what is not covered."""
        call, piece = self.call, self.call.piece
        if given.get("video_self_attention_mask") is not None:
            raise UserError("video_self_attention_mask ties tokens of different frames: it is not covered")
        if not call.whole and not piece.alone:
            raise UserError("LTX-2 takes whole inputs on every rank, because sound is cut by seconds: whole=True")
        if call.time.positions.policy is Policy.RIFLEX:
            raise UserError("riflex does not fit LTX-2, whose time is seconds: use clip or interpolate")
        audio = given["audio_hidden_states"]
        video_at, audio_at = self._coordinates(model, given, audio.shape[1], audio.device)
        self._cut(video_at, audio_at, audio.shape[1])
        if call.time.positions.policy is Policy.CLIP:
            self._turned(model, video_at)
        video_rows, audio_rows = self.rows["video"], self.rows["audio"]
        span = call.time.span
        made = dict(given)
        made["video_coords"] = video_at[:, :, video_rows.offsets[span.start] : video_rows.offsets[span.stop]]
        start, count = audio_rows.offsets[piece.mine.start] if len(piece.mine) else 0, self.held
        made["audio_coords"] = _narrowed(audio_at, 2, start, count)
        made["audio_hidden_states"] = _narrowed(audio, 1, start, count)
        time = given.get("audio_timestep")
        if isinstance(time, Tensor) and time.ndim > 1 and time.shape[1] == audio.shape[1]:
            made["audio_timestep"] = _narrowed(time, 1, start, count)
        made["audio_num_frames"] = max(count, 1)
        return made

    def _coordinates(self, model: Any, given: Given, audio: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Seconds and pixels of every token of the whole video: (B, 3, F * n, 2) and (B, 1, A, 2)."""
        batch, piece = given["hidden_states"].shape[0], self.call.piece
        video_at, audio_at = given.get("video_coords"), given.get("audio_coords")
        if video_at is None:
            video_at = model.rope.prepare_video_coords(
                batch, piece.total, given["height"], given["width"], device, fps=given.get("fps", 24.0)
            )
        if audio_at is None:
            audio_at = model.audio_rope.prepare_audio_coords(batch, audio, device)
        if video_at.shape[2] != piece.total * piece.tokens:
            raise UserError(
                f"video_coords has {video_at.shape[2]} tokens; the video has {piece.total} frames of {piece.tokens}"
            )
        positions, length = self.call.time.positions, self.call.record.length
        if positions.policy is Policy.INTERPOLATE:
            last = float(positions.frames(range(piece.total), piece.total, length)[-1])
            share = last / max(piece.total - 1, 1)
            video_at = torch.cat([video_at[:, :1] * share, video_at[:, 1:]], 1)
            audio_at = audio_at * share
        return video_at, audio_at

    def _cut(self, video_at: Tensor, audio_at: Tensor, audio: int) -> None:
        """Which audio tokens belong to which frame."""
        piece = self.call.piece
        key = (piece.total, piece.tokens, audio, video_at.shape, tuple(video_at[0, 0, -1].tolist()))
        if self._known == key:
            return
        ends = video_at[0, 0, :: piece.tokens, 1].double().cpu()
        middle = audio_at[0, 0].double().mean(-1).cpu()
        counts = torch.bincount(frame_in_time(ends, middle), minlength=piece.total).tolist()
        offsets = [0]
        for count in counts:
            offsets.append(offsets[-1] + count)
        self.rows = {"video": Rows.even(piece.total, piece.tokens), "audio": Rows(tuple(offsets))}
        self._known = key

    def _turned(self, model: Any, video_at: Tensor) -> None:
        """Radians a latent frame of every rotary module, for clipped distances."""
        tokens = self.call.piece.tokens
        starts = video_at[0, 0, ::tokens].double().mean(-1)
        first = 1 if len(starts) > 2 else 0  # the first frame stands apart
        pace = float(starts[-1] - starts[first]) / max(len(starts) - 1 - first, 1)
        for name, (_, _, module) in STREAMS.items():
            self.turns[name] = _turn(getattr(model, module), pace, 3 if module == "rope" else 1)

    def finished(self, out: Any) -> Any:
        """Both streams of all ranks, where inputs were whole."""
        piece = self.call.piece
        plain = isinstance(out, tuple)
        video, audio = (out[0], out[1]) if plain else (out.sample, out.audio_sample)
        audio = audio[:, : self.held]
        if piece.empty:
            video = video[:, :0]
        if not piece.alone:
            spans = [piece.partition.range(rank) for rank in range(piece.partition.parts)]
            for name, x in (("video", video), ("audio", audio)):
                cut = Partition.from_sizes([self.rows[name].of(span) for span in spans])
                whole = gather_rows(x.contiguous(), piece.transport, cut, 1)
                video, audio = (whole, audio) if name == "video" else (video, whole)
        if plain:
            return (video, audio, *out[2:])
        out.sample, out.audio_sample = video, audio
        return out


def frame_in_time(ends: Tensor, middle: Tensor) -> Tensor:
    """In which frame each moment lies: int64, as long as `middle`. ends: seconds (F,) at which frames end."""
    return torch.searchsorted(ends.contiguous(), middle.contiguous(), right=True).clamp_max(len(ends) - 1)


def _narrowed(x: Tensor, axis: int, start: int, count: int) -> Tensor:
    """Some rows, or one of zeros where there are none."""
    if count:
        return x.narrow(axis, start, count)
    shape = list(x.shape)
    shape[axis] = 1
    return x.new_zeros(shape)


def _turn(rope: Any, pace: float, axes: int) -> Turn:
    """Rates of a rotary module of LTX-2; pace: seconds a latent frame."""
    count = rope.dim // (2 * axes)
    freqs = rope.theta ** torch.linspace(0, 1, count, dtype=torch.float64) * torch.pi / 2
    rates = torch.zeros(rope.dim // 2, dtype=torch.float64)
    pad = rope.dim // 2 - count * axes
    rates[pad::axes] = freqs * 2 * pace / rope.base_num_frames
    return Turn(rates.view(rope.num_attention_heads, -1), halves=rope.rope_type == "split")
