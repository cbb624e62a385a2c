"""Prefill of a long film over ranks: each rank reads a piece of the prompt and holds its keys and values.

    with pool(model, processor, budget="200000 tokens"):
        read = prefill_over_ranks(model, group, **inputs)    # the same inputs on every rank
    read.logits                                              # (B, V) of the next token, on every rank

The tower runs on every rank; from the language model's first layer on, a rank has its piece of the tokens alone, and
its attention goes through `longtake.kernels.attention`, exact over any number of ranks. Memory for activations, keys
and values falls with the number of ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from longtake.errors import UserError
from longtake.kernels import Causal, Partition, Transport, attention, make_plan
from longtake.kernels.ranks.mesh import as_transport
from longtake.video.reading.families import family_of
from torch import Tensor

NAME = "longtake_ranks"


@dataclass(frozen=True)
class Read:
    """logits: (B, V) of the next token. piece: positions that this rank holds. cache: their keys and values."""

    logits: Tensor
    piece: range
    cache: Any


@dataclass
class _Cut:
    """What the language model of this rank must know while it reads."""

    mesh: Transport
    plan: Any = None
    piece: range = range(0)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
        """transformers' attention interface: (B, heads, n, d) of this rank -> (B, n, heads, d), None."""
        if given.get("sliding_window"):
            raise UserError("a language model with a sliding window is not read over ranks")
        scale = given.get("scaling")
        out = attention(query, key, value, mesh=self.mesh, plan=self.plan, scale=scale)
        return out.transpose(1, 2).contiguous(), None

    def before(self, tower: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Of all that the language model is given, this rank's piece."""
        embeds = given["inputs_embeds"]
        total = embeds.shape[1]
        if total < self.mesh.world:
            raise UserError(f"{total} tokens cannot be read by {self.mesh.world} ranks")
        partition = Partition.even(total, self.mesh.world)
        self.piece = partition.range(self.mesh.rank)
        config = tower.config
        self.plan = make_plan(
            list(partition.sizes), Causal(), heads=config.num_attention_heads, kv_heads=config.num_key_value_heads
        )
        cut = slice(self.piece.start, self.piece.stop)
        places = given.get("position_ids")
        if places is None:
            places = torch.arange(total, device=embeds.device).expand(embeds.shape[0], -1)
        made = given | {"inputs_embeds": embeds[:, cut], "position_ids": places[..., cut], "attention_mask": None}
        visual = given.get("visual_pos_masks")
        if visual is not None:  # features that go deeper in follow the tokens that they belong to
            within = torch.zeros_like(visual)
            within[:, cut] = True
            kept = within[visual]
            made["visual_pos_masks"] = visual[:, cut]
            made["deepstack_visual_embeds"] = [deep[kept] for deep in given["deepstack_visual_embeds"]]
        return args, made


@contextmanager
def _cut_attention(tower: Any, cut: _Cut) -> Iterator[None]:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, cut.attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    config = tower.config
    former = config._attn_implementation_internal
    hook = tower.register_forward_pre_hook(cut.before, with_kwargs=True)
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = former
        hook.remove()


def prefill_over_ranks(model: Any, mesh: Any, **inputs: Any) -> Read:
    """The next token's logits after a prompt with films, read by all ranks of `mesh` together.

    model: of a family in `families.FAMILIES`, the same on every rank; within `pool` its films are pooled. mesh: None
    (one rank), a process group, a DeviceMesh of one dimension, or a Transport. inputs: of the model, whole and alike
    on every rank.
    Raises UserError for another family, for prompts with padding, and for fewer tokens than ranks.
    """
    family_of(model)
    mask = inputs.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise UserError("prompts with padding are not read over ranks; give prompts of one length, or one at a time")
    transport, degree = as_transport(mesh)
    if degree is not None:
        raise UserError("prefill over ranks takes a mesh of one dimension")
    inner = model.base_model
    tower = getattr(inner, "language_model", None) or inner.text_model
    cut = _Cut(transport)
    with torch.no_grad(), _cut_attention(tower, cut):
        found = model(**inputs, use_cache=True, logits_to_keep=1)
    logits = found.logits[:, -1].contiguous()
    if transport.rank != transport.world - 1:  # the last rank read the last token
        logits = torch.zeros_like(logits)
    if transport.world > 1:
        logits = transport.start_sum("logits", logits).wait()
    return Read(logits, cut.piece, found.cache)
