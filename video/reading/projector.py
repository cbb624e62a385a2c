"""PPLLaVA's projector, and the way from its checkpoints' names to ours.

The projector takes the patches of a film and the question, projects the patches to the language model's width and then
pools them, weighted by the question: 32 x 24 x 24 patches -> 1,024 tokens. Public code d5766c8 (arXiv 2411.02327).
It cannot run on today's transformers; this one needs nothing of it.

    state = convert_checkpoint(original)       # raises for what has no place here, naming it
    projector.load_state_dict(state.projector)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from longtake.errors import UserError, shorten
from longtake.kernels.pooling.guided import WeightMode, prompt_guided_pool3d
from longtake.kernels.pooling.windows import Tail, Triple
from longtake.video.reading.guide import ClipHead
from longtake.video.reading.stretch import KEEP, fold_tables
from torch import Tensor, nn

VIDEO_KERNEL: Triple = (2, 3, 3)
IMAGE_KERNEL: Triple = (1, 3, 3)


class PPLLaVAProjector(nn.Module):
    """Patches (B, T, H, W, C) and a question's ids -> tokens (B, n, D) in the order time, row, column.

    guide: the parts of CLIP or SigLIP (`ClipHead`, `SiglipHead`); width: of the language model.
    """

    def __init__(self, guide: ClipHead, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)
        self.guide = guide

    def forward(
        self,
        patches: Tensor,
        ids: Tensor,
        kernel: Triple = VIDEO_KERNEL,
        mode: WeightMode | str = WeightMode.PPLLAVA,
        tail: Tail | str = Tail.ERROR,
    ) -> Tensor:
        """patches: (B, T, H, W, C), for a picture T is its tiles and the kernel `IMAGE_KERNEL`. ids: (B, L)."""
        projected = self.linear_2(F.gelu(self.linear_1(patches)))
        text, mode = self.guide.text(ids), WeightMode(mode)
        pooled = prompt_guided_pool3d(
            projected, kernel=kernel, tail=tail, weight_mode=mode, layout="bthwc",
            logits=self.guide.scores(patches, text) if mode is WeightMode.LOCAL else None,
            weights=self.guide.weights(patches, text) if mode is WeightMode.PPLLAVA else None,
        )  # fmt: skip
        return pooled.flatten(1, 3)


@dataclass
class Converted:
    """A PPLLaVA checkpoint under today's names. vlm: for the transformers model. projector: for `PPLLaVAProjector`."""

    vlm: dict[str, Tensor] = field(default_factory=dict)
    projector: dict[str, Tensor] = field(default_factory=dict)
    adapter: list[str] = field(default_factory=list)  # BT-Adapter's keys
    unknown: list[str] = field(default_factory=list)


_PREFIXES = (
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.linear_", "model.multi_modal_projector.linear_"),
)
_GUIDE = ("text_model.", "visual_ln.", "visual_projection.", "text_projection.", "visual_head.")


def sort_checkpoint(original: Mapping[str, Tensor], keep: int = KEEP) -> Converted:
    """Every key of a PPLLaVA checkpoint under its new name, or in one of the two lists; nothing is dropped.

    The two position tables of a stretched text tower are folded into one: the first `keep` rows of the frozen table.
    """
    found = Converted()
    tables: dict[str, dict[str, Tensor]] = {}
    for key, value in original.items():
        if "btadapter" in key:
            found.adapter.append(key)
        elif key == "image_newline":
            found.vlm["model.image_newline"] = value
        elif new := _guide_key(key):
            base, _, last = new.rpartition(".")
            if last in ("position_embedding", "position_embedding_res"):  # bare parameters: the stretched form
                tables.setdefault(base, {})[last] = value
            else:
                found.projector[new] = value
        elif match := next((pair for pair in _PREFIXES if key.startswith(pair[0])), None):
            found.vlm[match[1] + key.removeprefix(match[0])] = value
            if key.startswith("multi_modal_projector."):
                found.projector[key.removeprefix("multi_modal_projector.")] = value
        else:
            found.unknown.append(key)
    for base, pair in tables.items():
        if set(pair) != {"position_embedding", "position_embedding_res"}:
            found.unknown += [f"{base}.{name}" for name in pair]
            continue
        folded = fold_tables(pair["position_embedding"], pair["position_embedding_res"], keep)
        found.projector[f"{base}.position_embedding.weight"] = folded
    return found


def _guide_key(key: str) -> str | None:
    name = key.removeprefix("multi_modal_projector.")
    if name == key:
        return None
    if name in ("logit_scale", "logit_bias"):
        return f"guide.{name}"
    bare = name.removeprefix("clip_")
    return f"guide.{bare}" if bare != name and bare.startswith(_GUIDE) else None


def convert_checkpoint(original: Mapping[str, Tensor], keep: int = KEEP, without_adapter: bool = False) -> Converted:
    """`sort_checkpoint`, but raises UserError when a key has no place here, naming it.

    without_adapter: load a checkpoint that was trained with BT-Adapter without it, knowing that its answers change.
    """
    found = sort_checkpoint(original, keep)
    if found.unknown:
        raise UserError(f"{len(found.unknown)} keys have no place in PPLLaVA: {shorten(', '.join(found.unknown), 300)}")
    if found.adapter and not without_adapter:
        raise UserError(
            f"the checkpoint has a BT-Adapter ({len(found.adapter)} keys: {shorten(', '.join(found.adapter), 200)}), "
            "which is not built here; without_adapter=True loads the rest, and its answers are then not the original's"
        )
    for name in ("guide.logit_scale", "guide.logit_bias"):
        if name in found.projector:
            found.projector[name] = torch.as_tensor(found.projector[name]).squeeze()
    return found
