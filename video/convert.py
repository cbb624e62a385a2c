"""Public checkpoint layouts: whole pipelines (ModelScope, zeroscope) and the bare VideoCrafter2 UNet.

``adamdad/videocrafterv2_diffusers`` is a UNet3DConditionModel with the frame rate embedded (``frame_rate_unet.py``). It
has neither text encoder nor autoencoder: those come from ``cerspense/zeroscope_v2_576w``, as in the released code.
What a folder holds is told without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.reading import read_json_object
from longtake.weights import load_state, match_keys, resolve

if TYPE_CHECKING:
    import torch
    from diffusers import UNet3DConditionModel

BASE = "cerspense/zeroscope_v2_576w"


def is_bare_unet(folder: Path) -> bool:
    """Whether a folder holds one UNet3D rather than a whole pipeline."""
    if (folder / "model_index.json").exists():
        return False
    config = folder / "config.json"
    return config.exists() and "block_out_channels" in read_json_object(config)


def load_bare_unet(folder: Path, dtype: torch.dtype | None = None) -> UNet3DConditionModel:
    """A UNet in VideoCrafter2's layout, or a plain UNet3DConditionModel, from its ``config.json`` and weights.

    Which of the two is decided by the keys that are there. Raises UserError for missing or unknown keys.
    """
    import torch
    from diffusers import UNet3DConditionModel
    from longtake.video.frame_rate_unet import FrameRateUNet

    config = {k: v for k, v in read_json_object(folder / "config.json").items() if not k.startswith("_")}
    state = load_state(folder)
    framed = any(key.startswith("fps_embedding.") for key in state)
    kind = FrameRateUNet if framed else UNet3DConditionModel
    if not framed:
        config.pop("fps_cond", None)
    model = kind.from_config({**config, **({"fps_cond": True} if framed else {})})
    match = match_keys(model.state_dict(), state, {"VideoCrafter2 in diffusers' keys": lambda key: key})
    model.load_state_dict(match.apply(state))
    return model.to(dtype or torch.float32).eval()


def find_base(base: str | None, name: str) -> Path:
    """The pipeline that a bare UNet borrows its autoencoder, text encoder and scheduler from."""
    try:
        return resolve(base or BASE, kind="base pipeline", priors_package="longtake.video")
    except UserError as error:
        raise UserError(
            f"{name} is a bare UNet and needs text encoder, autoencoder and scheduler of {BASE}: {error}"
        ) from None


def is_transformer(folder: Path) -> bool:
    """Whether a folder holds a diffusers pipeline with a transformer in place of a UNet."""
    index = folder / "model_index.json"
    if not index.is_file():
        return False
    told = read_json_object(index)
    return "transformer" in told and "unet" not in told


def has_transformer(found: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a folder, or a repository on the Hub, holds a pipeline with a transformer in place of a UNet.

    settings: of diffusers' from_pretrained, by which the Hub is asked. Raises UserError for a repository it has not.
    """
    if Path(str(found)).exists():
        return is_transformer(Path(str(found)))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    asked = {key: settings[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in settings}
    try:
        index = Path(hf_hub_download(str(found), "model_index.json", **asked))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"there is no folder {found} here, and the Hub has no pipeline of that name for us ({type(error).__name__})"
        ) from error
    return is_transformer(index.parent)
