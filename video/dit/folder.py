"""What a folder of a video transformer says before any weights are read: its preset and what a run will cost.

    model = model_at("/models/Wan2.1-T2V-1.3B-Diffusers")     # None for a folder of another kind
    model.preset.steps, model.preset.fps                      # 50, 16.0
    model.flops(latents=61, height=480, width=832)            # of one pass of one denoising step

Legend: P parameters, N tokens of the whole film, d width, F latent frames.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.reading import read_json_object
from longtake.video.dit.presets import PRESETS, Preset, preset_of
from longtake.video.dit.records import RECORDS, Record

_SIDES = {"LTXVideoTransformer3DModel": 32, "LTX2VideoTransformer3DModel": 32}  # pixels a latent pixel, where not 8
_PIXELS = 8


@dataclass(frozen=True)
class Model:
    """One folder. record: of its transformer; preset: of its checkpoint; parameters: of the transformer, from the sizes
    of its files; bytes: of all weights; config: of the transformer; pipeline: name of the stock class."""

    record: Record
    preset: Preset
    parameters: int
    bytes: int
    config: Mapping[str, Any]
    pipeline: str = ""

    @property
    def begins_from_a_picture(self) -> bool:
        """Whether the stock pipeline takes its first frame as an image."""
        stock = _pipeline_class(self.pipeline)
        return stock is not None and "image" in inspect.signature(stock.__call__).parameters

    def tokens(self, latents: int, height: int, width: int) -> int:
        """N of so many latent frames and pixels."""
        patch = self.config.get("patch_size", 1)
        rows, columns = patch[-2:] if isinstance(patch, list) and len(patch) > 1 else (patch, patch)
        step = _SIDES.get(self.record.name, _PIXELS)
        return latents * max(1, height // (step * _count(rows))) * max(1, width // (step * _count(columns)))

    def flops(self, latents: int, height: int, width: int, seen: int | None = None) -> float:
        """Floating-point operations of one forward: 2 P N, and 4 N M d a layer for attention.

        seen: latent frames that a frame attends to, of which M are the tokens; None: all.
        """
        tokens = self.tokens(latents, height, width)
        other = self.tokens(min(latents, seen or latents), height, width)
        return 2.0 * self.parameters * tokens + 4.0 * tokens * other * self._width * self._layers

    @property
    def _width(self) -> int:
        heads, head = _count(self.config.get("num_attention_heads")), _count(self.config.get("attention_head_dim"))
        return _count(self.config.get("model_dim"), heads * head)

    @property
    def _layers(self) -> int:
        layers = (value for key, value in self.config.items() if re.fullmatch("num_(single_)?layers", key))
        return sum(_count(value, 0) for value in layers) or _count(self.config.get("num_visual_blocks"))


def model_at(folder: Path, name: str | None = None, length: int | None = None) -> Model | None:
    """What a local folder says; None where it holds no video transformer that has a record.

    name: its repository on the Hub, where it has one. length: training length in latent frames, in place of the
    preset's. Raises UserError for a damaged file.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    told = read_json_object(index)
    part = told.get("transformer")
    if not isinstance(part, list) or "unet" in told or not part or part[-1] not in RECORDS:
        return None
    record = RECORDS[part[-1]]
    listed = name in PRESETS
    pipeline = None if listed else _pipeline_class(told.get("_class_name"))
    preset = preset_of(name if listed else None, record, pipeline, length=length)
    weights = {path: path.stat().st_size for path in folder.rglob("*.safetensors")}
    own = [size for path, size in weights.items() if path.parent.name == "transformer"]
    config_file = folder / "transformer" / "config.json"
    config = read_json_object(config_file) if config_file.is_file() else {}
    return Model(
        record,
        preset,
        sum(own) // _itemsize(folder / "transformer"),
        sum(weights.values()),
        config,
        str(told.get("_class_name")),
    )


def _count(value: object, otherwise: int = 1) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _itemsize(folder: Path) -> int:
    """Bytes of one number of a folder's weights, by the header of its first file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return 2
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(files[0], framework="pt") as opened:
            kind = opened.get_slice(next(iter(opened.keys()))).get_dtype()
    except (SafetensorError, OSError, StopIteration) as error:
        raise UserError(f"{files[0]} is damaged: {str(error)[:100] or 'it holds no tensor'}") from error
    return {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(str(kind), 1)


def _pipeline_class(name: object) -> Any:
    import diffusers

    return getattr(diffusers, name, None) if isinstance(name, str) else None
