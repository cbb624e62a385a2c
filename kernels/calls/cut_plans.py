"""Where the tokens of each stock diffusers transformer are cut, and how its streams meet in attention.

    Served(joint=True)          a class whose own `_cp_plan` says where to cut, text and video in one softmax
    Served(cuts={...})          a class without one, or with one that leaves something whole (LTX-2's audio)

diffusers' entries and those here are read alike: `split_dim`, `expected_dims`, `split_output`, or `gather_dim`. Streams
are "video", "text" and "audio"; "tokens" is this rank's video beside its text, as joint layers hold them.

Read off the classes of diffusers 0.42 (models/transformers, models/attention_processor.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from longtake.kernels.errors import CapabilityError
from torch import Tensor

SDPA = torch.nn.functional.scaled_dot_product_attention
Places = Mapping[str, tuple[int, int, int]]  # start, stop and total of this rank's rows by stream


@dataclass(frozen=True)
class Cut:
    """This rank's rows of a stream in dimension `split_dim`; tensors of other than `expected_dims` dimensions are left.

    by_token: cut only what has a value for every token (a time step may be one number for all).
    """

    split_dim: int
    expected_dims: int | None = None
    split_output: bool = False
    stream: str = "video"
    by_token: bool = False


@dataclass(frozen=True)
class Together:
    """Where the rows of a stream come together again."""

    gather_dim: int
    stream: str = "video"


@dataclass(frozen=True)
class Changed:
    """An argument that `change(value, places)` computes from the whole one."""

    change: Callable[[Any, Places], Any]
    split_output: bool = False


@dataclass(frozen=True)
class Served:
    """How one class is served. cuts: as a `_cp_plan`, or None for the class's own.

    joint: text and video attend in one call, both are cut. layers: names that the wrapped attention layers begin with.
    meets: by the last name of a layer, the streams of its queries and of its keys; None stays local, keys whole on
    every rank. replaces, processor: the stock processor's name and what makes ours. needs: streams of which every rank
    must have a row, because the class slices or reshapes in a way that no rows do not survive.
    """

    cuts: Mapping[str, Any] | None = None
    joint: bool = False
    layers: tuple[str, ...] = ("",)
    meets: Mapping[str, tuple[str, str] | None] = field(default_factory=dict)
    replaces: str = ""
    processor: Callable[[], Any] | None = None
    needs: tuple[str, ...] = ()


def served(model: Any) -> tuple[str, Served]:
    """The class's name and its record. Raises CapabilityError, by name, for a class that is not served.

    A subclass is served where it keeps the forward of a class that is.
    """
    for cls in type(model).__mro__:
        own = getattr(cls, "forward", None) is type(model).forward
        if own and cls.__name__ in SERVED and cls.__module__.startswith("diffusers."):
            return cls.__name__, SERVED[cls.__name__]
    raise CapabilityError(
        f"shard_transformer does not serve {type(model).__name__}: how its streams meet in attention is not known (a "
        f"_cp_plan does not say it); served are {', '.join(SERVED)}"
    )


# ---- arguments that are computed anew ----------------------------------------------------------------------------


def _joint_keys(mask: Tensor | None, places: Places) -> Tensor | None:
    """The columns of this rank's video and text, of a mask (B, 1, 1, video + text)."""
    if mask is None:
        return None
    (start, stop, total), (text_start, text_stop, _) = places["video"], places["text"]
    return torch.cat([mask[..., start:stop], mask[..., total + text_start : total + text_stop]], -1)


def _first_tokens(number: int | None, places: Places) -> int | None:
    """How many of this rank's tokens are among the first `number` of all."""
    start, stop, _ = places["video"]
    return None if number is None else min(max(number - start, 0), stop - start)


def _right_padded(mask: Tensor | None, _: Places) -> Tensor | None:
    """A mask (B, L) as it is. Mochi moves the text it keeps to the front, which only padding at the end survives."""
    if mask is not None and bool((mask[:, 1:].bool() & ~mask[:, :-1].bool()).any()):
        raise CapabilityError(
            "MochiTransformer3DModel: encoder_attention_mask must be padded at the end, given one with kept text after "
            "padding"
        )
    return mask


# ---- processors with a mask over keys ----------------------------------------------------------------------------


class KeyMaskProcessor:
    """Joint attention of video and text under a mask over keys, in place of stock processors that make a mask of
    tokens by tokens (HunyuanVideo 1.5) or loop over the batch to leave padded text out (Mochi).

    rotate: turns (B, S, H, D) by the model's angles. Rows of padded text come out otherwise than from the stock
    processors; no other row reads them.
    """

    def __init__(self, rotate: Callable[[Tensor, Any], Tensor]) -> None:
        self.rotate = rotate

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None, image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """hidden_states (B, S, C), encoder_hidden_states (B, T, C), attention_mask (B, T), True or 1 for kept text."""

        def rows(x: Tensor, names: str, norm: str | None) -> Tensor:
            out = getattr(attn, names)(x).unflatten(2, (attn.heads, -1))
            layer = None if norm is None else getattr(attn, norm, None)
            return out if layer is None else layer(out)

        q, k = rows(hidden_states, "to_q", "norm_q"), rows(hidden_states, "to_k", "norm_k")
        if image_rotary_emb is not None:
            q, k = self.rotate(q, image_rotary_emb), self.rotate(k, image_rotary_emb)
        text_q = rows(encoder_hidden_states, "add_q_proj", "norm_added_q")
        text_k = rows(encoder_hidden_states, "add_k_proj", "norm_added_k")
        v, text_v = rows(hidden_states, "to_v", None), rows(encoder_hidden_states, "add_v_proj", None)
        keys = None
        if attention_mask is not None:
            keys = torch.nn.functional.pad(attention_mask.bool(), (hidden_states.shape[1], 0), value=True)[
                :, None, None
            ]
        q, k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in ((q, text_q), (k, text_k), (v, text_v)))
        out = SDPA(q, k, v, attn_mask=keys).transpose(1, 2).flatten(2, 3).to(q.dtype)
        video, text = out.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        last = getattr(attn, "to_add_out", None)
        return attn.to_out[1](attn.to_out[0](video)), text if last is None else last(text)


