"""Text that changes along a video, inside the transformers: by frame, or as several prompts side by side.

Cross-attention hears prompts frame by frame; joint models take all prompts into one softmax with a bias by frame
(`attend.py`), and what refines or pools text before that is run for each prompt apart.

Legend: B batch, T frames here, L text rows of a prompt, P prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from longtake.video.dit.attend import Rows
from longtake.video.piece import Patches, forward_of
from torch import Tensor

if TYPE_CHECKING:
    from longtake.video.dit.adapter import Call

Given = dict[str, Any]


def install_texts(model: Any, call: Call, patches: Patches) -> None:
    """Texts that stand side by side are refined apart: each as if it were the only one."""
    if call.record.name in ("HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel"):
        patches.forward(model.context_embedder, _refined(model.context_embedder, call))
    if call.record.name == "Kandinsky5Transformer3DModel":
        for block in model.text_transformer_blocks:
            patches.forward(block, _encoded(block, call))
    if call.record.name == "MochiTransformer3DModel":
        patches.forward(model.time_embed, _pooled(model.time_embed, call))


def _apart(x: Tensor, count: int) -> Tensor:
    """(B, P * L, ...) as (B * P, L, ...)."""
    return x.unflatten(1, (count, -1)).flatten(0, 1)


def _refined(embedder: Any, call: Call) -> Callable[..., Any]:
    stock = forward_of(embedder)

    def forward(hidden_states: Tensor, timestep: Tensor, attention_mask: Tensor | None = None) -> Any:
        if call.prompts is None:
            return stock(hidden_states, timestep, attention_mask)
        count = call.prompts.count
        mask = None if attention_mask is None else _apart(attention_mask, count)
        out = stock(_apart(hidden_states, count), timestep.repeat_interleave(count), mask)
        return out.unflatten(0, (-1, count)).flatten(1, 2)

    return forward


def _encoded(block: Any, call: Call) -> Callable[..., Any]:
    stock = forward_of(block)

    def forward(x: Tensor, time_embed: Tensor, rope: Tensor) -> Any:
        if call.prompts is None:
            return stock(x, time_embed, rope)
        made, start = [], 0
        for length in call.texts:
            rows = slice(start, start + length)
            made.append(stock(x[:, rows], time_embed, rope[:, rows]))
            start += length
        return torch.cat(made, 1)

    return forward


def _pooled(embedder: Any, call: Call) -> Callable[..., Any]:
    """Mochi pools its text for the modulation: over the real tokens of all prompts."""
    stock = forward_of(embedder)

    def forward(timestep: Tensor, states: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = mask if call.text_mask is None else call.text_mask.to(mask.dtype)
        return stock(timestep, states, mask, *args, **kwargs)

    return forward


def sorted_rows(call: Call, given: Given) -> tuple[Tensor, Tensor, Given]:
    """Where HunyuanVideo 1.5 lays the rows of texts that stand side by side, by prompt: (B, P * L), their mask, and the
    arguments of the call.

    It lays valid rows first: those of an image, of its second encoder, of its first one; then the others in the same
    order. L is the rows of both encoders of a prompt and of an image, which each prompt has for itself: an image row
    sees the text beside it and the frames that hear that text.
    """
    assert call.prompts is not None
    count, image = call.prompts.count, given["image_embeds"]
    first, second = given["encoder_attention_mask"].bool(), given["encoder_attention_mask_2"].bool()
    if first.shape[1] % count or second.shape[1] % count:
        raise UserError(f"{count} prompts need texts of one length from both encoders, side by side")
    shown = bool(image.any())
    if shown:
        image = image.repeat(1, count, 1)
    valid = second.sum(1, keepdim=True), first.sum(1, keepdim=True)
    start = torch.full_like(valid[0], image.shape[1] if shown else 0)
    padded = valid[0] + valid[1] + image.shape[1]

    def places(mask: Tensor, start: Tensor, behind: Tensor) -> Tensor:
        own, other = mask.long().cumsum(1) - 1, (~mask).long().cumsum(1) - 1
        return torch.where(mask, start + own, behind + other)

    laid = [places(second, start, padded), places(first, start + valid[0], padded + second.shape[1] - valid[0])]
    masks = [second, first]
    if shown:
        laid.append(torch.arange(image.shape[1], device=first.device).expand(len(first), -1))
        masks.append(torch.ones_like(laid[2], dtype=torch.bool))

    def by_prompt(parts: list[Tensor]) -> Tensor:
        return torch.cat(
            [x for of_prompt in zip(*(p.chunk(count, 1) for p in parts), strict=True) for x in of_prompt], 1
        )

    return by_prompt(laid), by_prompt(masks), {**given, "image_embeds": image}


def picked(x: Tensor, laid: Tensor) -> Tensor:
    """Rows (B, H, P * L, D) by prompt out of rows (B, H, rows, D) as they are laid."""
    return x.gather(2, _wide(laid, x))


def put_back(x: Tensor, laid: Tensor, rows: int) -> Tensor:
    """The way back; rows that no prompt has are zeros."""
    out = x.new_zeros((*x.shape[:2], rows, x.shape[3]))
    return out.scatter(2, _wide(laid, x), x)


def _wide(laid: Tensor, x: Tensor) -> Tensor:
    return laid[:, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3])


def load_text(model: Any, call: Call) -> None:
    """Text states by frame (`Handle.set_text`), through the model's text projection."""
    embedder = getattr(getattr(model, "condition_embedder", None), "text_embedder", None)
    if embedder is None:
        raise UserError(f"{call.record.name} takes no text by frame: give prompts with set_prompts")
    call.piece.load_text()
    assert call.piece.text is not None
    call.piece.text = embedder(call.piece.text)


