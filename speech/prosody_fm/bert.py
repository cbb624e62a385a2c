"""States of phrase-final words from a language model, as the paper's text-pitch aligner reads them (BERT, width 768).

states = word_states(BertModel.from_pretrained(path), tokenizer, "was that true".split(), [2])     # (1, 768)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from longtake.errors import UserError


@torch.no_grad()
def word_states(model: Any, tokenizer: Any, words: Sequence[str], finals: Sequence[int]) -> torch.Tensor:
    """Mean of the last hidden states of each final word's tokens, (W, width) float32 on the model's device.

    model, tokenizer: of transformers, an encoder. finals: which words. Raises UserError for a word that is not there,
    one without tokens, and a text that is longer than the model reads.
    """
    numbers: list[int] = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    spans = []
    for word in words:
        pieces = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
        spans.append((len(numbers), len(numbers) + len(pieces)))
        numbers += pieces
    if tokenizer.sep_token_id is not None:
        numbers.append(tokenizer.sep_token_id)
    most = getattr(model.config, "max_position_embeddings", len(numbers))
    if len(numbers) > most:
        raise UserError(f"the language model reads {most} tokens; the text has {len(numbers)}: give shorter sentences")
    for final in finals:
        if not 0 <= final < len(words):
            raise UserError(f"there is no word {final}: the text has {len(words)}")
        if spans[final][0] == spans[final][1]:
            raise UserError(f"the language model has no token for {words[final]!r}")
    device = next(model.parameters()).device
    states = model.eval()(torch.tensor([numbers], device=device)).last_hidden_state[0].float()
    return torch.stack([states[slice(*spans[final])].mean(0) for final in finals])