def _rotate_pairs_twice(x: Tensor, angles: Any) -> Tensor:
    """HunyuanVideo's: cosines and sines (S, D), each value twice in a row."""
    cos, sin = (table[None, :, None].to(x.device) for table in angles)
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-other, one], -1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def _rotate_pairs(x: Tensor, angles: Any) -> Tensor:
    """Mochi's: cosines and sines (S, H, D / 2) of neighbouring channels."""
    cos, sin = angles
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    pair = ((even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype))
    return torch.stack(pair, -1).flatten(-2)


# ---- the classes -------------------------------------------------------------------------------------------------

_FIRST = {
    "hidden_states": Cut(1, 3),
    "encoder_hidden_states": Cut(1, 3, stream="text"),
}
_TABLES = {0: Cut(0, split_output=True), 1: Cut(0, split_output=True)}
_LTX_TABLES = {0: Cut(-2, split_output=True), 1: Cut(-2, split_output=True)}  # (B, N, D), or (B, H, N, D / 2) if split
_AUDIO_TABLES = {0: Cut(-2, split_output=True, stream="audio"), 1: Cut(-2, split_output=True, stream="audio")}
_HUNYUAN_BLOCK = {"attention_mask": Changed(_joint_keys), "num_tokens": Changed(_first_tokens)}
_VIDEO, _AUDIO = ("video", "video"), ("audio", "audio")
_IN_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")

SERVED: dict[str, Served] = {
    "WanTransformer3DModel": Served(),
    "FluxTransformer2DModel": Served(joint=True),
    "QwenImageTransformer2DModel": Served(joint=True),
    "LTXVideoTransformer3DModel": Served(
        cuts={
            "": {"hidden_states": Cut(1, 3), "timestep": Cut(1, by_token=True)},
            "rope": _LTX_TABLES,
            "proj_out": Together(1),
        }
    ),
    "LTX2VideoTransformer3DModel": Served(
        cuts={
            "": {
                "hidden_states": Cut(1, 3),
                "audio_hidden_states": Cut(1, 3, stream="audio"),
                "timestep": Cut(1, by_token=True),
                "audio_timestep": Cut(1, by_token=True, stream="audio"),
                "video_keyframes_mask": Cut(1, 3),
            },
            "rope": _LTX_TABLES,
            "cross_attn_rope": _LTX_TABLES,
            "audio_rope": _AUDIO_TABLES,
            "cross_attn_audio_rope": _AUDIO_TABLES,
            "proj_out": Together(1),
            "audio_proj_out": Together(1, "audio"),
        },
        layers=_IN_BLOCKS,
        meets={
            "attn1": _VIDEO,
            "audio_attn1": _AUDIO,
            "attn2": None,
            "audio_attn2": None,
            "audio_to_video_attn": ("video", "audio"),
            "video_to_audio_attn": ("audio", "video"),
        },
        needs=("video", "audio"),  # split angles are laid on after a reshape to [-1]
    ),
    "MochiTransformer3DModel": Served(
        cuts={
            "": {"encoder_attention_mask": Changed(_right_padded)},
            "rope": _TABLES,
            "transformer_blocks.0": _FIRST,
            "transformer_blocks.*": {"encoder_attention_mask": Cut(1, 2, stream="text")},
            "proj_out": Together(1),
        },
        joint=True,
        layers=_IN_BLOCKS,
        replaces="MochiAttnProcessor2_0",
        processor=lambda: KeyMaskProcessor(_rotate_pairs),
    ),
    "CogVideoXTransformer3DModel": Served(
        cuts={
            "": {"image_rotary_emb": Cut(0, 2)},
            "transformer_blocks.0": _FIRST,
            "proj_out": Together(1),
        },
        joint=True,
        needs=("video",),  # diffusers' rotation reshapes to [-1]
        layers=_IN_BLOCKS,
    ),
    "HunyuanVideoTransformer3DModel": Served(
        cuts={
            "rope": _TABLES,
            "transformer_blocks.0": _FIRST,
            "transformer_blocks.*": _HUNYUAN_BLOCK,
            "single_transformer_blocks.*": _HUNYUAN_BLOCK,
            "proj_out": Together(1),
        },
        joint=True,
        layers=_IN_BLOCKS,
        needs=("video", "text"),  # its blocks slice off [-0:] of the text
    ),
    "HunyuanVideo15Transformer3DModel": Served(
        cuts={
            "rope": _TABLES,
            "transformer_blocks.0": _FIRST,
            "transformer_blocks.*": {"attention_mask": Cut(1, 2, stream="text")},
            "proj_out": Together(1),
        },
        joint=True,
        needs=("video",),
        layers=_IN_BLOCKS,
        replaces="HunyuanVideo15AttnProcessor2_0",
        processor=lambda: KeyMaskProcessor(_rotate_pairs_twice),
    ),
}
