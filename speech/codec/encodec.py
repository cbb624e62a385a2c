"""EnCodec (Defossez et al., arXiv 2210.13438) by transformers' class, with merged codes and an exact streaming decoder.

The class is loaded from a user's folder or made by the caller; nothing is downloaded.

    codec = Encodec(EncodecModel.from_pretrained(folder))
    codes = codec.encode(wave)                      # wave (B, 1, N) at 24 kHz -> (B, 8, T) at 75 frames a second
    stream = codec.stream()
    pcm = [stream.push(part) for part in codes.split(25, -1)] + [stream.flush()]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.speech.codec import quantiser
from longtake.speech.codec.contract import CodeStream
from torch import nn


class Encodec:
    """A ``Codec`` around ``transformers.EncodecModel`` (24 kHz mono: causal, no normalisation, no chunks).

    layers: codebooks used, 8 at 6 kbps. merge: of each layer. Raises UserError for a model that works in chunks or
    normalises loudness, whose codes cannot be cut and joined, and for one without codebooks.
    """

    def __init__(self, model: Any, layers: int = 8, merge: tuple[int, ...] = quantiser.MERGE) -> None:
        config = model.config
        if config.normalize or config.chunk_length_s is not None or config.audio_channels != 1:
            raise UserError(
                "only the 24 kHz mono EnCodec is served: it neither normalises loudness nor works in chunks"
            )
        self.codebooks = [layer.codebook.embed for layer in model.quantizer.layers[:layers]]
        if len(self.codebooks) < layers:
            raise UserError(f"this EnCodec has {len(self.codebooks)} codebooks, {layers} were asked for")
        if not any(bool(table.any()) for table in self.codebooks):
            raise UserError("this EnCodec has empty codebooks: it was made without weights; load a trained one")
        self.model, self.layers = model.eval(), layers
        self.merge = quantiser.check_merge(merge, layers)
        self.sample_rate: int = config.sampling_rate
        self.entries = int(self.codebooks[0].shape[0])
        self.hop = 1
        for ratio in config.upsampling_ratios:
            self.hop *= int(ratio)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop

    @torch.no_grad()
    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """Codes (B, D, T) int64 of sound (B, 1, N) at ``sample_rate``, T = ceil(N / hop)."""
        return quantiser.encode(self.model.encoder(wave), self.codebooks, self.merge).transpose(0, 1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound (B, 1, T hop) of codes (B, D, T)."""
        return self.model.decoder(quantiser.decode(codes.transpose(0, 1), self.codebooks))

    def stream(self) -> CodeStream:
        """A decoder of one sequence that takes codes in pieces; the pieces' sound equals the whole's."""
        return EncodecStream(self)


class EncodecStream:
    """Streaming decode with carried state: cost and memory of a packet do not depend on what came before.

    The first convolution reflects its start, so sound begins once ``first`` frames are there.
    """

    def __init__(self, codec: Encodec) -> None:
        model = codec.model
        if not model.config.use_causal_conv or model.config.norm_type != "weight_norm":
            raise UserError("only a causal EnCodec with weight norm can be decoded in pieces without a difference")
        self.codec = codec
        self.first = int(model.config.kernel_size)
        self.waiting: torch.Tensor | None = None
        self.state: dict[str, Any] = {}
        self.begun = False

    @torch.no_grad()
    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound (1, 1, n hop) that codes (1, D, n) complete; empty until the first frames are enough."""
        waiting = codes if self.waiting is None else torch.cat([self.waiting, codes], -1)
        if not self.begun and waiting.shape[-1] < self.first:
            self.waiting = waiting
            return torch.zeros(1, 1, 0)
        self.begun, self.waiting = True, None
        if not waiting.shape[-1]:
            return torch.zeros(1, 1, 0)
        return self._run(quantiser.decode(waiting.transpose(0, 1), self.codec.codebooks))

    def flush(self) -> torch.Tensor:
        """The rest (1, 1, n hop): sound of a sequence shorter than ``first`` frames, else nothing."""
        waiting, self.waiting = self.waiting, None
        if waiting is None or not waiting.shape[-1]:
            return torch.zeros(1, 1, 0)
        return self.codec.decode(waiting)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.codec.model.decoder.layers):
            x = self._layer(str(number), layer, x)
        return x

    def _layer(self, name: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        steps: dict[str, Callable[[str, Any, torch.Tensor], torch.Tensor]] = {
            "EncodecConv1d": self._conv,
            "EncodecConvTranspose1d": self._transposed,
            "EncodecLSTM": self._lstm,
            "EncodecResnetBlock": self._block,
        }
        step = steps.get(type(layer).__name__)
        return layer(x) if step is None else step(name, layer, x)

    def _conv(self, name: str, layer: Any, x: torch.Tensor) -> torch.Tensor:
        conv = layer.conv
        before = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
        if before:
            kept = self.state.get(name)
            x = F.pad(x, (before, 0), mode=layer.pad_mode) if kept is None else torch.cat([kept, x], -1)
            self.state[name] = x[..., x.shape[-1] - before :]
        return conv(x)

    def _transposed(self, name: str, layer: Any, x: torch.Tensor) -> torch.Tensor:
        conv = layer.conv
        stride = conv.stride[0]
        made = F.conv_transpose1d(x, conv.weight, None, conv.stride)
        tail = made.shape[-1] - x.shape[-1] * stride  # what the next packet's first samples still need
        kept = self.state.get(name)
        if kept is not None:
            made = torch.cat([made[..., :tail] + kept, made[..., tail:]], -1)
        self.state[name] = made[..., made.shape[-1] - tail :]
        made = made[..., : made.shape[-1] - tail]
        return made if conv.bias is None else made + conv.bias[:, None]

    def _lstm(self, name: str, layer: Any, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(2, 0, 1)
        out, self.state[name] = layer.lstm(rows, self.state.get(name))
        return (out + rows).permute(1, 2, 0)

    def _block(self, name: str, layer: Any, x: torch.Tensor) -> torch.Tensor:
        out = x
        for number, part in enumerate(layer.block):
            out = self._layer(f"{name}.{number}", part, out)
        return self._layer(f"{name}.shortcut", layer.shortcut, x) + out
