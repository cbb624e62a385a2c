"""Counter-based noise: noise(seed, item, frame, draw) has the same bits for any sharding, batch size or device.

Each frame has a random stream of its own, named by four counters:
  seed   the run's seed            item   which sample of the batch
  frame  the global frame number   draw   which use: 0 is the initial noise, later draws belong to sampler steps
So a rank that owns frames 40..59 draws exactly what one process draws for those frames, and a frame that is drawn
again later, alone, comes out the same.

From counters to bits:
  key = blake2b-64(four little-endian uint64), and the 624 words of a Mersenne Twister are SHAKE-128 of that key.
Why not `torch.Generator().manual_seed(key)`: on the CPU it keeps only the low 32 bits of its argument, so among the
70,000 streams of a 2,300-frame, 30-step run two would be equal with probability about 0.4.

Noise is drawn on the CPU in float32 and moved afterwards: `noise(...).to(device, dtype)`.

    noise(seed=7, item=0, frames=range(40, 60), draw=0, shape=(4, 8, 8))      # (20, 4, 8, 8)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch

_WORDS = 624  # size of the Mersenne Twister's state, in 32-bit words
# torch keeps the generator's state as a byte tensor: a header of 24 bytes, then each word in 8 bytes
# (CPUGeneratorImpl.cpp, struct CPUGeneratorImplStateLegacy).
_STATE_HEADER_BYTES = 24


def frame_seed(seed: int, item: int, frame: int, draw: int) -> int:
    """The 64-bit key of one frame's stream. Counters are integers in 0 .. 2**64-1; others raise ValueError."""
    counters = (seed, item, frame, draw)
    for name, value in zip(("seed", "item", "frame", "draw"), counters, strict=True):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} is {value}; noise counters are integers from 0 to 2**64 - 1")
    packed = struct.pack("<4Q", *counters)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=b"longtake-noise").digest(), "little")


def frame_generator(seed: int, item: int, frame: int, draw: int) -> torch.Generator:
    """A CPU generator at the start of the frame's stream; `torch.randn(shape, generator=...)` gives `noise`'s bits."""
    key = frame_seed(seed, item, frame, draw)
    generator = torch.Generator(device="cpu").manual_seed(key)
    words = np.frombuffer(hashlib.shake_128(struct.pack("<Q", key)).digest(4 * _WORDS), dtype="<u4")
    state = generator.get_state()
    state[_STATE_HEADER_BYTES : _STATE_HEADER_BYTES + 8 * _WORDS].view(torch.int64).copy_(
        torch.from_numpy(words.astype(np.int64))
    )
    generator.set_state(state)
    return generator


def noise(seed: int, item: int, frames: Sequence[int], draw: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise for some frames of one item.

    frames: global frame numbers, in any order. shape: of one frame, e.g. (channels, height, width).
    Returns float32 on the CPU, (len(frames), *shape); row i depends on (seed, item, frames[i], draw) and shape only.
    """
    out = torch.empty((len(frames), *shape), dtype=torch.float32)
    for row, frame in enumerate(frames):
        out[row] = torch.randn(shape, generator=frame_generator(seed, item, frame, draw), dtype=torch.float32)
    return out
