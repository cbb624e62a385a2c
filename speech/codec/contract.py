"""What VALL-E R asks of a codec: sound to codes of several layers and back, whole or in pieces."""

from __future__ import annotations

from typing import Protocol

import torch


class CodeStream(Protocol):
    """Decodes one sequence whose codes arrive in pieces."""

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound (1, 1, n) that codes (1, D, t) complete; may be empty."""
        ...

    def flush(self) -> torch.Tensor:
        """The rest of the sound (1, 1, n), once the last codes were pushed."""
        ...


class Codec(Protocol):
    """A neural codec. D layers of ``entries`` codes each; ``merge`` says how many frames share a layer's code."""

    sample_rate: int
    hop: int  # samples a frame
    layers: int
    entries: int
    merge: tuple[int, ...]

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        ...

    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """Codes (B, D, T) int64 of sound (B, 1, N), -1..1, at ``sample_rate``."""
        ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound (B, 1, T hop) of codes (B, D, T)."""
        ...

    def stream(self) -> CodeStream:
        """A decoder that takes one sequence in pieces and gives the same sound."""
        ...
