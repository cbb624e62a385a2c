"""The codec over mels with a vocoder behind it: sound in, codes, sound out.

codec = MelSound(MelCodec(...), vocoder)
codes = codec.encode(wave)                # (B, 1, N) at 22.05 kHz -> (B, 8, N // 256)
"""

from __future__ import annotations

import torch
from longtake.speech import vocoder as vocoders
from longtake.speech.codec.contract import CodeStream
from longtake.speech.codec.mels import MelCodec
from longtake.speech.mel import HOP, RATE, log_mel


class MelSound:
    """A ``Codec`` of a ``MelCodec`` and a vocoder, both on one device."""

    sample_rate, hop = RATE, HOP

    def __init__(self, codec: MelCodec, vocoder: vocoders.Vocoder) -> None:
        self.codec, self.vocoder = codec.eval(), vocoder.eval()
        self.layers, self.entries, self.merge = codec.layers, codec.entries, codec.merge

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return RATE / HOP

    @torch.no_grad()
    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """Codes (B, D, N // 256) int64 of sound (B, 1, N). UserError for sound shorter than a mel needs."""
        return self.codec.encode(log_mel(wave[:, 0]))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound (B, 1, 256 T) of codes (B, D', T)."""
        return self.vocoder(self.codec.decode(codes))[:, None]

    def stream(self) -> CodeStream:
        """A decoder that takes one sequence in pieces and gives the same sound."""
        return MelSoundStream(self)


class MelSoundStream:
    """Decodes codes in pieces: mels with the codec's halo, sound of them with the vocoder's."""

    def __init__(self, codec: MelSound, halo: int = vocoders.HALO) -> None:
        self.codec, self.halo = codec, halo
        self.mels = codec.codec.stream()
        self.window = torch.zeros(1, codec.codec.config["bands"], 0)
        self.given = 0  # frames of the window whose sound was given out

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound (1, 1, n) that codes (1, D, t) complete."""
        return self._until(self.mels.push(codes), self.halo)

    def flush(self) -> torch.Tensor:
        """The rest (1, 1, n)."""
        return self._until(self.mels.flush(), 0)

    @torch.no_grad()
    def _until(self, mel: torch.Tensor, ahead: int) -> torch.Tensor:
        self.window = torch.cat([self.window.to(mel), mel], 2)
        end = self.window.shape[2] - ahead
        if end <= self.given:
            return torch.zeros(1, 1, 0)
        hop = self.codec.hop
        wave = self.codec.vocoder(self.window)[:, None, self.given * hop : end * hop]
        drop = max(0, end - self.halo)
        self.window, self.given = self.window[:, :, drop:], end - drop
        return wave
