"""What `pool` must know of each family of models: how to get its films' features, and how it wants them back.

Every family of transformers that is listed takes `mm_encoder_outputs`, features that were made before. A film is
features on a grid of T frames x H rows x W columns, and one or no token behind it.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from longtake.errors import UserError
from longtake.kernels.pooling.windows import Triple
from torch import Tensor


class Stamp(StrEnum):
    """The text that a prompt has for each frame."""

    NONE = "none"  # nothing, or always the same
    LABEL = "label"  # a number or a time; windows keep that of their first frame
    SECONDS = "seconds"  # the middle of what the slice spans, written anew


@dataclass
class Encoded:
    """Features of all films of a batch, in the order of their placeholders.

    output: as the model made it. flat: (N, D). deep: more of the same, each (N, D). sizes: of each film; None where
    the model does not say which frames make a film. frame: (H, W) of one frame. extra: tokens behind each film.
    """

    output: Any
    flat: Tensor
    frame: tuple[int, int]
    sizes: list[Triple] | None = None
    deep: list[Tensor] = field(default_factory=list)
    extra: int = 0


@dataclass(frozen=True)
class Family:
    """encode(inner model, inputs): features. returned: how `pooler_output` is laid out."""

    name: str
    pixels: str
    token: str
    encode: Callable[[Any, Mapping[str, Any]], Encoded]
    returned: str  # "rows", "films": a list with a tensor for each; "stack": (films, n, D); "frames": (frames, n, D)
    stamp: Stamp = Stamp.NONE
    grid: bool = False  # video_grid_thw places the tokens

    @property
    def modality(self) -> str:
        return "video" if self.pixels == "pixel_values_videos" else "image"


def features(inner: Any, modality: str, inputs: Mapping[str, Any]) -> Any:
    """The model's own features of one modality, from those inputs that its method takes."""
    method = getattr(inner, f"get_{modality}_features")
    named = {key for key in inspect.signature(method).parameters if key != "kwargs"}
    given = {key: value for key, value in inputs.items() if key in named and value is not None}
    return method(**given, return_dict=True)


def _side(tokens: int, name: str) -> int:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"{name}: {tokens} tokens a frame are no square; films with square frames are pooled")
    return side


def _llava(inner: Any, inputs: Mapping[str, Any]) -> Encoded:
    if inputs.get("image_sizes") is not None:
        raise UserError("llava with a Pixtral tower gives frames of any shape; its films are not pooled")
    output = features(inner, "image", inputs)
    side = _side(len(output.pooler_output[0]), "llava")
    return Encoded(output, torch.cat(list(output.pooler_output)), (side, side))


def _next_video(inner: Any, inputs: Mapping[str, Any]) -> Encoded:
    output = features(inner, "video", inputs)
    films, frames = inputs["pixel_values_videos"].shape[:2]
    side = _side(output.pooler_output.shape[1] // frames, "llava_next_video")
    return Encoded(output, output.pooler_output.flatten(0, 1), (side, side), [(frames, side, side)] * films)


def _onevision(inner: Any, inputs: Mapping[str, Any]) -> Encoded:
    output = features(inner, "video", inputs)
    films, frames = inputs["pixel_values_videos"].shape[:2]
    side = _side((output.pooler_output.shape[1] - 1) // frames, "llava_onevision")
    flat = output.pooler_output.flatten(0, 1)
    return Encoded(output, flat, (side, side), [(frames, side, side)] * films, extra=1)


def _qwen(inner: Any, inputs: Mapping[str, Any]) -> Encoded:
    output = features(inner, "video", inputs)
    merge = inner.visual.spatial_merge_size
    sizes = [(int(t), int(h) // merge, int(w) // merge) for t, h, w in inputs["video_grid_thw"]]
    deep = [torch.cat(list(layer)) for layer in getattr(output, "deepstack_features", None) or []]
    return Encoded(output, torch.cat(list(output.pooler_output)), sizes[0][1:], sizes, deep)


def _internvl(inner: Any, inputs: Mapping[str, Any]) -> Encoded:
    output = features(inner, "image", inputs)
    side = _side(output.pooler_output.shape[1], "internvl")
    return Encoded(output, output.pooler_output.flatten(0, 1), (side, side))


def _smolvlm(inner: Any, inputs: Mapping[str, Any]) -> Encoded:
    output = features(inner, "image", inputs)
    side = _side(inner.image_seq_len, "smolvlm")
    return Encoded(output, torch.cat(list(output.pooler_output)), (side, side))


_VIDEO = ("pixel_values_videos", "video_token_id")
_IMAGE = ("pixel_values", "image_token_id")
FAMILIES = {
    family.name: family
    for family in (
        Family("llava", *_IMAGE, _llava, "rows"),
        Family("llava_next_video", *_VIDEO, _next_video, "films"),
        Family("llava_onevision", *_VIDEO, _onevision, "stack"),
        Family("qwen2_5_vl", *_VIDEO, _qwen, "films", grid=True),
        Family("qwen3_vl", *_VIDEO, _qwen, "films", Stamp.SECONDS, grid=True),
        Family("internvl", *_IMAGE, _internvl, "frames", Stamp.LABEL),
        Family("smolvlm", *_IMAGE, _smolvlm, "rows", Stamp.LABEL),
    )
}


def family_of(model: Any) -> Family:
    """Raises UserError for a model of no family above, naming those that there are."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise UserError(f"films of {kind} are not pooled; families that are: {', '.join(FAMILIES)}")
    inner = model.base_model
    if "mm_encoder_outputs" not in inspect.signature(type(inner).forward).parameters:
        raise UserError(f"{kind} of this transformers takes no mm_encoder_outputs; transformers 5.23 or newer does")
    return FAMILIES[kind]
