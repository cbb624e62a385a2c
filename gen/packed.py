"""Models of ours whose weights are kept with eight bits a number, a scale a row: half of float16's size.

class MDM(EightBits, ModelMixin, ConfigMixin): ...
MDM.from_pretrained(folder)                 # reads both; float32 unless told otherwise
save_eight_bits(model, folder)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import torch
from longtake.journal import atomic_path
from longtake.weights import SCALE, eight_bits, load_state, whole

WEIGHTS = "diffusion_pytorch_model.safetensors"


class EightBits:
    """Before diffusers' ModelMixin among a class's bases: ``from_pretrained`` reads ``save_eight_bits``'s too."""

    @classmethod
    def from_pretrained(cls, name: Any, **settings: Any) -> Self:
        """As diffusers'. Raises UserError for damaged weights with eight bits a number."""
        usual: Callable[..., Self] = super().from_pretrained  # type: ignore[misc]
        folder = Path(name) / (settings.get("subfolder") or "")
        if not is_packed(folder / WEIGHTS):
            return usual(name, **settings)
        ours = cast(Any, cls)
        model = ours.from_config(ours.load_config(folder))
        model.load_state_dict(whole(load_state(folder / WEIGHTS)))
        told = settings.get("dtype", settings.get("torch_dtype"))
        made: Self = model.eval() if told in (None, torch.float32) else model.eval().to(told)
        return made


def is_packed(path: Path) -> bool:
    """Whether a safetensors file has weights with eight bits a number; what is no such file has none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as opened:
            return any(key.endswith(SCALE) for key in opened.keys())
    except (SafetensorError, OSError):
        return False


def save_eight_bits(model: torch.nn.Module, folder: Path) -> Path:
    """Write the weights (eight bits a number) and the configuration of a model of diffusers. Returns the folder."""
    from safetensors.torch import save

    cast(Any, model).save_config(folder)
    with atomic_path(folder / WEIGHTS) as partial:
        partial.write_bytes(save(eight_bits(model.state_dict())))
    return folder