def heard(layer: Any, call: Call, stream: str = "video") -> Callable[..., Any]:
    """Cross-attention in which each frame hears its own text.

    Prompts: frames that hear one prompt alone are called with it; in a cross-fade the outputs for two prompts are
    added with the frame's weights, which is what a mixture of two attentions is.
    """
    stock = forward_of(layer)
    names = [name for name in inspect.signature(type(layer).forward).parameters if name != "self"]

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if call.piece.text is not None:
            return _by_frame(stock, layer, call, given)
        if call.prompts is None:
            return stock(*args, **kwargs)
        return _by_prompt(stock, call, given, stream)

    return forward


def _by_frame(stock: Callable[..., Any], layer: Any, call: Call, given: Given) -> Tensor:
    """Frames move to the batch for the call; `piece.text` is (B * T, L, C)."""
    if getattr(layer, "add_k_proj", None) is not None:
        raise UserError(
            "this model mixes image states into the text: text by frame is not available; give prompts with set_prompts"
        )
    hidden = given["hidden_states"]
    folded = hidden.unflatten(1, (call.piece.frames, -1)).flatten(0, 1)
    out = stock(**{**given, "hidden_states": folded, "encoder_hidden_states": call.piece.text})
    return out.unflatten(0, (call.piece.batch, -1)).flatten(1, 2)


def _by_prompt(stock: Callable[..., Any], call: Call, given: Given, stream: str) -> Tensor:
    prompts, piece = call.prompts, call.piece
    assert prompts is not None
    hidden, text = given["hidden_states"], given["encoder_hidden_states"]
    mask = given.get("attention_mask")
    lead = text.shape[1] - sum(call.texts)  # image states stand before the texts
    span = call.time.span
    lie = Rows.even(piece.total, piece.tokens) if call.sound is None else call.sound.rows[stream]
    counts = torch.tensor(lie.counts(span))
    if int(counts.sum()) != hidden.shape[1]:  # a dummy token of a rank without any
        return stock(**given)
    starts = counts.cumsum(0) - counts
    weights = prompts.weights[span.start : span.stop]
    out: Tensor | None = None
    for number in range(prompts.count):
        heard = weights[:, number].nonzero().flatten().tolist()
        if not heard:
            continue
        a = lead + sum(call.texts[:number])
        b = a + call.texts[number]
        own = torch.cat([text[:, :lead], text[:, a:b]], 1)
        rows = torch.cat([torch.arange(int(starts[frame]), int(starts[frame] + counts[frame])) for frame in heard])
        if not len(rows):
            continue
        rows = rows.to(hidden.device)
        asked = {**given, "hidden_states": hidden.index_select(1, rows), "encoder_hidden_states": own}
        if mask is not None:
            asked["attention_mask"] = torch.cat([mask[..., :lead], mask[..., a:b]], -1)
        part = stock(**asked)
        if out is None:
            out = part.new_zeros((part.shape[0], hidden.shape[1], part.shape[2]))
        share = weights[heard, number].repeat_interleave(counts[heard]).to(part.device, part.dtype)
        out.index_add_(1, rows, part * share[:, None])
    assert out is not None
    return out
