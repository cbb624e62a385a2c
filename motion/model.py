"""MDM, the motion diffusion model that predicts the clean motion (Tevet et al., arXiv 2209.14916), in both its forms.

encoder  one condition token (time + text) before the frames, a post-norm transformer encoder (the paper's net);
         with ``condition_tokens`` 2 time and text are tokens of their own, with ``modulated`` they also turn every
         layer up and down (``modulation``).
decoder  frames attend to text tokens; with ``prefix_frames`` it continues given frames, as DiP does
         (newer public MDM code): it sees the prefix before the frames and returns the frames alone.

Frames lie on axis 1 and features last: (B, T, J), where the public code has (B, J, 1, T).
Legend: B rows, T frames, J features, D width, K text tokens, E text features, C condition tokens (1 or 2).

    model = MDM(features=263, text_width=384)
    clean = model(noisy, torch.tensor([37]), text)        # (B, T, J)
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from longtake.motion.modulation import ModulatedLayer
from longtake.packed import EightBits
from torch import nn

HEADS = 4
FEEDFORWARD = 1024
FLAG_WIDTH = 4  # numbers that stand for "this frame is a transition" in the BABEL nets


class Padding(StrEnum):
    """What frames beyond a row's length do in attention."""

    ATTEND = "attend"  # they take part, as in the public checkpoints' training: the result depends on them
    MASK = "mask"  # they are hidden from the others: the result does not depend on them


class Form(StrEnum):
    """Which transformer."""

    ENCODER = "encoder"
    DECODER = "decoder"


class TextPolicy(StrEnum):
    """How the decoder form joins time and text."""

    ADD = "add"  # the time is added to each text token
    CONCAT = "concat"  # the time is a token before them


