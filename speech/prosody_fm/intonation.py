"""ProsodyFM's terminal intonation: how the pitch of phrase-final words becomes a vector that the text encoder adds.

A word's pitch goes through an LSTM to a query; the query attends to a bank of learned tokens; the weights of that
attention say which intonation it is, and may be given by hand. The public code has this much. After the paper, and not
in the public code: the text-pitch aligner, which makes a query from text, and the align attention, which picks among
the intonations of a reference. Module names are those of public checkpoints (``encoder.gst``).
Shape legend: B texts, W words of each, S frames of pitch, C channels, K tokens, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from longtake.errors import UserError
from longtake.speech.prosody_fm.layers import ContextEncoder, lengths_mask
from torch import nn


class ReferenceEncoder(nn.Module):
    """Pitch of words (M, S), lengths (M,) -> queries (M, C): the LSTM's state after each word's last value."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, channels)

    def forward(self, pitch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # forward in time only, so the state at a word's end is the same with and without what follows it
        with torch.autocast(pitch.device.type, enabled=False):
            pitch = pitch.float()[..., None]
            states = self.lstm(pitch)[0] if pitch.device.type == "cpu" else self._states(pitch)
        last = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, states.shape[-1])
        return self.fc(states.gather(1, last)[:, 0])

    def _states(self, x: torch.Tensor) -> torch.Tensor:
        """What the LSTM gives for (M, S, 1), step by step: plain operators, which a GPU can record."""
        net: Any = self.lstm
        inputs = x @ net.weight_ih_l0.T + (net.bias_ih_l0 + net.bias_hh_l0)
        state = memory = inputs.new_zeros(len(x), net.hidden_size)
        found = []
        for step in inputs.unbind(1):
            inner, forget, new, out = (step + state @ net.weight_hh_l0.T).chunk(4, -1)
            memory = forget.sigmoid() * memory + inner.sigmoid() * new.tanh()
            state = out.sigmoid() * memory.tanh()
            found.append(state)
        return torch.stack(found, 1)


class BankAttention(nn.Module):
    """Queries (..., C) over tokens (K, c) -> (..., C) and weights (..., H, K); heads of c channels, no biases."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.W_query = nn.Linear(channels, channels, bias=False)
        self.W_key = nn.Linear(width, channels, bias=False)
        self.W_value = nn.Linear(width, channels, bias=False)

    def forward(
        self, query: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads = query.shape[-1] // self.width
        key, value = (net(tokens).reshape(-1, heads, self.width) for net in (self.W_key, self.W_value))
        asked = self.W_query(query).reshape(*query.shape[:-1], heads, self.width)
        if weights is None:
            weights = (torch.einsum("...hc,khc->...hk", asked, key) / math.sqrt(self.width)).float().softmax(-1)
        return torch.einsum("...hk,khc->...hc", weights.to(value.dtype), value).flatten(-2), weights


class Bank(nn.Module):
    """The learned tokens and the attention to them."""

    def __init__(self, tokens: int, width: int, channels: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(tokens, width) * 0.5)
        self.attention = BankAttention(channels, width)

    def forward(self, query: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(query, torch.tanh(self.embed), weights)


class Intonation(nn.Module):
    """Terminal intonation encoder: pitch of words -> vectors (M, C), with the bank's weights (M, H, K)."""

    def __init__(self, channels: int, hidden: int, tokens: int, width: int) -> None:
        super().__init__()
        if channels % width:
            raise UserError(f"the bank's tokens of {width} channels must divide the text's {channels}")
        self.ref_encoder = ReferenceEncoder(hidden, channels)
        self.stl = Bank(tokens, width, channels)

    @property
    def tokens(self) -> int:
        return len(self.stl.embed)

    @property
    def heads(self) -> int:
        return self.stl.attention.W_query.out_features // self.stl.attention.width

    def query(self, pitch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Queries (..., C) of words' pitch (..., S) with lengths (...)."""
        found = self.ref_encoder(pitch.flatten(0, -2), lengths.flatten())
        return found.reshape(*lengths.shape, -1)

    def forward(self, pitch: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.stl(self.query(pitch, lengths))

    def by_hand(self, weights: torch.Tensor) -> torch.Tensor:
        """Vectors (..., C) for weights (..., K) of the tokens, or (..., H, K) a head, that sum to 1.

        Raises UserError for other sums or numbers of tokens.
        """
        if weights.shape[-1] != self.tokens:
            raise UserError(f"the bank has {self.tokens} intonation tokens; given weights for {weights.shape[-1]}")
        if not torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-4) or bool(
            (weights < 0).any()
        ):
            raise UserError("weights of intonation tokens must be 0 or more and sum to 1")
        if weights.ndim < 2 or weights.shape[-2] != self.heads:
            weights = weights[..., None, :].expand(*weights.shape[:-1], self.heads, self.tokens)
        blank = weights.new_zeros(*weights.shape[:-2], self.stl.attention.W_query.in_features)
        return self.stl(blank, weights)[0]


class TextPitchAligner(nn.Module):
    """After the paper: the query of a phrase-final word from text, trained with an L2 loss to the one of its pitch.

    The paper reads the states of BERT (width 768): give them as ``states``. A model that brings no language model
    reads its symbols through a small encoder of its own, ``context``; width: of its states.
    """

    def __init__(self, channels: int, width: int, symbols: int = 0) -> None:
        super().__init__()
        self.context = ContextEncoder(symbols, width) if symbols else None
        self.fc = nn.Linear(width, channels)

    def forward(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Queries (B, W, C) from states (B, T, width) and the words' tokens, places (B, W, T), 1 where a token is."""
        share = places / places.sum(-1, keepdim=True).clamp_min(1)
        return self.fc(torch.einsum("bwt,btc->bwc", share.to(states.dtype), states))

    def states(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """States (B, T, width) of symbols (B, T). Raises UserError for an aligner that needs a language model's."""
        if self.context is None:
            raise UserError("this text-pitch aligner reads the states of a language model: give them")
        return self.context(ids, lengths_mask(lengths, ids.shape[1]))


def align_attention(query: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """After the paper: intonations (..., C) for text queries (..., C), from those of a reference's words (R, C)."""
    weights = (query @ reference.T / math.sqrt(query.shape[-1])).softmax(-1)
    return weights @ reference


def word_places(finals: torch.Tensor, length: int, *, blanks: bool) -> torch.Tensor:
    """Where the words are, (B, W, length) float32 of 0 and 1, from half-open ranges (B, W, 2); 0, 0 is no word.

    blanks: only every second place, from a range's first on, is a symbol.
    """
    steps = torch.arange(length, device=finals.device)
    start, stop = finals[..., :1], finals[..., 1:]
    inside = (steps >= start) & (steps < stop)
    if blanks:
        inside &= (steps - start) % 2 == 0
    return inside.float()
