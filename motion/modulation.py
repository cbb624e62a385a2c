"""A transformer layer that the condition turns up and down: AdaLN-zero (Peebles and Xie, "Scalable Diffusion Models
with Transformers", arXiv 2212.09748, section 3.2).

Each sublayer sees its normalised input times (1 + scale) plus shift, and adds its output times gate; the six vectors
are a linear function of the condition. All are zero at first, so that an untrained layer passes its input on.
Legend: B rows, K tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ModulatedLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with shift, scale and gate.

    width: D. heads: H, a divisor of D. dropout: of both sublayers' outputs and of the feed-forward's middle, in
    training only.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.modulate = nn.Linear(width, 6 * width)
        self.drop = nn.Dropout(dropout)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """(B, K, D) from tokens (B, K, D) and condition (B, D); hidden: (B, K) True where not to look, or None."""
        moves = self.modulate(F.silu(condition)).unsqueeze(1).chunk(6, -1)
        tokens = tokens + moves[2] * self.attend(_moved(tokens, moves[0], moves[1]), hidden)
        middle = self.drop(F.gelu(self.up(_moved(tokens, moves[3], moves[4]))))
        return tokens + moves[5] * self.drop(self.down(middle))

    def attend(self, tokens: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Self-attention of (B, K, D)."""
        parts = self.queries(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, K, D / H)
        mask = None if hidden is None else ~hidden[:, None, None, :]
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
        return self.drop(self.out(seen.transpose(1, 2).flatten(2)))


def _moved(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:]).to(shift.dtype), 1 + scale)
