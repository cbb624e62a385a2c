"""What public checkpoints were trained for, by repository: training length, pace, frame rule, usual size and steps.

    preset = preset_of("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", record)
    preset.latents(81)                       # 21

A checkpoint that is not listed takes what its class's record says, with the fields that a user names.
Sources: the model cards and diffusers' pipelines; LVSA (arXiv 2605.31057) for training lengths.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from longtake.errors import UserError
from longtake.video.dit.records import Record


@dataclass(frozen=True)
class Preset:
    """One checkpoint. length: L, latent frames of training. stride: frames of film a latent frame: films have
    stride * k + 1 frames. fps: of training. height, width, steps, guidance: the usual ones."""

    length: int
    stride: int
    fps: float
    height: int | None = None
    width: int | None = None
    steps: int = 50
    guidance: float = 5.0

    @property
    def frames(self) -> int:
        """Frames of film that the model was trained on."""
        return self.film(self.length)

    def film(self, latents: int) -> int:
        """Frames of film of so many latent frames."""
        return (latents - 1) * self.stride + 1

    def latents(self, frames: int) -> int:
        """Latent frames that hold so many frames of film, the last perhaps in part."""
        if frames < 1:
            raise UserError(f"frames must be at least 1, got {frames}")
        return -(-(frames - 1) // self.stride) + 1

    def latent_of(self, frame: int) -> int:
        """The latent frame that holds a frame of film."""
        return 0 if frame == 0 else (frame - 1) // self.stride + 1


_WAN = Preset(21, 4, 16.0, 480, 832, 50, 5.0)
_COG = Preset(13, 4, 8.0, 480, 720, 50, 6.0)
_LTX = Preset(61, 8, 24.0, 512, 768, 50, 3.0)

PRESETS: dict[str, Preset] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _WAN,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": replace(_WAN, height=720, width=1280),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _WAN,
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": replace(_WAN, height=720, width=1280),
    "Wan-AI/Wan2.1-VACE-1.3B-diffusers": _WAN,
    "Wan-AI/Wan2.1-VACE-14B-diffusers": replace(_WAN, height=720, width=1280),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": replace(_WAN, height=720, width=1280, steps=40, guidance=4.0),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": replace(_WAN, steps=40, guidance=3.5),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Preset(31, 4, 24.0, 704, 1280, 50, 5.0),
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": Preset(25, 4, 24.0, 544, 960, 50, 6.0),
    "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers": Preset(25, 4, 24.0, 544, 960, 50, 6.0),
    "hunyuanvideo-community/HunyuanVideo": Preset(33, 4, 24.0, 720, 1280, 50, 6.0),
    "hunyuanvideo-community/HunyuanVideo-I2V": Preset(33, 4, 24.0, 720, 1280, 50, 1.0),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": Preset(31, 4, 24.0, 480, 832, 50, 6.0),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": Preset(31, 4, 24.0, 720, 1280, 50, 6.0),
    "Lightricks/LTX-Video": _LTX,
    "Lightricks/LTX-2": Preset(61, 8, 24.0, 512, 768, 40, 4.0),
    "THUDM/CogVideoX-2b": _COG,
    "THUDM/CogVideoX-5b": _COG,
    "THUDM/CogVideoX1.5-5B": Preset(21, 4, 16.0, 768, 1360, 50, 6.0),
    "BestWishYsh/ConsisID-preview": _COG,
    "genmo/mochi-1-preview": Preset(28, 6, 30.0, 480, 848, 64, 4.5),
    "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers": Preset(31, 4, 24.0, 512, 768, 50, 5.0),
    "nvidia/Cosmos-1.0-Diffusion-7B-Text2World": Preset(16, 8, 30.0, 704, 1280, 36, 7.0),
}


def preset_of(name: str | None, record: Record, pipeline: Any = None, **given: float | None) -> Preset:
    """The preset of a repository, or one of its class with the fields that the caller names.

    pipeline: class of its stock pipeline, whose call's size, steps and guidance stand where no preset is listed.
    given: length, stride, fps, height, width, steps, guidance; None leaves a field as it is.
    Raises UserError for a name of the Hub (owner/name) that is not listed while no length is given: a wrong training
    length is the most common mistake and shows nowhere but in the film.
    """
    named = {key: value for key, value in given.items() if value is not None}
    known = PRESETS.get(name or "")
    if known is None:
        if name is not None and "length" not in named:
            raise UserError(
                f"no preset for {name}: say its training length in latent frames, e.g. length={record.length} "
                f"(of {record.name}), and fps if it is not {record.fps:g}"
            )
        known = _stock_settings(Preset(record.length, record.stride, record.fps), pipeline)
    return replace(known, **named)  # type: ignore[arg-type]


def _stock_settings(preset: Preset, pipeline: Any) -> Preset:
    """A preset with the pixels, steps and guidance that a stock pipeline's call takes when nobody names them."""
    if pipeline is None:
        return preset
    said = inspect.signature(pipeline.__call__).parameters
    names = {"height": "height", "width": "width", "steps": "num_inference_steps", "guidance": "guidance_scale"}
    found = {field: said[name].default for field, name in names.items() if name in said}
    told = {field: value for field, value in found.items() if isinstance(value, (int, float)) and value > 0}
    return replace(preset, **told)  # type: ignore[arg-type]
