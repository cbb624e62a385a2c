"""Longer text for CLIP: Long-CLIP's stretched position table, 77 -> 248 rows (64 -> 196 for SigLIP).

The first `keep` rows stay as they are, the others move `ratio` apart with a straight line between them; behind the
last row the last slope goes on. Method: Long-CLIP (arXiv 2403.15378; public code 3966af9). A question of at most
`keep` + 1 tokens means exactly what it meant before. Longer ones run, but their meaning needs training (see
`TwoTables`): stretching alone is no substitute.

    table = stretch_positions(clip.text_model.embeddings.position_embedding.weight)   # (77, D) -> (248, D)
    stretch_text_tower(clip)                                                          # in place, saved with the model
"""

from typing import Any

import torch
from longtake.errors import UserError
from torch import Tensor, nn

KEEP, RATIO = 20, 4


def stretch_positions(table: Tensor, keep: int = KEEP, ratio: int = RATIO) -> Tensor:
    """Position table (L, D) -> (keep + ratio * (L - keep), D), same dtype; differentiable.

    Rows 0 .. keep - 1 and every `ratio`-th row from `keep` on are the given rows bit for bit. Raises ValueError for a
    table that is no matrix, ratio < 1, or fewer than two rows behind `keep`.
    """
    if table.dim() != 2 or ratio < 1 or keep < 0 or len(table) - keep < 2:
        raise ValueError(f"needs (L, D) with L >= keep + 2 and ratio >= 1, given {tuple(table.shape)}, {keep}, {ratio}")
    tail = table[keep:]
    after = torch.cat([tail[1:], 2 * tail[-1:] - tail[-2:-1]])
    part = torch.arange(ratio, dtype=table.dtype, device=table.device)[None, :, None] / ratio
    between = torch.lerp(tail[:, None], after[:, None], part)
    return torch.cat([table[:keep], between.flatten(0, 1)])


def fold_tables(frozen: Tensor, learned: Tensor, keep: int = KEEP) -> Tensor:
    """The one table (L, D) that two of Long-CLIP's mean: rows before `keep` of the frozen, then of the learned."""
    if frozen.shape != learned.shape or len(frozen) <= keep:
        raise ValueError(
            f"two tables of one shape with more than {keep} rows, {frozen.shape} and {learned.shape} given"
        )
    return torch.cat([frozen[:keep], learned[keep:]])


class TwoTables(nn.Module):
    """A position embedding for training a stretched tower: gradients reach the rows from `keep` on and no others.

    Takes an `nn.Embedding`'s place; `folded()` is the table to save. position_ids: int64, any shape -> (..., D).
    """

    def __init__(self, table: Tensor, keep: int = KEEP) -> None:
        super().__init__()
        self.keep = keep
        self.position_embedding = nn.Parameter(table.detach().clone(), requires_grad=False)
        self.position_embedding_res = nn.Parameter(table.detach().clone())

    @property
    def weight(self) -> Tensor:
        return self.folded()

    def folded(self) -> Tensor:
        return fold_tables(self.position_embedding, self.position_embedding_res, self.keep)

    def forward(self, position_ids: Tensor) -> Tensor:
        return nn.functional.embedding(position_ids, self.folded())


def stretch_text_tower(model: Any, tokenizer: Any = None, keep: int = KEEP, ratio: int = RATIO) -> int:
    """Stretch the text tower of a transformers CLIP or SigLIP model in place; returns how many tokens it takes now.

    model: CLIPModel, CLIPTextModel, SiglipModel or one that has such a `text_model`. Table, position ids and the
    configuration change, so `save_pretrained` and `from_pretrained` keep the length. tokenizer: its length is set too.
    Raises UserError for a model without such a tower, and for one that has been stretched before.
    """
    tower = getattr(model, "text_model", model)
    embeddings: Any = getattr(tower, "embeddings", None)
    if not isinstance(getattr(embeddings, "position_embedding", None), nn.Embedding):
        raise UserError(f"{type(model).__name__} has no CLIP or SigLIP text tower to stretch")
    old = embeddings.position_embedding
    rows = keep + ratio * (len(old.weight) - keep)
    if len(old.weight) not in (64, 77) and len(old.weight) > 100:
        raise UserError(f"the text tower takes {len(old.weight)} tokens already; only 77 or 64 are stretched")
    table = stretch_positions(old.weight.detach(), keep, ratio)
    new = nn.Embedding(rows, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
    new.weight = nn.Parameter(table, requires_grad=old.weight.requires_grad)
    embeddings.position_embedding = new
    embeddings.position_ids = torch.arange(rows, device=old.weight.device).expand(1, -1)
    for config in {id(c): c for c in (tower.config, getattr(model.config, "text_config", tower.config))}.values():
        config.max_position_embeddings = rows
    if tokenizer is not None:
        tokenizer.model_max_length = rows
    return rows
