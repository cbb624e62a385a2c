"""The video transformers of diffusers, one record a class: where text sits, what has a frame axis, how time is told.

A record is all that `adapter.py` knows of a class. It holds what diffusers does not say of itself: which arguments are
cut by frames, which attention layers tie frames together, where the rotary embedding takes its time from, and for which
length the model was trained. A class that is not here is refused by name; `locality.py` shows whether one may be added.

    record = record_of(model)        # raises UnsupportedModule
    record.length                    # 21 latent frames

Legend: F latent frames, n tokens of a frame, L the training length in latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Text(StrEnum):
    """Where a class reads its text.

    Members:
        CROSS: in cross-attention layers of its own; frames meet in self-attention.
        AFTER: in one softmax with the video, text rows behind the video's.
        BEFORE: the same, text rows in front.
    """

    CROSS = "cross"
    AFTER = "after"
    BEFORE = "before"


class Clock(StrEnum):
    """Where the rotary embedding takes its time from.

    Members:
        TABLE: a module called with the latents; its table starts at frame 0.
        ARGUMENT: a table that the pipeline makes, given as `image_rotary_emb`.
        GRID: an argument with the frame numbers, `visual_rope_pos`.
        SECONDS: coordinates in seconds, `video_coords` or made in the model.
        LEARNED: learned frequencies times frame numbers.
        ROWS: an argument with the place of every packed row, `position_ids`.
    """

    TABLE = "table"
    ARGUMENT = "argument"
    GRID = "grid"
    SECONDS = "seconds"
    LEARNED = "learned"
    ROWS = "rows"


@dataclass(frozen=True)
class Record:
    """One class.

    name: of the class. blocks: its lists of blocks; attention: name of the layer in a block that ties frames together;
    cross: name of the one that reads text. frames: arguments with an axis of latent frames (the first is the sample);
    tokens: arguments with an axis of F * n tokens. channels: the sample's axis of channels. length: L. stride: frames
    of film a latent frame. fps: of training. longest: most latent frames of a position table with a hard end, or the
    attribute path that says it. time_by_frame: a timestep of several dimensions has one for each frame, not each token.
    """

    name: str
    text: Text
    clock: Clock
    blocks: tuple[str, ...]
    attention: str
    frames: dict[str, int]
    length: int
    stride: int
    fps: float
    cross: str | None = None
    channels: int = 1
    tokens: dict[str, int] = field(default_factory=dict)
    longest: int | str | None = None
    time_by_frame: bool = False

    @property
    def sample(self) -> tuple[str, int]:
        """The name of the latents' argument and its axis of frames (of tokens for packed latents)."""
        return next(iter((self.frames or self.tokens).items()))

    @property
    def packed(self) -> bool:
        """Whether the latents come as tokens (B, F * n, C)."""
        return not self.frames

    def patch(self, model: Any) -> tuple[int, int, int]:
        """Latent frames, rows and columns of one token."""
        config = model.config
        size = config.patch_size
        if isinstance(size, (tuple, list)):
            return tuple(int(side) for side in size)  # type: ignore[return-value]
        time = getattr(config, "patch_size_t", None)
        return (1 if time is None else int(time), int(size), int(size))


_WAN = dict(
    text=Text.CROSS, clock=Clock.TABLE, attention="attn1", cross="attn2", stride=4, fps=16.0,
    longest="rope.max_seq_len",
)  # fmt: skip
_COG = dict(
    text=Text.BEFORE, clock=Clock.ARGUMENT, blocks=("transformer_blocks",), attention="attn1",
    frames={"hidden_states": 1}, channels=2, length=13, stride=4, fps=8.0,
)  # fmt: skip

RECORDS: dict[str, Record] = {
    record.name: record
    for record in (
        Record("WanTransformer3DModel", blocks=("blocks",), frames={"hidden_states": 2}, length=21, **_WAN),  # type: ignore[arg-type]
        Record(
            "WanVACETransformer3DModel", blocks=("blocks", "vace_blocks"), length=21,
            frames={"hidden_states": 2, "control_hidden_states": 2}, **_WAN,  # type: ignore[arg-type]
        ),
        Record(
            "SkyReelsV2Transformer3DModel", blocks=("blocks",), frames={"hidden_states": 2}, length=25,
            **{**_WAN, "fps": 24.0, "time_by_frame": True},  # type: ignore[arg-type]
        ),
        Record(
            "HunyuanVideoTransformer3DModel", Text.AFTER, Clock.TABLE,
            ("transformer_blocks", "single_transformer_blocks"), "attn", {"hidden_states": 2},
            length=33, stride=4, fps=24.0,
        ),
        Record(
            "HunyuanVideo15Transformer3DModel", Text.AFTER, Clock.TABLE, ("transformer_blocks",), "attn",
            {"hidden_states": 2}, length=31, stride=4, fps=24.0,
        ),
        Record(
            "LTXVideoTransformer3DModel", Text.CROSS, Clock.SECONDS, ("transformer_blocks",), "attn1", {},
            tokens={"hidden_states": 1, "video_coords": 2}, channels=2, length=61, stride=8, fps=24.0, cross="attn2",
        ),
        Record(
            "LTX2VideoTransformer3DModel", Text.CROSS, Clock.SECONDS, ("transformer_blocks",), "attn1", {},
            tokens={"hidden_states": 1, "video_keyframes_mask": 1}, channels=2, length=61, stride=8, fps=24.0,
            cross="attn2",
        ),
        Record(
            "MiniMaxH3Transformer3DModel", Text.BEFORE, Clock.ROWS, ("transformer_blocks",), "attn", {},
            tokens={"hidden_states": 1}, channels=2, length=37, stride=4, fps=24.0,
        ),
        Record("CogVideoXTransformer3DModel", **_COG),  # type: ignore[arg-type]
        Record("ConsisIDTransformer3DModel", **_COG),  # type: ignore[arg-type]
        Record(
            "MochiTransformer3DModel", Text.AFTER, Clock.LEARNED, ("transformer_blocks",), "attn1",
            {"hidden_states": 2}, length=28, stride=6, fps=30.0,
        ),
        Record(
            "Kandinsky5Transformer3DModel", Text.CROSS, Clock.GRID, ("visual_transformer_blocks",), "self_attention",
            {"hidden_states": 1}, channels=4, length=31, stride=4, fps=24.0, cross="cross_attention", longest=128,
        ),
        Record(
            "CosmosTransformer3DModel", Text.CROSS, Clock.TABLE, ("transformer_blocks",), "attn1",
            {"hidden_states": 2, "condition_mask": 2}, length=16, stride=8, fps=24.0, cross="attn2",
            longest="rope.max_size",
            time_by_frame=True,
        ),
    )
}  # fmt: skip


def record_of(model: Any) -> Record:
    """The record of a model's class, or of the first base that has one. Raises UnsupportedModule."""
    for base in type(model).__mro__:
        if base.__name__ in RECORDS:
            return RECORDS[base.__name__]
    from longtake.video.piece import UnsupportedModule  # brings torch

    raise UnsupportedModule(
        f"{type(model).__name__} has no record; there is one for {', '.join(sorted(RECORDS))} "
        "(and UNet3DConditionModel, UNetMotionModel)"
    )