class MDM(EightBits, ModelMixin, ConfigMixin):
    """Motion denoiser: (noisy motion, timestep, text) -> clean motion.

    features: J. width: D. text_width: E, of any text encoder. dropout: in training only.
    padding: see ``Padding``; it matters only when ``lengths`` are given.
    transition_embedding: whether frames carry a flag "transition" (BABEL nets): ``transition`` is then an input.
    time_token: decoder form: whether the time is also a token before the frames.
    prefix_frames: decoder form: frames of known motion before those to make; 0 for none.
    positions: most tokens and timesteps that there are positions for.
    modulated: encoder form: pre-norm layers with AdaLN-zero of time + text, and a norm before the head.
    condition_tokens: encoder form: 1, time + text before the frames, or 2, time and text one after the other.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        features: int = 263,
        width: int = 512,
        layers: int = 8,
        heads: int = HEADS,
        feedforward: int = FEEDFORWARD,
        dropout: float = 0.1,
        text_width: int = 512,
        form: str = "encoder",
        padding: str = "attend",
        transition_embedding: bool = False,
        text_policy: str = "add",
        time_token: bool = False,
        prefix_frames: int = 0,
        positions: int = 5000,
        modulated: bool = False,
        condition_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.form, self.padding, self.text_policy = Form(form), Padding(padding), TextPolicy(text_policy)
        if self.form is Form.ENCODER and (prefix_frames or time_token or self.text_policy is not TextPolicy.ADD):
            raise ValueError("prefix_frames, time_token and text_policy belong to the decoder form")
        if self.form is Form.DECODER and transition_embedding:
            raise ValueError("the transition embedding belongs to the encoder form")
        if self.form is Form.DECODER and (modulated or condition_tokens != 1):
            raise ValueError("modulated and condition_tokens belong to the encoder form")
        if condition_tokens not in (1, 2):
            raise ValueError(f"condition_tokens is 1 (time + text) or 2 (time, text); given {condition_tokens}")
        self.embed_frames = nn.Linear(features + FLAG_WIDTH * transition_embedding, width)
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_text = nn.Linear(text_width, width)
        self.flag = nn.Embedding(2, FLAG_WIDTH) if transition_embedding else None
        shape: dict[str, Any] = {"d_model": width, "nhead": heads, "dim_feedforward": feedforward, "dropout": dropout}
        if modulated:
            self.blocks = nn.ModuleList(ModulatedLayer(width, heads, feedforward, dropout) for _ in range(layers))
        elif self.form is Form.ENCODER:
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(**shape, activation="gelu", batch_first=True) for _ in range(layers)
            )
        else:
            self.blocks = nn.ModuleList(
                nn.TransformerDecoderLayer(**shape, activation="gelu", batch_first=True) for _ in range(layers)
            )
        self.norm = nn.LayerNorm(width) if modulated else None
        self.head = nn.Linear(width, features)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("places", sinusoids(positions, width), persistent=False)

    # ------------------------------------------------------------------------------------------------- the way through

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        text: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
        transition: torch.Tensor | None = None,
        prefix: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The clean motion (B, T, J) that the net sees in a noisy one.

        sample: (B, T, J). timestep: (B,) or a number, 0..steps-1. text: (B, E), or (B, K, E) for the decoder form;
        None is "no text": zeros go through the text layer, its bias stays. lengths: (B,) valid frames of each row,
        needed by padding "mask" when rows differ; padding "attend" sees all T frames whatever they are.
        transition: (B, T) 0 or 1. prefix: (B, prefix_frames, J), clean. text_mask: (B, K), True where a token is
        padding.
        Raises ValueError for inputs that do not fit the configuration.
        """
        time = self.embed_time(timestep, len(sample))
        hidden = self.hidden_frames(sample, lengths)
        if self.form is Form.ENCODER:
            _refuse(prefix, "a prefix", "decoder")
            _refuse(text_mask, "a text_mask", "decoder")
            tokens = self.embed(sample, time, text, transition)
            condition = self.condition(time, text)
            return self.read(self.run(tokens, 0, len(self.blocks), hidden, condition))
        _refuse(transition, "transition flags", "encoder")
        return self._decode(sample, time, text, prefix, text_mask, hidden)

    def embed_time(self, timestep: torch.Tensor | int, rows: int) -> torch.Tensor:
        """(B, D) from timesteps (B,) or a number."""
        steps = torch.as_tensor(timestep, device=self.places.device).reshape(-1).expand(rows)
        return self.time_mlp(self.places[steps].to(self.head.weight.dtype))

    def embed(
        self,
        sample: torch.Tensor,
        time: torch.Tensor,
        text: torch.Tensor | None,
        transition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encoder form: the tokens (B, C + T, D), the condition's first, before the first layer."""
        if text is not None and text.ndim != 2:
            raise ValueError(f"the encoder form takes one text vector a row, (B, E); got {tuple(text.shape)}")
        words = self._text(text, time)
        if self.config["condition_tokens"] == 1:
            lead = (time + words).unsqueeze(1)
        else:
            lead = torch.stack([time, words], 1)
        if self.flag is None:
            _refuse(transition, "transition flags", "encoder with transition_embedding")
        else:
            if transition is None:
                transition = torch.zeros(sample.shape[:2], dtype=torch.long, device=sample.device)
            sample = torch.cat([sample, self.flag(transition.long()).to(sample.dtype)], -1)
        tokens = torch.cat([lead, self.embed_frames(sample)], 1)
        if self.norm is not None:
            tokens = tokens.to(self.head.weight.dtype)  # what the layers add to keeps its digits under autocast
        return self._place(tokens)

    def condition(self, time: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor | None:
        """What modulates the layers, (B, D), of the time's embedding (B, D) and texts (B, E); None for other nets."""
        return time + self._text(text, time) if self.norm is not None else None

    def run(
        self,
        tokens: torch.Tensor,
        first: int,
        last: int,
        hidden: torch.Tensor | None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encoder form: layers first..last-1 on tokens (B, C + T, D); hidden: (B, C + T) True where not to look;
        condition: what ``condition`` gave. ValueError when a modulated net is given none."""
        if self.norm is not None and condition is None:
            raise ValueError("the layers of a modulated net need what condition() gives")
        for layer in self.blocks[first:last]:
            if self.norm is not None:
                tokens = layer(tokens, condition, hidden)
            else:
                tokens = layer(tokens, src_key_padding_mask=hidden)
        return tokens

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Motion (B, T, J) from the last layer's tokens (B, C + T, D)."""
        frames = tokens[:, self.config["condition_tokens"] :]
        if self.norm is None:
            return self.head(frames)
        with torch.autocast(frames.device.type, enabled=False):  # bones are to be right to a millimetre
            return self.head(self.norm(frames.to(self.head.weight.dtype)))

    def hidden_frames(self, sample: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        """(B, tokens) True on frames beyond each row's length, for padding "mask"; None when nothing is hidden."""
        if lengths is None or self.padding is Padding.ATTEND:
            return None
        if self.form is Form.ENCODER:
            lead = self.config["condition_tokens"]
        else:
            lead = self.config.prefix_frames + int(self.config.time_token)
        place = torch.arange(lead + sample.shape[1], device=sample.device)
        return place >= lead + torch.as_tensor(lengths, device=sample.device).unsqueeze(1)

    def _decode(
        self,
        sample: torch.Tensor,
        time: torch.Tensor,
        text: torch.Tensor | None,
        prefix: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        wanted = self.config.prefix_frames
        if wanted != (0 if prefix is None else prefix.shape[1]):
            given = "none" if prefix is None else f"{prefix.shape[1]} frames"
            raise ValueError(f"this net continues a prefix of {wanted} frames; given {given}")
        if text is not None and text.ndim == 2:
            text = text.unsqueeze(1)
        words = self._text(text, time.unsqueeze(1))
        if self.text_policy is TextPolicy.ADD:
            memory = words + time.unsqueeze(1)
        else:
            memory = torch.cat([time.unsqueeze(1), words], 1)
            if text_mask is not None:
                text_mask = torch.nn.functional.pad(text_mask, (1, 0), value=False)
        frames = sample if prefix is None else torch.cat([prefix.to(sample.dtype), sample], 1)
        tokens = self.embed_frames(frames)
        if self.config.time_token:
            tokens = torch.cat([time.unsqueeze(1), tokens], 1)
        tokens = self._place(tokens)
        for layer in self.blocks:
            tokens = layer(tokens, memory, tgt_key_padding_mask=hidden, memory_key_padding_mask=text_mask)
        return self.head(tokens[:, -sample.shape[1] :])

    def _text(self, text: torch.Tensor | None, time: torch.Tensor) -> torch.Tensor:
        if text is None:
            text = time.new_zeros(*time.shape[:-1], self.embed_text.in_features)
        return self.embed_text(text.to(time.dtype))

    def _place(self, tokens: torch.Tensor) -> torch.Tensor:
        count = tokens.shape[1]
        if count > len(self.places):
            raise ValueError(f"{count} tokens are more than the {len(self.places)} positions of this net")
        return self.drop(tokens + self.places[:count].to(tokens.dtype))


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """(positions, width) float32: sin in even columns, cos in odd ones, frequencies 10000^(-2k/width)."""
    place = torch.arange(positions, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    table = torch.zeros(positions, width)
    table[:, 0::2] = torch.sin(place * frequency)
    table[:, 1::2] = torch.cos(place * frequency[: width // 2])
    return table


def _refuse(value: object, what: str, form: str) -> None:
    if value is not None:
        raise ValueError(f"{what} is read by the {form} form only")
